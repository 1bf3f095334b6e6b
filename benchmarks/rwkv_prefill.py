"""`make bench`, second part: how fast RWKV-5 reads a prompt, chunked, token by token, and in its author's own code.

The sides take turns in one process, so that whatever else the machine does hits all of them; each gives the logits
after the prompt's last token, and those are compared.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from torch import Tensor
from tqdm import tqdm

from benchmarks import pictures
from layer_redundancy.config import profiles
from layer_redundancy.core import cache, devices, paths
from layer_redundancy.core.errors import StudyError
from layer_redundancy.figures import saving, table_pictures
from layer_redundancy.models import checkpoints, loading
from layer_redundancy.models.rwkv5 import checkpoints as rwkv_checkpoints
from layer_redundancy.models.rwkv5 import model as rwkv5

# The smallest World model's shape; speed does not depend on what the weights are.
WORLD_SMALL = {"vocab_size": 65536, "hidden_size": 768, "num_hidden_layers": 12, "head_size": 64}
LENGTHS = (512, 2048)
SIDES = ("chunked", "sequential", "the author's package")
GOAL = 5.0  # times the package

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def shipped() -> Any:
    """The model of data/models/, float32."""
    return loading.load(checkpoints.identify(profiles.get("embedded", model=profiles.EMBEDDED_RWKV)))


def world_small() -> Any:
    """Random weights, float32, in the shape of RWKV-5-World-0.1B; every matrix that adds to the stream is nonzero."""
    torch.manual_seed(0)
    model = rwkv5.Rwkv5ForCausalLM(rwkv5.Rwkv5Config(**WORLD_SMALL))
    return model.eval().requires_grad_(False)


@contextmanager
def _recurrence(form: Callable) -> Iterator[None]:
    """Makes models run this form of the time-mix inside the context."""
    usual = rwkv5.time_mix
    rwkv5.time_mix = form
    try:
        yield
    finally:
        rwkv5.time_mix = usual


def authors(model: Any, folder: Path) -> Any:
    """The same model in its author's inference code, float32 on the CPU, compiled as he advises."""
    os.environ["RWKV_JIT_ON"], os.environ["RWKV_CUDA_ON"], os.environ["RWKV_V7_ON"] = "1", "0", "0"
    from rwkv.model import RWKV

    rwkv_checkpoints.save(model, folder / "model.pth")
    return RWKV(model=str(folder / "model"), strategy="cpu fp32", verbose=False)


def readers(model: Any, folder: Path) -> dict[str, Callable[[Tensor], Tensor]]:
    """side -> token ids (T,) -> logits after the last one, (vocabulary,)."""
    theirs = authors(model, folder)

    def ours(form: Callable) -> Callable[[Tensor], Tensor]:
        def read(ids: Tensor) -> Tensor:
            with torch.no_grad(), _recurrence(form):
                return model(ids[None], use_cache=True, logits_to_keep=1).logits[0, -1]

        return read

    def package(ids: Tensor) -> Tensor:
        return theirs.forward(ids.tolist(), None)[0]

    forms = ours(rwkv5.chunked_time_mix), ours(rwkv5.sequential_time_mix), package
    return dict(zip(SIDES, forms, strict=True))


def measure(candidates: dict[str, Callable[[], Any]], lengths: tuple[int, ...], rounds: int) -> pd.DataFrame:
    """Times every side on every length, in turns.

    Args:
        candidates: title -> what gives an RWKV-5 model.
        lengths: tokens of the prompts.
        rounds: timed runs of each side, after one that is not timed.

    Returns:
        model, prompt_tokens, side, tokens_per_second (median of the rounds), low, high (smallest, largest), ratio,
        ratio_low, ratio_high (of chunked to this side, in the same round), difference (largest of the logits after the
        prompt to those of chunked).
    """
    rows = []
    with tqdm(total=len(candidates) * len(lengths) * (1 + rounds) * len(SIDES), unit="run") as bar:
        for title, build in candidates.items():
            model = build()
            with cache.scratch_folder("bench-rwkv") as folder:
                sides = readers(model, folder)
            for length in lengths:
                generator = torch.Generator().manual_seed(length)
                ids = torch.randint(1, model.config.vocab_size, (length,), generator=generator)
                seconds: dict[str, list[float]] = {side: [] for side in sides}
                logits = {}
                for turn in range(1 + rounds):
                    for side in list(sides)[:: 1 if turn % 2 else -1]:
                        bar.set_description(f"{side}, {length} tokens")
                        started = time.perf_counter()
                        logits[side] = sides[side](ids)
                        seconds[side].append(time.perf_counter() - started)
                        bar.update()
                mine = np.array(seconds[SIDES[0]][1:])
                for side, spent in seconds.items():
                    rates, ratios = length / np.array(spent[1:]), np.array(spent[1:]) / mine
                    difference = (logits[side] - logits[SIDES[0]]).abs().max().item()
                    timed = (np.median(rates), rates.min(), rates.max())
                    compared = (np.median(ratios), ratios.min(), ratios.max(), difference)
                    rows.append((title, length, side, *timed, *compared))
    columns = ["model", "prompt_tokens", "side", "tokens_per_second", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "ratio", "ratio_low", "ratio_high", "difference"])


@app.command()
def main(rounds: Annotated[int, typer.Option(help="timed runs of each side", min=1)] = 5) -> None:
    """Times the chunked RWKV-5 against token by token and against its author's package; writes figures/bench/."""
    try:
        table = measure({"rwkv5-6.6m (shipped)": shipped, "0.1B shape, random": world_small}, LENGTHS, rounds)
    except StudyError as error:
        raise SystemExit(str(error)) from None
    note = (
        f"One prompt, float32, on {devices.name('cpu')}. Medians of {rounds} rounds, bars from the slowest to the "
        f"fastest. Package: rwkv, strategy cpu fp32, compiled. Goal: {GOAL:g} times the package"
    )
    folder = paths.FIGURES / "bench"
    saving.save(pictures.prefill_rates(table), table, folder, "rwkv_prefill_cpu", note)
    short = table.drop(columns=["low", "high"]).assign(difference=[f"{x:.0e}" for x in table["difference"]])
    note += ". Ratio: time of the side over chunked's"
    table_pictures.save_table(short, folder, "rwkv_prefill_cpu_table", note)
    print(table.to_string(index=False, float_format=lambda x: f"{x:.3g}"))


if __name__ == "__main__":
    app()
