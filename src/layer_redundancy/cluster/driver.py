"""Measures notebooks' experiments on a cluster, so that the notebooks find all of it in the store.

`python -m layer_redundancy.cluster.driver --profile smoke --workers 2 NOTEBOOK:COPY[:MODEL] ...`

Each experiment runs in a thread of its own and computes while no other does; what it asks for is done by workers, and
that of several experiments at once.
"""

from layer_redundancy.core import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()

import argparse
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distributed import Client

from layer_redundancy.cluster import ahead, workers
from layer_redundancy.cluster import pool as of_pool
from layer_redundancy.cluster.pool import Pool
from layer_redundancy.cluster.study import Cutting, DistributedStudy
from layer_redundancy.config import cluster, profiles
from layer_redundancy.config.notebooks import number
from layer_redundancy.config.run_folder import absolute_model
from layer_redundancy.core import doors, flags, log, paths
from layer_redundancy.core.errors import NotApplicable, StudyError
from layer_redundancy.core.store import IN_MEMORY, Store
from layer_redundancy.core.wording import counted, duration
from layer_redundancy.experiments import registry
from layer_redundancy.experiments.registry import Experiment
from layer_redundancy.planning.dry import Ledger
from layer_redundancy.study import Study

LOOK = 2.0  # seconds between two looks at whether workers have something to do


@dataclass(frozen=True)
class Asked:
    """An experiment to measure, and the model in the place of the profile's; "" for the profile's."""

    notebook: str
    model: str = ""

    @classmethod
    def read(cls, text: str) -> "Asked":
        """As the command line has it: notebook, copy and model with colons between them."""
        notebook, _, *model = text.split(":", maxsplit=2)
        return cls(Path(notebook).stem, model[0] if model else "")

    @property
    def name(self) -> str:
        """In a message."""
        return f"{self.notebook} of {self.model}" if self.model else self.notebook

    @property
    def experiment(self) -> Experiment:
        """What measures it."""
        return registry.by_number(number(Path(self.notebook)))


def measure(
    asked: Sequence[Asked],
    open_study: "Opener",
    pool: Pool,
    cutting: Cutting | None = None,
    threads: int | None = None,
) -> dict[str, BaseException | None]:
    """Measures experiments on a pool's workers, all at once as far as they do not wait for each other.

    Args:
        asked: the experiments.
        open_study: opens the study of one of them, with a connection of its own to the store.
        pool: hands out the work.
        cutting: how sweeps are cut.
        threads: threads of the processor of each worker.

    Returns:
        What each raised, by notebook; None for those that were measured, or have nothing to measure on this model.
    """
    failed: dict[str, BaseException | None] = {}
    under_way: dict[str, Asked] = {}

    def settings(wanted: Asked) -> dict[str, Any]:
        return {"notebook": wanted.notebook, "cutting": cutting or Cutting(), "threads": threads}

    def one(wanted: Asked) -> None:
        with pool.lock:
            try:
                study = open_study(wanted.model)
                with study.store:
                    wanted.experiment.measure(DistributedStudy.on(study, pool, **settings(wanted)))
                failed[wanted.name] = None
            except NotApplicable:
                failed[wanted.name] = None
            except BaseException as error:
                failed[wanted.name] = error
            finally:
                del under_way[wanted.name]

    def look_ahead() -> None:
        """Tells the bar of all that is to be done, and has idle workers begin what will be asked for."""
        with pool.lock:
            expected, ledger = 0, Ledger()
            for wanted in asked:
                expected += _work_of(wanted, open_study, pool, ledger, settings(wanted))
            pool.expect(expected)
        seen: set[str] = set()
        while under_way:
            time.sleep(LOOK)
            if not pool.idle:
                continue
            with pool.lock:
                for wanted in list(under_way.values()):
                    try:
                        study = open_study(wanted.model)
                    except StudyError:  # said where it is measured
                        continue
                    with study.store:
                        found = ahead.tasks(wanted.experiment, study, pool, **settings(wanted))
                    fresh = [task for task in found if task.key not in seen]
                    seen.update(task.key for task in fresh)
                    pool.start(fresh)

    every = []
    for wanted in asked:
        under_way[wanted.name] = wanted
        every.append(threading.Thread(target=one, args=(wanted,), daemon=True))
    watcher = threading.Thread(target=look_ahead, daemon=True)
    for thread in (*every, watcher):
        thread.start()
    for thread in every:
        while thread.is_alive():
            thread.join(0.5)  # a signal is seen between two
    watcher.join(LOOK)
    return failed


def _work_of(wanted: Asked, open_study: "Opener", pool: Pool, ledger: Ledger, settings: dict[str, Any]) -> int:
    """Block-tokens of what an experiment lacks in the store, those before it apart."""
    try:
        study = open_study(wanted.model)
    except StudyError:  # said where it is measured
        return 0
    page = ledger.page()
    with study.store:
        ahead.foreseen(wanted.experiment, study, pool, ledger=page, **settings)
    return sum(work.block_tokens for _, work in page.work)


class Opener:
    """Opens studies of one profile, in whichever thread asks; those of a model share its inputs.

    Args:
        profile, revision, trust_remote_code: as `Study.open`.
        store: the results store.
    """

    @flags.checked
    def __init__(self, profile: str, revision: str, trust_remote_code: bool, store: Path) -> None:
        self._profile, self._revision, self._trust = profile, revision, trust_remote_code
        self._store = store
        self._studies: dict[str, Study] = {}

    def __call__(self, model: str) -> Study:
        if model not in self._studies:
            self._studies[model] = Study.open(
                self._profile,
                absolute_model(model),
                self._revision,
                trust_remote_code=self._trust,
                store=Path(IN_MEMORY),
            )
        return replace(self._studies[model], store=Store(self._store))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m layer_redundancy.cluster.driver", description="Measures notebooks' experiments on a cluster."
    )
    parser.add_argument("runs", nargs="+", type=Asked.read, metavar="NOTEBOOK:COPY[:MODEL]")
    parser.add_argument("--profile", default="embedded", help="smoke, embedded, paper, or a file ending in .toml")
    parser.add_argument("--revision", default="", help="hub revision of the model")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the model's own code")
    parser.add_argument("--workers", default="", help="so many processes of this machine, one a GPU at least")
    parser.add_argument("--scheduler", default="", help="a cluster that is there: tcp://HOST:PORT or tls://HOST:PORT")
    parser.add_argument("--trust-network", action="store_true", help="go without TLS to another machine")
    parser.add_argument("--store", type=Path, help="the results store")
    return parser.parse_args()


def _cluster(options: argparse.Namespace) -> AbstractContextManager[Client]:
    if options.scheduler:
        return workers.connected(options.scheduler, options.trust_network)
    return workers.local(int(options.workers))


def main() -> int:
    """Measures what the command line names; the exit status."""
    options, started = _options(), time.monotonic()
    log.show()
    interrupts.interrupt()
    try:
        if not options.workers and not options.scheduler:
            raise StudyError("give workers or a scheduler: --workers 2, or --scheduler tcp://HOST:PORT")
        cluster.check_given(options.workers, options.scheduler, trust_network=options.trust_network)
        profile = profiles.get(options.profile, model=options.runs[0].model, revision=options.revision)
        store = options.store or paths.RESULTS / "results.sqlite"
        with Store(store) as opened:
            if not opened.kept:
                raise StudyError(
                    f"results store {store} cannot be written: give yourself leave to, or name another one"
                )
        threads = None if options.scheduler else profile.threads or workers.threads_of(int(options.workers))
        with _cluster(options) as client:
            workers.wait_for_one(client)
            print(f"dashboard: {client.dashboard_link}", file=sys.stderr)
            pool = Pool(client, store)
            try:
                opener = Opener(options.profile, options.revision, options.trust_remote_code, store)
                failed = measure(options.runs, opener, pool, threads=threads)
            finally:
                pool.close()
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        interrupts.hush()
        print("interrupted: what was finished is stored", file=sys.stderr)
        return interrupts.STATUS
    wrong = {name: error for name, error in failed.items() if error is not None}
    for line in dict.fromkeys(str(one) for one in wrong.values() if isinstance(one, StudyError)):
        names = [name for name, one in wrong.items() if str(one) == line]
        print(f"{', '.join(names)}: {line}", file=sys.stderr)
    for name, one in wrong.items():
        if not isinstance(one, StudyError):
            print(f"{name}:", file=sys.stderr)
            traceback.print_exception(one, file=sys.stderr)
    done = counted(len(failed) - len(wrong), "notebook")
    print(
        f"{done} measured in {duration(time.monotonic() - started)}: {of_pool.told(pool)}",
        file=sys.stderr,
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    doors.entered(doors.COMMAND)
    sys.exit(main())
