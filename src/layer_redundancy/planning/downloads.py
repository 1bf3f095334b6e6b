"""`make prefetch`: everything a profile takes from elsewhere, downloaded once, so that the hub is not needed any more.

What is in the hub's cache is not downloaded again, and what broke off goes on where it was. Once a benchmark is there,
its tokens are counted for `make plan`.
"""

from layer_redundancy.core import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from layer_redundancy.config import own_files, profiles, sources
from layer_redundancy.config.profiles import Profile, TaskBudget
from layer_redundancy.config.sources import Amount
from layer_redundancy.core import doors, flags, log
from layer_redundancy.core.errors import StudyError
from layer_redundancy.data import corpora, hub
from layer_redundancy.models import checkpoints, embedded, loading
from layer_redundancy.planning import counts
from layer_redundancy.planning.dry import Needs
from layer_redundancy.planning.planner import Planner

# Corpus -> its folder, downloaded where it is not there, and the files that must lie in it.
ANY_AMOUNT = Amount(100, 100, 10_000, 10_000, 100)  # for what is not counted yet; what is needed does not depend on it
CORPORA: dict[str, tuple[Callable[[], Path], Sequence[str]]] = {
    "pg19": (corpora.pg19_files, tuple(corpora.PG19_FILES.values())),
    "c4": (corpora.c4_files, tuple(corpora.C4_FILES.values())),
    "alpaca": (corpora.alpaca_files, (corpora.ALPACA_FILE,)),
}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Download:
    """Something that is downloaded.

    Attributes:
        name: hub id, or the corpus, task or data set that needs it.
        source: hub id or address of it.
        gigabytes: size (10^9 bytes).
        here: whether it is in the cache.
        licence: the licence, as its page names it.
        note: what the user must do first.
    """

    name: str
    source: str
    gigabytes: float
    here: bool
    licence: str
    note: str = ""


def needs(profile: Profile) -> dict[str, Needs]:
    """What each model of a profile reads: its experiments run dry, and what they ask for is written down."""
    planner = Planner(profile, count=lambda model, budget: ANY_AMOUNT)
    for model, notebooks in planner.runs():
        for _ in planner.pages(model, notebooks):
            pass
    return planner.needs


def texts(needed: Mapping[str, Needs]) -> list[str]:
    """The corpora that are downloaded."""
    return [name for name in dict.fromkeys(c for one in needed.values() for c in one.corpora) if name in CORPORA]


def benchmarks(needed: Mapping[str, Needs]) -> dict[TaskBudget, bool]:
    """The benchmarks whose data is downloaded, each once, and whether their answers are generated."""
    found = {budget: False for one in needed.values() for budget in one.tasks}
    found |= {budget: True for one in needed.values() for budget in one.generative_tasks}
    return {budget: generated for budget, generated in found.items() if budget.name in sources.DATA}


def datasets(needed: Mapping[str, Needs]) -> list[str]:
    """The data sets to classify that are downloaded."""
    return [name for name in dict.fromkeys(d for one in needed.values() for d in one.datasets) if name in sources.DATA]


def on_hub(model: str) -> bool:
    """Whether a model is downloaded: it is none that comes with the study or a package, and no local folder."""
    return model not in profiles.EMBEDDED and not Path(model).expanduser().exists()


def own_texts(needed: Mapping[str, Needs]) -> list[str]:
    """A line on each text of the user's own: how many articles it has for either split.

    Raises:
        StudyError: one that is not there, or cannot be read or split.
    """
    lines = []
    for name in dict.fromkeys(c for one in needed.values() for c in one.corpora if c not in own_files.CORPORA):
        found = corpora.own_articles(name)
        shares = ", ".join(f"{len(articles)} articles for {split}" for split, articles in found.items())
        lines.append(f"{own_files.corpus_name(name)}: {shares}")
    return lines


def downloads(profile: Profile, needed: Mapping[str, Needs] | None = None) -> list[Download]:
    """What a profile takes from elsewhere, models first.

    Sizes are the hub's where it answers, else those of `sources`.

    Args:
        profile: the profile.
        needed: from `needs`, if that is known.
    """
    found = []
    needed = needs(profile) if needed is None else needed
    for model in filter(on_hub, needed):
        source = sources.MODELS.get(model)
        size, pin = _asked_size(model, counts.revision(profile, model)), counts.revision(profile, model)
        note = ""
        if source is not None and source.gated:
            note = f"gated: accept its licence on its hub page, or use {doors.setting('model', source.ungated)}"
        if size is None:
            size = source.gigabytes if source else float("nan")
        licence = source.licence if source else "see its hub page"
        at = f"{model}@{(pin or 'newest')[:8]}"
        found.append(Download(model, at, size, hub.model_is_here(model, pin), licence, note))
    for model, packaged in embedded.MODELS.items():
        # The embedded profile's own is fetched with the environment.
        if model in needed and packaged.module is not None and model != profiles.EMBEDDED_MODEL:
            note = f"{packaged.converted_megabytes / 1000:.1f} GB more when it is converted. {packaged.terms}".strip()
            size, at = packaged.megabytes / 1000, packaged.module.revision()
            found.append(Download(model, at, size, embedded.is_here(model), packaged.licence, note))
    record = counts.read_record()
    seen: set[str] = set()
    for name in [*texts(needed), *dict.fromkeys(b.name for b in benchmarks(needed)), *datasets(needed)]:
        data = sources.DATA[name]
        megabytes = 0.0 if data.repository in seen else data.megabytes  # a repository that two tasks share counts once
        seen.add(data.repository)
        found.append(Download(name, data.repository, megabytes / 1000, name in record, data.licence))
    return found


def _asked_size(model: str, pin: str | None) -> float | None:
    """Gigabytes of what would be downloaded, from the hub; None where it does not answer."""
    from huggingface_hub import HfApi

    if not hub.answers():
        return None
    try:
        files = HfApi().model_info(model, revision=pin, files_metadata=True, timeout=10).siblings or []
    except Exception:  # whatever is wrong with the hub now, prefetch will tell it
        return None
    sizes = {file.rfilename: file.size or 0 for file in files}
    chosen = hub.weight_files(sizes)
    return (
        sum(size for name, size in sizes.items() if any(Path(name).match(p) for p in (chosen, *hub.SMALL_FILES))) / 1e9
    )


def fetch_model(model: str, pin: str | None) -> Path:
    """Downloads a model's config, tokenizer and weights in the form that is loaded; its folder in the hub's cache.

    Raises:
        StudyError: as `hub.errors`; it has no weights.
    """
    from huggingface_hub import HfApi

    if hub.model_is_here(model, pin):
        return hub.snapshot(model, pin, hub.SMALL_FILES)
    with hub.errors(model):
        names = HfApi().list_repo_files(model, revision=pin)
    folder = hub.snapshot(model, pin, [*hub.SMALL_FILES, hub.weight_files(names)])
    if not hub.is_complete(folder):
        raise StudyError(f"{model} has no weights that transformers reads: neither safetensors nor pytorch_model.bin")
    return folder


@flags.checked
def fetch_task(budget: TaskBudget, generative: bool) -> None:
    """Downloads a benchmark's data; a generative one's by building a prompt. Errors as for the benchmark's `load`."""
    from layer_redundancy.data import benchmark_items
    from layer_redundancy.evaluate import generative_tasks

    if generative:
        generative_tasks.load(replace(budget, limit=1))
    else:
        benchmark_items.fetch(budget)


def fetch_texts(name: str) -> None:
    """Downloads a data set to classify. Errors as for `classification_sets.load`."""
    from layer_redundancy.data import classification_sets

    classification_sets.fetch(name)


def prefetch(profile: Profile, report: Callable[[str], None] = print) -> None:
    """Downloads all that a profile needs; what is there already is passed over.

    Raises:
        StudyError: the first thing that cannot be had; what was downloaded before it is kept.
    """
    needed = needs(profile)
    for model in filter(on_hub, needed):
        report(f"{model}: {fetch_model(model, counts.revision(profile, model))}")
    for name in texts(needed):
        report(f"{name}: {CORPORA[name][0]()}")
        counts.note(name)
    record = counts.read_record()
    for budget, generated in tqdm(benchmarks(needed).items(), desc="benchmarks", unit="benchmark"):
        if budget.name not in record:
            fetch_task(budget, generated)
            counts.note(budget.name)
    for name in datasets(needed):
        if name not in record:
            fetch_texts(name)
            counts.note(name)


def check_texts(names: Iterable[str]) -> None:
    """Raises StudyError if a file of a corpus is missing; a folder is there already when a first part of it is."""
    for name in names:
        get, files = CORPORA[name]
        folder = get()
        if missing := [file for file in files if not any(folder.glob(file))]:
            raise StudyError(f"corpus {name!r} has no {missing[0]} in the hub's cache: run `make prefetch` again")


def count_all(profile: Profile) -> None:
    """Counts the tokens of what was downloaded, with each model's tokenizer.

    Models that share a tokenizer are counted apart all the same: seconds, against hours that are planned by it.

    Raises:
        StudyError: something is not there, or cannot be read.
    """
    needed = needs(profile)
    check_texts(texts(needed))
    for model, reads in needed.items():
        tasks = [budget for budget in reads.tasks if budget.name in sources.DATA]
        sets = [name for name in reads.datasets if name in sources.DATA]
        if not (tasks or sets) or not on_hub(model):
            continue
        identity = checkpoints.identify(replace(profile, model=model, revision=counts.revision(profile, model)))
        tokenizer = loading.load_tokenizer(identity)
        for budget in tqdm(tasks, desc=f"tokens for {model}", unit="benchmark"):
            if model not in counts.read_record()[budget.name]["amounts"]:
                counted = counts.count(budget, tokenizer, profile.seed, identity.max_length)
                counts.note(budget.name, {model: counted})
        for name in sets:
            if model not in counts.read_record()[name]["amounts"]:
                counts.note(name, {model: counts.count_texts(name, tokenizer)})


@app.command()
def main(
    profile: Annotated[str, typer.Argument(help="paper, or another profile")] = "paper",
    model: Annotated[str, typer.Option(help="hub id of a model of your own")] = "",
    revision: Annotated[str, typer.Option(help="its revision")] = "",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="run code of the model and of tasks")
    ] = False,
    only_count: Annotated[bool, typer.Option("--count", help="only count the tokens of what is there")] = False,
) -> None:
    """Downloads all that a profile needs, once."""
    log.show()
    interrupts.interrupt()
    try:
        chosen = profiles.get(profile, model=model, revision=revision, trust_remote_code=trust_remote_code)
        if only_count:
            count_all(chosen)
            return
        prefetch(chosen)
        # In a process of its own, with the hub offline: what cannot be loaded so shows now, not on the way.
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "layer_redundancy.planning.downloads", *sys.argv[1:], "--count"]
        if subprocess.run(command, env=environment).returncode:
            raise StudyError("what was downloaded cannot be loaded with the hub offline: see above")
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        print("interrupted: what was downloaded is kept, and the same command goes on from there", file=sys.stderr)
        raise
    print("all is here: HF_HUB_OFFLINE=1 make figures needs no network")


if __name__ == "__main__":
    doors.entered(doors.COMMAND)
    app()
