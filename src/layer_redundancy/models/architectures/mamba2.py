"""Mamba-2, whose scan can start from a state; transformers' scan of the first Mamba begins with none."""

from typing import Any

from torch import Tensor, nn

from layer_redundancy.models.architectures.architecture import Architecture


class Mamba2(Architecture):
    """Mamba-2: the state is that of its convolution, and that of its scan."""

    def run_block_from(
        self, block: nn.Module, hidden: Tensor, args: tuple, kwargs: dict[str, Any], state: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        from transformers.cache_utils import Cache, LinearAttentionLayer

        place = block.layer_idx
        cache = Cache(layers=[LinearAttentionLayer() for _ in range(place + 1)])
        if state is not None:
            cache.update_conv_state(state[0], place)
            cache.update_recurrent_state(state[1], place)
        out = block(hidden, *args, **kwargs | {"cache_params": cache})
        layer = cache.layers[place]
        return out, (layer.conv_states[0], layer.recurrent_states[0])


ARCHITECTURE = Mamba2(
    model_types=("mamba2",),
    carries_state=True,
    masks_padding=True,
)
