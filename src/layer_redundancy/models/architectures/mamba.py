"""Mamba, which carries a state and has no attention."""

from layer_redundancy.models.architectures.architecture import Architecture, Layout

ARCHITECTURE = Architecture(
    model_types=("mamba", "mamba2", "falcon_mamba"),
    layouts=(Layout("backbone.layers", ("backbone.norm_f",)),),
    attentions=(),
)
