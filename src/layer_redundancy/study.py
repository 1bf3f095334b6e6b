"""What a notebook opens: a profile's model, texts and tasks, loaded when first needed, and the store behind them."""

import copy
import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from layer_redundancy.config import profiles
from layer_redundancy.config.run_folder import absolute_model
from layer_redundancy.core import cache, devices, paths, variants
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Key, Result, Store, settings_text
from layer_redundancy.core.variants import Variant
from layer_redundancy.data import benchmark_items, corpora
from layer_redundancy.evaluate import generate, generative_tasks, plain_forwards, sweep
from layer_redundancy.evaluate.scoring import ChoiceTask, Perplexity
from layer_redundancy.figures import saving, table_pictures
from layer_redundancy.measures import activations, greedy, importance, registry, selections
from layer_redundancy.measures.activations import ActivationSums
from layer_redundancy.models import checkpoints, loading, quantize, surgery
from layer_redundancy.models.checkpoints import ModelIdentity
from layer_redundancy.models.stack import DecoderStack, decoder_stack
from layer_redundancy.train import healing

ACTIVATIONS_VERSION = 1  # raise it when ActivationSums means something else
SELECTION_VERSION = 1  # raise it when a selection's scores mean something else
TRAINING_VERSION = 1  # raise it when what is kept of a training means something else
DISK_VERSION = 1  # raise it when a variant is exported in another way


class Study:
    """A run of the study on one model.

    Args:
        profile: smoke, embedded or paper.
        model: the user's own model in the profile's place; "" for the profile's.
        revision: hub revision of `model`.
        trust_remote_code: run code that comes with the model.
        store: the results store; data/results/results.sqlite if not given.
        limit: items of each benchmark of table 1, for a quick look; None for what the profile says.

    Raises:
        StudyError: unknown profile, or a model that does not exist or cannot be reached.
    """

    def __init__(
        self,
        profile: str = "embedded",
        model: str = "",
        revision: str = "",
        trust_remote_code: bool = False,
        store: Path | None = None,
        limit: int | None = None,
    ):
        model = absolute_model(model)
        self.profile = profiles.get(profile, model=model, revision=revision, trust_remote_code=trust_remote_code)
        if limit is not None:
            for field in ("benchmarks", "generative_benchmarks"):
                limited = tuple(replace(budget, limit=limit) for budget in getattr(self.profile, field))
                self.profile = replace(self.profile, **{field: limited})
        self.identity: ModelIdentity = checkpoints.identify(self.profile)
        self.store = Store(store or paths.RESULTS / "results.sqlite")
        self.made_by: healing.Healing | None = None  # how this model is made of another, where that is not on disk
        self.figures = paths.FIGURES / profiles.artifact_folder(self.profile)

    @property
    def num_blocks(self) -> int:
        """L, residual blocks of the dense model."""
        return self.identity.num_hidden_layers

    @property
    def dense(self) -> Variant:
        """The whole model as a variant."""
        return variants.dense(self.num_blocks)

    @cached_property
    def tokenizer(self):
        """The model's tokenizer."""
        return loading.load_tokenizer(self.identity)

    @cached_property
    def stack(self) -> DecoderStack:
        """The model, loaded and taken apart. Nothing asks for it when the store has all results."""
        print(f"loading {self.identity.name} ({self.identity.revision}), {self.profile.dtype}")
        if self.made_by is not None:
            return decoder_stack(healing.build(self.made_by))
        model = loading.load(self.identity, self.profile.dtype, self.profile.device)
        return decoder_stack(model)

    @cached_property
    def calibration(self) -> corpora.TokenBlocks:
        """Text from which importance is measured."""
        return self._blocks("calibration")

    @cached_property
    def evaluation(self) -> corpora.TokenBlocks:
        """Text on which perplexity is measured; no article of it is in the calibration text."""
        return self._blocks("evaluation")

    @cached_property
    def prompts(self) -> corpora.TokenBlocks:
        """Evaluation text that generation starts from: each block is a prompt and the real text that follows it."""
        budget = self.profile.generation
        blocks = self._blocks("evaluation", evaluation_blocks=budget.prompts)
        return replace(blocks, input_ids=blocks.input_ids[:, : budget.prompt_tokens + budget.new_tokens])

    def _blocks(self, split: corpora.Split, **changes: int) -> corpora.TokenBlocks:
        length, limit = self.profile.text.block_length, self.identity.max_length
        if limit is not None and length > limit:
            raise StudyError(
                f"{self.identity.name} takes {limit} tokens, the {self.profile.name} profile's blocks of text have "
                f"{length}: lower block_length in profiles.py, or use a profile with shorter blocks"
            )
        return corpora.token_blocks(replace(self.profile.text, **changes), self.tokenizer, split)

    @cached_property
    def measurements(self) -> list[Perplexity | ChoiceTask]:
        """Perplexity and the profile's tasks."""
        return [Perplexity(self.evaluation), *(ChoiceTask(self._items(budget)) for budget in self.profile.tasks)]

    @cached_property
    def benchmarks(self) -> list[ChoiceTask]:
        """The profile's benchmarks of table 1."""
        return [ChoiceTask(self._items(budget)) for budget in self.profile.benchmarks]

    @cached_property
    def width_perplexity(self) -> Perplexity:
        """Perplexity on the smaller budget of notebook 05."""
        budget, ids = self.profile.width, self.evaluation.input_ids
        return Perplexity(replace(self.evaluation, input_ids=ids[: budget.evaluation_blocks, : budget.block_length]))

    def single_heads(self, heads: Mapping[tuple[int, int], Variant]) -> dict[str, dict[tuple[int, int], tuple]]:
        """The profile's tasks on single heads: task -> (block, head) -> (result, the dense model's on the same items).

        Heads of one block are tried on a few items, those of the next block on the next few, in turn: a mean over
        blocks is then over all items, and costs no more than a few.
        """
        found: dict[str, dict[tuple[int, int], tuple]] = {}
        blocks = sorted({block for block, _ in heads})
        for task in self.measurements[1:]:
            parts = [ChoiceTask(part) for part in task.items.parts(self.profile.width.items)]
            found[task.items.name] = of_task = {}
            for turn, part in enumerate(parts[: len(blocks)]):
                mine = {pair: heads[pair] for pair in heads if blocks.index(pair[0]) % len(parts) == turn}
                print(f"{task.items.name}, part {turn + 1} of {min(len(parts), len(blocks))}")
                results = self.sweep([self.dense, *mine.values()], [part])[part.name]
                of_task |= {pair: (results[variant], results[self.dense]) for pair, variant in mine.items()}
        return found

    def _items(self, budget: profiles.TaskBudget) -> benchmark_items.TaskItems:
        return benchmark_items.load(budget, self.tokenizer, self.profile.seed, max_length=self.identity.max_length)

    def quantized(self, scheme: quantize.Scheme, removed: Sequence[int] = ()) -> "Study":
        """This study of the same model with quantized weights: the same texts, tasks and store.

        Its calibration text is the part of this one's that GPTQ reads.

        Args:
            scheme: how.
            removed: blocks to remove before the others are quantized; the study returned has those that are left.

        Raises:
            StudyError: as `quantize.quantized`.
        """
        self._check_on_disk("quantized")
        chosen = self.calibration.input_ids[: self.profile.quantization.calibration_blocks]
        calibration = replace(self.calibration, input_ids=chosen)
        folder = quantize.quantized(self.identity, scheme, calibration, removed, self.profile.dtype)
        other = self._of_checkpoint(folder, f"{self.identity.name}, {scheme}")
        other.calibration = calibration
        return other

    def pruned(self, removed: Sequence[int]) -> "Study":
        """This study of what is left of the same model without some blocks: the same texts, tasks and store.

        Raises:
            StudyError: as `variants.without` and `surgery.export`.
        """
        kept = variants.without(self.num_blocks, removed)
        settings = {"model": self.identity.fingerprint, "blocks": variants.name(kept), "rules": DISK_VERSION}
        folder = cache.made_once(
            "pruned", settings, lambda target: surgery.export(self.stack.model, self.tokenizer, removed, target)
        )
        return self._of_checkpoint(folder, f"{self.identity.name} without {len(removed)} blocks")

    def healed(
        self, removed: Sequence[int], recipe: profiles.Recipe, budget: profiles.TrainingBudget, seed: int = 0
    ) -> "Study":
        """This study of what is left of the same model without some blocks, trained: the same texts, tasks and store.

        It is trained when it is first measured, on calibration text only; see `training` for what that took.

        Args:
            removed: blocks; none to train the whole model.
            recipe: which weights are trained.
            budget: on how much text.
            seed: of the order of text and of new weights.

        Raises:
            StudyError: as `variants.without`; no text to train on.
        """
        self._check_on_disk("healed again")
        kept = variants.without(self.num_blocks, removed)
        gone = variants.removed_blocks(self.num_blocks, kept)
        text = self.training_text(budget)
        work = healing.Healing(self.identity, self.profile.dtype, self.profile.device, gone, recipe, budget, text, seed)
        _ = self.measurements  # cut into tokens once for all
        other = copy.copy(self)
        vars(other).pop("stack", None)
        other.identity, other.made_by = work.healed_identity, work
        return other

    def _check_on_disk(self, what: str) -> None:
        if self.made_by is not None:
            raise StudyError(
                f"{self.identity.name} cannot be {what} as it is: export it (surgery.export) and study the export"
            )

    def unload(self) -> None:
        """Lets go of the model, so that another one has its memory; it is loaded again when it is needed."""
        vars(self).pop("stack", None)
        gc.collect()
        devices.empty_cache()

    def training(self) -> Result:
        """What it took to train this model, which `healed` gave; trained now if that was not done.

        Returns:
            summary: seconds, peak_bytes, trainable; arrays: step and loss (N,), held_out_step and held_out (M,), the
            losses in nats a token.
        """
        settings = settings_text({})
        key = Key(self.identity.fingerprint, variants.name(self.dense), "training", "", settings, TRAINING_VERSION)
        stored = self.store.get(key)
        if stored is None:
            found = healing.record(healing.heal(self.made_by))
            steps = [row for row in found["log"] if "loss" in row]
            looks = [row for row in found["log"] if "validation" in row]
            arrays = {
                "step": np.array([row["step"] for row in steps]),
                "loss": np.array([row["loss"] for row in steps]),
                "held_out_step": np.array([row["step"] for row in looks]),
                "held_out": np.array([row["validation"] for row in looks], dtype=float),
            }
            stored = Result({name: found[name] for name in ("seconds", "peak_bytes", "trainable")}, arrays)
            self.store.put(key, self.identity.name, stored)
        return stored

    def training_text(self, budget: profiles.TrainingBudget) -> corpora.TokenBlocks:
        """The calibration text that a budget trains on, its held-out blocks last."""
        if budget not in self._training_texts:
            count = budget.steps * budget.batch + budget.held_out
            corpus = budget.corpus or self.profile.text.corpus
            self._training_texts[budget] = corpora.packed_blocks(
                corpus, self.tokenizer, "calibration", budget.block_length, count
            )
        return self._training_texts[budget]

    @cached_property
    def _training_texts(self) -> dict[profiles.TrainingBudget, corpora.TokenBlocks]:
        return {}

    @cached_property
    def healing_perplexity(self) -> Perplexity:
        """Perplexity on the evaluation split of notebook 10's corpus, which need not be the profile's."""
        corpus = self.profile.healing.evaluation_corpus
        if corpus in ("", self.profile.text.corpus):
            return self.measurements[0]
        budget = self.profile.text
        blocks = corpora.packed_blocks(
            corpus, self.tokenizer, "evaluation", budget.block_length, budget.evaluation_blocks
        )
        return Perplexity(blocks, name=f"perplexity/{corpus}")

    def _of_checkpoint(self, folder: Path, name: str) -> "Study":
        """The same texts, tasks and store for a model that was made from this one."""
        identity = checkpoints.identify(replace(self.profile, model=str(folder), revision=None))
        _ = self.measurements  # cut into tokens once for all
        other = copy.copy(self)
        vars(other).pop("stack", None)
        other.identity = replace(identity, name=name)
        return other

    def disk_bytes(self, variant: Variant) -> int:
        """Bytes of the weight files of a variant's checkpoint: at 16 bits, or packed if the model is quantized.

        It is found out by exporting it, which checks that the checkpoint gives equal logits when it is loaded again; of
        a whole quantized model, that is what it was loaded from. Ready GPTQ checkpoints cannot be exported: the bytes
        of their tensors are given.
        """
        method = checkpoints.quantization_method(self.identity)
        if method and variant == self.dense:
            return quantize.disk_bytes(checkpoints.local_folder(self.identity))
        if method not in (None, "compressed-tensors"):
            return quantize.weight_bytes(self.identity).of(variant)
        key = Key(self.identity.fingerprint, variants.name(variant), "disk_bytes", "", settings_text({}), DISK_VERSION)
        stored = self.store.get(key)
        if stored is None:
            model = self.stack.model
            if model.dtype == torch.float32 and not method:
                model = copy.deepcopy(model)
                for parameter in model.parameters():  # not buffers, such as rotary frequencies
                    parameter.data = parameter.data.bfloat16()  # float16 overflows where models outgrow it
            with cache.scratch_folder("export") as scratch:
                removed = variants.removed_blocks(self.num_blocks, variant)
                stored = Result({"bytes": quantize.disk_bytes(surgery.export(model, None, removed, scratch / "model"))})
            self.store.put(key, self.identity.name, stored)
        return int(stored.summary["bytes"])

    def activation_sums(self) -> ActivationSums:
        """Sums over the calibration text, from the store or from one pass of the model."""
        key = Key(
            model=self.identity.fingerprint,
            variant=variants.name(self.dense),
            measurement="activations",
            data=self.calibration.fingerprint,
            settings=settings_text({}),
            version=ACTIVATIONS_VERSION,
        )
        stored = self.store.get(key)
        if stored is None:
            sums = activations.collect(
                self.stack, self.calibration.input_ids, batch_tokens=self.profile.batch_tokens, progress=True
            )
            stored = Result({"tokens": int(sums.tokens.sum()), "sequences": len(sums.tokens)}, sums.arrays())
            self.store.put(key, self.identity.name, stored)
        return ActivationSums(**stored.arrays)

    def order(self, measure: str = "block_influence") -> np.ndarray:
        """The blocks in the order in which an importance measure removes them, first removed first; (L,) int64."""
        return importance.removal_order(importance.scores(self.activation_sums(), measure), measure)

    def selection_scores(self) -> dict[str, np.ndarray]:
        """Scores (L,) of notebook 11's selections that need the model, on calibration text."""
        sums, text = self.activation_sums(), self.calibration
        text = replace(text, input_ids=text.input_ids[: self.profile.healing.loss_blocks])
        batch, found = self.profile.batch_tokens, {}

        def stored(name: str, data: str, score: Callable[[], np.ndarray]) -> np.ndarray:
            key = Key(
                self.identity.fingerprint, variants.name(self.dense), name, data, settings_text({}), SELECTION_VERSION
            )
            result = self.store.get(key)
            if result is None:
                result = Result({}, {"score": score()})
                self.store.put(key, self.identity.name, result)
            return result.arrays["score"]

        def without_each() -> np.ndarray:
            measurement, plan = Perplexity(text), variants.single_removal(self.num_blocks)
            results = self.sweep(plan, [measurement])[measurement.name]
            return np.array([results[variant].summary["nll"] for variant in plan])

        for name, measure in selections.SELECTIONS.items():
            match measure.kind:
                case registry.Activations():
                    found[name] = importance.scores(sums, name)
                case registry.Loss():
                    found[name] = without_each()
                case registry.Gradients(score):
                    found[name] = stored(
                        name, text.fingerprint, lambda score=score: score(self.stack.model, text, batch)
                    )
                case registry.Weights(score):
                    found[name] = stored(name, "", lambda score=score: score(self.stack.blocks))
        return found

    def greedy_order(self) -> np.ndarray:
        """The order that removes, again and again, the block whose loss costs the least perplexity; (L,) int64.

        It is chosen on calibration text, and judged on evaluation text like every other order.
        """
        text = replace(self.calibration, input_ids=self.calibration.input_ids[: self.profile.greedy_blocks])
        measurement = Perplexity(text)

        def cost(plan: Sequence[Variant]) -> list[float]:
            results = self.sweep(plan, [measurement], progress=False)[measurement.name]
            return [results[variant].summary["nll"] for variant in plan]

        return greedy.removal_order(self.num_blocks, cost, self.profile.greedy_shortlist, progress=True)

    def sweep(
        self,
        plan: Sequence[Variant],
        measurements: Sequence[Perplexity | ChoiceTask] | None = None,
        progress: bool = True,
    ) -> dict[str, dict[Variant, Result]]:
        """Measures variants: measurement name -> variant -> result.

        Args:
            plan: the variants.
            measurements: what to measure on each; perplexity and the profile's tasks if not given.
            progress: print what will be done, and draw a progress bar.
        """
        return sweep.run(
            self.identity,
            lambda: self.stack,
            plan,
            self.measurements if measurements is None else measurements,
            self.store,
            batch_tokens=self.profile.batch_tokens,
            progress=progress,
        )

    def continuations(self, plan: Sequence[Variant]) -> dict[Variant, Result]:
        """Greedy continuations of the prompts by the dense model and by each variant, as `generate.run` has them."""
        budget, batch = self.profile.generation, self.profile.batch_tokens
        return generate.run(self.identity, lambda: self.stack, plan, self.prompts, budget, self.store, batch)

    def generative_task(
        self, budget: profiles.TaskBudget, plan: Sequence[Variant], run_generated_code: bool = False
    ) -> dict[Variant, Result]:
        """A generative benchmark of lm-eval on each variant; raises StudyError as `generative_tasks.load` does."""
        return generative_tasks.evaluate(
            self.identity,
            lambda: self.stack,
            self.tokenizer,
            plan,
            generative_tasks.load(budget, self.profile.seed, run_generated_code),
            self.store,
            self.profile.batch_tokens,
            run_generated_code,
        )

    def deviation(self, chosen: Sequence[Variant]) -> float:
        """How far the sweep's numbers lie from plain forwards of the same model in the same dtype.

        Args:
            chosen: variants that are run once more, each by itself, on the first block of evaluation text.

        Returns:
            The largest difference of their mean NLL a token, nats: rounding, since the two do the same in another
            order.
        """
        perplexity = self.measurements[0]
        swept = self.sweep(chosen)[perplexity.name]
        differences = []
        for variant in chosen:
            key = replace(sweep.key(self.identity, variant, perplexity), measurement="plain_forward")
            stored = self.store.get(key)
            if stored is None:
                with plain_forwards.applied(self.stack, variant) as model:
                    ((nll, _),) = plain_forwards.score(model, perplexity.sequences[:1])[0]
                stored = Result({"nll": -nll / swept[variant].arrays["tokens"][0]})
                self.store.put(key, self.identity.name, stored)
            result = swept[variant].arrays
            differences.append(abs(result["nll"][0] / result["tokens"][0] - stored.summary["nll"]))
        return float(max(differences))

    def caption(self, *parts: str) -> str:
        """What a figure's caption says of the model, and then of this figure."""
        model = f"{self.identity.name} ({self.identity.revision}; {self.profile.dtype}, {self.num_blocks} blocks)"
        return ". ".join([model, *parts]) + "."

    def calibration_note(self) -> str:
        """The calibration text in a caption."""
        return _text_note("Calibration", self.calibration)

    def evaluation_note(self, blocks: corpora.TokenBlocks | None = None) -> str:
        """The evaluation text in a caption: all of it, or the blocks given."""
        return _text_note("Perplexity", self.evaluation if blocks is None else blocks)

    def generated_scores(self, plan: Mapping[str, Variant]) -> dict[str, dict[str, np.ndarray]]:
        """The generative benchmarks of table 1: task -> method -> (items,) score in 0..1.

        Args:
            plan: method -> variant.
        """
        found = {}
        for budget in self.profile.generative_benchmarks:
            results = self.generative_task(budget, list(plan.values()))
            metric = generative_tasks.primary_metric(next(iter(results.values())))
            found[budget.name] = {method: results[variant].arrays[metric] for method, variant in plan.items()}
        return found

    def generation_note(self) -> str:
        """Prompts and continuations in a caption."""
        budget = self.profile.generation
        return (
            f"Generation: {self.prompts.corpus}, {self.prompts.split} split, {budget.prompts} prompts of "
            f"{budget.prompt_tokens} tokens, {budget.new_tokens} new ones, greedy"
        )

    def save(self, figure: Figure, data: pd.DataFrame, name: str, *caption: str) -> Figure:
        """Writes a figure to the run's folder as PNG, PDF and CSV; returns it, so that the notebook shows it."""
        saving.save(figure, data, self.figures, name, self.caption(*caption))
        return figure

    def save_table(self, data: pd.DataFrame, name: str, *caption: str) -> pd.DataFrame:
        """Writes a table to the run's folder; returns it, so that the notebook shows it."""
        table_pictures.save_table(data, self.figures, name, self.caption(*caption))
        return data

    def export(self) -> Path:
        """Writes this model's stored results as CSV, for people."""
        path = paths.RESULTS / f"{profiles.artifact_folder(self.profile)}.csv"
        self.store.export_csv(path, model=self.identity.fingerprint)
        return path


def _text_note(what: str, blocks: corpora.TokenBlocks) -> str:
    bos = "with" if blocks.bos else "without"
    return (
        f"{what}: {blocks.corpus}, {blocks.split} split, {len(blocks.input_ids)} blocks of {blocks.input_ids.shape[1]} "
        f"tokens, {bos} BOS"
    )


def versions() -> pd.Series:
    """Versions of what the numbers depend on, for a notebook's last cell."""
    import importlib.metadata

    names = [
        "layer-redundancy",
        "torch",
        "transformers",
        "peft",
        "bitsandbytes",
        "llmcompressor",
        "lm-eval",
        "gensim",
        "numpy",
    ]
    return pd.Series({name: importlib.metadata.version(name) for name in names}, name="version")
