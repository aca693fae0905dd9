"""Where a vector is kept: a `real[]` column, half-precision bytes in a column, or a file per claim with its place in the row.

embedding_write_*   vectors written per second through krablet (CPU time of this process and the server's are shared
                    by one machine, so wall time of interleaved rounds)
embedding_read_*    vectors read back per second
embedding_bytes_*   bytes per vector, database and files together
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.krablet.rounds import Result, ratio, result, temporary_server
from pleinair.curation.embeddings import BATCH, get_vectors, put_vectors
from pleinair.curation.store import ObjectStore
from pleinair.krablet import Database, Table

WIDTH, ROWS = 1280, 2048
COLUMNS = {"real": "real[]", "bytes": "bytea", "file": "text"}


def measure(rounds: int = 3) -> list[Result]:
    """All three forms, in turn."""
    vectors = np.random.default_rng(0).gamma(0.3, 1.0, (ROWS, WIDTH)).astype(np.float32)
    runs: dict[str, list[tuple[float, float, float]]] = {form: [] for form in COLUMNS}
    with temporary_server() as database, tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for form in COLUMNS:
                store = ObjectStore(Path(folder) / f"{form}{number}")
                runs[form].append(write_and_read(database, f"{form}{number}", form, vectors, store))
            shown = ", ".join(f"{form} {of_run[-1][0]:.0f}/s" for form, of_run in runs.items())
            print(f"  round {number + 1}: {shown}", flush=True)
    return [
        result(f"embedding_{name}_{form}", median(values), unit, "real[]", ratio(values, figures("real", place, runs)))
        for place, (name, unit) in enumerate((("write", "vectors/s"), ("read", "vectors/s"), ("bytes", "bytes")))
        for form in COLUMNS
        for values in [figures(form, place, runs)]
    ]


def figures(form: str, place: int, runs: dict[str, list[tuple[float, float, float]]]) -> list[float]:
    """One figure of every round."""
    return [one[place] for one in runs[form]]


def write_and_read(
    database: Database, name: str, form: str, vectors: npt.NDArray[np.float32], store: ObjectStore
) -> tuple[float, float, float]:
    """Vectors written and read per second, and bytes each takes."""
    table = database.table(name, key="name", columns={"name": "text", "vector": COLUMNS[form]})
    table.upsert({"name": f"{row:06d}"} for row in range(ROWS))
    began = time.monotonic()
    for start in range(0, ROWS, BATCH):
        values = WRITE[form](vectors[start : start + BATCH], store)
        table.update({"name": f"{start + row:06d}", "vector": value} for row, value in enumerate(values))
    wrote = time.monotonic()
    values = [value for batch in table.read(columns=["vector"]) for value in batch.column("vector").to_pylist()]
    read = READ[form](values, store)
    seconds = time.monotonic() - wrote
    assert np.allclose(np.sort(read.ravel()), np.sort(vectors.ravel()), rtol=1e-2, atol=1e-3)
    files = sum(path.stat().st_blocks * 512 for path in store.root.rglob("*") if path.is_file())
    return ROWS / (wrote - began), ROWS / seconds, (table_bytes(database, table) + files) / ROWS


def table_bytes(database: Database, table: Table) -> int:
    """Heap, TOAST and indexes."""
    with database.connection() as connection:
        row: Any = connection.execute("SELECT pg_total_relation_size(%s::regclass)", (table.name,)).fetchone()
    return int(row[0])


WRITE: dict[str, Callable[[Any, ObjectStore], list[Any]]] = {
    "real": lambda vectors, store: [vector.tolist() for vector in vectors],
    "bytes": lambda vectors, store: [vector.astype(np.float16).tobytes() for vector in vectors],
    "file": lambda vectors, store: put_vectors(store, vectors),
}
READ: dict[str, Callable[[list[Any], ObjectStore], Any]] = {
    "real": lambda values, store: np.array(values, dtype=np.float32),
    "bytes": lambda values, store: np.stack([np.frombuffer(value, np.float16) for value in values]).astype(np.float32),
    "file": lambda values, store: get_vectors(store, values),
}
