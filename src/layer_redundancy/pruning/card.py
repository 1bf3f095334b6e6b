"""The model card of a pruned checkpoint: what was removed, by which measure or method on which text, what it costs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layer_redundancy.config import sources
from layer_redundancy.methods import registry
from layer_redundancy.models import embedded
from layer_redundancy.study import Study

UNKNOWN = "not named"
# Licences by the identifiers that the hub knows; others are "other", with their name beside it.
IDENTIFIERS = (
    "apache-2.0",
    "mit",
    "bsd-3-clause",
    "cc-by-4.0",
    "cc-by-nc-4.0",
    "gemma",
    "llama2",
    "llama3",
    "openrail",
)


def licence(study: Study) -> str:
    """The licence of a study's model, as its publisher names it; "not named" where nothing is known of it."""
    model = study.profile.model
    if model in embedded.MODELS:
        return embedded.MODELS[model].licence
    if model in sources.MODELS:
        return sources.MODELS[model].licence
    return _of_card(study.identity.source, study.identity.hub_revision) or UNKNOWN


def _of_card(source: str, revision: str | None) -> str | None:
    """The licence that a model card on disk or on the hub names; None where there is none within reach."""
    from huggingface_hub import ModelCard
    from huggingface_hub.errors import HfHubHTTPError

    card = Path(source) / "README.md"
    if revision is None and not card.is_file():
        return None
    try:
        data = ModelCard.load(card, ignore_metadata_errors=True).data if revision is None else _on_hub(source, revision)
    except (OSError, ValueError, HfHubHTTPError):  # a card that cannot be read, or a hub that cannot be reached
        return None
    return data.license_name or data.license if hasattr(data, "license_name") else data.license


def _on_hub(source: str, revision: str) -> Any:
    from huggingface_hub import ModelCard, hf_hub_download

    return ModelCard.load(hf_hub_download(source, "README.md", revision=revision), ignore_metadata_errors=True).data


def text(found: Mapping[str, Any]) -> str:
    """The card of a checkpoint, from the content of its `pruning.json`."""
    from huggingface_hub import ModelCardData

    base, named = found["base_model"], found["base_licence"]
    ours = embedded.MODELS.get(base, embedded.Embedded())
    known = named.lower() in IDENTIFIERS
    head = ModelCardData(
        base_model=None if Path(base).exists() else ours.hub_id or base,
        library_name="transformers",
        pipeline_tag="text-generation",
        license=named.lower() if known else "other",
        license_name=None if known else named,
        tags=["pruned", "model-compression" if "method" in found else "layer-pruning"],
    )
    title, removed, details = _by_method(found) if "method" in found else _by_measure(found)
    lines = [
        f"# {Path(base).name} {title}",
        "",
        f"Made from {base} ({found['base_revision']}) by layer-redundancy {found['layer_redundancy']}.",
        "",
        "## What was removed",
        "",
        removed,
    ]
    if found["healed"]:
        one = found["training"]
        tokens = one["block_length"] * one["steps"] * one["batch"]
        lines += [f"What is left was trained ({found['healed']['method']}, {tokens} tokens of calibration text)."]
    if found["quantized_to_bits"]:
        lines += [f"The blocks' weights have {found['quantized_to_bits']} bits (GPTQ)."]
    lines += [
        *([""] if details else []),
        *details,
        "",
        "## What it costs",
        "",
        *_costs(found),
        "",
        "## Use",
        "",
        *_use(found),
        "",
        "## Licence",
        "",
    ]
    lines += [
        f"That of the base model: {named}."
        if named != UNKNOWN
        else "That of the base model, which names none where it was read: look for it before you pass this on."
    ]
    lines += ["", ours.terms] if ours.terms else []
    return f"---\n{head.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"


def _by_measure(found: Mapping[str, Any]) -> tuple[str, str, list[str]]:
    """What follows the model's name in the title, what was removed, and details: of blocks that a measure chose."""
    gone = found["removed_blocks"]
    removed = (
        f"Blocks {', '.join(map(str, gone))} (numbered from 0, first removed first), chosen by {found['measure']} on "
        f"{_text(found['calibration'])}."
    )
    return f"without {len(gone)} of its {found['num_blocks']} blocks", removed, []


def _by_method(found: Mapping[str, Any]) -> tuple[str, str, list[str]]:
    """The same of what a method made smaller."""
    card = registry.find(found["method"]).card
    code = f"; public code: https://github.com/{card.code}" if card.code else ""
    settings = [f"{name} {value}" for name, value in found["plan"].items() if value is not None]
    removed = (
        f"{100 * found['removed_share']:.1f} % of all weights (tied ones counted once), "
        f"{100 * found['removed_share_of_blocks']:.1f} % of the blocks', by {card.title} ({card.paper}{code}), which "
        f"{card.does}. It read {_text(found['calibration'])}."
    )
    details = {
        "Plan": ", ".join(settings),
        "Settings": card.settings,
        "What the public code does otherwise than the paper": card.code_differs,
        "What is otherwise here": card.changed,
    }
    lines = [f"- {name}: {_sentence(text)}" for name, text in details.items() if text]
    return f"made smaller by {card.title}", removed, lines


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _text(of: Mapping[str, Any]) -> str:
    return f"{of['corpus']} ({of['split']} split, {of['blocks']} blocks of {of['tokens_a_block']} tokens)"


def _interval(low: float, high: float, digits: str) -> str:
    """An interval in brackets; of a single block of text or item there is none."""
    return f" ({low:{digits}} to {high:{digits}})" if low == low else ""


def _costs(found: Mapping[str, Any]) -> list[str]:
    loss = found["cost"]["perplexity"]
    rows = [
        ("on", "base model", "this model (95 %)", "change (95 %)", "n", "chance"),
        ("---",) * 6,
        (
            "perplexity",
            f"{loss['dense']:.2f}",
            f"{loss['pruned']:.2f}{_interval(loss['low'], loss['high'], '.2f')}",
            f"{loss['increase']:+.3f} nats a token{_interval(loss['increase_low'], loss['increase_high'], '+.3f')}",
            f"{loss['n']} blocks of text",
            "",
        ),
    ]
    for one in found["cost"]["tasks"]:
        row = (
            f"{one['task']} (accuracy)",
            f"{one['dense']:.3f}",
            f"{one['pruned']:.3f}{_interval(one['low'], one['high'], '.3f')}",
            f"{one['change']:+.3f}{_interval(one['change_low'], one['change_high'], '+.3f')}",
            f"{one['n']} items",
            f"{one['chance']:.3f}",
        )
        rows.append(row)
    return [
        f"Measured on {_text(found['evaluation'])}, on which nothing was chosen, and on the tasks below. Intervals: "
        "95 %; those of changes are paired with the base model.",
        "",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _use(found: Mapping[str, Any]) -> list[str]:
    needed = found["needs_import"]
    return [
        *([f"Plain transformers does not load it: import {' and '.join(needed)} first.", ""] if needed else []),
        "```python",
        *(f"import {module}" for module in needed),
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("this folder")',
        'tokenizer = AutoTokenizer.from_pretrained("this folder")',
        "```",
        "",
        "`pruning.json` holds all that this checkpoint follows from; the same is made again by",
        "",
        "```sh",
        "layer-redundancy prune --like pruning.json --out again",
        "```",
    ]
