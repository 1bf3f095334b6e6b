"""What keeps the repository itself in order: notebooks as they are committed, pins, paths."""

import ast
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pandas as pd
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from layer_redundancy import __version__, figures
from layer_redundancy.core import paths

PROJECT = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
NOTEBOOKS = {path.stem: nbformat.read(path, as_version=4) for path in sorted(paths.NOTEBOOKS.glob("*.ipynb"))}
TEXT_SUFFIXES = {".py", ".ipynb", ".toml", ".lock", ".yml", ".yaml", ".md", ".txt", ".csv", ".html", ".css", ""}


def committed_texts() -> dict[str, str]:
    """Every text file of the study, by its path; without what is computed, downloaded or installed."""
    folders = [
        ".ci",
        "notebooks",
        "src/layer_redundancy",
        "benchmarks",
        "rehearsal",
        "tools",
        "docs",
        "tests",
        "figures/embedded",
        "data/expected",
    ]
    files = [path for path in [*paths.ROOT.iterdir(), *(paths.ROOT / "data").iterdir()] if path.is_file()]
    for folder in folders:
        files += [path for path in (paths.ROOT / folder).rglob("*") if path.is_file()]
    hidden = {"__pycache__", ".ipynb_checkpoints"}
    return {
        str(path.relative_to(paths.ROOT)): path.read_text()
        for path in files
        if path.suffix in TEXT_SUFFIXES and path.name != ".git" and not hidden & set(path.parts)
    }


def pins(requirements: list[str]) -> dict[str, str]:
    """Exact version by package; another kind of requirement is an error."""
    found = {}
    for requirement in map(Requirement, requirements):
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", f"{requirement} is no exact version"
        found[canonicalize_name(requirement.name)] = specifier.version
    return found


def lock_lines() -> list[str]:
    lines = (paths.ROOT / "requirements.lock").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_the_study_has_its_notebooks():
    assert {"01_layer_importance", "02_single_layer_removal"} <= set(NOTEBOOKS)


def test_notebooks_are_committed_without_results():
    for name, notebook in NOTEBOOKS.items():
        for number, cell in enumerate(notebook.cells):
            if cell.cell_type == "code":
                assert cell.outputs == [], f"{name}, cell {number} has outputs: run `make format`"
                assert cell.execution_count is None, f"{name}, cell {number} has a count: run `make format`"
            assert "papermill" not in cell.metadata, f"{name}, cell {number} was executed by papermill"
        assert "papermill" not in notebook.metadata, f"{name} is an executed copy"


def test_notebooks_ask_for_the_kernel_that_every_python_has():
    for name, notebook in NOTEBOOKS.items():
        assert (notebook.metadata.kernelspec.name, notebook.metadata.kernelspec.language) == ("python3", "python"), name


def test_notebooks_have_one_parameters_cell_of_literals():
    """So that papermill, a reader and the runner's check of names all see the same parameters."""
    for name, notebook in NOTEBOOKS.items():
        (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
        parameters = {}
        for statement in ast.parse(cell.source).body:
            assert isinstance(statement, ast.Assign | ast.AnnAssign), f"{name}: {ast.unparse(statement)}"
            (target,) = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            parameters[target.id] = ast.literal_eval(statement.value)
        common = {"profile": "embedded", "model": "", "revision": "", "trust_remote_code": False}
        assert common.items() <= parameters.items(), f"{name} lacks a parameter that `make` sets"


def test_notebooks_do_not_depend_on_the_callers_folder():
    for name, notebook in NOTEBOOKS.items():
        for cell in notebook.cells:
            if cell.cell_type == "code":
                found = re.search(r"sys\.path|%cd|os\.chdir|\.\./", cell.source)
                assert not found, f"{name} has {found}: paths.py knows where things lie"


def test_no_file_names_a_place_on_somebodys_machine():
    # Written so that the pattern does not find itself.
    place = re.compile(r"(?<![\w.}])(?:/(?:home|Users|root|work|mnt)/|[A-Z]:\\Users\\)\w")
    texts = committed_texts()
    assert {"Makefile", ".ci/run", "src/layer_redundancy/core/paths.py"} <= set(texts), "the search is too narrow"
    found = [
        f"{name}:{number}: {line}"
        for name, text in texts.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if place.search(line)
    ]
    assert found == []


def test_every_version_is_exact_and_locked():
    chosen = pins([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]])
    # The same package may stand there twice, for different Pythons.
    locked = {(canonicalize_name(r.name), str(r.specifier)) for r in map(Requirement, lock_lines())}
    assert [f"{name}=={version}" for name, version in chosen.items() if (name, f"=={version}") not in locked] == []
    assert pins(lock_lines()).keys() >= chosen.keys()


def test_the_lock_leaves_cuda_to_torch():
    assert [line for line in lock_lines() if re.match("cuda-|nvidia-(?!ml-py)|triton", line)] == []


def test_conda_installs_what_pip_does():
    environment = yaml.safe_load((paths.ROOT / "environment.yml").read_text())
    *packages, pip = environment["dependencies"]
    assert pip == {"pip": ["-r requirements.lock", "-e .[dev]"]}, "versions are chosen in pyproject.toml, in one place"
    python, *others = packages
    assert python.startswith("python" + PROJECT["requires-python"])
    assert others == ["make", "pip"], "without versions"


def test_the_version_is_the_same_wherever_it_stands():
    citation = yaml.safe_load((paths.ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert f"\n## {__version__}\n" in (paths.ROOT / "CHANGELOG.md").read_text()
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"][0]["name"] in (paths.ROOT / "LICENSE").read_text()


def test_before_a_commit_runs_what_make_lint_runs():
    """By calling it, in the study's own environment: versions and options of linters stand in one place."""
    repositories = yaml.safe_load((paths.ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert {repository["repo"] for repository in repositories} == {"local"}
    hooks = [hook for repository in repositories for hook in repository["hooks"]]
    assert [(hook["language"], hook["entry"], hook["pass_filenames"]) for hook in hooks] == [
        ("system", "make lint", False)
    ]


def test_ci_runs_the_commands_of_the_readme():
    script = paths.ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make --keep-going lint test" in script.read_text()


def test_drawing_needs_no_model_libraries():
    """Figures are for data that is there; whoever only draws should not wait for torch."""
    modules = [f"layer_redundancy.figures.{module.name}" for module in pkgutil.iter_modules(figures.__path__)]
    modules += ["benchmarks.pictures", "tools.small_models.training_curve", "tools.docs.make"]
    assert {f"layer_redundancy.figures.{stem.split('_', 1)[1]}" for stem in NOTEBOOKS} <= set(modules)
    code = f"import sys, {', '.join(modules)}; print({{'torch', 'transformers'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=paths.ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_reported_tables_can_be_read():
    tables = sorted(Path(paths.PAPER).glob("*.csv"))
    assert {"table1", "table2", "table4"} <= {path.stem for path in tables}
    for path in tables:
        table = pd.read_csv(path)
        assert len(table) > 0, path.name
        unnamed = [column for column in table.columns if column.startswith("Unnamed") or column != column.strip()]
        assert unnamed == [], path.name
