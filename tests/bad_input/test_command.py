"""Odd values of the command's options, and what stops it: one line on stderr, nothing on stdout, nothing lost."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict

import pytest
from typer.testing import CliRunner

import one_line
from children import as_at_a_terminal
from layer_redundancy import cli
from layer_redundancy.config import profiles
from layer_redundancy.core import doors, paths
from layer_redundancy.core.errors import StudyError
from layer_redundancy.study import Study
from made_up import checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def record(model):
    """A pruning.json of that model."""
    profile = profiles.get("smoke", model=str(model))
    return {
        "base_fingerprint": Study.of(profile).identity.fingerprint,
        "measure": "block_influence",
        "removed_blocks": [1],
        "healed": None,
        "training": None,
        "quantized_to_bits": None,
        "profile": json.loads(json.dumps(asdict(profile))),
    }


@pytest.fixture(autouse=True)
def by_the_command(tmp_path, monkeypatch):
    """A working directory with things in it that must stay."""
    monkeypatch.setenv(doors.VARIABLE, doors.COMMAND)
    monkeypatch.setenv("LAYER_REDUNDANCY_NOTEBOOK", "")
    monkeypatch.delenv("LAYER_REDUNDANCY_DEVICE", raising=False)
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")


def invoke(*arguments: str) -> None:
    done = CliRunner().invoke(cli.app, arguments)
    assert done.stdout == ""
    if isinstance(done.exception, StudyError):
        raise done.exception
    raise AssertionError(done)


MISTAKES = {
    "rank by no measure": ("rank M --by ''", "unknown importance measure ''"),
    "rank by a measure in capitals": ("rank M --by Taylor", "unknown importance measure 'Taylor': choose one of"),
    "rank on a device that is none": ("rank M --device gpu", "unknown device 'gpu': choose cpu, cuda or auto"),
    "rank a folder at some revision": ("rank M --revision main", "is not on the hub: it has no revision 'main'"),
    "rank the profile's own at some revision": ("rank --revision main", "was given without a model: give --model too"),
    "rank a folder without a model": ("rank full", "has no config.json"),
    "rank a model in nobody's home": ("rank ~nobody-here/x", "there is no home folder of ~nobody-here"),
    "rank a path that is not there": ("rank a/b/c", "no such folder"),
    "evaluate a folder without a model": ("evaluate full", "has no config.json"),
    "evaluate nothing": ("evaluate ''", "a model is empty"),
    "compare with nothing": ("compare M ''", "a model is empty"),
    "evaluate a model in nobody's home": ("evaluate ~nobody-here/x", "there is no home folder of ~nobody-here"),
    "compare with a path that is not there": ("compare M ./nowhere", "no such folder"),
    "sweep over nothing": ("sweep M --remove ''", "write a number, a range such as 1..10, or 2,4,8"),
    "sweep over a word": ("sweep M --remove all", "--remove 'all' is not understood"),
    "sweep over a fraction": ("sweep M --remove 1.5", "--remove '1.5' is not understood"),
    "sweep over a number below zero": ("sweep M --remove -1", "--remove '-1' is not understood"),
    "sweep over a list with a hole": ("sweep M --remove 1,", "--remove '1,' is not understood"),
    "sweep over two ranges in one": ("sweep M --remove 1..2..3", "is not understood"),
    "sweep over a square": ("sweep M --remove ²", "is not understood"),
    "sweep over more blocks than there are": ("sweep M --remove 9", "9 blocks cannot be removed: the model has 5"),
    "sweep over a range without end": ("sweep M --remove 1..999999999999", "no model has so many blocks"),
    "sweep over a number without end": (f"sweep M --remove {'9' * 5000}", "no model has so many blocks"),
    "prune by nothing": ("prune M --out new", "say how many blocks go by one of"),
    "prune by two": ("prune M --remove 1 --ratio 0.2 --out new", "say how many blocks go by one of"),
    "prune a share that is no number": ("prune M --ratio nan --out new", "--ratio"),
    "prune an endless share": ("prune M --ratio inf --out new", "--ratio"),
    "prune more than all": ("prune M --ratio 2 --out new", "--ratio 2 is out of range"),
    "prune less than nothing": ("prune M --ratio -1 --out new", "--ratio -1 is out of range"),
    "prune for a loss below zero": ("prune M --max-loss -1 --out new", "--max-loss -1 is out of range"),
    "prune for a loss that is no number": ("prune M --max-loss nan --out new", "--max-loss"),
    "prune more blocks than there are": ("prune M --remove 99 --out new", "99 blocks cannot be removed"),
    "heal by a way in capitals": ("prune M --remove 1 --heal LoRA --out new", "has no recipe 'LoRA': choose one of"),
    "quantize to no bits": ("prune M --remove 1 --quantize 0 --out new", "cannot quantize to 0 bits"),
    "write to a folder that is there": ("prune M --remove 1 --out full", "full exists: choose another folder"),
    "write to a file": ("prune M --remove 1 --out file", "file exists: choose another folder"),
    "write below a file": ("prune M --remove 1 --out file/new", "cannot write file/new"),
    "write to a link to nothing": ("prune M --remove 1 --out link", "link exists"),
    "write to nowhere": ("prune M --remove 1 --out ''", "exists"),
    "write to a name that is too long": (f"prune M --remove 1 --out {'n' * 300}", "File name too long"),
    "write into the model": ("prune M --remove 1 --out M/new", "it lies in the model's own folder"),
    "like and a number": ("prune --like good --remove 1 --out new", "give nothing else but --out"),
    "like and a profile": ("prune --like good --profile paper --out new", "give nothing else but --out"),
    "like and a measure": ("prune --like good --by taylor --out new", "give nothing else but --out"),
    "like what is not there": ("prune --like nothing.json --out new", "cannot read nothing.json"),
    "like a folder without one": ("prune --like full --out new", "cannot read full/pruning.json"),
    "verify no profile": ("verify huge", "unknown profile 'huge'"),
    "verify tables that are not there": ("verify smoke --tables nowhere", "nowhere is no folder"),
    "verify a file": ("verify smoke --tables file", "file is no folder"),
    "verify with nothing": ("verify smoke --expected nowhere --tables full", "nothing to compare smoke with"),
    "verify with an empty folder": ("verify smoke --expected full --tables full", "no expected tables in full"),
    "verify a notebook that is none": ("verify smoke --notebooks 99", 'no notebook "99"'),
    "renew a part": ("verify smoke --renew --notebooks 01", "--renew takes the tables of a whole run"),
    "renew from elsewhere": ("verify smoke --renew --tables full", "--renew takes the tables of a whole run"),
    "verify with JSON": ("verify smoke --tables nowhere --json", "nowhere is no folder"),
    "plan a notebook that is none": ("plan smoke --notebooks 99", "no notebook 99: choose from 01"),
    "plan a revision of no model": ("plan smoke --revision v1", "give --model too"),
}


@pytest.mark.parametrize(("line", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(model, tmp_path, line, words):
    arguments = ["" if word == "''" else word.replace("M", str(model), word[:1] == "M") for word in line.split()]
    if arguments[0] in ("rank", "sweep", "evaluate", "compare") or (arguments[0] == "prune" and "--like" not in line):
        arguments += ["--profile", "smoke"]
    assert words in one_line.refusal(lambda: invoke(*arguments))
    assert {path.name for path in tmp_path.iterdir()} <= {"full", "file", "link", "results"}
    assert not (model / "new").exists() and (tmp_path / "full" / "mine").exists()


BAD_RECORDS = {
    "no JSON": ("{", "is no pruning.json"),
    "no text": ("\udcff", "is no pruning.json"),
    "a list": ("[1]", "lacks everything"),
    "something else": ('{"a": 1}', "lacks base_fingerprint"),
    "a profile that is none": ({"profile": 3}, "profile is none that"),
    "a profile of nothing": ({"profile": {}}, "must be given"),
    "blocks as a text": ({"removed_blocks": "12"}, "removed_blocks is none that"),
    "no blocks": ({"removed_blocks": None}, "removed_blocks is none that"),
    "a block that is not there": ({"removed_blocks": [99]}, "block 99"),
    "a block twice": ({"removed_blocks": [1, 1]}, "block 1"),
    "all blocks": ({"removed_blocks": [0, 1, 2, 3, 4]}, "all 5 blocks are to be removed"),
    "a measure that is none": ({"measure": 3}, "measure"),
    "bits that are none": ({"quantized_to_bits": 5}, "cannot quantize to 5 bits"),
    "a recipe that is none": ({"healed": 3, "training": {}}, "healed is none that"),
    "a recipe without its text": (
        {"healed": {"method": "lora", "learning_rate": 1}},
        "go together",
    ),
    "another model": ({"base_fingerprint": "x"}, "its weights are others"),
}


@pytest.mark.parametrize(("content", "words"), BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_a_bad_pruning_json_is_one_line(record, tmp_path, content, words):
    text = json.dumps(record | content) if isinstance(content, dict) else content
    (tmp_path / "bad.json").write_bytes(text.encode(errors="surrogateescape"))
    assert words in one_line.refusal(lambda: invoke("prune", "--like", "bad.json", "--out", "new"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("4", [4]), ("1,1", [1]), ("0", [0]), (" 2 , 1..3 ", [1, 2, 3]), ("3..3", [3]), ("8,2,4", [2, 4, 8])],
)
def test_numbers_of_blocks(text, numbers):
    assert cli._numbers(text) == numbers


@pytest.mark.parametrize(
    "line",
    ["nothing", "rank --nope", "rank a b c", "sweep a b c", "prune M --out new --ratio x", "prune M", "evaluate",
     "compare a", "measures x", "plan smoke x", "prune M --remove 1.5 --out new", "rank --json=1"],
)  # fmt: skip
def test_a_command_line_that_is_not_understood_exits_with_2(line):
    done = CliRunner().invoke(cli.app, line.split())
    assert (done.exit_code, done.stdout) == (2, "") and done.stderr


@pytest.mark.slow
def test_the_exit_status_is_1_and_stdout_is_for_results(tmp_path):
    command = [sys.executable, "-m", "layer_redundancy", "verify", "huge", "--json"]
    environment = {name: value for name, value in os.environ.items() if name != doors.VARIABLE}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


FIRST = {  # a module that each imports on its way, in whose place is one that brings the signal
    "layer_redundancy": "typer",
    "layer_redundancy.cli": "typer",
    "layer_redundancy.run_notebook": "nbformat",
    "layer_redundancy.config.run_folder": "tomllib",
    "layer_redundancy.planning.downloads": "typer",
    "layer_redundancy.models.smollm2": "tempfile",
}


def amid_imports(tmp_path, module: str, which: signal.Signals, before: str = "") -> subprocess.CompletedProcess:
    """A program to which a signal comes while it imports; it exits with 7 if that changes nothing."""
    text = f"import os, signal\nos.kill(os.getpid(), {int(which)})\nraise SystemExit(7)\n"
    (tmp_path / f"{FIRST[module]}.py").write_text(text)
    command = f'{before}exec "$0" -m {module}'
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    return subprocess.run(
        ["sh", "-c", command, sys.executable],
        capture_output=True,
        text=True,
        env=environment,
        preexec_fn=as_at_a_terminal,
    )


@pytest.mark.slow
@pytest.mark.parametrize("module", FIRST)
def test_a_program_that_is_stopped_in_its_first_second_says_so_in_a_word(tmp_path, module):
    done = amid_imports(tmp_path, module, signal.SIGINT)
    assert (done.returncode, done.stderr, done.stdout) == (130, "interrupted\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_stop_it_as_well_unless_it_is_to_ignore_them(tmp_path, which):
    done = amid_imports(tmp_path, "layer_redundancy.run_notebook", which)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    name = which.name.removeprefix("SIG")
    assert amid_imports(tmp_path, "layer_redundancy.run_notebook", which, f"trap '' {name}; ").returncode == 7


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_trouble():
    command = '"$0" -m layer_redundancy verify smoke --tables "$1" --json | head -c 5'
    tables = str(paths.EXPECTED / "smoke")
    done = subprocess.run(["sh", "-c", command, sys.executable, tables], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ('{"sum', "")
