"""Whether two processes would get the same numbers, by the code that they run."""

import shutil
from pathlib import Path

import pytest

import layer_redundancy
from layer_redundancy.cluster import code


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of a few files in the place of this one."""
    root = tmp_path / "package"
    for name, text in {"__init__.py": "", "core/stats.py": "MEAN = 1", "data/profiles/smoke.toml": "seed = 1"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(layer_redundancy, "__file__", str(root / "__init__.py"))
    return root


def of_package() -> str:
    return code.here.__wrapped__()["layer-redundancy"]


def test_what_computes_is_named_with_its_version():
    here = code.here()
    assert {"python", "layer-redundancy", *code.LIBRARIES} == here.keys()
    assert here["python"].count(".") == 1, "a patch of Python changes no number"
    assert code.difference(here, dict(here)) == ""


def test_builds_of_one_version_are_alike_and_what_is_missing_is_said(monkeypatch):
    def version(name):
        if name == "torch":
            return "2.9.1+cu128"
        raise code.PackageNotFoundError(name)

    monkeypatch.setattr(code, "version", version)
    found = code.here.__wrapped__()
    assert found["torch"] == "2.9.1" and found["peft"] == "not installed"


def test_a_copy_elsewhere_is_the_same_code(package, tmp_path, monkeypatch):
    before = of_package()
    shutil.copytree(package, tmp_path / "elsewhere")
    monkeypatch.setattr(layer_redundancy, "__file__", str(tmp_path / "elsewhere" / "__init__.py"))
    assert of_package() == before


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "core" / "stats.py").write_text("MEAN = 2"),
        lambda root: (root / "data" / "profiles" / "smoke.toml").write_text("seed = 2"),
        lambda root: (root / "core" / "more.py").write_text(""),
        lambda root: (root / "core" / "stats.py").unlink(),
        lambda root: (root / "core" / "stats.py").rename(root / "core" / "statistics.py"),
    ],
    ids=["a line", "a profile", "a new file", "one file less", "another name"],
)
def test_another_file_is_another_code(package, change):
    before = of_package()
    change(package)
    assert of_package() != before


def test_what_python_leaves_beside_it_is_no_part_of_it(package: Path):
    before = of_package()
    (package / "core" / "__pycache__").mkdir()
    (package / "core" / "__pycache__" / "stats.cpython-311.pyc").write_bytes(b"compiled")
    (package / "notes.txt").write_text("")
    assert of_package() == before


def test_a_difference_is_said_in_words():
    ours = {"python": "3.11", "torch": "2.9.1", "peft": "0.20"}
    theirs = {"python": "3.11", "torch": "2.8.0", "other": "1"}
    assert code.difference(theirs, ours) == (
        "torch 2.8.0 there and 2.9.1 here, peft not known there and 0.20 here, other 1 there and not known here"
    )
