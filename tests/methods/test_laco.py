"""LaCo: merges by hand, the loop on scripted similarities, and both on tiny models against copies merged in place."""

import copy
import itertools

import pytest
import torch
from torch import nn

import method_cases
from layer_redundancy.core.errors import StudyError
from layer_redundancy.methods import laco
from layer_redundancy.methods.laco import LaCo, Loop, Merged
from layer_redundancy.models import surgery
from layer_redundancy.models.stack import decoder_stack

IDS = method_cases.TEXT.input_ids
LOOP = Loop(merged=3, interval=2, highest=10, lowest=1)


def test_the_two_forms_of_a_merge_by_hand():
    """theta_1 + (theta_2 - theta_1) + (theta_3 - theta_1), or theta_3."""
    printed = laco.merge(laco.whole(5), 1, 2, as_printed=True)
    assert printed == (Merged(0, ((0, 1.0),)), Merged(1, ((1, -1.0), (2, 1.0), (3, 1.0))), Merged(4, ((4, 1.0),)))
    assert laco.merge(laco.whole(5), 1, 2, as_printed=False)[1] == Merged(1, ((3, 1.0),))
    # Block 0 takes in the merged one and block 4: theta_0 + (theta*_1 - theta_0) + (theta_4 - theta_0).
    assert laco.merge(printed, 0, 2, as_printed=True) == (
        Merged(0, ((0, -1.0), (1, -1.0), (2, 1.0), (3, 1.0), (4, 1.0))),
    )
    # One block alone is taken in whole: theta_1 + (theta_2 - theta_1) = theta_2. None, and nothing happens.
    assert laco.merge(laco.whole(3), 1, 1, as_printed=True)[1] == Merged(1, ((2, 1.0),))
    for as_printed in (True, False):
        assert laco.merge(laco.whole(3), 1, 0, as_printed) == laco.whole(3)


@pytest.mark.parametrize("as_printed", [True, False])
def test_the_loop_goes_from_the_back_to_the_front(as_printed):
    """Accepted above 0.5 only: two blocks back then, one back otherwise."""
    script = iter([0.9, 0.4, 0.6, 0.5, 0.7])
    asked = []

    def similarity(state):
        asked.append([merged.base for merged in state])
        return next(script)

    found = laco.collapse(10, similarity, 0.5, LOOP, as_printed)
    assert asked == [
        [0, 1, 2, 3, 4, 5, 6, 7],  # 7 takes in 8 and 9: yes
        [0, 1, 2, 3, 4, 5],  # 5 takes in 6 and 7: no
        [0, 1, 2, 3, 4, 7],  # 4 takes in 5 and 6: yes
        [0, 1, 2, 7],  # 2 takes in 3 and 4: no
        [0, 1, 4, 7],  # 1 takes in 2 and 3: yes, and block -1 is below the lowest
    ]
    weights = {merged.base: merged.weights for merged in found}
    if as_printed:
        assert weights[7] == ((7, -1.0), (8, 1.0), (9, 1.0))
        assert weights[4] == ((4, -1.0), (5, 1.0), (6, 1.0))
        assert weights[1] == ((1, -1.0), (2, 1.0), (3, 1.0))
    else:
        assert [weights[i] for i in (0, 1, 4, 7)] == [((i, 1.0),) for i in (0, 3, 6, 9)]


def test_merges_near_the_last_block_take_in_what_there_is():
    asked = []

    def similarity(state):
        asked.append(len(state))
        return 1.0

    laco.collapse(8, similarity, 0.5, Loop(merged=5, interval=1, highest=8, lowest=0), True)
    assert asked == [4, 3, 2, 1]  # 3 takes in four, then 2, 1 and 0 the one that is left after them


def test_no_more_blocks_go_than_asked():
    found = laco.collapse(10, lambda _: 1.0, 0.5, LOOP, True, most=3)
    assert [merged.base for merged in found] == [0, 1, 2, 3, 4, 5, 7]  # two into 7, then one more, 6, into 5
    assert laco.most_merged(10, LOOP) == 10 - len(laco.collapse(10, lambda _: 1.0, 0.5, LOOP, True))


@pytest.mark.parametrize("as_printed", [True, False])
def test_a_share_is_reached_at_the_highest_threshold_that_gives_it(as_printed):
    values = {}
    numbers = iter(torch.rand(9999, generator=torch.Generator().manual_seed(0)).tolist())

    def similarity(state):
        assert state not in values, "each is compared once"
        return values.setdefault(state, next(numbers))

    found, threshold = laco.search(12, similarity, LOOP, as_printed, 5)
    assert len(found) == 12 - 5

    def number_at(step):
        return 12 - len(laco.collapse(12, lambda state: values[state], step / 20, LOOP, as_printed, 5))

    assert number_at(round(20 * threshold)) == 5
    assert all(number_at(step) < 5 for step in range(round(20 * threshold) + 1, 20))


def test_a_model_that_resembles_nothing_still_gets_there_and_more_is_refused():
    most = laco.most_merged(12, LOOP)
    found, threshold = laco.search(12, lambda _: -1.0, LOOP, True, most)
    assert (len(found), threshold) == (12 - most, -1.05)
    with pytest.raises(StudyError, match="does not merge away 11 of 12 blocks"):
        laco.search(12, lambda _: 1.0, LOOP, True, 11)


def merged_in_place(model, block, number, as_printed):
    """As the notebooks go about it, on a copy, in float64: every linear layer of the base, block after block."""
    model = copy.deepcopy(model).double()
    base = model.model.layers[block]
    first = copy.deepcopy(base)
    for k in range(1, number + 1):
        other = dict(model.model.layers[block + k].named_modules())
        old = dict(first.named_modules())
        for name, module in base.named_modules():
            if isinstance(module, nn.Linear):
                minus = old[name] if as_printed else module
                module.weight.data = module.weight + (other[name].weight - minus.weight)
                if module.bias is not None:
                    module.bias.data = module.bias + (other[name].bias - minus.bias)
    return surgery.cut(model, range(block + 1, block + 1 + number)).float()


@pytest.mark.parametrize("name", method_cases.PRE_NORM)
@pytest.mark.parametrize("as_printed", [True, False])
def test_merged_models_are_those_of_copies_merged_in_place(name, as_printed):
    model = method_cases.build(name)
    wanted = method_cases.logits(merged_in_place(model, 1, 2, as_printed))
    state = laco.merge(laco.whole(5), 1, 2, as_printed)
    dense = method_cases.logits(model)
    with laco.merged_for_a_while(model, state):
        torch.testing.assert_close(method_cases.logits(model), wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(method_cases.logits(model), dense, atol=0, rtol=0)
    torch.testing.assert_close(method_cases.logits(laco.merged(model, state)), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "llama_biased"])
def test_the_code_drops_blocks_and_keeps_their_norms_while_the_paper_adds_up(name):
    model, code, printed = (method_cases.build(name) for _ in range(3))
    laco.merged(code, laco.merge(laco.whole(5), 1, 2, as_printed=False))
    laco.merged(printed, laco.merge(laco.whole(5), 1, 2, as_printed=True))
    dropped = surgery.cut(method_cases.build(name), [1, 2])
    for norm in ("input_layernorm", "post_attention_layernorm"):
        for other in (dropped, code, printed):
            getattr(other.model.layers[1], norm).weight.data = getattr(model.model.layers[1], norm).weight.data
    torch.testing.assert_close(method_cases.logits(code), method_cases.logits(dropped), atol=0, rtol=0)
    assert (method_cases.logits(printed) - method_cases.logits(code)).abs().max() > 0.1
    one, two, three = (model.model.layers[i].mlp.up_proj.weight for i in (1, 2, 3))
    torch.testing.assert_close(printed.model.layers[1].mlp.up_proj.weight, two + three - one)


@pytest.mark.parametrize("as_printed", [True, False])
def test_similarity_is_the_cosine_of_flattened_last_hidden_states(as_printed):
    model = method_cases.build("llama_tied")
    similarity = laco.similarity_to(model, IDS)
    assert similarity(laco.whole(5)) == pytest.approx(1, abs=1e-6)
    state = laco.merge(laco.whole(5), 2, 1, as_printed)
    whole, small = model.model(IDS), merged_in_place(model, 2, 1, as_printed).model(IDS)
    cosines = [
        torch.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0).item()
        for a, b in zip(whole.last_hidden_state, small.last_hidden_state, strict=True)
    ]
    assert similarity(state) == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)


@pytest.mark.parametrize("as_printed", [True, False])
def test_on_a_tiny_model_the_loop_ends_where_one_over_copies_does(as_printed):
    """The notebooks' loop, copies and all: C 2, I 1, H 5, L 0."""
    model = method_cases.build("llama")
    similarity = laco.similarity_to(model, IDS)
    wanted = model.model(IDS).last_hidden_state.flatten(1)
    threshold = 0.5 if as_printed else 0.7
    kept, block, accepted = copy.deepcopy(model), 5 - 2, []
    while block >= 0:
        number = min(1, len(kept.model.layers) - block - 1)
        trial = merged_in_place(kept, block, number, as_printed) if number else copy.deepcopy(kept)
        found = torch.cosine_similarity(trial.model(IDS).last_hidden_state.flatten(1), wanted).mean().item()
        accepted.append(found > threshold)
        kept = trial if found > threshold else kept
        block -= 1
    assert len(set(accepted)) == 2, "some merges count, some do not"
    state = laco.collapse(5, similarity, threshold, Loop(2, 1, 5, 0), as_printed)
    assert len(state) == len(kept.model.layers)
    found = method_cases.logits(laco.merged(model, state))
    torch.testing.assert_close(found, method_cases.logits(kept), atol=1e-4, rtol=1e-4)


def test_what_it_gives_is_as_similar_as_its_threshold_says(remarks):
    method = LaCo(as_printed=False, merged=3)
    model = method_cases.build("llama", scale=1.0)
    whole = laco.last_hidden(model, IDS)
    small = method.apply(model, method_cases.TEXT, method.plans(model)[2])
    threshold = float(remarks().split("threshold of ")[1])
    assert torch.cosine_similarity(laco.last_hidden(small, IDS), whole).mean() > threshold
    assert len(decoder_stack(small)) == 3


def test_bf16_sums_are_rounded_once():
    model = method_cases.build("llama").bfloat16()
    before = [copy.deepcopy(model.model.layers[i].mlp.up_proj.weight).float() for i in range(5)]
    laco.merged(model, laco.merge(laco.whole(5), 0, 3, True))
    wanted = (before[1] + before[2] + before[3] - 2 * before[0]).bfloat16()
    torch.testing.assert_close(model.model.layers[0].mlp.up_proj.weight.data, wanted, atol=0, rtol=0)


def test_settings_of_plans_are_those_that_apply_goes_by():
    method = LaCo(as_printed=True, merged=3, interval=1, lowest=0, texts=2, tokens=9)
    plans = method.plans(method_cases.build("llama"))
    assert [p.settings["blocks"] for p in plans] == list(range(5))  # with I 1 and L 0 everything merges into block 0
    for one, two in itertools.pairwise(plans):
        assert {k: v for k, v in one.settings.items() if k != "blocks"} == {
            k: v for k, v in two.settings.items() if k != "blocks"
        }
    given = LaCo(as_printed=False).apply(method_cases.build("llama"), method_cases.TEXT, plans[2])
    wanted = method.apply(method_cases.build("llama"), method_cases.TEXT, plans[2])
    torch.testing.assert_close(method_cases.logits(given), method_cases.logits(wanted), atol=0, rtol=0)
