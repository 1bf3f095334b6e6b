"""lm-eval's generative tasks on variants of a tiny model, items in GSM8K's schema."""

import copy
from dataclasses import replace

import pytest
import torch
import transformers as tf
from test_generate import PRUNED, identity

import tiny_models
from layer_redundancy.config.profiles import TaskBudget
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Store
from layer_redundancy.evaluate import generative_tasks
from layer_redundancy.models import loading
from layer_redundancy.models.stack import decoder_stack

GSM8K_LIKE = """
task: tiny_sums
custom_dataset: !function tiny_sums.data
test_split: test
fewshot_split: train
output_type: generate_until
num_fewshot: 1
fewshot_config:
  sampler: first_n
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    regexes_to_ignore: [",", "(?s).*#### "]
generation_kwargs:
  until: ["Question:"]
  do_sample: false
  max_gen_toks: 6
filter_list:
  - name: strict-match
    filter:
      - {function: regex, regex_pattern: "#### (\\\\-?[0-9\\\\.\\\\,]+)"}
      - {function: take_first}
  - name: flexible-extract
    filter:
      - {function: regex, group_select: -1, regex_pattern: "(-?[$0-9.,]{2,})|(-?[0-9]+)"}
      - {function: take_first}
metadata: {version: 1.0}
"""
DATA = """
import datasets
def data(**_):
    rows = [{"question": f"What is {i} and 70?", "answer": f"{i} + 70 is {70 + i}.\\n#### {70 + i}"} for i in range(9)]
    return {"train": datasets.Dataset.from_list(rows[:2]), "test": datasets.Dataset.from_list(rows[2:])}
"""
CODE_TASK = """
task: tiny_code
unsafe_code: true
custom_dataset: !function must_not_be_imported.data
output_type: generate_until
doc_to_text: prompt
doc_to_target: test
"""


@pytest.fixture
def folder(tmp_path):
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "tiny_sums.yaml").write_text(GSM8K_LIKE)
    (tasks / "tiny_sums.py").write_text(DATA)
    (tasks / "tiny_code.yaml").write_text(CODE_TASK)
    (tasks / "must_not_be_imported.py").write_text("raise AssertionError('imported')")
    (tasks / "tiny_choice.yaml").write_text(GSM8K_LIKE.replace("generate_until", "multiple_choice").replace(
        "task: tiny_sums", "task: tiny_choice"))  # fmt: skip
    return tasks


@pytest.fixture(scope="module")
def tokenizer():
    """Bytes as tokens: 256 of them after the special ones."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {letter: i + 3 for i, letter in enumerate(alphabet)}
    made = Tokenizer(BPE(vocabulary, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return tf.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def byte_stack():
    torch.manual_seed(0)
    config = tf.LlamaConfig(**tiny_models.COMMON | {"vocab_size": 259, "max_position_embeddings": 256})
    return decoder_stack(loading.prepare(tf.AutoModelForCausalLM.from_config(config)))


def evaluate(stack, tokenizer, task, store, plan, **options):
    return generative_tasks.evaluate(
        replace(identity(), max_length=256), lambda: stack, tokenizer, plan, task, store, progress=False, **options
    )


def test_a_generative_task_scores_each_item(folder, tokenizer, byte_stack, tmp_path, monkeypatch):
    task = generative_tasks.load(TaskBudget("tiny_sums", limit=4), seed=0, folder=folder)
    assert len(task.chosen) == 4 and list(task.chosen) == sorted(task.chosen) and not task.runs_code
    asked = []

    def answer(self, requests, disable_tqdm=False):
        asked.extend(request.args[0] for request in requests)
        right = [request.doc["answer"].split("#### ")[1] for request in requests]
        # An odd item is answered as the worked example shows it, an even one with the bare number.
        return [f" It is.\n#### {n}" if int(n) % 2 else f" It is {n}" for n in right]

    monkeypatch.setattr(generative_tasks.HFLM, "generate_until", answer)
    (result,) = evaluate(byte_stack, tokenizer, task, Store(tmp_path / "s.sqlite"), [PRUNED]).values()
    numbers = [72 + i for i in task.chosen]  # the test split starts with 2 + 70
    assert result.arrays["exact_match,strict-match"].tolist() == [n % 2 for n in numbers]
    assert result.arrays["exact_match,flexible-extract"].tolist() == [1, 1, 1, 1]
    assert generative_tasks.primary_metric(result) == "exact_match,flexible-extract"
    assert all(prompt.startswith("Question: What is 0 and 70?\nAnswer: 0 + 70") for prompt in asked), "worked example"
    assert [int(prompt.split()[-4]) + 70 for prompt in asked] == numbers
    assert result.summary["items"] == 4


def test_a_generative_task_runs_the_pruned_model_and_keeps_its_answers(
    folder, tokenizer, byte_stack, tmp_path, monkeypatch
):
    task = generative_tasks.load(TaskBudget("tiny_sums"), folder=folder)
    store, plan, seen = Store(tmp_path / "s.sqlite"), [(0, 1, 2, 3, 4), PRUNED], []
    monkeypatch.setattr(generative_tasks, "ANSWERS_KEPT", 3)
    generate, asked = generative_tasks.HFLM.generate_until, []

    def counted(self, requests, disable_tqdm=False):
        if len(asked) == 5:
            asked.append("killed")
            raise KeyboardInterrupt
        asked.append(len(requests))
        seen.append(len(self.model.model.layers))
        return generate(self, requests, disable_tqdm)

    monkeypatch.setattr(generative_tasks.HFLM, "generate_until", counted)
    pad = tokenizer.pad_token
    with pytest.raises(KeyboardInterrupt):
        evaluate(byte_stack, tokenizer, task, store, plan)
    first = evaluate(byte_stack, tokenizer, task, store, plan)
    assert asked == [3, 3, 1, 3, 3, "killed", 1], "seven items a variant, in threes; the second goes on where it was"
    assert set(seen[:3]) == {5} and set(seen[3:]) == {3}
    assert len(byte_stack) == 5 and tokenizer.pad_token == pad
    for result in first.values():
        assert {name: values.shape for name, values in result.arrays.items()} == {
            "exact_match,strict-match": (7,), "exact_match,flexible-extract": (7,)}  # fmt: skip
    again = generative_tasks.evaluate(replace(identity(), max_length=256), None, tokenizer, plan, task, store)
    assert {v: r.summary for v, r in again.items()} == {v: r.summary for v, r in first.items()}


@pytest.mark.parametrize("kind", ["ends texts", "pad beyond the embeddings", "nothing special"])
def test_answers_do_not_depend_on_what_else_the_tokenizer_does(
    kind, folder, tokenizer, byte_stack, tmp_path, monkeypatch
):
    task = generative_tasks.load(TaskBudget("tiny_sums", limit=3), folder=folder)
    odd, generate, read, answers = copy.deepcopy(tokenizer), generative_tasks.HFLM.generate_until, [], []

    def noted(self, requests, disable_tqdm=False):
        for request in requests:
            read.append(self.tok_batch_encode([request.args[0]])[0].tolist())
        answers.append(generate(self, requests, disable_tqdm))
        return answers[-1]

    monkeypatch.setattr(generative_tasks.HFLM, "generate_until", noted)
    if kind == "ends texts":
        odd.add_bos_token, odd.add_eos_token = True, True
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.add_bos_token = True
    if kind == "pad beyond the embeddings":
        odd.add_special_tokens({"pad_token": "<more>"})
        assert odd.pad_token_id == 259
    if kind == "nothing special":
        odd.bos_token = odd.eos_token = None
    for one in (tokenizer, odd):
        evaluate(byte_stack, one, task, Store(tmp_path / f"{one is odd}.sqlite"), [PRUNED])
    assert read[: len(read) // 2] == read[len(read) // 2 :] and len(set(map(tuple, answers))) == 1
    assert not generative_tasks.tokens.around(tokenizer)[1]


def test_a_benchmarks_batch_that_does_not_fit_is_halved(folder, tokenizer, byte_stack, tmp_path, monkeypatch):
    task = generative_tasks.load(TaskBudget("tiny_sums"), folder=folder)
    generate, sizes = type(byte_stack.model).generate, []

    def cramped(self, input_ids, **options):
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("no room")
        return generate(self, input_ids=input_ids, **options)

    monkeypatch.setattr(type(byte_stack.model), "generate", cramped)
    (result,) = evaluate(byte_stack, tokenizer, task, Store(tmp_path / "s.sqlite"), [PRUNED]).values()
    assert len(result.arrays["exact_match,strict-match"]) == 7
    assert max(sizes) > 2 and sizes[-1] <= 2


def test_fingerprint_follows_prompts_and_settings(folder, monkeypatch):
    def fingerprint(**changes):
        return generative_tasks.load(TaskBudget("tiny_sums", **changes), folder=folder).fingerprint

    first = fingerprint()
    assert fingerprint() == first
    assert len({first, fingerprint(limit=3), fingerprint(num_fewshot=2)}) == 3
    (folder / "tiny_sums.yaml").write_text(GSM8K_LIKE.replace("max_gen_toks: 6", "max_gen_toks: 7"))
    assert fingerprint() != first
    small, large = (generative_tasks.load(TaskBudget("tiny_sums", limit=n), folder=folder).chosen for n in (3, 5))
    assert set(small) < set(large)


def test_generated_code_never_runs_without_leave(folder, tokenizer, byte_stack, tmp_path, monkeypatch):
    assert generative_tasks.runs_code(TaskBudget("tiny_code"), folder)
    assert not generative_tasks.runs_code(TaskBudget("tiny_sums"), folder)
    with pytest.raises(StudyError, match="set run_generated_code=True") as error:
        generative_tasks.load(TaskBudget("tiny_code"), folder=folder)
    assert "\n" not in str(error.value)
    with pytest.raises(StudyError, match="cannot load the data of task 'tiny_code'"):  # it is looked up
        generative_tasks.load(TaskBudget("tiny_code"), run_generated_code=True, folder=folder)
    task = replace(generative_tasks.load(TaskBudget("tiny_sums"), folder=folder), runs_code=True)
    store = Store(tmp_path / "s.sqlite")
    with pytest.raises(StudyError, match="set run_generated_code=True"):
        evaluate(byte_stack, tokenizer, task, store, [PRUNED])
    import os

    import lm_eval

    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    passed, simple = [], lm_eval.simple_evaluate

    def spy(*args, **options):
        passed.append(
            (options["confirm_run_unsafe_code"], os.environ.get("HF_ALLOW_CODE_EVAL"), options.get("use_cache"))
        )
        return simple(*args, **options)

    monkeypatch.setattr(lm_eval, "simple_evaluate", spy)
    evaluate(byte_stack, tokenizer, task, store, [PRUNED], run_generated_code=True)
    evaluate(byte_stack, tokenizer, replace(task, runs_code=False), store, [(0, 1)])
    assert passed == [(True, "1", None), (False, None, None)]
    assert "HF_ALLOW_CODE_EVAL" not in os.environ


def test_humaneval_is_known_to_run_code():
    assert generative_tasks.runs_code(TaskBudget("humaneval"))
    with pytest.raises(StudyError, match="task 'humaneval' runs the programs that the model writes"):
        generative_tasks.load(TaskBudget("humaneval"))


@pytest.mark.slow
def test_mistakes_with_generative_tasks_are_one_line(folder, tokenizer, byte_stack, tmp_path):
    with pytest.raises(StudyError, match="did you mean tiny_sums"):
        generative_tasks.load(TaskBudget("tiny_sum"), folder=folder)
    with pytest.raises(StudyError, match="does not generate text"):
        generative_tasks.load(TaskBudget("tiny_choice"), folder=folder)
    task = generative_tasks.load(TaskBudget("tiny_sums"), folder=folder)
    short = replace(identity(), max_length=60)
    with pytest.raises(StudyError, match="lower num_fewshot"):
        generative_tasks.evaluate(short, None, tokenizer, [PRUNED], task, Store(tmp_path / "s.sqlite"))
