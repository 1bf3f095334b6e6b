"""A small Hugging Face hub on this machine: a folder tree served in the hub's protocol, for rehearsals and tests.

What `huggingface_hub`, `datasets`, `transformers` and `evaluate` ask for to download is answered as the hub does it:
information on a repository, its files, and the files themselves, large ones by a redirect to another address, each
with its hash and in parts if asked. Nothing can be uploaded. Troubles that the hub has can be had from here too.
"""

import hashlib
import json
import os
import re
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

KINDS = ("models", "datasets", "spaces")
COMMIT_FILE = ".commit"  # in a repository's folder: its commit, where it is not to follow from the content
DATE = "2024-01-01T00:00:00.000Z"
# Files of these types lie in large-file storage on the hub, whatever their size.
LARGE = (".bin", ".h5", ".model", ".parquet", ".pth", ".safetensors", ".zip")

# Gated: only for those who accepted a licence. Missing: no such repository. Unknown: no such revision, but for full
# commits. Limited: asked too often. Cut: the connection is closed in the middle of a file.
TroubleKind = Literal["gated", "missing", "unknown", "limited", "cut"]


@dataclass
class Trouble:
    """What goes wrong with a repository.

    Attributes:
        kind: see `TroubleKind`.
        times: requests that it happens to; None for all.
        after: bytes of a file that are sent before the connection is closed, if it is cut.
        wait: seconds after which the hub asks clients to come back, if it is limited.
    """

    kind: TroubleKind
    times: int | None = None
    after: int = 0
    wait: int = 1


@dataclass
class LocalHub:
    """Serves `root` on 127.0.0.1 while the context is entered.

    `root` holds models/<owner>--<name>/, datasets/<owner>--<name>/ and spaces/<owner>--<name>/ with the files of each
    repository, and files/ with those that lie elsewhere, served under /files/. A revision that is a full commit is
    answered as that commit, any other as the repository's own (see COMMIT_FILE): all hold the same files.

    Attributes:
        root: the hub's folder; it may be changed while it is served.
        troubles: keyed by "owner/name" for a model, "datasets/owner/name", "spaces/owner/name", or "files" for what
            lies elsewhere.
        requests: (method, path with query) of every request, in order.
        bodies: bytes of file content that were sent.
    """

    root: Path
    troubles: dict[str, Trouble] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    bodies: int = 0
    _server: ThreadingHTTPServer | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> "LocalHub":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._server = None

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT must be for the hub's clients to ask here; read when they are imported."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def storage(self) -> str:
        """Where large files are. Under another name of this machine: clients treat the hub's own host differently."""
        return f"http://localhost:{self._server.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which a process asks this hub for everything, also where a proxy is set."""
        here = ",".join(filter(None, ("127.0.0.1", "localhost", os.environ.get("NO_PROXY"))))
        files = f"{self.endpoint}/files"
        return {"HF_ENDPOINT": self.endpoint, "RAW_FILES": files, "NO_PROXY": here, "no_proxy": here}

    def asked(self, pattern: str) -> list[str]:
        """The requests, as "METHOD path", in which a regular expression is found."""
        with self._lock:
            lines = [f"{method} {path}" for method, path in self.requests]
        return [line for line in lines if re.search(pattern, line)]

    def forget(self) -> None:
        """Empties the list of requests."""
        with self._lock:
            self.requests.clear()
            self.bodies = 0

    def _happens(self, name: str, *kinds: TroubleKind) -> Trouble | None:
        """The trouble of one of these kinds that a repository has now; counted down."""
        with self._lock:
            trouble = self.troubles.get(name)
            if trouble is None or trouble.kind not in kinds or trouble.times == 0:
                return None
            if trouble.times is not None:
                trouble.times -= 1
            return trouble

    def _note(self, method: str, path: str) -> None:
        with self._lock:
            self.requests.append((method, path))

    def _sent(self, count: int) -> None:
        with self._lock:
            self.bodies += count


@dataclass(frozen=True)
class _Repository:
    kind: str
    name: str
    folder: Path

    @property
    def key(self) -> str:
        return self.name if self.kind == "models" else f"{self.kind}/{self.name}"

    def files(self) -> list[str]:
        found = [path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()]
        return sorted(name for name in found if name != COMMIT_FILE)

    def path(self, name: str) -> Path | None:
        path = (self.folder / name).resolve()
        whole = path.is_file() and path.is_relative_to(self.folder.resolve()) and name != COMMIT_FILE
        return path if whole else None

    def commit(self) -> str:
        file = self.folder / COMMIT_FILE
        if file.is_file():
            return file.read_text(encoding="utf-8").strip()
        listed = [f"{name}:{_hashes(self.folder / name)[0]}" for name in self.files()]
        return hashlib.sha1("\n".join(listed).encode()).hexdigest()


def _hashes(path: Path) -> tuple[str, str]:
    """git's sha1 of a file as a blob, and the file's sha256."""
    status = path.stat()
    return _hashed(path, status.st_size, status.st_mtime_ns)


@cache
def _hashed(path: Path, size: int, _changed: int) -> tuple[str, str]:
    blob, whole = hashlib.sha1(f"blob {size}\0".encode()), hashlib.sha256()
    with path.open("rb") as stream:
        while part := stream.read(1 << 20):
            blob.update(part)
            whole.update(part)
    return blob.hexdigest(), whole.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are sent one after the other: each would wait for the other end

    def log_message(self, *_: Any) -> None:
        """Requests are kept in a list instead."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.hub._note(self.command, self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        path, query = url.path, parse_qs(url.query)
        with suppress(BrokenPipeError, ConnectionResetError):
            if found := re.fullmatch(r"/files/(.+)", path):
                self._raw(unquote(found[1]))
            elif found := re.fullmatch(r"/cdn/(\w+)/([^/]+/[^/]+)/(.+)", path):
                self._large_file(self._repository(found[1], found[2]), unquote(found[3]))
            elif found := re.fullmatch(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)(?:/([\w-]+)(?:/(.*))?)?", path):
                self._api(self._repository(found[1], found[2]), found[3] or "", found[4] or "", query, body)
            elif found := re.fullmatch(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/(?:resolve|raw)/([^/]+)/(.+)", path):
                self._resolve(self._repository(found[1] or "models", found[2]), unquote(found[3]), unquote(found[4]))
            else:
                self._fail(404, "Not Found", f"nothing is served at {path}")

    # -------------------------------------------------------------------------------------------------- repositories

    def _repository(self, kind: str, name: str) -> _Repository | None:
        """The repository; None if it is not there, which has been answered then."""
        name = unquote(name)
        repository = _Repository(kind, name, self.hub.root / kind / name.replace("/", "--"))
        if trouble := self.hub._happens(repository.key, "limited"):
            self._fail(
                429, "", "You have reached the rate limit", {
                    "Retry-After": trouble.wait, "RateLimit": f'"api";r=0;t={trouble.wait}',
                    "RateLimit-Policy": '"fixed window";"api";q=500;w=300',
                }
            )  # fmt: skip
        elif self.hub._happens(repository.key, "missing") or not repository.folder.is_dir():
            # The hub answers alike, not revealing to strangers whether there is a private one.
            known = "authorization" in self.headers
            self._fail(404 if known else 401, "RepoNotFound", "Repository not found" if known else "Invalid username")
        else:
            return repository
        return None

    def _commit(self, repository: _Repository, revision: str) -> str | None:
        """The commit a revision stands for; None if it stands for none, which has been answered then."""
        if re.fullmatch("[0-9a-f]{40}", revision):
            return revision
        if revision != "main" and self.hub._happens(repository.key, "unknown"):
            self._fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repository.commit()

    def _api(self, repository: _Repository | None, verb: str, rest: str, query: dict, body: bytes) -> None:
        if repository is None:
            return
        revision, _, inside = rest.partition("/")
        commit = self._commit(repository, unquote(revision) or "main")
        if commit is None:
            return
        if verb in ("", "revision"):
            self._json(self._information(repository, commit, "blobs" in query))
        elif verb == "refs":
            self._json({"branches": [_reference(commit)], "tags": [], "converts": []})
        elif verb == "commits":
            self._json([{"id": commit, "title": "All", "message": "", "date": DATE, "authors": []}])
        elif verb == "tree":
            recursive = query.get("recursive", ["false"])[0].lower() == "true"
            self._tree(repository, unquote(inside), recursive, commit)
        elif verb == "paths-info":
            self._paths_information(repository, body)
        else:
            self._fail(404, "Not Found", f"nothing is served at {self.path}")

    def _information(self, repository: _Repository, commit: str, with_sizes: bool) -> dict[str, Any]:
        siblings = []
        for name in repository.files():
            entry: dict[str, Any] = {"rfilename": name}
            if with_sizes:
                about = _file_entry(repository, name)
                entry |= {"size": about["size"], "blobId": about["oid"]}
                if large := about.get("lfs"):
                    entry["lfs"] = {"sha256": large["oid"], "size": large["size"], "pointerSize": large["pointerSize"]}
            siblings.append(entry)
        trouble = self.hub.troubles.get(repository.key)
        gated = "manual" if trouble is not None and trouble.kind == "gated" else False
        about = {"_id": commit[:24], "id": repository.name, "author": repository.name.split("/")[0], "sha": commit}
        about |= {"lastModified": DATE, "createdAt": DATE, "private": False, "disabled": False, "gated": gated}
        about |= {"downloads": 0, "likes": 0, "tags": [], "siblings": siblings}
        return about | ({"modelId": repository.name} if repository.kind == "models" else {})

    def _tree(self, repository: _Repository, inside: str, recursive: bool, commit: str) -> None:
        start = f"{inside.strip('/')}/" if inside.strip("/") else ""
        entries: dict[str, dict] = {}
        for name in repository.files():
            if not name.startswith(start):
                continue
            parts = name[len(start) :].split("/")
            shown = len(parts) if recursive else 1
            for depth in range(1, min(shown, len(parts) - 1) + 1):
                folder = start + "/".join(parts[:depth])
                entries.setdefault(folder, _folder_entry(repository, folder))
            if shown >= len(parts):
                entries[name] = _file_entry(repository, name)
        if not entries and start:
            self._fail(404, "EntryNotFound", f"{inside} does not exist", {"X-Repo-Commit": commit})
        else:
            self._json([entries[name] for name in sorted(entries)])

    def _paths_information(self, repository: _Repository, body: bytes) -> None:
        if "json" in self.headers.get("Content-Type", ""):
            asked = json.loads(body)["paths"]
        else:
            asked = parse_qs(body.decode()).get("paths", [])
        names = repository.files()
        entries = []
        for path in [asked] if isinstance(asked, str) else asked:
            path = path.strip("/")
            if path in names:
                entries.append(_file_entry(repository, path))
            elif any(name.startswith(f"{path}/") for name in names):
                entries.append(_folder_entry(repository, path))
        self._json(entries)

    # --------------------------------------------------------------------------------------------------------- files

    def _resolve(self, repository: _Repository | None, revision: str, name: str) -> None:
        """A file itself, or for a large one the address where it is; as a HEAD request what is to be known of it."""
        if repository is None:
            return
        if name != "README.md" and self.hub._happens(repository.key, "gated"):
            known = "authorization" in self.headers
            what = f"Access to {repository.name} is restricted"
            self._fail(403 if known else 401, "GatedRepo", what if known else f"{what}. Please log in.")
            return
        commit = self._commit(repository, revision)
        if commit is None:
            return
        path = repository.path(name)
        if path is None:
            self._fail(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            return
        about, headers = _file_entry(repository, name), {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if large := about.get("lfs"):
            where = f"{self.hub.storage}/cdn/{repository.kind}/{repository.name}/{quote(name)}"
            headers |= {"Location": where, "X-Linked-Size": large["size"], "X-Linked-ETag": f'"{large["oid"]}"'}
            self._send(302, headers, b"")
        else:
            self._file(repository.key, path, headers | {"ETag": f'"{about["oid"]}"'})

    def _large_file(self, repository: _Repository | None, name: str) -> None:
        path = None if repository is None else repository.path(name)
        if path is not None:
            self._file(repository.key, path, {"ETag": f'"{_hashes(path)[1]}"', "Accept-Ranges": "bytes"})
        elif repository is not None:
            self._fail(404, "EntryNotFound", "Entry not found")

    def _raw(self, name: str) -> None:
        folder = (self.hub.root / "files").resolve()
        path = (folder / name).resolve()
        if trouble := self.hub._happens("files", "limited"):
            self._fail(429, "", "Too Many Requests", {"Retry-After": trouble.wait})
        elif self.hub._happens("files", "missing") or not (path.is_file() and path.is_relative_to(folder)):
            self._fail(404, "", "404: Not Found")
        else:
            self._file("files", path, {"ETag": f'"{_hashes(path)[1]}"', "Accept-Ranges": "bytes"})

    def _file(self, key: str, path: Path, headers: dict[str, Any]) -> None:
        """The file, or the part of it that is asked for; cut off where that is the repository's trouble."""
        size = path.stat().st_size
        first, last, status = 0, size - 1, 200
        if asked := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            if asked[1]:
                first, last = int(asked[1]), min(int(asked[2] or last), last)
            elif asked[2]:
                first = max(size - int(asked[2]), 0)
            if first >= size:
                self._fail(416, "", "Range Not Satisfiable", {"Content-Range": f"bytes */{size}"})
                return
            status, headers = 206, headers | {"Content-Range": f"bytes {first}-{last}/{size}"}
        length = last + 1 - first
        headers = {"Content-Type": "application/octet-stream", **headers, "Content-Length": length}
        self._send(status, headers)
        if self.command == "HEAD":
            return
        trouble = self.hub._happens(key, "cut") if length else None
        with path.open("rb") as stream:
            stream.seek(first)
            self._copy(stream, length if trouble is None else min(trouble.after, length))
        if trouble is not None:
            self.close_connection = True

    def _copy(self, stream: BinaryIO, count: int) -> None:
        while count and (part := stream.read(min(count, 1 << 18))):
            self.wfile.write(part)
            self.hub._sent(len(part))
            count -= len(part)

    # ------------------------------------------------------------------------------------------------------- answers

    def _json(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self._send(200, {"Content-Type": "application/json", "Content-Length": len(body)}, body)

    def _fail(self, status: int, code: str, message: str, headers: dict[str, Any] | None = None) -> None:
        body = json.dumps({"error": message}).encode()
        named = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        fields = {"Content-Type": "application/json", "Content-Length": len(body)} | named | (headers or {})
        self._send(status, fields, body)

    def _send(self, status: int, headers: dict[str, Any], body: bytes | None = None) -> None:
        """Status, headers, and the body unless it is a HEAD request; None: the caller sends it."""
        self.send_response(status)
        if body is not None:
            headers = headers | {"Content-Length": len(body)}
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(body)


def _reference(commit: str) -> dict[str, str]:
    return {"name": "main", "ref": "refs/heads/main", "targetCommit": commit}


def _file_entry(repository: _Repository, name: str) -> dict[str, Any]:
    """A file as the hub lists it."""
    path = repository.folder / name
    blob, whole = _hashes(path)
    size = path.stat().st_size
    entry: dict[str, Any] = {"type": "file", "oid": blob, "size": size, "path": name}
    return entry | ({"lfs": {"oid": whole, "size": size, "pointerSize": 134}} if path.suffix in LARGE else {})


def _folder_entry(repository: _Repository, name: str) -> dict[str, Any]:
    oid = hashlib.sha1(f"{repository.key}/{name}".encode()).hexdigest()
    return {"type": "directory", "oid": oid, "size": 0, "path": name}


def place(root: Path, kind: str, name: str) -> Path:
    """The folder of a repository below a hub's root, made if it is not there.

    Args:
        root: root folder of the hub.
        kind: "models", "datasets" or "spaces".
        name: owner/name.

    Raises:
        ValueError: another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, not {kind!r}")
    folder = root / kind / name.replace("/", "--")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
