"""Writes a small wiki as the SQL dumps a real one publishes, before, during and after MediaWiki 1.43."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Schema = Literal["titles", "both", "targets"]
Value = str | int | float | None

_CREATE = {
    "page": """  `page_id` int(8) unsigned NOT NULL AUTO_INCREMENT,
  `page_namespace` int(11) NOT NULL DEFAULT 0,
  `page_title` varbinary(255) NOT NULL DEFAULT '',
  `page_is_redirect` tinyint(1) unsigned NOT NULL DEFAULT 0,
  `page_is_new` tinyint(1) unsigned NOT NULL DEFAULT 0,
  `page_random` double unsigned NOT NULL DEFAULT 0,
  `page_touched` binary(14) NOT NULL,
  `page_links_updated` varbinary(14) DEFAULT NULL,
  `page_latest` int(8) unsigned NOT NULL DEFAULT 0,
  `page_len` int(8) unsigned NOT NULL DEFAULT 0,
  `page_content_model` varbinary(32) DEFAULT NULL,
  `page_lang` varbinary(35) DEFAULT NULL,
  PRIMARY KEY (`page_id`)""",
    "redirect": """  `rd_from` int(8) unsigned NOT NULL DEFAULT 0,
  `rd_namespace` int(11) NOT NULL DEFAULT 0,
  `rd_title` varbinary(255) NOT NULL DEFAULT '',
  `rd_interwiki` varbinary(32) DEFAULT NULL,
  `rd_fragment` varbinary(255) DEFAULT NULL,
  PRIMARY KEY (`rd_from`)""",
    "page_props": """  `pp_page` int(11) NOT NULL,
  `pp_propname` varbinary(60) NOT NULL,
  `pp_value` blob NOT NULL,
  `pp_sortkey` float DEFAULT NULL,
  PRIMARY KEY (`pp_page`,`pp_propname`)""",
    "linktarget": """  `lt_id` bigint(20) unsigned NOT NULL AUTO_INCREMENT,
  `lt_namespace` int(11) NOT NULL,
  `lt_title` varbinary(255) NOT NULL,
  PRIMARY KEY (`lt_id`)""",
    "pagelinks-titles": """  `pl_from` int(8) unsigned NOT NULL DEFAULT 0,
  `pl_namespace` int(11) NOT NULL DEFAULT 0,
  `pl_title` varbinary(255) NOT NULL DEFAULT '',
  `pl_from_namespace` int(11) NOT NULL DEFAULT 0,
  PRIMARY KEY (`pl_from`,`pl_namespace`,`pl_title`)""",
    "pagelinks-both": """  `pl_from` int(8) unsigned NOT NULL DEFAULT 0,
  `pl_namespace` int(11) NOT NULL DEFAULT 0,
  `pl_title` varbinary(255) NOT NULL DEFAULT '',
  `pl_from_namespace` int(11) NOT NULL DEFAULT 0,
  `pl_target_id` bigint(20) unsigned DEFAULT NULL,
  PRIMARY KEY (`pl_from`,`pl_namespace`,`pl_title`)""",
    "pagelinks-targets": """  `pl_from` int(8) unsigned NOT NULL DEFAULT 0,
  `pl_from_namespace` int(11) NOT NULL DEFAULT 0,
  `pl_target_id` bigint(20) unsigned NOT NULL,
  PRIMARY KEY (`pl_from`,`pl_target_id`)""",
}


@dataclass
class Wiki:
    """Pages of the main namespace by title (underscores), and what they lead and link to."""

    articles: Sequence[str]
    links: Sequence[tuple[str, str]] = ()
    """From a page's title to any title, also of a redirect or of no page."""
    redirects: Mapping[str, str] = field(default_factory=dict)
    items: Mapping[str, int] = field(default_factory=dict)
    disambiguation: Sequence[str] = ()

    def page_id(self, title: str) -> int:
        return self._ids[title]

    def __post_init__(self) -> None:
        # Ids with gaps, as deleted pages leave them.
        titles = [*self.articles, *self.redirects]
        self._ids = {title: 10 + 3 * number for number, title in enumerate(titles)}


def write_dumps(wiki: Wiki, folder: Path, schema: Schema = "targets", **form: bool) -> None:
    """The five dumps (four for the oldest schema); see `write_table` for `form`."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = [
        (
            wiki.page_id(title),
            0,
            title,
            int(title in wiki.redirects),
            0,
            0.3,
            "20240501000000",
            None,
            7,
            9,
            "wikitext",
            None,
        )
        for title in [*wiki.articles, *wiki.redirects]
    ]
    talk: tuple[Value, ...] = (5, 1, wiki.articles[0], 0, 0, 0.5, "20240501000000", None, 7, 9, "wikitext", None)
    write_table(folder, "page", [talk, *pages], **form)
    write_table(folder, "redirect", [(wiki.page_id(one), 0, to, "", "") for one, to in wiki.redirects.items()], **form)
    props: list[tuple[Value, ...]] = [
        (wiki.page_id(one), "wikibase_item", f"Q{item}", None) for one, item in wiki.items.items()
    ]
    props += [(wiki.page_id(one), "disambiguation", "", None) for one in wiki.disambiguation]
    props.append((5, "wikibase-shortdesc", "the \"talk\" of\n'all'", None))
    write_table(folder, "page_props", props, **form)
    targets = {title: 100 + 7 * number for number, title in enumerate(dict.fromkeys(to for _, to in wiki.links))}
    if schema != "titles":
        rows = [(number, 0, title) for title, number in targets.items()]
        write_table(folder, "linktarget", [(3, 14, wiki.articles[0]), *rows], **form)
    links: Iterable[tuple[Value, ...]]
    if schema == "targets":
        links = [(5, 1, 100), *((wiki.page_id(one), 0, targets[to]) for one, to in wiki.links)]
    else:
        links = [(wiki.page_id(one), 0, to, 0, None)[: 4 + (schema == "both")] for one, to in wiki.links]
    write_table(folder, "pagelinks", links, create=f"pagelinks-{schema}", **form)


def write_table(
    folder: Path,
    table: str,
    rows: Iterable[Sequence[Value]],
    *,
    create: str | None = None,
    lines: bool = False,
    rows_per_insert: int = 20_000,
) -> Path:
    """One gzipped dump; with `lines` each tuple on a line of its own, as newer mariadb-dump writes them."""
    path = folder / f"tinywiki-20240501-{table}.sql.gz"
    rows = list(rows)
    between = ",\n" if lines else ","
    with gzip.open(path, "wt", compresslevel=1, encoding="utf-8", newline="\n") as file:
        file.write(
            f"-- MySQL dump 10.19\n\nDROP TABLE IF EXISTS `{table}`;\n/*!40101 SET character_set_client = utf8 */;\n"
        )
        file.write(f"CREATE TABLE `{table}` (\n{_CREATE[create or table]}\n) ENGINE=InnoDB DEFAULT CHARSET=binary;\n\n")
        file.write(f"LOCK TABLES `{table}` WRITE;\n/*!40000 ALTER TABLE `{table}` DISABLE KEYS */;\n")
        for first in range(0, len(rows), rows_per_insert):
            tuples = between.join(_tuple(row) for row in rows[first : first + rows_per_insert])
            file.write(f"INSERT INTO `{table}` VALUES{chr(10) if lines else ' '}{tuples};\n")
        file.write("UNLOCK TABLES;\n\n-- Dump completed on 2024-05-01  7:00:00\n")
    return path


def _tuple(row: Sequence[Value]) -> str:
    return "(" + ",".join(_value(value) for value in row) + ")"


def _value(value: Value) -> str:
    if value is None:
        return "NULL"
    return "'" + value.translate(_ESCAPES) + "'" if isinstance(value, str) else str(value)


_ESCAPES = str.maketrans({"\\": "\\\\", "'": "\\'", '"': '\\"', "\n": "\\n", "\r": "\\r", "\0": "\\0", "\x1a": "\\Z"})
