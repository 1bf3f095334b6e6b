"""Made-up sums of activations, and a model's importance measures the slow way."""

import numpy as np
import torch

from layer_redundancy.measures import importance
from layer_redundancy.measures.activations import ActivationSums
from layer_redundancy.models.stack import decoder_stack


def made_up(*shape: int) -> np.ndarray:
    """Values in 0..1 without a pattern."""
    return (np.arange(np.prod(shape)) * 7919 % 101 / 101).reshape(shape)


def made_up_sums() -> ActivationSums:
    """Made-up sums of 6 sequences and 4 blocks."""
    shapes = {"tokens": (6,), "norm": (6, 5), "first_norm": (6, 5)}
    shapes |= {"relative_magnitude": (6, 4), "first_relative_magnitude": (6, 4)}
    fields = {name: made_up(*shapes.get(name, (6, 5, 5))) for name in ActivationSums.__dataclass_fields__}
    return ActivationSums(**fields | {"tokens": fields["tokens"] + 9})


def direct(model, ids, lengths):
    """Every measure the slow way: hooks on the blocks, one sequence, one token at a time.

    Returns scores by (measure, first token counted), and the angular distances of all pairs at the last tokens.
    """
    stack = decoder_stack(model)
    states: list = []
    handles = [stack.blocks[0].register_forward_pre_hook(lambda m, a: states.append(a[0]))]
    handles += [
        b.register_forward_hook(lambda m, a, o: states.append(o[0] if isinstance(o, tuple) else o))
        for b in stack.blocks
    ]
    rows, pairs = [], []
    for row, length in zip(ids, lengths, strict=True):
        states.clear()
        model(row[None, :length], use_cache=False)
        for t in range(length):
            x = torch.stack([s[0, t].double() for s in states])
            cosine = torch.nn.functional.cosine_similarity(x[:-1], x[1:], dim=-1)
            magnitude = (x[1:] - x[:-1]).norm(dim=-1) / x[1:].norm(dim=-1)
            rows.append((t, 1 - cosine, magnitude, x[1:].norm(dim=-1)))
        unit = x / x.norm(dim=-1, keepdim=True)
        pairs.append(torch.arccos((unit @ unit.T).clamp(-1, 1)) / torch.pi)
    for handle in handles:
        handle.remove()
    names = ("block_influence", "relative_magnitude", "hidden_norm")
    scores = {
        (name, first): torch.stack([r[i + 1] for r in rows if first or r[0] > 0]).mean(0).numpy()
        for i, name in enumerate(names)
        for first in (True, False)
    }
    return scores, torch.stack(pairs).mean(0).numpy()


def assert_agrees(sums, expected):
    """Within 1e-5, relative to the size of the residual stream for its norm."""
    scores, pairs = expected
    for (name, first), score in scores.items():
        tolerance = 1e-5 * (np.abs(score).max() if name == "hidden_norm" else 1)
        np.testing.assert_allclose(importance.scores(sums, name, first_token=first), score, atol=tolerance, rtol=0)
    grid = importance.angular_grid(sums)
    for n in range(1, len(grid) + 1):
        # arccos near 1 turns the 1e-7 of fp32 states into 1e-4; off the diagonal nothing is that close to 1
        np.testing.assert_allclose(grid[n - 1, : len(grid) - n + 1], np.diagonal(pairs, offset=n), atol=1e-5)
    np.testing.assert_allclose(importance.scores(sums, "angular_distance"), np.diagonal(pairs, offset=1), atol=1e-5)
