"""Tiny random models in the files of the published ones, to rehearse the paper profile with.

Names, layouts, dtypes of the weights and tokenizers are those of the hub's repositories, quirks included: Llama-2's
files hold the rotary frequencies and come in two formats, Baichuan-2's are pickles with fused matrices and a head to
be normalised, RWKV's is a single pickle. Sizes are not: numbers mean nothing. Code that comes with a repository is
replaced by a line that fails, so that it shows if it is ever run.
"""

import json
import math
import re
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layer_redundancy.data import corpora
from rehearsal.local_hub import place

LLAMA_7B, LLAMA_13B = "meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-13b-hf"
BAICHUAN_7B, BAICHUAN_13B = "baichuan-inc/Baichuan2-7B-Base", "baichuan-inc/Baichuan2-13B-Base"
RWKV, GPTQ = "RWKV/v5-Eagle-7B-HF", "TheBloke/Llama-2-7B-GPTQ"

VOCABULARY = 4000  # size of the Llama and Baichuan tokenizers, where the published ones have 32,000 and 125,696
GROUP_SIZE = 32  # group size of the GPTQ file, where the published one has 128
TRAINING_ARTICLES = 12  # articles of the Wikipedia extract that train the tokenizers
# So that some Chinese characters are tokens and the others go by bytes, as with the published ones.
CHINESE = "以下是关于一二三四五六七八九十的单项选择题请直接给出正确答案项目语句话什么系无蕴含矛盾文章问这个"

# hidden size, blocks, attention heads, width of the MLP
_SIZES = {
    LLAMA_7B: (64, 4, 4, 128),
    LLAMA_13B: (96, 5, 4, 192),
    BAICHUAN_7B: (64, 4, 4, 128),
    BAICHUAN_13B: (96, 5, 6, 192),  # no power of two, as the published 40: ALiBi's slopes are another formula then
}
_RWKV_SIZES = {"hidden_size": 32, "attention_hidden_size": 32, "head_size": 8, "num_hidden_layers": 4}
_RWKV_VOCABULARY = 65536  # the World tokenizer needs it

NO_CODE = 'raise RuntimeError("code from the hub was run")\n'


def write(root: Path) -> None:
    """Writes all the models as repositories below `root`, for `local_hub.LocalHub`; always the same ones.

    Args:
        root: folder of the hub; repositories of the same names are replaced.
    """
    for name in (LLAMA_7B, LLAMA_13B, BAICHUAN_7B, BAICHUAN_13B, RWKV, GPTQ):
        shutil.rmtree(place(root, "models", name))
    english, chinese = _sentencepiece(dummy_prefix=True), _sentencepiece(dummy_prefix=False)
    for seed, name in enumerate((LLAMA_7B, LLAMA_13B)):
        _write_llama(place(root, "models", name), name, english, seed)
    _write_gptq(place(root, "models", GPTQ), place(root, "models", LLAMA_7B))
    for seed, name in enumerate((BAICHUAN_7B, BAICHUAN_13B)):
        _write_baichuan(place(root, "models", name), name, chinese, seed)
    _write_rwkv(place(root, "models", RWKV))


# ------------------------------------------------------------------------------------------------------------- weights


class _Random:
    """Weights with which every block changes what comes after it, and nothing overflows in half precision."""

    def __init__(self, seed: int):
        self._generator = torch.Generator().manual_seed(seed)

    def matrix(self, out: int, width: int, scale: float = 1.0) -> Tensor:
        """(out, width); what it makes of inputs of size 1 has size `scale`."""
        return scale / math.sqrt(width) * torch.randn(out, width, generator=self._generator)

    def norm(self, size: int) -> Tensor:
        """Gains around 1: those at exactly 1 would hide a norm that is applied twice or never."""
        return 1 + 0.1 * torch.randn(size, generator=self._generator)


def _decoder(random: _Random, sizes: tuple[int, int, int, int], vocabulary: int) -> dict[str, Tensor]:
    """The weights of a Llama under their published names."""
    hidden, blocks, _heads, inner = sizes
    tensors = {"model.embed_tokens.weight": random.matrix(vocabulary, hidden, math.sqrt(hidden))}
    for i in range(blocks):
        prefix = f"model.layers.{i}."
        for name in ("q", "k", "v"):
            tensors[f"{prefix}self_attn.{name}_proj.weight"] = random.matrix(hidden, hidden, 1.5)
        tensors[f"{prefix}self_attn.o_proj.weight"] = random.matrix(hidden, hidden)
        tensors[f"{prefix}mlp.gate_proj.weight"] = random.matrix(inner, hidden)
        tensors[f"{prefix}mlp.up_proj.weight"] = random.matrix(inner, hidden)
        tensors[f"{prefix}mlp.down_proj.weight"] = random.matrix(hidden, inner)
        tensors[f"{prefix}input_layernorm.weight"] = random.norm(hidden)
        tensors[f"{prefix}post_attention_layernorm.weight"] = random.norm(hidden)
    tensors["model.norm.weight"] = random.norm(hidden)
    tensors["lm_head.weight"] = random.matrix(vocabulary, hidden)
    return tensors


def _save_shards(
    folder: Path, tensors: Mapping[str, Tensor], name: str, shards: int, pickled: bool, index: str
) -> None:
    """Writes weights to several files, one after another, and the index that names each tensor's file.

    Args:
        folder: the folder to write to.
        tensors: the model's tensors, in its order.
        name: name of a file, with {i} and {n} in it.
        shards: number of files.
        pickled: write with torch.save; else as safetensors.
        index: name of the index file.
    """
    from safetensors.torch import save_file

    keys = list(tensors)
    size = -(-len(keys) // shards)
    weight_map = {}
    for i in range(shards):
        part = {key: tensors[key].contiguous() for key in keys[i * size : (i + 1) * size]}
        file = name.format(i=i + 1, n=shards)
        if pickled:
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    _write_json(folder / index, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_code(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text(NO_CODE, encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------- tokenizers


def _sentencepiece(dummy_prefix: bool) -> bytes:
    """A tokenizer.model as Llama-2's (with a space put before every text) or Baichuan-2's (without)."""
    import io

    import sentencepiece

    texts = corpora.articles("wikipedia", "calibration")[:TRAINING_ARTICLES]
    lines = [line for text in texts for line in text.split("\n") if line] + 20 * [CHINESE]
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=trained,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        add_dummy_prefix=dummy_prefix,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return _with_piece(trained.getvalue(), "▁Sur")


def _with_piece(model: bytes, wanted: str) -> bytes:
    """The model with that piece in the place of its rarest of as many bytes.

    Labels are told apart by their words' first tokens; as in the published models, that of Surprise is not that of Sad.
    """
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    new = wanted.encode()
    names = (pieces.id_to_piece(i) for i in range(pieces.get_piece_size()) if not pieces.is_byte(i))
    rarest = [name.encode() for name in names if len(name) > 1 and len(name.encode()) == len(new)][-1]
    before, after = (b"\n" + bytes([len(name)]) + name for name in (rarest, new))  # as protocol buffers write a text
    assert model.count(before) == 1
    return model.replace(before, after)


def _fast_tokenizer(model: bytes) -> Any:
    """The `tokenizers` form of a SentencePiece model, as in the tokenizer.json that Llama-2 is published with."""
    import sentencepiece
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocabulary = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    # Among all pairs that make a piece, the earliest pieces come first: SentencePiece numbers pieces as it merged them.
    merges = []
    for piece in list(vocabulary)[3 + 256 :]:
        halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        fitting = [pair for pair in halves if pair[0] in vocabulary and pair[1] in vocabulary]
        merges += sorted(fitting, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in ("<unk>", "<s>", "</s>")]
    )
    return tokenizer


def _special_token(content: str) -> dict[str, Any]:
    return {
        "__type": "AddedToken", "content": content, "lstrip": False, "normalized": False, "rstrip": False,
        "single_word": False,
    }  # fmt: skip


def _write_llama_tokenizer(folder: Path, model: bytes) -> None:
    (folder / "tokenizer.model").write_bytes(model)
    _fast_tokenizer(model).save(str(folder / "tokenizer.json"))
    tokens = {"bos_token": _special_token("<s>"), "eos_token": _special_token("</s>")}
    tokens["unk_token"] = _special_token("<unk>")
    settings = {
        "add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False, "legacy": False,
        "model_max_length": 1000000000000000019884624838656, "pad_token": None, "padding_side": "right",
        "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer",
    }  # fmt: skip
    _write_json(folder / "tokenizer_config.json", settings | tokens)
    plain = {name: {key: value for key, value in token.items() if key != "__type"} for name, token in tokens.items()}
    _write_json(folder / "special_tokens_map.json", plain)


# -------------------------------------------------------------------------------------------------------------- models


def _llama_config(name: str) -> dict[str, Any]:
    hidden, blocks, heads, inner = _SIZES[name]
    return {
        "_name_or_path": name, "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": hidden, "initializer_range": 0.02, "intermediate_size": inner,
        "max_position_embeddings": 4096, "model_type": "llama", "num_attention_heads": heads,
        "num_hidden_layers": blocks, "num_key_value_heads": heads, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "float16",
        "transformers_version": "4.31.0.dev0", "use_cache": True, "vocab_size": VOCABULARY,
    }  # fmt: skip


def _write_llama(folder: Path, name: str, tokenizer: bytes, seed: int) -> None:
    """float16; safetensors and the same again as pickles, both with the rotary frequencies of every block."""
    tensors = {key: tensor.half() for key, tensor in _decoder(_Random(seed), _SIZES[name], VOCABULARY).items()}
    hidden, blocks, heads, _inner = _SIZES[name]
    size = hidden // heads
    for i in range(blocks):
        tensors[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = 1 / 10000 ** (torch.arange(0, size, 2) / size)
    shards = 2 if name == LLAMA_7B else 3
    save = partial(_save_shards, folder, tensors, shards=shards)
    save(name="model-{i:05}-of-{n:05}.safetensors", pickled=False, index="model.safetensors.index.json")
    save(name="pytorch_model-{i:05}-of-{n:05}.bin", pickled=True, index="pytorch_model.bin.index.json")
    _write_json(folder / "config.json", _llama_config(name))
    generation = {"bos_token_id": 1, "do_sample": True, "eos_token_id": 2, "pad_token_id": 0, "temperature": 0.6}
    generation |= {"max_length": 4096, "top_p": 0.9, "transformers_version": "4.31.0.dev0"}
    _write_json(folder / "generation_config.json", generation)
    _write_llama_tokenizer(folder, tokenizer)
    (folder / "README.md").write_text("---\nlanguage:\n- en\nlicense: llama2\n---\n", encoding="utf-8")


def _write_gptq(folder: Path, dense: Path) -> None:
    """The tiny Llama-2-7B rounded to 4 bits, in AutoGPTQ's files: symmetric, in groups, no reordering."""
    from safetensors.torch import load_file, save_file

    tensors: dict[str, Tensor] = {}
    for file in sorted(dense.glob("*.safetensors")):
        tensors |= load_file(file)
    packed = {}
    for name, weight in tensors.items():
        if name.endswith("_proj.weight"):
            packed |= {f"{name.removesuffix('weight')}{key}": part for key, part in pack_gptq(weight.float()).items()}
        elif not name.endswith("inv_freq"):
            packed[name] = weight
    save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {
        "bits": 4, "group_size": GROUP_SIZE, "damp_percent": 0.01, "desc_act": False, "sym": True,
        "true_sequential": True, "model_name_or_path": None, "model_file_base_name": "model",
    }  # fmt: skip
    _write_json(folder / "quantize_config.json", settings)
    config = json.loads((dense / "config.json").read_text(encoding="utf-8"))
    _write_json(folder / "config.json", config | {"quantization_config": settings | {"quant_method": "gptq"}})
    for file in dense.glob("*"):
        if file.name.startswith(("tokenizer", "special_tokens", "generation_config")):
            shutil.copy(file, folder)


def pack_gptq(weight: Tensor, group_size: int = GROUP_SIZE) -> dict[str, Tensor]:
    """A matrix rounded to 4 bits, as AutoGPTQ stores it.

    Args:
        weight: (out, in), in a multiple of the group size, out one of 8.
        group_size: inputs that share a scale.

    Returns:
        qweight int32 (in / 8, out), eight inputs a word; qzeros int32 (groups, out / 8), the zero point 8 less one;
        scales float16 (groups, out); g_idx int32 (in,).
    """
    groups = weight.unflatten(1, (-1, group_size))
    scales = (groups.abs().amax(-1, keepdim=True) / 7).half().float()
    steps = (groups / scales).round().clamp(-8, 7)
    numbers = (steps + 8).long().flatten(1).T  # (in, out)
    words = sum(numbers[i::8] << 4 * i for i in range(8))
    return {
        "qweight": torch.where(words >= 2**31, words - 2**32, words).int().contiguous(),
        "qzeros": torch.full((len(numbers) // group_size, len(weight) // 8), 0x77777777).int(),
        "scales": scales[..., 0].T.half().contiguous(),
        "g_idx": (torch.arange(len(numbers)) // group_size).int(),
    }


def _write_baichuan(folder: Path, name: str, tokenizer: bytes, seed: int) -> None:
    """bfloat16 pickles: queries, keys and values in one matrix; rows of the head of any length, to be normalised."""
    hidden, blocks, heads, inner = _SIZES[name]
    random = _Random(100 + seed)
    tensors = {}
    for key, tensor in _decoder(random, _SIZES[name], VOCABULARY).items():
        if key.endswith("q_proj.weight"):
            prefix = key.removesuffix("q_proj.weight")
            tensors[f"{prefix}W_pack.weight"] = random.matrix(3 * hidden, hidden, 1.5).bfloat16()
        elif not key.endswith(("k_proj.weight", "v_proj.weight")):
            tensors[key] = tensor.bfloat16()
    lengths = torch.linspace(0.5, 2, VOCABULARY)[:, None]
    # Rows of length 1 make logits as large as the state is long, and that is the square root of its width.
    tensors["lm_head.weight"] = (tensors["lm_head.weight"].float() * lengths).bfloat16()
    shards = 2 if name == BAICHUAN_7B else 3
    file = "pytorch_model-{i:05}-of-{n:05}.bin"
    _save_shards(folder, tensors, file, shards, pickled=True, index="pytorch_model.bin.index.json")
    config = {
        "architectures": ["BaichuanForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_baichuan.BaichuanConfig",
            "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM",
        },
        "tokenizer_class": "BaichuanTokenizer", "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": hidden, "initializer_range": 0.02, "intermediate_size": inner, "model_max_length": 4096,
        "model_type": "baichuan", "num_attention_heads": heads, "num_hidden_layers": blocks, "pad_token_id": 0,
        "rms_norm_eps": 1e-06, "_from_model_config": True, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "transformers_version": "4.29.2", "use_cache": True, "vocab_size": VOCABULARY, "z_loss_weight": 0,
    }  # fmt: skip
    if name == BAICHUAN_7B:  # the 13B has ALiBi in place of positions
        config["max_position_embeddings"] = 4096
    _write_json(folder / "config.json", config)
    (folder / "tokenizer.model").write_bytes(tokenizer)
    token = {key: _special_token(text) for key, text in (("bos", "<s>"), ("eos", "</s>"), ("unk", "<unk>"))}
    settings = {
        "add_bos_token": False, "add_eos_token": False,
        "auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]},
        "clean_up_tokenization_spaces": False, "model_max_length": 4096, "sp_model_kwargs": {},
        "tokenizer_class": "BaichuanTokenizer", "pad_token": _special_token("<unk>"),
    }  # fmt: skip
    settings |= {f"{key}_token": value for key, value in token.items()}
    _write_json(folder / "tokenizer_config.json", settings)
    plain = {key: {k: v for k, v in value.items() if k != "__type"} for key, value in token.items()}
    special = {f"{key}_token": value for key, value in plain.items()} | {"pad_token": plain["unk"]}
    _write_json(folder / "special_tokens_map.json", special)
    _write_code(folder, "configuration_baichuan.py", "modeling_baichuan.py", "tokenization_baichuan.py")
    _write_code(folder, "generation_utils.py", "quantizer.py")


def _write_rwkv(folder: Path) -> None:
    """One bfloat16 pickle, as RWKV's own port of RWKV-5-World-7B."""
    from layer_redundancy.models.rwkv5.model import Rwkv5Config, Rwkv5ForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Rwkv5ForCausalLM(Rwkv5Config(vocab_size=_RWKV_VOCABULARY, **_RWKV_SIZES))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("time_decay"):  # from long memory to almost none
                    parameter.uniform_(-6, 1)
                elif parameter.ndim == 2 and "blocks" not in name:  # embedding and head
                    parameter.normal_(std=0.2)
                else:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    tensors = {
        re.sub(r"^rwkv\.pre_ln", "rwkv.blocks.0.pre_ln", name): tensor.bfloat16()
        for name, tensor in model.state_dict().items()
    }
    torch.save(tensors, folder / "pytorch_model.bin")
    config = {
        "architectures": ["RwkvForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_rwkv5.Rwkv5Config",
            "AutoModelForCausalLM": "modeling_rwkv5.Rwkv5ForCausalLM",
        },
        "bos_token_id": 0, "context_length": 4096, "eos_token_id": 0, "intermediate_size": None,
        "layer_norm_epsilon": 1e-05, "model_type": "rwkv5", "model_version": "5_2", "rescale_every": 6,
        "tie_word_embeddings": False, "transformers_version": "4.34.0", "use_cache": True,
        "vocab_size": _RWKV_VOCABULARY,
    }  # fmt: skip
    _write_json(folder / "config.json", config | _RWKV_SIZES)
    generation = {"chat_format": "chatml", "eos_token_id": 0, "pad_token_id": 0, "max_window_size": 4096}
    generation |= {"max_new_tokens": 4096, "do_sample": True, "top_k": 0, "top_p": 0.1, "repetition_penalty": 1.0}
    _write_json(folder / "generation_config.json", generation | {"transformers_version": "4.31.1"})
    settings = {
        "name_or_path": "rwkv-5-tokenizer", "add_prefix_space": False, "tokenizer_class": "RWKVWorldTokenizer",
        "use_fast": False, "auto_map": {"AutoTokenizer": ["tokenization_rwkv_world.RWKVWorldTokenizer", None]},
    }  # fmt: skip
    _write_json(folder / "tokenizer_config.json", settings)
    _write_json(folder / "special_tokens_map.json", {})
    _write_code(folder, "configuration_rwkv5.py", "modeling_rwkv5.py", "tokenization_rwkv_world.py")
