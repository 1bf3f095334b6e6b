"""Every importance measure of the study, each declared once: a new one is a new entry of `REGISTRY`.

The figures' colour, marker and labels stand in `figures.style` under the measure's name; figures know no measures.

With X_i the residual stream entering block i and X_{i+1} leaving it (before the final norm), means over real tokens of
the whole calibration set, token-weighted, and W a block's weight matrices:

    random              a draw of a seed                                                       Lu et al. 2024
    perplexity          that of the calibration text without the block        smallest first   Lu et al. 2024
    taylor              sum over W of |dL/dW * W|, L the mean loss a token    smallest first   Lu et al. 2024
    block_influence     1 - mean_t cos(X_i,t , X_{i+1},t)                     smallest first   ShortGPT eq. 2
    relative_magnitude  mean_t ||X_{i+1},t - X_i,t|| / ||X_{i+1},t||          smallest first   Samragh et al. 2023
    hidden_norm         mean_t ||X_{i+1},t||                                  largest first    ShortGPT 4.4
    sequential          -i                                                    largest first    ShortGPT table 3
    magnitude_l1        sum over W of ||W||_1                                 smallest first   Lu et al. 2024
    magnitude_l2        sum over W of ||W||_2                                 smallest first   Lu et al. 2024
    reverse_order       -i                                                    smallest first   ShortGPT table 3
    angular_distance    arccos cos(X_i,t , X_{i+1},t) / pi, t the last        smallest first   Gromov et al. 2024, n = 1
                        token of each sequence, mean over sequences
    greedy              step by step, the removal that costs least            (an order)       this study's reference
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from layer_redundancy.core.arguments import shown
from layer_redundancy.core.errors import StudyError
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.measures import gradients, weights
from layer_redundancy.measures.activations import ActivationSums

# The lists that a measure may be in.
SCORES = "scores"  # scored and ranked, block by block: notebook 01; only measures `from_sums`
CURVES = "curves"  # its order is removed block by block: notebooks 04 and 06
SELECTIONS = "selections"  # a quarter of the blocks is removed by it, and the rest trained: notebook 11


@dataclass(frozen=True)
class Activations:
    """A mean over tokens, from the sums of one pass over the calibration text.

    Attributes:
        numerator: sums -> (S, L) sum over all tokens of S sequences.
        first: sums -> (S, L) the first tokens' share of it.
        complement: whether the score is one minus the mean.
        last_token: whether `numerator` holds each sequence's last token alone, so that the mean is over sequences.
    """

    numerator: Callable[[ActivationSums], np.ndarray]
    first: Callable[[ActivationSums], np.ndarray] | None = None
    complement: bool = False
    last_token: bool = False


@dataclass(frozen=True)
class Position:
    """Scores that follow from the blocks' places alone: `score` is number of blocks L -> (L,) float64."""

    score: Callable[[int], np.ndarray]


@dataclass(frozen=True)
class Weights:
    """Scores from ordinary weights: `score` is L residual blocks -> (L,) float64."""

    score: Callable[[Sequence[nn.Module]], np.ndarray]


@dataclass(frozen=True)
class Gradients:
    """Scores from gradients: `score` is (model, calibration text, tokens a forward) -> (L,) float64."""

    score: Callable[[nn.Module, TokenBlocks, int | None], np.ndarray]


@dataclass(frozen=True)
class Loss:
    """The mean loss of calibration text without the block.

    Attributes:
        step_by_step: whether it is measured anew after each removal (`measures.greedy`): an order, no score.
    """

    step_by_step: bool = False


@dataclass(frozen=True)
class Random:
    """A random order, which has no scores."""


@dataclass(frozen=True)
class Measure:
    """An importance measure.

    Attributes:
        name: the measure's usual name in the field, which tables use.
        removed_first: "smallest" or "largest" score goes first; "" for an order that has no scores.
        source: paper and place where it is defined.
        kind: what it is computed from, and how.
        lists: the lists that it is in: any of SCORES, CURVES, SELECTIONS.
    """

    name: str
    removed_first: str
    source: str
    kind: Activations | Position | Weights | Gradients | Loss | Random
    lists: tuple[str, ...]

    @property
    def from_sums(self) -> bool:
        """Whether its scores follow from `ActivationSums`, which `importance.scores` computes."""
        return isinstance(self.kind, Activations | Position)

    @property
    def has_scores(self) -> bool:
        """Whether blocks have scores, from which the order of removal follows."""
        return bool(self.removed_first)


def _next(pairs: np.ndarray) -> np.ndarray:
    """The entry of each block's input with its output: (S, L+1, L+1) -> (S, L)."""
    return np.diagonal(pairs, offset=1, axis1=1, axis2=2)


def _minus_index(num_blocks: int) -> np.ndarray:
    return -np.arange(num_blocks, dtype=np.float64)


# In the order of tables, figures and legends.
REGISTRY = {
    m.name: m
    for m in (
        Measure("random", "", "Lu et al. 2024", Random(), (SELECTIONS,)),
        Measure("perplexity", "smallest", "Lu et al. 2024", Loss(), (SELECTIONS,)),
        Measure("taylor", "smallest", "Lu et al. 2024", Gradients(gradients.taylor), (SELECTIONS,)),
        Measure(
            "block_influence", "smallest", "ShortGPT eq. 2",
            Activations(lambda s: _next(s.cosine), lambda s: _next(s.first_cosine), complement=True),
            (SCORES, CURVES, SELECTIONS),
        ),
        Measure(
            "relative_magnitude", "smallest", "Samragh et al. 2023",
            Activations(lambda s: s.relative_magnitude, lambda s: s.first_relative_magnitude),
            (SCORES, CURVES),
        ),
        Measure(
            "hidden_norm", "largest", "ShortGPT 4.4",
            Activations(lambda s: s.norm[:, 1:], lambda s: s.first_norm[:, 1:]),
            (SCORES, CURVES),
        ),
        Measure("sequential", "largest", "ShortGPT table 3", Position(_minus_index), (SCORES, CURVES)),
        Measure(
            "magnitude_l1", "smallest", "Lu et al. 2024",
            Weights(lambda blocks: weights.magnitude(blocks, 1)), (SELECTIONS,),
        ),
        Measure(
            "magnitude_l2", "smallest", "Lu et al. 2024",
            Weights(lambda blocks: weights.magnitude(blocks, 2)), (SELECTIONS,),
        ),
        Measure("reverse_order", "smallest", "ShortGPT table 3", Position(_minus_index), (SCORES, CURVES, SELECTIONS)),
        # No curve of its own: its paper's rule removes one contiguous run of blocks (`importance.best_start`).
        Measure(
            "angular_distance", "smallest", "Gromov et al. 2024, n = 1",
            Activations(lambda s: _next(s.last_angle), last_token=True), (SCORES,),
        ),
        Measure("greedy", "", "this study's reference", Loss(step_by_step=True), (CURVES,)),
    )
}  # fmt: skip


def find(name: str, suits: Callable[[Measure], bool] = lambda measure: True) -> Measure:
    """The measure of that name.

    Args:
        name: the measure's name.
        suits: whether a measure may be meant; any if not given.

    Raises:
        StudyError: no measure that suits has it.
    """
    known = [measure.name for measure in REGISTRY.values() if suits(measure)]
    if name not in known:
        raise StudyError(f"unknown importance measure {shown(name)}: choose one of {', '.join(known)}")
    return REGISTRY[name]


class Listed(Mapping[str, Measure]):
    """The measures of one list by name, as REGISTRY has them at the moment.

    Args:
        name: SCORES, CURVES or SELECTIONS.
    """

    def __init__(self, name: str):
        self._name = name

    def __getitem__(self, name: str) -> Measure:
        if name not in REGISTRY or self._name not in REGISTRY[name].lists:
            raise KeyError(name)
        return REGISTRY[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name, measure in REGISTRY.items() if self._name in measure.lists)

    def __len__(self) -> int:
        return sum(1 for _ in self)
