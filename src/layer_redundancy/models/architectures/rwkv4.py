"""RWKV-4 as transformers has it, which carries a state and has no attention."""

from typing import Any

import torch
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

    def starts_from_states(self, model: nn.Module) -> bool:
        # On a GPU transformers takes a kernel of its own, whose sweeps were not equal to plain forwards on an H100.
        return model.device.type == "cpu"

    def first_residual(self, first_block: nn.Module, hidden: Tensor) -> Tensor:
        return first_block.pre_ln(hidden)

    def run_block(self, block: nn.Module, hidden: Tensor, args: tuple, kwargs: dict[str, Any]) -> Any:
        if not hasattr(block, "pre_ln"):
            return block(hidden, *args, **kwargs)
        with attributes((block, "layer_id", -1)):  # `first_residual` has applied the norm
            return block(hidden, *args, **kwargs)

    def run_block_from(
        self, block: nn.Module, hidden: Tensor, args: tuple, kwargs: dict[str, Any], state: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        if state is None:
            shift = hidden.new_zeros(2, len(hidden), hidden.shape[-1])
            sums = torch.zeros(3, len(hidden), block.attention.attention_hidden_size, device=hidden.device)
            sums[2] -= 1e30  # the logarithm of nothing, as transformers begins
            state = (*shift, *sums)
        # Each block has a column of what the model keeps for all; here they are one and the same.
        columns = [x[:, :, None].expand(-1, -1, block.attention.layer_id + 1) for x in state]
        # transformers' step for a single token mixes up the sequences of a batch.
        tokens = hidden if hidden.shape[1] > 1 else hidden.expand(-1, 2, -1)
        out = self.run_block(block, tokens, args, kwargs | {"state": columns, "use_cache": True})
        return out[0][:, : hidden.shape[1]], tuple(x[:, :, 0] for x in columns)

    def replace_first_block(self, old: nn.Module, new: nn.Module) -> None:
        if old is not new:
            new.pre_ln = old.pre_ln
            del old.pre_ln


ARCHITECTURE = Rwkv4(
    model_types=("rwkv",),
    carries_state=True,
)
