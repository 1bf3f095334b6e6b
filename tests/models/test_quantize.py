"""GPTQ and rounding on tiny models: what is written loads again, is as small as it says, and is made once."""

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
import transformers as tf
from safetensors.torch import save_file

import tiny_models
from layer_redundancy.config import profiles
from layer_redundancy.core import paths, variants
from layer_redundancy.core.errors import NotApplicable, StudyError
from layer_redundancy.core.store import Store
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.evaluate import sweep
from layer_redundancy.models import checkpoints, loading, quantize, surgery
from layer_redundancy.models.quantize import Scheme
from layer_redundancy.models.stack import decoder_stack
from measurements import Continuations, plain, ragged_sequences

CALIBRATION = TokenBlocks(tiny_models.tokens(24, 32), "tiny", "calibration", False)
IDS = tiny_models.tokens(8, 40, seed=5)
ROUNDED = Scheme(4, "rtn")


def identify(folder):
    return checkpoints.identify(profiles.get("smoke", model=str(folder)))


def checkpoint(folder, kind="llama"):
    tiny_models.build(kind).save_pretrained(folder)
    tf.AutoTokenizer.from_pretrained(paths.MODELS / profiles.EMBEDDED_RWKV).save_pretrained(folder)
    return identify(folder)


@pytest.fixture(scope="module")
def identity(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "CACHE", tmp_path_factory.mktemp("cache"))
        yield paths.CACHE


@pytest.fixture
def rounded(identity):
    """The tiny Llama at 4 bits, loaded."""
    return loading.load(identify(quantize.quantized(identity, ROUNDED, CALIBRATION)))


def damage(identity, scheme) -> float:
    """Root mean square of what quantization changes in the logits."""
    dense, ours = loading.load(identity), loading.load(identify(quantize.quantized(identity, scheme, CALIBRATION)))
    return (ours(IDS).logits - dense(IDS).logits).square().mean().sqrt().item()


@pytest.mark.slow
@pytest.mark.parametrize("symmetric", [True, False])
def test_fewer_bits_cost_more_and_gptq_less_than_rounding(identity, symmetric):
    found = {
        (method, bits): damage(identity, Scheme(bits, method, symmetric=symmetric))
        for method in quantize.METHODS
        for bits in quantize.BITS
    }
    for method in quantize.METHODS:
        assert 0 < found[method, 8] < found[method, 4] < found[method, 3]
    for bits in quantize.BITS:
        assert found["gptq", bits] < found["rtn", bits]


@pytest.mark.parametrize("bits", quantize.BITS)
def test_rounding_is_to_the_grid_of_each_group(identity, bits):
    dense = loading.load(identity)
    folder = quantize.quantized(identity, Scheme(bits, "rtn", group_size=16), CALIBRATION)
    ours = loading.load(identify(folder))
    levels = 2 ** (bits - 1)
    for name in quantize.widths(dense):
        before, after = (m.get_submodule(name).weight.unflatten(1, (-1, 16)) for m in (dense, ours))
        scale = ours.get_submodule(name).weight_scale[..., None]
        steps = after / scale
        torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
        assert steps.abs().max() <= levels
        assert ((after - before).abs() <= 0.502 * scale + 1e-3 * before.abs()).all(), "not the nearest"
    for name in ("model.embed_tokens", "model.norm", "lm_head", "model.layers.3.input_layernorm"):
        before, after = (m.get_submodule(name).weight for m in (dense, ours))
        torch.testing.assert_close(after, before.half().float(), atol=0, rtol=0)


def test_it_is_made_once_for_each_model_settings_text_and_removal(identity, monkeypatch):
    first = quantize.quantized(identity, Scheme(4, "gptq"), CALIBRATION)
    note = json.loads((first / "layer_redundancy.json").read_text())
    assert note["group_size"] == 16 and note["removed_blocks"] == [] and note["calibration"].startswith("tiny, 24 ")
    other_text = replace(CALIBRATION, input_ids=CALIBRATION.input_ids[:12])
    monkeypatch.setattr(quantize, "_write", lambda *args: args[-1].mkdir())
    assert quantize.quantized(identity, Scheme(4, "gptq"), CALIBRATION) == first
    changed = [
        quantize.quantized(identity, Scheme(4, "gptq"), other_text),
        quantize.quantized(identity, Scheme(4, "gptq"), CALIBRATION, removed=[2]),
        quantize.quantized(identity, Scheme(4, "gptq", group_size=8), CALIBRATION),
        quantize.quantized(replace(identity, fingerprint="another"), Scheme(4, "gptq"), CALIBRATION),
        quantize.quantized(identity, Scheme(4, "gptq"), CALIBRATION, dtype="bfloat16"),
    ]
    assert len({first, *changed}) == 6
    same = quantize.quantized(identity, Scheme(3, "rtn", group_size=4), CALIBRATION)
    assert quantize.quantized(identity, Scheme(3, "rtn", group_size=4), other_text) == same, "it reads no text"
    for folder in (*changed, same):
        shutil.rmtree(folder)


def test_a_killed_run_leaves_nothing_behind_that_looks_finished(identity, cache, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    before = set(cache.iterdir())
    monkeypatch.setattr(surgery, "_check_export", killed)
    with pytest.raises(KeyboardInterrupt):
        quantize.quantized(identity, Scheme(8, "rtn", group_size=8), CALIBRATION)
    assert set(cache.iterdir()) == before


@pytest.mark.parametrize("kind", ["llama_tied", "gemma2", "opt_350m", "gpt_neox", "phi3"])
def test_removal_before_and_after_and_exports_reload_equal(kind, tmp_path):
    """Through plain transformers, from a model that is left as it was."""
    identity = checkpoint(tmp_path / "dense", kind)
    whole = loading.load(identify(quantize.quantized(identity, ROUNDED, CALIBRATION)))
    first = loading.load(identify(quantize.quantized(identity, ROUNDED, CALIBRATION, removed=[3, 1])))
    before = whole(IDS).logits
    exported = surgery.export(whole, None, [1, 3], tmp_path / "after")
    torch.testing.assert_close(whole(IDS).logits, before, atol=0, rtol=0)
    with surgery.without_layers(whole, [1, 3]):
        pruned = whole(IDS).logits
    reloaded = tf.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)(IDS).logits
    torch.testing.assert_close(reloaded, pruned, atol=1e-5, rtol=1e-4)
    # Rounding looks at no activations, so that the order of the two makes no difference.
    torch.testing.assert_close(first(IDS).logits, pruned, atol=1e-5, rtol=1e-4)
    sizes = quantize.weight_bytes(identify(exported))
    assert sizes == quantize.weight_bytes(first_identity := identify(first.name_or_path))
    assert first_identity.num_hidden_layers == 3 and len(sizes.blocks) == 3
    assert sizes.of((0, 1, 2)) == quantize.weight_bytes(identify(whole.name_or_path)).of((0, 2, 4))


@pytest.mark.parametrize("kind", ["gemma3", "gpt_neox", "opt_350m", "phi3", "qwen3"])
def test_gptq_takes_other_architectures(kind, tmp_path):
    identity = checkpoint(tmp_path, kind)
    ours = loading.load(identify(quantize.quantized(identity, Scheme(8), CALIBRATION)))
    dense = loading.load(identity)(IDS).logits
    assert (ours(IDS).logits - dense).square().mean() < 0.01 * dense.square().mean()


@pytest.mark.parametrize("bits", quantize.BITS)
def test_packing_in_half_precision_loses_nothing(identity, bits, tmp_path):
    folder = quantize.quantized(identity, Scheme(bits, "rtn"), CALIBRATION, dtype="bfloat16")
    model = loading.load(identify(folder), "bfloat16")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    surgery.export(model, None, [], tmp_path / "again")
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    again = loading.load(identify(tmp_path / "again"), "bfloat16").state_dict()
    assert all(torch.equal(before[name], again[name]) for name in before)


def test_weights_that_the_library_brings_to_a_gpu_come_back(identity, monkeypatch):
    """There, what a module shows of its weights is a copy."""
    from compressed_tensors.offload.cache.cpu import CPUCache

    onload = CPUCache.onload
    monkeypatch.setattr(
        CPUCache, "onload", lambda self, tensor: None if tensor is None else onload(self, tensor).clone()
    )
    folder = quantize.quantized(identity, Scheme(8, "rtn", group_size=2), CALIBRATION)
    monkeypatch.undo()
    sizes = quantize.tensor_bytes(folder)
    assert sizes["model.embed_tokens.weight"] == 2 * 97 * 32 and sizes["lm_head.weight"] == 2 * 97 * 32
    loading.load(identify(folder))


def test_what_the_library_cannot_do_ends_in_a_line(identity, monkeypatch):
    def fails(*_):
        raise TypeError("a strange layer\nof a strange model")

    monkeypatch.setattr(quantize, "_run", fails)
    with refused(r"llm-compressor cannot quantize .* \(TypeError: a strange layer\): quantize it elsewhere"):
        quantize.quantized(identity, Scheme(8, "rtn", group_size=1), CALIBRATION)


@pytest.mark.parametrize("kind", ["llama", "llama_tied"])
def test_weight_bytes_by_hand(kind, tmp_path):
    identity = checkpoint(tmp_path / "dense", kind)
    model = loading.load(identity)
    linear = [(m.out_features, m.in_features) for m in model.model.layers[0].modules() if hasattr(m, "in_features")]
    norms, embedding = 2 * 32, 97 * 32
    full = quantize.weight_bytes(identity)
    assert full.blocks == (2 * (sum(a * b for a, b in linear) + norms),) * 5
    assert full.rest == 2 * (embedding * (1 if kind == "llama_tied" else 2) + 32)
    assert full.of((0, 4)) == full.rest + 2 * full.blocks[0]
    assert full.removed((0, 4)) == pytest.approx(3 * full.blocks[0] / (full.rest + 5 * full.blocks[0]))
    assert full.removed(range(5)) == 0 == quantize.WeightBytes((0, 0), 0).removed((1,))
    folder = quantize.quantized(identity, ROUNDED, CALIBRATION)
    ours = quantize.weight_bytes(identify(folder))
    # 4 bits a weight in words of 32, a scale of 16 bits for each 16 weights, the shape as two int64.
    assert ours.blocks == (sum(a * b // 2 + 2 * a * b // 16 + 16 for a, b in linear) + 2 * norms,) * 5
    assert ours.rest == full.rest
    assert 0 < quantize.disk_bytes(folder) - ours.of(range(5)) < 20_000, "a header"


def test_the_engine_sweeps_it(rounded, tmp_path):
    sequences = ragged_sequences()
    stack, measurement = decoder_stack(rounded), Continuations(sequences)
    plan = [variants.dense(5), *variants.single_removal(5), variants.without_heads(5, [(1, 0)])]
    identity = identify(rounded.name_or_path)
    with Store(tmp_path / "s") as store:
        got = sweep.run(identity, lambda: stack, plan, [measurement], store, 64, progress=False)[measurement.name]
    for variant in plan[:-1]:
        expected = [e[0] for e in plain(rounded, sequences, variants.removed_blocks(5, variant))]
        torch.testing.assert_close(
            torch.tensor(got[variant].arrays["logprob"]).double(), torch.tensor(expected).double(), atol=1e-3, rtol=1e-5
        )


def test_a_batch_that_does_not_fit_is_halved(identity, monkeypatch):
    sizes, run = [], quantize._run

    def short_of_memory(*args):
        sizes.append(args[-2])
        if len(sizes) == 1:
            raise MemoryError
        run(*args)

    monkeypatch.setattr(quantize, "_run", short_of_memory)
    folder = quantize.quantized(identity, Scheme(8, "rtn", group_size=4), CALIBRATION)
    assert sizes == [quantize.BATCH_SIZE, quantize.BATCH_SIZE // 2]
    loading.load(identify(folder))


def test_gptq_shows_one_bar_over_the_blocks(identity, capsys):
    quantize.quantized(identity, Scheme(3, "gptq", group_size=4), CALIBRATION)
    shown = capsys.readouterr().err
    assert "6/6" in shown and "Calibrating" not in shown


# ------------------------------------------------------------------------------------------------------------- mistakes


def refused(message, error=StudyError):
    return pytest.raises(error, match=message)


def test_settings_that_are_not_there():
    with refused("unknown quantization method 'awq': choose one of gptq, rtn"):
        Scheme(4, "awq")
    with refused("cannot quantize to 5 bits: choose one of 8, 4, 3"):
        Scheme(5)


def test_group_sizes():
    inputs = {"q_proj": 576, "down_proj": 1536}
    assert quantize.group_size(inputs) == 64 and quantize.group_size(inputs, 96) == 96
    assert quantize.group_size({"q_proj": 4096, "down_proj": 11008}) == 128
    with refused("group size 128 does not divide the 576 inputs of q_proj: choose 64 or 32 or 16"):
        quantize.group_size(inputs, 128)
    with refused("group size 0 does not divide"):
        quantize.group_size(inputs, 0)
    with refused(r"none of the group sizes 128, 64, 32, 16 divides the widths of all linear layers \(20\)"):
        quantize.group_size({"q_proj": 20})
    with refused("group size 7 does not divide the 20 inputs of q_proj: choose a divisor"):
        quantize.group_size({"q_proj": 20}, 7)


@pytest.mark.parametrize("kind", ["gpt2", "mamba", "rwkv5"])
def test_layers_that_cannot_be_quantized(kind, tmp_path):
    identity = checkpoint(tmp_path, kind)
    with refused("cannot be quantized here .*: only nn.Linear can", NotApplicable):
        quantize.quantized(identity, ROUNDED, CALIBRATION)


def test_evaluation_text_is_refused(identity):
    with refused("given the evaluation split"):
        quantize.quantized(identity, Scheme(), replace(CALIBRATION, split="evaluation"))


def test_a_quantized_model_is_not_quantized_again(rounded):
    with refused("is quantized already .*: give its full-precision model", NotApplicable):
        quantize.quantized(identify(rounded.name_or_path), ROUNDED, CALIBRATION)


def test_bad_removal(identity):
    for removed, message in (([5], "out of range"), ([1, 1], "twice"), (range(5), "all 5 blocks")):
        with refused(message):
            quantize.quantized(identity, ROUNDED, CALIBRATION, removed=list(removed))


def test_weights_are_counted_once_and_those_of_no_block_too(tmp_path):
    tensors = {"model.layers.0.a": torch.zeros(4), "model.layers.7.extra": torch.zeros(2), "lm_head": torch.zeros(1)}
    save_file(tensors, tmp_path / "model-00001-of-00001.safetensors")
    save_file(tensors, tmp_path / "consolidated.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    settings = {"quant_method": "gptq", "bits": 4}
    config = tf.LlamaConfig(**tiny_models.COMMON | {"num_hidden_layers": 2}).to_dict() | {
        "quantization_config": settings
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert quantize.weight_bytes(identify(tmp_path)) == quantize.WeightBytes((16, 0), 12)
    assert quantize.disk_bytes(tmp_path) == (tmp_path / "consolidated.safetensors").stat().st_size


def test_a_file_that_is_cut_off(rounded, tmp_path):
    with refused("has no safetensors file"):
        quantize.tensor_bytes(tmp_path)
    whole = next(paths.Path(rounded.name_or_path).glob("*.safetensors")).read_bytes()
    for length in (3, 200):
        (tmp_path / "model.safetensors").write_bytes(whole[:length])
        with refused("is cut off"):
            quantize.tensor_bytes(tmp_path)


# ---------------------------------------------------------------------------------- checkpoints that others have made


def gptq_checkpoint(folder):
    """A tiny Llama in the files of AutoGPTQ (4 bits, groups of 32, symmetric); and the same weights unpacked."""
    config = tf.LlamaConfig(**tiny_models.COMMON | {"hidden_size": 64, "intermediate_size": 128})
    torch.manual_seed(0)
    model, state = tf.LlamaForCausalLM(config).eval().requires_grad_(False), {}
    for name in quantize.widths(model):
        weight = model.get_submodule(name).weight
        groups = 3 * weight.unflatten(1, (-1, 32))
        scales = (groups.abs().amax(-1, keepdim=True) / 7).half().float()
        steps = (groups / scales).round().clamp(-8, 7)
        weight.copy_((steps * scales).flatten(1))
        numbers = (steps + 8).long().flatten(1).T  # (in, out)
        packed = sum(numbers[i::8] << 4 * i for i in range(8))
        zeros = torch.full((len(numbers) // 32, len(weight) // 8), 0x77777777)  # 8, less one
        state[f"{name}.qweight"] = torch.where(packed >= 2**31, packed - 2**32, packed).int().contiguous()
        state[f"{name}.qzeros"] = zeros.int()
        state[f"{name}.scales"] = scales[..., 0].T.half().contiguous()
        state[f"{name}.g_idx"] = (torch.arange(len(numbers)) // 32).int()
    for name, parameter in model.named_parameters():
        if f"{name.removesuffix('.weight')}.qweight" not in state:
            parameter.copy_(parameter.half())
            state[name] = parameter.half()
    folder.mkdir()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
    text = config.to_dict() | {"architectures": ["LlamaForCausalLM"], "quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(text))
    return model


def test_a_ready_gptq_checkpoint(tmp_path):
    """Its sizes are read without its library; its weights take what `make gptq` installs."""
    unpacked = gptq_checkpoint(tmp_path / "gptq")
    identity = identify(tmp_path / "gptq")
    assert checkpoints.quantization_method(identity) == "gptq"
    sizes = quantize.weight_bytes(identity)
    assert sizes.rest == 2 * (2 * 97 * 64 + 64) and len(set(sizes.blocks)) == 1
    if not (find_spec("gptqmodel") and find_spec("optimum")):
        with refused("holds GPTQ weights, which take the packages? .*: run `make gptq`"):
            loading.load(identity)
        return
    model = loading.load(identity)
    torch.testing.assert_close(model(IDS).logits, unpacked(IDS).logits, atol=0.02, rtol=0)  # kernels of 16 bits
    with refused("cannot be written again"):
        surgery.export(model, None, [1], tmp_path / "exported")


def test_a_language_model_among_several_parts(tmp_path):
    """Gemma 3 with its vision tower, whose blocks are more and stay as they are."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 8, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    special = {"mm_tokens_per_image": 4, "image_token_index": 95, "boi_token_index": 94, "eoi_token_index": 93}
    torch.manual_seed(0)
    config = tf.Gemma3Config(text_config=tiny_models.GEMMA, vision_config=vision, **special)
    tf.Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    tf.AutoTokenizer.from_pretrained(paths.MODELS / profiles.EMBEDDED_RWKV).save_pretrained(tmp_path)
    identity = identify(tmp_path)
    dense = loading.load(identity)
    folder = quantize.quantized(identity, Scheme(8), CALIBRATION, removed=[1])
    note = json.loads((folder / "layer_redundancy.json").read_text())
    assert note["removed_blocks"] == [1] and note["steps"] == [[1]] and note["exported_from"] == str(tmp_path)
    for dtype in ("float32", "bfloat16"):
        ours = loading.load(identify(folder), dtype)
        assert {p.dtype for p in ours.parameters() if p.is_floating_point()} == {checkpoints.DTYPES[dtype]}
    ours = loading.load(identify(folder))
    with surgery.without_layers(dense, [1]):
        expected = dense(IDS).logits
    assert (ours(IDS).logits - expected).square().mean() < 0.01 * expected.square().mean()
    tower = dense.model.vision_tower.state_dict()
    assert all(
        torch.equal(value, tower[name].half().float()) for name, value in ours.model.vision_tower.state_dict().items()
    )
    again = surgery.export(ours, None, [-1], tmp_path / "again")
    note = json.loads((again / "layer_redundancy.json").read_text())
    assert note["removed_blocks"] == [1, 4] and note["steps"] == [[1], [3]] and note["bits"] == 8
    block = sum(p.numel() for p in decoder_stack(dense).blocks[0].parameters())
    assert quantize.weight_bytes(identity).blocks == (2 * block,) * 5
    assert len(set(quantize.weight_bytes(identify(folder)).blocks)) == 1


def test_a_class_that_asks_packed_layers_for_their_weight_is_refused_before(tmp_path):
    with refused("cannot load its packed weights", NotApplicable):
        quantize.check(checkpoint(tmp_path / "a", "gpt_bigcode"))
    quantize.check(checkpoint(tmp_path / "b", "gpt_neox"))


def test_the_tokenizer_is_saved_as_it_was(tmp_path):
    """llm-compressor gives it a token to pad with, and cuts texts to its length."""
    checkpoint(tmp_path)
    source = tf.AutoTokenizer.from_pretrained(tmp_path)
    source.pad_token, source.model_max_length = None, 8
    source.save_pretrained(tmp_path)
    identity = identify(tmp_path)
    folder = quantize.quantized(replace(identity, fingerprint="its own"), Scheme(4), CALIBRATION)
    saved = tf.AutoTokenizer.from_pretrained(folder)
    assert saved.pad_token is None and saved.model_max_length == 8
    whole = quantize.quantized(identity, Scheme(4), CALIBRATION)
    first, second = (loading.load(identify(f))(IDS).logits for f in (folder, whole))
    torch.testing.assert_close(first, second, atol=0, rtol=0)
