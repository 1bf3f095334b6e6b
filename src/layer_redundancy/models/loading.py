"""Loading a model and its tokenizer, ready to be taken apart."""

import os
import re
import warnings
from contextlib import nullcontext
from typing import Any

from torch import nn

from layer_redundancy.core import devices
from layer_redundancy.core.errors import StudyError
from layer_redundancy.models import architectures, checkpoints, packing
from layer_redundancy.models.checkpoints import ModelIdentity
from layer_redundancy.models.checks import check_stack
from layer_redundancy.models.stack import decoder_stack, prepare

# For a pickled checkpoint, transformers would send its name and the token to a conversion service in a thread.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")


def load_tokenizer(identity: ModelIdentity) -> Any:
    """The model's tokenizer. Raises StudyError where it cannot be loaded."""
    from transformers import AutoTokenizer

    config = checkpoints.config(identity)
    source, revision, trusted = identity.source, identity.hub_revision, identity.trust_remote_code
    with checkpoints.hub_errors(identity.name, trusted):
        tokenizer = architectures.find(config).tokenizer(identity.name, source, revision, config)
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trusted)
    # Long texts are tokenised whole and cut into blocks by us; the warning about the length would be wrong.
    tokenizer.model_max_length = int(1e30)
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
    """
    from transformers import AutoModelForCausalLM

    devices.keep_freed_memory()
    device = devices.resolve(device)
    # Straight to where it goes, so that a large model need not fit in the host's memory first.
    sharded = len(devices.every(device)) > 1
    quantization = checkpoints.quantization_options(identity)
    quiet = packing.no_bars() if quantization else nullcontext()
    with checkpoints.hub_errors(identity.name, identity.trust_remote_code), quiet, warnings.catch_warnings():
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
    _check_weights(identity, loading, len(decoder_stack(model)))
    return model


def _check_weights(identity: ModelIdentity, loading: dict[str, Any], blocks: int) -> None:
    """Raises StudyError if a checkpoint holds other blocks than its config says.

    Args:
        identity: the model's identity.
        loading: what `from_pretrained` reports of the weights' names.
        blocks: number of blocks of the loaded model.
    """
    if loading["missing_keys"]:
        # transformers only warns, and goes on with random weights in their place.
        first = sorted(loading["missing_keys"])[0]
        raise StudyError(
            f"{identity.name}: the checkpoint lacks {len(loading['missing_keys'])} weights (first: {first}): its "
            "config names other blocks than it holds"
        )
    names = sorted(loading["unexpected_keys"])
    beyond = [name for name in names if (n := re.search(r"\.(\d+)\.", name)) and int(n[1]) >= blocks]
    if beyond or blocks != identity.num_hidden_layers:
        raise StudyError(
            f"{identity.name}: the config says {identity.num_hidden_layers} blocks, the checkpoint has others "
            f"({beyond[0] if beyond else blocks}): it would be studied without them"
        )
