"""Loading a model and its tokenizer, ready to be taken apart."""

import logging
import os
import re
import warnings
from collections import Counter
from contextlib import nullcontext
from typing import Any

from torch import nn

from layer_redundancy.core import devices, log
from layer_redundancy.core.errors import StudyError
from layer_redundancy.models import architectures, checkpoints, packing
from layer_redundancy.models.checkpoints import ModelIdentity
from layer_redundancy.models.checks import check_stack
from layer_redundancy.models.stack import decoder_stack, prepare

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


def load_tokenizer(identity: ModelIdentity) -> Any:
    """The model's tokenizer. Raises StudyError where it cannot be loaded."""
    from transformers import AutoTokenizer

    config = checkpoints.config(identity)
    source, revision, trusted = identity.source, identity.hub_revision, identity.trust_remote_code
    with checkpoints.hub_errors(identity.name, trusted):
        tokenizer = architectures.find(config).tokenizer(identity.name, source, revision, config)
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trusted)
    if not tokenizer("a", add_special_tokens=False).input_ids:  # what transformers makes of no files at all
        raise StudyError(f"{identity.name} has no tokenizer: put its tokenizer.json beside it")
    # Long texts are tokenised whole and cut into blocks by us: the warning about the length would be wrong. The length
    # itself stays as it is, for an export.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def load(identity: ModelIdentity, dtype: str = "float32", device: str = "cpu") -> nn.Module:
    """Loads the weights and checks that the model can be taken apart.

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
    # Straight to where it goes, so that a large model need not fit in the host's memory first.
    sharded = len(devices.every(device)) > 1
    quantization = checkpoints.quantization_options(identity)
    quiet = packing.no_bars() if quantization else nullcontext()
    hub_errors = checkpoints.hub_errors(identity.name, identity.trust_remote_code)
    # What loads GPTQ's weights would have every library tell all it does, such as each glyph of a figure.
    with hub_errors, quiet, log.undisturbed(), warnings.catch_warnings():
        # It warns that our settings are used although the checkpoint has settings of its own.
        warnings.filterwarnings("ignore", message="You passed `quantization_config`")
        model, loading = AutoModelForCausalLM.from_pretrained(
            identity.source,
            output_loading_info=True,
            revision=identity.hub_revision,
            dtype=checkpoints.DTYPES[dtype],
            trust_remote_code=identity.trust_remote_code,
            # Pickles only as weights_only; transformers prefers safetensors where both are there.
            weights_only=True,
            device_map="auto" if sharded else {"": device},
            **quantization,
        )
        prepare(model)
        check_stack(model)
    _check_weights(identity, loading, model)
    model.not_loaded = _not_loaded(identity, loading, model)
    if model.not_loaded:
        parts = [f"{part} ({count} tensor{'s' * (count > 1)})" for part, count in model.not_loaded.items()]
        more = f" and {len(parts) - 5} more" if len(parts) > 5 else ""
        left_out = ", ".join(parts[:5]) + more
        logger.warning(f"{identity.name}: {type(model).__name__} has no place for {left_out}: left out")
    return model


def _check_weights(identity: ModelIdentity, loading: dict[str, Any], model: nn.Module) -> None:
    """Raises StudyError if a checkpoint holds other blocks than its config says, or lacks a weight.

    Args:
        identity: the model's identity.
        loading: what `from_pretrained` reports of the weights' names.
        model: the loaded model.
    """
    path, blocks = checkpoints.blocks_path(model), len(decoder_stack(model))
    if missing := sorted(loading["missing_keys"]):
        # transformers only warns, and goes on with random weights in their place.
        raise StudyError(f"{identity.name}: {_lacking(missing, model, path)}")
    paths = path, _path_in_file(identity, model, path)
    names = sorted(loading["unexpected_keys"])
    beyond = [name for name in names if any((checkpoints.block_of(name, p) or 0) >= blocks for p in paths)]
    if beyond or blocks != identity.num_hidden_layers:
        raise StudyError(
            f"{identity.name}: the config says {identity.num_hidden_layers} blocks, the checkpoint has others "
            f"({beyond[0] if beyond else blocks}): it would be studied without them"
        )


def _path_in_file(identity: ModelIdentity, model: nn.Module, path: str) -> str:
    """What the names of the blocks' weights begin with in the checkpoint, by which transformers names those it leaves.

    A vision tower's blocks share a few names with the language model's: the path that shares the most is ours.
    """
    inside = {name[len(path) :].split(".", 2)[2] for name in model.state_dict() if name.startswith(f"{path}.")}
    found = filter(None, (re.match(r"(.*?)\.\d+\.(.*)", name) for name in checkpoints.tensor_names(identity)))
    shared = Counter(prefix for prefix, rest in {match.groups() for match in found} if rest in inside)
    return max(shared, key=shared.__getitem__, default=path)


def _lacking(missing: list[str], model: nn.Module, path: str) -> str:
    """What is to be said of weights that a checkpoint lacks, in one line."""
    weights = f"{len(missing)} weights (first: {missing[0]})" if len(missing) > 1 else missing[0]
    gone = {block for name in missing if (block := checkpoints.block_of(name, path)) is not None}
    whole = [i for i in gone if {n for n, _ in model.named_parameters() if n.startswith(f"{path}.{i}.")} <= {*missing}]
    if whole:
        return f"the checkpoint lacks {weights}: its config names other blocks than it holds"
    names = {module: f"{name}.weight" for name, module in model.named_modules()}
    if names[model.get_output_embeddings()] in missing:
        remedy = ", or set tie_word_embeddings to true in its config.json if the head is the embedding"
        return f"the checkpoint lacks {weights}, the output head, which would be random: give one that is whole{remedy}"
    what = f"of block {min(gone)}" if gone else "outside the blocks"
    if names[model.get_input_embeddings()] in missing:
        what = "the token embedding"
    return f"the checkpoint lacks {weights}, {what}, which would be random: give one that is whole"


def _not_loaded(identity: ModelIdentity, loading: dict[str, Any], model: nn.Module) -> dict[str, int]:
    """Parts of a checkpoint that the model has no place for (vision tower, heads for further tokens): tensors of each.

    Those that the model's class in transformers passes over without a word are among them, but not what is inside the
    blocks: buffers of earlier versions.
    """
    path, blocks = checkpoints.blocks_path(model), len(decoder_stack(model))
    passed_over = re.compile("|".join(f"({p})" for p in model._keys_to_ignore_on_load_unexpected or ()) or "$^")
    has = {name.rsplit(".", k)[0] for name in model.state_dict() for k in range(name.count(".") + 1)}
    found: dict[str, int] = {}
    for name in sorted({*loading["unexpected_keys"], *filter(passed_over.search, checkpoints.tensor_names(identity))}):
        block, parts = checkpoints.block_of(name, path), name.split(".")
        if name in has or (block is not None and block < blocks and name not in loading["unexpected_keys"]):
            continue
        starts = (".".join(parts[:k]) for k in range(1, len(parts) + 1))
        part = next(start for start in starts if start not in has)
        found[part] = found.get(part, 0) + 1
    return found
