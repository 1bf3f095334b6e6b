"""Methods as changes of blocks, so that a sweep measures many of their models at once and the store keeps the results.

A changed block's key is a hash of the model, the text and the settings: it is known before anything is computed.
"""

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from layer_redundancy.core import flags, variants
from layer_redundancy.core.arguments import number, shown, whole
from layer_redundancy.core.errors import NotApplicable, StudyError
from layer_redundancy.core.store import settings_text
from layer_redundancy.core.variants import Changed, Variant
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.evaluate.amounts import Pass
from layer_redundancy.evaluate.changes import Apply
from layer_redundancy.measures.activations import ActivationSums
from layer_redundancy.methods import blocks, magnitude_compensation, replace_me
from layer_redundancy.methods.replace_me import Run
from layer_redundancy.models.attributes import attributes
from layer_redundancy.models.checkpoints import ModelIdentity
from layer_redundancy.models.stack import DecoderStack

VERSION = 1  # raise it when a map or a factor is computed in another way
MAPS_A_BLOCK = 10  # maps whose sums take as long as a block, about


def _key(kind: str, identity: ModelIdentity, text: TokenBlocks, **settings: Any) -> str:
    parts = {"kind": kind, "model": identity.fingerprint, "text": text.fingerprint, "version": VERSION, **settings}
    return hashlib.sha256(settings_text(parts).encode()).hexdigest()[: variants.KEY_DIGITS]


@dataclass(frozen=True, eq=False)
class RunMaps:
    """Runs of blocks, each with the linear map of ReplaceMe in its place: `changes` of a sweep.

    Attributes:
        identity: the model.
        text: the calibration text that maps are fitted to.
        ridge: see `replace_me.RunSums.map`.
    """

    identity: ModelIdentity
    text: TokenBlocks
    ridge: float = 0.0

    def __post_init__(self) -> None:
        """Raises StudyError for evaluation text, or no ridge."""
        blocks.calibration(self.text)
        if number(self.ridge, "a ridge") < 0:
            raise StudyError(f"a ridge must be 0 or more, not {shown(self.ridge)}")

    def variant(self, run: Run) -> Variant:
        """The model with the map of a run of n blocks from a on in its place; the map is part of block a-1.

        Raises:
            StudyError: there is no map of the run (a, n).
        """
        a, n = (whole(part, "the first block of a run, and its length,") for part in run)
        replace_me.check_run((a, n), self.identity.num_hidden_layers)
        kept = variants.block_removal(self.identity.num_hidden_layers, a, n)
        return tuple(self._changed((a, n)) if block == a - 1 else block for block in kept)

    def _changed(self, run: Run) -> Changed:
        return Changed(run[0] - 1, _key("map", self.identity, self.text, run=run, ridge=float(self.ridge)))

    @cached_property
    def _runs(self) -> dict[Changed, Run]:
        return {self._changed(run): run for run in replace_me.every_run(self.identity.num_hidden_layers)}

    def _found(self, changed: Sequence[Changed]) -> list[Run]:
        if odd := [one for one in changed if one not in self._runs]:
            raise _unknown(odd[0], "maps of runs")
        return [self._runs[one] for one in changed]

    def __call__(self, stack: DecoderStack, changed: Sequence[Changed]) -> Apply:
        """The maps of these runs, from one pass over the text.

        Memory: as `replace_me.collect` for these runs, whose sums give way to maps of the same size one by one; while
        a block runs, its MLP's output projection once more. The maps are let go of with the function returned.

        Raises:
            NotApplicable: as `replace_me.collect`; weights that are not in memory.
            StudyError: a change of another kind; too little text.
        """
        runs, parts = self._found(changed), blocks.pre_norm_blocks(stack, replace_me.TITLE)
        if any(part.mlp_out.weight.device.type == "meta" for part in parts):
            raise NotApplicable(f"{replace_me.TITLE} needs a model whose weights are all in memory: take a smaller one")
        maps = replace_me.collect(stack, self.text.input_ids, runs).use_up(self.ridge)

        def apply(one: Changed) -> AbstractContextManager[None]:
            return replace_me.folded(parts[one.block], maps[self._runs[one]])

        return apply

    def work(self, changed: Sequence[Changed]) -> list[Pass]:
        """One pass as deep as the runs reach, and sums that take a tenth of a block a run."""
        runs = self._found(changed)
        return [Pass(self.text.num_tokens * (max(map(sum, runs)) + len(runs) // MAPS_A_BLOCK))]


@dataclass(frozen=True, eq=False)
class GapFactors:
    """Removed blocks whose gaps are closed by the factors of magnitude compensation: `changes` of a sweep.

    Attributes:
        identity: the model.
        text: the calibration text that the sums are of.
        sums: sums of the whole model, which the factors of all gaps are from.
        first_token: see `magnitude_compensation.factor`.
    """

    identity: ModelIdentity
    text: TokenBlocks
    sums: ActivationSums
    first_token: bool = False

    def __post_init__(self) -> None:
        """Raises StudyError for evaluation text, or a flag that is none."""
        flags.check_fields(self)
        blocks.calibration(self.text)

    def variant(self, removed: Iterable[int]) -> Variant:
        """The model without some blocks; each block after a gap gets the residual stream times the gap's factor.

        Raises:
            StudyError: as `variants.without`.
        """
        num = self.identity.num_hidden_layers
        kept = variants.without(num, removed)
        starts = {end: start for start, end in magnitude_compensation.runs(variants.removed_blocks(num, kept))}
        return tuple(self._changed(starts[block], block) if block in starts else block for block in kept)

    def _changed(self, start: int, end: int) -> Changed:
        gap = _key("factor", self.identity, self.text, gap=(start, end), first_token=self.first_token)
        return Changed(end, gap)

    @cached_property
    def _starts(self) -> dict[Changed, int]:
        """The first block of each gap that ends before a block."""
        num = self.identity.num_hidden_layers
        return {self._changed(start, end): start for end in range(1, num) for start in range(end)}

    def __call__(self, stack: DecoderStack, changed: Sequence[Changed]) -> Apply:
        """The factors of these gaps, which take no memory.

        Raises:
            NotApplicable: as `magnitude_compensation.check`.
            StudyError: a change of another kind.
        """
        magnitude_compensation.check(stack)
        if odd := [one for one in changed if one not in self._starts]:
            raise _unknown(odd[0], "factors of gaps")

        def apply(one: Changed) -> AbstractContextManager[None]:
            factor = magnitude_compensation.factor(self.sums, self._starts[one], one.block, self.first_token)
            block = stack.blocks[one.block]
            own = block.forward

            def forward(hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
                return own(hidden_states * factor, *args, **kwargs)

            return attributes((block, "forward", forward))

        return apply

    def work(self, changed: Sequence[Changed]) -> list[Pass]:
        """None: the sums are there."""
        return []


def _unknown(changed: Changed, what: str) -> StudyError:
    return StudyError(
        f"the change {changed.key} of block {changed.block} is none of these {what}: another model, text or setting "
        "was given when the variant was made"
    )
