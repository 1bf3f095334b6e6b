"""lm-eval's generative benchmarks (GSM8K, HumanEval, XSum) on pruned models: its own tasks, prompts and metrics.

Nothing is shared among variants here: each writes its own text. Answers go to the results store as they come.
"""

import copy
import difflib
import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.models.huggingface import HFLM
from torch import nn
from tqdm import tqdm

from layer_redundancy.config import own_files, profiles
from layer_redundancy.config.profiles import TaskBudget
from layer_redundancy.core import flags
from layer_redundancy.core.devices import halved
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Key, Result, Store, settings_text
from layer_redundancy.core.variants import Variant, plan
from layer_redundancy.core.variants import name as variant_name
from layer_redundancy.data import benchmark_items, task_files, tokens
from layer_redundancy.evaluate import plain_forwards
from layer_redundancy.evaluate.generate import caching
from layer_redundancy.models import checks, rotary, throughput
from layer_redundancy.models.attributes import attributes
from layer_redundancy.models.checkpoints import ModelIdentity
from layer_redundancy.models.checks import sharing
from layer_redundancy.models.stack import DecoderStack, has_key_value_cache

VERSION = 1  # raise it when stored answers mean something else
ANSWERS_KEPT = 64  # how many answers are generated before they go to the store


@dataclass(frozen=True, eq=False)
class GenerativeTask:
    """A generate_until task of lm-eval and the items of it that are used.

    Attributes:
        name: the task's name.
        budget: the task's name or file, number of items and worked examples.
        manager: lm-eval's task manager, which finds the task again.
        chosen: positions of the items in lm-eval's order, ascending.
        fingerprint: sha256 (hex) of prompts, targets, stop sequences, metrics and filters.
        longest: characters of the longest prompt.
        max_new_tokens: the most tokens that an answer may have.
        runs_code: whether its metric runs what the model wrote.
        seed: seed of the worked examples, where the task draws them.
    """

    name: str
    budget: TaskBudget
    manager: Any
    chosen: tuple[int, ...]
    fingerprint: str
    longest: str
    max_new_tokens: int
    runs_code: bool
    seed: int


def _find(budget: TaskBudget, folder: Path | None, trust_remote_code: bool = False) -> tuple[Any, str, dict]:
    """lm-eval's manager that knows the task, its name there, and its definition as it is written, its functions not
    looked up.

    HumanEval's functions run a sample program when they are looked up.
    """
    if own_files.is_own_task(budget.name):
        own = task_files.read(budget.name)
        manager, name, config = task_files.manager(own, trust_remote_code), own.name, own.config
    else:
        from lm_eval.tasks._yaml_loader import load_yaml

        manager, name = benchmark_items.task_manager(budget.name, folder), budget.name
        if name not in manager.all_subtasks:
            near = difflib.get_close_matches(name, manager.all_subtasks, n=3)
            raise StudyError(
                f"unknown generative task {name!r}: name a single task of lm-eval, or a .yaml file"
                + (f" (did you mean {' or '.join(near)}?)" if near else "")
            )
        path = manager.task_index[name].yaml_path
        config = load_yaml(path, resolve_func=False) if path else {}
    if config.get("output_type") != "generate_until":
        raise StudyError(f"task {name!r} does not generate text: name it in `tasks`, not in `generative_tasks`")
    return manager, name, config


@flags.checked
def runs_code(budget: TaskBudget, folder: Path | None = None, trust_remote_code: bool = False) -> bool:
    """Whether a generative task runs what the model wrote, found without loading it. Errors as for `load`."""
    return _find(budget, folder, trust_remote_code)[2].get("unsafe_code", False) is not False


def _refuse_code(name: str, run_generated_code: bool) -> None:
    if not run_generated_code:
        raise StudyError(
            f"task {name!r} runs the programs that the model writes, on this computer: set "
            "run_generated_code=True to allow that, best in a container without network"
        )


@flags.checked
def load(
    budget: TaskBudget,
    seed: int = 0,
    run_generated_code: bool = False,
    folder: Path | None = None,
    trust_remote_code: bool = False,
) -> GenerativeTask:
    """Looks a generative task up, and builds its prompts once to know what they are.

    Args:
        budget: `limit` takes the first items after a seeded shuffle; a smaller limit's items are a larger one's first.
        seed: seed of the shuffle, and of the worked examples where the task draws them.
        run_generated_code: let tasks such as HumanEval run what the model wrote on this computer, without a sandbox.
        folder: task definitions beside lm-eval's own; data/tasks if not given.
        trust_remote_code: run code that comes with a task of the user's own.

    Raises:
        StudyError: an impossible budget, unknown task, one of the user's own that runs code without leave, one that
            generates nothing, data out of reach, or a task that runs generated code and no leave to do so; this error
            comes before anything of the task is loaded.
    """
    budget = profiles.valid(TaskBudget, budget)
    manager, name, config = _find(budget, folder, trust_remote_code)
    if code := config.get("unsafe_code", False) is not False:
        _refuse_code(name, run_generated_code)
    own = benchmark_items.data_errors(budget.name) if own_files.is_own_task(budget.name) else nullcontext()
    with benchmark_items.quiet(), _code_allowed(code), own:
        with benchmark_items.data_errors(budget.name):
            task = manager.load([name])["tasks"][name]
            if budget.num_fewshot is not None and task.get_config("num_fewshot") != 0:
                task.set_config("num_fewshot", budget.num_fewshot)
            task.set_fewshot_seed(seed)
            docs = task.eval_docs
        places = list(range(len(docs)))
        random.Random(seed).shuffle(places)
        chosen = tuple(sorted(places[: budget.limit]))
        settings = dict(task.config.generation_kwargs or {})
        shots = task.config.num_fewshot or 0
        with benchmark_items.fewshot_errors(budget):
            prompts = [task.fewshot_context(docs[i], num_fewshot=shots) for i in chosen]
        content = {
            "prompts": prompts,
            "targets": [str(task.doc_to_target(docs[i])) for i in chosen],
            "generation": settings,
            "metrics": sorted(map(str, task.aggregation())),
            "filters": str(config.get("filter_list")),
            "version": str(task.VERSION),
        }
        if own_files.is_own_task(budget.name):
            content["definition"] = task_files.read(budget.name).digest
    text = json.dumps(content, sort_keys=True, default=str)
    return GenerativeTask(
        name=name,
        budget=budget,
        manager=manager,
        chosen=chosen,
        fingerprint=hashlib.sha256(text.encode()).hexdigest(),
        longest=max(map(str, prompts), key=len),
        max_new_tokens=int(settings.get("max_gen_toks", 256)),  # 256 is HFLM's own
        runs_code=code,
        seed=seed,
    )


@contextmanager
def _code_allowed(allowed: bool) -> Iterator[None]:
    """The variable that the hub's code_eval metric asks for, set for as long as a task that runs code is at work."""
    name, old = "HF_ALLOW_CODE_EVAL", os.environ.get("HF_ALLOW_CODE_EVAL")
    if allowed:
        os.environ[name] = "1"
    try:
        yield
    finally:
        if allowed and old is None:
            del os.environ[name]
        elif allowed and old is not None:
            os.environ[name] = old


class _Answers(HFLM):
    """HFLM that keeps its answers in the results store as they come, and goes on from there after it was stopped."""

    batch_size_per_gpu: int  # of HFLM, as it was asked for below

    def __init__(self, model: nn.Module, tokenizer: Any, store: Store, key: Key, **options: Any):
        super().__init__(pretrained=model, tokenizer=tokenizer, **options)
        self._store, self._key = store, key
        self._cached, _ = caching(model, self.max_length)
        if not self._cached and not checks.writes_as_whole(model, 1, cached=False):
            raise StudyError(
                f"{type(model).__name__} writes other tokens than its whole forwards choose, as transformers has it: "
                "leave generative tasks out for this model"
            )

    def _model_generate(self, *args: Any, **kwargs: Any) -> Any:
        if self._cached:
            return super()._model_generate(*args, **kwargs)
        own = self.model.generate
        # HFLM itself always asks for a cache.
        with attributes((self.model, "generate", lambda *a, **k: own(*a, **k | {"use_cache": False}))):
            return super()._model_generate(*args, **kwargs)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        if self.prefix_token_id is None:  # HFLM would look for it at the text's beginning
            return self.tokenizer.encode(string)
        return super().tok_encode(string, add_special_tokens, **kwargs)

    def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> str | None:
        """As HFLM; None where the tokenizer has no end-of-sequence token to decode."""
        return None if tokens is None else super().tok_decode(tokens, skip_special_tokens)

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        answers = self._store.partial(self._key)
        missing = [i for i in range(len(requests)) if i not in answers]
        for start in range(0, len(missing), ANSWERS_KEPT):
            part = missing[start : start + ANSWERS_KEPT]
            while True:
                try:
                    fresh = super().generate_until([requests[i] for i in part], disable_tqdm=True)
                    break
                except (MemoryError, RuntimeError) as e:
                    self.batch_size_per_gpu = halved(int(self.batch_size_per_gpu), e, "one prompt of a benchmark")
            answers |= (new := dict(zip(part, fresh, strict=True)))
            self._store.put_partial({self._key: new})
        return [answers[i] for i in range(len(requests))]


# Nine parameters: what is asked of what, where from, where to, and settings that most callers leave alone.
@flags.checked
def evaluate(
    identity: ModelIdentity,
    get_stack: Callable[[], DecoderStack],
    tokenizer: Any,
    variants: Sequence[Variant],
    task: GenerativeTask,
    store: Store,
    batch_tokens: int | None = 2048,
    run_generated_code: bool = False,
    progress: bool = True,
    when_done: Callable[[Variant], None] = lambda variant: None,
) -> dict[Variant, Result]:
    """A generative task of lm-eval on every variant, by lm-eval's own HFLM on the pruned model in memory.

    Answers go to the store as they come, a result as soon as it is there; what the store has is not done again.

    Args:
        identity: the model.
        get_stack: loads it; called only if something is missing in the store.
        tokenizer: the model's tokenizer; HFLM gets a copy, since it changes it.
        variants: the model's variants to measure.
        task: the task, from `load`.
        store: where results are and go.
        batch_tokens: tokens a batch may hold, answers included; halved when memory runs out. None for as many as
            `throughput` finds on this device. A model that keeps no keys and values answers one prompt at a time:
            padding would run through its state. So does one whose tokenizer has no token to pad with that it has an
            embedding of.
        run_generated_code: see `load`; asked for here too.
        progress: draw a progress bar with the time left, in variants.
        when_done: called for each variant that the store did not have.

    Returns:
        variant -> result; arrays: one a metric, (items,) float64 in the order of `task.chosen`, named after the metric,
        with the filter behind a comma where the task has several; summary: their means, items, num_fewshot.

    Raises:
        StudyError: as `variants.plan`; the task runs generated code without leave, prompts do not fit in the model, or
            no metric is a number for each item.
    """
    import lm_eval

    if task.runs_code:
        _refuse_code(task.name, run_generated_code)
    name, shots = task.name, task.budget.num_fewshot
    settings = {"num_fewshot": shots, "lm_eval": lm_eval.__version__}
    if (bare := tokens.without_end(tokenizer)) is not tokenizer:
        # Answers of VERSION 1 are wrong for such a tokenizer, and only for it: they follow the end of a text.
        tokenizer, settings["end_of_prompt"] = bare, "open"
    length = len(tokenizer(task.longest).input_ids) + task.max_new_tokens
    if identity.max_length is not None and length > identity.max_length:
        raise StudyError(
            f"task {name!r} needs {length} tokens for its longest prompt and answer, {identity.name} takes "
            f"{identity.max_length}: give it a lower num_fewshot in a profile of your own"
        )
    keys = {
        variant: Key(
            model=identity.fingerprint,
            variant=variant_name(variant),
            measurement=f"generative/{name}",
            data=task.fingerprint,
            settings=settings_text(settings),
            version=VERSION + rotary.corrected(identity.config, length),
        )
        for variant in plan(identity.num_hidden_layers, variants)
    }

    def answered(variant: Variant) -> Result:
        stack = get_stack()
        rows = 1
        may_pad = has_key_value_cache(stack.model) and sharing(stack.model).prefixes
        if may_pad and _can_pad(tokenizer, stack.model):
            rows = max(1, throughput.batch_tokens(stack, batch_tokens) // length)
        with plain_forwards.applied(stack, variant) as model, benchmark_items.quiet(), _code_allowed(task.runs_code):
            options = {"batch_size": rows, "max_length": identity.max_length}
            answers = _Answers(model, copy.deepcopy(tokenizer), store, keys[variant], **options)
            return _scores(task, _evaluated(task, answers, run_generated_code))

    found = store.present(keys)
    missing = [variant for variant in keys if variant not in found]
    for variant in tqdm(missing, desc=name, unit="variant", disable=not (progress and missing)):
        found[variant] = store.cached(keys[variant], identity.name, partial(answered, variant))
        when_done(variant)
    return {variant: found[variant] for variant in keys}


def _can_pad(tokenizer: Any, model: nn.Module) -> bool:
    """Whether the token that HFLM would pad with is there, and within the model's embeddings."""
    found = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id)
    padding = next((token for token in found if token is not None), None)
    return padding is not None and padding < model.get_input_embeddings().weight.shape[0]


def _evaluated(task: GenerativeTask, answers: _Answers, run_generated_code: bool) -> Sequence[Mapping[str, Any]]:
    """lm-eval's log of the task's items, an entry for each item and filter."""
    import lm_eval

    name = task.name
    evaluated = lm_eval.simple_evaluate(
        answers,
        tasks=[name],
        num_fewshot=task.budget.num_fewshot,
        samples={name: list(task.chosen)},
        bootstrap_iters=0,
        log_samples=True,
        task_manager=task.manager,
        random_seed=task.seed,
        numpy_random_seed=task.seed,
        torch_random_seed=task.seed,
        fewshot_random_seed=task.seed,
        confirm_run_unsafe_code=run_generated_code,
    )
    return evaluated["samples"][name]


def _scores(task: GenerativeTask, samples: Sequence[Mapping[str, Any]]) -> Result:
    """lm-eval's log of every item -> arrays by metric; values that are no number for an item are left out."""
    items = len(task.chosen)
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    scores: dict[str, dict[int, float]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            if isinstance(value := sample[metric], bool | int | float | np.number):
                label = metric if len(filters) == 1 else f"{metric},{sample['filter']}"
                scores.setdefault(label, {})[sample["doc_id"]] = float(value)
    arrays = {label: np.array([of[i] for i in sorted(of)]) for label, of in scores.items() if len(of) == items}
    if not arrays:
        raise StudyError(f"task {task.name!r} has no metric that is a number for each item: it cannot be compared")
    summary = {label: float(values.mean()) for label, values in arrays.items()}
    return Result(summary | {"items": items, "num_fewshot": task.budget.num_fewshot}, arrays)


def primary_metric(result: Result) -> str:
    """The score that is drawn: the one for answers found anywhere in the text if the task has it, else the first."""
    return next((name for name in result.arrays if "flexible" in name), next(iter(result.arrays)))
