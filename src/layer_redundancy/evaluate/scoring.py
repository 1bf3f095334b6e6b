"""Hidden states -> log-likelihoods of tokens; the head runs only where something is scored."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from layer_redundancy.core.arguments import shown
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Result, settings_text
from layer_redundancy.models.stack import DecoderStack

if TYPE_CHECKING:  # lm-eval takes seconds to import, and only the tasks need it
    from layer_redundancy.data.benchmark_items import TaskItems
    from layer_redundancy.data.corpora import TokenBlocks

HEAD_ROWS = 512  # positions that go through the head at once: 512 x 50k vocabulary x 4 bytes = 100 MB


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


Outputs = list[tuple[float, bool]]  # for each target: sum of its tokens' log-probabilities, and whether all are greedy


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


def select(
    stack: DecoderStack, hidden: Tensor, sequences: Sequence[ScoredSequence], skipped: Sequence[int] | None = None
) -> Tensor:
    """The residual stream at scored positions: what the head needs of a forward.

    Args:
        stack: the model taken apart.
        hidden: (B, T, hidden size) X_L of the sequences, padded on the right.
        sequences: the B sequences.
        skipped: B lengths of prefixes whose states `hidden` does not hold; none if not given.

    Returns:
        (N, hidden size), those of the first sequence first.
    """
    rows: list[int] = []
    columns: list[int] = []
    for b, sequence in enumerate(sequences):
        end = len(sequence.input_ids) - (skipped[b] if skipped is not None else 0)
        columns += range(end - sequence.num_scored, end)
        rows += [b] * sequence.num_scored
    return hidden[torch.tensor(rows), torch.tensor(columns)]


@torch.no_grad()
def score(stack: DecoderStack, states: Tensor, sequences: Sequence[ScoredSequence]) -> list[Outputs]:
    """Log-likelihoods of every target.

    Args:
        stack: the model taken apart.
        states: (N, hidden size) from `select`; those of several forwards one after the other.
        sequences: the sequences of these states, in the same order.

    Returns:
        For each sequence and target: the float32 sum of log-probabilities (natural log), and whether every token of the
        target is the most likely one, as lm-eval defines is_greedy.
    """
    wanted, offset = [], 0  # (row of `states`, token) of every target token, in order
    for sequence in sequences:
        offset += sequence.num_scored
        for target in sequence.targets:
            wanted += [(offset - len(target) + k, token) for k, token in enumerate(target)]
    position, token = torch.tensor(wanted).T
    logprob, greedy = torch.empty(len(wanted)), torch.empty(len(wanted), dtype=torch.bool)
    for start in range(0, len(states), HEAD_ROWS):
        logits = stack.logits(states[start : start + HEAD_ROWS])
        here = (position >= start) & (position < start + HEAD_ROWS)
        at, which = position[here].to(logits.device) - start, token[here].to(logits.device)
        # argmax is slow on CPU and needed only where the target reaches the maximum, to break ties as lm-eval does.
        top = logits[at, which] == logits.amax(-1)[at]
        top[top.clone()] = logits[at[top]].argmax(-1) == which[top]
        greedy[here] = top.cpu()
        # log_softmax is one fused pass; logsumexp, though it returns less, takes three times as long on CPU.
        logprob[here] = logits.log_softmax(-1)[at, which].cpu()
    outputs: list[Outputs] = []
    offset = 0
    for sequence in sequences:
        outputs.append([])
        for target in sequence.targets:
            part = slice(offset, offset + len(target))
            outputs[-1].append((logprob[part].sum().item(), bool(greedy[part].all())))
            offset += len(target)
    return outputs


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


def check_finite(outputs: Iterable[Outputs], what: str) -> None:
    """Raises StudyError if a log-likelihood is NaN or infinite."""
    for targets in outputs:
        for logprob, _ in targets:
            if not np.isfinite(logprob):
                raise StudyError(f"{what}: logits are NaN or infinite; use dtype float32 or check the weights")
