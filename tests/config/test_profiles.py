"""Profiles: what a file may say, and the one line that names the file and the key where it says something else."""

import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import get_type_hints

import pytest

from layer_redundancy.config import profiles
from layer_redundancy.config.profiles import Recipe, TaskBudget, TrainingBudget
from layer_redundancy.core import paths
from layer_redundancy.core.errors import StudyError
from layer_redundancy.experiments import healing, registry
from layer_redundancy.train import healing as training


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes mine.toml, over the smoke profile, in the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "mine.toml", extends: str = "smoke") -> str:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f'extends = "{extends}"\n{text}')
        return name

    return write


def test_a_profile_of_ones_own_changes_what_it_says(written):
    found = profiles.load(
        written(
            "seed = 3\nthreads = 2\nbatch_tokens = 'auto'\ngreedy_shortlist = 1\n"
            "[text]\nblock_length = 32\n"
            "[budgets.healing]\ntraining = { steps = 5 }\nratio = 0.5"
        )
    )
    smoke = profiles.load("smoke")
    assert (found.name, found.seed, found.threads, found.batch_tokens) == ("mine", 3, 2, None)
    assert found.greedy_shortlist == 1.0 and type(found.greedy_shortlist) is float
    assert (found.text.block_length, found.text.corpus) == (32, "wikipedia") and found.tasks == smoke.tasks
    budget = found.budget(healing.Budget)
    assert (budget.training.steps, budget.training.batch, budget.ratio) == (5, 2, 0.5)
    assert budget.recipes == smoke.budget(healing.Budget).recipes
    assert smoke.threads is None and smoke.budget(healing.Budget).ratio == 0.25


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed = 1", "unknown key sed: did you mean seed?"),
        ("seed = '1'", "seed must be a whole number, not '1'"),
        ("seed = true", "seed must be a whole number, not True"),
        ("seed = -1", "seed must be at least 0, not -1"),
        ("seed = 4294967296", "seed must be at most 4294967295, not 4294967296"),
        ("threads = 0", "threads must be at least 1, not 0"),
        ("threads = 100000", "threads must be at most 1024, not 100000"),
        ("device = 'tpu'", "device must be one of cpu, cuda, auto, not 'tpu'"),
        ("dtype = 'int8'", "dtype must be one of float32, bfloat16, float16, not 'int8'"),
        ("greedy_shortlist = 0", "greedy_shortlist must be above 0 and at most 1, not 0.0"),
        ("greedy_shortlist = nan", "greedy_shortlist must be a finite number, not nan"),
        ("batch_tokens = 0", "batch_tokens must be at least 1, not 0"),
        ("random_weights = 1", "random_weights must be true or false, not 1"),
        ("trust_remote_code = true", "trust_remote_code is not set in a file: give trust_remote_code=True"),
        ("name = 'other'", "name is not set in a file: a profile is called as its file is"),
        ("tasks = 'mmlu'", "tasks must be a list, in [brackets], not 'mmlu'"),
        ("tasks = ['mmlu']", "tasks[0] must be a table, not 'mmlu'"),
        ("tasks = [{ name = 'mmlu', limit = 0 }]", "tasks[0].limit must be at least 1, not 0"),
        ("tasks = [{ limit = 1 }]", "tasks[0].name must be given"),
        ("tasks = [{ name = 'mine.yaml' }]", "tasks[0].name names nothing: task 'mine.yaml': no such file in "),
        ("text = 1", "text must be a table, not 1"),
        ("text.block_length = 1", "text.block_length must be at least 2, not 1"),
        ("text.evaluation_blocks = -3", "text.evaluation_blocks must be at least 1, not -3"),
        ("text.corpus = 'mine.jsonl'", "text.corpus names nothing: unknown corpus 'mine.jsonl': choose wikipedia, "),
        ("text.corpus = ''", "text.corpus must be given, not empty"),
        ("text.words = 1", "unknown key text.words: choose from corpus, block_length, "),
        ("budgets.heeling = {}", "unknown key budgets.heeling: did you mean healing?"),
        ("budgets.healing = 1", "budgets.healing must be a table, not 1"),
        ("budgets.healing.seed = 1", "unknown key budgets.healing.seed: did you mean seeds?"),
        ("budgets.healing.ratio = 1", "budgets.healing.ratio must be above 0 and below 1, not 1.0"),
        ("budgets.healing.training.steps = 0", "budgets.healing.training.steps must be at least 1, not 0"),
        ("budgets.healing.training.schedule = 'x'", "budgets.healing.training.schedule must be one of linear, "),
        ("budgets.block_pruning.recipe.learning_rate = 0", "recipe.learning_rate must be above 0, not 0.0"),
        ("budgets.block_pruning.recipe.dropout = 1", "recipe.dropout must be at least 0 and below 1, not 1.0"),
        ("budgets.block_pruning.recipe.targets = 'x'", "recipe.targets must be one of all, mlp, not 'x'"),
        ("budgets.block_pruning.fractions = [0.5, 1.5]", "fractions[1] must be above 0 and below 1, not 1.5"),
        ("budgets.block_pruning.fractions = []", "budgets.block_pruning.fractions must be given, not empty"),
        ("budgets.healing.recipes = [{ method = 'x', learning_rate = 1 }]", "recipes[0].method must be one of lora, "),
        ("budgets.healing.recipes = [{ method = 'nf4', learning_rate = 1 }]", "full, partial, not 'nf4'"),
        ("budgets.quantization.bits = [5]", "budgets.quantization.bits[0] must be one of 8, 4, 3, not 5"),
        ("budgets.prompt_tuning.epochs = [1]", "budgets.prompt_tuning.epochs must have 2 values, not 1"),
        ("further = [{ model = 'a/b', notebooks = ['1'] }]", "further[0].notebooks[0] must be two digits, not '1'"),
        ("text.block_length = ", "is no TOML: Invalid value (at "),
        (f"seed = {'9' * 5000}", "is no TOML: Exceeds the limit "),
        (f"seed = {'[' * 5000}", "is no TOML: maximum recursion depth "),
    ],
)
def test_what_a_file_may_not_say_is_one_line_with_file_and_key(written, text, message):
    with pytest.raises(StudyError) as error:
        profiles.load(written(text))
    told = str(error.value)
    assert told.startswith("mine.toml: ") and message in told and "\n" not in told


def test_the_file_that_holds_the_mistake_is_named(written):
    written("text.block_length = 1", "base.toml")
    with pytest.raises(StudyError, match=r"^base\.toml: text\.block_length must be at least 2, not 1$"):
        profiles.load(written("text.block_length = 64", extends="base.toml"))


def test_what_a_file_extends_must_be_there_and_end(written, tmp_path):
    above = written("", "below/above.toml", extends="../base.toml")
    with pytest.raises(StudyError, match=r"above\.toml: extends names nothing: profile '../base.toml': no such file$"):
        profiles.load(above)
    with pytest.raises(StudyError, match=r"^mine\.toml: extends names nothing: unknown profile 'huge': choose one"):
        profiles.load(written("", extends="huge"))
    written("", "base.toml", extends="below/above.toml")
    with pytest.raises(
        StudyError, match=r"above\.toml: extends itself \(above\.toml -> base\.toml -> above\.toml\)"
    ) as error:
        profiles.load(above)
    assert "\n" not in str(error.value)
    (tmp_path / "number.toml").write_text("extends = 3")
    with pytest.raises(StudyError, match=r"^number\.toml: extends must be a text"):
        profiles.load("number.toml")


def test_a_profile_that_extends_nothing_gives_everything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text('model = "org/name"\n[text]\ncorpus = "wikipedia"\nblock_length = 8')
    with pytest.raises(StudyError, match=r"^mine\.toml: text\.calibration_blocks, text\.evaluation_blocks must be giv"):
        profiles.load("mine.toml")
    (tmp_path / "latin.toml").write_bytes("# Größe".encode("latin-1"))
    with pytest.raises(StudyError, match=r"^latin\.toml: is no UTF-8 text$"):
        profiles.load("latin.toml")


def test_a_byte_order_mark_is_no_part_of_a_profile(written):
    file = Path(written("seed = 7"))
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert profiles.load(str(file)).seed == 7


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("paper.toml", "figures/paper/ comes with the study"),
        ("Embedded.toml", "figures/embedded/ comes with the study"),
        ("bench.toml", "figures/bench/ comes with the study"),
        ("..toml", "a folder cannot be called '.'"),
        ("...toml", "a folder cannot be called '..'"),
    ],
)
def test_a_profile_of_ones_own_overwrites_no_figures_but_its_own(written, file, message):
    with pytest.raises(StudyError) as error:
        profiles.load(written("", file))
    assert message in str(error.value)


def test_a_profile_may_have_a_space_in_its_name(written):
    name = profiles.load(written("", "my own.toml")).name
    assert re.fullmatch("my_own-[0-9a-f]{8}", name), "make takes no folder with a space"


def test_paths_start_at_the_folder_of_the_file_that_names_them(written, tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    for name in ("own.jsonl", "mine.yaml"):
        (tmp_path / "folder" / name).touch()
    (tmp_path / "folder" / "checkpoint").mkdir()
    written(
        'model = "checkpoint"\ntasks = [{ name = "mine.yaml" }]\ntext.corpus = "own.jsonl#body"\n'
        'budgets.block_pruning.evaluation_corpus = "own.jsonl"\n',
        "folder/base.toml",
    )
    name = written("text.block_length = 32", extends="folder/base.toml")
    folder = (tmp_path / "folder").resolve()
    found, before = profiles.get(name), profiles.digest(name)
    monkeypatch.chdir("/")
    assert found.text.corpus == f"{folder}/own.jsonl#body" and found.tasks == (TaskBudget(f"{folder}/mine.yaml"),)
    assert found.budgets["block_pruning"]["evaluation_corpus"] == f"{folder}/own.jsonl"
    assert found.model == f"{folder}/checkpoint" and profiles.artifact_folder(found) == "mine"
    monkeypatch.chdir(tmp_path)
    assert profiles.digest(name) == before
    (folder / "own.jsonl").write_text("{}")
    changed = profiles.digest(name)
    assert changed != before
    (folder / "base.toml").write_text((folder / "base.toml").read_text() + "seed = 1")
    assert profiles.digest(name) != changed


def test_a_files_revision_is_its_models(written):
    name = written('model = "org/name"\nrevision = "v1"')
    assert profiles.get(name).revision == "v1" == profiles.get(name, model="org/name").revision
    assert profiles.get(name, model="org/name", revision="v2").revision == "v2"
    assert profiles.get(name, model="other/name").revision is None


def test_leave_to_run_a_tasks_code_stays_with_another_model():
    asked = profiles.get("smoke", trust_remote_code=True)
    other = profiles.with_model(asked, "org/other")
    assert (other.trust_remote_code, other.trust_tasks) == (False, True)
    assert not profiles.get("smoke").trust_tasks


def test_a_value_set_in_python_is_checked_too():
    profile = profiles.get("smoke")
    with pytest.raises(StudyError, match=r"^profile smoke: budgets\.healing\.ratio must be above 0 and below 1"):
        profile.with_budget("healing", ratio=2.0)
    with pytest.raises(StudyError, match=r"^profile smoke: budgets\.healing\.ratio must be above 0 and below 1"):
        replace(profile, budgets={"healing": {"ratio": 2.0}}).budget(healing.Budget)
    with pytest.raises(StudyError, match=r"^profile smoke: unknown key budgets\.benchmarks\.task: did you mean tasks"):
        profile.with_budget("benchmarks", task=())


def test_budgets_are_read_as_their_experiments_declare_them():
    """And without importing any of these."""
    found = profiles._budget_classes()
    declared = {
        one.module.__name__.rpartition(".")[2]: one.module.Budget
        for one in registry.every()
        if hasattr(one.module, "Budget")
    }
    assert found.keys() == declared.keys()
    for name, kind in declared.items():
        hints = [get_type_hints(one, include_extras=True) for one in (kind, found[name])]
        assert hints[0] == hints[1]
        required = [[f.name for f in fields(one) if profiles._is_required(f)] for one in (kind, found[name])]
        assert required[0] == required[1]


def test_ways_of_training_are_those_there_are():
    for method in ("lora", "qlora", "full", "partial"):
        recipe = profiles.from_table(Recipe, {"method": method, "learning_rate": 1}, profiles.Place("here"))
        assert training.describe(recipe)
    rounded = Recipe("nf4", 1e-3)
    assert training.describe(profiles.valid(Recipe, rounded)) == "4 bits, untrained"
    for method in ("nf4", "prompts"):
        with pytest.raises(StudyError, match=f"must be one of lora, qlora, full, partial, not '{method}'"):
            profiles.from_table(Recipe, {"method": method, "learning_rate": 1}, profiles.Place("here"))


def test_all_of_it_is_checked_with_the_standard_library_alone(written, tmp_path):
    name = written("budgets.healing.ratio = 7")
    command = [sys.executable, "-I", "-S", "-c"]
    code = f"import sys; sys.path.insert(0, {str(paths.PACKAGE.parent)!r}); "
    code += "from layer_redundancy.config import run_folder; run_folder.main('PROFILE=' + sys.argv[1])"
    done = subprocess.run([*command, code, name], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (
        "mine.toml: budgets.healing.ratio must be above 0 and below 1, not 7.0\n",
        "",
    )


def test_profiles_whose_names_are_told_apart_by_odd_characters_alone_share_no_figures(tmp_path):
    for name in ("my profile", "my_profile", "my:profile"):
        (tmp_path / f"{name}.toml").write_text('extends = "smoke"\n')
    folders = [profiles.artifact_folder(profiles.load(str(file))) for file in sorted(tmp_path.iterdir())]
    assert len(set(folders)) == 3 and "my_profile" in folders, folders


@pytest.mark.parametrize(("steps", "validations", "at"), [(16, 4, [4, 8, 12, 16]), (10, 3, [4, 8, 10]), (2, 9, [1, 2])])
def test_held_out_text_is_watched_no_more_often_than_asked(steps, validations, at):
    budget = TrainingBudget("", 8, steps, 2, held_out=3, validations=validations)
    seen = [step for step in range(1, steps + 1) if step % budget.validate_every == 0 or step == steps]
    assert seen == at and budget.held_out_tokens == (1 + len(at)) * 3 * 8
    without = TrainingBudget("", 8, steps, 2, held_out=0, validations=validations)
    assert (without.validate_every, without.held_out_tokens) == (0, 0)
