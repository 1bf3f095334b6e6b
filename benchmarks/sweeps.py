"""`make bench`: the sweeps' speed as a ratio to what others do, measured pairwise in one run.

Every side of a pair is a process of its own that keeps its model loaded; the sides take turns, so that whatever else
the machine does hits all of them. A run that is interrupted continues with the pair it was in; one that finished
starts anew.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from tqdm import tqdm

from benchmarks import pictures, worker
from layer_redundancy.config.profiles import EMBEDDED_MODEL
from layer_redundancy.core import devices, paths, variants
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Key, Result, Store
from layer_redundancy.core.variants import Variant
from layer_redundancy.evaluate import sweep_estimate
from layer_redundancy.evaluate.batches import arrange
from layer_redundancy.evaluate.sweep_estimate import Missing
from layer_redundancy.figures import saving, table_pictures
from layer_redundancy.measures import activations, importance
from layer_redundancy.models import linear
from layer_redundancy.models.checkpoints import ModelIdentity
from layer_redundancy.models.checks import sharing
from layer_redundancy.models.stack import DecoderStack

JOB = {"model": EMBEDDED_MODEL, "dtype": "float32", "device": "cpu", "batch_tokens": 2048}
ORDERS = ("block_influence", "relative_magnitude", "hidden_norm", "sequential", "reverse_order")

PEER_FOLDER = paths.ROOT / "build" / "short-transformers"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Case:
    """A plan, what it is measured on, and who it is timed against.

    Attributes:
        name: the case's letter.
        title: what is run.
        ours: the library's side, a key of `worker.SIDES`.
        peers: another side's key, or "short_transformers" -> the ratio peer / ours to reach; less than 1 for a floor;
            None for `OF_ALLOWED` of what sharing alone allows, where that is what bounds the ratio.
        on: what to measure on, see `worker.measurement`; calibration text for importance measures.
        share: block-tokens of ours / naive that are not to be exceeded.
        sampled: variants that a peer runs in each pair, its time then scaled to all of them; 0: all.
    """

    name: str
    title: str
    ours: str
    peers: dict[str, float | None]
    on: dict[str, Any]
    share: float | None = None
    sampled: int = 0


TEXT = {"kind": "perplexity", "corpus": "wikipedia", "block_length": 257, "calibration_blocks": 0,
        "evaluation_blocks": 1}  # fmt: skip
CASES = (
    Case(
        "a", "single removal and five orders at every depth, perplexity", "shared",
        {"plain": None, "compiled": None, "hflm": None}, TEXT, share=0.55, sampled=12,
    ),
    Case(
        "b", "the same on 25 five-shot questions", "shared", {"plain": 3.0, "compiled": 3.0, "hflm": 5.0},
        {"kind": "task", "name": "mmlu_dev_fewshot", "limit": 25}, sampled=3,
    ),
    Case(
        "c", "single heads of ten blocks, perplexity", "shared", {"plain": None, "compiled": None, "hflm": None}, TEXT,
        share=0.55, sampled=12,
    ),
    Case(
        "d", "every importance measure and the angular grid", "every_measure",
        {"bare": 1 / 1.25, "short_transformers": 1.0}, {"block_length": 512, "calibration_blocks": 8},
    ),
)  # fmt: skip
OF_ALLOWED = 0.9  # share of the ratio that sharing alone allows, where no more can be asked for
FLOOR = "bare_blocks"
PEERS = {
    "plain": "a plain forward a variant",
    "compiled": "the same, blocks compiled",
    "hflm": "an lm-eval (HFLM) evaluation a variant",
    "bare": "bare forward (floor)",
    "short_transformers": "short-transformers 1.0.0, one measure",
}


def plan(case: Case, stack: DecoderStack, job: dict, identity: ModelIdentity) -> list[Variant]:
    """The case's variants; orders come from a little calibration text."""
    num = len(stack)
    if case.name == "c":
        heads = stack.model.config.get_text_config().num_attention_heads
        blocks = np.unique(np.linspace(0, num - 1, 10).round().astype(int))
        return [variants.dense(num), *(variants.without_head(num, int(b), h) for b in blocks for h in range(heads))]
    if case.name == "d":
        return []
    spec = {"corpus": "wikipedia", "block_length": 128, "calibration_blocks": 4, "evaluation_blocks": 0}
    ids = worker.calibration({**job, "calibration": spec}, identity, stack)
    sums = activations.collect(stack, ids)
    orders = [importance.removal_order(importance.scores(sums, name), name) for name in ORDERS]
    steps = [v for order in orders for v in variants.cumulative_removal(num, order.tolist())]
    return list(dict.fromkeys([variants.dense(num), *variants.single_removal(num), *steps]))


def sample(plan: Sequence[Variant], count: int, pair: int) -> list[int]:
    """Places of `count` variants spread over the depths of the plan, others in every pair.

    One is drawn from each of `count` equal shares of the plan, sorted by length; every second one mirrored, so that
    the mean length is about the plan's.
    """
    order = sorted(range(len(plan)), key=lambda i: (len(plan[i]), i))
    place = np.random.default_rng(pair).uniform()
    edges = np.linspace(0, len(plan), count + 1)
    return [
        order[int(low + (place if k % 2 == 0 else 1 - place) * (high - low) * (1 - 1e-9))]
        for k, (low, high) in enumerate(pairwise(edges))
    ]


def sides_of(case: Case) -> list[str]:
    """The sides that take turns: ours, the peers, and the blocks alone where a plan is run."""
    return [case.ours, *case.peers, *([FLOOR] if case.ours == "shared" else [])]


class Side:
    """A side's process, started when it is first asked to run."""

    def __init__(self, job: dict, folder: Path, peer: Path):
        self.path = folder / f"{job['side']}.json"
        self.path.write_text(json.dumps(job))
        self.command, self.environment = [sys.executable, "-m", "benchmarks.worker"], dict(os.environ)
        if job["side"] == "short_transformers":
            self.command = [sys.executable, str(Path(__file__).with_name("short_transformers_worker.py"))]
            self.environment["PYTHONPATH"] = str(peer)
        self.name, self.log, self.process = job["side"], folder / f"{job['side']}.log", None

    def run(self, chosen: list[int] | None) -> dict:
        """One run's answer, see `worker`.

        Raises:
            StudyError: the process ended.
        """
        if self.process is None:
            with self.log.open("w") as log:
                self.process = subprocess.Popen(
                    [*self.command, str(self.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                    text=True, env=self.environment,
                )  # fmt: skip
            self._answer()
        self.process.stdin.write(json.dumps(chosen) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            last = [text for text in self.log.read_text().splitlines() if text.strip()][-1:] or ["no output"]
            raise StudyError(f"the benchmark's side {self.name} ended: {last[0].strip()[:300]}")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()


def measure(
    case: Case, job: dict, plan: Sequence[Variant], extra: dict, peer: Path, pairs: int, store: Store, bar: tqdm
) -> dict[str, list[dict]]:
    """Runs a case's sides in turn.

    Returns:
        side -> the answers of its runs, one a pair; those of sampled variants also have `scale`, variants in the plan a
        variant run, and `chosen`.
    """
    sides = sides_of(case)
    jobs = {side: {**job, **extra, "side": side, "variants": plan} for side in sides}
    answers: dict[str, list[dict]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder, _closing() as opened:
        for pair in range(pairs):
            for side in sides if pair % 2 == 0 else reversed(sides):
                data = hashlib.sha256(json.dumps([jobs[side], _code()], sort_keys=True).encode()).hexdigest()
                key = Key(job.get("model", "random"), side, f"bench/{case.name}", data, json.dumps({"pair": pair}))
                sampled = case.sampled and side not in (case.ours, FLOOR)
                chosen = sample(plan, case.sampled, pair) if sampled else None
                found = store.get(key)
                if found is None:
                    bar.set_description(f"({case.name}) {side}")
                    if side not in opened:
                        opened[side] = Side(jobs[side], Path(folder), peer)
                    answer = opened[side].run(chosen)
                    values = np.array(answer.pop("values"))
                    found = Result({**answer, "chosen": chosen}, {"values": values})
                    store.put(key, job.get("model", "random weights"), found)
                scale = len(plan) / len(chosen) if chosen else 1.0
                answers[side].append({**found.summary, "scale": scale, "values": found.arrays["values"]})
                bar.update()
    return answers


@contextmanager
def _closing() -> Iterator[dict[str, Side]]:
    opened: dict[str, Side] = {}
    try:
        yield opened
    finally:
        for side in opened.values():
            side.close()


def _code() -> str:
    """Fingerprint of the library and the benchmarks: a benchmark of other code is another one."""
    folders = paths.PACKAGE, Path(__file__).parent
    files = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def summarise(case: Case, answers: dict[str, list[dict]], cost: dict[str, float], rate: float) -> list[dict]:
    """A row a peer.

    Args:
        answers: side -> answers, from `measure`.
        cost: what a plan runs, the fields of `SweepEstimate` that count tokens; empty where no plan is run.
        rate: floating-point operations a second of matrix products; `flops` of ours are in `cost`.
    """
    ours = answers[case.ours]
    seconds = median(ours, "seconds")
    planned = "block_tokens_naive" in cost
    floor, naive = floors(answers[FLOOR], cost) if planned else (np.nan, np.nan)
    rows = []
    for peer, asked in case.peers.items():
        theirs = answers[peer]
        ratios = [b["seconds"] * b["scale"] / a["seconds"] for a, b in zip(ours, theirs, strict=True)]
        differences = []
        for a, b in zip(ours, theirs, strict=True):
            mine = a["values"] if b["chosen"] is None else a["values"][b["chosen"]]
            if b["values"].size:
                differences.append(np.nanmax(np.abs(_comparable(mine, b["values"]))))
        ratio, target = float(np.median(ratios)), OF_ALLOWED * naive / floor if asked is None else asked
        rows.append(
            {
                "case": case.name,
                "plan": case.title,
                "peer": PEERS[peer],
                "pairs": len(ratios),
                "ours_s": seconds,
                "peer_s": median(theirs, "seconds"),
                "ratio": ratio,
                "ratio_low": min(ratios),
                "ratio_high": max(ratios),
                "target": target,
                "met": ratio >= target,
                "allowed": naive / floor,
                "floor_s": floor,
                "share_of_floor": floor / seconds,
                "block_share": cost["block_tokens_shared"] / cost["block_tokens_naive"] if planned else 1.0,
                "block_share_target": case.share,
                "head_share": cost["head_tokens"] / cost["head_tokens_naive"] if planned else np.nan,
                "ours_head_s": median(ours, "head_seconds") if planned else np.nan,
                "peer_head_s": median(theirs, "head_seconds") if planned else np.nan,
                "ours_gb": max(a["peak_bytes"] for a in ours) / 1e9,
                "peer_gb": max(b["peak_bytes"] for b in theirs) / 1e9,
                "difference": max(differences, default=np.nan),
                "share_of_matmul_rate": cost["flops"] / seconds / rate,
                "peer_variants_run": len(theirs[0]["chosen"]) if theirs[0]["chosen"] else None,
            }
        )
    return rows


def median(answers: Sequence[dict], name: str) -> float:
    """The median of what answers have under a name, scaled to the whole plan."""
    return float(np.median([one[name] * one["scale"] for one in answers]))


def floors(answers: Sequence[dict], cost: Mapping[str, float]) -> tuple[float, float]:
    """Seconds of a plan's blocks and head alone, at the rates of `worker.bare_blocks`: shared, and naive.

    Their ratio is what sharing alone allows: nothing but the blocks that it spares, and the positions of the head.
    """
    blocks = float(np.median([(a["seconds"] - a["head_seconds"]) / a["values"][0] for a in answers]))
    head = float(np.median([a["head_seconds"] / a["values"][1] for a in answers]))
    return (
        blocks * cost["block_tokens_shared"] + head * cost["head_tokens"],
        blocks * cost["block_tokens_naive"] + head * cost["head_tokens_naive"],
    )


def _comparable(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Differences, NaN where a side has no number (short-transformers leaves zeros in the lower triangle)."""
    return np.where(np.isfinite(mine) & np.isfinite(theirs), mine - theirs, np.nan)


def older_checkpoint(stack: DecoderStack) -> Path:
    """The model in a folder that transformers 4 reads, too: it looks for the rotary base at another place."""
    folder = paths.CACHE / "bench-model"
    stack.model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {k: v for k, v in (config.get("rope_parameters") or {}).items() if k == "rope_theta"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def operations(stack: DecoderStack, cost: Mapping[str, float]) -> float:
    """Floating-point operations of the linear layers that a plan runs; attention's own are left out."""

    def weights(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters() if p.dim() == 2)

    block = np.mean([weights(b) for b in stack.blocks])
    return 2 * (block * cost["block_tokens_shared"] + weights(stack.head) * cost["head_tokens"])


@app.command()
def main(
    cases: Annotated[str, typer.Option(help="which of a, b, c, d")] = "abcd",
    pairs: Annotated[int, typer.Option(help="runs of each side", min=1)] = 3,
    peer: Annotated[Path, typer.Option(help="where short-transformers is installed")] = PEER_FOLDER,
    config: Annotated[str, typer.Option(help="JSON of a config: random weights of that shape")] = "",
) -> None:
    """Times the sweeps against what others do; writes figures/bench/."""
    try:
        rows, note = _run(cases, pairs, peer.resolve(), json.loads(config) if config else None)
    except StudyError as e:
        raise SystemExit(str(e)) from None
    print(_short(pd.DataFrame(rows)).to_string(index=False, float_format=lambda x: f"{x:.3g}", na_rep=""))
    print(note)


def _run(names: str, pairs: int, peer: Path, config: dict | None) -> tuple[list[dict], str]:
    known = {case.name: case for case in CASES}
    if not names or set(names) - set(known):
        raise StudyError(f"unknown benchmark cases {names!r}: choose some of {''.join(known)}")
    chosen = [known[name] for name in sorted(set(names))]
    if any("short_transformers" in case.peers for case in chosen) and not (peer / "short_transformers").is_dir():
        raise StudyError(f"short-transformers is not in {peer}: run `make bench`, which installs it there")
    job = dict(JOB)
    if config is not None:
        del job["model"]
        job["config"] = config
    if not can_compile(job.get("backend", "inductor")):
        print("no C++ compiler works here, so plain forwards are not compiled")
        without = [{peer: target for peer, target in case.peers.items() if peer != "compiled"} for case in chosen]
        chosen = [replace(case, peers=peers) for case, peers in zip(chosen, without, strict=True)]
    identity, stack = worker.load(job)
    product = linear.product if linear.available() else torch.matmul
    rate = devices.matmul_rate(next(stack.model.parameters()).dtype, job["device"], product=product)
    prepared = []
    for case in chosen:
        todo = plan(case, stack, job, identity)
        if case.ours == "shared":
            extra = {"measurement": case.on}
            measured = worker.measurement({**job, **extra}, identity)
            cost = sweep_estimate.amounts([Missing.all_of(arrange(measured.sequences, sharing(stack.model)), todo)])
            cost["flops"] = operations(stack, cost)
        else:
            extra = {"calibration": {"corpus": "wikipedia", "evaluation_blocks": 0, **case.on}}
            ids = worker.calibration({**job, **extra}, identity, stack)
            extra["input_ids"] = ids.tolist()
            cost = {"flops": operations(stack, {"block_tokens_shared": len(stack) * ids.numel(), "head_tokens": 0})}
        prepared.append((case, todo, extra, cost))
    for case, _, extra, _ in prepared:
        if "short_transformers" in case.peers:
            extra["folder"] = str(older_checkpoint(stack))
    size = sum(p.numel() for p in stack.model.parameters())
    name, num_blocks = identity.name, len(stack)
    del stack
    path = paths.RESULTS / "bench.sqlite"
    total = pairs * sum(len(sides_of(case)) for case in chosen)
    rows = []
    with Store(path) as store, tqdm(total=total, unit="run") as bar:
        for case, todo, extra, cost in prepared:
            rows += summarise(case, measure(case, job, todo, extra, peer, pairs, store, bar), cost, rate)
    note = (
        f"{name}, {num_blocks} blocks, {size / 1e6:.0f} M parameters, {job['dtype']}, on {devices.name(job['device'])}"
        f". Ratio: the peer's seconds over ours, median, smallest and largest of {pairs} pairs. Allowed: what sharing "
        f"alone can bring, blocks and head at their own rates; floor: seconds of blocks and head alone. Measured rate "
        f"of matrix products: {rate / 1e12:.3g} TFLOP/s"
    )
    _save(rows, note)
    path.unlink()
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    return rows, note


def can_compile(backend: str) -> bool:
    """Whether torch compiles here, for which it needs a C++ compiler."""
    try:
        torch.compile(torch.sin, backend=backend)(torch.ones(2))
    except RuntimeError:  # whatever its compiler says
        return False
    return True


def _short(table: pd.DataFrame) -> pd.DataFrame:
    """What a reader looks for; the CSV has the rest."""
    names = {
        "case": "case", "peer": "peer", "ours_s": "ours, s", "peer_s": "peer, s", "ratio": "ratio", "target": "target",
        "allowed": "allowed", "floor_s": "floor, s", "share_of_floor": "floor, of ours",
        "block_share": "block-tokens, of naive", "head_share": "head-tokens, of naive",
        "ours_head_s": "head, ours, s",
        "peer_head_s": "head, peer, s", "ours_gb": "ours, GB", "peer_gb": "peer, GB",
    }  # fmt: skip
    differences = [f"{x:.1e}" if np.isfinite(x) else "" for x in table["difference"]]
    return table[list(names)].rename(columns=names).assign(**{"largest difference": differences})


def _save(rows: list[dict], note: str) -> None:
    table, folder = pd.DataFrame(rows), paths.FIGURES / "bench"
    earlier = folder / "speed_cpu.csv"
    if earlier.is_file():  # keeps rows of cases that were not run this time
        kept = pd.read_csv(earlier)
        table = pd.concat([kept[~kept["case"].isin(table["case"])], table]).sort_values("case", kind="stable")
    saving.save(pictures.speed_ratios(table), table, folder, "speed_cpu", note)
    plans = "; ".join(f"({c}) {t}" for c, t in dict(zip(table["case"], table["plan"], strict=True)).items())
    legend = "Difference: log-likelihood a token, nats; (d): angular distance"
    for case, count in table.dropna(subset="peer_variants_run").groupby("case")["peer_variants_run"].first().items():
        legend += (
            f". ({case}): peers ran {count:.0f} variants a pair, spread over the depths; seconds are scaled to all"
        )
    table_pictures.save_table(_short(table), folder, "speed_cpu_table", f"{plans}. {note}. {legend}")


if __name__ == "__main__":
    app()
