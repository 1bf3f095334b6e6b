"""What stands for measured numbers in a plan: orders of removal like the paper's.

How much variants share hardly depends on which late blocks go first, so one order is as good as another for a plan.
Its scores are made so that the measures' own code finds that order in them, and a nearly equal one where two measures,
or two calibration texts, nearly agree.
"""

from functools import cache

import numpy as np

from layer_redundancy.config import paper_tables
from layer_redundancy.core import variants
from layer_redundancy.core.variants import Variant
from layer_redundancy.measures import activations
from layer_redundancy.measures.activations import ActivationSums

STEP = 1e-3  # between the scores of two neighbours in the order
DOUBT = 1.5  # standard errors between them: on another text, a pair in fifteen changes places


@cache
def order(model: str, num_blocks: int) -> tuple[int, ...]:
    """The paper's order of removal of this model (table 4), then its other late blocks, the ends last."""
    known = paper_tables.table("table4").set_index("model")["removed_layers"]
    first = [i for i in known.get(paper_tables.known_model(model), ()) if i < num_blocks]
    last = num_blocks - 1
    rest = sorted(range(num_blocks), key=lambda i: (i in (0, 1, last), abs(i / max(1, last) - 0.75)))
    return tuple(first + [i for i in rest if i not in first])


def exchanged(places: tuple[int, ...], at: int) -> tuple[int, ...]:
    """An order with two neighbours exchanged, as another measure would have it that nearly agrees."""
    found = list(places)
    found[at : at + 2] = found[at : at + 2][::-1]
    return tuple(found)


def _ranks(places: tuple[int, ...]) -> np.ndarray:
    return np.argsort(places).astype(float)


def loss(model: str, num_blocks: int, variant: Variant) -> float:
    """Mean NLL a token (nats) of a variant: more, the later its missing blocks come in an order that nearly agrees.

    The block that Block Influence removes first comes last in it, so that no prefix of the two is the same.
    """
    places = order(model, num_blocks)
    ranks = _ranks(places[1:] + places[:1])
    return 1.0 + STEP * float(sum(1 + ranks[block] for block in variants.removed_blocks(num_blocks, variant)))


def scores(measure: str, model: str, num_blocks: int) -> np.ndarray:
    """Scores (L,) of a measure from gradients, nearly the order of Block Influence, or from weights, whose norms grow
    with depth; two measures never agree on all blocks.
    """
    turn = sum(map(ord, measure)) % max(1, num_blocks - 1) + 1
    ranks = _ranks(order(model, num_blocks)) if measure == "taylor" else np.arange(num_blocks, dtype=float)
    return np.roll(ranks, 1 if measure == "taylor" else turn)


def activation_sums(model: str, num_blocks: int, sequences: int) -> ActivationSums:
    """Sums in which Block Influence finds `order`, relative magnitude a neighbour of it, and the norm grows with depth.

    The run of blocks of the smallest angular distance ends before the last two blocks. Sequences differ, so that a
    resample of them exchanges a few neighbours.
    """
    found = activations.zeros(sequences, num_blocks)
    places = order(model, num_blocks)
    noise = np.random.default_rng(0).normal(size=(sequences, num_blocks))
    noise -= noise.mean(0)
    noise *= STEP / DOUBT * np.sqrt(sequences / 2)
    inner = np.arange(num_blocks)
    found.cosine[:, inner, inner + 1] = 1 - STEP * (1 + _ranks(places)) - noise
    found.relative_magnitude[:] = STEP * (1 + _ranks(exchanged(places, 2))) + noise
    found.norm[:] = 1.0 + np.arange(num_blocks + 1)
    found.norm[:, -1] = 0.5  # the last block's output is smaller, as in most models
    # After a third of the blocks, the first token outweighs the others, as in most models.
    found.first_norm[:] = found.norm * np.where(np.arange(num_blocks + 1) > num_blocks // 3, 0.99, 0.5)
    start, end = np.indices((num_blocks + 1, num_blocks + 1))
    apart = np.abs(end - start) / (num_blocks + 1)
    found.last_angle[:] = np.where((end == max(1, num_blocks - 2)) & (start > 0), 0.9 * apart, apart)
    return found
