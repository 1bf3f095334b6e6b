"""Evaluates many variants of one model, running what they have in common once.

Variants are sequences of kept blocks; put into a trie, a block runs on a batch once for each distinct sequence of
blocks before it. Single removal costs about half a forward a variant, removal from the last block one forward in all.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor, cat
from tqdm import tqdm

from layer_redundancy.core.devices import available, halved
from layer_redundancy.core.store import Key, Result, Store
from layer_redundancy.core.variants import Element, Variant, describe, name
from layer_redundancy.evaluate import scoring
from layer_redundancy.evaluate.batches import PREFIX_BATCHES, Batch, Work, arrange
from layer_redundancy.evaluate.scoring import Measurement, Outputs, ScoredSequence
from layer_redundancy.models.decoder import DecoderStack, ModelIdentity, has_key_value_cache
from layer_redundancy.models.throughput import batch_tokens as fitting_tokens
from layer_redundancy.models.throughput import seconds

KEEP_SECONDS = 5  # how often a batch's outputs go to the store while it runs
POLL_SECONDS = 0.5  # how often to look whether another process has finished what it is at


@dataclass
class Node:
    """A node of the trie: the blocks run so far lead here."""

    children: dict[Element, "Node"] = field(default_factory=dict)
    variant: Variant | None = None


def trie(variants: Iterable[Variant]) -> Node:
    """Puts variants that begin with the same blocks on the same path.

    Of the ways on from a node the one that needs most states comes last, when the others' are no longer held: single
    removal then holds one state, not one a block.
    """
    root = Node()
    for variant in variants:
        node = root
        for element in variant:
            node = node.children.setdefault(element, Node())
        node.variant = variant
    _largest_last(root)
    return root


def _largest_last(node: Node) -> None:
    for child in node.children.values():
        _largest_last(child)
    node.children = dict(sorted(node.children.items(), key=lambda item: num_held(item[1])))


def num_block_runs(node: Node) -> int:
    """How often a block runs for one batch."""
    return sum(1 + num_block_runs(child) for child in node.children.values())


State = TypeVar("State")


def depth_first(
    root: Node, state: State, run_block: Callable[[Element, State, dict], State]
) -> Iterator[tuple[Variant, State]]:
    """Runs the trie on one batch; yields each variant with what its last block leaves.

    States are kept only where paths branch: no more than the trie is deep, however many variants there are.

    Args:
        root: of the trie.
        state: before the first block.
        run_block: (element, state before it, a dict that all elements after the same state share) -> state after it.
    """
    node = root
    while True:
        if node.variant is not None:
            yield node.variant, state
        if not node.children:
            return
        shared: dict = {}
        *branches, (element, last) = node.children.items()
        for branch, child in branches:
            yield from depth_first(child, run_block(branch, state, shared), run_block)
        state, node = run_block(element, state, shared), last


def key(identity: ModelIdentity, variant: Variant, measurement: Measurement) -> Key:
    """The store's key of one variant's measurement."""
    return Key(
        model=identity.fingerprint,
        variant=name(variant),
        measurement=measurement.name,
        data=measurement.data,
        settings=measurement.settings,
        version=measurement.version,
    )


@dataclass(frozen=True)
class Plan:
    """What a sweep will do, told before it does it. Block-tokens: tokens times the blocks that run on them.

    Attributes:
        variants: of the model.
        block_tokens_naive: one plain forward of every sequence for every variant.
        block_tokens_shared: what runs here.
        head_tokens_naive: positions that a plain forward puts through the head.
        head_tokens: those that are scored, the only ones that go through it here.
        seconds: estimate from a few blocks and one call of the head, timed on this device.
        peak_bytes: estimate of the device's memory: weights, states where paths branch, and one forward's workspace.
        shares_prefixes: whether prompt prefixes run once; a model without a key-value cache runs them with every item.
    """

    variants: int
    block_tokens_naive: int
    block_tokens_shared: int
    head_tokens_naive: int
    head_tokens: int
    seconds: float
    peak_bytes: int
    shares_prefixes: bool = True

    def __str__(self) -> str:
        share = self.block_tokens_shared / self.block_tokens_naive
        text = (
            f"{self.variants} variants: {self.block_tokens_naive:.3g} block-tokens one by one, "
            f"{self.block_tokens_shared:.3g} shared ({share:.0%}); head on {self.head_tokens:.3g} of "
            f"{self.head_tokens_naive:.3g} tokens; about {self.seconds / 60:.1f} min, "
            f"{self.peak_bytes / 1e9:.1f} GB of memory here"
        )
        if not self.shares_prefixes:
            text += "; the model has no key-value cache, so every item runs its whole prompt"
        return text


def plan(
    stack: DecoderStack,
    variants: Sequence[Variant],
    measurements: Sequence[Measurement],
    batch_tokens: int | None = 2048,
) -> Plan:
    """What `run` would do for these variants and measurements with an empty store; runs a few blocks to time them."""
    variants = list(dict.fromkeys(variants))
    works = [arrange(m.sequences, has_key_value_cache(stack.model)) for m in measurements]
    return _plan(stack, [(work, variants) for work in works], fitting_tokens(stack, batch_tokens))


def _counts(todo: Sequence[tuple[Work, Sequence[Variant]]]) -> tuple[int, int, int, int]:
    """Block-tokens, naive and shared, and head-tokens, naive and scored."""
    naive = shared = head_naive = head = 0
    for work, variants in todo:
        tokens, scored = (
            sum(f(s) for s in work.sequences) for f in (lambda s: len(s.input_ids), lambda s: s.num_scored)
        )
        naive += sum(map(len, variants)) * tokens
        shared += num_block_runs(trie(variants)) * work.num_tokens()
        head_naive += len(variants) * tokens
        head += len(variants) * scored
    return naive, shared, head_naive, head


def _plan(stack: DecoderStack, todo: Sequence[tuple[Work, Sequence[Variant]]], batch_tokens: int) -> Plan:
    seconds, states = 0.0, 0
    for work, variants in todo:
        root = trie(variants)
        _, block_tokens, _, head_tokens = _counts([(work, variants)])
        batch, (block_rate, head_rate) = _timed(stack, work, _fitting(stack, root, batch_tokens))
        seconds += block_tokens / block_rate + head_tokens / head_rate
        held = sum(s.numel() * s.element_size() for s in batch.start)
        states = max(states, (num_held(root) + 2) * held)
    weights = sum(p.numel() * p.element_size() for p in stack.model.parameters())
    vocabulary = stack.model.get_input_embeddings().weight.shape[0]
    forward = batch_tokens * workspace(stack) + 3 * 4 * scoring.HEAD_ROWS * vocabulary
    distinct = len({v for _, variants in todo for v in variants})
    naive, shared, head_naive, head = _counts(todo)
    shares = has_key_value_cache(stack.model)
    return Plan(distinct, naive, shared, head_naive, head, seconds, weights + states + forward, shares)


def workspace(stack: DecoderStack) -> int:
    """Bytes a token that a block's forward takes, roughly: the widest activations of its MLP."""
    config, element = stack.model.config.get_text_config(), stack.model.get_input_embeddings().weight.element_size()
    return 4 * element * max(config.hidden_size, getattr(config, "intermediate_size", 0) or 4 * config.hidden_size)


def _fitting(stack: DecoderStack, root: Node, batch_tokens: int) -> int:
    """`batch_tokens`, or as many as half of the free memory holds of states where paths branch and of workspace.

    A GPU says when there is too little; a computer may kill the process instead, so it is not put to the test.
    """
    size = stack.model.config.get_text_config().hidden_size
    state = size * stack.model.get_input_embeddings().weight.element_size() * PREFIX_BATCHES
    token = (num_held(root) + 2) * state + workspace(stack)
    return max(1, min(batch_tokens, available(stack.device) // 2 // token))


def rates(stack: DecoderStack, sequences: Sequence[ScoredSequence], batch_tokens: int) -> tuple[float, float]:
    """Block-tokens and head-tokens a second for sequences like these, timed on a batch of them."""
    return _timed(stack, arrange(sequences, has_key_value_cache(stack.model)), batch_tokens)[1]


def _timed(stack: DecoderStack, work: Work, batch_tokens: int) -> tuple[Batch, tuple[float, float]]:
    """The first batch that fits in memory, and `_rates` on it."""
    high = work.batch_end(0, batch_tokens)
    while True:
        try:
            chosen = [work.sequences[i] for i in work.order[:high]]
            batch = Batch(stack, chosen, work.prefixes[:high], batch_tokens)
            return batch, _rates(stack, batch)
        except (MemoryError, RuntimeError) as e:
            high = halved(high, e, f"one sequence of {len(work.sequences[work.order[0]].input_ids)} tokens")


def _rates(stack: DecoderStack, batch: Batch) -> tuple[float, float]:
    """Block-tokens and head-tokens a second on this device."""

    middle = len(stack) // 2
    block = seconds(lambda: batch.run_block(middle, batch.start, {}), stack.device)
    # A sequence that asks for every position, so that the head's share of scoring is what is timed.
    rows = min(scoring.HEAD_ROWS, batch.start[-1].shape[1])
    probe = ScoredSequence((0,) * rows, ((0,) * rows,))
    states = scoring.select(stack, batch.start[-1][:1, :rows], [probe])
    head = seconds(lambda: scoring.score(stack, states, [probe]), stack.device)
    return batch.num_tokens / block, rows / head


def num_held(node: Node) -> int:
    """States kept at once while a trie runs depth-first, besides the current one."""
    held = 0
    while node.children:
        *branches, last = node.children.values()
        held = max([held, *(1 + num_held(child) for child in branches)])
        node = last
    return held


def run(
    identity: ModelIdentity,
    get_stack: Callable[[], DecoderStack],
    variants: Sequence[Variant],
    measurements: Sequence[Measurement],
    store: Store,
    batch_tokens: int | None = 2048,
    progress: bool = True,
) -> dict[str, dict[Variant, Result]]:
    """Measures every variant, taking what the store has and storing the rest.

    Outputs are stored every few seconds, so a run killed at any moment continues about where it was. Several processes
    may sweep one store: each takes batches that no other is at, and what one finishes the others do not run.

    Tokens that sequences begin with in common run once a batch, where the model has a key-value cache; the rest shares
    batches by length. A batch that does not fit in memory is halved; where memory is known to be too little for
    `batch_tokens`, batches are smaller from the start.

    Args:
        identity: the model.
        get_stack: loads it; called only if something is missing in the store.
        variants: what to keep; duplicates are measured once.
        measurements: what to measure on each.
        store: where results are and go.
        batch_tokens: tokens a forward may hold; None for as many as `throughput` finds on this device.
        progress: print the plan, and draw a progress bar with the time left, in block-tokens.

    Returns:
        measurement name -> variant -> result.

    Raises:
        StudyError: NaN logits, memory too small for a single sequence, a full disk. What was finished is in the store.
    """
    variants = list(dict.fromkeys(variants))
    results: dict[str, dict[Variant, Result]] = {}
    missing: list[tuple[Measurement, list[Variant]]] = []
    for measurement in measurements:
        found = {v: store.get(key(identity, v, measurement)) for v in variants}
        results[measurement.name] = found
        todo = [v for v in variants if found[v] is None]
        if todo:
            missing.append((measurement, todo))
    if missing:
        stack = get_stack()
        batch_tokens = fitting_tokens(stack, batch_tokens)
        share = has_key_value_cache(stack.model)
        plans = [(m, arrange(m.sequences, share), todo) for m, todo in missing]
        works = [(work, todo) for _, work, todo in plans]
        ahead = _plan(stack, works, batch_tokens) if progress else None
        if ahead is not None:
            print(ahead)
        begin, total = time.monotonic(), ahead.block_tokens_shared if ahead else 0
        with tqdm(total=total, unit="block-token", unit_scale=True, disable=not progress, mininterval=1.0) as bar:
            for measurement, work, todo in plans:
                bar.set_description(measurement.name)
                done = _measure(identity, stack, measurement, work, todo, store, batch_tokens, bar)
                results[measurement.name] |= done
        naive, shared, _, head = _counts(works)
        store.log_sweep(
            notebook=os.environ.get("LAYER_REDUNDANCY_NOTEBOOK", ""),
            model_name=identity.name,
            variants=len({v for _, todo in works for v in todo}),
            block_tokens_naive=naive,
            block_tokens_shared=shared,
            head_tokens=head,
            seconds_estimated=ahead.seconds if ahead else None,
            seconds=time.monotonic() - begin,
        )
    return results


def _measure(
    identity: ModelIdentity,
    stack: DecoderStack,
    measurement: Measurement,
    work: Work,
    variants: Sequence[Variant],
    store: Store,
    batch_tokens: int,
    bar: tqdm,
) -> dict[Variant, Result]:
    keys = {v: key(identity, v, measurement) for v in variants}
    results: dict[Variant, Result] = {}
    done: dict[Variant, dict[int, Outputs]] = {v: {} for v in variants}

    def look() -> None:
        """Takes over what the store has by now, from whichever process."""
        for v in variants:
            if v not in results:
                done[v].update(store.partial(keys[v]))
                # In this order: another process that finishes a variant drops its parts.
                if (found := store.get(keys[v])) is not None:
                    results[v] = found

    root = trie(variants)
    batch_tokens = _fitting(stack, root, batch_tokens)
    pending = work.batches(batch_tokens)
    runs, begin, finished = num_block_runs(root), bar.n, 0
    store.changed()
    look()
    while pending:
        batch = next((b for b in pending if store.claim(_claim(keys[variants[0]], work, b))), None)
        if batch is None:
            time.sleep(POLL_SECONDS)
            continue
        if store.changed():
            look()
        low, high = batch
        chosen = work.order[low:high]
        todo = [v for v in variants if v not in results and any(i not in done[v] for i in chosen)]
        at = pending.index(batch)
        try:
            _run_batch(stack, work, batch, todo, measurement.name, batch_tokens, keys, done, store, bar)
        except (MemoryError, RuntimeError) as e:
            middle = low + halved(
                high - low, e, f"{measurement.name}: one sequence of {len(work.sequences[chosen[0]].input_ids)} tokens"
            )
            pending[at : at + 1] = [(low, middle), (middle, high)]
        else:
            del pending[at]
            finished += runs * work.num_tokens(low, high)
        finally:
            store.release(_claim(keys[variants[0]], work, batch))
        bar.update(begin + finished - bar.n)  # what the store had counts as done
    if store.changed():
        look()
    for v in variants:
        if v not in results:
            results[v] = measurement.result([done[v][i] for i in range(len(work.sequences))])
            store.put(keys[v], identity.name, results[v])
    return results


def _claim(key: Key, work: Work, batch: tuple[int, int]) -> str:
    """What a process says it is computing: these sequences of this measurement, whatever the variants."""
    return json.dumps([key.model, key.measurement, key.data, key.settings, key.version, work.order[batch[0]]])


def _run_batch(
    stack: DecoderStack,
    work: Work,
    places: tuple[int, int],
    variants: Sequence[Variant],
    name: str,
    batch_tokens: int,
    keys: Mapping[Variant, Key],
    done: Mapping[Variant, dict[int, Outputs]],
    store: Store,
    bar: tqdm,
) -> None:
    """Runs the sequences at places low..high-1 of the work for each variant; outputs go to `done` and to the store."""
    if not variants:
        return
    low, high = places
    order = work.order[low:high]
    batch = Batch(stack, [work.sequences[i] for i in order], work.prefixes[low:high], batch_tokens)
    fresh: dict[Variant, dict[int, Outputs]] = {}
    kept = time.monotonic()

    def keep() -> None:
        nonlocal kept
        for variant, outputs in fresh.items():
            done[variant].update(outputs)
        store.put_partial({keys[variant]: outputs for variant, outputs in fresh.items()})
        fresh.clear()
        kept = time.monotonic()

    def run_block(element: Element, states: tuple[Tensor, ...], shared: dict) -> tuple[Tensor, ...]:
        out = batch.run_block(element, states, shared)
        bar.update(batch.num_tokens)
        if time.monotonic() - kept > KEEP_SECONDS:
            score()
            keep()
            store.claim(_claim(keys[variants[0]], work, places))
        return out

    # Variants whose states wait for the head: it is fast on many rows only.
    waiting: list[tuple[Variant, Tensor]] = []
    ran = batch.in_order

    def score() -> None:
        if not waiting:
            return
        sequences = [batch.sequences[i] for i in ran] * len(waiting)
        outputs = iter(scoring.score(stack, cat([states for _, states in waiting]), sequences))
        for variant, _ in waiting:
            of_variant = {order[i]: next(outputs) for i in ran}
            scoring.check_finite(of_variant.values(), f"{name}, {describe(len(stack), variant)}")
            fresh[variant] = of_variant
        waiting.clear()

    try:
        for variant, states in depth_first(trie(variants), batch.start, run_block):
            waiting.append((variant, batch.select(states)))
            if len(waiting) * len(waiting[0][1]) > scoring.HEAD_ROWS - len(waiting[0][1]):
                score()
        score()
    finally:
        keep()
