"""Greedy continuations by pruned models: how far they follow the dense model, and what their errors grow into.

A pruned model and the dense one are compared at each position of a continuation in three ways:

    free-running    each continues the prompt with its own tokens;
    teacher-forced  both read the dense model's continuation;
    own text        both read the pruned model's continuation.

Free-running agreement must fall along the continuation once a token differs, even if the text stays as good. The other
two are the controls, since there both models read the same: if errors accumulate, in that they bring the pruned model
where it errs more, agreement on its own text falls with position and lies below teacher-forced agreement; if both are
low from the first token on, errors need not accumulate to ruin the text. Until the first error all three read the same
tokens, so free-running and teacher-forced part from the dense model at the same position.

Statistics are functions of arrays (prompts, positions). Intervals and certainties: bootstrap over prompts (items).
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from layer_redundancy.config import paper_tables
from layer_redundancy.config.profiles import GenerationBudget
from layer_redundancy.core import variants
from layer_redundancy.core.devices import halved
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Key, Result, Store, settings_text
from layer_redundancy.core.variants import Variant
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.evaluate import plain_forwards
from layer_redundancy.experiments import result_tables
from layer_redundancy.experiments.result_tables import INTERVAL
from layer_redundancy.models import decoder, throughput
from layer_redundancy.models.decoder import DecoderStack, ModelIdentity

VERSION = 1  # raise it when the arrays of a stored continuation mean something else
NGRAM = 4  # tokens whose repetition counts
NEAR_ZERO = 0.1  # "scores approaching zero": less than a tenth of what the dense model has above chance

# ---------------------------------------------------------------------------------------------------------------------
# Generating


def check_length(blocks: TokenBlocks, budget: GenerationBudget) -> None:
    """Raises StudyError unless a prompt and the text that goes on from it fit in a block, and n-grams fit in that."""
    length = blocks.input_ids.shape[1]
    if min(budget.prompts, budget.prompt_tokens) < 1 or budget.new_tokens < NGRAM:
        raise StudyError(
            f"generation needs prompts of at least 1 token and {NGRAM} new tokens: raise them in profiles.py"
        )
    if budget.prompt_tokens + budget.new_tokens > length:
        raise StudyError(
            f"a prompt of {budget.prompt_tokens} tokens and {budget.new_tokens} new ones are longer than a block of "
            f"text ({length} tokens): lower prompt_tokens or new_tokens in profiles.py, or raise block_length"
        )


def end_tokens(model: nn.Module) -> list[int]:
    """Tokens that would end a continuation; they are never chosen, so that all have the same length."""
    ends = model.generation_config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


@torch.no_grad()
def continuations(model: nn.Module, prompts: Tensor, new_tokens: int, batch_tokens: int = 2048) -> np.ndarray:
    """Continues every prompt with the model's most likely tokens, by transformers' own `generate`.

    Nothing but the argmax decides: penalties and the like in the checkpoint's generation settings are set aside, and
    tokens that end a text are passed over.

    Args:
        model: a transformers causal language model, as it is.
        prompts: int64 (N, P), no padding.
        new_tokens: T.
        batch_tokens: prompt tokens a forward may hold; halved, down to one prompt, when memory runs out.

    Returns:
        int64 (N, T), the same whatever the batch (to within ties of logits).

    Raises:
        StudyError: not enough memory for one prompt.
    """
    from transformers import GenerationConfig

    device, ends, own = decoder.decoder_stack(model).device, end_tokens(model), model.generation_config
    plain_greedy = GenerationConfig(
        do_sample=False, num_beams=1, use_cache=True, max_new_tokens=new_tokens, min_new_tokens=new_tokens,
        eos_token_id=ends or None, pad_token_id=ends[0] if ends else 0,
    )  # fmt: skip

    def call(rows: slice) -> np.ndarray:
        ids = prompts[rows].to(device)
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids))
        return out[:, ids.shape[1] :].cpu().numpy()

    # RWKV-4's step by one token, as transformers has it, mixes up the sequences of a batch.
    most = None if decoder.has_key_value_cache(model) else 1
    model.generation_config = plain_greedy
    try:
        return np.concatenate(list(_batches(call, *prompts.shape, batch_tokens, most, what="one prompt to continue")))
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
    stack, ends = decoder.decoder_stack(model), end_tokens(model)
    ids = torch.cat([prompts, torch.from_numpy(continuation)], dim=1)[:, :-1]
    wanted = torch.from_numpy(continuation)
    first = prompts.shape[1] - 1

    def call(rows: slice) -> tuple[np.ndarray, np.ndarray]:
        hidden, calls = stack.start(ids[rows])
        for i in range(len(stack)):
            hidden = stack.run_block(i, hidden, calls)
        logprobs = stack.logits(stack.finish(hidden[:, first:])).float().log_softmax(-1)
        if not torch.isfinite(logprobs.amax(-1)).all():
            raise StudyError("logits are NaN or infinite; use dtype float32 or check the weights")
        nll = -logprobs.gather(-1, wanted[rows, :, None].to(logprobs.device))[..., 0]
        logprobs[..., ends] = -torch.inf
        return logprobs.argmax(-1).cpu().numpy(), nll.cpu().numpy()

    parts = list(_batches(call, *ids.shape, batch_tokens, what="one prompt with its continuation"))
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def _batches(call: Callable[[slice], Any], rows: int, width: int, batch_tokens: int, most: int | None = None, what=""):
    """Calls on slices of the rows, as even as possible; yields what they return."""
    wanted = min(max(1, batch_tokens // width), most or rows)
    batch = -(-rows // -(-rows // wanted))
    begin = 0
    while begin < rows:
        try:
            part = call(slice(begin, begin + batch))
        except (MemoryError, RuntimeError) as e:
            batch = halved(min(batch, rows - begin), e, what)
            continue
        yield part
        begin += batch


def measure(
    stack: DecoderStack, variant: Variant, blocks: TokenBlocks, budget: GenerationBudget, reference: np.ndarray | None,
    batch_tokens: int = 2048,
) -> Result:  # fmt: skip
    """Continues the prompts with one variant and sets it against the dense model.

    Args:
        stack: the dense model.
        variant: of it.
        blocks: of evaluation text; a prompt is the beginning of one.
        budget: how many prompts, and how long.
        reference: int64 (N, T) the dense model's continuations; None for the dense model itself.
        batch_tokens: tokens a forward may hold.

    Returns:
        arrays (N, T): tokens, int64, the variant's continuations; judged, int64, the dense model's choices when it
        reads those; forced, int64, the variant's choices when it reads the dense model's; nll, float32, -log p of
        `tokens` under the dense model, nats. For the dense model also text_nll: of the real text that follows the
        prompts. summary: means over prompts.
    """
    ids = blocks.input_ids[: budget.prompts, : budget.prompt_tokens + budget.new_tokens]
    prompts, text = ids[:, : budget.prompt_tokens], ids[:, budget.prompt_tokens :].numpy()
    with plain_forwards.applied(stack, variant) as model:
        tokens = continuations(model, prompts, budget.new_tokens, batch_tokens)
        dense = reference is None
        reference = tokens if dense else reference
        forced, nll = read(model, prompts, reference, batch_tokens=batch_tokens)
    if dense:
        arrays = {"tokens": tokens, "judged": forced, "forced": forced, "nll": nll}
        arrays["text_nll"] = read(stack.model, prompts, text, batch_tokens=batch_tokens)[1]
    else:
        judged, nll = read(stack.model, prompts, tokens, batch_tokens=batch_tokens)
        arrays = {"tokens": tokens, "judged": judged, "forced": forced, "nll": nll}
    summary = {
        "agreement": float((tokens == reference).mean()),
        "forced_agreement": float((forced == reference).mean()),
        "own_agreement": float((arrays["judged"] == tokens).mean()),
        "repetition": float(repetition(tokens).mean()),
        "perplexity": _exp(arrays["nll"].mean(dtype=float)),
        "prompts": len(tokens),
    }
    return Result(summary, arrays)


def run(
    identity: ModelIdentity,
    get_stack: Callable[[], DecoderStack],
    plan: Sequence[Variant],
    blocks: TokenBlocks,
    budget: GenerationBudget,
    store: Store,
    batch_tokens: int | None = 2048,
    progress: bool = True,
) -> dict[Variant, Result]:
    """`measure` for every variant, taking what the store has; each is stored as soon as it is there.

    Args:
        identity: the model.
        get_stack: loads it; called only if something is missing in the store.
        plan: variants; the dense model is measured too, whether it is among them or not.
        blocks: of evaluation text, at least `budget.prompts` of them.
        budget: how many prompts, and how long.
        store: where results are and go.
        batch_tokens: tokens a forward may hold; None for as many as `throughput` finds on this device.
        progress: draw a progress bar with the time left, in variants.

    Returns:
        variant -> result, the dense model first.

    Raises:
        StudyError: as `check_length`, `continuations` and `read`.
    """
    check_length(blocks, budget)
    dense = variants.dense(identity.num_hidden_layers)
    settings = {"prompts": budget.prompts, "prompt_tokens": budget.prompt_tokens, "new_tokens": budget.new_tokens}

    def key(variant: Variant, reference: np.ndarray | None) -> Key:
        # A variant is compared with these very tokens: rounding on another machine may have chosen others.
        against = {} if reference is None else {"reference": _digest(reference)}
        return Key(
            model=identity.fingerprint,
            variant=variants.name(variant),
            measurement="continuations",
            data=blocks.fingerprint,
            settings=settings_text(settings | against),
            version=VERSION,
        )

    def stored(variant: Variant, reference: np.ndarray | None) -> Result:
        stack = get_stack()
        held = throughput.batch_tokens(stack, batch_tokens)
        result = measure(stack, variant, blocks, budget, reference, held)
        store.put(key(variant, reference), identity.name, result)
        return result

    results = {dense: store.get(key(dense, None)) or stored(dense, None)}
    tokens = results[dense].arrays["tokens"]
    others = [variant for variant in dict.fromkeys(plan) if variant != dense]
    results |= {variant: store.get(key(variant, tokens)) for variant in others}
    todo = [variant for variant in others if results[variant] is None]
    for variant in tqdm(todo, desc="continuations", unit="variant", disable=not (progress and todo)):
        results[variant] = stored(variant, tokens)
    return results


def _digest(tokens: np.ndarray) -> str:
    return hashlib.sha256(np.array(tokens.shape, "<i8").tobytes() + tokens.astype("<i8").tobytes()).hexdigest()


def _exp(nll: float) -> float:
    """Perplexity from a mean in nats; finite, so that figures can be drawn."""
    return float(np.exp(min(nll, 700)))


# ---------------------------------------------------------------------------------------------------------------------
# Statistics


def agreement(tokens: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Whether a token is the reference's at the same position: (N, T) and (N, T) -> float64 (N, T) of 0 and 1."""
    return (tokens == reference).astype(float)


def undiverged(agrees: np.ndarray) -> np.ndarray:
    """Whether no token up to a position, that one included, differs: (N, T) of 0 and 1 -> (N, T) of 0 and 1."""
    return np.minimum.accumulate(agrees, axis=1)


def independent_errors(forced: np.ndarray) -> np.ndarray:
    """Share of prompts that would not have diverged if errors were independent: a ** (1, ..., T).

    Args:
        forced: (..., N, T) teacher-forced agreement, 0 to 1; its mean over N and T is the rate a.

    Returns:
        float64 (..., T).
    """
    rate = forced.mean(axis=(-1, -2))
    return rate[..., None] ** np.arange(1, forced.shape[-1] + 1)


def chance_agreement(tokens: np.ndarray) -> float:
    """How often continuations of two different prompts have the same token at the same position, 0 to 1.

    Args:
        tokens: int64 (N, T), of one model; nan if N is 1.
    """
    num = len(tokens)
    same = (tokens[:, None] == tokens[None]).mean(axis=-1)
    return float((same.sum() - num) / (num * (num - 1))) if num > 1 else float("nan")


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


def fresh(tokens: np.ndarray, n: int = NGRAM) -> np.ndarray:
    """Where a continuation says something new: (N, T) -> bool (N, T), False where the n-gram ending there is a repeat.

    A model that has begun to repeat itself is easily followed, whatever it has lost.
    """
    new = np.ones(tokens.shape, dtype=bool)
    for flags, row in zip(new, tokens.tolist(), strict=True):
        seen: set[tuple] = set()
        for end in range(n, len(row) + 1):
            gram = tuple(row[end - n : end])
            flags[end - 1] = gram not in seen
            seen.add(gram)
    return new


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def by_position(
    results: Mapping[Variant, Result], dense: Variant, resamples: int, seed: int, window: int = 1
) -> pd.DataFrame:
    """Agreement with the dense model along the continuation.

    Args:
        results: from `run`.
        window: positions that are averaged, so that a point is steadier; shares that have not diverged are not.

    Returns:
        removed (number of blocks), reading ("teacher-forced", "own text", "free-running", "not yet diverged",
        "independent errors": what the last would be if errors were independent at the teacher-forced rate), position
        (1 = first new token; the middle of a window), agreement (0 to 1), low, high (95 %, bootstrap over prompts), n
        (prompts). Without the dense model.
    """
    parts = []
    for variant in results:
        if variant == dense:
            continue
        agrees = agreements(results, dense, variant)
        forced, free = agrees["teacher-forced"], agrees["free-running"]
        curves = {reading: _windows(values, window) for reading, values in agrees.items()}
        curves["not yet diverged"] = undiverged(free)
        for reading, values in curves.items():
            step = 1 if reading == "not yet diverged" else window
            low, high = np.percentile(result_tables.bootstrap_means(values, resamples, seed), INTERVAL, axis=0)
            part = {"position": _middles(free.shape[1], step), "agreement": values.mean(0), "low": low, "high": high}
            parts.append(_labelled(part, dense, variant, reading, len(free)))
        drawn = result_tables.bootstrap_means(forced, resamples, seed)[:, None]  # one rate a resample
        low, high = np.percentile(independent_errors(drawn), INTERVAL, axis=0)
        expected = {"position": _middles(free.shape[1], 1), "agreement": independent_errors(forced)}
        parts.append(_labelled(expected | {"low": low, "high": high}, dense, variant, "independent errors", len(free)))
    return pd.concat(parts, ignore_index=True)


def _labelled(part: dict, dense: Variant, variant: Variant, reading: str, num: int) -> pd.DataFrame:
    removed = len(variants.removed_blocks(len(dense), variant))
    return pd.DataFrame({"removed": removed, "reading": reading, **part, "n": num})


def agreements(results: Mapping[Variant, Result], dense: Variant, variant: Variant) -> dict[str, np.ndarray]:
    """Agreement of a variant with the dense model by what the two read: name -> float64 (N, T) of 0 and 1."""
    reference, arrays = results[dense].arrays["tokens"], results[variant].arrays
    return {
        "teacher-forced": agreement(arrays["forced"], reference),
        "own text": agreement(arrays["tokens"], arrays["judged"]),
        "free-running": agreement(arrays["tokens"], reference),
    }


def _windows(values: np.ndarray, window: int) -> np.ndarray:
    """(N, T) -> (N, ceil(T / window)) means; the last window may be shorter."""
    cuts = range(0, values.shape[1], window)
    return np.stack([values[:, c : c + window].mean(axis=1) for c in cuts], axis=1)


def _middles(length: int, window: int) -> np.ndarray:
    starts = np.arange(0, length, window)
    return (starts + 1 + np.minimum(starts + window, length)) / 2


def by_depth(
    results: Mapping[Variant, Result], dense: Variant, text: np.ndarray, resamples: int, seed: int
) -> pd.DataFrame:
    """What becomes of generated text as blocks go.

    Args:
        results: from `run`.
        text: int64 (N, T) the real text that follows the prompts.

    Returns:
        removed (number of blocks; NaN for the real text), measure, value, low, high (95 %, bootstrap over prompts), n
        (prompts). Measures: "free-running", "teacher-forced" and "own text" (agreement, 0 to 1),
        "repetition" (share of repeated 4-grams, 0 to 1), "perplexity" (of the generated tokens under the dense model
        that reads prompt and continuation).
    """
    rows = []

    def add(removed: float, measure: str, values: np.ndarray, exp: bool = False) -> None:
        low, high = np.percentile(result_tables.bootstrap_means(values, resamples, seed), INTERVAL)
        numbers = [values.mean(), low, high]
        value, low, high = map(_exp, numbers) if exp else numbers
        row = {"removed": removed, "measure": measure, "value": value, "low": low, "high": high, "n": len(values)}
        rows.append(row)

    for variant, result in results.items():
        removed = len(variants.removed_blocks(len(dense), variant))
        for reading, values in agreements(results, dense, variant).items():
            add(removed, reading, values.mean(1))
        add(removed, "repetition", repetition(result.arrays["tokens"]))
        add(removed, "perplexity", result.arrays["nll"].mean(1, dtype=float), exp=True)
    add(np.nan, "repetition", repetition(text))
    add(np.nan, "perplexity", results[dense].arrays["text_nll"].mean(1, dtype=float), exp=True)
    return pd.DataFrame(rows)


def kept(
    name: str, kind: str, scores: Mapping[Variant, np.ndarray], dense: Variant, chance: float, resamples: int, seed: int
) -> pd.DataFrame:
    """How much of what the dense model has above chance a variant keeps, on one measure.

    Args:
        name: of the measure.
        kind: "generative" or "multiple choice".
        scores: variant -> (N,) scores of prompts or items, 0 to 1; the dense model's among them.
        chance: score without knowledge; the dense model's mean must lie above it.

    Returns:
        removed (number of blocks), task, kind, score, kept ((score - chance) / (dense - chance)), low, high (95 %,
        paired bootstrap over items), n (items), chance.
    """
    base = scores[dense]
    if not base.mean() > chance:
        raise StudyError(f"the dense model is at chance on {name}: what a pruned one keeps of that says nothing")
    drawn_base = result_tables.bootstrap_means(base, resamples, seed) - chance
    rows = []
    for variant, values in scores.items():
        drawn = result_tables.bootstrap_means(values, resamples, seed) - chance
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = np.where(drawn_base > 0, drawn / drawn_base, np.nan)
        low, high = np.nanpercentile(shares, INTERVAL)
        rows.append(
            {
                "removed": len(variants.removed_blocks(len(dense), variant)),
                "task": name,
                "kind": kind,
                "score": values.mean(),
                "kept": (values.mean() - chance) / (base.mean() - chance),
                "low": low,
                "high": high,
                "n": len(values),
                "chance": chance,
            }
        )
    return pd.DataFrame(rows)


def accumulation(
    results: Mapping[Variant, Result], dense: Variant, variant: Variant, resamples: int, seed: int
) -> pd.DataFrame:
    """What becomes of the text, and do errors accumulate (the paper's appendix D)? Statements on one variant.

    Returns:
        removed (number of blocks), statement, measured, threshold, holds, certainty (share of the bootstrap resamples
        of the prompts in which it holds too). Halves are those of the continuation. The statements on its own text
        leave tokens out that end a repeated 4-gram.
    """
    agrees = agreements(results, dense, variant)
    forced, free, own = agrees["teacher-forced"], agrees["free-running"], agrees["own text"]
    half, steps = free.shape[1] // 2, np.arange(1, free.shape[1] + 1)
    columns = {
        "rate": forced.mean(1),
        "together": undiverged(free).sum(1),
        "nll": results[variant].arrays["nll"].mean(1, dtype=float),
        "dense_nll": results[dense].arrays["nll"].mean(1, dtype=float),
        "repeated": repetition(results[variant].arrays["tokens"]),
        "dense_repeated": repetition(results[dense].arrays["tokens"]),
    }
    new = {"forced": fresh(results[dense].arrays["tokens"]), "own": fresh(results[variant].arrays["tokens"])}
    for name, values in (("free", free), ("forced", forced), ("own", own)):
        for part, where in (("early", slice(half)), ("late", slice(half, None))):
            columns[f"{name}_{part}"] = values[:, where].mean(1)
            if name in new:  # sums and numbers of tokens: their ratio is over all prompts
                columns[f"{name}_{part}_new"] = (values * new[name])[:, where].mean(1)
                columns[f"{name}_{part}_all"] = new[name][:, where].mean(1)

    def statements(mean: pd.Series) -> list[tuple[str, float, float, bool]]:
        drop, forced_drop = mean.free_early - mean.free_late, mean.forced_early - mean.forced_late
        expected = (mean.rate**steps).sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            own_early, own_late = mean.own_early_new / mean.own_early_all, mean.own_late_new / mean.own_late_all
            forced_late = mean.forced_late_new / mean.forced_late_all
        pairs = [
            ("text repeats itself more than the dense model's (4-grams)", mean.repeated, mean.dense_repeated, False),
            ("text is less likely than the dense model's own (nats a token)", mean.nll, mean.dense_nll, False),
            ("free-running agreement falls from half to half by more than teacher-forced", drop, forced_drop, False),
            ("on its own text, agreement is lower in the second half (repeats left out)", own_late, own_early, True),
            ("second half: agreement is lower on its own text than teacher-forced", own_late, forced_late, True),
            ("the first error comes sooner (tokens) than independent ones would", mean.together, expected, True),
        ]
        return [(name, a, b, a < b if below else a > b) for name, a, b, below in pairs]

    table = np.stack(list(columns.values()), axis=1)
    again = [
        [holds for *_, holds in statements(pd.Series(row, columns))]
        for row in result_tables.bootstrap_means(table, resamples, seed)
    ]
    whole = statements(pd.Series(table.mean(0), columns))
    return _claim_rows(dense, variant, whole, np.mean(again, axis=0))


def _claim_rows(dense: Variant, variant: Variant, statements: Sequence[tuple], certainty: Sequence) -> pd.DataFrame:
    columns = ["statement", "measured", "threshold", "holds"]
    table = pd.DataFrame(statements, columns=columns).assign(certainty=certainty)
    table.insert(0, "removed", len(variants.removed_blocks(len(dense), variant)))
    return table


def first_to_suffer(
    generative: Mapping[Variant, np.ndarray],
    other: Mapping[Variant, np.ndarray],
    chances: tuple[float, float],
    names: tuple[str, str],
    dense: Variant,
    variant: Variant,
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """Does generation suffer more than another task, and does it come near zero? Two statements on one variant.

    Args:
        generative: variant -> (N,) scores, 0 to 1.
        other: the same of a multiple-choice task, of other items.
        chances: of either.
        names: of either.

    Returns:
        As `accumulation`; measured is the share that is kept of what the dense model has above chance. Prompts and
        items are resampled independently.
    """

    def shares(scores: Mapping[Variant, np.ndarray], chance: float, seed: int) -> tuple[float, np.ndarray]:
        pair = np.stack([scores[variant], scores[dense]], axis=1) - chance
        drawn = result_tables.bootstrap_means(pair, resamples, seed)
        with np.errstate(divide="ignore", invalid="ignore"):
            return pair[:, 0].mean() / pair[:, 1].mean(), drawn[:, 0] / drawn[:, 1]

    mine, mine_drawn = shares(generative, chances[0], seed)
    theirs, theirs_drawn = shares(other, chances[1], seed + 1)
    statements = [
        (f"{names[0]} keeps less of its score above chance than {names[1]}", mine, theirs, mine < theirs),
        (f"{names[0]} keeps less than a tenth: near zero", mine, NEAR_ZERO, mine < NEAR_ZERO),
    ]
    certainty = [(mine_drawn < theirs_drawn).mean(), (mine_drawn < NEAR_ZERO).mean()]
    return _claim_rows(dense, variant, statements, certainty)


Scored = tuple[str, Mapping[Variant, np.ndarray], float]  # kind, variant -> (N,) scores 0 to 1, chance


def own_scores(results: Mapping[Variant, Result], dense: Variant) -> dict[str, Scored]:
    """Agreement with the dense model as a score of each prompt: "free-running" and "teacher-forced"."""
    chance = chance_agreement(results[dense].arrays["tokens"])
    kinds = {"free-running": "generative", "teacher-forced": "one token at a time"}
    return {
        name: (kind, {v: agreements(results, dense, v)[name].mean(1) for v in results}, chance)
        for name, kind in kinds.items()
    }


def known(scores: Mapping[str, Scored], dense: Variant) -> dict[str, Scored]:
    """Those on which the dense model is better than chance."""
    return {name: scored for name, scored in scores.items() if scored[1][dense].mean() > scored[2]}


def compared(kept: pd.DataFrame, model: str, removed: int, num_blocks: int) -> pd.DataFrame:
    """What is kept here beside what the paper's models keep of XSum, for which they write, and of MMLU (table 1).

    Args:
        kept: of all scores, from `kept`.
        removed: blocks, of num_blocks.

    Returns:
        model, removed (%), score, kind, kept (share of the dense model's score above chance), 95 %, n.
    """
    table = paper_tables.table("table1").set_index(["method", "model"])
    rows = []
    for task, kind, chance in (("XSum", "generative", 0.0), ("MMLU", "multiple choice", 25.0)):
        shares = (table.loc["ShortGPT", task] - chance) / (table.loc["Dense", task] - chance)
        rows += [
            (m, table.loc[("ShortGPT", m), "ratio_percent"], task, kind, shares[m], "", None) for m in shares.index
        ]
    for row in kept[kept["removed"] == removed].itertuples():
        interval = f"{row.low:.2f} to {row.high:.2f}"
        rows.append((model, 100 * removed / num_blocks, row.task, row.kind, row.kept, interval, row.n))
    columns = ["model", "removed (%)", "score", "kind", "kept", "95 %", "n"]
    return pd.DataFrame(rows, columns=columns).astype({"n": "Int64"})


def claim(
    results: Mapping[Variant, Result],
    scores: Mapping[str, Scored],
    dense: Variant,
    plan: Mapping[int, Variant],
    shown: Sequence[int],
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """The paper's claims on generation: `first_to_suffer` at the deepest of `shown`, `accumulation` at each.

    Args:
        results: from `run`.
        scores: on which the dense model is better than chance.
        plan: removed blocks -> variant.
        shown: numbers of removed blocks.
    """
    parts = []
    for a, (kind, mine, chance) in scores.items():
        for b, (other, theirs, other_chance) in scores.items():
            if (kind, other) == ("generative", "multiple choice"):
                names = ("agreement with the dense model's text" if a == "free-running" else a, b)
                chances, variant = (chance, other_chance), plan[max(shown)]
                parts.append(first_to_suffer(mine, theirs, chances, names, dense, variant, resamples, seed))
    parts += [accumulation(results, dense, plan[n], resamples, seed) for n in shown]
    return pd.concat(parts, ignore_index=True).drop_duplicates(["removed", "statement"])


def quarter(num_blocks: int) -> int:
    """The paper's 25 % in blocks; at least one."""
    return max(1, round(num_blocks / 4))
