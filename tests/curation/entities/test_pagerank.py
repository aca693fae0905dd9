"""PageRank against dense linear algebra, a published example, and itself in other block sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pleinair.curation.entities import pagerank as module
from pleinair.curation.entities.graph import Graph, load_graph, write_graph
from pleinair.curation.entities.pagerank import NotConvergedError, order_by_rank, pagerank, power_steps

Floats = npt.NDArray[np.float64]


def graph_of(folder: Path, edges: list[tuple[int, int]], num_nodes: int) -> Graph:
    pairs = np.array(edges, np.int64).reshape(-1, 2)
    return write_graph(folder / "graph", [(pairs[:, 0], pairs[:, 1])], num_nodes)


def random_graph(folder: Path, seed: int = 0, num_nodes: int = 200) -> Graph:
    """A third of the nodes link nowhere, some are linked from nowhere."""
    rng = np.random.default_rng(seed)
    edges = zip(rng.integers(0, num_nodes * 2 // 3, 900), (num_nodes * rng.random(900) ** 3).astype(int), strict=True)
    return graph_of(folder, [(int(one), int(to)) for one, to in edges], num_nodes)


def dense_pagerank(graph: Graph, damping: float = 0.85) -> Floats:
    """The definition: nodes without links jump anywhere; solved as one linear system."""
    n = graph.num_nodes
    targets = np.repeat(np.arange(n), np.diff(graph.starts))
    step = np.zeros((n, n))
    step[targets, graph.sources] = 1.0 / graph.out_degree[graph.sources]
    step[:, graph.out_degree == 0] = 1.0 / n
    solved: Floats = np.linalg.solve(np.eye(n) - damping * step, np.full(n, (1 - damping) / n))
    return solved


@pytest.mark.parametrize("damping", [0.5, 0.85, 0.99])
def test_scores_are_those_of_the_definition(tmp_path: Path, damping: float) -> None:
    graph = random_graph(tmp_path)
    assert (graph.out_degree == 0).sum() > 50
    assert (np.diff(graph.starts) == 0).any()
    found = pagerank(graph, damping=damping, tolerance=1e-12)
    np.testing.assert_allclose(found.scores, dense_pagerank(graph, damping), rtol=1e-9)


def test_blocks_and_a_mapped_file_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = random_graph(tmp_path, seed=1)
    whole = pagerank(graph, tolerance=1e-13).scores
    monkeypatch.setattr(module, "BLOCK_EDGES", 7)
    np.testing.assert_allclose(pagerank(load_graph(tmp_path / "graph"), tolerance=1e-13).scores, whole, rtol=1e-10)


def test_thirty_steps_give_the_published_scores_of_the_eleven_pages(tmp_path: Path) -> None:
    """The example of the Wikipedia article, with the scores that danker's README prints for 30 steps from 1."""
    links = "BC CB DA DB EB ED EF FB FE GB GE HB HE IB IE KE LE".split()  # noqa: SIM905
    pages = "ABCDEFGHIKL"
    graph = graph_of(tmp_path, [(pages.index(one), pages.index(to)) for one, to in links], len(pages))
    scores = dict(zip(pages, power_steps(graph, steps=30, start=1.0).tolist(), strict=True))
    wanted = {"C": 3.18985350447380434, "B": 3.55722134157057246, "A": 0.30410528185694391, "D": 0.36260066319290651}
    wanted |= {"F": 0.36260066319290651, "E": 0.75035528185694389, **dict.fromkeys("GHIKL", 0.15)}
    assert scores == pytest.approx(wanted, rel=1e-14)


def test_many_plain_steps_reach_the_same_ranks_up_to_scale(tmp_path: Path) -> None:
    graph = random_graph(tmp_path, seed=2)
    plain = power_steps(graph, steps=400)
    np.testing.assert_allclose(plain / plain.sum(), pagerank(graph, tolerance=1e-13).scores, rtol=1e-9)


def test_ties_are_in_node_order_and_noise_is_a_tie() -> None:
    assert order_by_rank(np.array([0.2, 0.1, 0.3, 0.1 + 1e-15, 0.0, 0.3])).tolist() == [2, 5, 0, 1, 3, 4]


def test_wordnets_scores_sum_to_one_and_its_large_concepts_lead(wordnet_graph: Graph) -> None:
    found = pagerank(wordnet_graph)
    assert found.scores.sum() == pytest.approx(1.0)
    assert found.change <= 1e-10


def test_what_cannot_be_ranked_is_said(tmp_path: Path) -> None:
    graph = random_graph(tmp_path)
    with pytest.raises(ValueError, match="damping is 1.0"):
        pagerank(graph, damping=1.0)
    with pytest.raises(NotConvergedError, match="after 2 sweeps"):
        pagerank(graph, max_sweeps=2)
