"""`make plan`: what a run of a profile takes, told before anything starts.

What is downloaded and which licences that needs, what disk and memory it takes against what is there, what each
notebook runs (naive and shared), and how long it will take on the device found. Rates come from a short calibration:
two blocks with random weights in each model's shape, timed on the kinds of input that the notebooks have.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from torch import nn

from benchmarks.worker import RandomSequences
from layer_redundancy.config import profiles, sources
from layer_redundancy.config.profiles import Profile
from layer_redundancy.config.sources import Amount
from layer_redundancy.core import devices, paths
from layer_redundancy.core.cache import write_whole
from layer_redundancy.core.errors import StudyError
from layer_redundancy.data import hub
from layer_redundancy.evaluate import batches, scoring, sweep_estimate
from layer_redundancy.models import architectures, checkpoints, loading, surgery, throughput
from layer_redundancy.models.stack import DecoderStack, decoder_stack, has_key_value_cache, head_slice
from layer_redundancy.planning import downloads
from layer_redundancy.planning.workload import Planner, Shape, Sweep, Training, Work
from layer_redundancy.train import healing, training_loop

NOTEBOOKS = tuple(f"{number:02}" for number in range(1, 13))
START_SECONDS = 25.0  # a notebook's kernel, imports, statistics and figures
DISK_RATE = 1e9  # bytes a second at which weights are read
COLUMN_SECONDS = 2e-4  # of GPTQ's loop over the columns of a matrix
PROBE_BLOCKS = 2
FITS = 0.9  # of a device's memory that a training may take
GIGA = 1e9

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def config_of(model: str, revision: str | None, trust_remote_code: bool = False) -> Any:
    """A model's config: from its folder, the hub or its cache; else from what `sources` knows of its shape.

    Raises:
        StudyError: none of these has it.
    """
    from transformers import AutoConfig

    known = sources.MODELS.get(model)
    if known is not None and known.shape and not hub.answers() and not downloads.model_is_here(model, revision):
        architectures.register()
        return AutoConfig.for_model(**dict(known.shape))
    try:
        identity = checkpoints.identify(
            replace(profiles.get("embedded", model=model), revision=revision, trust_remote_code=trust_remote_code)
        )
        return checkpoints.config(identity)
    except StudyError:
        if known is None or not known.shape:
            raise
    architectures.register()
    return AutoConfig.for_model(**dict(known.shape))


def probe(config: Any, dtype: str, device: str, blocks: int = PROBE_BLOCKS) -> DecoderStack:
    """A model of so few blocks with random weights in a config's shape, on the device."""
    from transformers import AutoModelForCausalLM

    config = type(config).from_dict(config.to_dict())
    text = config.get_text_config()
    text.num_hidden_layers = min(blocks, text.num_hidden_layers)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: text.num_hidden_layers]
    vars(config).pop("quantization_config", None)  # its weights are unpacked when it is loaded
    devices.keep_freed_memory()  # as where a model is loaded
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=checkpoints.DTYPES[dtype])
    return decoder_stack(loading.prepare(model))


@dataclass
class Speed:
    """How fast a model's shape is on a device.

    Attributes:
        stack: a probe.
        blocks: of the whole model.
        batch_tokens: tokens a forward holds.
    """

    stack: DecoderStack
    blocks: int
    batch_tokens: int

    @cached_property
    def _rates(self) -> dict[tuple[int, int], tuple[float, float]]:
        return {}

    def rates(self, amount: Amount) -> tuple[float, float]:
        """Block-tokens and head-tokens a second for inputs like a measurement's, found by running some."""
        length = max(2, round(amount.tokens / max(1, amount.sequences)))
        prefix = 0
        if has_key_value_cache(self.stack.model) and amount.shared < amount.tokens:
            prefix = min(length - 1, round(length - amount.shared / max(1, amount.sequences)))
        kind = (_rounded(prefix), _rounded(length - prefix))
        if kind not in self._rates:
            self._rates[kind] = self._measured(*kind, one=amount.scored == amount.sequences)
        return self._rates[kind]

    def _measured(self, prefix: int, tail: int, one: bool) -> tuple[float, float]:
        vocabulary = self.stack.model.get_input_embeddings().weight.shape[0]
        many = batches.PREFIX_BATCHES if prefix and devices.is_gpu(self.stack.device) else 1
        rows = max(1, min(64, (self.batch_tokens * many - prefix) // max(1, tail)))
        sequences = RandomSequences(vocabulary, rows, prefix, tail, 4 if one or prefix else 1).sequences
        return sweep_estimate.rates(self.stack, sequences, self.batch_tokens)

    @cached_property
    def writing(self) -> tuple[float, float]:
        """Seconds of one more written token for a batch of prompts: without blocks, and of each block."""
        times = []
        for removed in ([], [0]):
            with surgery.without_layers(self.stack.model, removed[: len(self.stack) - 1]):
                times.append(_seconds_a_token(self.stack.model, self.stack.device))
        block = max(0.0, (times[0] - times[1]) / max(1, len(self.stack) - 1))
        return max(0.0, times[1] - block), block

    @cached_property
    def product_rate(self) -> float:
        """Float32 matrix products, floating-point operations a second: what GPTQ is made of."""
        return devices.matmul_rate(torch.float32, self.stack.device)

    def weight_bytes(self, blocks: int) -> float:
        """Of a model of so many blocks."""
        every = sum(p.numel() * p.element_size() for p in self.stack.model.parameters())
        return every + (blocks - len(self.stack)) * self.block_bytes

    @cached_property
    def block_bytes(self) -> float:
        """Weights of a block, the mean over the probe's."""
        return sum(p.numel() * p.element_size() for b in self.stack.blocks for p in b.parameters()) / len(self.stack)

    def trained_weights(self, of: Training) -> int:
        """Number of weights that a training trains."""
        if of.recipe.method == "prompts":
            return 0  # a few tokens' states
        model = self.stack.model
        of_block = sum(p.numel() for block in self.stack.blocks for p in block.parameters()) / len(self.stack)
        if of.recipe.method == "full":
            every = sum(p.numel() for p in model.parameters())
            return round(every + (of.blocks - len(self.stack)) * of_block)
        if of.recipe.method == "partial":
            ends = (model.get_output_embeddings(), *self.stack.final)
            of_ends = sum(p.numel() for part in ends for p in part.parameters())
            return round(of_ends + min(of.recipe.last_blocks, of.blocks) * of_block)
        return round(healing.trainable_weights(model, of.recipe) * of.blocks / len(self.stack))

    def training_bytes(self, of: Training) -> float:
        """Memory of a training at one example at a time, the least there is."""
        vocabulary = self.stack.model.config.get_text_config().vocab_size
        # Below the last blocks that are trained nothing is kept for gradients.
        deep = min(of.recipe.last_blocks, of.blocks) if of.recipe.method == "partial" else of.blocks
        kept = of.length * (deep * 2 * sweep_estimate.workspace(self.stack) + 3 * 4 * vocabulary)
        return training_loop.bytes_needed(self.trained_weights(of), self.weight_bytes(of.blocks)) + kept

    def disk_bytes(self, trainings: Sequence[Training]) -> float:
        """What trainings leave on disk, and the largest one's checkpoints: the last, and the next being written."""
        element = self.stack.model.get_input_embeddings().weight.element_size()
        left = sum(self.trained_weights(one) for one in trainings if one.kept) * element
        # Weights in float32 and AdamW's two numbers for each.
        return left + 2 * 12 * max(map(self.trained_weights, trainings), default=0)

    def close(self) -> None:
        """Frees the probe's memory; what was measured stays."""
        del self.stack
        devices.empty_cache()


def _rounded(length: int) -> int:
    """Inputs of similar length are timed once."""
    for step in (0, 16, 32, 64, 128, 256, 512, 768, 1024, 1536, 2048):
        if length <= step:
            return step
    return length


def _seconds_a_token(model: nn.Module, device: torch.device, rows: int = 4, prompt: int = 64) -> float:
    from transformers import GenerationConfig

    ids = torch.randint(3, model.get_input_embeddings().weight.shape[0], (rows, prompt)).to(device)

    def write(tokens: int) -> Callable[[], object]:
        settings = GenerationConfig(
            do_sample=False, use_cache=True, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0
        )
        return lambda: model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)

    few, many = 2, 6
    times = [devices.seconds(write(n), device, at_least=0.0) for n in (few, many)]
    return max(1e-6, (times[1] - times[0]) / (many - few))


def linear_shapes(stack: DecoderStack) -> list[tuple[int, int]]:
    """(out, in) of the linear layers of a block."""
    return [(m.out_features, m.in_features) for m in stack.blocks[0].modules() if isinstance(m, nn.Linear)]


# ------------------------------------------------------------------------------------------------ seconds and bytes


def sweep_seconds(found: Sweep, speed: Speed) -> float:
    """Of blocks and head."""
    if not found.variants:
        return 0.0
    block_rate, head_rate = speed.rates(found.amount)
    return found.block_tokens / block_rate + found.head_tokens / head_rate


def seconds(work: Work, speed: Speed, speeds: Mapping[str, Speed], text: Amount) -> float:
    """How long a notebook will take.

    Args:
        work: what it runs.
        speed: of its model.
        speeds: of other models in it.
        text: the profile's evaluation text: passes are as fast as it.
    """
    total = START_SECONDS + work.models * speed.weight_bytes(speed.blocks) / DISK_RATE
    total += sum(sweep_seconds(s, speed) for s in work.sweeps)
    if work.passes:
        total += work.passes / speed.rates(text)[0]
    for writing in work.writings:
        fixed, block = speed.writing
        width = writing.amount.tokens / max(1, writing.amount.items) + writing.amount.answers
        rows = max(1, speed.batch_tokens // round(width)) if has_key_value_cache(speed.stack.model) else 1
        steps = -(-writing.amount.items // rows) * writing.amount.answers
        total += sum(steps * (fixed + n * block) for n in writing.blocks)
        total += sum(writing.blocks) * writing.amount.tokens / speed.rates(text)[0]
    for blocks, tokens in work.quantizations:
        total += blocks * _quantization_seconds(speed, tokens, text)
    for one in work.trainings:
        block_rate, head_rate = speed.rates(text)
        total += one.block_tokens / block_rate + one.head_tokens / head_rate
    for name, other in work.other.items():
        total += seconds(other, speeds[name], speeds, text) - START_SECONDS
    return total


def _quantization_seconds(speed: Speed, tokens: int, text: Amount) -> float:
    """Of one block: two passes, a Hessian of each matrix's inputs, its inverse, and the loop over columns."""
    shapes = linear_shapes(speed.stack)
    if not tokens:
        return sum(o * i for o, i in shapes) / 1e9
    operations = sum(2 * tokens * i * i + i**3 + 2 * o * i * i for o, i in shapes)
    loop = sum(i for _, i in shapes) * COLUMN_SECONDS
    return 2 * tokens / speed.rates(text)[0] + operations / speed.product_rate + loop


def fitting(found: Sequence[Training], speed: Speed, there: float) -> tuple[list[Training], list[str]]:
    """The trainings that notebooks will choose by a device's memory, and the recipes that they will leave out.

    Args:
        found: of a notebook.
        speed: of its model.
        there: bytes of the device.
    """
    kept, left_out = [], []
    for one in found:
        if speed.training_bytes(replace(one, blocks=speed.blocks) if one.instead else one) <= FITS * there:
            kept.append(one)
        elif one.instead:  # of the whole model it would not fit, so nowhere
            kept.append(replace(one, recipe=one.instead, instead=None))
        elif not one.spared:  # then the notebook will say so
            kept.append(one)
        else:
            left_out.append(healing.describe(one.recipe))
    return kept, list(dict.fromkeys(left_out))


def peak_bytes_of(sweeps: Sequence[Sweep], speed: Speed) -> float:
    """Most memory of the device: weights, states where paths branch, a forward's workspace and the head's logits."""
    config = speed.stack.model.config.get_text_config()
    element = speed.stack.model.get_input_embeddings().weight.element_size()
    state = speed.batch_tokens * config.hidden_size * element * batches.PREFIX_BATCHES
    held = max((s.held for s in sweeps), default=0) + 2
    logits = 3 * 4 * scoring.HEAD_ROWS * config.vocab_size
    forward = speed.batch_tokens * sweep_estimate.workspace(speed.stack)
    return speed.weight_bytes(speed.blocks) + held * state + forward + logits


# ------------------------------------------------------------------------------------------------ the whole profile


def shape_of(name: str, config: Any, stack: DecoderStack) -> Shape:
    """A model's shape from its config and a probe."""
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None) or 0
    weigh = 1
    if heads and has_key_value_cache(stack.model):
        shared = getattr(text, "num_key_value_heads", None) or heads
        part = head_slice(stack, 0, 0)
        head = (4 if shared == heads else 2) * (part.stop - part.start) * text.hidden_size
        weigh = max(1, round(sum(p.numel() for p in stack.blocks[0].parameters()) / head))
    else:
        heads = 0
    return Shape(name, text.num_hidden_layers, heads, weigh, has_key_value_cache(stack.model))


def amounts(profile: Profile, model: str) -> dict[str, Amount]:
    """Task -> what it puts through a model; of tasks that need no hub, counted now."""
    found = downloads.amounts(model)[0]
    own = dict.fromkeys(b for b in (*profile.tasks, *profile.benchmarks) if b.name not in found)
    if own:
        identity = checkpoints.identify(replace(profile, model=model, revision=downloads.revision(profile, model)))
        tokenizer = loading.load_tokenizer(identity)
        found |= {b.name: downloads.count(b, tokenizer, profile.seed, identity.max_length) for b in own}
    return found


@dataclass(frozen=True)
class Row:
    """A notebook of a model, as planned."""

    model: str
    notebook: str
    variants: int
    block_tokens_naive: int
    block_tokens: int
    seconds: float
    peak_bytes: float
    trainings: int = 0
    trained_tokens: int = 0
    left_out: str = ""  # recipes of training that memory does not suffice for
    disk_bytes: float = 0.0  # of what is trained


def rows(
    profile: Profile,
    notebooks: Sequence[str] = NOTEBOOKS,
    say: Callable[[str], None] = print,
    alone: bool = False,
) -> Iterator[Row]:
    """Plans a profile's notebooks, model by model.

    Args:
        profile: with the user's own model in place, if there is one.
        notebooks: numbers.
        say: told of what is measured, since that takes a while.
        alone: as from an empty store; otherwise as if those before had been run.
    """
    device = devices.found(profile.device)
    of_profile = profiles.PROFILES[profile.name]
    further = profile.further if profile.model == of_profile.model else ()
    chosen = {profile.model: NOTEBOOKS} | {f.model: f.notebooks for f in further}
    beside_name = profile.recurrent_model
    known: dict[str, tuple[Speed, Shape]] = {}
    memory, _ = device_memory(profile)

    def speed_of(model: str) -> tuple[Speed, Shape]:
        if model not in known:
            say(f"timing two blocks in the shape of {model} ({profile.dtype}, {device})")
            config = config_of(model, downloads.revision(profile, model), profile.trust_remote_code)
            stack = probe(config, profile.dtype, device)
            tokens = throughput.batch_tokens(stack, profile.batch_tokens)
            shape = shape_of(model, config, stack)
            known[model] = Speed(stack, shape.blocks, tokens), shape
        return known[model]

    for model, own in chosen.items():
        wanted = [n for n in own if n in notebooks]
        if not wanted:
            continue
        speed, shape = speed_of(model)
        other: dict[str, Speed] = {}
        beside = None
        if "06" in wanted:
            name = beside_name if shape.heads else of_profile.model
            other[name], beside = speed_of(name)
        planner = Planner(profile, shape, beside, amounts(profile, model))
        for number in wanted if alone else own:
            work = planner.work(number)  # of all, since a later one is spared what an earlier one stores
            if number in wanted:
                work.trainings, left_out = fitting(work.trainings, speed, memory)
                spent = seconds(work, speed, other, planner.evaluation)
                peak = max([peak_bytes_of(work.sweeps, speed), *map(speed.training_bytes, work.trainings)])
                yield Row(
                    model, number, work.num_variants, work.block_tokens_naive, work.block_tokens, spent, peak,
                    len(work.trainings), sum(one.tokens for one in work.trainings), ", ".join(left_out),
                    speed.disk_bytes(work.trainings),
                )  # fmt: skip
        if model != profile.model:
            known.pop(model)[0].close()


def hours(seconds: float) -> str:
    """A time as a person says it."""
    if seconds < 5400:
        return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"


def cache_folder() -> Path:
    """Where the hub's cache lies; its nearest folder that is there."""
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
    lines.append(f"disk: {1.1 * need + 1:.1f} GB needed for {len(missing)} downloads, {free:.1f} GB free ({verdict})")
    return lines


def device_memory(profile: Profile) -> tuple[int, str]:
    """Bytes of the device that a profile runs on, and which it is."""
    every = devices.every(devices.found(profile.device))
    there, name = sum(map(devices.total_memory, every)), devices.name(every[0])
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


def report_disk(planned: Sequence[Row], profile: Profile) -> str | None:
    """One line on the disk that results take: trained weights, checkpoints, and the tokens they are trained on."""
    need = sum(row.disk_bytes for row in planned)
    if not need:
        return None
    budgets = {profile.healing.healing, profile.healing.tuning}
    need += 8 * sum(b.tokens + b.held_out * b.block_length for b in budgets if b.corpus in downloads.CORPORA)
    folder = next(folder for folder in (paths.CACHE, *paths.CACHE.parents) if folder.exists())
    free = shutil.disk_usage(folder).free
    verdict = "enough" if free > need else "TOO LITTLE: free some space"
    return f"disk for what is trained: {need / GIGA:.1f} GB at most, {free / GIGA:.1f} GB free ({verdict})"


def report_trainings(row: Row) -> str:
    """What a notebook trains, at the end of its line; "" where it trains nothing."""
    told = f"; {row.trainings} trainings on {row.trained_tokens:.3g} tokens" if row.trainings else ""
    return told + (f"; no memory for: {row.left_out}" if row.left_out else "")


def table(planned: Sequence[Row]) -> pd.DataFrame:
    """One row a notebook of a model, and their sum."""
    frame = pd.DataFrame([vars(row) for row in planned])
    frame["share"] = frame["block_tokens"] / frame["block_tokens_naive"].where(frame["block_tokens_naive"] > 0)
    frame["hours"] = frame["seconds"] / 3600
    frame["peak_gb"], frame["disk_gb"] = frame.pop("peak_bytes") / GIGA, frame.pop("disk_bytes") / GIGA
    return frame


@app.command()
def main(
    profile: Annotated[str, typer.Argument(help="paper, or another profile")] = "paper",
    model: Annotated[str, typer.Option(help="a model of your own")] = "",
    revision: Annotated[str, typer.Option(help="its revision")] = "",
    notebooks: Annotated[str, typer.Option(help="only these, by number")] = "",
    alone: Annotated[bool, typer.Option("--alone", help="as if no other notebook had been run before")] = False,
) -> None:
    """Tells what a run of a profile takes, before anything starts."""
    try:
        chosen = profiles.get(profile, model=model, revision=revision)
        numbers = [n.split("_")[0].zfill(2) for n in notebooks.split()] or list(NOTEBOOKS)
        if unknown := set(numbers) - set(NOTEBOOKS):
            raise StudyError(f"no notebook {' '.join(sorted(unknown))}: choose from {' '.join(NOTEBOOKS)}")
        begin = time.perf_counter()
        found = downloads.downloads(chosen)
        if found:
            print("downloads:", *report_downloads(found), sep="\n")
        planned = list(rows(chosen, numbers, lambda text: print(text, file=sys.stderr), alone))
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    frame = table(planned)
    print(*filter(None, (report_disk(planned, chosen), report_memory(planned, chosen))), sep="\n")
    print("notebooks (block-tokens: tokens times the blocks that run on them):")
    for row in planned:
        share = f"{row.block_tokens / row.block_tokens_naive:4.0%}" if row.block_tokens_naive else "   -"
        print(
            f"  {row.notebook}  {row.model:<34} {row.variants:6d} variants  {row.block_tokens_naive:9.3g} naive  "
            f"{row.block_tokens:9.3g} shared ({share})  {hours(row.seconds):>9}{report_trainings(row)}"
        )
    print(f"all: about {hours(frame['seconds'].sum())}; planned in {time.perf_counter() - begin:.0f} s")
    counted = downloads.amounts(chosen.model)[1]
    if chosen.text.corpus == "pg19" and not (counted and downloads.read_record()):
        print("tokens of benchmarks are estimates; `make prefetch` counts them")
    if found and not hub.answers():
        print("the hub was not asked (out of reach, or HF_HUB_OFFLINE): sizes are those this study knows")
    path = paths.RESULTS / f"plan-{profiles.slug(profiles.artifact_folder(chosen))}.csv"
    write_whole({path: frame.to_csv(index=False).encode()})
    print(f"as a table: {os.path.relpath(path)}")


if __name__ == "__main__":
    app()
