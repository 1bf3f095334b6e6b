"""A config for the blocks that are kept: every setting that counts, lists or numbers a model's blocks."""

from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

from layer_redundancy.models import architectures

# Settings by what they say of a model's blocks. Whatever a setting is called, it means the same in every family.
INDICES = (  # lists of the blocks that have something
    "attn_layer_indices",
    "cross_attention_layers",
    "full_attn_idxs",
    "hybrid_layer_ids",
    "local_layer_ids",
    "mlp_only_layers",
    "moe_layers",
)
NUMBERS_FROM_ONE = ("ple_layer_ids",)  # the same, counted from 1
FIRST = (  # so many of the first blocks have something
    "first_k_dense_replace",
    "max_window_layers",
    "moe_layer_start_index",
    "num_dense_layers",
)
LAST = ("num_kv_shared_layers",)  # so many of the last blocks have something
# How many there are; GPT-2 and others have a name of their own, which is set with num_hidden_layers.
COUNTS = ("num_hidden_layers", "decoder_layers", "num_decoder_layers", "num_blocks")


def changes(config: Any, kept: tuple[int, ...], num_blocks: int) -> Iterator[tuple[Any, str, Any, Any]]:
    """What has to be set for a model to have some of its blocks only.

    Lists with an entry a block keep the entries *of the kept blocks*, lists of blocks' numbers are renumbered, and
    rules by number ("every second block is sparse") are turned into lists where there is one.

    Args:
        config: config of the whole model, which may hold another for its language model.
        kept: indices of the kept blocks, ascending.
        num_blocks: number of blocks of the whole model.

    Yields:
        (config, name of the setting, old value, new value).
    """
    text = config.get_text_config(decoder=True)
    for cfg in [config] if text is config else [config, text]:
        settings = cfg.to_dict()
        new: dict[str, Any] = {}
        if cfg is text:
            new |= {name: len(kept) for name in COUNTS if getattr(cfg, name, None) == num_blocks}
            new |= {name: bisect_left(kept, value) for name, value in _numbers(cfg, FIRST)}
            new |= {name: len(kept) - bisect_left(kept, num_blocks - value) for name, value in _numbers(cfg, LAST)}
            new |= _sparse_blocks(cfg, kept) | _sparse_range(cfg, kept)
        for name in settings:
            value = getattr(cfg, name, None)
            if name in INDICES and isinstance(value, list | tuple):
                new.setdefault(name, type(value)(place for place, i in enumerate(kept) if i in value))
                continue
            if name in NUMBERS_FROM_ONE and isinstance(value, list | tuple):
                new[name] = type(value)(place + 1 for place, i in enumerate(kept) if i + 1 in value)
                continue
            if name in new or not isinstance(value, list | tuple | str) or len(value) != num_blocks:
                continue
            if isinstance(value, str) and "pattern" in name:  # a letter a block
                new[name] = "".join(value[i] for i in kept)
            elif not isinstance(value, str) and any(part in name for part in ("layer", "block", "pattern")):
                new[name] = type(value)(value[i] for i in kept)
        if cfg is text:
            new |= architectures.find(config).settings_of_kept(cfg, kept)
        for name, value in new.items():
            yield cfg, name, getattr(cfg, name), value


def _numbers(config: Any, names: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    return ((name, value) for name in names if isinstance(value := getattr(config, name, None), int))


def _sparse_blocks(config: Any, kept: tuple[int, ...]) -> dict[str, Any]:
    """Qwen's "every n-th block has experts" as a list of those that have none."""
    step, dense = getattr(config, "decoder_sparse_step", 1), getattr(config, "mlp_only_layers", None)
    if step == 1 or dense is None:
        return {}
    without = [place for place, i in enumerate(kept) if i in dense or (i + 1) % step]
    return {"decoder_sparse_step": 1, "mlp_only_layers": without}


def _sparse_range(config: Any, kept: tuple[int, ...]) -> dict[str, Any]:
    """Ernie's "every n-th block from this one to that one has experts"; empty where it cannot be said of those kept."""
    names = [f"moe_layer_{what}" for what in ("interval", "start_index", "end_index")]
    if not all(isinstance(getattr(config, name, None), int) for name in names):
        return {}
    interval, start, end = (getattr(config, name) for name in names)
    sparse = [place for place, i in enumerate(kept) if (i + 1) % interval == 0 and start <= i <= end]
    if not sparse:
        return dict(zip(names, (1, len(kept), len(kept)), strict=True))
    for interval in range(1, len(kept) + 1):
        if sparse == [i for i in range(sparse[0], sparse[-1] + 1) if (i + 1) % interval == 0]:
            return dict(zip(names, (interval, sparse[0], sparse[-1]), strict=True))
    return {}
