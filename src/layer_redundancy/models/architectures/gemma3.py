"""Gemma-3 with a vision tower beside the language model."""

from layer_redundancy.models.architectures.architecture import Architecture, Layout

ARCHITECTURE = Architecture(
    model_types=("gemma3",),
    layouts=(Layout("model.language_model.layers", ("model.language_model.norm",)),),
)
