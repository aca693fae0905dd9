"""Contact sheets as pages: the pictures nearest to each cluster's centre, the pictures each feature fires on most.

One file per page, pictures inside, the licence of each under it; a decision is a command to copy, as a page runs no script.
"""

from __future__ import annotations

import io
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pleinair.curation.clusters.warehouse import ClusterRow
from pleinair.curation.pictures import decode
from pleinair.curation.store import ObjectStore
from pleinair.curation.tags import FeatureTag
from pleinair.krablet import Table
from pleinair.model.sparse_autoencoder import Quality
from pleinair.pages import GridCell, Html, Section, code, element, headline_figures, join, page, strip, write_page

THUMB_SIDE = 72


@dataclass(frozen=True)
class Pictured:
    """What a sheet shows of a picture."""

    image_path: str
    licence: str | None
    author: str | None
    label: str | None


def read_pictured(images: Table, names: Sequence[str]) -> dict[str, Pictured]:
    """Facts of some pictures, by name."""
    columns = ["image_name", "image_path", "licence", "author", "label"]
    found = images.read(where="image_name = ANY(%(names)s)", params={"names": list(names)}, columns=columns)
    return {row.pop("image_name"): Pictured(**row) for batch in found for row in batch.to_pylist()}


def picture_strip(names: Sequence[str], pictured: Mapping[str, Pictured], store: ObjectStore) -> Html:
    """The pictures in a line, each with its licence."""
    cells = [
        GridCell(
            picture=thumbnail(store, pictured[name]), alt=pictured[name].label or name, note=licence_of(pictured[name])
        )
        for name in names
        if name in pictured
    ]
    return strip(cells)


def licence_of(pictured: Pictured) -> str:
    """Licence and author as a sheet prints them."""
    return " ".join(filter(None, (pictured.licence or "licence unknown", pictured.author)))


def thumbnail(store: ObjectStore, pictured: Pictured) -> bytes:
    """A small WebP of the picture."""
    picture = Image.fromarray(decode(store.get(pictured.image_path)))
    picture.thumbnail((THUMB_SIDE, THUMB_SIDE), Image.Resampling.LANCZOS)
    written = io.BytesIO()
    picture.save(written, "WEBP", quality=80)
    return written.getvalue()


def write_cluster_page(
    path: Path, clusters: Sequence[ClusterRow], flagged: Sequence[ClusterRow], images: Table, store: ObjectStore
) -> None:
    """Flagged clusters with the commands that decide on them, then the clusters of every level but the finest."""
    shown = [*flagged, *(row for row in clusters if row.level > 0)]
    pictured = read_pictured(images, sorted({name for row in shown for name in row.nearest}))
    by_level = Counter(row.level for row in clusters)
    sections = [
        Section(
            heading=f"To review: {len(flagged)}",
            lead="Keep or drop each with its command. A decision holds for the cluster and all below it.",
            body=join(_cluster(row, pictured, store, commands=True) for row in flagged),
        ),
        *(
            Section(
                heading=f"Level {level}: {by_level[level]} clusters",
                body=join(_cluster(row, pictured, store) for row in clusters if row.level == level),
            )
            for level in sorted(by_level, reverse=True)
            if level > 0
        ),
    ]
    figures = headline_figures(
        [
            (
                f"{by_level[0]:,}",
                "leaf clusters",
                f"of {sum(row.size for row in clusters if row.level == 0):,} pictures",
            ),
            (str(len(flagged)), "to review", "flagged, undecided"),
        ]
    )
    write_page(
        path, page("Clusters", figures, sections, kicker="curation", footer="Pictures under the licences named.")
    )


def _cluster(row: ClusterRow, pictured: Mapping[str, Pictured], store: ObjectStore, *, commands: bool = False) -> Html:
    heading = element("h3", f"{row.name} ({row.cluster}, {row.size:,} pictures)")
    flags = element("p", "; ".join(row.flags), class_="lead") if row.flags else Html("")
    shown = picture_strip(row.nearest, pictured, store)
    if not commands:
        return join([heading, flags, shown])
    place = shlex.quote(row.cluster)
    return join(
        [heading, flags, shown, code(f"pleinair review keep {place}\npleinair review drop {place} --reason ''")]
    )


def write_tag_page(
    path: Path,
    tags: Sequence[FeatureTag],
    names: Sequence[str],
    quality: Quality,
    images: Table,
    store: ObjectStore,
    *,
    most: int = 150,
    pictures_each: int = 12,
) -> None:
    """A sheet of every named feature, widest first, then of nameless ones, `most` of each."""
    ordered = sorted(tags, key=lambda tag: -tag.num_firing)
    kinds = (
        ("Named features", [tag for tag in ordered if tag.word is not None][:most]),
        ("Features without a name", [tag for tag in ordered if tag.word is None][:most]),
    )
    chosen = {names[row] for _, shown in kinds for tag in shown for row in tag.top[:pictures_each]}
    pictured = read_pictured(images, sorted(chosen))
    sections = [
        Section(
            heading=heading,
            lead="The pictures each feature fires on most, strongest first.",
            body=join(_feature(tag, [names[row] for row in tag.top[:pictures_each]], pictured, store) for tag in shown),
        )
        for heading, shown in kinds
    ]
    figures = headline_figures(
        [
            (f"{sum(tag.word is not None for tag in tags):,}", "named features", f"of {len(tags):,} that fire"),
            (f"{quality.unexplained:.2f}", "variance unexplained", "on vectors kept out of training"),
            (f"{quality.cosine:.2f}", "cosine", f"{quality.active:.0f} features active"),
            (f"{quality.dead_share:.0%}", "dead", "fire on none of those vectors"),
        ]
    )
    write_page(path, page("Tags", figures, sections, kicker="curation", footer="Pictures under the licences named."))


def _feature(tag: FeatureTag, names: Sequence[str], pictured: Mapping[str, Pictured], store: ObjectStore) -> Html:
    said = f"{tag.word}: precision {tag.precision:.2f}, recall {tag.recall:.2f}" if tag.word else "no word fits"
    return join(
        [
            element("h3", f"{tag.word or 'feature'} #{tag.feature}"),
            element("p", f"{said}; fires on {tag.num_firing:,} pictures", class_="lead"),
            picture_strip(names, pictured, store),
        ]
    )
