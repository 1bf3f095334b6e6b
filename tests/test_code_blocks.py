"""What README.md and docs/ tell a user to type: it runs as printed, or, where that takes minutes, is understood."""

import json
import re
import shlex

import pytest
import typer

from layer_redundancy import cli
from layer_redundancy.core import paths
from layer_redundancy.data import corpora
from made_up import checkpoint

PAGES = [paths.ROOT / "README.md", *sorted((paths.ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    """The page and the text of each code block in a language."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
    return [(path.name, text) for path in PAGES for text in pattern.findall(path.read_text())]


def commands(program: str) -> list[list[str]]:
    """Each distinct command of a program in a shell block, split into words, without what stands before it."""
    found = []
    for _, text in blocks("sh"):
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            at = next((i for i, word in enumerate(words) if word.split("/")[-1] == program), None)
            if at is not None and words[at:] not in found:
                found.append(words[at:])
    return found


MAKEFILE = (paths.ROOT / "Makefile").read_text()


@pytest.mark.parametrize("words", commands("make"), ids=" ".join)
def test_make_knows_its_targets_and_variables(words):
    for word in words[1:]:
        name, value, _ = word.partition("=")
        kind = " =" if value else ":"
        assert re.search(rf"^{name}{kind}.*##", MAKEFILE, flags=re.MULTILINE), f"no such thing to tell make: {word}"


@pytest.mark.parametrize("words", commands("layer-redundancy"), ids=" ".join)
def test_the_command_understands_its_lines(words):
    assert words[0] == ".venv/bin/layer-redundancy", "as a fresh clone has it"
    group = typer.main.get_command(cli.app)
    group.commands[words[1]].make_context(words[1], words[2:])  # parses, and runs nothing


def test_the_library_runs_as_printed(tmp_path, monkeypatch):
    """All of it one after the other, on a tiny model and the smoke profile."""
    corpora.articles("wikipedia", "evaluation")  # so that they are in the cache and not prepared anew
    (tmp_path / "cache").mkdir()
    for path in paths.CACHE.iterdir():
        (tmp_path / "cache" / path.name).symlink_to(path)
    for name in ("CACHE", "RESULTS", "FIGURES"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    monkeypatch.chdir(tmp_path)
    (text,) = [path.read_text() for path in PAGES if path.name == "how-to.md"]
    section = text.split("\n## As a library\n")[1].split("\n## ")[0]
    code = "\n".join(re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL))
    for printed, smaller in {
        'Study.open("embedded")': f'Study.open("smoke", model={str(checkpoint(tmp_path / "model"))!r})',
        "steps=24": "steps=1",
    }.items():
        assert code.count(printed) == 1
        code = code.replace(printed, smaller)
    names: dict = {}
    exec(compile(code, "how-to.md", "exec"), names)
    first = sorted(map(int, names["order"][:3]))
    for folder in ("without-3-blocks", "4-bits-without-3-blocks"):
        assert json.loads((tmp_path / folder / "layer_redundancy.json").read_text())["removed_blocks"] == first
    assert names["pruned_first"].num_blocks == 2 and (tmp_path / "healed" / "config.json").exists()
