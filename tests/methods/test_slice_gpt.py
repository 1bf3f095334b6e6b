"""SliceGPT step by step: against hand-computed cases, its invariances, and the dense model with projections in it."""

import copy
import itertools

import numpy as np
import pytest
import torch
import transformers as tf

import tiny_models
from layer_redundancy.core.errors import NotApplicable
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.methods import slice_gpt
from layer_redundancy.methods.slice_gpt import SliceGPT
from layer_redundancy.models.sliced.model import FoldedHead

FAMILIES = ["llama", "llama_tied", "mistral", "qwen2", "qwen3", "baichuan_rotary"]
FORMS = [*((name, "untied") for name in FAMILIES), ("llama_tied", "tied")]
CALIBRATION = tiny_models.tokens(6, 20, seed=9)


def blocks(ids=CALIBRATION):
    return TokenBlocks(ids, "made up", "calibration", bos=False)


def random_basis(seed=0):
    """Another orthogonal matrix at every place."""
    generator = torch.Generator().manual_seed(seed)

    def basis(covariance):
        drawn = torch.randn(covariance.shape, generator=generator, dtype=torch.float64)
        return torch.linalg.qr(drawn).Q

    return basis


def logits(model, ids=None):
    with torch.no_grad():
        return model(input_ids=tiny_models.tokens() if ids is None else ids, use_cache=False).logits


def sliced(model, width, ids=CALIBRATION, **options):
    return slice_gpt.sliced(slice_gpt.applicable(copy.deepcopy(model)), ids, width, **options)


# ------------------------------------------------------------------------------------------------ single steps


def test_directions_of_a_covariance_by_hand():
    # Eigenvalues 6 and 1: (2, 1) and (-1, 2) over the root of 5, in which the largest entry is positive.
    found = slice_gpt.principal_directions(torch.tensor([[5.0, 2.0], [2.0, 2.0]], dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([[2.0, -1.0], [1.0, 2.0]], dtype=torch.float64) / 5**0.5)


def test_directions_are_those_of_the_undamped_covariance_by_falling_eigenvalue():
    x = np.random.default_rng(0).normal(size=(50, 7)) * np.arange(1, 8)
    found = slice_gpt.principal_directions(torch.tensor(x.T @ x)).numpy()
    values, vectors = np.linalg.eigh(x.T @ x)
    vectors = vectors[:, ::-1]
    assert np.abs(np.abs(found.T @ vectors) - np.eye(7)).max() < 1e-9
    assert np.abs(np.diag(found.T @ x.T @ x @ found) - values[::-1]).max() < 1e-8 * values[-1]
    assert all(column[np.abs(column).argmax()] > 0 for column in found.T)


def test_the_covariance_is_a_plain_sum_over_tokens():
    states = [torch.randn(1, n, 3) for n in (4, 2)]
    expected = np.zeros((3, 3))
    for state in states:
        for x in state[0].double().numpy():
            expected += np.outer(x, x)
    found = slice_gpt.covariance(states)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    halved = slice_gpt.covariance(states, lambda x: x / 2)
    np.testing.assert_allclose(halved, expected / 4, rtol=1e-6)


def test_layers_read_and_write_in_another_basis():
    kept = torch.tensor([[0.6], [0.8]], dtype=torch.float64)
    layer = torch.nn.Linear(2, 2)
    layer.weight.data, layer.bias.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([5.0, 10.0])
    reads, writes = copy.deepcopy(layer), copy.deepcopy(layer)
    slice_gpt.read_from(reads, kept)
    torch.testing.assert_close(reads.weight.data, torch.tensor([[2.2], [5.0]]))
    assert reads.bias.tolist() == [5, 10] and (reads.in_features, reads.out_features) == (1, 2)
    slice_gpt.write_to(writes, kept)
    torch.testing.assert_close(writes.weight.data, torch.tensor([[3.0, 4.4]]))
    torch.testing.assert_close(writes.bias.data, torch.tensor([11.0]))
    assert (writes.in_features, writes.out_features) == (2, 1)


@pytest.mark.parametrize("name", FAMILIES)
def test_norms_that_are_folded_leave_the_logits(name):
    model = slice_gpt.applicable(tiny_models.build(name))
    expected, embedding = logits(model), model.model.embed_tokens.weight.clone()
    slice_gpt.fold_norms(model)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-4)
    norms = [model.model.norm]
    norms += [norm for b in model.model.layers for norm in (b.input_layernorm, b.post_attention_layernorm)]
    assert all((norm.weight == 1).all() for norm in norms)
    assert torch.equal(model.model.embed_tokens.weight, embedding)
    assert model.lm_head.weight is not model.model.embed_tokens.weight


def test_widths_are_those_of_the_public_code():
    assert [slice_gpt.width_of(share, 576) for share in (0, 0.2, 0.25, 0.3)] == [576, 456, 432, 400]
    assert slice_gpt.width_of(0.25, 4096) == 3072
    model = tiny_models.build("llama")
    reached = {plan.settings["width"] for plan in SliceGPT().plans(model)}
    assert reached == {slice_gpt.width_of(share, 32) for share in np.linspace(0, 0.75, 50)} == {32, 24, 16, 8}


# ------------------------------------------------------------------------------------------------ nothing cut


@pytest.mark.parametrize("slice_head", [False, True])
@pytest.mark.parametrize("basis", ["principal", "random"])
@pytest.mark.parametrize(("name", "head"), FORMS)
def test_any_rotation_leaves_the_logits_where_nothing_is_cut(name, head, basis, slice_head):
    model = tiny_models.build(name)
    basis = random_basis() if basis == "random" else slice_gpt.principal_directions
    found = sliced(model, 32, tied=head == "tied", slice_head=slice_head, basis=basis)
    torch.testing.assert_close(logits(found), logits(model), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "head"), FORMS)
def test_the_first_plan_gives_the_whole_models_logits(name, head):
    model, method = tiny_models.build(name), SliceGPT(head)
    expected = logits(model)
    found = method.apply(model, blocks(), method.plans(model)[0])
    torch.testing.assert_close(logits(found), expected, atol=1e-4, rtol=0)


def test_biases_of_what_writes_to_the_stream_are_rotated_too():
    torch.manual_seed(0)
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**tiny_models.COMMON, attention_bias=True, mlp_bias=True)).eval()
    for name, parameter in model.named_parameters():
        parameter.data += 0.2 * torch.randn_like(parameter) * name.endswith("bias")
    found = sliced(model, 32, basis=random_basis())
    torch.testing.assert_close(logits(found), logits(model), atol=1e-4, rtol=0)
    plan = SliceGPT().plans(model)[1]
    after = SliceGPT().apply(copy.deepcopy(model), blocks(), plan)
    assert after.num_parameters() == pytest.approx((1 - plan.removed) * model.num_parameters(), abs=0.01)


def test_the_tied_head_is_the_embedding_read_through_the_folded_norm():
    model = tiny_models.build("llama_tied")
    embedding, gains = model.model.embed_tokens.weight.double(), model.model.norm.weight.double()
    q = random_basis()(torch.zeros(32, 32))
    for width in (32, 24):
        found = sliced(model, width, tied=True, slice_head=True, basis=lambda _: q)  # one basis for all places
        assert isinstance(found.lm_head, FoldedHead) and found.config.tie_word_embeddings
        assert found.lm_head.vocabulary.weight is found.model.embed_tokens.weight
        torch.testing.assert_close(found.lm_head.vocabulary.weight.data, (embedding @ q)[:, :width].float())
        folded = (q.T @ torch.diag(gains) @ q)[:width, :width]
        torch.testing.assert_close(found.lm_head.fold.weight.data, folded.T.float())
        # logits = x E'(Q^T G Q)[:d', :d'] of the stream after the last norm
        x = torch.randn(2, 5, width)
        torch.testing.assert_close(
            found.lm_head(x).double(), x.double() @ folded @ (embedding @ q)[:, :width].T, atol=1e-4, rtol=1e-4
        )


def test_an_untied_head_is_two_matrices_and_its_plan_counts_both():
    model = tiny_models.build("llama_tied")
    untied, tied = (SliceGPT(head).plans(model)[0] for head in ("untied", "tied"))
    total = model.num_parameters()
    assert total * (tied.removed - untied.removed) == pytest.approx(97 * 32 - 32 * 32)
    found = sliced(model, 24)
    assert not found.config.tie_word_embeddings
    assert found.lm_head.weight.data_ptr() != found.model.embed_tokens.weight.data_ptr()


# ------------------------------------------------------------------------------------------------ cut


def projected(model, projections, ids, tied):
    """Logits of the dense model with its stream projected at each place, by plain loops over its own parts.

    Cutting directions in a rotated basis is the same as projecting the stream on those that are kept, in the model's
    own basis; a norm of a projected stream divides by the original width by itself.
    """
    dense, places = model.model, iter(projections)
    x = dense.embed_tokens(ids)
    positions = torch.arange(ids.shape[1])[None]
    rotary = dense.rotary_emb(x, positions)
    length = ids.shape[1]
    mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
    signals = [x]
    first = next(places)
    x = x @ first
    for block in dense.layers:
        window = getattr(block.self_attn, "sliding_window", None)
        seen = mask.clone()
        if window:
            far = torch.arange(length)[:, None] - torch.arange(length) >= window
            seen[0, 0][far] = torch.finfo(torch.float32).min
        attended = block.self_attn(block.input_layernorm(x), position_embeddings=rotary, attention_mask=seen)[0]
        signals.append(x + attended)
        x = signals[-1] @ next(places)
        signals.append(x + block.mlp(block.post_attention_layernorm(x)))
        x = signals[-1] @ next(places)
    head = dense.embed_tokens.weight @ first if tied else model.lm_head.weight
    return dense.norm(x) @ head.T, signals


def numpy_projections(model, ids, width, slice_head, normalized=False):
    """Projections on the principal directions of each place, found one after the other with what precedes projected."""
    found, places = [], 2 * len(model.model.layers) + 1
    whole = torch.eye(model.config.hidden_size)
    for place in range(places):
        total = 0
        for row in ids:
            _, signals = projected(model, found + [whole] * (places - place), row[None], False)
            x = signals[place][0].double().numpy()
            if normalized:
                x = x / np.sqrt((x**2).mean(-1, keepdims=True) + model.config.rms_norm_eps)
            total = total + x.T @ x
        _, vectors = np.linalg.eigh(total)
        kept = vectors[:, ::-1][:, : model.config.hidden_size if place == places - 1 and not slice_head else width]
        found.append(torch.tensor(kept @ kept.T, dtype=torch.float32))
    return found


@pytest.mark.parametrize("slice_head", [False, True])
@pytest.mark.parametrize(("name", "head"), [("llama", "untied"), ("llama_tied", "tied"), ("qwen2", "untied")])
def test_a_sliced_model_is_the_dense_one_with_its_stream_projected(name, head, slice_head):
    model = tiny_models.build(name)
    model.config._attn_implementation = "eager"
    text = tiny_models.tokens(6, 12, seed=9)
    projections = numpy_projections(model, text, 24, slice_head)
    expected, _ = projected(model, projections, tiny_models.tokens(2, 12), head == "tied")
    found = sliced(model, 24, text, tied=head == "tied", slice_head=slice_head)
    assert found.config.residual_widths == [24] * 10 + [24 if slice_head else 32]
    torch.testing.assert_close(logits(found, tiny_models.tokens(2, 12)), expected, atol=2e-3, rtol=0)
    assert (expected - logits(model, tiny_models.tokens(2, 12))).abs().max() > 0.1


def test_directions_of_the_norms_outputs():
    model = tiny_models.build("llama")
    model.config._attn_implementation = "eager"
    text = tiny_models.tokens(6, 12, seed=9)
    projections = numpy_projections(model, text, 24, False, normalized=True)
    expected, _ = projected(model, projections, tiny_models.tokens(2, 12), False)
    found = sliced(model, 24, text, normalized=True)
    torch.testing.assert_close(logits(found, tiny_models.tokens(2, 12)), expected, atol=2e-3, rtol=0)
    assert (logits(sliced(model, 24, text)) - logits(found)).abs().max() > 0.01


def test_a_rotation_of_what_is_kept_changes_nothing():
    """The public code's last step, final_orientation="random"."""
    model, random = tiny_models.build("llama"), random_basis()

    def turned(covariance):
        turn = torch.eye(32, dtype=torch.float64)
        turn[:24, :24] = random(torch.zeros(24, 24))
        return slice_gpt.principal_directions(covariance) @ turn

    torch.testing.assert_close(logits(sliced(model, 24, basis=turned)), logits(sliced(model, 24)), atol=1e-4, rtol=0)


def written_by(model, rows=6, length=24):
    """Texts that the model itself writes, so that it has something to lose on them."""
    generator, ids = torch.Generator().manual_seed(3), torch.arange(3, 3 + rows)[:, None]
    while ids.shape[1] < length:
        chances = logits(model, ids)[:, -1].mul(6).softmax(-1)
        ids = torch.cat([ids, torch.multinomial(chances, 1, generator=generator)], 1)
    return ids


def nll(model, ids):
    return torch.nn.functional.cross_entropy(logits(model, ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()


@pytest.mark.parametrize(("name", "head"), [("llama", "untied"), ("llama_tied", "tied"), ("qwen3", "untied")])
def test_principal_directions_lose_less_of_the_stream_and_of_the_text_than_random_ones(name, head):
    model = tiny_models.build(name)
    text, lost, values = written_by(model), {}, []

    def observed(key, basis):
        def find(covariance):
            directions = basis(covariance)
            kept = directions[:, :16]
            left = 1 - (kept.T @ covariance @ kept).trace() / covariance.trace()
            lost.setdefault(key, []).append(left.item())
            if key == "principal":
                ascending = np.linalg.eigvalsh(covariance.numpy())
                values.append(ascending[:16].sum() / ascending.sum())
            return directions

        return find

    principal = sliced(
        model, 16, text, tied=head == "tied", basis=observed("principal", slice_gpt.principal_directions)
    )
    others = [
        sliced(model, 16, text, tied=head == "tied", basis=observed(seed, random_basis(seed))) for seed in range(3)
    ]
    np.testing.assert_allclose(lost["principal"], values, atol=1e-9)  # no other directions of this number lose less
    assert all(best < other for s in range(3) for best, other in zip(lost["principal"], lost[s], strict=True))
    assert nll(model, text) < nll(principal, text) < min(nll(other, text) for other in others)


def test_less_is_lost_where_more_is_kept():
    model = tiny_models.build("llama")
    text = written_by(model)
    found = [nll(sliced(model, width, text), text) for width in (32, 24, 16, 8)]
    assert found[0] == pytest.approx(nll(model, text), abs=1e-4)
    assert all(more < less + 0.05 for more, less in itertools.pairwise(found)) and found[0] < found[-1]


def test_the_same_twice_and_whatever_the_signs_of_eigenvectors(monkeypatch):
    model = tiny_models.build("qwen3")
    first, eigh = sliced(model, 24), torch.linalg.eigh

    def flipped(matrix):
        values, vectors = eigh(matrix)
        signs = torch.where(torch.arange(len(matrix)) % 3 == 0, -1.0, 1.0)
        return type(eigh(matrix))((values, vectors * signs))

    monkeypatch.setattr(torch.linalg, "eigh", flipped)
    for one, other in zip(first.parameters(), sliced(model, 24).parameters(), strict=True):
        assert torch.equal(one, other)


# ------------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize("slice_head", [False, True])
@pytest.mark.parametrize(("name", "head"), FORMS)
def test_plans_count_every_weight(name, head, slice_head):
    model, method = tiny_models.build(name), SliceGPT(head, slice_head)
    total, of_blocks = model.num_parameters(), sum(p.numel() for p in model.model.layers.parameters())
    plans = method.plans(model)
    assert [plan.settings["width"] for plan in plans] == [32, 24, 16, 8]
    for plan in plans:
        found = method.apply(copy.deepcopy(model), blocks(CALIBRATION[:1]), plan)
        left = {id(p): p.numel() for p in found.parameters()}
        assert 1 - sum(left.values()) / total == pytest.approx(plan.removed, abs=1e-12)
        left_of_blocks = sum(p.numel() for p in found.model.layers.parameters())
        assert 1 - left_of_blocks / of_blocks == pytest.approx(plan.removed_of_blocks, abs=1e-12)


def test_sizes_of_real_shapes():
    with torch.device("meta"):
        smollm2 = tf.LlamaForCausalLM(
            tf.LlamaConfig(
                vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
                num_key_value_heads=3, tie_word_embeddings=True,
            )
        )  # fmt: skip
    assert smollm2.num_parameters() == 134515008
    untied, tied = (SliceGPT(head).plans(smollm2) for head in ("untied", "tied"))
    # Two shortcuts a block and a head of its own, less the norms' weights; or a matrix of 576 x 576.
    assert -untied[0].removed * 134515008 == pytest.approx(30 * 2 * 576**2 + 49152 * 576 - 61 * 576)
    assert -tied[0].removed * 134515008 == pytest.approx(30 * 2 * 576**2 + 576**2 - 61 * 576)
    assert all(plans[i].removed < plans[i + 1].removed for plans in (untied, tied) for i in range(71))


@pytest.mark.parametrize(("shape", "published"), [((4096, 11008, 32), 0.2145), ((5120, 13824, 40), 0.2152)])
def test_sizes_of_llama_2_are_the_published_ones(shape, published):
    """What MrGGLS/BlockPruner prints of SliceGPT on Llama-2-7B and -13B is the public code's --sparsity 0.3."""
    width, inner, layers = shape
    settings = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    with torch.device("meta"):
        model = tf.LlamaForCausalLM(tf.LlamaConfig(**settings, num_attention_heads=layers))
    kept = slice_gpt.width_of(0.3, width)
    plan = next(plan for plan in SliceGPT().plans(model) if plan.settings["width"] == kept)
    assert plan.removed == pytest.approx(published, abs=5e-5)


# ------------------------------------------------------------------------------------------------ what it takes


def test_half_precision_stays():
    model = tiny_models.build("llama_tied").bfloat16()
    expected = logits(model).float()
    method = SliceGPT("tied")
    found = method.apply(model, blocks(), method.plans(model)[0])
    assert {p.dtype for p in found.parameters()} == {torch.bfloat16} and found.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(logits(found).float(), expected, dim=-1).min() > 0.99


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "gpt2", "rwkv5", "opt", "baichuan"])
def test_models_of_another_layout_are_refused_in_one_line(name):
    with pytest.raises(NotApplicable, match="none of these") as error:
        SliceGPT().plans(tiny_models.build(name))
    assert "\n" not in str(error.value)


def test_a_head_that_is_no_embedding_cannot_be_tied():
    with pytest.raises(NotApplicable, match="head is not the embedding"):
        SliceGPT("tied").plans(tiny_models.build("llama"))


def test_quantized_weights_are_refused():
    model = tiny_models.build("llama")
    model.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(NotApplicable, match="quantized"):
        SliceGPT().plans(model)


def test_the_card_says_which_form_it_is():
    titles = {SliceGPT(head).card.title for head in ("untied", "tied")}
    assert titles == {"SliceGPT", "SliceGPT, tied"}
    assert "stays tied" in SliceGPT("tied").card.changed and "stays tied" not in SliceGPT().card.changed
