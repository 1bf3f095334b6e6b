"""Results -> tidy tables, one row a point of a figure; what figures and CSV files hold."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from layer_redundancy.core import stats, variants
from layer_redundancy.core.store import Result
from layer_redundancy.core.variants import Variant

DRAWN = 200  # items: no accuracy is drawn on fewer, unless the user asked for fewer


def plain_forwards_note(checked: Sequence[Variant], deviation: float) -> str:
    """How well a sweep agrees with plain forwards of some variants, by their largest difference in nats a token."""
    same = (
        f"same log-likelihood within {deviation:.1g} nats a token" if deviation else "exactly the same log-likelihood"
    )
    return f"Plain forwards of {len(checked)} of the variants: {same}"


def perplexity(results: Mapping[Variant, Result], dense: Variant) -> tuple[pd.DataFrame, pd.Series]:
    """Perplexity of every variant.

    Returns:
        A table with removed (tuple of blocks), perplexity, low, high, log_increase (mean NLL a token, in nats, above
        the dense model's), log_increase_low, log_increase_high; and the dense model's row. Intervals are 95 % t
        intervals over blocks of text of equal length; those of the increase are paired, block by block, so that the
        difficulty of the text cancels.
    """
    base = _nll(results[dense])
    rows = []
    for variant, result in results.items():
        nll = _nll(result)
        low, high = stats.mean_interval(nll)
        increase_low, increase_high = stats.mean_interval(nll - base)
        rows.append(
            {
                "removed": variants.removed_blocks(len(dense), variant),
                "perplexity": result.summary["perplexity"],
                "low": np.exp(low),
                "high": np.exp(high),
                "log_increase": (nll - base).mean(),
                "log_increase_low": increase_low,
                "log_increase_high": increase_high,
            }
        )
    table = pd.DataFrame(rows)
    return table, table[[not removed for removed in table["removed"]]].iloc[0]


def _nll(result: Result) -> np.ndarray:
    """Mean NLL a token of each block of text, (N,), nats."""
    return result.arrays["nll"] / result.arrays["tokens"]


def over_seeds(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of (S, N) values of S seeds on N units; of one seed over the units alone."""
    return stats.mean_interval(values[0]) if len(values) == 1 else stats.crossed_interval(values)


def over_seeds_note(seeds: int) -> str:
    """What `over_seeds` holds for, in a caption, where seeds are trainings and units blocks of text."""
    over = "blocks of text and training seeds" if seeds > 1 else "blocks of text alone, each trained once"
    return f"Intervals: 95 %, over {over}"


def cost(result: Result) -> np.ndarray:
    """A cost, where larger is worse: mean NLL a token in nats of each block of text, or for a task -1 for each
    item that is answered right and 0 for each that is not."""
    metric = accuracy_metric(result)
    return _nll(result) if metric is None else -result.arrays[metric]


def right(result: Result) -> np.ndarray:
    """1 for each item of a task that is answered right, 0 for each that is not; (N,)."""
    return -cost(result)


def accuracy_metric(result: Result) -> str | None:
    """The accuracy that is drawn, or None for a result that is no task's."""
    names = [name for name in result.summary if name.startswith("acc")]
    return primary_metric(names) if names else None


def primary_metric(names: Sequence[str]) -> str:
    """The accuracy that is drawn: acc_norm where the task has it, since answers differ in length; else acc."""
    return "acc_norm" if "acc_norm" in names else names[0]


def accuracy(results: Mapping[Variant, Result], dense: Variant, task: str) -> pd.DataFrame:
    """Accuracy of every variant on one task.

    Returns:
        removed (tuple of blocks), task, metric, accuracy (0 to 1), low, high (95 % Wilson interval), n (items), chance,
        gold_logprob (mean log-probability of the right answer, nats).
    """
    rows = []
    for variant, result in results.items():
        metric = accuracy_metric(result)
        assert metric is not None, f"{task} is no task"
        values = result.arrays[metric]
        low, high = stats.accuracy_interval(round(values.sum()), len(values))
        rows.append(
            {
                "removed": variants.removed_blocks(len(dense), variant),
                "task": task,
                "metric": metric,
                "accuracy": values.mean(),
                "low": low,
                "high": high,
                "n": len(values),
                "chance": result.summary["chance"],
                "gold_logprob": result.arrays["gold_logprob"].mean(),
            }
        )
    return pd.DataFrame(rows)


def by_block(table: pd.DataFrame) -> pd.DataFrame:
    """`removed` as a column `block`, for variants that lack at most one block; NaN for the dense model."""
    block = [removed[0] if removed else np.nan for removed in table["removed"]]
    return table.drop(columns="removed").assign(block=block)
