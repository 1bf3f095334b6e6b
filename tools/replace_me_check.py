"""ReplaceMe on the embedded model beside published results of it: PIQA after runs of blocks gave way to maps.

Published is accuracy on PIQA's whole validation set, of maps that were fitted to chats of SlimOrca; here they are
fitted to the study's calibration text, and the model's weights come from four bits. So values are near each other, not
equal.

    python -m tools.replace_me_check ITEMS.jsonl RESULTS.csv --limit 100
"""

import json
import logging
import math
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from layer_redundancy.config import profiles
from layer_redundancy.data import corpora
from layer_redundancy.evaluate import scoring
from layer_redundancy.evaluate.scoring import ScoredSequence
from layer_redundancy.measures import activations
from layer_redundancy.methods import blocks, replace_me
from layer_redundancy.models import smollm2, surgery
from layer_redundancy.models.stack import decoder_stack, prepare

MODEL = "SmolLM2-135M-Instruct"
WHOLE = 1838  # items of PIQA's validation set
BATCH_TOKENS = 2048


def sequences(items: Path, tokenizer: Any, limit: int | None) -> tuple[list[ScoredSequence], list[int]]:
    """Both answers of each item as lm-eval scores them, and the right ones; rows of PIQA, one JSON object a line."""
    found, right = [], []
    for line in items.read_text().splitlines()[:limit]:
        row = json.loads(line)
        question = tokenizer(f"Question: {row['goal']}\nAnswer:", add_special_tokens=False).input_ids
        for answer in (row["sol1"], row["sol2"]):
            ids = tokenizer(f"Question: {row['goal']}\nAnswer: {answer}", add_special_tokens=False).input_ids
            found.append(ScoredSequence(tuple(ids[:-1]), (tuple(ids[len(question) :]),)))
        right.append(int(row["label"]))
    return found, right


@torch.no_grad()
def chosen(model: nn.Module, scored: Sequence[ScoredSequence]) -> list[int]:
    """Which answer of each item has the higher log-likelihood (lm-eval's acc)."""
    stack, found = decoder_stack(model), [0.0] * len(scored)
    waiting = sorted(range(len(scored)), key=lambda i: -len(scored[i].input_ids))
    while waiting:
        width = len(scored[waiting[0]].input_ids)
        part, waiting = waiting[: max(1, BATCH_TOKENS // width)], waiting[max(1, BATCH_TOKENS // width) :]
        batch = [scored[i] for i in part]
        ids = nn.utils.rnn.pad_sequence([torch.tensor(one.input_ids) for one in batch], batch_first=True)
        hidden, calls = stack.start(ids)
        for index in range(len(stack)):
            hidden = stack.run_block(index, hidden, calls)
        states = hidden.flatten(0, 1)[torch.from_numpy(scoring.scored_rows(batch, width))]
        (outputs,) = scoring.score(stack, states, scoring.Targets(batch))()
        for i, ((logprob, _),) in zip(part, outputs, strict=True):
            found[i] = logprob
    return [int(found[i + 1] > found[i]) for i in range(0, len(found), 2)]


def published(results: Path) -> dict[str, list[float]]:
    """Run, such as 2_6 for the blocks 2 to 5 -> published accuracies."""
    table = pd.read_csv(results)
    rows = table[
        table.model.str.endswith("/" + MODEL) & table.method.str.startswith("ReplaceMe") & (table.metric == "acc piqa")
    ]
    found: dict[str, list[float]] = {}
    for label, value in zip(rows.run_or_blocks, rows.value, strict=True):
        found.setdefault(re.sub(r"^raw ", "", label), []).append(float(value))
    return found


def chats(tokenizer: Any, number: int = 24) -> tuple[Tensor, Tensor]:
    """Chats made of the beginnings of articles: int64 (number, length) padded on the right, and (number,) lengths.

    The public code reads the angle of each chat's last token, which is the line break after the end of an answer.
    """
    found = []
    for article in corpora.articles("wikipedia", "calibration")[:number]:
        question, *rest = article.split("\n")
        answer = rest[0] if rest else question
        chat = [{"role": "user", "content": question[:250]}, {"role": "assistant", "content": answer[:250]}]
        written = tokenizer.apply_chat_template(chat, tokenize=False)
        found.append(torch.tensor(tokenizer(written, add_special_tokens=False).input_ids))
    return nn.utils.rnn.pad_sequence(found, batch_first=True), torch.tensor([len(ids) for ids in found])


def beside(known: Iterable[str], grid: np.ndarray) -> str:
    """The nearest run of each published length beside the published one."""
    found, alike = [], 0
    lengths = sorted((int(b) - int(a), run) for run in known for a, b in [run.split("_")])
    for n, run in lengths:
        first, _ = replace_me.nearest_run(grid, n)
        ours = f"{first}_{first + n}"
        alike += ours == run
        found.append(run if ours == run else f"{ours} (published {run})")
    return f"{alike} of {len(lengths)} as published; " + ", ".join(found)


def main(
    items: Annotated[Path, typer.Argument(help="rows of PIQA's validation set, one JSON object a line")],
    results: Annotated[Path, typer.Argument(help="table of published results")],
    runs: Annotated[str, typer.Option(help="runs, first block and the one after the last of each")] = "3_5,2_6,2_9",
    limit: Annotated[int | None, typer.Option(help="items; all if not given")] = None,
    texts: Annotated[int, typer.Option(help="blocks of calibration text")] = 64,
    dense: Annotated[bool, typer.Option(help="also score the whole model")] = True,
    bare: Annotated[bool, typer.Option(help="also remove the runs without a map")] = False,
) -> None:
    """Say whether accuracies lie within sampling error of the published ones."""
    logging.basicConfig(level=logging.WARNING)
    folder, known = smollm2.folder(), published(results)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = prepare(AutoModelForCausalLM.from_pretrained(folder))
    stack = decoder_stack(model)
    scored, right = sequences(items, tokenizer, limit)
    budget = replace(profiles.get("embedded").text, calibration_blocks=texts)
    text = corpora.token_blocks(budget, tokenizer, "calibration")
    asked = [(int(a), int(b) - int(a)) for a, b in (run.split("_") for run in runs.split(","))]
    sums = replace_me.collect(stack, text.input_ids, asked)
    for name, of_text in (
        ("all tokens, cosine", replace_me.distances(activations.collect(stack, text.input_ids[:8]), "cosine")),
        ("last of chats, angle", replace_me.distances(activations.collect(stack, *chats(tokenizer)), "last angle")),
    ):
        print(f"nearest runs by {name}: {beside(known, of_text)}")

    def line(name: str, label: str = "") -> None:
        start = time.monotonic()
        accuracy = sum(a == b for a, b in zip(chosen(model, scored), right, strict=True)) / len(right)
        error = math.sqrt(accuracy * (1 - accuracy) / len(right))
        said = f"{name:16} {accuracy:.3f} +- {1.96 * error:.3f} ({time.monotonic() - start:.0f} s)"
        for value in known.get(label, ()):
            other = math.sqrt(value * (1 - value) / WHOLE)
            distance = (accuracy - value) / math.hypot(error, other)
            said += f"   published {value:.3f}, {distance:+.1f} standard errors"
        print(said, flush=True)

    print(f"{len(right)} items; maps from {sums.tokens} tokens")
    if dense:
        line("all blocks")
    for a, n in asked:
        label, removed = f"{a}_{a + n}", range(a, a + n)
        if bare:
            with surgery.without_layers(model, removed):
                line(f"{label} no map")
        of = sums.map((a, n))
        print(f"{label}: error {sums.error((a, n)):.4g} without a map, {sums.error((a, n), of):.4g} with")
        part = blocks.pre_norm_blocks(stack, replace_me.TITLE)[a - 1]
        weight = part.mlp_out.weight.clone()
        replace_me.fold(part, of)
        with surgery.without_layers(model, removed):
            line(label, label)
        blocks.change(part.mlp_out.weight, weight)


if __name__ == "__main__":
    typer.run(main)
