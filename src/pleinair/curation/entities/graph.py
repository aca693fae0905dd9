"""A link graph on disk, made from edges in any order with bounded memory.

    edges --by target--> spill files, one per range of targets --sort, drop doubles--> starts, sources, out_degree

Edges are kept by target (compressed sparse rows of who links here), which is the order in which PageRank adds them up.
One edge takes four bytes in the end and eight while it is spilled. 600 million edges: 2.4 GB of files, mapped not read.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from pleinair.records.errors import SourceError

Ints = npt.NDArray[np.integer[Any]]

NUM_PARTS = 64
SPILL_EDGES = 4_000_000
_FILES = ("starts", "sources", "out_degree")


@dataclass(frozen=True)
class Graph:
    """Who links to whom; the nodes that link to node i are `sources[starts[i]:starts[i + 1]]`, rising, each once."""

    starts: Ints
    """int64, one more than there are nodes."""
    sources: Ints
    """int32, one per edge."""
    out_degree: Ints
    """int32: how many nodes a node links to."""

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return len(self.out_degree)

    @property
    def num_edges(self) -> int:
        """Number of links, each pair of nodes counted once."""
        return len(self.sources)


def load_graph(folder: Path) -> Graph:
    """A graph written by `write_graph`, mapped into memory. Raises SourceError where there is none."""
    try:
        return Graph(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in _FILES))
    except (OSError, ValueError) as error:
        raise SourceError(f"{folder} holds no link graph ({error}): run `pleinair entities build` again") from error


def write_graph(folder: Path, edges: Iterable[tuple[Ints, Ints]], num_nodes: int) -> Graph:
    """Write batches of (source, target) node numbers as a graph; it appears in `folder` whole or not at all.

    Doubles and links of a node to itself are dropped. Memory: 8 bytes per edge of the largest of NUM_PARTS ranges.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        span = max(1, -(-num_nodes // NUM_PARTS))
        _spill(work, edges, span)
        _merge(work, num_nodes, span)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return load_graph(folder)


def _spill(work: Path, edges: Iterable[tuple[Ints, Ints]], span: int) -> None:
    with ExitStack() as opened:
        files = [opened.enter_context((work / f"part-{number}").open("wb")) for number in range(NUM_PARTS)]
        held: list[npt.NDArray[np.int64]] = []
        for sources, targets in edges:
            held.append(targets.astype(np.int64) << 32 | sources.astype(np.int64))
            if sum(map(len, held)) >= SPILL_EDGES:
                _append(files, np.concatenate(held), span)
                held.clear()
        if held:
            _append(files, np.concatenate(held), span)


def _append(files: Sequence[IO[bytes]], keys: npt.NDArray[np.int64], span: int) -> None:
    keys.sort()
    cuts = np.searchsorted(keys, np.arange(1, NUM_PARTS, dtype=np.int64) * span << 32)
    for file, part in zip(files, np.split(keys, cuts), strict=True):
        part.tofile(file)


def _merge(work: Path, num_nodes: int, span: int) -> None:
    in_degree = np.zeros(num_nodes, np.int64)
    out_degree = np.zeros(num_nodes, np.int32)
    num_edges = 0
    with (work / "sources.raw").open("wb") as raw:
        for number in range(NUM_PARTS):
            keys = np.unique(np.fromfile(work / f"part-{number}", np.int64))
            (work / f"part-{number}").unlink()
            sources, targets = (keys & 0xFFFFFFFF).astype(np.int32), (keys >> 32).astype(np.int32)
            linked = sources != targets
            sources, targets = sources[linked], targets[linked]
            first = min(number * span, num_nodes)
            last = min(first + span, num_nodes)
            in_degree[first:last] = np.bincount(targets - first, minlength=last - first)
            out_degree += np.bincount(sources, minlength=num_nodes).astype(np.int32)
            sources.tofile(raw)
            num_edges += len(sources)
    _with_header(work, num_edges)
    np.save(work / "starts.npy", np.concatenate([np.zeros(1, np.int64), np.cumsum(in_degree)]))
    np.save(work / "out_degree.npy", out_degree)


def _with_header(work: Path, num_edges: int) -> None:
    """`sources.raw` as `sources.npy`, copied in pieces by the system."""
    with (work / "sources.npy").open("wb") as target, (work / "sources.raw").open("rb") as raw:
        header = {"descr": "<i4", "fortran_order": False, "shape": (num_edges,)}
        np.lib.format.write_array_header_1_0(target, header)
        shutil.copyfileobj(raw, target, 8 << 20)
    (work / "sources.raw").unlink()
