"""What benchmarks and data sets put through a model: counted once they are downloaded, else estimated."""

import json
from dataclasses import asdict, replace
from typing import Any

from layer_redundancy.config import sources
from layer_redundancy.config.profiles import Profile, TaskBudget
from layer_redundancy.config.sources import Amount
from layer_redundancy.core import flags, paths
from layer_redundancy.core.cache import write_whole
from layer_redundancy.models.checks import Sharing

SAMPLE = 1500  # items whose tokens are counted
RECORD = paths.CACHE / "prefetched.json"  # task -> date, and model -> amount


def revision(profile: Profile, model: str) -> str | None:
    """The revision of one of a profile's models."""
    return profile.revision if model == profile.model else sources.pinned(model)


@flags.checked
def count(
    budget: TaskBudget,
    tokenizer: Any,
    seed: int = 0,
    max_length: int | None = None,
    trust_remote_code: bool = False,
) -> Amount:
    """What a benchmark puts through a model with this tokenizer, counted on SAMPLE items and scaled to all.

    Prefixes that items have in common are scaled by what the second half of the sample added to those of the first.
    """
    from layer_redundancy.data import benchmark_items
    from layer_redundancy.evaluate.batches import arrange
    from layer_redundancy.evaluate.scoring import ChoiceTask

    items = benchmark_items.load(replace(budget, limit=SAMPLE), tokenizer, seed, max_length, trust_remote_code)
    halves = items.parts(max(1, items.num_items // 2))
    few, all_of_it = (
        _counted(arrange(ChoiceTask(part).sequences, Sharing(prefixes=True))) for part in (halves[0], items)
    )
    scale, growth = items.total / items.num_items, items.num_items - halves[0].num_items
    further = (items.total - items.num_items) / growth if growth else 0.0
    prefixes, groups = (all_of_it[i] + further * (all_of_it[i] - few[i]) for i in (2, 5))
    sequences, tokens, _, tails, scored, _ = all_of_it
    shared = min(scale * tokens, scale * tails + prefixes)
    return Amount(
        items.total,
        round(scale * sequences),
        round(scale * tokens),
        round(shared),
        round(scale * scored),
        groups=round(groups),
    )


@flags.checked
def count_written(budget: TaskBudget, tokenizer: Any, seed: int = 0, trust_remote_code: bool = False) -> Amount:
    """The most that a task whose answers are generated puts through a model: as if each prompt were the longest."""
    from layer_redundancy.evaluate import generative_tasks

    task = generative_tasks.load(replace(budget, limit=None), seed, trust_remote_code=trust_remote_code)
    items = len(task.chosen)
    tokens = items * len(tokenizer(task.longest).input_ids)
    return Amount(items, items, tokens, tokens, 0, task.max_new_tokens)


def _counted(work: Any) -> tuple[int, int, int, int, int, int]:
    """Sequences, tokens, tokens of prefixes (each once), tokens of what follows, scored positions, prefixes."""
    tokens = sum(len(s.input_ids) for s in work.sequences)
    tails = sum(work.tail(place) for place in range(len(work.order)))
    scored = sum(s.num_scored for s in work.sequences)
    groups = {group for group, prefix in zip(work.groups, work.prefixes, strict=True) if prefix}
    return len(work.order), tokens, work.num_tokens() - tails, tails, scored, len(groups)


def count_texts(name: str, tokenizer: Any) -> Amount:
    """The amount of the texts of a data set to classify, from SAMPLE of those it is tested on."""
    from layer_redundancy.data import classification_sets

    data = classification_sets.load(name)
    sample = tokenizer(list(data.test.texts[:SAMPLE]), add_special_tokens=False, verbose=False).input_ids
    items = len(data.test)
    tokens = round(items * sum(map(len, sample)) / len(sample))
    return Amount(items, items, tokens, tokens, items)


def read_record() -> dict[str, dict[str, Any]]:
    """What was prefetched: task, corpus or data set -> {"amounts": model -> Amount's fields}."""
    try:
        return json.loads(RECORD.read_text())
    except (OSError, ValueError):
        return {}


def note(name: str, amounts: dict[str, Amount] | None = None) -> None:
    """Writes down that something was prefetched, and what it puts through models."""
    record = read_record()
    entry = record.setdefault(name, {"amounts": {}})
    entry["amounts"] |= {model: asdict(amount) for model, amount in (amounts or {}).items()}
    write_whole({RECORD: json.dumps(record, indent=1).encode()})


def amounts(model: str) -> tuple[dict[str, Amount], bool]:
    """Task -> what it puts through a model, counted with its tokenizer or estimated; and whether all were counted.

    Tasks whose answers are generated are not counted: the length of the answers is not known beforehand.
    """
    record = read_record()
    counted = {
        name: Amount(**record[name]["amounts"][model])
        for name in sources.DATA
        if model in record.get(name, {}).get("amounts", {})
    }
    about = {name: data.amount for name, data in sources.DATA.items() if data.amount}
    countable = {name for name, amount in about.items() if name in record and not amount.answers}
    return about | counted, set(counted) >= countable
