"""The hub's troubles, made by a real server on this machine: one line each, and nothing that was downloaded is lost."""

import errno

import httpx
import pytest
from huggingface_hub import errors

from layer_redundancy.core.errors import StudyError
from layer_redundancy.data import hub
from rehearsal import made_up_data, tiny_models
from rehearsal.local_hub import LocalHub, Trouble
from rehearsing.test_local_hub import client

LLAMA, GPTQ = tiny_models.LLAMA_7B, tiny_models.GPTQ


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    tiny_models.write(root)
    made_up_data.write(root)
    return root


@pytest.fixture
def served(root):
    with LocalHub(root) as server:
        yield server


# Whatever is attempted, what a user would read.
TOLD = """
from layer_redundancy.config import profiles
from layer_redundancy.config.profiles import TaskBudget
from layer_redundancy.core.errors import StudyError
from layer_redundancy.data import corpora, hub, paper_benchmarks
from layer_redundancy.data import benchmark_items
from layer_redundancy.core import paths
from layer_redundancy.models import checkpoints, loading
REHEARSAL = str(paths.ROOT / "rehearsal" / "rehearsal.toml")
hub.RETRIES = 0
def line(call):
    try:
        call()
    except StudyError as error:
        return str(error)
def load(name):
    return line(lambda: loading.load(checkpoints.identify(profiles.get(REHEARSAL, model=name))))
"""


@pytest.mark.slow
def test_gated_names_what_asks_for_no_account(served, tmp_path):
    served.troubles[LLAMA] = Trouble("gated")
    (told,) = client(served, tmp_path, TOLD + f"told([load({LLAMA!r})])")
    assert told.startswith(f"{LLAMA} is gated: accept its licence") and "\n" not in told
    assert "model='NousResearch/Llama-2-7b-hf'" in told and "hf auth login" in told


@pytest.mark.slow
def test_missing_unknown_and_limited(served, tmp_path):
    served.troubles[LLAMA] = Trouble("missing")
    served.troubles[GPTQ] = Trouble("unknown")
    code = (
        TOLD + f"told([load({LLAMA!r}), line(lambda: checkpoints.identify(profiles.get(REHEARSAL, {GPTQ!r}, 'v9')))])"
    )
    missing, unknown = client(served, tmp_path, code.replace(f"{GPTQ!r}, 'v9'", f"model={GPTQ!r}, revision='v9'"))
    assert missing.startswith(f"{LLAMA}: no such repository or revision")
    assert unknown.startswith(f"{GPTQ}: no such repository or revision")


@pytest.mark.slow
def test_a_data_set_that_the_hub_refuses_is_one_line(served, tmp_path):
    served.troubles["datasets/emozilla/pg19"] = Trouble("limited", wait=7)
    served.troubles["datasets/baber/piqa"] = Trouble("missing")
    served.troubles["files"] = Trouble("limited", wait=3)
    code = """
    told([line(corpora.pg19_files), line(lambda: benchmark_items.fetch(TaskBudget("piqa"))), line(paper_benchmarks.c3)])
    """
    limited, missing, raw = client(served, tmp_path, TOLD + code.replace("\n    ", "\n"))
    assert limited.startswith("emozilla/pg19: the hub is asked too often (429) and says to come back in 7 s")
    assert missing.startswith("task piqa (baber/piqa)") and "\n" not in missing
    assert "is asked too often (429) and says to come back in 3 s" in raw


@pytest.mark.slow
def test_a_raw_file_that_breaks_off_goes_on_where_it_was(served, tmp_path):
    served.troubles["files"] = Trouble("cut", times=1, after=500)
    first, again = client(
        served, tmp_path, TOLD + "told([line(paper_benchmarks.c3), hub.file(paper_benchmarks.C3_URL).stat().st_size])"
    )
    assert "the download broke off" in first and "goes on where it was" in first
    (source,) = (served.root / "files" / "nlpdata").rglob("*.json")
    assert again == source.stat().st_size
    assert served.bodies == again  # no byte twice
    with_retry = "hub.RETRIES, hub.RETRY_SECONDS = 2, 0\ntold(len(paper_benchmarks._lines(paper_benchmarks.CHID_URL)))"
    served.troubles["files"] = Trouble("cut", times=2, after=100)
    assert client(served, tmp_path, TOLD + with_retry) > 0


@pytest.mark.slow
def test_out_of_reach_with_nothing_in_the_cache(served, tmp_path):
    told = client(served, tmp_path, TOLD + f"told([load({LLAMA!r}), line(paper_benchmarks.c3)])", offline=True)
    assert all("is not in the local cache and the hub cannot be reached" in line for line in told)
    assert "model='smollm2-135m-instruct'" in told[0]
    assert not served.requests


def answered(status, **headers):
    response = httpx.Response(status, headers=headers, request=httpx.Request("GET", "https://hub.example/x"))
    return errors.HfHubHTTPError("no\nmore", response=response)


@pytest.mark.parametrize(
    "error, line",
    [
        (OSError(errno.ENOSPC, "No space left on device"), "a: the disk is full: free some space, or set HF_HOME"),
        (answered(429, **{"Retry-After": "30"}), "come back in 30 s"),
        (answered(503), "a: the hub answered no: try again later"),
        (httpx.RemoteProtocolError("peer closed connection"), "a: the download broke off"),
        (OSError("Consistency check failed: file should be of size 5 but has size 3"), "a: the download broke off"),
        (ConnectionError("Couldn't reach it"), "hub cannot be reached"),
    ],
)
def test_each_trouble_has_its_line(error, line):
    assert line in hub.one_line(error, "a")
    wrapped = RuntimeError("something else")
    wrapped.__cause__ = error  # as data sets' loaders do it
    assert line in hub.one_line(wrapped, "a")
    with pytest.raises(StudyError), hub.errors("a"):
        raise wrapped


def test_what_is_no_trouble_of_the_hub_is_left_as_it_is():
    assert hub.one_line(ValueError("bad config"), "a") is None
    with pytest.raises(ValueError, match="bad config"), hub.errors("a"):
        raise ValueError("bad config")
