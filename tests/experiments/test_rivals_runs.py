"""Notebook 13 from end to end, on tiny random models."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as tf

from layer_redundancy.config import profiles
from layer_redundancy.config.profiles import TaskBudget
from layer_redundancy.core.errors import NotApplicable
from layer_redundancy.evaluate import amounts
from layer_redundancy.experiments import result_tables, rivals
from layer_redundancy.methods import registry
from layer_redundancy.methods.method import NEAR
from layer_redundancy.models import smollm2
from layer_redundancy.planning import dry
from layer_redundancy.planning.planner import Planner
from layer_redundancy.study import Study
from made_up import checkpoint

pytestmark = pytest.mark.slow

BLOCKS = 5


def wide(folder, blocks: int = BLOCKS):
    """A random model whose blocks have a large part of its weights, so that methods have something to remove."""
    config = tf.LlamaConfig(
        vocab_size=49152, hidden_size=32, intermediate_size=2048, num_hidden_layers=blocks, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)  # so that every block matters
    model.save_pretrained(folder)
    tf.AutoTokenizer.from_pretrained(smollm2.folder()).save_pretrained(folder)
    return folder


def opened(folder, model, **budget) -> Study:
    """A study on a part of the smoke profile."""
    text = replace(profiles.get("smoke").text, block_length=32, calibration_blocks=2, evaluation_blocks=2)
    study = Study.open("smoke", str(model), store=folder / "store.sqlite")
    study = study.with_profile(text=text, tasks=(TaskBudget("agreement", limit=2),))
    few = {"ratio": 0.271, "calibration_blocks": 2, "shares": (0.15,), "run_shares": (0.4,), "methods": ()}
    return study.with_budget("rivals", **few | budget)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A study, the block-tokens that were planned of it, and what was then measured."""
    folder = tmp_path_factory.mktemp("rivals")
    study = opened(folder, wide(folder / "model"), healed=("shortgpt", "slice_gpt_tied"))
    before = planned(study)
    assert "stack" not in vars(study)
    return study, before, rivals.measure(study)


def planned(study: Study) -> dict[str, list[int]]:
    """Kind of work -> block-tokens, sorted, as if nothing were stored but what decides which blocks go."""
    ledger = dry.Ledger()
    options = {"ledger": ledger, "shape_of": study.identity.name}
    rivals.measure(dry.DryStudy(study.profile, study.identity, study.store, study.inputs, study.figures, **options))
    kinds = {"pass": amounts.Pass, "training": amounts.Training, "sweep": amounts.Sweep}
    return {name: sorted(one.block_tokens for one in ledger.of(kind)) for name, kind in kinds.items()}


def done(study: Study) -> dict[str, list[int]]:
    """The same of what was computed."""
    found = {"pass": [], "training": [], "sweep": [row["block_tokens_shared"] for row in study.store.sweeps()]}
    for row in study.store.work():
        found[row["kind"]].append(row["block_tokens"])
    return {kind: sorted(amounts) for kind, amounts in found.items()}


def test_what_runs_is_what_is_planned(ran):
    """Before, nobody knows which run is the best; once that is known, the plan is what ran to the token."""
    study, before, found = ran
    ran_of, after = done(study), planned(study)
    assert ran_of["training"] == before["training"] == after["training"]
    assert len(ran_of["training"]) == len(found.healed) == 2
    assert len(ran_of["pass"]) == len(before["pass"]) and ran_of["pass"] == after["pass"]
    assert sum(ran_of["sweep"]) == sum(after["sweep"])
    for kind, amount in ran_of.items():
        assert 0.9 < sum(amount) / sum(before[kind]) < 1.1


def test_every_method_comes_near_the_size_or_says_why_not(ran):
    study, _, found = ran
    sizes = [sum(p.numel() for p in block.parameters()) for block in study.stack.blocks]
    whole = sum(p.numel() for p in study.stack.model.parameters())
    assert found.target == pytest.approx(3 * sizes[0] / whole), "three of five blocks are the nearest to 27.1 %"
    study.unload()
    assert set(found.at_ratio) | set(found.left_out) == set(registry.METHODS)
    assert set(found.at_ratio) >= {"shortgpt", "sleb", "llm_pruner", "laco", "replace_me", "magnitude_compensation"}
    for method, outcomes in found.at_ratio.items():
        assert len(outcomes) == 2 and [len(one.tasks) for one in outcomes] == [1, 0]
        assert all(np.isfinite(one.nll).all() and one.nll.shape == (2,) for one in outcomes)
        assert outcomes[0].seconds > 0 and np.isnan(outcomes[1].seconds), "the second is counted, not timed"
        made = study.made(method, outcomes[0].plan)
        left = sum(p.numel() for p in made.stack.model.parameters())
        made.unload()
        assert abs(1 - left / whole - found.target) <= NEAR and 1 - left / whole == pytest.approx(
            outcomes[0].plan.removed
        )
        assert set(found.by_share[method]) <= {0.15, found.target} and found.target in found.by_share[method]
        cost = found.costs[method]
        assert cost.reading > 0 and cost.writing > 0 and cost.peak_bytes > 4 * left
        assert cost.disk_bytes == pytest.approx(2 * left, rel=0.02, abs=20_000), "at 16 bits, and the files' heads"
    for method, why in found.left_out.items():
        assert "cannot remove 2" in why or "cannot be" in why or "takes" in why, (method, why)
    assert set(found.healed) == {"shortgpt", "slice_gpt_tied"} <= set(found.at_ratio)


def test_what_is_measured_of_removal_is_what_a_sweep_measures(ran):
    """ShortGPT's model, made in memory, is the whole model without the same blocks."""
    study, _, found = ran
    (text, *_) = study.inputs.calibration_parts(2, 2)
    order = study.with_calibration(text).order("block_influence")
    kept = tuple(sorted(set(range(BLOCKS)) - set(order[:3].tolist())))
    swept = study.sweep([kept], progress=False)
    np.testing.assert_allclose(
        found.at_ratio["shortgpt"][0].nll, result_tables.cost(swept["perplexity"][kept]), atol=1e-5
    )
    (blocks, plain, _) = found.factors[-1]
    assert blocks == 3 and plain == pytest.approx(found.at_ratio["shortgpt"][0].nll, abs=1e-5)
    (runs,) = found.runs
    assert runs.length == 2 and runs.starts.tolist() == [1, 2, 3]
    place = runs.chosen_by[rivals.BEST_REMOVED]
    removed = tuple(sorted(set(range(BLOCKS)) - {place + 1, place + 2}))
    of_run = study.sweep([removed], progress=False)["perplexity"][removed]
    np.testing.assert_allclose(runs.judged[rivals.REMOVED][place], result_tables.cost(of_run), atol=1e-5)
    assert runs.choosing[rivals.REMOVED].mean(1).argmin() == place
    study.unload()


def test_what_was_measured_is_not_measured_again(ran):
    study, _, found = ran
    work, again = done(study), replace(study)
    second = rivals.measure(again)
    assert "stack" not in vars(again) and done(study) == work
    for table in (rivals.quality, rivals.accuracy, rivals.by_share, rivals.costs, rivals.chosen_runs, rivals.claim):
        assert table(second).equals(table(found)), table.__name__


@pytest.mark.parametrize("blocks", [1, 3])
def test_models_of_few_blocks_are_measured_or_left_out_in_a_line(tmp_path, remarks, blocks):
    study = opened(tmp_path, wide(tmp_path / "model", blocks), draws=2, healed=("shortgpt",))
    if blocks == 1:
        with pytest.raises(NotApplicable, match="has a single block, and at least one stays: no method has anything"):
            rivals.measure(study)
        return
    found = rivals.measure(study)
    loaded = Counter(
        line for line in remarks().splitlines() if re.match(r"loading .* % of the weights removed \(", line)
    )
    assert set(loaded.values()) == {1}, "of one text; that of the other is counted, which no line says"
    assert {"shortgpt", "sleb"} <= set(found.at_ratio) and set(found.healed) == {"shortgpt"}
    assert [one.length for one in found.runs] == ([] if blocks == 2 else [1])
    assert all("\n" not in why for why in found.left_out.values())
    for table in (rivals.quality, rivals.by_share, rivals.costs, rivals.sizes, rivals.claim):
        assert len(table(found))


@pytest.mark.parametrize("kind", ["gpt2"])
def test_models_that_few_methods_know_are_measured_by_those(tmp_path, kind):
    study = opened(tmp_path, checkpoint(tmp_path / "model", kind), draws=1, healed=())
    found = rivals.measure(study)
    assert set(found.at_ratio) == {"shortgpt", "sleb"}
    assert set(found.left_out) == set(registry.METHODS) - {"shortgpt", "sleb"}


def test_blocks_of_different_sizes_leave_the_notebook_out(tmp_path):
    study = opened(tmp_path, checkpoint(tmp_path / "model", "rwkv"))
    with pytest.raises(NotApplicable, match="blocks of RwkvForCausalLM differ in size"):
        rivals.measure(study)
    assert "stack" not in vars(study)


def test_a_training_that_does_not_fit_leaves_the_method_in(tmp_path, remarks):
    profile = profiles.get("smoke", model=str(wide(tmp_path / "model")))
    study = Planner(profile, fits=lambda model, training: False).study(profile.model)
    found = rivals.measure(study.with_budget("rivals", healed=("shortgpt",), tasks=()).with_profile(tasks=()))
    assert "shortgpt" in found.at_ratio and not found.healed
    assert "ShortGPT is not trained: training LoRA" in remarks()
    assert rivals.quality(found)["healed"].isna().all()
