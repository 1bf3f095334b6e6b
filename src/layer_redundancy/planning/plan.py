"""`make plan`: what a run of a profile takes, before anything starts.

The notebooks' own experiments run dry; what they ask for becomes hours, memory and disk by rates that are timed here on
two blocks with random weights in each model's shape.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch

from layer_redundancy.config import cluster, profiles
from layer_redundancy.config.profiles import Profile
from layer_redundancy.config.sources import Amount
from layer_redundancy.core import devices, flags, paths
from layer_redundancy.core.arguments import whole
from layer_redundancy.core.cache import write_whole
from layer_redundancy.core.wording import counted, duration
from layer_redundancy.data import hub
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.evaluate import batches, scoring, sweep_estimate
from layer_redundancy.evaluate.amounts import Pass, Quantization, Sweep, Training, Work, Writing, text_amount
from layer_redundancy.experiments import registry
from layer_redundancy.models import architectures, throughput
from layer_redundancy.models.stack import has_key_value_cache
from layer_redundancy.planning import counts, downloads
from layer_redundancy.planning import workers as sharing
from layer_redundancy.planning.dry import Ledger
from layer_redundancy.planning.planner import Planner, config_of, count_here
from layer_redundancy.planning.rates import Speed, linear_shapes, probe
from layer_redundancy.planning.schedule import Step, Task

START_SECONDS = 25.0  # a notebook's kernel, imports, statistics and figures
DISK_RATE = 1e9  # bytes a second at which weights are read
COLUMN_SECONDS = 2e-4  # time a column in GPTQ's loop over a matrix
FITS = 0.9  # share of a device's memory that a training may take
GIGA = 1e9
WORK_WIDTH = 57  # of what `report_work` says of a sweep


def sweep_seconds(found: Sweep, speed: Speed) -> float:
    """How long a sweep's blocks and head run, in seconds."""
    if not found.variants:
        return 0.0
    block_rate, head_rate = speed.rates(found.amount, speed.compiles(found.amount))
    return found.block_tokens / block_rate + found.head_tokens / head_rate


def seconds(page: Ledger, speeds: Mapping[str, Speed], text: Amount) -> float:
    """How long a notebook will take.

    Args:
        page: the work that it asks for.
        speeds: speed of each model in it.
        text: the profile's evaluation text; passes run as fast as on it.
    """
    total = START_SECONDS
    for model, times in page.loads.items():
        total += times * speeds[model].weight_bytes(speeds[model].blocks) / DISK_RATE
    total += sum(work_seconds(work, speeds[model], text) for model, work in page.work)
    compiled = {m for m, work in page.work if isinstance(work, Sweep) and speeds[m].compiles(work.amount)}
    return total + sum(speeds[model].warm_up for model in compiled)


def work_seconds(work: Work, speed: Speed, text: Amount) -> float:
    """How long one piece of work takes; arguments as `seconds`."""
    if isinstance(work, Sweep):
        return sweep_seconds(work, speed)
    if isinstance(work, Pass):
        return work.block_tokens / speed.rates(text)[0]
    if isinstance(work, Quantization):
        return work.blocks * _quantization_seconds(speed, work.tokens, text)
    if isinstance(work, Training):
        block_rate, head_rate = speed.rates(text)
        return work.block_tokens / block_rate + work.head_tokens / head_rate
    fixed, block = speed.writing
    width = work.amount.tokens / max(1, work.amount.items) + work.amount.answers
    rows = max(1, speed.batch_tokens // round(width)) if has_key_value_cache(speed.stack.model) else 1
    steps = -(-work.amount.items // rows) * work.amount.answers
    reading = sum(work.blocks) * work.amount.tokens / speed.rates(text)[0]
    return sum(steps * (fixed + n * block) for n in work.blocks) + reading


def _quantization_seconds(speed: Speed, tokens: int, text: Amount) -> float:
    """Seconds for one block: two passes, a Hessian of each matrix's inputs, its inverse, and the loop over columns."""
    shapes = linear_shapes(speed.stack)
    if not tokens:
        return sum(o * i for o, i in shapes) / 1e9
    operations = sum(2 * tokens * i * i + i**3 + 2 * o * i * i for o, i in shapes)
    loop = sum(i for _, i in shapes) * COLUMN_SECONDS
    return 2 * tokens / speed.rates(text)[0] + operations / speed.product_rate + loop


def peak_bytes_of(sweeps: Sequence[Sweep], speed: Speed) -> float:
    """Most memory of the device: weights, states where paths branch, a forward's workspace and the head's logits."""
    config = speed.stack.model.config.get_text_config()
    element = speed.stack.model.get_input_embeddings().weight.element_size()
    state = speed.batch_tokens * config.hidden_size * element * batches.PREFIX_BATCHES
    held = max((s.held for s in sweeps), default=0) + 2
    logits = scoring.head_bytes(speed.stack, config.vocab_size)
    return (
        speed.weight_bytes(speed.blocks)
        + held * state
        + speed.batch_tokens * sweep_estimate.workspace(speed.stack)
        + logits
    )


@dataclass(frozen=True)
class Row:
    """A notebook of a model, as planned.

    Attributes:
        model: the model's name.
        notebook: the notebook's number.
        variants: number of distinct variants of the notebook's own model.
        block_tokens_naive: block-tokens of sweeps with one plain forward a variant.
        block_tokens: block-tokens of sweeps as they run.
        seconds: total time.
        peak_bytes: peak of the device's memory.
        trainings, trained_tokens: number of trainings of weights, and tokens that they train on.
        training_block_tokens, quantization_block_tokens, pass_block_tokens: block-tokens of each kind of work.
        quantizations: number of quantized checkpoints.
        written_texts: number of texts that variants write.
        left_out: what memory does not suffice for, or why the notebook has nothing to measure.
        disk_bytes: bytes of what is trained, and of the tokens of downloaded corpora that it is trained on.
    """

    model: str
    notebook: str
    variants: int
    block_tokens_naive: int
    block_tokens: int
    seconds: float
    peak_bytes: float
    trainings: int = 0
    trained_tokens: int = 0
    left_out: str = ""
    disk_bytes: float = 0.0
    training_block_tokens: int = 0
    quantizations: int = 0
    quantization_block_tokens: int = 0
    pass_block_tokens: int = 0
    written_texts: int = 0


@flags.checked
def rows(
    profile: Profile,
    notebooks: Sequence[str] | None = None,
    report: Callable[[str], None] = print,
    alone: bool = False,
) -> Iterator[Row]:
    """Plans a profile's notebooks, model by model.

    Args:
        profile: the profile, with the user's own model in place if there is one.
        notebooks: numbers of the notebooks; all if not given.
        report: called with a line on what is measured, since that takes a while.
        alone: plan as if no notebook but these had been run before.
    """
    text = _text(profile)
    for model, number, page, speeds in _pages(profile, notebooks, report, alone):
        yield row_of(model, number, page, speeds, text)


def _text(profile: Profile) -> Amount:
    return text_amount(profile.text.evaluation_blocks, profile.text.block_length)


def _pages(
    profile: Profile, notebooks: Sequence[str] | None, report: Callable[[str], None], alone: bool
) -> Iterator[tuple[str, str, Ledger, Mapping[str, Speed]]]:
    """Model, number and work of each notebook, and the speed of every model in it; arguments as `rows`.

    Speeds are there until the next one is asked for.
    """
    notebooks = registry.numbers() if notebooks is None else notebooks
    device = devices.found(profile.device)
    speeds: dict[str, Speed] = {}

    def speed_of(model: str) -> Speed:
        if model not in speeds:
            report(f"timing two blocks in the shape of {model} ({profile.dtype}, {device})")
            config = config_of(model, counts.revision(profile, model), profile.trust_remote_code)
            stack = probe(config, profile.dtype, device)
            tokens = throughput.batch_tokens(stack, profile.batch_tokens)
            num = architectures.num_blocks(config)
            assert num is not None, "a model of which there is a probe has blocks"
            speeds[model] = Speed(stack, num, tokens, profile.compiled)
        return speeds[model]

    there, _ = device_memory(profile)
    planner = Planner(
        profile,
        fits=lambda model, training: speed_of(model).training_bytes(training) <= FITS * there,
        count=lambda model, budget: count_here(profile, model, budget),
    )
    before = Ledger()
    for model, own in planner.runs():
        wanted = [n for n in own if n in notebooks]
        if not wanted:
            continue
        # All of them, since a later one is spared what an earlier one stores.
        for number, study in planner.pages(model, wanted if alone else own, before):
            if number in wanted:
                page = study.ledger
                for name in {model, *page.loads, *(name for name, _ in page.work)}:
                    speed_of(name)
                yield model, number, page, speeds
        if model != profile.model:
            speeds.pop(model).close()


class Divided:
    """Notebooks as workers of this machine would share them, each as fast as this device with what it has of it.

    Args:
        profile: the profile.
        workers: how many there are.

    Attributes:
        each: what a worker has, in words.
        pages: the notebooks so far, cut into pieces.
    """

    def __init__(self, profile: Profile, workers: int):
        every = devices.every(devices.found(profile.device))
        threads, self._on_gpu = torch.get_num_threads(), devices.is_gpu(every[0])
        self._places = len(every) if self._on_gpu else threads
        self._workers, self._text = workers, _text(profile)
        self._threads = threads if self._on_gpu else max(1, threads // workers)
        self._as_timed = self._threads == threads
        self._sharers = max(1.0, workers / self._places)  # of a GPU, or a thread
        what = "a GPU" if self._on_gpu else counted(self._threads, "thread")
        self.each = f"each with {what}" + (f", which {self._sharers:.3g} share" if self._sharers > 1 else "")
        self.pages: list[sharing.Shared] = []
        self._apart: list[sharing.Shared] = []
        self._speeds: dict[str, Speed] = {}
        self._loading: dict[str, float] = {}

    def add(self, model: str, number: str, page: Ledger, speeds: Mapping[str, Speed]) -> None:
        """Cuts one more notebook into pieces; arguments as `row_of`."""
        names = {name for name, _ in page.work}
        # A probe that is closed is not kept from being freed.
        self._speeds = {name: speed for name, speed in self._speeds.items() if name in speeds}
        for name in names - set(self._speeds):
            one = speeds[name]
            self._speeds[name] = one if self._as_timed else replace(one)  # a copy is timed anew
        # Beside GPUs a notebook has threads of its own, else it takes them from the workers.
        start = Step(alone=START_SECONDS) if self._on_gpu else Step((Task(START_SECONDS * self._sharers),))
        with devices.threads(self._threads):
            self.pages.append(sharing.share(model, number, page, self._rates, self._workers, start))
            for part in sharing.apart(page) or [page]:
                self._apart.append(sharing.share(model, number, part, self._rates, self._workers, start))
                start = Step(alone=START_SECONDS)  # one notebook starts once
        for name in names:
            speed = self._speeds[name]
            self._loading[name] = speed.weight_bytes(speed.blocks) / DISK_RATE + speed.warm_up

    def _rates(self, model: str) -> sharing.Rates:
        speed = self._speeds[model]

        def of_sweep(sweep: Sweep) -> tuple[float, float]:
            blocks, head = speed.rates(sweep.amount, speed.compiles(sweep.amount))
            return blocks / self._sharers, head / self._sharers

        return sharing.Rates(
            of_sweep, lambda work: work_seconds(work, speed, self._text) * self._sharers, speed.batch_tokens
        )

    def lines(self, alone: float) -> list[str]:
        """What is printed of them; `alone` is the seconds of one process."""
        together = sharing.together(self._apart, self._workers, self._loading)
        waiting = sharing.together(self.pages, self._workers, self._loading).found.seconds
        said = sharing.lines(self.pages, together, waiting, alone, self.each)
        if self._sharers > 1:
            what = "GPU" if self._on_gpu else "thread"
            said.append(f"this device has {counted(self._places, what)}: more workers than that gain nothing")
        return said


def packed_bytes(text: TokenBlocks) -> int:
    """Bytes on disk of a text that is trained on: those of downloaded corpora are kept as they are cut."""
    return 8 * text.num_tokens if text.corpus in downloads.CORPORA else 0


def row_of(model: str, number: str, page: Ledger, speeds: Mapping[str, Speed], text: Amount) -> Row:
    """A notebook's work as planned, or any other's; arguments as `seconds`."""
    sweeps, trainings, speed = page.of(Sweep), page.of(Training, model), speeds[model]
    peak = [peak_bytes_of(page.of(Sweep, model), speed), *map(speed.training_bytes, trainings)]
    quantizations, passes = page.of(Quantization), page.of(Pass)
    return Row(
        model,
        number,
        variants=len({v for one in page.of(Sweep, model) for v in one.variants}),
        block_tokens_naive=sum(one.block_tokens_naive for one in sweeps),
        block_tokens=sum(one.block_tokens for one in sweeps),
        seconds=seconds(page, speeds, text),
        peak_bytes=max(peak),
        trainings=len(trainings),
        trained_tokens=sum(one.tokens for one in trainings),
        left_out=", ".join(dict.fromkeys(page.left_out)),
        disk_bytes=speed.disk_bytes(trainings) + sum(map(packed_bytes, page.texts.values())),
        training_block_tokens=sum(one.block_tokens for one in trainings),
        quantizations=len(quantizations),
        quantization_block_tokens=sum(one.block_tokens for one in quantizations),
        pass_block_tokens=sum(one.block_tokens for one in passes),
        written_texts=sum(one.amount.items * len(one.blocks) for one in page.of(Writing)),
    )


def cache_folder() -> Path:
    """The hub's cache folder, or its nearest parent that exists."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    while not folder.exists():
        folder = folder.parent
    return folder


def report_downloads(found: Sequence[downloads.Download]) -> list[str]:
    """Lines on what is to be downloaded, and whether it fits."""
    missing = [d for d in found if not d.here]
    lines = []
    for d in found:
        state = "here" if d.here else f"{d.gigabytes:.2f} GB" if d.gigabytes >= 0.01 else "< 0.01 GB"
        licence = d.licence or "no licence named"
        lines.append(f"  {d.name:<34} {state:>10}  {d.source}  [{licence}]{f'; {d.note}' if d.note else ''}")
    need, folder = sum(d.gigabytes for d in missing if d.gigabytes == d.gigabytes), cache_folder()
    free = shutil.disk_usage(folder).free / GIGA
    # Benchmarks lie there twice: as downloaded, and as the tables that are read.
    verdict = "enough" if free > 1.1 * need + 1 else "TOO LITTLE: free some space, or set HF_HOME to another disk"
    lines.append(
        f"disk: {1.1 * need + 1:.1f} GB needed for {counted(len(missing), 'download')}, {free:.1f} GB free ({verdict})"
    )
    return lines


def device_memory(profile: Profile) -> tuple[int, str]:
    """Bytes of memory of the device that a profile runs on, and the device's name."""
    every = devices.every(devices.found(profile.device))
    there = sum(map(devices.total_memory, every))
    name = devices.name(every[0])
    return there, f"{len(every)} x {name}" if devices.is_gpu(every[0]) else f"{name}, no GPU"


def report_memory(planned: Sequence[Row], profile: Profile) -> str:
    """One line on the device's memory."""
    peak = max(planned, key=lambda row: row.peak_bytes)
    there, what = device_memory(profile)
    fits = "fits" if peak.peak_bytes < 0.95 * there else "DOES NOT FIT: a smaller model, or more GPUs"
    return (
        f"memory: {peak.peak_bytes / GIGA:.1f} GB at most ({peak.model}, notebook {peak.notebook}), "
        f"{there / GIGA:.0f} GB there ({what}; {fits})"
    )


def report_disk(planned: Sequence[Row]) -> str | None:
    """One line on the disk that results take: trained weights, checkpoints, and the tokens they are trained on."""
    need = sum(row.disk_bytes for row in planned)
    if not need:
        return None
    folder = next(folder for folder in (paths.CACHE, *paths.CACHE.parents) if folder.exists())
    free = shutil.disk_usage(folder).free
    verdict = "enough" if free > need else "TOO LITTLE: free some space"
    return f"disk for what is trained: {need / GIGA:.1f} GB at most, {free / GIGA:.1f} GB free ({verdict})"


def report_work(row: Row) -> str:
    """What a notebook runs through models: its sweeps, or what it does instead."""
    if row.block_tokens_naive:
        # A sweep of a model beside the notebook's own has none of its variants.
        variants = f"{row.variants:6d} {'variants' if row.variants != 1 else 'variant '}" if row.variants else " " * 15
        share = row.block_tokens / row.block_tokens_naive
        return f"{variants}  {row.block_tokens_naive:9.3g} naive  {row.block_tokens:9.3g} shared ({share:4.0%})"
    parts = [counted(row.quantizations, "quantized checkpoint")] if row.quantizations else []
    parts += [counted(row.written_texts, "written text")] if row.written_texts else []
    parts += [f"{row.pass_block_tokens:.3g} in single passes"] if row.pass_block_tokens else []
    return "no sweep" + (f": {', '.join(parts)}" if parts else "")


def report_trainings(row: Row) -> str:
    """What a notebook trains, at the end of its line; "" where it trains nothing."""
    trainings = counted(row.trainings, "training")
    text = f"; {trainings} on {row.trained_tokens:.3g} tokens" if row.trainings else ""
    return text + (f"; left out: {row.left_out}" if row.left_out else "")


def table(planned: Sequence[Row]) -> pd.DataFrame:
    """One row a notebook of a model, and their sum."""
    frame = pd.DataFrame([vars(row) for row in planned])
    frame["share"] = frame["block_tokens"] / frame["block_tokens_naive"].where(frame["block_tokens_naive"] > 0)
    frame["hours"] = frame["seconds"] / 3600
    frame["peak_gb"], frame["disk_gb"] = frame.pop("peak_bytes") / GIGA, frame.pop("disk_bytes") / GIGA
    return frame


@flags.checked
def report(chosen: Profile, notebooks: str = "", alone: bool = False, workers: int | None = None) -> None:
    """Prints what a run of a profile takes, before anything starts.

    Args:
        chosen: the profile, with the user's own model in place if there is one.
        notebooks: only these, by number or name, with spaces between them; "" for all.
        alone: as if no other notebook had been run before.
        workers: say also what so many workers would take that share the work; None to leave that.

    Raises:
        StudyError: no such notebook; a model, text or task that is not there; no such number of workers.
    """
    if workers is not None:
        cluster.check_number(whole(workers, "the number of workers"))
    numbers = [registry.by_number(n).number for n in notebooks.split()] or list(registry.numbers())
    start = time.perf_counter()
    needed = downloads.needs(chosen)
    found = downloads.downloads(chosen, needed)
    if texts := downloads.own_texts(needed):
        print("texts of your own:", *(f"  {line}" for line in texts), sep="\n")
    if found:
        print("downloads:", *report_downloads(found), sep="\n")
    planned, divided = [], None if workers is None else Divided(chosen, workers)
    for model, number, page, speeds in _pages(chosen, numbers, lambda text: print(text, file=sys.stderr), alone):
        planned.append(row_of(model, number, page, speeds, _text(chosen)))
        if divided is not None:
            divided.add(model, number, page, speeds)
    frame = table(planned)
    print(*filter(None, (report_disk(planned), report_memory(planned, chosen))), sep="\n")
    print("notebooks (block-tokens: tokens times the blocks that run on them):")
    for row in planned:
        print(
            f"  {row.notebook}  {row.model:<34} {report_work(row):<{WORK_WIDTH}}  {duration(row.seconds):>9}"
            f"{report_trainings(row)}"
        )
    print(f"all: about {duration(frame['seconds'].sum())}; planned in {time.perf_counter() - start:.0f} s")
    if divided is not None:
        print(*divided.lines(frame["seconds"].sum()), sep="\n")
    of_hub = [one for one in found if one.name not in profiles.EMBEDDED]
    if of_hub and not (counts.amounts(chosen.model)[1] and counts.read_record()):
        print("tokens of benchmarks are estimates; `make prefetch` counts them")
    if of_hub and not hub.answers():
        print("the hub was not asked (out of reach, or HF_HUB_OFFLINE): sizes are those this study knows")
    path = paths.RESULTS / f"plan-{profiles.artifact_folder(chosen).replace('/', '--')}.csv"
    write_whole({path: frame.to_csv(index=False).encode()})
    print(f"as a table: {os.path.relpath(path)}")
