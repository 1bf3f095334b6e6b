"""Magnitude compensation: what blocks that go would have added to the residual stream's size, a scalar makes up for.

Without the blocks a .. a+n-1, block a+n gets X_a, which is mostly smaller than the X_{a+n} that it is used to: the
halves of the blocks after the gap would then weigh too much in the sum. So X_a is multiplied by s, the ratio of their
mean norms (Chen et al. 2025). An RMSNorm gives the same for s X as for X (but for its epsilon), so that s is nothing
but a factor of all that has been added to the residual stream before the gap: the embedding, and the output projections
of attention and MLP, with their biases.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from layer_redundancy.core import flags
from layer_redundancy.core.errors import NotApplicable
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.measures import activations, importance
from layer_redundancy.measures.activations import ActivationSums
from layer_redundancy.methods import blocks
from layer_redundancy.methods.blocks import ReadsAll
from layer_redundancy.methods.method import Card, Plan
from layer_redundancy.models import surgery
from layer_redundancy.models.stack import DecoderStack, decoder_stack

TITLE = "Prune&Comp"


@flags.checked
def factor(sums: ActivationSums, start: int, end: int, first_token: bool = False) -> float:
    """How much larger the residual stream is at one place than at another: mean_t ||X_end,t|| / mean_t ||X_start,t||.

    Args:
        sums: sums over the calibration text.
        start: the first block that goes.
        end: the first block after the gap; L for the final norm.
        first_token: whether each text's first token counts. It is an attention sink in most models, hundreds of times
            as large as the others, and hardly changes from block to block: its share would hide how the others grow.
    """
    norms = sums.norm if first_token else sums.norm - sums.first_norm
    total = norms.sum(0)
    if not total[start] > 0:  # texts of one token, or an embedding of zeros
        return 1.0
    return float(total[end] / total[start])


def runs(removed: Iterable[int]) -> list[tuple[int, int]]:
    """Blocks that go as runs of neighbours: (first, one after the last) of each, ascending."""
    found: list[tuple[int, int]] = []
    for block in sorted(removed):
        if found and found[-1][1] == block:
            found[-1] = (found[-1][0], block + 1)
        else:
            found.append((block, block + 1))
    return found


def check(stack: DecoderStack) -> None:
    """Raises NotApplicable where a factor of the residual stream cannot be folded into what adds to it."""
    blocks.pre_norm_blocks(stack, TITLE)
    if [name for module in stack.final for name, _ in module.named_parameters()] != ["weight"]:
        raise NotApplicable(
            f"{TITLE} cannot be used on {type(stack.model).__name__}: no norm that only has weights follows its blocks"
        )
    if not isinstance(stack.model.get_input_embeddings(), nn.Embedding):
        raise NotApplicable(f"{TITLE} cannot be used on {type(stack.model).__name__}: its embedding is of another kind")


@torch.no_grad()
def scale(model: nn.Module, block: int, by: float) -> nn.Module:
    """Multiplies the residual stream that enters a block by a factor, for good, and nothing that the model computes.

    What follows the block is as if its input were multiplied. With a head that shares the embedding's weights, the
    final norm's weights are divided by the factor, so that the logits stay what they are and the head stays tied.

    Args:
        model: a causal language model, changed in place.
        block: the block, 0 to L; L is the final norm.
        by: the factor, positive.

    Raises:
        NotApplicable: as `check`.
    """
    stack = decoder_stack(model)
    check(stack)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    blocks.change(embedding, blocks.double(embedding) * by)
    for part in blocks.pre_norm_blocks(stack, TITLE)[:block]:
        for projection in (part.attention_out, part.mlp_out):
            for parameter in projection.parameters():
                blocks.change(parameter, blocks.double(parameter) * by)
    if head is embedding:
        norm = stack.final[0]
        # Some norms multiply by one plus their weight: seen on a state of length one a channel and of mean zero.
        probe = torch.ones_like(norm.weight)
        probe[1::2] = -1
        shift = round((norm(probe[None, None])[0, 0] / probe - norm.weight).float().mean().item())
        blocks.change(norm.weight, (blocks.double(norm.weight) + shift) / by - shift)
    return model


CARD = Card(
    title=TITLE,
    does="removes blocks as ShortGPT does, and scales what comes before each gap",
    paper="Chen et al. 2025, arXiv 2507.18212",
    code="",
    settings="Block Influence, one block at a time, compensated and scored anew (paper)",
    changed="only the paper's abstract was at hand: the factor is the ratio of mean norms after and before the "
    "gap, without each text's first token (ours); with a tied head the final norm's weights are divided by the "
    "factors, so that the head need not be untied (ours); a gap before the final norm needs no factor",
)


@dataclass(frozen=True)
class MagnitudeCompensation(ReadsAll):
    """Removes the blocks of lowest Block Influence, and makes up for each gap by a factor.

    Attributes:
        iterative: one block at a time, scores and factor taken anew from the model as it then is (the paper's loop);
            else all blocks by one order, and the factors of their gaps from the whole model.
        first_token: see `factor`.
    """

    iterative: bool = True
    first_token: bool = False
    draws: bool = True
    card: Card = CARD

    def plans(self, shapes: nn.Module) -> list[Plan]:
        """See `Method`."""
        check(decoder_stack(shapes))
        return blocks.plans(shapes, iterative=self.iterative, first_token=self.first_token)

    def passes(self, plan: Plan, num_blocks: int) -> float:
        """See `Method`."""
        return float(plan.blocks if plan.settings["iterative"] else 1)

    def apply(self, model: nn.Module, text: TokenBlocks, plan: Plan) -> nn.Module:
        """See `Method`; as many passes over the text as blocks go, or one. Memory: as `activations.collect`."""
        left, ids = blocks.number(plan, model), blocks.calibration(text)
        while left:
            sums = activations.collect(decoder_stack(model), ids)
            removed = _lowest(sums, 1 if plan.settings["iterative"] else left)
            for start, end in runs(removed):
                if end < sums.num_blocks:
                    scale(model, start, factor(sums, start, end, plan.settings["first_token"]))
            surgery.cut(model, removed)
            left -= len(removed)
        return model


def _lowest(sums: ActivationSums, number: int) -> list[int]:
    order: np.ndarray = importance.removal_order(importance.scores(sums, "block_influence"), "block_influence")
    return order[:number].tolist()
