"""Which model a profile means, and what is known of it without its weights."""

import shutil
from dataclasses import replace

import httpx
import pytest
import torch
from huggingface_hub import errors as hub

import every_architecture
import tiny_models
from layer_redundancy.config import profiles
from layer_redundancy.core.errors import NotApplicable, StudyError
from layer_redundancy.models import checkpoints
from layer_redundancy.models.stack import decoder_stack, head_slice, heads_of


@pytest.fixture
def profile():
    return lambda model, **kw: profiles.get("smoke", model=str(model), **kw)


@pytest.mark.parametrize("name, shared, projections", [("llama", 2, 2), ("gpt_neox", 4, 4), ("gpt2", 4, 4)])
def test_weights_of_a_block_and_of_a_head(name, shared, projections, tmp_path):
    model = tiny_models.build(name)
    model.save_pretrained(tmp_path / name)
    identity = checkpoints.identify(replace(profiles.get("smoke"), model=str(tmp_path / name)))
    assert (identity.num_attention_heads, identity.num_key_value_heads) == (4, shared)
    block, head = checkpoints.block_weights(identity)
    assert block == sum(p.numel() for p in decoder_stack(model).blocks[0].parameters())
    assert head == projections * 8 * 32  # keys and values go with a head that has its own


@pytest.mark.parametrize(
    ("name", "shared"),
    [("gpt_bigcode", 1), ("gpt_bigcode:many_keys", 4), ("falcon", 1), ("falcon:grouped", 2), ("falcon:alibi", 4)],
)
def test_keys_that_heads_share_go_with_none_of_them(name, shared, tmp_path):
    every_architecture.build(name).save_pretrained(tmp_path / "m")
    identity = checkpoints.identify(replace(profiles.get("smoke"), model=str(tmp_path / "m")))
    assert identity.num_key_value_heads == shared
    assert checkpoints.block_weights(identity)[1] == (4 if shared == 4 else 2) * 8 * 32


def test_blocks_whose_heads_differ_are_not_compared_with_heads(tmp_path):
    model = every_architecture.build("laguna:heads_per_block")
    stack = decoder_stack(model)
    assert [heads_of(stack, block) for block in range(6)] == [(4, 8), (4, 8), (2, 8)] * 2
    assert head_slice(stack, 2, 1) == slice(8, 16)
    with pytest.raises(StudyError, match="head 2 is out of range: block 2 has query heads 0 to 1"):
        head_slice(stack, 2, 2)
    model.save_pretrained(tmp_path / "m")
    identity = checkpoints.identify(replace(profiles.get("smoke"), model=str(tmp_path / "m")))
    with pytest.raises(NotApplicable, match="its blocks' heads differ"):
        checkpoints.block_weights(identity)


def test_a_model_without_heads_has_no_weight_of_a_head(tmp_path):
    tiny_models.build("mamba").save_pretrained(tmp_path / "m")
    identity = checkpoints.identify(replace(profiles.get("smoke"), model=str(tmp_path / "m")))
    assert identity.num_attention_heads == 0
    with pytest.raises(NotApplicable, match="no attention heads"):
        checkpoints.block_weights(identity)


def test_heads_are_not_compared_with_blocks_that_have_none(tmp_path):
    every_architecture.build("qwen3_next").save_pretrained(tmp_path / "m")
    identity = checkpoints.identify(replace(profiles.get("smoke"), model=str(tmp_path / "m")))
    with pytest.raises(NotApplicable, match="since block 0 of Qwen3NextForCausalLM has no attention heads"):
        checkpoints.block_weights(identity)


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
        (TypeError("anything\nelse"), r"not as transformers takes them \(TypeError: anything else\)"),
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
    llama = profiles.get("paper").model
    assert profiles.get("paper", model=llama, revision="abc").revision == "abc"
    tiny_models.build("llama").save_pretrained(tmp_path)
    for model in (tmp_path, profiles.EMBEDDED_MODEL):
        with pytest.raises(StudyError, match="not on the hub: it has no revision 'abc'"):
            checkpoints.identify(profile(model, revision="abc"))
