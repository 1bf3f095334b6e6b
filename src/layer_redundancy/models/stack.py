"""A model taken apart.

A causal language model is, to this study, an embedding, an ordered list of residual blocks, and what follows them (a
final norm and a head). Nothing around the blocks is rebuilt here: the model's own forward is run with blocks that only
record what they are called with, or that hand over what other blocks have left. So masks by layer type, embedding
scales, position tables, norms, projections and scales of logits are the model's own, whatever the architecture.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakSet

import torch
from torch import Tensor, nn

from layer_redundancy.core.errors import StudyError
from layer_redundancy.models import architectures, linear, rotary
from layer_redundancy.models.architectures import Architecture
from layer_redundancy.models.attributes import attributes
from layer_redundancy.models.states import PrefixStates


def prepare(model: nn.Module) -> nn.Module:
    """Eval mode, no gradients, fast linear layers and the model's own blocks (`Architecture.prepare`), in place."""
    model.eval().requires_grad_(False)
    linear.by_onednn(model)
    rotary.forget_lengths(model)
    architectures.find(model.config).prepare(model)
    return model


@dataclass(frozen=True)
class BlockCalls:
    """What the model's own forward hands to each block besides the hidden states, for one batch of tokens.

    Attributes:
        calls: positional and named arguments for each block.
        cache: the stand-in for a key-value cache among them, or None.
    """

    calls: tuple[tuple[tuple, dict], ...]
    cache: Any = None

    def arguments(self, index: int, keys: "PrefixKeys | None" = None) -> tuple[tuple, dict]:
        """What block `index` is called with, `keys` in place of the stand-in."""
        args, kwargs = self.calls[index]
        if self.cache is None:
            return args, kwargs
        return (
            tuple(keys if value is self.cache else value for value in args),
            {name: keys if value is self.cache else value for name, value in kwargs.items()},
        )


class PrefixKeys:
    """Takes the place of a cache while one block runs: keeps the keys and values of prefixes, then hands them out.

    Attributes:
        rows: the prefix's row for each sequence of the batch that continues the prefixes; None while the prefixes
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
        assert self._keys is not None and self._values is not None, "the prefixes themselves run first"
        past = [x.index_select(0, self.rows.to(x.device)) for x in (self._keys, self._values)]
        return torch.cat([past[0], keys], dim=-2), torch.cat([past[1], values], dim=-2)

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        """Tokens of the prefixes that are kept; MPT asks for it."""
        return 0 if self._keys is None else self._keys.shape[-2]


@dataclass(frozen=True)
class DecoderStack:
    """A causal language model as embedding, residual blocks, final norm and head.

    Sequences are padded on the right, and no padding mask is used: every architecture here is causal, so real tokens
    never see what follows them, and whoever reads the results leaves padded positions out. Only prefixes that others
    continue are padded on the left, and masked.

    Attributes:
        model: the transformers model the parts belong to.
        blocks: the residual blocks, in order (the model's own ModuleList).
        final: the norm beside the blocks (and OPT's projection), for whoever trains or counts them.
        head: hidden size -> vocabulary.
        architecture: the model's family.
        compiled: whether small operations are to be compiled into fewer kernels, which takes some seconds at first.
    """

    model: nn.Module
    blocks: nn.ModuleList
    final: tuple[nn.Module, ...]
    head: nn.Module
    architecture: Architecture
    compiled: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        embedding = self.model.get_input_embeddings()
        # Where accelerate keeps a model in parts, or loads it block by block, the hook's device is the right one.
        device = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
        return embedding.weight.device if device is None else torch.device(device)

    @torch.no_grad()
    def start(
        self,
        input_ids: Tensor,
        past: Tensor | None = None,
        real: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> tuple[Tensor, BlockCalls]:
        """Embeds tokens and records what every block is called with.

        Args:
            input_ids: int64 (batch, tokens).
            past: bool (batch, P): where the keys of a prefix of P positions, run before, are real; False is padding on
                the left. `run_block` then needs the PrefixKeys. None: the tokens begin their sequences.
            real: bool (batch, tokens): likewise for tokens that are themselves prefixes, padded on the left.
            positions: int64 (batch, tokens): positions of tokens of several sequences in a row; their attention masks
                are for whoever runs the blocks to make.

        Returns:
            X_0 (batch, tokens, hidden size), the residual stream before block 0, after the embedding's own scale or
            norm; and the calls to hand to `run_block`.

        Raises:
            StudyError: a token that the model has no embedding for.
        """
        check_tokens(self.model, input_ids)
        options: dict[str, Any] = {"use_cache": False}
        if positions is not None:
            nothing = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)  # passed on as it is, and not used
            options |= {"position_ids": positions.to(self.device), "attention_mask": nothing}
        elif self.architecture.carries_state:
            options["attention_mask"] = None if real is None or real.all() else real.long().to(self.device)
        elif past is not None or real is not None:
            real = torch.ones_like(input_ids, dtype=torch.bool) if real is None else real.to(input_ids.device)
            whole = real if past is None else torch.cat([past.to(real.device), real], dim=1)  # (batch, P + tokens)
            positions = (whole.long().cumsum(1) - 1).clamp_min(0)[:, -input_ids.shape[1] :]
            options = {
                "use_cache": True,
                "past_key_values": _empty_cache(0 if past is None else past.shape[1]),
                "position_ids": positions.to(self.device),
                # Of what continues a prefix, Moshi makes no causal mask unless it is given one.
                "attention_mask": None if past is None and whole.all() else whole.long().to(self.device),
            }
            if not all(type(block) in _returned for block in self.blocks):
                self.start(input_ids[:1, :1])
        calls: list[tuple[tuple, dict]] = []
        states: list[Tensor] = []

        def recording(block: nn.Module) -> Callable:
            own = block.forward

            def record(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
                states.append(hidden_states)
                calls.append((args, kwargs))
                if type(block) not in _returned:
                    out = own(hidden_states, *args, **kwargs)
                    empty = isinstance(out, tuple | list) and type(out)([None] * len(out))
                    _returned[type(block)] = _shaped_like(empty or out)
                return _returned[type(block)](hidden_states)

            return record

        with attributes(*((block, "forward", recording(block)) for block in self.blocks)):
            self.model.base_model(input_ids=input_ids.to(self.device), **options)
        if len(calls) != len(self.blocks):
            raise StudyError(
                f"cannot take {type(self.model).__name__} apart: its forward calls its {len(self.blocks)} blocks "
                f"{len(calls)} times"
            )
        hidden = self.architecture.first_residual(self.blocks[0], states[0])
        return hidden, BlockCalls(tuple(calls), options.get("past_key_values"))

    @torch.no_grad()
    def run_block(
        self,
        index: int,
        hidden: Tensor,
        calls: BlockCalls,
        keys: PrefixKeys | PrefixStates | None = None,
    ) -> Tensor:
        """Block `index` alone: X (batch, tokens, hidden size) -> X of the same shape.

        Args:
            index: index of the block.
            hidden: X before it.
            calls: the block calls, from `start`.
            keys: keeps or provides the keys and values of prefixes, where `start` was given any; or states, of which
                `start` knows nothing.
        """
        if isinstance(keys, PrefixStates):
            return keys.run_block(self.architecture, self.blocks[index], hidden, *calls.calls[index])
        args, kwargs = calls.arguments(index, keys)
        out = self.architecture.run_block(self.blocks[index], hidden, args, kwargs)
        return out[0] if isinstance(out, tuple | list) else out

    @torch.no_grad()
    def attend(
        self, index: int, hidden: Tensor, calls: BlockCalls, keys: PrefixKeys | PrefixStates | None = None
    ) -> "SharedAttention":
        """Block `index` as far as its attention: what `run_block_without_heads` needs of it. Arguments as `run_block`.

        Raises:
            StudyError: the block has no attention.
        """
        attention = SharedAttention()
        with attention.listening(*_output_projection(self, index), self.blocks[index], keys):
            self.run_block(index, hidden, calls, keys)
        return attention

    @torch.no_grad()
    def run_block_without_heads(
        self, index: int, heads: Sequence[int], hidden: Tensor, calls: BlockCalls, attention: "SharedAttention"
    ) -> Tensor:
        """Block `index` without some query heads: the same shapes as `run_block`.

        The heads' contribution is taken out of the output projection's result; attention is not run again, unless
        it goes on after its projection.

        Args:
            heads: indices of the block's query heads to leave out.
            attention: what `attend` kept on the same `hidden`.

        Raises:
            StudyError: no such head.
        """
        projection, module = _output_projection(self, index)
        parts, weight = [head_slice(self, index, head) for head in heads], getattr(projection, "weight", None)
        assert attention.outputs is not None, "its block has run"
        if weight is not None and weight.is_floating_point() and weight.device.type != "meta":
            output = attention.outputs.float()
            for part in parts:
                slab = weight.narrow(_heads_dim(projection), part.start, part.stop - part.start).float()
                slab = slab.T if _heads_dim(projection) == 1 else slab
                output = output - attention.inputs[..., part].float() @ slab
            output = output.to(attention.outputs.dtype)
        else:  # quantized, or not in memory: only the projection itself can read its weights
            inputs = attention.inputs.clone()
            for part in parts:
                inputs[..., part] = 0
            output = projection(inputs)
        if attention.returned is None:  # Bloom's attention adds the residual stream, so all of it runs again
            with attributes((projection, "forward", lambda *_, **__: output)):
                return self.run_block(index, hidden, calls, attention.keys)
        with attributes((module, "forward", lambda *_, **__: attention.returned(output))):
            return self.run_block(index, hidden, calls)

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """What follows the last block, on X_L at any positions.

        The model's own forward computes it, with blocks that hand over `hidden`: final norm, projections, head, scales
        and soft-caps are the model's.

        Args:
            hidden: (..., hidden size), not normalised.

        Returns:
            (..., vocabulary), in the dtype that the model gives.
        """
        rows = hidden.reshape(-1, 1, hidden.shape[-1])  # each a sequence of one token
        # Any token will do; one of the first is often padding, which some models warn of.
        token = min(5, self.model.get_input_embeddings().weight.shape[0] - 1)
        ids = torch.full((len(rows), 1), token, dtype=torch.long, device=self.device)

        def passing(block: nn.Module, out: Tensor | None) -> Callable:
            shaped = _returned.get(type(block), _shaped_like(rows))
            return lambda hidden_states, *_, **__: shaped(hidden_states if out is None else out)

        # With a cache, even an empty one, transformers does not look at positions for several sequences in a row: the
        # answer would be waited for until a GPU has done all that it was asked for before.
        options: dict[str, Any] = {"use_cache": False}
        if self.model in takes_cache:
            options = {"use_cache": True, "past_key_values": _empty_cache(0)}
        # The first block's stand-in ignores what the embedding gives.
        stands = [passing(block, None if i else rows) for i, block in enumerate(self.blocks)]
        with attributes(*((block, "forward", stand) for block, stand in zip(self.blocks, stands, strict=True))):
            out = self.model(input_ids=ids, **options).logits
        return out.reshape(*hidden.shape[:-1], -1)


# Models that were seen to take a cache of transformers' usual kind (`checks.sharing`).
takes_cache: WeakSet[nn.Module] = WeakSet()
# What a block of a class that leaves given states returns; learnt from the first block of the class that runs.
_returned: dict[type, Callable[[Tensor], Any]] = {}


def _shaped_like(output: Any) -> Callable[[Tensor], Any]:
    """Makes of a tensor what `output` is: the tensor itself, or a tuple or list that begins with it."""
    if not isinstance(output, tuple | list):
        return lambda first: first
    kind, rest = type(output), output[1:]
    return lambda first: kind([first, *rest])


def check_tokens(model: nn.Module, input_ids: Tensor) -> None:
    """Raises StudyError for a token that the model has no embedding for; on CUDA, looking it up ends the process."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if input_ids.max() >= vocabulary:
        raise StudyError(
            f"token {input_ids.max().item()} is beyond the model's {vocabulary} embeddings: its tokenizer belongs to "
            "another model"
        )


def decoder_stack(model: nn.Module) -> DecoderStack:
    """Takes a transformers causal language model apart; docs/architectures.md lists those that were tried.

    Raises:
        StudyError: there are no residual blocks to be found, or no head.
    """
    config = getattr(model, "config", None)
    architecture = architectures.find(config)
    place = architecture.blocks(model) if config is not None else None
    if place is None:
        raise StudyError(
            f"cannot take {type(model).__name__} apart: no list of as many residual blocks as its config names was "
            "found in it; docs/how-to.md tells how to add a model family"
        )
    head = model.get_output_embeddings()
    if head is None:
        raise StudyError(f"cannot take {type(model).__name__} apart: it has no head, so it predicts no tokens")
    parent, name = place
    return DecoderStack(model, getattr(parent, name), architecture.final(parent, name), head, architecture)


def _empty_cache(length: int) -> Any:
    """A cache that reports `length` positions, for the masks and positions that the model derives from it."""
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
    return architectures.find(model.config).keeps_keys_and_values(model)


def can_share_prefixes(model: nn.Module) -> bool:
    """Whether something of a prefix can be kept: keys and values, or a state that sequences can start from."""
    return has_key_value_cache(model) or architectures.find(model.config).starts_from_states(model)


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


class _Attended(Exception):
    """A block's attention has run, and nothing of what follows in the block is needed."""


class SharedAttention:
    """What a block's attention hands to its output projection, and what comes out of it."""

    inputs: Tensor  # (batch, tokens, heads * size)
    outputs: Tensor | None = None  # (batch, tokens, hidden size)
    # What attention returns, given what its projection does; None where it goes on after its projection.
    returned: Callable[[Tensor], Any] | None
    keys: PrefixKeys | PrefixStates | None  # for whoever runs the block again

    @contextmanager
    def listening(
        self, projection: nn.Module, module: nn.Module, block: nn.Module, keys: PrefixKeys | PrefixStates | None
    ) -> Iterator[None]:
        """Keeps all of this while the block runs, and ends the block's run where it is there."""
        self.keys = copy.copy(keys)
        # A block whose weights come and go with its run is let run to its end.
        whole = any(hasattr(part, "_hf_hook") for part in block.modules())

        def keep(_: nn.Module, args: tuple, output: Tensor) -> None:
            self.inputs, self.outputs = args[0], output

        def compare(_: nn.Module, args: tuple, output: Any) -> None:
            first, own = output[0] if isinstance(output, tuple | list) else output, self.outputs
            same = own is not None and first.shape == own.shape and first.data_ptr() == own.data_ptr()
            self.returned = _shaped_like(output) if same else None
            if same and not whole:
                raise _Attended

        handles = [projection.register_forward_hook(keep), module.register_forward_hook(compare)]
        try:
            yield
        except _Attended:
            pass
        finally:
            for handle in handles:
                handle.remove()
        if self.outputs is None:
            raise StudyError(f"a {type(module).__name__} reads its output projection's weight itself: no head can go")


def _output_projection(stack: DecoderStack, layer: int) -> tuple[nn.Module, nn.Module]:
    """A block's output projection, and its attention.

    Raises:
        StudyError: the block has no attention (RWKV, Mamba), or a form of it that is not known.
    """
    for form in stack.architecture.attentions:
        attention = _submodule(stack.blocks[layer], form.path)
        if attention is not None and isinstance(getattr(attention, form.projection, None), nn.Module):
            return getattr(attention, form.projection), attention
    raise StudyError(f"block {layer} of {type(stack.model).__name__} has no attention heads to remove")


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    for name in path.split("."):
        module = getattr(module, name, None)
        if module is None:
            return None
    return module


def _heads_dim(projection: nn.Module) -> int:
    """The dimension of a projection's weight along which its inputs lie: 0 in GPT-2's Conv1D, which is transposed."""
    from transformers.pytorch_utils import Conv1D

    return 0 if isinstance(projection, Conv1D) else 1


def head_slice(stack: DecoderStack, layer: int, head: int) -> slice:
    """Where a query head lies in the input of its block's output projection.

    Raises:
        StudyError: no such head, or the block has none.
    """
    num_heads, size = heads_of(stack, layer)
    if not 0 <= head < num_heads:
        raise StudyError(f"head {head} is out of range: block {layer} has query heads 0 to {num_heads - 1}")
    return slice(head * size, (head + 1) * size)


def heads_of(stack: DecoderStack, layer: int) -> tuple[int, int]:
    """A block's number of query heads, and how many inputs of its output projection each of them has.

    Raises:
        StudyError: the block has no heads, or they do not lie side by side.
    """
    projection, attention = _output_projection(stack, layer)
    width = getattr(projection, "in_features", None)
    if width is None and hasattr(projection, "weight"):
        width = projection.weight.shape[_heads_dim(projection)]
    # Blocks may differ: attention knows best, then what it says of a head's size, then the config.
    own = (getattr(attention, name, None) for name in ("num_heads", "num_attention_heads"))
    sizes = (getattr(attention, name, None) for name in ("v_head_dim", "head_dim"))
    num_heads = next((number for number in own if isinstance(number, int)), None)
    size = next((size for size in sizes if isinstance(size, int)), None)
    if num_heads is None and width and size:
        num_heads = width // size
    num_heads = num_heads or stack.model.config.get_text_config(decoder=True).num_attention_heads
    if width is None or width % num_heads:
        raise StudyError(
            f"block {layer} of {type(stack.model).__name__} has no attention heads to remove: its output projection, a "
            f"{type(projection).__name__}, takes {width or 'no known number of'} inputs, not {num_heads} heads"
        )
    return num_heads, width // num_heads


def output_projection(stack: DecoderStack, layer: int) -> nn.Module:
    """What a block's attention hands its heads to, side by side as `head_slice` says.

    Raises:
        StudyError: the block has no attention, or a form of it that is not known.
    """
    return _output_projection(stack, layer)[0]
