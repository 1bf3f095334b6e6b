"""Importance from gradients of the loss."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from layer_redundancy.core import devices
from layer_redundancy.core.errors import StudyError
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.measures.weights import matrices
from layer_redundancy.models.stack import check_tokens, decoder_stack
from layer_redundancy.train import training_loop


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
        StudyError: text that layers are judged on, as `check_tokens`, or no memory for one sequence.
    """
    if text.split != "calibration":
        raise StudyError(f"blocks are not selected on the {text.split} text, on which they are judged")
    check_tokens(model, text.input_ids)
    blocks = decoder_stack(model).blocks
    weights = [w for block in blocks for w in matrices(block)]
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
        num = len(matrices(block))
        found.append(sum(products[place : place + num]))
        place += num
    if not np.isfinite(found).all():
        raise StudyError("the gradient is NaN or infinite: use dtype float32 or check the weights")
    return np.array(found)


def _gradients(
    model: nn.Module, weights: Sequence[torch.Tensor], ids: torch.Tensor, rows: int, device: torch.device
) -> list[torch.Tensor]:
    """The weights' gradients of the mean loss of all tokens, float32."""
    sums = [torch.zeros_like(w, dtype=torch.float32) for w in weights]
    for start in tqdm(range(0, len(ids), rows), desc="gradients", unit="batch", mininterval=1.0):
        part = ids[start : start + rows]
        loss = training_loop.causal_loss(model, {"input_ids": part.to(device)}) * (len(part) / len(ids))
        # Of a weight that the loss does not depend on (an expert that no token was sent to) there is none.
        for total, gradient in zip(sums, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
            if gradient is not None:
                total += gradient.float()
    return sums
