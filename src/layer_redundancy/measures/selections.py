"""Seven ways to select the blocks that go (Lu et al. 2024, section 3), each from calibration text or none at all.

    random         a draw of a seed
    reverse_order  the last blocks, the very last among them
    magnitude_l1   sum over a block's weight matrices of ||W||_1: smallest first
    magnitude_l2   the same of ||W||_2, the root of the sum of squares (public code sums the squares)
    taylor         sum over a block's weight matrices of |dL/dW * W|, elementwise, L the mean loss a token of the whole
                   calibration text: smallest first (public code takes one batch's)
    perplexity     that of the calibration text without the block: smallest first
    block_influence  ShortGPT eq. 2: smallest first

"Weight matrices" are a block's parameters of two dimensions: norms and biases are none. Ties break toward the deeper
block, as everywhere in this study.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from layer_redundancy.core import devices
from layer_redundancy.core.errors import StudyError
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.measures import importance
from layer_redundancy.models.stack import decoder_stack
from layer_redundancy.train import training_loop

SELECTIONS = (
    "random", "perplexity", "taylor", "block_influence", "magnitude_l1", "magnitude_l2", "reverse_order",
)  # fmt: skip


def _matrices(block: nn.Module) -> list[nn.Parameter]:
    return [p for p in block.parameters() if p.ndim >= 2]


def magnitude(blocks: Sequence[nn.Module], p: int) -> np.ndarray:
    """Sum over each block's weight matrices of their entrywise p-norm; (L,) float64, in the weights' units.

    Args:
        blocks: L residual blocks with ordinary weights.
        p: 1 or 2.
    """
    norms = [[torch.linalg.vector_norm(w.detach(), ord=p, dtype=torch.float64) for w in _matrices(b)] for b in blocks]
    return np.array([float(sum(of_block)) for of_block in norms])


def taylor(model: nn.Module, text: TokenBlocks, batch_tokens: int | None = 2048) -> np.ndarray:
    """First-order estimate of what the loss changes when each weight of a block is set to zero, without its sign.

    The gradient is that of the mean loss of all tokens, so the result does not depend on how many are run at once. With
    sums of single batches' products, as in public code, it would: their signs do not cancel.

    Args:
        model: float32 or 16 bits; gradients are kept in float32, so they take 4 bytes a weight.
        text: calibration text.
        batch_tokens: tokens a forward; halved when memory runs out.

    Returns:
        (L,) float64, nats a token.

    Raises:
        StudyError: text that layers are judged on, or no memory for one sequence.
    """
    if text.split != "calibration":
        raise StudyError(f"blocks are not selected on the {text.split} text, on which they are judged")
    blocks = decoder_stack(model).blocks
    weights = [w for block in blocks for w in _matrices(block)]
    rows = max(1, (batch_tokens or 2048) // text.input_ids.shape[1])
    device = next(model.parameters()).device
    for weight in weights:
        weight.requires_grad_(True)
    try:
        while True:
            try:
                gradients = _gradients(model, weights, text.input_ids, rows, device)
                break
            except (RuntimeError, MemoryError) as error:
                rows = devices.halved(rows, error, "a gradient of one block of text")
        products = [
            float((g.double() * w.detach().double()).abs().sum()) for g, w in zip(gradients, weights, strict=True)
        ]
    finally:
        for weight in weights:
            weight.grad = None
            weight.requires_grad_(False)
    found, place = [], 0
    for block in blocks:
        num = len(_matrices(block))
        found.append(sum(products[place : place + num]))
        place += num
    if not np.isfinite(found).all():
        raise StudyError("the gradient is NaN or infinite: use dtype float32 or check the weights")
    return np.array(found)


def _gradients(model, weights, ids, rows, device) -> list[torch.Tensor]:
    """Of the mean loss of all tokens, float32."""
    sums = [torch.zeros_like(w, dtype=torch.float32) for w in weights]
    for begin in tqdm(range(0, len(ids), rows), desc="gradients", unit="batch", mininterval=1.0):
        part = ids[begin : begin + rows]
        loss = training_loop.causal_loss(model, {"input_ids": part.to(device)}) * (len(part) / len(ids))
        for total, gradient in zip(sums, torch.autograd.grad(loss, weights), strict=True):
            total += gradient.float()
    return sums


def order(name: str, scores: Mapping[str, np.ndarray], num_blocks: int, seed: int = 0) -> np.ndarray:
    """The order in which a selection removes blocks, first removed first; (L,) int64.

    Args:
        name: one of SELECTIONS.
        scores: name -> (L,), of those that have scores.
        num_blocks: L.
        seed: of the random order.

    Raises:
        StudyError: unknown selection.
    """
    if name not in SELECTIONS:
        raise StudyError(f"unknown selection {name!r}: choose one of {', '.join(SELECTIONS)}")
    if name == "random":
        return np.random.default_rng(seed).permutation(num_blocks)
    score = -np.arange(num_blocks, dtype=float) if name == "reverse_order" else scores[name]
    return importance.removal_order(score, "block_influence")  # the smallest first
