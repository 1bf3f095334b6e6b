"""RWKV-5 against its author's own inference code (the package `rwkv`), and against itself."""

import os
import re
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch.autograd import gradcheck
from transformers import AutoModelForCausalLM

import tiny_models
from layer_redundancy.config import profiles
from layer_redundancy.core.errors import StudyError
from layer_redundancy.models import checkpoints, loading
from layer_redundancy.models.rwkv5 import checkpoints as rwkv_checkpoints
from layer_redundancy.models.rwkv5.model import (
    VERSIONS,
    Rwkv5Config,
    Rwkv5ForCausalLM,
    chunked_time_mix,
    sequential_time_mix,
)

os.environ["RWKV_JIT_ON"], os.environ["RWKV_CUDA_ON"], os.environ["RWKV_V7_ON"] = "0", "0", "0"

# hidden size, blocks, head size, intermediate size
SHAPES = {"small": (32, 2, 8, 96), "deep": (48, 7, 16, 160), "wide heads": (128, 3, 64, 448)}

AUTHORS_NAMES = (
    (r"^rwkv\.", ""),
    (r"^embeddings\.", "emb."),
    (r"^pre_ln\.", "blocks.0.ln0."),
    (r"\.attention\.", ".att."),
    (r"\.feed_forward\.", ".ffn."),
    (r"\.time_mix_key$", ".time_mix_k"),
    (r"\.time_mix_value$", ".time_mix_v"),
    (r"\.time_mix_receptance$", ".time_mix_r"),
    (r"\.time_mix_gate$", ".time_mix_g"),
)


def random_model(shape="small", version="5.2", seed=0, vocabulary=97):
    """Every weight random, decays from nearly one to nearly zero."""
    hidden, layers, head, intermediate = SHAPES[shape]
    torch.manual_seed(seed)
    config = Rwkv5Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        head_size=head,
        intermediate_size=intermediate,
        model_version=version,
    )
    model = Rwkv5ForCausalLM(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("time_decay"):
            parameter.uniform_(-6, 1)
        elif parameter.ndim == 2 and "blocks" not in name:
            parameter.normal_(std=0.2)  # logits of a few units, as trained models have
        else:
            parameter.add_(0.1 * torch.randn_like(parameter))
        if name.endswith(("output.weight", "feed_forward.value.weight")):
            parameter.mul_(0.5)  # what a block adds is smaller than what it is added to
    return model


def authors_tensors(model):
    tensors = {}
    for name, tensor in model.state_dict().items():
        for pattern, theirs in AUTHORS_NAMES:
            name = re.sub(pattern, theirs, name)
        tensors[name] = tensor.clone()
    return tensors


def saved(model, path):
    torch.save(authors_tensors(model), path)
    return path


@pytest.fixture(scope="module", params=[(shape, version) for shape in SHAPES for version in VERSIONS], ids="-".join)
def pair(request, tmp_path_factory):
    """Our model, loaded from the author's kind of file, and the package's."""
    from rwkv.model import RWKV

    model, tmp_path = random_model(*request.param), tmp_path_factory.mktemp("pair")
    path = saved(model, tmp_path / "model.pth")
    theirs = RWKV(model=str(path.with_suffix("")), strategy="cpu fp32", verbose=False)
    rwkv_checkpoints.convert(path, tmp_path / "folder")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    for (name, a), b in zip(model.state_dict().items(), ours.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    return SimpleNamespace(ours=ours.eval().requires_grad_(False), theirs=theirs)


@pytest.mark.parametrize("version", VERSIONS)
def test_saved_tensors_are_named_as_the_author_does(version, tmp_path):
    model = random_model(version=version)
    rwkv_checkpoints.save(model, tmp_path / "model.pth")
    written, wanted = torch.load(tmp_path / "model.pth", weights_only=True), authors_tensors(model)
    assert written.keys() == wanted.keys() and all(torch.equal(written[name], wanted[name]) for name in wanted)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


@pytest.mark.parametrize("length", [1, 2, 3, 17, 64, 65, 127, 300])
def test_logits_are_the_authors(pair, length):
    ids = tiny_models.tokens(1, length, seed=length)
    theirs, _ = pair.theirs.forward(ids[0].tolist(), None, full_output=True)
    ours = pair.ours(ids).logits[0]
    assert ours.std() > 0.3
    torch.testing.assert_close(ours, theirs.view_as(ours), rtol=0, atol=1e-4)


@pytest.mark.parametrize("pieces", [(1, 1, 1, 5), (40, 1, 70, 2, 130), (300, 1)])
def test_state_carried_across_calls_is_the_authors(pair, pieces):
    ids = tiny_models.tokens(1, sum(pieces), seed=3)
    ours_state = theirs_state = None
    for piece in ids.split(pieces, dim=1):
        theirs, theirs_state = pair.theirs.forward(piece[0].tolist(), theirs_state)
        out = pair.ours(piece, state=ours_state)
        ours_state = out.state
        torch.testing.assert_close(out.logits[0, -1], theirs, rtol=0, atol=1e-4)
    assert ours_state.seen_tokens == sum(pieces)
    for i in range(pair.ours.config.num_hidden_layers):
        mine = ours_state.time_mix_inputs[i][0], ours_state.matrices[i][0], ours_state.channel_mix_inputs[i][0]
        for a, b in zip(mine, theirs_state[3 * i : 3 * i + 3], strict=True):
            assert (a - b.view_as(a)).abs().max() <= 1e-4 * max(1.0, b.abs().max())


def recurrence_inputs(length, dtype=torch.float32, heads=2, size=8, batch=2, fastest=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    r, k, v = torch.randn(3, batch, length, heads, size, dtype=dtype, generator=generator)
    decay = torch.empty(heads, size, dtype=dtype).uniform_(-6, fastest, generator=generator)
    bonus = torch.randn(heads, size, dtype=dtype, generator=generator)
    state = torch.randn(batch, heads, size, size, dtype=dtype, generator=generator)
    return r, k, v, -decay.exp(), bonus, state


@pytest.mark.parametrize("length", [1, 2, 31, 64, 65, 200])
@pytest.mark.parametrize("chunk", [1, 2, 16, 64])
@pytest.mark.parametrize("fastest", [0.0, 3.0, 8.0])  # e^-e^8: a channel that forgets at once
def test_chunked_is_sequential(length, chunk, fastest):
    inputs = recurrence_inputs(length, fastest=fastest)
    for start in (inputs, (*inputs[:-1], None)):
        for a, b in zip(chunked_time_mix(*start, chunk_length=chunk), sequential_time_mix(*start), strict=True):
            assert torch.isfinite(a).all()
            assert (a - b).abs().max() <= 1e-5 * max(1.0, b.abs().max())


def test_gradients_are_those_of_the_recurrence():
    inputs = [x.double().requires_grad_() for x in recurrence_inputs(13, dtype=torch.float64, size=3)]
    assert gradcheck(lambda *x: chunked_time_mix(*x, chunk_length=4), inputs)
    long = [x.requires_grad_() for x in recurrence_inputs(150)]
    weights = torch.randn(long[2].shape, generator=torch.Generator().manual_seed(1))
    gradients = []
    for function in (chunked_time_mix, sequential_time_mix):
        out, state = function(*long)
        gradients.append(torch.autograd.grad((out * weights).sum() + state.sum(), long))
    for ours, reference in zip(*gradients, strict=True):
        assert (ours - reference).abs().max() <= 1e-5 * max(1.0, reference.abs().max())


def test_memory_grows_with_the_length_and_not_its_square():
    def numbers(length):
        seen = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: seen.append(x.numel()) or x, lambda x: x):
            chunked_time_mix(*(x.requires_grad_() for x in recurrence_inputs(length)))
        return sum(seen)

    assert numbers(2048) < 2.2 * numbers(1024)


def test_bfloat16_keeps_the_recurrence_in_float32():
    model = random_model("deep")
    ids = tiny_models.tokens(2, 100)
    exact, rounded = model(ids), model.bfloat16()(ids)
    assert rounded.logits.dtype == torch.bfloat16
    assert all(x.dtype == torch.float32 for x in rounded.state.matrices)
    cosine = torch.nn.functional.cosine_similarity(exact.logits, rounded.logits.float(), dim=-1)
    assert cosine.min() > 0.9


@pytest.mark.parametrize("version", VERSIONS)
def test_generation_by_the_state_is_generation_without(version):
    model = random_model("deep", version)
    ids = tiny_models.tokens(3, 9)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    mask = torch.ones_like(ids)
    plain = model.generate(ids, attention_mask=mask, use_cache=False, **options)
    assert torch.equal(model.generate(ids, attention_mask=mask, **options), plain)
    # Padding on the left leaves no trace, so prompts of different lengths go together.
    padded = torch.cat([torch.zeros(3, 4, dtype=torch.long), ids], dim=1)
    mask = (torch.arange(13) >= 4).long().expand(3, -1)
    assert torch.equal(model.generate(padded, attention_mask=mask, **options)[:, 13:], plain[:, 9:])
    beams = model.generate(ids, attention_mask=torch.ones_like(ids), num_beams=3, **options)
    beams_plain = model.generate(ids, attention_mask=torch.ones_like(ids), num_beams=3, use_cache=False, **options)
    assert torch.equal(beams, beams_plain)


def test_a_state_is_not_changed_by_going_on():
    model, ids = random_model(), tiny_models.tokens(1, 20)
    state = model(ids[:, :10]).state
    once, again = (model(ids[:, 10:], state=state).logits for _ in range(2))
    assert torch.equal(once, again)


# ------------------------------------------------------------------------------------------------ files


def identify(path):
    return checkpoints.identify(profiles.get("smoke", model=str(path)))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    from layer_redundancy.core import paths

    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.mark.parametrize("form", ["pth", "safetensors", "bfloat16 pth", "names of the ports", "log bonus"])
def test_every_form_of_checkpoint_is_the_same_model(form, tmp_path, cache):
    model = random_model("small", "5.1" if form == "log bonus" else "5.2")
    if form == "bfloat16 pth":
        model.bfloat16()
    tensors = authors_tensors(model)
    path = tmp_path / ("model.safetensors" if form == "safetensors" else "model.pth")
    if form == "names of the ports":
        tensors = {k.replace("rwkv.pre_ln", "rwkv.blocks.0.pre_ln"): x for k, x in model.state_dict().items()}
    if form == "log bonus":
        for name in [name for name in tensors if name.endswith("time_faaaa")]:
            positive = tensors.pop(name).abs() + 0.1
            model.state_dict()["rwkv." + name.replace(".att.", ".attention.")].copy_(positive)
            tensors[name.replace("time_faaaa", "time_first")] = positive.log()[:, None]
    save_file(tensors, path) if form == "safetensors" else torch.save(tensors, path)
    identity = identify(path)
    assert (identity.num_hidden_layers, identity.num_attention_heads) == (2, 0)
    loaded = loading.load(identity, "bfloat16" if form == "bfloat16 pth" else "float32")
    ids = tiny_models.tokens(2, 30)
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0, atol=1e-5)
    assert len(list(cache.iterdir())) == 1  # converted once
    assert identify(path).fingerprint == identity.fingerprint


def test_config_of_a_port_needs_no_code_of_its_own(tmp_path):
    model = random_model()
    model.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    # As the ports have it: their own code, a wrong number of heads, no intermediate size.
    extra = (
        '{"auto_map": {"AutoConfig": "configuration_rwkv5.Rwkv5Config", "AutoModelForCausalLM": "modeling_rwkv5.X"},'
    )
    extra += '"num_attention_heads": 64, "rescale_every": 6, "model_version": "5_2",'
    (tmp_path / "config.json").write_text(extra + text.strip()[1:].replace('"model_version": "5.2",', ""))
    loaded = loading.load(identify(tmp_path))
    ids = tiny_models.tokens(2, 30)
    assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("4", r"is an RWKV-4 checkpoint: only RWKV-5.2 and RWKV-5.1"),
        ("5.0", r"is an RWKV-5.0 checkpoint"),
        ("6", r"is an RWKV-6 checkpoint"),
        ("7", r"is an RWKV-7 checkpoint"),
        ("other", r"is no RWKV checkpoint"),
        ("missing", r"is RWKV-5.2 with 2 blocks, but lacks 1 tensors \(first: rwkv.blocks.1.ln2.bias\)"),
        ("extra", r"is RWKV-5.2 with 2 blocks, but also has 1 tensors \(first: rwkv.blocks.1.attention.time_state\)"),
        ("shape", r"is RWKV-5.2, but rwkv.ln_out.weight has shape \(31,\) and not \(32,\)"),
        ("truncated", r"model\.pth cannot be read .*: is it whole\?"),
        ("truncated safetensors", r"model\.safetensors is cut off"),
        ("pickle", r"is a pickle that asks for tiny_models\.build"),
        ("list", r"holds something else"),
    ],
)
def test_bad_checkpoints_are_one_line(damage, message, tmp_path, cache):
    tensors = authors_tensors(random_model())
    path = tmp_path / ("model.safetensors" if "safetensors" in damage else "model.pth")
    if damage == "4":
        tensors = {k: x for k, x in tensors.items() if "ln_x" not in k and "gate" not in k}
    elif damage == "5.0":
        tensors = {k: x for k, x in tensors.items() if "gate" not in k}
    elif damage == "6":
        tensors["blocks.0.att.time_maa_x"] = torch.zeros(3)
    elif damage == "7":
        tensors["blocks.0.att.r_k"] = torch.zeros(3)
    elif damage == "other":
        tensors = {"model.layers.0.self_attn.q_proj.weight": torch.zeros(3, 3)}
    elif damage == "missing":
        del tensors["blocks.1.ln2.bias"]
    elif damage == "extra":
        tensors["blocks.1.att.time_state"] = torch.zeros(4, 8, 8)
    elif damage == "shape":
        tensors["ln_out.weight"] = torch.zeros(31)
    save_file(tensors, path) if "safetensors" in damage else torch.save(
        {"list": [1], "pickle": {"a": tiny_models.build}}.get(damage, tensors), path
    )
    if "truncated" in damage:
        path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(StudyError, match=message) as error:
        identify(path)
    assert "\n" not in str(error.value)
    assert "model." in str(error.value)
    assert not cache.exists() or not list(cache.iterdir())


def test_unknown_version_in_a_config_is_one_line():
    with pytest.raises(StudyError, match=r"RWKV model_version '6\.0'"):
        Rwkv5Config(model_version="6.0")
