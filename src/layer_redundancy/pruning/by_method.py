"""A model made smaller by one of the methods of `methods.registry`: which of the sizes that it reaches is meant."""

from collections.abc import Mapping
from typing import Any

from layer_redundancy.core.arguments import shown
from layer_redundancy.core.errors import NotApplicable, StudyError
from layer_redundancy.methods import registry
from layer_redundancy.methods.method import Plan, nearest
from layer_redundancy.models import checkpoints
from layer_redundancy.pruning.how_many import HowMany
from layer_redundancy.study import Study


def planned(study: Study, method: str, how_many: HowMany) -> Plan:
    """The plan of a method that removes as much as is asked for.

    Args:
        study: the dense model's; no weights are read.
        method: a method of `methods.registry`.
        how_many: `ratio`, a share of all weights, which is reached to within `method.NEAR`; or `remove`, a number of
            blocks.

    Raises:
        NotApplicable: the method cannot be used on such a model, or its weights are quantized.
        StudyError: unknown method; a size that it does not reach.
    """
    plans, title = _plans(study, method), registry.find(method).card.title
    smaller = [plan for plan in plans if plan.removed > 0]
    if not smaller:
        raise StudyError(f"{title} makes {study.identity.name} no smaller at any of its sizes: choose another method")
    if how_many.ratio is not None:
        return nearest(smaller, how_many.ratio, title)
    if how_many.remove is None:
        raise StudyError("how much a method removes is said by --ratio or --remove, not by --max-loss")
    of_blocks = {plan.blocks: plan for plan in smaller if plan.blocks}
    if not of_blocks:
        raise StudyError(f"{title} removes no whole blocks: give --ratio, the share of all weights that go")
    if how_many.remove not in of_blocks:
        raise StudyError(f"{title} does not remove {how_many.remove} blocks of this model: give 1 to {max(of_blocks)}")
    return of_blocks[how_many.remove]


def _plans(study: Study, method: str) -> list[Plan]:
    how = checkpoints.quantization_method(study.identity)
    if how is not None:
        raise NotApplicable(
            f"{study.identity.name} has quantized weights ({how}), which {registry.find(method).card.title} does not "
            "take: give its full-precision model"
        )
    return study.plans(method)


def same_plan(study: Study, method: str, settings: Mapping[str, Any], where: str) -> Plan:
    """The plan of these settings.

    Args:
        study: the dense model's.
        method: a method of `methods.registry`.
        settings: a plan's.
        where: the file that they are from, for messages.

    Raises:
        StudyError: the method has none of these settings for this model; as `planned`.
    """
    for plan in _plans(study, method):
        if dict(plan.settings) == dict(settings):
            return plan
    raise StudyError(
        f"{where}: {registry.find(method).card.title} has no plan with the settings {shown(dict(settings))} for this "
        "model: was it written by another version?"
    )
