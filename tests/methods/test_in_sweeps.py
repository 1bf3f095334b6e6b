"""Maps and factors in sweeps, beside plain forwards of models that they are folded into for good."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import method_cases
import tiny_models
from layer_redundancy.core import variants
from layer_redundancy.core.errors import NotApplicable, StudyError
from layer_redundancy.core.store import Store
from layer_redundancy.core.variants import Changed
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.evaluate import sweep
from layer_redundancy.evaluate.amounts import Pass
from layer_redundancy.evaluate.scoring import Perplexity
from layer_redundancy.measures import activations
from layer_redundancy.methods import magnitude_compensation, replace_me
from layer_redundancy.methods.in_sweeps import GapFactors, RunMaps
from layer_redundancy.models import loading, surgery
from layer_redundancy.models.stack import decoder_stack
from measurements import Continuations, identity, plain, ragged_sequences

IDS = method_cases.TEXT.input_ids
EVALUATION = TokenBlocks(tiny_models.tokens(4, 20, seed=3), "made up", "evaluation", False)
TASK = Continuations(ragged_sequences())
TEXT = Perplexity(EVALUATION)
FAMILIES = ["llama", "llama_biased", "qwen2"]  # all with fewer keys than queries; biases everywhere, or of queries


def build(name):
    """With an epsilon so small that an RMSNorm does not see the size of what it gets."""
    model = loading.prepare(method_cases.build(name, scale=2.0))
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 0.0
    return model


def per_token(model, store, plan, changes, batch_tokens=64):
    """Variant -> mean log-likelihoods a token, of the task's targets and then of the text's blocks."""
    found = sweep.run(
        identity(), lambda: decoder_stack(model), plan, [TASK, TEXT], store, batch_tokens, False, changes=changes
    )
    lengths = [len(t) for s in TASK.sequences for t in s.targets]
    text = found[TEXT.name]
    return {
        v: np.concatenate([r.arrays["logprob"] / lengths, -text[v].arrays["nll"] / text[v].arrays["tokens"]])
        for v, r in found[TASK.name].items()
    }


def by_plain_forwards(model):
    """The same of a model as it is, one forward a sequence."""
    lengths = [len(t) for s in TASK.sequences for t in s.targets]
    targets = [e[0] for e in plain(model, TASK.sequences, [])]
    logprobs = method_cases.logits(model, EVALUATION.input_ids).log_softmax(-1)[:, :-1]
    of_text = logprobs.gather(-1, EVALUATION.input_ids[:, 1:, None]).mean((1, 2))
    return np.concatenate([np.array(targets) / lengths, of_text.numpy()])


def weights(model):
    return {name: parameter.clone() for name, parameter in model.state_dict().items()}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("ridge", [0.0, 0.05])
def test_every_run_with_its_map_is_measured_as_the_folded_model_is(name, ridge, tmp_path):
    model, maps = build(name), RunMaps(identity(), method_cases.TEXT, ridge)
    own, runs = weights(model), replace_me.every_run(5)
    plan = {run: maps.variant(run) for run in runs}
    with Store(tmp_path / "s") as store:
        found = per_token(model, store, [variants.dense(5), *plan.values()], maps)
    for a, n in runs:
        folded = build(name)
        of = replace_me.collect(decoder_stack(folded), IDS, [(a, n)]).map((a, n), ridge)
        wanted = by_plain_forwards(replace_me.replaced(folded, (a, n), of))
        np.testing.assert_allclose(found[plan[a, n]], wanted, atol=1e-5)
    np.testing.assert_allclose(found[variants.dense(5)], by_plain_forwards(build(name)), atol=1e-5)
    assert all(torch.equal(value, own[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", FAMILIES)
def test_gaps_with_their_factors_are_measured_as_the_scaled_model_is(name, tmp_path):
    model = build(name)
    sums = activations.collect(decoder_stack(model), IDS)
    factors = GapFactors(identity(), method_cases.TEXT, sums)
    gone = [(1,), (0, 1), (1, 3), (0, 2, 4), (3, 4)]
    plan = {removed: factors.variant(removed) for removed in gone}
    with Store(tmp_path / "s") as store:
        found = per_token(model, store, list(plan.values()), factors)
    for removed in gone:
        scaled = build(name)
        gaps = [gap for gap in magnitude_compensation.runs(removed) if gap[1] < 5]
        assert len(variants.changes_of([plan[removed]])) == len(gaps)
        for start, end in gaps:
            magnitude_compensation.scale(scaled, start, magnitude_compensation.factor(sums, start, end))
        np.testing.assert_allclose(found[plan[removed]], by_plain_forwards(surgery.cut(scaled, removed)), atol=1e-5)
    assert plan[3, 4] == (0, 1, 2), "a gap before the final norm needs none"
    assert all("forward" not in vars(block) for block in decoder_stack(model).blocks)


def test_factors_make_a_difference(tmp_path):
    """Else the test above could not fail."""
    model = build("llama")
    factors = GapFactors(identity(), method_cases.TEXT, activations.collect(decoder_stack(model), IDS))
    closed, bare = factors.variant([0, 2]), variants.without(5, [0, 2])
    with Store(tmp_path / "s") as store:
        found = per_token(model, store, [closed, bare], factors)
    assert np.abs(found[closed] - found[bare]).max() > 1e-2


def test_keys_say_all_that_a_change_depends_on():
    text = method_cases.TEXT
    other = replace(text, input_ids=text.input_ids[:5])
    sums = activations.zeros(6, 5)
    ways = [
        RunMaps(identity(), text),
        RunMaps(identity(fingerprint="g"), text),
        RunMaps(identity(), other),
        RunMaps(identity(), text, 0.1),
    ]
    keys = [variants.changes_of([way.variant(run)])[0] for way in ways for run in [(2, 1), (2, 2), (3, 1)]]
    assert [changed.block for changed in keys] == [1, 1, 2] * 4
    gaps = [
        GapFactors(identity(), text, sums),
        GapFactors(identity(fingerprint="g"), text, sums),
        GapFactors(identity(), other, sums),
        GapFactors(identity(), text, sums, first_token=True),
    ]
    keys += [c for way in gaps for c in variants.changes_of([way.variant([1]), way.variant([0, 1]), way.variant([2])])]
    assert len({changed.key for changed in keys}) == len(keys) == 24
    # The same settings give the same keys again, however they are written; the sums are no part of them.
    assert RunMaps(identity(), replace(text, corpus="of another name"), 0).variant((2, 2)) == ways[0].variant((2, 2))
    assert RunMaps(identity(), text).variant((np.int64(2), torch.tensor(2))) == ways[0].variant((2, 2))
    assert GapFactors(identity(), text, activations.zeros(1, 5)).variant([-4]) == gaps[0].variant((1,))


def test_what_is_stored_is_neither_fitted_nor_loaded_again(tmp_path):
    model, maps = build("llama"), RunMaps(identity(), method_cases.TEXT)
    plan = [maps.variant(run) for run in [(1, 2), (3, 1)]]
    with Store(tmp_path / "s") as store:
        first = per_token(model, store, plan, maps)
    short = RunMaps(identity(), method_cases.TEXT)  # of a new process
    with Store(tmp_path / "s") as store:
        again = per_token(None, store, [short.variant((3, 1)), short.variant((1, 2))], short)
    assert {v: list(again[v]) for v in plan} == {v: list(first[v]) for v in plan}


@pytest.mark.parametrize(
    "run, words",
    [((0, 1), "blocks 0 to 0 cannot be replaced"), ((4, 2), "blocks 4 to 5"), ((2, 0), "there is a map for runs in 1")],
)
def test_runs_without_a_map_are_refused(run, words):
    with pytest.raises(StudyError, match=words):
        RunMaps(identity(), method_cases.TEXT).variant(run)


def test_what_cannot_be_is_refused_in_one_line():
    sums = activations.zeros(6, 5)
    stack = decoder_stack(build("llama"))
    with pytest.raises(StudyError, match="give calibration"):
        RunMaps(identity(), EVALUATION)
    with pytest.raises(StudyError, match="give calibration"):
        GapFactors(identity(), EVALUATION, sums)
    with pytest.raises(StudyError, match="a ridge must be 0 or more, not -1"):
        RunMaps(identity(), method_cases.TEXT, -1)
    with pytest.raises(StudyError, match="a ridge must be a finite number, not 'much'"):
        RunMaps(identity(), method_cases.TEXT, "much")
    with pytest.raises(StudyError, match="first_token must be True or False"):
        GapFactors(identity(), method_cases.TEXT, sums, "no")
    with pytest.raises(StudyError, match="keep at least one"):
        GapFactors(identity(), method_cases.TEXT, sums).variant(range(5))
    for changes in (RunMaps(identity(), method_cases.TEXT), GapFactors(identity(), method_cases.TEXT, sums)):
        with pytest.raises(StudyError, match=f"the change {'0' * 16} of block 1 is none of these"):
            changes(stack, [Changed(1, "0" * 16)])
    maps = RunMaps(identity(), replace(method_cases.TEXT, input_ids=IDS[:1]))
    with pytest.raises(StudyError, match="cannot be fitted to 20 tokens"):
        maps(stack, variants.changes_of([maps.variant((2, 1))]))


@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
def test_models_that_they_cannot_be_folded_into_are_refused(name):
    stack = decoder_stack(loading.prepare(method_cases.build(name)))
    maps = RunMaps(identity(), method_cases.TEXT)
    factors = GapFactors(identity(), method_cases.TEXT, activations.zeros(6, 5))
    for changes, variant in ((maps, maps.variant((1, 1))), (factors, factors.variant([1]))):
        with pytest.raises(NotApplicable, match="cannot be used on"):
            changes(stack, variants.changes_of([variant]))


def test_weights_that_are_elsewhere_are_refused():
    import accelerate

    model = accelerate.cpu_offload(method_cases.build("llama"), execution_device=torch.device("cpu"))
    maps = RunMaps(identity(), method_cases.TEXT)
    with pytest.raises(NotApplicable, match="needs a model whose weights are all in memory"):
        maps(decoder_stack(model), variants.changes_of([maps.variant((1, 1))]))


def test_the_work_is_a_pass_as_deep_as_the_runs_reach():
    maps = RunMaps(identity(), method_cases.TEXT)
    changed = variants.changes_of([maps.variant((1, 2)), maps.variant((2, 2))])
    assert maps.work(changed) == [Pass(6 * 20 * 4)]
    every = variants.changes_of(map(maps.variant, replace_me.every_run(5)))
    assert maps.work(every) == [Pass(6 * 20 * (5 + 1))]  # ten maps are as much as a block
    assert GapFactors(identity(), method_cases.TEXT, activations.zeros(6, 5)).work([]) == []
