"""What a notebook opens: a profile's model, texts and tasks, loaded when first needed, and the store behind them."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from layer_redundancy import activations, corpora, models, paths, plain, plots, profiles, sweep, tasks, variants
from layer_redundancy.activations import ActivationSums
from layer_redundancy.errors import StudyError
from layer_redundancy.models import DecoderStack, ModelIdentity
from layer_redundancy.results import Key, Result, Store, settings_text
from layer_redundancy.run_folder import absolute_model
from layer_redundancy.scoring import ChoiceTask, Perplexity
from layer_redundancy.variants import Variant

ACTIVATIONS_VERSION = 1  # raise it when ActivationSums means something else


class Study:
    """A run of the study on one model.

    Args:
        profile: smoke, embedded or paper.
        model: the user's own model in the profile's place; "" for the profile's.
        revision: hub revision of `model`.
        trust_remote_code: run code that comes with the model.
        store: the results store; data/results/results.sqlite if not given.

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
    ):
        model = absolute_model(model)
        self.profile = profiles.get(profile, model=model, revision=revision, trust_remote_code=trust_remote_code)
        self.identity: ModelIdentity = models.identify(self.profile)
        self.store = Store(store or paths.RESULTS / "results.sqlite")
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
        return models.load_tokenizer(self.identity)

    @cached_property
    def stack(self) -> DecoderStack:
        """The model, loaded and taken apart. Nothing asks for it when the store has all results."""
        print(f"loading {self.identity.name} ({self.identity.revision}), {self.profile.dtype}")
        model = models.load(self.identity, self.profile.dtype, self.profile.device)
        return models.decoder_stack(model)

    @cached_property
    def calibration(self) -> corpora.TokenBlocks:
        """Text from which importance is measured."""
        return self._blocks("calibration")

    @cached_property
    def evaluation(self) -> corpora.TokenBlocks:
        """Text on which perplexity is measured; no article of it is in the calibration text."""
        return self._blocks("evaluation")

    def _blocks(self, split: corpora.Split) -> corpora.TokenBlocks:
        length, limit = self.profile.text.block_length, self.identity.max_length
        if limit is not None and length > limit:
            raise StudyError(
                f"{self.identity.name} takes {limit} tokens, the {self.profile.name} profile's blocks of text have "
                f"{length}: lower block_length in profiles.py, or use a profile with shorter blocks"
            )
        return corpora.token_blocks(self.profile.text, self.tokenizer, split)

    @cached_property
    def measurements(self) -> list[Perplexity | ChoiceTask]:
        """Perplexity and the profile's tasks."""
        limit = self.identity.max_length
        items = [tasks.load(b, self.tokenizer, self.profile.seed, max_length=limit) for b in self.profile.tasks]
        return [Perplexity(self.evaluation), *map(ChoiceTask, items)]

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

    def sweep(self, plan: Sequence[Variant]) -> dict[str, dict[Variant, Result]]:
        """Every measurement of the profile on every variant: measurement name -> variant -> result."""
        return sweep.run(
            self.identity,
            lambda: self.stack,
            plan,
            self.measurements,
            self.store,
            batch_tokens=self.profile.batch_tokens,
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
                with plain.applied(self.stack, variant) as model:
                    ((nll, _),) = plain.score(model, perplexity.sequences[:1])[0]
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

    def evaluation_note(self) -> str:
        """The evaluation text in a caption."""
        return _text_note("Perplexity", self.evaluation)

    def save(self, figure: Figure, data: pd.DataFrame, name: str, *caption: str) -> Figure:
        """Writes a figure to the run's folder as PNG, PDF and CSV; returns it, so that the notebook shows it."""
        plots.save(figure, data, self.figures, name, self.caption(*caption))
        return figure

    def save_table(self, data: pd.DataFrame, name: str, *caption: str) -> pd.DataFrame:
        """Writes a table to the run's folder; returns it, so that the notebook shows it."""
        plots.save_table(data, self.figures, name, self.caption(*caption))
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

    names = ["layer-redundancy", "torch", "transformers", "lm-eval", "gensim", "numpy"]
    return pd.Series({name: importlib.metadata.version(name) for name in names}, name="version")
