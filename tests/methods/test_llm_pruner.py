"""LLM-Pruner against gradients and sums that are written out, and against its public code's rule for numbers."""

import copy
import itertools
import math
from fractions import Fraction

import pytest
import torch
import transformers as tf
from torch import nn

import tiny_models
from layer_redundancy.core.errors import NotApplicable, StudyError
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.methods import llm_pruner
from layer_redundancy.methods.llm_pruner import LlmPruner
from layer_redundancy.methods.method import NEAR, Plan, nearest
from layer_redundancy.models import loading
from layer_redundancy.models.uneven.model import narrow, widths

FAMILIES = ["llama", "llama_tied", "mistral", "qwen2", "qwen3"]
MATRICES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def text(rows=4, length=9, seed=1, split="calibration"):
    return TokenBlocks(tiny_models.tokens(rows, length, seed), "made up", split, bos=False)


def logits(model, ids=None):
    with torch.no_grad():
        return model(input_ids=tiny_models.tokens() if ids is None else ids, use_cache=False).logits


def plan(model, groups, channels, method=None):
    found = (method or LlmPruner()).plans(model)
    return next(p for p in found if (p.settings["groups"], p.settings["channels"]) == (groups, channels))


def shapes(config):
    with torch.device("meta"):
        return tf.AutoModelForCausalLM.from_config(config)


def smollm2():
    return shapes(
        tf.LlamaConfig(
            vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, tie_word_embeddings=True,
        )
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ importance


def by_loops(model, ids, index):
    """Importance of one block's groups: the whole model's own loss and gradient, and a sum for each group."""
    model = copy.deepcopy(model).requires_grad_(True)
    chances = model(input_ids=ids).logits.log_softmax(-1)  # transformers' own loss is float32
    pairs = [(text, place) for text in range(len(ids)) for place in range(1, ids.shape[1])]
    (-sum(chances[text, place - 1, ids[text, place]] for text, place in pairs) / len(pairs)).backward()
    block, config = model.model.layers[index], model.config
    attention, mlp = block.self_attn, block.mlp
    product = {n: (m.weight * m.weight.grad).abs().tolist() for n, m in block.named_modules() if hasattr(m, "weight")}
    size, shared = attention.head_dim, config.num_attention_heads // config.num_key_value_heads
    groups = []
    for group in range(config.num_key_value_heads):
        total = 0.0
        for head in range(config.num_attention_heads):
            if head // shared == group:
                for row in range(head * size, (head + 1) * size):
                    total += sum(product["self_attn.q_proj"][row])
                    total += sum(line[row] for line in product["self_attn.o_proj"])
        for row in range(group * size, (group + 1) * size):
            total += sum(product["self_attn.k_proj"][row]) + sum(product["self_attn.v_proj"][row])
        groups.append(total)
    channels = [
        sum(product["mlp.gate_proj"][c])
        + sum(product["mlp.up_proj"][c])
        + sum(line[c] for line in product["mlp.down_proj"])
        for c in range(mlp.up_proj.out_features)
    ]
    return groups, channels


@pytest.mark.parametrize("name", FAMILIES)
def test_importance_is_the_sum_of_all_weights_times_their_gradients(name):
    model, ids = tiny_models.build(name).double(), text().input_ids
    found = llm_pruner.importance(model, ids, range(1, 4))
    assert list(found) == [1, 2, 3]
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    for index in (1, 3):
        groups, channels = by_loops(model, ids, index)
        assert found[index].groups.tolist() == pytest.approx(groups, rel=1e-10)
        assert found[index].channels.tolist() == pytest.approx(channels, rel=1e-10)
    single = llm_pruner.importance(model.float(), ids, range(1, 4))
    for index, of in found.items():
        torch.testing.assert_close(single[index].groups, of.groups, rtol=1e-4, atol=0)
        torch.testing.assert_close(single[index].channels, of.channels, rtol=1e-3, atol=1e-7)


def test_scales_that_cancel_out_change_nothing():
    """A channel's or a head's scale, and that of a norm, may lie in one matrix or in the other."""
    model, ids = tiny_models.build("qwen2").double(), text().input_ids
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(5)
    block = other.model.layers[2]

    def factors(number):
        return 0.5 + torch.rand(number, generator=generator, dtype=torch.float64)

    by_channel, by_head, by_input = factors(48), factors(2), factors(32)
    block.mlp.up_proj.weight.data *= by_channel[:, None]
    block.mlp.down_proj.weight.data /= by_channel
    block.self_attn.v_proj.weight.data *= by_head.repeat_interleave(8)[:, None]
    block.self_attn.v_proj.bias.data *= by_head.repeat_interleave(8)
    block.self_attn.o_proj.weight.data /= by_head.repeat_interleave(16)
    block.post_attention_layernorm.weight.data *= by_input
    for linear in (block.mlp.gate_proj, block.mlp.up_proj):
        linear.weight.data /= by_input
    torch.testing.assert_close(logits(other), logits(model), rtol=1e-6, atol=1e-6)  # norms are float32 inside
    one, two = (llm_pruner.importance(m, ids, range(2, 3))[2] for m in (model, other))
    torch.testing.assert_close(two.groups, one.groups, rtol=1e-5, atol=0)
    torch.testing.assert_close(two.channels, one.channels, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_of_ones_it_is_the_number_of_weights(name):
    model = tiny_models.build(name)
    block, sizes = model.model.layers[2], llm_pruner.sizes_of(model)
    for linear in llm_pruner._matrices(block):
        linear.weight.data.fill_(1)
        linear.weight.grad = torch.ones_like(linear.weight)
    found = llm_pruner._summed(block)
    biases = 4 * 8 if name == "qwen2" else 0  # of two query heads, a key and a value head
    assert found.groups.tolist() == [sizes.group_weights - biases] * 2
    assert found.channels.tolist() == [sizes.channel_weights] * 48 == [3 * 32] * 48


def test_gradients_are_float32_whatever_the_weights_are_and_these_stay():
    model, ids = tiny_models.build("llama").bfloat16(), text().input_ids
    before = {name: tensor.clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    found, wide = (llm_pruner.importance(m, ids, range(5)) for m in (model, copy.deepcopy(model).float()))
    for index, of in wide.items():
        torch.testing.assert_close(found[index].channels, of.channels, rtol=0, atol=0)
    after = dict((*model.named_parameters(), *model.named_buffers()))
    assert all(torch.equal(after[n], t) and after[n].dtype == t.dtype for n, t in before.items())


def test_the_same_every_time_and_however_often_the_text_is_there():
    model, ids = tiny_models.build("llama").double(), text().input_ids
    once, again, twice = (llm_pruner.importance(model, i, range(1, 4)) for i in (ids, ids, ids.repeat(2, 1).flip(0)))
    many = llm_pruner.importance(model, ids.repeat(20, 1), range(1, 4))  # two batches
    for index, of in once.items():
        torch.testing.assert_close(many[index].channels, of.channels, rtol=1e-6, atol=0)
        assert torch.equal(of.groups, again[index].groups) and torch.equal(of.channels, again[index].channels)
        torch.testing.assert_close(twice[index].channels, of.channels, rtol=1e-10, atol=0)


def test_gradients_that_a_training_has_left_do_not_count():
    model, ids = tiny_models.build("llama"), text().input_ids
    clean = llm_pruner.importance(model, ids, range(1, 4))
    model.requires_grad_(True)(input_ids=ids, labels=ids).loss.backward()
    after = llm_pruner.importance(model, ids, range(1, 4))
    assert all(torch.equal(after[index].channels, of.channels) for index, of in clean.items())


def permuted(model):
    """The same function with the key-value heads and the channels of block 2 in another order, and the orders."""
    model = copy.deepcopy(model)
    block, generator = model.model.layers[2], torch.Generator().manual_seed(3)
    size, shared = block.self_attn.head_dim, block.self_attn.num_key_value_groups
    groups = torch.tensor([1, 0])
    channels = torch.randperm(48, generator=generator)
    keys = (groups[:, None] * size + torch.arange(size)).flatten()
    queries = (groups[:, None] * size * shared + torch.arange(size * shared)).flatten()
    for name, order in zip(MATRICES, [queries, keys, keys, queries, channels, channels, channels], strict=True):
        linear = getattr(block.self_attn, name, None) or getattr(block.mlp, name)
        if name in ("o_proj", "down_proj"):
            linear.weight.data = linear.weight.data[:, order]
        else:
            linear.weight.data = linear.weight.data[order]
            if linear.bias is not None:
                linear.bias.data = linear.bias.data[order]
    return model, groups, channels


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_the_order_of_heads_and_channels_changes_nothing(name):
    model = tiny_models.build(name).double()
    other, groups, channels = permuted(model)
    torch.testing.assert_close(logits(other), logits(model), rtol=1e-10, atol=1e-10)
    one, two = (llm_pruner.importance(m, text().input_ids, range(2, 3))[2] for m in (model, other))
    torch.testing.assert_close(two.groups, one.groups[groups], rtol=1e-10, atol=0)
    torch.testing.assert_close(two.channels, one.channels[channels], rtol=1e-10, atol=0)
    step = plan(model, 1, 30)
    pruned = [LlmPruner().apply(m, text(), step) for m in (model, other)]
    torch.testing.assert_close(logits(pruned[1]), logits(pruned[0]), rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------------------------------------------ what goes


@pytest.mark.parametrize("name", [*FAMILIES, "baichuan_rotary"])
def test_what_goes_is_what_matters_least_and_goes_as_if_it_gave_zeros(name):
    model, calibration = loading.prepare(tiny_models.build(name)), text()
    step = plan(model, 1, 25)
    scores = llm_pruner.importance(model, calibration.input_ids, range(1, 4))
    masked = copy.deepcopy(model)
    for index, of in scores.items():
        block = masked.model.layers[index]
        least = sorted(range(len(of.groups)), key=lambda g: of.groups[g])[:1]
        width = block.self_attn.o_proj.in_features // len(of.groups)
        for group in least:
            block.self_attn.o_proj.weight.data[:, group * width : (group + 1) * width] = 0
        for channel in sorted(range(len(of.channels)), key=lambda c: of.channels[c])[:25]:
            block.mlp.down_proj.weight.data[:, channel] = 0
    expected, whole = logits(masked), sum(p.numel() for p in model.parameters())
    pruned = LlmPruner().apply(model, calibration, step)
    torch.testing.assert_close(logits(pruned), expected, atol=1e-5, rtol=1e-4)
    assert not pruned.training and not any(p.requires_grad for p in pruned.parameters())
    assert step.removed == pytest.approx(1 - sum(p.numel() for p in pruned.parameters()) / whole)
    assert [widths(block).channels for block in pruned.model.layers] == [48, 23, 23, 23, 48]


def test_blocks_count_apart_from_the_rest_of_the_model():
    model = tiny_models.build("qwen2")
    blocks = sum(p.numel() for p in model.model.layers.parameters())
    step = plan(model, 1, 25)
    pruned = LlmPruner().apply(model, text(), step)
    assert step.removed_of_blocks == pytest.approx(
        1 - sum(p.numel() for p in pruned.model.layers.parameters()) / blocks
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_goes_with_the_first_plan(name):
    model = loading.prepare(tiny_models.build(name))
    before, first = logits(model), LlmPruner().plans(model)[0]
    assert (first.removed, first.removed_of_blocks) == (0, 0)
    assert torch.equal(logits(LlmPruner().apply(model, text(), first)), before)


def test_the_dtype_stays_and_what_stays_is_what_was_there():
    model = tiny_models.build("llama").bfloat16()
    rows = {tuple(row) for row in model.model.layers[2].mlp.up_proj.weight.tolist()}
    pruned = LlmPruner().apply(model, text(), plan(model, 1, 24))
    assert {p.dtype for p in pruned.parameters()} == {torch.bfloat16} and pruned.dtype == torch.bfloat16
    left = pruned.model.layers[2].mlp.up_proj.weight.tolist()
    assert len(left) == 24 and {tuple(row) for row in left} < rows


def trained(steps=75):
    """A tiny model that has begun to know ten texts by heart, so that its weights matter; and the texts."""
    model, own = tiny_models.build("llama", scale=1.0).requires_grad_(True), text(10, 24)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=own.input_ids, labels=own.input_ids).loss.backward()
        optimizer.step()
    return model.requires_grad_(False), own


def test_losing_what_matters_least_costs_less_than_losing_as_much_else():
    model, own = trained()
    found = llm_pruner.importance(model, own.input_ids, range(1, 4))

    def loss(model):
        return model(input_ids=own.input_ids, labels=own.input_ids).loss.item()

    def without(score):
        """The loss without half of the heads and channels of the blocks, those of lowest score."""
        other = copy.deepcopy(model)
        for index, of in found.items():
            kept = llm_pruner.without_least(score(of.groups), 1), llm_pruner.without_least(score(of.channels), 24)
            narrow(other.model.layers[index], *kept)
        return loss(other)

    least, most = without(lambda x: x), without(lambda x: -x)
    generator = torch.Generator().manual_seed(0)
    chance = [without(lambda x: torch.rand(len(x), generator=generator)) for _ in range(8)]
    assert loss(model) < least < min(chance) < max(chance) < most
    assert loss(LlmPruner().apply(model, own, plan(model, 1, 24))) == pytest.approx(least, rel=1e-5)


def test_of_what_matters_alike_the_first_goes():
    kept = llm_pruner.without_least(torch.tensor([2.0, 1.0, 1.0, 3.0, 1.0]), 2)
    assert kept.tolist() == [0, 3, 4]


# ------------------------------------------------------------------------------------------------ sizes


def public_numbers(groups, rows, channels, ratio):
    """What the public code takes out: rows of the key projection as whole heads, and channels."""
    of_rows = groups * rows - math.floor(groups * rows * (1 - ratio))
    return of_rows // rows, channels - math.floor(channels * (1 - ratio))


@pytest.mark.parametrize(("name", "sizes"), [("qwen3", (2, 16, 48)), ("llama", (2, 8, 48)), ("opt", None)])
def test_all_that_the_public_code_reaches_is_there(name, sizes):
    if sizes is None:
        sizes, model = (3, 64, 1536), smollm2()
    else:
        model = tiny_models.build(name)
    plans = {(p.settings["groups"], p.settings["channels"]): p for p in LlmPruner().plans(model)}
    for step in range(0, 1000):
        ratio = Fraction(step, 1000)
        numbers = public_numbers(*sizes, ratio)
        if numbers[0] < sizes[0] and numbers[1] < sizes[2]:
            assert plans[numbers].settings["ratio"] is not None
    for numbers, found in plans.items():
        if (ratio := found.settings["ratio"]) is not None:
            assert public_numbers(*sizes, Fraction(ratio).limit_denominator(10**6)) == numbers


def test_sizes_grow_and_every_share_up_to_a_half_is_near():
    plans = LlmPruner().plans(smollm2())
    removed = [p.removed for p in plans]
    assert removed == sorted(removed) and len({tuple(p.settings.items()) for p in plans}) == len(plans)
    assert {(p.settings["first"], p.settings["last"]) for p in plans} == {(4, 27)}
    for percent in range(51):
        assert abs(nearest(plans, percent / 100, "LLM-Pruner").removed - percent / 100) < NEAR / 10
    # By the public code alone, a third of the heads is a step of 5 points.
    by_code = [p.removed for p in plans if p.settings["ratio"] is not None]
    assert max(b - a for a, b in itertools.pairwise(by_code)) > 0.05


def test_of_llama_2_7b_a_quarter_of_26_blocks_is_a_fifth_of_all_weights():
    plans = LlmPruner().plans(shapes(tf.LlamaConfig()))
    by_ratio = {p.settings["ratio"]: p for p in plans}
    quarter = by_ratio[0.25]
    assert (quarter.settings["groups"], quarter.settings["channels"]) == (8, 2752)  # appendix B.1 of the paper
    assert (quarter.settings["first"], quarter.settings["last"]) == (4, 29)
    assert quarter.removed == pytest.approx(0.195, abs=5e-4)
    assert nearest(plans, 0.27, "").settings["channels"] / 11008 == pytest.approx(0.346, abs=0.003)


def test_spared_blocks_by_depth():
    assert [llm_pruner.scaled(depth) for depth in (32, 40, 30, 24, 5, 3)] == [
        (4, 2),
        (5, 3),
        (4, 2),
        (3, 2),
        (1, 1),
        (1, 1),
    ]
    model = tiny_models.build("llama")
    pruned = LlmPruner((0, 4)).apply(model, text(), plan(model, 0, 8, LlmPruner((0, 4))))
    assert [widths(block).channels for block in pruned.model.layers] == [40, 48, 48, 48, 48]


# ------------------------------------------------------------------------------------------------ what it refuses


@pytest.mark.parametrize("name", ["gemma2", "gpt2", "phi3", "rwkv5", "mamba", "mixtral", "opt", "baichuan"])
def test_families_that_it_is_not_for(name):
    with pytest.raises(NotApplicable, match="is for Llama, Mistral, Qwen2 and Qwen3"):
        LlmPruner().plans(tiny_models.build(name))


def test_models_that_it_cannot_prune():
    model = tiny_models.build("llama")
    with pytest.raises(NotApplicable, match="leaves 3 blocks at the beginning and 2 at the end whole"):
        LlmPruner((3, 2)).plans(model)
    step = plan(model, 0, 8)
    pruned = LlmPruner().apply(model, text(), step)
    with pytest.raises(NotApplicable, match="not for UnevenLlamaForCausalLM"):
        LlmPruner().plans(pruned)
    packed, linear = tiny_models.build("llama"), nn.Linear(32, 48, bias=False)
    linear.weight = nn.Parameter(torch.ones(48, 32, dtype=torch.int8), requires_grad=False)
    packed.model.layers[2].mlp.up_proj = linear
    for refused in (lambda: LlmPruner().plans(packed), lambda: LlmPruner().apply(packed, text(), step)):
        with pytest.raises(NotApplicable, match="these are quantized"):
            refused()


def test_text_that_it_refuses():
    model = tiny_models.build("llama")
    step = plan(model, 0, 8)
    for bad, reason in (
        (text(split="evaluation"), "are not selected on the evaluation text"),
        (TokenBlocks(torch.full((2, 4), 97), "made up", "calibration", bos=False), "beyond the model's 97 embeddings"),
        (text(length=1), "no loss"),
    ):
        with pytest.raises(StudyError, match=reason):
            LlmPruner().apply(model, bad, step)
    model.model.layers[3].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(StudyError, match="NaN or infinite"):
        LlmPruner().apply(model, text(), step)


def test_the_card_says_what_it_must():
    card = LlmPruner().card
    assert card.code == "horseee/LLM-Pruner" and "2305.11627" in card.paper and LlmPruner().draws
    for word in ("param_first", "vectorize", "param_second", "param_mix"):
        assert word in card.settings
    assert isinstance(LlmPruner().plans(tiny_models.build("llama"))[0], Plan)
