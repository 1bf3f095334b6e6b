"""The numbers the ShortGPT paper (arXiv:2403.03853v1) reports, as data, and how measured numbers compare with them."""

from typing import Any

import numpy as np
import pandas as pd

from layer_redundancy.config import sources
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.paths import PAPER

TABLES = (
    "table1", "table2", "table3", "table4", "text", "rwkv", "unreasonable_transitions", "unreasonable_settings",
    "reassessing_selections", "reassessing_recipes", "reassessing_cost", "why_lift_accuracy", "why_lift_size", "claims",
    "rivals", "published_removals", "published_influence", "published_windows", "published_orders",
)  # fmt: skip

# Table 1 spells models without the hyphen that tables 2 and 4 print; one spelling makes the tables joinable.
_SPELLING = {
    "Llama2-7B": "Llama-2-7B",
    "Llama2-13B": "Llama-2-13B",
    "Baichuan2-7B": "Baichuan-2-7B",
    "Baichuan2-13B": "Baichuan-2-13B",
}

# The published shapes of the paper's four models.
_SHAPES = {
    "Llama-2-7B": sources.LLAMA_2_7B,
    "Llama-2-13B": sources.LLAMA_2_13B,
    "Baichuan-2-7B": sources.BAICHUAN_2_7B,
    "Baichuan-2-13B": sources.BAICHUAN_2_13B,
}

# Whole ids, not patterns: a chat or fine-tuned model of a similar name is another model. All the base checkpoints.
_HUB_IDS = {
    "meta-llama/llama-2-7b": "Llama-2-7B",
    "meta-llama/llama-2-7b-hf": "Llama-2-7B",
    "nousresearch/llama-2-7b-hf": "Llama-2-7B",
    "thebloke/llama-2-7b-fp16": "Llama-2-7B",
    "thebloke/llama-2-7b-gptq": "Llama-2-7B-GPTQ",
    "meta-llama/llama-2-13b": "Llama-2-13B",
    "meta-llama/llama-2-13b-hf": "Llama-2-13B",
    "nousresearch/llama-2-13b-hf": "Llama-2-13B",
    "thebloke/llama-2-13b-fp16": "Llama-2-13B",
    "baichuan-inc/baichuan2-7b-base": "Baichuan-2-7B",
    "baichuan-inc/baichuan2-13b-base": "Baichuan-2-13B",
}

# Shares this close, in percent, may be of one removal: 7 of 32 blocks (21.9 %) are 21.0 % of the weights, or "20 %".
_SAME_SHARE = 2.0


def table(name: str) -> pd.DataFrame:
    """One of the paper's tables; data/paper/README.md describes the columns.

    `model` has one spelling in all of them, table 4's ("Llama-2-7B"). Table 4's `removed_layers` are tuples of block
    indices, first removed first; scores and ratios are in percent.

    Raises:
        StudyError: unknown table, or its file cannot be read.
    """
    if name not in TABLES:
        raise StudyError(f"the paper has no table {name!r} here: choose one of {', '.join(TABLES)}")
    path = PAPER / f"{name}.csv"
    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise StudyError(f"cannot read the reported numbers in {path}: {error}; restore the file from git") from None
    if "model" in frame:
        frame["model"] = frame["model"].replace(_SPELLING)
    if "removed_layers" in frame:
        frame["removed_layers"] = [tuple(map(int, cell.split(","))) for cell in frame["removed_layers"]]
    return frame


def table1_averages() -> pd.DataFrame:
    """Table 1's averages and percentages computed from its 13 scores, next to the printed ones.

    For Llama-2 (and SliceGPT on Baichuan2) the printed values do not follow from the printed scores, so the study
    compares with its own.

    Returns:
        Table 1's rows with model, method, ratio_percent, and for each of `average` (of the 13 scores, percent) and
        `percentage` (of the same model's dense average): <name>_reported, <name> as computed, and
        <name>_difference (computed - printed).
    """
    rows = table("table1")
    average = rows.loc[:, "CMNLI":"CMMLU"].mean(axis=1)  # the 13 benchmarks
    dense = rows["model"].map(average[rows["method"] == "Dense"].set_axis(rows["model"][rows["method"] == "Dense"]))
    result = rows[["model", "method", "ratio_percent"]].copy()
    for name, computed in (("average", average), ("percentage", 100 * average / dense)):
        result[f"{name}_reported"] = rows[f"{name}_reported"]
        result[name] = computed
        result[f"{name}_difference"] = computed - rows[f"{name}_reported"]
    return result


def weights_left(model: str, removed: int) -> tuple[int, int]:
    """Weights of one of the paper's models without some blocks, as they follow from its published shape.

    Args:
        model: as table 4 names it.
        removed: number of blocks that are gone.

    Returns:
        All weights; and those that a token is multiplied with: all but the embedding, from which it reads a row.

    Raises:
        StudyError: a model that is not the paper's, or that has not so many blocks.
    """
    if model not in _SHAPES:
        raise StudyError(f"the paper has no model {model!r}: choose one of {', '.join(_SHAPES)}")
    shape = _SHAPES[model]
    hidden, layers = shape["hidden_size"], shape["num_hidden_layers"]
    if not 0 <= removed <= layers:
        raise StudyError(f"{removed} blocks cannot be removed of {model}: choose 0 to {layers}")
    block = 4 * hidden**2 + 3 * hidden * shape["intermediate_size"] + 2 * hidden  # attention, feed-forward, two norms
    blocks, head = (layers - removed) * block, hidden * shape["vocab_size"]
    return blocks + 2 * head + hidden, blocks + head + hidden


def weights_removed() -> pd.DataFrame:
    """How much of each model table 1's ShortGPT removes: as printed, and as it follows from the published shapes.

    Returns:
        model, blocks (removed), num_layers, printed, weights, multiplications (of a token); the last three in percent.
    """
    printed = table("table1").query("method == 'ShortGPT'").set_index("model")["ratio_percent"]
    rows = []
    for row in table("table4").itertuples():
        count = len(row.removed_layers)
        left, whole = weights_left(row.model, count), weights_left(row.model, 0)
        gone = [100 * (1 - a / b) for a, b in zip(left, whole, strict=True)]
        rows.append((row.model, count, row.num_layers, printed[row.model], *gone))
    return pd.DataFrame(rows, columns=["model", "blocks", "num_layers", "printed", "weights", "multiplications"])


def mmlu_by_ratio() -> pd.DataFrame:
    """MMLU accuracies that the paper prints, by the share of blocks removed: table 1 and its introduction.

    Returns:
        model, label (for a legend), removed, num_layers, share (percent of blocks), accuracy (0 to 1); the dense models
        with share 0.
    """
    blocks = table("table4").set_index("model")
    rows = []
    for row in table("table1").itertuples():
        if row.method in ("Dense", "ShortGPT"):
            removed = len(blocks["removed_layers"][row.model]) if row.method == "ShortGPT" else 0
            rows.append((row.model, removed, int(blocks["num_layers"][row.model]), row.MMLU))
    for row in table("text").itertuples():
        if not any(r[:2] == (row.model, row.removed) for r in rows):
            rows.append((row.model, row.removed, row.num_layers, row.mmlu))
    frame = pd.DataFrame(rows, columns=["model", "removed", "num_layers", "mmlu"])
    frame["share"] = 100 * frame["removed"] / frame["num_layers"]
    frame["accuracy"] = frame.pop("mmlu") / 100
    frame["label"] = "MMLU, paper, " + frame["model"]
    return frame.sort_values(["model", "removed"], ignore_index=True)


def known_model(model_id: str) -> str | None:
    """The name under which the paper's tables list a hub id ("meta-llama/Llama-2-7b-hf" -> "Llama-2-7B"), or None."""
    return _HUB_IDS.get(model_id.strip().strip("/").lower())


def removed_blocks(model_id: str, num_blocks: int) -> tuple[int, ...]:
    """The blocks that table 4 removes of a model, first removed first; () for a model that is not the paper's.

    A model under a known name that has another number of blocks is another model.
    """
    rows = table("table4").set_index("model")
    name = known_model(model_id)
    if name not in rows.index or rows["num_layers"][name] != num_blocks:
        return ()
    return rows["removed_layers"][name]


def share_removed() -> float:
    """The share of the blocks that the paper removes of a model of 32 blocks, 0 to 1, by the layers of its table 2."""
    layers = table("table2").set_index("setting")["layers"]
    return float(1 - layers["ShortGPT"] / layers["Baseline"])


def sources_of_methods(share: float = 100 * 7 / 32, model: str = "Llama-2-7B") -> pd.DataFrame:
    """What different sources measured of one method on a model at about the same share; first who disagree most.

    Of each source and setting the number whose share is nearest to `share` is taken.

    Args:
        share: percent removed; by default that of 7 of 32 blocks, which most sources have.
        model: one of table "rivals".

    Returns:
        A row a method and metric, of table "rivals":

        - method, metric
        - sources: number of those who measured; a number that is copied counts for whom it is copied from
        - least, most: of the values as printed
        - ratio: greatest by smallest of value / dense, dense being the same source's; NaN without two such
        - values: each with who measured it, what was removed, and the setting; " | " between them
        - impossible: perplexities below one of the same method with less removed, at whatever shares; "" if none. Both
          cannot be right of one method, one text and one setting. Shares of width are compared with each other alone.

        The rows of "dense" say how far settings alone lead apart (least, most); their ratio is 1.
    """
    rows = table("rivals")
    rows = rows[rows["model"] == model].copy()
    rows["by"] = rows["copied_from"].fillna(rows["source"])
    found = []
    for (method, metric), part in rows.groupby(["method", "metric"], sort=False):
        away = (part["share"] - share).abs()
        near = part[away == away.groupby([part["by"], part["setting"]]).transform("min")]
        times = (near["value"] / near["dense"]).dropna()
        ratio = times.max() / times.min() if len(times) > 1 else np.nan
        words = " | ".join(_in_words(row) for row in near.itertuples())
        impossible = "; ".join(_impossible(part)) if metric.endswith("_perplexity") else ""
        count = near["by"].nunique()
        found.append((method, metric, count, near["value"].min(), near["value"].max(), ratio, words, impossible))
    columns = ["method", "metric", "sources", "least", "most", "ratio", "values", "impossible"]
    return pd.DataFrame(found, columns=columns).sort_values("ratio", ascending=False, kind="stable", ignore_index=True)


def _in_words(row: Any) -> str:
    """A row of "rivals" as "6.64 (SliceGPT paper, 0.20 of width: length 2048)"."""
    of = f" of {row.of}" if row.of in ("weights", "width") else ""
    trained = ", trained" if row.trained == "yes" else ""
    return f"{row.value:g} ({row.by}, {row.removed}{of}{trained}: {row.setting})"


def _impossible(part: pd.DataFrame) -> list[str]:
    """Perplexities of one method below one with less removed: of each the greatest with less, of the nearest share."""
    found = []
    for low in part.itertuples():
        less = part[(part["share"] < low.share - _SAME_SHARE) & ((part["of"] == "width") == (low.of == "width"))]
        above = less[less["value"] > low.value].sort_values(["value", "share"])
        if len(above):
            high = above.iloc[-1]
            found.append(f"{low.value:g} at {low.share:.0f} % is below {high['value']:g} at {high['share']:.0f} %")
    return found


def compare(measured: pd.DataFrame, reported: pd.DataFrame, on: list[str], value: str | list[str]) -> pd.DataFrame:
    """Measured and reported numbers side by side, nothing dropped.

    Args:
        measured: columns `on` and `value`; further columns are ignored. Same units as `reported`.
        reported: the same columns, from `table`.
        on: the columns that identify a row, together.
        value: the column compared, or several.

    Returns:
        Columns on..., paper, measured, difference (measured - paper); where `value` is a list, also `quantity`, the
        name of the column compared, after `on`. A full outer join: a row the paper lacks has NaN in paper, one that
        was not measured has NaN in measured, both have NaN in difference. Measured rows come first, in their order.

    Raises:
        StudyError: a column is missing or not numeric, a key occurs twice, or keys are of different types.
    """
    values = [value] if isinstance(value, str) else list(value)
    sides = []
    for side, frame in (("measured", measured), ("paper", reported)):
        if missing := [c for c in (*on, *values) if c not in frame.columns]:
            raise StudyError(f"cannot compare: the {side} numbers lack the column(s) {', '.join(missing)}")
        if (twice := frame.duplicated(list(on))).any():
            key = ", ".join(f"{c}={frame.loc[twice, c].iloc[0]}" for c in on)
            raise StudyError(f"cannot compare: the {side} numbers hold {key} more than once")
        long = frame[[*on, *values]].melt(id_vars=list(on), var_name="quantity", value_name=side)
        try:
            long[side] = pd.to_numeric(long[side]).astype(float)
        except (ValueError, TypeError):
            raise StudyError(f"cannot compare: the {side} numbers in {', '.join(values)} are not all numbers") from None
        sides.append(long)
    keys = [*on, "quantity"]
    try:
        joined = sides[0].merge(sides[1], on=keys, how="left")
        lacking = sides[1].merge(sides[0][keys], on=keys, how="left", indicator=True)
    except ValueError as error:
        raise StudyError(f"cannot compare on {', '.join(on)}: {error}") from None
    lacking = lacking[lacking["_merge"] == "left_only"].drop(columns="_merge").assign(measured=np.nan)
    joined = pd.concat([part for part in (joined, lacking) if len(part)] or [joined], ignore_index=True)
    joined["difference"] = joined["measured"] - joined["paper"]
    columns = [*(on if isinstance(value, str) else keys), "paper", "measured", "difference"]
    return joined[columns]
