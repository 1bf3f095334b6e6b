"""What a byte of text costs a model, in bits: a unit that models of any tokens share.

Perplexity a token cannot be compared between models that cut text into other tokens; bits a byte of the same passages,
each model reading them in its own tokens, can.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from layer_redundancy.core.store import Result
from layer_redundancy.core.variants import Variant
from layer_redundancy.evaluate.scoring import Passages, Perplexity


def piece_bytes(pieces: Sequence[Sequence[int]], tokenizer: Any) -> np.ndarray:
    """Bytes of UTF-8 that the scored tokens of each piece of text stand for, (N,); all but the first token are.

    Some tokenizers would else clean up what they decode, and drop spaces that the tokens hold.
    """
    return np.array(
        [len(tokenizer.decode(list(ids[1:]), clean_up_tokenization_spaces=False).encode()) for ids in pieces]
    )


def text_bytes(text: Perplexity | Passages, tokenizer: Any) -> np.ndarray:
    """`piece_bytes` of a measured text, (N,)."""
    return piece_bytes([(*piece.input_ids, piece.targets[0][-1]) for piece in text.sequences], tokenizer)


def bits_per_byte(results: Mapping[Variant, Result], chosen: Sequence[Variant], sizes: np.ndarray) -> np.ndarray:
    """Bits that a byte of each piece of text costs each variant, (K, N).

    Args:
        results: results of the perplexity measurement.
        chosen: the K variants.
        sizes: bytes of each piece of text, from `piece_bytes`.
    """
    return np.stack([results[variant].arrays["nll"] / math.log(2) / sizes for variant in chosen])
