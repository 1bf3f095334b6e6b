"""What an exported checkpoint tells of where it comes from, and what it needs beside its weights."""

import json
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from layer_redundancy.core import variants
from layer_redundancy.core.errors import StudyError

NOTE = "layer_redundancy.json"
# What a processor of images, video or sound is made of, beside the tokenizer.
PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "audio_tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
)


def removed_from(model: nn.Module) -> list[list[int]]:
    """Blocks that were removed from a model since it was loaded: each removal in the numbering it was made in."""
    return list(getattr(model, "removed_steps", []))


def made_by(model: nn.Module) -> list[dict[str, Any]]:
    """What has changed a model's weights since it was loaded: method, its plan's settings, fingerprint of its text."""
    return list(getattr(model, "made_by", []))


def note(model: nn.Module, num_blocks: int) -> dict[str, Any]:
    """What is to be known of a model that is exported, and of all that was done before it was loaded.

    Args:
        model: the model as it is written.
        num_blocks: its blocks.

    Raises:
        StudyError: what was noted of the original model cannot be read.

    Returns:
        removed_blocks: all that are gone, ascending, in the numbering of the original model; exported_from: that model;
        steps: the removals one by one, each in the numbering of the model that it was made on; not_loaded: parts of the
        original checkpoint that the model has no place for, with their number of tensors; made_by: the methods that
        folded, merged or cut its weights; and whatever else was noted of the checkpoint that this model was loaded
        from.
    """
    before, earlier = _noted(_file(model, NOTE))
    steps = earlier + removed_from(model)
    numbers, removed = list(range(num_blocks + sum(map(len, steps)))), []
    for number, step in enumerate(steps):
        kept = variants.without(len(numbers), step)
        steps[number] = list(variants.removed_blocks(len(numbers), kept))
        removed += [numbers[i] for i in steps[number]]
        numbers = [numbers[i] for i in kept]
    origin = before.get("exported_from") or before.get("quantized_from") or model.config._name_or_path
    not_loaded = before.get("not_loaded", {}) | getattr(model, "not_loaded", {})
    methods = [*before.get("made_by", []), *made_by(model)]
    more = ({"not_loaded": not_loaded} if not_loaded else {}) | ({"made_by": methods} if methods else {})
    return before | {"removed_blocks": sorted(removed), "exported_from": origin, "steps": steps} | more


def _noted(file: Path | None) -> tuple[dict[str, Any], list[list[int]]]:
    """What a note tells, and the removals in it one by one; nothing of either where there is no note."""
    if file is None:
        return {}, []
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(before, dict):
            raise TypeError("it holds no table")
        first = before.get("removed_blocks", [])
        steps = [[int(i) for i in step] for step in before.get("steps", [first] if first else [])]
        dict(before.get("not_loaded", {}))
        [dict(one) for one in before.get("made_by", [])]
    except (OSError, ValueError, TypeError) as error:
        raise StudyError(
            f"{file} is no note of what was removed ({' '.join(str(error).split())}): copy it anew, or delete it if "
            "nothing was removed from this model"
        ) from error
    return before, steps


def copy_processors(model: nn.Module, folder: Path) -> None:
    """Puts the processors' files of the model's own checkpoint beside an export that still reads more than text."""
    if model.config.get_text_config() is model.config:
        return
    for name in PROCESSOR_FILES:
        if not (folder / name).exists() and (file := _file(model, name)):
            shutil.copyfile(file, folder / name)


def _file(model: nn.Module, name: str) -> Path | None:
    """A file of the checkpoint that a model was loaded from; None where there is none, or none within reach."""
    from transformers.utils import cached_file

    source, commit = model.config._name_or_path, getattr(model.config, "_commit_hash", None)
    if not source or not (Path(source).is_dir() or commit):
        return None  # built from a config
    try:
        found = cached_file(
            source,
            name,
            revision=commit,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except OSError:
        return None
    return Path(found) if found else None
