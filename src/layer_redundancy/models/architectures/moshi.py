"""Moshi, whose attention has no causal mask unless it is given one."""

from layer_redundancy.models.architectures.architecture import Architecture

# Once what continued prefixes of one length saw too little of them.
ARCHITECTURE = Architecture(model_types=("moshi",), corrected_prefixes=1)
