"""WordNet's nouns, fetched once into the user's cache like any other package."""

from __future__ import annotations

import pytest

from pleinair.cli.places import cache_dir
from pleinair.curation.entities.concepts import Concepts
from pleinair.curation.entities.graph import Graph
from pleinair.curation.entities.wordnet import wordnet_concepts


@pytest.fixture(scope="session")
def wordnet(tmp_path_factory: pytest.TempPathFactory) -> Concepts:
    return wordnet_concepts(cache_dir(), tmp_path_factory.mktemp("wordnet") / "graph")


@pytest.fixture(scope="session")
def wordnet_graph(wordnet: Concepts) -> Graph:
    return wordnet.graph


@pytest.fixture(scope="session")
def glosses() -> list[str]:
    """Real sentences: what WordNet says of its nouns."""
    from pleinair.curation.entities.wordnet import PACKAGE, _member

    lines = _member(cache_dir() / "npm" / f"{PACKAGE.stem}.tgz", "data.noun")
    return [line.partition(" | ")[2].strip() for line in lines]
