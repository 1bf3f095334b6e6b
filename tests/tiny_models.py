"""Tiny random models of every supported architecture, built from configs. For unit tests only."""

import torch
import transformers as tf

from layer_redundancy.models.baichuan import model as baichuan
from layer_redundancy.models.rwkv5.model import Rwkv5Config
from layer_redundancy.models.uneven import model as uneven

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
    "uneven": lambda: uneven.UnevenLlamaConfig(  # blocks of different widths
        **COMMON, layer_attention_heads=[4, 2, 4, 2, 4], layer_key_value_heads=[2, 1, 2, 1, 2],
        layer_intermediate_sizes=[48, 25, 48, 10, 25],
    ),
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
EXPERTS = COMMON | {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
# Models whose blocks hold more than linear layers: experts in one tensor, kernels that read a layer's weight.
MIXED = {
    "mixtral": lambda: tf.MixtralConfig(**EXPERTS),
    # A dense block, and layers that peft would take for experts of transformers 4.
    "qwen2_moe": lambda: tf.Qwen2MoeConfig(**EXPERTS, shared_expert_intermediate_size=16, mlp_only_layers=[0]),
    "gpt_oss": lambda: tf.GptOssConfig(**EXPERTS, head_dim=8, sliding_window=6, layer_types=SLIDING),  # with biases
    "phimoe": lambda: tf.PhimoeConfig(**EXPERTS),  # its router is a linear layer that returns a tuple
    "llama4": lambda: tf.Llama4TextConfig(**EXPERTS, head_dim=8, interleave_moe_layer_step=1, intermediate_size_mlp=48),
    "jamba": lambda: tf.JambaConfig(
        **EXPERTS, attn_layer_period=3, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
        mamba_d_state=8, mamba_d_conv=4, mamba_expand=2, mamba_dt_rank=4, use_mamba_kernels=False,
    ),
    "falcon_mamba": lambda: tf.FalconMambaConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=5, state_size=8, bos_token_id=1, eos_token_id=2, pad_token_id=0
    ),
    "mamba2": lambda: tf.Mamba2Config(
        vocab_size=97, hidden_size=32, num_hidden_layers=5, state_size=8, num_heads=8, head_dim=8, n_groups=2,
        chunk_size=8, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    ),
    "gemma3_with_images": lambda: tf.Gemma3Config(
        text_config=GEMMA, mm_tokens_per_image=1, image_token_index=96, boi_token_index=95, eoi_token_index=94,
        vision_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14,
        },
    ),
}  # fmt: skip
ATTENTION = [name for name in CONFIGS if name not in ("rwkv", "rwkv5", "mamba")]


def build(name: str, seed: int = 0, scale: float = 3.0):
    """A random model of that architecture, fp32, with weights large enough for every block to matter."""
    torch.manual_seed(seed)
    model = tf.AutoModelForCausalLM.from_config((CONFIGS | MIXED)[name]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2 and name not in ("rwkv5", "mamba", "mamba2", "falcon_mamba", "jamba"):
                parameter.mul_(scale)
            else:  # norms and biases at their initial ones and zeros would hide a norm applied twice or never
                parameter.add_(0.1 * torch.randn_like(parameter))
    if name.startswith("baichuan"):
        baichuan.normalize_head(model)
    return model.eval().requires_grad_(False)


def tokens(batch: int = 3, length: int = 17, seed: int = 1, vocabulary: int = 97) -> torch.Tensor:
    """Random token ids (batch, length), none of them special."""
    return torch.randint(3, vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))
