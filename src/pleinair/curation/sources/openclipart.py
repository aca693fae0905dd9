"""The Open Clip Art Library, 2006: about 7,450 public-domain drawings with titles and keywords, full of near-duplicates.

The facts are in each drawing's own RDF; nothing is added. Links in the package stand for files that are listed already.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

from pleinair.curation.sources.collection import Collection, Entry
from pleinair.curation.sources.debian import DebianPackage, deb_files

_ROOT = "usr/share/openclipart/svg/"
_TAG = re.compile(r"<[^>]*>")


def _unpack(package: Path) -> Iterator[tuple[Entry, bytes]]:
    for name, data in deb_files(package, lambda name: name.startswith(_ROOT) and name.endswith(".svg")):
        yield _entry(name.removeprefix(_ROOT), data.decode("utf-8", "replace")), data


def _entry(name: str, document: str) -> Entry:
    return Entry(
        name=name,
        label=_first(document, "title"),
        tags=tuple(dict.fromkeys(tag for tag in map(_plain, _keywords(document)) if tag)),
        group_name=name.rpartition("/")[0] or None,
        # Everything in the package is dedicated to the public domain; the drawings say so too.
        licence="public domain",
        author=_agent(document),
        provenance=f"openclipart.org: {name}",
    )


def _keywords(document: str) -> list[str]:
    subject = re.search(r"<dc:subject\b.*?</dc:subject>", document, re.DOTALL)
    return re.findall(r"<rdf:li>(.*?)</rdf:li>", subject.group(0), re.DOTALL) if subject else []


def _first(document: str, element: str) -> str | None:
    """The work's own title: the first non-empty one outside the agents, else the drawing's `<title>`."""
    without_agents = re.sub(r"<cc:Agent\b.*?</cc:Agent>", "", document, flags=re.DOTALL)
    for pattern in (rf"<dc:{element}>(.*?)</dc:{element}>", rf"<{element}\b[^>]*>(.*?)</{element}>"):
        for text in re.findall(pattern, without_agents, re.DOTALL):
            if plain := _plain(text):
                return plain
    return None


def _agent(document: str) -> str | None:
    creator = re.search(r"<dc:creator>(.*?)</dc:creator>", document, re.DOTALL)
    title = creator and re.search(r"<dc:title>(.*?)</dc:title>", creator.group(1), re.DOTALL)
    return _plain(title.group(1)) if title else None


def _plain(text: str) -> str | None:
    """Text without markup, of printable characters on one line."""
    words = " ".join(unescape(_TAG.sub(" ", text)).split())
    return "".join(sign for sign in words if sign.isprintable())[:200] or None


OPENCLIPART = Collection(
    name="openclipart",
    package=DebianPackage(
        "openclipart-svg",
        "1:0.18+dfsg-19",
        24_919_068,
        "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
    ),
    style="clip art",
    unpack=_unpack,
)
