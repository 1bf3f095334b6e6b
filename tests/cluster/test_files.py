"""Folders between a driver's cache and a worker's, which are two folders of one process here."""

from pathlib import Path

import pytest
from distributed import Client, LocalCluster

from layer_redundancy.cluster import files
from layer_redundancy.core import cache, paths
from layer_redundancy.core.errors import StudyError

CONTENT = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 5, "more/empty": b"", "more/one": b"1"}


@pytest.fixture(autouse=True)
def small_chunks(tmp_path, monkeypatch):
    """A cache of the test's own, and chunks so small that a file is several, the last one a part of one."""
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(files, "CHUNK", 500)
    monkeypatch.setattr(files, "_receiving", {})
    paths.CACHE.mkdir()


@pytest.fixture(scope="module")
def client():
    """A client of a worker in this process, and its address."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture
def worker(client) -> str:
    return next(iter(client.scheduler_info()["workers"]))


@pytest.fixture
def folder(tmp_path) -> Path:
    return written(tmp_path / "somewhere" / "model")


def written(folder: Path) -> Path:
    for name, content in CONTENT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Files by name, without the sums that the cache keeps beside them."""
    every = {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    return {name: of for name, of in every.items() if name != cache.SUMS}


def left_over() -> list[str]:
    """Names in the cache that are of nothing whole."""
    return [path.name for path in paths.CACHE.iterdir() if path.name.startswith(".")]


def test_files_are_named_with_their_sizes_and_read_in_chunks(folder):
    assert files.files_of(str(folder)) == [(name, len(CONTENT[name])) for name in sorted(CONTENT)]
    chunks = [files.read(str(folder), "model.safetensors", start) for start in range(0, 1280, 500)]
    assert [len(chunk) for chunk in chunks] == [500, 500, 280]
    assert b"".join(chunks) == CONTENT["model.safetensors"]


def test_a_folder_has_its_name_when_it_is_whole():
    assert files.begin("received-1") == "begun"
    files.write("received-1", "more/one", b"1")
    files.write("received-1", "more/one", b"2")
    assert files.folder_in_cache("received-1") == ""
    files.end("received-1", whole=True)
    assert content(paths.CACHE / "received-1") == {"more/one": b"12"}
    assert files.folder_in_cache("received-1") == str(paths.CACHE / "received-1")
    assert cache.has_sums(paths.CACHE / "received-1") and left_over() == []


def test_what_is_there_or_on_its_way_is_not_begun_again():
    assert files.begin("received-1") == "begun"
    assert files.begin("received-1") == "else"
    files.write("received-1", "one", b"1")
    files.end("received-1", whole=True)
    assert files.begin("received-1") == "there"


def test_what_nobody_sends_any_more_is_begun_anew(client, worker, folder, monkeypatch):
    """A driver was killed while it sent a folder."""
    monkeypatch.setattr(files, "FORSAKEN", 0.5)
    assert files.begin("received-1") == "begun"
    files.write("received-1", "config.json", b"half of ")
    assert files.send(client, worker, str(folder), "received-1") == sum(map(len, CONTENT.values()))
    assert content(paths.CACHE / "received-1") == CONTENT and left_over() == []


def test_what_is_given_up_leaves_nothing_and_may_begin_again():
    assert files.begin("received-1") == "begun"
    files.write("received-1", "one", b"1")
    files.end("received-1", whole=False)
    assert list(paths.CACHE.iterdir()) == []
    assert files.begin("received-1") == "begun"
    files.end("received-1", whole=False)


def test_another_worker_of_the_same_cache_may_be_faster():
    assert files.begin("received-1") == "begun"
    files.write("received-1", "one", b"ours")
    (paths.CACHE / "received-1").mkdir()
    (paths.CACHE / "received-1" / "one").write_bytes(b"theirs")
    files.end("received-1", whole=True)
    assert content(paths.CACHE / "received-1") == {"one": b"theirs"} and left_over() == []


def test_a_folder_that_was_made_is_checked_when_it_has_come(folder):
    """Sums that were written where it was made come with it."""
    cache.checked(folder)
    assert files.begin("quantized-1") == "begun"
    for name in (*CONTENT, cache.SUMS):
        whole = (folder / name).read_bytes()
        files.write("quantized-1", name, whole[:-1] if name == "config.json" else whole)
    with pytest.raises(StudyError, match=r"config\.json is not as it was made"):
        files.end("quantized-1", whole=True)
    assert list(paths.CACHE.iterdir()) == []


def test_a_folder_is_sent_once(client, worker, folder):
    sent = files.send(client, worker, str(folder), "received-1")
    assert sent == sum(map(len, CONTENT.values()))
    assert content(paths.CACHE / "received-1") == CONTENT
    assert files.send(client, worker, str(folder), "received-1") == 0


def test_a_folder_that_is_nowhere_is_one_line(client, worker, tmp_path):
    with pytest.raises(StudyError, match=r"has no copy of .*nowhere, and there is none here to send"):
        files.send(client, worker, str(tmp_path / "nowhere"), "received-1")


def test_a_sending_that_fails_leaves_nothing(client, worker, folder, monkeypatch):
    def fails(name, start, *_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "read", fails)
    with pytest.raises(OSError, match="No space"):
        files.send(client, worker, str(folder), "received-1")
    assert list(paths.CACHE.iterdir()) == []


def test_a_folder_is_fetched_once(client, worker, tmp_path, monkeypatch):
    theirs = written(tmp_path / "theirs" / "healed-1")
    monkeypatch.setattr(files, "folder_in_cache", lambda name: str(theirs) if name == theirs.name else "")
    with pytest.raises(StudyError, match=r"has lost healed-2"):
        files.fetch(client, worker, "healed-2")
    assert files.fetch(client, worker, "healed-1") == sum(map(len, CONTENT.values()))
    assert content(paths.CACHE / "healed-1") == CONTENT and left_over() == []
    assert files.fetch(client, worker, "healed-1") == 0


def test_a_fetching_that_fails_leaves_nothing(client, worker, tmp_path, monkeypatch):
    theirs = written(tmp_path / "theirs" / "healed-1")
    monkeypatch.setattr(files, "folder_in_cache", lambda name: str(theirs))
    monkeypatch.setattr(files, "files_of", lambda folder: [("config.json", 2), ("gone", 1)])
    with pytest.raises(FileNotFoundError):
        files.fetch(client, worker, "healed-1")
    assert list(paths.CACHE.iterdir()) == []
