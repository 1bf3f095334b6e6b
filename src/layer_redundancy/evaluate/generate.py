"""Greedy continuations by pruned models, and what they and the dense model make of each other's.

A pruned model and the dense one are compared at each position of a continuation in three ways:

    free-running    each continues the prompt with its own tokens;
    teacher-forced  both read the dense model's continuation;
    own text        both read the pruned model's continuation.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from layer_redundancy.core import flags
from layer_redundancy.core.devices import halved
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Key, Result, Store, settings_text
from layer_redundancy.core.variants import Variant, dense, name, plan
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.evaluate import plain_forwards
from layer_redundancy.models import checks, rotary, throughput
from layer_redundancy.models.checkpoints import ModelIdentity
from layer_redundancy.models.stack import DecoderStack, decoder_stack

VERSION = 1  # raise it when the arrays of a stored continuation mean something else
NGRAM = 4  # tokens whose repetition counts
_Part = TypeVar("_Part")


@dataclass(frozen=True)
class PromptLengths:
    """How many prompts are continued, and how long they and their continuations are.

    Attributes:
        prompts: beginnings of blocks of evaluation text, each continued by every variant.
        prompt_tokens: tokens of each prompt.
        new_tokens: tokens generated after each prompt; together with the prompt no longer than a block.
    """

    prompts: int
    prompt_tokens: int
    new_tokens: int


def check_length(blocks: TokenBlocks, budget: PromptLengths) -> None:
    """Raises StudyError unless a prompt and the text that goes on from it fit in a block, and n-grams fit in that."""
    length = blocks.input_ids.shape[1]
    if min(budget.prompts, budget.prompt_tokens) < 1 or budget.new_tokens < NGRAM:
        raise StudyError(
            f"generation needs prompts of at least 1 token and {NGRAM} new tokens: raise them under "
            "[budgets.generation] in a profile of your own"
        )
    if budget.prompt_tokens + budget.new_tokens > length:
        raise StudyError(
            f"a prompt of {budget.prompt_tokens} tokens and {budget.new_tokens} new ones are longer than a block of "
            f"text ({length} tokens): lower prompt_tokens or new_tokens under [budgets.generation], or raise "
            "block_length under [text], in a profile of your own"
        )


def end_tokens(model: nn.Module) -> list[int]:
    """Tokens that would end a continuation; they are never chosen, so that all have the same length."""
    ends = model.generation_config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def caching(model: nn.Module, length: int) -> tuple[bool, int | None]:
    """Whether a model, as it is now, is to write with its cache, and how many prompts at a time; None for any number.

    A model whose cache does not do what it should (`checks.writes_as_whole`) writes without, which is slower; so does
    one whose numbers depend on the length where texts get as long as that, since its cache holds what was right before.

    Args:
        model: a transformers causal language model, as it is.
        length: tokens of the longest text, prompt and continuation.
    """
    alike = checks.sharing(model).alike_up_to
    if alike is not None and length > alike:
        return False, None
    if checks.writes_as_whole(model, rows=2):
        return True, None
    return (True, 1) if checks.writes_as_whole(model, rows=1) else (False, None)


@torch.no_grad()
def continuations(model: nn.Module, prompts: Tensor, new_tokens: int, batch_tokens: int = 2048) -> np.ndarray:
    """Continues every prompt with the model's most likely tokens, by transformers' own `generate` where it has a cache.

    Nothing but the argmax decides: penalties and the like in the checkpoint's generation settings are set aside, and
    tokens that end a text are passed over.

    Args:
        model: a transformers causal language model, as it is.
        prompts: int64 (N, P), no padding.
        new_tokens: T, tokens to generate.
        batch_tokens: prompt tokens a forward may hold; halved, down to one prompt, when memory runs out.

    Returns:
        int64 (N, T), the same whatever the batch (to within ties of logits).

    Raises:
        StudyError: not enough memory for one prompt.
    """
    from transformers import GenerationConfig

    device, ends, own = decoder_stack(model).device, end_tokens(model), model.generation_config
    cached, most = caching(model, prompts.shape[1] + new_tokens)
    plain_greedy = GenerationConfig(
        do_sample=False, num_beams=1, use_cache=True, max_new_tokens=new_tokens, min_new_tokens=new_tokens,
        eos_token_id=ends or None, pad_token_id=ends[0] if ends else 0,
    )  # fmt: skip

    def call(rows: slice) -> np.ndarray:
        ids = prompts[rows].to(device)
        if cached:
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids))
            return out[:, ids.shape[1] :].cpu().numpy()
        for _ in range(new_tokens):
            logits = model(input_ids=ids, use_cache=False).logits[:, -1]
            logits[:, ends] = -torch.inf
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True).to(ids.device)], dim=1)
        return ids[:, prompts.shape[1] :].cpu().numpy()

    model.generation_config = plain_greedy
    try:
        rows, width = prompts.shape
        return np.concatenate(list(_batches(call, rows, width, batch_tokens, "one prompt to continue", most)))
    finally:
        model.generation_config = own


@torch.no_grad()
def read(
    model: nn.Module, prompts: Tensor, continuation: np.ndarray, batch_tokens: int = 2048
) -> tuple[np.ndarray, np.ndarray]:
    """What a model makes of given continuations: teacher forcing, one forward, the head on the continuation only.

    Args:
        model: a transformers causal language model, as it is.
        prompts: int64 (N, P).
        continuation: int64 (N, T), read by the model after the prompt.
        batch_tokens: tokens a forward may hold; halved, down to one prompt, when memory runs out.

    Returns:
        choices: int64 (N, T), the model's most likely token at each position given what precedes it, tokens that end a
        text passed over; and nll: float32 (N, T), -log p of the continuation, nats (of the full distribution).

    Raises:
        StudyError: NaN or infinite logits, or not enough memory for one prompt.
    """
    stack, ends = decoder_stack(model), end_tokens(model)
    ids = torch.cat([prompts, torch.from_numpy(continuation)], dim=1)[:, :-1]
    wanted = torch.from_numpy(continuation)
    first_scored = prompts.shape[1] - 1

    def call(rows: slice) -> tuple[np.ndarray, np.ndarray]:
        hidden, calls = stack.start(ids[rows])
        for i in range(len(stack)):
            hidden = stack.run_block(i, hidden, calls)
        logprobs = stack.logits(hidden[:, first_scored:]).log_softmax(-1, dtype=torch.float32)
        if not torch.isfinite(logprobs.amax(-1)).all():
            raise StudyError("logits are NaN or infinite; use dtype float32 or check the weights")
        nll = -logprobs.gather(-1, wanted[rows, :, None].to(logprobs.device))[..., 0]
        logprobs[..., ends] = -torch.inf
        return logprobs.argmax(-1).cpu().numpy(), nll.cpu().numpy()

    num, width = ids.shape
    parts = list(_batches(call, num, width, batch_tokens, "one prompt with its continuation"))
    choices, nll = (np.concatenate(part) for part in zip(*parts, strict=True))
    return choices, nll


def _batches(
    call: Callable[[slice], _Part], rows: int, width: int, batch_tokens: int, what: str, most: int | None = None
) -> Iterator[_Part]:
    """Calls on slices of the rows, as even as possible; yields what they return."""
    wanted = min(max(1, batch_tokens // width), most or rows)
    batch = -(-rows // -(-rows // wanted))
    first = 0
    while first < rows:
        try:
            part = call(slice(first, first + batch))
        except (MemoryError, RuntimeError) as e:
            batch = halved(min(batch, rows - first), e, what)
            continue
        yield part
        first += batch


def measure(
    stack: DecoderStack, variant: Variant, blocks: TokenBlocks, budget: PromptLengths, reference: np.ndarray | None,
    batch_tokens: int = 2048,
) -> Result:  # fmt: skip
    """Continues the prompts with one variant and compares it with the dense model.

    Args:
        stack: the dense model.
        variant: the variant of it that writes.
        blocks: blocks of evaluation text; a prompt is the beginning of one.
        budget: how many prompts, and how long.
        reference: int64 (N, T) the dense model's continuations; None for the dense model itself.
        batch_tokens: tokens a forward may hold.

    Returns:
        arrays (N, T): tokens, int64, the variant's continuations; judged, int64, the dense model's choices when it
        reads those; forced, int64, the variant's choices when it reads the dense model's; nll, float32, -log p of
        `tokens` under the dense model, nats. For the dense model also text_nll: of the real text that follows the
        prompts. summary: means over prompts.
    """
    prompts, text = _prompts(blocks, budget)
    with plain_forwards.applied(stack, variant) as model:
        written = write(model, prompts, budget.new_tokens, reference, batch_tokens)
    if reference is not None:
        return judged(stack, prompts, written, reference, batch_tokens)
    found = _result(written.tokens, written.forced, written.forced, written.nll, written.tokens)
    found.arrays["text_nll"] = read(stack.model, prompts, text.numpy(), batch_tokens=batch_tokens)[1]
    return found


@dataclass(frozen=True, eq=False)
class Written:
    """What a model writes after prompts, and what it makes of a reference's text; (N, T) each.

    Attributes:
        tokens: int64, its continuations.
        forced: int64, its choices when it reads the reference.
        nll: float32, -log p of the reference, nats.
    """

    tokens: np.ndarray
    forced: np.ndarray
    nll: np.ndarray


def write(
    model: nn.Module, prompts: Tensor, new_tokens: int, reference: np.ndarray | None, batch_tokens: int = 2048
) -> Written:
    """Continues prompts, int64 (N, P), and reads the reference's continuations, (N, T); None for its own."""
    tokens = continuations(model, prompts, new_tokens, batch_tokens)
    return Written(tokens, *read(model, prompts, tokens if reference is None else reference, batch_tokens))


def judged(
    stack: DecoderStack, prompts: Tensor, written: Written, reference: np.ndarray, batch_tokens: int = 2048
) -> Result:
    """What the dense model makes of another's continuations; the result of `measure`."""
    choices, nll = read(stack.model, prompts, written.tokens, batch_tokens=batch_tokens)
    return _result(written.tokens, written.forced, choices, nll, reference)


def _result(
    tokens: np.ndarray, forced: np.ndarray, judged: np.ndarray, nll: np.ndarray, reference: np.ndarray
) -> Result:
    summary = {
        "agreement": float((tokens == reference).mean()),
        "forced_agreement": float((forced == reference).mean()),
        "own_agreement": float((judged == tokens).mean()),
        "repetition": float(repetition(tokens).mean()),
        "perplexity": perplexity(nll.mean(dtype=float)),
        "prompts": len(tokens),
    }
    return Result(summary, {"tokens": tokens, "judged": judged, "forced": forced, "nll": nll})


def no_continuations(shape: tuple[int, int]) -> Result:
    """A result of the same shape (N, T) for continuations that were not written."""
    arrays: dict[str, np.ndarray] = {name: np.zeros(shape, np.int64) for name in ("tokens", "judged", "forced")}
    return Result({}, arrays | {name: np.zeros(shape, np.float32) for name in ("nll", "text_nll")})


def _prompts(blocks: TokenBlocks, budget: PromptLengths) -> tuple[Tensor, Tensor]:
    """Prompts (N, P) and the real text that follows them (N, T)."""
    ids = blocks.input_ids[: budget.prompts, : budget.prompt_tokens + budget.new_tokens]
    return ids[:, : budget.prompt_tokens], ids[:, budget.prompt_tokens :]


def key_of(
    identity: ModelIdentity, variant: Variant, blocks: TokenBlocks, budget: PromptLengths, against: dict[str, str]
) -> Key:
    """The store's key of a variant's continuations.

    Args:
        against: what they are compared with; {} for those of the dense model, which are the reference.
    """
    settings = {"prompts": budget.prompts, "prompt_tokens": budget.prompt_tokens, "new_tokens": budget.new_tokens}
    return Key(
        model=identity.fingerprint,
        variant=name(variant),
        measurement="continuations",
        data=blocks.fingerprint,
        settings=settings_text(settings | against),
        version=VERSION + rotary.corrected(identity.config, budget.prompt_tokens + budget.new_tokens),
    )


def beside(
    get_stack: Callable[[], DecoderStack],
    get_other: Callable[[], DecoderStack],
    blocks: TokenBlocks,
    budget: PromptLengths,
    reference: np.ndarray,
    batch_tokens: int | None = 2048,
) -> Result:
    """As `measure`, of another model that reads the same tokens, such as the same one with fewer bits.

    Args:
        get_stack: loads the model whose continuations are the reference.
        get_other: loads the model that is compared with it.
        reference: int64 (N, T), the first one's continuations.
    """
    prompts, other = _prompts(blocks, budget)[0], get_other()
    held = throughput.batch_tokens(other, batch_tokens)
    written = write(other.model, prompts, budget.new_tokens, reference, held)
    return judged(get_stack(), prompts, written, reference, held)


# Eight parameters: what is measured of what, where from, where to, and two settings that most callers leave alone.
@flags.checked
def run(
    identity: ModelIdentity,
    get_stack: Callable[[], DecoderStack],
    variants: Sequence[Variant],
    blocks: TokenBlocks,
    budget: PromptLengths,
    store: Store,
    batch_tokens: int | None = 2048,
    progress: bool = True,
    when_done: Callable[[Variant], None] = lambda variant: None,
) -> dict[Variant, Result]:
    """`measure` for every variant, taking what the store has; each is stored as soon as it is there.

    Args:
        identity: the model.
        get_stack: loads it; called only if something is missing in the store.
        variants: the model's variants to measure; the dense one is always measured too.
        blocks: blocks of evaluation text, at least `budget.prompts` of them.
        budget: how many prompts, and how long.
        store: where results are and go.
        batch_tokens: tokens a forward may hold; None for as many as `throughput` finds on this device.
        progress: draw a progress bar with the time left, in variants.
        when_done: called for each variant that the store did not have.

    Returns:
        variant -> result, the dense model first.

    Raises:
        StudyError: as `variants.plan`, `check_length`, `continuations` and `read`.
    """
    check_length(blocks, budget)

    def key(variant: Variant, reference: np.ndarray | None) -> Key:
        # A variant is compared with these very tokens: rounding on another machine may have chosen others.
        against = {} if reference is None else {"reference": digest(reference)}
        return key_of(identity, variant, blocks, budget, against)

    def stored(variant: Variant, reference: np.ndarray | None) -> Result:
        def compute() -> Result:
            stack = get_stack()
            held = throughput.batch_tokens(stack, batch_tokens)
            result = measure(stack, variant, blocks, budget, reference, held)
            when_done(variant)
            return result

        return store.cached(key(variant, reference), identity.name, compute)

    whole, chosen = dense(identity.num_hidden_layers), plan(identity.num_hidden_layers, variants)
    of_whole = stored(whole, None)
    tokens = of_whole.arrays["tokens"]
    others = [variant for variant in chosen if variant != whole]
    found = store.present({variant: key(variant, tokens) for variant in others})
    results = {whole: of_whole} | found
    missing = [variant for variant in others if variant not in found]
    for variant in tqdm(missing, desc="continuations", unit="variant", disable=not (progress and missing)):
        results[variant] = stored(variant, tokens)
    return {variant: results[variant] for variant in (whole, *others)}


def digest(tokens: np.ndarray) -> str:
    """sha256 (hex) of tokens."""
    return hashlib.sha256(np.array(tokens.shape, "<i8").tobytes() + tokens.astype("<i8").tobytes()).hexdigest()


def perplexity(nll: float) -> float:
    """Perplexity from a mean in nats; finite, so that figures can be drawn."""
    return float(np.exp(min(nll, 700)))


def repetition(tokens: np.ndarray, n: int = NGRAM) -> np.ndarray:
    """Share of each continuation's n-grams that are repeats: 1 - distinct / total, 0 to 1.

    Args:
        tokens: int64 (N, T), T at least n.

    Returns:
        float64 (N,).
    """
    total = tokens.shape[1] - n + 1
    if total < 1:
        raise StudyError(f"continuations of {tokens.shape[1]} tokens have no {n} tokens in a row: generate more")
    return np.array([1 - len({tuple(row[i : i + n]) for i in range(total)}) / total for row in tokens.tolist()])
