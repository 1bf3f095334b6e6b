"""Hidden states -> log-likelihoods of tokens; the head runs only where something is scored."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from layer_redundancy.core import devices
from layer_redundancy.core.arguments import shown
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Outputs, Result, settings_text
from layer_redundancy.models import compiled
from layer_redundancy.models.stack import DecoderStack

if TYPE_CHECKING:  # lm-eval takes seconds to import, and only the tasks need it
    from layer_redundancy.data.benchmark_items import TaskItems
    from layer_redundancy.data.corpora import TokenBlocks

logger = logging.getLogger(__name__)

HEAD_ROWS = 512  # positions that go through the head at once, at least: more are no faster on a processor
GPU_LOGITS = 2**29  # bytes of logits at once on a GPU, where a few milliseconds of Python go with each call of the head


@dataclass(frozen=True)
class ScoredSequence:
    """Tokens that go through the model once, and the continuations scored on them.

    Attributes:
        input_ids: the tokens run, T of them.
        targets: one or more continuations. The k tokens of each are predicted at the last k positions of `input_ids`:
            the letters of one question share one input, and a text to be scored is one long target.
    """

    input_ids: tuple[int, ...]
    targets: tuple[tuple[int, ...], ...]

    @property
    def num_scored(self) -> int:
        """Positions whose next-token distribution is needed."""
        return max(map(len, self.targets))

    @cached_property
    def digest(self) -> bytes:
        """What the store knows outputs by: 16 bytes that no other tokens and targets have."""
        lengths = [len(self.input_ids), len(self.targets), *map(len, self.targets)]
        numbers = np.array([*lengths, *self.input_ids, *chain.from_iterable(self.targets)], "<i8")
        return hashlib.blake2b(numbers.tobytes(), digest_size=16).digest()


class Measurement(Protocol):
    """Something a sweep measures on every variant of a model."""

    @property
    def name(self) -> str:
        """What the results are kept under."""

    @property
    def version(self) -> int:
        """Raised when the same tokens give other numbers."""

    @property
    def data(self) -> str:
        """Fingerprint of the tokens."""

    @property
    def settings(self) -> str:
        """Whatever else changes the numbers, as sorted JSON."""

    @property
    def sequences(self) -> Sequence[ScoredSequence]:
        """What to run, in a fixed order."""

    def result(self, outputs: Sequence[Outputs]) -> Result:
        """Outputs of all sequences -> what is stored."""


def scored_rows(sequences: Sequence[ScoredSequence], width: int, skipped: Sequence[int] | None = None) -> np.ndarray:
    """Where the scored positions of a forward are: what the head needs of it.

    Args:
        sequences: the B sequences of the forward, padded on the right.
        width: T, positions of each sequence in the forward.
        skipped: B lengths of prefixes whose states the forward does not hold; none if not given.

    Returns:
        int64 (N,), indices of rows of the (B * T, hidden size) states; those of the first sequence first.
    """
    parts = [np.empty(0, np.int64)]
    for b, sequence in enumerate(sequences):
        end = b * width + len(sequence.input_ids) - (skipped[b] if skipped is not None else 0)
        parts.append(np.arange(end - sequence.num_scored, end))
    return np.concatenate(parts)


class Targets:
    """The targets of some sequences in terms of their scored positions: the same for every variant, so found once.

    Attributes:
        num_rows: N, scored positions of all sequences.
        rows: int64 (n,), ascending: of every target token, the scored position that predicts it.
        tokens: int64 (n,), the tokens.
        owners: int64 (n,), which target each belongs to, of all sequences' in order.
        counts: number of targets of each sequence.
    """

    def __init__(self, sequences: Sequence[ScoredSequence]):
        self.counts = [len(sequence.targets) for sequence in sequences]
        targets = [target for sequence in sequences for target in sequence.targets]
        ends = np.cumsum([sequence.num_scored for sequence in sequences])
        self.num_rows = int(ends[-1])
        lengths = [len(target) for target in targets]
        starts = np.repeat(ends, self.counts) - lengths
        rows = np.concatenate([np.arange(start, start + k) for start, k in zip(starts, lengths, strict=True)])
        order = np.argsort(rows, kind="stable")
        self.rows = rows[order]
        self.tokens = np.fromiter((token for target in targets for token in target), np.int64, len(rows))[order]
        self.owners = np.repeat(np.arange(len(targets)), lengths)[order]


def head_rows(stack: DecoderStack) -> int:
    """Positions that go through the head at once."""
    if not devices.is_gpu(stack.device):
        return HEAD_ROWS
    embedding = stack.model.get_input_embeddings().weight
    room = min(GPU_LOGITS, devices.total_memory(stack.device) // 64)
    return max(HEAD_ROWS, room // (embedding.shape[0] * embedding.element_size()))


def slab_bytes(device: torch.device) -> int:
    """Bytes of float32 log-probabilities at once; on a processor, what its cache holds."""
    return 2**28 if devices.is_gpu(device) else 2**24


def head_bytes(stack: DecoderStack, vocabulary: int) -> int:
    """Memory that the head takes, roughly: its logits, twice where the model scales them, and log-probabilities."""
    element = stack.model.get_input_embeddings().weight.element_size()
    return 2 * element * head_rows(stack) * vocabulary + slab_bytes(stack.device)


@torch.no_grad()
def score(
    stack: DecoderStack, states: Tensor, targets: Targets, variants: int = 1
) -> Callable[[], list[list[Outputs]]]:
    """Log-likelihoods of every target. On a GPU it is only asked for them, and goes on meanwhile.

    Args:
        stack: the model taken apart.
        states: (variants * N, hidden size): the residual stream after the last block at `scored_rows`.
        targets: those of the sequences that the states are of.
        variants: how many forwards of these sequences the states are from, one after the other.

    Returns:
        A function that waits for the result. For each variant, sequence and target: the sum of log-probabilities
        (natural log; float32 of the model's own logits), and whether every token of the target is the most likely one,
        as lm-eval defines is_greedy.
    """
    rows = (np.arange(variants)[:, None] * targets.num_rows + targets.rows).ravel()
    row, token = devices.sent(states.device, rows, np.tile(targets.tokens, variants))
    of_tokens = _at_once if stack.compiled and len(states) >= HEAD_ROWS else _of_tokens
    # Made beforehand: a small tensor that lies where logits were would leave no room for the next ones.
    logprob = torch.empty(len(rows), device=states.device)
    greedy = torch.empty(len(rows), device=states.device, dtype=torch.bool)
    start = 0  # of a slab, in `states`
    for chunk in _cut(states, head_rows(stack)):
        logits = stack.logits(chunk)  # (R, vocabulary)
        row, token = row.to(logits.device), token.to(logits.device)
        for slab in _cut(logits, slab_bytes(logits.device) // (4 * logits.shape[-1])):
            low, high = np.searchsorted(rows, [start, start + len(slab)])
            logprob[low:high], greedy[low:high] = of_tokens(slab, row[low:high] - start, token[low:high])
            start += len(slab)
    wait = devices.fetched(logprob, greedy)

    def outputs() -> list[list[Outputs]]:
        found, first = (x.numpy() for x in wait())
        num = sum(targets.counts)
        owners = (np.arange(variants)[:, None] * num + targets.owners).ravel()
        sums, missed = (np.bincount(owners, weights, variants * num) for weights in (found, ~first))
        of_targets = zip(sums.tolist(), (missed == 0).tolist(), strict=True)
        return [[list(islice(of_targets, count)) for count in targets.counts] for _ in range(variants)]

    return outputs


def _cut(rows: Tensor, most: int) -> tuple[Tensor, ...]:
    """Parts of about the same number of rows, `most` at most, one at least."""
    most = max(1, most)
    even = -(-len(rows) // -(-len(rows) // most))
    return rows.split(min(most, -(-even // 64) * 64))  # products of an odd number of rows are a tenth slower


def _of_tokens(logits: Tensor, row: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (R, vocabulary), rows and tokens (n,) -> float32 log-probabilities, and whether a row's first maximum."""
    # log_softmax is one fused pass; logsumexp, though it returns less, takes three times as long on CPU.
    logprob = logits.log_softmax(-1, dtype=torch.float32)[row, token]
    if devices.is_gpu(logits.device):
        return logprob, logits.argmax(-1)[row] == token
    # argmax is slow on CPU and needed only where the target reaches the maximum, to break ties as lm-eval does.
    greedy = logits[row, token] == logits.amax(-1)[row]
    greedy[greedy.clone()] = logits[row[greedy]].argmax(-1) == token[greedy]
    return logprob, greedy


def _fused(logits: Tensor, row: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """As `_of_tokens`, in operations that become one kernel when they are compiled: each logit is then read once."""
    exact = logits.float()
    top = exact.amax(-1)
    total = (exact - top[:, None]).exp().sum(-1).log() + top
    return exact[row, token] - total[row], logits.argmax(-1)[row] == token


def _at_once(logits: Tensor, row: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """As `_of_tokens`, by one kernel, whatever the numbers of rows and tokens; where there is none, as it is."""
    if not _refused:
        try:
            with compiled.compiling("the logarithms of the head's probabilities"):
                return compiled.function(_fused, compiled.BACKEND)(logits, row, token)
        except compiled.NotCompiled as error:
            _refused.append(str(error))
            logger.info(f"the head's log-softmax is not compiled and runs as it is ({error})")
    return _of_tokens(logits, row, token)


_refused: list[str] = []  # why `_fused` is not compiled in this process


@dataclass(frozen=True, eq=False)
class Perplexity:
    """exp of the token-weighted mean negative log-likelihood of blocks of running text.

    Every token but a block's first is scored.

    Raises:
        StudyError: the blocks are none, or predict no token; the name is none.
    """

    blocks: "TokenBlocks"
    name: str = "perplexity"
    version: int = 1

    def __post_init__(self) -> None:
        if not hasattr(self.blocks, "input_ids"):
            raise StudyError(f"{shown(self.blocks)} is no text in tokens: give one such as study.evaluation")
        count, length = self.blocks.input_ids.shape
        if not count or length < 2:
            raise StudyError(f"{count} blocks of {length} tokens predict nothing: give at least 1 block of 2")
        if not isinstance(self.name, str) or not self.name:
            raise StudyError(f"a measurement's name must be a text, not {shown(self.name)}")

    @cached_property
    def data(self) -> str:
        """Fingerprint of the token blocks."""
        return self.blocks.fingerprint

    @property
    def settings(self) -> str:
        """No settings: the blocks determine everything."""
        return settings_text({})

    @cached_property
    def sequences(self) -> list[ScoredSequence]:
        """One sequence a block."""
        return [ScoredSequence(tuple(row[:-1]), (tuple(row[1:]),)) for row in self.blocks.input_ids.tolist()]

    def result(self, outputs: Sequence[Outputs]) -> Result:
        """arrays: nll (N,) summed over each block's tokens, nats; summary: perplexity, nll a token, tokens."""
        nll = -np.array([targets[0][0] for targets in outputs])
        tokens = self.blocks.input_ids.shape[1] - 1
        mean = nll.sum() / (len(nll) * tokens)
        summary = {"perplexity": float(np.exp(min(mean, 700))), "nll": float(mean), "tokens": len(nll) * tokens}
        return Result(summary, {"nll": nll, "tokens": np.full(len(nll), tokens)})


@dataclass(frozen=True, eq=False)
class Passages:
    """The loss of passages of text of any lengths: what two models read that cut the same text into other tokens.

    Every token but a passage's first is scored.

    Attributes:
        pieces: the tokens of each passage, at least two.
    """

    pieces: tuple[tuple[int, ...], ...]
    name: str = "passages"
    version: int = 1

    @cached_property
    def data(self) -> str:
        """Fingerprint of the tokens: sha256 (hex) of each passage's length and tokens, as little-endian int64."""
        digest = hashlib.sha256()
        for piece in self.pieces:
            digest.update(np.array([len(piece), *piece], "<i8").tobytes())
        return digest.hexdigest()

    @property
    def settings(self) -> str:
        """No settings: the passages determine everything."""
        return settings_text({})

    @cached_property
    def sequences(self) -> list[ScoredSequence]:
        """One sequence a passage."""
        return [ScoredSequence(piece[:-1], (piece[1:],)) for piece in self.pieces]

    def result(self, outputs: Sequence[Outputs]) -> Result:
        """arrays: nll and tokens (N,), of all scored tokens of each passage, nats; summary: nll a token, tokens."""
        nll = -np.array([targets[0][0] for targets in outputs])
        tokens = np.array([len(piece) - 1 for piece in self.pieces])
        return Result(
            {"nll": float(nll.sum() / tokens.sum()), "tokens": int(tokens.sum())}, {"nll": nll, "tokens": tokens}
        )


@dataclass(frozen=True, eq=False)
class ChoiceTask:
    """A multiple-choice task of lm-eval: its requests, scored here; its own process_results, for the metrics."""

    items: "TaskItems"
    version: int = 1
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"task/{self.items.name}")

    @cached_property
    def data(self) -> str:
        """Fingerprint of the requests, the gold answers and the task's metrics."""
        return self.items.fingerprint

    @property
    def settings(self) -> str:
        """The number of worked examples in the prompt, as sorted JSON."""
        return settings_text({"num_fewshot": self.items.num_fewshot})

    @cached_property
    def _grouped(self) -> dict[tuple[int, ...], list[int]]:
        """Requests by the tokens that go through the model: letters after one prompt share them."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, request in enumerate(self.items.requests):
            whole = request.context_ids + request.continuation_ids
            groups.setdefault(whole[:-1], []).append(i)
        return groups

    @cached_property
    def sequences(self) -> list[ScoredSequence]:
        """One sequence a distinct input."""
        requests = self.items.requests
        return [
            ScoredSequence(tokens, tuple(requests[i].continuation_ids for i in members))
            for tokens, members in self._grouped.items()
        ]

    def loglikelihoods(self, outputs: Sequence[Outputs]) -> list[tuple[float, bool]]:
        """Outputs by sequence -> by request, in lm-eval's order."""
        answers: list[Any] = [None] * len(self.items.requests)
        for members, targets in zip(self._grouped.values(), outputs, strict=True):
            for i, output in zip(members, targets, strict=True):
                answers[i] = tuple(output)
        return answers

    def result(self, outputs: Sequence[Outputs]) -> Result:
        """arrays: loglikelihood (requests,) and gold_logprob (items,) in nats, each metric (items,); summary: means."""
        answers = self.loglikelihoods(outputs)
        table = self.items.metrics(answers)
        metrics = {name: table[name].to_numpy(dtype=float) for name in self.items.metric_names}
        summary = {name: float(values.mean()) for name, values in metrics.items()}
        summary |= {"items": self.items.num_items, "chance": self.items.chance}
        arrays = {
            "loglikelihood": np.array([a[0] for a in answers]),
            "gold_logprob": table["gold_logprob"].to_numpy(dtype=float),
        }
        return Result(summary, arrays | metrics)

    def with_gold_share(self, result: Result) -> Result:
        """A result, and how sure the model is of the right choice among the item's choices.

        An accuracy turns over at one point; this falls long before. It follows from the choices' log-likelihoods, so
        that it needs no measurement of its own; for letters it compares the letters alone.

        Returns:
            The result with an array gold_share (items,): log-probability of the right choice where the choices'
            probabilities sum to 1, in nats; NaN where there is nothing to choose or several choices are right.
        """
        starts = np.searchsorted([request.doc for request in self.items.requests], np.arange(self.items.num_items))
        gold_share = np.full(self.items.num_items, np.nan)
        for i, (item, start) in enumerate(zip(self.items.items, starts, strict=True)):
            if item.gold is not None and item.num_choices > 1:
                choices = result.arrays["loglikelihood"][start : start + item.num_choices]
                gold_share[i] = choices[item.gold] - np.logaddexp.reduce(choices)
        return replace(result, arrays=result.arrays | {"gold_share": gold_share})


@dataclass(frozen=True, eq=False)
class WrittenAnswers:
    """A multiple-choice task asked openly: would the model, writing greedily, write the right choice?

    It would where each of the choice's tokens is the most likely one after those before it, which the forwards of the
    task tell: its sequences are the task's own, and nothing runs twice.
    """

    task: ChoiceTask
    version: int = 1
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"written/{self.items.name}")

    @property
    def items(self) -> "TaskItems":
        """The task's items."""
        return self.task.items

    @property
    def data(self) -> str:
        """As the task's."""
        return self.task.data

    @property
    def settings(self) -> str:
        """As the task's."""
        return self.task.settings

    @property
    def sequences(self) -> list[ScoredSequence]:
        """The task's."""
        return self.task.sequences

    def result(self, outputs: Sequence[Outputs]) -> Result:
        """arrays: written (items,), 1 where the right choice is what the model writes; summary: its mean, items.

        Raises:
            StudyError: an item has no single right choice.
        """
        gold = [item.gold for item in self.items.items]
        if None in gold:
            raise StudyError(f"{self.items.name} has items without a single right choice: it cannot be asked openly")
        asked = zip(self.items.requests, self.task.loglikelihoods(outputs), strict=True)
        written = np.array([float(greedy) for request, (_, greedy) in asked if request.choice == gold[request.doc]])
        return Result({"written": float(written.mean()), "items": len(written)}, {"written": written})


class RandomSequences:
    """Stands in for text and prompts where a model has random weights and no tokenizer.

    Args:
        vocabulary: tokens are drawn from 3 to this.
        count: number of sequences.
        prefix: tokens that all of them begin with.
        length: tokens of each sequence that follow the prefix.
        targets: 1 for a target as long as that, as in a text; else so many single tokens, as letters after a prompt.
    """

    version, name, settings = 1, "random", settings_text({})

    def __init__(self, vocabulary: int, count: int, prefix: int, length: int, targets: int):
        rng = np.random.default_rng(0)

        def tokens(n: int) -> tuple[int, ...]:
            return tuple(map(int, rng.integers(3, vocabulary, n)))

        shared = tokens(prefix)
        self.sequences = []
        for _ in range(count):
            ids = shared + tokens(length + 1)
            # One long target, as in a text, or single letters after a prompt.
            wanted = (ids[-length:],) if targets == 1 else tuple(tokens(1) for _ in range(targets))
            self.sequences.append(ScoredSequence(ids[:-1], wanted))
        self.data = str(rng.integers(2**31))

    def result(self, outputs: list[Outputs]) -> Result:
        """arrays: the log-likelihood of every target, nats."""
        return Result({}, {"loglikelihood": np.array([o[0] for targets in outputs for o in targets])})


def finite(outputs: Iterable[Outputs]) -> bool:
    """Whether no log-likelihood is NaN or infinite."""
    return bool(np.isfinite([logprob for targets in outputs for logprob, _ in targets]).all())
