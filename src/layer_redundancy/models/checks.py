"""Whether a model is what this study takes models to be: tried on a few random tokens when it is loaded."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from layer_redundancy.core import devices, flags
from layer_redundancy.core.errors import StudyError
from layer_redundancy.models import surgery
from layer_redundancy.models.ragged import Ragged
from layer_redundancy.models.rotary import scaled_from
from layer_redundancy.models.stack import (
    DecoderStack,
    PrefixKeys,
    can_share_prefixes,
    decoder_stack,
    has_key_value_cache,
    takes_cache,
)
from layer_redundancy.models.states import PrefixStates

logger = logging.getLogger(__name__)

TOKENS = 24  # of the sequences that are tried


def check_stack(model: nn.Module) -> None:
    """Checks on a few random tokens that all which this study assumes of a model is true of this one.

    The blocks run one by one give the model's own logits; no token's logits depend on those after it, nor on other
    sequences of the batch; and without some of the blocks, where its family says that any can go, the model itself and
    the blocks run one by one agree.

    Raises:
        StudyError: one of these does not hold, the blocks do not run by hand, or logits are not finite.
    """
    stack, name = decoder_stack(model), type(model).__name__
    first, second, third = _some_tokens(stack, 3)
    half = len(first) // 2
    batch = torch.stack([first, second])
    with _apart(model, "its own forward does not run on token ids alone"):
        own = _own_logits(model, batch)
    if not torch.isfinite(own).all():
        raise StudyError(f"{name} gives NaN or infinite logits: try dtype float32, or other weights")
    with _apart(model, "its blocks do not run one by one"):
        by_hand = _by_hand(stack, batch, range(len(stack)))
    gap = _gap(model, own, by_hand) if own.shape == by_hand.shape else float("inf")
    if gap is not None:
        raise StudyError(
            f"cannot take {name} apart: its blocks run one by one give other logits than the model (largest difference "
            f"{gap:.3g})"
        )
    # In batches of one shape, so that rounding is the same in all of them.
    late = torch.stack([torch.cat([first[:half], third[half:]]), second])
    if (gap := _gap(model, own[0, :half], _own_logits(model, late)[0, :half])) is not None:
        raise StudyError(
            f"{name} is not causal: a token's logits change with the tokens after it (largest difference {gap:.3g}), "
            "so that it defines no likelihood of a text; an encoder is causal where is_decoder=True makes it so"
        )
    if (gap := _gap(model, own[0], _own_logits(model, torch.stack([first, third]))[0])) is not None:
        raise StudyError(
            f"{name} gives a sequence other logits beside other sequences of its batch (largest difference {gap:.3g}): "
            "an answer would depend on its neighbours"
        )
    if stack.architecture.blocks_can_go:
        _check_removal(stack, batch)


def _some_tokens(stack: DecoderStack, rows: int, num_tokens: int = TOKENS) -> Tensor:
    """Token ids (rows, num_tokens), or as many as the model takes."""
    longest = getattr(stack.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    num_tokens = min(num_tokens, longest) if isinstance(longest, int) and longest > 0 else num_tokens
    ids = torch.arange(1, rows * num_tokens + 1, device=stack.device) * 7
    return ids.reshape(rows, num_tokens) % stack.model.get_input_embeddings().weight.shape[0]


def _own_logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits.float()


def _by_hand(stack: DecoderStack, ids: Tensor, kept: Sequence[int]) -> Tensor:
    hidden, calls = stack.start(ids)
    for i in kept:
        hidden = stack.run_block(i, hidden, calls)
    return stack.logits(hidden).float()


def _gap(model: nn.Module, one: Tensor, other: Tensor, same_shape: bool = True) -> float | None:
    """The largest difference of two tensors of a model's logits where it is more than rounding; None where it is not.

    Args:
        model: the model, whose dtype decides how much rounding is.
        one: logits, which give the scale.
        other: logits that ought to be the same.
        same_shape: whether both come from forwards of one shape, of which rounding is nearly the same.
    """
    # Without some of its blocks, a model of 16 bits may overflow.
    one, other = (logits.nan_to_num(0, 0, 0) for logits in (one, other.to(one.device)))
    differences = (one - other).abs().amax(-1)
    exact = model.dtype in (torch.float32, torch.float64)
    tolerance = 1e-3 if exact else 2e-2 if same_shape else 0.2
    # In 16 bits, rounding sends a few tokens of each sequence to other experts.
    typical = differences.max() if exact else differences.median(dim=-1).values.max()
    return None if typical.item() <= tolerance * one.std().item() else differences.max().item()


@contextmanager
def _apart(model: nn.Module, what: str) -> Iterator[None]:
    """One line for whatever a model raises that is not made of blocks as this study runs them."""
    try:
        yield
    except Exception as error:
        raise StudyError(
            f"cannot take {type(model).__name__} apart: {what} ({_told(error)}); docs/how-to.md tells how to add a "
            "model family"
        ) from error


def _told(error: Exception) -> str:
    """What a model that was written for other uses raises when it is run in ours, for one line.

    It may be anything; raised again is a lack of memory, and what this study says itself.
    """
    if isinstance(error, StudyError) or devices.lacks_memory(error):
        raise error
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _check_removal(stack: DecoderStack, ids: Tensor) -> None:
    """Refuses models whose blocks need something of other blocks than the residual stream.

    Raises:
        StudyError: the model itself does not run without some of its blocks, or not as its other blocks do.
    """
    for kept in dict.fromkeys((tuple(range(0, len(stack), 2)), tuple(range(1, len(stack), 2)))):
        if not kept:
            continue
        removed = [i for i in range(len(stack)) if i not in kept]
        try:
            with surgery.without_layers(stack.model, removed):
                own = _own_logits(stack.model, ids)
            by_hand = _by_hand(stack, ids, kept)
        except Exception as error:
            raise StudyError(
                f"{type(stack.model).__name__} does not run without some of its blocks, so that none can be removed by "
                "itself: others take keys of theirs, or a part outside the blocks is made for all of them "
                f"({_told(error)})"
            ) from error
        if (gap := _gap(stack.model, own, by_hand)) is not None:
            raise StudyError(
                f"{type(stack.model).__name__} without some of its blocks is not its other blocks one after the other "
                f"(largest difference {gap:.3g}): what a block computes depends on its number or on other blocks"
            )


@dataclass(frozen=True)
class Sharing:
    """What sequences of a model may share without changing each other's numbers.

    Attributes:
        prefixes: a common beginning, of which keys and values are kept, or the state after it.
        alike_up_to: a batch of several lengths, where none is longer than this; None for any lengths.
    """

    prefixes: bool
    alike_up_to: int | None = None


_sharing: WeakKeyDictionary[nn.Module, Sharing] = WeakKeyDictionary()
_ragged: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def sharing(model: nn.Module) -> Sharing:
    """What this model's sequences may share: tried on a few tokens, once a model; one line says what they may not.

    A prefix's keys and values do not serve where a convolution's state is lost, or the model wants a cache of its own.
    """
    if model in _sharing:
        return _sharing[model]
    stack, name = decoder_stack(model), type(model).__name__
    alike = _alike_up_to(stack)
    if alike is not None:
        logger.info(
            f"{name}: a sequence of more than {alike} tokens has other numbers beside longer ones, so such sequences "
            "run whole, and in batches of one length"
        )
    prefixes = can_share_prefixes(model)
    if prefixes and alike != 0:
        try:
            fault = _prefix_fault(stack)
        except Exception as error:
            fault = _told(error)
        if fault is not None:
            logger.warning(f"{name}: no prefix is shared, every sequence runs whole ({fault})")
        prefixes = fault is None
        if prefixes and has_key_value_cache(model):
            takes_cache.add(model)
    _sharing[model] = Sharing(prefixes and alike != 0, alike)
    return _sharing[model]


def _alike_up_to(stack: DecoderStack) -> int | None:
    """Length up to which a sequence's numbers do not depend on the length of the batch it is in; None if they never do.

    Rotary angles that are scaled with the length (dynamic NTK, LongRoPE) are those of the longest sequence. Whatever
    else depends on the length is looked for on a few tokens.
    """
    scaled = scaled_from(stack.model.config)
    ids = _some_tokens(stack, 2, min(TOKENS, scaled or TOKENS))
    half = ids.shape[1] // 2
    short, whole = (_own_logits(stack.model, x) for x in (ids[:, :half], ids))
    if _gap(stack.model, short, whole[:, :half], same_shape=False) is not None:
        return 0
    return scaled


def _prefix_fault(stack: DecoderStack) -> str | None:
    """What is wrong with the logits of sequences that continue prefixes; None where they are as they should be."""
    ids = _some_tokens(stack, 2, min(TOKENS, scaled_from(stack.model.config) or TOKENS))
    whole = _by_hand(stack, ids, range(len(stack)))
    half = ids.shape[1] // 2
    real = torch.ones(2, half, dtype=torch.bool)
    real[1, :3] = False  # a prefix that is shorter than the other, padded on the left
    before = torch.stack([ids[0, :half], torch.cat([ids[1, :3], ids[1, : half - 3]])])
    rest = [slice(half, -3), slice(half - 3, -6)]  # what follows each prefix, as many tokens
    carries_state = stack.architecture.carries_state
    if carries_state and not stack.architecture.masks_padding:
        prefixes = [stack.start(before[:1]), stack.start(before[1:, 3:])]
    else:
        prefixes = [stack.start(before, real=real)]
    after = torch.stack([ids[i, part] for i, part in enumerate(rest)])
    states, calls = stack.start(after, past=None if carries_state else real)
    for i in range(len(stack)):
        keys = PrefixStates() if carries_state else PrefixKeys()
        prefixes = [(stack.run_block(i, hidden, their, keys), their) for hidden, their in prefixes]
        keys.rows = torch.arange(2)
        states = stack.run_block(i, states, calls, keys)
    wanted = torch.stack([whole[i, part] for i, part in enumerate(rest)])
    gap = _gap(stack.model, wanted, stack.logits(states).float(), same_shape=False)
    return None if gap is None else f"after a shared one its logits differ by {gap:.3g}"


def runs_ragged(model: nn.Module) -> bool:
    """Whether sequences of many lengths can run without padding (`models.ragged`): tried on a few tokens, once a model.

    They cannot where attention is not one of those that transformers lets others take the place of (Bloom's, RWKV, most
    mixed models), or more than attention looks at other tokens.
    """
    if model not in _ragged:
        shared = sharing(model)
        _ragged[model] = shared == Sharing(prefixes=True) and _runs_ragged(decoder_stack(model))
    return _ragged[model]


def _runs_ragged(stack: DecoderStack) -> bool:
    ids = _some_tokens(stack, 2)
    whole = _by_hand(stack, ids, range(len(stack)))
    first, second = ids.tolist()
    half = len(first) // 2
    # Two prefixes of different length, two rests of different length that attend together, and one of a single token.
    prefixes = [tuple(first[:half]), tuple(second[: half - 3])]
    rests = [(0, slice(half, -1)), (1, slice(half - 3, None)), (0, slice(half, half + 1))]
    try:
        ragged = Ragged(
            stack, prefixes, [tuple(ids[i, part].tolist()) for i, part in rests], [i for i, _ in rests], [[0, 1], [2]]
        )
        hidden = ragged.start
        for i in range(len(stack)):
            hidden = ragged.run_block(i, hidden)
    except Exception as error:
        if devices.lacks_memory(error):
            raise
        return False
    wanted = torch.cat([whole[0, :half], whole[1, : half - 3], *(whole[i, part] for i, part in rests)])
    return _gap(stack.model, wanted, stack.logits(hidden)[0], same_shape=False) is None


@torch.no_grad()
@flags.checked
def writes_as_whole(model: nn.Module, rows: int, cached: bool = True) -> bool:
    """Whether a model, as it is now, writes what its whole forwards choose: tried on a few tokens.

    transformers' caches for mixed models fail where no block with attention is left, RWKV-4's step mixes up the
    sequences of a batch, xLSTM's takes no batch at all; RoBERTa's positions are others where it writes.

    Args:
        model: the model, which may lack some blocks.
        rows: sequences of a batch; 1 or more.
        cached: whether it writes with its cache.
    """
    from transformers import GenerationConfig

    ids = _some_tokens(decoder_stack(model), rows, 5)
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=3, eos_token_id=None, pad_token_id=0, use_cache=cached,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    own, model.generation_config = model.generation_config, settings
    try:
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids))
    except Exception as error:
        return devices.lacks_memory(error)  # then it is not the cache, and whoever writes will say so
    finally:
        model.generation_config = own
    whole = _own_logits(model, out.sequences[:, :-1])[:, -3:]
    return _gap(model, whole, torch.stack(out.logits, dim=1).float(), same_shape=False) is None
