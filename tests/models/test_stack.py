import itertools
import json
import shutil
from dataclasses import replace

import httpx
import pytest
import torch
from huggingface_hub import errors as hub
from torch import nn

import tiny_models
from layer_redundancy.config import profiles
from layer_redundancy.core.errors import StudyError
from layer_redundancy.models import checkpoints, loading
from layer_redundancy.models.stack import check_stack, decoder_stack


@pytest.mark.parametrize("name", tiny_models.CONFIGS)
def test_blocks_run_by_hand_give_the_models_own_logits(name):
    model, ids = tiny_models.build(name), tiny_models.tokens()
    own = model(input_ids=ids, use_cache=False).logits  # before prepare: RWKV-4 with its rescaling on
    loading.prepare(model)
    stack = decoder_stack(model)
    assert len(stack) == 5
    hidden, calls = stack.start(ids)
    trace = [hidden]
    for i in range(len(stack)):
        trace.append(stack.run_block(i, trace[-1], calls))
    torch.testing.assert_close(stack.logits(stack.finish(trace[-1])), own.float(), atol=2e-5, rtol=1e-4)
    assert all((a - b).abs().max() > 1e-3 for a, b in itertools.pairwise(trace)), "a block does nothing"
    torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits.float(), own.float(), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name, shared, projections", [("llama", 2, 2), ("gpt_neox", 4, 4), ("gpt2", 4, 4)])
def test_weights_of_a_block_and_of_a_head(name, shared, projections, tmp_path):
    model = tiny_models.build(name)
    model.save_pretrained(tmp_path / name)
    identity = checkpoints.identify(replace(profiles.PROFILES["smoke"], model=str(tmp_path / name)))
    assert (identity.num_attention_heads, identity.num_key_value_heads) == (4, shared)
    block, head = checkpoints.block_weights(identity)
    assert block == sum(p.numel() for p in decoder_stack(model).blocks[0].parameters())
    assert head == projections * 8 * 32  # keys and values go with a head that has its own


def test_a_model_without_heads_has_no_weight_of_a_head(tmp_path):
    tiny_models.build("mamba").save_pretrained(tmp_path / "m")
    identity = checkpoints.identify(replace(profiles.PROFILES["smoke"], model=str(tmp_path / "m")))
    assert identity.num_attention_heads == 0
    with pytest.raises(StudyError, match="no attention heads"):
        checkpoints.block_weights(identity)


@pytest.mark.parametrize("name", tiny_models.CONFIGS)
def test_right_padding_does_not_reach_real_tokens(name):
    stack = decoder_stack(loading.prepare(tiny_models.build(name)))
    ids = tiny_models.tokens(2, 15)
    padded = torch.cat([ids, tiny_models.tokens(2, 6, seed=5)], dim=1)

    def run(x):
        hidden, calls = stack.start(x)
        for i in range(len(stack)):
            hidden = stack.run_block(i, hidden, calls)
        return hidden

    torch.testing.assert_close(run(padded)[:, :15], run(ids), atol=2e-5, rtol=1e-4)


def test_first_residual_is_after_the_embeddings_scale_and_norm():
    gemma = tiny_models.build("gemma3")
    hidden, _ = decoder_stack(gemma).start(tiny_models.tokens())
    torch.testing.assert_close(hidden, gemma.model.embed_tokens.weight[tiny_models.tokens()] * 32**0.5)
    rwkv = loading.prepare(tiny_models.build("rwkv"))
    hidden, _ = decoder_stack(rwkv).start(tiny_models.tokens())
    torch.testing.assert_close(hidden, rwkv.rwkv.blocks[0].pre_ln(rwkv.rwkv.embeddings(tiny_models.tokens())))


def test_start_leaves_no_trace_in_the_model():
    model = tiny_models.build("llama")
    before = model(tiny_models.tokens()).logits
    decoder_stack(model).start(tiny_models.tokens())
    assert all("forward" not in vars(block) for block in model.model.layers)
    torch.testing.assert_close(model(tiny_models.tokens()).logits, before, atol=0, rtol=0)


def test_unknown_layout_is_one_line():
    class Odd(nn.Module):
        pass

    with pytest.raises(StudyError, match="cannot take Odd apart") as e:
        decoder_stack(Odd())
    assert "\n" not in str(e.value)


def test_a_model_that_does_something_between_blocks_is_refused():
    model = tiny_models.build("llama")
    first = model.model.layers[0].forward
    calls = []

    def forward(hidden_states, *args, **kwargs):
        calls.append(1)  # what it returns depends on the number of calls: the model is not its blocks
        return first(hidden_states, *args, **kwargs) * len(calls)

    model.model.layers[0].forward = forward
    with pytest.raises(StudyError, match="run one by one give other logits"):
        check_stack(model)


def test_nan_weights_are_refused():
    model = tiny_models.build("llama")
    model.model.layers[2].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(StudyError, match="NaN or infinite logits"):
        check_stack(model)


@pytest.fixture
def profile():
    return lambda model, **kw: profiles.get("smoke", model=str(model), **kw)


def test_local_folder_round_trip(tmp_path, profile):
    from dataclasses import replace

    model = tiny_models.build("llama")
    model.save_pretrained(tmp_path / "m")
    chosen = replace(profile(tmp_path / "m"), dtype="float32")
    identity = checkpoints.identify(chosen)
    assert identity.num_hidden_layers == 5
    loaded = loading.load(identity, "float32")
    torch.testing.assert_close(loaded(tiny_models.tokens()).logits, model(tiny_models.tokens()).logits)
    assert checkpoints.identify(replace(chosen, dtype="bfloat16")).fingerprint != identity.fingerprint
    model.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    model.save_pretrained(tmp_path / "m")
    assert checkpoints.identify(chosen).fingerprint != identity.fingerprint


@pytest.mark.parametrize(
    "model, message",
    [
        ("./no/such/folder", "no such folder"),
        ("nobody/there-is-no-such-model", "hub cannot be reached|no such model"),
        ("not a valid id!!", "no such repository|hub cannot be reached"),
    ],
)
def test_models_that_cannot_be_had_are_one_line(model, message, profile):
    with pytest.raises(StudyError, match=message) as e:
        checkpoints.identify(profile(model))
    assert "\n" not in str(e.value)


def test_folder_without_config_or_with_broken_weights(tmp_path, profile):
    with pytest.raises(StudyError, match=r"no config\.json"):
        checkpoints.identify(profile(tmp_path))
    tiny_models.build("llama").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(StudyError, match="cannot be") as e:
        loading.load(checkpoints.identify(profile(tmp_path)))
    assert "\n" not in str(e.value)


def test_checkpoint_with_fewer_blocks_than_its_config_says_is_refused(tmp_path, profile):
    model = tiny_models.build("llama")
    model.save_pretrained(tmp_path)
    model.config.num_hidden_layers = 6
    model.config.save_pretrained(tmp_path)
    with pytest.raises(StudyError, match=r"lacks .* weights \(first: model.layers.5"):
        loading.load(checkpoints.identify(profile(tmp_path)))


def test_config_with_fewer_blocks_than_the_checkpoint_is_refused(tmp_path, profile):
    model = tiny_models.build("llama")
    model.save_pretrained(tmp_path)
    model.config.num_hidden_layers = 3
    model.config.save_pretrained(tmp_path)
    with pytest.raises(StudyError, match=r"config says 3 blocks, the checkpoint has others \(model.layers"):
        loading.load(checkpoints.identify(profile(tmp_path)))


@pytest.mark.parametrize("change", [{"num_hidden_layers": "two"}, {"num_attention_heads": 0}, []])
def test_config_that_makes_no_sense_is_one_line(tmp_path, profile, change):
    tiny_models.build("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change if change else change))
    with pytest.raises(StudyError) as e:
        loading.load(checkpoints.identify(profile(tmp_path)))
    assert "\n" not in str(e.value)


def answer(kind, status):
    """What the hub's client raises when the hub answers with that status."""
    request = httpx.Request("GET", "https://hub.example/x")
    return kind("some\nlines", response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
    "error, message",
    [
        (answer(hub.GatedRepoError, 403), "is gated: accept its licence"),
        (answer(hub.RepositoryNotFoundError, 404), "no such repository or revision"),
        (answer(hub.RevisionNotFoundError, 404), "no such repository or revision"),
        (answer(hub.RemoteEntryNotFoundError, 404), "has no such file on the hub"),
        (answer(hub.HfHubHTTPError, 429), "asked too often"),
        (answer(hub.HfHubHTTPError, 503), "try again later"),
        (httpx.ConnectError("refused"), "the hub cannot be reached"),
        (hub.OfflineModeIsEnabled("offline"), "the hub cannot be reached"),
        (torch.OutOfMemoryError("CUDA out of memory"), "does not fit in this device's memory"),
        (ValueError("Please pass the argument `trust_remote_code=True`"), "ships its own code"),
        (PermissionError(13, "Permission denied"), "cannot be read"),
        (TypeError("anything\nelse"), "cannot be loaded: anything else"),
    ],
)
def test_whatever_the_hub_answers_is_one_line(error, message):
    with pytest.raises(StudyError, match=message) as e, checkpoints.hub_errors("a/model", trust_remote_code=False):
        raise error
    assert "\n" not in str(e.value) and str(e.value).startswith("a/model")


def test_the_same_weights_elsewhere_are_the_same_model(tmp_path, profile):
    tiny_models.build("llama").save_pretrained(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    a, b = (checkpoints.identify(profile(tmp_path / name)) for name in "ab")
    assert a.fingerprint == b.fingerprint


def test_revision_is_the_users_or_refused(tmp_path, profile):
    llama = profiles.PROFILES["paper"].model
    assert profiles.get("paper", model=llama, revision="abc").revision == "abc"
    tiny_models.build("llama").save_pretrained(tmp_path)
    for model in (tmp_path, profiles.EMBEDDED_MODEL):
        with pytest.raises(StudyError, match="not on the hub: it has no revision 'abc'"):
            checkpoints.identify(profile(model, revision="abc"))


def test_encoder_is_refused(tmp_path, profile):
    import transformers as tf

    config = tf.BertConfig(
        hidden_size=16, num_attention_heads=2, num_hidden_layers=2, intermediate_size=16, vocab_size=50
    )
    tf.BertLMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(StudyError, match="cannot take BertLMHeadModel apart"):
        loading.load(checkpoints.identify(profile(tmp_path)))


def test_cuda_without_cuda_is_one_line(tmp_path, profile, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    tiny_models.build("llama").save_pretrained(tmp_path)
    with pytest.raises(StudyError, match="sees no CUDA device"):
        loading.load(checkpoints.identify(profile(tmp_path)), device="cuda")
