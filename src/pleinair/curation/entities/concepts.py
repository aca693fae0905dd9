"""Concepts of any origin, before they are ranked: what has a name, what links to what, what no picture can show."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pleinair.curation.entities.graph import Graph
from pleinair.curation.entities.names import unqualified
from pleinair.curation.entities.wikidata import Facts, read_wikidata, unrepresentable_items
from pleinair.curation.entities.wikipedia import Articles, OnTable, find_dumps, read_wikipedia
from pleinair.records.errors import SourceError

TITLE, QUALIFIED, ALIAS = 0, 1, 2
"""Priorities of names: a title, a title with its `(qualifier)` taken off, a redirect or alias."""
DISAMBIGUATION = "disambiguation page"
_LISTS = re.compile(r"^(Lists? of|Outline of|Index of|Timeline of|Glossary of|Comparison of) ")
_DATES = re.compile(
    r"^(\d{1,4}( BC)?|\d{1,4}0s( BC)?|\d{1,2}[a-z]{2} (century|millennium)( BC)?"
    r"|(January|February|March|April|May|June|July|August|September|October|November|December) \d{1,2})$"
)


@dataclass(frozen=True)
class Concepts:
    """Aligned by node of `graph`, but for the names, which are aligned among themselves."""

    keys: pa.Array
    """Unique text: `Q42`, `page:17`, `wn31:02084071`."""
    titles: pa.Array
    kinds: pa.Array
    """A word for what it is; null where nothing is known."""
    reasons: pa.Array
    """Why no picture can show it; null for what a picture can."""
    graph: Graph
    name_texts: pa.Array
    name_nodes: npt.NDArray[np.int64]
    name_priorities: npt.NDArray[np.int64]
    name_proper: npt.NDArray[np.int8]
    """1 written with a capital inside a sentence, 0 without, -1 not known."""


def reasons_of(scheme: str) -> dict[str, tuple[str, str]]:
    """The classes of a scheme that no picture can show: id -> (label, reason), in the order of the file."""
    text = files("pleinair.curation.entities").joinpath("unrepresentable.tsv").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines() if line and not line.startswith("#"))
    return {identifier: (label, reason) for given, identifier, label, reason in rows if given == scheme}


def wikipedia_concepts(
    folder: Path, graph_folder: Path, *, on_table: OnTable = lambda table, done, total: None
) -> Concepts:
    """Concepts of the dumps in `folder`; with a `*wikidata*.json[.gz|.bz2]` beside them, their types and labels too."""
    articles, graph = read_wikipedia(find_dumps(folder), graph_folder, on_table=on_table)
    facts = Facts.none()
    found = sorted(folder.glob("*wikidata*.json*"))
    if len(found) > 1:
        raise SourceError(f"{folder} holds {len(found)} Wikidata dumps: keep one of {found[0].name}, {found[1].name}")
    if found:
        facts = read_wikidata(found[0], articles.items, on_bytes=lambda done, size: on_table("wikidata", done, size))
    return _concepts(articles, graph, facts)


def _concepts(articles: Articles, graph: Graph, facts: Facts) -> Concepts:
    titles: list[str] = articles.titles.to_pylist()
    classes = reasons_of("wikidata")
    unseen = unrepresentable_items(facts, {int(one[1:]): label for one, (label, _) in classes.items()})
    node_of_item = {item: node for node, item in enumerate(articles.items.tolist()) if item}
    reasons = [_reason(title, odd) for title, odd in zip(titles, articles.disambiguation.tolist(), strict=True)]
    kinds: list[str | None] = [None] * len(titles)
    for item, label in unseen.items():
        if item in node_of_item:
            node = node_of_item[item]
            kinds[node] = label
            reasons[node] = reasons[node] or label
    texts, nodes = articles.redirect_titles.to_pylist(), articles.redirect_nodes.tolist()
    proper = [-1] * len(titles) + [-1] * len(texts)
    for item, text in facts.names:
        if (node := node_of_item.get(item, -1)) >= 0:
            texts.append(text)
            nodes.append(node)
            proper.append(int(text[:1].isupper()))
    for node, capital in _title_capitals(titles, node_of_item, facts.labels).items():
        proper[node] = capital
    priorities = [TITLE if unqualified(title) == title else QUALIFIED for title in titles] + [ALIAS] * len(texts)
    return Concepts(
        keys=pa.array(_keys(articles)),
        titles=articles.titles,
        kinds=pa.array(kinds, pa.string()),
        reasons=pa.array(reasons, pa.string()),
        graph=graph,
        name_texts=pa.array(titles + texts, pa.string()),
        name_nodes=np.concatenate([np.arange(len(titles)), np.array(nodes, np.int64)]),
        name_priorities=np.array(priorities, np.int64),
        name_proper=np.array(proper, np.int8),
    )


def _keys(articles: Articles) -> list[str]:
    """The Wikidata item of an article, else its page; also where two articles claim one item, of the later one."""
    keys, seen = [], set()
    for item, page in zip(articles.items.tolist(), articles.page_ids.tolist(), strict=True):
        keys.append(f"Q{item}" if item and item not in seen else f"page:{page}")
        seen.add(item)
    return keys


def _reason(title: str, disambiguation: bool) -> str | None:
    if disambiguation:
        return DISAMBIGUATION
    if _LISTS.match(title):
        return "list"
    return "date" if _DATES.match(title) else None


def _title_capitals(titles: list[str], node_of_item: Mapping[int, int], labels: Mapping[int, str]) -> dict[int, int]:
    """Whether a title is written with a capital, where the item's label is the same word: labels keep a noun's case."""
    found = {}
    for item, label in labels.items():
        node = node_of_item.get(item, -1)
        if node >= 0 and label.casefold() == titles[node].casefold():
            found[node] = int(label[:1].isupper())
    return found
