"""Results, sums, checkpoints and a task made by hand, for tests of several modules."""

from pathlib import Path

import numpy as np
import torch
import transformers as tf

from layer_redundancy.core.store import Result
from layer_redundancy.measures.activations import ActivationSums
from layer_redundancy.models import smollm2

# An lm-eval task of the user's own, as its file has it.
CHOOSE = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: colours.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}} is"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


def nll_result(values):
    values = np.asarray(values, dtype=float)
    return Result({"perplexity": float(np.exp(values.mean()))}, {"nll": values, "tokens": np.ones(len(values))})


def task_result(right):
    right = np.asarray(right, dtype=float)
    return Result({"acc": right.mean(), "chance": 0.25}, {"acc": right, "gold_logprob": -right})


def sums(num_sequences=24, num_blocks=6, seed=0):
    """Plausible sums: random cosines that differ by block."""
    rng = np.random.default_rng(seed)
    shape = (num_sequences, num_blocks + 1, num_blocks + 1)
    cosine = np.clip(0.9 + 0.02 * np.arange(num_blocks + 1) / 3 + 0.01 * rng.normal(size=shape), -1, 1)
    tokens = np.full(num_sequences, 10.0)
    norm = rng.uniform(1, 2, size=shape[:2])
    magnitude = rng.uniform(0, 1, size=(num_sequences, num_blocks))
    angle = np.arccos(cosine) / np.pi
    return ActivationSums(tokens, cosine * 10, angle * 10, norm * 10, magnitude * 10, cosine, norm, magnitude, angle)


def checkpoint(folder: Path, kind: str = "llama", blocks: int | None = None) -> Path:
    """A tiny random model that reads the embedded model's tokens."""
    blocks = blocks or (2 if kind == "gpt2" else 5)
    common = {"vocab_size": 49152, "hidden_size": 32, "num_hidden_layers": blocks, "bos_token_id": 1, "eos_token_id": 2}
    config = {
        "llama": lambda: tf.LlamaConfig(**common, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2),
        "gpt2": lambda: tf.GPT2Config(**common, num_attention_heads=4, max_position_embeddings=512),
        "mamba": lambda: tf.MambaConfig(**common, state_size=8, pad_token_id=0),
        "rwkv": lambda: tf.RwkvConfig(**common, attention_hidden_size=32, intermediate_size=48, context_length=512),
    }[kind]()
    torch.manual_seed(0)
    tf.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tf.AutoTokenizer.from_pretrained(smollm2.folder()).save_pretrained(folder)
    return folder
