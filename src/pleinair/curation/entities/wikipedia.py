"""Articles, their names and their links from a Wikipedia's SQL dumps.

    page      -> articles and redirects of the main namespace          redirect  -> the article behind each redirect
    page_props -> Wikidata item, disambiguation pages                  linktarget -> the article behind each link target
    pagelinks -> links between articles, redirects resolved, each pair once

Titles are joined exactly (Arrow's `index_in`), in batches of JOIN_ROWS because each join hashes all titles anew; links
are then integers only. Before MediaWiki 1.43 pagelinks holds the title itself and there may be no linktarget: both work.
Memory is that of the main namespace's titles and a few integers per page and link target; the links are never held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pleinair.curation.entities.dumps import read_dump
from pleinair.curation.entities.graph import Graph, Ints, write_graph
from pleinair.records.errors import SourceError

JOIN_ROWS = 4_000_000
TABLES = ("page", "redirect", "page_props", "linktarget", "pagelinks")
OnTable = Callable[[str, int, int], None]
"""Told the table being read, bytes of the file read so far, and its size."""


@dataclass(frozen=True)
class Articles:
    """The articles of a wiki; a node is a place in these arrays, in the order of page ids."""

    page_ids: npt.NDArray[np.int64]
    titles: pa.Array
    """As displayed, with blanks."""
    items: npt.NDArray[np.int64]
    """Number of the Wikidata item (42 for Q42), 0 where there is none."""
    disambiguation: npt.NDArray[np.bool_]
    redirect_titles: pa.Array
    redirect_nodes: npt.NDArray[np.int64]
    """The article each redirect leads to."""


@dataclass(frozen=True)
class _Pages:
    """The main namespace, redirects included, in the order of page ids."""

    ids: npt.NDArray[np.int64]
    titles: pa.Array
    is_redirect: npt.NDArray[np.bool_]
    node: npt.NDArray[np.int32]
    """Node of the article, or of the one a redirect leads to; -1 where it leads nowhere."""

    def places_of_ids(self, ids: Ints) -> npt.NDArray[np.int64]:
        """Place of each page id, -1 for pages of other namespaces."""
        at = np.minimum(np.searchsorted(self.ids, ids), max(0, len(self.ids) - 1))
        return np.where(self.ids[at] == ids, at, -1)

    def nodes_of_titles(self, titles: pa.Array) -> npt.NDArray[np.int32]:
        """Node behind each title, -1 for none."""
        return _or_none(self.node, _index_in(titles, self.titles))


def find_dumps(folder: Path) -> dict[str, Path]:
    """The dumps of one wiki in a folder, by table: `*-page.sql.gz` or `page.sql`, and so on. Raises SourceError."""
    if not folder.is_dir():
        raise SourceError(f"there is no folder {folder}: give one with a wiki's SQL dumps, or 'wordnet'")
    found: dict[str, Path] = {}
    for table in TABLES:
        paths = [path for path in sorted(folder.glob(f"*{table}.sql*")) if _table_of(path) == table]
        if len(paths) > 1:
            raise SourceError(f"{folder} holds {len(paths)} dumps of {table}: keep those of one wiki and one day")
        if paths:
            found[table] = paths[0]
    missing = [table for table in ("page", "redirect", "page_props", "pagelinks") if table not in found]
    if missing:
        raise SourceError(f"{folder} lacks *-{missing[0]}.sql.gz: download the dumps {', '.join(TABLES)} of one wiki")
    return found


def _table_of(path: Path) -> str:
    return path.name.split(".sql")[0].rsplit("-", 1)[-1]


def read_wikipedia(
    dumps: dict[str, Path], graph_folder: Path, *, on_table: OnTable = lambda table, done, total: None
) -> tuple[Articles, Graph]:
    """Articles with their names, and the graph of their links, written to `graph_folder`."""
    reader = _Reader(dumps, on_table)
    pages = _read_pages(reader)
    articles = np.flatnonzero(~pages.is_redirect)
    items, disambiguation = _read_props(reader, pages, len(articles))
    by_target = _read_targets(reader, pages)
    graph = write_graph(graph_folder, _links(reader, pages, by_target), len(articles))
    redirects = np.flatnonzero(pages.is_redirect & (pages.node >= 0))
    found = Articles(
        page_ids=pages.ids[articles],
        titles=_shown(pages.titles.take(pa.array(articles))),
        items=items,
        disambiguation=disambiguation,
        redirect_titles=_shown(pages.titles.take(pa.array(redirects))),
        redirect_nodes=pages.node[redirects].astype(np.int64),
    )
    return found, graph


class _Reader:
    def __init__(self, dumps: dict[str, Path], on_table: OnTable) -> None:
        self.dumps = dumps
        self.on_table = on_table

    def rows(self, table: str, *columns: str, optional: tuple[str, ...] = ()) -> Iterator[pa.RecordBatch]:
        def tell(done: int, total: int) -> None:
            self.on_table(table, done, total)

        return read_dump(self.dumps[table], table, columns, optional=optional, on_bytes=tell)


def _read_pages(reader: _Reader) -> _Pages:
    kept = []
    for batch in reader.rows("page", "page_id", "page_namespace", "page_title", "page_is_redirect"):
        kept.append(batch.filter(pc.equal(batch["page_namespace"], 0)).select([0, 2, 3]))
    if not sum(map(len, kept)):
        raise SourceError(f"{reader.dumps['page']} holds no page of the main namespace: give a wiki's page dump")
    pages = pa.Table.from_batches(kept).sort_by("page_id").combine_chunks()
    ids = pages["page_id"].to_numpy()
    titles = pages["page_title"].combine_chunks()
    is_redirect = pages["page_is_redirect"].to_numpy().astype(bool)
    unresolved = _Pages(ids, titles, is_redirect, np.empty(0, np.int32))
    place = _read_redirects(reader, unresolved)
    number = np.where(is_redirect, -1, np.cumsum(~is_redirect) - 1).astype(np.int32)
    return _Pages(ids, titles, is_redirect, _or_none(number, place))


def _read_redirects(reader: _Reader, pages: _Pages) -> npt.NDArray[np.int64]:
    """Where each page leads in the end: itself for an article, -1 for a redirect into nothing or in a circle."""
    leads = np.where(pages.is_redirect, -1, np.arange(len(pages.ids)))
    for batch in _joined(reader.rows("redirect", "rd_from", "rd_namespace", "rd_title"), JOIN_ROWS):
        batch = batch.filter(pc.equal(batch["rd_namespace"], 0))
        origin = pages.places_of_ids(batch["rd_from"].to_numpy())
        target = _index_in(batch["rd_title"].combine_chunks(), pages.titles)
        known = origin >= 0
        known[known] = pages.is_redirect[origin[known]]
        leads[origin[known]] = target[known]
    return _followed(leads, pages.is_redirect)


def _followed(leads: npt.NDArray[np.int64], is_redirect: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Redirects of redirects followed to their end, each round twice as far; circles end at a redirect and go."""
    for _ in range(6):
        leads = _or_none(leads, leads)
    return np.where((leads >= 0) & ~is_redirect[leads], leads, -1)


def _read_props(
    reader: _Reader, pages: _Pages, num_articles: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    items, disambiguation = np.zeros(num_articles, np.int64), np.zeros(num_articles, bool)
    for batch in reader.rows("page_props", "pp_page", "pp_propname", "pp_value"):
        for name in (b"wikibase_item", b"disambiguation"):
            rows = batch.filter(pc.equal(batch["pp_propname"], name))
            place = pages.places_of_ids(rows["pp_page"].to_numpy())
            article = (place >= 0) & ~pages.is_redirect[place]
            nodes = pages.node[place[article]]
            if name == b"disambiguation":
                disambiguation[nodes] = True
            else:
                items[nodes] = _item_numbers(rows["pp_value"])[article]
    return items, disambiguation


def _item_numbers(values: pa.Array) -> npt.NDArray[np.int64]:
    """`Q42` -> 42."""
    digits = pc.replace_substring_regex(pc.cast(values, pa.string()), pattern="^Q", replacement="")
    found: npt.NDArray[np.int64] = pc.cast(digits, pa.int64()).to_numpy()
    return found


def _read_targets(reader: _Reader, pages: _Pages) -> npt.NDArray[np.int32]:
    """Node behind each link target's number, -1 for none; empty for dumps without link targets."""
    nodes = np.empty(0, np.int32)
    if "linktarget" not in reader.dumps:
        return nodes
    for batch in _joined(reader.rows("linktarget", "lt_id", "lt_namespace", "lt_title"), JOIN_ROWS):
        batch = batch.filter(pc.equal(batch["lt_namespace"], 0))
        if len(batch):
            numbers = batch["lt_id"].to_numpy()
            nodes = _grown(nodes, int(numbers.max()) + 1)
            nodes[numbers] = pages.nodes_of_titles(batch["lt_title"].combine_chunks())
    return nodes


def _grown(array: npt.NDArray[np.int32], size: int) -> npt.NDArray[np.int32]:
    return np.concatenate([array, np.full(size - len(array), -1, np.int32)]) if size > len(array) else array


def _links(reader: _Reader, pages: _Pages, by_target: npt.NDArray[np.int32]) -> Iterator[tuple[Ints, Ints]]:
    """Batches of (source, target) nodes. Links on redirect pages are not links of an article."""
    article = np.full(int(pages.ids[-1]) + 1, -1, np.int32)
    article[pages.ids] = np.where(pages.is_redirect, -1, pages.node)
    titled = ("pl_namespace", "pl_title", "pl_target_id")
    rows = reader.rows("pagelinks", "pl_from", "pl_from_namespace", optional=titled)
    first = next(rows, None)
    if first is None:
        return
    by_title = "pl_title" in first.schema.names
    if not by_title and not len(by_target):
        raise SourceError(f"{reader.dumps['pagelinks']} refers to link targets: add the dump *-linktarget.sql.gz")
    for batch in _joined(_chained(first, rows), JOIN_ROWS if by_title else 1):
        batch = batch.filter(pc.equal(batch["pl_from_namespace"], 0))
        if by_title:
            batch = batch.filter(pc.equal(batch["pl_namespace"], 0))
            targets = pages.nodes_of_titles(batch["pl_title"].combine_chunks())
        else:
            batch = batch.filter(pc.is_valid(batch["pl_target_id"]))
            targets = _lookup(by_target, batch["pl_target_id"].to_numpy())
        sources = _lookup(article, batch["pl_from"].to_numpy())
        both = (sources >= 0) & (targets >= 0)
        yield sources[both], targets[both]


def _chained(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from rest


def _joined(batches: Iterator[pa.RecordBatch], num_rows: int) -> Iterator[pa.Table]:
    """Batches put together to tables of at least `num_rows` rows."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(map(len, held)) >= num_rows:
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)


def _index_in(values: pa.Array, among: pa.Array) -> npt.NDArray[np.int64]:
    places = pc.fill_null(pc.index_in(values, value_set=among), -1)
    found: npt.NDArray[np.int64] = places.to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def _lookup(table: npt.NDArray[np.int32], numbers: Ints) -> npt.NDArray[np.int32]:
    """`table[numbers]`, -1 for numbers beyond it."""
    inside = numbers < len(table)
    return np.where(inside, table[np.where(inside, numbers, 0)], np.int32(-1))


def _or_none(values: npt.NDArray[Any], places: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """`values[places]`, -1 where the place is -1."""
    return np.where(places >= 0, values[places], np.array(-1, values.dtype))


def _shown(titles: pa.Array) -> pa.Array:
    """Titles as displayed; bytes that are not UTF-8 are replaced by U+FFFD, which no caption holds."""
    try:
        text = pc.cast(titles, pa.string())
    except pa.ArrowInvalid:
        text = pa.array([title.decode("utf-8", "replace") for title in titles.to_pylist()], pa.string())
    return pc.replace_substring(text, pattern="_", replacement=" ")
