"""Mamba, which carries a state and has no attention."""

from layer_redundancy.models.architectures.architecture import Architecture

ARCHITECTURE = Architecture(
    model_types=("mamba", "mamba2", "falcon_mamba"),
    read_past_adapters=("out_proj",),  # by the fused kernel
)
