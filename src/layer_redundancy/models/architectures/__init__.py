"""The model families: one module each, found by itself. To add a family, add a module that sets ARCHITECTURE."""

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from typing import Any

from layer_redundancy.models.architectures.architecture import Architecture, Attention, num_blocks

__all__ = ["Architecture", "Attention", "find", "known", "num_blocks", "of_file", "register"]


@cache
def known() -> tuple[Architecture, ...]:
    """Every module's ARCHITECTURE, by the modules' names."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__, f"{__name__}."))
    modules = [importlib.import_module(name) for name in names]
    return tuple(module.ARCHITECTURE for module in modules if hasattr(module, "ARCHITECTURE"))


def find(config: Any) -> Architecture:
    """The family that a model's config belongs to; for one that has no file here, what families have in common."""
    kind = getattr(config, "model_type", None)
    return next((architecture for architecture in known() if kind in architecture.model_types), Architecture())


def of_file(file: Path) -> Architecture | None:
    """The family whose authors publish checkpoints as files like this one; None where it is no such file."""
    if not file.is_file():
        return None
    return next((architecture for architecture in known() if file.suffix in architecture.file_suffixes), None)


def register() -> None:
    """Makes transformers know the families of this study's own."""
    for architecture in known():
        architecture.register()
