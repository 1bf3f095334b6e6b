"""Tuning the first blocks of a model to classify texts, by prompts alone or by all weights (Why Lift so Heavy?,
arXiv 2402.11700): the runs, what each gets right, what it costs, and the tables made of them."""

import copy
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from layer_redundancy.config import paper_tables
from layer_redundancy.config.profiles import ClassificationBudget, Recipe
from layer_redundancy.core import devices, stats, variants
from layer_redundancy.core.errors import NotApplicable, StudyError
from layer_redundancy.core.stats import INTERVAL
from layer_redundancy.core.store import Key, Result, settings_text
from layer_redundancy.data import classification_sets
from layer_redundancy.models import checkpoints, loading, surgery
from layer_redundancy.models.checkpoints import ModelIdentity
from layer_redundancy.models.stack import decoder_stack
from layer_redundancy.study import Study
from layer_redundancy.train import healing, training_loop

VERSION = 1  # raise it when a run means something else
UNTUNED, PROMPTS, WEIGHTS = "untuned", "prompt tuning", "fine-tuning"
TIMED = 64  # items
BATCH_TOKENS = 8192  # of a forward without gradients, where the profile leaves it to the device
LORA = Recipe("lora", learning_rate=0.0, rank=8, alpha=16, dropout=0.0)  # the rate is the budget's
FITS = 0.8  # share of the device's memory that weights, gradients and the optimizer's states may take
MEAN = "mean"  # of all data sets


@dataclass(frozen=True)
class Run:
    """One model that is tuned and judged.

    Attributes:
        dataset: name in `classification.SOURCES`.
        method: UNTUNED, PROMPTS or WEIGHTS.
        kept: its first so many blocks are kept.
        seed: of the shots, their order, and what is random in the weights.
    """

    dataset: str
    method: str
    kept: int
    seed: int


@dataclass(frozen=True, eq=False)
class Asked:
    """What a run reads: examples as `classification.encode` has them, and the token of each label's word."""

    train: list[dict[str, Tensor]]
    judged: list[dict[str, Tensor]]
    words: Tensor
    fingerprint: str


def depths(budget: ClassificationBudget, num_blocks: int) -> list[int]:
    """The numbers of kept blocks, ascending; the whole model's is the last."""
    return sorted({kept for kept in budget.kept if kept < num_blocks} | {num_blocks})


def plan(study: Study) -> list[Run]:
    """All runs; what needs no training comes first, then the cheap ones, so that trouble shows soon.

    An untuned model is the same for every seed but for its demonstrations, so it is asked once.
    """
    budget, kept = study.profile.classification, depths(study.profile.classification, study.num_blocks)
    runs = [Run(name, UNTUNED, k, budget.seeds[0]) for k in kept for name in budget.datasets]
    return runs + [
        Run(name, method, k, seed)
        for k in kept
        for name in budget.datasets
        for method in (PROMPTS, WEIGHTS)
        for seed in budget.seeds
    ]


@cache
def _num_weights(identity: ModelIdentity) -> int:
    return sum(checkpoints.parameter_sizes(identity).values())


def trained_weights(study: Study) -> str:
    """What fine-tuning trains at every depth: "all" weights, or "lora" where those of the whole model do not fit.

    AdamW keeps four float32 numbers for each weight that it trains. The device's memory is what it has, not what is
    free, so that a second run decides alike.
    """
    weights = _num_weights(study.identity)
    total = devices.total_memory(devices.every(devices.found(study.profile.device))[0])
    return "all" if training_loop.bytes_needed(weights, 0) <= FITS * total else "lora"


def results(study: Study, runs: Sequence[Run] | None = None, part: str = "test") -> dict[Run, Result]:
    """Every run's result, from the store or tuned and judged now.

    Args:
        study: gives model, budget and store.
        runs: what is wanted; `plan` if not given.
        part: of the data sets that runs are judged on; "validation" to choose a learning rate.

    Returns:
        Results with arrays `correct` (items,) and `gold_logprob` (items,), the right label's log-probability among the
        labels, in nats; and `loss` (steps,) of the training. The summary has accuracy, and of the training seconds,
        peak_bytes and trainable (weights).

    Raises:
        NotApplicable: peft cannot tune prompts of such a model.
        StudyError: data that cannot be had, or as `training.fit`.
    """
    runs = plan(study) if runs is None else list(runs)
    found: dict[Run, Result] = {}
    for place, run in enumerate(runs, start=1):
        asked = _asked(study, run.dataset, run.seed, part)
        key = _key(study, run, asked, part)
        stored = study.store.get(key)
        if stored is None:
            with training_loop.workplace(asdict(key)) as folder:
                stored = study.store.get(key)  # where another process was at work on it
                if stored is None:
                    label = f"{place} of {len(runs)}: {describe(run)}"
                    stored = _result(study, run, asked, folder, label)
                    study.store.put(key, study.identity.name, stored)
        found[run] = stored
    return found


def describe(run: Run) -> str:
    """A run in a message."""
    return f"{run.dataset}, {run.method}, {_times(run.kept, 'block')}, seed {run.seed}"


def _asked(study: Study, name: str, seed: int, part: str) -> Asked:
    """Not kept longer than the study, whose tokenizer decides what is read."""
    known = vars(study).setdefault("_asked", {})
    budget = study.profile.classification
    place = (name, seed, part, budget)
    if place not in known:
        known[place] = _encoded(study, budget, name, seed, part)
    return known[place]


def _encoded(study: Study, budget: ClassificationBudget, name: str, seed: int, part: str) -> Asked:
    data, tokenizer = classification_sets.load(name, budget.max_words), study.tokenizer
    # The demonstrations' texts are shots too many, drawn with the others: the first of each label.
    drawn = classification_sets.shots(data.train, budget.shots + budget.demonstrations, seed)
    shown = [
        place for label in range(len(data.source.labels)) for place in np.flatnonzero(drawn.labels == label)
        [: budget.demonstrations]
    ]  # fmt: skip
    prefix = classification_sets.demonstrations(data.source, drawn.chosen(sorted(shown)))
    train = drawn.chosen([place for place in range(len(drawn)) if place not in shown])
    judged = classification_sets.few(getattr(data, part), budget.test_items, study.profile.seed)
    parts = [classification_sets.encode(data.source, texts, tokenizer, prefix) for texts in (train, judged)]
    longest = max(len(example["input_ids"]) for of in parts for example in of) + budget.virtual_tokens
    if study.identity.max_length is not None and longest > study.identity.max_length:
        raise StudyError(
            f"{study.identity.name} takes {study.identity.max_length} tokens, a prompt of {name} has {longest} with "
            "virtual ones: lower max_words or demonstrations in profiles.py"
        )
    words = classification_sets.label_tokens(data.source, tokenizer)
    return Asked(*parts, words, classification_sets.fingerprint(*parts, words=words))


def _optimization(study: Study, run: Run, trained: str, examples: int) -> training_loop.Optimization:
    budget = study.profile.classification
    epochs = budget.epochs[0 if run.method == PROMPTS else 1]
    fewer = (study.num_blocks / run.kept) ** budget.rate_power
    rate = {"prompts": budget.prompt_rate, "all": budget.weights_rate * fewer, "lora": budget.lora_rate * fewer}[
        trained
    ]
    steps = math.ceil(epochs * examples / budget.batch)
    return training_loop.Optimization(steps, budget.batch, rate, warmup=steps // 10, schedule="linear")


def _key(study: Study, run: Run, asked: Asked, part: str) -> Key:
    budget, settings = (
        study.profile.classification,
        {"dataset": run.dataset, "part": part, "dtype": study.profile.dtype},
    )
    if run.method != UNTUNED:
        trained = trained_weights(study) if run.method == WEIGHTS else "prompts"
        settings |= asdict(_optimization(study, run, trained, len(asked.train)))
        settings |= {"seed": run.seed, "trained": trained}
        settings |= {"virtual_tokens": budget.virtual_tokens} if run.method == PROMPTS else {}
    return Key(
        study.identity.fingerprint,
        variants.name(tuple(range(run.kept))),
        f"classification/{run.method}",
        asked.fingerprint,
        settings_text(settings),
        VERSION,
    )


def _result(study: Study, run: Run, asked: Asked, folder: Path, label: str) -> Result:
    model, fitted = tuned(study, run, asked, folder, label)
    correct, gold = judge(model, asked.judged, asked.words, study.profile.batch_tokens or BATCH_TOKENS)
    summary = {"dataset": run.dataset, "seed": run.seed, "accuracy": float(correct.mean()), "items": len(correct)}
    arrays = {"correct": correct, "gold_logprob": gold}
    if fitted is not None:
        summary |= {name: getattr(fitted, name) for name in ("seconds", "peak_bytes", "trainable")}
        arrays["loss"] = fitted.curve()[1].astype(np.float32)
    return Result(summary, arrays)


# ------------------------------------------------------------------------------------------------ models


def first_blocks(model: nn.Module, kept: int) -> nn.Module:
    """A copy of a model's first blocks, with its embedding, final norm and head; the model stays as it is."""
    with surgery.without_layers(model, range(kept, len(decoder_stack(model)))):
        return copy.deepcopy(model)


def tuned(
    study: Study, run: Run, asked: Asked, folder: Path, label: str = ""
) -> tuple[nn.Module, training_loop.Fitted | None]:
    """The first blocks, tuned; and what the training took (None where there was none).

    Args:
        study: gives the model and the budget.
        run: which.
        asked: its examples.
        folder: of checkpoints, from `training.workplace`.
        label: of the progress bar.

    Raises:
        NotApplicable: peft cannot tune prompts of such a model.
        StudyError: as `training.fit`.
    """
    whole = study.stack.model
    held = devices.allocated(study.stack.device)
    model = first_blocks(whole, run.kept)
    if run.method == UNTUNED:
        return model, None
    trained = trained_weights(study) if run.method == WEIGHTS else "prompts"
    torch.manual_seed(run.seed)
    if trained == "prompts":
        model = with_prompts(model, _initial_tokens(study, run.dataset))
    elif trained == "lora":
        model = healing.prepare(model, LORA, run.seed)
    else:
        model.requires_grad_(True)
    fitted = training_loop.fit(
        model,
        asked.train,
        _optimization(study, run, trained, len(asked.train)),
        folder,
        seed=run.seed,
        loss=lambda model, batch: label_loss(model, batch, asked.words),
        collate=classification_sets.collate,
        label=label or describe(run),
    )
    return model, replace(fitted, peak_bytes=fitted.peak_bytes - held)  # the whole model is no part of this one


def _initial_tokens(study: Study, name: str) -> Tensor:
    """Tokens that virtual ones begin as, (virtual_tokens,): an instruction, again and again."""
    words = list(classification_sets.SOURCES[name].words.values())
    ids = study.tokenizer(f"Classify as {' or '.join(words)}:", add_special_tokens=False).input_ids
    number = study.profile.classification.virtual_tokens
    return torch.tensor((ids * math.ceil(number / len(ids)))[:number])


def with_prompts(model: nn.Module, initial: Tensor) -> nn.Module:
    """The model with virtual tokens before every input, which alone are trained.

    Args:
        model: its weights are frozen.
        initial: int64 (virtual tokens,): vocabulary's tokens that they begin as.

    Raises:
        NotApplicable: peft cannot do that to such a model.
    """
    import peft

    model.requires_grad_(False)
    embedding = model.get_input_embeddings()
    with torch.no_grad():
        begin = embedding(initial.to(embedding.weight.device)).float()
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=len(initial),
        token_dim=begin.shape[-1],
        # peft looks for these in the config, and uses neither of them here.
        num_layers=len(decoder_stack(model)),
        num_attention_heads=1,
        num_transformer_submodules=1,
    )
    try:
        prompted = peft.get_peft_model(model, config)
        prompted.get_prompt(batch_size=1)
    except Exception as error:  # it looks for an embedding where the models it knows have theirs
        reason = " ".join(str(error).split())[:120]
        raise NotApplicable(f"peft cannot tune prompts of {type(model).__name__} ({reason})") from error
    prompted.prompt_encoder[prompted.active_adapter].embedding.weight.data = begin
    return prompted


# ------------------------------------------------------------------------------------------------ scoring


def label_logits(model: nn.Module, batch: Mapping[str, Tensor], words: Tensor) -> Tensor:
    """Logits of the labels' words after each prompt; float32 (batch, labels), with gradients where they are on.

    The head runs on the last real position of each prompt alone: of a model of one block it would be most of the work.
    Padding lies behind that position, so a causal model never sees it, and needs no mask.

    Args:
        model: any causal model, or peft's with virtual tokens before the input.
        batch: from `classification.collate`.
        words: int64 (labels,) from `classification.label_tokens`.
    """
    last = batch["attention_mask"].sum(1) - 1
    tokens = batch["input_ids"].shape[1]

    def gather(_: nn.Module, args: tuple) -> tuple:
        hidden = args[0]
        places = last.to(hidden.device) + hidden.shape[1] - tokens  # behind the virtual tokens
        return (hidden[torch.arange(len(last), device=hidden.device), places][:, None], *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits
    finally:
        handle.remove()
    return logits[:, 0, words.to(logits.device)].float()


def label_loss(model: nn.Module, batch: Mapping[str, Tensor], words: Tensor) -> Tensor:
    """Mean cross-entropy of the right label among the labels, nats a text; a scalar."""
    logits = label_logits(model, batch, words)
    return nn.functional.cross_entropy(logits, batch["label"].to(logits.device))


@torch.no_grad()
def judge(
    model: nn.Module, examples: Sequence[Mapping[str, Tensor]], words: Tensor, batch_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which texts a model labels right, and the right label's log-probability among the labels, in nats.

    Args:
        model: in evaluation mode.
        examples: from `classification.encode`.
        words: from `classification.label_tokens`.
        batch_tokens: tokens a forward may hold; halved when memory runs out. It decides no more than rounding does.

    Returns:
        bool (examples,) and float32 (examples,).

    Raises:
        StudyError: memory for not even one text.
    """
    device = model.get_input_embeddings().weight.device
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]["input_ids"]))  # little padding
    correct, gold = np.zeros(len(examples), bool), np.zeros(len(examples), np.float32)
    done = 0
    while done < len(order):
        high = done + 1
        while high < len(order) and (high + 1 - done) * len(examples[order[high]]["input_ids"]) <= batch_tokens:
            high += 1
        places = order[done:high]
        batch = {n: t.to(device) for n, t in classification_sets.collate([examples[i] for i in places]).items()}
        try:
            log_probs = label_logits(model, batch, words).log_softmax(-1)
        except (RuntimeError, MemoryError) as error:
            devices.halved(len(places), error, "one text to classify")
            batch_tokens = max(1, len(places) // 2 * batch["input_ids"].shape[1])
            continue
        labels = batch["label"].to(log_probs.device)
        correct[places] = (log_probs.argmax(-1) == labels).cpu().numpy()
        gold[places] = log_probs.gather(1, labels[:, None])[:, 0].cpu().numpy()
        done = high
    if not np.isfinite(gold).all():
        raise StudyError("the tuned model gives NaN or infinite logits: choose a lower learning rate, or dtype float32")
    return correct, gold


# ------------------------------------------------------------------------------------------------ memory and time


def costs(study: Study, found: Mapping[Run, Result]) -> pd.DataFrame:
    """What each number of kept blocks takes, measured once for each and kept.

    Texts are the first data set's first test items, all in forwards of the profile's size. What weights say does not
    matter to it, so the models are untuned, with as many virtual tokens as prompt tuning has.

    Args:
        study: gives model and budget.
        found: from `results`, which knows what trainings took.

    Returns:
        kept, method (PROMPTS, which reads the virtual tokens too, and WEIGHTS), parameters (of the model, tied ones
        once), inference_bytes (peak of weights and activations: the allocator's on a GPU, else every tensor's storage),
        seconds (an item, median of the repeats), fastest, slowest; training_bytes (as `training.Fitted` has them, the
        largest of the runs) and training_seconds (median of the runs).

    Raises:
        NotApplicable: as `tuned`.
    """
    budget = study.profile.classification
    rows = []
    for kept in depths(budget, study.num_blocks):
        for method in (PROMPTS, WEIGHTS):
            asked = _asked(study, budget.datasets[0], budget.seeds[0], "test")
            settings = {
                "batch_tokens": study.profile.batch_tokens or BATCH_TOKENS,
                "items": TIMED,
                "repeats": budget.repeats,
                "virtual_tokens": budget.virtual_tokens if method == PROMPTS else 0,
                "device": study.profile.device,
            }
            variant, measurement = variants.name(tuple(range(kept))), "classification_cost"
            key = Key(
                study.identity.fingerprint, variant, measurement, asked.fingerprint, settings_text(settings), VERSION
            )
            stored = study.store.get(key)
            if stored is None:
                stored = _cost(study, kept, method, asked, settings["batch_tokens"])
                study.store.put(key, study.identity.name, stored)
            seconds = stored.arrays["seconds"]
            spread = {"seconds": float(np.median(seconds)), "fastest": seconds.min(), "slowest": seconds.max()}
            tuned_so = [r.summary for run, r in found.items() if (run.kept, run.method) == (kept, method)]
            trained = {
                "training_bytes": max(summary["peak_bytes"] for summary in tuned_so),
                "training_seconds": float(np.median([summary["seconds"] for summary in tuned_so])),
            }
            rows.append({"kept": kept, "method": method} | stored.summary | spread | trained)
    return pd.DataFrame(rows)


def _cost(study: Study, kept: int, method: str, asked: Asked, batch_tokens: int) -> Result:
    budget = study.profile.classification
    whole = study.stack.model
    held = devices.allocated(study.stack.device)
    model = first_blocks(whole, kept)
    parameters = sum(p.numel() for p in model.parameters())
    if method == PROMPTS:
        model = with_prompts(model, _initial_tokens(study, budget.datasets[0]))
    timed = asked.judged[:TIMED]
    with devices.tensor_peak(model) as peak:  # also the first, slow run, which is not timed
        judge(model, timed, asked.words, batch_tokens)
    seconds = []
    for _ in range(budget.repeats):
        began = time.perf_counter()
        judge(model, timed, asked.words, batch_tokens)  # waits for the device: its results come to the host
        seconds.append((time.perf_counter() - began) / len(timed))
    summary = {"parameters": parameters, "inference_bytes": peak() - held}
    return Result(summary, {"seconds": np.array(seconds)})


# ------------------------------------------------------------------------------------------------ tables


def run_table(study: Study, found: Mapping[Run, Result]) -> pd.DataFrame:
    """Every run: dataset, method, kept, seed, accuracy (0 to 1), low, high (95 % Wilson), n, gold_logprob (mean, nats
    among the labels), training seconds, peak_bytes and trainable (NaN where nothing was trained)."""
    rows = []
    for run, result in found.items():
        correct = result.arrays["correct"]
        low, high = stats.accuracy_interval(int(correct.sum()), len(correct))
        row = asdict(run) | {"accuracy": correct.mean(), "low": low, "high": high, "n": len(correct)}
        row["gold_logprob"] = float(result.arrays["gold_logprob"].mean())
        rows.append(row | {name: result.summary.get(name, np.nan) for name in ("seconds", "peak_bytes", "trainable")})
    return pd.DataFrame(rows)


class Accuracies:
    """What runs got right, as (seeds, items), and bootstrap resamples of both.

    Seeds and items are resampled each for itself: an interval holds for other shots and other texts. Items are drawn
    alike for all runs on a data set, and seeds alike for all of one method there, so that differences are paired. With
    three seeds it is rough: what they have in common it cannot know.

    Args:
        found: from `results`.
        resamples: of the bootstrap.
        seed: of the resampling.
    """

    def __init__(self, found: Mapping[Run, Result], resamples: int, seed: int):
        groups: dict[tuple[str, str, int], list[np.ndarray]] = {}
        for run, result in sorted(found.items(), key=lambda pair: pair[0].seed):
            groups.setdefault((run.dataset, run.method, run.kept), []).append(result.arrays["correct"])
        self.correct = {place: np.stack(rows).astype(float) for place, rows in groups.items()}
        self.datasets = list(dict.fromkeys(run.dataset for run in found))
        self.kept = sorted({run.kept for run in found})
        self._resamples, self._seed = resamples, seed

    def methods(self) -> list[str]:
        """Those that there are, in their order."""
        there = {method for _, method, _ in self.correct}
        return [method for method in (UNTUNED, PROMPTS, WEIGHTS) if method in there]

    def tuned_methods(self) -> list[str]:
        """Those that train something."""
        return [method for method in self.methods() if method != UNTUNED]

    def names(self) -> list[str]:
        """The data sets, and their mean where there are several."""
        return self.datasets + [MEAN] * (len(self.datasets) > 1)

    def measured(self, name: str, method: str, kept: int) -> float:
        """Mean over seeds and items; of MEAN, the mean over data sets."""
        return float(np.mean([self.correct[of, method, kept].mean() for of in self._of(name)]))

    def drawn(self, name: str, method: str, kept: int) -> np.ndarray:
        """The same in each resample; (resamples,)."""
        return np.mean([self._drawn(self.correct[of, method, kept], of) for of in self._of(name)], axis=0)

    def resampled(self, name: str, values: np.ndarray) -> np.ndarray:
        """The mean of other values (seeds, items) on a data set, with the same draws; (resamples,)."""
        return self._drawn(np.asarray(values, float), name)

    def _of(self, name: str) -> list[str]:
        return self.datasets if name == MEAN else [name]

    def _drawn(self, values: np.ndarray, name: str) -> np.ndarray:
        return stats.means_over_items_and_seeds(values, self._resamples, [self._seed, self.datasets.index(name)])


def _ends(draws: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(draws, INTERVAL)
    return {"low": float(low), "high": float(high)}


def by_depth(accuracies: Accuracies) -> pd.DataFrame:
    """Accuracy by the number of kept blocks.

    Returns:
        dataset (and MEAN of them), method, kept, accuracy, low, high (95 %, over seeds and items), seed_low, seed_high
        (the seeds' range), seeds, n (items).
    """
    rows = []
    for name in accuracies.names():
        for method in accuracies.methods():
            for kept in accuracies.kept:
                runs = [accuracies.correct[of, method, kept] for of in accuracies._of(name)]
                of_seed = np.mean([correct.mean(1) for correct in runs], axis=0)
                rows.append(
                    {"dataset": name, "method": method, "kept": kept}
                    | {"accuracy": accuracies.measured(name, method, kept)}
                    | _ends(accuracies.drawn(name, method, kept))
                    | {"seed_low": of_seed.min(), "seed_high": of_seed.max(), "seeds": len(of_seed)}
                    | {"n": sum(correct.shape[1] for correct in runs)}
                )
    return pd.DataFrame(rows)


def baselines(study: Study) -> pd.DataFrame:
    """What there is to beat, on the same test items.

    Returns:
        dataset, chance, majority (always the training texts' commonest label), bag_of_words (a logistic regression on
        word counts of the same shots, the mean over seeds), with their means over data sets last.
    """
    budget, rows = study.profile.classification, []
    for name in budget.datasets:
        rows.append(
            {
                "dataset": name,
                "chance": 1 / len(classification_sets.SOURCES[name].labels),
                "majority": _commonest(study, name).mean(),
                "bag_of_words": bag_of_words(study, name).mean(),
            }
        )
    if len(rows) > 1:
        rows.append({"dataset": MEAN} | pd.DataFrame(rows).drop(columns="dataset").mean().to_dict())
    return pd.DataFrame(rows)


def bag_of_words(study: Study, name: str) -> np.ndarray:
    """What `classification.bag_of_words` gets right of a data set's test items; bool (seeds, items)."""
    budget = study.profile.classification
    data = classification_sets.load(name, budget.max_words)
    judged = classification_sets.few(data.test, budget.test_items, study.profile.seed)
    shots = [classification_sets.shots(data.train, budget.shots, seed) for seed in budget.seeds]
    return np.stack([classification_sets.bag_of_words(train, judged) for train in shots])


def against_whole(accuracies: Accuracies, kept: Sequence[int]) -> pd.DataFrame:
    """Some of the first blocks against the whole model, tuned alike; not where neither was tuned.

    Returns:
        dataset, method, kept, accuracy, whole (accuracy of the whole model), difference (points of accuracy, 0 to 100),
        low, high (95 %, paired by item, over seeds and items).
    """
    whole, rows = accuracies.kept[-1], []
    for name in accuracies.names():
        for method in accuracies.tuned_methods():
            for count in kept:
                draws = accuracies.drawn(name, method, count) - accuracies.drawn(name, method, whole)
                measured = [accuracies.measured(name, method, k) for k in (count, whole)]
                rows.append(
                    {"dataset": name, "method": method, "kept": count, "accuracy": measured[0], "whole": measured[1]}
                    | {"difference": 100 * (measured[0] - measured[1])}
                    | _ends(100 * draws)
                )
    return pd.DataFrame(rows)


def claim(study: Study, accuracies: Accuracies) -> pd.DataFrame:
    """The paper's claim made into statements that can be false.

    Returns:
        statement, measured, threshold (accuracies, means over data sets), holds, certainty (share of the resamples of
        seeds and items in which it holds too).
    """
    whole, name = accuracies.kept[-1], accuracies.names()[-1]
    label = _baseline(accuracies, lambda of: _commonest(study, of)[None])
    words = _baseline(accuracies, lambda of: bag_of_words(study, of))
    rows = []

    def say(statement: str, one: tuple, other: tuple, strictly: bool = True) -> None:
        better = np.greater if strictly else np.greater_equal
        rows.append(
            {"statement": statement, "measured": one[0], "threshold": other[0]}
            | {"holds": bool(better(one[0], other[0])), "certainty": better(one[1], other[1]).mean()}
        )

    for method in accuracies.tuned_methods():
        of = {k: (accuracies.measured(name, method, k), accuracies.drawn(name, method, k)) for k in accuracies.kept}
        for kept in [k for k in (1, 2) if k in of and k < whole]:
            say(
                f"{method}: {kept} of {whole} blocks are no worse than all of them", of[kept], of[whole], strictly=False
            )
        say(f"{method}: 1 block beats the commonest label", of[accuracies.kept[0]], label)
        say(f"{method}: 1 block beats counting words of the same shots", of[accuracies.kept[0]], words)
        say(f"{method}: all {whole} blocks beat counting words of the same shots", of[whole], words)
    return pd.DataFrame(rows)


def _baseline(accuracies: Accuracies, right: Callable[[str], np.ndarray]) -> tuple[float, np.ndarray]:
    """A baseline's accuracy, the mean over data sets, and the same in each resample; from what it gets right."""
    correct = {of: right(of) for of in accuracies.datasets}
    measured = float(np.mean([values.mean() for values in correct.values()]))
    return measured, np.mean([accuracies.resampled(of, values) for of, values in correct.items()], axis=0)


def _commonest(study: Study, name: str) -> np.ndarray:
    """Which test items have the training texts' commonest label; bool (items,)."""
    budget = study.profile.classification
    data = classification_sets.load(name, budget.max_words)
    judged = classification_sets.few(data.test, budget.test_items, study.profile.seed)
    return judged.labels == np.bincount(data.train.labels).argmax()


def beside_paper(study: Study, accuracies: Accuracies) -> pd.DataFrame:
    """The paper's numbers, as far as they are known to us, and ours: means over data sets, in percent.

    Returns:
        source, model, method, blocks, kept, accuracy, whole, difference (points), low, high (95 %; NaN for the paper).
    """
    columns = ["source", "model", "method", "blocks", "kept", "accuracy", "whole", "difference", "low", "high"]
    reported = paper_tables.table("why_lift_accuracy")
    rows: list[tuple] = []
    for row in reported[reported["kept"] < reported["blocks"]].itertuples():
        whole = reported[(reported["model"] == row.model) & (reported["kept"] == row.blocks)]["accuracy"].iloc[0]
        what = "paper", row.model, row.method, row.blocks, row.kept
        rows.append((*what, row.accuracy, whole, row.accuracy - whole, np.nan, np.nan))
    ours = against_whole(accuracies, [kept for kept in (1, 2) if kept in accuracies.kept[:-1]])
    for row in ours[ours["dataset"] == accuracies.names()[-1]].itertuples():
        what = "measured", study.identity.name, row.method, accuracies.kept[-1], row.kept
        rows.append((*what, 100 * row.accuracy, 100 * row.whole, row.difference, row.low, row.high))
    return pd.DataFrame(rows, columns=columns)


def sizes_beside_paper(study: Study, costs: pd.DataFrame) -> pd.DataFrame:
    """Weights of the first block with embedding and head, and of the whole model; the paper's and ours.

    Args:
        study: names the model.
        costs: from `costs`.

    Returns:
        source, model, blocks, whole and single (millions of weights), saved (percent).
    """
    rows = []
    for model, part in paper_tables.table("why_lift_size").groupby("model", sort=False):
        sizes = part.set_index("kept")["parameters_millions"]
        rows.append(("paper", model, sizes.index.max(), sizes[sizes.index.max()], sizes[1]))
    ours = costs.drop_duplicates("kept").set_index("kept")["parameters"] / 1e6
    rows.append(("measured", study.identity.name, ours.index.max(), ours.iloc[-1], ours.get(1, np.nan)))
    table = pd.DataFrame(rows, columns=["source", "model", "blocks", "whole", "single"])
    return table.assign(saved=100 * (1 - table["single"] / table["whole"]))


def note(study: Study) -> str:
    """Data, shots and training in a caption."""
    budget = study.profile.classification
    said = [classification_sets.note(budget)]
    how = {
        "all": f"all weights, learning rate {budget.weights_rate:g}",
        "lora": f"LoRA of rank {LORA.rank} (Adam on all weights does not fit), learning rate {budget.lora_rate:g}",
    }[trained_weights(study)]
    if budget.rate_power:
        how += f" for all blocks and larger for fewer (by {'their factor' if budget.rate_power == 1 else 'a power'})"
    said += [
        f"Prompt tuning: {budget.virtual_tokens} virtual tokens, learning rate {budget.prompt_rate:g}, "
        f"{_times(budget.epochs[0], 'epoch')}",
        f"Fine-tuning: {how}, {_times(budget.epochs[1], 'epoch')}",
        f"Batches of {budget.batch}, {len(budget.seeds)} seeds",
    ]
    return ". ".join(said)


def _times(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


INTERVALS = "Intervals: 95 %, bootstrap over seeds and test items"


# ------------------------------------------------------------------------------------------------ export


def export(study: Study, run: Run, folder: Path) -> Path:
    """Tunes once more and writes what came of it: `model`, which plain transformers loads, and where only an adapter
    was trained, `adapter`, which peft loads on top of it.

    Both are loaded again, and their logits compared with those in memory; then the folder gets its name.

    Args:
        study: gives the model and the budget.
        run: which.
        folder: to be made; must not exist.

    Returns:
        The folder.

    Raises:
        StudyError: the folder exists or cannot be written, what is loaded again gives other logits, or as `tuned`.
    """
    folder = Path(folder)
    if folder.exists():
        raise StudyError(f"{folder} exists: choose another folder or delete it")
    asked = _asked(study, run.dataset, run.seed, "test")
    with training_loop.workplace({"export": asdict(_key(study, run, asked, "test"))}) as place:
        model, _ = tuned(study, run, asked, place)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
            written = Path(scratch) / "tuned"
            _write(model, study.tokenizer, asked, written)
            written.rename(folder)
    except OSError as error:
        raise StudyError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder


def _write(model: nn.Module, tokenizer: Any, asked: Asked, folder: Path) -> None:
    import peft

    adapted = isinstance(model, peft.PeftModel)
    base = model
    if adapted:
        learnt = model.active_peft_config.is_prompt_learning
        base = model.get_base_model() if learnt else copy.deepcopy(model).unload()
    surgery.export(base, tokenizer, (), folder / "model")
    with checkpoints.hub_errors("the exported model"):
        reloaded = loading.prepare(type(base).from_pretrained(folder / "model", dtype=base.dtype))
        if adapted:
            model.save_pretrained(folder / "adapter")
            reloaded = peft.PeftModel.from_pretrained(reloaded, folder / "adapter")
    reloaded = reloaded.eval().to(base.device)
    batch = {n: t.to(base.device) for n, t in classification_sets.collate(asked.judged[:4]).items()}
    with torch.no_grad():
        ours, theirs = (label_logits(m, batch, asked.words) for m in (model, reloaded))
    if not torch.allclose(ours, theirs, atol=1e-4, rtol=1e-4):
        raise StudyError(
            f"the tuned {type(base).__name__} cannot be exported: loaded again, it gives other logits (largest "
            f"difference {(ours - theirs).abs().max().item():.3g})"
        )
