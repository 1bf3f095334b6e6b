"""What the cache makes, and where it is only read."""

import threading
from pathlib import Path

import pytest

from layer_redundancy.core import cache, paths


@pytest.fixture(autouse=True)
def empty(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(cache, "made_here", [])


def write(target: Path) -> None:
    target.mkdir()
    (target / "one").write_text("1")


def fail(target: Path) -> None:
    raise AssertionError("made where it should be read")


def test_what_is_not_there_is_not_made_and_named():
    with cache.only_read(), pytest.raises(cache.NotMade, match="thing-") as caught:
        cache.made_once("thing", {"a": 1}, fail)
    assert caught.value.target == cache.made_folder("thing", {"a": 1})
    assert not paths.CACHE.exists() and cache.made_here == []


def test_what_is_there_is_read():
    made = cache.made_once("thing", {"a": 1}, write)
    with cache.only_read():
        assert cache.made_once("thing", {"a": 1}, fail) == made
        with pytest.raises(cache.NotMade):
            cache.made_once("thing", {"a": 2}, fail)


def test_afterwards_things_are_made_again_whatever_was_raised():
    with pytest.raises(RuntimeError), cache.only_read():
        raise RuntimeError
    with cache.only_read():
        with cache.only_read():
            pass
        with pytest.raises(cache.NotMade):
            cache.made_once("thing", {}, fail)
    assert cache.made_once("thing", {}, write).is_dir()


def test_another_thread_makes_meanwhile():
    made = []
    with cache.only_read():
        thread = threading.Thread(target=lambda: made.append(cache.made_once("thing", {}, write)))
        thread.start()
        thread.join()
        assert cache.made_once("thing", {}, fail) == made[0]


def test_what_was_made_or_found_is_remembered_in_order():
    one, other = cache.made_once("thing", {"a": 1}, write), cache.made_once("thing", {"a": 2}, write)
    cache.made_once("thing", {"a": 1}, fail)
    assert cache.made_here == [one, other, one]
