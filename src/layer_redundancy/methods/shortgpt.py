"""Removing the blocks that an order names first: ShortGPT's Block Influence, and SLEB's greedy order."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from layer_redundancy.core.variants import Element, Variant
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.evaluate.trie import depth_first, trie
from layer_redundancy.measures import activations, greedy, importance
from layer_redundancy.methods import blocks
from layer_redundancy.methods.blocks import ReadsAll
from layer_redundancy.methods.method import Card, Plan
from layer_redundancy.models import surgery
from layer_redundancy.models.stack import BlockCalls, DecoderStack, decoder_stack

SHORTGPT_CARD = Card(
    title="ShortGPT",
    does="removes the blocks that turn the residual stream least",
    paper="Men et al. 2024, arXiv 2403.03853",
    code="icip-cas/ShortGPT",
    settings="the n blocks of lowest Block Influence go, all scored on the whole model (paper)",
    code_differs="scores the last block's output after the final norm",
    changed="the last block's output is taken before the final norm, as the residual stream that the paper writes "
    "of; cosines are means over all tokens, computed in float64; of equals the deeper block goes",
)


@dataclass(frozen=True)
class ShortGPT(ReadsAll):
    """Removes the blocks of lowest Block Influence, all scored once on the whole model (Men et al. 2024, eq. 2)."""

    draws: bool = True
    card: Card = SHORTGPT_CARD

    def plans(self, shapes: nn.Module) -> list[Plan]:
        """See `Method`."""
        return blocks.plans(shapes)

    def passes(self, plan: Plan, num_blocks: int) -> float:
        """See `Method`."""
        return 1.0

    def apply(self, model: nn.Module, text: TokenBlocks, plan: Plan) -> nn.Module:
        """See `Method`; memory: the model and all residual states of one batch of about 2048 tokens."""
        removed = blocks.number(plan, model)
        if not removed:
            return model
        sums = activations.collect(decoder_stack(model), blocks.calibration(text))
        order = importance.removal_order(importance.scores(sums, "block_influence"), "block_influence")
        return surgery.cut(model, order[:removed].tolist())


SLEB_CARD = Card(
    title="SLEB",
    does="removes one block after the other, each time the one that costs the least loss",
    paper="Song et al. 2024, arXiv 2402.09025",
    code="jiwonsong-dev/SLEB",
    settings="greedy: each step removes the block whose removal leaves the lowest loss on calibration text, all "
    "blocks that are left are tried (paper: 128 texts)",
    code_differs="never removes the first and the last block (its early_barrier and latter_barrier, 1 each)",
    changed="the first and the last block may go too, unless keep_ends; the public code reads WikiText-2's training "
    "split, this study its own calibration text; of equals the deeper block goes",
)


@dataclass(frozen=True)
class SLEB(ReadsAll):
    """Removes, again and again, the block whose removal costs the least loss on calibration text (Song et al. 2024).

    Attributes:
        keep_ends: never remove the first and the last block, as the public code does by default.
        shortlist: share of the blocks that are left that are tried at a step; see `greedy.removal_order`.
    """

    keep_ends: bool = False
    shortlist: float = 1.0
    draws: bool = True
    card: Card = SLEB_CARD

    def plans(self, shapes: nn.Module) -> list[Plan]:
        """See `Method`."""
        most = max(0, len(decoder_stack(shapes)) - 2) if self.keep_ends else None
        return blocks.plans(shapes, most, keep_ends=self.keep_ends, shortlist=self.shortlist)

    def passes(self, plan: Plan, num_blocks: int) -> float:
        """See `Method`; a model of n blocks runs half of them anew, if its neighbours are tried too."""
        left = [num_blocks - gone for gone in range(plan.blocks)]
        tried = [n * (plan.settings["shortlist"] if gone else 1.0) for gone, n in enumerate(left)]
        return sum(n * count for n, count in zip(left, tried, strict=True)) / (2 * num_blocks)

    def apply(self, model: nn.Module, text: TokenBlocks, plan: Plan) -> nn.Module:
        """See `Method`.

        About n * L / 2 block forwards a token for n of L blocks: what candidates begin with runs once. Memory: the
        model and a few states of one batch.
        """
        removed = blocks.number(plan, model)
        if not removed:
            return model
        stack = decoder_stack(model)
        last = len(stack) - 1

        def cost(tried: Sequence[Variant]) -> list[float]:
            whole = [v for v in tried if not plan.settings["keep_ends"] or (v[0] == 0 and v[-1] == last)]
            found = dict(zip(whole, losses(stack, text, whole), strict=True))
            return [found.get(variant, float("inf")) for variant in tried]

        order = greedy.removal_order(len(stack), cost, plan.settings["shortlist"], steps=removed)
        return surgery.cut(model, order[:removed].tolist())


@torch.no_grad()
def losses(
    stack: DecoderStack, text: TokenBlocks, variants: Sequence[Variant], batch_tokens: int = 2048
) -> list[float]:
    """Mean negative log-likelihood a token of each variant, nats; every token but a block's first is scored.

    Args:
        stack: the model taken apart.
        text: calibration text.
        variants: tuples of the blocks that run; what several begin with runs once a batch.
        batch_tokens: tokens a forward may hold.
    """
    ids = blocks.calibration(text)
    sums, root = dict.fromkeys(variants, 0.0), trie(variants)
    for batch in blocks.batches(ids, batch_tokens):
        hidden, calls = stack.start(batch)
        run = partial(_run_block, stack, calls)
        for variant, last in depth_first(root, hidden, run):
            sums[variant] += blocks.negative_log_likelihood(stack, last, batch)
    return [sums[variant] / (ids.shape[0] * (ids.shape[1] - 1)) for variant in variants]


def _run_block(stack: DecoderStack, calls: BlockCalls, element: Element, state: Tensor, _: dict) -> Tensor:
    assert isinstance(element, int), "whole blocks"
    return stack.run_block(element, state, calls)
