import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_models
from direct_importance import assert_agrees, direct
from layer_redundancy.core.errors import StudyError
from layer_redundancy.measures import activations, importance
from layer_redundancy.models import loading
from layer_redundancy.models.stack import decoder_stack


class ListedStates:
    """A stack whose residual states are given: block i returns states[i + 1]."""

    def __init__(self, states):  # (L+1, S, T, d)
        self.states = torch.as_tensor(np.asarray(states), dtype=torch.float32)

    def __len__(self):
        return len(self.states) - 1

    def start(self, input_ids):  # token ids are (sequence, position) numbers, so any batch finds its states
        rows = input_ids[:, 0] // input_ids.shape[1]
        return self.states[0][rows], rows

    def run_block(self, index, hidden, rows):
        return self.states[index + 1][rows]


def collect(states, lengths=None, **kwargs):
    states = np.asarray(states, dtype=np.float32)
    ids = torch.arange(states.shape[1] * states.shape[2]).view(states.shape[1], states.shape[2])
    return activations.collect(ListedStates(states), ids, None if lengths is None else torch.tensor(lengths), **kwargs)


def test_by_hand():
    # one sequence of two tokens, two blocks, plane vectors
    sums = collect([[[[1, 0], [0, 2]]], [[[1, 1], [0, 4]]], [[[-1, 1], [0, 4]]]])
    half = 1 / np.sqrt(2)
    np.testing.assert_allclose(importance.scores(sums, "block_influence"), [1 - (half + 1) / 2, 1 - (0 + 1) / 2], 1e-12)
    np.testing.assert_allclose(
        importance.scores(sums, "relative_magnitude"), [(1 / np.sqrt(2) + 2 / 4) / 2, (2 / np.sqrt(2) + 0) / 2], 1e-7
    )
    np.testing.assert_allclose(importance.scores(sums, "hidden_norm"), [(np.sqrt(2) + 4) / 2] * 2, 1e-12)
    np.testing.assert_allclose(importance.scores(sums, "angular_distance"), [0, 0], atol=1e-7)
    np.testing.assert_allclose(importance.scores(sums, "block_influence", first_token=False), [0, 0], atol=1e-12)
    assert importance.scores(sums, "sequential").tolist() == [0, -1]
    grid = importance.angular_grid(sums, tokens="all")
    np.testing.assert_allclose(grid, [[1 / 8, 1 / 4], [3 / 8, np.nan]], atol=1e-7)
    np.testing.assert_allclose(importance.angular_grid(sums), [[0, 0], [0, np.nan]], atol=1e-7)


def test_tokens_weigh_equally_whatever_sequence_they_are_in():
    rng = np.random.default_rng(0)
    states = rng.normal(size=(4, 3, 6, 8))
    lengths = [6, 1, 3]
    sums = collect(states, lengths)
    real = [states[:, s, t] for s in range(3) for t in range(lengths[s])]
    cos = [[x[i] @ x[i + 1] / np.linalg.norm(x[i]) / np.linalg.norm(x[i + 1]) for i in range(3)] for x in real]
    np.testing.assert_allclose(importance.scores(sums, "block_influence"), 1 - np.mean(cos, 0), atol=1e-6)
    assert sums.tokens.sum() == 10


states_strategy = st.tuples(st.integers(2, 6), st.integers(1, 4), st.integers(2, 7), st.integers(0, 10**6)).map(
    lambda a: (
        np.random.default_rng(a[3]).normal(size=(a[0], a[1], a[2], 5))
        * 10 ** np.random.default_rng(a[3]).uniform(-3, 3)
    )
)


@settings(max_examples=40, deadline=None)
@given(states_strategy, st.floats(1e-3, 1e3))
def test_properties(states, scale):
    sums, scaled = collect(states), collect(states * scale)
    for name in ("block_influence", "relative_magnitude", "angular_distance"):
        a, b = importance.scores(sums, name), importance.scores(scaled, name)
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # scale invariance, to fp32 rounding of the inputs
        assert (a >= 0).all() and (a <= {"block_influence": 2, "angular_distance": 1}.get(name, np.inf)).all()
    np.testing.assert_allclose(
        importance.scores(scaled, "hidden_norm"), scale * importance.scores(sums, "hidden_norm"), rtol=1e-4
    )
    batched = collect(states, batch_tokens=1)
    for name in importance.MEASURES:
        np.testing.assert_allclose(importance.scores(batched, name), importance.scores(sums, name), rtol=1e-12)


@settings(max_examples=20, deadline=None)
@given(states_strategy, st.integers(0, 4))
def test_identity_block_scores_zero(states, index):
    index = min(index, len(states) - 2)
    states[index + 1] = states[index]
    sums = collect(states)
    for name in ("block_influence", "relative_magnitude", "angular_distance"):
        assert importance.scores(sums, name)[index] == pytest.approx(0, abs=2e-7)


def test_orders_and_ties():
    assert importance.removal_order(np.array([0.3, 0.1, 0.1, 0.2]), "block_influence").tolist() == [2, 1, 3, 0]
    assert importance.removal_order(np.array([1.0, 5, 5, 2]), "hidden_norm").tolist() == [2, 1, 3, 0]
    positions = -np.arange(4.0)
    assert importance.removal_order(positions, "sequential").tolist() == [0, 1, 2, 3]
    assert importance.removal_order(positions, "reverse_order").tolist() == [3, 2, 1, 0]
    assert importance.ranks(np.array([[2, 1, 3, 0]])).tolist() == [[4, 2, 1, 3]]
    with pytest.raises(StudyError, match="NaN"):
        importance.removal_order(np.array([0.1, np.nan]), "block_influence")
    with pytest.raises(StudyError, match="unknown importance measure 'BI'"):
        importance.removal_order(np.array([0.1]), "BI")


@given(st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=30))
def test_order_is_a_permutation_sorted_by_score(values):
    order = importance.removal_order(np.array(values), "block_influence")
    assert sorted(order) == list(range(len(values)))
    assert all(values[a] <= values[b] for a, b in itertools.pairwise(order))


def test_bootstrap_centres_on_the_score_and_is_seeded():
    states = np.random.default_rng(3).normal(size=(4, 40, 5, 6))
    sums = collect(states)
    draws = importance.bootstrap_scores(sums, "block_influence", 2000, seed=1)
    np.testing.assert_array_equal(draws, importance.bootstrap_scores(sums, "block_influence", 2000, seed=1))
    score = importance.scores(sums, "block_influence")
    # standard error from the theory of a mean of 40 equal sequences
    by_sequence = 1 - np.diagonal(sums.cosine, offset=1, axis1=1, axis2=2) / 5
    np.testing.assert_allclose(draws.std(0), by_sequence.std(0) / np.sqrt(40), rtol=0.1)
    np.testing.assert_allclose(draws.mean(0), score, atol=4 * draws.std(0).max() / np.sqrt(2000))
    inclusion = importance.inclusion_probability(importance.removal_order(draws, "block_influence"))
    np.testing.assert_allclose(inclusion.sum(1), [1, 2, 3])
    np.testing.assert_allclose(inclusion[-1], 1)


def test_best_start_takes_the_deeper_of_equals():
    sums = collect(np.ones((4, 1, 2, 3)))
    grid = importance.angular_grid(sums)
    assert importance.best_start(grid, 1) == 2
    assert importance.best_start(grid, 3) == 0
    with pytest.raises(StudyError, match="a run of 4 blocks"):
        importance.best_start(grid, 4)


def test_names_of_equal_orders_stand_together():
    orders = {"a": np.array([2, 0, 1]), "b": [0, 1, 2], "c": (2, 0, 1)}
    assert importance.equal_together(orders) == [["a", "c"], ["b"]]


def test_leaving_out_the_only_token_is_one_line():
    with pytest.raises(StudyError, match="at least two tokens"):
        importance.scores(collect(np.ones((3, 2, 1, 4))), "block_influence", first_token=False)


def test_nan_activations_are_one_line():
    states = np.ones((3, 2, 4, 4))
    states[1, 1, 2, 0] = np.nan
    with pytest.raises(StudyError, match="NaN or infinite"):
        collect(states)
    collect(states, lengths=[4, 2])  # in the padding it does not matter


def test_out_of_memory_halves_the_batch():
    class Small(ListedStates):
        sizes = ()

        def run_block(self, index, hidden, rows):
            Small.sizes += (len(rows),)
            if len(rows) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().run_block(index, hidden, rows)

    states = np.random.default_rng(0).normal(size=(3, 8, 4, 5)).astype(np.float32)
    ids = torch.arange(32).view(8, 4)
    small = activations.collect(Small(states), ids, batch_tokens=32)
    np.testing.assert_array_equal(small.cosine, collect(states).cosine)
    assert max(Small.sizes) == 8 and Small.sizes[-1] == 2

    class Tiny(ListedStates):
        def run_block(self, index, hidden, rows):
            raise MemoryError

    with pytest.raises(StudyError, match="out of memory"):
        activations.collect(Tiny(states), ids)


def test_long_sequences_are_summed_in_several_chunks():
    states = np.random.default_rng(0).normal(size=(3, 5, 120, 4))  # 5 x 120 tokens at once: chunks of 102 positions
    lengths = [120, 101, 102, 103, 7]
    whole, one = collect(states, lengths, batch_tokens=10**6), collect(states, lengths, batch_tokens=1)
    for name, value in whole.arrays().items():
        np.testing.assert_allclose(value, one.arrays()[name], rtol=1e-12, atol=1e-12)
    last = [states[:, s, n - 1] for s, n in enumerate(lengths)]
    cosine = [x[0] @ x[1] / np.linalg.norm(x[0]) / np.linalg.norm(x[1]) for x in last]
    np.testing.assert_allclose(
        importance.scores(whole, "angular_distance")[0], np.mean(np.arccos(cosine)) / np.pi, 1e-6
    )


@pytest.mark.parametrize("name", [n for n in tiny_models.CONFIGS if n != "rwkv"])  # its X_0 is inside block 0
def test_agrees_with_a_direct_computation(name):
    model, ids, lengths = loading.prepare(tiny_models.build(name)), tiny_models.tokens(4, 13), [13, 5, 9, 2]
    sums = activations.collect(decoder_stack(model), ids, torch.tensor(lengths), batch_tokens=26)
    assert_agrees(sums, direct(model, ids, lengths))
