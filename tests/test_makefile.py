"""The Makefile, run by make in a copy of the study whose Python only writes down what it is asked to do.

What make decides (what to build, what to execute again, what to refuse) is real; what would take minutes is not done.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from children import as_at_a_terminal
from layer_redundancy.config import profiles, run_folder
from layer_redundancy.core import paths

# In place of a Python: makes environments that hold itself, pretends to install and to execute, fails at what the file
# `fail` names, and leaves to the real Python what the Makefile asks, and the summary. Of notebooks that are executed
# together it writes a line each: `- run NOTEBOOK COPY MODEL` and the options.
STAND_IN = f"""#!/bin/sh
case "$*" in
  "-c "*) exit 0 ;;
  "-m layer_redundancy.config.run_folder"* | "-m layer_redundancy.run_summary"*) exec "{sys.executable}" "$@" ;;
  "-m layer_redundancy.run_notebooks "*)
    options= failed=0
    shift 2
    while [ "${{1#notebooks/}}" = "$1" ]; do options="$options $1"; shift; done
    for run; do
      notebook="${{run%%:*}}" rest="${{run#*:}}"
      copy="${{rest%%:*}}" model="${{rest#*:}}"
      line="- run $notebook $copy --model $model$options"
      printf '%s\\n' "$line" >> calls
      if [ -e fail ] && echo "$line" | grep -q -e "$(cat fail)"; then
        echo "a cell failed" > "$(dirname "$copy")/.$(basename "$copy" .ipynb).failed"; failed=1
      else
        touch "$copy"; rm -f "$(dirname "$copy")/.$(basename "$copy" .ipynb).failed"
      fi
    done
    case "$options" in *" --keep-going"*) exit 0 ;; *) exit $failed ;; esac ;;
esac
printf '%s\\n' "$*" >> calls
if [ -e fail ] && echo "$*" | grep -q -e "$(cat fail)"; then exit 1; fi
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && touch "$3/pyvenv.cfg" ;;
esac
"""
LONG_AGO = 1_000_000_000


def bare() -> dict[str, str]:
    """The environment without what an outer make hands down (its flags, and variables of its command line)."""
    handed_down = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", *run_folder.VARIABLES}
    return {name: value for name, value in os.environ.items() if name not in handed_down}


class Study:
    """A copy of the study in a folder of its own, with two notebooks that have nothing but parameters."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("Makefile", "pyproject.toml", "requirements.lock", "src/layer_redundancy", "data", "benchmarks"):
            target = root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (paths.ROOT / name).is_dir():
                ignore = shutil.ignore_patterns("__pycache__", "cache", "results", "runs")
                shutil.copytree(paths.ROOT / name, target, ignore=ignore)
            else:
                shutil.copy(paths.ROOT / name, target)
        (root / "notebooks").mkdir()
        for name, cell in {"01_first": 'profile = ""', "02_second": 'profile = ""\nlimit = 0\nexport_to = ""'}.items():
            cells = [{"metadata": {"tags": ["parameters"]}, "source": cell}]
            (root / "notebooks" / f"{name}.ipynb").write_text(json.dumps({"cells": cells}))
        (root / "figures" / "embedded").mkdir(parents=True)
        (root / "figures" / "embedded" / "figure.png").touch()
        for path in root.rglob("*"):
            os.utime(path, (LONG_AGO, LONG_AGO))
        self.python = root.parent / "stand-in"
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)

    def make(self, *arguments: str, python: str | None = None, **variables: str) -> subprocess.CompletedProcess:
        """Runs make; `variables` are those of its environment."""
        command = ["make", *arguments, f"PYTHON={python or self.python}"]
        return subprocess.run(command, cwd=self.root, env=bare() | variables, capture_output=True, text=True)

    def calls(self) -> list[str]:
        """What the stand-in was asked since the last look, each as its first words; `run NOTEBOOK` for a notebook."""
        log = self.root / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [" ".join(line.split()[1:3]) for line in lines]

    def executed(self) -> list[str]:
        """The notebooks executed since the last look."""
        return [Path(call.split()[1]).stem for call in self.calls() if call.startswith("run ")]

    def edit(self, name: str) -> None:
        time.sleep(0.02)  # a file system's clock ticks every few milliseconds
        (self.root / name).touch()

    def fail_at(self, words: str | None) -> None:
        (self.root / "fail").unlink(missing_ok=True)
        if words:
            (self.root / "fail").write_text(words)


PIP = ["pip install", "pip install"]
SETUP = ["venv .venv", *PIP, "layer_redundancy.models.smollm2"]
VERIFY = "layer_redundancy.cli verify"


@pytest.fixture
def study(tmp_path) -> Study:
    return Study(tmp_path / "a study")  # a folder with a space, as people have


@pytest.fixture
def ready(study) -> Study:
    """A study whose environment is there."""
    assert study.make("setup").returncode == 0
    assert study.calls() == SETUP
    return study


def test_help_is_the_default_and_names_every_command_and_variable(study):
    done = study.make()
    assert done.returncode == 0
    told = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
    commands = {
        "help",
        "setup",
        "figures",
        "verify",
        "expect",
        "plan",
        "prefetch",
        "rehearse",
        "smoke",
        "rwkv-train",
        "twin-train",
        "twin-rates",
        "rates",
        "gptq",
        "bench",
        "bench-notebooks",
        "bench-gpu",
        "bench-scaling",
        "test",
        "test-fast",
        "test-architectures",
        "test-gemma",
        "lint",
        "format",
        "docs",
        "lab",
        "lock",
    }
    commands |= {"clean", "distclean"}
    assert told == commands | set(run_folder.VARIABLES)
    assert study.calls() == []


@pytest.mark.parametrize(
    ("command", "calls"),
    [
        ("plan", ["layer_redundancy.cli plan"]),
        ("prefetch", ["layer_redundancy.planning.downloads paper"]),
    ],
)
def test_what_comes_before_a_long_run(ready, command, calls):
    assert ready.make(command, "PROFILE=paper").returncode == 0
    assert ready.calls() == calls


def test_a_rehearsal_has_its_gptq_packages_apart_and_goes_on_without_them(ready):
    log, rehearsed = ready.root / "calls", "rehearsal.run --notebooks"
    for words in ("requirements-gptq", None):  # what could not be installed is tried again
        ready.fail_at(words)
        assert ready.make("rehearse").returncode == 0
        assert "--target build/gptq " in log.read_text()
        assert ready.calls() == ["pip install", rehearsed]
    assert ready.make("rehearse").returncode == 0
    assert ready.calls() == [rehearsed]


def test_a_profiles_further_models_come_after_its_own(ready):
    """The paper profile: the notebooks of each further model that are there, and were asked for."""
    first, second = "notebooks/01_first.ipynb", "notebooks/02_second.ipynb"
    log = ready.root / "calls"
    assert ready.make("figures", "PROFILE=paper").returncode == 0
    lines = [line.split() for line in log.read_text().splitlines()]
    ran = [(line[2], line[line.index("--model") + 1]) for line in lines]
    further = profiles.get("paper").further
    assert [model.model for model in further][:2] == [
        "meta-llama/Llama-2-13b-hf",
        "baichuan-inc/Baichuan2-7B-Base",
    ]
    expected = [(first, "--profile"), (second, "--profile")]  # no model: the profile's own
    for model in further:
        expected += [(first, model.model)] if "01" in model.notebooks else []
        expected += [(second, model.model)] if "02" in model.notebooks else []
    assert ran == expected
    slug = "meta-llama--Llama-2-13b-hf"
    assert (ready.root / "data" / "runs" / "paper" / slug / "01_first.ipynb").exists()
    ready.calls()
    ready.edit("notebooks/02_second.ipynb")
    assert ready.make("figures", "PROFILE=paper", "NOTEBOOKS=02", "DEVICE=cpu").returncode == 0
    assert len(ready.calls()) == 2  # its own model, and Baichuan2-7B


@pytest.fixture
def comparing(ready) -> Study:
    """With a notebook that further models lack, and the one that compares models."""
    for name in ("05_other", "14_across_models"):
        path = ready.root / "notebooks" / f"{name}.ipynb"
        path.write_text((ready.root / "notebooks" / "01_first.ipynb").read_text())
        os.utime(path, (LONG_AGO, LONG_AGO))
    return ready


def places(study: Study, *arguments: str) -> list[tuple[str, str, str]]:
    """Folder, number and model ("" for the profile's own) of each notebook that make figures executes."""
    study.calls()
    done = study.make("figures", *arguments)
    assert done.returncode == 0, done.stderr
    found = []
    for line in (study.root / "calls").read_text().splitlines():
        if line.startswith("- run "):
            copy, _, rest = line.removeprefix("- run ").partition(" ")[2].partition(" --model ")
            folder, _, name = copy.removeprefix("data/runs/").rpartition("/")
            found.append((folder, name[:2], rest.partition(" --profile")[0]))
    return found


@pytest.mark.parametrize("options", [[], ["-j2"]])
def test_several_models_are_run_and_compared(comparing, options):
    models = "MODELS=smollm2 gemma3-270m"
    assert places(comparing, models, *options) == [
        *(("embedded", n, "") for n in ("01", "02", "05")),
        *(("embedded/gemma3-270m", n, "gemma3-270m") for n in ("01", "02")),
        ("embedded", "14", ""),
    ]
    (comparing.root / "figures" / "embedded" / "gemma3-270m").mkdir()
    (comparing.root / "figures" / "embedded" / "gemma3-270m" / "figure.png").touch()
    assert places(comparing, models, *options) == [], "all of it is there"
    assert places(comparing, "MODELS=smollm2 rwkv5-6.6m", "NOTEBOOKS=01 14", *options) == [
        ("embedded-rwkv5-6.6m", "01", "rwkv5-6.6m"),
        ("embedded-smollm2-135m-instruct+rwkv5-6.6m", "14", ""),
    ]
    assert places(comparing, *options) == [], "what was run of the profile's own model stays"
    found = places(comparing, "MODELS=gemma3-270m smollm2", "NOTEBOOKS=14", *options)
    assert found == [("embedded", "14", "")], "their order decides on whose text they are compared"


def test_models_reach_whatever_is_run(ready):
    """By a variable, since a notebook's kernel has no other way to know of them."""
    stand_in = ready.root / ".venv" / "bin" / "python"
    log = 'printf \'%s|%s\\n\' "$LAYER_REDUNDANCY_MODELS" "$HF_HUB_OFFLINE" >> told'
    stand_in.write_text(stand_in.read_text().replace("#!/bin/sh", f"#!/bin/sh\n{log}"))
    folder = ready.root / "my models"
    folder.mkdir()
    (folder / "config.json").touch()
    for models, offline in (
        ("smollm2 gemma3-270m", True),
        ("smollm2 org/one", False),
        ("smollm2 'my models'", False),
    ):
        for goal in ("figures", "plan", "prefetch"):
            (ready.root / "told").unlink(missing_ok=True)
            done = ready.make(goal, f"MODELS={models}", "NOTEBOOKS=01", HF_HUB_OFFLINE="")
            assert done.returncode == 0, done.stderr
            told = (ready.root / "told").read_text().splitlines()
            assert told[-1].partition("|")[0] == models
            assert (f"{models}|1" in told) == offline, (goal, models)


def test_bench_installs_its_peer_apart_and_once(ready):
    parts = ["benchmarks.sweeps --peer", "benchmarks.rwkv_prefill", "benchmarks.cluster"]
    for expected in (["pip install", *parts], parts):
        assert ready.make("bench").returncode == 0
        assert ready.calls() == expected


def test_learning_rates_are_tried_as_many_at_a_time_as_make_is_told(ready):
    log = ready.root / "calls"
    for arguments, jobs in (((), ""), (("-j3",), " --jobs 3")):
        assert ready.make("rates", "DEVICE=cpu", *arguments).returncode == 0
        assert log.read_text().strip() == f"-m tools.rates --profile embedded --device cpu{jobs}"
        ready.calls()


def test_the_twin_is_trained_by_its_recipe_or_without_dropout(ready):
    log = ready.root / "calls"
    for arguments, more in (((), ""), (("DROPOUT=0",), " --dropout 0")):
        assert ready.make("twin-train", *arguments).returncode == 0
        assert log.read_text().strip() == f"-m tools.small_models.train{more}"
        ready.calls()


def test_gptq_installs_what_ready_checkpoints_take(ready):
    assert ready.make("gptq").returncode == 0
    assert "--target" not in (ready.root / "calls").read_text()
    assert ready.calls() == ["pip install"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["PROFILE=huge"], "unknown profile 'huge': choose one of smoke, embedded, paper"),
        (["REVISION=main"], "revision 'main' was given without a model: give MODEL= too"),
        (["NOTEBOOKS=01 99"], 'no notebook "99": choose from 01_first 02_second'),
        (["PROFILE=none.toml"], "profile 'none.toml': no such file"),
        (["PROFILE=my own.toml"], "my own.toml: text.block_length must be at least 2, not 1"),
        (["PARAMS=limit"], "parameter 'limit' must be written name=value, with quotes around spaces"),
        (["PARAMS=a='b"], 'parameters "a=\'b": No closing quotation'),
        (["PARAMS=model=org/name"], "parameter model is set by MODEL="),
        (["PARAMS=limits=3"], "no parameter limits in the chosen notebooks, which know limit, export_to"),
        (
            ["PARAMS=limit=3", "NOTEBOOKS=01"],
            "no parameter limit in the chosen notebooks, which have no para",
        ),
        (["PARAMS=limit=few"], "parameter limit=few must be of type int, as its default 0 is"),
    ],
)
def test_a_mistake_is_one_line_before_any_setup(study, arguments, message):
    (study.root / "my own.toml").write_text('extends = "smoke"\ntext.block_length = 1\n')
    done = study.make("figures", *arguments)
    assert done.returncode != 0
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert study.calls() == []
    assert not (study.root / ".venv").exists()


@pytest.mark.parametrize("goal", ["figures", "plan", "verify", "expect", "prefetch"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["PROFILE=huge"], "unknown profile 'huge'"),
        (["DEVICE=gpu"], "unknown device 'gpu'"),
        (["TRUST_REMOTE_CODE=true"], "TRUST_REMOTE_CODE=true is not understood"),
    ],
)
def test_every_goal_that_takes_a_variable_looks_at_it_first(study, goal, arguments, message):
    done = study.make(goal, *arguments)
    assert done.returncode != 0 and message in done.stderr and len(done.stderr.splitlines()) == 1
    assert study.calls() == [] and not (study.root / ".venv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["setup", "PROFILES=smoke"], "unknown variable PROFILES=: did you mean PROFILE=?"),
        (["lint", "Model=x"], "unknown variable Model=: did you mean MODEL=?"),
        (["smoke", "PROFILE=paper"], "make smoke does not know PROFILE=: leave it out, or use make figures"),
        (["test", "PROFILE=paper"], "make test does not know PROFILE="),
        (["rehearse", "MODEL=x"], "make rehearse does not know MODEL="),
        (["expect", "NOTEBOOKS=01"], "make expect does not know NOTEBOOKS="),
        (["smoke", "WORKERS=2"], "make smoke does not know WORKERS=: leave it out, or use make figures"),
        (["test", "SCHEDULER=tcp://127.0.0.1:1"], "make test does not know SCHEDULER="),
        (["figures", "DROPOUT=0"], "make figures does not know DROPOUT=: leave it out, or use make twin-train"),
        (["twin-train", "DROPOUT=none"], "DROPOUT=none is not understood: write a number from 0 to 0.9"),
        (["figures", "MODEL=a\nb"], "MODEL= has a line break in it"),
        (["setup", "VENV=my env"], "VENV=my env has a space in it or a character"),
        (["setup", "VENV=a'b"], "has a space in it or a character"),
        (["setup", "VENV=$HOME/x"], "has a space in it or a character"),
        (["setup", "VENV=x;touch pwned"], "has a space in it or a character"),
    ],
)
def test_what_a_goal_does_not_know_is_one_line(study, arguments, message):
    done = study.make(*arguments)
    assert done.returncode != 0 and message in done.stderr and len(done.stderr.splitlines()) == 1
    assert study.calls() == [] and not (study.root / "pwned").exists()


# What a shell or make would make something of.
ODD = 'o\'br$ien "x" #1; touch pwned & `touch pwned` | $(shell touch pwned) $(touch pwned) ${HOME} a%b:c\\d * é'


@pytest.mark.parametrize("way", ["on the command line", "in the environment", "dry"])
def test_any_text_is_taken_as_it_is(ready, monkeypatch, way):
    model = ready.root / "models" / ODD
    model.mkdir(parents=True)
    (model / "config.json").touch()
    (ready.root / f"{ODD}.toml").write_text('extends = "smoke"')
    given = {"MODEL": f"models/{ODD}", "PROFILE": f"{ODD}.toml", "PARAMS": f"export_to={shlex.quote(ODD)}"}
    given["NOTEBOOKS"] = "02"
    arguments = [] if way == "in the environment" else [f"{name}={value}" for name, value in given.items()]
    log, goals = ready.root / "calls", ["figures", "plan", "prefetch", "verify"]
    done = ready.make(*["-n"] * (way == "dry"), *goals, *arguments, **({} if arguments else given))
    assert done.returncode == 0, done.stderr
    assert not list(ready.root.rglob("pwned")) and not list(ready.root.parent.glob("pwned"))
    if way == "dry":
        assert not log.exists()
        return
    ran, planned, fetched, verified = log.read_text().splitlines()
    assert f"--model models/{ODD} --profile {ODD}.toml --revision  --parameters {given['PARAMS']} --keep-going" in ran
    assert f"plan {ODD}.toml --model models/{ODD} --revision  --notebooks 02" in planned
    assert f"downloads {ODD}.toml --model models/{ODD} --revision" in fetched
    assert f"verify {ODD}.toml --model models/{ODD} --revision  --notebooks 02" in verified


def test_a_further_model_of_any_name_is_run(ready):
    name = "my models/o'br$ien 100%20"
    (ready.root / "own.toml").write_text(f'extends = "smoke"\nfurther = [{{ model = "{name}", notebooks = ["01"] }}]')
    assert ready.make("figures", "PROFILE=own.toml", "NOTEBOOKS=01").returncode == 0
    assert f"--model {name} --profile" in (ready.root / "calls").read_text().splitlines()[1]


def test_a_python_in_a_folder_with_odd_characters_builds_the_environment(study):
    folder = study.root.parent / "it's a $HOME"
    folder.mkdir()
    shutil.copy(study.python, folder / "stand in")
    assert study.make("setup", python=str(folder / "stand in")).returncode == 0
    assert study.calls() == SETUP


def test_a_study_in_a_folder_with_odd_characters_is_set_up_once(ready):
    ready.root = ready.root.rename(ready.root.with_name('it\'s a $HOME; "x"'))
    assert ready.make("setup").returncode == 0 and ready.calls() == SETUP[1:]
    assert ready.make("setup").returncode == 0 and ready.calls() == []


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["make", "all"])
def test_make_that_is_stopped_stops_its_notebooks_and_starts_no_other(ready, whom):
    waiting = ready.root / ".venv" / "bin" / "python"
    waiting.write_text(
        waiting.read_text().replace(
            "    for run; do\n", '    touch started; echo "- run together" >> calls; exec sleep 60\n    for run; do\n'
        )
    )
    process = subprocess.Popen(
        ["make", "figures", f"PYTHON={ready.python}"],
        cwd=ready.root,
        env=bare(),
        start_new_session=True,
        preexec_fn=as_at_a_terminal,
    )
    started = ready.root / "started"
    while not started.exists():
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM) if whom == "make" else os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=30) != 0
    assert ready.calls() == ["run together"]
    with pytest.raises(ProcessLookupError):  # nobody of the group is left
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(0.02)


def test_a_study_without_notebooks_does_not_pass(study):
    shutil.rmtree(study.root / "notebooks")
    done = study.make("figures")
    assert done.returncode != 0
    assert "no notebooks in notebooks/" in done.stderr


def test_make_that_starts_elsewhere_is_one_line(study, tmp_path):
    command = ["make", "-f", study.root / "Makefile", "figures"]
    done = subprocess.run(command, cwd=tmp_path, env=bare(), capture_output=True, text=True)
    assert done.returncode != 0
    assert "make -C FOLDER" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_python_that_is_missing_is_one_line(study):
    done = study.make("setup", python="no-such-python")
    assert done.returncode != 0
    assert "No Python 3.11 to 3.13 by the name of no-such-python" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("goal", ["help", "clean"])
def test_what_takes_no_python_asks_for_none(study, goal):
    assert study.make(goal, python="no-such-python", VENV="nowhere").returncode == 0


def test_setup_is_done_once(ready):
    assert ready.make("setup").returncode == 0
    assert ready.calls() == []


@pytest.mark.parametrize(
    "changed", ["pyproject.toml", "requirements.lock", "src/layer_redundancy/data/requirements-embedded.txt"]
)
def test_setup_is_done_again_when_what_it_installs_changes(ready, changed):
    ready.edit(changed)
    ready.make("setup")
    assert ready.calls() == SETUP[1:], "the environment itself stays"


def test_a_setup_interrupted_while_pip_installs_is_built_anew(study):
    study.fail_at("requirements.lock")
    assert study.make("setup").returncode != 0
    assert study.calls() == SETUP[:2]
    study.fail_at(None)
    assert study.make("setup").returncode == 0
    assert study.calls() == SETUP


def test_a_setup_interrupted_while_the_model_is_fetched_goes_on(study):
    study.fail_at("layer_redundancy.models.smollm2")
    assert study.make("setup").returncode != 0
    study.calls()
    study.fail_at(None)
    assert study.make("figures", "NOTEBOOKS=01").returncode == 0
    assert study.calls() == [*SETUP[1:], "run notebooks/01_first.ipynb", VERIFY]


def test_a_half_made_environment_is_built_anew(study):
    (study.root / ".venv" / "bin").mkdir(parents=True)
    (study.root / ".venv" / "pyvenv.cfg").touch()
    study.make("setup")
    assert study.calls() == SETUP


def test_an_environment_whose_python_is_gone_is_built_anew(ready):
    (ready.root / ".venv" / "bin" / "python").unlink()
    ready.make("setup")
    assert ready.calls() == SETUP


def test_a_study_that_was_moved_installs_itself_again(ready):
    ready.root = ready.root.rename(ready.root.with_name("moved"))
    ready.make("setup", python="python3")
    assert ready.calls() == SETUP[1:]


def test_a_folder_that_is_no_environment_is_left_alone(study):
    done = study.make("setup", "VENV=src")
    assert done.returncode != 0
    assert "VENV=src is something else than a virtual environment" in done.stdout
    assert (study.root / "src" / "layer_redundancy" / "config" / "profiles.py").exists()
    assert study.calls() == []


def test_the_active_python_can_be_used_instead(study, monkeypatch):
    tools = study.root / "tools"
    tools.mkdir()
    shutil.copy(study.python, tools / "python")
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    assert study.make("figures", "VENV=", "NOTEBOOKS=02").returncode == 0
    assert study.calls() == [*SETUP[1:], "run notebooks/02_second.ipynb", VERIFY]
    assert not (study.root / ".venv").exists()
    study.make("figures", "VENV=", "NOTEBOOKS=02")
    assert study.calls() == [VERIFY]


@pytest.mark.parametrize("profile", profiles.shipped())
@pytest.mark.parametrize("model", ["", profiles.EMBEDDED_MODEL, "org/name.v1-7b", "odd name?"])
def test_the_folder_is_the_one_the_notebooks_write_to(ready, profile, model):
    done = ready.make("figures", f"PROFILE={profile}", f"MODEL={model}")
    assert done.returncode == 0, done.stderr
    folder = profiles.artifact_folder(profiles.get(profile, model=model))
    assert f"figures/{folder}/" in done.stdout
    assert (ready.root / "data" / "runs" / folder / "01_first.ipynb").exists()


@pytest.mark.parametrize(
    ("notebooks", "expected"),
    [
        ("", ["01_first", "02_second"]),
        ("2", ["02_second"]),
        ("02 01", ["02_second", "01_first"]),
        ("02_second", ["02_second"]),
        ("notebooks/01_first.ipynb", ["01_first"]),
    ],
)
def test_notebooks_are_chosen_by_number_or_name(ready, notebooks, expected):
    assert ready.make("figures", f"NOTEBOOKS={notebooks}").returncode == 0
    assert ready.executed() == expected


def test_make_executes_what_changed(ready):
    everything = ["01_first", "02_second"]
    ready.make("figures")
    assert ready.executed() == everything
    ready.make("figures")
    assert ready.executed() == []
    ready.edit("notebooks/02_second.ipynb")
    ready.make("figures")
    assert ready.executed() == ["02_second"]
    ready.edit("src/layer_redundancy/config/profiles.py")
    ready.make("figures")
    assert ready.executed() == everything


def test_another_revision_is_executed_again(ready):
    (ready.root / "figures" / "embedded-org--name" / "figure.png").mkdir(parents=True)
    ready.make("figures", "MODEL=org/name", "REVISION=v1", "NOTEBOOKS=1")
    assert ready.executed() == ["01_first"]
    ready.make("figures", "MODEL=org/name", "REVISION=v1", "NOTEBOOKS=1")
    assert ready.executed() == []
    ready.make("figures", "MODEL=org/name", "REVISION=v2", "NOTEBOOKS=1")
    assert ready.executed() == ["01_first"]


def given(study: Study) -> dict[str, str]:
    """Executed notebook -> the parameters that it was given, since the last look."""
    lines = (study.root / "calls").read_text().splitlines()
    study.calls()
    found = [
        line.removesuffix(" --keep-going").partition(" --parameters ") for line in lines if line.startswith("- run ")
    ]
    return {line.split()[2]: parameters for line, _, parameters in found}


def test_parameters_go_to_the_notebooks_that_know_them(ready):
    first, second = "notebooks/01_first.ipynb", "notebooks/02_second.ipynb"
    ready.make("figures")
    assert given(ready) == {first: "", second: ""}
    odd = "limit=3 export_to='a folder; of $HOME & more'"
    assert ready.make("figures", f"PARAMS={odd}").returncode == 0
    assert given(ready) == {second: odd}
    assert ready.make("figures", f"PARAMS={odd}").returncode == 0
    assert ready.executed() == []
    ready.make("figures")
    assert given(ready) == {second: ""}, "without them it is as it was"
    ready.make("figures")
    assert ready.executed() == []


def test_parameters_that_a_further_models_notebooks_lack_are_no_mistake(ready):
    own = 'further = [{ model = "org/one", notebooks = ["01"] }, { model = "org/two", notebooks = ["01", "02"] }]'
    (ready.root / "own.toml").write_text(f'extends = "smoke"\n{own}\n')
    assert ready.make("figures", "PROFILE=own.toml").returncode == 0
    assert len(ready.executed()) == 5
    for folder in ("own", "own/org--one", "own/org--two"):
        (ready.root / "figures" / folder / "figure.png").mkdir(parents=True)
    done = ready.make("figures", "PROFILE=own.toml", "PARAMS=limit=3")
    assert done.returncode == 0, done.stderr
    lines = (ready.root / "calls").read_text().splitlines()
    models = [line.split("--model ")[1].split()[0] for line in lines if "02_second" in line]
    assert models == ["--profile", "org/two"] and len(lines) == 2, "those that have the parameter, and no others"


def test_a_profile_of_ones_own_is_executed_again_when_it_or_its_text_changes(ready):
    folder = ready.root / "my profiles"
    folder.mkdir()
    (folder / "mine.toml").write_text('extends = "smoke"\ntext.corpus = "own.jsonl"\n')
    (folder / "own.jsonl").write_text("{}")
    arguments = ("figures", "PROFILE=my profiles/mine.toml", "NOTEBOOKS=1")
    log = ready.root / "calls"
    assert ready.make(*arguments).returncode == 0
    assert "--profile my profiles/mine.toml" in log.read_text()
    assert (ready.root / "data" / "runs" / "mine" / "01_first.ipynb").exists()
    (ready.root / "figures" / "mine" / "figure.png").mkdir(parents=True)
    ready.calls()
    for name in ("mine.toml", "own.jsonl"):
        ready.make(*arguments)
        assert ready.executed() == []
        with (folder / name).open("a") as file:
            file.write("\n")
        ready.make(*arguments)
        assert ready.executed() == ["01_first"], name


def test_leave_to_run_code_reaches_every_command(ready):
    log = ready.root / "calls"
    for goal in ("plan", "prefetch", "figures"):
        ready.make(goal, "TRUST_REMOTE_CODE=yes", "NOTEBOOKS=1")
        assert "--trust-remote-code" in log.read_text()
        ready.calls()


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ([], ""),
        (["WORKERS=2"], "--workers 2"),
        (["SCHEDULER=tls://far.example:8786"], "--scheduler tls://far.example:8786"),
        (
            ["SCHEDULER=tcp://far.example:8786", "TRUST_NETWORK=yes"],
            "--scheduler tcp://far.example:8786 --trust-network",
        ),
        (["SCHEDULER=tcp://127.0.0.1:8786", "TRUST_NETWORK=no"], "--scheduler tcp://127.0.0.1:8786"),
    ],
)
def test_who_measures_reaches_the_notebooks(ready, arguments, options):
    log = ready.root / "calls"
    assert ready.make("figures", *arguments).returncode == 0
    lines = [line for line in log.read_text().splitlines() if line.startswith("- run ")]
    assert [line.partition("--keep-going")[2].strip() for line in lines] == [options] * 2


def test_a_plan_is_told_of_workers(ready):
    log = ready.root / "calls"
    assert ready.make("plan", "WORKERS=8").returncode == 0
    assert "--workers 8" in log.read_text()


def test_deleted_figures_are_drawn_again(ready):
    ready.make("figures")
    ready.executed()
    shutil.rmtree(ready.root / "figures" / "embedded")
    ready.make("figures")
    assert ready.executed() == ["01_first", "02_second"]


@pytest.mark.parametrize("options", [[], ["-j2"]])
def test_a_failed_notebook_stops_no_other_and_is_executed_next_time(ready, options):
    ready.fail_at("01_first")
    done = ready.make("figures", *options)
    assert done.returncode != 0
    assert sorted(ready.executed()) == ["01_first", "02_second"]
    assert done.stdout.splitlines()[-1] == "1 of 2 notebooks finished; failed: 01_first (a cell failed)"
    ready.fail_at(None)
    done = ready.make("figures", *options)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "2 of 2 notebooks finished")
    assert ready.executed() == ["01_first"]


def test_a_failed_notebook_of_a_further_model_is_told_with_it(ready):
    further = 'further = [{ model = "org/one", notebooks = ["01", "02"] }, { model = "org/two", notebooks = ["02"] }]'
    (ready.root / "own.toml").write_text(f'extends = "smoke"\n{further}\n')
    ready.fail_at("01_first.*org/one")
    done = ready.make("figures", "PROFILE=own.toml")
    assert done.returncode != 0
    assert ready.executed() == ["01_first", "02_second", "01_first", "02_second", "02_second"]
    assert done.stdout.splitlines()[-1].startswith("4 of 5 notebooks finished; failed: org--one/01_first (a cell")


def test_one_notebook_by_its_copys_name_fails_make(ready):
    ready.fail_at("01_first")
    assert ready.make("data/runs/embedded/01_first.ipynb").returncode != 0


def test_test_runs_the_unit_tests_and_then_every_notebook_in_small(ready):
    assert ready.make("test").returncode == 0
    expected = [f"run notebooks/{name}.ipynb" for name in ("01_first", "02_second")]
    rehearsed = ["pip install", "rehearsal.run --notebooks"]
    calls = ready.calls()
    # Notebooks two at a time, and the rehearsal beside them: the parts between the tests come in any order.
    first, *between, last = calls
    assert first == last == "pytest --numprocesses"
    assert sorted(between) == sorted([*expected, VERIFY, *rehearsed])
    assert [call for call in between if call in rehearsed] == rehearsed
    assert between.index(VERIFY) > max(map(between.index, expected))
    assert (ready.root / "data" / "runs" / "smoke" / "02_second.ipynb").exists()


def test_test_fast_leaves_out_what_is_slow(ready):
    log = ready.root / "calls"
    assert ready.make("test-fast").returncode == 0
    (line,) = log.read_text().splitlines()
    assert line.startswith("-m pytest ") and line.endswith(" -m not slow")


def test_a_failed_unit_test_fails_make(ready):
    ready.fail_at("pytest")
    assert ready.make("test").returncode != 0
    assert ready.calls() == ["pytest --numprocesses"]


def verifications(study: Study) -> list[list[str]]:
    """The arguments of each comparison since the last look."""
    words = [line.split()[1:] for line in (study.root / "calls").read_text().splitlines()]
    return [line[2:] for line in words if line[:2] == VERIFY.split()]


def test_figures_end_by_comparing_their_tables_and_are_made_whatever_differs(ready):
    log = ready.root / "calls"
    assert ready.make("figures", "NOTEBOOKS=02").returncode == 0
    assert log.read_text().splitlines()[-1].split()[1:3] == VERIFY.split()
    (arguments,) = verifications(ready)
    assert arguments[0] == "embedded"
    assert arguments[arguments.index("--notebooks") + 1] == "02"
    assert {"--brief", "--no-fail"} <= set(arguments)


@pytest.mark.parametrize("arguments", [["MODEL=org/name"], ["PROFILE=paper"], ["PARAMS=limit=3"]])
def test_a_run_that_nothing_is_known_of_is_not_compared(ready, arguments):
    assert ready.make("figures", "NOTEBOOKS=02", *arguments).returncode == 0
    assert VERIFY not in (ready.root / "calls").read_text()


@pytest.mark.parametrize("command", ["smoke", "test"])
def test_in_small_a_table_that_is_not_as_expected_fails(ready, command):
    ready.fail_at("layer_redundancy.cli verify smoke")
    assert ready.make(command).returncode != 0
    (arguments,) = verifications(ready)
    assert "--no-fail" not in arguments
    assert "pytest --numprocesses" not in ready.calls()[1:], "nothing comes after it"


def test_a_failed_rehearsal_fails_the_tests(ready):
    ready.fail_at("rehearsal.run")
    assert ready.make("test").returncode != 0
    assert ready.calls().count("pytest --numprocesses") == 1


def test_verify_exits_by_what_it_finds(ready):
    assert ready.make("verify", "NOTEBOOKS=02").returncode == 0
    (arguments,) = verifications(ready)
    assert "--no-fail" not in arguments
    assert arguments[arguments.index("--notebooks") + 1] == "02"
    ready.fail_at("layer_redundancy.cli verify")
    assert ready.make("verify").returncode != 0


def test_clean_keeps_what_took_long_and_what_is_committed(study):
    kept = ["data/results/store.db", "data/cache/model", "figures/embedded/figure.png", "figures/bench/time.csv"]
    removed = ["data/runs/embedded/01_first.ipynb", "figures/smoke/figure.png", "figures/paper-org--name/figure.png"]
    for name in kept + removed:
        (study.root / name).parent.mkdir(parents=True, exist_ok=True)
        (study.root / name).touch()
    assert study.make("clean").returncode == 0
    assert [name for name in kept if not (study.root / name).exists()] == []
    assert [name for name in removed if (study.root / name).exists()] == []
