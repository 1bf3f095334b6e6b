"""Notebook 12: the first blocks of a model tuned to classify texts, by prompts alone or by all weights (Why Lift so
Heavy?, arXiv 2402.11700): the runs, what each gets right, what it costs, and the tables made of them."""

import copy
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from layer_redundancy.config import paper_tables
from layer_redundancy.config.checks import Count, Rate, Seed, Whole, at_least, given, one_of
from layer_redundancy.config.profiles import Recipe
from layer_redundancy.core import devices, stats, verdicts
from layer_redundancy.core.cache import new_path, scratch_beside
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Key, Result
from layer_redundancy.core.verdicts import Statement
from layer_redundancy.core.wording import counted
from layer_redundancy.data import classification_sets
from layer_redundancy.data.classification_sets import LabelledPrompts, PromptChoice
from layer_redundancy.evaluate.amounts import Pass, Training, Work
from layer_redundancy.experiments.learning_rates import Trial
from layer_redundancy.models import checkpoints, loading, surgery
from layer_redundancy.study import Study
from layer_redundancy.train import healing, training_loop
from layer_redundancy.train import prompts as tuning

logger = logging.getLogger(__name__)

NOTEBOOK = "12_prompt_tuning"
VERSION = 1  # raise it when a run means something else
UNTUNED, PROMPTS, WEIGHTS = "untuned", "prompt tuning", "fine-tuning"
WARMUP = 5  # steps in which the learning rate rises
USUAL_EPOCHS = 5  # after which most trainings have converged, for a plan
TIMED = 64  # items
BATCH_TOKENS = 8192  # tokens of a forward without gradients, where the profile leaves it to the device
LORA = Recipe("lora", learning_rate=0.0, rank=8, alpha=16, dropout=0.0)  # the rate is the budget's
ALL = Recipe("full", learning_rate=0.0)
FITS = 0.8  # share of the device's memory that weights, gradients and the optimizer's states may take
MEAN = "mean"  # the mean of all data sets
FITTED = 0.95  # share of its shots that a trained model labels right, at least
MARGIN = 3.0  # points of accuracy that a part may be behind the whole and still count as no worse
MATTERS = 10.0  # points of accuracy


@dataclass(frozen=True)
class Run:
    """One model that is tuned and judged.

    Attributes:
        dataset: name in `classification_sets.SOURCES`.
        method: UNTUNED, PROMPTS or WEIGHTS.
        kept: number of its first blocks that are kept.
        seed: seed of the shots, of their order, and of what is random in the weights.
    """

    dataset: str
    method: str
    kept: int
    seed: int


@dataclass(frozen=True)
class Budget:
    """What notebook 12 tunes.

    Attributes:
        datasets: names in `classification_sets.SOURCES`.
        kept: how many of the first blocks are kept; the whole model is always there too.
        shots: training texts of each label.
        test_items: test items of each data set; None for all.
        seeds: seeds of the draw of the shots, of their order, and of what is random in the weights.
        methods: PROMPTS and WEIGHTS, or one of them.
        epochs: how often each shot is seen at most in prompt tuning, and in fine-tuning.
        converged: training ends with the first epoch whose mean loss is below this, in nats a text, at every depth.
        batch: texts a step.
        prompt_rate: learning rate of prompt tuning.
        weights_rate: learning rate of fine-tuning all weights of the whole model.
        rate_power: fewer blocks are fine-tuned at a larger rate, by this power of the factor by which they are fewer;
            0 for the same at every depth.
        lora_rate: learning rate of LoRA, which is used where training all weights does not fit the device.
        virtual_tokens: number of virtual tokens in prompt tuning.
        demonstrations: worked examples of each label before every prompt.
        max_words: longer texts are left out; None for none.
        repeats: number of timed runs of inference.
    """

    datasets: Annotated[tuple[str, ...], given()]
    kept: Annotated[tuple[Count, ...], given()]
    shots: Count
    test_items: Annotated[int | None, at_least(1)]
    seeds: Annotated[tuple[Seed, ...], given()] = (0, 1, 2)
    methods: Annotated[tuple[Annotated[str, one_of("prompt tuning", "fine-tuning")], ...], given()] = (PROMPTS, WEIGHTS)
    epochs: tuple[Count, Count] = (20, 20)
    converged: Annotated[float, at_least(0)] = 0.05
    batch: Count = 16
    prompt_rate: Rate = 0.03
    weights_rate: Rate = 5e-5
    rate_power: Annotated[float, at_least(0)] = 0.0
    lora_rate: Rate = 1e-3
    virtual_tokens: Count = 10
    demonstrations: Whole = 0
    max_words: Annotated[int | None, at_least(1)] = None
    repeats: Count = 3

    def prompts(self, dataset: str, seed: int, part: str = "test") -> PromptChoice:
        """The prompts of a run on a data set."""
        return PromptChoice(
            dataset, part, seed, self.shots, self.demonstrations, self.test_items, self.max_words, self.virtual_tokens
        )


@dataclass(frozen=True, eq=False)
class Measured:
    """Every run, and what each number of kept blocks costs.

    Attributes:
        results: run -> result, from the function `results`.
        timings: (kept, method) -> result of `timing`.
    """

    results: dict[Run, Result]
    timings: dict[tuple[int, str], Result]


def budget_of(study: Study) -> Budget:
    """The notebook's budget."""
    return study.profile.budget(Budget)


def measure(study: Study) -> Measured:
    """Tunes and judges everything, and times what is kept.

    Raises:
        NotApplicable, StudyError: as `results`.
    """
    return Measured(results(study), timings(study))


def depths(budget: Budget, num_blocks: int) -> list[int]:
    """The numbers of kept blocks, ascending; the whole model's is the last."""
    return sorted({kept for kept in budget.kept if kept < num_blocks} | {num_blocks})


def every_run(study: Study) -> list[Run]:
    """All runs; what needs no training comes first, then the cheap ones, so that trouble shows soon.

    An untuned model is the same for every seed but for its demonstrations, so it is asked once.
    """
    budget = budget_of(study)
    kept = depths(budget, study.num_blocks)
    if len(kept) == 1:
        logger.info(
            f"the whole model of {counted(kept[0], 'block')} is tuned, and no part of it: the profile keeps "
            f"{' or '.join(map(str, budget.kept))}"
        )
    runs = [Run(name, UNTUNED, k, budget.seeds[0]) for k in kept for name in budget.datasets]
    return runs + [
        Run(name, method, k, seed)
        for k in kept
        for name in budget.datasets
        for method in budget.methods
        for seed in budget.seeds
    ]


@cache
def _num_weights(identity: checkpoints.ModelIdentity) -> int:
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
        study: the study, which gives model, budget and store.
        runs: the runs whose results are wanted; `every_run` if not given.
        part: the part of the data sets that runs are judged on; "validation" to choose a learning rate.

    Returns:
        Results with arrays `correct` (items,) and `gold_logprob` (items,), the right label's log-probability among the
        labels, in nats; and `loss` (steps,) of the training. The summary has accuracy, and of the training seconds,
        peak_bytes, trainable (weights), train_accuracy (of the shots, when all is done) and train_loss (mean of the
        last epoch, nats a text).

    Raises:
        NotApplicable: peft cannot tune prompts of such a model.
        StudyError: data that cannot be had, or as `training.fit`.
    """
    runs = every_run(study) if runs is None else list(runs)
    return {
        run: _run(study, run, part, f"{place} of {len(runs)}: {describe(run)}")
        for place, run in enumerate(runs, start=1)
    }


def _run(study: Study, run: Run, part: str, label: str) -> Result:
    prompts = study.inputs.prompts_to_classify(budget_of(study).prompts(run.dataset, run.seed, part))
    key = _key(study, run, prompts, part)
    trained = trained_weights(study)  # as in the key, whatever memory the device has where it is trained

    def compute() -> Result:
        with training_loop.workplace(asdict(key)) as folder:
            # Another process may have been at work on it.
            return study.store.get(key) or _result(study, run, prompts, folder, label, trained)

    def work() -> list[Work]:
        judged = Pass(prompts.judged_tokens * run.kept)
        if run.method == UNTUNED:
            return [judged]
        what = trained if run.method == WEIGHTS else "prompts"
        how = _optimization(study, run, what, len(prompts.train))
        virtual = budget_of(study).virtual_tokens if run.method == PROMPTS else 0
        length = prompts.train_tokens // len(prompts.train) + virtual
        recipe = Recipe({"all": "full"}.get(what, what), how.learning_rate)
        examples = min(how.steps * how.batch, USUAL_EPOCHS * len(prompts.train))
        return [judged, Training(recipe, examples * length, length, examples, run.kept, kept=False)]

    return study.cached(key, compute, lambda: _no_result(len(prompts.judged), run), work)


def _no_result(items: int, run: Run) -> Result:
    """A result of the same shape for a run that was not done."""
    summary = {"dataset": run.dataset, "seed": run.seed, "accuracy": 0.0, "items": items}
    summary |= {"seconds": 0.0, "peak_bytes": 0, "trainable": 0, "train_accuracy": 0.0, "train_loss": 0.0}
    arrays = {"correct": np.zeros(items, bool), "gold_logprob": np.zeros(items, np.float32), "loss": np.zeros(1)}
    return Result(summary, arrays)


def describe(run: Run) -> str:
    """A run in a message."""
    return f"{run.dataset}, {run.method}, {counted(run.kept, 'block')}, seed {run.seed}"


def _optimization(study: Study, run: Run, trained: str, examples: int) -> training_loop.Optimization:
    budget = budget_of(study)
    epochs = budget.epochs[0 if run.method == PROMPTS else 1]
    fewer = (study.num_blocks / run.kept) ** budget.rate_power
    rates = {"prompts": budget.prompt_rate, "all": budget.weights_rate * fewer, "lora": budget.lora_rate * fewer}
    steps = math.ceil(epochs * examples / budget.batch)
    warmup = min(WARMUP, steps // 10)
    return training_loop.Optimization(steps, budget.batch, rates[trained], warmup, "constant_with_warmup")


def _key(study: Study, run: Run, prompts: LabelledPrompts, part: str) -> Key:
    budget = budget_of(study)
    settings: dict[str, Any] = {"dataset": run.dataset, "part": part, "dtype": study.profile.dtype}
    if run.method != UNTUNED:
        trained = trained_weights(study) if run.method == WEIGHTS else "prompts"
        settings |= asdict(_optimization(study, run, trained, len(prompts.train)))
        settings |= {"seed": run.seed, "trained": trained, "converged": budget.converged}
        settings |= {"virtual_tokens": budget.virtual_tokens} if run.method == PROMPTS else {}
        settings |= healing.rules_of_adapters(study.identity, LORA) if trained == "lora" else {}
    variant = tuple(range(run.kept))
    return study.key(f"classification/{run.method}", VERSION, variant, prompts.fingerprint, settings)


def _result(
    study: Study, run: Run, prompts: LabelledPrompts, folder: Path, label: str, trained: str | None = None
) -> Result:
    model, fitted = tuned(study, run, prompts, folder, label, trained)
    batch_tokens = study.profile.batch_tokens or BATCH_TOKENS
    correct, gold = tuning.judge(model, prompts.judged, prompts.words, batch_tokens)
    summary = {"dataset": run.dataset, "seed": run.seed, "accuracy": float(correct.mean()), "items": len(correct)}
    arrays = {"correct": correct, "gold_logprob": gold}
    if fitted is not None:
        summary |= {name: getattr(fitted, name) for name in ("seconds", "peak_bytes", "trainable")}
        arrays["loss"] = fitted.curve()[1].astype(np.float32)
        epoch = math.ceil(len(prompts.train) / budget_of(study).batch)
        learnt, _ = tuning.judge(model, prompts.train, prompts.words, batch_tokens)
        summary |= {"train_accuracy": float(learnt.mean()), "train_loss": float(arrays["loss"][-epoch:].mean())}
    return Result(summary, arrays)


# ------------------------------------------------------------------------------------------------ models


def tuned(
    study: Study, run: Run, prompts: LabelledPrompts, folder: Path, label: str = "", weights: str | None = None
) -> tuple[nn.Module, training_loop.Fitted | None]:
    """The first blocks, tuned; and what the training took (None where there was none).

    Args:
        study: the study, which gives the model and the budget.
        run: the run to tune.
        prompts: the run's examples.
        folder: folder of checkpoints, from `training_loop.workplace`.
        label: label of the progress bar.
        weights: what fine-tuning trains; `trained_weights` of this device if not given.

    Raises:
        NotApplicable: peft cannot tune prompts of such a model.
        StudyError: as `training.fit`.
    """
    whole = study.stack.model
    held = devices.allocated(study.stack.device)
    model = tuning.first_blocks_of(whole, run.kept)
    if run.method == UNTUNED:
        return model, None
    trained = (weights or trained_weights(study)) if run.method == WEIGHTS else "prompts"
    torch.manual_seed(run.seed)
    if trained == "prompts":
        model = tuning.with_prompts(model, _initial_tokens(study, run.dataset))
    elif trained == "lora":
        model = healing.prepare(model, LORA, run.seed)
    else:
        model = healing.prepare(model, ALL)
    fitted = training_loop.fit(
        model,
        prompts.train,
        _optimization(study, run, trained, len(prompts.train)),
        folder,
        seed=run.seed,
        loss=lambda model, batch: tuning.label_loss(model, batch, prompts.words),
        collate=classification_sets.collate,
        converged=budget_of(study).converged,
        label=label or describe(run),
    )
    return model, replace(fitted, peak_bytes=fitted.peak_bytes - held)  # the whole model is no part of this one


def _initial_tokens(study: Study, name: str) -> Tensor:
    """Tokens that virtual ones begin as, (virtual_tokens,): an instruction, again and again."""
    words = list(classification_sets.SOURCES[name].words.values())
    ids = study.tokenizer(f"Classify as {' or '.join(words)}:", add_special_tokens=False).input_ids
    number = budget_of(study).virtual_tokens
    return torch.tensor((ids * math.ceil(number / len(ids)))[:number])


# ------------------------------------------------------------------------------------------------ memory and time


def costs(study: Study, found: Measured) -> pd.DataFrame:
    """What each number of kept blocks takes.

    Returns:
        kept, method (PROMPTS, which reads the virtual tokens too, and WEIGHTS), parameters (of the model, tied ones
        once), inference_bytes (peak of weights and activations: the allocator's on a GPU, else every tensor's storage),
        seconds (an item, median of the repeats), fastest, slowest; training_bytes (as `training_loop.Fitted` has them,
        the largest of the runs) and training_seconds (median of the runs).
    """
    rows = []
    for (kept, method), stored in found.timings.items():
        seconds = stored.arrays["seconds"]
        spread = {"seconds": float(np.median(seconds)), "fastest": seconds.min(), "slowest": seconds.max()}
        summaries = [r.summary for run, r in found.results.items() if (run.kept, run.method) == (kept, method)]
        trained = {
            "training_bytes": max(summary["peak_bytes"] for summary in summaries),
            "training_seconds": float(np.median([summary["seconds"] for summary in summaries])),
        }
        rows.append({"kept": kept, "method": method} | stored.summary | spread | trained)
    return pd.DataFrame(rows)


def timings(study: Study) -> dict[tuple[int, str], Result]:
    """What reading takes at each number of kept blocks, with virtual tokens and without, measured once and kept.

    Texts are the first data set's first test items, all in forwards of the profile's size. The weights' values do not
    matter to it, so the models are untuned, with as many virtual tokens as prompt tuning has.

    Raises:
        NotApplicable: as `tuned`.
    """
    kept = depths(budget_of(study), study.num_blocks)
    return {(k, method): _timing(study, k, method) for k in kept for method in budget_of(study).methods}


def _timing(study: Study, kept: int, method: str) -> Result:
    budget = budget_of(study)
    prompts = study.inputs.prompts_to_classify(budget.prompts(budget.datasets[0], budget.seeds[0]))
    batch_tokens = study.profile.batch_tokens or BATCH_TOKENS
    settings = {
        "batch_tokens": batch_tokens,
        "items": TIMED,
        "repeats": budget.repeats,
        "virtual_tokens": budget.virtual_tokens if method == PROMPTS else 0,
        "device": study.profile.device,
    }
    judged = max(1, len(prompts.judged))
    tokens = prompts.judged_tokens * min(TIMED, judged) // judged
    return study.cached(
        study.key("classification_cost", VERSION, tuple(range(kept)), prompts.fingerprint, settings),
        lambda: _timed(study, kept, method, prompts, batch_tokens),
        lambda: Result({"parameters": 0, "inference_bytes": 0}, {"seconds": np.zeros(budget.repeats)}),
        lambda: [Pass((1 + budget.repeats) * tokens * kept)],
    )


def _timed(study: Study, kept: int, method: str, prompts: LabelledPrompts, batch_tokens: int) -> Result:
    budget = budget_of(study)
    whole = study.stack.model
    held = devices.allocated(study.stack.device)
    model = tuning.first_blocks_of(whole, kept)
    parameters = sum(p.numel() for p in model.parameters())
    if method == PROMPTS:
        model = tuning.with_prompts(model, _initial_tokens(study, budget.datasets[0]))
    timed = prompts.judged[:TIMED]
    with devices.tensor_peak(model) as peak:  # also the first, slow run, which is not timed
        tuning.judge(model, timed, prompts.words, batch_tokens)
    seconds = []
    for _ in range(budget.repeats):
        start = time.perf_counter()
        tuning.judge(model, timed, prompts.words, batch_tokens)  # waits for the device: its results come to the host
        seconds.append((time.perf_counter() - start) / len(timed))
    summary = {"parameters": parameters, "inference_bytes": peak() - held}
    return Result(summary, {"seconds": np.array(seconds)})


# ------------------------------------------------------------------------------------------------ tables


def run_table(study: Study, found: Mapping[Run, Result]) -> pd.DataFrame:
    """Every run: dataset, method, kept, seed; of the training, NaN where nothing was trained: steps, train_loss (mean
    of the last epoch, nats a text), train_accuracy (of the shots), trainable (weights), seconds, peak_bytes; and
    accuracy (0 to 1), low, high (95 % Wilson), n, gold_logprob (mean, nats among the labels)."""
    rows = []
    for run, result in found.items():
        correct = result.arrays["correct"]
        low, high = stats.accuracy_interval(int(correct.sum()), len(correct))
        steps = len(result.arrays["loss"]) if "loss" in result.arrays else np.nan
        of_training = ("train_loss", "train_accuracy", "trainable", "seconds", "peak_bytes")
        row = asdict(run) | {"steps": steps} | {name: result.summary.get(name, np.nan) for name in of_training}
        row |= {"accuracy": correct.mean(), "low": low, "high": high, "n": len(correct)}
        rows.append(row | {"gold_logprob": float(result.arrays["gold_logprob"].mean())})
    return pd.DataFrame(rows)


class Accuracies:
    """What runs got right, as (seeds, items); intervals hold for other shots and other texts.

    Differences are paired: all runs on a data set are judged on the same items, and all of one method have the same
    seeds.

    Args:
        found: run -> result, from `results`.
    """

    def __init__(self, found: Mapping[Run, Result]):
        groups: dict[tuple[str, str, int], list[np.ndarray]] = {}
        for run, result in sorted(found.items(), key=lambda pair: pair[0].seed):
            groups.setdefault((run.dataset, run.method, run.kept), []).append(result.arrays["correct"])
        self.correct = {place: np.stack(rows).astype(float) for place, rows in groups.items()}
        self.datasets = list(dict.fromkeys(run.dataset for run in found))
        self.kept = sorted({run.kept for run in found})

    def methods(self) -> list[str]:
        """The methods that the results have, in order."""
        there = {method for _, method, _ in self.correct}
        return [method for method in (UNTUNED, PROMPTS, WEIGHTS) if method in there]

    def tuned_methods(self) -> list[str]:
        """The methods that train something."""
        return [method for method in self.methods() if method != UNTUNED]

    def names(self) -> list[str]:
        """The data sets, and their mean where there are several."""
        return self.datasets + [MEAN] * (len(self.datasets) > 1)

    def values(self, name: str, method: str, kept: int) -> np.ndarray:
        """What is right, (seeds, items); for MEAN the items of all data sets, as `together` has them."""
        return self.together({of: self.correct[of, method, kept] for of in self._of(name)})

    def together(self, of_datasets: Mapping[str, np.ndarray]) -> np.ndarray:
        """Values (seeds, items) of several data sets side by side, so that their mean is that of the sets' means."""
        total = sum(values.shape[1] for values in of_datasets.values())
        shares = [values * (total / (len(of_datasets) * values.shape[1])) for values in of_datasets.values()]
        return np.concatenate(shares, axis=1)

    def _of(self, name: str) -> list[str]:
        return self.datasets if name == MEAN else [name]


def _interval(values: np.ndarray) -> dict[str, float]:
    """The 95 % interval of a mean of (seeds, items); of a single seed over items alone."""
    low, high = stats.crossed_interval(values) if len(values) > 1 else stats.mean_interval(values[0])
    return {"low": low, "high": high}


def by_depth(accuracies: Accuracies) -> pd.DataFrame:
    """Accuracy by the number of kept blocks.

    Returns:
        dataset (and MEAN of them), method, kept, accuracy, low, high (95 %, over seeds and items; over items where
        there is one seed), seed_low, seed_high (the seeds' range), seeds, n (items).
    """
    rows = []
    for name in accuracies.names():
        for method in accuracies.methods():
            for kept in accuracies.kept:
                values = accuracies.values(name, method, kept)
                of_seed = values.mean(1)
                rows.append(
                    {"dataset": name, "method": method, "kept": kept, "accuracy": values.mean()}
                    | _interval(values)
                    | {"seed_low": of_seed.min(), "seed_high": of_seed.max(), "seeds": len(of_seed)}
                    | {"n": values.shape[1]}
                )
    return pd.DataFrame(rows)


def baselines(study: Study) -> pd.DataFrame:
    """What there is to beat, on the same test items.

    Returns:
        dataset, chance, majority (always the training texts' commonest label), bag_of_words (a logistic regression on
        word counts of the same shots, the mean over seeds), with their means over data sets last.
    """
    budget, rows = budget_of(study), []
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
    """What `classification_sets.bag_of_words` gets right of a data set's test items; bool (seeds, items)."""
    budget = budget_of(study)
    data = classification_sets.load(name, budget.max_words)
    judged = classification_sets.few(data.test, budget.test_items, study.profile.seed)
    drawn = [classification_sets.drawn(budget.prompts(name, seed)) for seed in budget.seeds]
    return np.stack([classification_sets.bag_of_words(train, judged) for train, _ in drawn])


def _commonest(study: Study, name: str) -> np.ndarray:
    """Which test items have the training texts' commonest label; bool (items,)."""
    budget = budget_of(study)
    data = classification_sets.load(name, budget.max_words)
    judged = classification_sets.few(data.test, budget.test_items, study.profile.seed)
    return judged.labels == np.bincount(data.train.labels).argmax()


def against_whole(accuracies: Accuracies) -> pd.DataFrame:
    """Parts of the model against the whole of it, tuned alike; methods without tuning are left out.

    Returns:
        dataset, method, kept, accuracy, whole (accuracy of the whole model), difference (points of accuracy, 0 to 100),
        low, high (95 %, paired by item, over seeds and items), seeds, n (items).
    """
    columns = ["dataset", "method", "kept", "accuracy", "whole", "difference", "low", "high", "seeds", "n"]
    whole, rows = accuracies.kept[-1], []
    for name in accuracies.names():
        for method in accuracies.tuned_methods():
            all_of_it = accuracies.values(name, method, whole)
            for count in accuracies.kept[:-1]:
                part = accuracies.values(name, method, count)
                points = 100 * (part - all_of_it)
                rows.append(
                    {"dataset": name, "method": method, "kept": count}
                    | {"accuracy": part.mean(), "whole": all_of_it.mean(), "difference": points.mean()}
                    | _interval(points)
                    | {"seeds": points.shape[0], "n": points.shape[1]}
                )
    return pd.DataFrame(rows, columns=columns)


# ------------------------------------------------------------------------------------------------ the paper's claim


QUARTER, ONE = "the first quarter of the blocks", "the first block alone"
UNLEARNT = f"{{}} did not learn to label {100 * FITTED:g} % of the shots right with every seed"
NO_BETTER = "it is not surely better than word counts of the same shots"
NO_PART = "no part of the model was fine-tuned"


def as_good(method: str, what: str) -> str:
    """That a part of the blocks is as good as all of them."""
    return f"{method}: {what} is at most {MARGIN:g} points behind all of them"


# Detectable on the embedded profile: 7.6 points of accuracy.
PRIMARY = as_good(WEIGHTS, QUARTER)


def quarter(kept: Sequence[int], num_blocks: int) -> int | None:
    """The part of the model that is nearest to a quarter of its blocks; None where no part of it was tuned."""
    parts = [count for count in kept if count < num_blocks]
    return min(parts, key=lambda count: abs(count - num_blocks / 4), default=None)


def fits(found: Mapping[Run, Result], method: str, kept: int) -> bool:
    """Whether so many of the blocks label their own shots right, with every seed."""
    learnt = [
        result.summary.get("train_accuracy", 0.0)
        for run, result in found.items()
        if (run.method, run.kept) == (method, kept)
    ]
    return min(learnt, default=0.0) >= FITTED


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a statement compares, in points of accuracy.

    Attributes:
        statement: the statement, which holds if the difference is above the threshold.
        difference: (seeds, items) what is compared less what it is compared with.
        threshold: points.
        unfair: why no verdict is given; "" where one is.
    """

    statement: str
    difference: np.ndarray
    threshold: float
    unfair: str = ""


def comparisons(study: Study, found: Mapping[Run, Result]) -> list[Comparison]:
    """What is asked of means over data sets, by method.

    A part of the blocks counts as good as all where it is at most MARGIN points behind. What did not learn its own
    shots tells nothing of what blocks are worth, nor does a single block that is not surely better than word counts.
    """
    accuracies = Accuracies(found)
    whole, name = accuracies.kept[-1], accuracies.names()[-1]
    words = accuracies.together({of: bag_of_words(study, of).astype(float) for of in accuracies.datasets})
    part = quarter(accuracies.kept, whole)
    compared: list[Comparison] = []
    for method in accuracies.tuned_methods():
        right = {kept: accuracies.values(name, method, kept) for kept in accuracies.kept}
        above_words = {kept: 100 * (values - words) for kept, values in right.items()}
        parts = {} if part is None else {QUARTER: part} | ({ONE: 1} if 1 in right and part > 1 else {})
        for what, kept in parts.items():
            unlearnt = [count for count in (kept, whole) if not fits(found, method, count)]
            unfair = UNLEARNT.format(counted(unlearnt[0], "block")) if unlearnt else ""
            if not unfair and kept == 1 and not _interval(above_words[1])["low"] > 0:
                unfair = NO_BETTER
            behind = 100 * (right[kept] - right[whole])
            compared.append(Comparison(as_good(method, what), behind, -MARGIN, unfair))
        if part is not None:
            compared.append(Comparison(f"{method}: {QUARTER} beats word counts", above_words[part], 0.0))
        compared.append(Comparison(f"{method}: all blocks beat word counts of the same shots", above_words[whole], 0.0))
    return compared


def claim(study: Study, found: Mapping[Run, Result]) -> pd.DataFrame:
    """The paper's claim made into statements that can be false, on means over data sets, in points of accuracy.

    Returns:
        The table of `verdicts.verdicts`; seeds and test items are both resampled. What `unfair` names is not there.
    """
    compared = [one for one in comparisons(study, found) if not one.unfair]

    def statements(means: np.ndarray) -> list[Statement]:
        return [
            Statement(one.statement, mean, one.threshold, "above", MATTERS)
            for one, mean in zip(compared, means, strict=True)
        ]

    values = np.stack([one.difference for one in compared], axis=2)
    resamples, seed = study.profile.bootstrap_resamples, study.profile.seed
    return verdicts.verdicts([verdicts.judge(statements, values, resamples, seed, "accuracy")], PRIMARY)


def unfair(study: Study, found: Mapping[Run, Result]) -> list[str]:
    """Lines that name each statement without a verdict, the primary one first, and say why."""
    compared = comparisons(study, found)
    why = {} if any(one.statement == PRIMARY for one in compared) else {PRIMARY: NO_PART}
    why |= {one.statement: one.unfair for one in compared if one.unfair}
    return [
        f"no verdict on '{statement}'{' (primary)' * (statement == PRIMARY)}: {reason}"
        for statement, reason in sorted(why.items(), key=lambda item: item[0] != PRIMARY)
    ]


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
    ours = against_whole(accuracies)
    for row in ours[ours["dataset"] == accuracies.names()[-1]].itertuples():
        what = "measured", study.identity.name, row.method, accuracies.kept[-1], row.kept
        rows.append((*what, 100 * row.accuracy, 100 * row.whole, row.difference, row.low, row.high))
    return pd.DataFrame(rows, columns=columns)


def sizes_beside_paper(study: Study, costs: pd.DataFrame) -> pd.DataFrame:
    """How much smaller parts of a model are than the whole, with embedding and head; the paper's and ours.

    Args:
        study: the study, which names the model.
        costs: rows of the function `costs`.

    Returns:
        source, model, blocks, kept, whole and part (millions of weights), fewer_weights and less_memory (at inference;
        percent). What the paper says of memory in words, "40%-65%" at "25%-50%" of the blocks, is in the caption.
    """
    rows: list[tuple] = []
    for model, part in paper_tables.table("why_lift_size").groupby("model", sort=False):
        sizes = part.set_index("kept")["parameters_millions"]
        rows.append(("paper", model, sizes.index.max(), 1, sizes[sizes.index.max()], sizes[1], np.nan))
    ours = costs[costs["method"] == costs["method"].iloc[-1]].set_index("kept")
    whole = ours.iloc[-1]
    for kept, row in ours.iloc[:-1].iterrows():
        memory = 100 * (1 - row["inference_bytes"] / whole["inference_bytes"])
        sizes = whole["parameters"] / 1e6, row["parameters"] / 1e6
        rows.append(("measured", study.identity.name, ours.index[-1], kept, *sizes, memory))
    table = pd.DataFrame(rows, columns=["source", "model", "blocks", "kept", "whole", "part", "less_memory"])
    table.insert(6, "fewer_weights", 100 * (1 - table["part"] / table["whole"]))
    return table


def trials(study: Study) -> list[Trial]:
    """What `make rates` tries: fine-tuning at all depths together, whose rates follow from one."""
    budget = budget_of(study)
    shots = budget.shots * len(classification_sets.SOURCES[budget.datasets[0]].labels)
    steps = math.ceil(budget.epochs[1] * shots / budget.batch)

    def error(rate: float, seed: int) -> float:
        return validation_error(study, rate, seed)

    return [Trial("prompt_tuning", "all depths", "all weights", steps, budget.batch, budget.weights_rate, error)]


def validation_error(study: Study, rate: float, seed: int) -> float:
    """How many texts of the validation part are labelled wrong at a learning rate, the mean over depths and data sets.

    By this `weights_rate` is chosen: no test text has a part in it.

    Args:
        rate: the learning rate of fine-tuning all blocks; fewer have theirs by `Budget.rate_power`.
        seed: seed of the draw of the shots.

    Returns:
        The share, 0 to 1.
    """
    study = study.with_budget("prompt_tuning", weights_rate=rate)
    budget, runs = budget_of(study), []
    for kept in depths(budget, study.num_blocks):
        runs += [Run(name, WEIGHTS, kept, seed) for name in budget.datasets]
    found = results(study, runs, "validation")
    return 1 - float(np.mean([result.summary["accuracy"] for result in found.values()]))


def note(study: Study) -> str:
    """Data, shots and training in a caption."""
    budget = budget_of(study)
    parts = [classification_sets.note(budget.datasets, budget.shots, budget.test_items, budget.max_words)]
    if WEIGHTS in budget.methods:
        how = {
            "all": f"all weights, learning rate {budget.weights_rate:g}",
            "lora": f"LoRA of rank {LORA.rank} (Adam on all weights does not fit), learning rate {budget.lora_rate:g}",
        }[trained_weights(study)]
        if budget.rate_power:
            factor = "their factor" if budget.rate_power == 1 else "a power"
            how += f" for all blocks and larger for fewer (by {factor})"
        parts.append(f"Fine-tuning: {how}, at most {counted(budget.epochs[1], 'epoch')}")
    if PROMPTS in budget.methods:
        parts.append(
            f"Prompt tuning: {budget.virtual_tokens} virtual tokens, learning rate {budget.prompt_rate:g}, "
            f"at most {counted(budget.epochs[0], 'epoch')}"
        )
    parts.append(
        f"Trained until an epoch's mean loss is below {budget.converged:g} nats. Batches of {budget.batch}, "
        f"{len(budget.seeds)} seeds"
    )
    return ". ".join(parts)


INTERVALS = "Intervals: 95 %, over seeds and test items"


# ------------------------------------------------------------------------------------------------ export


def export(study: Study, run: Run, folder: Path) -> Path:
    """Tunes once more and writes what came of it: `model`, which plain transformers loads, and where only an adapter
    was trained, `adapter`, which peft loads on top of it.

    Both are loaded again, and their logits compared with those in memory; then the folder gets its name.

    Args:
        study: the study, which gives the model and the budget.
        run: the run to tune.
        folder: the folder to write; it must not exist.

    Returns:
        The folder.

    Raises:
        StudyError: the folder exists or cannot be written, what is loaded again gives other logits, or as `tuned`.
    """
    folder = new_path(folder)
    prompts = study.inputs.prompts_to_classify(budget_of(study).prompts(run.dataset, run.seed))
    with training_loop.workplace({"export": asdict(_key(study, run, prompts, "test"))}) as place:
        model, _ = tuned(study, run, prompts, place)
    with scratch_beside(folder) as scratch:
        _write(model, study.tokenizer, prompts, scratch / folder.name)
        (scratch / folder.name).rename(folder)
    return folder


def _write(model: nn.Module, tokenizer: Any, prompts: LabelledPrompts, folder: Path) -> None:
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
    batch = {n: t.to(base.device) for n, t in classification_sets.collate(prompts.judged[:4]).items()}
    with torch.no_grad():
        ours, theirs = (tuning.label_logits(m, batch, prompts.words) for m in (model, reloaded))
    if not torch.allclose(ours, theirs, atol=1e-4, rtol=1e-4):
        raise StudyError(
            f"the tuned {type(base).__name__} cannot be exported: loaded again, it gives other logits (largest "
            f"difference {(ours - theirs).abs().max().item():.3g})"
        )
