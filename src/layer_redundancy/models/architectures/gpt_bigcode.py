"""GPT-BigCode (StarCoder, SantaCoder), which has GPT-2's names, but linear layers that are not transposed."""

from layer_redundancy.models.architectures.architecture import Architecture

# Once its output projection was read as if it were GPT-2's.
ARCHITECTURE = Architecture(model_types=("gpt_bigcode",), corrected_heads=1)
