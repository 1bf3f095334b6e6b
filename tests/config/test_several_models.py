"""Several models: what names them, what a profile says otherwise for one of them, and where their figures lie."""

import re

import pytest

from layer_redundancy.config import profiles, run_folder
from layer_redundancy.config.profiles import EMBEDDED_GEMMA, EMBEDDED_MODEL, EMBEDDED_RWKV
from layer_redundancy.core import doors, paths
from layer_redundancy.core.errors import StudyError
from layer_redundancy.experiments import metric_comparison, prune_ratio
from layer_redundancy.study import Study

FURTHER = """
[[further]]
model = "rwkv5-6.6m"
notebooks = ["01", "03"]
asked = true
[further.changes]
depth_step = 2
tasks = [{ name = "agreement", limit = 50 }]
[further.changes.text]
block_length = 16
[further.changes.budgets.metric_comparison]
calibration_resamples = 0
"""


@pytest.fixture(autouse=True)
def by_make(tmp_path, monkeypatch):
    monkeypatch.setenv(doors.VARIABLE, doors.MAKE)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.toml").write_text(f'extends = "smoke"\nmax_items = 3\n{FURTHER}')
    return "mine.toml"


def runs(**given: str) -> list[str]:
    """Folder and number of each notebook that is run, in order."""
    answer = run_folder.answer({"PROFILE": "smoke"} | given)
    found = (re.match(r"run=(.*)/(\d\d)_\w+:\w+$", line) for line in answer)
    return [f"{one[1]} {one[2]}" for one in found if one]


def test_what_a_profile_says_otherwise_holds_for_that_model_alone(mine):
    own, other = profiles.get(mine), profiles.get(mine, model=EMBEDDED_RWKV)
    smoke = profiles.load("smoke")
    assert (own.text, own.depth_step, own.budgets) == (smoke.text, smoke.depth_step, smoke.budgets)
    assert other.depth_step == 2 and other.seed == own.seed
    assert (other.text.block_length, other.text.corpus) == (16, own.text.corpus)
    budget = other.budget(metric_comparison.Budget)
    assert budget.calibration_resamples == 0
    assert budget.evaluation_blocks == own.budget(metric_comparison.Budget).evaluation_blocks == 2
    assert [(task.name, task.limit) for task in other.tasks] == [("agreement", 3)], "max_items is of all models"
    assert profiles.for_model(own, "some/other") == profiles.replace(own, model="some/other")


def test_a_study_of_the_other_model_has_it_too(mine):
    study = Study.open(mine)
    assert study.evaluation.input_ids.shape[1] == 64
    assert study.of_model(EMBEDDED_RWKV).evaluation.input_ids.shape[1] == 16
    assert Study.open(mine, EMBEDDED_RWKV).evaluation.input_ids.shape[1] == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("seed = 1", "further[0].changes.seed is the same for all models of a profile"),
        ("further = []", "further[0].changes.further is the same for all models"),
        ("dept_step = 1", "unknown key further[0].changes.dept_step: did you mean depth_step?"),
        ("depth_step = 'x'", "further[0].changes.depth_step must be a whole number, not 'x'"),
        ("text = { block_length = 1 }", "further[0].changes.text.block_length must be at least 2, not 1"),
        ("budgets = { nothing = {} }", "unknown key further[0].changes.budgets.nothing"),
        ("budgets = { prune_ratio = { task = [] } }", "changes.budgets.prune_ratio.task: did you mean tasks?"),
    ],
)
def test_a_mistake_in_it_is_one_line_with_file_and_key(tmp_path, changes, message):
    table = f'further = [{{ model = "a/b", notebooks = ["01"], changes = {{ {changes} }} }}]'
    (tmp_path / "mine.toml").write_text(f'extends = "smoke"\n{table}')
    with pytest.raises(StudyError) as error:
        profiles.load("mine.toml")
    told = str(error.value)
    assert told.startswith("mine.toml: ") and message in told and "\n" not in told


def test_gemma_is_studied_where_it_is_named_with_less_text():
    assert list(profiles.get("embedded").studied) == [EMBEDDED_MODEL]
    both = profiles.get("embedded", models=(EMBEDDED_MODEL, EMBEDDED_GEMMA))
    assert both.studied == {EMBEDDED_MODEL: None, EMBEDDED_GEMMA: ("01", "02", "03", "04")}
    gemma = profiles.get("embedded", model=EMBEDDED_GEMMA)
    assert gemma.text.evaluation_blocks == 8 and gemma.text.block_length == both.text.block_length
    assert {task.name: task.limit for task in gemma.tasks} == {"agreement": 200, "copying": 200}
    assert gemma.budget(prune_ratio.Budget).tasks == ()
    assert gemma.budget(metric_comparison.Budget).calibration_resamples == 0
    assert profiles.artifact_folder(gemma) == f"embedded/{EMBEDDED_GEMMA}"


def test_models_are_named_by_a_variable_or_in_the_file(monkeypatch, tmp_path):
    monkeypatch.setenv("LAYER_REDUNDANCY_MODELS", "smollm2 org/one smollm2")
    assert list(profiles.get("smoke").studied) == [EMBEDDED_MODEL, "org/one"]
    monkeypatch.delenv("LAYER_REDUNDANCY_MODELS")
    (tmp_path / "a folder").mkdir()
    (tmp_path / "mine.toml").write_text('extends = "smoke"\nmodels = ["org/one", "org/two"]')
    assert profiles.get("mine.toml").studied == dict.fromkeys(("org/one", "org/two"), profiles.BEFORE_ACROSS)
    assert profiles.named_models("'a folder' org/one") == (str(tmp_path / "a folder"), "org/one")
    assert profiles.named_models("") == ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"MODELS": "smollm2"}, "MODELS= names several models with spaces between them, not 'smollm2-135m-instruct'"),
        ({"MODELS": "smollm2 smollm2-135m-instruct"}, "MODELS= names several models"),
        ({"MODELS": "smollm2 'org/one"}, 'MODELS= "smollm2 \'org/one": No closing quotation'),
        ({"MODELS": "smollm2 ./nowhere"}, "MODELS=./nowhere: no such folder or file"),
        ({"MODELS": "smollm2 models/org/one"}, "MODELS=models/org/one: no such folder or file"),
        ({"MODELS": "smollm2 org/one", "MODEL": "org/two"}, "MODEL= is one model in the profile's place"),
        ({"NOTEBOOKS": "14"}, "14_across_models compares models: name two or more of them, MODELS="),
        ({"PARAMS": "models='a b'"}, "parameter models is set by MODELS="),
    ],
)
def test_a_mistake_in_models_is_one_line(given, message):
    with pytest.raises(StudyError) as error:
        list(run_folder.answer({"PROFILE": "smoke"} | given))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_notebook_that_compares_comes_last_and_only_with_several_models():
    assert runs() == [f"smoke {n:02}" for n in (*range(1, 14), 15)]
    both = runs(PROFILE="embedded", MODELS="smollm2 gemma3-270m")
    own, gemma = "embedded", f"embedded/{EMBEDDED_GEMMA}"
    assert both == [
        *(f"{own} {n:02}" for n in (*range(1, 14), 15)),
        *(f"{gemma} 0{n}" for n in range(1, 5)),
        f"{own} 14",
    ]
    paper = runs(PROFILE="paper")
    assert paper[-1] == "paper 14" and paper.count("paper 14") == 1 and "paper/meta-llama--Llama-2-13b-hf 08" in paper


def test_models_that_the_profile_does_not_name_have_folders_of_their_own():
    found = runs(MODELS="smollm2 org/one", NOTEBOOKS="02 05 14")
    assert found == ["smoke 02", "smoke 05", "smoke-org--one 02", f"smoke-{EMBEDDED_MODEL}+org--one 14"]
    without = runs(MODELS="org/one org/two", NOTEBOOKS="01 14")
    assert without == ["smoke-org--one 01", "smoke-org--two 01", "smoke-org--one+org--two 14"]


def test_make_knows_which_models_need_no_hub():
    (line,) = re.findall(r"^EMBEDDED := (.*)$", (paths.ROOT / "Makefile").read_text(), re.MULTILINE)
    trained = {"llama-6.6m"}  # whose weights may not be there yet
    assert {*profiles.EMBEDDED, *profiles.SHORT} - trained == {*line.split()} - trained
