"""RWKV-4 as transformers has it, which carries a state and has no attention."""

from typing import Any

from torch import Tensor, nn

from layer_redundancy.models.architectures.architecture import Architecture
from layer_redundancy.models.attributes import attributes


class Rwkv4(Architecture):
    """RWKV-4: the embedding's norm is kept in whichever block comes first."""

    def prepare(self, model: nn.Module) -> None:
        """Undoes the rescaling for inference (in place).

        transformers divides the weights of later blocks by powers of two for fp16's sake and halves the residual stream
        every `rescale_every` blocks. Blocks could then not be moved, and hidden states of different depths not be
        compared; fp32 and bf16 do not need it.
        """
        if not model.config.rescale_every:
            return
        base = model.base_model
        if base.layers_are_rescaled:
            base.training = True  # _rescale_layers multiplies back when it believes that training begins
            base._rescale_layers()
            base.training = False
        model.config.rescale_every = 0

    def first_residual(self, first_block: nn.Module, hidden: Tensor) -> Tensor:
        return first_block.pre_ln(hidden)

    def run_block(self, block: nn.Module, hidden: Tensor, args: tuple, kwargs: dict[str, Any]) -> Any:
        if not hasattr(block, "pre_ln"):
            return block(hidden, *args, **kwargs)
        with attributes((block, "layer_id", -1)):  # `first_residual` has applied the norm
            return block(hidden, *args, **kwargs)

    def replace_first_block(self, old: nn.Module, new: nn.Module) -> None:
        if old is not new:
            new.pre_ln = old.pre_ln
            del old.pre_ln


ARCHITECTURE = Rwkv4(
    model_types=("rwkv",),
)
