"""The block that makes a text's first token large, in notebook 02: what it writes, and what its loss breaks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from layer_redundancy.core import stats, variants, verdicts
from layer_redundancy.core.store import Result
from layer_redundancy.core.verdicts import Statement
from layer_redundancy.evaluate import first_token as patched
from layer_redundancy.evaluate.amounts import Pass, Work
from layer_redundancy.evaluate.first_token import CONDITIONS, GIVEN_BACK, ONLY_FIRST, WHOLE, WITHOUT
from layer_redundancy.evaluate.scoring import ChoiceTask
from layer_redundancy.experiments import capabilities, result_tables
from layer_redundancy.experiments.capabilities import TEXT, Capability
from layer_redundancy.inputs import first_blocks
from layer_redundancy.measures.activations import ActivationSums
from layer_redundancy.study import Study

VERSION = 1  # raise it when what is kept of a run means something else
OUTSIZED = 5.0  # times the others' mean norm, from which on a first token's state counts as outsized
TEXTS = 16  # blocks of evaluation text at most
ITEMS = result_tables.DRAWN  # of each task at most, the first
UNDONE = "giving the first token its state back undoes most of what the loss of its block costs"


@dataclass(frozen=True, eq=False)
class FirstToken:
    """The block that makes the first token large, and what follows without it.

    Attributes:
        block: its index.
        text: `evaluate.first_token.of_text`.
        items: task -> condition -> result.
    """

    block: int
    text: Result
    items: Mapping[str, Mapping[str, Result]]

    def nll(self) -> np.ndarray:
        """(C, N) mean loss a token of each block of text under each condition, nats."""
        return self.text.arrays["nll"].mean(-1)

    def capabilities(self) -> list[Capability]:
        """Text and tasks under CONDITIONS, in their order."""
        tasks = [capabilities.of_task(task, of, list(CONDITIONS)) for task, of in self.items.items()]
        return [Capability(TEXT, self.nll().T), *tasks]

    def claim(self, resamples: int, seed: int) -> pd.DataFrame:
        """`UNDONE` on text, for `verdicts.verdicts`: the share that is undone is more than a half."""
        whole, without, given, _ = self.nll()

        def statements(mean: np.ndarray) -> list[Statement]:
            share = (mean[1] - mean[2]) / (mean[1] - mean[0]) if mean[1] > mean[0] else np.nan
            return [Statement(UNDONE, share, 0.5, "above", 0.25)]

        return verdicts.judge(statements, np.stack([whole, without, given], axis=1), resamples, seed, TEXT)


def block_of(sums: ActivationSums) -> int | None:
    """The block after which the first token's norm, in units of the others' mean norm, has grown most; None where it is
    below OUTSIZED of them after every block."""
    others = ((sums.norm - sums.first_norm) / np.maximum(sums.tokens - 1, 1)[:, None]).mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        times = sums.first_norm.mean(0) / others  # (L + 1,)
        growth = times[1:] / times[:-1]
    growth[~(np.isfinite(growth) & (times[1:] >= OUTSIZED))] = 0
    return int(np.argmax(growth)) if growth.any() else None


def measure(study: Study) -> FirstToken | None:
    """Runs text and the profile's tasks with that block for the first token, for the others, for both and for none."""
    block, num = block_of(study.activation_sums()), study.num_blocks
    if block is None or block == num - 1:
        return None
    text = first_blocks(study.evaluation, TEXTS)
    batch = study.profile.batch_tokens
    later = num - block - 1

    def work(tokens: int, conditions: int) -> list[Work]:
        return [Pass(tokens * (block + 1 + conditions * later))]

    of_text = study.cached(
        study.key("first_token", VERSION, data=text.fingerprint, settings={"block": block}),
        lambda: patched.of_text(study.stack, text, block, batch),
        lambda: _zeros(len(text.input_ids), text.input_ids.shape[1], num),
        lambda: work(text.num_tokens, len(CONDITIONS)),
    )
    chosen = {WHOLE: study.dense, WITHOUT: variants.without(num, [block])}
    swept = study.sweep(list(chosen.values()))
    items = {}
    for whole in study.tasks:
        task = ChoiceTask(whole.items.parts(ITEMS)[0])
        known = {name: _first_items(swept[task.name][variant], task) for name, variant in chosen.items()}
        items[task.items.name] = _of_task(study, task, block, known, work)
    return FirstToken(block, of_text, items)


def _of_task(
    study: Study,
    task: ChoiceTask,
    block: int,
    known: Mapping[str, Result],
    work: Callable[[int, int], Sequence[Work]],
) -> dict[str, Result]:
    """Results of a task under all conditions; `known` has those of the whole model and without the block."""
    patches, batch = (GIVEN_BACK, ONLY_FIRST), study.profile.batch_tokens
    amount = getattr(task.items, "amount", None)  # a plan knows no more
    tokens = amount.tokens if amount else sum(len(sequence.input_ids) for sequence in task.sequences)
    stored = study.cached(
        study.key("first_token", VERSION, data=task.data, settings={"block": block, "task": task.settings}),
        lambda: _packed(patched.of_items(study.stack, task, block, patches, batch)),
        lambda: _packed(dict.fromkeys(patches, known[WHOLE])),
        lambda: work(tokens, len(patches)),
    )
    results = {**known, **{name: _unpacked(stored, name, known[WHOLE]) for name in patches}}
    return {name: results[name] for name in CONDITIONS}


def _first_items(result: Result, task: ChoiceTask) -> Result:
    """What was right, and the right choice's share, of a task's items, which may be the first of the result's."""
    metric = result_tables.accuracy_metric(result)
    assert metric is not None, "of a task"
    names = (metric, "gold_share")
    return Result(result.summary, {name: result.arrays[name][: task.items.num_items] for name in names})


def _packed(results: Mapping[str, Result]) -> Result:
    """What is kept of a task's results under conditions: of each, what was right, and the right choice's share."""
    arrays = {}
    for name, result in results.items():
        arrays[f"right/{name}"] = result_tables.right(result)
        arrays[f"gold_share/{name}"] = result.arrays["gold_share"]
    return Result({}, arrays)


def _unpacked(stored: Result, name: str, like: Result) -> Result:
    metric = result_tables.accuracy_metric(like)
    assert metric is not None, "of a task"
    right = stored.arrays[f"right/{name}"]
    arrays = {metric: right, "gold_share": stored.arrays[f"gold_share/{name}"]}
    return Result({**like.summary, metric: float(right.mean())}, arrays)


def _zeros(blocks: int, length: int, num_blocks: int) -> Result:
    conditions = len(CONDITIONS)
    norms = np.ones((conditions, num_blocks + 1))
    # So that the block's loss costs something, as it does where there is such a block.
    nll = np.ones((conditions, blocks, length - 1)) * np.array([1.0, 2.0, 1.2, 1.8])[:, None, None]
    return Result(
        {"alike": 1.0},
        {"nll": nll, "first_norm": norms, "other_norm": norms, "written": np.ones(1), "attention": norms[:2, 1:]},
    )


# ------------------------------------------------------------------------------------------------------------- tables


def writes(found: FirstToken) -> pd.DataFrame:
    """What the block writes.

    Returns:
        state (0 to L: before block `state`), whole and without (mean norm of the first token's state in the whole
        model and without the block), others (mean norm of the other tokens', whole model), attention_whole and
        attention_without (share of their attention that later tokens pay to the first, in the block after the state;
        NaN for the last state, and where it is not known).
    """
    first, attention = found.text.arrays["first_norm"], found.text.arrays["attention"]
    names = list(CONDITIONS)
    last = np.full((2, 1), np.nan)
    whole, without = np.concatenate([attention, last], axis=1)
    return pd.DataFrame(
        {
            "state": np.arange(first.shape[1]),
            "whole": first[names.index(WHOLE)],
            "without": first[names.index(WITHOUT)],
            "others": found.text.arrays["other_norm"][names.index(WHOLE)],
            "attention_whole": whole,
            "attention_without": without,
        }
    )


def channels(found: FirstToken) -> tuple[int, int, float]:
    """How many channels hold 90 % of what the block adds to the first token; the largest channel, and its share."""
    share = found.text.arrays["written"]
    largest = int(np.argmax(share))
    return int((np.sort(share)[::-1].cumsum() < 0.9 * share.sum()).sum() + 1), largest, float(share[largest])


def breaks(found: FirstToken) -> pd.DataFrame:
    """What is lost under each condition against the whole model, paired.

    Returns:
        on, unit, condition, damage, low, high, n; columns of `capabilities.damage`.
    """
    table = capabilities.damage(found.capabilities())
    return table.assign(condition=[list(CONDITIONS)[place] for place in table.pop("place")])


def undone(found: FirstToken, resamples: int, seed: int) -> pd.DataFrame:
    """How much of what the loss of the block costs is undone where the first token has its state back.

    Returns:
        A row a capability that is seen to lose nats without the block: on, share (1: all of it) with its 95 % interval
        low, high.
    """
    rows, names = [], list(CONDITIONS)
    for one in found.capabilities():
        if not one.in_nats:
            continue
        harm = one.damage(capabilities.NATS)[:, [names.index(WITHOUT) - 1, names.index(GIVEN_BACK) - 1]]
        if stats.mean_interval(harm[:, 0])[0] > 0:
            lost, remains = stats.bootstrap_means(harm, resamples, seed).T
            share = 1 - harm[:, 1].mean() / harm[:, 0].mean()
            rows.append((one.name, share, *stats.interval(share, 1 - remains / lost, one.units)))
    return pd.DataFrame(rows, columns=["on", "share", "low", "high"])


def by_position(found: FirstToken) -> pd.DataFrame:
    """Loss of text against the whole model by place in the text, places in doubling stretches.

    Returns:
        condition, first, last (places of the predicted tokens, 1 the second of the text), damage with its 95 % interval
        low, high over blocks of text.
    """
    nll = found.text.arrays["nll"].astype(float)
    rows = []
    for place, name in list(enumerate(CONDITIONS))[1:]:
        start = 0
        while start < nll.shape[-1]:
            end = min(2 * start + 1, nll.shape[-1])
            paired = (nll[place, :, start:end] - nll[0, :, start:end]).mean(-1)
            low, high = stats.mean_interval(paired)
            rows.append((name, start + 1, end, paired.mean(), low, high))
            start = end
    return pd.DataFrame(rows, columns=["condition", "first", "last", "damage", "low", "high"])


def in_words(found: FirstToken, undone: pd.DataFrame) -> str:
    """What the figures of this block show, in a sentence or two; the second argument from `undone`."""
    table = writes(found)
    jump = table["whole"][found.block + 1] / table["others"][found.block + 1]
    count, largest, share = channels(found)
    said = (
        f"Block {found.block} makes the first token's state {jump:.0f} times as large as the others', {share:.0%} of "
        f"it in channel {largest} ({'one channel holds' if count == 1 else f'{count} channels hold'} 90 %)."
    )
    parts = [
        f"{100 * row['share']:.0f} % ({100 * row['low']:.0f} to {100 * row['high']:.0f}) of what {row['on']} loses"
        for row in undone.to_dict("records")
    ]
    if not parts:
        return said
    return f"{said} To give the first token that state back undoes {_listed(parts)} without the block."


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
