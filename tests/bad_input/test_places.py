"""Places that a checkpoint cannot be written to, and places that look odd and can."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import tiny_models
from layer_redundancy.core import cache
from layer_redundancy.models import surgery
from layer_redundancy.models.stack import decoder_stack
from layer_redundancy.pruning import checkpoint
from layer_redundancy.train import training_loop
from layer_redundancy.train.training_loop import Optimization
from one_line import refusal


@pytest.fixture(scope="module")
def model():
    return tiny_models.build("llama")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with things in it that are in the way; the user's home and working directory."""
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_text("precious")
    (tmp_path / "empty").mkdir()
    (tmp_path / "two\nlines").mkdir()
    (tmp_path / "nowhere").symlink_to(tmp_path / "not there")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


PLACES = {
    "no name": ("", "cannot write to '': give a folder"),
    "None": (None, "cannot write to None: give a folder"),
    "a number": (5, "cannot write to 5: give a folder"),
    "the working directory": (".", "exists: choose another folder"),
    "the folder above": ("..", "exists: choose another folder"),
    "the root": ("/", "exists: choose another folder"),
    "a folder with something in it": ("folder", "exists: choose another folder"),
    "an empty folder": ("empty", "exists: choose another folder"),
    "a name of two lines that exists": ("two\nlines", r"'two\nlines' exists"),
    "a file": ("file", "file exists: choose another folder"),
    "below a file": ("file/new", "it would lie in a file"),
    "far below a file": ("file/new/er", "it would lie in a file"),
    "a link that leads nowhere": ("nowhere", "nowhere exists: choose another folder"),
    "below a link that leads nowhere": ("nowhere/new", "nowhere is no folder"),
    "a link to itself": ("loop", "loop exists: choose another folder"),
    "below a link to itself": ("loop/new", "Too many levels of symbolic links"),
    "a pipe": ("pipe", "pipe exists: choose another folder"),
    "below a pipe": ("pipe/new", "it would lie in a file"),
    "a device": ("/dev/null", "/dev/null exists"),
    "below a device": ("/dev/null/new", "it would lie in a file"),
    "a name of 300 characters": ("n" * 300, "File name too long"),
    "a name of 300 characters in a new folder": ("new/" + "n" * 300, "the name is too long"),
    "a path of 5000 characters": ("/".join(["n" * 100] * 50), "File name too long"),
    "a null character": ("a\0b", r"cannot write 'a\x00b': embedded null byte"),
    "the home of an unknown user": ("~nosuchuser/new", "cannot write ~nosuchuser/new: "),
}


@pytest.mark.parametrize(("target", "words"), PLACES.values(), ids=PLACES)
def test_a_place_that_cannot_be_written_to_is_one_line_before_anything_is_done(place, target, words):
    before = sorted(path.name for path in place.rglob("*"))
    line = refusal(lambda: surgery.export(None, None, [0], target))  # asked before the model is looked at
    assert words in line
    assert sorted(path.name for path in place.rglob("*")) == before
    assert (place / "file").read_text() == (place / "folder" / "x").read_text() == "precious"


ODD = {
    "inside the model's own folder": "source/inside",
    "in folders that are not there": "a/b/c",
    "with a slash at its end": "new/",
    "a name of 255 characters": "n" * 255,
    "quotes, a dollar and two lines": "ü'\"\n$x {a}",
    "a point before it": ".new",
    "in the user's home": "~/new",
}


@pytest.mark.parametrize("target", ODD.values(), ids=ODD)
def test_a_place_that_only_looks_odd_is_written_to(place, model, target):
    (place / "source").mkdir()
    folder = surgery.export(model, None, [0], target)
    expected = place / target.removeprefix("~/")
    assert folder.resolve() == expected.resolve() and (expected / "model.safetensors").is_file()
    assert not [path.name for path in place.rglob(".tmp*")]
    assert len(decoder_stack(model)) == 5


RECORD = {"base_fingerprint": "a", "measure": "b", "removed_blocks": [1], "healed": None, "training": None,
          "quantized_to_bits": None, "profile": {}}  # fmt: skip
RECORDS = {
    "a pipe that nobody writes to": (os.mkfifo, "is no pruning.json: give a folder that"),
    "none": (None, "No such file"),
    "a folder": (Path.mkdir, "is no pruning.json: give a folder that"),
    "a link that leads nowhere": (lambda file: file.symlink_to("/not there"), "No such file"),
    "a link to itself": (lambda file: file.symlink_to(file), "Too many levels"),
    "empty": (b"", "is no pruning.json"),
    "cut off": (b'{"measure": "blo', "is no pruning.json"),
    "no UTF-8": (b"\xff\xfe{}", "is no pruning.json"),
    "a list": (b"[1]", "lacks everything"),
    "another JSON": (b'{"a": 1}', "lacks base_fingerprint"),
    "no list of blocks": (json.dumps(RECORD | {"removed_blocks": None}).encode(), "removed_blocks is none that"),
    "blocks that are texts": (json.dumps(RECORD | {"removed_blocks": ["1"]}).encode(), "removed_blocks is none that"),
    "no profile": (json.dumps(RECORD | {"profile": None}).encode(), "profile is none that"),
    "bits in words": (json.dumps(RECORD | {"quantized_to_bits": "four"}).encode(), "quantized_to_bits is none that"),
    "healed by a name": (json.dumps(RECORD | {"healed": "lora"}).encode(), "healed is none that"),
}


@pytest.mark.parametrize(("content", "words"), RECORDS.values(), ids=RECORDS)
def test_a_pruning_json_that_is_none_is_one_line(tmp_path, content, words):
    file = tmp_path / checkpoint.RECORD
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        content(file)
    assert words in refusal(lambda: checkpoint.read(tmp_path))


def test_a_pruning_json_with_a_name_too_long_is_one_line():
    assert "File name too long" in refusal(lambda: checkpoint.read(Path("n" * 300)))


@pytest.fixture
def full_disk():
    """Files of this process grow no longer than this many bytes, as on a disk that is about to be full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_export_that_the_disk_has_no_room_for_is_one_line_and_leaves_nothing(tmp_path, model, full_disk):
    full_disk(30_000)
    line = refusal(lambda: surgery.export(model, None, [0], tmp_path / "new"))
    assert line == f"cannot write {tmp_path / 'new'}: File too large"
    assert not list(tmp_path.iterdir()) and len(decoder_stack(model)) == 5


def test_the_errors_of_libraries_in_rust_are_told_apart():
    assert cache.of_the_disk(Exception("I/O error: No space left on device (os error 28)")) == "No space left on device"
    assert cache.of_the_disk(Exception("No space left in the model")) is None


@pytest.mark.slow
def test_a_checkpoint_of_a_training_that_torch_cannot_write_is_one_line(tmp_path, full_disk, monkeypatch):
    from layer_redundancy.train import trainer

    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0)
    model = tiny_models.build("llama")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.4." in name)
    examples = [{"input_ids": row} for row in tiny_models.tokens(4)]
    weights = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
    full_disk(weights + 10_000)  # enough for the weights, not for the optimizer's two numbers of each
    line = refusal(lambda: training_loop.fit(model, examples, Optimization(2, 2, 1e-3), tmp_path / "a"))
    assert "cannot write a checkpoint to" in line and "is the disk full?" in line


@pytest.mark.slow
def test_what_a_killed_export_leaves_goes_with_the_next(tmp_path, model):
    program = """
import sys, pathlib, time
sys.path.insert(0, sys.argv[2])
import tiny_models
from layer_redundancy.models import surgery
def endless(model, folder):
    print("written", flush=True)
    time.sleep(600)
surgery._check_export = endless
surgery.export(tiny_models.build("llama"), None, [0], pathlib.Path(sys.argv[1]) / "new")
"""
    here = str(Path(__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path), here], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "written\n"
        (left,) = tmp_path.iterdir()
        os.utime(left, (0, 0))  # as old as can be, and alive
        surgery.export(model, None, [1], tmp_path / "beside")
        assert (left / "new" / "model.safetensors").is_file()
        process.send_signal(signal.SIGKILL)
    assert left.is_dir()
    surgery.export(model, None, [0], tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beside", "new"]
