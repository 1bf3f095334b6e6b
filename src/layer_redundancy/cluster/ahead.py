"""What experiments will ask for whatever comes of what they are waiting for: work for workers that have none.

An experiment asks for one thing after another, although much of it does not depend on the rest: trainings with five
seeds, models made by nine methods. So it is run dry, twice, each time with other made-up results in the place of those
that are not there yet. What both runs ask for does not depend on these, and can be begun. If a guess is wrong, a worker
has done something in vain; numbers come from the experiment itself alone.
"""

import contextlib
import io
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from layer_redundancy.cluster.pool import Pool, Task
from layer_redundancy.cluster.study import Sent
from layer_redundancy.config.profiles import Profile
from layer_redundancy.core import cache, flags
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Key, Result
from layer_redundancy.core.variants import Variant
from layer_redundancy.evaluate.amounts import Work
from layer_redundancy.evaluate.generate import PromptLengths
from layer_redundancy.experiments.registry import Experiment
from layer_redundancy.models import checkpoints
from layer_redundancy.planning.dry import DryStudy, Ledger
from layer_redundancy.planning.planner import keeps_prefixes
from layer_redundancy.study import Study


@dataclass(frozen=True, eq=False)
class Foreseen(Sent, DryStudy):
    """A dry study that remembers how what it counts would be computed, and makes up what is not stored.

    Attributes:
        seed: of what is made up.
        asked: key of a result, or name of a folder -> the task.
        invented: whether the model is one of which not even the name is known yet.
    """

    seed: int = 0
    asked: dict[Any, Callable[[], Task]] = field(default_factory=dict)
    invented: bool = False

    def cached(
        self,
        key: Key,
        compute: Callable[[], Result],
        zeros: Callable[[], Result],
        work: Callable[[], Sequence[Work]] = lambda: (),
    ) -> Result:
        if (known := self._known(key)) is not None:
            return known
        if self._fresh(key):
            self._count(*work())
            if not self.invented:
                self.asked[key] = lambda: self._result_task(key, compute, work)
        return self._made_up(zeros(), str(key.values()))

    def _made_up(self, result: Result, name: str) -> Result:
        """A result of the same shape with other numbers."""
        chance = np.random.default_rng([self.seed, zlib.crc32(name.encode())])

        def other(array: np.ndarray) -> np.ndarray:
            return chance.random(array.shape) + 0.1 if np.issubdtype(array.dtype, np.floating) else array

        return Result(result.summary, {name: other(np.asarray(array)) for name, array in result.arrays.items()})

    def _measured(self, measurement: Any, variant: Variant) -> Result:
        return self._made_up(super()._measured(measurement, variant), f"{measurement.name} {variant}")

    def continuations(self, chosen: Sequence[Variant], lengths: PromptLengths) -> dict[Variant, Result]:
        with contextlib.suppress(StudyError):  # it would take the model
            return Study.continuations(self, chosen, lengths)
        found = super().continuations(chosen, lengths)
        return {v: Result(one.summary, {n: a + self.seed for n, a in one.arrays.items()}) for v, one in found.items()}

    def quantization_method(self) -> Any:
        return None if self.invented else Study.quantization_method(self)

    def likely_scores(self, measure: str) -> np.ndarray:
        return np.random.default_rng([self.seed, zlib.crc32(measure.encode())]).random(self.num_blocks)

    def _folder(self, make: Callable[[], Path], ask: Callable[[], Study], *work: Work) -> Path:
        try:
            with cache.only_read():
                return make()
        except cache.NotMade as missing:
            target = missing.target
            if not self.invented:
                self.asked.setdefault(target.name, lambda: self._folder_task(target, ask, work))
            raise

    def quantized(self, *arguments: Any, **more: Any) -> Study:
        return self._really(Study.quantized, DryStudy.quantized, *arguments, **more)

    def pruned(self, *arguments: Any) -> Study:
        return self._really(Study.pruned, DryStudy.pruned, *arguments)

    def written(self) -> Any:
        return self._really(Study.written, DryStudy.written)

    def _really(self, real: Callable[..., Study], dry: Callable[..., Study], *arguments: Any, **more: Any) -> Study:
        """The checkpoint that is there, or one that is made up."""
        if not self.invented:
            with contextlib.suppress(cache.NotMade):
                return real(self, *arguments, **more)
        return dry(self, *arguments, **more)

    def _made(self, name: str, key: Key, blocks: int) -> "Foreseen":
        return replace(cast(Foreseen, super()._made(name, key, blocks)), invented=True)


@flags.checked
def foreseen(
    experiment: Experiment, study: Study, pool: Pool, seed: int = 0, ledger: Ledger | None = None, **settings: Any
) -> Foreseen:
    """Runs an experiment dry on what is stored, and on made-up results for the rest.

    Args:
        experiment: the experiment.
        study: the study that it would be measured on.
        pool: where tasks would go.
        seed: of what is made up; an experiment that makes no sense of it ends there.
        ledger: counts the work; what it has seen is not counted again.
        settings: attributes of `Sent`.
    """

    def of(one: Study, ledger: Ledger, asked: dict) -> Foreseen:
        def other(model: str, profile: Profile, ledger: Ledger) -> Foreseen:
            return of(study.of_model(model), ledger, asked)

        return Foreseen.on(
            one,
            pool,
            **settings,
            ledger=ledger,
            shape_of=one.identity.name,
            keeps_prefixes=keeps_prefixes(checkpoints.config(one.identity)),
            other=other,
            skips_stored=True,
            seed=seed,
            asked=asked,
        )

    dry = of(study, ledger or Ledger(), {})
    with (
        contextlib.suppress(StudyError, ArithmeticError, LookupError, ValueError, TypeError, AssertionError),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        experiment.measure(dry)
    return dry


def tasks(experiment: Experiment, study: Study, pool: Pool, **settings: Any) -> list[Task]:
    """What an experiment will ask for whatever comes of what it is waiting for; arguments as `foreseen`."""
    one, other = (foreseen(experiment, study, pool, seed=seed, **settings) for seed in (1, 2))
    return [task() for key, task in one.asked.items() if key in other.asked]
