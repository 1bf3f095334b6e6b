"""Rotary position embeddings whose angles depend on the length of what runs: dynamic NTK scaling and LongRoPE."""

from typing import Any

from torch import nn


def scaled_from(config: Any) -> int | None:
    """The length beyond which a model's rotary angles change with the length; None where they never do."""
    text = config.get_text_config(decoder=True)
    settings = getattr(text, "rope_parameters", None) or {}
    by_layer_type = settings.values() if all(isinstance(one, dict) for one in settings.values()) else [settings]
    lengths = []
    for one in by_layer_type:
        kind = str(one.get("rope_type", ""))
        if kind == "longrope":
            lengths.append(one.get("original_max_position_embeddings") or text.original_max_position_embeddings)
        elif "dynamic" in kind:
            lengths.append(text.max_position_embeddings)
    return min(lengths, default=None)


def corrected(config: Any, length: int) -> int:
    """1 where values of texts of so many tokens were once wrong, for the version of what is measured; 0 elsewhere.

    They were those of the longest sequence of a batch, or of whatever ran before.

    Args:
        config: the model's config; None for one that is not known.
        length: tokens of the longest text.
    """
    alike = None if config is None else scaled_from(config)
    return int(alike is not None and length > alike)


def forget_lengths(model: nn.Module) -> None:
    """Lets angles depend on the length of what runs, not of what ran before (in place).

    With dynamic scaling, transformers keeps the angles of the longest sequence so far for all that are longer than the
    model was made for.
    """
    for module in model.modules():
        kinds = getattr(module, "rope_type", "")
        dynamic = any("dynamic" in kind for kind in (kinds.values() if isinstance(kinds, dict) else [str(kinds)]))
        if dynamic and _forget not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_forget)


def _forget(module: nn.Module, _: tuple) -> None:
    for name in vars(module):
        if name.endswith("max_seq_len_cached"):
            setattr(module, name, 0)
