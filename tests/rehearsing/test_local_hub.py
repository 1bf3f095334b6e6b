"""The hub on this machine, asked by the hub's own clients, each in a process of its own: they read where the hub is
when they are imported."""

import http.client
import json
import os
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request

import pytest

from layer_redundancy.core import paths
from rehearsal.local_hub import COMMIT_FILE, LocalHub, Trouble, place

COMMIT, OTHER = "a" * 40, "b" * 40
LARGE = bytes(range(256)) * 4000  # about a megabyte


@pytest.fixture
def hub(tmp_path):
    model = place(tmp_path / "hub", "models", "some/model")
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(LARGE)
    (model / "nested" / "deep").mkdir(parents=True)
    (model / "nested" / "deep" / "a b.txt").write_text("deep")
    (model / COMMIT_FILE).write_text(COMMIT)
    data = place(tmp_path / "hub", "datasets", "some/data")
    card = "---\nconfigs:\n" + "".join(
        f"- config_name: {name}\n  data_files:\n  - split: test\n    path: {name}/*.jsonl\n" for name in ("one", "two")
    )
    (data / "README.md").write_text(f"{card}---\n")
    for name in ("one", "two"):
        (data / name).mkdir()
        (data / name / "rows.jsonl").write_text("".join(json.dumps({"name": name, "i": i}) + "\n" for i in range(3)))
    (tmp_path / "hub" / "files" / "owner").mkdir(parents=True)
    (tmp_path / "hub" / "files" / "owner" / "raw.json").write_text("0123456789")
    with LocalHub(tmp_path / "hub") as hub:
        yield hub


def client(hub, home, code, offline=False, arguments=()):
    """What a process prints last, as JSON, whose hub this is and whose cache is below `home`."""
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"} | hub.environment
    environment |= {"HF_HOME": str(home / "hf"), "LAYER_REDUNDANCY_WORK": str(home), "HF_TOKEN": ""}
    environment |= {"PYTHONPATH": str(paths.ROOT / "src"), "DISABLE_SAFETENSORS_CONVERSION": "1"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"} if offline else {}
    code = "import json\ndef told(x): print(json.dumps(x), flush=True)\n" + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, cwd=home, capture_output=True, text=True
    )
    assert not done.returncode, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def ask(hub, path, method="GET", **headers):
    """Status, headers and body, without a client."""
    request = urllib.request.Request(hub.endpoint + path, method=method, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def test_what_is_told_of_a_repository(hub, tmp_path):
    told = client(
        hub, tmp_path,
        """
        from huggingface_hub import HfApi
        api, name = HfApi(), "some/model"
        info = api.model_info(name, files_metadata=True)
        tree = lambda **options: [x.path for x in api.list_repo_tree(name, **options)]
        paths = api.get_paths_info(name, ["nested", "model.safetensors", "nowhere"])
        told({
            "commit": info.sha, "gated": info.gated,
            "sizes": {file.rfilename: [file.size, file.lfs is not None] for file in info.siblings},
            "files": api.list_repo_files(name), "top": tree(), "all": tree(recursive=True),
            "inside": tree(path_in_repo="nested", recursive=True),
            "paths": [[x.path, type(x).__name__] for x in paths], "sha": paths[1].lfs.sha256,
            "other": api.model_info(name, revision="b" * 40).sha, "branch": api.model_info(name, revision="x").sha,
            "refs": [x.target_commit for x in api.list_repo_refs(name).branches],
            "exists": [api.file_exists(name, "config.json"), api.file_exists(name, "nothing.json")],
            "repositories": [api.repo_exists(name), api.repo_exists("some/other")],
            "data": api.dataset_info("some/data").sha,
        })
        """,
    )  # fmt: skip
    files = ["config.json", "model.safetensors", "nested/deep/a b.txt"]
    assert told["commit"] == told["branch"] == told["refs"][0] == COMMIT and told["other"] == OTHER
    assert told["files"] == files and told["gated"] is False
    assert told["sizes"] == {"config.json": [2, False], files[1]: [len(LARGE), True], files[2]: [4, False]}
    assert sorted(told["top"]) == ["config.json", "model.safetensors", "nested"]
    assert sorted(told["all"]) == sorted([*files, "nested", "nested/deep"])
    assert sorted(told["inside"]) == ["nested/deep", files[2]]
    assert told["paths"] == [["nested", "RepoFolder"], ["model.safetensors", "RepoFile"]] and len(told["sha"]) == 64
    assert told["exists"] == told["repositories"] == [True, False]
    assert len(told["data"]) == 40 and told["data"] != COMMIT  # by its content


def test_downloads(hub, tmp_path):
    code = """
        from pathlib import Path
        from huggingface_hub import hf_hub_download, snapshot_download
        some = snapshot_download("some/model", revision="b" * 40, allow_patterns=["*.json", "nested/*"])
        large = Path(hf_hub_download("some/model", "model.safetensors"))
        told([sorted(str(x.relative_to(some)) for x in Path(some).rglob("*") if x.is_file()), Path(some).name,
              large.parent.name, large.stat().st_size])
        """
    expected = [["config.json", "nested/deep/a b.txt"], OTHER, COMMIT, len(LARGE)]
    assert client(hub, tmp_path, code) == expected
    assert hub.bodies == len(LARGE) + 2 + 4
    assert not hub.asked("GET .*README") and len(hub.asked("GET .*safetensors")) == 1
    hub.forget()
    assert client(hub, tmp_path, code, offline=True) == expected and not hub.requests


def test_data_sets(hub, tmp_path):
    code = """
        from datasets import get_dataset_config_names, load_dataset
        names = [] if OFFLINE else get_dataset_config_names("some/data")
        rows = load_dataset("some/data", "two", split="test")[:]
        streamed = [] if OFFLINE else list(load_dataset("some/data", "one", split="test", streaming=True))
        told([names, rows, streamed])
        """
    rows = {"name": ["two"] * 3, "i": [0, 1, 2]}
    told = client(hub, tmp_path, "OFFLINE = False\n" + textwrap.dedent(code))
    assert told == [["one", "two"], rows, [{"name": "one", "i": i} for i in range(3)]]
    hub.forget()
    assert client(hub, tmp_path, "OFFLINE = True\n" + textwrap.dedent(code), offline=True)[1] == rows
    assert not hub.requests


DOWNLOAD = """
    from huggingface_hub import hf_hub_download, snapshot_download
    import os, time
    time.sleep = lambda seconds: None  # before the client tries again
    def attempt(file, **options):
        try:
            return os.path.getsize(hf_hub_download("some/model", file, **options))
        except Exception as error:
            return type(error).__name__
    """


def attempts(hub, home, *lines):
    return client(hub, home, textwrap.dedent(DOWNLOAD) + f"told([{', '.join(lines)}])")


def test_a_download_that_breaks_off_goes_on_where_it_was(hub, tmp_path):
    chunk = 10 * 2**20  # what the client reads before it writes
    (hub.root / "models" / "some--model" / "model.safetensors").write_bytes(bytes(2 * chunk + 7))
    hub.troubles["some/model"] = Trouble("cut", times=1, after=chunk + 1000)
    assert attempts(hub, tmp_path, "attempt('model.safetensors')") == [2 * chunk + 7]
    assert len(hub.asked("GET /cdn/")) == 2 and hub.bodies == 2 * chunk + 7 + 1000


def test_a_download_that_always_breaks_off(hub, tmp_path):
    hub.troubles["some/model"] = Trouble("cut", after=1000)
    (error,) = attempts(hub, tmp_path, "attempt('model.safetensors')")
    assert error in ("RemoteProtocolError", "OSError", "LocalEntryNotFoundError")
    hub.troubles.clear()
    assert attempts(hub, tmp_path, "attempt('model.safetensors')") == [len(LARGE)]


def test_refusals(hub, tmp_path):
    def names(trouble, *lines):
        hub.troubles["some/model"] = trouble
        return attempts(hub, tmp_path, *(lines or ("attempt('config.json')",)))

    assert names(Trouble("gated")) == ["GatedRepoError"]
    assert ask(hub, f"/some/model/resolve/{OTHER}/config.json", Authorization="Bearer x")[0] == 403
    status, _, body = ask(hub, "/api/models/some/model")  # what there is may be known
    assert status == 200 and json.loads(body)["gated"] == "manual"
    assert names(Trouble("missing")) == ["RepositoryNotFoundError"]
    known = ask(hub, "/api/models/some/model", Authorization="Bearer x")
    assert known[0] == 404 and known[1]["X-Error-Code"] == "RepoNotFound"
    unknown = names(Trouble("unknown"), "attempt('config.json', revision='v9')", "attempt('config.json')")
    assert unknown == ["RevisionNotFoundError", 2]
    missing = names(Trouble("missing", times=0), "attempt('nothing.json')")
    assert missing == ["RemoteEntryNotFoundError"]


def test_a_limit_passes(hub, tmp_path):
    hub.troubles["some/model"] = Trouble("limited", times=1, wait=0)
    assert attempts(hub, tmp_path, "attempt('nested/deep/a b.txt')") == [4]
    hub.troubles["some/model"] = Trouble("limited", times=1, wait=7)
    status, headers, _ = ask(hub, "/api/models/some/model")
    assert status == 429 and headers["Retry-After"] == "7" and ask(hub, "/api/models/some/model")[0] == 200


def test_parts_of_a_file(hub):
    path = "/files/owner/raw.json"
    assert ask(hub, path)[::2] == (200, b"0123456789")
    status, headers, body = ask(hub, path, Range="bytes=3-5")
    assert (status, body, headers["Content-Range"]) == (206, b"345", "bytes 3-5/10")
    assert ask(hub, path, Range="bytes=8-")[::2] == (206, b"89")
    assert ask(hub, path, Range="bytes=-4")[::2] == (206, b"6789")
    assert ask(hub, path, Range="bytes=2-99")[::2] == (206, b"23456789")
    status, headers, _ = ask(hub, path, Range="bytes=10-")
    assert status == 416 and headers["Content-Range"] == "bytes */10"
    status, headers, body = ask(hub, path, "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "10", b"") and len(headers["ETag"]) == 66
    hub.troubles["files"] = Trouble("cut", times=1, after=4)
    with pytest.raises(http.client.IncompleteRead) as error:
        ask(hub, path)
    assert error.value.partial == b"0123" and ask(hub, path)[0] == 200
    hub.troubles["files"] = Trouble("missing")
    assert ask(hub, path)[0] == 404
    hub.troubles["files"] = Trouble("limited")
    assert ask(hub, path)[0] == 429


def test_nothing_else_is_served(hub, tmp_path):
    (tmp_path / "secret").write_text("secret")
    escapes = (
        "files/..%2f..%2fsecret",
        "files/../../secret",
        "files/owner/..%2F..%2Fmodels%2Fsome--model%2Fconfig.json",
    )
    model = f"some/model/resolve/{OTHER}"
    escapes += (
        f"{model}/..%2F..%2F..%2Fsecret",
        f"{model}/{COMMIT_FILE}",
        f"{model}/nested",
        "api/models/..%2F..%2F/x",
    )
    for path in (*escapes, "", "nothing", "api/nothing", "api/models/some/model/discussions", "files/none.json"):
        status, _, body = ask(hub, f"/{path}")
        assert status in (401, 404) and b"secret" not in body, path
    with pytest.raises(ValueError, match="kind must be one of"):
        place(tmp_path, "model", "some/model")


def test_two_hubs_at_once(hub, tmp_path):
    model = place(tmp_path / "second", "models", "some/model")
    (model / "config.json").write_text("[1]")
    with LocalHub(tmp_path / "second") as second:
        assert second.endpoint != hub.endpoint
        path = f"/some/model/resolve/{OTHER}/config.json"
        assert (ask(hub, path)[2], ask(second, path)[2]) == (b"{}", b"[1]")
        assert len(hub.requests) == len(second.requests) == 1
        (model / "config.json").write_text("[22]")  # what is served may change, and its hash with it
        assert ask(second, path)[2] == b"[22]"
