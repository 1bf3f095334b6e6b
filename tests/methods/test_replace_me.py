"""ReplaceMe: sums by hand, where a map is exact, that it is the best there is, and that it is folded in."""

import numpy as np
import pytest
import torch

import method_cases
import tiny_models
from layer_redundancy.core.errors import NotApplicable, StudyError
from layer_redundancy.measures import activations
from layer_redundancy.methods import blocks, replace_me
from layer_redundancy.methods.replace_me import CosineFit, ReplaceMe
from layer_redundancy.models import surgery
from layer_redundancy.models.stack import decoder_stack

IDS = method_cases.TEXT.input_ids
RUN = (2, 2)  # blocks 2 and 3


def halves(model, block):
    """M and Y of a block, from a plain forward: its MLP's output, and its own output without it; (N, d) float64."""
    found = {}
    handle = model.model.layers[block].mlp.register_forward_hook(lambda _, __, out: found.update(mlp=out))
    states = method_cases.residuals(model)
    handle.remove()
    mlp = found["mlp"].flatten(0, 1).double()
    return mlp, states[block + 1].flatten(0, 1).double() - mlp


def rows(state):
    return state.flatten(0, 1).double()


@pytest.mark.parametrize("name", method_cases.PRE_NORM)
def test_sums_are_those_of_plain_forwards_whatever_the_batch(name):
    model = method_cases.build(name)
    stack = decoder_stack(model)
    sums = replace_me.collect(stack, IDS)
    few = replace_me.collect(stack, IDS, [RUN, (1, 1)], batch_tokens=40)
    assert list(sums.cross) == sorted(sums.cross, key=lambda run: (sum(run), run))
    assert sorted(sums.cross) == replace_me.every_run(5) and len(sums.cross) == 5 * 4 // 2
    assert set(few.cross) == {RUN, (1, 1)} and set(few.gram) == {1, 2}
    states = method_cases.residuals(model)
    for a, n in [RUN, (1, 4), (4, 1)]:
        mlp, before = halves(model, a - 1)
        wanted = rows(states[a + n]) - before
        torch.testing.assert_close(sums.gram[a], mlp.T @ mlp, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(sums.cross[a, n], mlp.T @ wanted, rtol=1e-4, atol=1e-2)
        assert sums.square[a, n] == pytest.approx(wanted.square().sum().item(), rel=1e-4)
    torch.testing.assert_close(few.cross[RUN], sums.cross[RUN], rtol=1e-4, atol=1e-3)
    assert few.square[RUN] == pytest.approx(sums.square[RUN], rel=1e-5)
    assert few.tokens == sums.tokens == IDS.numel()


def test_the_map_is_the_one_of_least_squares():
    model = method_cases.build("llama")
    sums = replace_me.collect(decoder_stack(model), IDS, [RUN])
    mlp, before = halves(model, 1)
    wanted = rows(method_cases.residuals(model)[4]) - before
    by_numpy = np.linalg.lstsq(mlp.numpy(), wanted.numpy(), rcond=None)[0]
    found = sums.map(RUN)
    np.testing.assert_allclose(found.numpy(), by_numpy, rtol=2e-2, atol=2e-3)
    # Its error is what is left, and less than without a map, with a near one, and with one that is held back.
    left = (mlp @ found - wanted).square().sum(1).mean().item()
    assert sums.error(RUN, found) == pytest.approx(left, rel=1e-4)
    assert sums.error(RUN) == pytest.approx((mlp - wanted).square().sum(1).mean().item(), rel=1e-4)
    assert left < 0.9 * sums.error(RUN)
    for other in (found + 1e-3, 0.99 * found, sums.map(RUN, ridge=0.1)):
        assert sums.error(RUN, other) > left


def test_a_ridge_is_a_share_of_the_mean_of_the_diagonal():
    sums = replace_me.RunSums(10, {1: torch.tensor([[3.0, 1], [1, 5]])}, {(1, 1): torch.tensor([[2.0, 0], [0, 4]])})
    inverse = torch.linalg.inv(torch.tensor([[3 + 0.5 * 4, 1], [1, 5 + 0.5 * 4]]))
    torch.testing.assert_close(sums.map((1, 1), 0.5), inverse @ sums.cross[1, 1])


def test_too_few_tokens_are_refused_and_directions_without_any_are_left_alone():
    stack = decoder_stack(method_cases.build("llama"))
    sums = replace_me.collect(stack, IDS[:1], [RUN])  # 20 tokens, width 32
    with pytest.raises(StudyError, match="map of 32 x 32 numbers cannot be fitted to 20 tokens"):
        sums.map(RUN)
    assert sums.map(RUN, ridge=0.01).isfinite().all()
    of = torch.tensor([[2.0, 0], [0, 0]], dtype=torch.float64)
    flat = replace_me.RunSums(10, {1: of}, {(1, 1): torch.tensor([[6.0, 2], [0, 0]], dtype=torch.float64)})
    torch.testing.assert_close(flat.map((1, 1)), torch.tensor([[3.0, 1], [0, 0]], dtype=torch.float64))


def test_where_removed_blocks_are_linear_in_m_the_result_is_exact():
    """X_4 - Y = M A for some A: blocks 2 and 3 add up to M (A - 1), which a linear map takes in whole."""
    model = method_cases.build("llama").double()
    layers = model.model.layers
    with torch.no_grad():
        for i in (0, 1, 2, 3):
            layers[i].self_attn.o_proj.weight.zero_()
            if i != 1:
                layers[i].mlp.down_proj.weight.zero_()
    of = torch.randn(32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    kept: dict[str, torch.Tensor] = {}
    # Block 2's MLP is made to be a linear map of block 1's, kept from there.
    layers[1].mlp.register_forward_hook(lambda _, __, out: kept.update(mlp=out))
    handle = layers[2].mlp.register_forward_hook(lambda _, __, ___: kept["mlp"] @ of)
    dense = method_cases.logits(model)
    sums = replace_me.collect(decoder_stack(model), IDS, [RUN])
    found = sums.map(RUN)
    torch.testing.assert_close(found, of + torch.eye(32, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    assert sums.error(RUN, found) < 1e-6 * sums.error(RUN)
    handle.remove()
    small = replace_me.replaced(model, RUN, found)
    assert len(small.model.layers) == 3
    torch.testing.assert_close(method_cases.logits(small), dense, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [*method_cases.PRE_NORM])
def test_a_folded_map_is_a_map_after_the_mlp(name):
    model, other = method_cases.build(name), method_cases.build(name)
    of = torch.randn(32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) / 6
    small = replace_me.replaced(model, RUN, of)
    surgery.cut(other, [2, 3])
    other.model.layers[1].mlp.register_forward_hook(lambda _, __, out: (out.double() @ of).float())
    torch.testing.assert_close(method_cases.logits(small), method_cases.logits(other), rtol=1e-3, atol=1e-3)


def test_a_map_of_one_changes_nothing_but_the_blocks_that_go():
    model, other = method_cases.build("llama_biased"), method_cases.build("llama_biased")
    small = replace_me.replaced(model, RUN, torch.eye(32, dtype=torch.float64))
    torch.testing.assert_close(method_cases.logits(small), method_cases.logits(surgery.cut(other, [2, 3])))


@pytest.mark.parametrize("by", ["cosine", "last angle"])
def test_the_run_is_the_one_of_least_distance_with_a_block_before_it(by):
    model = method_cases.build("llama")
    states = [s.double() for s in method_cases.residuals(model)]
    grid = replace_me.distances(activations.collect(decoder_stack(model), IDS), by)
    for n in range(1, 5):
        wanted = {}
        for a in range(1, 5 - n + 1):
            cosine = torch.cosine_similarity(states[a], states[a + n], dim=-1)
            wanted[a] = (1 - cosine).mean() if by == "cosine" else torch.arccos(cosine[:, -1]).mean() / torch.pi
            assert grid[n - 1, a] == pytest.approx(wanted[a].item(), abs=1e-5)
        assert replace_me.nearest_run(grid, n) == (min(wanted, key=wanted.get), n)
    assert np.isnan(grid[:, 0]).all()
    with pytest.raises(StudyError, match="a run of 5 blocks has no block before it: choose 1 to 4"):
        replace_me.nearest_run(grid, 5)
    with pytest.raises(StudyError, match="by 'l2' is not known"):
        replace_me.distances(activations.collect(decoder_stack(model), IDS), "l2")


@pytest.mark.parametrize("distance", ["cosine", "last angle"])
def test_the_method_removes_that_run_and_brings_what_follows_nearer_to_what_it_was(distance):
    method, model = ReplaceMe(distance=distance), method_cases.build("llama")
    plan = method.plans(model)[2]
    states = method_cases.residuals(model)
    grid = replace_me.distances(activations.collect(decoder_stack(model), IDS), distance)
    a, n = replace_me.nearest_run(grid, 2)
    bare = method_cases.residuals(surgery.cut(method_cases.build("llama"), range(a, a + n)))
    small = method_cases.residuals(method.apply(model, method_cases.TEXT, plan))
    gaps = [(rows(found[a]) - rows(states[a + n])).square().sum(1).mean() for found in (bare, small)]
    assert gaps[1] < 0.9 * gaps[0]
    torch.testing.assert_close(small[a - 1], states[a - 1])


def test_on_other_text_than_it_was_fitted_to_it_still_helps():
    stack = decoder_stack(method_cases.build("llama"))
    fitted, unseen = (replace_me.collect(stack, tiny_models.tokens(300, 20, seed=s), [RUN]) for s in (5, 7))
    assert unseen.error(RUN, fitted.map(RUN)) < 0.9 * unseen.error(RUN)


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_maps_that_use_up_their_sums_are_the_same(ridge):
    stack = decoder_stack(method_cases.build("llama"))
    runs = [RUN, (1, 1), (2, 3), (4, 1)]
    sums, again = (replace_me.collect(stack, IDS, runs) for _ in range(2))
    maps = again.use_up(ridge)
    assert set(maps) == set(runs) and not again.cross and not again.gram
    for run in runs:
        torch.testing.assert_close(maps[run], sums.map(run, ridge), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["llama_biased", "qwen2"])
def test_a_map_that_is_folded_for_a_while_is_folded_and_put_back(name):
    model, other = method_cases.build(name).bfloat16(), method_cases.build(name).bfloat16()
    of = torch.randn(32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    part, folded = (blocks.pre_norm_blocks(decoder_stack(m), "it")[1] for m in (model, other))
    own, dense = [p.clone() for p in part.mlp_out.parameters()], method_cases.logits(model)
    replace_me.fold(folded, of)
    with pytest.raises(ZeroDivisionError), replace_me.folded(part, of):
        torch.testing.assert_close(method_cases.logits(model), method_cases.logits(other), rtol=0, atol=0)
        raise ZeroDivisionError
    assert all(map(torch.equal, part.mlp_out.parameters(), own))
    torch.testing.assert_close(method_cases.logits(model), dense, rtol=0, atol=0)


@pytest.mark.parametrize("accurate", [False, True])
def test_the_cosine_form_lowers_its_distance(accurate):
    model = method_cases.build("llama")
    fit = CosineFit(rate=1e-2, epochs=20, batch=50, accurate=accurate)
    of, course = replace_me.cosine_map(decoder_stack(model), IDS, RUN, fit, batch_tokens=40)
    mlp, before = halves(model, 1)
    after = rows(method_cases.residuals(model)[4])
    added, wanted = (before, after) if accurate else (0 * before, after - before)

    def distance(of):
        return 1 - torch.cosine_similarity(added + mlp @ of, wanted, dim=-1).mean().item()

    assert course[0] == pytest.approx(distance(torch.eye(32, dtype=torch.float64)), abs=1e-5)
    assert course[-1] == pytest.approx(distance(of), abs=1e-5)
    assert course[-1] < 0.9 * course[0]
    again, _ = replace_me.cosine_map(decoder_stack(model), IDS, RUN, fit, batch_tokens=1000)
    torch.testing.assert_close(again, of, rtol=1e-2, atol=1e-3)


def test_runs_that_have_no_map_and_models_that_add_something_else_are_refused():
    stack = decoder_stack(method_cases.build("llama"))
    for run in [(0, 1), (4, 2), (2, 0)]:
        with pytest.raises(StudyError, match="cannot be replaced: there is a map for runs in 1 to 4"):
            replace_me.collect(stack, IDS, [run])
    stack.blocks[1].register_forward_hook(lambda _, __, out: 2 * out)
    with pytest.raises(NotApplicable, match="its blocks add something else than their MLP's output"):
        replace_me.collect(stack, IDS, [RUN])


def test_a_map_is_rounded_to_the_weights_dtype_once():
    model = method_cases.build("llama").bfloat16()
    weight = model.model.layers[1].mlp.down_proj.weight.clone()
    of = torch.randn(32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    replace_me.fold(blocks.pre_norm_blocks(decoder_stack(model), "it")[1], of)
    wanted = (of.T @ weight.double()).bfloat16()
    torch.testing.assert_close(model.model.layers[1].mlp.down_proj.weight.data, wanted, rtol=0, atol=0)
