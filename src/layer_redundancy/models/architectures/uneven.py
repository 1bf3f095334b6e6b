"""Models whose blocks differ in width, as `models.uneven` has them."""

from torch import nn

from layer_redundancy.models.architectures.architecture import Architecture


class Uneven(Architecture):
    """Laid out as Llama; written as the plain model that it is where no block differs from another."""

    def register(self) -> None:
        import layer_redundancy.models.uneven  # noqa: F401

    def exported(self, model: nn.Module) -> nn.Module:
        from layer_redundancy.models.uneven.model import fitted

        return model if vars(model.config).get("quantization_config") is not None else fitted(model)


ARCHITECTURE = Uneven(model_types=("uneven_llama", "uneven_mistral", "uneven_qwen2", "uneven_qwen3"))
