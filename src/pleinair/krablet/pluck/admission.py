"""Whether a worker may do a job: the last check before foreign code is unpickled. Fails closed.

Looked at in this order: the signature over the whole header; that the row's id is the one signed; the database it was
signed for; the expiry, by this machine's clock; that it did not end here before; the hash of the function.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections.abc import Sequence
from pathlib import Path

from pleinair.krablet.pluck.jobs import JobSpec, SignedJob
from pleinair.krablet.pluck.signing import Key, verify
from pleinair.records.errors import RefusedError


class Ledger:
    """The jobs that ended in front of this worker, until they expire, so that none is replayed.

    With a file the workers of a machine share it and it outlives them; one line per job, appended.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._ended: dict[str, float] = {}

    def has(self, job: str, shard: str) -> bool:
        self._read()
        return f"{job}@{shard}" in self._ended

    def add(self, job: str, shard: str, expires_at: float) -> None:
        if self.has(job, shard):
            return
        self._ended[f"{job}@{shard}"] = expires_at
        if self._path is not None:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(descriptor, f"{job}@{shard}\t{expires_at!r}\n".encode())
            finally:
                os.close(descriptor)

    def _read(self) -> None:
        if self._path is None or not self._path.exists():
            return
        lines = (line.split("\t") for line in self._path.read_text("utf-8").splitlines())
        self._ended |= {parts[0]: float(parts[1]) for parts in lines if len(parts) == 2}


def admit(job: SignedJob, keys: Sequence[Key], shard: str, ledger: Ledger, *, now: float | None = None) -> JobSpec:
    """The order in `job`, if it may be done for the database `shard`. Raises RefusedError with a sentence."""
    verify(keys, job.header.encode(), job.signature)
    try:
        spec = JobSpec.from_header(job.header)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RefusedError(f"its header cannot be read ({error}): submit it with this worker's version") from error
    if spec.id != job.id:
        raise RefusedError(f"it was signed as job {spec.id}: somebody copied it; submit a new one")
    if shard not in spec.shards:
        raise RefusedError(f"it was signed for {', '.join(spec.shards)}, not for {shard}: submit it to this database")
    late = (time.time() if now is None else now) - spec.expires_at
    if late >= 0:
        raise RefusedError(f"it expired {late:.0f} seconds ago by this worker's clock: submit it again")
    if ledger.has(spec.id, shard):
        raise RefusedError("it ended here before and was put back: submit a new one")
    return spec


def check_function(spec: JobSpec, function: bytes) -> None:
    """Returns if these are the bytes that were signed. Raises RefusedError."""
    if not hmac.compare_digest(hashlib.sha256(function).hexdigest(), spec.function_sha256):
        raise RefusedError("its function is not the one that was signed: it was altered after signing")
