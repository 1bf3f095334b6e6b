"""How many tokens a forward should hold on the device at hand: found by timing a block of the model, not by guessing.

On a GPU, few tokens leave it idle and many only take memory; from some number on the rate no longer grows. That number
depends on the model's width and on the device, so it is looked for with the model in memory, in a second or two.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from layer_redundancy.core import devices
from layer_redundancy.models.compiled import CompiledStack
from layer_redundancy.models.stack import DecoderStack

FEWEST, MOST = 1024, 1 << 17  # tokens
LENGTH = 512  # tokens of the sequences that are timed
ENOUGH = 0.97  # share of the best rate: the smallest number of tokens that reaches it is taken

_found: WeakKeyDictionary[nn.Module, dict[bool, int]] = WeakKeyDictionary()  # by whether its blocks are compiled


class Rates(NamedTuple):
    """Tokens a second that a model reads, and that it writes, those of all texts of a batch together."""

    reading: float
    writing: float


def block_seconds(stack: DecoderStack, call: Callable[[], object], seconds: Callable = devices.seconds) -> float:
    """Seconds of a call of the model's blocks, as they will run: what compiles them is not counted.

    Args:
        stack: the model taken apart.
        call: what runs blocks.
        seconds: `devices.seconds`, or another that times a call on a device.
    """
    if isinstance(stack, CompiledStack):
        call()
    return seconds(call, stack.device)


def rates(stack: DecoderStack, most: int = MOST) -> dict[int, float]:
    """Tokens a second through a block in the middle of the model, by tokens a forward holds.

    The numbers double from FEWEST to `most`, and end where a doubling no longer helps twice in a row, where half of
    the free memory is too little, or where a run takes long.
    """
    length = min(LENGTH, FEWEST)
    vocabulary = stack.model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    found: dict[int, float] = {}
    num = FEWEST
    while num <= most:
        ids = torch.randint(0, vocabulary, (max(1, num // length), length), generator=generator)
        free = devices.available(stack.device)
        try:
            hidden, calls = stack.start(ids)
            spent = block_seconds(stack, lambda: stack.run_block(len(stack) // 2, hidden, calls))  # noqa: B023
        except (MemoryError, RuntimeError) as error:
            if not devices.lacks_memory(error):
                raise
            break
        found[num] = ids.numel() / spent
        # A block needs about eight times its input: attention's and the MLP's activations.
        too_much = 16 * hidden.numel() * hidden.element_size() > free / 2
        flat = len(found) > 2 and max(list(found.values())[-2:]) < max(list(found.values())[:-2]) / ENOUGH
        del hidden, calls
        if too_much or flat or spent > devices.SLOW:
            break
        num *= 2
    devices.empty_cache()
    return found


def batch_tokens(stack: DecoderStack, asked: int | None = None) -> int:
    """Tokens a forward should hold: those asked for, or what `rates` shows to be enough; looked for once a model."""
    if asked is not None:
        return asked
    found, compiled = _found.setdefault(stack.model, {}), isinstance(stack, CompiledStack)
    if compiled not in found:
        measured = rates(stack)
        best = max(measured.values(), default=0.0)
        found[compiled] = next((n for n, rate in measured.items() if rate >= ENOUGH * best), FEWEST)
    return found[compiled]


def tokens_a_second(models: Sequence[nn.Module], input_ids: Tensor, new_tokens: int, rounds: int = 2) -> list[Rates]:
    """How fast some models read texts and write, as they really run; in turns, so that all share what else goes on.

    Args:
        models: transformers models on the same device.
        input_ids: int64 (texts, tokens) that each reads whole, and of whose first half each writes on.
        new_tokens: tokens that each writes a text, greedily and with its cache.
        rounds: turns, of which the fastest counts.

    Returns:
        For each model tokens read and tokens written a second.
    """
    from transformers import GenerationConfig

    prompts = input_ids[:, : max(1, input_ids.shape[1] // 2)]
    settings = GenerationConfig(
        do_sample=False, use_cache=True, max_new_tokens=new_tokens, min_new_tokens=new_tokens, pad_token_id=0
    )
    best = [[float("inf"), float("inf")] for _ in models]
    for _ in range(rounds + 1):  # the first finds nothing ready, and is not the fastest
        for model, times in zip(models, best, strict=True):
            device = model.get_input_embeddings().weight.device
            ids, begun = input_ids.to(device), prompts.to(device)
            mask = torch.ones_like(begun)
            devices.synchronize(device)
            start = time.perf_counter()
            with torch.no_grad():
                model(input_ids=ids, use_cache=False, logits_to_keep=1)
            devices.synchronize(device)
            middle = time.perf_counter()
            model.generate(begun, attention_mask=mask, generation_config=settings)
            devices.synchronize(device)
            end = time.perf_counter()
            times[:] = min(times[0], middle - start), min(times[1], end - middle)
    written = new_tokens * len(input_ids)
    return [Rates(input_ids.numel() / reading, written / writing) for reading, writing in best]
