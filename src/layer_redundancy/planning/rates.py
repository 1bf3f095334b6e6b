"""How fast and how large a model is on a device, from two of its blocks with random weights, timed there."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import torch
from torch import nn

from layer_redundancy.config.sources import Amount
from layer_redundancy.core import devices
from layer_redundancy.evaluate import batches, sweep_estimate
from layer_redundancy.evaluate.amounts import Training
from layer_redundancy.evaluate.scoring import RandomSequences
from layer_redundancy.models import architectures, checkpoints, loading, pruned_config, surgery
from layer_redundancy.models import compiled as compiled_blocks
from layer_redundancy.models.stack import DecoderStack, can_share_prefixes, decoder_stack
from layer_redundancy.train import healing, training_loop

PROBE_BLOCKS = 2


def probe(config: Any, dtype: str, device: str, blocks: int = PROBE_BLOCKS) -> DecoderStack:
    """A model of so few blocks with random weights in a config's shape, on the device."""
    from transformers import AutoModelForCausalLM

    config = type(config).from_dict(config.to_dict())
    every = architectures.num_blocks(config)
    assert every is not None, "a model that was identified has blocks"
    for part, name, _, value in list(pruned_config.changes(config, tuple(range(min(blocks, every))), every)):
        setattr(part, name, value)
    vars(config).pop("quantization_config", None)  # its weights are unpacked when it is loaded
    devices.keep_freed_memory()  # as where a model is loaded
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=checkpoints.DTYPES[dtype])
    return decoder_stack(loading.prepare(model))


@dataclass
class Speed:
    """How fast a model's shape is on a device.

    Attributes:
        stack: a probe of the model, from `probe`.
        blocks: number of blocks of the whole model.
        batch_tokens: tokens a forward holds.
        compiled: whether sweeps run compiled blocks; None for where it pays.
        warm_up: seconds in which the blocks of the sweeps that were asked for so far are compiled.
    """

    stack: DecoderStack
    blocks: int
    batch_tokens: int
    compiled: bool | None = None
    warm_up: float = field(default=0.0, init=False)

    def compiles(self, amount: Amount) -> bool:
        """Whether a sweep of such a measurement runs compiled blocks."""
        return compiled_blocks.pays(self.stack, amount.shared) if self.compiled is None else self.compiled

    def rates(self, amount: Amount, compiled: bool = False) -> tuple[float, float]:
        """Block-tokens and head-tokens a second for inputs like a measurement's, found by running some.

        Args:
            amount: the measurement's.
            compiled: by compiled blocks.
        """
        length = max(2, round(amount.tokens / max(1, amount.sequences)))
        prefix = 0
        if can_share_prefixes(self.stack.model) and amount.shared < amount.tokens:
            prefix = min(length - 1, round(length - amount.shared / max(1, amount.sequences)))
        return self._measured(_rounded(prefix), _rounded(length - prefix), amount.scored == amount.sequences, compiled)

    @cached_property
    def _measured(self) -> Callable[[int, int, bool, bool], tuple[float, float]]:
        return cache(self._time)

    def _time(self, prefix: int, tail: int, one: bool, as_compiled: bool) -> tuple[float, float]:
        vocabulary = self.stack.model.get_input_embeddings().weight.shape[0]
        many = batches.PREFIX_BATCHES if prefix and devices.is_gpu(self.stack.device) else 1
        rows = max(1, min(64, (self.batch_tokens * many - prefix) // max(1, tail)))
        sequences = RandomSequences(vocabulary, rows, prefix, tail, 4 if one or prefix else 1).sequences
        if not as_compiled:
            return sweep_estimate.rates(self.stack, sequences, self.batch_tokens)
        stack, times = compiled_blocks.compiled(self.stack), []
        for _ in range(2):  # the first time they are compiled
            start = time.perf_counter()
            found = sweep_estimate.rates(stack, sequences, self.batch_tokens)
            times.append(time.perf_counter() - start)
        self.warm_up += max(0.0, times[0] - times[1])
        return found

    @cached_property
    def writing(self) -> tuple[float, float]:
        """Seconds of one more written token for a batch of prompts: outside the blocks, and in each block."""
        times = []
        for removed in ([], [0]):
            with surgery.without_layers(self.stack.model, removed[: len(self.stack) - 1]):
                times.append(_seconds_a_token(self.stack.model, self.stack.device))
        block = max(0.0, (times[0] - times[1]) / max(1, len(self.stack) - 1))
        return max(0.0, times[1] - block), block

    @cached_property
    def product_rate(self) -> float:
        """Floating-point operations a second of float32 matrix products, which GPTQ consists of."""
        return devices.matmul_rate(torch.float32, self.stack.device.type)

    def weight_bytes(self, blocks: int) -> float:
        """Bytes of the weights of a model with so many blocks."""
        every = sum(p.numel() * p.element_size() for p in self.stack.model.parameters())
        return every + (blocks - len(self.stack)) * self.block_bytes

    @cached_property
    def block_bytes(self) -> float:
        """Bytes of a block's weights, the mean over the probe's blocks."""
        return sum(p.numel() * p.element_size() for b in self.stack.blocks for p in b.parameters()) / len(self.stack)

    def trained_weights(self, training: Training) -> int:
        """Number of weights that a training trains."""
        if training.recipe.method in ("prompts", "nf4"):
            return 0  # a few tokens' states
        model = self.stack.model
        of_block = sum(p.numel() for block in self.stack.blocks for p in block.parameters()) / len(self.stack)
        if training.recipe.method == "full":
            return round(
                healing.trainable_weights(model, training.recipe) + (training.blocks - len(self.stack)) * of_block
            )
        if training.recipe.method == "partial":
            head = [model.get_output_embeddings()] if training.recipe.head == "trained" else []
            ends = (*head, *self.stack.final)
            of_ends = sum(p.numel() for part in ends for p in part.parameters())
            return round(of_ends + min(training.recipe.last_blocks, training.blocks) * of_block)
        return round(healing.trainable_weights(model, training.recipe) * training.blocks / len(self.stack))

    def training_bytes(self, training: Training) -> float:
        """Memory of a training at one example at a time, the least there is."""
        vocabulary = self.stack.model.config.get_text_config().vocab_size
        # Below the last blocks that are trained nothing is kept for gradients.
        deep = (
            min(training.recipe.last_blocks, training.blocks)
            if training.recipe.method == "partial"
            else training.blocks
        )
        kept = training.length * (deep * 2 * sweep_estimate.workspace(self.stack) + 3 * 4 * vocabulary)
        return training_loop.bytes_needed(self.trained_weights(training), self.weight_bytes(training.blocks)) + kept

    def disk_bytes(self, trainings: Sequence[Training]) -> float:
        """What trainings leave on disk, and the largest one's checkpoints: the last, and the next being written."""
        element = self.stack.model.get_input_embeddings().weight.element_size()
        left = sum(self.trained_weights(one) for one in trainings if one.kept) * element
        # Weights in float32 and AdamW's two numbers for each.
        return left + 2 * 12 * max(map(self.trained_weights, trainings), default=0)

    def close(self) -> None:
        """Frees the probe's memory; what was measured stays."""
        del self.stack
        devices.empty_cache()


def _rounded(length: int) -> int:
    """The length to four binary digits, so that inputs of similar length are timed once."""
    step = 1 << max(0, length.bit_length() - 4)
    return round(length / step) * step


def _seconds_a_token(model: nn.Module, device: torch.device, rows: int = 4, prompt: int = 64) -> float:
    from transformers import GenerationConfig

    ids = torch.randint(3, model.get_input_embeddings().weight.shape[0], (rows, prompt)).to(device)

    def write(tokens: int) -> Callable[[], object]:
        settings = GenerationConfig(
            do_sample=False, use_cache=True, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0
        )
        return lambda: model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)

    few, many = 2, 6
    times = [devices.seconds(write(n), device, at_least=0.0) for n in (few, many)]
    return max(1e-6, (times[1] - times[0]) / (many - few))


def linear_shapes(stack: DecoderStack) -> list[tuple[int, int]]:
    """(out, in) of the linear layers of a block."""
    return [(m.out_features, m.in_features) for m in stack.blocks[0].modules() if isinstance(m, nn.Linear)]
