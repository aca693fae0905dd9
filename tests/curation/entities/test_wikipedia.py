"""A small wiki through its dumps: articles, names, links; and WordNet's real graph written as a wiki."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pleinair.curation.entities.graph import Graph, write_graph
from pleinair.curation.entities.wikipedia import Articles, find_dumps, read_wikipedia
from pleinair.records.errors import SourceError
from tests.curation.entities.dump_files import Schema, Wiki, write_dumps

SMALL = Wiki(
    articles=["Mercury_(planet)", "O'Neill", "Paris", "Mercury"],
    redirects={
        "City_of_Light": "Paris",
        "Lutetia": "City_of_Light",
        "Round": "About",
        "About": "Round",
        "Gone": "Nowhere",
    },
    links=[
        ("Paris", "O'Neill"),
        ("Paris", "Lutetia"),  # itself, by a redirect of a redirect
        ("O'Neill", "Lutetia"),
        ("O'Neill", "Paris"),  # the same link again
        ("O'Neill", "Round"),
        ("Mercury", "Nowhere"),
        ("Mercury", "Mercury_(planet)"),
        ("City_of_Light", "Mercury"),  # a redirect's link is not an article's
    ],
    items={"Paris": 90, "Mercury_(planet)": 308},
    disambiguation=["Mercury"],
)


def edges(graph: Graph) -> set[tuple[int, int]]:
    targets = np.repeat(np.arange(graph.num_nodes), np.diff(graph.starts))
    return set(zip(np.asarray(graph.sources).tolist(), targets.tolist(), strict=True))


def read(wiki: Wiki, folder: Path, schema: Schema = "targets", **form: bool) -> tuple[Articles, Graph]:
    write_dumps(wiki, folder, schema, **form)
    return read_wikipedia(find_dumps(folder), folder / "graph")


@pytest.mark.parametrize("schema", ["titles", "both", "targets"])
@pytest.mark.parametrize("lines", [False, True])
def test_a_wiki_becomes_articles_names_and_links(tmp_path: Path, schema: Schema, lines: bool) -> None:
    articles, graph = read(SMALL, tmp_path, schema, lines=lines)
    assert articles.titles.to_pylist() == ["Mercury (planet)", "O'Neill", "Paris", "Mercury"]
    assert articles.items.tolist() == [308, 0, 90, 0]
    assert articles.disambiguation.tolist() == [False, False, False, True]
    named = zip(articles.redirect_titles.to_pylist(), articles.redirect_nodes.tolist(), strict=True)
    assert sorted(named) == [("City of Light", 2), ("Lutetia", 2)]
    assert edges(graph) == {(2, 1), (1, 2), (3, 0)}
    assert graph.out_degree.tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("schema", ["titles", "targets"])
def test_wordnets_graph_survives_being_a_wiki(tmp_path: Path, wordnet_graph: Graph, schema: Schema) -> None:
    some = sorted(link for link in edges(wordnet_graph) if max(link) < 20_000)
    wiki = Wiki([f"N'_{node}" for node in range(20_000)], [(f"N'_{one}", f"N'_{to}") for one, to in some])
    _, graph = read(wiki, tmp_path, schema)
    assert len(some) > 10_000
    assert edges(graph) == set(some)


def test_a_folder_without_a_dump_says_which(tmp_path: Path) -> None:
    write_dumps(SMALL, tmp_path)
    (tmp_path / "tinywiki-20240501-linktarget.sql.gz").unlink()
    with pytest.raises(SourceError, match="add the dump \\*-linktarget"):
        read_wikipedia(find_dumps(tmp_path), tmp_path / "graph")
    assert not (tmp_path / "graph").exists()
    assert not list(tmp_path.glob(".graph*"))
    (tmp_path / "tinywiki-20240501-page_props.sql.gz").unlink()
    with pytest.raises(SourceError, match="lacks \\*-page_props.sql.gz"):
        find_dumps(tmp_path)
    with pytest.raises(SourceError, match="there is no folder .*vital: give one with a wiki's SQL dumps, or 'wordnet'"):
        find_dumps(tmp_path / "vital")


def test_a_graph_has_every_link_once_whatever_the_batches(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sources, targets = rng.integers(0, 300, (2, 5000))
    batches = [(sources[first : first + 700], targets[first : first + 700]) for first in range(0, 5000, 700)]
    graph = write_graph(tmp_path / "graph", batches, 300)
    assert edges(graph) == {(one, to) for one, to in zip(sources.tolist(), targets.tolist(), strict=True) if one != to}
    assert graph.num_edges == len(edges(graph))
