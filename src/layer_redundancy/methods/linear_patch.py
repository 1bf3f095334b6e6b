"""LinearPatch: a symmetric map of the whole residual stream where blocks went (Chen et al. 2025, arXiv 2505.24680).

P = H diag(d) H^T, H orthonormal and made of signs (Hadamard), d how much larger each of its coordinates is after the
run of blocks than before. It acts on the residual stream itself, so that no weights can take it in: no checkpoint of
the model's own architecture has it, and there is only the map here.
"""

from functools import cache

import torch
from torch import Tensor

from layer_redundancy.core.errors import NotApplicable, StudyError
from layer_redundancy.methods import blocks
from layer_redundancy.models.stack import DecoderStack


def hadamard(size: int) -> Tensor:
    """An orthonormal matrix of entries +-1 / sqrt(size); (size, size) float64.

    The Kronecker product of Sylvester's matrix of the largest power of two with the smallest of Paley's matrices that
    the rest needs: 576 = 36 x 16, 896 = 28 x 32, 4096 = 1 x 4096.

    Raises:
        NotApplicable: none is known here for this size.
    """
    odd = size
    while odd % 2 == 0 and odd:
        odd //= 2
    order = odd
    while order <= size:
        core = _core(order)
        if core is not None:
            signs = core
            while len(signs) < size:
                signs = torch.kron(signs, torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64))
            return signs / size**0.5
        order *= 2
    raise NotApplicable(
        f"LinearPatch cannot be used on a model of width {size}: no Hadamard matrix of it is known here"
    )


@cache
def _core(order: int) -> Tensor | None:
    """A Hadamard matrix of that order that is no product of smaller ones: 1, or Paley's two kinds, by a prime."""
    if order == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if order % 4 == 0 and _is_prime(order - 1):  # then order - 1 = 3 mod 4
        return _conference(order - 1) + torch.eye(order, dtype=torch.float64)
    half = order // 2
    if order % 4 == 0 and half % 4 == 2 and _is_prime(half - 1):  # then half - 1 = 1 mod 4
        plus = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        minus = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        return torch.kron(_conference(half - 1), plus) + torch.kron(torch.eye(half, dtype=torch.float64), minus)
    return None


def _conference(prime: int) -> Tensor:
    """C (p+1, p+1), zeros on the diagonal and +-1 elsewhere, C C^T = p I; symmetric for p = 1 mod 4, else skew."""
    squares = {i * i % prime for i in range(1, prime)}
    residue = [0 if i == 0 else 1 if i in squares else -1 for i in range(prime)]
    found = torch.ones(prime + 1, prime + 1, dtype=torch.float64)
    found[0, 0] = 0
    found[1:, 1:] = torch.tensor([[residue[(j - i) % prime] for j in range(prime)] for i in range(prime)])
    if prime % 4 == 3:
        found[1:, 0] = -1
    return found


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def patch(basis: Tensor, scales: Tensor) -> Tensor:
    """P = H diag(d) H^T; (d, d) and (d,) -> (d, d) symmetric."""
    return basis @ (scales[:, None] * basis.T)


@torch.no_grad()
def linear_patch(stack: DecoderStack, input_ids: Tensor, start: int, end: int, batch_tokens: int = 2048) -> Tensor:
    """The map of the residual stream that stands for the blocks start .. end-1.

    d is the mean over texts of the ratio, after to before the blocks, of the mean absolute value over tokens of each
    coordinate in the basis of H, as the public code has it (chenxinrui-tsinghua/LinearPatch, layer_select.py). Memory:
    two states of one batch.

    Args:
        stack: the model taken apart.
        input_ids: int64 (texts, length), no padding.
        start: the first block that goes.
        end: one after the last that goes, start + 1 to L.
        batch_tokens: tokens a forward may hold.

    Returns:
        P (d, d) float64, symmetric: X_start P stands for X_end.

    Raises:
        NotApplicable: no Hadamard matrix of the model's width is known here.
        StudyError: no such blocks.
    """
    if not 0 <= start < end <= len(stack):
        raise StudyError(f"no blocks {start} to {end - 1} can be patched: the model has blocks 0 to {len(stack) - 1}")
    ratios: list[Tensor] = []
    basis: Tensor | None = None
    for batch in blocks.batches(input_ids, batch_tokens):
        hidden, calls = stack.start(batch)
        sizes: dict[int, Tensor] = {}
        for index in range(end + 1):
            if index in (start, end):
                state = blocks.double(hidden)
                basis = hadamard(state.shape[-1]).to(state.device) if basis is None else basis
                sizes[index] = (state @ basis).abs().mean(1)  # (texts, d)
            if index < end:
                hidden = stack.run_block(index, hidden, calls)
        ratios.append(sizes[end] / sizes[start])
    assert basis is not None, "there is a text"
    return patch(basis, torch.cat(ratios).mean(0))
