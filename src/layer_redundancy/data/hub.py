"""The hub and other places that data is downloaded from: what their troubles mean, in one line; single files."""

import errno
import functools
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from layer_redundancy.config import sources
from layer_redundancy.core import cache, doors, paths
from layer_redundancy.core.errors import StudyError

logger = logging.getLogger(__name__)

RAW_FILES = "https://raw.githubusercontent.com"
RETRIES, RETRY_SECONDS = 2, 1.0  # for a single file whose download broke off; then it is the user's turn
NO_HUB = "use the embedded profile, which needs no hub"


def one_line(error: BaseException, name: str, instead: str = NO_HUB) -> str | None:
    """What a trouble of the hub, the network or the disk means for the user, in one line that says what to do.

    Libraries wrap what the hub's client raises, often in a ConnectionError that says less, so the causes of `error`
    are looked at too.

    Args:
        error: whatever was raised while something was downloaded or looked up.
        name: name of the model or data set.
        instead: what a user without a network can do.

    Returns:
        The line, which begins with the name; None if `error` is nothing of the kind.
    """
    causes = list(_causes(error))
    for cause in causes:
        if (line := _known_trouble(cause, name)) is not None:
            return line
    for cause in causes:
        if (line := _no_answer(cause, name, instead)) is not None:
            return line
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _known_trouble(error: BaseException, name: str) -> str | None:
    import httpx
    from huggingface_hub import errors

    text = " ".join(str(error).split())
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError) or "is a gated dataset" in text:
        return f"{name} is gated: accept its licence on its hub page, then run `hf auth login`{_instead(name)}"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        file = re.search(r"resolve/[^/]+/(\S+?)\.?(\s|$)", text)
        return f"{name} has no {file[1] if file else 'such file'} on the hub: was another revision meant?"
    missing = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError)
    if isinstance(error, missing) or type(error).__name__ == "DatasetNotFoundError":
        return f"{name}: no such repository or revision on the hub (or private): check the id and revision"
    if status == 429:
        return (
            f"{name}: the hub is asked too often (429){_wait(error)}: wait and run again, it goes on where it was; "
            "`hf auth login` raises the limit"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{name}: the disk is full: free some space, or set HF_HOME to another disk, and run again"
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) and error.filename:
        return f"{name} is not in the cache, which cannot be written to ({error.filename}: {error.strerror})"
    cut = (httpx.RemoteProtocolError, httpx.ReadError, httpx.ReadTimeout)
    if isinstance(error, cut) or re.search("Consistency check failed|closed connection|IncompleteRead|Truncated", text):
        return f"{name}: the download broke off ({text[:120]}): run again, it goes on where it was"
    return None


def _no_answer(error: BaseException, name: str, instead: str) -> str | None:
    import httpx
    from huggingface_hub import errors

    offline = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, httpx.TransportError, ConnectionError)
    if isinstance(error, offline):
        return (
            f"{name} is not in the local cache and the hub cannot be reached: check the network and HF_HUB_OFFLINE, "
            f"or {instead}"
        )
    if isinstance(error, errors.HfHubHTTPError | httpx.HTTPStatusError):
        return f"{name}: the hub answered {str(error).splitlines()[0]}: try again later"
    return None


def _wait(error: Any) -> str:
    seconds = error.response.headers.get("Retry-After", "")
    return f" and says to come back in {seconds} s" if seconds.isdigit() else ""


def _instead(name: str) -> str:
    source = sources.MODELS.get(name)
    if source is None or not source.ungated:
        return ""
    return f"; or use {doors.setting('model', source.ungated)}, the same weights without a gate"


@contextmanager
def errors(name: str, instead: str = NO_HUB) -> Iterator[None]:
    """Turns troubles of the hub, the network or the disk while `name` is downloaded into one line."""
    try:
        yield
    except StudyError:
        raise
    except Exception as error:
        line = one_line(error, name, instead)
        if line is None:
            raise
        raise StudyError(line) from error


@functools.cache
def answers() -> bool:
    """Whether the hub can be reached at all, asked once and without the many retries of its client."""
    import httpx
    from huggingface_hub import constants

    if offline():
        return False
    try:
        httpx.head(constants.ENDPOINT, timeout=5)
    except httpx.HTTPError:
        return False
    return True


def offline() -> bool:
    """Whether the user wants nothing to be looked for on the network (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def file(url: str) -> Path:
    """A single file that lies on no hub, in the cache; downloaded at the first call, the rest of it if it broke off.

    It is what it was when it was downloaded, and where `sources` knows its hash, what its authors published; if it is
    something else by now, it is downloaded again.

    Args:
        url: https address, at a commit or a version, so that it is always the same file. The variable RAW_FILES names
            a mirror of the host of GitHub's raw files, whose files may be others than the published ones.

    Raises:
        StudyError: not in the cache, and it cannot be downloaded now; or what comes is not the file.
    """
    import httpx

    target = paths.CACHE / "files" / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{Path(urlparse(url).path).name}"
    mirror = os.environ.get("RAW_FILES") or RAW_FILES
    published = sources.FILES.get(url.removeprefix(f"{RAW_FILES}/")) if mirror == RAW_FILES else None
    if target.is_file():
        if _is_whole(target, published):
            return target
        logger.warning(f"{target} is not what was downloaded: it is downloaded again")
        with suppress(OSError):
            target.unlink()
    with errors(url):
        if offline():
            raise ConnectionError("HF_HUB_OFFLINE is set")
        for again in range(RETRIES, -1, -1):
            try:
                part = _download(url.replace(RAW_FILES, mirror), target)
                break
            except httpx.TransportError:
                if not again:
                    raise
                time.sleep(RETRY_SECONDS)
    if published and cache.sha256(part) != published:
        part.unlink()
        raise StudyError(f"{url}: what came is not the published file: is this network asking for a login? Run again")
    return cache.made_at(target, "download", part.replace)


def _is_whole(file: Path, published: str | None) -> bool:
    """Whether a file is what was downloaded; of one of before sums were kept, whether it is the published one.

    What came from a mirror once is not held against what is published, also when the mirror is not named any more.
    """
    try:
        was_checked = cache.has_sums(file)
        return cache.sha256(cache.checked(file)) == published or was_checked or published is None
    except (StudyError, OSError):
        return False


def _download(url: str, target: Path) -> Path:
    """Downloads a file, or the rest of it, beside where it is to lie."""
    import httpx
    from tqdm import tqdm

    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    have = part.stat().st_size if part.is_file() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=30) as answer:
        if answer.status_code == 416:  # nothing is left to get, or the part is of something else
            part.unlink()
            raise httpx.RemoteProtocolError("what was there did not fit")
        if answer.status_code == 404:
            raise StudyError(f"{url}: no such file: was it moved, or is the mirror in RAW_FILES incomplete?")
        answer.raise_for_status()
        if "text/html" in answer.headers.get("Content-Type", ""):
            raise StudyError(
                f"{url}: a web page came, not the file: is this network asking for a login? Then run again"
            )
        resumed = answer.status_code == 206
        total = int(answer.headers.get("Content-Length", 0)) + (have if resumed else 0)
        with (
            part.open("ab" if resumed else "wb") as stream,
            tqdm(total=total, initial=have if resumed else 0, unit="B", unit_scale=True, desc=target.name[13:]) as bar,
        ):
            for chunk in answer.iter_bytes():  # as they come, so that none is lost
                stream.write(chunk)
                bar.update(len(chunk))
    return part


def snapshot(repository: str, revision: str | None, patterns: list[str], kind: str = "model") -> Path:
    """The folder of a hub repository's files that fit the patterns, downloaded where they are not in the hub's cache.

    Args:
        repository: owner/name.
        revision: commit, tag or branch; None for the default.
        patterns: patterns of file names, as in a shell.
        kind: "model" or "dataset".

    Raises:
        StudyError: as `one_line`; a file of a data set that is not what was downloaded.
    """
    from huggingface_hub import snapshot_download

    with errors(repository):
        folder = Path(
            snapshot_download(repository, repo_type=kind, revision=revision, allow_patterns=patterns, max_workers=4)
        )
    if kind == "dataset":
        for file in {file.resolve() for pattern in patterns for file in folder.glob(pattern)}:
            if re.fullmatch("[0-9a-f]{64}", file.name) and cache.known_sha256(file) != file.name:  # large files' names
                raise _damaged(file, "its content is another")
    return folder


def reading(file: Path) -> AbstractContextManager[None]:
    """Turns what is raised while a file of the hub's cache is read into the line that says what to delete."""
    return cache.reading(file.resolve(), _damaged)


def _damaged(file: Path, reason: str) -> StudyError:
    return StudyError(f"{file} is damaged ({reason}): delete it, and it is downloaded again")


# Beside the weights: configs, tokenizers, their vocabularies and templates.
SMALL_FILES = ["*.json", "*.model", "*.txt", "*.jinja"]
WEIGHTS = ("*.safetensors", "*.bin")  # transformers takes the first that is there


def weight_files(names: Sequence[str] | dict[str, int]) -> str:
    """The pattern of the weight files among a repository's files that are loaded."""
    return next((pattern for pattern in WEIGHTS if any(Path(name).match(pattern) for name in names)), WEIGHTS[0])


def model_is_here(model: str, pin: str | None) -> bool:
    """Whether config and all weights of a hub model are in the cache."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(model, revision=pin, allow_patterns=SMALL_FILES, local_files_only=True))
    except Exception:  # not there, or only in part
        return False
    return (folder / "config.json").is_file() and is_complete(folder)


def is_complete(folder: Path) -> bool:
    """Whether a folder holds all weights that its index names."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            except (OSError, ValueError, LookupError, TypeError, AttributeError):  # it is damaged: to be had anew
                return False
            if all((folder / str(shard)).is_file() for shard in shards):
                return True
        elif (folder / name).is_file():
            return True
    return False
