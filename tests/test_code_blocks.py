"""Every code block of README.md and docs/how-to.md, run as it is printed, in a fresh copy of the study.

The copy has an environment of its own, whose packages are this one's, the results of this study so far, and a hub of
this machine, which serves a tiny random model under every name that a block asks for. What takes long is not run here:
`LONG` names it, and says where it is run instead; make is only asked what it would do.
"""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

from layer_redundancy.config import run_folder
from layer_redundancy.core import paths
from layer_redundancy.core.store import Store
from layer_redundancy.data import corpora
from layer_redundancy.models import smollm2
from made_up import checkpoint
from rehearsal.local_hub import LocalHub, place

pytestmark = pytest.mark.slow

DOCUMENTS = ("README.md", "docs/how-to.md")
HUB_MODEL = re.compile(r"MODEL=([\w.-]+/[\w.-]+)")
# Commands that are not run but by make -n, and why.
LONG = {
    "make figures": "the embedded profile takes an hour; every notebook is run on smoke by `make test`",
    'make figures MODELS="smollm2 gemma3-270m"': "it downloads a model; test_study.py compares tiny ones",
    "make test": "this is a part of it",
}


@dataclass(frozen=True)
class Block:
    """A code block of a document.

    Attributes:
        document: its path from the study's root.
        line: where it begins.
        language: the word after the fence.
        text: what is between the fences.
    """

    document: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks(document: str) -> list[Block]:
    text = (paths.ROOT / document).read_text()
    return [
        Block(document, text.count("\n", 0, found.start()) + 1, found[1], found[2])
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


EVERY = [block for document in DOCUMENTS for block in blocks(document)]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the study with an environment, as `make setup` leaves it."""
    root = tmp_path_factory.mktemp("study") / "layer-redundancy"
    for name in ("Makefile", "README.md", "LICENSE", "pyproject.toml", "requirements.lock"):
        root.mkdir(exist_ok=True)
        shutil.copy(paths.ROOT / name, root)
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "cache", "results", "runs")
    for name in ("src", "notebooks", "docs", "data", "tests", "rehearsal", "tools", "benchmarks"):
        shutil.copytree(paths.ROOT / name, root / name, ignore=ignore)
    cache = root / "data" / "cache"
    cache.mkdir()
    corpora.articles("wikipedia", "evaluation")
    smollm2.folder()
    for path in paths.CACHE.iterdir():
        if not path.name.startswith("."):
            (cache / path.name).symlink_to(path)
    if (paths.RESULTS / "results.sqlite").is_file():  # what was computed once is not computed again, as for a user
        (root / "data" / "results").mkdir()
        with Store(paths.RESULTS / "results.sqlite") as store, sqlite3.connect(f"file:{store.path}", uri=True) as db:
            db.execute("VACUUM INTO ?", (str(root / "data" / "results" / "results.sqlite"),))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / ".venv"], check=True)
    (site,) = (root / ".venv").glob("lib/python*/site-packages")
    (site / "study.pth").write_text(f"{root / 'src'}\n{sysconfig.get_path('purelib')}\n")
    command = root / ".venv" / "bin" / "layer-redundancy"
    command.write_text(f"#!{root / '.venv' / 'bin' / 'python'}\nfrom layer_redundancy.cli import main\nmain()\n")
    command.chmod(0o755)
    (root / ".venv" / "ready").write_text(f"{root}\n")
    checkpoint(root / "path" / "to" / "a" / "checkpoint")  # what the documents call a model of the user's own
    return root


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub that serves a tiny random model under every name that the documents ask for."""
    root = tmp_path_factory.mktemp("hub")
    names = {name for block in EVERY for name in HUB_MODEL.findall(block.text)}
    for name in names:
        checkpoint(place(root, "models", name))
    with LocalHub(root) as serving:
        yield serving


@pytest.fixture
def run(clone, hub, tmp_path):
    def run(command: list[str | Path]) -> None:
        outer = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "PYTHONPATH", *run_folder.VARIABLES}
        kept = {name: value for name, value in os.environ.items() if name not in outer and not name.startswith("HF_")}
        # Threads of two processes that share two cores wait for each other; and the command in small does the same.
        ours = (
            hub.environment
            | {"LAYER_REDUNDANCY_PROFILE": "smoke"}
            | {"HF_HOME": str(clone.parent / "hub-cache"), "OMP_NUM_THREADS": "1"}
        )
        done = subprocess.run(command, cwd=clone, env=kept | ours, capture_output=True, text=True)
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"

    return run


def shortened(text: str) -> str:
    """A shell block whose long commands are only asked what they would do."""
    lines = []
    for line in text.splitlines():
        command = line.partition("#")[0].strip()
        lines.append(line.replace("make ", "make -n ", 1) + " > /dev/null" if command in LONG else line)
    return "\n".join(lines)


@pytest.mark.parametrize("block", [block for block in EVERY if block.language == "sh"], ids=str)
def test_a_shell_block_runs_as_printed(run, block):
    run(["bash", "-euc", shortened(block.text)])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_blocks_run_as_printed_one_after_the_other(run, clone, tmp_path, document):
    script = tmp_path / "blocks.py"
    script.write_text("\n".join(f"# {b}\n{b.text}" for b in EVERY if b.document == document and b.language == "python"))
    run([clone / ".venv" / "bin" / "python", script])


def test_nothing_is_left_out_that_is_not_there():
    commands = {line.partition("#")[0].strip() for block in EVERY for line in block.text.splitlines()}
    assert LONG.keys() <= commands


def test_every_block_says_what_it_is():
    assert [str(block) for block in EVERY if block.language not in ("sh", "python", "toml", "text")] == []
