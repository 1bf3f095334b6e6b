"""Baichuan against the published definition of both sizes, and its files as they are published."""

import json
import math

import pytest
import sentencepiece
import torch
import torch.nn.functional as F
import transformers as tf
from safetensors.torch import load_file

import tiny_models
from layer_redundancy.config import profiles
from layer_redundancy.core import paths, variants
from layer_redundancy.core.errors import StudyError
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.models import checkpoints, loading, quantize, surgery
from layer_redundancy.models.baichuan import model as baichuan
from layer_redundancy.models.baichuan.model import BaichuanConfig
from layer_redundancy.models.baichuan.tokenizer import BaichuanTokenizer
from layer_redundancy.models.stack import decoder_stack
from measurements import Continuations, plain, ragged_sequences

# What the published config.json of both sizes have in common, at a tiny size; only the 7B has max_position_embeddings.
PUBLISHED = {
    "_from_model_config": True,
    "architectures": ["BaichuanForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_baichuan.BaichuanConfig",
        "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM",
    },
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 48,
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "model_max_length": 64,
    "model_type": "baichuan",
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.29.2",
    "use_cache": True,
    "vocab_size": 97,
    "z_loss_weight": 0,
}
SIZES = {"7B": {"max_position_embeddings": 64}, "13B": {"gradient_checkpointing": False}}
CASES = [(size, heads) for size in SIZES for heads in (4, 6)]  # 6: no power of two


def config(size, heads=4, **changes):
    return PUBLISHED | SIZES[size] | {"num_attention_heads": heads} | changes


def published_tensors(settings, seed=0):
    """Random weights by their published names, large enough for everything to matter."""
    generator = torch.Generator().manual_seed(seed)
    width, inner, vocabulary = (settings[name] for name in ("hidden_size", "intermediate_size", "vocab_size"))
    shapes = {"model.embed_tokens.weight": (vocabulary, width), "lm_head.weight": (vocabulary, width)}
    for i in range(settings["num_hidden_layers"]):
        block = f"model.layers.{i}."
        shapes |= {f"{block}self_attn.W_pack.weight": (3 * width, width)}
        shapes |= {f"{block}self_attn.o_proj.weight": (width, width)}
        shapes |= {f"{block}mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        shapes |= {f"{block}mlp.down_proj.weight": (width, inner)}
        shapes |= {f"{block}{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    shapes["model.norm.weight"] = (width,)
    random = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: 0.15 * x if x.ndim == 2 else 1 + 0.1 * x for name, x in random.items()}


def definition(tensors, settings, ids, mask=None):
    """Logits (batch, tokens, vocabulary) by the published definition, written down as the files say it.

    modeling_baichuan.py of baichuan-inc/Baichuan2-7B-Base (rotary positions) and of Baichuan2-13B-Base (a bias of
    slope * key's position, counted from the first slot, and minus infinity behind the query).
    """
    heads, width = settings["num_attention_heads"], settings["hidden_size"]
    size, rotary = width // heads, "max_position_embeddings" in settings
    batch, length = ids.shape
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    allowed = torch.ones(length, length).tril().bool() & real[:, None, None]

    def norm(x, weight):
        return weight * (x * (x.pow(2).mean(-1, keepdim=True) + settings["rms_norm_eps"]).rsqrt())

    if rotary:
        bias = torch.zeros(())
        steps = (real.long().cumsum(1) - 1).clamp_min(0)[:, None, :, None]
        angles = steps * 10000 ** (-torch.arange(0, size, 2) / size)
        cos, sin = angles.cos(), angles.sin()

        def turn(x):
            a, b = x.chunk(2, dim=-1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    else:
        bias = torch.tensor(slopes(heads))[:, None, None] * torch.arange(length)

        def turn(x):
            return x

    x = F.embedding(ids, tensors["model.embed_tokens.weight"])
    for i in range(settings["num_hidden_layers"]):
        w = {n.split(f"layers.{i}.")[1]: t for n, t in tensors.items() if f"layers.{i}." in n}
        qkv = norm(x, w["input_layernorm.weight"]) @ w["self_attn.W_pack.weight"].T
        q, k, v = qkv.view(batch, length, 3, heads, size).permute(2, 0, 3, 1, 4)
        scores = turn(q) @ turn(k).mT / math.sqrt(size) + bias
        weights = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(-1)
        x = x + (weights @ v).transpose(1, 2).flatten(2) @ w["self_attn.o_proj.weight"].T
        h = norm(x, w["post_attention_layernorm.weight"])
        gated = F.silu(h @ w["mlp.gate_proj.weight"].T) * (h @ w["mlp.up_proj.weight"].T)
        x = x + gated @ w["mlp.down_proj.weight"].T
    head = tensors["lm_head.weight"]
    return norm(x, tensors["model.norm.weight"]) @ (head / head.norm(dim=1, keepdim=True)).T


def slopes(heads):
    """_get_interleave of the published file, for a power of two and for the rest."""
    power = 2 ** math.floor(math.log2(heads))
    start = 2 ** -(2 ** -(math.log2(power) - 3))
    found = [start ** (i + 1) for i in range(power)]
    return found if power == heads else found + slopes(2 * power)[0::2][: heads - power]


def write(folder, settings, tensors, safe=False):
    """A folder as on the hub: two pickles and their index (or safetensors), with the config that names code."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(settings))
    names = sorted(tensors)
    parts = [names[: len(names) // 2], names[len(names) // 2 :]]
    stem, end = ("model", "safetensors") if safe else ("pytorch_model", "bin")
    files = [f"{stem}-0000{i + 1}-of-00002.{end}" for i in range(2)]
    for file, part in zip(files, parts, strict=True):
        found = {name: tensors[name].clone() for name in part}
        if safe:
            from safetensors.torch import save_file

            save_file(found, folder / file, metadata={"format": "pt"})
        else:
            torch.save(found, folder / file)
    index = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    (folder / f"{stem}.{end}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def identify(folder, **changes):
    return checkpoints.identify(profiles.get("embedded", model=str(folder), **changes))


@pytest.fixture(params=CASES, ids=[f"{size}-{heads}" for size, heads in CASES])
def pair(request, tmp_path):
    """A published checkpoint's settings and tensors, and the model loaded from its files."""
    settings = config(*request.param)
    tensors = published_tensors(settings)
    return settings, tensors, loading.load(identify(write(tmp_path / "published", settings, tensors)))


# ------------------------------------------------------------------------------------------------ the definition


def test_slopes_are_the_published_ones():
    for heads in (1, 2, 3, 4, 6, 8, 12, 32, 40):
        assert baichuan.alibi_slopes(heads) == pytest.approx(slopes(heads), rel=1e-12)
    assert baichuan.alibi_slopes(40)[:2] == pytest.approx([2**-0.25, 2**-0.5])
    assert baichuan.alibi_slopes(40)[32:34] == pytest.approx([2**-0.125, 2**-0.375])


def test_logits_are_those_of_the_published_definition(pair):
    settings, tensors, model = pair
    ids = tiny_models.tokens(3, 80)  # beyond what it was made for
    expected = definition(tensors, settings, ids)
    assert expected.std() > 0.3
    torch.testing.assert_close(model(ids).logits, expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(model(ids, use_cache=True).logits, expected, atol=2e-5, rtol=0)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(ids, use_cache=False).logits, expected, atol=2e-5, rtol=0)


def test_padding_on_the_left_changes_nothing(pair):
    settings, tensors, model = pair
    ids, mask = tiny_models.tokens(3, 20), torch.ones(3, 20, dtype=torch.long)
    mask[1, :5] = mask[2, :13] = 0
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    got = model(ids, attention_mask=mask, position_ids=positions).logits
    assert torch.isfinite(got).all()
    real = mask.bool()
    torch.testing.assert_close(got[real], definition(tensors, settings, ids, mask)[real], atol=2e-5, rtol=0)
    for row, length in ((1, 15), (2, 7)):
        alone = model(ids[row : row + 1, -length:]).logits[0]
        torch.testing.assert_close(got[row, -length:], alone, atol=2e-5, rtol=0)


def test_generation_by_the_cache_is_generation_without(pair):
    _, _, model = pair
    ids = tiny_models.tokens(3, 9)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    mask = torch.ones_like(ids)
    plain_text = model.generate(ids, attention_mask=mask, use_cache=False, **options)
    assert torch.equal(model.generate(ids, attention_mask=mask, **options), plain_text)
    padded = torch.cat([torch.zeros(3, 4, dtype=torch.long), ids], dim=1)
    mask = (torch.arange(13) >= 4).long().expand(3, -1)
    assert torch.equal(model.generate(padded, attention_mask=mask, **options)[:, 13:], plain_text[:, 9:])


@pytest.mark.parametrize("size, heads", CASES)
def test_half_precision_is_near_the_exact_logits(size, heads, tmp_path):
    settings = config(size, heads)
    tensors = {name: x.bfloat16() for name, x in published_tensors(settings).items()}
    half = loading.load(identify(write(tmp_path / "half", settings, tensors)), "bfloat16")
    tensors, ids = {name: x.float() for name, x in tensors.items()}, tiny_models.tokens(2, 64)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    exact = definition(tensors, settings, ids)
    assert F.cosine_similarity(half(ids).logits.float(), exact, dim=-1).min() > 0.99


def test_the_bias_is_by_distance_and_shared_by_the_batch():
    like = torch.zeros((), dtype=torch.bfloat16)
    mask = baichuan.alibi_mask(4, 4000, 3, None, like)
    assert mask.shape == (1, 4, 3, 4003) and mask.dtype == torch.bfloat16
    # Near the query, where it matters, bfloat16 holds it; slope * position itself is off by whole units there.
    exact = torch.tensor(slopes(4))[:, None] * torch.arange(-9, 1)
    torch.testing.assert_close(mask[0, :, 2, -10:].float(), exact, atol=0.01, rtol=0)
    absolute = (torch.tensor(slopes(4))[:, None] * torch.arange(3993, 4003)).bfloat16().float()
    assert (absolute - absolute[:, -1:] - exact).abs().max() > 1
    lowest = torch.finfo(torch.bfloat16).min
    assert (mask[0, :, 0, 4001:] == lowest).all() and (mask[0, :, 0, :4001] > lowest).all()
    # Padding in front of a prefix, and between it and what continues it, is not seen and not counted.
    real = torch.tensor([[0, 0, 1, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]]).bool()
    padded = baichuan.alibi_mask(4, 5, 3, real, torch.zeros(()))
    assert padded.shape == (2, 4, 3, 8)
    whole = baichuan.alibi_mask(4, 0, 5, None, torch.zeros(()))
    assert torch.equal(padded[0][:, 1:][:, :, real[0]], whole[0, :, -2:])
    assert torch.equal(padded[1], baichuan.alibi_mask(4, 5, 3, None, torch.zeros(()))[0])
    assert (padded[0][:, :, ~real[0]] == torch.finfo(torch.float32).min).all()


def test_masks_of_other_shapes_are_refused():
    model, ids = tiny_models.build("baichuan"), tiny_models.tokens(2, 8)
    with pytest.raises(StudyError, match=r"\(2, 8\), and got one of \(2, 1, 8, 8\)"):
        model(ids, attention_mask=torch.ones(2, 1, 8, 8))


@pytest.mark.parametrize("size", SIZES)
def test_a_sweep_measures_a_loaded_model_as_plain_forwards(size, tmp_path):
    from layer_redundancy.core.store import Store
    from layer_redundancy.evaluate import sweep

    settings = config(size, 6)
    identity = identify(write(tmp_path / "published", settings, published_tensors(settings)))
    model, measurement = loading.load(identity), Continuations(ragged_sequences())
    plan = [*variants.single_removal(4), *variants.cumulative_removal(4, [2, 1, 0])]
    stack = decoder_stack(model)
    with Store(tmp_path / "s") as store:
        got = sweep.run(identity, lambda: stack, plan, [measurement], store, 64, progress=False)[measurement.name]
    for variant, result in got.items():
        expected = plain(model, measurement.sequences, variants.removed_blocks(4, variant))
        assert abs(result.arrays["logprob"] - [e[0] for e in expected]).max() < 1e-4


# ------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("safe", [False, True], ids=["pickles", "safetensors"])
@pytest.mark.parametrize("size", SIZES)
def test_published_files_load_without_the_code_they_name(size, safe, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    settings = config(size)
    tensors = published_tensors(settings)
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(6) for i in range(4)}
    folder = write(tmp_path / "hub", settings, tensors | buffers, safe)
    ids = tiny_models.tokens(2, 12)
    expected = definition(tensors, settings, ids)
    for trust in (False, True):  # there is no code in the folder: asked for or not, ours is taken
        identity = identify(folder, trust_remote_code=trust)
        assert (identity.num_hidden_layers, identity.max_length) == (4, 64)
        assert (identity.num_attention_heads, identity.num_key_value_heads) == (4, 4)
        model = loading.load(identity)
        assert isinstance(model, baichuan.BaichuanForCausalLM)
        torch.testing.assert_close(model(ids).logits, expected, atol=2e-5, rtol=0)
    assert isinstance(tf.AutoConfig.from_pretrained(folder), BaichuanConfig)
    block, head = checkpoints.block_weights(identity)
    assert (block, head) == (4 * 48**2 + 3 * 48 * 64 + 2 * 48, 4 * 12 * 48)
    _, info = tf.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float16)
    assert not any(info.values())
    base = tf.AutoModel.from_pretrained(folder, dtype=torch.float32)
    torch.testing.assert_close(base(ids)[0], model.model(ids)[0])


def test_a_missing_matrix_is_told(tmp_path):
    settings = config("13B")
    tensors = published_tensors(settings)
    del tensors["model.layers.2.self_attn.W_pack.weight"]
    with pytest.raises(StudyError, match="lacks 3 weights"):
        loading.load(identify(write(tmp_path / "broken", settings, tensors)))


def test_saved_files_are_published_ones(pair, tmp_path):
    settings, tensors, model = pair
    model.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == tensors.keys()
    head = tensors["lm_head.weight"]
    tensors = tensors | {"lm_head.weight": head / head.norm(dim=1, keepdim=True)}
    for name, x in saved.items():
        torch.testing.assert_close(x, tensors[name], atol=1e-7 if name == "lm_head.weight" else 0, rtol=0)
    written = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "auto_map" not in written
    assert {name: written[name] for name in settings if name in written and name != "transformers_version"} == {
        name: settings[name] for name in settings if name in written and name != "transformers_version"
    }
    ids = tiny_models.tokens()
    again = loading.load(identify(tmp_path / "saved"))
    assert torch.equal(again(ids).logits, model(ids).logits)
    torch.testing.assert_close(definition(saved, settings, ids), model(ids).logits, atol=2e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_normalized_head_is_read_again_bit_by_bit(dtype):
    raw = torch.randn(50, 32, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 9, 50)[:, None]
    raw = torch.cat([raw, (raw / raw.norm(dim=1, keepdim=True) * 8).bfloat16().float()])  # all are rounded one way
    raw[7] = 0
    once = baichuan.unit_rows(raw.to(dtype))
    assert once.dtype == dtype and baichuan.unit_rows(once) is once
    torch.testing.assert_close(once.float(), F.normalize(raw), atol=1e-7 if dtype == torch.float32 else 4e-3, rtol=0)


def test_a_rotary_one_is_a_llama(tmp_path):
    settings = config("7B")
    model = loading.load(identify(write(tmp_path / "published", settings, published_tensors(settings))))
    ids = tiny_models.tokens()
    llama = baichuan.as_llama(model)
    assert type(llama) is tf.LlamaForCausalLM and not llama.training
    assert llama.model.layers is model.model.layers and llama.config.max_position_embeddings == 64
    assert torch.equal(llama(ids).logits, model(ids).logits)
    llama.save_pretrained(tmp_path / "llama")
    again, info = tf.LlamaForCausalLM.from_pretrained(tmp_path / "llama", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(again(ids).logits, model(ids).logits)
    with pytest.raises(StudyError, match="no rotary positions"):
        baichuan.as_llama(tiny_models.build("baichuan"))


@pytest.mark.parametrize("name, kind", [("baichuan", "baichuan"), ("baichuan_rotary", "llama")])
def test_exports_are_of_the_kind_that_others_read(name, kind, tmp_path):
    model, ids = loading.prepare(tiny_models.build(name)), tiny_models.tokens()
    with surgery.without_layers(model, [1, 3]):
        expected = model(ids).logits
    folder = surgery.export(model, None, [1, 3], tmp_path / "pruned")
    written = json.loads((folder / "config.json").read_text())
    assert (written["model_type"], written["num_hidden_layers"]) == (kind, 3)
    assert any("W_pack" in key for key in load_file(folder / "model.safetensors")) == (kind == "baichuan")
    again = loading.load(identify(folder))
    torch.testing.assert_close(again(ids).logits, expected, atol=1e-6, rtol=0)
    assert len(decoder_stack(model)) == 5 and model.config.num_hidden_layers == 5


@pytest.mark.parametrize("size", SIZES)
def test_quantized_it_is_measured_as_it_is_written(size, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    settings = config(size)
    folder = write(tmp_path / "published", settings, published_tensors(settings))
    tf.AutoTokenizer.from_pretrained(paths.MODELS / profiles.EMBEDDED_RWKV).save_pretrained(folder)
    identity, ids = identify(folder), tiny_models.tokens(2, 20)
    text = TokenBlocks(tiny_models.tokens(8, 16), "tiny", "calibration", False)
    dense = loading.load(identity)(ids).logits
    quantized = identify(quantize.quantized(identity, quantize.Scheme(8, "rtn"), text, removed=[]))
    model = loading.load(quantized)
    agreement = F.cosine_similarity(model(ids).logits, dense, dim=-1).min()
    assert 0.99 < agreement < 0.99999
    again = loading.load(identify(surgery.export(model, None, [], tmp_path / "again")))
    torch.testing.assert_close(again(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------------------------------ configs


@pytest.mark.parametrize(
    ("given", "positions", "normalized"),
    [
        ({"hidden_size": 4096, "num_attention_heads": 32, "max_position_embeddings": 4096}, "rotary", True),
        ({"hidden_size": 5120, "num_attention_heads": 40}, "alibi", True),
        # What others add to a config, or leave out, does not make it another model.
        ({"hidden_size": 5120, "num_attention_heads": 40, "max_position_embeddings": 4096}, "alibi", True),
        ({"hidden_size": 4096, "num_attention_heads": 32}, "rotary", True),
        ({"hidden_size": 48, "max_position_embeddings": 64}, "rotary", True),
        ({"hidden_size": 48}, "alibi", True),
        ({"hidden_size": 48, "max_position_embeddings": 64, "position_embedding": "alibi"}, "alibi", True),
        ({"hidden_size": 5120, "num_attention_heads": 40, "vocab_size": 64000}, "alibi", False),  # Baichuan 1
    ],
)
def test_positions_and_head_follow_from_a_config(given, positions, normalized, tmp_path):
    found = BaichuanConfig(**PUBLISHED | {"model_max_length": 4096} | given)
    for _ in range(2):
        assert (found.position_embedding, found.normalized_head) == (positions, normalized)
        assert found.max_position_embeddings == given.get("max_position_embeddings", 4096)
        assert not hasattr(found, "auto_map")
        found.save_pretrained(tmp_path)
        found = tf.AutoConfig.from_pretrained(tmp_path, trust_remote_code=False)


def test_the_first_baichuan_has_a_plain_head(tmp_path):
    settings = config("13B", vocab_size=baichuan.FIRST_VOCABULARY, hidden_size=8, intermediate_size=8)
    tensors = published_tensors(settings)
    model = loading.load(identify(write(tmp_path / "first", settings, tensors)))
    assert torch.equal(model.lm_head.weight, tensors["lm_head.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position_embedding": "learnt"}, "'learnt': choose rotary or alibi"),
        ({"tie_word_embeddings": True}, "with tied embeddings"),
        ({"num_key_value_heads": 2}, "fewer key than query heads"),
    ],
)
def test_configs_that_are_no_baichuan_are_one_line(change, message):
    with pytest.raises(StudyError, match=message):
        BaichuanConfig(**config("13B", **change))


# ------------------------------------------------------------------------------------------------ the tokenizer

TEXTS = [
    "",
    " ",
    "  two  spaces  ",
    "\n\n\tx = 1\r\n    y\n",
    "百川智能 2023 年发布了模型，共 13 亿。",
    "Question: 12345 + 67890 = 80235\nAnswer: A",
    "🦜 漢字 Ünïcødé \x00\x7f e\u0301\u200b\ufeff",
    "<reserved_106>你好<reserved_107>",
]


@pytest.fixture(scope="module")
def tokenizer_files(tmp_path_factory):
    """A tiny tokenizer with the published settings, as on the hub.

    Byte fallback, single digits, pieces of spaces alone, no normalization and no space before the text (arXiv
    2309.10305, section 2.2).
    """
    folder = tmp_path_factory.mktemp("tokenizer")
    lines = [*TEXTS[2:7], "the model reads the text, and the text is read", "模型 大模型 语言模型 世界"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([part for line in lines for part in line.split("\n")]),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=390,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        max_sentencepiece_length=32,
        user_defined_symbols=["<reserved_106>", "<reserved_107>"],
        minloglevel=2,
    )
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"}
    form = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": True}
    settings = {name: form | {"content": token} for name, token in tokens.items()}
    settings |= {
        "add_bos_token": False,
        "add_eos_token": False,
        "auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]},
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        "sp_model_kwargs": {},
        "tokenizer_class": "BaichuanTokenizer",
        "use_fast": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def pieces(tokenizer_files):
    return sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_files / "tokenizer.model"))


def with_tokenizer(folder, tokenizer_files):
    for file in ("tokenizer.model", "tokenizer_config.json"):
        (folder / file).write_bytes((tokenizer_files / file).read_bytes())
    return folder


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_those_of_sentencepiece_and_come_back_as_the_text(text, tokenizer_files, pieces):
    tokenizer = BaichuanTokenizer.from_pretrained(tokenizer_files)
    ids = tokenizer(text).input_ids
    assert ids == pieces.encode(text) == tokenizer.encode(text)
    assert tokenizer.decode(ids) == pieces.decode(ids) == text
    assert tokenizer.convert_ids_to_tokens(ids) == pieces.encode(text, out_type=str)


def test_batches_are_padded_and_special_tokens_kept_apart(tokenizer_files, pieces):
    tokenizer = BaichuanTokenizer.from_pretrained(tokenizer_files, padding_side="left")
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert batch.keys() == {"input_ids", "attention_mask"}
    for row, mask, text in zip(batch.input_ids, batch.attention_mask.bool(), TEXTS, strict=True):
        assert row[mask].tolist() == pieces.encode(text) and mask.tolist() == sorted(mask.tolist())
    assert tokenizer.batch_decode([pieces.encode(text) for text in TEXTS]) == TEXTS
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    assert len(tokenizer) == tokenizer.vocab_size == len(tokenizer.get_vocab()) == 390
    ids = [1, *pieces.encode("世界"), 2]
    assert tokenizer.decode(ids) == "<s>世界</s>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "世界"
    unseen = pieces.encode("𒀀")  # as its four bytes
    assert len(unseen) == 4 and tokenizer.decode(unseen) == "𒀀" and "\ufffd" in tokenizer.decode(unseen[:1])


@pytest.mark.parametrize("begin", [False, True])
@pytest.mark.parametrize("end", [False, True])
def test_begin_and_end_are_as_the_config_says_also_when_saved(begin, end, tokenizer_files, pieces, tmp_path):
    tokenizer = BaichuanTokenizer.from_pretrained(tokenizer_files, add_bos_token=begin, add_eos_token=end)
    expected = [1] * begin + pieces.encode(TEXTS[4]) + [2] * end
    assert tokenizer(TEXTS[4]).input_ids == expected
    tokenizer.save_pretrained(tmp_path)
    again = BaichuanTokenizer.from_pretrained(tmp_path)
    assert again(TEXTS[4]).input_ids == expected
    assert again(TEXTS[4], add_special_tokens=False).input_ids == pieces.encode(TEXTS[4])
    assert "auto_map" not in json.loads((tmp_path / "tokenizer_config.json").read_text())


@pytest.mark.parametrize("size", SIZES)
def test_a_published_folder_gets_it_and_so_does_its_export(size, tokenizer_files, pieces, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    settings = config(size, vocab_size=400)
    folder = with_tokenizer(write(tmp_path / "hub", settings, published_tensors(settings)), tokenizer_files)
    for trust in (False, True):
        identity = identify(folder, trust_remote_code=trust)
        tokenizer = loading.load_tokenizer(identity)
        assert [tokenizer(text).input_ids for text in TEXTS] == [pieces.encode(text) for text in TEXTS]
        assert tokenizer.model_max_length == 4096, "that of the source, which an export keeps"
    pruned = surgery.export(loading.load(identity), tokenizer, removed=[1], folder=tmp_path / "pruned")
    again = loading.load_tokenizer(identify(pruned))
    assert isinstance(again, BaichuanTokenizer)
    assert [again(text).input_ids for text in TEXTS] == [pieces.encode(text) for text in TEXTS]


def test_a_folder_without_the_vocabulary_is_one_line(tokenizer_files, tmp_path):
    settings = config("7B")
    folder = write(tmp_path / "bare", settings, published_tensors(settings))
    with pytest.raises(StudyError, match="cannot be") as error:
        loading.load_tokenizer(identify(folder))
    assert "\n" not in str(error.value)


def test_from_the_hub_it_is_fetched_at_the_models_revision(tokenizer_files, pieces, tmp_path, monkeypatch):
    """As the hub's cache holds it, without a network."""
    commit, repository = "c" * 40, "somebody/Baichuan-tiny"
    cache = tmp_path / "hub"
    settings = config("13B")
    snapshot = cache / "models--somebody--Baichuan-tiny" / "snapshots" / commit
    with_tokenizer(write(snapshot, settings, published_tensors(settings)), tokenizer_files)
    (cache / "models--somebody--Baichuan-tiny" / "refs").mkdir()
    (cache / "models--somebody--Baichuan-tiny" / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    identity = identify(repository)
    assert (identity.source, identity.revision) == (repository, commit)
    tokenizer = loading.load_tokenizer(identity)
    assert [tokenizer(text).input_ids for text in TEXTS] == [pieces.encode(text) for text in TEXTS]
    assert loading.load(identity).config.position_embedding == "alibi"
