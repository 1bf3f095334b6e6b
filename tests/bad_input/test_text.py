"""Texts and tasks of the user's own that are none, that look odd, and that change in place."""

import json
import os
import socket
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from layer_redundancy.config import own_files
from layer_redundancy.config.profiles import TaskBudget, TextBudget
from layer_redundancy.core import paths
from layer_redundancy.data import benchmark_items, corpora, hub
from layer_redundancy.data.corpora import packed_blocks, token_blocks
from layer_redundancy.models import smollm2
from made_up import CHOOSE
from one_line import refusal


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(smollm2.folder())


def budget(corpus, blocks=1, length=16):
    return TextBudget(corpus, block_length=length, calibration_blocks=blocks, evaluation_blocks=blocks)


def article(number: int) -> str:
    return f"Article {number}. " + f"The number {number} is written here. " * 20


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of four texts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    made = tmp_path / "texts"
    made.mkdir()
    for number in range(4):
        (made / f"{number}.txt").write_text(article(number))
    return made


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(path.name)  # relative, since its path may not be long


# What cannot be read, for whoever runs this.
UNREADABLE = {
    "a folder": Path.mkdir,
    "a link that leads nowhere": lambda path: path.symlink_to("/not there"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a pipe, which would be waited for": os.mkfifo,
    "a device without end": lambda path: path.symlink_to("/dev/zero"),
    "this process's memory": lambda path: path.symlink_to("/proc/self/mem"),
    "Latin-1": lambda path: path.write_bytes("Größe".encode("latin-1")),
    "UTF-16": lambda path: path.write_text("Hello.", encoding="utf-16"),
    "binary": lambda path: path.write_bytes(bytes(range(128, 256))),
}


@pytest.mark.parametrize("make", UNREADABLE.values(), ids=UNREADABLE)
def test_a_text_among_others_that_cannot_be_read_is_named(folder, make):
    make(folder / "z.txt")
    line = refusal(lambda: corpora.articles(str(folder), "evaluation"))
    assert line == f"cannot read {folder / 'z.txt'}: it must be a readable UTF-8 text file"


ALONE = {name: UNREADABLE[name] for name in ("a pipe, which would be waited for", "Latin-1", "binary")}
ALONE |= {"a socket": bound_socket, "a device without end": UNREADABLE["a device without end"]}


@pytest.mark.parametrize("ending", own_files.TEXT_ENDINGS)
@pytest.mark.parametrize("make", ALONE.values(), ids=ALONE)
def test_a_text_by_itself_that_cannot_be_read_is_named(folder, monkeypatch, make, ending):
    monkeypatch.chdir(folder)
    make(folder / f"own{ending}")
    line = refusal(lambda: corpora.articles(f"{folder}/own{ending}", "evaluation"))
    assert "it must be a readable UTF-8 text file" in line or "unknown corpus" in line


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/not there")], ids=["a pipe", "no link"])
def test_a_split_that_cannot_be_read_is_named(folder, make):
    make(folder / "calibration")
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "a.txt").write_text(article(1))
    assert f"cannot read {folder / 'calibration'}" in refusal(lambda: corpora.articles(str(folder), "evaluation"))


NAMES = {
    "no name": "",
    "blanks": "  ",
    "a blank behind a known name": "wikipedia ",
    "another case": "Wikipedia",
    "a field of a known name": "wikipedia#text",
    "a field of nothing": "#text",
    "nothing of nothing": "#",
    "a text that is not there": "nope.txt",
    "one that is not in the user's home": "~/nope.txt",
    "below a file": "texts/1.txt/2.txt",
    "a name of two lines": "a\nb.txt",
    "a null character": "a\0b.txt",
    "a name of 300 characters": "n" * 300 + ".txt",
    "a device": "/dev/null",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_corpus_that_is_none_is_one_line(folder, name):
    line = refusal(lambda: corpora.articles(name, "evaluation"))
    assert line.startswith(f"unknown corpus {name!r}: choose wikipedia, pg19, c4, alpaca, or the path")
    assert not own_files.state(str(folder / name)) or name in ("", "#", "#text"), "make looks at it without a fault"


@pytest.mark.parametrize("name", ["..", ".", "~", "/"])
def test_a_folder_without_texts_is_one_line(folder, name):
    assert "has no .txt files in it" in refusal(lambda: corpora.articles(name, "evaluation"))


@pytest.mark.parametrize("name", [None, 5, Path("a.txt")], ids=repr)
def test_a_corpus_or_task_that_is_no_text_is_one_line(tokenizer, name):
    assert "a corpus is named by a text" in refusal(lambda: corpora.articles(name, "evaluation"))
    assert "must be a text" in refusal(lambda: token_blocks(budget(name), tokenizer, "evaluation"))
    assert "must be a text" in refusal(lambda: benchmark_items.load(TaskBudget(name), tokenizer))


def test_a_split_that_is_none_is_one_line(folder):
    assert "split must be one of calibration, evaluation" in refusal(lambda: corpora.articles(str(folder), "test"))


LINES = {
    "a list of ten thousand lists": "[" * 10_000,
    "a number of 5000 digits": '{"text": %s}' % ("9" * 5000),
    "half a character": '{"text": "a \\\\ud800 b"}'.replace("\\\\", "\\"),
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_line_that_no_tokenizer_reads_is_named(tmp_path, line):
    (tmp_path / "own.jsonl").write_text(f'{{"text": "good"}}\n{line}\n')
    assert "own.jsonl, line 2: " in refusal(lambda: corpora.articles(f"{tmp_path}/own.jsonl", "evaluation"))


SIZES = [(1, 0), (1, 1), (1, -5), (0, 16), (-1, 16), (1, 16.0), (2.5, 16), (1, "16"), (None, 16), (True, 16),
         (1, float("nan"))]  # fmt: skip


@pytest.mark.parametrize(("blocks", "length"), SIZES)
def test_blocks_that_are_none_are_one_line(folder, tokenizer, blocks, length):
    line = refusal(lambda: packed_blocks(str(folder), tokenizer, "calibration", length, blocks))
    assert f"blocks of {length!r} tokens: give whole numbers, at least 1 block of 2 tokens" in line
    line = refusal(lambda: token_blocks(budget(str(folder), blocks, length), tokenizer, "evaluation"))
    assert line.startswith("TextBudget: ") and (f"not {length!r}" in line or f"not {blocks!r}" in line)


def test_more_text_than_there_is_is_one_line(folder, tokenizer):
    for blocks, length in ((10**6, 16), (1, 10**9)):
        line = refusal(lambda b=blocks, n=length: token_blocks(budget(str(folder), b, n), tokenizer, "evaluation"))
        assert f"not {blocks}: ask for fewer or shorter blocks" in line
    assert "no block of 1000000000" in refusal(lambda: packed_blocks(str(folder), tokenizer, "calibration", 10**9, 1))


ODD = {
    "with a byte order mark": lambda path: path.write_text(f"\ufeff{article(9)}", encoding="utf-8"),
    "with lines as Windows ends them": lambda path: path.write_bytes(article(9).encode() + b"\r\n\r\n"),
    "with null characters": lambda path: path.write_text(article(9).replace("number", "\0")),
    "empty": lambda path: path.write_text(""),
    "the same as another": lambda path: path.write_text(article(1)),
    "a link to a text elsewhere": lambda path: path.symlink_to("../elsewhere.txt"),
    "with a name that is no UTF-8": lambda path: Path(os.fsdecode(os.fsencode(path.parent) + b"/\xff.txt")).write_text(
        article(9)
    ),
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_a_text_that_only_looks_odd_is_read(folder, tokenizer, make):
    (folder.parent / "elsewhere.txt").write_text(article(9))
    make(folder / "z.txt")
    texts = [text for split in corpora.SPLITS for text in corpora.articles(str(folder), split)]
    assert {article(number).strip() for number in range(4)} <= set(texts) and 4 <= len(texts) <= 5
    assert token_blocks(budget(str(folder)), tokenizer, "evaluation").input_ids.shape == (1, 16)


# ------------------------------------------------------------------------------------------------ tasks

ITEM = {"question": "The sky", "choices": ["blue", "loud"], "answer": 0}
ASKS = CHOOSE.replace('"{{question}} is"', "!function own.text")


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a task's file, its item and its code; the file's path."""
    monkeypatch.chdir(tmp_path)

    def written(text=CHOOSE, item=ITEM, code="") -> str:
        (tmp_path / "colours.jsonl").write_text(json.dumps(item) + "\n")
        (tmp_path / "own.py").write_text(code)
        (tmp_path / "mine.yaml").write_text(text)
        return str(tmp_path / "mine.yaml")

    return written


def load(path, tokenizer):
    return benchmark_items.load(TaskBudget(path), tokenizer, trust_remote_code=True)


TASKS = {
    "empty": ("", "is no task that lm-eval reads"),
    "thousands of lists": ("[" * 2_000, "is no task that lm-eval reads"),
    "a list that holds itself": ("task: x\na: &a [*a]", "is no task that lm-eval reads"),
    "a function that is a list": (CHOOSE.replace('"{{question}} is"', "!function [a]"), "names no function"),
    "includes a pipe": (CHOOSE + "include: pipe.yaml", "pipe.yaml is no file"),
    "includes a folder": (CHOOSE + "include: .", "is no task that lm-eval reads"),
    "code in a pipe": (CHOOSE.replace('"{{question}} is"', "!function pipe.text"), "pipe.py is no file"),
    "an empty name": (CHOOSE.replace("task: colours", 'task: " "'), "must define one task, with a name"),
    "a name of two lines": (CHOOSE.replace("task: colours", 'task: "a\\nb"'), "must define one task, with a name"),
}


@pytest.mark.parametrize(("text", "words"), TASKS.values(), ids=TASKS)
def test_a_task_that_is_none_is_one_line(write, tokenizer, tmp_path, text, words):
    for name in ("pipe.yaml", "pipe.py"):
        os.mkfifo(tmp_path / name)
    path = write(text)
    assert words in refusal(lambda: load(path, tokenizer))


ANSWERS = [-1, 2, "x", "0", None, 0.5]


@pytest.mark.parametrize("answer", ANSWERS, ids=repr)
def test_an_answer_that_is_none_of_the_choices_is_named_and_not_counted_as_wrong(write, tokenizer, answer):
    path = write(item=ITEM | {"answer": answer})
    assert refusal(lambda: load(path, tokenizer))


CODE = {
    "ends the program": ("import sys\nsys.exit(3)", "mine.yaml: 3"),
    "ends the program when it is called": ("def text(doc):\n    raise SystemExit('bye')", "SystemExit: bye"),
    "raises over two lines": ("raise RuntimeError('boom\\nand more')", "boom and more"),
    "is no Python": ("def text(doc:", "never closed"),
    "gives no text": ("def text(doc):\n    return None", "Context is not a string"),
}


@pytest.mark.parametrize(("code", "words"), CODE.values(), ids=CODE)
def test_code_of_a_task_that_fails_is_one_line(write, tokenizer, code, words):
    path = write(ASKS, code=code)
    assert words in refusal(lambda: load(path, tokenizer))


@pytest.mark.parametrize("name", ["nope.yaml", "a\0.yaml", "n" * 300 + ".yaml", "a\nb.yaml"])
def test_a_task_file_that_is_not_there_is_one_line(tokenizer, name):
    assert f"task {name!r}: no such file" in refusal(lambda: load(name, tokenizer))


@pytest.mark.parametrize("name", ["/", ".", "..", ""])
def test_a_task_is_not_looked_for_all_over_the_disk(name, monkeypatch):
    looked_in = set()

    def manager(include_path, include_defaults=True):
        looked_in.update([include_path] if isinstance(include_path, str) else include_path)
        return SimpleNamespace(all_tasks=())

    monkeypatch.setattr(benchmark_items, "TaskManager", manager)
    benchmark_items.task_manager(name)
    theirs = Path(benchmark_items.lm_eval.__file__).parent / "tasks"
    assert looked_in == {str(paths.TASKS), str(theirs / "super_glue")}


# ------------------------------------------------------------------------------------------------ what changes in place


def same_times(path: Path, change) -> None:
    """Changes a file, whose size and times stay, as rsync or an archive may leave it."""
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns


def replaced(old: str, new: str):
    return lambda path: path.write_text(path.read_text().replace(old, new))


MAPS = CHOOSE + "process_docs: !function own.prepare\n"
BY_ONE = "def one(doc):\n    return doc | {'question': 'blue?'}\ndef prepare(docs):\n    return docs.map(one)\n"
CHANGES = {
    "its data": (CHOOSE, "", "colours.jsonl", replaced("sky", "sea"), "The sea is"),
    "the right answer": (CHOOSE, "", "colours.jsonl", replaced('"answer": 0', '"answer": 1'), "The sky is"),
    "its text": (CHOOSE, "", "mine.yaml", replaced("}} is", "}} as"), "The sky as"),
    "its code": (ASKS, "def text(doc):\n    return 'a'\n", "own.py", replaced("'a'", "'b'"), "b"),
    "code that prepares all items": (MAPS, BY_ONE, "own.py", replaced("blue?", "dark?"), "dark? is"),
}


@pytest.mark.parametrize(("text", "code", "file", "change", "asked"), CHANGES.values(), ids=CHANGES)
def test_a_task_that_changed_in_place_is_measured_anew(write, tokenizer, tmp_path, text, code, file, change, asked):
    path = write(text, code=code)
    before = load(path, tokenizer)
    assert load(path, tokenizer).fingerprint == before.fingerprint
    same_times(tmp_path / file, change)
    after = load(path, tokenizer)
    assert tokenizer.decode(after.requests[0].context_ids) == asked
    assert after.fingerprint != before.fingerprint


@pytest.mark.parametrize("name", ["texts", "own.jsonl", "own.txt"])
def test_a_text_that_changed_in_place_is_measured_anew(folder, tokenizer, name):
    path = folder.parent / name
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": article(number)}) + "\n" for number in range(4)))
    elif path.suffix == ".txt":
        path.write_text("\n\n".join(f"{number} " + "here " * 2000 for number in range(4)))

    def fingerprints():
        yield packed_blocks(str(path), tokenizer, "calibration", 16, 10**6).fingerprint
        for split in corpora.SPLITS:
            yield token_blocks(budget(str(path), 2), tokenizer, split).fingerprint

    before = list(fingerprints())
    for file in path.iterdir() if path.is_dir() else [path]:
        same_times(file, replaced("here", "nigh"))
    assert not set(before) & set(fingerprints())


def test_cached_tokens_are_those_of_this_very_tokenizer(tmp_path, monkeypatch):
    """Also of one with the same vocabulary that cuts texts in another way."""
    ours, other = (AutoTokenizer.from_pretrained(smollm2.folder()) for _ in range(2))
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # digits stay together
    assert ours.get_vocab() == other.get_vocab()
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(hub, "snapshot", lambda *_: tmp_path)
    rows = [{"instruction": f"Add {i}.", "input": "", "output": "\n\n2 and 1984." * 9} for i in range(8)]
    (tmp_path / corpora.ALPACA_FILE).write_text(json.dumps(rows))
    found = [packed_blocks("alpaca", one, "calibration", 64, 4).fingerprint for one in (ours, other, ours, other)]
    assert found[0] == found[2] != found[1] == found[3]
    assert len(list(paths.CACHE.glob("tokens-*"))) == 2


@pytest.mark.parametrize("name", ["~nosuchuser/nope.txt", "~nosuchuser/a.yaml"])
def test_the_home_of_nobody_is_one_line(tokenizer, name):
    act = partial(corpora.articles, name, "evaluation") if name.endswith(".txt") else partial(load, name, tokenizer)
    assert f"{name!r}: there is no home folder of ~nosuchuser" in refusal(act)
