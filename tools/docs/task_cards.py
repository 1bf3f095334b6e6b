"""What docs/tasks.md says of the study's own tasks, counted anew for every page: numbers, rules, items to read."""

from dataclasses import dataclass
from functools import cache

import pandas as pd
from transformers import AutoTokenizer

from layer_redundancy.config import profiles
from layer_redundancy.config.profiles import TaskBudget
from layer_redundancy.data.benchmark_items import TaskItems, load
from layer_redundancy.evaluate import without_a_model
from layer_redundancy.evaluate.scoring import ChoiceTask
from layer_redundancy.models import smollm2

TO_READ = 20
SIGNS = str.maketrans({sign: f"\\{sign}" for sign in "\\`*_[]<>|#"} | {"\n": " "})  # that Markdown reads otherwise


@dataclass(frozen=True)
class Card:
    """Numbers of a task, on the items that the embedded profile's notebooks take.

    Attributes:
        items: these.
        rules: what rules get without a model; as `without_a_model.table`.
    """

    items: TaskItems
    rules: pd.DataFrame

    @property
    def tokens(self) -> float:
        """Mean tokens of SmolLM2 in an item's text and one of its choices."""
        requests = self.items.requests
        return sum(len(r.context_ids) + len(r.continuation_ids) for r in requests) / len(requests)

    @property
    def read(self) -> list[str]:
        """The first items, in Markdown: the text, the right choice in bold, the wrong ones after it."""
        lines = []
        for item in self.items.items[:TO_READ]:
            text, choices = item.doc["context"], item.doc["choices"]
            wrong = ", ".join(choice for i, choice in enumerate(choices) if i != item.gold)
            lines.append(f"{_plain(text)} **{_plain(choices[item.gold])}** ({_plain(wrong)})")
        return lines


@cache
def card(name: str) -> Card:
    """The card of one of the embedded profile's tasks."""
    profile = profiles.get("embedded")
    (limit,) = (one.limit for one in profile.budgets["benchmarks"]["tasks"] if one.name == name)
    items = load(TaskBudget(name, limit=limit), AutoTokenizer.from_pretrained(smollm2.folder()), profile.seed)
    return Card(items, without_a_model.table([ChoiceTask(items)]))


def _plain(text: str) -> str:
    return " ".join(text.translate(SIGNS).split())
