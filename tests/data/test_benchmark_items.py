"""Benchmark items: lm-eval's own tokens and metrics, deterministic choices, one-line mistakes."""

from functools import cache

import lm_eval
import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from layer_redundancy.config.profiles import TaskBudget
from layer_redundancy.core import paths, stats
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Result
from layer_redundancy.data import benchmark_items
from layer_redundancy.evaluate.scoring import ChoiceTask
from layer_redundancy.models import smollm2

EMBEDDED = ["agreement", "copying", "last_word", "mmlu_dev", "mmlu_dev_continuation", "mmlu_dev_fewshot"]


ITEMS = """
import datasets
def choices(**_):
    return {"test": datasets.Dataset.from_list([
        {"question": "The sky is", "choices": ["blue", "a large green field of corn"], "answer": 0},
        {"question": "Two and two make ", "choices": ["5", "four", "seventeen"], "answer": 1},
        {"question": "Grass is", "choices": ["green", "loud"], "answer": 0},
        {"question": "", "choices": ["Once upon a time", "zqx vbn"], "answer": 0},
    ])}
"""


MULTIPLE_CHOICE = """
task: hand_made
custom_dataset: !function items.choices
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
fewshot_config: {split: test}
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""


ENDING = """
task: ending
custom_dataset: !function items.choices
test_split: test
output_type: loglikelihood
doc_to_text: "{{question}}:"
doc_to_target: " {{choices[answer]}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


GENERATE = """
task: generate
custom_dataset: !function items.choices
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: "{{choices[answer]}}"
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""


FROM_HUB = """
task: from_hub
dataset_path: layer-redundancy/does-not-exist
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
"""


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(smollm2.folder())


@pytest.fixture(scope="module")
def lm(tokenizer):
    """HFLM around a tiny random Llama."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.5,  # so that choices differ clearly
    )
    return HFLM(pretrained=LlamaForCausalLM(config).eval(), tokenizer=tokenizer, batch_size=4, device="cpu")


@pytest.fixture
def hand_made(tmp_path, monkeypatch):
    """A folder of tasks of the test's own in place of data/tasks."""
    (tmp_path / "items.py").write_text(ITEMS)
    for name, text in {"a": MULTIPLE_CHOICE, "b": ENDING, "c": GENERATE, "d": FROM_HUB}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(paths, "TASKS", tmp_path)
    return tmp_path


def answers(lm, items):
    """What HFLM itself answers to our token ids."""
    triples = [(("", ""), list(r.context_ids), list(r.continuation_ids)) for r in items.requests]
    return lm._loglikelihood_tokens(triples, disable_tqdm=True)


def evaluated(lm, items, **options):
    """lm-eval's own run of the same documents, with the token ids it sent to the model."""
    seen = []
    score = lm._loglikelihood_tokens

    def spy(requests, **kwargs):
        seen.extend((tuple(context), tuple(continuation)) for _, context, continuation in requests)
        return score(requests, **kwargs)

    lm._loglikelihood_tokens = spy
    try:
        results = lm_eval.simple_evaluate(
            model=lm,
            tasks=[items.name],
            task_manager=TaskManager(include_path=str(paths.TASKS), include_defaults=False),
            samples={items.name: sorted(item.doc_id for item in items.items)},
            bootstrap_iters=0,
            fewshot_random_seed=0,
            **options,
        )
    finally:
        del lm._loglikelihood_tokens
    return results["results"][items.name], seen


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_tasks_agree_with_lm_eval(lm, tokenizer, name):
    items = benchmark_items.load(TaskBudget(name, limit=12), tokenizer)
    frame = items.metrics(answers(lm, items))
    results, seen = evaluated(lm, items)
    assert sorted(seen) == sorted((r.context_ids, r.continuation_ids) for r in items.requests)
    assert len(frame) == items.num_items == 12
    for metric in items.metric_names:
        assert frame[metric].mean() == results[f"{metric},none"]
    assert items.metric_names == (("acc", "acc_norm") if name == "mmlu_dev_continuation" else ("acc",))
    assert items.chance == (0.5 if name == "agreement" else 0.25)
    assert items.num_fewshot == (5 if name == "mmlu_dev_fewshot" else 0)
    assert (frame["gold_logprob"] < 0).all()


@pytest.mark.parametrize("num_fewshot", [0, 2])
def test_hand_made_items_agree_with_lm_eval(hand_made, lm, tokenizer, num_fewshot):
    items = benchmark_items.load(TaskBudget("hand_made", num_fewshot=num_fewshot), tokenizer)
    frame = items.metrics(answers(lm, items))
    results, seen = evaluated(lm, items, num_fewshot=num_fewshot)
    assert sorted(seen) == sorted((r.context_ids, r.continuation_ids) for r in items.requests)
    assert [frame[m].mean() for m in ("acc", "acc_norm")] == [results[f"{m},none"] for m in ("acc", "acc_norm")]
    assert items.chance == pytest.approx((1 / 2 + 1 / 3 + 1 / 2 + 1 / 2) / 4)
    assert items.num_fewshot == num_fewshot
    assert max(len(r.context_ids) for r in items.requests) > 12 or num_fewshot == 0


def test_loglikelihood_task_agrees_with_lm_eval(hand_made, lm, tokenizer):
    items = benchmark_items.load(TaskBudget("ending"), tokenizer)
    given = answers(lm, items)
    frame = items.metrics(given)
    results, seen = evaluated(lm, items)
    assert sorted(seen) == sorted((r.context_ids, r.continuation_ids) for r in items.requests)
    assert frame["acc"].mean() == results["acc,none"]
    assert frame["gold_logprob"].tolist() == [loglikelihood for loglikelihood, _ in given]
    assert items.chance != items.chance  # nan: nothing to choose from


def test_metrics_by_hand(hand_made, tokenizer):
    items = benchmark_items.load(TaskBudget("hand_made"), tokenizer)
    by_question = {item.doc["question"]: i for i, item in enumerate(items.items)}
    sky = by_question["The sky is"]
    # "blue" (4 characters) -8 against "a large green field of corn" (27) -9: right by sum, wrong by length.
    told = {(sky, 0): -8.0, (sky, 1): -9.0}
    frame = items.metrics([(told.get((r.doc, r.choice), -1.0 - r.choice), False) for r in items.requests])
    row = frame.loc[sky]
    assert (row["doc"], row["gold"], row["acc"], row["acc_norm"], row["gold_logprob"]) == (sky, 0, 1.0, 0.0, -8.0)
    assert frame.loc[by_question["Two and two make "], "acc"] == 0.0  # choice 0 has the highest sum, gold is 1
    with pytest.raises(ValueError):
        items.metrics([(0.0, False)])


def test_the_right_choices_share_by_hand(hand_made, tokenizer):
    items = benchmark_items.load(TaskBudget("hand_made"), tokenizer)
    given = np.array([-2.0 if (r.choice == items.items[r.doc].gold) else -3.0 - r.choice for r in items.requests])
    found = ChoiceTask(items).with_gold_share(Result({}, {"loglikelihood": given})).arrays
    (three,) = (i for i, item in enumerate(items.items) if item.num_choices == 3)  # gold is its second: -2; -3, -5
    share = np.log(np.exp(-2) / (np.exp(-2) + np.exp(-3) + np.exp(-5)))
    assert found["gold_share"][three] == pytest.approx(share) and (found["loglikelihood"] == given).all()
    others = np.arange(4) != three  # of two choices, the right one two nats above the wrong one
    assert found["gold_share"][others] == pytest.approx(-np.log1p(np.exp(-2)))
    nothing = ChoiceTask(benchmark_items.load(TaskBudget("ending"), tokenizer))
    found = nothing.with_gold_share(Result({}, {"loglikelihood": np.zeros(4)})).arrays
    assert np.isnan(found["gold_share"]).all()


def test_trailing_space_and_empty_context_are_as_in_hflm(hand_made, lm, tokenizer):
    items = benchmark_items.load(TaskBudget("hand_made"), tokenizer)
    requests = {(items.items[r.doc].doc["question"], r.choice): r for r in items.requests}
    moved = requests["Two and two make ", 1]
    assert tokenizer.decode(moved.context_ids) == "Two and two make"
    assert tokenizer.decode(moved.continuation_ids) == "  four"  # the context's space and the delimiter
    empty = requests["", 0]
    assert empty.context_ids == (tokenizer.bos_token_id,)
    assert tokenizer.decode(empty.continuation_ids) == " Once upon a time"


def test_bos_is_in_the_context_where_the_tokenizer_prepends_it(hand_made):
    from tokenizers.processors import TemplateProcessing

    tokenizer = AutoTokenizer.from_pretrained(smollm2.folder())
    plain = benchmark_items.load(TaskBudget("ending"), tokenizer)
    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    with_bos = benchmark_items.load(TaskBudget("ending"), tokenizer)
    for a, b in zip(plain.requests, with_bos.requests, strict=True):
        assert b.context_ids == (bos[1], *a.context_ids)
        assert b.continuation_ids == a.continuation_ids
    assert plain.fingerprint != with_bos.fingerprint


def test_long_contexts_are_cut_as_in_hflm(lm, tokenizer):
    full = benchmark_items.load(TaskBudget("mmlu_dev", limit=10), tokenizer)
    cut = benchmark_items.load(TaskBudget("mmlu_dev", limit=10), tokenizer, max_length=40)
    short = HFLM(pretrained=lm.model, tokenizer=tokenizer, batch_size=4, max_length=40, device="cpu")
    assert max(len(r.context_ids) for r in full.requests) > 40
    for (ours, _), (theirs, _) in zip(answers(lm, cut), answers(short, full), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    assert max(len(r.context_ids) + len(r.continuation_ids) for r in cut.requests) == 41  # the last is never read
    with pytest.raises(StudyError, match=r"continuation of \d+ tokens, longer than the model's 2"):
        benchmark_items.load(TaskBudget("mmlu_dev_continuation", limit=10), tokenizer, max_length=2)


def test_items_are_deterministic_and_a_smaller_limit_takes_the_first(tokenizer):
    few, again, many = (benchmark_items.load(TaskBudget("mmlu_dev", limit=n), tokenizer) for n in (20, 20, 60))
    assert few.fingerprint == again.fingerprint != many.fingerprint
    assert few.requests == many.requests[: len(few.requests)]
    other = benchmark_items.load(TaskBudget("mmlu_dev", limit=20), tokenizer, seed=1)
    assert [item.doc_id for item in other.items] != [item.doc_id for item in few.items]
    assert len({item.doc["subject"] for item in many.items}) > 25
    assert len({item.doc_id for item in many.items}) == 60


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (TaskBudget("mmlu_dev", limit=0), "TaskBudget: limit must be at least 1, not 0"),
        (TaskBudget("mmlu_dev", num_fewshot=5), "zero-shot by definition"),
    ],
)
def test_numbers_that_do_not_fit_are_told_in_one_line(tokenizer, budget, message):
    with pytest.raises(StudyError, match=message) as error:
        benchmark_items.load(budget, tokenizer)
    assert "\n" not in str(error.value)


def test_task_that_generates_is_refused(hand_made, tokenizer):
    with pytest.raises(StudyError, match="generate_until task: only loglikelihood tasks"):
        benchmark_items.load(TaskBudget("generate"), tokenizer)


def test_unreachable_data_is_told_in_one_line(hand_made, tokenizer, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StudyError, match="task from_hub is not in the local cache and the hub cannot") as error:
        benchmark_items.load(TaskBudget("from_hub"), tokenizer)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_lm_evals_own_names_are_known_and_others_are_not(tokenizer, monkeypatch):
    """One test, because reading lm-eval's own task folder costs many seconds: it is read once and reused."""
    monkeypatch.setattr(benchmark_items, "TaskManager", cache(TaskManager))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("hellaswag", "mmlu"):  # known, so that it is only the data that is missing
        with pytest.raises(StudyError, match=rf"task {name} \(.+\) is not in the local cache"):
            benchmark_items.load(TaskBudget(name, limit=4), tokenizer)
    with pytest.raises(
        StudyError, match=r"unknown task 'helaswag': choose agreement, copying, .*did you mean .*hellaswag"
    ) as error:
        benchmark_items.load(TaskBudget("helaswag"), tokenizer)
    assert "\n" not in str(error.value)


def test_group_is_one_benchmark(hand_made, lm, tokenizer):
    (hand_made / "group.yaml").write_text("group: both\ntask: [hand_made, ending]\n")
    items = benchmark_items.load(TaskBudget("both"), tokenizer)
    frame = items.metrics(answers(lm, items))
    assert sorted(zip(frame["task"], frame["doc_id"], strict=True)) == [
        (name, i) for name in ("ending", "hand_made") for i in range(4)
    ]
    assert frame["acc_norm"].isna().sum() == 4  # ending has no such metric


def test_accuracy_interval_is_wilsons():
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    known = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (successes, n), interval in known.items():
        assert stats.accuracy_interval(successes, n) == pytest.approx(interval, abs=5e-5)
    assert stats.accuracy_interval(20, 20)[1] == pytest.approx(1.0)


def test_encoder_is_hflms_own(lm, tokenizer):
    pairs = [("A b", " c"), ("A b ", "c"), ("", " c"), ("Line\n", "2"), ("<|im_start|>x", " y")]
    instances = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    seen = []
    lm._loglikelihood_tokens = lambda requests, **_: seen.extend((c, k) for _, c, k in requests) or [(0.0, False)] * 5
    try:
        lm.loglikelihood(instances, disable_tqdm=True)
    finally:
        del lm._loglikelihood_tokens
    assert benchmark_items._Encoder(tokenizer).loglikelihood(instances, disable_tqdm=True) == seen
