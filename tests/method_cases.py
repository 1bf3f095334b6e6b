"""What tests of methods share: tiny models of the families that they are for, calibration text, logits."""

import torch
import transformers as tf

import tiny_models
from layer_redundancy.data.corpora import TokenBlocks

# Untied, tied, sliding windows by block, biases of queries, heads wider than hidden / heads, merged projections, alibi.
PRE_NORM = ["llama", "llama_tied", "mistral", "qwen2", "qwen3", "phi3", "baichuan", "llama_biased"]
OTHERS = ["gemma2", "gemma3", "gpt2", "gpt_neox", "opt", "rwkv", "mamba", "mixtral"]
TEXT = TokenBlocks(tiny_models.tokens(6, 20), "made up", "calibration", False)


def build(name: str, seed: int = 0, scale: float = 3.0):
    """As `tiny_models.build`, and a Llama with biases everywhere."""
    if name != "llama_biased":
        return tiny_models.build(name, seed, scale)
    torch.manual_seed(seed)
    config = tf.LlamaConfig(**tiny_models.COMMON, attention_bias=True, mlp_bias=True)
    model = tf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(scale)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


@torch.no_grad()
def logits(model, ids=TEXT.input_ids):
    """(blocks, length, vocabulary) of a plain forward."""
    return model(input_ids=ids, use_cache=False).logits


@torch.no_grad()
def residuals(model, ids=TEXT.input_ids):
    """X_0 .. X_L of plain forwards (blocks, length, d), by hooks on the blocks."""
    found = {}
    blocks = model.model.layers
    handles = [
        block.register_forward_pre_hook(
            lambda _, args, kwargs, i=i: found.update({i: _first(args, kwargs)}), with_kwargs=True
        )
        for i, block in enumerate(blocks)
    ]
    handles.append(blocks[-1].register_forward_hook(lambda _, __, out: found.update({len(blocks): _tensor(out)})))
    logits(model, ids)
    for handle in handles:
        handle.remove()
    return [found[i] for i in range(len(blocks) + 1)]


def _first(args, kwargs):
    return args[0] if args else kwargs["hidden_states"]


def _tensor(out):
    return out[0] if isinstance(out, tuple) else out


def reloaded(model, folder):
    """The model, written and read again by plain transformers."""
    model.save_pretrained(folder)
    return tf.AutoModelForCausalLM.from_pretrained(folder).eval()
