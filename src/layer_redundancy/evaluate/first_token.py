"""The block that makes a text's first token large: what it writes, and what breaks where it does not.

In many language models one block gives the first token a state far larger than any other token's, and later blocks
attend to it where they have nothing to attend to (attention sinks: Xiao et al. 2023; massive activations: Sun et al.
2024). Here such a block runs, or is left out, for the first token and for the others apart, so that what its removal
costs can be told from what the loss of that one state costs.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from layer_redundancy.core import variants
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Result
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.evaluate import plain_forwards, scoring
from layer_redundancy.evaluate.scoring import ChoiceTask, Outputs, ScoredSequence, Targets
from layer_redundancy.models import throughput
from layer_redundancy.models.stack import DecoderStack, output_projection

# Condition -> whether the block runs for the first token, and for the others.
CONDITIONS = {
    "whole model": (True, True),
    "without the block": (False, False),
    "without it, but the first token has its state back": (True, False),
    "only the first token lacks it": (False, True),
}
WHOLE, WITHOUT, GIVEN_BACK, ONLY_FIRST = CONDITIONS
ATTENTION_TOKENS = 256  # tokens of a text whose attention is looked at: the weights of all pairs are in memory
ATTENTION_TEXTS = 4
MOST_TOKENS = 4096  # of a batch: the states after every block are in memory


@torch.no_grad()
def residual_streams(
    stack: DecoderStack, input_ids: Tensor, block: int, conditions: Iterable[str] = CONDITIONS
) -> Iterator[list[Tensor]]:
    """The residual stream under each condition; the blocks before run once.

    Args:
        stack: the model taken apart.
        input_ids: int64 (batch, tokens), padded on the right.
        block: the block that is left out for some tokens.
        conditions: names of CONDITIONS.

    Returns:
        For each condition the states X_0 .. X_L, each (batch, tokens, hidden size).
    """
    hidden, calls = stack.start(input_ids)
    before = [hidden]
    for i in range(block):
        before.append(stack.run_block(i, before[-1], calls))
    through = stack.run_block(block, before[-1], calls)
    around = before[-1].to(through.device)
    for name in conditions:
        of_first, of_others = CONDITIONS[name]
        state = (through if of_others else around).clone()
        state[:, 0] = (through if of_first else around)[:, 0]
        after = [state]
        for i in range(block + 1, len(stack)):
            after.append(stack.run_block(i, after[-1], calls))
        yield before + after


@torch.no_grad()
def of_text(stack: DecoderStack, text: TokenBlocks, block: int, batch_tokens: int | None = 2048) -> Result:
    """Loss by position, states' norms and attention to the first token, on N blocks of T tokens.

    Returns:
        arrays, with C the conditions of CONDITIONS in their order: nll (C, N, T - 1), nats; first_norm and other_norm
        (C, L + 1), mean norms of the first token's states X_0 .. X_L and of the others'; written (hidden size,), the
        mean share of each channel in the squared norm of what the block adds to the first token; attention (2, L), what
        later tokens pay to the first on average in the whole model and without the block, NaN where it is not known;
        summary: alike, the mean cosine of what the block adds in one text and in another.
    """
    ids = text.input_ids
    rows = max(1, min(MOST_TOKENS, throughput.batch_tokens(stack, batch_tokens)) // ids.shape[1])
    parts = [_of_batch(stack, ids[start : start + rows], block) for start in range(0, len(ids), rows)]
    nll, first, other, added = (
        np.concatenate([part[which] for part in parts], axis=axis) for which, axis in enumerate((1, 1, 1, 0))
    )
    square = added**2
    unit = added / np.linalg.norm(added, axis=1, keepdims=True)
    num = len(unit)
    alike = ((unit.sum(0) ** 2).sum() - num) / (num * (num - 1)) if num > 1 else np.nan
    shown = ids[:ATTENTION_TEXTS, :ATTENTION_TOKENS]
    attention = [attention_to_first(stack, shown, removed) for removed in ((), (block,))]
    arrays = {
        "nll": nll.astype(np.float32),
        "first_norm": first.mean(1),
        "other_norm": other.mean(1),
        "written": (square / square.sum(1, keepdims=True)).mean(0),
        "attention": np.stack(attention),
    }
    return Result({"alike": float(alike)}, arrays)


def _of_batch(stack: DecoderStack, ids: Tensor, block: int) -> tuple[np.ndarray, ...]:
    """nll (C, B, T - 1), norms of first and of other tokens (C, B, L + 1), what the block adds to the first (B, d)."""
    nll, first, other = [], [], []
    added = np.empty(0)
    for name, states in zip(CONDITIONS, residual_streams(stack, ids[:, :-1], block), strict=True):
        norms = torch.stack([state.float().norm(dim=-1).cpu() for state in states], dim=-1)  # (B, T - 1, L + 1)
        first.append(norms[:, 0].numpy())
        other.append(norms[:, 1:].mean(1).numpy())
        nll.append(_nll(stack, states[-1], ids[:, 1:]))
        if name == WHOLE:
            before, after = (states[i][:, 0].cpu().double() for i in (block, block + 1))
            added = (after - before).numpy()
    return np.stack(nll), np.stack(first), np.stack(other), added


def _nll(stack: DecoderStack, states: Tensor, targets: Tensor) -> np.ndarray:
    """Negative log-likelihood of each target, (B, T) nats, from the states (B, T, d) after the last block."""
    found = []
    wanted = targets.reshape(-1)
    for chunk in states.reshape(-1, states.shape[-1]).split(scoring.head_rows(stack)):
        logprobs = stack.logits(chunk).log_softmax(-1, dtype=torch.float32)
        here, wanted = wanted[: len(chunk)], wanted[len(chunk) :]
        found.append(-logprobs.gather(-1, here[:, None].to(logprobs.device))[:, 0].cpu())
    return torch.cat(found).view(targets.shape).numpy()


@torch.no_grad()
def attention_to_first(stack: DecoderStack, input_ids: Tensor, removed: Sequence[int] = ()) -> np.ndarray:
    """Share of their attention that later tokens pay to the first: the mean over texts, heads and tokens.

    Args:
        input_ids: int64 (batch, tokens).
        removed: blocks that do not run.

    Returns:
        (L,) by block of the whole model; NaN for removed blocks, and where a model does not say.
    """
    num = len(stack)
    kept = variants.without(num, removed)
    out = np.full(num, np.nan)
    model = stack.model
    try:
        output_projection(stack, 0)
    except StudyError:  # no attention
        return out
    own = model.config._attn_implementation
    shares = []  # and nothing else of the texts: their logits together take gigabytes where the vocabulary is large
    with plain_forwards.applied(stack, kept) as whole:
        try:
            whole.set_attn_implementation("eager")  # the others do not tell their weights
            for row in input_ids:
                said = whole(input_ids=row[None].to(stack.device), output_attentions=True, use_cache=False)
                weights = getattr(said, "attentions", None) or ()
                if len(weights) != len(kept) or any(one is None for one in weights):
                    return out
                shares.append([float(one[0, :, 1:, 0].float().mean()) for one in weights])
        finally:
            whole.set_attn_implementation(own)
    out[list(kept)] = np.mean(shares, axis=0)
    return out


@torch.no_grad()
def of_items(
    stack: DecoderStack, task: ChoiceTask, block: int, conditions: Sequence[str], batch_tokens: int | None = 2048
) -> dict[str, Result]:
    """A task's items under some conditions: condition -> result, as a sweep has it."""
    sequences = task.sequences
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i].input_ids))
    budget = min(MOST_TOKENS, throughput.batch_tokens(stack, batch_tokens))
    outputs: dict[str, dict[int, Outputs]] = {name: {} for name in conditions}
    while order:
        rows = max(1, budget // len(sequences[order[0]].input_ids))
        part, order = order[:rows], order[rows:]
        found = _of_sequences(stack, [sequences[i] for i in part], block, conditions)
        for name, of in zip(conditions, found, strict=True):
            outputs[name].update(zip(part, of, strict=True))
    results = {name: task.result([of[i] for i in range(len(sequences))]) for name, of in outputs.items()}
    return {name: task.with_gold_share(result) for name, result in results.items()}


def _of_sequences(
    stack: DecoderStack, sequences: Sequence[ScoredSequence], block: int, conditions: Sequence[str]
) -> list[list[Outputs]]:
    """Outputs of some sequences, of each condition."""
    ids = pad_sequence([torch.tensor(sequence.input_ids) for sequence in sequences], batch_first=True)
    places, targets = torch.from_numpy(scoring.scored_rows(sequences, ids.shape[1])), Targets(sequences)
    found = []
    for states in residual_streams(stack, ids, block, conditions):
        last = states[-1]
        scored = last.reshape(-1, last.shape[-1])[places.to(last.device)]
        found.append(scoring.score(stack, scored, targets)()[0])
    return found
