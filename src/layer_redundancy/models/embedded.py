"""The models that need no hub, by the names that profiles have for them: where each comes from, under which licence."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from layer_redundancy.config import profiles
from layer_redundancy.core import paths
from layer_redundancy.core.errors import StudyError
from layer_redundancy.models import gemma3, smollm2

MIT = "MIT"  # of the models that were trained for this study, as of the study


@dataclass(frozen=True)
class Embedded:
    """A model that comes with the study, or with packages.

    Attributes:
        module: fetches and converts what comes with packages; None for a model that comes with the study.
        licence: its licence, as its publisher names it.
        hub_id: the same model on the hub; "" where it is not there.
        form: what was done to its weights, for captions that set it beside others.
        terms: what is to be known before it is fetched; "" for a licence that asks nothing of who uses it.
        megabytes: what is downloaded (10^6 bytes).
        converted_megabytes: what the converted copy takes on disk.
        shape: the config's fields that a plan needs before it is fetched; empty for a model that is there.
    """

    module: ModuleType | None = None
    licence: str = MIT
    hub_id: str = ""
    form: str = ""
    terms: str = ""
    megabytes: float = 0.0
    converted_megabytes: float = 0.0
    shape: Mapping[str, Any] = field(default_factory=dict)


MODELS = {
    profiles.EMBEDDED_MODEL: Embedded(
        module=smollm2,
        licence=smollm2.MODEL_LICENSE,
        hub_id=smollm2.HUB_ID,
        form="instruct, from 4-bit weights (Q4_1)",
        megabytes=smollm2.MEGABYTES,
        converted_megabytes=smollm2.CONVERTED_MEGABYTES,
    ),
    profiles.EMBEDDED_GEMMA: Embedded(
        module=gemma3,
        licence=gemma3.MODEL_LICENSE,
        hub_id=gemma3.HUB_ID,
        form="base, from weights of 4 to 8 bits (Q4_K_M)",
        terms=gemma3.TERMS,
        megabytes=gemma3.MEGABYTES,
        converted_megabytes=gemma3.CONVERTED_MEGABYTES,
        shape=gemma3.SHAPE,
    ),
} | {name: Embedded(form="trained here on 10 MB of text") for name in profiles.TRAINED_HERE}


def folder(name: str) -> Path:
    """The checkpoint folder of an embedded model, fetched and converted if it is not there.

    Raises:
        StudyError: it cannot be; or it has not been trained.
    """
    module = MODELS[name].module
    if module is not None:
        return module.folder()
    if not (paths.MODELS / name).is_dir():
        raise StudyError(f"{name} is not there: make {'twin' if name == profiles.EMBEDDED_TWIN else 'rwkv'}-train")
    return paths.MODELS / name


def is_here(name: str) -> bool:
    """Whether nothing would have to be fetched or converted."""
    module = MODELS[name].module
    return module is None or module.is_here()
