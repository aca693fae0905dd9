"""PageRank of a link graph, to convergence, in memory that does not grow with the edges.

The stationary vector x of  x = d P x + d (mass of pages without links) / n + (1 - d) / n  is found without the middle
term: both it and the last are the same constant for all nodes, so x is the solution of  y = 1 + d P y  scaled to sum 1.
Left alone, the total of y is what converges last (a factor d a sweep); it is known from the balance of mass,
(1 - d) sum(y) + d (sum over pages without links) = n,  and every sweep begins by scaling y to it.

Sweeps are Gauss-Seidel by blocks of targets: a block already uses what this sweep found for the blocks before it, which
costs nothing more and needs fewer sweeps than the power method. A block gathers the shares of its sources and adds
them up by target (`np.add.reduceat`); edges are read in order, so a mapped file on disk is streamed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pleinair.curation.entities.graph import Graph

Floats = npt.NDArray[np.floating[Any]]

BLOCK_EDGES = 1 << 16
"""Half a megabyte of gathered shares: they stay in the second-level cache."""
TIE_DIGITS = 9
"""Scores that agree to so many digits are tied: what differs beyond is the order of addition."""


@dataclass(frozen=True)
class Ranks:
    """Scores that sum to 1, and how they were reached."""

    scores: npt.NDArray[np.float64]
    num_sweeps: int
    change: float
    """L1 distance between the last two sweeps, as a part of all mass; the error is below d / (1 - d) of it."""


class NotConvergedError(ArithmeticError):
    """The sweeps allowed did not reach the tolerance."""


def pagerank(
    graph: Graph,
    *,
    damping: float = 0.85,
    tolerance: float = 1e-10,
    max_sweeps: int = 200,
    on_sweep: Callable[[int, float], None] = lambda sweep, change: None,
) -> Ranks:
    """PageRank with uniform teleport. `on_sweep` is told each sweep's number and change.

    Raises ValueError for a damping outside (0, 1), NotConvergedError after `max_sweeps`.
    """
    if not 0 < damping < 1:
        raise ValueError(f"damping is {damping}: choose a number between 0 and 1, usually 0.85")
    blocks = _Blocks(graph)
    scores, share = np.ones(graph.num_nodes), _shares(graph, damping)
    sent = scores * share
    silent = graph.out_degree == 0
    for sweep in range(1, max_sweeps + 1):
        scale = graph.num_nodes / float((1 - damping) * scores.sum() + damping * scores[silent].sum() or 1.0)
        scores *= scale
        sent *= scale
        scores[blocks.unlinked], sent[blocks.unlinked] = 1.0, share[blocks.unlinked]
        change = blocks.sweep(scores, sent, sent, share, base=1.0) / float(scores.sum() or 1.0)
        on_sweep(sweep, change)
        if change <= tolerance:
            return Ranks(scores / scores.sum(), sweep, change)
    raise NotConvergedError(f"PageRank still changes by {change:.1e} after {max_sweeps} sweeps: allow more sweeps")


def power_steps(graph: Graph, *, steps: int = 20, damping: float = 0.85, start: float = 0.1) -> npt.NDArray[np.float64]:
    """A fixed number of plain steps x = (1 - d) + d P x from `start`, unscaled: what the published Wikipedia ranks are.

    Not converged at the usual 20 steps; for comparison with those ranks.
    """
    blocks, share = _Blocks(graph), _shares(graph, damping)
    scores = np.full(graph.num_nodes, start)
    for _ in range(steps):
        sent = scores * share
        # Nodes nobody links to are in no block, and one step brings them to the constant.
        scores[blocks.unlinked] = 1 - damping
        blocks.sweep(scores, sent, np.empty_like(sent), share, base=1 - damping)
    return scores


def order_by_rank(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Nodes, highest score first; ties (to TIE_DIGITS digits) in node order, so that the order is reproducible."""
    with np.errstate(divide="ignore"):
        magnitude = np.floor(np.log10(scores))
    magnitude[~np.isfinite(magnitude)] = 0
    scale = 10.0 ** (TIE_DIGITS - 1 - magnitude)
    return np.argsort(-(np.round(scores * scale) / scale), kind="stable")


def _shares(graph: Graph, damping: float) -> npt.NDArray[np.float64]:
    """What a node sends along each of its links, per unit of its score."""
    return damping / np.maximum(graph.out_degree, 1)


class _Blocks:
    """Targets with at least one link to them, cut into blocks of about BLOCK_EDGES edges."""

    def __init__(self, graph: Graph) -> None:
        self.num_edges = graph.num_edges
        self.sources = np.asarray(graph.sources)
        starts = np.asarray(graph.starts)
        linked = starts[1:] > starts[:-1]
        self.unlinked = np.flatnonzero(~linked)
        self.targets = np.flatnonzero(linked)
        self.firsts = starts[:-1][linked]
        wanted = np.arange(0, graph.num_edges, BLOCK_EDGES)
        self.cuts = np.unique(np.append(np.searchsorted(self.firsts, wanted), len(self.targets)))
        widest = max((last - first for first, last, _, _ in self._bounds()), default=0)
        self.gathered = np.empty(widest)

    def _bounds(self) -> Iterator[tuple[int, int, int, int]]:
        """First and last edge, first and last linked target of each block."""
        ends = np.append(self.firsts, self.num_edges)
        for low, high in zip(self.cuts[:-1].tolist(), self.cuts[1:].tolist(), strict=True):
            yield int(ends[low]), int(ends[high]), low, high

    def sweep(self, scores: Floats, sent: Floats, sent_next: Floats, share: Floats, base: float) -> float:
        """Set every linked node's score from what is `sent` to it; the L1 change. `sent_next` may be `sent` itself."""
        change = 0.0
        for first, last, low, high in self._bounds():
            targets = self.targets[low:high]
            gathered = self.gathered[: last - first]
            np.take(sent, self.sources[first:last], out=gathered, mode="clip")
            new = np.add.reduceat(gathered, self.firsts[low:high] - first)
            new += base
            change += float(np.abs(new - scores[targets]).sum())
            scores[targets] = new
            sent_next[targets] = new * share[targets]
        return change
