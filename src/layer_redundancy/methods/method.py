"""What every way to make a model smaller has in common.

A method first says which sizes it can reach with a model of some shape, which needs no weights; then it makes the one
that was chosen. Methods change an ordinary transformers model in memory. What they read is calibration text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from layer_redundancy.core.errors import StudyError
from layer_redundancy.data.corpora import TokenBlocks

NEAR = 0.014  # of all weights: a method that comes no nearer to a share is not at it


@dataclass(frozen=True)
class Card:
    """Where a method comes from.

    Attributes:
        title: its name as its authors write it.
        does: what it does to a model, in a few words.
        paper: authors and year, arXiv number.
        code: the public repository, "owner/name"; "" where there is none.
        settings: what is set, in words, and who set it so (paper, code or this study).
        code_differs: what the public code does otherwise than the paper says; "" where nothing was found.
        changed: what is done otherwise here than in the public code, and why; "" where nothing is.
        needs: a module of ours to import before transformers loads what comes out; "" where plain transformers does.
    """

    title: str
    does: str
    paper: str
    code: str
    settings: str
    code_differs: str = ""
    changed: str = ""
    needs: str = ""


@dataclass(frozen=True)
class Plan:
    """What a method will do to a model of some shape.

    Attributes:
        settings: plain values that, with the model and the calibration text, decide the outcome; fit for JSON.
        removed: share of all weights that go, 0 to 1, weights that are tied counted once; negative where it grows.
        removed_of_blocks: share of the weights of the residual blocks.
        blocks: residual blocks that go.
    """

    settings: Mapping[str, Any]
    removed: float
    removed_of_blocks: float
    blocks: int = 0


class Method(Protocol):
    """A way to make a model smaller."""

    @property
    def card(self) -> Card:
        """Where it comes from."""

    @property
    def draws(self) -> bool:
        """Whether the outcome depends on which calibration text is drawn."""

    def reads(self, text: TokenBlocks) -> TokenBlocks:
        """The part of a calibration text that it reads, which with the model and the plan decides the outcome."""

    def passes(self, plan: Plan, num_blocks: int) -> float:
        """About how much work a plan is, in forwards of the whole model over what `reads` gives."""

    def plans(self, shapes: nn.Module) -> list[Plan]:
        """All sizes that it can reach, the whole model first.

        Args:
            shapes: a causal language model of transformers; its weights are not read (they may be on `meta`).

        Raises:
            NotApplicable: it cannot be used on such a model; one line says why.
        """

    def outline(self, shapes: nn.Module, text: TokenBlocks, plan: Plan) -> nn.Module:
        """What it would make, without weights: a model of the same class and widths as comes out of `apply`.

        Args:
            shapes: the whole model, whose weights are not read (they may be on `meta`); it is used up.
            text: calibration text.
            plan: one of `plans`.

        Raises:
            StudyError: as `apply`, as far as shapes and the text's size tell it.
        """

    def apply(self, model: nn.Module, text: TokenBlocks, plan: Plan) -> nn.Module:
        """Makes a model smaller.

        Args:
            model: the whole model, which is used up; its dtype is that of what comes out.
            text: calibration text, of the calibration split; what `reads` gives of it counts.
            plan: one of `plans`.

        Returns:
            The smaller model. With the first plan it gives the whole model's logits.

        Raises:
            StudyError: as the method says.
        """


def nearest(plans: Sequence[Plan], share: float, title: str) -> Plan:
    """The plan whose size is nearest to a share of all weights; of two as near the one that removes less.

    Args:
        plans: of one method.
        share: share of all weights that are to go, 0 to 1.
        title: the method's name, for the message.

    Raises:
        StudyError: it comes no nearer than `NEAR`.
    """
    found = min(plans, key=lambda plan: (abs(plan.removed - share), plan.removed))
    if abs(found.removed - share) > NEAR:
        least, most = min(plan.removed for plan in plans), max(plan.removed for plan in plans)
        raise StudyError(
            f"{title} cannot remove {100 * share:.1f} % of this model's weights: the nearest is "
            f"{100 * found.removed:.1f} %, of {100 * least:.1f} to {100 * most:.1f} %"
        )
    return found
