"""What the study does with a model of an architecture, tried in every way that users try."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers as tf

import every_architecture
from layer_redundancy.config import profiles
from layer_redundancy.config.profiles import Recipe
from layer_redundancy.core import variants
from layer_redundancy.core.errors import NotApplicable, StudyError
from layer_redundancy.core.store import Result, Store, settings_text
from layer_redundancy.core.variants import Variant
from layer_redundancy.evaluate import generate, plain_forwards, sweep
from layer_redundancy.evaluate.scoring import ScoredSequence
from layer_redundancy.models import checkpoints, checks, loading, surgery
from layer_redundancy.models.checkpoints import ModelIdentity
from layer_redundancy.models.stack import DecoderStack, decoder_stack
from layer_redundancy.train import healing as heal
from layer_redundancy.train import training_loop

COLUMNS = ("loads", "sweep", "prefix", "heads", "generation", "export", "healing")
YES, SOME, NO = "yes", "some", "no"
A_TOKEN = 1e-5  # nats: how far two ways to the same log-likelihood of a token may lie apart in float32


@dataclass(frozen=True)
class Outcome:
    """What came of one way of trying.

    Attributes:
        answer: YES, SOME or NO.
        reason: the study's own line where it is not YES.
    """

    answer: str
    reason: str = ""


@dataclass(frozen=True)
class Loaded:
    """A model as a user has it: loaded from a folder, taken apart."""

    identity: ModelIdentity
    stack: DecoderStack

    @property
    def model(self) -> torch.nn.Module:
        return self.stack.model

    def variant(self, *removed: int) -> Variant:
        return variants.without(len(self.stack), removed)


class LogLikelihoods:
    """Measures the log-likelihood of every target."""

    version, settings, name = 1, settings_text({}), "log-likelihoods"

    def __init__(self, sequences: Sequence[ScoredSequence]):
        self.sequences, self.data = sequences, str(hash(tuple(sequences)))

    def result(self, outputs):
        return Result({}, {"values": np.array([logprob for targets in outputs for logprob, _ in targets])})


def texts() -> list[ScoredSequence]:
    """Two texts of different length, questions with one beginning and several answers, and questions with another."""
    generator = torch.Generator().manual_seed(3)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 90, (length,), generator=generator).tolist())

    running = [ScoredSequence(ids[:-1], (ids[1:],)) for ids in (tokens(33), tokens(20))]
    one, other = tokens(20), tokens(9)
    asked = [one + tokens(5), one + tokens(9), one + tokens(3), other + tokens(4), other + tokens(7)]
    return running + [ScoredSequence(ids[:-1], (ids[-2:], (5,))) for ids in asked]


def tried(name: str, folder: Path) -> dict[str, Outcome]:
    """What comes of loading, measuring, pruning, exporting and healing a tiny model.

    Whatever gives a wrong number, or raises something else than the study's own line, raises here.

    Args:
        name: one of `every_architecture.CONFIGS`.
        folder: a folder to write to.
    """
    every_architecture.build(name).save_pretrained(folder / "model")
    try:
        loaded = load(folder / "model")
    except StudyError as refusal:
        return {"loads": Outcome(NO, one_line(refusal))}
    return {
        "loads": Outcome(YES),
        "sweep": swept(loaded, folder),
        "prefix": prefixes(loaded),
        "heads": heads(loaded, folder),
        "generation": generation(loaded),
        "export": exports(loaded, folder),
        "healing": healing(folder),
    }


def load(folder: Path, dtype: str = "float32") -> Loaded:
    identity = checkpoints.identify(profiles.get("smoke", model=str(folder)))
    return Loaded(identity, decoder_stack(loading.load(identity, dtype)))


def one_line(refusal: StudyError) -> str:
    """The study's line, without the folder of this run."""
    text = re.sub(r"\S*/(model|without[-0-9]*)\b", "the model", str(refusal))
    assert "\n" not in text and len(text) < 500, text
    return text


def measured(
    loaded: Loaded, plan: Sequence[Variant], sequences: Sequence[ScoredSequence], folder: Path, tokens: int
) -> dict[Variant, np.ndarray]:
    """A sweep with an empty store, `tokens` a forward."""
    with Store(folder / f"store-{len(list(folder.iterdir()))}") as store:
        task = LogLikelihoods(sequences)
        found = sweep.run(loaded.identity, lambda: loaded.stack, plan, [task], store, tokens, progress=False)
    return {variant: result.arrays["values"] for variant, result in found[task.name].items()}


def alone(loaded: Loaded, variant: Variant, sequences: Sequence[ScoredSequence]) -> np.ndarray:
    """The same by plain forwards of the pruned model, one sequence at a time."""
    with plain_forwards.applied(loaded.stack, variant) as model:
        scores = [plain_forwards.score(model, [sequence])[0] for sequence in sequences]
    return np.array([logprob for targets in scores for logprob, _ in targets])


def same(
    found: np.ndarray, wanted: np.ndarray, sequences: Sequence[ScoredSequence], tolerance: float = A_TOKEN
) -> None:
    lengths = np.array([len(target) for sequence in sequences for target in sequence.targets])
    worst = (np.abs(found - wanted) / lengths).max()
    assert worst <= tolerance * max(1.0, np.abs(wanted / lengths).max()), f"{worst:.3g} nats a token apart"


def swept(loaded: Loaded, folder: Path) -> Outcome:
    """One value for a variant: alone, in a plan, in other batches, with prefixes and without, by plain forwards."""
    sequences = texts()
    plan = [loaded.variant(*removed) for removed in ((), (0,), (1,), (2,), (5,), (2, 3), (0, 1, 4))]
    wanted = {variant: alone(loaded, variant, sequences) for variant in plan}
    for variants_, chosen, tokens in (
        (plan, sequences, 64),
        (plan, sequences, 500),  # all in one forward
        (plan[3:4], sequences, 64),
        (plan[2:3], sequences[:1], 1),
        (plan, sequences[:2], 64),
    ):
        found = measured(loaded, variants_, chosen, folder, tokens)
        for variant in variants_:
            same(found[variant], wanted[variant][: len(found[variant])], chosen)
    assert np.abs(wanted[plan[0]] - wanted[plan[3]]).max() > 1e-3, "a block does nothing"
    try:
        half = load(folder / "model", "bfloat16")
    except StudyError as refusal:
        return Outcome(SOME, f"bfloat16: {one_line(refusal)}")
    whole = [half.variant(), half.variant(2)]
    found = measured(half, whole, sequences, folder, 64)
    for variant in whole:  # rounding a token at a time, which the number of blocks multiplies
        same(found[variant], alone(half, variant, sequences), sequences, tolerance=0.1)
    return Outcome(YES)


def prefixes(loaded: Loaded) -> Outcome:
    shared = checks.sharing(loaded.model)
    if shared.prefixes:
        return Outcome(YES)
    return Outcome(NO, "every sequence runs whole")


def heads(loaded: Loaded, folder: Path) -> Outcome:
    """A head left out of a shared sweep is a head whose share of the output projection's input is set to zero."""
    sequences, refusals = texts(), {}
    for block in range(len(loaded.stack)):
        try:
            variant = variants.without_head(len(loaded.stack), block, 1)
            wanted = alone(loaded, variant, sequences)
        except StudyError as refusal:
            refusals[block] = one_line(refusal)
            continue
        same(measured(loaded, [variant], sequences, folder, 64)[variant], wanted, sequences)
        assert np.abs(wanted - alone(loaded, loaded.variant(), sequences)).max() > 1e-4, "the head does nothing"
    if not refusals:
        return Outcome(YES)
    return Outcome(SOME if len(refusals) < len(loaded.stack) else NO, refusals[min(refusals)])


def generation(loaded: Loaded) -> Outcome:
    """What a pruned model writes with its cache is what whole forwards choose."""
    prompts = torch.tensor([sequence.input_ids[:15] for sequence in texts()[:2]])
    for removed in ((), (1,), (2, 5), (0, 1, 3, 4)):
        with surgery.without_layers(loaded.model, removed) as model:
            written, ids = torch.from_numpy(generate.continuations(model, prompts, 5)), prompts
            for _ in range(5):
                logits = model(input_ids=ids, use_cache=False).logits[:, -1].float()
                logits[:, generate.end_tokens(model)] = -torch.inf
                ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
        assert torch.equal(written, ids[:, 15:]), f"without {removed} it writes {written.tolist()}"
    return Outcome(YES)


def exports(loaded: Loaded, folder: Path) -> Outcome:
    """A pruned model, written and read again by plain transformers, is the pruned model."""
    ids, refusals = torch.tensor([texts()[0].input_ids]), []
    sets = ((1,), (0, 4), (2, 5), (3,))
    for removed in sets:
        with surgery.without_layers(loaded.model, removed) as model:
            wanted = model(input_ids=ids, use_cache=False).logits
        place = folder / f"without-{'-'.join(map(str, removed))}"
        try:
            surgery.export(loaded.model, None, removed, place)
        except StudyError as refusal:
            refusals.append(one_line(refusal))
            assert not place.exists()
            continue
        again = tf.AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
        found = loading.prepare(again)(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    if not refusals:
        return Outcome(YES)
    return Outcome(SOME if len(refusals) < len(sets) else NO, refusals[0])


def healing(folder: Path) -> Outcome:
    """Two steps of every recipe change all that they say they train, or one line says why not."""
    recipes = [Recipe("lora", 1e-2), Recipe("lora", 1e-2, targets="mlp"), Recipe("qlora", 1e-2)]
    recipes += [Recipe("partial", 1e-2), Recipe("full", 1e-2)]
    ids, refusals = torch.tensor([texts()[0].input_ids, texts()[0].input_ids[::-1]]), {}
    for recipe in recipes:
        try:
            model = heal.prepare(load(folder / "model").model, recipe)
            before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
            fitted = training_loop.fit(
                model,
                [{"input_ids": row} for row in ids],
                training_loop.Optimization(steps=2, batch=2, learning_rate=recipe.learning_rate),
                folder / f"{recipe.method}-{recipe.targets}",
            )
        except (StudyError, NotApplicable) as refusal:
            refusals[f"{recipe.method} of {recipe.targets}"] = one_line(refusal)
            continue
        same = [name for name, old in before.items() if torch.equal(old, model.get_parameter(name).detach())]
        # An expert that is a module of its own may have had no token.
        same = [name for name in same if "expert" not in name]
        told = sum(old.numel() for old in before.values()) - fitted.trainable
        assert sum(before[name].numel() for name in same) <= told, f"{recipe.method} leaves {same[:3]} as they were"
    if not refusals:
        return Outcome(YES)
    recipe, reason = next(iter(refusals.items()))
    return Outcome(SOME if len(refusals) < len(recipes) else NO, f"{recipe}: {reason}")


def table(outcomes: dict[str, dict[str, Outcome]]) -> str:
    """The outcomes in Markdown: one row an architecture, and below it the reasons."""
    rows = [["model type", *COLUMNS], ["---"] * (len(COLUMNS) + 1)]
    reasons = []
    for name in sorted(outcomes):
        found = outcomes[name]
        rows.append([f"`{name}`", *(found[c].answer if c in found else "" for c in COLUMNS)])
        reasons += [f"- `{name}`, {column}: {found[column].reason}" for column in found if found[column].reason]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n\n## Reasons\n\n" + "\n".join(reasons) + "\n"


def answers(document: str) -> dict[str, dict[str, str]]:
    """The answers of a document with such a table: name -> column -> answer."""
    found = {}
    for line in document.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            found[cells[0].strip("`")] = {c: a for c, a in zip(COLUMNS, cells[1:], strict=True) if a}
    return found
