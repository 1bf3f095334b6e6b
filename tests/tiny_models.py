"""Tiny random models of every supported architecture, built from configs. For unit tests only."""

import torch
import transformers as tf

from layer_redundancy.models.baichuan import model as baichuan
from layer_redundancy.models.rwkv5.model import Rwkv5Config

COMMON = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MHA = {k: v for k, v in COMMON.items() if k != "num_key_value_heads"}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"]
GEMMA = COMMON | {"head_dim": 8, "sliding_window": 6, "layer_types": SLIDING, "query_pre_attn_scalar": 8}

CONFIGS = {
    "llama": lambda: tf.LlamaConfig(**COMMON),
    "llama_tied": lambda: tf.LlamaConfig(**COMMON, tie_word_embeddings=True),
    "mistral": lambda: tf.MistralConfig(**COMMON, sliding_window=6),
    "qwen2": lambda: tf.Qwen2Config(**COMMON, use_sliding_window=True, sliding_window=6, max_window_layers=3),
    "qwen3": lambda: tf.Qwen3Config(**COMMON, head_dim=16),
    "gemma2": lambda: tf.Gemma2Config(**GEMMA, final_logit_softcapping=5.0, attn_logit_softcapping=3.0),
    "gemma3": lambda: tf.Gemma3TextConfig(**GEMMA),
    "gpt2": lambda: tf.GPT2Config(
        vocab_size=97, n_embd=32, n_layer=5, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=2
    ),
    "gpt_bigcode": lambda: tf.GPTBigCodeConfig(  # GPT-2's names, other projections
        vocab_size=97, n_embd=32, n_layer=5, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=2
    ),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**MHA, rotary_pct=0.5),
    "opt": lambda: tf.OPTConfig(**MHA | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "opt_350m": lambda: tf.OPTConfig(  # the odd one: projections around the stack, norms after, no final norm
        **MHA | {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False}
    ),
    "phi3": lambda: tf.Phi3Config(**COMMON),
    "baichuan": lambda: baichuan.BaichuanConfig(**MHA, position_embedding="alibi"),  # as 13B
    "baichuan_rotary": lambda: baichuan.BaichuanConfig(**MHA),  # as 7B
    "rwkv": lambda: tf.RwkvConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=5, attention_hidden_size=32, intermediate_size=48,
        context_length=128, rescale_every=2, bos_token_id=1, eos_token_id=2,
    ),
    "rwkv5": lambda: Rwkv5Config(
        vocab_size=97, hidden_size=32, num_hidden_layers=5, head_size=8, intermediate_size=48, bos_token_id=1,
        eos_token_id=2,
    ),
    "mamba": lambda: tf.MambaConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=5, state_size=8, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    ),
}  # fmt: skip
ATTENTION = [name for name in CONFIGS if name not in ("rwkv", "rwkv5", "mamba")]


def build(name: str, seed: int = 0, scale: float = 3.0):
    """A random model of that architecture, fp32, with weights large enough for every block to matter."""
    torch.manual_seed(seed)
    model = tf.AutoModelForCausalLM.from_config(CONFIGS[name]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2 and name not in ("rwkv5", "mamba"):
                parameter.mul_(scale)
            else:  # norms and biases at their initial ones and zeros would hide a norm applied twice or never
                parameter.add_(0.1 * torch.randn_like(parameter))
    if name.startswith("baichuan"):
        baichuan.normalize_head(model)
    return model.eval().requires_grad_(False)


def tokens(batch: int = 3, length: int = 17, seed: int = 1, vocabulary: int = 97) -> torch.Tensor:
    """Random token ids (batch, length), none of them special."""
    return torch.randint(3, vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))
