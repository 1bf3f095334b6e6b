"""A cache and a package index of a test's own."""

import pytest

from layer_redundancy.core import paths


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the test's own."""
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    paths.CACHE.mkdir()
    return paths.CACHE


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that is the only package index pip sees, so that these tests need no network."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", folder.as_uri())
    return folder
