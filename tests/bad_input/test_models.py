"""Models that a user names: what can be no model, or would be another one than it says, ends in one line."""

import inspect
import json
import os
import pickle
import pkgutil
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

import layer_redundancy
from layer_redundancy.config import profiles
from layer_redundancy.core import cache, doors, paths
from layer_redundancy.data import corpora
from layer_redundancy.models import checkpoints, loading, provenance, weight_files
from layer_redundancy.models.quantize import Scheme
from layer_redundancy.study import Study
from one_line import refusal

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
WEIGHTS, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
IDS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A Llama of 4 blocks with a tokenizer of bytes. Its tests change copies."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    sizes = {"vocab_size": 256, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    tf.LlamaForCausalLM(tf.LlamaConfig(**sizes, **heads, bos_token_id=1, eos_token_id=2)).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({sign: i for i, sign in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def model(tiny, tmp_path) -> Path:
    return shutil.copytree(tiny, tmp_path / "m")


def identify(folder: Path | str, **changes: object) -> checkpoints.ModelIdentity:
    return checkpoints.identify(replace(profiles.get("smoke", model=str(folder)), **changes))


def look(folder: Path | str) -> torch.nn.Module:
    """All that is read of a model when it is studied."""
    identity = identify(folder)
    loading.load_tokenizer(identity)
    return loading.load(identity)


def logits(folder: Path) -> torch.Tensor:
    return look(folder)(IDS).logits


# ------------------------------------------------------------------------------------------------ changes of a folder

Change = Callable[[Path], object]


def config(**values: object) -> Change:
    def change(folder: Path) -> None:
        found = json.loads((folder / "config.json").read_text()) | values
        (folder / "config.json").write_text(json.dumps(found))

    return change


def text(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content)


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """The weights, changed: what the change returns, or what it has made of them."""

    def write(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        found = change(found) or found
        save_file({name: x.contiguous() for name, x in found.items()}, folder / WEIGHTS, {"format": "pt"})

    return write


def more(**values: torch.Tensor) -> Change:
    """Tensors beside those that are there; __ stands for a dot."""
    return tensors(lambda found: found | {name.replace("__", "."): x for name, x in values.items()})


def filled(name: str, value: float) -> Change:
    """One number in the last row of a weight is another one."""

    def change(found: dict[str, torch.Tensor]) -> None:
        found[name][-1, 0] = value

    return tensors(change)


def only(kept: Callable[[str], bool]) -> Change:
    return tensors(lambda found: {name: x for name, x in found.items() if kept(name)})


def pickled(content: Callable[[dict[str, torch.Tensor]], object], **options: object) -> Change:
    def write(folder: Path) -> None:
        torch.save(content(load_file(folder / WEIGHTS)), folder / PICKLE, **options)
        (folder / WEIGHTS).unlink()

    return write


def indexed(place: object, there: str | None = None) -> Change:
    """The weights in a file that an index names in some way."""

    def write(folder: Path) -> None:
        names = list(load_file(folder / WEIGHTS))
        if there is None:
            (folder / WEIGHTS).unlink()
        else:
            (folder / there).parent.mkdir(exist_ok=True)
            (folder / WEIGHTS).rename(folder / there)
        text(INDEX, json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, place)}))(folder)

    return write


def cut(name: str, share: float) -> Change:
    def write(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return write


def gone(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names]


def link(name: str, target: str) -> Change:
    def write(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return write


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


class Evil:
    """What a pickle does when it is read: it makes a folder."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("ran",)


def quantized(**values: object) -> Change:
    return config(quantization_config=values)


Q = "model__layers__1__self_attn__q_proj__"

REFUSED: dict[str, tuple[Change, str]] = {
    # what makes the files
    "config.json is a Git-LFS pointer": (
        text("config.json", POINTER),
        "config.json is a Git-LFS pointer .*git lfs pull",
    ),
    "the weights are a Git-LFS pointer": (text(WEIGHTS, POINTER), f"{WEIGHTS} is a Git-LFS pointer"),
    "the tokenizer is a Git-LFS pointer": (text("tokenizer.json", POINTER), "tokenizer.json is a Git-LFS pointer"),
    "config.json is a list": (text("config.json", "[1]"), "config.json is no model's config"),
    "config.json is no JSON": (text("config.json", "{not json"), "config.json is no JSON"),
    "config.json is empty": (text("config.json", ""), "config.json is empty"),
    "config.json is nested without end": (text("config.json", "[" * 10**5), "config.json is no JSON"),
    "config.json is not there": (gone("config.json"), "has no config.json: give a folder"),
    "generation_config.json is no JSON": (text("generation_config.json", "{"), "generation_config.json is no JSON"),
    "the weights are cut off": (cut(WEIGHTS, 0.5), f"{WEIGHTS} is cut off, or no safetensors file .*anew"),
    "the weights are empty": (cut(WEIGHTS, 0), f"{WEIGHTS} is empty"),
    "the weights are a link to nothing": (link(WEIGHTS, "nowhere"), "no file named model.safetensors"),
    "the weights are a link to themselves": (link(WEIGHTS, WEIGHTS), "no file named model.safetensors"),
    "the pickle is cut off": (both(pickled(dict), cut(PICKLE, 0.5)), f"{PICKLE} cannot be read .*is it whole"),
    "the pickle is empty": (both(pickled(dict), cut(PICKLE, 0)), f"{PICKLE} cannot be read .*is it whole"),
    "the pickle is a list": (pickled(lambda found: [*found.values()]), "something else than a checkpoint's tensors"),
    "the pickle would run a program": (
        pickled(lambda found: found | {"x": Evil()}),
        "is a pickle that asks for posix.mkdir, .* and was not loaded",
    ),
    "the pickle of old form would run a program": (
        pickled(lambda found: found | {"x": Evil()}, _use_new_zipfile_serialization=False),
        "is a pickle that asks for",
    ),
    "the pickle is none of torch": (
        both(gone(WEIGHTS), lambda folder: (folder / PICKLE).write_bytes(pickle.dumps({"x": Evil()}, 2))),
        "is a pickle|damaged",
    ),
    # what an index names
    "an index names weights beside the folder": (
        indexed("../outside.safetensors", "../outside.safetensors"),
        "no file in its folder",
    ),
    "an index goes out by a way round": (indexed("a/../../x.safetensors"), "no file in its folder"),
    "an index names an absolute path": (
        indexed("/etc/passwd"),
        "names the weights '/etc/passwd', which is no file in its",
    ),
    "an index names a number": (indexed(5), "names the weights 5, which is no file in its folder"),
    "an index names what is not there": (indexed("part-2.safetensors"), "lacks part-2.safetensors, which .* names"),
    "an index is no JSON": (both(indexed("x", "x"), text(INDEX, "{")), f"{INDEX} is no JSON"),
    "an index is a list": (both(indexed("x", "x"), text(INDEX, "[]")), f"{INDEX} is no index as transformers"),
    "a config names weights beside the folder": (
        config(transformers_weights="../x.safetensors"),
        "no file in its folder",
    ),
    # another model than the weights are of
    "6 blocks in the config, 4 in the weights": (config(num_hidden_layers=6), "lacks 18 weights .*names other blocks"),
    "5000 blocks in the config, 4 in the weights": (
        config(num_hidden_layers=5000),
        "says 5000 blocks, .* numbered 0 to 3",
    ),
    "2 blocks in the config, 4 in the weights": (
        config(num_hidden_layers=2),
        "says 2 blocks, the checkpoint has others",
    ),
    "no block": (config(num_hidden_layers=0), "no num_hidden_layers"),
    "less than no block": (config(num_hidden_layers=-3), "num_hidden_layers must be a whole number from 1, not -3"),
    "four blocks": (config(num_hidden_layers="four"), "num_hidden_layers.*expected int"),
    "another hidden size": (config(hidden_size=64), r"weight has shape \(256, 32\) .* \(256, 64\) .*hidden_size"),
    "another width inside": (config(intermediate_size=96), r"\(32, 48\) in the checkpoint .*look at intermediate_size"),
    "a smaller vocabulary": (
        config(vocab_size=100),
        r"\(256, 32\) in the checkpoint and \(100, 32\).*look at vocab_size",
    ),
    "heads that keys do not fit": (config(num_key_value_heads=4), r"k_proj.weight has shape \(16, 32\).*heads"),
    "no heads": (config(num_attention_heads=0), "cannot be loaded"),
    "positions in a way that is none": (
        config(rope_parameters={"rope_type": "frob"}),
        "not as transformers takes them",
    ),
    "positions by a factor below 1": (
        config(rope_parameters={"rope_type": "linear", "factor": -1.0, "rope_theta": 1e4}),
        "the factor of its rope_parameters must be at least 1, not -1.0",
    ),
    "positions without their factor": (config(rope_parameters={"rope_type": "yarn"}), "Missing required keys"),
    "an unknown model_type": (config(model_type="frobnicator"), "knows no model_type 'frobnicator'"),
    "no model_type": (config(model_type=None), "cannot be loaded"),
    "an encoder and a decoder": (
        config(model_type="t5", num_layers=4, num_hidden_layers=4),
        "no causal language model of text alone for a T5Config",
    ),
    "an unknown quant_method": (
        quantized(quant_method="frob", bits=4),
        "quant_method 'frob', which transformers does not",
    ),
    "a quantization without a method": (quantized(bits=4), "quant_method None"),
    "a quantization that is a text": (config(quantization_config="int4"), "quantization_config .* must be a table"),
    # weights that would be passed over, or be others
    "an adapter that is not merged": (
        more(**{f"{Q}lora_A__weight": torch.ones(2, 32)}),
        "holds an adapter .* merge it",
    ),
    "an adapter around the whole": (
        tensors(lambda found: {f"base.{name}": x for name, x in found.items()} | {"x.lora_B.weight": torch.ones(2)}),
        "holds an adapter that is not merged",
    ),
    "an adapter as peft writes it": (
        both(gone("config.json", WEIGHTS), text("adapter_config.json", "{}")),
        "holds an adapter .*merge it",
    ),
    "the config of an adapter beside the weights": (text("adapter_config.json", "{}"), "holds an adapter .*merge it"),
    "a bias that the model has no place for": (more(**{f"{Q}bias": torch.ones(32)}), "has no place for .*q_proj.bias"),
    "a scale that the model has no place for": (
        more(**{f"{Q}weight_scale": torch.ones(1)}),
        "has no place for .*scale",
    ),
    "a bias of the head": (more(lm_head__bias=torch.ones(256)), "has no place for lm_head.bias"),
    "weights that are whole numbers": (
        tensors(lambda found: {n: (x * 99).int() for n, x in found.items()}),
        "whole numbers",
    ),
    "one matrix of bytes": (
        tensors(lambda found: found | {"model.layers.2.mlp.up_proj.weight": torch.ones(48, 32, dtype=torch.int8)}),
        "layers.2.mlp.up_proj.weight holds whole numbers",
    ),
    "whole numbers in a pickle": (pickled(lambda found: {n: x.long() for n, x in found.items()}), "whole numbers"),
    "NaN in a block": (filled("model.layers.2.mlp.up_proj.weight", torch.nan), "up_proj.weight holds NaN"),
    "infinity in the embedding of a rare token": (
        filled("model.embed_tokens.weight", torch.inf),
        "embed_tokens.weight holds NaN or inf",
    ),
    "a head in the weights that the config ties": (
        config(tie_word_embeddings=True),
        "tie_word_embeddings.*has another one",
    ),
    "no head in the weights, and none tied": (
        only(lambda name: "lm_head" not in name),
        "the output head, .*tie_word_embeddings",
    ),
    "no head in the weights, and no embedding either": (
        both(config(tie_word_embeddings=True), only(lambda name: "lm_head" not in name and "embed" not in name)),
        "the output head, which would be random: give one that is whole$",
    ),
    "names of a model that was trained on several devices": (
        tensors(lambda found: {f"module.{name}": x for name, x in found.items()}),
        "none of its tensors .first: module.lm_head.weight. has the name of a weight of LlamaForCausalLM",
    ),
    "a norm is missing": (only(lambda name: name != "model.norm.weight"), "lacks model.norm.weight"),
    # the tokenizer
    "no tokenizer": (
        gone("tokenizer.json", "tokenizer_config.json"),
        "has no tokenizer: put its tokenizer.json beside it",
    ),
    "a tokenizer that is cut off": (cut("tokenizer.json", 0.5), "the tokenizer of .*cannot be loaded"),
    "a tokenizer that is empty": (cut("tokenizer.json", 0), "the tokenizer of .*cannot be loaded"),
    "settings of a tokenizer that are a list": (
        text("tokenizer_config.json", "[]"),
        "the tokenizer of .*cannot be loaded",
    ),
}


@pytest.mark.parametrize(("change", "words"), REFUSED.values(), ids=REFUSED)
def test_a_damaged_or_misleading_folder_is_refused(change, words, model, monkeypatch):
    monkeypatch.chdir(model)
    change(model)
    line = refusal(lambda: look(model))
    assert re.search(words, line), line
    assert "weights_only" not in line and not (model / "ran").exists()


HARMLESS: dict[str, Change] = {
    "angles of an older Llama": more(model__layers__1__self_attn__rotary_emb__inv_freq=torch.ones(4)),
    "masks of an older GPT-2": more(
        model__layers__1__attn__bias=torch.ones(1, 1, 8, 8), model__layers__1__attn__masked_bias=torch.tensor(-1e4)
    ),
    "cosines of older models": more(model__layers__1__self_attn__rotary_emb__cos_cached=torch.ones(1, 1, 9, 4)),
    "positions beside the blocks": more(model__norm__positions=torch.ones(9)),
    "a bias of zero, as AutoGPTQ writes it": more(**{f"{Q}bias": torch.zeros(32)}),
    "heads for further tokens": more(mtp__layers__0__proj__weight=torch.ones(4)),
    "a vision tower": more(vision_tower__layers__9__q_proj__weight=torch.ones(3, 3)),
    "a head that judges": more(v_head__summary__weight=torch.ones(1, 32)),
    "the head is the embedding, and there twice": both(
        config(tie_word_embeddings=True),
        tensors(lambda found: found | {"lm_head.weight": found["model.embed_tokens.weight"].clone()}),
    ),
    "twice as many digits": tensors(lambda found: {name: x.double() for name, x in found.items()}),
    "a pickle": pickled(dict),
    "a pickle of old form": pickled(dict, _use_new_zipfile_serialization=False),
    "a pickle beside them of which only the pointer is there": text(PICKLE, POINTER),
    "a folder called as a file": lambda folder: (folder / "x.json").mkdir(),
    "a link to nothing beside them": link("x.json", "nowhere"),
    "a pipe beside them": lambda folder: os.mkfifo(folder / "x.json"),
    "an index of other files, which is not read": text(INDEX, '{"metadata": {}, "weight_map": {"a": "../b"}}'),
    "an index of a folder below": indexed("below/part.safetensors", "below/part.safetensors"),
    "a config that names a file below": both(
        indexed("", "below.safetensors"), gone(INDEX), config(transformers_weights="below.safetensors")
    ),
    "settings of writing that are empty": text("generation_config.json", "{}"),
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_what_looks_odd_and_is_right_is_the_same_model(change, tiny, model):
    change(model)
    whole = look(tiny)
    tied = json.loads((model / "config.json").read_text())["tie_word_embeddings"]
    head = whole.model.embed_tokens if tied else whole.lm_head
    torch.testing.assert_close(logits(model), whole.model(IDS).last_hidden_state @ head.weight.T)


def test_files_that_are_links_as_on_the_hubs_cache_are_the_same_model(tiny, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "12ab"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(tiny.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert identify(snapshot).fingerprint == identify(tiny).fingerprint
    assert torch.equal(logits(snapshot), logits(tiny))


# ------------------------------------------------------------------------------------------------ what may be named

NAMES = {
    "nothing but blanks": ("   ", "is blank: give a folder or an id"),
    "an address": ("https://huggingface.co/gpt2", "is an address: give the id alone"),
    "three parts": ("a/b/c", "no such folder .*owner/name"),
    "a folder that is not there": ("/no/such/folder", "no such folder"),
    "a device": ("/dev/null", "no such folder"),
    "the home folder of nobody": ("~nobody-at-all/x", "no such folder"),
    "a name that no file system takes": ("/" + "a" * 300, "no such folder"),
    "a folder above": ("..", "has no config.json"),
    "two lines": ("a\nb", "no such repository"),
    "a null byte": ("a\0b", "no such repository"),
    "an option": ("--help", "no such repository"),
}


@pytest.mark.parametrize(("name", "words"), NAMES.values(), ids=NAMES)
def test_a_name_of_no_model_is_refused(name, words, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    line = refusal(lambda: identify(name))
    assert re.search(words, line), line


FILES = {
    "a text": ("a.txt", b"hello", "is a file: give the folder"),
    "a GGUF": ("a.gguf", b"GGUF" + bytes(99), "is a file: give the folder"),
    "a safetensors file of another model": (
        "a.safetensors",
        None,
        "no RWKV checkpoint: .*give the folder of any other",
    ),
    "an empty .pth": ("a.pth", b"", "a.pth cannot be read .*is it whole"),
    "a .pth that is a text": ("a.pth", b"hello", "a.pth cannot be read .*is it whole"),
    "a .pth that would run a program": ("a.pth", pickle.dumps({"x": Evil()}, 2), "a.pth is a pickle|a.pth is damaged"),
    "a .pth of which only the pointer is there": ("a.pth", POINTER.encode(), "a.pth is a Git-LFS pointer"),
}


@pytest.mark.parametrize(("name", "content", "words"), FILES.values(), ids=FILES)
def test_a_file_that_is_no_model_is_refused(name, content, words, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes((tiny / WEIGHTS).read_bytes() if content is None else content)
    line = refusal(lambda: identify(tmp_path / name))
    assert re.search(words, line), line
    assert not (tmp_path / "ran").exists()


def test_a_folder_is_named_by_a_path_and_by_a_link(tiny, tmp_path):
    (tmp_path / "link").symlink_to(tiny)
    opened = [Study.open("smoke", model, store=tmp_path / "s.sqlite") for model in (tiny, str(tiny), tmp_path / "link")]
    opened.append(Study.open("smoke", tiny, revision=None, store=tmp_path / "s.sqlite"))
    assert len({study.identity.fingerprint for study in opened}) == 1
    odd = shutil.copytree(tiny, tmp_path / "my mödel 'q' \"d\" $HOME `x`\nline")
    assert Study.open("smoke", odd, store=tmp_path / "s.sqlite").identity == replace(
        opened[0].identity, name=str(odd), source=str(odd)
    )
    (odd / WEIGHTS).write_bytes(b"")
    assert "line" in refusal(lambda: look(odd))


OPENED = {
    "a profile's file that is not there": ({"profile": Path("nope.toml")}, "no such file"),
    "no model": ({"model": None}, "model must be a text or a path, not None: leave it out"),
    "a list of models": ({"model": ["a"]}, "model must be a text or a path"),
    "a path to nothing": ({"model": Path("/no/such")}, "no such folder"),
    "a revision without a model": ({"revision": "abc"}, "without a model"),
    "a revision that is none": ({"revision": 5}, "revision must be a text"),
    "leave by a text": ({"trust_remote_code": "no"}, "trust_remote_code must be (?i:true or false), not 'no'"),
    "leave by a number": ({"trust_remote_code": 1}, "trust_remote_code must be (?i:true or false), not 1"),
    "no leave by nothing": ({"trust_remote_code": None}, "trust_remote_code must be (?i:true or false), not None"),
}


@pytest.mark.parametrize(("arguments", "words"), OPENED.values(), ids=OPENED)
def test_a_study_is_not_opened_on_what_is_no_name(arguments, words, tmp_path):
    line = refusal(lambda: Study.open(**{"profile": "smoke", **arguments}, store=tmp_path / "s.sqlite"))
    assert re.search(words, line), line


def test_a_study_of_a_name_instead_of_a_profile_is_refused():
    assert "is no Profile" in refusal(lambda: Study.of("smoke"))


def test_a_revision_of_a_folder_is_refused(tiny):
    assert "has no revision 'main'" in refusal(lambda: identify(tiny, revision="main"))


# ------------------------------------------------------------------------------------------------ yes and no


def _flagged() -> dict[str, tuple[Callable, str]]:
    """Every public function of the package that takes a flag, and the flag."""
    found = {}
    for module in pkgutil.walk_packages(layer_redundancy.__path__, "layer_redundancy."):
        if module.name in ("layer_redundancy.train.trainer", "layer_redundancy.core.flags"):
            continue  # a library's own arguments
        inside = import_module(module.name)
        for name, one in inspect.getmembers(inside, inspect.isfunction):
            if (
                one.__module__ != module.name
                or name.startswith("_")
                or inspect.isgeneratorfunction(inspect.unwrap(one))
            ):
                continue
            for flag in inspect.signature(one).parameters.values():
                if flag.annotation is bool:
                    found[f"{module.name.partition('.')[2]}.{name}({flag.name})"] = (one, flag.name)
    return found


FLAGGED = _flagged()


@pytest.mark.parametrize(("function", "flag"), FLAGGED.values(), ids=FLAGGED)
def test_every_public_function_takes_yes_and_no_alone(function, flag):
    assert f"{flag} must be True or False, not 'no'" in refusal(lambda: function(**{flag: "no"}))


def test_every_flag_of_a_study_its_profile_and_a_scheme_is_yes_or_no():
    profile = profiles.get("smoke")
    for act in (
        lambda: profiles.get("smoke", trust_remote_code="no"),
        lambda: replace(profile, trust_tasks="yes"),
        lambda: Study.sweep(None, [], progress="no"),
        lambda: Study.generative_task(None, None, [], run_generated_code="no"),
        lambda: Scheme(symmetric="no"),
    ):
        assert "must be true or false, not " in refusal(act).lower()


def test_code_of_a_model_runs_with_leave_alone(model, monkeypatch):
    config(model_type="mine", auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"})(model)
    text("code.py", f"open({str(model / 'ran')!r}, 'w')\n")(model)
    for door, words in (
        ("", "trust_remote_code=True"),
        ("make", "TRUST_REMOTE_CODE=yes"),
        ("command", "--trust-remote-code"),
    ):
        monkeypatch.setenv(doors.VARIABLE, door)
        assert f"ships its own code: read it, then give {words} if you trust it" in refusal(lambda: identify(model))
    assert not (model / "ran").exists()


# ------------------------------------------------------------------------------------------------ nothing stale


@pytest.mark.parametrize("place", ["below/part.safetensors", "part.weights"])
def test_weights_that_an_index_names_are_in_the_fingerprint(place, model):
    indexed(place, place)(model) if place.endswith("tensors") else pickled(dict)(model)
    if place == "part.weights":
        names = list(weight_files.tensors(model / PICKLE))
        (model / PICKLE).rename(model / place)
        text(f"{PICKLE}.index.json", json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, place)}))(model)
    before, was = identify(model).fingerprint, logits(model)
    file = model / place
    found = load_file(file) if file.suffix == ".safetensors" else torch.load(file)
    found["model.layers.1.mlp.up_proj.weight"] += 1
    save_file(found, file, {"format": "pt"}) if file.suffix == ".safetensors" else torch.save(found, file)
    assert identify(model).fingerprint != before and not torch.equal(logits(model), was)


@pytest.mark.parametrize("name", ["weights", "tokenizer", "config"])
def test_a_folder_that_changes_after_it_was_opened_gives_no_result(name, model):
    identity = identify(model)
    {
        "weights": more(x=torch.ones(1)),
        "tokenizer": lambda folder: (folder / "tokenizer.json").write_text(
            (folder / "tokenizer.json").read_text() + " "
        ),
        "config": config(rms_norm_eps=1e-3),
    }[name](model)
    for act in (lambda: loading.load(identity), lambda: loading.load_tokenizer(identity)):
        assert "its files have changed since the study was opened: open it anew" in refusal(act)


def test_an_adapter_that_transformers_puts_into_a_model_unasked_is_refused(tiny, tmp_path):
    from peft import LoraConfig, get_peft_model

    identity = replace(identify(tiny), source=str(tmp_path / "adapter"), revision="abc")
    base = look(tiny)
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    assert "is an adapter, loaded into the model that it names" in refusal(lambda: loading.load(identity))


def test_ordinary_folders_have_the_fingerprint_that_they_had(tmp_path):
    names = {
        "config.json": b'{"a": 1}',
        "model.safetensors": b"x",
        "b.model": b"y",
        "notes.txt": b"z",
        "c.py": b"",
        "d.bin": b"w",
    }
    for name, content in names.items():
        (tmp_path / name).write_bytes(content)
    found = weight_files.fingerprint(tmp_path, ["model.safetensors"])
    assert found == "837f3d69204493bb30bd7045a7bdda3a299be2724bb8d48c76023958d1e17c26"


def test_a_tokenizer_that_changed_in_place_gives_other_text_and_no_stored_result(model, tmp_path, monkeypatch):
    corpus = tmp_path / "text.txt"
    corpus.write_text("\n\n".join(f"The Number of This Sentence Is {i}." * 20 for i in range(60)))
    budget = replace(profiles.get("smoke").text, corpus=str(corpus), calibration_blocks=1, evaluation_blocks=1)
    profile = replace(profiles.get("smoke", model=str(model)), tasks=(), text=budget)

    def perplexity() -> tuple[str, float]:
        study = Study.of(profile, tmp_path / "s.sqlite")
        swept = study.sweep([study.dense], progress=False)["perplexity"]
        return study.evaluation.fingerprint, swept[study.dense].summary["perplexity"]

    first = perplexity()
    assert perplexity() == first
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Lowercase()  # the same vocabulary, other tokens
    tokenizer.save(str(model / "tokenizer.json"))
    second = perplexity()
    assert second[0] != first[0] and second[1] != first[1]


def test_texts_that_a_tokenizer_is_read_from_count_where_it_has_no_file_of_its_own(model):
    def fingerprint() -> str:
        return weight_files.fingerprint(model, ["model.safetensors"])

    whole = fingerprint()
    (model / "merges.txt").write_text("a b")
    assert fingerprint() == whole, "tokenizer.json has the merges"
    (model / "tokenizer.json").unlink()
    first = fingerprint()
    (model / "merges.txt").write_text("b c")
    assert fingerprint() != first != whole


def test_tokens_in_the_cache_are_those_of_a_tokenizer_and_not_of_its_vocabulary_alone(model, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    texts = ["The First of All Texts " * 9, "And Another One " * 9]
    monkeypatch.setattr(corpora, "articles", lambda corpus, split: texts)
    tokenizer = tf.AutoTokenizer.from_pretrained(model)
    cut_now = partial(corpora.packed_blocks, "c4", split="calibration", length=16, count=2)
    first = cut_now(tokenizer=tokenizer).input_ids
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    lower = cut_now(tokenizer=tokenizer).input_ids
    assert not torch.equal(lower, first) and torch.equal(cut_now(tokenizer=tokenizer).input_ids, lower)
    assert torch.equal(cut_now(tokenizer=tf.AutoTokenizer.from_pretrained(model)).input_ids, first)


@pytest.fixture
def large(tmp_path, monkeypatch) -> Path:
    """A file whose hash is remembered, last changed a while ago."""
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(cache, "LARGE", 1000)
    file = tmp_path / "large.safetensors"
    file.write_bytes(b"a" * 2000)
    monkeypatch.setattr(cache, "SETTLED_NS", 0)
    time.sleep(0.01)
    return file


def reads(monkeypatch) -> list[Path]:
    read: list[Path] = []
    real = cache.sha256
    monkeypatch.setattr(cache, "sha256", lambda file: read.append(file) or real(file))
    return read


def test_a_large_file_is_hashed_once_and_again_when_it_changes(large, monkeypatch):
    read = reads(monkeypatch)
    first = cache.known_sha256(large)
    assert cache.known_sha256(large) == first and len(read) == 1
    known = large.stat()
    large.write_bytes(b"b" * 2000)
    os.utime(large, ns=(known.st_atime_ns, known.st_mtime_ns))  # as large, and as old as it was
    assert cache.known_sha256(large) != first and len(read) == 2


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'["a", "b"]', b"5", bytes(99)])
def test_a_damaged_memory_of_hashes_does_no_harm(damage, large):
    first = cache.known_sha256(large)
    (note,) = (paths.CACHE / "hashes").iterdir()
    whole = note.read_bytes()
    for content in (damage, whole.replace(first[:4].encode(), b"0000"), whole[:-5]):
        note.write_bytes(content)
        assert cache.known_sha256(large) == first
        assert note.read_bytes() == whole


def test_a_file_that_has_just_changed_is_not_remembered(large, monkeypatch):
    monkeypatch.setattr(cache, "SETTLED_NS", 10**12)
    cache.known_sha256(large)
    assert not (paths.CACHE / "hashes").exists()


def test_a_cache_that_cannot_be_written_costs_no_more_than_time(large, monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert len(cache.known_sha256(large)) == 64


NOTES = {
    "no JSON": "{",
    "an empty list": "[]",
    "a number of removals": '{"steps": 5}',
    "words": '{"removed_blocks": "x"}',
}


@pytest.mark.parametrize("content", NOTES.values(), ids=NOTES)
def test_a_damaged_note_of_what_was_removed_is_refused(content, model):
    (model / provenance.NOTE).write_text(content)
    loaded = look(model)
    assert "layer_redundancy.json is no note of what was removed" in refusal(lambda: provenance.note(loaded, 4))
