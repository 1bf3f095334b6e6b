"""What a language model must beat to have learnt anything: bits per byte of a compressor and of an n-gram model."""

import lzma
from collections.abc import Sequence

import numpy as np

SEPARATOR = b"\n\n"


def xz_bits_per_byte(texts: Sequence[str]) -> float:
    """Bits per byte of the texts, joined, as `xz -9` packs them."""
    data = SEPARATOR.join(text.encode() for text in texts)
    return 8 * len(lzma.compress(data, preset=9)) / len(data)


def ngram_bits_per_byte(training: Sequence[str], evaluation: Sequence[str], order: int = 5) -> float:
    """Bits per byte of the evaluation texts under an interpolated Kneser-Ney model of bytes.

    Chen and Goodman (1999), section 4.1.6, equation 12: one discount an order, n1 / (n1 + 2 n2); the lowest order
    falls back on 1 / 256.

    Args:
        training: texts to count in.
        evaluation: texts to predict.
        order: bytes of an n-gram, the predicted one among them, 1 to 7.

    Raises:
        ValueError: an order that 64 bits do not hold.
    """
    if not 1 <= order <= 7:
        raise ValueError(f"order must be 1 to 7, not {order}")
    grams, counts = np.unique(_windows(training, order), return_counts=True)
    levels = [(grams, counts)]
    for shorter in range(order - 1, 0, -1):  # below the highest order: in how many contexts, not how often
        grams, counts = np.unique(levels[0][0] % 256**shorter, return_counts=True)
        levels.insert(0, (grams, counts))
    seen = _windows(evaluation, order)
    probability = np.full(len(seen), 1 / 256)
    for length, (grams, counts) in enumerate(levels, start=1):
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        discount = once / (once + 2 * twice) if once else 0.0
        contexts, first = np.unique(grams // 256, return_index=True)
        totals, kinds = np.add.reduceat(counts, first), np.diff(np.append(first, len(grams)))
        gram = seen % 256**length
        at, known = _find(contexts, gram // 256)
        total, kind = totals[at], kinds[at]
        where, there = _find(grams, gram)
        own = np.where(there, np.maximum(counts[where] - discount, 0), 0)
        probability = np.where(known, (own + discount * kind * probability) / total, probability)
    return float(-np.log2(probability).mean())


def _windows(texts: Sequence[str], length: int) -> np.ndarray:
    """Every run of so many bytes as one number, int64, the last byte lowest; the first is that of the first byte."""
    data = np.frombuffer(b"\0" * (length - 1) + SEPARATOR.join(text.encode() for text in texts), np.uint8)
    whole = np.zeros(len(data) - length + 1, np.int64)
    for offset in range(length):
        whole = whole * 256 + data[offset : offset + len(whole)]
    return whole


def _find(sorted_keys: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each key is, and whether it is there at all."""
    at = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return at, sorted_keys[at] == keys
