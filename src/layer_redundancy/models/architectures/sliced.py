"""Models whose residual stream was sliced, as `models.sliced` has them: laid out as Llama."""

from layer_redundancy.models.architectures.architecture import Architecture


class Sliced(Architecture):
    """Each place of the residual stream has a basis of its own, so no block can go without the next ones seeing it."""

    def register(self) -> None:
        import layer_redundancy.models.sliced  # noqa: F401


ARCHITECTURE = Sliced(
    model_types=("sliced_llama", "sliced_mistral", "sliced_qwen2", "sliced_qwen3"), blocks_can_go=False
)
