"""Benchmark items as scoring requests. lm-eval owns the tasks, the prompts, the tokenisation and the metrics.

Tasks are those of data/tasks/*.yaml, lm-eval's own, and files of the user's (`task_files`). The data of six needs no
hub and is built in `capability_tasks` and `own_tasks`; the paper's benchmarks (shortgpt_*) are in `paper_benchmarks`.
"""

import difflib
import hashlib
import json
import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pandas as pd
from lm_eval.api.task import Task
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from layer_redundancy.config import own_files, profiles, sources
from layer_redundancy.config.profiles import TaskBudget
from layer_redundancy.core import flags, paths
from layer_redundancy.core.errors import StudyError
from layer_redundancy.data import hub, task_files, tokens

# `metadata: {scoring: mean_cross_entropy}` in a task's YAML: the choice of the lowest mean cross-entropy a token wins,
# not that of the highest sum of log-probabilities. OpenCompass scores its "PPL" benchmarks so.
MEAN_CROSS_ENTROPY = "mean_cross_entropy"


@dataclass(frozen=True)
class Request:
    """One continuation to score after one context; both are never empty.

    Attributes:
        context_ids: token ids the model reads first, the beginning-of-sequence token included where the tokenizer
            prepends it.
        continuation_ids: token ids whose log-probabilities are summed.
        doc: position of the item among the `TaskItems`.
        choice: position of the request among those of its item.
    """

    context_ids: tuple[int, ...]
    continuation_ids: tuple[int, ...]
    doc: int
    choice: int


@dataclass(frozen=True, eq=False)
class Item:
    """A document of an lm-eval task.

    Attributes:
        task: the task that asks and judges it (for a group such as mmlu: one of its leaves).
        doc_id: the document's position in `task.eval_docs`.
        doc: the document itself.
        num_choices: continuations (or contexts) the model chooses from; 1 where there is nothing to choose.
        gold: position of the right choice; None where the task accepts several.
    """

    task: Task
    doc_id: int
    doc: dict
    num_choices: int
    gold: int | None

    @property
    def scoring(self) -> str | None:
        """MEAN_CROSS_ENTROPY where the task's metadata asks for it; None for lm-eval's own scoring, by sums."""
        return (self.task.config.metadata or {}).get("scoring")


@dataclass(frozen=True, eq=False)
class TaskItems:
    """The items of a benchmark as requests for one tokenizer.

    Attributes:
        name: the benchmark's name.
        num_fewshot: worked examples in each prompt.
        items: the items in their order.
        requests: the requests of item 0 first, then those of item 1, and so on.
        metric_names: columns of `metrics` that the task defines.
        total: items that the task has, of which these may be a part.
        definition: digest of the definition of a task of the user's own; "" for any other.
    """

    name: str
    num_fewshot: int
    items: tuple[Item, ...]
    requests: tuple[Request, ...]
    metric_names: tuple[str, ...]
    total: int = 0
    definition: str = ""

    @property
    def num_items(self) -> int:
        return len(self.items)

    @property
    def chance(self) -> float:
        """Expected accuracy of guessing: the mean of 1 / number of choices; nan if there are no choices."""
        return float(np.mean([1 / item.num_choices if item.num_choices > 1 else np.nan for item in self.items]))

    def parts(self, size: int) -> list["TaskItems"]:
        """The items `size` at a time; the last part may be smaller."""
        parts = []
        for start in range(0, len(self.items), size):
            requests = [replace(r, doc=r.doc - start) for r in self.requests if start <= r.doc < start + size]
            parts.append(replace(self, items=self.items[start : start + size], requests=tuple(requests)))
        return parts

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of all token ids and of all that decides the metrics of given log-likelihoods."""
        content = [lm_eval.__version__, self.name, self.num_fewshot, self.metric_names]
        if self.definition:
            content.append(self.definition)
        for item in self.items:
            content.append([item.task.task_name, str(item.task.VERSION), item.task.OUTPUT_TYPE, item.doc_id, item.gold])
            if item.num_choices > 1:
                content.append(item.task.doc_to_choice(item.doc))  # acc_norm divides by their lengths
            if item.scoring:
                content.append(item.scoring)
            if self.definition:
                content.append(str(item.task.doc_to_target(item.doc)))
        digest = hashlib.sha256(json.dumps(content).encode())
        for r in self.requests:
            lengths = [r.doc, r.choice, len(r.context_ids), len(r.continuation_ids)]
            digest.update(np.array([*lengths, *r.context_ids, *r.continuation_ids], "<i8").tobytes())
        return digest.hexdigest()

    def metrics(self, loglikelihoods: Sequence[tuple[float, bool]]) -> pd.DataFrame:
        """What lm-eval's own `process_results` makes of the model's answers.

        Where a task's scoring is MEAN_CROSS_ENTROPY, it is handed each sum divided by the number of tokens, so that its
        acc is the argmax of the mean. As in OpenCompass' `_get_ppl`, all tokens of the prompt count, the
        beginning-of-sequence token too, which is read but not predicted: T - 1 terms are divided by T. For a tokenizer
        that prepends none, OpenCompass leaves the first token unpredicted, while lm-eval puts its prefix token (the
        tokenizer's bos or eos) in front and scores all T: they are divided by T + 1.

        Args:
            loglikelihoods: for each of `requests`, in their order, the sum of the continuation's log-probabilities and
                whether it is the greedy continuation.

        Returns:
            One row an item: doc (position), task and doc_id (lm-eval's), gold, gold_logprob (of the right choice,
            always the sum; nan where gold is None), and a column for each of `metric_names`.

        Raises:
            ValueError: not one answer a request.
        """
        answers: list[list[tuple[float, bool]]] = [[] for _ in self.items]
        lengths: list[list[int]] = [[] for _ in self.items]
        for request, (loglikelihood, greedy) in zip(self.requests, loglikelihoods, strict=True):
            answers[request.doc].append((float(loglikelihood), bool(greedy)))
            lengths[request.doc].append(len(request.context_ids) + len(request.continuation_ids))
        rows = []
        for position, (item, results) in enumerate(zip(self.items, answers, strict=True)):
            row = {"doc": position, "task": item.task.task_name, "doc_id": item.doc_id, "gold": item.gold}
            row["gold_logprob"] = np.nan if item.gold is None else results[item.gold][0]
            if item.scoring == MEAN_CROSS_ENTROPY:
                results = [(ll / n, greedy) for (ll, greedy), n in zip(results, lengths[position], strict=True)]
            rows.append(row | item.task.process_results(item.doc, results))
        return pd.DataFrame(rows)


@flags.checked
def load(
    budget: TaskBudget,
    tokenizer: Any,
    seed: int = 0,
    max_length: int | None = None,
    trust_remote_code: bool = False,
) -> TaskItems:
    """The items of a benchmark, tokenised as lm-eval's HFLM does it.

    Args:
        budget: `limit` takes the first items after a seeded shuffle, over all leaves of a group, so that subjects mix;
            the items of a smaller limit are the first of a larger one's (with other few-shot examples, if the task
            draws them at random).
        tokenizer: a transformers tokenizer.
        seed: seed of the shuffle, and of few-shot examples where a task draws them.
        max_length: longest input of the model; longer contexts lose tokens on the left, as with HFLM.
        trust_remote_code: run code that comes with a task of the user's own.

    Raises:
        StudyError: no budget or an impossible one, unknown task or scoring, a task of the user's own that runs code
            without leave, a task that is not judged by log-likelihoods, unreachable data, numbers that do not fit the
            task, or an answer without tokens or without anything before it.
    """
    budget = profiles.valid(TaskBudget, budget)
    own = task_files.read(budget.name) if own_files.is_own_task(budget.name) else None
    name = own.name if own else budget.name
    with quiet(), data_errors(budget.name) if own else nullcontext():
        leaves = _leaves(budget, seed, trust_remote_code)
        docs = [task.eval_docs for task in leaves]  # once: the property may process all documents at every call
        places = [(leaf, doc_id) for leaf in range(len(leaves)) for doc_id in range(len(docs[leaf]))]
        random.Random(seed).shuffle(places)
        total, places = len(places), places[: budget.limit]
        asked = {}
        # In lm-eval's order, for tasks that draw their examples from one random stream.
        for leaf, doc_id in sorted(places):
            with fewshot_errors(budget):
                asked[leaf, doc_id] = _ask(leaves[leaf], doc_id, docs[leaf][doc_id])
            if own:
                _check_answer(asked[leaf, doc_id][0])

    encoder = _Encoder(tokenizer)
    items, requests = [], []
    for position, place in enumerate(places):
        item, instances = asked[place]
        items.append(item)
        # The choices of an item share one tuple: few-shot prompts are long.
        contexts: dict[tuple[int, ...], tuple[int, ...]] = {}
        try:
            encoded = encoder.loglikelihood(instances, disable_tqdm=True)
        except StudyError as error:
            raise StudyError(f"task {name!r}: {error}") from error
        for choice, (context, continuation) in enumerate(encoded):
            if max_length is not None:
                if len(continuation) > max_length:
                    raise StudyError(
                        f"task {name!r} has a continuation of {len(continuation)} tokens, longer than the "
                        f"model's {max_length}: use a task with shorter answers"
                    )
                context = context[-(max_length + 1 - len(continuation)) :]  # the model never reads the last token
            context = contexts.setdefault(tuple(context), tuple(context))
            requests.append(Request(context, tuple(continuation), position, choice))
    return TaskItems(
        name=name,
        num_fewshot=max(task.config.num_fewshot for task in leaves),
        items=tuple(items),
        requests=tuple(requests),
        metric_names=tuple(dict.fromkeys(name for task in leaves for name in task.aggregation())),
        total=total,
        definition=own.digest if own else "",
    )


def fetch(budget: TaskBudget) -> None:
    """Downloads a benchmark's data; errors as `load`."""
    with quiet():
        for task in _leaves(budget, seed=0):
            _ = task.eval_docs


class _Encoder(HFLM):
    """HFLM without a model: its own tokenisation of requests, handed back instead of scored.

    It differs where HFLM would score the wrong tokens: a tokenizer's end-of-sequence token after each text, and an
    answer that is cut in two, or is gone, since one token spans its beginning and the end of its context.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokens.without_end(tokenizer)
        self.backend = "causal"
        self.add_bos_token = None  # the tokenizer's own default decides
        self.custom_prefix_token_id = None
        self.enable_thinking = None

    @property
    def prefix_token_id(self) -> int:
        """What stands before an answer without context. Raises StudyError if the tokenizer has nothing for it."""
        if (found := super().prefix_token_id) is None:
            raise StudyError(
                "an answer has no context, and the tokenizer has neither a beginning- nor an end-of-sequence token to "
                "put before it: set its bos_token, or use a task whose answers follow a text"
            )
        return found

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        if super().prefix_token_id is None:  # HFLM would look for it at the text's beginning
            special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
            ids = self.tokenizer.encode(string, **special)
        else:
            ids = super().tok_encode(string, add_special_tokens, **kwargs)
        if not ids and add_special_tokens is False:
            raise StudyError(f"the tokenizer makes no token of the answer {string!r}: nothing is there to score")
        return ids

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        text, context = context + continuation, context.rstrip()  # spaces go to the continuation, as in HFLM
        context_ids, whole = self.tok_encode(context) or [self.prefix_token_id], self.tok_encode(text)
        count = len(context_ids)
        if len(whole) > count and whole[:count] == context_ids:
            return context_ids, whole[count:]
        return context_ids, self._behind_a_text(text[len(context) :])

    def _behind_a_text(self, continuation: str) -> list[int]:
        """Tokens of a text that goes on from another, with which it shares none."""
        # By itself it would be read as the beginning of a text, before which SentencePiece sees a space.
        for other in ("\n", "a", "."):
            before, both = (self.tok_encode(text, add_special_tokens=False) for text in (other, other + continuation))
            if len(both) > len(before) and both[: len(before)] == before:
                return both[len(before) :]
        return self.tok_encode(continuation, add_special_tokens=False)

    def _loglikelihood_tokens(
        self,
        requests: Iterable[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[list[int], list[int]]]:
        return [(context, continuation) for _, context, continuation in requests]


def _leaves(budget: TaskBudget, seed: int, trust_remote_code: bool = False) -> list[Task]:
    """The tasks behind a name (several for a group or tag), ready to build prompts."""
    if own_files.is_own_task(budget.name):
        own = task_files.read(budget.name)
        name, manager = own.name, task_files.manager(own, trust_remote_code)
    else:
        name, manager = budget.name, task_manager(budget.name)
        if name not in manager.all_tasks:
            ours = TaskManager(include_path=str(paths.TASKS), include_defaults=False).all_tasks
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            raise StudyError(
                f"unknown task {name!r}: choose {', '.join(ours)}, a task that lm-eval ships, or a .yaml file"
                + (f" (did you mean {' or '.join(near)}?)" if near else "")
            )
    with data_errors(budget.name):
        leaves = list(manager.load([name])["tasks"].values())
    for task in leaves:
        if task.OUTPUT_TYPE not in ("multiple_choice", "loglikelihood"):
            raise StudyError(
                f"task {task.task_name!r} is a {task.OUTPUT_TYPE} task: only loglikelihood tasks (multiple_choice, "
                "loglikelihood) can be scored"
            )
        default = task.config.num_fewshot
        if default == 0 and budget.num_fewshot:
            # lm-eval would ignore the number without a word that reaches the user.
            raise StudyError(f"task {task.task_name!r} is zero-shot by definition: num_fewshot must be 0 or None")
        shots = default or 0 if budget.num_fewshot is None else budget.num_fewshot
        task.set_config("num_fewshot", shots)
        task.set_fewshot_seed(seed)
    return leaves


def task_manager(name: str, folder: Path | None = None) -> TaskManager:
    """lm-eval's manager of as few task files as hold the task: reading all of its thousands takes seconds.

    Args:
        name: a task's name; where neither we nor lm-eval have it, the manager of all is returned.
        folder: task definitions of our own; data/tasks if not given.
    """
    own, theirs = str(folder or paths.TASKS), Path(lm_eval.__file__).parent / "tasks"
    # A benchmark's folder is named after it, as far as the first underscore or to the end ("mmlu", "gsm8k_cot"), or is
    # that of its collection.
    near = [theirs / part for part in (name, name.split("_")[0], "super_glue")]
    near = [path for path in near if path.is_dir() and path.resolve().parent == theirs.resolve()]
    with quiet():
        for include in ((own,), *((own, str(path)) for path in near)):
            manager = TaskManager(include_path=include, include_defaults=False)
            if name in manager.all_tasks:
                return manager
        return TaskManager(include_path=own)


@contextmanager
def data_errors(name: str) -> Iterator[None]:
    """Turns whatever is raised while a task's data is loaded into one line."""
    try:
        yield
    except StudyError:
        raise
    except (Exception, SystemExit) as error:  # the hub's clients and the tasks' own code raise many types
        source = sources.DATA.get(name)
        what = f"task {name}" + (f" ({source.repository})" if source else "")
        if (line := hub.one_line(error, what)) is not None:
            raise StudyError(line) from error
        reason = str(error).strip().splitlines() or [""]
        if own_files.is_own_task(name):
            what = f"{own_files.shown(Path(name))} cannot be loaded ({type(error).__name__}: {reason[0]})"
            raise StudyError(f"{what}: check its definition and its data") from error
        raise StudyError(
            f"cannot load the data of task {name!r} ({type(error).__name__}: {reason[0]}): check the network and "
            "HF_HUB_OFFLINE, or use the embedded profile, whose tasks need no hub"
        ) from error


@contextmanager
def fewshot_errors(budget: TaskBudget) -> Iterator[None]:
    """Turns lm-eval's assertion that there are so many worked examples into one line."""
    try:
        yield
    except AssertionError as error:
        if "fewshot" not in str(error):
            raise
        raise StudyError(f"task {budget.name!r}: num_fewshot {budget.num_fewshot} is too large ({error})") from error


def _ask(task: Task, doc_id: int, doc: dict) -> tuple[Item, list]:
    """The item and its lm-eval requests, built as `Task.build_all_requests` does for one document."""
    context = task.fewshot_context(doc, num_fewshot=task.config.num_fewshot, gen_prefix=task.doc_to_prefix(doc))
    instances = task.construct_requests(doc=doc, ctx=context, metadata=(task.task_name, doc_id, 1))
    if task.OUTPUT_TYPE == "loglikelihood":
        return Item(task, doc_id, doc, num_choices=1, gold=0), [instances]
    if "scoring" in (task.config.metadata or {}) and (task.config.metadata["scoring"] != MEAN_CROSS_ENTROPY or context):
        raise StudyError(
            f"task {task.task_name!r}: the only scoring its metadata may name is {MEAN_CROSS_ENTROPY}, and that needs "
            'doc_to_text: "" and whole prompts as choices'
        )
    choices = task.doc_to_choice(doc)
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(gold, str) and gold in choices:
        gold = choices.index(gold)
    return Item(task, doc_id, doc, len(choices), gold if isinstance(gold, int) else None), instances


def _check_answer(item: Item) -> None:
    """Raises StudyError where the right answer is none of the choices: lm-eval would count every answer as wrong."""
    if item.task.OUTPUT_TYPE != "multiple_choice":
        return
    answer: Any = item.task.doc_to_target(item.doc) if item.gold is None else item.gold
    if isinstance(answer, list):  # several are right
        return
    if not isinstance(answer, int) or not 0 <= answer < item.num_choices:
        raise StudyError(
            f"task {item.task.task_name!r}, item {item.doc_id}: its answer {answer!r} is none of its "
            f"{item.num_choices} choices (their places count from 0)"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps lm-eval's warnings about its defaults off the screen, and datasets' of being offline; errors are shown."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
