"""GPT-NeoX and Pythia."""

from layer_redundancy.models.architectures.architecture import Architecture

ARCHITECTURE = Architecture(
    model_types=("gpt_neox",),
    # transformers leaves a head that it renames while it loads packed weights in the file's dtype.
    whole_when_packed=frozenset({"lm_head.weight"}),
)
