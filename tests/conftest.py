import os

# Set before anything imports the hub's client: tests reach no network, and a model that is not there fails at once.
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of notebooks that tests execute

import gc
import json
import logging
from pathlib import Path

import pytest
import torch

# Tiny models gain nothing from threads that wait for each other.
torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption(
        "--every-architecture", action="store_true", help="try all architectures, and write docs/architectures.md anew"
    )
    parser.addoption("--gemma", action="store_true", help="compare Gemma-3-270m, downloaded if need be, with llama.cpp")
    parser.addoption("--device", default="cpu", help="where sweeps are compared with plain forwards: cuda, or cpu")


@pytest.fixture
def remarks(caplog):
    """Gives what the package has logged since it was last asked, one line a remark."""
    caplog.set_level(logging.INFO, logger="layer_redundancy")

    def said():
        found = [r.getMessage() for r in caplog.records if r.name.startswith("layer_redundancy.")]
        caplog.clear()
        return "".join(f"{line}\n" for line in found)

    return said


def pytest_collection_finish():
    # What was imported stays, and is not looked through again whenever garbage is collected: that takes a tenth of a
    # second, and some libraries do it at every tensor that they load.
    gc.freeze()


def pytest_sessionfinish(session):
    """Writes the table of architectures from what all workers have left."""
    if not session.config.getoption("--every-architecture") or hasattr(session.config, "workerinput"):
        return
    from architectures import outcomes

    root = Path(session.config.rootpath)
    found = {
        file.stem: {column: outcomes.Outcome(**outcome) for column, outcome in json.loads(file.read_text()).items()}
        for file in (root / "build" / "architectures").glob("*.json")
    }
    table = root / "docs" / "architectures.md"
    head = table.read_text().partition("| model type")[0]
    table.write_text(head + outcomes.table(found))
