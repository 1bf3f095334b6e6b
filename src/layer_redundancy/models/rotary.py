"""Rotary position embeddings whose angles depend on the length of what runs: dynamic NTK scaling and LongRoPE."""

from collections.abc import Iterator

from torch import nn


def scaled_from(model: nn.Module) -> Iterator[int]:
    """The lengths beyond which angles change with the length, of each module that makes such angles."""
    for module in model.modules():
        for layer_type, kind in _kinds(module):
            if kind == "longrope":
                settings = module.config.rope_parameters
                settings = settings if layer_type is None else settings[layer_type]
                yield settings["original_max_position_embeddings"]
            elif "dynamic" in kind:
                yield module.original_max_seq_len


def forget_lengths(model: nn.Module) -> None:
    """Lets angles depend on the length of what runs, not of what ran before (in place).

    With dynamic scaling, transformers keeps the angles of the longest sequence so far for all that are longer than the
    model was made for.
    """
    for module in model.modules():
        dynamic = any("dynamic" in kind for _, kind in _kinds(module))
        if dynamic and _forget not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_forget)


def _kinds(module: nn.Module) -> Iterator[tuple[str | None, str]]:
    """(type of layer, or None for all, kind of angles) of a module that makes rotary embeddings."""
    kinds = getattr(module, "rope_type", None)
    for layer_type, kind in kinds.items() if isinstance(kinds, dict) else [(None, kinds)]:
        if isinstance(kind, str):
            yield layer_type, kind


def _forget(module: nn.Module, _: tuple) -> None:
    for name in vars(module):
        if name.endswith("max_seq_len_cached"):
            setattr(module, name, 0)
