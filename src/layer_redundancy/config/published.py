"""What others measured block by block on models that no small machine runs, as data; data/paper/README.md says of whom.

Every function raises StudyError where its file cannot be read, as `paper_tables.table` does.
"""

import numpy as np
import pandas as pd

from layer_redundancy.config import paper_tables

# "attention" and "feed-forward" parts of block i, as `orders` names them.
PARTS = ("a", "m")


def removals() -> pd.DataFrame:
    """What the removal of each single block does to text, model by model.

    Returns:
        A row a (model, block): model, family (models trained on from one base model have one), block (from 0),
        num_layers, quantity ("perplexity" without the block; "perplexity increase" and "loss increase" by its removal,
        the latter in nats a token), value (may be infinite), dense (perplexity of the whole model, where increases of
        it are given, else NaN), source, commit, path, licence, setting; and nats: the loss without the block, in nats a
        token, up to a constant of the model.
    """
    rows = paper_tables.table("published_removals")
    rows["num_layers"] = rows.groupby("model", sort=False)["block"].transform("size")
    with np.errstate(divide="ignore"):
        of_perplexity = np.log(rows["value"] + rows["dense"].fillna(0.0))
    rows["nats"] = rows["value"].where(rows["quantity"] == "loss increase", of_perplexity)
    return rows


def influence() -> pd.DataFrame:
    """Block Influence of every block, or what stands nearest to it, by source.

    Returns:
        A row a (model, source, block): model, num_layers, block (from 0), measure ("1 - cosine", or "angle": the
        arccosine over pi), over_tokens ("mean" or "sum"), value, states (the block's output "before the final norm" or
        "after the final norm"), source, commit, path, licence, setting; and score: 1 - cosine, of an angle that of the
        mean angle, up to a factor of the source.
    """
    rows = paper_tables.table("published_influence")
    rows["score"] = rows["value"].where(rows["measure"] == "1 - cosine", 1 - np.cos(np.pi * rows["value"]))
    return rows


def windows() -> pd.DataFrame:
    """MMLU accuracy without a window of neighbouring blocks, by its place.

    The source's labels count blocks from 0: its three-block window 30 to 32 and its two-block window 30 to 31 of a
    model of 32 blocks, whose last is 31, have the same accuracy to the last digit in each of its models. A window said
    to end at 32 is therefore a block shorter than it says.

    Returns:
        A row a (model, window): model, num_layers, length (as the source says), first_printed, last_printed, mmlu (0 to
        1), source, commit, path, licence, setting; first, last (blocks from 0), whole (False where it is shorter than
        it says), depth (percent: its middle).
    """
    rows = paper_tables.table("published_windows")
    rows["first"] = rows["first_printed"]
    rows["last"] = rows["last_printed"].clip(upper=rows["num_layers"] - 1)
    rows["whole"] = rows["last"] == rows["last_printed"]
    rows["depth"] = 100 * (rows["first"] + rows["last"] + 1) / 2 / rows["num_layers"]
    return rows


def orders() -> pd.DataFrame:
    """Blocks, or halves of blocks, that papers remove of one model.

    Returns:
        A row a (model, paper, method): model, paper, method, kind ("order": first removed first; "set": no order is
        known), source, commit, path, licence, setting; removed (a tuple of tuples: the parts that go at each step, both
        of a block's, "a21" and "m21", or one of them).
    """
    rows = paper_tables.table("published_orders")
    steps = [[(one,) if one[0] in PARTS else tuple(part + one for part in PARTS) for one in cell.split()]
             for cell in rows["removed"].astype(str)]  # fmt: skip
    rows["removed"] = [tuple(of) for of in steps]
    return rows
