"""Which layers of this language model can go? A reproducible study of layer redundancy.

What stands here is imported when it is first used: libraries of models take seconds, and not all need them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layer_redundancy.config.profiles import Recipe, TrainingBudget
    from layer_redundancy.core import variants
    from layer_redundancy.core.errors import StudyError
    from layer_redundancy.models.quantize import Scheme
    from layer_redundancy.models.surgery import export
    from layer_redundancy.pruning.checkpoint import ByMethod, Order, prune
    from layer_redundancy.study import Study

__version__ = "0.1.0"
__all__ = [
    "ByMethod",
    "Order",
    "Recipe",
    "Scheme",
    "Study",
    "StudyError",
    "TrainingBudget",
    "__version__",
    "export",
    "prune",
    "variants",
]

# name -> where it is: a module, or a module's attribute
_PLACES = {
    "ByMethod": "pruning.checkpoint:ByMethod",
    "Order": "pruning.checkpoint:Order",
    "Recipe": "config.profiles:Recipe",
    "Scheme": "models.quantize:Scheme",
    "Study": "study:Study",
    "StudyError": "core.errors:StudyError",
    "TrainingBudget": "config.profiles:TrainingBudget",
    "export": "models.surgery:export",
    "prune": "pruning.checkpoint:prune",
    "variants": "core.variants",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    found = importlib.import_module(f"{__name__}.{module}")
    globals()[name] = found = getattr(found, attribute) if attribute else found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
