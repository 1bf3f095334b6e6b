"""What of this program decides a number: two processes that differ in it do not share work."""

import hashlib
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import layer_redundancy
from layer_redundancy import __version__

KINDS = (".py", ".toml", ".yaml", ".json", ".csv")  # code, profiles, tasks, tables; models are compared as such
LIBRARIES = ("torch", "transformers", "numpy", "peft", "bitsandbytes", "llmcompressor", "lm-eval")


@cache
def here() -> dict[str, str]:
    """Versions of Python, of the libraries that compute, and of this package with a hash of its code."""
    found = {"python": ".".join(platform.python_version_tuple()[:2]), "layer-redundancy": f"{__version__} {_digest()}"}
    for name in LIBRARIES:
        try:
            found[name] = version(name).partition("+")[0]  # a build for CPUs or for CUDA is the same version
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _digest() -> str:
    """sha256 over the names and bytes of the package's files, code, tables and definitions; its first eight letters."""
    root = Path(layer_redundancy.__file__).parent
    every = hashlib.sha256()
    for file in sorted(root.rglob("*")):
        if file.suffix in KINDS and file.is_file():
            every.update(f"{file.relative_to(root).as_posix()} {file.stat().st_size}\n".encode())
            every.update(file.read_bytes())
    return every.hexdigest()[:8]


def difference(theirs: dict[str, str], ours: dict[str, str]) -> str:
    """How another process's code differs from this one's, in words; "" if it does not."""
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    said = [(name, *(of.get(name, "not known") for of in (theirs, ours))) for name in names]
    return ", ".join(f"{name} {there} there and {here} here" for name, there, here in said)
