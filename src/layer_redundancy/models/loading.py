"""Loading a model and its tokenizer, ready to be taken apart."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layer_redundancy.core import devices, log
from layer_redundancy.core.errors import StudyError
from layer_redundancy.models import architectures, checkpoints, packing, weight_files
from layer_redundancy.models.checkpoints import ModelIdentity
from layer_redundancy.models.checks import check_stack
from layer_redundancy.models.stack import decoder_stack, prepare
from layer_redundancy.models.weight_files import Header

logger = logging.getLogger(__name__)

# For a pickled checkpoint, transformers would send its name and the token to a conversion service in a thread.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")


def _keep_back(library: str, words: str) -> None:
    """Keeps back what a library's logger says in words that begin so."""
    logging.getLogger(library).addFilter(lambda record: not str(record.msg).startswith(words))


# What these say when they are imported, by whichever library comes to them first, though nothing is amiss: that they go
# without a faster kernel, which bitsandbytes would ask a hub for and torchao (of `make gptq`) has for another torch.
_keep_back("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward")
_keep_back("torchao", "Skipping import of cpp extensions")

# Weights that were found fit to be taken apart, and where: what holds of them holds when they are loaded again, which
# trainings do again and again.
_checked: set[tuple[str, str, str]] = set()

# Parts of the names of weights that an adapter adds to a model's own.
_ADAPTER = re.compile(r"(^|[._])lora_|\.base_layer\.|\.ia3_|\.oft_|\.vera_lambda|\.modules_to_save\.")
# Buffers that earlier versions of transformers wrote with the weights of a block: angles, and masks of its attention.
_BUFFERS = re.compile(r"(^|\.)(rotary\w*\..*|inv_freq|masked_bias|causal_mask|rope_freqs|alibi|position_ids)$")
_MASK = re.compile(r"(^|\.)(attn|attention|self_attention|crossattention)\.(bias|mask)$")


def load_tokenizer(identity: ModelIdentity) -> Any:
    """The model's tokenizer. Raises StudyError where it cannot be loaded."""
    from transformers import AutoTokenizer

    config = checkpoints.config(identity)
    source, revision, trusted = identity.source, identity.hub_revision, identity.trust_remote_code
    none_there = f"{identity.name} has no tokenizer: put its tokenizer.json beside it"
    checkpoints.check_unchanged(identity)
    _check_tokenizer_files(Path(source))
    with checkpoints.hub_errors(f"the tokenizer of {identity.name}", trusted):
        tokenizer = architectures.find(config).tokenizer(identity.name, source, revision, config)
        if tokenizer is None:
            try:
                tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trusted)
            except ValueError as error:
                if "Couldn't instantiate the backend tokenizer" in str(error):
                    raise StudyError(none_there) from error
                raise
    if not tokenizer("a", add_special_tokens=False).input_ids:  # what transformers makes of no files at all
        raise StudyError(none_there)
    # Long texts are tokenised whole and cut into blocks by us: the warning about the length would be wrong. The length
    # itself stays as it is, for an export.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def _check_tokenizer_files(folder: Path) -> None:
    """Raises StudyError where a file of a tokenizer that would be read is a Git-LFS pointer."""
    if folder.is_dir():
        # Where there is a tokenizer.json, that of sentencepiece is not read.
        spare = {".model"} if (folder / "tokenizer.json").is_file() else set()
        kinds = {".json", ".txt", ".model", ".jinja", ".tiktoken"} - spare
        weight_files.check_pulled(sorted(file for file in folder.iterdir() if file.suffix in kinds))


def load(identity: ModelIdentity, dtype: str = "float32", device: str = "cpu") -> nn.Module:
    """Loads the weights and checks, once in a process, that the model can be taken apart.

    Args:
        identity: the model's identity, from `identify`.
        dtype: float32, bfloat16 or float16.
        device: "cpu", "cuda", "auto" (all CUDA devices where there are any), or a torch device.

    Returns:
        The transformers model, in eval mode, gradients off.

    Raises:
        StudyError: it cannot be loaded, weights or a library for quantized ones are missing, or `check_stack` refuses
            it.

    What of the checkpoint is not loaded is logged in one line, and is in the model's attribute `not_loaded`.
    """
    from transformers import AutoModelForCausalLM

    devices.keep_freed_memory()
    device = devices.resolve(device)
    checkpoints.check_unchanged(identity)
    found = checkpoints.tensors(identity)
    # Straight to where it goes, so that a large model need not fit in the host's memory first.
    sharded = len(devices.every(device)) > 1
    quantization = checkpoints.quantization_options(identity)
    quiet = packing.quietly() if quantization else nullcontext()
    hub_errors = checkpoints.hub_errors(identity.name, identity.trust_remote_code)
    # What loads GPTQ's weights would have every library tell all it does, such as each glyph of a figure.
    with hub_errors, quiet, log.undisturbed(), _no_report():
        model, loading = AutoModelForCausalLM.from_pretrained(
            identity.source,
            output_loading_info=True,
            # Told below, by names and shapes.
            ignore_mismatched_sizes=True,
            revision=identity.hub_revision,
            dtype=checkpoints.DTYPES[dtype],
            trust_remote_code=identity.trust_remote_code,
            # Pickles only as weights_only; transformers prefers safetensors where both are there.
            weights_only=True,
            device_map="auto" if sharded else {"": device},
            **quantization,
        )
        if getattr(model, "_hf_peft_config_loaded", False):
            raise StudyError(
                f"{identity.name} is an adapter, loaded into the model that it names: merge it into that "
                "(merge_and_unload of peft), save it and give its folder"
            )
        checkpoints.check_unchanged(identity)
        if packing.layers(model) and not sharded:
            packing.plain(model)
        prepare(model)
        found = found or checkpoints.tensors(identity)  # of the hub, and downloaded only now
        _check_weights(identity, loading, model, found)
        if (weights := (identity.fingerprint, dtype, device)) not in _checked:
            check_stack(model)
            _checked.add(weights)
    model.not_loaded = _not_loaded(loading, model, found)
    if model.not_loaded:
        parts = [f"{part} ({count} tensor{'s' * (count > 1)})" for part, count in model.not_loaded.items()]
        more = f" and {len(parts) - 5} more" if len(parts) > 5 else ""
        left_out = ", ".join(parts[:5]) + more
        logger.warning(f"{identity.name}: {type(model).__name__} has no place for {left_out}: left out")
    return model


@contextmanager
def _no_report() -> Iterator[None]:
    """Keeps back what transformers says of weights that do not fit, since what matters of it is told in one line."""

    def is_none(record: logging.LogRecord) -> bool:
        return not any(words in str(record.msg) for words in ("LOAD REPORT", "This checkpoint seem corrupted"))

    library = logging.getLogger("transformers.modeling_utils")
    library.addFilter(is_none)
    try:
        yield
    finally:
        library.removeFilter(is_none)


def _check_weights(
    identity: ModelIdentity, loading: dict[str, Any], model: nn.Module, found: Mapping[str, Header]
) -> None:
    """Raises StudyError if a checkpoint is another model than the one that was loaded from it.

    Refused is what would change a number without a word: weights that are missing or have other shapes, other blocks
    than the config says, adapters, weights of blocks or other modules that the model has no place for, an output head
    that the config says is the embedding, whole numbers, NaN and infinity. Whole parts beside the blocks that the model
    has no module for (a vision tower, heads for further tokens) are no part of it, and neither are buffers.

    Args:
        identity: the model's identity.
        loading: what `from_pretrained` reports of the weights' names.
        model: the loaded model.
        found: the tensors in the files.
    """
    if adapter := [name for name in found if _ADAPTER.search(name)]:
        raise StudyError(
            f"{identity.name} holds an adapter that is not merged ({adapter[0]}): merge it into its model "
            "(merge_and_unload of peft), save that and give its folder"
        )
    path, blocks = checkpoints.blocks_path(model), len(decoder_stack(model))
    if missing := sorted(loading["missing_keys"]):
        # transformers only warns, and goes on with random weights in their place.
        raise StudyError(f"{identity.name}: {_lacking(missing, model, path, sorted(loading['unexpected_keys']))}")
    if mismatched := sorted(loading["mismatched_keys"]):
        raise StudyError(f"{identity.name}: {_other_shapes(mismatched, model)}")
    paths = path, _path_in_file(model, path, found)
    names = sorted(loading["unexpected_keys"])
    beyond = [name for name in names if any((checkpoints.block_of(name, p) or 0) >= blocks for p in paths)]
    if beyond or blocks != identity.num_hidden_layers:
        raise StudyError(
            f"{identity.name}: the config says {identity.num_hidden_layers} blocks, the checkpoint has others "
            f"({beyond[0] if beyond else blocks}): it would be studied without them"
        )
    modules = dict(model.named_modules())
    for name in names:
        of_block = any(checkpoints.block_of(name, p) is not None for p in paths)
        module, _, last = name.rpartition(".")
        of_module = module in modules and last in ("weight", "bias")
        if (of_block or of_module) and _counts(identity, name, found.get(name)):
            raise StudyError(
                f"{identity.name}: {type(model).__name__} has no place for {name}, and would be studied without it: is "
                "model_type in its config.json right, and the checkpoint in the form that transformers has for it?"
            )
    _check_head(identity, model)
    _check_numbers(identity, model, found)


def _counts(identity: ModelIdentity, name: str, header: Header | None) -> bool:
    """Whether a model without this tensor of its checkpoint is another model.

    It is the same without buffers that earlier versions of transformers wrote beside the weights, without what only the
    form of quantized weights is made of, and without biases of zero, which AutoGPTQ writes for layers that have none.
    """
    last = name.rpartition(".")[2]
    if header is not None and not header.floating:
        return False  # masks and positions; whole numbers in the place of weights are told below
    is_vector = header is not None and len(header.shape) == 1
    if _BUFFERS.search(name) or (_MASK.search(name) and not is_vector):
        return False
    if checkpoints.quantization_method(identity) is not None and last not in ("weight", "bias"):
        return False
    return last != "bias" or header is None or not checkpoints.is_zero(identity, name)


def _other_shapes(mismatched: list[tuple[str, Iterable[int], Iterable[int]]], model: nn.Module) -> str:
    """What is to be said of weights whose shapes are not those of the config: the first, and where to look."""
    name, in_file, wanted = mismatched[0][0], tuple(mismatched[0][1]), tuple(mismatched[0][2])
    differing = {w for f, w in zip(in_file, wanted, strict=False) if f != w} or {*wanted}
    settings = model.config.get_text_config(decoder=True).to_dict()
    keys = [key for key, value in settings.items() if type(value) is int and value in differing and value != 1]
    heads = "num_attention_heads, num_key_value_heads or head_dim"
    where = heads if not keys or re.search(r"(query|key|value|[^a-z][qkv])(_proj)?\.", name) else " or ".join(keys[:3])
    more = f" ({len(mismatched)} tensors have other shapes)" if len(mismatched) > 1 else ""
    return (
        f"{name} has shape {in_file} in the checkpoint and {wanted} by its config.json{more}: look at {where} there, "
        "or is it the config of another model?"
    )


def _check_head(identity: ModelIdentity, model: nn.Module) -> None:
    """Raises StudyError where the output head is said to be the embedding, and the checkpoint has another one."""
    config = model.config.get_text_config(decoder=True)
    one, other = model.get_input_embeddings(), model.get_output_embeddings()
    tied = bool(getattr(config, "tie_word_embeddings", False)) and bool(model._tied_weights_keys)
    weight, head = getattr(one, "weight", None), getattr(other, "weight", None)
    if not tied or weight is None or head is None or head is weight or head.shape != weight.shape:
        return
    if not torch.equal(head, weight.to(head.device)):
        raise StudyError(
            f"{identity.name}: its config.json says that the output head is the embedding (tie_word_embeddings), and "
            "the checkpoint has another one: set that to false, or take the head out of the weights"
        )


def _check_numbers(identity: ModelIdentity, model: nn.Module, found: Mapping[str, Header]) -> None:
    """Raises StudyError for weights that are no numbers, or whole numbers that stand for others."""
    floating = {name: x.detach() for name, x in model.named_parameters() if x.is_floating_point()}
    if checkpoints.quantization_method(identity) is None:
        whole = sorted(name for name, header in found.items() if not header.floating)
        if whole := [name for name in whole if any(_same(name, other) for other in floating)]:
            raise StudyError(
                f"{identity.name}: {whole[0]} holds whole numbers, and its config.json does not say how they stand for "
                "weights (quantization_config): give the checkpoint as it was published, or one that is not quantized"
            )
    for name, x in floating.items():
        # NaN is the least and the greatest of any numbers that it is among.
        if x.numel() and not x.is_meta and x.dtype.itemsize > 1 and not torch.stack(x.aminmax()).isfinite().all():
            raise StudyError(
                f"{identity.name}: {name} holds NaN or infinite numbers: is the checkpoint whole, and do its numbers "
                f"fit into {str(x.dtype).removeprefix('torch.')}?"
            )


def _same(name: str, other: str) -> bool:
    """Whether a weight's name in a file and one in the model are the same but for the first parts, which may lack."""
    return name == other or name.endswith(f".{other}") or (name.count(".") > 1 and other.endswith(f".{name}"))


def _path_in_file(model: nn.Module, path: str, found: Iterable[str]) -> str:
    """What the names of the blocks' weights begin with in the checkpoint, by which transformers names those it leaves.

    A vision tower's blocks share a few names with the language model's: the path that shares the most is ours.
    """
    inside = {name[len(path) :].split(".", 2)[2] for name in model.state_dict() if name.startswith(f"{path}.")}
    numbered = filter(None, (re.match(r"(.*?)\.\d+\.(.*)", name) for name in found))
    shared = Counter(prefix for prefix, rest in {match.groups() for match in numbered} if rest in inside)
    return max(shared, key=shared.__getitem__, default=path)


def _lacking(missing: list[str], model: nn.Module, path: str, beyond: list[str]) -> str:
    """What is to be said of weights that a checkpoint lacks, in one line.

    Args:
        missing: their names.
        model: the model, with random weights in their place.
        path: what the names of its blocks' weights begin with.
        beyond: names in the checkpoint that the model has no place for.
    """
    if beyond and {*missing} >= {name for name, _ in model.named_parameters()}:
        return (
            f"none of its tensors (first: {beyond[0]}) has the name of a weight of {type(model).__name__} (first: "
            f"{missing[0]}): save the language model itself by save_pretrained, and not what is wrapped around it"
        )
    weights = f"{len(missing)} weights (first: {missing[0]})" if len(missing) > 1 else missing[0]
    gone = {block for name in missing if (block := checkpoints.block_of(name, path)) is not None}
    whole = [i for i in gone if {n for n, _ in model.named_parameters() if n.startswith(f"{path}.{i}.")} <= {*missing}]
    if whole:
        return f"the checkpoint lacks {weights}: its config names other blocks than it holds"
    names = {module: f"{name}.weight" for name, module in model.named_modules()}
    if names[model.get_output_embeddings()] in missing:
        remedy = ", or set tie_word_embeddings to true in its config.json if the head is the embedding"
        remedy = "" if getattr(model.config.get_text_config(decoder=True), "tie_word_embeddings", False) else remedy
        return f"the checkpoint lacks {weights}, the output head, which would be random: give one that is whole{remedy}"
    what = f"of block {min(gone)}" if gone else "outside the blocks"
    if names[model.get_input_embeddings()] in missing:
        what = "the token embedding"
    return f"the checkpoint lacks {weights}, {what}, which would be random: give one that is whole"


def _not_loaded(loading: dict[str, Any], model: nn.Module, names: Iterable[str]) -> dict[str, int]:
    """Parts of a checkpoint that the model has no place for (vision tower, heads for further tokens): tensors of each.

    Those that the model's class in transformers passes over without a word are among them, but not what is inside the
    blocks: buffers of earlier versions.
    """
    path, blocks = checkpoints.blocks_path(model), len(decoder_stack(model))
    passed_over = re.compile("|".join(f"({p})" for p in model._keys_to_ignore_on_load_unexpected or ()) or "$^")
    has = {name.rsplit(".", k)[0] for name in model.state_dict() for k in range(name.count(".") + 1)}
    found: dict[str, int] = {}
    for name in sorted({*loading["unexpected_keys"], *filter(passed_over.search, names)}):
        block, parts = checkpoints.block_of(name, path), name.split(".")
        if name in has or (block is not None and block < blocks and name not in loading["unexpected_keys"]):
            continue
        starts = (".".join(parts[:k]) for k in range(1, len(parts) + 1))
        part = next(start for start in starts if start not in has)
        found[part] = found.get(part, 0) + 1
    return found
