"""Tasks of the user's own: their data beside them, their code only with leave, their numbers measured anew."""

import json

import pytest
from lm_eval import utils
from transformers import AutoTokenizer

from layer_redundancy.config.profiles import TaskBudget
from layer_redundancy.core.errors import StudyError
from layer_redundancy.data import benchmark_items, task_files
from layer_redundancy.evaluate import generative_tasks
from layer_redundancy.models import smollm2
from layer_redundancy.planning import counts
from made_up import CHOOSE

ITEMS = [
    {"question": "The sky", "choices": ["blue", "loud"], "answer": 0},
    {"question": "Grass", "choices": ["late", "green"], "answer": 1},
]
# A function, whose module leaves a trace where it is imported.
MODULE = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\ndef text(doc):\n    return doc['question']\n"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(smollm2.folder())


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a task's file, its data and its module in a folder; the file's path."""
    monkeypatch.chdir(tmp_path)

    def written(text=CHOOSE, items=ITEMS, folder="a", name="mine.yaml") -> str:
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        (place / "colours.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
        (place / "own.py").write_text(MODULE)
        (place / name).write_text(text)
        return str(place / name)

    return written


def load(path, tokenizer, **options):
    return benchmark_items.load(TaskBudget(path), tokenizer, **options)


def test_a_task_of_ones_own_reads_the_data_beside_it(write, tokenizer, monkeypatch):
    path = write()
    monkeypatch.chdir("/")
    items = load(path, tokenizer)
    assert (items.name, items.num_items, items.total, items.metric_names) == ("colours", 2, 2, ("acc",))
    assert sorted(tokenizer.decode(r.context_ids + r.continuation_ids) for r in items.requests) == [
        "Grass is green", "Grass is late", "The sky is blue", "The sky is loud",
    ]  # fmt: skip
    assert task_files.task_name(path) == "colours" and task_files.task_name("mmlu") == "mmlu"
    assert counts.count(TaskBudget(path), tokenizer).items == 2


def test_what_decides_its_numbers_is_in_the_fingerprint(write, tokenizer):
    first = load(write(), tokenizer).fingerprint
    assert load(write(folder="b"), tokenizer).fingerprint == first, "wherever it lies"
    assert load(write("# of mine\n" + CHOOSE), tokenizer).fingerprint == first
    other_data = [ITEMS[0], ITEMS[1] | {"answer": 0}]
    asks = CHOOSE.replace("is", "seems", 1)
    several = CHOOSE.replace("doc_to_target: answer", "doc_to_target: '{{[answer]}}'")
    found = [load(write(items=other_data), tokenizer), load(write(asks), tokenizer), load(write(several), tokenizer)]
    found.append(load(write(several, items=other_data), tokenizer))
    assert len({first, *(items.fingerprint for items in found)}) == 5


CODE = {
    "function": "doc_to_text: !function own.text",
    "class": "class: !function own.text",
    "metric": "metric_list: [{metric: toxicity}]",
    "evaluate": "metric_list: [{metric: acc, hf_evaluate: true}]",
    "nested": "fewshot_config: {samples: [{a: !function own.text}]}",
}


@pytest.mark.parametrize("kind", [*CODE, "included"])
def test_code_is_found_without_being_run_and_needs_leave(write, tokenizer, tmp_path, kind):
    if kind == "included":
        write(CODE["function"], name="below.yaml", folder="below")
        write("include: ../below/below.yaml", name="base.yaml")
        path = write(CHOOSE + "include: [base.yaml]\n")
    else:
        path = write(f"{CHOOSE}\n{CODE[kind]}\n")
    for function in (lambda: load(path, tokenizer), lambda: generative_tasks.load(TaskBudget(path))):
        with pytest.raises(
            StudyError, match=r"^a/mine\.yaml runs code that comes with it .*give trust_remote_code=True"
        ) as e:
            function()
        assert "\n" not in str(e.value)
    assert not list(tmp_path.rglob("ran")) and task_files.task_name(path) == "colours"


def test_with_leave_code_is_run_and_its_file_decides_numbers_too(write, tokenizer, tmp_path):
    text = CHOOSE.replace('doc_to_text: "{{question}} is"', "doc_to_text: !function own.text")
    items = load(write(text), tokenizer, trust_remote_code=True)
    assert (tmp_path / "a" / "ran").exists()
    assert {tokenizer.decode(r.context_ids) for r in items.requests} == {"The sky", "Grass"}
    path = write(text, folder="b")
    assert task_files.read(path).digest == items.definition
    (tmp_path / "b" / "own.py").write_text(MODULE + "# changed")
    assert task_files.read(path).digest != items.definition


def test_a_template_reaches_nothing_but_the_item(write, tokenizer):
    load(write(), tokenizer)
    assert utils.apply_template("{{a}}\n", {"a": 1}) == "1\n"
    asks = CHOOSE.replace("{{question}} is", "{{ ''['_' ~ '_class_' ~ '_'].mro() }}")
    with pytest.raises(StudyError, match=r"cannot be loaded \(SecurityError: access to attribute '__class__'"):
        load(write(asks), tokenizer)


WRITE = CHOOSE.replace("multiple_choice", "generate_until").replace('doc_to_choice: "{{choices}}"\n', "")
WRITE = WRITE.replace("metric: acc,", "metric: exact_match,") + "generation_kwargs: {max_gen_toks: 5}\n"


def test_a_task_that_writes_is_found_too(write, tokenizer):
    path = write(WRITE)
    task = generative_tasks.load(TaskBudget(path))
    assert (task.name, task.chosen, task.max_new_tokens) == ("colours", (0, 1), 5)
    assert generative_tasks.load(TaskBudget(write(WRITE, folder="b"))).fingerprint == task.fingerprint
    assert generative_tasks.load(TaskBudget(write(WRITE + "target_delimiter: ':'\n"))).fingerprint != task.fingerprint
    amount = counts.count_written(TaskBudget(path), tokenizer)
    assert (amount.items, amount.answers) == (2, 5) and amount.tokens == 2 * len(tokenizer("The sky is").input_ids)
    with pytest.raises(StudyError, match=r"cannot be loaded \(UndefinedError: 'qestion' is undefined"):
        generative_tasks.load(TaskBudget(write(WRITE.replace("{{question}}", "{{qestion}}"))))
    path = write(WRITE)
    with pytest.raises(StudyError, match="is a generate_until task"):
        load(path, tokenizer)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is no task that lm-eval reads: while parsing"),
        ("- a", "is no task that lm-eval reads: Expected YAML dict"),
        ("a: !!python/object/apply:os.getcwd []", "unknown tag 'tag:yaml.org,2002:python/object/apply:os.getcwd'"),
        ("a: !other b", "unknown tag '!other' in line 1"),
        ("include: none.yaml", "is no task that lm-eval reads: .*No such file"),
        ("include: mine.yaml", "is no task that lm-eval reads: Include cycle"),
        ("group: mine\ntask: [mmlu]", "must define one task, with a name"),
        (CHOOSE.replace("colours.jsonl", "other.jsonl"), "its data file other.jsonl is not there"),
        (CHOOSE.replace("{{question}}", "{{qestion}}"), "cannot be loaded .*'qestion' is undefined"),
        (CHOOSE.replace("test_split: test", "test_split: dev"), "cannot be loaded .*check its definition and its data"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(write, tokenizer, text, message):
    with pytest.raises(StudyError, match=message) as error:
        load(write(text), tokenizer)
    assert str(error.value).startswith("a/mine.yaml") and "\n" not in str(error.value)
