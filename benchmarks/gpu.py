"""`make bench-gpu`: what is claimed of a GPU, measured on the one at hand; results go to figures/bench/gpu_*.csv.

First the embedded profile, every notebook from an empty store, by the clock. Then random weights in the shape of
Llama-2-7B, on which speed does not depend: tokens a second of a sweep, its share of the rate of matrix products that
was measured, peak memory, and what `make plan` predicted from two blocks against the clock.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from transformers import AutoConfig

from benchmarks import sweeps, worker
from benchmarks.worker import RandomSequences
from layer_redundancy.config import sources
from layer_redundancy.config.sources import Amount
from layer_redundancy.core import devices, paths, variants
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Store
from layer_redundancy.evaluate import sweep, sweep_estimate
from layer_redundancy.evaluate.amounts import Sweep
from layer_redundancy.figures import table_pictures
from layer_redundancy.models import architectures, checkpoints, throughput
from layer_redundancy.planning import plan as planning
from layer_redundancy.planning import rates, stand_ins

GOAL_SECONDS = 240  # time for all notebooks of the embedded profile
TOLERANCE = 0.25  # relative error allowed of the estimate
# Kinds of input: running text, and questions after the examples of their subject (prefix, tokens of their own).
KINDS = {"running text": (0, 1023, 1), "five-shot questions": (600, 120, 4)}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def embedded_seconds(device: str, profile: str = "embedded") -> pd.DataFrame:
    """Runs a profile's notebooks from an empty store on a device; one row a notebook: notebook, seconds."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"LAYER_REDUNDANCY_WORK": folder, "LAYER_REDUNDANCY_DEVICE": device}
        cache = Path(folder) / "data" / "cache"
        cache.parent.mkdir(parents=True)
        cache.symlink_to(paths.CACHE)  # downloads and conversions are there already
        for notebook in sorted(paths.NOTEBOOKS.glob("[0-9]*.ipynb")):
            started = time.monotonic()
            output = Path(folder) / "data" / "runs" / notebook.name
            command = [sys.executable, "-m", "layer_redundancy.run_notebook", str(notebook), "--output", str(output)]
            done = subprocess.run(
                [*command, "--profile", profile], env=environment, cwd=paths.ROOT, capture_output=True, text=True
            )
            if done.returncode:
                raise StudyError(f"{notebook.stem} failed on {device}: {done.stderr.strip().splitlines()[-1]}")
            rows.append((notebook.stem, time.monotonic() - started))
            print(f"{notebook.stem}: {rows[-1][1]:.0f} s", flush=True)
    return pd.DataFrame(rows, columns=["notebook", "seconds"])


def sweep_rows(config: dict[str, Any], dtype: str, device: str, sequences: int) -> pd.DataFrame:
    """Sweeps random weights of a shape, and sets the clock against what two blocks predicted.

    Args:
        config: fields of a transformers config, `model_type` among them.
        dtype: dtype of the weights.
        device: "cuda" or "cpu".
        sequences: number of sequences of each kind of input.

    Returns:
        One row a kind of input: input, sequences, variants, batch_tokens, block_tokens_naive, block_tokens, seconds,
        estimated_seconds, error (of the estimate over the clock, minus 1), tokens_per_second (of whole models, naive:
        what a plain forward a variant would have to reach), block_tokens_per_second, teraflops, share_of_matmul_rate,
        peak_gb, estimated_gb.
    """
    architectures.register()
    stack = rates.probe(AutoConfig.for_model(**config), dtype, device)
    num = config["num_hidden_layers"]
    speed = rates.Speed(stack, num, throughput.batch_tokens(stack))
    order = stand_ins.order("meta-llama/Llama-2-7b-hf", num)
    plan = list(dict.fromkeys([*variants.single_removal(num), *variants.cumulative_removal(num, order)]))
    rate = devices.matmul_rate(checkpoints.DTYPES[dtype], device)
    predicted = {}
    for kind, (prefix, tail, targets) in KINDS.items():
        chosen = RandomSequences(config["vocab_size"], sequences, prefix, tail, targets).sequences
        tokens = sum(len(s.input_ids) for s in chosen)
        shared = prefix + sequences * tail
        amount = Amount(sequences, sequences, tokens, shared, sum(s.num_scored for s in chosen))
        planned = Sweep(kind, amount, tuple(plan))
        seconds = planning.sweep_seconds(planned, speed)
        predicted[kind] = (seconds, planning.peak_bytes_of([planned], speed))
    speed.close()
    del stack
    job = {"config": config, "dtype": dtype, "device": device}
    identity, stack = worker.load(job)
    rows = []
    for kind, (prefix, tail, targets) in KINDS.items():
        measured = RandomSequences(config["vocab_size"], sequences, prefix, tail, targets)
        batch = throughput.batch_tokens(stack)
        devices.reset_peak(device)
        expected = sweep_estimate.estimate(stack, plan, [measured], batch)
        with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "store") as store:
            started = time.perf_counter()
            sweep.run(identity, lambda: stack, plan, [measured], store, batch, progress=False)
            spent = time.perf_counter() - started
        operations = sweeps.operations(stack, expected, 0)
        rows.append(
            {
                "input": kind,
                "sequences": sequences,
                "variants": len(plan),
                "batch_tokens": batch,
                "block_tokens_naive": expected.block_tokens_naive,
                "block_tokens": expected.block_tokens_shared,
                "seconds": spent,
                "estimated_seconds": predicted[kind][0],
                "error": predicted[kind][0] / spent - 1,
                "tokens_per_second": expected.block_tokens_naive / num / spent,
                "block_tokens_per_second": expected.block_tokens_shared / spent,
                "teraflops": operations / spent / 1e12,
                "share_of_matmul_rate": operations / spent / rate,
                "peak_gb": devices.peak_bytes(stack.device) / 1e9,
                "estimated_gb": predicted[kind][1] / 1e9,
            }
        )
    return pd.DataFrame(rows)


@app.command()
def main(
    config: Annotated[str, typer.Option(help="JSON of another shape than Llama-2-7B's")] = "",
    device: Annotated[str, typer.Option(help="cuda, or cpu to try this out")] = "cuda",
    dtype: Annotated[str, typer.Option(help="of the weights")] = "bfloat16",
    sequences: Annotated[int, typer.Option(help="of each kind", min=1)] = 64,
    profile: Annotated[str, typer.Option(help="whose notebooks are timed; empty: none")] = "embedded",
) -> None:
    """Measures on a GPU; writes figures/bench/gpu_sweep.csv and gpu_notebooks.csv."""
    if devices.found(device) != device:
        raise SystemExit("error: torch sees no CUDA device: this benchmark is of a GPU (--device cpu tries it out)")
    try:
        shape = json.loads(config) if config else dict(sources.LLAMA_2_7B)
        name = devices.name(device)
        sizes = f"{shape['num_hidden_layers']} blocks of width {shape['hidden_size']}"
        note = f"Random weights, {sizes}, {dtype}, on {name}"
        table = sweep_rows(shape, dtype, device, sequences)
        print(table.T.to_string(header=False, float_format=lambda x: f"{x:.4g}"))
        worst = table["error"].abs().max()
        print(f"estimate against the clock: within {worst:.0%} ({'met' if worst <= TOLERANCE else 'MISSED'}: 25 %)")
        folder = paths.FIGURES / "bench"
        table_pictures.save_table(table.assign(device=name), folder, f"gpu_sweep_{device}", note)
        if profile:
            times = embedded_seconds(device, profile)
            total = times["seconds"].sum()
            print(f"{profile}, all notebooks: {total:.0f} s ({'met' if total < GOAL_SECONDS else 'MISSED'}: 4 minutes)")
            times.loc[len(times)] = ("all", total)
            table_pictures.save_table(
                times.assign(device=name), folder, f"gpu_notebooks_{device}", f"{profile} on {name}"
            )
    except StudyError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    app()
