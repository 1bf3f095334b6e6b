"""`make bench-gpu`: what is claimed of a GPU, measured on the one at hand, in steps, the most telling ones first.

Each step is a process of its own under its own limit, and what it has measured by then goes to figures/bench/gpu_*.csv,
so that a step that fails, or a run that is cut off, costs nothing but itself. Weights are random, in the shape of
Llama-2-7B: speed does not depend on what they are. Plain forwards would take minutes for all variants; they are timed
on a few, spread over the depths, and scaled.
"""

import contextlib
import json
import multiprocessing
import operator
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from transformers import AutoConfig

from benchmarks import empty_store, sweeps, worker
from layer_redundancy.config import sources
from layer_redundancy.config.sources import Amount
from layer_redundancy.core import devices, paths, variants
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.variants import Variant
from layer_redundancy.evaluate import sweep_estimate
from layer_redundancy.evaluate.amounts import Sweep
from layer_redundancy.evaluate.batches import arrange
from layer_redundancy.evaluate.sweep_estimate import Missing
from layer_redundancy.models import architectures, checkpoints, smollm2, throughput
from layer_redundancy.models import compiled as compiled_blocks
from layer_redundancy.models.checks import sharing
from layer_redundancy.models.stack import DecoderStack
from layer_redundancy.planning import plan as planning
from layer_redundancy.planning import rates, stand_ins

TEXT, QUESTIONS = "running text", "five-shot questions"
# Kinds of input: tokens that all sequences begin with, tokens of their own, targets.
KINDS = {TEXT: (0, 1023, 1), QUESTIONS: (600, 120, 4)}
TOTAL_SECONDS = 600
SAMPLED = 3  # variants that plain forwards run
PEERS = {"plain": "eager plain forwards", "hflm": "lm-eval's HFLM", "compiled": "compiled plain forwards"}

# (step, what is measured) -> what it has to be.
TARGETS = {
    (TEXT, "share of the matmul rate"): (">=", 0.75),
    (QUESTIONS, "share of the matmul rate"): (">=", 0.60),
    (TEXT, "times as fast as eager plain forwards"): (">=", 3.0),
    (QUESTIONS, "times as fast as eager plain forwards"): (">=", 15.0),
    ("importance", "time of a bare forward"): ("<=", 1.1),
    ("plan", f"error on {TEXT}"): ("within", 0.15),
    ("plan", f"error on {QUESTIONS}"): ("within", 0.15),
    ("equality", "float32, nats a token apart"): ("<=", 1e-5),
    ("equality", "bfloat16, nats a token apart"): ("<=", 0.05),
    ("equality", "float32 compiled, nats a token apart"): ("<=", 1e-5),
    ("equality", "bfloat16 compiled, nats a token apart"): ("<=", 0.05),
    ("notebooks", "all, seconds"): ("<=", 240.0),
}
RELATIONS = {"<=": operator.le, ">=": operator.ge, "within": lambda value, target: abs(value) <= target}

Measured = Iterator[tuple[str, Any]]  # what, and its value

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Setting:
    """What is measured, and where.

    Attributes:
        config: fields of a transformers config, `model_type` among them.
        dtype: dtype of the weights.
        device: "cuda" or "cpu".
        sequences: number of sequences of each kind of input.
        kinds: kind of input -> prefix, tokens of its own, targets.
        calibration: number and tokens of the sequences for importance measures.
        profile: the profile whose notebooks are run.
        tests: which architectures are tried, a pytest expression; "" for all.
        backend: what torch compiles plain forwards with.
    """

    config: dict[str, Any]
    dtype: str
    device: str
    sequences: int = 64
    kinds: dict[str, tuple[int, int, int]] = field(default_factory=lambda: dict(KINDS))
    calibration: tuple[int, int] = (16, 2048)
    profile: str = "embedded"
    tests: str = ""
    backend: str = "inductor"

    @property
    def job(self) -> dict[str, Any]:
        """As `worker` takes it."""
        job = {"config": self.config, "dtype": self.dtype, "device": self.device, "backend": self.backend}
        # As a whole benchmark would be: for so few questions alone it would not pay.
        return job | {"compiled": True if devices.is_gpu(self.device) else None}

    @cached_property
    def plan(self) -> list[Variant]:
        """Removal of every block alone, and of more and more in an order that has been published."""
        num = self.config["num_hidden_layers"]
        order = [b for b in stand_ins.order("meta-llama/Llama-2-7b-hf", max(num, 32)) if b < num]
        return list(dict.fromkeys([*variants.single_removal(num), *variants.cumulative_removal(num, order)]))

    def spec(self, kind: str) -> dict[str, Any]:
        """What is measured on a kind of input, as `worker.measurement` takes it."""
        prefix, length, targets = self.kinds[kind]
        return {"kind": "random", "count": self.sequences, "prefix": prefix, "length": length, "targets": targets}

    def amount(self, kind: str) -> Amount:
        """How much of it there is, as `make plan` counts."""
        prefix, length, targets = self.kinds[kind]
        scored = self.sequences * (length if targets == 1 else 1)
        tokens, shared = self.sequences * (prefix + length), prefix + self.sequences * length
        return Amount(self.sequences, self.sequences, tokens, shared, scored)


# ------------------------------------------------------------------------------------------------ the steps


def machine(setting: Setting) -> Measured:
    """What the others are measured on."""
    yield "device", devices.name(setting.device)
    yield "torch", torch.__version__
    # The matrix products of float32 weights; torch's own default is to leave it off.
    yield "TF32", torch.backends.cuda.matmul.allow_tf32
    dtype = checkpoints.DTYPES[setting.dtype]
    yield "matmul rate, TFLOP/s", devices.matmul_rate(dtype, setting.device) / 1e12
    if devices.is_gpu(setting.device):
        yield "matmul rate over three seconds, TFLOP/s", devices.matmul_rate(dtype, setting.device, 3.0) / 1e12


def running_text(setting: Setting) -> Measured:
    """A sweep of running text."""
    return _sweep(setting, TEXT)


def questions(setting: Setting) -> Measured:
    """A sweep of questions that share a long prefix."""
    return _sweep(setting, QUESTIONS)


def _sweep(setting: Setting, kind: str) -> Measured:
    """Its seconds, what they come to, and the least that blocks and head would have taken."""
    identity, stack = worker.load(setting.job)
    begun = time.perf_counter()
    batch = throughput.batch_tokens(compiled_blocks.compiled(stack) if setting.job["compiled"] else stack)
    job = setting.job | {"measurement": setting.spec(kind), "batch_tokens": batch}
    clock = worker.Clock(stack.device)
    run = worker.SIDES["shared"](job, identity, stack, clock)
    clock.time(run, setting.plan[:1])  # compiles what has not been compiled
    before = time.perf_counter() - begun
    _, one, _ = clock.time(run, setting.plan[:1])
    devices.reset_peak(stack.device)
    _, seconds, _ = clock.time(run, setting.plan)
    cost = _cost(stack, setting, kind)
    yield "variants", len(setting.plan)
    yield "sequences", setting.sequences
    yield "tokens a batch", batch
    yield "seconds", seconds
    yield "seconds before it, to compile and to find the tokens a batch", max(0.0, before - one)
    yield "naive tokens a second", cost["block_tokens_naive"] / len(stack) / seconds
    yield "block-tokens, of naive", cost["block_tokens_shared"] / cost["block_tokens_naive"]
    operations = sweeps.operations(stack, cost) / 1e12
    yield "TFLOP/s", operations / seconds
    yield "peak, GB", devices.peak_bytes(stack.device) / 1e9
    floor, allowed = _floor(setting, job, identity, stack, cost)
    yield "floor, seconds", floor
    yield "floor, TFLOP/s", operations / floor
    yield "floor, of the seconds", floor / seconds
    yield "times as fast as sharing alone allows", allowed


def _cost(stack: DecoderStack, setting: Setting, kind: str) -> dict[str, int]:
    sequences = worker.measurement(setting.job | {"measurement": setting.spec(kind)}, None).sequences
    return sweep_estimate.amounts([Missing.all_of(arrange(sequences, sharing(stack.model)), setting.plan)])


def _floor(
    setting: Setting, job: dict, identity: Any, stack: DecoderStack, cost: dict[str, int]
) -> tuple[float, float]:
    """Seconds of blocks and head alone, and the ratio to the naive ones'."""
    clock = worker.Clock(stack.device)
    run = worker.SIDES[sweeps.FLOOR](job, identity, stack, clock)
    run([])
    answers = []
    for _ in range(3):
        values, seconds, head = clock.time(run, [])
        answers.append({"seconds": seconds, "head_seconds": head, "values": values})
    shared, naive = sweeps.floors(answers, cost)
    return shared, naive / shared


def plain_forwards(setting: Setting) -> Measured:
    """Seconds that others would take for all variants, by a few of them."""
    identity, stack = worker.load(setting.job)
    for side, title in PEERS.items():
        for kind in setting.kinds:
            job = setting.job | {"measurement": setting.spec(kind), "batch_tokens": throughput.batch_tokens(stack)}
            clock = worker.Clock(stack.device)
            run = worker.SIDES[side](job, identity, stack, clock)
            chosen = [setting.plan[i] for i in sweeps.sample(setting.plan, min(SAMPLED, len(setting.plan)), 0)]
            run(chosen[:1])
            _, seconds, _ = clock.time(run, chosen)
            # By their blocks, since those of a few variants are not quite as many on average as those of all.
            yield f"{title}, {kind}, seconds", seconds * sum(map(len, setting.plan)) / sum(map(len, chosen))


def importance(setting: Setting) -> Measured:
    """Every importance measure and the angular grid, beside the bare forward."""
    identity, stack = worker.load(setting.job)
    count, length = setting.calibration
    job = setting.job | {"calibration": {"calibration_blocks": count, "block_length": length}}
    job["batch_tokens"] = 8 * length
    clock = worker.Clock(stack.device)
    sides = {side: worker.SIDES[side](job, identity, stack, clock) for side in ("every_measure", "bare")}
    for run in sides.values():
        run([])
    seconds = {side: [] for side in sides}
    for _ in range(3):
        for side, run in sides.items():
            seconds[side].append(clock.time(run, [])[1])
    ours, bare = (float(np.median(seconds[side])) for side in ("every_measure", "bare"))
    yield "tokens", count * length
    yield "seconds", ours
    yield "seconds of a bare forward", bare
    yield "time of a bare forward", ours / bare


def plan(setting: Setting) -> Measured:
    """Seconds that `make plan` names for both sweeps, from two blocks."""
    architectures.register()
    started = time.perf_counter()
    stack = rates.probe(AutoConfig.for_model(**setting.config), setting.dtype, setting.device)
    tokens = throughput.batch_tokens(stack)
    speed = rates.Speed(stack, setting.config["num_hidden_layers"], tokens, setting.job["compiled"])
    for kind in setting.kinds:
        planned = Sweep(kind, setting.amount(kind), tuple(setting.plan))
        yield f"{kind}, seconds", planning.sweep_seconds(planned, speed)
        yield f"{kind}, peak, GB", planning.peak_bytes_of([planned], speed) / 1e9
    yield "seconds to compile", speed.warm_up
    yield "seconds it took", time.perf_counter() - started


def equality(setting: Setting) -> Measured:
    """Sweeps of every tiny architecture against plain forwards, as the tests do it, on this device."""
    import pytest

    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        chosen = "equals_one_plain_forward" + (f" and ({setting.tests})" if setting.tests else "")
        where = [str(paths.ROOT / "tests" / "evaluate" / "test_sweep.py"), "--device", setting.device, "-k", chosen]
        # Each by name, as it ends: a step that is cut off has said which failed.
        ended = pytest.main([*where, "-v", "-p", "no:cacheprovider", f"--junitxml={report}"])
        if not report.is_file():
            raise StudyError(f"pytest ended with {ended!r}")
        cases = list(xml.etree.ElementTree.parse(report).iter("testcase"))
    found: dict[str, float] = {}
    for case in cases:
        for one in case.iter("property"):
            found[one.get("name", "")] = max(found.get(one.get("name", ""), 0.0), float(one.get("value", "nan")))
    for name, worst in found.items():
        yield f"{name}, nats a token apart", worst
    failed = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    yield "architectures and dtypes", len(cases)
    yield "of these not equal", len(failed)
    if failed:
        raise StudyError(f"not equal: {', '.join(map(str, failed))}")


def notebooks(setting: Setting) -> Measured:
    """Seconds of a profile's notebooks, four at a time, from an empty store."""
    begun = time.monotonic()
    smollm2.folder()
    yield "making the embedded model ready, seconds", time.monotonic() - begun
    with empty_store.work_folder() as (folder, environment):
        environment["LAYER_REDUNDANCY_DEVICE"] = setting.device
        sources_of = sorted(paths.NOTEBOOKS.glob("[0-9]*.ipynb"))
        runs = {notebook: folder / "data" / "runs" / setting.profile / notebook.name for notebook in sources_of}
        command = [sys.executable, "-m", "layer_redundancy.run_notebooks", "--profile", setting.profile, "--jobs", "4"]
        command += [f"{notebook}:{output}" for notebook, output in runs.items()]
        started = time.monotonic()
        process = subprocess.Popen(command, env=environment, cwd=paths.ROOT)
        left, ended = list(runs.values()), False
        while left and not ended:
            ended = process.poll() is not None
            for output in [output for output in left if _duration(output)]:
                left.remove(output)
                yield f"{output.stem}, seconds", _duration(output)
            time.sleep(0.5)
        process.wait()
        if not left:  # the time of some is no time of all
            yield "all, seconds", time.monotonic() - started
        verify = [sys.executable, "-m", "layer_redundancy.cli", "verify", setting.profile, "--brief", "--no-fail"]
        subprocess.run(verify, env=environment, cwd=paths.ROOT)
        if left:
            raise StudyError(f"not finished: {', '.join(output.stem for output in left)}")


def _duration(executed: Path) -> float | None:
    """Seconds that a notebook took, once it has ended."""
    if not executed.is_file():
        return None
    return json.loads(executed.read_text(encoding="utf-8"))["metadata"].get("papermill", {}).get("duration")


# Name -> step, and how many seconds it may take.
STEPS: dict[str, tuple[Callable[[Setting], Measured], int]] = {
    "machine": (machine, 60),
    TEXT: (running_text, 120),
    QUESTIONS: (questions, 80),
    "plain forwards": (plain_forwards, 120),
    "importance": (importance, 60),
    "plan": (plan, 60),
    "equality": (equality, 120),
    "notebooks": (notebooks, 300),
}


# ------------------------------------------------------------------------------------------------ running them


def _child(name: str, setting: Setting, path: Path) -> None:
    """A step's process."""
    os.setsid()  # so that whatever it starts can be ended with it
    if torch.cuda._is_in_bad_fork():  # some import has asked CUDA for something: only a process of its own can
        again = multiprocessing.get_context("spawn").Process(target=_measure, args=(name, setting, path))
        again.start()
        again.join()
        sys.exit(again.exitcode)
    _measure(name, setting, path)


def _measure(name: str, setting: Setting, path: Path) -> None:
    """Runs a step and writes a line of JSON for each thing that it measures."""
    with path.open("a", encoding="utf-8") as file:
        try:
            for what, value in STEPS[name][0](setting):
                file.write(json.dumps([what, value]) + "\n")
                file.flush()
        except StudyError as error:
            file.write(json.dumps(["failed", str(error)]) + "\n")


def run_step(name: str, setting: Setting, limit: float) -> tuple[dict[str, Any], str]:
    """Runs a step for `limit` seconds at most; what it measured, and why it ended early ("" where it did not).

    It is a fork, which spares it the imports; so this process never asks CUDA for anything.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "measured"
        path.touch()
        process = multiprocessing.get_context("fork").Process(target=_child, args=(name, setting, path))
        process.start()
        try:
            process.join(limit)
            ended = process.exitcode
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()
        found = dict(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    late = f"it took longer than {limit:.0f} s"
    return found, found.pop("failed", "" if ended == 0 else late if ended is None else f"exit code {ended}")


def compared(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """With what steps say together: shares of the machine's rate, how many times as fast, how far off the plan was."""
    found = {step: dict(values) for step, values in found.items()}
    for kind in KINDS:
        seconds = found.get(kind, {}).get("seconds")
        if seconds is None:
            continue
        rate = found.get("machine", {}).get("matmul rate, TFLOP/s")
        for prefix in ("", "floor, ") if rate else ():
            if reached := found[kind].get(f"{prefix}TFLOP/s"):
                found[kind][f"{prefix}share of the matmul rate"] = reached / rate
        for title in PEERS.values():
            theirs = found.get("plain forwards", {}).get(f"{title}, {kind}, seconds")
            if theirs is not None:
                found[kind][f"times as fast as {title}"] = theirs / seconds
        planned = found.get("plan", {}).get(f"{kind}, seconds")
        if planned is not None:
            found["plan"][f"error on {kind}"] = planned / seconds - 1
    return found


def table(found: dict[str, dict[str, Any]], stopped: dict[str, str]) -> pd.DataFrame:
    """One row a thing measured: step, what, value or text, target, met; what ended a step early is a row of its own."""
    rows = []
    for step, values in compared(found).items():
        for what, value in values.items():
            relation, target = TARGETS.get((step, what), ("", None))
            met = "" if target is None else "yes" if RELATIONS[relation](value, target) else "no"
            asked = "" if target is None else f"{relation} {target:g}"
            text = str(value) if isinstance(value, str | bool) else ""
            rows.append((step, what, None if text else value, text, asked, met))
        if stopped.get(step):
            rows.append((step, "ended early", None, stopped[step], "", "no"))
    return pd.DataFrame(rows, columns=["step", "what", "value", "text", "target", "met"])


def run(setting: Setting, steps: Sequence[str], folder: Path, seconds: float = TOTAL_SECONDS) -> pd.DataFrame:
    """Runs steps one after the other, and writes the table after each of them.

    Args:
        setting: what is measured.
        steps: names of STEPS.
        folder: where gpu_<device>.csv goes; what an earlier run of other steps wrote there on this device stays.
        seconds: what all of them may take together.
    """
    path = folder / f"gpu_{setting.device}.csv"
    folder.mkdir(parents=True, exist_ok=True)
    earlier = pd.read_csv(path).fillna({"text": "", "target": "", "met": ""}) if path.is_file() else None
    found: dict[str, dict[str, Any]] = {}
    stopped: dict[str, str] = {}
    started = time.monotonic()
    for step in dict.fromkeys(["machine", *steps]):
        begun = time.monotonic()
        left = min(STEPS[step][1], seconds - (begun - started))
        found[step], stopped[step] = run_step(step, setting, left) if left > 0 else ({}, "no time was left")
        found[step]["seconds of the step"] = time.monotonic() - begun
        rows = table(found, stopped).assign(device=found["machine"].get("device", setting.device))
        print(f"--- {step}", shown(rows[rows["step"] == step]), sep="\n", flush=True)
        if earlier is not None:
            kept = earlier[(earlier["device"] == rows["device"][0]) & ~earlier["step"].isin(rows["step"])]
            rows = pd.concat([rows, kept])
        rows.to_csv(path, index=False, float_format="%.6g")
    return rows


def shown(rows: pd.DataFrame) -> str:
    """Rows as lines."""
    lines = []
    for row in rows.itertuples():
        value = row.text or f"{row.value:.4g}"
        verdict = f" ({row.target}: {'met' if row.met == 'yes' else 'MISSED'})" if row.target else ""
        lines.append(f"  {row.what}: {value}{verdict}")
    return "\n".join(lines)


@app.command()
def main(
    config: Annotated[str, typer.Option(help="JSON of another shape than Llama-2-7B's")] = "",
    device: Annotated[str, typer.Option(help="cuda, or cpu to try this out")] = "cuda",
    dtype: Annotated[str, typer.Option(help="of the weights")] = "bfloat16",
    sequences: Annotated[int, typer.Option(help="of each kind", min=1)] = 64,
    steps: Annotated[str, typer.Option(help=f"some of {', '.join(STEPS)}, with commas between; all if empty")] = "",
    out: Annotated[Path, typer.Option(help="folder for the table")] = paths.FIGURES / "bench",
    seconds: Annotated[float, typer.Option(help="that all steps may take together", min=1)] = TOTAL_SECONDS,
) -> None:
    """Measures on a GPU, in ten minutes at most; writes figures/bench/gpu_cuda.csv."""
    chosen = [step.strip() for step in steps.split(",")] if steps else list(STEPS)
    if unknown := [step for step in chosen if step not in STEPS]:
        raise SystemExit(f"error: unknown step {unknown[0]!r}: choose from {', '.join(STEPS)}")
    setting = Setting(json.loads(config) if config else dict(sources.LLAMA_2_7B), dtype, device, sequences)
    rows = run(setting, chosen, out, seconds)
    for step, of_step in rows[rows["target"] != ""].groupby("step", sort=False):
        print(f"{step}:", shown(of_step), sep="\n")


if __name__ == "__main__":
    app()
