"""Weights of fewer bits: GPTQ and round-to-nearest by llm-compressor, as checkpoints that plain transformers loads.

A quantized model is a checkpoint folder like any other, so the rest of the study takes it as it takes every model. It
is made once for each model, settings and calibration text. `loading.load` unpacks its weights: numbers are those of the
quantized model, speed is that of the dense one, and what it occupies packed is read off its files.
"""

import copy
import importlib.metadata
import io
import json
import logging
import os
import re
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from layer_redundancy.config import profiles
from layer_redundancy.config.checks import at_least
from layer_redundancy.core import cache, devices, variants
from layer_redundancy.core.devices import halved
from layer_redundancy.core.errors import NotApplicable, StudyError
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.models import checkpoints, linear, loading, packing, provenance, surgery, weight_files
from layer_redundancy.models.checkpoints import ModelIdentity
from layer_redundancy.models.stack import decoder_stack

Method = Literal["gptq", "rtn"]
METHODS: dict[Method, str] = {"gptq": "GPTQ", "rtn": "round to nearest"}
BITS = (8, 4, 3)
GROUP_SIZES = (128, 64, 32, 16)  # tried in turn; 128 is that of the paper's checkpoint
# Of the processor, whatever the rest may use: sums in another order round otherwise, and GPTQ's choices, each of which
# decides on the next, then come out otherwise.
THREADS = 2
BATCH_SIZE = 8  # blocks of calibration text a forward; halved when memory runs out
RULES_VERSION = 1  # part of the copy's name: raise it when the same settings give another checkpoint


@dataclass(frozen=True)
class Scheme:
    """How the weights of the residual blocks are quantized: integers in groups along each row, activations as they are.

    Embedding, norms and head stay at 16 bits.

    Attributes:
        bits: 8, 4 or 3 a weight (W8A16, W4A16, W3A16).
        method: "gptq" (Frantar et al. 2023, arXiv 2210.17323): one column after the other, each one's error made up for
            by those that follow, weighed by calibration activations; "rtn": round to nearest, which reads no text.
        group_size: weights that share a scale; None for the largest of `GROUP_SIZES` that divides every width.
        symmetric: whether there are no zero points.

    Raises:
        StudyError: no such method, number of bits or size of groups.
    """

    bits: int = 4
    method: Method = "gptq"
    group_size: Annotated[int | None, at_least(1)] = None
    symmetric: bool = True

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ("bits", "group_size", "symmetric")}
        for name, value in profiles.checked(type(self), given, profiles.Place("Scheme", in_code=True)).items():
            object.__setattr__(self, name, value)
        if self.method not in list(METHODS):
            raise StudyError(f"unknown quantization method {self.method!r}: choose one of {', '.join(METHODS)}")
        if self.bits not in BITS:
            raise StudyError(f"cannot quantize to {self.bits} bits: choose one of {', '.join(map(str, BITS))}")

    def __str__(self) -> str:
        group = f", group {self.group_size}" if self.group_size else ""
        return f"{METHODS[self.method]}, {self.bits} bits{group}{'' if self.symmetric else ', asymmetric'}"


def widths(model: nn.Module) -> dict[str, int]:
    """Inputs of every linear layer in the residual blocks, by its name in the model.

    Raises:
        NotApplicable: the blocks hold matrices that are no `nn.Linear` (GPT-2, RWKV, Mamba), which the library would
            leave as they are.
    """
    inside = {module for block in decoder_stack(model).blocks for module in block.modules()}
    parts = [(name, module) for name, module in model.named_modules() if module in inside]
    found = {name: module.in_features for name, module in parts if isinstance(module, nn.Linear)}
    other = [
        f"{name} is a {type(module).__name__}"
        for name, module in parts
        if not isinstance(module, nn.Linear) and any(p.ndim > 1 for p in module.parameters(recurse=False))
    ]
    if other or not found:
        reason = other[0] if other else "its blocks hold no linear layer"
        raise NotApplicable(f"{type(model).__name__} cannot be quantized here ({reason}): only nn.Linear can")
    return found


def group_size(inputs: Mapping[str, int], asked: int | None = None) -> int:
    """The group size asked for, or the largest that divides all widths.

    Args:
        inputs: number of inputs of each linear layer, from `widths`.
        asked: the group size asked for; None to choose one of `GROUP_SIZES`.

    Raises:
        StudyError: it does not divide one of the widths.
        NotApplicable: none of ours does.
    """
    fits = [size for size in GROUP_SIZES if not any(width % size for width in inputs.values())]
    if asked is None:
        if not fits:
            raise NotApplicable(
                f"none of the group sizes {', '.join(map(str, GROUP_SIZES))} divides the widths of all linear layers "
                f"({', '.join(map(str, sorted(set(inputs.values()))))}): give group_size yourself"
            )
        return fits[0]
    bad = [(name, width) for name, width in inputs.items() if asked < 1 or width % asked]
    if bad:
        name, width = bad[0]
        choice = f"choose {' or '.join(map(str, fits))}" if fits else "choose a divisor of all widths"
        raise StudyError(f"group size {asked} does not divide the {width} inputs of {name}: {choice}")
    return asked


def check(identity: ModelIdentity, size: int | None = None) -> None:
    """Whether a model can be quantized at all, before anything is computed.

    Raises:
        NotApplicable: it is quantized already, transformers cannot load its packed weights again, or as `widths`.
        StudyError: as `group_size`.
    """
    method = checkpoints.quantization_method(identity)
    if method:
        raise NotApplicable(f"{identity.name} is quantized already ({method}): give its full-precision model")
    with checkpoints.shapes(identity) as model:
        check_shapes(model, size)


def check_shapes(model: nn.Module, size: int | None = None) -> None:
    """Whether a model of these shapes can be quantized; it has no weights, and nothing is left of it.

    Raises:
        NotApplicable, StudyError: as `check`.
    """
    inputs = widths(model)
    group_size(inputs, size)
    _check_packed(model, list(inputs))


def _check_packed(model: nn.Module, packed: Sequence[str]) -> None:
    """Raises NotApplicable for a model (of which nothing is left) whose class asks packed layers for their weight.

    When transformers loads a checkpoint, it has each class set up what the file does not hold, which a few do by layers
    that they name, whatever these are.
    """
    blocks = decoder_stack(model).blocks
    owner = [part for part in model.modules() if hasattr(part, "_init_weights") and blocks in {*part.modules()}][-1]
    for name in packed:
        del model.get_submodule(name).weight
    try:
        owner.apply(owner._init_weights)
    except AttributeError as error:
        raise NotApplicable(
            f"{type(model).__name__} cannot be quantized here: transformers cannot load its packed weights ({error})"
        ) from error


def quantized(
    identity: ModelIdentity,
    scheme: Scheme,
    calibration: TokenBlocks,
    removed: Sequence[int] = (),
    dtype: str = "float32",
    when_made: Callable[[], None] = lambda: None,
) -> Path:
    """The folder of a quantized checkpoint in the cache, made at the first call.

    Args:
        identity: identity of the full-precision model.
        scheme: how the weights are quantized.
        calibration: text for GPTQ, of the calibration split; round-to-nearest reads none.
        removed: blocks that are removed before the others are quantized.
        dtype: dtype in which it is quantized; what stays unquantized, and the scales, are stored at 16 bits.
        when_made: called if the checkpoint was not there and has been made.

    Returns:
        The folder: weights packed in the format of compressed-tensors, config, tokenizer, and `layer_redundancy.json`
        with the scheme, the text and the removed blocks.

    Raises:
        NotApplicable: the model is quantized already, or its blocks hold something that cannot be quantized.
        StudyError: calibration text of the evaluation split; a group size that does not divide; weights that are no
            longer finite; out of memory; a full disk.
    """
    if calibration.split != "calibration":
        raise StudyError(
            f"quantization was given the {calibration.split} split: what is measured there would be biased"
        )
    scheme, removed = profiles.valid(Scheme, scheme), variants.indices(removed)
    kept = variants.without(identity.num_hidden_layers, removed)
    settings = asdict(scheme) | {
        "model": identity.fingerprint,
        "blocks": variants.name(kept),
        "text": calibration.fingerprint if scheme.method == "gptq" else None,
        "dtype": dtype,
        "rules": [RULES_VERSION, *map(importlib.metadata.version, ("llmcompressor", "compressed-tensors"))],
    }

    def write(target: Path) -> None:
        check(identity, scheme.group_size)
        _write(identity, scheme, calibration, removed, dtype, target)
        when_made()

    return cache.made_once(f"quantized-{scheme.method}-{scheme.bits}", settings, write)


def _write(
    identity: ModelIdentity,
    scheme: Scheme,
    calibration: TokenBlocks,
    removed: tuple[int, ...],
    dtype: str,
    target: Path,
) -> None:
    """Quantizes in memory and exports; halves the batch when memory runs out."""
    ids, batch_size = calibration.input_ids, BATCH_SIZE
    tokenizer = loading.load_tokenizer(identity)
    # llm-compressor cuts text to the tokenizer's length and gives it a token to pad with: not to the one that is saved.
    theirs = copy.deepcopy(tokenizer)
    theirs.model_max_length = max(theirs.model_max_length, ids.shape[1])
    while True:
        # Anew at each try: a run that broke off half-way has changed some weights.
        # llm-compressor itself moves one block at a time to a GPU. It knows layers by the name of their class.
        model = linear.by_torch(loading.load(identity, dtype, "cpu"))
        size = group_size(widths(model), scheme.group_size)
        try:
            with (
                devices.threads(THREADS),
                surgery.without_layers(model, removed),
                _without_head(model),
                _config_at_hand(model),
            ):
                _run(model, theirs, scheme, size, ids, batch_size, f"{identity.name}: {scheme}")
            break
        except StudyError:
            raise
        except Exception as error:  # whatever a model that the library was not made for raises in it
            batch_size = _halved(batch_size, error, identity.name, ids.shape[1])
    _store_as_16_bits(model)
    for name, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            raise StudyError(f"{identity.name}: {name} is not finite after {scheme}: use more calibration text")
    linear.by_onednn(packing.plain(model))
    del model.save_pretrained  # llm-compressor's, which would write the config as it was before blocks were removed
    surgery.export(model, tokenizer, removed, target)
    file = target / provenance.NOTE
    note: dict[str, Any] = json.loads(file.read_text()) | asdict(scheme) | {"group_size": size}
    note |= {"quantized_from": identity.name, "revision": identity.revision}
    if scheme.method == "gptq":
        note["calibration"] = f"{calibration.corpus}, {len(ids)} blocks of {ids.shape[1]} tokens"
    file.write_text(json.dumps(note, indent=1))


def _halved(batch_size: int, error: Exception, name: str, length: int) -> int:
    """Half the batch where memory ran out; raises StudyError for anything else."""
    try:
        return halved(batch_size, error, f"one block of {length} tokens")
    except StudyError:
        raise
    except Exception:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise StudyError(
            f"llm-compressor cannot quantize {name} ({type(error).__name__}: {reason}): quantize it elsewhere and give "
            "the checkpoint as ready"
        ) from error


@contextmanager
def _config_at_hand(model: nn.Module) -> Iterator[None]:
    """Gives llm-compressor a folder with the config, which it else reads again from the hub at its newest revision."""
    name = model.config.name_or_path
    with cache.scratch_folder("config") as folder:
        model.config.save_pretrained(folder)
        model.config.name_or_path = str(folder)
        try:
            yield
        finally:
            model.config.name_or_path = name


@contextmanager
def _without_head(model: nn.Module) -> Iterator[None]:
    """The head is not quantized: llm-compressor need not run it, nor make two weights of one that is tied."""
    head, tied = model.get_output_embeddings(), model.config.tie_word_embeddings
    try:
        model.set_output_embeddings(nn.Identity())
        model.config.tie_word_embeddings = False
        yield
    finally:
        model.set_output_embeddings(head)
        model.config.tie_word_embeddings = tied


def _store_as_16_bits(model: nn.Module) -> None:
    """Rounds scales, and weights that are not quantized, to what a checkpoint of 16 bits holds (in place)."""
    from compressed_tensors import quantization

    rounded = set()
    for module in packing.layers(model):
        scheme, zero_point = module.quantization_scheme.weights, getattr(module, "weight_zero_point", None)
        weight, scale = module.weight.data, module.weight_scale.data
        # As `packing.packed` finds them; the weights that go with a rounded scale are those that are loaded again.
        steps = quantization.quantize(weight.float(), scale.float(), zero_point, scheme)
        scale = scale.half().to(scale.dtype) if scale.dtype == torch.float32 else scale
        weight.copy_(quantization.dequantize(steps, scale, zero_point, scheme))
        rounded.add(weight.data_ptr())
    for tensor in model.state_dict().values():
        if tensor.dtype == torch.float32 and tensor.data_ptr() not in rounded:
            tensor.copy_(tensor.half())


def _run(model: nn.Module, tokenizer: Any, scheme: Scheme, size: int, ids: Tensor, batch_size: int, title: str) -> None:
    """Runs llm-compressor on a model in memory, which it changes."""
    # It tells of each layer, and goes without a level it needs when its log is turned off altogether.
    os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("torch.fx").setLevel(logging.ERROR)  # on a function of torch's that llm-compressor calls
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from compressed_tensors.offload import remove_dispatch
        from datasets import Dataset
        from llmcompressor import oneshot
        from llmcompressor.modifiers.quantization import QuantizationModifier

        from layer_redundancy.models.gptq import GPTQ

    inside = set(widths(model))
    outside = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and name not in inside]
    weights = {"num_bits": scheme.bits, "type": "int", "symmetric": scheme.symmetric, "strategy": "group"}
    # Layers are named by class, not by name: names hold the numbers of blocks, which change when blocks are removed.
    groups = {"blocks": {"targets": ["Linear"], "weights": weights | {"group_size": size}}}
    if scheme.method == "rtn":
        with _quiet():
            recipe = QuantizationModifier(config_groups=groups, ignore=outside)
            oneshot(model=model, tokenizer=tokenizer, recipe=recipe)
        remove_dispatch(model)
        return
    rows = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()})
    with _quiet(title):
        oneshot(
            model=model,
            tokenizer=tokenizer,
            recipe=GPTQ(config_groups=groups, ignore=outside),
            dataset=rows,
            num_calibration_samples=len(ids),
            max_seq_length=ids.shape[1],
            batch_size=batch_size,
            shuffle_calibration_samples=False,
            pipeline="sequential",
        )
    # Where there is a GPU, llm-compressor keeps bringing weights there, whatever the profile's device.
    remove_dispatch(model)


@contextmanager
def _quiet(title: str | None = None) -> Iterator[None]:
    """Holds back llm-compressor's bars, two for each block, and draws one over all blocks in their place.

    Args:
        title: title of the bar; None for no bar.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if title is None:
            with redirect_stderr(io.StringIO()):
                yield
            return
        with tqdm(desc=title, unit="block") as bar, redirect_stderr(_Bars(bar)):
            yield
            bar.update((bar.total or 0) - bar.n)


class _Bars(io.TextIOBase):
    """Reads off llm-compressor's bars ("(3/31): Calibrating: ...") how far it is."""

    def __init__(self, bar: tqdm):
        self.bar = bar

    def write(self, text: str) -> int:
        if found := re.search(r"\((\d+)/(\d+)\): Calibrating", text):
            self.bar.total = int(found[2])
            self.bar.update(int(found[1]) - 1 - self.bar.n)
        return len(text)


# ------------------------------------------------------------------------------------------------------------ its size


@dataclass(frozen=True)
class WeightBytes:
    """What a model's weights occupy.

    Attributes:
        blocks: bytes of each residual block's weights, (L,).
        rest: bytes of embedding, final norm and head; tied weights once.
    """

    blocks: tuple[int, ...]
    rest: int

    def of(self, variant: Sequence[Any]) -> int:
        """Bytes of the blocks that a variant keeps, and of the rest."""
        return self.rest + sum(self.blocks[int(block)] for block in variant)

    def removed(self, variant: Sequence[Any]) -> float:
        """Share of all the bytes, 0 to 1, that a variant lacks; 0 of weights that occupy none, as a plan's."""
        whole = self.of(range(len(self.blocks)))
        return 1 - self.of(variant) / whole if whole else 0.0


def weight_bytes(identity: ModelIdentity) -> WeightBytes:
    """Bytes of a model's weights, as they lie in its files; 16 bits a weight for a model that is not quantized.

    Raises:
        StudyError: a file that is cut off, or a quantized model without safetensors files.
    """
    if checkpoints.quantization_method(identity):
        sizes = tensor_bytes(checkpoints.local_folder(identity))
    else:
        sizes = {name: 2 * numel for name, numel in checkpoints.parameter_sizes(identity).items()}
    blocks = [0] * identity.num_hidden_layers
    rest = 0
    with checkpoints.shapes(identity) as model:
        path = checkpoints.blocks_path(model)
    for name, size in sizes.items():
        number = checkpoints.block_of(name, path)
        if number is not None and number < len(blocks):
            blocks[number] += size
        else:
            rest += size
    return WeightBytes(tuple(blocks), rest)


def tensor_bytes(folder: Path) -> dict[str, int]:
    """Bytes of every tensor in a checkpoint's safetensors files, by name.

    Raises:
        StudyError: no safetensors file in the folder, or one that is cut off.
    """
    found: dict[str, int] = {}
    for file in _weight_files(folder):
        with file.open("rb") as stream:
            head = stream.read(8)
            header = stream.read(struct.unpack("<Q", head)[0]) if len(head) == 8 else b""
        try:
            tensors = json.loads(header)
        except ValueError as error:
            raise StudyError(f"{file} is cut off: delete its folder, so that it is made anew") from error
        tensors.pop("__metadata__", None)
        found |= {name: entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in tensors.items()}
    if not found:
        raise StudyError(f"{folder} has no safetensors file")
    return found


def disk_bytes(folder: Path) -> int:
    """Bytes of a checkpoint's weight files."""
    return sum(file.stat().st_size for file in _weight_files(folder))


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers reads; a checkpoint may hold its weights in another form beside them."""
    read = [Path(folder) / name for name in weight_files.weights(Path(folder)) if name.endswith(".safetensors")]
    return read or sorted(Path(folder).glob("*.safetensors"))
