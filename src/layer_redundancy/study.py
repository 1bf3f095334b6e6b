"""What an experiment sees: a model, its inputs, the store, and the few kinds of work that it may ask for.

A `Study` computes what is asked of it, or takes it from the store. Studies of models that are made of this one
(quantized, pruned, trained) are studies too, of the same inputs. `planning.dry.DryStudy` takes its place where the work
is only to be counted.
"""

import gc
import importlib.metadata
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from IPython import get_ipython
from IPython.display import Image
from matplotlib.figure import Figure

from layer_redundancy import __version__
from layer_redundancy.config import profiles
from layer_redundancy.config.cluster import FROM_STORE
from layer_redundancy.config.profiles import Profile, Recipe, TaskBudget, TrainingBudget
from layer_redundancy.config.run_folder import absolute_model
from layer_redundancy.config.sources import Amount
from layer_redundancy.core import cache, devices, flags, log, paths, stats, variants, verdicts
from layer_redundancy.core.arguments import LARGEST_SEED, shown, whole
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Key, Result, Store, settings_text
from layer_redundancy.core.variants import Changed, Variant
from layer_redundancy.core.wording import counted
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.evaluate import generate, generative_tasks, plain_forwards, sweep
from layer_redundancy.evaluate.amounts import Pass, Quantization, Training, Work, Writing
from layer_redundancy.evaluate.changes import Apply, Changes
from layer_redundancy.evaluate.generate import PromptLengths
from layer_redundancy.evaluate.scoring import ChoiceTask, Passages, Perplexity, WrittenAnswers
from layer_redundancy.figures import saving, table_pictures
from layer_redundancy.inputs import Inputs, first_blocks
from layer_redundancy.measures import activations, greedy, importance, registry, selections
from layer_redundancy.measures.activations import ActivationSums
from layer_redundancy.methods import registry as methods
from layer_redundancy.methods.in_sweeps import GapFactors, RunMaps
from layer_redundancy.methods.making import Making
from layer_redundancy.methods.method import Plan
from layer_redundancy.models import checkpoints, loading, quantize, rotary, surgery
from layer_redundancy.models.checkpoints import ModelIdentity
from layer_redundancy.models.stack import DecoderStack, decoder_stack
from layer_redundancy.train import healing
from layer_redundancy.train.healing import Healing

logger = logging.getLogger(__name__)

ACTIVATIONS_VERSION = 1  # raise it when ActivationSums means something else
SCORES_VERSION = 1  # raise it when a score from weights or gradients means something else
TRAINING_VERSION = 1  # raise it when what is kept of a training means something else
MAKING_VERSION = 1  # raise it when what it takes to make a model is counted in another way
PRUNED_VERSION = 1  # raise it when a pruned checkpoint is written in another way
OF_MODEL = ("model", "revision", "trust_remote_code")  # what of a profile says which model is studied


@dataclass(frozen=True, eq=False)
class Study:
    """A run of the study on one model. Open one with `Study.open`.

    Attributes:
        profile: gives texts, tasks and budgets.
        identity: the model.
        store: the results store.
        inputs: texts and tasks as tokens.
        figures: the folder of figures and tables.
        healing: how the model is trained from another; None for one that is not.
        making: how a method makes the model smaller than another; None for one that is loaded as it is.
        calibration_blocks: the calibration text is the first so many blocks of the inputs'; None for all.
        calibration_text: the calibration text, in the place of the inputs'; None for theirs.
        measures: whether what the store lacks is measured; else the study is read from the store alone.
        beside: the models that its figures show, for their captions; empty for its own alone.
    """

    profile: Profile
    identity: ModelIdentity
    store: Store
    inputs: Inputs
    figures: Path
    healing: Healing | None = None
    making: Making | None = None
    calibration_blocks: int | None = None
    calibration_text: TokenBlocks | None = None
    measures: bool = True
    beside: tuple[ModelIdentity, ...] = ()

    @classmethod
    @flags.checked
    def open(
        cls,
        profile: str = "embedded",
        model: str | Path = "",
        revision: str | None = "",
        trust_remote_code: bool = False,
        store: Path | None = None,
    ) -> "Study":
        """A study of a profile's model, or of the user's own on that profile.

        Args:
            profile: smoke, embedded, paper, or the path of a file of one's own.
            model: the user's own model in the profile's place; "" for the profile's.
            revision: hub revision of `model`.
            trust_remote_code: run code that comes with the model, or with a task of the user's own.
            store: the results store; data/results/results.sqlite if not given.

        Raises:
            StudyError: unknown profile, or a model that does not exist or cannot be reached.
        """
        found = profiles.get(
            profile,
            model=absolute_model(_text("model", model)),
            revision="" if revision is None else _text("revision", revision),
            trust_remote_code=trust_remote_code,
        )
        return cls.of(found, store)

    @classmethod
    def of(cls, profile: Profile, store: Path | None = None) -> "Study":
        """A study of a profile as it is; store and errors as `open`."""
        profile = profiles.valid(Profile, profile)
        devices.use_threads(profile.threads)
        if get_ipython() is not None:
            log.show()  # a notebook shows what is going on; a program's own logging decides for itself
        identity = checkpoints.identify(profile)
        return cls(
            profile,
            identity,
            Store(paths.RESULTS / "results.sqlite" if store is None else store),
            Inputs(profile, identity),
            paths.FIGURES / profiles.artifact_folder(profile),
            measures=not os.environ.get(FROM_STORE),
        )

    # ------------------------------------------------------------------------------------------------ the model

    @property
    def num_blocks(self) -> int:
        """L, residual blocks of the dense model."""
        return self.identity.num_hidden_layers

    @property
    def _draws(self) -> bool:
        """Whether it draws progress bars."""
        return True

    @property
    def is_made(self) -> bool:
        """Whether the model was made here of another one: quantized, pruned or trained."""
        return self.identity.name != self.profile.model

    @property
    def dense(self) -> Variant:
        """The whole model as a variant."""
        return variants.dense(self.num_blocks)

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.inputs.tokenizer

    @property
    def stack(self) -> DecoderStack:
        """The model, loaded and taken apart. Nothing asks for it when the store has all results.

        Raises:
            StudyError: as `loading.load`; somebody has taken blocks out of the model in memory; this study is read
                from the store alone.
        """
        self._check_measures(f"a measurement of {self.identity.name}")
        if "stack" not in vars(self):
            vars(self)["stack"] = self._loaded()
        found = vars(self)["stack"]
        if len(found) != self.num_blocks:
            raise StudyError(
                f"the model in memory has {len(found)} of its {self.num_blocks} blocks: name the others in a variant "
                "(variants.without), or end the removal first (Study.unload loads it anew)"
            )
        return found

    def _check_measures(self, what: str) -> None:
        if not self.measures:
            raise StudyError(
                f"{what} is not in the results store {self.store.path}, and the notebooks only read it: run again with "
                "WORKERS= or SCHEDULER= to have it measured there, or without them to have it measured here"
            )

    def _loaded(self) -> DecoderStack:
        logger.info(f"loading {self.identity.name} ({self.identity.revision}), {self.profile.dtype}")
        if self.healing is not None:
            return decoder_stack(healing.build(self.healing))
        if self.making is not None:
            model, vars(self)["making_seconds"] = self.making.build()
            return decoder_stack(model)
        return decoder_stack(loading.load(self.identity, self.profile.dtype, self.profile.device))

    def unload(self) -> None:
        """Lets go of the loaded model, so that another one has its memory; it is loaded again when it is needed."""
        vars(self).pop("stack", None)
        gc.collect()
        devices.empty_cache()

    def weight_bytes(self) -> quantize.WeightBytes:
        """What the model's weights occupy, whole and by block."""
        return quantize.weight_bytes(self.identity)

    def quantization_method(self) -> str | None:
        """How the checkpoint's weights are quantized; None if they are not."""
        return checkpoints.quantization_method(self.identity)

    # ------------------------------------------------------------------------------------------------ inputs

    @cached_property
    def calibration(self) -> TokenBlocks:
        """Text from which importance is measured."""
        text = self.calibration_text or self.inputs.calibration
        return text if self.calibration_blocks is None else first_blocks(text, self.calibration_blocks)

    @property
    def evaluation(self) -> TokenBlocks:
        """Text on which perplexity is measured; no article of it is in the calibration text."""
        return self.inputs.evaluation

    @property
    def perplexity(self) -> Perplexity:
        """Perplexity of the evaluation text."""
        return self.inputs.perplexity

    @property
    def tasks(self) -> list[ChoiceTask]:
        """The profile's tasks."""
        return self.inputs.tasks

    @property
    def task_names(self) -> list[str]:
        """Names of the profile's tasks."""
        return [task.items.name for task in self.tasks]

    # ------------------------------------------------------------------------------------------------ other models

    def of_model(self, model: str) -> "Study":
        """The study of another model on the same profile: the same store and folder of figures, inputs of its own."""
        if not _text("model", model):
            raise StudyError("model must be given, not empty: a folder, or an id of the hub")
        profile = profiles.with_model(self.profile, absolute_model(_text("model", model)))
        identity = checkpoints.identify(profile)
        return replace(
            self,
            profile=profile,
            identity=identity,
            inputs=Inputs(profile, identity),
            healing=None,
            making=None,
            calibration_blocks=None,
            calibration_text=None,
        )

    def with_profile(self, **changes: Any) -> "Study":
        """This study of the same model with some fields of its profile changed.

        Raises:
            StudyError: as `profiles.changed`; another model, or another dtype of one that was made from another.
        """
        profile = profiles.changed(self.profile, **changes)
        if other := [name for name in OF_MODEL if getattr(profile, name) != getattr(self.profile, name)]:
            raise StudyError(f"{other[0]} says which model is studied: open another study (Study.of_model, Study.open)")
        devices.use_threads(profile.threads)
        identity = self.identity if profile.dtype == self.profile.dtype else self._in_dtype(profile)
        healing = self.healing and replace(self.healing, device=profile.device)
        making = self.making and replace(self.making, device=profile.device)
        inputs = replace(self.inputs, profile=profile)
        return replace(self, profile=profile, identity=identity, inputs=inputs, healing=healing, making=making)

    def _in_dtype(self, profile: Profile) -> ModelIdentity:
        """The identity of the same weights in a profile's dtype."""
        if self.is_made:
            raise StudyError(
                f"{self.identity.name} was made in {self.profile.dtype}: change the dtype of what it was made of, "
                "and make it again"
            )
        return checkpoints.identify(profile)

    def with_budget(self, experiment: str, **changes: Any) -> "Study":
        """This study with other values in one experiment's budget; values of None are left as they are.

        Raises:
            StudyError: as `Profile.with_budget`.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        return self.with_profile(budgets=self.profile.with_budget(experiment, **given).budgets) if given else self

    def with_calibration(self, text: TokenBlocks) -> "Study":
        """This study of the same model with another calibration text, of the calibration split.

        Raises:
            StudyError: evaluation text.
        """
        if text.split != "calibration":
            raise StudyError(f"{text.corpus}: evaluation text is for judging, and no calibration text")
        return replace(self, calibration_text=text)

    def quantization_texts(self, most: int) -> list[TokenBlocks]:
        """Calibration texts for GPTQ that have no block in common, each as long as the profile says.

        Args:
            most: number of texts, fewer where the corpus has less; the first is the one that `quantized` takes.
        """
        calibration = self.profile.text.calibration_blocks
        return self.inputs.calibration_parts(min(self.profile.quantization_blocks or calibration, calibration), most)

    def quantized(
        self, scheme: quantize.Scheme, removed: Sequence[int] = (), text: TokenBlocks | None = None
    ) -> "Study":
        """This study of the same model with quantized weights: the same texts, tasks and store.

        Its own calibration text is as long as GPTQ's, and the same whatever GPTQ read.

        Args:
            scheme: how the weights are quantized.
            removed: blocks to remove before the others are quantized; the study returned has those that are left.
            text: what GPTQ reads, of `quantization_texts`; the first of them if not given.

        Raises:
            StudyError: as `quantize.quantized`; a model that is not on disk.
        """
        self._check_on_disk("quantized")
        scheme, removed = profiles.valid(quantize.Scheme, scheme), variants.indices(removed)
        other = replace(self, calibration_blocks=self.profile.quantization_blocks)
        calibration = other.calibration if text is None else text
        read = calibration.num_tokens if scheme.method == "gptq" else 0
        folder = self._folder(
            lambda: quantize.quantized(
                self.identity,
                scheme,
                calibration,
                removed,
                self.profile.dtype,
                when_made=lambda: self._log(Quantization(self.num_blocks - len(removed), read)),
            ),
            lambda: self.quantized(scheme, removed, text),
            Quantization(self.num_blocks - len(removed), read),
        )
        return other._of_checkpoint(folder, f"{self.identity.name}, {scheme}")

    def pruned(self, removed: Sequence[int]) -> "Study":
        """This study of what is left of the same model without some blocks: the same texts, tasks and store.

        Raises:
            StudyError: as `variants.without` and `surgery.export`.
        """
        removed = variants.indices(removed)
        kept = variants.without(self.num_blocks, removed)
        settings = {"model": self.identity.fingerprint, "blocks": variants.name(kept), "rules": PRUNED_VERSION}
        folder = self._folder(
            lambda: cache.made_once(
                "pruned", settings, lambda target: surgery.export(self.stack.model, self.tokenizer, removed, target)
            ),
            lambda: self.pruned(removed),
        )
        return self._of_checkpoint(folder, f"{self.identity.name} without {len(removed)} blocks")

    def _folder(self, make: Callable[[], Path], ask: Callable[[], "Study"], *work: Work) -> Path:
        """The folder of a checkpoint in the cache.

        Args:
            make: makes it, unless it is there.
            ask: asks this study for it, wherever that is done.
            work: what it takes.
        """
        if self.measures:
            return make()
        try:
            with cache.only_read():
                return make()
        except cache.NotMade as missing:
            self._check_measures(f"the checkpoint {missing.target.name}")
            raise

    def _of_checkpoint(self, folder: Path, name: str) -> "Study":
        """A study with the same texts, tasks and store for a model that was made from this one."""
        identity = checkpoints.identify(replace(self.profile, model=str(folder), revision=None))
        return replace(self, identity=replace(identity, name=name), healing=None, making=None)

    def plans(self, method: str) -> list[Plan]:
        """The sizes that a method reaches with this model, the whole model first; no weights are read.

        Args:
            method: a method of `methods.registry`.

        Raises:
            NotApplicable: it cannot be used on such a model; one line says why.
            StudyError: unknown method.
        """
        found = methods.find(method)
        with checkpoints.shapes(self.identity) as shapes:
            return found.plans(shapes)

    def made(self, method: str, plan: Plan, text: TokenBlocks | None = None) -> "Study":
        """This study of what a method makes of the same model: the same texts, tasks and store.

        It is made, in memory, when it is first measured; see `making_seconds` for what that took.

        Args:
            method: a method of `methods.registry`.
            plan: one of `plans`.
            text: calibration text; this study's if not given.

        Raises:
            StudyError: unknown method; a model that is not on disk.
        """
        self._check_on_disk("made smaller")
        text = methods.find(method).reads(self.calibration if text is None else text)
        making = Making(self.identity, self.profile.dtype, self.profile.device, method, plan, text)
        return replace(self, identity=making.made_identity, making=making)

    def making_seconds(self) -> float:
        """How long it took a method to make this model, without loading; it is made now if that is not known."""
        self._making()

        def compute() -> Result:
            if "making_seconds" not in vars(self):
                self.unload()
            assert len(self.stack) == self.num_blocks  # makes it, if it is not there
            return Result({"seconds": vars(self)["making_seconds"]})

        found = self.cached(
            self.key("making_seconds", MAKING_VERSION), compute, lambda: Result({"seconds": 0.0}), self._making_work
        )
        return float(found.summary["seconds"])

    def making_bytes(self) -> int:
        """The most bytes of tensors held at once while a method makes this model, which is made for that."""
        making = self._making()

        def compute() -> Result:
            self.unload()
            model, peak = making.counted()
            vars(self)["stack"] = decoder_stack(model)
            return Result({"bytes": peak})

        key = self.key("making_bytes", MAKING_VERSION)
        found = self.cached(key, compute, lambda: Result({"bytes": 0}), self._making_work)
        return int(found.summary["bytes"])

    def _making(self) -> Making:
        if self.making is None:
            raise StudyError(f"{self.identity.name} was not made smaller here: ask the study that `made` gives")
        return self.making

    def _making_work(self) -> list[Work]:
        made, num = self._making(), self._making().identity.num_hidden_layers
        return [Pass(round(methods.find(made.method).passes(made.plan, num) * made.text.num_tokens * num))]

    def healed(self, removed: Sequence[int], recipe: Recipe, budget: TrainingBudget, seed: int = 0) -> "Study":
        """This study of what is left of the same model without some blocks, trained: the same texts, tasks and store.

        It is trained when it is first measured, on calibration text only; see `training` for what that took.

        Args:
            removed: blocks to remove; none to train the whole model.
            recipe: the recipe, which decides the weights to train.
            budget: how much text to train on.
            seed: seed of which text, of its order and of new weights.

        Raises:
            StudyError: as `variants.without` and `healing.check`; no text to train on; a model that is not on disk; no
                recipe, budget or seed.
        """
        self._check_on_disk("healed again")
        recipe, budget = profiles.valid(Recipe, recipe), profiles.valid(TrainingBudget, budget)
        healing.check(recipe, self.identity.name, self.quantization_method())
        seed = whole(seed, "a seed", 0, LARGEST_SEED)
        kept = variants.without(self.num_blocks, removed)
        gone = variants.removed_blocks(self.num_blocks, kept)
        text = self.inputs.training_text(budget, seed)
        made = Healing(self.identity, self.profile.dtype, self.profile.device, gone, recipe, budget, text, seed)
        return replace(self, identity=made.healed_identity, healing=made)

    def written(self) -> "Study":
        """This study of the same model as a checkpoint in the cache, where a trained one can be quantized.

        One that a method made smaller can be trained there, and quantized if its blocks can.

        Raises:
            StudyError: as `surgery.export`.
        """
        if self.healing is None and self.making is None:
            return self
        settings = {"model": self.identity.fingerprint, "rules": PRUNED_VERSION}
        kind = "made" if self.healing is None else "trained"
        folder = self._folder(
            lambda: cache.made_once(
                kind, settings, lambda target: surgery.export(self.stack.model, self.tokenizer, [], target)
            ),
            lambda: self.written(),
        )
        return self._of_checkpoint(folder, self.identity.name)

    def _healing(self) -> Healing:
        if self.healing is None:
            raise StudyError(f"{self.identity.name} was not trained here: ask the study that `healed` gives")
        return self.healing

    def _check_on_disk(self, what: str) -> None:
        if self.healing is not None or self.making is not None:
            raise StudyError(f"{self.identity.name} cannot be {what} as it is: write it first (Study.written)")

    # ------------------------------------------------------------------------------------------------ work

    def key(
        self,
        measurement: str,
        version: int,
        variant: Variant | None = None,
        data: str = "",
        settings: Mapping[str, Any] | None = None,
    ) -> Key:
        """The store's key of a measurement of this model; the whole model's if no variant is given."""
        kept = variants.name(self.dense if variant is None else variants.checked(self.num_blocks, variant))
        return Key(self.identity.fingerprint, kept, measurement, data, settings_text(settings or {}), version)

    def cached(
        self,
        key: Key,
        compute: Callable[[], Result],
        zeros: Callable[[], Result],
        work: Callable[[], Sequence[Work]] = lambda: (),
    ) -> Result:
        """A result from the store, or computed now and stored.

        Args:
            key: what the number depends on.
            compute: function that computes it.
            zeros: a result of the same shape, for a plan.
            work: amount of work to compute it; counted for a plan, and recorded when it was done.
        """

        def computed() -> Result:
            self._check_measures(f"{key.measurement} of {self.identity.name}")
            result = compute()
            self._log(*work())
            return result

        return self.store.cached(key, self.identity.name, computed)

    def _log(self, *work: Work) -> None:
        notebook = os.environ.get("LAYER_REDUNDANCY_NOTEBOOK", "")
        for one in work:
            self.store.log_work(notebook, self.identity.name, type(one).__name__.lower(), one.block_tokens)

    def activation_sums(self) -> ActivationSums:
        """Sums over the calibration text, from the store or from one pass of the model."""
        text, num = self.calibration, self.num_blocks

        def compute() -> Result:
            sums = activations.collect(
                self.stack, text.input_ids, batch_tokens=self.profile.batch_tokens, progress=True
            )
            return Result({"tokens": int(sums.tokens.sum()), "sequences": len(sums.tokens)}, sums.arrays())

        corrected = rotary.corrected(self.identity.config, text.input_ids.shape[1])
        stored = self.cached(
            self.key("activations", ACTIVATIONS_VERSION + corrected, data=text.fingerprint),
            compute,
            lambda: Result({}, activations.zeros(len(text.input_ids), num).arrays()),
            lambda: [Pass(text.num_tokens * num)],
        )
        return ActivationSums(**stored.arrays)

    def scores(self, measure: str, text: TokenBlocks | None = None) -> np.ndarray:
        """The score of every block by an importance measure, measured on calibration text; (L,) float64.

        Args:
            measure: a measure of `measures.registry` that has scores.
            text: the calibration text of measures from gradients and from the loss, which cost much more than one
                pass; its first blocks, as many as evaluation text has, if not given.

        Raises:
            StudyError: no measure of that name has scores.
        """
        kind = registry.find(measure, lambda one: one.has_scores).kind
        text = self._shorter_calibration() if text is None else text
        if not isinstance(text, TokenBlocks):
            raise StudyError(f"{shown(text)} is no text in tokens: give one such as study.calibration")
        batch, num = self.profile.batch_tokens, self.num_blocks

        def stored(data: str, compute: Callable[[], np.ndarray], work: Sequence[Work] = ()) -> np.ndarray:
            rules = selections.rules_of_scores(self.identity, measure)
            found = self.cached(
                self.key(measure, SCORES_VERSION, data=data, settings=rules),
                lambda: Result({}, {"score": compute()}),
                lambda: Result({}, {"score": self.likely_scores(measure)}),
                lambda: work,
            )
            return found.arrays["score"]

        match kind:
            case registry.Gradients(of_model):
                # A forward, and gradients of states and of weights, each of which costs as much.
                passes = [Pass(3 * text.num_tokens * num)]
                return stored(text.fingerprint, lambda: of_model(self.stack.model, text, batch), passes)
            case registry.Weights(of_blocks):
                return stored("", lambda: of_blocks(self.stack.blocks))
            case registry.Loss():
                perplexity, singles = Perplexity(text), variants.single_removal(num)
                results = self.sweep(singles, [perplexity])[perplexity.name]
                return np.array([results[variant].summary["nll"] for variant in singles])
            case registry.Position(of_places):
                return of_places(num)
        return importance.scores(self.activation_sums(), measure)

    def order(
        self, measure: str = "block_influence", text: TokenBlocks | None = None, seed: int | None = None
    ) -> np.ndarray:
        """The blocks in the order in which an importance measure removes them, first removed first; (L,) int64.

        Args:
            measure: any measure of `measures.registry`; "greedy" is `greedy_order`.
            text: calibration text of measures from gradients and from the loss, as in `scores`.
            seed: seed of a random order; the profile's if not given.

        Raises:
            StudyError: unknown measure.
        """
        match registry.find(measure).kind:
            case registry.Random():
                return stats.generator(self.profile.seed if seed is None else seed).permutation(self.num_blocks)
            case registry.Loss(step_by_step=True):
                return self.greedy_order()
        return importance.removal_order(self.scores(measure, text), measure)

    def _shorter_calibration(self) -> TokenBlocks:
        """As many blocks of calibration text as there are of evaluation text."""
        return first_blocks(self.calibration, self.profile.text.evaluation_blocks)

    def likely_scores(self, measure: str) -> np.ndarray:
        """Scores (L,) that stand for those of a measure that is not computed, in a plan; zeros here."""
        return np.zeros(self.num_blocks)

    def greedy_order(self) -> np.ndarray:
        """The order that removes, again and again, the block whose loss costs the least perplexity; (L,) int64.

        It is chosen on calibration text, and judged on evaluation text like every other order.
        """
        measurement = Perplexity(first_blocks(self.calibration, self.profile.greedy_blocks))

        def cost(tried: Sequence[Variant]) -> list[float]:
            results = self.sweep(tried, [measurement], progress=False)[measurement.name]
            return [results[variant].summary["nll"] for variant in tried]

        return greedy.removal_order(self.num_blocks, cost, self.profile.greedy_shortlist, progress=self._draws)

    @flags.checked
    def sweep(
        self,
        chosen: Sequence[Variant],
        measurements: Sequence[Perplexity | Passages | ChoiceTask | WrittenAnswers] | None = None,
        progress: bool = True,
        changes: Changes | None = None,
    ) -> dict[str, dict[Variant, Result]]:
        """Measures variants: measurement name -> variant -> result, of tasks with `gold_share`.

        Args:
            chosen: the variants.
            measurements: what to measure on each; perplexity and the profile's tasks if not given.
            progress: print what will be done, and draw a progress bar.
            changes: what variants with changed blocks are from: `run_maps` or `gap_factors`.
        """
        measured: Sequence[Perplexity | Passages | ChoiceTask | WrittenAnswers] = (
            [self.perplexity, *self.tasks] if measurements is None else measurements
        )
        found = sweep.run(
            self.identity,
            lambda: self.stack,
            chosen,
            measured,
            self.store,
            batch_tokens=self.profile.batch_tokens,
            progress=progress,
            compiled=self.profile.compiled,
            changes=None if changes is None else partial(self._prepared, changes),
        )
        for task in measured:
            if isinstance(task, ChoiceTask):
                found[task.name] = {v: task.with_gold_share(result) for v, result in found[task.name].items()}
        return found

    def _prepared(self, changes: Changes, stack: DecoderStack, changed: Sequence[Changed]) -> Apply:
        apply = changes(stack, changed)
        self._log(*changes.work(changed))
        return apply

    def run_maps(self, text: TokenBlocks | None = None, ridge: float = 0.0) -> RunMaps:
        """Runs of blocks with ReplaceMe's linear map in their place, for a sweep: its `variant(run)`, and `changes`.

        Args:
            text: calibration text that maps are fitted to; the study's own if not given.
            ridge: see `replace_me.RunSums.map`.

        Raises:
            StudyError: evaluation text; no ridge.
        """
        return RunMaps(self.identity, self.calibration if text is None else text, ridge)

    @flags.checked
    def gap_factors(self, first_token: bool = False) -> GapFactors:
        """Removed blocks with magnitude compensation's factors, for a sweep: its `variant(removed)`, and `changes`.

        The factors of all gaps are from the whole model's activations on the calibration text.

        Args:
            first_token: see `magnitude_compensation.factor`.
        """
        return GapFactors(self.identity, self.calibration, self.activation_sums(), first_token)

    def continuations(self, chosen: Sequence[Variant], lengths: PromptLengths) -> dict[Variant, Result]:
        """Greedy continuations of prompts by the dense model and by each variant, as `generate.run` has them."""
        lengths = profiles.valid(PromptLengths, lengths)
        return generate.run(
            self.identity,
            lambda: self.stack,
            chosen,
            self.prompts(lengths),
            lengths,
            self.store,
            self.profile.batch_tokens,
            when_done=lambda variant: self._log(*self._continuation_work(variant, lengths)),
        )

    def continuations_by(self, other: "Study", lengths: PromptLengths) -> Result:
        """Greedy continuations by another model of the same tokenizer, such as this one with fewer bits.

        Args:
            other: the study of that model.
            lengths: the prompts, as in `continuations`.

        Returns:
            As `generate.measure` of a variant: compared with this model's own continuations, and read by it.
        """
        lengths, text = profiles.valid(PromptLengths, lengths), self.prompts(lengths)
        reference = self.continuations([self.dense], lengths)[self.dense].arrays["tokens"]
        against = {"reference": generate.digest(reference), "judge": self.identity.fingerprint}
        shape = lengths.prompts, lengths.new_tokens
        return other.cached(
            generate.key_of(other.identity, other.dense, text, lengths, against),
            lambda: generate.beside(
                lambda: self.stack, lambda: other.stack, text, lengths, reference, self.profile.batch_tokens
            ),
            lambda: generate.no_continuations(shape),
            lambda: other._continuation_work(other.dense, lengths),
        )

    def _continuation_work(self, variant: Variant, lengths: PromptLengths) -> list[Work]:
        """What a variant writes; then it reads the dense model's text, and the dense model reads its own."""
        written = Amount(
            lengths.prompts, lengths.prompts, lengths.prompts * lengths.prompt_tokens, 0, 0, lengths.new_tokens
        )
        read = lengths.prompts * (lengths.prompt_tokens + lengths.new_tokens)
        return [Writing("continuations", written, (len(variant),)), Pass(read * (len(variant) + self.num_blocks))]

    def prompts(self, lengths: PromptLengths) -> TokenBlocks:
        """Evaluation text that generation starts from: each block is a prompt and the real text that follows it."""
        text = self.inputs.text("evaluation", evaluation_blocks=lengths.prompts)
        return first_blocks(text, lengths.prompts, lengths.prompt_tokens + lengths.new_tokens)

    @flags.checked
    def generative_task(
        self, budget: TaskBudget, chosen: Sequence[Variant], run_generated_code: bool = False
    ) -> dict[Variant, Result]:
        """A generative benchmark of lm-eval on each variant; raises StudyError as `generative_tasks.load` does."""
        return generative_tasks.evaluate(
            self.identity,
            lambda: self.stack,
            self.tokenizer,
            chosen,
            generative_tasks.load(
                budget, self.profile.seed, run_generated_code, trust_remote_code=self.profile.trust_tasks
            ),
            self.store,
            self.profile.batch_tokens,
            run_generated_code,
        )

    @flags.checked
    def training(self, keep: bool = True) -> Result:
        """What it took to train this model, which `healed` gave; trained now if that was not done.

        Args:
            keep: whether the weights are kept, so that the model can be measured.

        Returns:
            summary: seconds, peak_bytes, trainable; arrays: step and loss (N,), held_out_step and held_out (M,), the
            losses in nats a token.

        Raises:
            StudyError: this model is none that `healed` gave; as `healing.heal`.
        """
        made, num = self._healing(), self.num_blocks
        if made.recipe.method == "nf4":
            return healing.untrained()
        budget = made.budget
        return self.cached(
            self.key("training", TRAINING_VERSION),
            lambda: healing.training_result(healing.heal(made)) if keep else healing.tried(made),
            lambda: healing.no_training(budget.steps),
            lambda: [
                Training(made.recipe, budget.tokens, budget.block_length, budget.tokens, num),
                Pass(budget.held_out_tokens * num),
            ],
        )

    def deviation(self, chosen: Sequence[Variant]) -> float:
        """How far the sweep's numbers lie from plain forwards of the same model in the same dtype.

        Args:
            chosen: variants that are run once more, each by itself, on the first block of evaluation text.

        Returns:
            The largest difference of their mean NLL a token, nats: rounding, since the two do the same in another
            order.

        Raises:
            StudyError: no variant, or one that the model does not have.
        """
        chosen, perplexity = variants.plan(self.num_blocks, chosen), self.perplexity
        if not chosen:
            raise StudyError("no variant was given to run once more: give a list such as [study.dense]")
        swept = self.sweep(chosen)[perplexity.name]

        def compute(variant: Variant) -> Result:
            with plain_forwards.applied(self.stack, variant) as model:
                ((nll, _),) = plain_forwards.score(model, perplexity.sequences[:1])[0]
            return Result({"nll": -nll / swept[variant].arrays["tokens"][0]})

        def work(variant: Variant) -> list[Work]:
            return [Pass((perplexity.blocks.input_ids.shape[1] - 1) * len(variant))]

        differences = []
        for variant in chosen:
            stored = self.cached(
                replace(sweep.key(self.identity, variant, perplexity), measurement="plain_forward"),
                partial(compute, variant),
                lambda: Result({"nll": 0.0}),
                partial(work, variant),
            )
            result = swept[variant].arrays
            differences.append(abs(result["nll"][0] / result["tokens"][0] - stored.summary["nll"]))
        return float(max(differences))

    # ------------------------------------------------------------------------------------------------ for people

    def caption(self, *parts: str) -> str:
        """A figure's caption: the model, then what belongs to this figure."""
        shown = [
            f"{one.name} ({one.revision}; {self.profile.dtype}, {one.num_hidden_layers} blocks)"
            for one in self.beside or (self.identity,)
        ]
        return ". ".join([" and ".join(shown), *map(str, parts)]) + "."

    def calibration_note(self) -> str:
        """The calibration text in a caption."""
        return _text_note("Calibration", self.calibration)

    def evaluation_note(self, blocks: TokenBlocks | None = None) -> str:
        """The evaluation text in a caption: all of it, or the blocks given."""
        return _text_note("Perplexity", self.evaluation if blocks is None else blocks)

    def save(self, figure: Figure, data: pd.DataFrame, name: str, *caption: str) -> Image:
        """Writes a figure to the run's folder as PNG, PDF and CSV; returns the PNG, so that the notebook shows it.

        The picture and not the figure, which Jupyter would draw once more.
        """
        saving.save(figure, data, self.figures, name, self.caption(*caption))
        return Image(filename=self.figures / f"{name}.png", width=round(96 * figure.get_figwidth()))

    def save_table(
        self, data: pd.DataFrame, name: str, *caption: str, shown: pd.DataFrame | None = None
    ) -> pd.DataFrame:
        """Writes a table to the run's folder; returns what people read of it, so that the notebook shows it.

        One without a row, which models of few blocks may give, is left out with a message.

        Args:
            shown: the table as people read it, for its picture; the file has `data`.
        """
        if isinstance(data, pd.DataFrame) and data.empty:
            size = counted(self.num_blocks, "block")
            logger.info(f"table {name} is left out: it has no row for this model of {size}")
            return data
        table_pictures.save_table(data, self.figures, name, self.caption(*caption), shown)
        return data if shown is None else shown

    def save_reported(self, data: pd.DataFrame, name: str, caption: str) -> pd.DataFrame:
        """Writes a table of numbers that papers report to the run's folder; returns it.

        No model was run for it, so its caption names none.
        """
        table_pictures.save_table(data, self.figures, name, f"{caption}.")
        return data

    def save_reported_figure(self, figure: Figure, data: pd.DataFrame, name: str, caption: str) -> Image:
        """Writes a figure of numbers that papers report, as `save` does; its caption names no model either."""
        saving.save(figure, data, self.figures, name, f"{caption}.")
        return Image(filename=self.figures / f"{name}.png", width=round(96 * figure.get_figwidth()))

    def save_data(self, data: pd.DataFrame, name: str) -> None:
        """Writes a table to the run's folder as CSV alone: one that is no picture, since it has too many rows."""
        if len(data):
            saving.save_data(data, self.figures, name)

    def save_verdicts(self, table: pd.DataFrame, name: str, *caption: str) -> pd.DataFrame:
        """Writes a notebook's statements and their verdicts to the run's folder; returns what people read of them.

        Args:
            table: from `verdicts.verdicts`; its file has all columns, its picture those of `verdicts.shown`.
        """
        shown = verdicts.shown(table)
        if len(table):
            note = (
                "Difference: measured less threshold (within: from none). Detectable: the smallest that is found with "
                "a probability of 0.8. p: two-sided, corrected for all statements here (Holm)"
            )
            table_pictures.save_table(table, self.figures, name, self.caption(*caption, note), shown)
        return shown

    def export_results(self) -> Path:
        """Writes this model's stored results as CSV, for people; left out where neither they nor the CSV can be."""
        name = profiles.artifact_folder(self.profile)
        made = f"-{self.identity.fingerprint[:8]}" if self.is_made else ""  # beside those of the model it was made of
        path = paths.RESULTS / f"{name}{made}.csv"
        try:
            self.store.export_csv(path, model=self.identity.fingerprint)
        except StudyError as error:
            if self.store.kept:
                raise
            logger.warning(f"the results are read from a store that cannot be written, and left out as CSV ({error})")
        return path


def _text(name: str, value: Any) -> str:
    """A name that the user gives, or a path, as text."""
    if not isinstance(value, str | os.PathLike):
        raise StudyError(f"{name} must be a text or a path, not {value!r}: leave it out for the default")
    return os.fspath(value)


def _text_note(what: str, blocks: TokenBlocks) -> str:
    bos = "with" if blocks.bos else "without"
    return (
        f"{what}: {blocks.corpus}, {blocks.split} split, {len(blocks.input_ids)} blocks of {blocks.input_ids.shape[1]} "
        f"tokens, {bos} BOS"
    )


def versions() -> pd.Series:
    """Versions of what the numbers depend on, for a notebook's last cell."""
    names = [
        "torch",
        "transformers",
        "peft",
        "bitsandbytes",
        "llmcompressor",
        "lm-eval",
        "gensim",
        "numpy",
    ]
    found = {"layer-redundancy": __version__}  # its own word for it: it may be on the path and not installed
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return pd.Series(found, name="version")
