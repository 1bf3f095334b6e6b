"""Tiny random models of every class that transformers' causal-LM mapping holds. For tests only.

A name is the model type, or `type:form` for a further form of it (another position embedding, another interval of
its mixed layers): the settings of one type change which code runs, so each form is one more architecture.
"""

import copy
import functools
from collections.abc import Callable

import torch
import transformers as tf

BLOCKS = 6

# fmt: off
TOKENS = {"vocab_size": 97, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False}
BASE = TOKENS | {"hidden_size": 32, "num_hidden_layers": BLOCKS, "num_attention_heads": 4,
        "max_position_embeddings": 128}
MHA = BASE | {"intermediate_size": 48}
GQA = MHA | {"num_key_value_heads": 2}
HEADS = GQA | {"head_dim": 8}
ENCODER = MHA | {"is_decoder": True}  # an encoder is causal only where it is told to be a decoder
GPT = TOKENS | {"n_embd": 32, "n_layer": BLOCKS, "n_head": 4, "n_positions": 128}
DECODER = TOKENS | {  # the decoder of an encoder-decoder, which is built without its encoder
    "d_model": 32, "decoder_layers": BLOCKS, "decoder_attention_heads": 4, "decoder_ffn_dim": 48,
    "encoder_layers": BLOCKS, "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "max_position_embeddings": 128,
    "decoder_start_token_id": 1, "forced_eos_token_id": 2,
}

SLIDING = ["sliding_attention", "sliding_attention", "full_attention"] * 2
WINDOW = {"sliding_window": 6, "layer_types": SLIDING}
LINEAR = ["linear_attention", "linear_attention", "full_attention"] * 2
DENSE_FIRST = ["dense"] * 2 + ["sparse"] * 4
EVERY_SECOND_SPARSE = ["dense", "sparse"] * 3
GRANITE = {"logits_scaling": 4.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0}

LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
SMALL_EXPERTS = EXPERTS | {"moe_intermediate_size": 16}
SHARED = SMALL_EXPERTS | {"shared_expert_intermediate_size": 16}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GROUPED = ROUTED | {"n_shared_experts": 1, "n_group": 1, "topk_group": 1}
LATENT = {"num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
          "v_head_dim": 8}
INDEX = {"index_topk": 6, "index_head_dim": 16, "index_n_heads": 16}  # with few heads many scores tie at 0

MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 8}
STATE = TOKENS | {"hidden_size": 32, "num_hidden_layers": BLOCKS}
SSM = STATE | {"state_size": 8}
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
MROPE = {"head_dim": 16, "rope_parameters": {
    "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1],
    "mrope_interleaved": True}}
GEMMA = HEADS | WINDOW | {"query_pre_attn_scalar": 8}
GEMMA4 = HEADS | WINDOW | {"global_head_dim": 8, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}
SHARED_KEYS = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 97, "num_kv_shared_layers": 3}
GEMMA3N = HEADS | WINDOW | SHARED_KEYS | {"altup_num_inputs": 2, "laurel_rank": 4, "activation_sparsity_pattern": None}
LLAMA4 = HEADS | LOCAL | {
    "interleave_moe_layer_step": 1, "intermediate_size_mlp": 48, "attention_chunk_size": 8,
    "no_rope_layers": [1, 1, 1, 0, 1, 1]}
QWEN2_MOE = GQA | SHARED | {"decoder_sparse_step": 1}
QWEN3_MOE = HEADS | SMALL_EXPERTS
QWEN35 = GQA | MROPE | DELTA | {"layer_types": LINEAR}
QWEN4 = GQA | SHARED | DELTA | {
    "head_dim": 8, "layer_types": ["linear_attention", "linear_attention", "qwen_sparse_attention"] * 2, "hc_count": 2,
    "hc_lowrank": 8, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 4,
    "indexer_compress_ratio": 2,
}
FALCON = BASE | {
    "alibi": False, "multi_query": True, "parallel_attn": True, "bias": False, "new_decoder_architecture": False}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
TOWER = VISION | {"num_hidden_layers": 9}  # deeper than the text model: the longest list of blocks is not the text's
BIG_BIRD = {"attention_type": "original_full"}


def rope(kind: str, **settings) -> dict:
    """The settings of rotary positions of that kind that stretch a model of 32 positions to 128."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0} | settings}


LLAMA3 = rope("llama3", original_max_position_embeddings=32, low_freq_factor=1.0, high_freq_factor=4.0)
YARN = rope("yarn", original_max_position_embeddings=32, beta_fast=32.0, beta_slow=1.0)
SHORT = 12  # dynamic and long ropes change at this length, so that a batch's longest text decides for all its texts
LONGROPE = {"original_max_position_embeddings": SHORT} | rope(
    "longrope", original_max_position_embeddings=SHORT, short_factor=[1.0, 1.1, 1.2, 1.3],
    long_factor=[2.0, 3.0, 4.0, 5.0])

SETTINGS: dict[str, dict] = {
    # Llama's kin: attention and a feed-forward network, one as every other
    "llama": GQA,
    "llama:tied": GQA | {"tie_word_embeddings": True},
    "llama:biases": GQA | {"attention_bias": True, "mlp_bias": True},
    "llama:dynamic_rope": GQA | rope("dynamic") | {"max_position_embeddings": SHORT},
    "llama:linear_rope": GQA | rope("linear"),
    "llama:yarn": GQA | YARN,
    "llama:llama3": GQA | LLAMA3,
    "apertus": GQA | LLAMA3,
    "arcee": GQA,
    "bitnet": GQA,
    "cohere": GQA | {"logit_scale": 0.25},
    "cwm": HEADS | WINDOW | LLAMA3,
    "cohere2": HEADS | WINDOW | {"logit_scale": 0.25},
    "cohere_compass_text": HEADS | WINDOW | {  # rotary positions in the windows only
        "logit_scale": 0.25, "rope_parameters": {"full_attention": None, "sliding_attention": {
            "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}},
    "diffllama": GQA,
    "doge": GQA,
    "ernie4_5": HEADS,
    "exaone4": GQA | WINDOW,
    "gemma": HEADS,
    "gemma2": GEMMA | {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 3.0},
    "gemma3_text": GEMMA,
    "gemma3_text:bidirectional": GEMMA | {"use_bidirectional_attention": True},
    "glm": HEADS,
    "glm4": HEADS,
    "granite": GQA | GRANITE | {"attention_multiplier": 0.1},
    "granite_swa": GQA | WINDOW | GRANITE | {"attention_multiplier": 0.1},
    "helium": HEADS,
    "hunyuan_v1_dense": HEADS,
    "hyperclovax": HEADS | GRANITE,
    "jais2": HEADS,
    "minicpm3": MHA | LATENT,
    "ministral": HEADS | WINDOW,
    "ministral3": HEADS | rope(  # queries grow with their position, from the 32nd on
        "yarn", type="yarn", original_max_position_embeddings=32, beta_fast=32.0, beta_slow=1.0, mscale=1.0,
        mscale_all_dim=1.0, llama_4_scaling_beta=0.1),
    "mistral": GQA | {"sliding_window": 6},
    "modernbert-decoder": MHA | {
        "local_attention": 6, "global_attn_every_n_layers": 3, "cls_token_id": 1, "sep_token_id": 2},
    "nanochat": GQA,
    "nemotron": GQA | {"partial_rotary_factor": 0.5},
    "olmo": GQA | {"clip_qkv": 4.0},
    "olmo2": GQA,
    "olmo3": GQA | WINDOW,
    "persimmon": MHA | {"partial_rotary_factor": 0.5},
    "phi": GQA | {"partial_rotary_factor": 0.5},
    "phi:query_norm": MHA | {"partial_rotary_factor": 0.5, "qk_layernorm": True},
    "phi3": GQA | {"sliding_window": 6},
    "phi3:longrope": GQA | LONGROPE,
    "qwen2": GQA | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 3},
    "qwen3": HEADS,
    "seed_oss": HEADS,
    "smollm3": GQA | {"no_rope_layers": [1, 1, 1, 0, 1, 1]},
    "smollm3:interval": GQA | {"no_rope_layer_interval": 3},
    "stablelm": GQA | {"partial_rotary_factor": 0.5},
    "stablelm:parallel": GQA | {"use_parallel_residual": True, "qk_layernorm": True},
    "starcoder2": GQA | {"sliding_window": 6},
    "vaultgemma": GEMMA,
    "youtu": MHA | LATENT,
    # GPT's kin
    "biogpt": MHA,
    "bloom": TOKENS | {"hidden_size": 32, "n_layer": BLOCKS, "n_head": 4},
    "bloom:norm_residual": TOKENS | {
        "hidden_size": 32, "n_layer": BLOCKS, "n_head": 4, "apply_residual_connection_post_layernorm": True},
    "codegen": GPT | {"rotary_dim": 4},
    "cpmant": BASE | {"dim_head": 8, "dim_ff": 48, "prompt_length": 4, "prompt_types": 4, "segment_types": 32},
    "ctrl": GPT | {"dff": 48},
    "falcon": FALCON,
    "falcon:grouped": FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon:grouped_one_norm": FALCON | {
        "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    "falcon:alibi": FALCON | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    "gpt-sw3": GPT,
    "gpt2": GPT,
    "gpt2:tied": GPT | {"tie_word_embeddings": True},
    "gpt2:scaled_by_inverse_block_number": GPT | {"scale_attn_by_inverse_layer_idx": True},
    "gpt_bigcode": GPT,
    "gpt_bigcode:many_keys": GPT | {"multi_query": False},
    "gpt_neo": BASE | {
        "num_layers": BLOCKS, "num_heads": 4, "window_size": 6, "attention_types": [[["global", "local"], 3]]},
    "gpt_neox": MHA | {"rotary_pct": 0.5},
    "gpt_neox:sequential": MHA | {"rotary_pct": 0.5, "use_parallel_residual": False},
    "gpt_neox_japanese": BASE | {"intermediate_multiple_size": 2},
    "gptj": GPT | {"rotary_dim": 4},
    "mpt": TOKENS | {"d_model": 32, "n_layers": BLOCKS, "n_heads": 4, "max_seq_len": 128},
    "openai-gpt": GPT,
    "opt": BASE | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "opt:projected": BASE | {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "xglm": TOKENS | {
        "d_model": 32, "ffn_dim": 48, "num_layers": BLOCKS, "attention_heads": 4, "max_position_embeddings": 128},
    # Mixtures of experts
    "afmoe": HEADS | WINDOW | SMALL_EXPERTS | {"num_dense_layers": 2},
    "aria_text": HEADS | {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
    "axk1": MHA | LATENT | GROUPED | {"first_k_dense_replace": 2},
    "axk2": MHA | LATENT | GROUPED | INDEX | {"mlp_layer_types": DENSE_FIRST, "gated_norm_rank": 4},
    "cohere2_moe": HEADS | WINDOW | EXPERTS | {
        "num_shared_experts": 1, "logit_scale": 0.25, "mlp_layer_types": DENSE_FIRST},
    "dbrx": TOKENS | {
        "d_model": 32, "n_heads": 4, "n_layers": BLOCKS, "max_seq_len": 128, "attn_config": {"kv_n_heads": 2,
        "clip_qkv": 8.0, "rope_theta": 10000.0}, "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4,
        "moe_top_k": 2, "hidden_size": 32}},
    "deepseek_v2": MHA | LATENT | GROUPED | {"first_k_dense_replace": 1, "q_lora_rank": None, "topk_method": "greedy"},
    "deepseek_v2:query_latent": MHA | LATENT | GROUPED | {"first_k_dense_replace": 2, "topk_method": "greedy"},
    "deepseek_v3": MHA | LATENT | GROUPED | {"first_k_dense_replace": 2},
    "deepseek_v32": MHA | LATENT | GROUPED | INDEX | {"mlp_layer_types": DENSE_FIRST},
    "deepseek_v4": BASE | GROUPED | INDEX | {
        "num_key_value_heads": 1, "head_dim": 8, "q_lora_rank": 8, "o_groups": 2, "o_lora_rank": 8,
        "qk_rope_head_dim": 4, "index_topk": 2, "hc_mult": 2, "hc_sinkhorn_iters": 4, "sliding_window": 6,
        "mlp_layer_types": ["hash_moe"] * 2 + ["moe"] * 4, "compress_rates": {"compressed_sparse_attention": 2,
        "heavily_compressed_attention": 4},
        "layer_types": ["sliding_attention", "heavily_compressed_attention", "compressed_sparse_attention"] * 2},
    "dots1": HEADS | GROUPED | {"first_k_dense_replace": 1},
    "ernie4_5_moe": HEADS | {
        "moe_intermediate_size": 16, "moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1,
        "moe_layer_interval": 1, "moe_num_shared_experts": 1},
    "ernie4_5_moe:every_second_sparse": HEADS | {
        "moe_intermediate_size": 16, "moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 0,
        "moe_layer_interval": 2, "moe_num_shared_experts": 1},
    "exaone_moe": GQA | WINDOW | SMALL_EXPERTS | {
        "num_shared_experts": 1, "n_group": 1, "topk_group": 1, "mlp_layer_types": DENSE_FIRST},
    "flex_olmo": GQA | EXPERTS,
    "glm4_moe": HEADS | GROUPED | {"first_k_dense_replace": 1},
    "glm4_moe_lite": MHA | LATENT | GROUPED | {"mlp_layer_types": DENSE_FIRST},
    "glm_moe_dsa": MHA | LATENT | GROUPED | INDEX | {"mlp_layer_types": DENSE_FIRST, "indexer_types": ["full"] * 6},
    "glm_moe_dsa:shared_indexer": MHA | LATENT | GROUPED | INDEX | {
        "mlp_layer_types": DENSE_FIRST, "indexer_types": ["full", "shared", "shared"] * 2},
    "gpt_oss": HEADS | WINDOW | LOCAL | YARN,
    "granitemoe": GQA | LOCAL | GRANITE,
    "granitemoe_swa": GQA | LOCAL | GRANITE | WINDOW | {"shared_intermediate_size": 16},
    "granitemoeshared": GQA | LOCAL | GRANITE | {"shared_intermediate_size": 16},
    "hunyuan_v1_moe": HEADS | {"num_experts": 4, "moe_topk": 2},
    "hy_v3": HEADS | SMALL_EXPERTS | {"num_shared_experts": 1, "mlp_layer_types": DENSE_FIRST},
    "hy_v4": MHA | LATENT | GROUPED | INDEX | {
        "head_dim": 8, "mlp_layer_types": DENSE_FIRST, "indexer_types": ["full", "shared", "shared"] * 2, "hc_mult": 2},
    "inkling_text": HEADS | ROUTED | {
        "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8, "sliding_window_size": 6,
        "d_rel": 4, "rel_extent": 8, "n_shared_experts": 1,
        "layer_types": ["hybrid_sliding", "hybrid_sliding", "hybrid"] * 2, "mlp_layer_types": DENSE_FIRST,
        "logits_mup_width_multiplier": 2.0},
    "jetmoe": BASE | {"num_key_value_heads": 2, "kv_channels": 8, "intermediate_size": 48} | LOCAL,
    "laguna": HEADS | WINDOW | SHARED | {"mlp_layer_types": DENSE_FIRST},
    "laguna:heads_per_block": HEADS | WINDOW | SHARED | {"num_attention_heads_per_layer": [4, 4, 2] * 2},
    "llama4_text": LLAMA4,
    "llama4_text:every_second": LLAMA4 | {"interleave_moe_layer_step": 2},
    "longcat_flash": BASE | LATENT | {  # each block holds two attentions, and num_hidden_layers counts these
        "num_layers": 6, "num_hidden_layers": 12, "head_dim": 8, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 16,
        "moe_topk": 2, "n_routed_experts": 4, "zero_expert_num": 2},
    "mellum": HEADS | WINDOW | SMALL_EXPERTS | {"mlp_layer_types": DENSE_FIRST},
    "mimo_v2_flash": HEADS | WINDOW | ROUTED,
    "minimax_m2": HEADS | LOCAL,
    "minimax_m3_vl_text": HEADS | LOCAL | {
        "dense_intermediate_size": 48, "shared_intermediate_size": 16, "rotary_dim": 4, "index_n_heads": 2,
        "index_head_dim": 8, "index_block_size": 4, "index_topk_blocks": 2, "mlp_layer_types": DENSE_FIRST,
        "layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"] * 2},
    "mixtral": GQA | LOCAL,
    "olmoe": GQA | EXPERTS,
    "phimoe": GQA | LOCAL | {"sliding_window": None},
    "qwen2_moe": QWEN2_MOE,
    "qwen2_moe:every_second_sparse": QWEN2_MOE | {"decoder_sparse_step": 2},
    "qwen2_moe:windows": QWEN2_MOE | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 3},
    "qwen3_moe": QWEN3_MOE,
    "qwen3_moe:some_dense": QWEN3_MOE | {"mlp_only_layers": [0, 3]},
    "qwen3_moe:every_third_sparse": QWEN3_MOE | {"decoder_sparse_step": 3},
    "solar_open": HEADS | GROUPED,
    "zaya": HEADS | {  # hybrid: attention over convolved keys in every block
        "num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "router_hidden_size": 8},
    # State spaces, convolutions, linear attention, and mixtures of these with attention
    "bamba": GQA | MAMBA2 | {"attn_layer_indices": [2, 5]},
    "falcon_h1": HEADS | MAMBA2 | {"mamba_d_ssm": 64, "lm_head_multiplier": 0.5, "embedding_multiplier": 2.0},
    "falcon_mamba": SSM,
    "granitemoehybrid": GQA | MAMBA2 | GRANITE | LOCAL | {
        "shared_intermediate_size": 16, "layer_types": ["mamba", "mamba", "attention"] * 2},
    "granitemoehybrid:dense": GQA | MAMBA2 | GRANITE | {
        "num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 48,
        "layer_types": ["mamba", "mamba", "attention"] * 2, "position_embedding_type": "rope"},
    "jamba": GQA | EXPERTS | {
        "attn_layer_period": 3, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
        "mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    "kimi_linear": MHA | LATENT | LOCAL | {
        "moe_intermediate_size": 16, "linear_head_dim": 8, "linear_num_heads": 4, "layer_types": LINEAR,
        "mlp_layer_types": DENSE_FIRST},
    "lfm2": GQA | {"layer_types": ["conv", "conv", "full_attention"] * 2, "conv_L_cache": 3},
    "lfm2_moe": GQA | SMALL_EXPERTS | {
        "layer_types": ["conv", "conv", "full_attention"] * 2, "conv_L_cache": 3, "num_dense_layers": 2},
    "mamba": SSM,
    "mamba2": SSM | {"num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8},
    "minimax": HEADS | LOCAL | {"layer_types": LINEAR, "block_size": 8},
    "nemotron_h": HEADS | GROUPED | {
        "layers_block_type": ["mamba", "moe", "attention"] * 2, "mamba_num_heads": 8, "mamba_head_dim": 8,
        "n_groups": 1, "ssm_state_size": 8, "chunk_size": 8, "moe_shared_expert_intermediate_size": 16},
    "olmo_hybrid": GQA | DELTA | {"layer_types": LINEAR},
    "qwen3_5_moe_text": QWEN35 | SHARED,
    "qwen3_5_text": QWEN35,
    "qwen3_next": HEADS | DELTA | SHARED | {"layer_types": LINEAR},
    "qwen3_next:every_second_sparse": HEADS | DELTA | SHARED | {"layer_types": LINEAR, "decoder_sparse_step": 2},
    "qwen4_exp_text": QWEN4,
    "qwen4_exp_text:pairs_of_tokens": QWEN4 | {
        "ple_layer_ids": [1, 4], "ple_embed_dim": 16, "ngram_vocab_size_base": 50, "heads_per_ngram": 2,
        "split_ngram_parts": 2},
    "recurrent_gemma": GQA | {
        "intermediate_size": 96, "lru_width": 32, "attention_window_size": 6,
        "block_types": ["recurrent", "recurrent", "attention"]},
    "rwkv": STATE | {"attention_hidden_size": 32, "intermediate_size": 48, "context_length": 128, "rescale_every": 2},
    "xlstm": STATE | {"num_heads": 4, "chunk_size": 8},
    "zamba": MHA | {
        "attention_hidden_size": 64, "attention_head_dim": 16, "n_mamba_heads": 2, "num_key_value_heads": 4,
        "mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False,
        "layers_block_type": ["linear_attention", "hybrid"] * 3},
    "zamba2": GQA | {
        "layers_block_type": ["mamba", "hybrid"] * 3, "mamba_d_state": 8, "mamba_ngroups": 1, "n_mamba_heads": 8,
        "mamba_headdim": 8, "chunk_size": 8, "num_mem_blocks": 1, "use_mem_rope": True, "adapter_rank": 4},
    # Blocks that use more than the block before: keys of earlier blocks, embeddings per block, loops
    "gemma3n_text": GEMMA3N,
    "gemma4_text": GEMMA4,
    "gemma4_text:shared_keys": GEMMA4 | SHARED_KEYS,
    "gemma4_text:experts": GEMMA4 | {
        "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
    "gemma4_text:bidirectional": GEMMA4 | {"use_bidirectional_attention": "all"},
    "gemma4_unified_text": GEMMA4,
    "gemma4_unified_text:shared_keys": GEMMA4 | {"num_kv_shared_layers": 3},
    "hrm_text": HEADS | {"H_cycles": 1, "L_cycles": 2},
    "hrm_text:causal": HEADS | {"H_cycles": 1, "L_cycles": 2, "prefix_lm": False},
    # Encoders used as decoders
    "bert": ENCODER,
    "bert:encoder": MHA,
    "bert-generation": ENCODER,
    "big_bird": ENCODER | BIG_BIRD,
    "camembert": ENCODER,
    "data2vec-text": ENCODER,
    "electra": ENCODER | {"embedding_size": 16},
    "ernie": ENCODER | {"use_task_id": True},
    "megatron-bert": ENCODER,
    "reformer": TOKENS | {
        "hidden_size": 32, "num_attention_heads": 4, "attention_head_size": 8, "feed_forward_size": 48,
        "is_decoder": True, "attn_layers": ["local"] * BLOCKS, "local_attn_chunk_length": 8, "axial_pos_embds": False,
        "max_position_embeddings": 128},
    "reformer:hashed": TOKENS | {
        "hidden_size": 32, "num_attention_heads": 4, "attention_head_size": 8, "feed_forward_size": 48,
        "is_decoder": True, "attn_layers": ["local", "lsh"] * 3, "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8, "num_buckets": 4, "axial_pos_embds": False, "max_position_embeddings": 128,
        "hash_seed": 0},
    "rembert": ENCODER | {"input_embedding_size": 16, "output_embedding_size": 24},
    "roberta": ENCODER,
    "roberta-prelayernorm": ENCODER,
    "roc_bert": ENCODER | {
        "pronunciation_vocab_size": 97, "shape_vocab_size": 97, "pronunciation_embed_dim": 8, "shape_embed_dim": 8},
    "roformer": ENCODER | {"embedding_size": 16},
    "xlm": TOKENS | {
        "emb_dim": 32, "n_layers": BLOCKS, "n_heads": 4, "max_position_embeddings": 128, "causal": True,
        "is_encoder": True},
    "xlm:encoder": TOKENS | {"emb_dim": 32, "n_layers": BLOCKS, "n_heads": 4, "max_position_embeddings": 128},
    "xlm-roberta": ENCODER,
    "xlm-roberta-xl": ENCODER,
    "xlnet": TOKENS | {"d_model": 32, "n_layer": BLOCKS, "n_head": 4, "d_inner": 48, "attn_type": "uni"},
    "xlnet:both_ways": TOKENS | {"d_model": 32, "n_layer": BLOCKS, "n_head": 4, "d_inner": 48},
    "xmod": ENCODER | {"default_language": "en_XX"},
    # Decoders of encoder-decoders
    "bart": DECODER,
    "bart:shallow_encoder": DECODER | {"encoder_layers": 2},  # its num_hidden_layers is the encoder's
    "bigbird_pegasus": DECODER | BIG_BIRD,
    "blenderbot": DECODER,
    "blenderbot-small": DECODER,
    "marian": DECODER | {"decoder_vocab_size": 97},
    "mbart": DECODER,
    "mvp": DECODER,
    "pegasus": DECODER,
    "plbart": DECODER,
    "prophetnet": TOKENS | {
        "hidden_size": 32, "decoder_ffn_dim": 48, "num_decoder_layers": BLOCKS, "num_decoder_attention_heads": 4,
        "encoder_ffn_dim": 48, "num_encoder_layers": BLOCKS, "num_encoder_attention_heads": 4,
        "max_position_embeddings": 128},
    "trocr": DECODER,
    "trocr:fixed_positions": DECODER | {"use_learned_position_embeddings": False},
    "whisper": DECODER | {"max_target_positions": 128, "max_source_positions": 16, "num_mel_bins": 8},
    # Text models inside configs of several modalities
    "blt": TOKENS | {  # bytes in an encoder, patches of them in a stack, bytes in a decoder
        "patcher_config": HEADS, "encoder_config": HEADS | {"num_hidden_layers": 2, "hidden_size_global": 32},
        "decoder_config": HEADS | {"num_hidden_layers": 2, "hidden_size_global": 32}, "global_config": HEADS,
        "encoder_hash_byte_group_size": [3, 4], "encoder_hash_byte_group_vocab": 50, "cross_attn_k": 2,
        "patching_threshold": 4.36},
    "emu3": {"text_config": GQA},
    "fuyu": MHA | {"text_config": {"model_type": "persimmon"} | MHA, "patch_size": 2, "image_token_id": 96},
    "gemma3": {
        "text_config": GEMMA, "vision_config": TOWER, "mm_tokens_per_image": 1, "image_token_index": 96,
        "boi_token_index": 95, "eoi_token_index": 94},
    "gemma4": {"text_config": GEMMA4, "image_token_id": 96, "video_token_id": 95, "audio_token_id": 94},
    "gemma4_assistant": {"text_config": GEMMA4 | {"vocab_size_per_layer_input": 0}, "backbone_hidden_size": 32},
    "gemma4_unified": {"text_config": GEMMA4, "image_token_id": 96, "video_token_id": 95, "audio_token_id": 94},
    "gemma4_unified_assistant": {"text_config": GEMMA4, "backbone_hidden_size": 32},
    "git": MHA | {"vision_config": TOWER},
    "got_ocr2": {"text_config": {"model_type": "qwen2"} | GQA, "image_token_index": 96,
                 "vision_config": VISION | {"mlp_dim": 16, "output_channels": 8, "num_hidden_layers": 4}},
    "llama4": {"text_config": LLAMA4, "vision_config": TOWER},
    "mllama": {"text_config": GQA | {"cross_attention_layers": [2]}},  # a block that is skipped without an image
    "moshi": HEADS | {"ffn_dim": 96},
    "phi4_multimodal": GQA | {
        "vision_config": TOWER | {"crop_size": 28}, "audio_config": {
            "hidden_size": 16, "intermediate_size": 16, "num_blocks": 2, "num_attention_heads": 2,
            "nemo_conv_channels": 8,
            "ext_pw_out_channel": 16, "depthwise_separable_out_channel": 16, "bias_max_distance": 8, "input_size": 8}},
    "qwen3_5": {"text_config": QWEN35, "vision_config": {"depth": 9}},
    "qwen3_5_moe": {"text_config": QWEN35 | SHARED, "vision_config": {"depth": 9}},
    "qwen4_exp": {"text_config": QWEN4, "vision_config": {"depth": 9}},
}
# fmt: on

CANNOT: dict[str, str] = {
    "gemma3n": "its vision tower needs timm",
    "musicgen": "the automatic class hands the decoder the config of the whole, which it cannot read",
    "musicgen_melody": "the automatic class hands the decoder the config of the whole, which it cannot read",
}


def configure(name: str) -> tf.PreTrainedConfig:
    """The tiny config of that name; a new one at each call, as models write into theirs."""
    return tf.CONFIG_MAPPING[name.partition(":")[0]](**copy.deepcopy(SETTINGS[name]))


CONFIGS: dict[str, Callable[[], tf.PreTrainedConfig]] = {name: functools.partial(configure, name) for name in SETTINGS}

RECURRENT = (
    "A_log",
    "D",
    "dt_bias",
    "time_decay",
    "time_first",
    "time_mix_key",
    "time_mix_value",
    "time_mix_receptance",
)


def build(name: str, seed: int = 0) -> torch.nn.Module:
    """A random model of that name, in float32, with weights large enough for every block to matter.

    Convolutions and the decays of recurrences keep the values that the architecture gives them.
    """
    torch.manual_seed(seed)
    model = tf.AutoModelForCausalLM.from_config(CONFIGS[name]())
    with torch.no_grad():
        for module in model.modules():
            convolution = isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d)
            for kind, parameter in module.named_parameters(recurse=False):
                if not parameter.is_floating_point() or kind in RECURRENT or (convolution and parameter.any()):
                    continue
                if parameter.dim() >= 2:
                    parameter.normal_(0, 0.12)
                else:  # norms and biases at their initial ones and zeros would hide a norm applied twice or never
                    parameter.add_(0.1 * torch.randn_like(parameter))
            for kind, table in module.named_buffers(recurse=False):
                if kind == "tid2eid":  # the experts of each token, which only a checkpoint gives
                    table.copy_(torch.rand(len(table), 4).argsort(-1)[:, : table.shape[1]])
    return model.eval().requires_grad_(False)
