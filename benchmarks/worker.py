"""One side of a benchmark pair, in a process of its own, so that its peak memory is its own.

`python -m benchmarks.worker JOB.json` loads the model once, says so, and then runs whenever a line comes on
standard input: the places of the variants to measure, as a JSON list, or null for all. Each answer is one line of JSON.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from layer_redundancy.config import profiles
from layer_redundancy.config.profiles import TaskBudget, TextBudget
from layer_redundancy.core import devices
from layer_redundancy.core.store import Store
from layer_redundancy.core.variants import Variant
from layer_redundancy.data import benchmark_items, corpora
from layer_redundancy.evaluate import plain_forwards, scoring, sweep
from layer_redundancy.evaluate.scoring import ChoiceTask, Perplexity, RandomSequences
from layer_redundancy.measures import activations, importance
from layer_redundancy.models import checkpoints, linear, loading
from layer_redundancy.models import compiled as compiled_blocks
from layer_redundancy.models.checkpoints import ModelIdentity
from layer_redundancy.models.stack import DecoderStack, decoder_stack

SEED = 0
FLOOR_TOKENS = 4096  # that the blocks alone are timed on
# Called with what is chosen of the variants; returns numbers that must agree between sides: the mean log-likelihood a
# token of every target of every sequence, by variant; or distances.
Run = Callable[[list[Variant]], np.ndarray]


def load(job: dict) -> tuple[ModelIdentity, DecoderStack]:
    """The job's model: one that can be named, or random weights in the shape of a config."""
    if "config" in job:
        devices.keep_freed_memory()
        config = dict(job["config"])
        torch.manual_seed(SEED)
        with torch.device(job["device"]):
            model = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(**config), dtype=checkpoints.DTYPES[job["dtype"]]
            )
        stack = decoder_stack(loading.prepare(model))
        return ModelIdentity("random weights", "", "", json.dumps(config), len(stack)), stack
    profile = replace(profiles.get("embedded"), model=job["model"], dtype=job["dtype"])
    identity = checkpoints.identify(profile)
    return identity, decoder_stack(loading.load(identity, job["dtype"], job["device"]))


def measurement(job: dict, identity: ModelIdentity) -> Any:
    """What the job measures on each variant."""
    spec = dict(job["measurement"])
    kind = spec.pop("kind")
    if kind == "random":
        return RandomSequences(job["config"]["vocab_size"], **spec)
    tokenizer = loading.load_tokenizer(identity)
    if kind == "task":
        return ChoiceTask(benchmark_items.load(TaskBudget(**spec), tokenizer, SEED, identity.max_length))
    return Perplexity(corpora.token_blocks(TextBudget(**spec), tokenizer, "evaluation"))


def num_tokens(measured: Any) -> np.ndarray:
    """Tokens of every target, in the order of the measurement's sequences."""
    return np.array([len(t) for s in measured.sequences for t in s.targets])


# ------------------------------------------------------------------------------------------------ the sides


def shared(job: dict, identity: ModelIdentity, stack: DecoderStack, clock: "Clock") -> Run:
    """This library's sweep, from an empty store."""
    measured, original = measurement(job, identity), scoring.score

    def score(*arguments: Any) -> Any:
        with clock.head():
            return original(*arguments)

    if not devices.is_gpu(stack.device):  # a GPU works on while the next forward is prepared
        scoring.score = score

    def run(variants: list[Variant]) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "store") as store:
            found = sweep.run(
                identity, lambda: stack, variants, [measured], store, job["batch_tokens"], False, job.get("compiled")
            )
        arrays = [found[measured.name][v].arrays for v in variants]
        return np.array([-a["nll"] if "nll" in a else a["loglikelihood"] for a in arrays]) / num_tokens(measured)

    return run


def one_by_one(job: dict, identity: ModelIdentity, stack: DecoderStack, clock: "Clock") -> Run:
    """One whole forward of every sequence for every variant, the model kept in memory."""
    measured = measurement(job, identity)
    clock.listen(stack.model.base_model)

    def run(variants: list[Variant]) -> np.ndarray:
        rows = []
        for variant in variants:
            with plain_forwards.applied(stack, variant) as model:
                outputs = plain_forwards.score(model, measured.sequences, job["batch_tokens"])
            rows.append([logprob for targets in outputs for logprob, _ in targets])
        return np.array(rows) / num_tokens(measured)

    return run


def compiled(job: dict, identity: ModelIdentity, stack: DecoderStack, clock: "Clock") -> Run:
    """The same with every block compiled: what a user gets who asks torch for it and shares nothing."""
    if linear.available():
        linear.product = opaque_product()
    for block in stack.blocks:
        block.compile(backend=job.get("backend", "inductor"), dynamic=True)  # as the sweeps' blocks are
    return one_by_one(job, identity, stack, clock)


@cache
def opaque_product() -> Callable[..., torch.Tensor]:
    """The product of our linear layers on a processor, as torch's compiler takes it: it knows it for constants only."""
    product = linear.product

    @torch.library.custom_op("benchmarks::product", mutates_args=())
    def opaque(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return product(input, weight, bias)

    @opaque.register_fake
    def _(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return input.new_empty((*input.shape[:-1], weight.shape[0]))

    return opaque


def hflm(job: dict, identity: ModelIdentity, stack: DecoderStack, clock: "Clock") -> Run:
    """One evaluation by lm-eval's HFLM for every variant, the model kept in memory."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from layer_redundancy.core import paths

    measured = measurement(job, identity)
    clock.listen(stack.model.base_model)
    longest = max(len(s.input_ids) for s in measured.sequences)
    # HFLM wants a tokenizer even for requests that are tokens already: any that is here.
    of = identity if identity.source else checkpoints.identify(profiles.get("embedded", model=profiles.EMBEDDED_RWKV))
    tokenizer = loading.load_tokenizer(of)
    lm = HFLM(pretrained=stack.model, tokenizer=tokenizer, batch_size=max(1, job["batch_tokens"] // longest))

    def evaluate_task() -> list[float]:
        name = measured.items.name
        manager = TaskManager(include_path=str(paths.TASKS), include_defaults=False)
        # Sorted: lm-eval runs them in the order of the documents and numbers them as if in the order given.
        chosen = {name: sorted(item.doc_id for item in measured.items.items)}
        with benchmark_items.quiet():
            found = lm_eval.simple_evaluate(lm, tasks=[name], task_manager=manager, samples=chosen, bootstrap_iters=0)
        answers = {sample["doc_id"]: sample["filtered_resps"] for sample in found["samples"][name]}
        return [float(a[0]) for item in measured.items.items for a in answers[item.doc_id]]

    def evaluate_tokens() -> list[float]:
        requests = []
        for s in measured.sequences:
            for target in s.targets:
                whole = [*s.input_ids, target[-1]]
                requests.append(((None, None), whole[: -len(target)], whole[-len(target) :]))
        return [answer[0] for answer in lm._loglikelihood_tokens(requests, disable_tqdm=True)]

    def run(variants: list[Variant]) -> np.ndarray:
        rows = []
        for variant in variants:
            with plain_forwards.applied(stack, variant):
                rows.append(evaluate_task() if isinstance(measured, ChoiceTask) else evaluate_tokens())
        return np.array(rows) / num_tokens(measured)

    return run


def every_measure(job: dict, identity: ModelIdentity, stack: DecoderStack, clock: "Clock") -> Run:
    """All importance measures and both angular grids from one pass."""
    ids = calibration(job, identity, stack)

    def run(_: list[Variant]) -> np.ndarray:
        sums = activations.collect(stack, ids, batch_tokens=job["batch_tokens"])
        for name in importance.MEASURES:
            importance.scores(sums, name)
        importance.angular_grid(sums, "all")
        return importance.angular_grid(sums, "last")

    return run


def bare_forward(job: dict, identity: ModelIdentity, stack: DecoderStack, clock: "Clock") -> Run:
    """The blocks on the same tokens, in the same batches, and nothing else: the floor."""
    ids = calibration(job, identity, stack)

    def run(_: list[Variant]) -> np.ndarray:
        rows = max(1, job["batch_tokens"] // ids.shape[1])
        with torch.no_grad():
            for start in range(0, len(ids), rows):
                stack.model.base_model(input_ids=ids[start : start + rows].to(stack.device), use_cache=False)
        return np.zeros(0)

    return run


def bare_blocks(job: dict, identity: ModelIdentity, stack: DecoderStack, clock: "Clock") -> Run:
    """The blocks alone on a batch of whole sequences, and the head's product alone at as many positions.

    Its seconds a token, by the tokens that a plan runs, are the least that the plan can take. What it returns are the
    block-tokens and the head-tokens that it ran.
    """
    sequences = measurement(job, identity).sequences
    longest = max(len(s.input_ids) for s in sequences)
    ids = [torch.tensor(s.input_ids) for s in sequences if len(s.input_ids) == longest]
    batch = torch.stack(ids[: max(1, job["batch_tokens"] // longest)])
    times = -(-FLOOR_TOKENS // batch.numel())
    stack = compiled_blocks.compiled(stack) if job.get("compiled") else stack
    first, calls = stack.start(batch)

    def run(_: list[Variant]) -> np.ndarray:
        for _ in range(times):
            states = first
            for block in range(len(stack)):
                states = stack.run_block(block, states, calls)
            with clock.head(), torch.no_grad():
                stack.head(states)
        return times * batch.numel() * np.array([len(stack), 1])

    return run


def calibration(job: dict, identity: ModelIdentity, stack: DecoderStack) -> torch.Tensor:
    """Token ids (sequences, tokens) for the importance measures."""
    spec = job["calibration"]
    if "config" in job:
        vocabulary = stack.model.get_input_embeddings().weight.shape[0]
        shape = (spec["calibration_blocks"], spec["block_length"])
        return torch.randint(3, vocabulary, shape, generator=torch.Generator().manual_seed(SEED))
    return corpora.token_blocks(TextBudget(**spec), loading.load_tokenizer(identity), "calibration").input_ids


SIDES = {
    "shared": shared,
    "plain": one_by_one,
    "compiled": compiled,
    "hflm": hflm,
    "bare_blocks": bare_blocks,
    "every_measure": every_measure,
    "bare": bare_forward,
}


# ------------------------------------------------------------------------------------------------ the process


class Clock:
    """Seconds of a run, and how many of them the head and what follows it take."""

    def __init__(self, device: torch.device):
        self.device, self.head_seconds, self.base_seconds = device, 0.0, None

    def now(self) -> float:
        """Seconds, after everything that was asked of the device is done."""
        devices.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def head(self) -> Iterator[None]:
        """Counts the time spent inside as the head's."""
        started = self.now()
        yield
        self.head_seconds += self.now() - started

    def listen(self, base: torch.nn.Module) -> None:
        """Counts all but the time in this module as the head's; not on a GPU, which would have to wait for it."""
        if devices.is_gpu(self.device):
            return
        begun: list[float] = []
        self.base_seconds = 0.0

        def stop(*_: Any) -> None:
            self.base_seconds += self.now() - begun.pop()

        base.register_forward_pre_hook(lambda *_: begun.append(self.now()))
        base.register_forward_hook(stop)

    def time(self, run: Run, variants: list[Variant]) -> tuple[np.ndarray, float, float]:
        """What a run returns, its seconds, and the head's share of them in seconds."""
        self.head_seconds, self.base_seconds = 0.0, None if self.base_seconds is None else 0.0
        started = self.now()
        values = run(variants)
        seconds = self.now() - started
        return values, seconds, self.head_seconds if self.base_seconds is None else seconds - self.base_seconds


def main() -> None:
    """Serves one job."""
    job = json.loads(Path(sys.argv[1]).read_text())
    # Answers have standard output to themselves; what libraries print goes where errors go.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    identity, stack = load(job)
    clock = Clock(stack.device)
    run = SIDES[job["side"]](job, identity, stack, clock)
    variants = [tuple(tuple(e) if isinstance(e, list) else e for e in v) for v in job["variants"]]
    run(sorted(variants, key=len)[:1])  # the first run pays for what later ones find ready
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        places = json.loads(line)
        chosen = variants if places is None else [variants[i] for i in places]
        values, seconds, head = clock.time(run, chosen)
        answer = {"seconds": seconds, "head_seconds": head, "peak_bytes": devices.peak_bytes(stack.device)}
        print(json.dumps(answer | {"values": values.tolist()}), file=answers)


if __name__ == "__main__":
    main()
