"""Ways to select the blocks that go (Lu et al. 2024, section 3), each from calibration text or none at all.

`measures.registry` defines them. Ties break toward the deeper block, as everywhere in this study.
"""

from collections.abc import Mapping
from functools import cache

import numpy as np

from layer_redundancy.core.errors import StudyError
from layer_redundancy.measures import importance, registry
from layer_redundancy.models import checkpoints, matrices
from layer_redundancy.models.checkpoints import ModelIdentity
from layer_redundancy.models.stack import decoder_stack

SELECTIONS = registry.Listed(registry.SELECTIONS)


def order(name: str, scores: Mapping[str, np.ndarray], num_blocks: int, seed: int = 0) -> np.ndarray:
    """The order in which a selection removes blocks, first removed first; (L,) int64.

    Args:
        name: a key of SELECTIONS.
        scores: name -> (L,) scores, for the selections that have scores not given by position alone.
        num_blocks: L.
        seed: the seed of the random order.

    Raises:
        StudyError: unknown selection.
    """
    if name not in SELECTIONS:
        raise StudyError(f"unknown selection {name!r}: choose one of {', '.join(SELECTIONS)}")
    kind = SELECTIONS[name].kind
    if isinstance(kind, registry.Random):
        return np.random.default_rng(seed).permutation(num_blocks)
    score = kind.score(num_blocks) if isinstance(kind, registry.Position) else scores[name]
    return importance.removal_order(score, name)


@cache
def rules_of_scores(identity: ModelIdentity, name: str) -> dict[str, str]:
    """What decides a score besides, where experts lie in one tensor: their biases once counted as matrices, and all
    their weights as one."""
    with checkpoints.shapes(identity) as shapes:
        modules = list(decoder_stack(shapes).blocks.modules())
    as_one = any(map(matrices.stacks, modules)) and isinstance(registry.REGISTRY[name].kind, registry.Weights)
    return {"experts": "a matrix each"} if as_one or any(map(matrices.stacked_biases, modules)) else {}
