"""`make prefetch`: everything a profile takes from elsewhere, downloaded once, so that the hub is not needed any more.

What is in the hub's cache is not downloaded again, and what broke off goes on where it was. Once a benchmark is there,
its tokens are counted for `make plan`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from layer_redundancy.config import profiles, sources
from layer_redundancy.config.profiles import Profile, TaskBudget
from layer_redundancy.config.sources import Amount
from layer_redundancy.core import paths
from layer_redundancy.core.cache import write_whole
from layer_redundancy.core.errors import StudyError
from layer_redundancy.data import corpora, hub

SAMPLE = 1500  # items whose tokens are counted
RECORD = paths.CACHE / "prefetched.json"  # task -> date, and model -> amount
# Corpus -> its folder, downloaded where it is not there, and the files that must lie in it.
CORPORA: dict[str, tuple[Callable[[], Path], Sequence[str]]] = {
    "pg19": (corpora.pg19_files, tuple(corpora.PG19_FILES.values())),
    "c4": (corpora.c4_files, tuple(corpora.C4_FILES.values())),
    "alpaca": (corpora.alpaca_files, (corpora.ALPACA_FILE,)),
}
# Beside the weights: configs, tokenizers and their vocabularies.
SMALL_FILES = ["*.json", "*.model", "*.txt"]
WEIGHTS = ("*.safetensors", "*.bin")  # transformers takes the first that is there

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Download:
    """Something that is downloaded.

    Attributes:
        name: hub id, or the corpus, task or data set that needs it.
        source: hub id or address.
        gigabytes: 10^9 bytes.
        here: it is in the cache.
        licence: as its page names it.
        note: what the user must do first.
    """

    name: str
    source: str
    gigabytes: float
    here: bool
    licence: str
    note: str = ""


def hub_models(profile: Profile) -> dict[str, tuple[str, ...]]:
    """The models of a profile that come from the hub: id -> notebooks (numbers; () for all)."""
    of_profile = profiles.PROFILES[profile.name]
    found: dict[str, tuple[str, ...]] = {profile.model: ()}
    if profile.model == of_profile.model:
        found |= {further.model: further.notebooks for further in profile.further}
        found |= {profile.quantization.ready: ("07",)} if profile.quantization.ready else {}
    found |= {profile.recurrent_model: ("06",)}
    return {name: notebooks for name, notebooks in found.items() if _on_hub(name)}


def _on_hub(model: str) -> bool:
    named = model in (profiles.EMBEDDED_MODEL, profiles.EMBEDDED_RWKV)
    return not named and not Path(model).expanduser().exists()


def budgets(profile: Profile) -> list[TaskBudget]:
    """The benchmarks of a profile whose data is downloaded, each once; HumanEval waits for the user's word."""
    every = [*profile.tasks, *profile.benchmarks, *profile.generative_benchmarks, *profile.generation.tasks]
    return [b for b in dict.fromkeys(every) if b.name in sources.DATA and b.name != "humaneval"]


def texts(profile: Profile) -> list[str]:
    """The corpora of a profile that are downloaded: of perplexity and calibration, and those that are trained on."""
    healing = profile.healing
    every = (profile.text.corpus, healing.healing.corpus, healing.evaluation_corpus, healing.tuning.corpus)
    return [name for name in dict.fromkeys(every) if name in CORPORA]


def classified(profile: Profile) -> list[str]:
    """The data sets to classify of a profile that are downloaded from the hub."""
    return [name for name in profile.classification.datasets if name in sources.DATA]


def revision(profile: Profile, model: str) -> str | None:
    """The revision of one of a profile's models."""
    return profile.revision if model == profile.model else sources.pinned(model)


def downloads(profile: Profile) -> list[Download]:
    """What a profile takes from elsewhere, models first.

    Sizes are the hub's where it answers, else those of `sources`.
    """
    found = []
    for model in hub_models(profile):
        source = sources.MODELS.get(model)
        size, pin = _asked_size(model, revision(profile, model)), revision(profile, model)
        note = ""
        if source is not None and source.gated:
            note = f"gated: accept its licence on its hub page, or use MODEL={source.ungated}"
        if size is None:
            size = source.gigabytes if source else float("nan")
        licence = source.licence if source else "see its hub page"
        at = f"{model}@{(pin or 'newest')[:8]}"
        found.append(Download(model, at, size, model_is_here(model, pin), licence, note))
    record = read_record()
    seen: set[str] = set()
    for name in [*texts(profile), *(b.name for b in budgets(profile)), *classified(profile)]:
        data = sources.DATA[name]
        megabytes = 0.0 if data.repository in seen else data.megabytes  # of a repository that two tasks share, once
        seen.add(data.repository)
        found.append(Download(name, data.repository, megabytes / 1000, name in record, data.licence))
    return found


def _asked_size(model: str, pin: str | None) -> float | None:
    """Gigabytes of what would be downloaded, as the hub says; None where it does not answer."""
    from huggingface_hub import HfApi

    if not hub.answers():
        return None
    try:
        files = HfApi().model_info(model, revision=pin, files_metadata=True, timeout=10).siblings or []
    except Exception:  # whatever is wrong with the hub now, prefetch will tell it
        return None
    sizes = {file.rfilename: file.size or 0 for file in files}
    chosen = _weights(sizes)
    return sum(size for name, size in sizes.items() if any(Path(name).match(p) for p in (chosen, *SMALL_FILES))) / 1e9


def _weights(names: Sequence[str] | dict[str, int]) -> str:
    return next((pattern for pattern in WEIGHTS if any(Path(name).match(pattern) for name in names)), WEIGHTS[0])


def model_is_here(model: str, pin: str | None) -> bool:
    """Whether config and all weights of a hub model are in the cache."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(model, revision=pin, allow_patterns=SMALL_FILES, local_files_only=True))
    except Exception:  # not there, or only in part
        return False
    return (folder / "config.json").is_file() and _complete(folder)


def _complete(folder: Path) -> bool:
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = set(json.loads(index.read_text())["weight_map"].values())
            if all((folder / shard).is_file() for shard in shards):
                return True
        elif (folder / name).is_file():
            return True
    return False


# ------------------------------------------------------------------------------------------------ fetching


def fetch_model(model: str, pin: str | None) -> Path:
    """Downloads a model's config, tokenizer and weights in the form that is loaded; its folder in the hub's cache.

    Raises:
        StudyError: as `hub.one_line`; it has no weights.
    """
    from huggingface_hub import HfApi

    if model_is_here(model, pin):
        return hub.snapshot(model, pin, SMALL_FILES)
    with hub.errors(model):
        names = HfApi().list_repo_files(model, revision=pin)
    folder = hub.snapshot(model, pin, [*SMALL_FILES, _weights(names)])
    if not _complete(folder):
        raise StudyError(f"{model} has no weights that transformers reads: neither safetensors nor pytorch_model.bin")
    return folder


def fetch_task(budget: TaskBudget, generative: bool) -> None:
    """Downloads a benchmark's data; a generative one's by building a prompt. Errors as of `tasks.load`."""
    from layer_redundancy.data import benchmark_items
    from layer_redundancy.evaluate import generative_tasks

    if generative:
        generative_tasks.load(replace(budget, limit=1))
    else:
        benchmark_items.fetch(budget)


def fetch_texts(name: str) -> None:
    """Downloads a data set to classify. Errors as of `classification.load`."""
    from layer_redundancy.data import classification_sets

    classification_sets.fetch(name)


# ------------------------------------------------------------------------------------------------ counting


def count(budget: TaskBudget, tokenizer: Any, seed: int = 0, max_length: int | None = None) -> Amount:
    """What a benchmark puts through a model with this tokenizer, counted on SAMPLE items and scaled to all.

    Prefixes that items have in common are scaled by what the second half of the sample added to those of the first.
    """
    from layer_redundancy.data import benchmark_items
    from layer_redundancy.evaluate.batches import arrange
    from layer_redundancy.evaluate.scoring import ChoiceTask

    items = benchmark_items.load(replace(budget, limit=SAMPLE), tokenizer, seed, max_length)
    halves = items.parts(max(1, items.num_items // 2))
    few, all_of_it = (_counted(arrange(ChoiceTask(part).sequences, True)) for part in (halves[0], items))
    scale, growth = items.total / items.num_items, items.num_items - halves[0].num_items
    further = (items.total - items.num_items) / growth if growth else 0.0
    prefixes, groups = (all_of_it[i] + further * (all_of_it[i] - few[i]) for i in (2, 5))
    sequences, tokens, _, tails, scored, _ = all_of_it
    shared = min(scale * tokens, scale * tails + prefixes)
    counted = map(round, (scale * sequences, scale * tokens, shared, scale * scored))
    return Amount(items.total, *counted, groups=round(groups))


def _counted(work: Any) -> tuple[int, int, int, int, int, int]:
    """Sequences, tokens, tokens of prefixes (each once), tokens of what follows, scored positions, prefixes."""
    tokens = sum(len(s.input_ids) for s in work.sequences)
    tails = sum(work.tail(place) for place in range(len(work.order)))
    scored = sum(s.num_scored for s in work.sequences)
    groups = {group for group, prefix in zip(work.groups, work.prefixes, strict=True) if prefix}
    return len(work.order), tokens, work.num_tokens() - tails, tails, scored, len(groups)


def count_texts(name: str, tokenizer: Any) -> Amount:
    """What the texts of a data set to classify come to, by SAMPLE of those it is tested on."""
    from layer_redundancy.data import classification_sets

    data = classification_sets.load(name)
    sample = tokenizer(list(data.test.texts[:SAMPLE]), add_special_tokens=False, verbose=False).input_ids
    items = len(data.test)
    tokens = round(items * sum(map(len, sample)) / len(sample))
    return Amount(items, items, tokens, tokens, items)


def read_record() -> dict[str, dict[str, Any]]:
    """Task, corpus or data set -> {"amounts": model -> Amount's fields}, of what was prefetched."""
    try:
        return json.loads(RECORD.read_text())
    except (OSError, ValueError):
        return {}


def _note(name: str, amounts: dict[str, Amount] | None = None) -> None:
    record = read_record()
    entry = record.setdefault(name, {"amounts": {}})
    entry["amounts"] |= {model: asdict(amount) for model, amount in (amounts or {}).items()}
    write_whole({RECORD: json.dumps(record, indent=1).encode()})


def amounts(model: str) -> tuple[dict[str, Amount], bool]:
    """Task -> what it puts through a model: counted with its tokenizer, or about; and whether all were counted.

    Of tasks whose answers are generated nothing is counted: how long those get, nobody knows before.
    """
    record = read_record()
    counted = {
        name: Amount(**record[name]["amounts"][model])
        for name in sources.DATA
        if model in record.get(name, {}).get("amounts", {})
    }
    about = {name: data.amount for name, data in sources.DATA.items() if data.amount}
    countable = {name for name, amount in about.items() if name in record and not amount.answers}
    return about | counted, set(counted) >= countable


# ------------------------------------------------------------------------------------------------ the command


def prefetch(profile: Profile, say: Callable[[str], None] = print) -> None:
    """Downloads all that a profile needs; what is there already is passed over.

    Raises:
        StudyError: the first thing that cannot be had; what was downloaded before it is kept.
    """

    generative = {b.name for b in (*profile.generative_benchmarks, *profile.generation.tasks)}
    for model in hub_models(profile):
        say(f"{model}: {fetch_model(model, revision(profile, model))}")
    for name in texts(profile):
        say(f"{name}: {CORPORA[name][0]()}")
        _note(name)
    record = read_record()
    for budget in tqdm(budgets(profile), desc="benchmarks", unit="benchmark"):
        if budget.name not in record:
            fetch_task(budget, budget.name in generative)
            _note(budget.name)
    for name in classified(profile):
        if name not in record:
            fetch_texts(name)
            _note(name)


def check_texts(profile: Profile) -> None:
    """Raises StudyError if a file of a corpus is missing; a folder is there already when a first part of it is."""
    for name in texts(profile):
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
    from layer_redundancy.models import checkpoints, loading

    check_texts(profile)
    chosen = {m: of for m, of in hub_models(profile).items() if m != profile.quantization.ready}
    for model, notebooks in chosen.items():
        identity = checkpoints.identify(replace(profile, model=model, revision=revision(profile, model)))
        tokenizer = loading.load_tokenizer(identity)
        wanted = profile.tasks if notebooks and "08" not in notebooks else (*profile.tasks, *profile.benchmarks)
        for budget in tqdm(dict.fromkeys(wanted), desc=f"tokens for {model}", unit="benchmark"):
            if budget.name in sources.DATA and model not in read_record()[budget.name]["amounts"]:
                _note(budget.name, {model: count(budget, tokenizer, profile.seed, identity.max_length)})
        for name in classified(profile) if not notebooks else ():
            if model not in read_record()[name]["amounts"]:
                _note(name, {model: count_texts(name, tokenizer)})


@app.command()
def main(
    profile: Annotated[str, typer.Argument(help="paper, or another profile")] = "paper",
    model: Annotated[str, typer.Option(help="hub id of a model of your own")] = "",
    revision: Annotated[str, typer.Option(help="its revision")] = "",
    only_count: Annotated[bool, typer.Option("--count", help="only count the tokens of what is there")] = False,
) -> None:
    """Downloads all that a profile needs, once."""
    try:
        chosen = profiles.get(profile, model=model, revision=revision)
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
    print("all is here: HF_HUB_OFFLINE=1 make figures needs no network")


if __name__ == "__main__":
    app()
