"""LaCo: runs of blocks collapse into their first one, as long as the model's last hidden states stay alike.

Block l takes in the m blocks after it (Yang et al. 2024, eq. 1 and 2, RDSC: reserve the differences, seek the common),

    theta*_l = theta_l + sum over k = 1..m of (theta_{l+k} - theta_l)

for the weights theta of its linear layers. The two public notebooks do something else: they subtract what the base has
become by then, theta_l <- theta_l + (theta_{l+k} - theta_l), one k after the other, so that theta_{l+m} remains,
between the norms of block l. Both are here, as two methods.

A merged model is made of sums of the whole model's weights. So the search for it handles coefficients, and weights are
added up only for as long as a trial runs: no copies of the model.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import takewhile

import torch
from torch import Tensor, nn

from layer_redundancy.core import flags
from layer_redundancy.core.errors import StudyError
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.methods import blocks
from layer_redundancy.methods.method import Card, Plan
from layer_redundancy.models import surgery
from layer_redundancy.models.stack import DecoderStack, decoder_stack

logger = logging.getLogger(__name__)

TITLE = "LaCo"
STEP = 20  # thresholds are multiples of 1/20, as all published ones are


@dataclass(frozen=True)
class Merged:
    """A block of a merged model.

    Attributes:
        base: the whole model's block that it was: its norms, and all else that is no linear layer.
        weights: (block of the whole model, coefficient) of what its linear layers are the sum of; ascending, none 0.
    """

    base: int
    weights: tuple[tuple[int, float], ...]


State = tuple[Merged, ...]


@dataclass(frozen=True)
class Loop:
    """What the loop over blocks goes by (Yang et al. 2024, algorithm 1; the notebooks' names in brackets).

    Attributes:
        merged: C, blocks that become one in a merge (MERGE_LAYERS).
        interval: I, blocks to go back after a merge (INTERVAL).
        highest: H (HIGHEST_LAY).
        lowest: L, the first block that may take in others (LOWEST_LAY).
    """

    merged: int
    interval: int
    highest: int
    lowest: int


def whole(num_blocks: int) -> State:
    """The model before any merge."""
    return tuple(Merged(i, ((i, 1.0),)) for i in range(num_blocks))


@flags.checked
def merge(state: State, block: int, number: int, as_printed: bool) -> State:
    """A block of a merged model takes in the blocks after it.

    Args:
        state: the model.
        block: index in it.
        number: blocks that are taken in.
        as_printed: as the paper has it, or else as the notebooks do it.
    """
    base, taken = state[block], state[block + 1 : block + 1 + number]
    if as_printed:
        sums = {i: (1 - len(taken)) * c for i, c in base.weights}
        for other in taken:
            for i, c in other.weights:
                sums[i] = sums.get(i, 0.0) + c
        weights = tuple((i, c) for i, c in sorted(sums.items()) if c)
    else:
        weights = taken[-1].weights if taken else base.weights
    return (*state[:block], Merged(base.base, weights), *state[block + 1 + len(taken) :])


@flags.checked
def collapse(
    num_blocks: int,
    similarity: Callable[[State], float],
    threshold: float,
    loop: Loop,
    as_printed: bool,
    most: int | None = None,
) -> State:
    """Merges blocks from the back to the front, each time that the model stays similar.

    Args:
        num_blocks: of the whole model.
        similarity: how alike a merged model and the whole one are; a merge counts where it is above `threshold`.
        threshold: T.
        loop: the other settings.
        as_printed: see `merge`.
        most: blocks that are to go in all; the last merge takes in fewer where the rest would be too many.
    """
    state = whole(num_blocks)
    most = num_blocks if most is None else most
    block = loop.highest - loop.merged
    while block >= loop.lowest and num_blocks - len(state) < most:
        number = min(loop.merged - 1, len(state) - block - 1, most - (num_blocks - len(state)))
        trial = merge(state, block, number, as_printed)
        if similarity(trial) > threshold:
            state = trial
            block -= loop.interval  # never beyond the last block, which the notebooks look at here
        else:
            block -= 1
    return state


def most_merged(num_blocks: int, loop: Loop) -> int:
    """How many blocks go when every merge counts."""
    return num_blocks - len(collapse(num_blocks, lambda _: 1.0, 0.0, loop, True))


@flags.checked
def search(
    num_blocks: int, similarity: Callable[[State], float], loop: Loop, as_printed: bool, number: int
) -> tuple[State, float]:
    """The merged model that lacks a number of blocks, and the threshold T that gives it.

    T is the highest multiple of 1/20 at which so many blocks go.

    Args:
        num_blocks, similarity, loop, as_printed: as for `collapse`.
        number: blocks to go.

    Raises:
        StudyError: so many do not go at any T.
    """
    similarity = cache(similarity)
    for step in range(STEP - 1, -STEP - 2, -1):  # cosines are above -1.05
        state = collapse(num_blocks, similarity, step / STEP, loop, as_printed, number)
        if num_blocks - len(state) == number:
            return state, step / STEP
    raise StudyError(f"{TITLE} does not merge away {number} of {num_blocks} blocks: give a lower number")


# ------------------------------------------------------------------------------------------------ weights


def _tensors(block: nn.Module) -> dict[str, nn.Parameter]:
    """Weights and biases of a block's linear layers, by their names in it."""
    return {
        f"{name}.{own}": parameter
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
        for own, parameter in module.named_parameters(recurse=False)
    }


@torch.no_grad()
def _changed(model: nn.Module, state: State) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Parameters of a merged model that are not those of the whole one, with their new values."""
    of_blocks = [_tensors(block) for block in decoder_stack(model).blocks]
    for merged in state:
        if merged.weights == ((merged.base, 1.0),):
            continue
        if len(merged.weights) == 1 and merged.weights[0][1] == 1:  # another block's weights, which need no sum
            (other, _), *_ = merged.weights
            yield from ((p, of_blocks[other][name].data) for name, p in of_blocks[merged.base].items())
            continue
        for name, parameter in of_blocks[merged.base].items():
            # At least float32, so that bf16 rounds the sum once and not every term.
            terms = [
                c * of_blocks[i][name].to(torch.promote_types(parameter.dtype, torch.float32))
                for i, c in merged.weights
            ]
            yield parameter, sum(terms[1:], start=terms[0]).to(parameter.dtype)


def _gone(num_blocks: int, state: State) -> list[int]:
    return sorted(set(range(num_blocks)) - {merged.base for merged in state})


@contextmanager
def merged_for_a_while(model: nn.Module, state: State) -> Iterator[nn.Module]:
    """The model as a merged one, put back on exit and on error; memory: the weights of the blocks that changed."""
    changes = list(_changed(model, state))
    old = [parameter.data for parameter, _ in changes]
    try:
        for parameter, value in changes:
            parameter.data = value
        with surgery.without_layers(model, _gone(len(decoder_stack(model)), state)):
            yield model
    finally:
        for (parameter, _), value in zip(changes, old, strict=True):
            parameter.data = value


def merged(model: nn.Module, state: State) -> nn.Module:
    """The model as a merged one, for good."""
    for parameter, value in list(_changed(model, state)):
        parameter.data = value
    return surgery.cut(model, _gone(len(decoder_stack(model)), state))


@torch.no_grad()
def last_hidden(model: nn.Module, input_ids: Tensor) -> Tensor:
    """What the head gets, after the final norm; int64 (texts, length) -> (texts, length * d) float64."""
    return _flat(decoder_stack(model), _states(model, input_ids)[-1])


def _states(model: nn.Module, input_ids: Tensor) -> list[Tensor]:
    """The residual stream before each block and after the last."""
    stack = decoder_stack(model)
    hidden, calls = stack.start(input_ids)
    states = [hidden]
    for index in range(len(stack)):
        states.append(stack.run_block(index, states[-1], calls))
    return states


def _flat(stack: DecoderStack, hidden: Tensor) -> Tensor:
    for module in stack.final:
        hidden = module(hidden)
    return blocks.double(hidden).flatten(1)


@torch.no_grad()
def similarity_to(model: nn.Module, input_ids: Tensor) -> Callable[[State], float]:
    """Compares merged models with a whole one, by the mean over texts of the cosine of their flattened last states.

    A merged model is the whole one up to its first merged block, and runs from there on. Memory: the residual stream of
    the texts before each block.

    Args:
        model: the whole model, which is as it was after each comparison; each merged one is compared once.
        input_ids: int64 (texts, length), no padding.
    """
    states = _states(model, input_ids)
    wanted = _flat(decoder_stack(model), states[-1])

    @cache
    @torch.no_grad()
    def similarity(state: State) -> float:
        alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(state, whole(len(state)), strict=True)))
        with merged_for_a_while(model, state):
            stack, hidden = decoder_stack(model), states[alike]
            _, calls = stack.start(input_ids)
            for index in range(alike, len(stack)):
                hidden = stack.run_block(index, hidden, calls)
            return torch.cosine_similarity(_flat(stack, hidden), wanted, dim=-1).mean().item()

    return similarity


# ------------------------------------------------------------------------------------------------ methods

_SETTINGS = (
    "C 4, I 2, L 1, H the number of blocks, as reported for 7B models; compared on 10 texts of 32 tokens (paper: 10 "
    "sentences of Wikipedia; notebooks: 2 to 5)"
)
_OURS = (
    "a share is reached by the highest threshold, in steps of 0.05, at which so many blocks go, the last merge taking "
    "in no more than that; the texts are the beginnings of blocks of calibration text; biases of linear layers, which "
    "Llama has not, are merged like weights, norms stay those of the first block; no copy of the model for each trial"
)


@dataclass(frozen=True)
class LaCo:
    """Merges blocks until so many are gone, as the paper prints it or as the public notebooks do it.

    Attributes:
        as_printed: see `merge`.
        merged, interval, lowest: C, I and L, see `Loop`; H is the number of blocks.
        texts, tokens: how many texts are compared, and how many of each one's first tokens.
    """

    as_printed: bool
    merged: int = 4
    interval: int = 2
    lowest: int = 1
    texts: int = 10
    tokens: int = 32
    draws: bool = True

    @property
    def card(self) -> Card:
        """See `Method`."""
        return Card(
            title=TITLE + (" (as printed)" if self.as_printed else " (as its code)"),
            does="merges the weights of runs of blocks into their first one",
            paper="Yang et al. 2024, arXiv 2402.11187",
            code="yangyifei729/LaCo",
            settings=_SETTINGS,
            code_differs="subtracts the base as it has become by then, so that the last merged block's linear weights "
            "remain between the first one's norms: not the paper's sum of differences",
            changed=_OURS,
        )

    def loop(self, num_blocks: int) -> Loop:
        """The loop's settings for a model of so many blocks; fewer blocks become one in a model that has few."""
        return Loop(
            max(2, min(self.merged, num_blocks - 1)), self.interval, num_blocks, min(self.lowest, num_blocks - 2)
        )

    def plans(self, shapes: nn.Module) -> list[Plan]:
        """See `Method`; the loop cannot merge all blocks into one."""
        stack = decoder_stack(shapes)
        blocks.pre_norm_blocks(stack, TITLE)
        most = most_merged(len(stack), self.loop(len(stack))) if len(stack) > 1 else 0
        settings = {
            name: getattr(self, name) for name in ("as_printed", "merged", "interval", "lowest", "texts", "tokens")
        }
        return blocks.plans(shapes, most, **settings)

    def reads(self, text: TokenBlocks) -> TokenBlocks:
        """The beginnings of the first blocks, as many and as long as are compared."""
        return replace(text, input_ids=text.input_ids[: self.texts, : self.tokens])

    def passes(self, plan: Plan, num_blocks: int) -> float:
        """See `Method`: a few trials a block."""
        return 4.0 * num_blocks

    def outline(self, shapes: nn.Module, text: TokenBlocks, plan: Plan) -> nn.Module:
        """See `Method`."""
        return blocks.outline(shapes, text, plan)

    def apply(self, model: nn.Module, text: TokenBlocks, plan: Plan) -> nn.Module:
        """See `Method`.

        A forward on a few texts for each trial, a few hundred at most; memory: the model and the weights of the blocks
        that changed.
        """
        number = blocks.number(plan, model)
        if not number:
            return model
        kind = LaCo(**{name: value for name, value in plan.settings.items() if name != "blocks"})
        stack, ids = decoder_stack(model), blocks.calibration(kind.reads(text))
        found, threshold = search(len(stack), similarity_to(model, ids), kind.loop(len(stack)), kind.as_printed, number)
        logger.info(f"{kind.card.title} merges {number} of {len(stack)} blocks at a threshold of {threshold:g}")
        return merged(model, found)
