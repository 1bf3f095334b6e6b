"""RWKV-5 checkpoints as their author publishes them (.pth, or the same in .safetensors), made into folders to load.

A file does not state its version or sizes: both are read off the names and shapes of its tensors.
"""

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from layer_redundancy.core import cache, paths
from layer_redundancy.core.errors import StudyError
from layer_redundancy.models import weight_files

if TYPE_CHECKING:
    from layer_redundancy.models.rwkv5.model import Rwkv5Config, Rwkv5ForCausalLM

RULES_VERSION = 1  # part of the copy's name: raise it when `convert` writes something else

# Parts of the author's names, between dots -> those of the ports on the hub, which are ours.
_PARTS = {
    "emb": "embeddings",
    "ln0": "pre_ln",
    "att": "attention",
    "ffn": "feed_forward",
    "time_mix_k": "time_mix_key",
    "time_mix_v": "time_mix_value",
    "time_mix_r": "time_mix_receptance",
    "time_mix_g": "time_mix_gate",
}
_AUTHORS_PARTS = {ours: theirs for theirs, ours in _PARTS.items()}


def folder(file: Path) -> Path:
    """A folder for `from_pretrained` in the cache, made of a checkpoint file at the first call.

    A tokenizer.json beside the file comes along. Of a killed conversion nothing is left that looks finished.

    Raises:
        StudyError: the file cannot be read, or is no RWKV-5 checkpoint.
    """
    try:
        digest = cache.known_sha256(file)
    except OSError as error:
        raise StudyError(f"{file} cannot be read: {error.strerror or error}") from error
    target = paths.CACHE / f"rwkv5-{digest[:12]}-v{RULES_VERSION}"
    return cache.made_at(target, "rwkv", lambda made: convert(file, made))


def convert(file: Path, target: Path) -> None:
    """Writes a checkpoint file as a folder: config.json and model.safetensors, the dtype kept.

    Args:
        file: a .pth or .safetensors file with the author's names, or those of the ports on the hub.
        target: the folder to write.

    Raises:
        StudyError: as `folder`.
    """
    from safetensors.torch import save_file

    tensors, config = translate(read(file), file.name)
    target.mkdir(parents=True)
    save_file({name: x.contiguous() for name, x in tensors.items()}, target / "model.safetensors", {"format": "pt"})
    config.architectures = ["Rwkv5ForCausalLM"]
    config.save_pretrained(target)
    beside = file.with_name("tokenizer.json")
    if beside.is_file():
        shutil.copy(beside, target)
        tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast"}
        (target / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))


def read(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file; nothing but tensors is loaded from a pickle.

    Raises:
        StudyError: it is not there, truncated, or something else.
    """
    from safetensors.torch import load_file

    if file.suffix == ".safetensors":
        weight_files.tensors(file)
        return load_file(file)
    tensors = weight_files.unpickled(file)
    if not all(isinstance(x, Tensor) for x in tensors.values()):
        raise StudyError(f"{file} holds something else than a checkpoint's tensors")
    return tensors


def version(tensors: dict[str, Tensor]) -> str:
    """The RWKV version that names and shapes tell: "4", "5.0", "5.1", "5.2", "6" or "7"; "" for no RWKV at all."""

    def has(pattern: str) -> bool:
        return any(re.search(pattern, name) for name in tensors)

    if not has(r"blocks\.\d+\.(att|attention)\."):
        return ""
    if has(r"\.(r_k|x_r|w0)$"):
        return "7"
    if has("time_maa"):
        return "6"
    if not has(r"\.ln_x\."):
        return "4"
    if not has(r"\.(att|attention)\.gate\."):
        return "5.0"
    decay = next((x for name, x in tensors.items() if name.endswith("time_decay")), None)
    return "5.2" if decay is not None and decay.ndim > 1 and decay.shape[1] > 1 else "5.1"


def translate(tensors: dict[str, Tensor], name: str) -> tuple[dict[str, Tensor], "Rwkv5Config"]:
    """Tensors of a checkpoint under our names and in our shapes, and the config that they imply.

    Args:
        tensors: the tensors in the file.
        name: name of the file, for messages.

    Raises:
        StudyError: another version of RWKV, tensors missing, too many, or of other shapes.
    """
    from layer_redundancy.models.rwkv5.model import VERSIONS, Rwkv5Config, Rwkv5ForCausalLM

    found = version(tensors)
    if found not in VERSIONS:
        what = f"an RWKV-{found} checkpoint" if found else "no RWKV checkpoint"
        raise StudyError(
            f"{name} is {what}: only RWKV-{' and RWKV-'.join(VERSIONS)} are read as single files, give the folder of "
            "any other model"
        )
    ours = {_our_name(key): x for key, x in tensors.items()}
    for key in [key for key in ours if key.endswith("attention.time_first")]:  # early files store log u
        ours[key.replace("time_first", "time_faaaa")] = ours.pop(key).float().exp()
    what = f"{name} is RWKV-{found}"
    needed = ("rwkv.embeddings.weight", "rwkv.blocks.0.attention.key.weight", "rwkv.blocks.0.feed_forward.key.weight")
    for key in (*needed, "rwkv.blocks.0.attention.time_decay"):
        if key not in ours or not ours[key].numel() or ours[key].ndim < (2 if key in needed else 1):
            raise StudyError(f"{what} but lacks {key}: the file is not whole")
    vocabulary, hidden = ours[needed[0]].shape
    inner, heads = len(ours[needed[1]]), len(ours["rwkv.blocks.0.attention.time_decay"])
    config = Rwkv5Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=1 + max(int(n[1]) for key in ours if (n := re.match(r"rwkv\.blocks\.(\d+)\.", key))),
        attention_hidden_size=inner,
        head_size=inner // heads,
        intermediate_size=len(ours[needed[2]]),
        model_version=found,
        dtype=ours[needed[0]].dtype,
    )
    with torch.device("meta"):
        expected = Rwkv5ForCausalLM(config).state_dict()
    expected = {re.sub(r"^rwkv\.pre_ln", "rwkv.blocks.0.pre_ln", key): x.shape for key, x in expected.items()}
    for problem, keys in (("lacks", expected.keys() - ours.keys()), ("also has", ours.keys() - expected.keys())):
        if keys:
            raise StudyError(
                f"{what} with {config.num_hidden_layers} blocks, but {problem} {len(keys)} tensors (first: {min(keys)})"
            )
    for key, shape in expected.items():
        if ours[key].numel() != shape.numel():
            raise StudyError(f"{what}, but {key} has shape {tuple(ours[key].shape)} and not {tuple(shape)}")
        ours[key] = ours[key].reshape(shape)
    return ours, config


def save(model: "Rwkv5ForCausalLM", file: Path) -> None:
    """Writes a model, pruned ones too, as the .pth file that its author's own code reads.

    Args:
        model: an RWKV-5, its dtype is kept.
        file: what to write; a file that is there is replaced.
    """
    tensors = {_authors_name(name): x.detach().cpu().clone() for name, x in model.state_dict().items()}
    temporary = file.with_suffix(".tmp")
    torch.save(tensors, temporary)
    temporary.replace(file)


def _our_name(name: str) -> str:
    name = ".".join(_PARTS.get(part, part) for part in name.split("."))
    return name if name.startswith(("rwkv.", "head.")) else f"rwkv.{name}"


def _authors_name(name: str) -> str:
    name = ".".join(_AUTHORS_PARTS.get(part, part) for part in name.removeprefix("rwkv.").split("."))
    return f"blocks.0.{name}" if name.startswith("ln0.") else name
