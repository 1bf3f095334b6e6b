"""Which model a profile means, and what is known of a checkpoint without its weights in memory."""

import copy
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from layer_redundancy.config.profiles import EMBEDDED, EMBEDDED_MODEL, Profile
from layer_redundancy.core import doors, flags
from layer_redundancy.core.errors import NotApplicable, StudyError
from layer_redundancy.data import hub
from layer_redundancy.models import architectures, embedded, packing, weight_files
from layer_redundancy.models.stack import decoder_stack, heads_of

_PLACES = ("in data/models", "local file", "local folder")  # of folders that are known by the hash of their files
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ModelIdentity:
    """A model named exactly, without its weights in memory.

    Attributes:
        name: the model's name, as the user gave it.
        source: what transformers loads: a folder, or the hub id.
        revision: commit on the hub, or the hash that stands for it; printed in captions.
        fingerprint: sha256 over what decides the weights and their dtype; the store's key.
        num_hidden_layers: number of blocks, from the config.
        max_length: tokens the model was made for, from the config; None where there is no limit (Mamba).
        trust_remote_code: whether code that comes with the model may run, as the user chose.
        num_attention_heads: number of query heads of a block, from the config; 0 for a model without attention.
        num_key_value_heads: keys and values that these share; as many as query heads where none are shared.
        config: the config itself, read once; None for one that is still to be read.
    """

    name: str
    source: str
    revision: str
    fingerprint: str
    num_hidden_layers: int
    max_length: int | None = None
    trust_remote_code: bool = False
    num_attention_heads: int = 0
    num_key_value_heads: int = 0
    config: Any = field(default=None, repr=False, compare=False)

    @property
    def hub_revision(self) -> str | None:
        """The revision to ask the hub for; None for a folder on this machine."""
        return _hub_revision(self.source, self.revision)


class _Weights(NamedTuple):
    """Where weights lie: source and revision as in ModelIdentity, and the text that decides what they are."""

    source: str
    revision: str
    content: str


def identify(profile: Profile) -> ModelIdentity:
    """Finds out which weights a profile means, downloading no more than a config.

    Raises:
        StudyError: the model does not exist, is gated, or cannot be reached; or its folder is not whole, or holds
            something else than a model that is loaded as it is.
    """
    if profile.dtype not in DTYPES:
        raise StudyError(f"unknown dtype {profile.dtype!r}: choose one of {', '.join(DTYPES)}")
    weights = _weights(profile)
    revision = _hub_revision(weights.source, weights.revision)
    config = _config(weights.source, revision, profile.trust_remote_code)
    identity = identity_of(config, profile, *weights)
    names: Iterable[str] = ()
    with suppress(StudyError):  # a file that is damaged is told when it is loaded
        names = tensors(identity, pickled=False)
    _check_count(identity, names)
    return identity


def _check_count(identity: ModelIdentity, found: Iterable[str]) -> None:
    """Raises StudyError where a config says many times the blocks that its weights are of.

    To build them would take hours; a few that are too many are told when they are loaded. There are families whose
    weights have one number for two or three blocks.
    """
    numbers = [int(number) for name in found for number in re.findall(r"(?:^|\.)(\d+)(?=\.)", name)]
    if numbers and identity.num_hidden_layers > 10 * (max(numbers) + 1):
        raise StudyError(
            f"{identity.name}: its config.json says {identity.num_hidden_layers} blocks, its weights are numbered 0 to "
            f"{max(numbers)}: give a checkpoint that is whole, or set num_hidden_layers to what it has"
        )


def identity_of(config: Any, profile: Profile, source: str, revision: str, content: str) -> ModelIdentity:
    """A model's identity, from its config.

    Args:
        config: transformers' config.
        profile: names the model, its dtype, and whether its own code may run.
        source: folder or hub id.
        revision: the revision for captions; a commit on the hub.
        content: text that decides the weights.

    Raises:
        StudyError: the config is that of no decoder.
    """
    text = config.get_text_config()
    layers = architectures.num_blocks(config)
    if not layers:
        raise StudyError(f"model {profile.model!r} ({config.model_type}) has no num_hidden_layers: not a decoder stack")
    if not isinstance(layers, int) or layers < 1:
        raise StudyError(f"model {profile.model!r}: num_hidden_layers must be a whole number from 1, not {layers!r}")
    _check_rotary(text, profile.model)
    heads = getattr(text, "num_attention_heads", None) or 0
    return ModelIdentity(
        name=profile.model,
        source=source,
        revision=revision,
        # Not the folder's name: the same weights elsewhere are the same model.
        fingerprint=hashlib.sha256(json.dumps([content, profile.dtype]).encode()).hexdigest(),
        num_hidden_layers=layers,
        # RWKV-4 calls its context length so: its CUDA kernel takes no more, though the recurrence has no end.
        max_length=getattr(text, "max_position_embeddings", None),
        trust_remote_code=profile.trust_remote_code,
        num_attention_heads=heads,
        num_key_value_heads=_key_value_heads(text) or heads,
        config=config,
    )


def _check_rotary(text: Any, name: str) -> None:
    """Raises StudyError for rotary positions scaled by what makes no sense, of which transformers only warns."""
    given = getattr(text, "rope_parameters", None) or {}
    for one in (given, *given.values()):  # of all blocks, or of each kind of them
        factor = one.get("factor") if isinstance(one, dict) else None
        if isinstance(factor, int | float) and factor < 1:
            raise StudyError(f"model {name!r}: the factor of its rope_parameters must be at least 1, not {factor}")


def _key_value_heads(text: Any) -> int | None:
    """Keys and values of a block, from its language model's config; None where that does not say."""
    # Falcon's newer form has groups, whatever this says.
    if getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False):
        return 1
    return getattr(text, "num_key_value_heads", None) or getattr(text, "num_kv_heads", None)


def _weights(profile: Profile) -> _Weights:
    """The weights of the embedded models, of a folder, of a file as its authors publish it, or of the hub.

    Raises:
        StudyError: there are none, or a revision is asked for of what is not on the hub.
    """
    model, path = profile.model, _on_disk(profile.model)
    publisher = None if path is None else architectures.of_file(path)
    if path is None and model not in EMBEDDED:
        _check_hub_id(model)
        commit = _hub_commit(model, profile.revision)
        return _Weights(model, commit, f"{model}@{commit}")
    if profile.revision:
        raise StudyError(f"model {model!r} is not on the hub: it has no revision {profile.revision!r}")
    if path is None and (module := embedded.MODELS[model].module):
        content = f"{module.GGUF_SHA256} converted by rules {module.CONVERSION_VERSION}"
        return _Weights(str(module.folder()), module.revision(), content)
    if path is None:
        folder, place = embedded.folder(model), _PLACES[0]
    elif publisher:
        folder, place = publisher.folder(path), _PLACES[1]
    else:
        folder, place = path.resolve(), _PLACES[2]
    with hub_errors(model):  # a folder that may not be read
        content = _folder_hash(folder)
    return _Weights(str(folder), f"{place}, sha256 {content[:8]}", content)


def _on_disk(model: str) -> Path | None:
    """The folder or file of that name; None where there is none, also for names that no file system takes.

    Raises:
        StudyError: a file that is no checkpoint by itself.
    """
    if model in EMBEDDED:
        return None
    try:
        path = Path(model).expanduser()
        if path.is_dir() or architectures.of_file(path):
            return path
        is_file = path.is_file()
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, the home folder of nobody
        return None
    if is_file:
        raise StudyError(f"model {model!r} is a file: give the folder of a checkpoint, with its config.json")
    return None


def _check_hub_id(model: str) -> None:
    """Raises StudyError for a name that means a folder which is not there, or can be the id of nothing on a hub."""
    if "://" in model:
        raise StudyError(f"model {model!r} is an address: give the id alone, such as owner/name")
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise StudyError(f"model {model!r}: no such folder (and an id of the hub is owner/name)")
    if not model.strip():
        raise StudyError(f"model {model!r} is blank: give a folder or an id of the hub, or leave it out")


def _hub_revision(source: str, revision: str) -> str | None:
    return None if Path(source).is_dir() else revision


def _folder_hash(folder: Path) -> str:
    """sha256 over the names and bytes of a checkpoint's config and weights.

    Raises:
        StudyError: it is not whole, or its weights are not used as they are.
    """
    if (folder / weight_files.ADAPTER_CONFIG).is_file():
        # transformers would load the model that the adapter names, and put the adapter into it.
        raise StudyError(
            f"{folder} holds an adapter ({weight_files.ADAPTER_CONFIG}): merge it into its model (merge_and_unload of "
            "peft), save that and give its folder; if the weights here are merged already, move that file away"
        )
    settings = weight_files.settings(folder / weight_files.CONFIG)
    _check_settings(settings, str(folder))
    if (written := folder / "generation_config.json").is_file():
        weight_files.settings(written)  # transformers would go on without one that is damaged
    names = weight_files.weights(folder, settings.get("transformers_weights"))
    weight_files.check_pulled(folder / name for name in names)
    return weight_files.fingerprint(folder, names)


def check_unchanged(identity: ModelIdentity) -> None:
    """Raises StudyError where a folder has changed since it was identified, or is gone: results would go by its old
    name, and a hub would be asked for it."""
    place, _, start = identity.revision.partition(", sha256 ")
    if place not in _PLACES:
        return
    folder = Path(identity.source)
    if not folder.is_dir():
        raise StudyError(f"{identity.name}: folder {folder} is gone since the study was opened: put it back")
    if not _folder_hash(folder).startswith(start):
        raise StudyError(f"{identity.name}: its files have changed since the study was opened: open it anew")


def _check_settings(settings: dict[str, Any], name: str) -> None:
    """Raises StudyError for weights that are quantized in a way that transformers would pass over, or cannot know."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    found = settings.get("quantization_config")
    if found is None:
        return
    if not isinstance(found, dict):
        raise StudyError(f"{name}: quantization_config in its config.json must be a table, not {found!r}")
    if found.get("load_in_8bit") or found.get("load_in_4bit"):
        return  # bitsandbytes, by whatever name
    method = found.get("quant_method")
    if not isinstance(method, str) or method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        raise StudyError(
            f"{name}: its weights are quantized by quant_method {method!r}, which transformers does not know: give a "
            f"checkpoint that is quantized by one of {', '.join(sorted(AUTO_QUANTIZATION_CONFIG_MAPPING))}, or by none"
        )


def _hub_commit(model: str, revision: str | None) -> str:
    """The commit a hub revision stands for, from the hub or from the local cache when the hub is out of reach."""
    from huggingface_hub import hf_hub_download

    with hub_errors(model):
        config = Path(hf_hub_download(model, weight_files.CONFIG, revision=revision))
        _check_settings(weight_files.settings(config), model)
    return config.parent.name  # .../snapshots/<commit>/config.json


def config(identity: ModelIdentity) -> Any:
    """A copy of the model's config. Raises StudyError where it cannot be read."""
    if identity.config is not None:
        return copy.deepcopy(identity.config)
    return _config(identity.source, identity.hub_revision, identity.trust_remote_code)


def _config(source: str, revision: str | None, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    architectures.register()
    with hub_errors(source, trust_remote_code=trust_remote_code):
        return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)


@contextmanager
def hub_errors(name: str, trust_remote_code: bool = True) -> Iterator[None]:
    """Turns whatever the hub or transformers throws while `name` is fetched into one line that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError as e:
        raise StudyError(f"{name} does not fit in this device's memory: use a smaller model or dtype") from e
    except StudyError:
        raise
    except Exception as e:  # a config or weights that make no sense raise almost anything
        instead = f"use {doors.setting('model', EMBEDDED_MODEL)}, which needs no hub"
        if (line := hub.one_line(e, name, instead)) is not None:
            raise StudyError(line) from e
        text = " ".join(str(e).split())
        if config := re.search(
            r"Unrecognized configuration class <class '[\w.]*?(\w+)'> for .*AutoModelForCausalLM", text
        ):
            raise StudyError(
                f"{name} cannot be loaded: transformers has no causal language model of text alone for a {config[1]}. "
                "If a language model is a part of it, save that with its head as a checkpoint of its own, and give its "
                "folder"
            ) from e
        if trouble := weight_files.pickle_trouble(e):
            raise StudyError(f"{name}: a file of its weights {trouble}") from e
        if kind := re.search(r"model type `(.*?)` but Transformers does not recognize", text):
            raise StudyError(
                f"{name} cannot be loaded: transformers {version('transformers')} knows no model_type {kind[1]!r}: is "
                "it misspelt in its config.json, or newer than that?"
            ) from e
        if isinstance(e, OSError) and e.errno is not None:
            raise StudyError(f"{name} cannot be read: {text}") from e
        if not trust_remote_code and "trust_remote_code" in text:
            leave = doors.setting("trust_remote_code", True)
            raise StudyError(f"{name} ships its own code: read it, then give {leave} if you trust it") from e
        if isinstance(e, LookupError | TypeError | AttributeError | AssertionError):  # meant for no user
            text = f"its config.json or its files are not as transformers takes them ({type(e).__name__}: {text[:200]})"
        raise StudyError(f"{name} cannot be loaded: {text[:300]}") from e


def block_weights(identity: ModelIdentity) -> tuple[int, int]:
    """Weights of a residual block (the mean over blocks), and those that go with one query head of it.

    A head's are its rows of the query projection and its columns of the output projection, and its keys' and values'
    projections where it shares them with no other head.

    Raises:
        NotApplicable: the model has no attention heads, or not in all of its blocks.
        StudyError: the model cannot be taken apart.
    """
    if not identity.num_attention_heads:
        raise NotApplicable(f"{identity.name} has no attention heads")
    with shapes(identity) as model:
        stack = decoder_stack(model)
        try:
            heads = {heads_of(stack, block) for block in range(len(stack))}
        except StudyError as error:
            raise NotApplicable(f"{identity.name}: heads are not compared with blocks, since {error}") from error
    if len(heads) > 1:
        raise NotApplicable(f"{identity.name}: heads are not compared with blocks, since its blocks' heads differ")
    sizes = [sum(p.numel() for p in block.parameters()) for block in stack.blocks]
    own = 4 if identity.num_key_value_heads == identity.num_attention_heads else 2
    ((_, size),) = heads
    return round(sum(sizes) / len(sizes)), own * size * model.config.get_text_config().hidden_size


def parameter_sizes(identity: ModelIdentity) -> dict[str, int]:
    """Weights of each parameter by its name, tied ones once; as if the model were not quantized."""
    with shapes(identity) as model:
        return {name: parameter.numel() for name, parameter in model.named_parameters()}


@contextmanager
def shapes(identity: ModelIdentity) -> Iterator[nn.Module]:
    """The model without its weights (torch's meta device), for what its modules are like.

    Raises:
        StudyError: it cannot be built.
    """
    with (
        hub_errors(identity.name, identity.trust_remote_code),
        shapes_of(config(identity), identity.trust_remote_code) as model,
    ):
        yield model


@contextmanager
def shapes_of(config: Any, trust_remote_code: bool = False) -> Iterator[nn.Module]:
    """A model of this config without weights."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        yield AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def blocks_path(model: nn.Module) -> str:
    """Path from a model to its list of residual blocks, as its weights' names begin with it."""
    blocks = decoder_stack(model).blocks
    return next(name for name, module in model.named_modules() if module is blocks)


def block_of(name: str, path: str) -> int | None:
    """Number of the residual block that a weight belongs to; None for another one, also one of a vision tower's blocks.

    Args:
        name: the weight's name in a model or a file. A file may leave out the path's first parts (those of a base
            model), or have them in another order.
        path: what `blocks_path` gives.
    """
    found = re.match(r"(.*?)\.(\d+)\.", name)
    if not found:
        return None
    parts, wanted = found[1].split("."), path.split(".")
    return int(found[2]) if sorted(parts) == sorted(wanted) or parts == wanted[-len(parts) :] else None


@flags.checked
def tensors(identity: ModelIdentity, pickled: bool = True) -> dict[str, weight_files.Header]:
    """All tensors of a checkpoint that is on this machine, without their values; none where it is not.

    Args:
        identity: the model's identity.
        pickled: also those in pickles, which are read for it.

    Raises:
        StudyError: a file is cut off or damaged, or a pickle that could run a program.
    """
    found: dict[str, weight_files.Header] = {}
    for file in _files(identity):
        if pickled or file.suffix == ".safetensors":
            found |= weight_files.tensors(file)
    return found


def is_zero(identity: ModelIdentity, name: str) -> bool:
    """Whether a tensor in a checkpoint's files is there and zero."""
    for file in _files(identity):
        if name in weight_files.tensors(file):
            return not weight_files.tensor(file, name).any()
    return False


def _files(identity: ModelIdentity) -> list[Path]:
    """The files that a checkpoint's weights are loaded from; none where not all of them are on this machine."""
    from transformers.utils import cached_file

    folder = Path(identity.source)
    if not folder.is_dir():
        options = {"local_files_only": True, "_raise_exceptions_for_missing_entries": False}
        options["_raise_exceptions_for_connection_errors"] = False
        here = cached_file(identity.source, weight_files.CONFIG, revision=identity.hub_revision, **options)
        if here is None:
            return []
        folder = Path(here).parent
        try:
            return [folder / name for name in weight_files.weights(folder)]
        except StudyError:  # they are downloaded when they are loaded
            return []
    explicit = getattr(config(identity), "transformers_weights", None)
    return [folder / name for name in weight_files.weights(folder, explicit)]


def quantization_method(identity: ModelIdentity) -> str | None:
    """How the checkpoint's weights are quantized ("compressed-tensors", "gptq", ...), from its config; None if not."""
    settings = getattr(config(identity), "quantization_config", None)
    return None if settings is None else str(dict(settings).get("quant_method") or "unknown")


def check_library(identity: ModelIdentity) -> None:
    """Raises StudyError if a ready quantized checkpoint takes a library that is not there."""
    quantization_options(identity)


def local_folder(identity: ModelIdentity) -> Path:
    """Where the checkpoint's safetensors files lie, fetched from the hub if they are not in its cache."""
    if Path(identity.source).is_dir():
        return Path(identity.source)
    from huggingface_hub import snapshot_download

    with hub_errors(identity.name):
        found = snapshot_download(identity.source, revision=identity.revision, allow_patterns=["*.safetensors"])
    return Path(found)


# What transformers needs to load a checkpoint of ready quantized weights and we do not install, and how to get it.
_QUANTIZATION_PACKAGES = {"gptq": (("gptqmodel", "optimum"), "run `make gptq`")}


def quantization_options(identity: ModelIdentity) -> dict[str, Any]:
    """Options of `from_pretrained` for the way in which the weights are quantized.

    Raises:
        StudyError: it takes a library that is not there.
    """
    method = quantization_method(identity)
    needed, remedy = _QUANTIZATION_PACKAGES.get(method or "", ((), ""))
    if missing := [package for package in needed if find_spec(package) is None]:
        raise StudyError(
            f"{identity.name} holds {str(method).upper()} weights, which take the package{'s' * (len(missing) > 1)} "
            f"{' and '.join(missing)}: {remedy}"
        )
    return packing.unpacked() if method == "compressed-tensors" else {}
