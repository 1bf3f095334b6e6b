"""Ways to select the blocks that go (Lu et al. 2024, section 3), each from calibration text or none at all.

`measures.registry` defines them. Ties break toward the deeper block, as everywhere in this study.
"""

from functools import cache

from layer_redundancy.measures import registry
from layer_redundancy.models import checkpoints, matrices
from layer_redundancy.models.checkpoints import ModelIdentity
from layer_redundancy.models.stack import decoder_stack

SELECTIONS = registry.Listed(registry.SELECTIONS)


@cache
def rules_of_scores(identity: ModelIdentity, name: str) -> dict[str, str]:
    """What decides a score besides, where experts lie in one tensor: their biases once counted as matrices, and all
    their weights as one."""
    with checkpoints.shapes(identity) as shapes:
        modules = list(decoder_stack(shapes).blocks.modules())
    as_one = any(map(matrices.stacks, modules)) and isinstance(registry.REGISTRY[name].kind, registry.Weights)
    return {"experts": "a matrix each"} if as_one or any(map(matrices.stacked_biases, modules)) else {}
