"""Loading a model, and taking it apart: the one place that knows architectures.

A causal language model is, to this study, an embedding, an ordered list of residual blocks, a final norm and a head.
What a block needs besides its input (masks, rotary angles, ...) is not rebuilt here: the model's own forward is run
with blocks that only record what they are called with. So masks by layer type, embedding scales and position tables are
the model's own, whatever the architecture.
"""

import hashlib
import io
import json
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from layer_redundancy.config.profiles import EMBEDDED_MODEL, EMBEDDED_RWKV, Profile
from layer_redundancy.core import devices, paths
from layer_redundancy.core.errors import StudyError
from layer_redundancy.data import hub
from layer_redundancy.models.rwkv5 import checkpoints as rwkv_checkpoints

# Of a checkpoint that is a pickle transformers would, in a thread, tell a conversion service the name and the token.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


# ------------------------------------------------------------------------------------------------ which model is it


@dataclass(frozen=True)
class ModelIdentity:
    """A model named exactly, without its weights in memory.

    Attributes:
        name: as the user gave it.
        source: what transformers loads: a folder, or the hub id.
        revision: commit on the hub, or the hash that stands for it; printed in captions.
        fingerprint: sha256 over what decides the weights and their dtype; the store's key.
        num_hidden_layers: blocks, from the config.
        max_length: tokens the model was made for, from the config; None where there is no limit (Mamba).
        trust_remote_code: as the user chose.
        num_attention_heads: query heads of a block, from the config; 0 for a model without attention.
        num_key_value_heads: keys and values that these share; as many as query heads where none are shared.
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


def identify(profile: Profile) -> ModelIdentity:
    """Finds out which weights a profile means, downloading no more than a config.

    Raises:
        StudyError: the model does not exist, is gated, or cannot be reached.
    """
    if profile.dtype not in DTYPES:
        raise StudyError(f"unknown dtype {profile.dtype!r}: choose one of {', '.join(DTYPES)}")
    path = Path(profile.model).expanduser()
    local = profile.model in (EMBEDDED_MODEL, EMBEDDED_RWKV) or path.is_dir()
    is_checkpoint = path.suffix in rwkv_checkpoints.SUFFIXES and path.is_file()
    if (local or is_checkpoint) and profile.revision:
        raise StudyError(f"model {profile.model!r} is not on the hub: it has no revision {profile.revision!r}")
    if profile.model == EMBEDDED_MODEL:
        from layer_redundancy.models import smollm2

        source, revision = str(smollm2.folder()), smollm2.revision()
        content = f"{smollm2.GGUF_SHA256} converted by rules {smollm2.CONVERSION_VERSION}"
    elif profile.model == EMBEDDED_RWKV:
        source = str(paths.MODELS / EMBEDDED_RWKV)
        content = _folder_hash(Path(source))
        revision = f"in data/models, sha256 {content[:8]}"
    elif is_checkpoint:
        source = str(rwkv_checkpoints.folder(path))
        content = _folder_hash(Path(source))
        revision = f"local file, sha256 {content[:8]}"
    elif local:
        source = str(path.resolve())
        content = _folder_hash(Path(source))
        revision = f"local folder, sha256 {content[:8]}"
    elif profile.model.startswith((".", "/", "~")) or profile.model.count("/") > 1:
        raise StudyError(f"model {profile.model!r}: no such folder")
    else:
        source = profile.model
        revision = _hub_commit(profile.model, profile.revision)
        content = f"{source}@{revision}"
    config = _config(source, None if Path(source).is_dir() else revision, profile.trust_remote_code)
    text = config.get_text_config()
    layers = getattr(text, "num_hidden_layers", None)
    if not layers:
        raise StudyError(f"model {profile.model!r} ({config.model_type}) has no num_hidden_layers: not a decoder stack")
    # Not the folder's name: the same weights elsewhere are the same model.
    fingerprint = hashlib.sha256(json.dumps([content, profile.dtype]).encode()).hexdigest()
    # RWKV-4 calls its context length so: its CUDA kernel takes no more, though the recurrence has no end.
    max_length = getattr(text, "max_position_embeddings", None)
    heads = getattr(text, "num_attention_heads", None) or 0
    shared = getattr(text, "num_key_value_heads", None) or heads
    return ModelIdentity(
        profile.model, source, revision, fingerprint, layers, max_length, profile.trust_remote_code, heads, shared
    )


def _folder_hash(folder: Path) -> str:
    """sha256 over the names and bytes of a checkpoint's config and weights."""
    files = sorted(p for p in folder.iterdir() if p.suffix in {".json", ".safetensors", ".bin", ".model", ".py"})
    if not (folder / "config.json").is_file():
        raise StudyError(f"model folder {folder} has no config.json: give a folder written by save_pretrained")
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as f:
            digest.update(f"{path.name}:{hashlib.file_digest(f, 'sha256').hexdigest()};".encode())
    return digest.hexdigest()


def _hub_commit(model: str, revision: str | None) -> str:
    """The commit a hub revision stands for, from the hub or from the local cache when the hub is out of reach."""
    from huggingface_hub import hf_hub_download

    with hub_errors(model):
        config = hf_hub_download(model, "config.json", revision=revision)
    return Path(config).parent.name  # .../snapshots/<commit>/config.json


def register() -> None:
    """Makes transformers know the architectures of this study's own."""
    import layer_redundancy.models.baichuan.model
    import layer_redundancy.models.rwkv5.model  # noqa: F401


def config(identity: ModelIdentity) -> Any:
    """The model's config. Raises StudyError where it cannot be read."""
    return _config(identity.source, _revision(identity), identity.trust_remote_code)


def _config(source: str, revision: str | None, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    register()
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
        if (line := hub.one_line(e, name, f"use MODEL={EMBEDDED_MODEL}, which needs no hub")) is not None:
            raise StudyError(line) from e
        text = " ".join(str(e).split())
        if isinstance(e, OSError) and e.errno is not None:
            raise StudyError(f"{name} cannot be read: {text}") from e
        if not trust_remote_code and "trust_remote_code" in text:
            raise StudyError(
                f"{name} ships its own code: read it, then set trust_remote_code=True if you trust it"
            ) from e
        raise StudyError(f"{name} cannot be loaded: {text[:300]}") from e


def block_weights(identity: ModelIdentity) -> tuple[int, int]:
    """Weights of a residual block (the mean over blocks), and those that go with one query head of it.

    A head's are its rows of the query projection and its columns of the output projection, and its keys' and values'
    projections where it shares them with no other head.

    Raises:
        StudyError: the model has no attention heads, or cannot be taken apart.
    """
    if not identity.num_attention_heads:
        raise StudyError(f"{identity.name} has no attention heads")
    with shapes(identity) as model:
        stack = decoder_stack(model)
        part = head_slice(stack, len(stack) // 2, 0)
    sizes = [sum(p.numel() for p in block.parameters()) for block in stack.blocks]
    own = 4 if identity.num_key_value_heads == identity.num_attention_heads else 2
    return round(sum(sizes) / len(sizes)), own * (part.stop - part.start) * model.config.get_text_config().hidden_size


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
    from transformers import AutoModelForCausalLM

    settings = config(identity)
    with hub_errors(identity.name, identity.trust_remote_code), torch.device("meta"):
        yield AutoModelForCausalLM.from_config(settings, trust_remote_code=identity.trust_remote_code)


def quantization_method(identity: ModelIdentity) -> str | None:
    """How the checkpoint's weights are quantized ("compressed-tensors", "gptq", ...), from its config; None if not."""
    settings = getattr(config(identity), "quantization_config", None)
    return None if settings is None else str(dict(settings).get("quant_method") or "unknown")


def check_library(identity: ModelIdentity) -> None:
    """Raises StudyError if a ready quantized checkpoint takes a library that is not there."""
    _quantization_options(identity)


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


def _quantization_options(identity: ModelIdentity) -> dict[str, Any]:
    """Options of `from_pretrained` for the way in which the weights are quantized.

    Raises:
        StudyError: it takes a library that is not there.
    """
    from importlib.util import find_spec

    from transformers import CompressedTensorsConfig

    method = quantization_method(identity)
    needed, remedy = _QUANTIZATION_PACKAGES.get(method or "", ((), ""))
    if missing := [package for package in needed if find_spec(package) is None]:
        raise StudyError(
            f"{identity.name} holds {method.upper()} weights, which take the package{'s' * (len(missing) > 1)} "
            f"{' and '.join(missing)}: {remedy}"
        )
    # Unpacked once, not at every forward, and every matrix is there to be read.
    return {"quantization_config": CompressedTensorsConfig(dequantize=True)} if method == "compressed-tensors" else {}


def load_tokenizer(identity: ModelIdentity) -> Any:
    """The model's tokenizer. Raises StudyError where it cannot be loaded."""
    from transformers import AutoTokenizer

    settings = config(identity)
    if settings.model_type == "rwkv5":
        from layer_redundancy.models.rwkv5.tokenizer import VOCAB_SIZE, RwkvWorldTokenizer

        if settings.vocab_size == VOCAB_SIZE:  # all have the same, and their own would need code from the hub
            return RwkvWorldTokenizer()
        if Path(identity.source).is_dir() and not (Path(identity.source) / "tokenizer.json").is_file():
            raise StudyError(
                f"{identity.name} is no World model and has no tokenizer: put its tokenizer.json beside it"
            )
    tokenizer = None
    with hub_errors(identity.name, identity.trust_remote_code):
        if settings.model_type == "baichuan":  # AutoTokenizer would run the hub's code for it where that is allowed
            from layer_redundancy.models.baichuan import tokenizer as baichuan_tokenizer

            tokenizer = baichuan_tokenizer.load(identity.source, _revision(identity))
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(
                identity.source, revision=_revision(identity), trust_remote_code=identity.trust_remote_code
            )
    # Long texts are tokenised whole and cut into blocks by us; the warning about the length would be wrong.
    tokenizer.model_max_length = int(1e30)
    return tokenizer


def load(identity: ModelIdentity, dtype: str = "float32", device: str = "cpu") -> nn.Module:
    """Loads the weights and checks that the model can be taken apart.

    Args:
        identity: from `identify`.
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
    quantization = _quantization_options(identity)
    quiet = _no_bars() if quantization else nullcontext()
    with hub_errors(identity.name, identity.trust_remote_code), quiet, warnings.catch_warnings():
        # That what we ask for is done although the checkpoint has settings of its own.
        warnings.filterwarnings("ignore", message="You passed `quantization_config`")
        model, loading = AutoModelForCausalLM.from_pretrained(
            identity.source,
            output_loading_info=True,
            revision=_revision(identity),
            dtype=DTYPES[dtype],
            trust_remote_code=identity.trust_remote_code,
            # Pickles only as weights_only; transformers prefers safetensors where both are there.
            weights_only=True,
            device_map="auto" if sharded else {"": device},
            **quantization,
        )
        prepare(model)
        check_stack(model)
    stack = decoder_stack(model)
    if loading["missing_keys"]:
        # transformers only warns, and goes on with random weights in their place.
        first = sorted(loading["missing_keys"])[0]
        raise StudyError(
            f"{identity.name}: the checkpoint lacks {len(loading['missing_keys'])} weights (first: {first}): its "
            "config names other blocks than it holds"
        )
    beyond = [
        k for k in sorted(loading["unexpected_keys"]) if (n := re.search(r"\.(\d+)\.", k)) and int(n[1]) >= len(stack)
    ]
    if beyond or len(stack) != identity.num_hidden_layers:
        raise StudyError(
            f"{identity.name}: the config says {identity.num_hidden_layers} blocks, the checkpoint has others "
            f"({beyond[0] if beyond else len(stack)}): it would be studied without them"
        )
    return model


def _revision(identity: ModelIdentity) -> str | None:
    return None if Path(identity.source).is_dir() else identity.revision


@contextmanager
def packed(model: nn.Module, restore: bool = True) -> Iterator[dict[str, Tensor] | None]:
    """A model that `load` unpacked, packed again for as long as it is saved; others as they are.

    Args:
        model: the model.
        restore: give it back its very weights; else those that follow from what is packed when the context ends.

    Yields:
        The tensors to save, those that 16 bits hold exactly as such; None for a model that has nothing to pack, which
        is saved as it is.
    """
    parts = [module for module in model.modules() if getattr(module, "quantization_scheme", None) is not None]
    if not parts:
        yield None
        return
    from compressed_tensors.compressors import ModelCompressor

    compressor = ModelCompressor.from_pretrained_model(model)
    before = vars(model.config).get("quantization_config")
    originals = [(module, module.weight.data, module.weight_scale.data) for module in parts]
    try:
        for module, weight, scale in originals:  # in bfloat16, quotients of 8 bits would not always be rounded right
            module.weight.data, module.weight_scale.data = weight.float(), scale.float()
        with _no_bars():
            compressor.compress_model(model, skip_compressed=True)
        for module, _, scale in originals:
            module.weight_scale.data = scale
        settings = compressor.quantization_config.model_dump(exclude=["quant_method"])
        model.config.quantization_config = settings | {"quant_method": "compressed-tensors"}
        halves: dict[int, Tensor] = {}  # tied weights stay one tensor
        state = model.state_dict()
        # transformers leaves a head that it renames while it loads packed weights, GPT-NeoX's, in the file's dtype.
        whole = {"lm_head.weight"} if model.config.model_type == "gpt_neox" else set()
        yield {
            name: tensor if name in whole else halves.setdefault(tensor.data_ptr(), _halved(tensor))
            for name, tensor in state.items()
        }
    finally:
        with _no_bars():
            compressor.decompress_model(model)
        if restore:
            for module, weight, _ in originals:
                module.weight.data = weight
        if before is None:
            vars(model.config).pop("quantization_config", None)
        else:
            model.config.quantization_config = before


def _halved(tensor: Tensor) -> Tensor:
    half = tensor.to(torch.float16) if tensor.dtype == torch.float32 else tensor
    return half if torch.equal(half.to(tensor.dtype), tensor) else tensor


def _no_bars() -> AbstractContextManager:
    """Without the bars that compressed-tensors draws for every second of work."""
    return redirect_stderr(io.StringIO())


def prepare(model: nn.Module) -> nn.Module:
    """Eval mode, no gradients, no cache by default, and RWKV-4's inference rescaling undone (in place).

    RWKV-4 in transformers divides the weights of later blocks by powers of two for fp16's sake and halves the residual
    stream every `rescale_every` blocks. Blocks could then not be moved, and hidden states of different depths not be
    compared; fp32 and bf16 do not need it.
    """
    model.eval().requires_grad_(False)
    if model.config.model_type == "rwkv" and model.config.rescale_every:
        base = model.base_model
        if base.layers_are_rescaled:
            base.training = True  # _rescale_layers multiplies back when it believes that training begins
            base._rescale_layers()
            base.training = False
        model.config.rescale_every = 0
    return model


# ------------------------------------------------------------------------------------------------ taking it apart

# Where transformers keeps the residual blocks, and what comes after them, by architecture.
LAYOUTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("model.decoder.layers", ("model.decoder.final_layer_norm", "model.decoder.project_out")),  # OPT
    ("model.language_model.layers", ("model.language_model.norm",)),  # Gemma-3 with a vision tower
    ("model.layers", ("model.norm",)),  # Llama, Mistral, Qwen2, Qwen3, Gemma-2, Gemma-3, Phi-3, Baichuan
    ("transformer.h", ("transformer.ln_f",)),  # GPT-2
    ("gpt_neox.layers", ("gpt_neox.final_layer_norm",)),  # GPT-NeoX, Pythia
    ("rwkv.blocks", ("rwkv.ln_out",)),  # RWKV-4, RWKV-5
    ("backbone.layers", ("backbone.norm_f",)),  # Mamba
)


@dataclass(frozen=True)
class BlockCalls:
    """What the model's own forward hands to each block besides the hidden states, for one batch of tokens.

    Attributes:
        calls: for each block, positional and named arguments.
        cache: the stand-in for a key-value cache among them, or None.
    """

    calls: tuple[tuple[tuple, dict], ...]
    cache: Any = None


class PrefixKeys:
    """Takes the place of a cache while one block runs: keeps the keys and values of prefixes, then hands them out.

    Attributes:
        rows: for each sequence of the batch that continues the prefixes, the row of its prefix; None while the prefixes
            themselves run.
    """

    is_updated: ClassVar[dict] = {}  # looked at by GPT-2, which allows for an encoder's cache

    def __init__(self) -> None:
        self.rows: Tensor | None = None
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What attention calls with the new keys and values (rows, heads, tokens, size); returns those to attend to."""
        if self.rows is None:
            self._keys, self._values = keys, values
            return keys, values
        past = [x.index_select(0, self.rows.to(x.device)) for x in (self._keys, self._values)]
        return torch.cat([past[0], keys], dim=-2), torch.cat([past[1], values], dim=-2)


@dataclass(frozen=True)
class DecoderStack:
    """A causal language model as embedding, residual blocks, final norm and head.

    Sequences are padded on the right, and no padding mask is used: every architecture here is causal, so real tokens
    never see what follows them, and whoever reads the results leaves padded positions out. Only prefixes that others
    continue are padded on the left, and masked.

    Attributes:
        model: the transformers model the parts belong to.
        blocks: the residual blocks, in order (the model's own ModuleList).
        final: modules applied after the last block (the norm; OPT's projection).
        head: hidden size -> vocabulary.
        softcap: Gemma-2's final logit soft-capping, or None.
    """

    model: nn.Module
    blocks: nn.ModuleList
    final: tuple[nn.Module, ...]
    head: nn.Module
    softcap: float | None

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        embedding = self.model.get_input_embeddings()
        # Of a model that accelerate keeps in parts, or loads block by block, the hook knows better than the weight.
        device = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
        return embedding.weight.device if device is None else torch.device(device)

    @torch.no_grad()
    def start(
        self, input_ids: Tensor, past: Tensor | None = None, real: Tensor | None = None
    ) -> tuple[Tensor, BlockCalls]:
        """Embeds tokens and records what every block is called with.

        Args:
            input_ids: int64 (batch, tokens).
            past: bool (batch, P): where the keys of a prefix of P positions, run before, are real; False is padding on
                the left. `run_block` then needs the PrefixKeys. None: the tokens begin their sequences.
            real: bool (batch, tokens): likewise for tokens that are themselves prefixes, padded on the left.

        Returns:
            X_0 (batch, tokens, hidden size), the residual stream before block 0, after the embedding's own scale or
            norm; and the calls to hand to `run_block`.

        Raises:
            StudyError: a token that the model has no embedding for.
        """
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        if input_ids.max() >= vocabulary:  # on CUDA, looking it up would end the process
            raise StudyError(
                f"token {input_ids.max().item()} is beyond the model's {vocabulary} embeddings: its tokenizer belongs "
                "to another model"
            )
        calls: list[tuple[tuple, dict]] = []
        states: list[Tensor] = []

        def recorder(block: nn.Module):
            def record(hidden_states: Tensor, *args: Any, **kwargs: Any):
                states.append(hidden_states)
                calls.append((args, kwargs))
                return (hidden_states, None, None) if _returns_tuple(block) else hidden_states

            return record

        options: dict[str, Any] = {"use_cache": False}
        if past is not None or real is not None:
            real = torch.ones_like(input_ids, dtype=torch.bool) if real is None else real
            whole = real if past is None else torch.cat([past, real], dim=1)  # (batch, P + tokens)
            positions = (whole.long().cumsum(1) - 1).clamp_min(0)[:, -input_ids.shape[1] :]
            options = {
                "use_cache": True,
                "past_key_values": _empty_cache(0 if past is None else past.shape[1]),
                "position_ids": positions.to(self.device),
                "attention_mask": None if whole.all() else whole.long().to(self.device),
            }
        with _attributes(*((block, "forward", recorder(block)) for block in self.blocks)):
            self.model.base_model(input_ids=input_ids.to(self.device), **options)
        hidden = states[0]
        norm = _embedding_norm(self.blocks[0])
        return (hidden if norm is None else norm(hidden)), BlockCalls(tuple(calls), options.get("past_key_values"))

    @torch.no_grad()
    def run_block(
        self,
        index: int,
        hidden: Tensor,
        calls: BlockCalls,
        keys: PrefixKeys | None = None,
        attention: "SharedAttention | None" = None,
    ) -> Tensor:
        """Block `index` alone: X (batch, tokens, hidden size) -> X of the same shape.

        Args:
            index: of the block.
            hidden: X before it.
            calls: from `start`.
            keys: keeps or provides the keys and values of prefixes, where `start` was told of them.
            attention: keeps what `run_block_without_heads` needs.

        Raises:
            StudyError: `attention` of a block that has none.
        """
        if attention is not None:
            projection = _output_projection(self, index)[0]
            with attention.listening(projection):
                return self.run_block(index, hidden, calls, keys)
        block = self.blocks[index]
        args, kwargs = calls.calls[index]
        if calls.cache is not None:
            args = tuple(keys if value is calls.cache else value for value in args)
            kwargs = {name: keys if value is calls.cache else value for name, value in kwargs.items()}
        if _embedding_norm(block) is None:
            out = block(hidden, *args, **kwargs)
        else:  # RWKV-4 keeps the embedding's norm in block 0; `start` has applied it
            with _attributes((block, "layer_id", -1)):
                out = block(hidden, *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    @torch.no_grad()
    def run_block_without_heads(
        self, index: int, heads: Sequence[int], hidden: Tensor, calls: BlockCalls, attention: "SharedAttention"
    ) -> Tensor:
        """Block `index` without some query heads: the same shapes as `run_block`.

        Attention itself is not run again: the heads' contribution is taken out of the output projection's result.

        Args:
            heads: of the block's query heads.
            attention: from `run_block` on the same `hidden`.

        Raises:
            StudyError: no such head.
        """
        projection, dim, module = _output_projection(self, index)
        parts, weight = [head_slice(self, index, head) for head in heads], getattr(projection, "weight", None)
        if weight is not None and weight.is_floating_point() and weight.device.type != "meta":
            output = attention.outputs.float()
            for part in parts:
                slab = weight.narrow(dim, part.start, part.stop - part.start).float()
                output = output - attention.inputs[..., part].float() @ (slab.T if dim == 1 else slab)
            output = output.to(attention.outputs.dtype)
        else:  # quantized, or not in memory: only the projection itself can read its weights
            inputs = attention.inputs.clone()
            for part in parts:
                inputs[..., part] = 0
            output = projection(inputs)
        with _attributes((module, "forward", lambda *_, **__: (output, None))):
            return self.run_block(index, hidden, calls)

    @torch.no_grad()
    def finish(self, hidden: Tensor) -> Tensor:
        """What follows the last block: the final norm (and OPT's projection). Shape (..., hidden size)."""
        for module in self.final:
            hidden = module(hidden)
        return hidden

    @torch.no_grad()
    def logits(self, finished: Tensor) -> Tensor:
        """Head and soft-cap on finished states (..., hidden size) -> float32 (..., vocabulary)."""
        weight = getattr(self.head, "weight", finished)
        logits = self.head(finished.to(weight.dtype) if weight.is_floating_point() else finished)
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits.float()


def decoder_stack(model: nn.Module) -> DecoderStack:
    """Takes a transformers causal language model apart.

    Supported, and tested as transformers ships them: Llama, Mistral, Qwen2, Qwen3, Gemma-2, Gemma-3, GPT-2, GPT-NeoX,
    OPT, Phi-3, RWKV-4, Mamba; as they are here: RWKV-5, Baichuan. Other models that share one of these layouts work if
    `check_stack` agrees.

    Raises:
        StudyError: no known layout fits.
    """
    for blocks_path, final_paths in LAYOUTS:
        blocks = _submodule(model, blocks_path)
        if isinstance(blocks, nn.ModuleList):
            final = tuple(m for m in (_submodule(model, p) for p in final_paths) if m is not None)
            head = model.get_output_embeddings()
            if head is None:
                break
            softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
            return DecoderStack(model, blocks, final, head, softcap)
    raise StudyError(
        f"cannot take {type(model).__name__} apart: its residual blocks are in none of the known places; "
        "add them to LAYOUTS in models.py"
    )


def check_stack(model: nn.Module, num_tokens: int = 8) -> None:
    """Runs the blocks by hand on a few tokens and compares with the model's own logits.

    Raises:
        StudyError: no layout fits, logits are not finite, or the two differ, as they do for an architecture that does
            something between blocks.
    """
    stack = decoder_stack(model)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(1, num_tokens + 1, device=stack.device)[None] * 7 % vocabulary
    with torch.no_grad():
        own = model(input_ids=ids, use_cache=False).logits.float()
    hidden, calls = stack.start(ids)
    for i in range(len(stack)):
        hidden = stack.run_block(i, hidden, calls)
    by_hand = stack.logits(stack.finish(hidden)).to(own.device)
    if not torch.isfinite(own).all():
        raise StudyError(f"{type(model).__name__} gives NaN or infinite logits: try dtype float32, or other weights")
    difference = (own - by_hand).abs().max().item()
    if difference > 1e-3 * max(1.0, own.abs().max().item()):
        raise StudyError(
            f"cannot take {type(model).__name__} apart: its blocks run one by one give other logits than the model "
            f"(largest difference {difference:.3g})"
        )


def _empty_cache(length: int) -> Any:
    """A cache that says it holds `length` positions, for the masks and positions that the model derives from it."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    cache = DynamicCache()
    if length:
        layer = DynamicLayer()
        layer.lazy_initialization(torch.zeros(0), torch.zeros(0))
        layer.keys = layer.values = torch.zeros(1).expand(1, 1, length, 1)
        cache.layers.append(layer)
    return cache


def has_key_value_cache(model: nn.Module) -> bool:
    """Whether a prefix can be kept as keys and values; RWKV and Mamba carry a state instead."""
    return not getattr(model, "_is_stateful", False)


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    for name in path.split("."):
        module = getattr(module, name, None)
        if module is None:
            return None
    return module


def _returns_tuple(block: nn.Module) -> bool:
    return type(block).__name__ == "RwkvBlock"


def _embedding_norm(block: nn.Module) -> nn.Module | None:
    """RWKV-4's norm of the embedding, which transformers keeps in the first block."""
    return getattr(block, "pre_ln", None)


@contextmanager
def _attributes(*settings: tuple[Any, str, Any]) -> Iterator[None]:
    """Sets attributes and puts them back, also on error; what only the class had is deleted from the instance again."""
    missing = object()
    saved = [(obj, name, vars(obj).get(name, missing)) for obj, name, _ in settings]
    try:
        for obj, name, value in settings:
            setattr(obj, name, value)
        yield
    finally:
        for obj, name, value in reversed(saved):
            if value is missing:
                delattr(obj, name)
            else:
                setattr(obj, name, value)


def renumber(blocks: Sequence[nn.Module]) -> list[tuple[nn.Module, str, int]]:
    """Gives every block, and what in it keeps the block's number, its new number (in place).

    Returns:
        (module, attribute, old value) of everything changed, for whoever wants to undo it.
    """
    changed = []
    for index, block in enumerate(blocks):
        for module in block.modules():
            for name in ("layer_idx", "layer_id"):
                old = vars(module).get(name)
                if isinstance(old, int) and old != index:
                    changed.append((module, name, old))
                    setattr(module, name, index)
    return changed


def move_embedding_norm(old_first: nn.Module, new_first: nn.Module) -> None:
    """RWKV-4: the embedding's norm lives in whichever block comes first, so it outlives block 0."""
    if old_first is not new_first and _embedding_norm(old_first) is not None:
        new_first.pre_ln = old_first.pre_ln
        del old_first.pre_ln


class SharedAttention:
    """What a block's attention hands to its output projection, and what comes out of it."""

    inputs: Tensor  # (batch, tokens, heads * size)
    outputs: Tensor  # (batch, tokens, hidden size)

    @contextmanager
    def listening(self, projection: nn.Module) -> Iterator[None]:
        """Takes both down while the block runs."""

        def keep(_: nn.Module, args: tuple, output: Tensor) -> None:
            self.inputs, self.outputs = args[0], output

        handle = projection.register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()


# Where a block keeps its attention, the output projection in it, and which dimension of its weight runs over heads.
_ATTENTION = (
    ("self_attn", "o_proj", 1),  # Llama, Mistral, Qwen, Gemma, Phi-3, Baichuan
    ("self_attn", "out_proj", 1),  # OPT
    ("attn", "c_proj", 0),  # GPT-2: Conv1D stores (in, out)
    ("attention", "dense", 1),  # GPT-NeoX
)


def _output_projection(stack: DecoderStack, layer: int) -> tuple[nn.Module, int, nn.Module]:
    """A block's output projection, the dimension of its weight along which heads lie, and its attention.

    Raises:
        StudyError: the block has no attention (RWKV, Mamba), or a form of it that is not known.
    """
    for path, name, dim in _ATTENTION:
        attention = _submodule(stack.blocks[layer], path)
        if attention is not None and hasattr(attention, name):
            return getattr(attention, name), dim, attention
    raise StudyError(f"block {layer} of {type(stack.model).__name__} has no attention heads to remove")


def head_slice(stack: DecoderStack, layer: int, head: int) -> slice:
    """Where a query head lies in the input of its block's output projection.

    Raises:
        StudyError: no such head, or the block has none.
    """
    projection, dim, _ = _output_projection(stack, layer)
    num_heads = stack.model.config.get_text_config().num_attention_heads
    if not 0 <= head < num_heads:
        raise StudyError(f"head {head} is out of range: block {layer} has query heads 0 to {num_heads - 1}")
    width = getattr(projection, "in_features", None) or projection.weight.shape[dim]
    size = width // num_heads
    return slice(head * size, (head + 1) * size)


def output_projection(stack: DecoderStack, layer: int) -> nn.Module:
    """What a block's attention hands its heads to, side by side as `head_slice` says.

    Raises:
        StudyError: the block has no attention, or a form of it that is not known.
    """
    return _output_projection(stack, layer)[0]
