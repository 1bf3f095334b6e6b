"""A sweep that is cut into many small pieces, on a tiny model that lies in a folder."""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

import tiny_models
from layer_redundancy.cluster import worker
from layer_redundancy.cluster.pool import Pool
from layer_redundancy.cluster.study import Cutting, DistributedStudy
from layer_redundancy.config import profiles
from layer_redundancy.core import variants
from layer_redundancy.core.store import Result, Store
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.evaluate.scoring import Perplexity
from layer_redundancy.inputs import Inputs
from layer_redundancy.models import checkpoints
from layer_redundancy.study import Study

BLOCKS, LENGTH = 24, 24


def model(folder: Path) -> Path:
    """A tiny random Llama in a folder."""
    tiny_models.build("llama").save_pretrained(folder)
    return folder


def study(folder: Path, store: Path) -> Study:
    """A study of a model that reads no text of its own."""
    profile = replace(profiles.get("smoke", model=str(folder)), batch_tokens=2 * LENGTH)
    identity = checkpoints.identify(profile)
    return Study(profile, identity, Store(store), Inputs(profile, identity), store.parent)


def text(blocks: int = BLOCKS) -> Perplexity:
    """Blocks of random tokens."""
    ids = torch.as_tensor(tiny_models.tokens(blocks, LENGTH))
    return Perplexity(TokenBlocks(ids, "random", "evaluation", bos=False))


def every(num_blocks: int) -> list[variants.Variant]:
    """The whole model, and without each block and each pair of blocks."""
    pairs = [(a, b) for a in range(num_blocks) for b in range(a)]
    return [variants.dense(num_blocks), *variants.single_removal(num_blocks)] + [
        variants.without(num_blocks, pair) for pair in pairs
    ]


def on_cluster(study: Study, pool: Pool, seconds: float = 0.1) -> DistributedStudy:
    """The study on a cluster, its sweeps always cut in the same way."""
    # So slow a model's pieces are of one batch each.
    return DistributedStudy.on(study, pool, cutting=Cutting(seconds, rates=(5e3, 5e3), workers=2), threads=1)


def sweep(client, folder: Path, store: Path, blocks: int = BLOCKS, seconds: float = 0.1) -> Pool:
    """Has the sweep done; returns the pool, which is closed."""
    pool = Pool(client, store, progress=False)
    try:
        with pool.lock:
            found = on_cluster(study(folder, store), pool, seconds)
            found.sweep(every(found.num_blocks), [text(blocks)])
            found.store.close()
    finally:
        pool.close()
    return pool


def table(store: Path) -> dict[tuple, tuple]:
    """Everything that counts of a store: results by key, and outputs by what made them and of what."""
    with Store(store) as opened:
        rows = opened._fetched(
            "SELECT model, variant, measurement, data, settings, version, summary, arrays FROM results"
        )
        outputs = opened._fetched(
            "SELECT model, variant, compiled, version, sequence, outputs FROM outputs JOIN producers ON producer = id"
        )
    return {row[:6]: row[6:] for row in rows} | {row[:5]: row[5:] for row in outputs}


def slow_result(place: int) -> Result:
    """A result that takes a while."""
    time.sleep(0.3)
    return Result({"place": place})


# ------------------------------------------------------------------------------------------------ other workers

_run_piece = worker.run_piece


def _slowly(seconds: float, *arguments):
    time.sleep(seconds)
    return _run_piece(*arguments)


def slow(seconds: float) -> None:
    """Makes this process a worker that takes so much longer for each piece."""
    worker.run_piece = partial(_slowly, seconds)
