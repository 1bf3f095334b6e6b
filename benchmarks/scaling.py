"""`make bench-scaling`: how long the paper profile would take on 1 to 1024 GPUs, simulated; results in figures/bench/.

What notebooks ask for is counted as `make plan` does, cut into pieces and scheduled (`planning.workers`). Rates are
those that `make bench-gpu` measured in the shape of Llama-2-7B; other shapes do as many operations a second. Nothing
runs on a GPU here.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import matplotlib.pyplot as plt
import pandas as pd
import typer
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from benchmarks.gpu import KINDS, QUESTIONS, TEXT
from layer_redundancy.config import profiles, sources
from layer_redundancy.config.profiles import TaskBudget
from layer_redundancy.config.sources import Amount
from layer_redundancy.core import paths
from layer_redundancy.evaluate.amounts import Quantization, Sweep, Training, Work, Writing
from layer_redundancy.figures import saving
from layer_redundancy.figures.style import BLUE, GREY, ORANGE, SKY, WIDTH, styled
from layer_redundancy.models import checkpoints
from layer_redundancy.models.stack import decoder_stack
from layer_redundancy.planning import workers as sharing
from layer_redundancy.planning.dry import Ledger
from layer_redundancy.planning.plan import COLUMN_SECONDS, DISK_RATE, FITS, START_SECONDS
from layer_redundancy.planning.planner import Planner, config_of
from layer_redundancy.planning.schedule import Step
from layer_redundancy.planning.workers import Shared, Together
from layer_redundancy.train import training_loop

MODELS = {
    "Llama-2-7B": "meta-llama/Llama-2-7b-hf",
    "Llama-2-13B": "meta-llama/Llama-2-13b-hf",
    "Llama-2-70B": "meta-llama/Llama-2-70b-hf",
}
GPUS = tuple(2**n for n in range(11))
GPU_BYTES = 80e9
BESIDES_WEIGHTS = 1.1  # memory that a sweep takes, of the weights': states where paths branch, and one forward
ELEMENT = 2  # bytes of a weight in bfloat16
# Not measured: seconds a block for one more token of a batch of texts, and float32 products without TF32, of GPTQ.
WRITTEN_BLOCK_SECONDS = 1e-3
PRODUCT_RATE = 5e13
UNCOUNTED = Amount(50, 200, 9000, 5000, 200)  # of the two small tasks that no one has counted
OVERHEAD = "a task, 64 workers"  # in figures/bench/cluster.csv, seconds

# What is run -> its colour, marker and line.
ALL, SIDE_BY_SIDE, SWEEPS = "all, as the notebooks ask for it", "all, trainings side by side", "sweeps alone"
PLANS = {ALL: (BLUE, "o", "-"), SIDE_BY_SIDE: (ORANGE, "s", "-"), SWEEPS: (SKY, "^", "-")}

LIMITS = {
    "work": "the number of GPUs",
    "chain": "the longest chain",
    "waiting": "steps that wait for each other",
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Shape:
    """What decides how long a model's work takes.

    Attributes:
        blocks: number of blocks.
        block: weights of a block's matrices, the mean over its blocks.
        head: weights of the head.
        weights: all weights.
        matrices: (out, in) of the matrices of the first block.
    """

    blocks: int
    block: float
    head: int
    weights: int
    matrices: tuple[tuple[int, int], ...]

    @property
    def gpus(self) -> int:
        """Number of GPUs that hold it."""
        return math.ceil(BESIDES_WEIGHTS * ELEMENT * self.weights / GPU_BYTES)


@cache
def shape(model: str) -> Shape:
    """The shape of a model that `sources` or the hub's cache knows."""
    config = config_of(model, sources.pinned(model))
    with checkpoints.shapes_of(config) as whole:
        stack = decoder_stack(whole)
        of_blocks = [[p.shape for p in block.parameters() if p.dim() == 2] for block in stack.blocks]
        sizes = [sum(rows * columns for rows, columns in block) for block in of_blocks]
        head = whole.get_output_embeddings().weight.numel()
        every = sum(p.numel() for p in whole.parameters())
    matrices = tuple((rows, columns) for rows, columns in of_blocks[0])
    return Shape(len(sizes), sum(sizes) / len(sizes), head, every, matrices)


@dataclass(frozen=True)
class Measured:
    """What was measured on one GPU, in floating-point operations a second of blocks and head.

    Attributes:
        text, questions: sweeps of running text, and of questions that share a long prefix.
        eager: forwards whose blocks are not compiled.
        compiling: seconds in which a model's blocks are compiled.
        batch_tokens: tokens that a forward held.
        device: the GPU's name.
    """

    text: float
    questions: float
    eager: float
    compiling: float
    batch_tokens: int
    device: str

    @classmethod
    def read(cls, file: Path) -> "Measured":
        """From the table of `make bench-gpu`."""
        table = pd.read_csv(file).set_index(["step", "what"])
        value, llama = table["value"], shape(MODELS["Llama-2-7B"])
        naive = value[TEXT, "naive tokens a second"] * value[TEXT, "seconds"]  # through all blocks
        heads = value[TEXT, "variants"] * value[TEXT, "sequences"] * KINDS[TEXT][1]
        operations = 2 * (naive * llama.blocks * llama.block + heads * llama.head)
        return cls(
            value[TEXT, "TFLOP/s"] * 1e12,
            value[QUESTIONS, "TFLOP/s"] * 1e12,
            operations / value["plain forwards", f"eager plain forwards, {TEXT}, seconds"],
            value["plan", "seconds to compile"],
            int(value[TEXT, "tokens a batch"]),
            str(table.loc[("machine", "device"), "text"]),
        )


def rates(of: Shape, measured: Measured) -> sharing.Rates:
    """How long work takes on one worker; several GPUs that hold a model together work one after the other."""

    def of_sweep(sweep: Sweep) -> tuple[float, float]:
        shares = sweep.keeps_prefixes and sweep.amount.shared < sweep.amount.tokens
        operations = measured.questions if shares else measured.text
        return operations / (2 * of.block), operations / (2 * of.head)

    block_rate, head_rate = measured.eager / (2 * of.block), measured.eager / (2 * of.head)

    def seconds(work: Work) -> float:
        took = work.block_tokens / block_rate
        if isinstance(work, Training):
            return took + work.head_tokens / head_rate
        if isinstance(work, Writing):
            width = work.amount.tokens / max(1, work.amount.items) + work.amount.answers
            rows = max(1, measured.batch_tokens // round(width))
            steps = -(-work.amount.items // rows) * work.amount.answers
            return sum(work.blocks) * (work.amount.tokens / block_rate + steps * WRITTEN_BLOCK_SECONDS)
        if isinstance(work, Quantization):
            if not work.tokens:
                return work.blocks * of.block / 1e9
            products = sum(2 * work.tokens * i * i + i**3 + 2 * o * i * i for o, i in of.matrices)
            columns = sum(i for _, i in of.matrices)
            return 2 * took + work.blocks * (products / PRODUCT_RATE + columns * COLUMN_SECONDS)
        return took

    return sharing.Rates(of_sweep, seconds, measured.batch_tokens)


def fits(model: str, training: Training) -> bool:
    """Whether the GPUs of a worker hold a training, activations not counted."""
    of = shape(model)
    trained = {"full": of.weights, "partial": training.recipe.last_blocks * of.block}.get(training.recipe.method, 0)
    return training_loop.bytes_needed(trained, ELEMENT * of.weights) <= FITS * of.gpus * GPU_BYTES


def pages(model: str) -> dict[str, Ledger]:
    """Notebook -> what it asks for, of the paper profile on a model."""

    def count(model: str, budget: TaskBudget) -> Amount:
        return UNCOUNTED

    profile = profiles.get("paper", model="" if model == profiles.get("paper").model else model)
    planner = Planner(profile, fits, count)
    return {number: study.ledger for number, study in planner.pages(model, planner.models()[model])}


def chains(page: Ledger, plan: str) -> list[Ledger]:
    """What of a notebook waits for each other, by one of `PLANS`."""
    steps = page.steps()
    if plan == SWEEPS:
        swept = [[one for one in step if isinstance(one[1], Sweep)] for step in steps]
        return [sharing.ledger([step for step in swept if step])]
    return [page] if plan == ALL else sharing.apart(page)


def shared(model: str, found: dict[str, Ledger], plan: str, number: int, measured: Measured) -> list[Shared]:
    """The notebooks of a model, cut into pieces for so many workers."""

    def of(name: str) -> sharing.Rates:
        return rates(shape(name), measured)

    return [
        sharing.share(model, notebook, part, of, number, Step(alone=START_SECONDS))
        for notebook, page in found.items()
        for part in chains(page, plan)
        if part.work
    ]


def guessed(found: dict[str, Ledger], plan: str, measured: Measured) -> float:
    """Share of one worker's time that goes into writing and quantizing, whose rates nobody has measured."""
    spent = {True: 0.0, False: 0.0}
    for page in found.values():
        for name, work in (one for part in chains(page, plan) for one in part.work):
            of = rates(shape(name), measured)
            if isinstance(work, Sweep):
                blocks, head = of.sweep(work)
                spent[False] += work.block_tokens / blocks + work.head_tokens / head
            else:
                spent[isinstance(work, Writing | Quantization)] += of.seconds(work)
    return spent[True] / max(1e-9, sum(spent.values()))


def on_gpus(model: str, measured: Measured, overhead: float, gpus: Sequence[int]) -> Iterator[dict]:
    """One row a plan and number of GPUs; columns as `table` has them."""
    own, found = shape(model), pages(model)
    names = {name for page in found.values() for name, _ in page.work}
    loading = {name: ELEMENT * shape(name).weights / DISK_RATE + measured.compiling for name in names}
    for plan in PLANS:
        first: Together | None = None
        unknown = guessed(found, plan, measured)
        for number in gpus:
            workers = number // own.gpus
            if not workers:
                continue
            cut = shared(model, found, plan, workers, measured)
            together = sharing.together(cut, workers, loading, overhead)
            first = first or together
            took, ideal = together.found.seconds, first.found.seconds / workers
            yield {
                "plan": plan,
                "gpus": number,
                "workers": workers,
                "pieces": sum(one.tasks for one in cut),
                "seconds": took,
                "ideal_seconds": ideal,
                "efficiency": ideal / took,
                "chain": together.longest[0].partition(" of ")[0],
                "chain_seconds": together.longest[1],
                "lost": again(cut),
                **{what.replace(" ", "_"): share for what, share in together.shares.items()},
                "limit": LIMITS.get(together.cause, together.cause),
                "guessed": unknown,
            }


def again(cut: Sequence[Shared]) -> float:
    """Block-tokens of all sweeps that run once more because variants were cut, as a share."""
    swept = sum(one.swept for one in cut)
    return sum(one.lost * one.swept for one in cut) / swept if swept else 0.0


def table(measured: Measured, overhead: float, gpus: Sequence[int] = GPUS) -> pd.DataFrame:
    """One row a model, plan and number of GPUs.

    Columns: model, blocks, gpus_a_worker, rates (how they are known), operations (of a block-token, beside
    Llama-2-7B's), plan, gpus, workers, pieces, seconds, ideal_seconds (of one worker, divided by their number),
    efficiency (ideal_seconds over seconds), chain and chain_seconds (of the longest, on any number of workers),
    lost (block-tokens of sweeps that run once more, as a share), the shares of workers' time, limit, guessed
    (share of one worker's time at rates that nobody has measured), overhead_seconds (a piece).
    """
    rows, least = [], shape(MODELS["Llama-2-7B"])
    for title, model in MODELS.items():
        of = shape(model)
        known = "measured" if of == least else "scaled by operations a block-token"
        about = {"model": title, "blocks": of.blocks, "gpus_a_worker": of.gpus, "rates": known}
        about |= {"operations": of.block / least.block}
        rows += [about | row | {"overhead_seconds": overhead} for row in on_gpus(model, measured, overhead, gpus)]
    return pd.DataFrame(rows)


@styled
def time_by_gpus(rows: pd.DataFrame) -> Figure:
    """Hours against the number of GPUs, a panel a model; as many times faster as there are GPUs is dotted.

    Args:
        rows: as `table` gives them.
    """
    models = list(dict.fromkeys(rows["model"]))
    figure = plt.figure(figsize=(WIDTH, 4.2), layout="constrained")
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        for plan, (colour, marker, line) in PLANS.items():
            of = rows[(rows["model"] == model) & (rows["plan"] == plan)].sort_values("gpus")
            axes.plot(of["gpus"], of["seconds"] / 3600, line, color=colour, marker=marker, label=plan)
            axes.plot(of["gpus"], of["ideal_seconds"] / 3600, ":", color=colour, lw=1)
            below = of[of["efficiency"] < 0.5]
            if len(below):
                at = below.iloc[0]
                axes.plot(at["gpus"], at["seconds"] / 3600, "o", ms=10, mfc="none", color=colour)
        axes.plot([], [], ":", color=GREY, lw=1, label="n times as fast on n GPUs")
        axes.plot([], [], "o", ms=10, mfc="none", color=GREY, ls="", label="efficiency below one half from here on")
        each = int(rows.loc[rows["model"] == model, "gpus_a_worker"].iloc[0])
        axes.set_title(f"{model}, {each} GPU{'s' * (each > 1)} a worker")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(LogLocator(base=4))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("GPUs")
    panels[0].set_ylabel("hours")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3, frameon=False)
    return figure


def measured_overhead(file: Path) -> float:
    """Seconds that a piece costs beside its own, as measured on a cluster; what a plan takes where it was not."""
    if not file.is_file():
        return sharing.TASK_SECONDS
    return float(pd.read_csv(file).set_index("what")["value"].get(OVERHEAD, sharing.TASK_SECONDS))


@app.command()
def main(
    overhead: Annotated[
        float | None, typer.Option(help="seconds a piece beside its own; as figures/bench/cluster.csv has it", min=0)
    ] = None,
    out: Annotated[Path, typer.Option(help="folder for the table and the figure")] = paths.FIGURES / "bench",
) -> None:
    """Simulates the paper profile on 1 to 1024 GPUs; writes figures/bench/scaling.*."""
    bench = paths.FIGURES / "bench"
    measured = Measured.read(bench / "gpu_cuda.csv")
    seconds = measured_overhead(bench / "cluster.csv") if overhead is None else overhead
    rows = table(measured, seconds)
    caption = (
        f"Simulated, not run: the paper profile's notebooks on each model, bfloat16, {GPU_BYTES / 1e9:.0f} GB a GPU. "
        f"Rates of Llama-2-7B's shape measured on one {measured.device}; other shapes at as many operations a second. "
        f"Pieces of about a minute, {seconds:.2g} s of overhead each; "
        f"weights are read at {DISK_RATE / 1e9:g} GB a second"
    )
    saving.save(time_by_gpus(rows), rows, out, "scaling", caption)
    shown = rows[["model", "plan", "gpus", "pieces", "seconds", "efficiency", "lost", "chain_seconds", "limit"]]
    print(shown.to_string(index=False, float_format="{:.3g}".format))
    print(f"figure and table: {os.path.relpath(out)}/scaling.*")


if __name__ == "__main__":
    app()
