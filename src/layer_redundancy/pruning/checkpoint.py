"""A pruned checkpoint for use: blocks removed, or made smaller by a method; what is left trained or quantized if asked
for, measured, and written with a model card and `pruning.json`, from which the same checkpoint is made again."""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from layer_redundancy import __version__
from layer_redundancy.config import profiles
from layer_redundancy.config.profiles import Profile, Recipe, TrainingBudget
from layer_redundancy.core import cache, flags, variants
from layer_redundancy.core.arguments import shown
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Result
from layer_redundancy.core.variants import Variant
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.experiments import healing
from layer_redundancy.methods import registry as methods
from layer_redundancy.methods.method import Plan
from layer_redundancy.models import architectures, checkpoints, quantize, surgery
from layer_redundancy.pruning import by_method, card, choosing, effects
from layer_redundancy.pruning.how_many import HowMany
from layer_redundancy.study import Study
from layer_redundancy.train import healing as training_recipes

RECORD = "pruning.json"


@dataclass(frozen=True)
class Order:
    """What is to be made by removing blocks.

    Attributes:
        by: the importance measure that chose the blocks.
        removed: the blocks that go, first removed first.
        heal: the recipe by which the rest is trained; None to leave it as it is.
        training: on how much text it is trained.
        bits: bits a weight of the blocks; None for the dtype as it is.

    Raises:
        StudyError: no blocks, no recipe with its budget, or bits that cannot be quantized to.
    """

    by: str
    removed: tuple[int, ...]
    heal: Recipe | None = None
    training: TrainingBudget | None = None
    bits: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "removed", variants.indices(self.removed))
        _check_afterwards(self)


@dataclass(frozen=True)
class ByMethod:
    """What is to be made by a method, which changes more than the number of blocks.

    Attributes:
        method: name of the method in `methods.registry`.
        plan: one of `Study.plans`.
        heal, training, bits: as of an `Order`; the weights are quantized last.

    Raises:
        StudyError: no such method, no plan, or as `Order`.
    """

    method: str
    plan: Plan
    heal: Recipe | None = None
    training: TrainingBudget | None = None
    bits: int | None = None

    def __post_init__(self) -> None:
        methods.find(self.method)
        if not isinstance(self.plan, Plan):
            raise StudyError(f"{shown(self.plan)} is no plan: give one of study.plans({self.method!r})")
        _check_afterwards(self)


def _check_afterwards(order: Order | ByMethod) -> None:
    """Checks what is done afterwards, and puts Python's own numbers in its place, since `record` writes them down."""
    found: dict[str, Any] = {}
    if order.heal is not None:
        found["heal"] = profiles.valid(Recipe, order.heal)
        found["training"] = profiles.valid(TrainingBudget, order.training)
    if order.bits is not None:
        found["bits"] = quantize.Scheme(order.bits).bits
    for name, value in found.items():
        object.__setattr__(order, name, value)


def by_plan(study: Study, method: str, how_many: HowMany, heal: str = "", bits: int | None = None) -> ByMethod:
    """Chooses the plan; arguments as of `ordered`, with a method in the place of a measure.

    Raises:
        StudyError: as `by_method.planned`; a recipe that the profile lacks; bits that cannot be quantized to.
    """
    return ByMethod(method, by_method.planned(study, method, how_many), *_recipe(study, heal), bits)


def ordered(study: Study, by: str, how_many: HowMany, heal: str = "", bits: int | None = None) -> Order:
    """Chooses the blocks.

    Args:
        study: the dense model's.
        by: an importance measure.
        how_many: how many blocks go.
        heal: method of one of the profile's recipes ("lora", "qlora", "partial", "full"), of which the first counts;
            "" for none.
        bits: bits to quantize to; None for none.

    Raises:
        StudyError: as `choosing.chosen`; a recipe that the profile lacks; bits that cannot be quantized to.
    """
    recipe, training = _recipe(study, heal)
    if not isinstance(how_many, HowMany):
        raise StudyError(f"{shown(how_many)} is no HowMany: give HowMany(remove=...), (ratio=...) or (max_loss=...)")
    check(study, Order(by, (), recipe, training, bits))
    return Order(by, choosing.chosen(study, by, how_many), recipe, training, bits)


def _recipe(study: Study, heal: str) -> tuple[Recipe | None, TrainingBudget | None]:
    """The first of the profile's recipes of a method, and on how much text it trains; None for ""."""
    if not heal:
        return None, None
    budget = study.profile.budget(healing.Budget)
    of_method = {one.method: one for one in reversed(budget.recipes)}  # the first of each method
    if heal not in of_method:
        raise StudyError(
            f"the {study.profile.name} profile has no recipe {heal!r}: choose one of {', '.join(of_method)}, or "
            "give a profile with another in [budgets.healing] recipes"
        )
    return of_method[heal], budget.training


def check(study: Study, order: Order | ByMethod) -> None:
    """Refuses at once, by the model's config and the texts, what would else be refused when much is done.

    Raises:
        StudyError: the base's checkpoint cannot be written again; what is left cannot be trained or quantized so; too
            little text for the method or the training.
    """
    surgery.check_writable(checkpoints.quantization_method(study.identity))
    if order.heal is not None and order.training is not None:
        work = study.healed((), order.heal, order.training, study.profile.seed).healing
        assert work is not None, "a healed study's"
        training_recipes.check_text(work)
    if isinstance(order, Order):
        surgery.check_blocks_can_go(checkpoints.config(study.identity), study.identity.name)
    try:
        if isinstance(order, ByMethod) or order.heal is not None:
            outline = _outline(study, order)
            if order.heal is not None:
                training_recipes.check_shapes(outline, order.heal)
        if order.bits is not None:
            if isinstance(order, ByMethod):
                quantize.check_shapes(_outline(study, order))
            else:
                quantize.check(study.identity)
    except StudyError as error:
        if isinstance(order, Order):
            raise
        title = methods.find(order.method).card.title
        raise type(error)(f"{title} on {study.identity.name}: {error}") from error


def _outline(study: Study, order: Order | ByMethod) -> Any:
    """What is to be made, without weights; of an `Order` the whole model, with as many blocks as before."""
    text = study.calibration  # read out here: what is made in there has no storage
    with checkpoints.shapes(study.identity) as shapes:
        if isinstance(order, Order):
            return shapes
        return methods.find(order.method).outline(shapes, text, order.plan)


@dataclass(frozen=True, eq=False)
class Made:
    """A pruned model before it is written.

    Attributes:
        study: that of the model in memory.
        kept: what runs of it: all of its blocks, or those that are kept where nothing but blocks is removed.
        removed: the blocks that are still to be removed when it is written, in its own numbering.
    """

    study: Study
    kept: Variant
    removed: tuple[int, ...]


def made(study: Study, order: Order | ByMethod) -> Made:
    """The pruned model.

    Weights are quantized before blocks are removed, so that one quantization serves all removals; it is no worse here
    (notebook 07). What was trained, or made by a method, is quantized afterwards.

    Raises:
        StudyError: as `check`, before anything is done; as the method says.
    """
    check(study, order)
    if isinstance(order, ByMethod):
        return _made_by_method(study, order)
    kept = variants.without(study.num_blocks, order.removed)
    if order.heal is None:
        whole = study if order.bits is None else study.quantized(quantize.Scheme(order.bits))
        return Made(whole, kept, order.removed)
    assert order.training is not None, "a recipe comes with its budget"
    healed = study.healed(order.removed, order.heal, order.training, study.profile.seed)
    if order.bits is not None:
        healed = healed.written().quantized(quantize.Scheme(order.bits))
    return Made(healed, healed.dense, ())


def _made_by_method(study: Study, order: ByMethod) -> Made:
    found = study.made(order.method, order.plan)
    found.making_seconds()  # makes it, and counts as work
    if order.heal is not None:
        assert order.training is not None, "a recipe comes with its budget"
        found = found.written().healed((), order.heal, order.training, study.profile.seed)
    if order.bits is not None:
        found = found.written().quantized(quantize.Scheme(order.bits))
    return Made(found, found.dense, ())


def measured(study: Study, order: Order | ByMethod) -> tuple[Made, dict[str, Any]]:
    """The pruned model, and `effects.costs` of it."""
    one = made(study, order)
    if one.study.healing is not None:
        one.study.training()
    pruned = _of(one.study.sweep([one.kept]), one.kept)
    dense = _of(study.sweep([study.dense]), study.dense)
    return one, effects.costs(study, dense, pruned)


def _of(results: dict[str, dict[Variant, Result]], variant: Variant) -> dict[str, Result]:
    return {name: found[variant] for name, found in results.items()}


def prune(study: Study, order: Order | ByMethod, folder: Path) -> dict[str, Any]:
    """Makes, measures and writes a pruned checkpoint.

    Args:
        study: the dense model's.
        order: what is to be made.
        folder: the folder to write; it must not exist.

    Returns:
        The content of its `pruning.json`.

    Raises:
        StudyError: the folder exists or cannot be written; as `made`, `Study.healed`, `Study.quantized`,
            `surgery.export`.
    """
    if not isinstance(study, Study):
        raise StudyError(f"{shown(study)} is no Study: open one with Study.open")
    if not isinstance(order, Order | ByMethod):
        raise StudyError(f"{shown(order)} is no Order: give Order(by, removed), or ByMethod(method, plan)")
    folder = cache.new_path(folder)
    one, costs = measured(study, order)
    found = record(study, order, costs)
    files = {RECORD: json.dumps(_json(found), indent=1) + "\n", "README.md": card.text(found)}
    surgery.export(one.study.stack.model, study.tokenizer, one.removed, folder, files)
    return found


def record(study: Study, order: Order | ByMethod, costs: dict[str, Any]) -> dict[str, Any]:
    """What `pruning.json` says: all that the checkpoint follows from, and what it costs."""
    if isinstance(order, Order):
        text = study.calibration
        what: dict[str, Any] = {"measure": order.by, "removed_blocks": list(order.removed)}
    else:
        text, plan = methods.find(order.method).reads(study.calibration), order.plan
        what = {"method": order.method, "plan": dict(plan.settings)}
        what |= {"removed_share": plan.removed, "removed_share_of_blocks": plan.removed_of_blocks}
    return {
        "layer_redundancy": __version__,
        "base_model": study.identity.name,
        "base_revision": study.identity.revision,
        "base_fingerprint": study.identity.fingerprint,
        "base_licence": card.licence(study),
        "num_blocks": study.num_blocks,
        **what,
        "healed": None if order.heal is None else asdict(order.heal),
        "training": None if order.training is None else asdict(order.training),
        "quantized_to_bits": order.bits,
        "needs_import": _needs_import(study, order),
        "calibration": _text(text),
        "evaluation": _text(study.evaluation),
        "cost": costs,
        "profile": asdict(study.profile),
    }


def _needs_import(study: Study, order: Order | ByMethod) -> list[str]:
    """Modules of ours that are to be imported before transformers loads the checkpoint or its tokenizer."""
    outline = _outline(study, order)
    written = architectures.find(outline.config).exported(outline)
    return sorted({surgery.own_module(one) for one in (written, study.tokenizer)} - {""})


def _json(value: Any) -> Any:
    """A record as JSON has it: the ends of an interval that a single block of text or item does not give are null."""
    if isinstance(value, dict):
        return {name: _json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_json(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(blocks: TokenBlocks) -> dict[str, Any]:
    count, length = blocks.input_ids.shape
    return {
        "corpus": blocks.corpus,
        "split": blocks.split,
        "blocks": count,
        "tokens_a_block": length,
        "fingerprint": blocks.fingerprint,
    }


def read(file: Path) -> dict[str, Any]:
    """The content of a `pruning.json`, or of the one in a folder.

    Raises:
        StudyError: there is none, or it lacks what a checkpoint follows from.
    """
    try:
        file = file / RECORD if file.is_dir() else file
        if file.exists() and not file.is_file():
            raise StudyError(f"{cache.shown(file)} is no {RECORD}: give a folder that `layer-redundancy prune` wrote")
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise StudyError(f"cannot read {cache.shown(file)}: {error.strerror or error}") from error
    except ValueError as error:
        raise StudyError(
            f"{file} is no {RECORD} ({error}): give a folder that `layer-redundancy prune` wrote"
        ) from error
    nothing = type(None)
    kinds: dict[str, Any] = {"base_fingerprint": str, "profile": dict}
    kinds |= {"healed": dict | nothing, "training": dict | nothing, "quantized_to_bits": int | nothing}
    if isinstance(found, dict) and "method" in found:
        kinds |= {"method": str, "plan": dict, "calibration": dict}
    else:
        kinds |= {"measure": str, "removed_blocks": list}
    if not isinstance(found, dict) or (missing := set(kinds) - set(found)):
        lacking = ", ".join(sorted(missing)) if isinstance(found, dict) else "everything"
        raise StudyError(f"{file} lacks {lacking}: give a folder that `layer-redundancy prune` wrote")
    wrong = [name for name, kind in kinds.items() if not isinstance(found[name], kind)]
    if wrong or not all(isinstance(block, int) for block in found.get("removed_blocks", [])):
        raise StudyError(f"{file}: {(wrong or ['removed_blocks'])[0]} is none that `layer-redundancy prune` wrote")
    if (found["healed"] is None) != (found["training"] is None):
        raise StudyError(f"{file}: healed and training go together: give both, or null for both")
    return found


@flags.checked
def profile_of(found: dict[str, Any], where: str, trust_remote_code: bool = False) -> Profile:
    """The profile that a `pruning.json` was made with. Raises StudyError where it is none.

    Leave to run code that comes with a model or a task is the caller's to give; the file's own counts for nothing.
    """
    profile = profiles.from_table(Profile, found["profile"], profiles.Place(where, "profile"))
    return replace(profile, trust_remote_code=trust_remote_code, trust_tasks=trust_remote_code)


@flags.checked
def again(found: dict[str, Any], where: str, trust_remote_code: bool = False) -> tuple[Study, Order | ByMethod]:
    """The study and the order that a `pruning.json` was made from.

    Args:
        found: the content of the file.
        where: the file, for messages.
        trust_remote_code: run code that comes with the model, or with a task of the user's own.

    Raises:
        StudyError: the base model is not there any more, or is another one; a method's text or plan is another one.
    """
    study = Study.of(profiles.on_users_device(profile_of(found, where, trust_remote_code)))
    if study.identity.fingerprint != found["base_fingerprint"]:
        raise StudyError(f"{study.identity.name} is not the model that {where} was made from: its weights are others")
    recipe, training = found["healed"], found["training"]
    afterwards = (
        recipe and profiles.from_table(Recipe, recipe, profiles.Place(where, "healed")),
        training and profiles.from_table(TrainingBudget, training, profiles.Place(where, "training")),
        found["quantized_to_bits"],
    )
    if "method" not in found:
        return study, Order(found["measure"], tuple(found["removed_blocks"]), *afterwards)
    method = found["method"]
    if methods.find(method).reads(study.calibration).fingerprint != found["calibration"].get("fingerprint"):
        raise StudyError(
            f"{methods.find(method).card.title} would read another text than {where} was made from: give its corpus as "
            "it was"
        )
    return study, ByMethod(method, by_method.same_plan(study, method, found["plan"], where), *afterwards)
