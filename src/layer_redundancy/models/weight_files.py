"""The files of a checkpoint on this machine: its config, which of them are its weights, and whether they are whole."""

import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch

from layer_redundancy.core import cache
from layer_redundancy.core.errors import StudyError

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
INDEX = ".index.json"
# In the order in which transformers looks for them.
WEIGHTS = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
HASHED = (".json", ".safetensors", ".bin", ".model", ".py")  # suffixes of files that may decide a number
TOKENIZER_TEXTS = ("merges.txt", "vocab.txt")  # what a tokenizer is read from where there is no tokenizer.json
POINTER = b"version https://git-lfs.github.com/spec/"


class Header(NamedTuple):
    """A tensor in a file: whether its numbers have fractions, and its shape."""

    floating: bool
    shape: tuple[int, ...]


def check_pulled(files: Iterable[Path]) -> None:
    """Raises StudyError for a file of which only Git-LFS's pointer is there."""
    for file in files:
        if not file.is_file():
            continue
        with file.open("rb") as stream:
            if stream.read(len(POINTER)) == POINTER:
                raise StudyError(
                    f"{file} is a Git-LFS pointer and not the file itself: run `git lfs pull` in {file.parent}"
                )


def settings(file: Path) -> dict[str, Any]:
    """A checkpoint's config.json, or another file of settings, as it is written.

    Raises:
        StudyError: it is not there, or is no config.
    """
    if not file.is_file():
        raise StudyError(f"model folder {file.parent} has no {file.name}: give a folder written by save_pretrained")
    check_pulled([file])
    found = _json(file)
    if not isinstance(found, dict) or (not found and file.name == CONFIG):
        raise StudyError(f"{file} is no model's config: it holds no table of settings")
    return found


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise StudyError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        what = "is empty" if not file.stat().st_size else f"is no JSON ({error})"
        raise StudyError(f"{file} {what}: copy or download it anew") from error


def weights(folder: Path, explicit: Any = None) -> list[str]:
    """Names of the files that transformers loads a folder's weights from, relative to it; none where there are none.

    Args:
        folder: a checkpoint.
        explicit: the file that its config names (`transformers_weights`), in place of the usual ones.

    Raises:
        StudyError: the index is damaged, or names a file that is not there, or one outside the folder.
    """
    if explicit is not None:
        _check_inside(folder / CONFIG, explicit)
    for name in WEIGHTS if explicit is None else (explicit,):
        if (folder / name).is_file():
            return _in_index(folder / name) if name.endswith(INDEX) else [name]
    return []


def _in_index(file: Path) -> list[str]:
    check_pulled([file])
    index = _json(file)
    shards = index.get("weight_map") if isinstance(index, dict) and "metadata" in index else None
    if not isinstance(shards, dict) or not shards:
        raise StudyError(f"{file} is no index as transformers writes it, with metadata and a weight_map: copy it anew")
    for name in shards.values():
        _check_inside(file, name)
    names = sorted({str(PurePosixPath(name)) for name in shards.values()})
    if missing := [name for name in names if not (file.parent / name).is_file()]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise StudyError(f"{file.parent} lacks {missing[0]}{more}, which {file.name} names: copy or download it")
    return names


def _check_inside(file: Path, name: Any) -> None:
    """Raises StudyError for what a file names as weights and is no path below its folder: nobody would miss them."""
    path = PurePosixPath(name) if isinstance(name, str) else None
    if path is None or path.is_absolute() or ".." in path.parts or not path.parts:
        raise StudyError(
            f"{file} names the weights {name!r}, which is no file in its folder: put them there and name them so"
        )


def fingerprint(folder: Path, names: Iterable[str]) -> str:
    """sha256 over the names and bytes of what decides a checkpoint's numbers.

    Args:
        folder: the checkpoint: its configs, tokenizer, code and weights.
        names: the weights that are loaded, relative to it; they count whatever they are called and wherever they lie.

    Raises:
        StudyError: a file cannot be read.
    """
    digest = hashlib.sha256()
    files = sorted(path.name for path in folder.iterdir() if path.suffix in HASHED and path.is_file())
    if "tokenizer.json" not in files:
        names = {*names, *(name for name in TOKENIZER_TEXTS if (folder / name).is_file())}
    for name in [*files, *sorted({*names} - {*files})]:
        try:
            digest.update(f"{name}:{cache.known_sha256(folder / name)};".encode())
        except OSError as error:
            raise StudyError(f"{folder / name} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def tensors(file: Path) -> dict[str, Header]:
    """What tensors a file of weights holds, none of them read.

    Raises:
        StudyError: it is cut off, or is something else.
    """
    check_pulled([file])
    return _of_safetensors(file) if file.suffix == ".safetensors" else _of_pickle(file)


def _of_safetensors(file: Path) -> dict[str, Header]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  it is no dict
            return {
                name: Header(one.get_dtype().startswith(("F", "BF")), tuple(one.get_shape()))
                for name, one in slices.items()
            }
    except (SafetensorError, OSError) as error:
        what = f"is cut off, or no safetensors file ({error})" if file.stat().st_size else "is empty"
        raise StudyError(f"{file} {what}: copy or download it anew") from error


def tensor(file: Path, name: str) -> torch.Tensor:
    """One tensor of a file of weights, which has it; errors as `tensors`."""
    from safetensors import safe_open

    if file.suffix != ".safetensors":
        return unpickled(file)[name]
    with safe_open(file, "pt") as opened:
        return opened.get_tensor(name)


def _of_pickle(file: Path) -> dict[str, Header]:
    found = unpickled(file, "meta")
    return {
        name: Header(x.is_floating_point(), tuple(x.shape)) for name, x in found.items() if isinstance(x, torch.Tensor)
    }


def unpickled(file: Path, device: str = "cpu") -> dict[str, Any]:
    """What a file of torch.save holds under names; nothing but tensors and plain values is made of it.

    Raises:
        StudyError: it is damaged, or holds something else.
    """
    check_pulled([file])
    try:
        # Files of before torch 1.6 cannot be mapped.
        found = torch.load(file, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # broken archives and pickles raise almost anything
        raise StudyError(f"{file} {pickle_trouble(error) or damaged(error)}") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise StudyError(f"{file} holds something else than a checkpoint's tensors by their names")
    return found


def damaged(error: Exception) -> str:
    """What a file is that torch cannot read, in words that follow its name."""
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return f"cannot be read ({reason}): is it whole? Copy or download it anew"


def pickle_trouble(error: BaseException) -> str | None:
    """What a pickle is that torch refuses, in words that follow its name; None for another trouble."""
    text = " ".join(str(error).split())
    if not isinstance(error, pickle.UnpicklingError) and "Weights only load failed" not in text:
        return None
    wanted = re.search(r"GLOBAL (\S+)", text)
    if wanted is None:
        return "is damaged, or no file of torch.save: copy or download it anew"
    return (
        f"is a pickle that asks for {wanted[1]}, by which it could run any program, and was not loaded: take the "
        "weights as .safetensors, from somebody whom you trust"
    )
