"""Notebook 15: what others measured on models that no small machine runs, beside this model (ShortGPT figures 2a, 3).

Numbers that are only printed have no intervals. What can be tested of them is tested on the units that there are:
families of models, blocks, benchmark items. Neighbouring blocks are alike, and models of a family too, which is why a
family counts once, and why the tests on blocks are of blocks of one model and speak of that model alone.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu

from layer_redundancy.config import paper_tables, published
from layer_redundancy.core import stats, variants, verdicts
from layer_redundancy.core.verdicts import Statement
from layer_redundancy.experiments import few_blocks, result_tables
from layer_redundancy.experiments.depth_ranks import CHEAPER, FIRST, LAST, OFTEN, by_depth, dearer, wins
from layer_redundancy.measures import importance
from layer_redundancy.measures.activations import ActivationSums
from layer_redundancy.study import Study

NOTEBOOK = "15_published"
PRIMARY = FIRST
PLACE = "where a window of blocks goes changes MMLU by more than its noise"

ITEMS = 14042  # questions of MMLU's test set
POINTS = 0.03  # of MMLU accuracy, that matter
METHODS = {"dense": "the whole model", "shortgpt": "ShortGPT", "sleb": "SLEB", "slice_gpt": "SliceGPT"}
METRICS = {"wikitext2_perplexity": "WikiText-2", "c4_perplexity": "C4"}
OURS = "measured here"


@dataclass(frozen=True, eq=False)
class Measured:
    """What models that were measured here add.

    Attributes:
        sums: model -> activations, from which Block Influence follows.
        nats: model -> (L,) loss without each block, nats a token; none of a single block, which cannot be removed.
    """

    sums: Mapping[str, ActivationSums]
    nats: Mapping[str, np.ndarray]


def measure(study: Study) -> Measured:
    """Asks for what notebooks 01 and 02 measure too: activations, and text without each block."""
    few_blocks.say_if_single(study)
    sums = {study.identity.name: study.activation_sums()}
    return Measured(sums, {study.identity.name: losses(study)} if study.num_blocks > 1 else {})


def losses(study: Study) -> np.ndarray:
    """(L,) loss of the evaluation text without each block, nats a token."""
    single = variants.single_removal(study.num_blocks)
    results = study.sweep([study.dense, *single], [study.perplexity])[study.perplexity.name]
    return np.array([result_tables.cost(results[one]).mean() for one in single])


def depth(block: int | np.ndarray, num_layers: int) -> np.ndarray:
    """Depth of the middle of a block, in percent."""
    return 100 * (np.asarray(block) + 0.5) / num_layers


# ------------------------------------------------------------------------------------------------------------- tables


def removals(found: Measured) -> pd.DataFrame:
    """What the removal of each block costs, others' models first.

    Sources give perplexities without a dense value, increases of perplexity, or increases of loss. What follows from
    all of them is the loss without a block above that of the median inner block's removal.

    Returns:
        A row a (model, block): model, family, source, num_layers, block, depth (percent), cost (nats a token above the
        median inner block's; may be infinite), ours.
    """
    columns = ["model", "family", "source", "num_layers", "block", "nats"]
    parts = [published.removals()[columns].assign(ours=False)]
    for name, nats in found.nats.items():
        mine = {"model": name, "family": name, "source": OURS, "num_layers": len(nats), "block": np.arange(len(nats))}
        parts.append(pd.DataFrame({**mine, "nats": nats, "ours": True}))
    rows = []
    for _, part in (pair for table in parts for pair in table.groupby("model", sort=False)):
        part = part.sort_values("block")
        nats, num = part["nats"].to_numpy(), len(part)
        inner = nats[1:-1] if num > 2 else nats
        rows.append(part.assign(depth=depth(part["block"].to_numpy(), num), cost=nats - np.median(inner)))
    return pd.concat(rows, ignore_index=True)[[*columns[:-1], "depth", "cost", "ours"]]


def influence(found: Measured) -> pd.DataFrame:
    """Block Influence by block and source, over the median block's, since some sources give sums.

    Returns:
        A row a (model, source, block): model, source, num_layers, block, depth (percent), relative (times the median
        block's), states ("before the final norm" or "after the final norm"), measure, ours.
    """
    parts = []
    for name, sums in found.sums.items():
        scores = importance.scores(sums, "block_influence")
        common = {"model": name, "source": OURS, "num_layers": len(scores), "block": np.arange(len(scores))}
        states = {"states": "before the final norm", "measure": "1 - cosine", "ours": True}
        parts.append(pd.DataFrame({**common, "score": scores, **states}))
    theirs = published.influence().assign(ours=False)
    rows = pd.concat([theirs[parts[0].columns], *parts], ignore_index=True)
    rows["depth"] = depth(rows["block"].to_numpy(), rows["num_layers"].to_numpy())
    rows["relative"] = rows["score"] / rows.groupby(["model", "source"])["score"].transform("median")
    return rows[["model", "source", "num_layers", "block", "depth", "relative", "states", "measure", "ours"]]


def ends(removed: pd.DataFrame) -> pd.DataFrame:
    """How dear the first and the last block of each model are, without a verdict.

    A block of one model is one unit: that it is the dearest of L by chance has a probability of 1/L, which no number of
    resamples makes smaller, and which for 32 blocks is not told from chance in two-sided tests at 5 %.

    Args:
        removed: from `removals`.

    Returns:
        A row a model: model, num_layers, first and last (nats above the median inner block), first_place and
        last_place (1: the dearest of all), first_chance and last_chance (probability that a block drawn at random is as
        dear), cheaper (share of pairs of a middle-to-late and an early block in which the former costs less), p (exact
        two-sided test of that by Mann and Whitney, on blocks, which are not independent), ours.
    """
    rows = []
    for model, part in removed.groupby("model", sort=False):
        cost, num = part.sort_values("block")["cost"].to_numpy(), len(part)
        row = {"model": model, "num_layers": num}
        for name, place in (("first", 0), ("last", -1)):
            above = int((cost >= cost[place]).sum())
            row |= {name: cost[place], f"{name}_place": above, f"{name}_chance": above / num}
        middle, early = by_depth(cost)
        if len(middle) and len(early):
            row |= {
                "cheaper": float(wins(cost).mean()),
                "p": float(mannwhitneyu(middle, early, method="exact").pvalue),
            }
        rows.append({**row, "ours": bool(part["ours"].iloc[0])})
    columns = [
        "model", "num_layers", "first", "first_place", "first_chance", "last", "last_place", "last_chance", "cheaper",
        "p", "ours",
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def ends_shown(table: pd.DataFrame, claim: pd.DataFrame) -> pd.DataFrame:
    """`ends` as people read it, with the verdict on middle-to-late blocks of each model.

    Args:
        claim: from `claim`.
    """
    verdict = claim[claim["statement"] == CHEAPER].set_index("on")["verdict"] if len(claim) else {}
    rows = []
    for row in table.itertuples():
        rows.append(
            {
                "model": f"{row.model}{' (here)' if row.ours else ''}",
                "first block": f"{row.first:+.2f} nats, {row.first_place} of {row.num_layers}",
                "last block": f"{row.last:+.2f} nats, {row.last_place} of {row.num_layers}",
                "by chance at most": f"{max(row.first_chance, row.last_chance):.2f}",
                "middle-to-late cheaper than early (% of pairs)": 100 * row.cheaper,
                "exact p": row.p,
                "verdict": verdict.get(row.model, ""),
            }
        )
    return pd.DataFrame(rows)


def windows() -> pd.DataFrame:
    """MMLU by a window's place: columns of `config.published.windows`, with the 95 % Wilson interval low, high."""
    rows = published.windows()
    ends = [stats.accuracy_interval(round(value * ITEMS), ITEMS) for value in rows["mmlu"]]
    return rows.assign(low=[low for low, _ in ends], high=[high for _, high in ends])


def overlap(model: str, count: int) -> pd.DataFrame:
    """How many of the blocks that two papers remove first are the same, so many blocks of each.

    Blocks count as two halves, attention and feed-forward, since some papers remove these apart.

    Args:
        model: as `config.published.orders` names it.
        count: blocks removed; rows of a set of another size are left out, as are shorter orders.

    Returns:
        A square table, rows and columns "paper: method": halves of blocks that both remove, over two: blocks.
    """
    chosen = {}
    for row in published.orders().query("model == @model").itertuples():
        parts = [part for step in row.removed for part in step]
        if len(parts) >= 2 * count and (row.kind == "order" or len(parts) == 2 * count):
            chosen[f"{row.paper}: {row.method}"] = set(parts[: 2 * count])
    shared = [[len(one & other) / 2 for other in chosen.values()] for one in chosen.values()]
    return pd.DataFrame(shared, index=list(chosen), columns=list(chosen))


def overlap_pairs(tables: Mapping[str, pd.DataFrame], count: int) -> pd.DataFrame:
    """The matrices of `overlap` as a list of pairs.

    Returns:
        A row a pair: model, one, other, shared (blocks), jaccard (shared over all that either removes, 0 to 1).
    """
    rows = []
    for model, table in tables.items():
        for one, other in itertools.combinations(table.index, 2):
            shared = float(table.loc[one, other])
            rows.append((model, one, other, shared, shared / (2 * count - shared)))
    return pd.DataFrame(rows, columns=["model", "one", "other", "shared", "jaccard"])


def sources() -> pd.DataFrame:
    """One method, several sources: perplexities of three methods and of the whole model on three models.

    Returns:
        A row a value: model, method, text, removed, value, times_dense (over the same source's whole model; NaN where
        it prints none), source, setting, apart ("the others' value", "explained", "unexplained", or "alone" where
        nobody else prints one to compare with), why; a row without a value where no source was found.
    """
    rows = paper_tables.table("rivals")
    rows = rows[rows["method"].isin(METHODS) & rows["metric"].isin(METRICS)]
    found = []
    for model in dict.fromkeys(rows["model"]):
        for method, metric in ((method, metric) for method in METHODS for metric in METRICS):
            part = rows[(rows["model"] == model) & (rows["method"] == method) & (rows["metric"] == metric)]
            common = {"model": model, "method": METHODS[method], "text": METRICS[metric]}
            if part.empty:
                found.append({**common, "apart": "no source found"})
            for row in part.itertuples():
                kind, _, why = ("alone", "", "") if pd.isna(row.apart) else row.apart.partition(": ")
                of = "" if row.of in ("not stated", "blocks") else f" of {row.of}"
                found.append(
                    {
                        **common,
                        "removed": f"{row.removed}{of}",
                        "value": row.value,
                        "times_dense": row.value / row.dense,
                        "source": row.source if pd.isna(row.copied_from) else f"{row.copied_from}, by {row.source}",
                        "setting": row.setting,
                        "apart": kind,
                        "why": why,
                    }
                )
    columns = ["model", "method", "text", "removed", "value", "times_dense", "source", "setting", "apart", "why"]
    return pd.DataFrame(found, columns=columns).fillna({"removed": "", "source": "", "setting": "", "why": ""})


def sources_shown(table: pd.DataFrame) -> pd.DataFrame:
    """`sources` as people read them, without values that nobody else prints."""
    rows = table[~table["apart"].isin(["alone", "no source found"])]
    apart = [f"{row.apart}: {row.why}" if row.why else row.apart for row in rows.itertuples()]
    return rows.assign(apart=apart)[["model", "method", "text", "removed", "value", "source", "apart"]].reset_index(
        drop=True
    )


def unexplained(table: pd.DataFrame) -> pd.DataFrame:
    """The values of `sources` that nothing stated explains, as people read them."""
    rows = table[table["apart"] == "unexplained"]
    return rows[["model", "method", "text", "removed", "value", "source", "why"]].reset_index(drop=True)


# --------------------------------------------------------------------------------------------------------- statements


def claim(study: Study, removed: pd.DataFrame, mmlu: pd.DataFrame) -> pd.DataFrame:
    """ShortGPT's reading of figure 3 on others' models, and whether a window's place is what matters.

    Args:
        removed: from `removals`.
        mmlu: from `windows`.

    Returns:
        A table of `verdicts.verdicts`. The first and the last block are judged over families of models that others
        measured, and so are middle-to-late against early blocks, then in each model, with its blocks as units; windows
        in each model, with MMLU's items as units.
    """
    resamples, seed = study.profile.bootstrap_resamples, study.profile.seed
    parts = [_over_families(removed[~removed["ours"]], resamples, seed)]
    for model, part in removed.groupby("model", sort=False):
        parts.append(_cheaper(part.sort_values("block")["cost"].to_numpy(), str(model), resamples, seed))
    whole = mmlu[mmlu["whole"]]
    for (model, length), part in whole.groupby(["model", "length"], sort=False):
        parts.append(_place(part["mmlu"].to_numpy(), f"{model}, windows of {length} blocks", resamples, seed))
    return verdicts.verdicts(parts, PRIMARY)


def _over_families(removed: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """Statements on the first and the last block; the unit is a family of models, the mean of its models."""
    rows = []
    for (family, _), part in removed.groupby(["family", "model"], sort=False):
        cost = part.sort_values("block")["cost"].to_numpy()
        cheaper = wins(cost).mean()
        rows.append((family, dearer(cost[0], cost[1:-1]), dearer(cost[-1], cost[1:-1]), cheaper))
    values = pd.DataFrame(rows).groupby(0, sort=False).mean().to_numpy()

    def statements(mean: np.ndarray) -> list[Statement]:
        names = (FIRST, LAST, CHEAPER)
        return [Statement(name, round(share, 12), 0.5, "above", OFTEN) for name, share in zip(names, mean, strict=True)]

    step = 1 / (removed.groupby("model").size().min() - 2) / len(values)
    return verdicts.judge(statements, values, resamples, seed, f"{len(values)} families of models", least=step)


def _cheaper(cost: np.ndarray, model: str, resamples: int, seed: int) -> pd.DataFrame:
    """Whether middle-to-late blocks cost less than early ones; the units are blocks, of either kind apart.

    The share of pairs in which one costs less depends on ranks alone, so that no single dear block decides.
    """
    won = wins(cost)
    if min(won.shape) < 2:
        return pd.DataFrame()

    def statement(share: float) -> list[Statement]:
        return [Statement(CHEAPER, round(share, 12), 0.5, "above", OFTEN)]  # where all pairs agree, all draws do

    draws = [
        [statement(share) for share in stats.bootstrap_means(won.mean(1), resamples, seed)],
        [statement(share) for share in stats.bootstrap_means(won.mean(0), resamples, seed + 1)],
    ]
    return verdicts.judged_draws(statement(float(won.mean())), draws, won.shape, model, least=1 / won.shape[1])


def _place(mmlu: Sequence[float] | np.ndarray, on: str, resamples: int, seed: int) -> pd.DataFrame:
    """Whether accuracies at several places lie further apart than those of one accuracy would, by MMLU's items.

    Places are drawn as if each had items of its own; they share them, which makes true differences surer than this.
    """
    mmlu = np.asarray(mmlu, float)
    rng = stats.generator([seed, len(mmlu)])
    drawn = rng.binomial(ITEMS, mmlu, size=(resamples, len(mmlu))) / ITEMS
    noise = float(np.ptp(rng.binomial(ITEMS, mmlu.mean(), size=(resamples, len(mmlu))) / ITEMS, axis=1).mean())

    def statement(spread: float) -> list[Statement]:
        return [Statement(PLACE, spread, noise, "above", POINTS)]

    draws = [[statement(spread) for spread in np.ptp(drawn, axis=1)]]
    return verdicts.judged_draws(statement(float(np.ptp(mmlu))), draws, [ITEMS], on)
