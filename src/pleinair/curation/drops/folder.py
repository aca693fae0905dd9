"""The drop report as a folder of pages.

    index.html  --click-->  probe-small.html, probe-small-2.html ...  --click-->  pictures/<id>.html
    stages x reasons        the pictures, nearest to the limit first                the whole row, the keeper, the history

The folder needs nothing but itself: pages without scripts, one style sheet, small pictures in `thumbs`. It appears by
rename, whole or not at all, and takes the place of an older one. Pictures and captions are strangers': all text is
escaped, and the pages' policy lets them load nothing from elsewhere.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from pleinair.curation.drops import views
from pleinair.curation.drops.reading import ReasonDrops, StageDrops, drop_stages, read_drops, read_rows
from pleinair.curation.stages import kept_where
from pleinair.curation.store import ObjectStore
from pleinair.curation.thumbnails import thumbnail_file
from pleinair.krablet import Database, Table
from pleinair.pages import style_sheet, write_page
from pleinair.records.errors import ConfigError, ImageError, SourceError

MOST = 400
"""Pictures shown of one reason."""
PER_PAGE = 100
_MARK = ".pleinair-drops"
Row = dict[str, Any]


@dataclass(frozen=True)
class Written:
    """What a report shows: drops there are, pictures with a page of their own, pages of lists."""

    num_dropped: int
    num_pictures: int
    num_pages: int


def write_drop_pages(
    db: Database,
    images: Table,
    store: ObjectStore,
    out: Path,
    *,
    most: int = MOST,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Written:
    """Write the report to the folder `out`. Raises ConfigError for a folder that holds something else."""
    if out.exists() and not (out / _MARK).exists():
        raise ConfigError(f"{out} is there and is no drop report: give another --out, or remove it")
    if most < 1:
        raise ConfigError(f"most is {most}: give at least 1 picture a reason")
    staging = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        done = _Folder(db, images, store, staging, on_progress).write(read_drops(images, most))
        _replace(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return done


def _replace(staging: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.old.{os.getpid()}")
    if out.exists():
        out.rename(old)
    staging.rename(out)
    shutil.rmtree(old, ignore_errors=True)


@dataclass(frozen=True)
class _Folder:
    db: Database
    images: Table
    store: ObjectStore
    root: Path
    on_progress: Callable[[int, int], None]

    def write(self, stages: Sequence[StageDrops]) -> Written:
        for folder in ("pictures", "thumbs"):
            (self.root / folder).mkdir(parents=True)
        (self.root / _MARK).touch()
        own = files("pleinair.curation.drops").joinpath("drops.css").read_text("utf-8")
        (self.root / "style.css").write_text(style_sheet() + own, encoding="utf-8")
        names = {drop.image_name for stage in stages for reason in stage.reasons for drop in reason.shown}
        self._picture_pages(sorted(names))
        num_pages = 0
        addresses = reason_addresses(stages)
        for stage in stages:
            for reason in stage.reasons:
                num_pages += self._reason_pages(reason, addresses)
        total = self.images.count()
        write_page(
            self.root / "index.html",
            views.index_page(stages, addresses, total, self.images.count(kept_where(self.images))),
        )
        return Written(sum(stage.num_dropped for stage in stages), len(names), num_pages)

    def _picture_pages(self, names: Sequence[str]) -> None:
        stages = drop_stages(self.images)
        for start in range(0, len(names), PER_PAGE):
            shown = self._rows(names[start : start + PER_PAGE])
            for name in names[start : start + PER_PAGE]:
                row = shown[name]
                keeper = shown.get(row["duplicate_of"]) if row["duplicate_of"] else None
                page = views.picture_page(row, keeper, stages)
                write_page(self.root / "pictures" / f"{page_id(name)}.html", page)
            self.on_progress(min(start + PER_PAGE, len(names)), len(names))

    def _reason_pages(self, reason: ReasonDrops, addresses: Mapping[tuple[str, str], str]) -> int:
        base = addresses[reason.stage, reason.kind]
        last = (len(reason.shown) + PER_PAGE - 1) // PER_PAGE
        for number in range(1, last + 1):
            shown = reason.shown[(number - 1) * PER_PAGE : number * PER_PAGE]
            rows = self._rows([drop.image_name for drop in shown])
            pager = [(str(other), page_address(base, other)) for other in range(1, last + 1)]
            text = views.reason_page(reason, shown, rows, number, pager)
            write_page(self.root / page_address(base, number), text)
        return last

    def _rows(self, names: Sequence[str]) -> dict[str, Row]:
        """Rows by name, those of the keepers too, each with `thumb`: its small picture's file name, None without one."""
        rows = {row["image_name"]: row for row in read_rows(self.db, self.images, names)}
        keepers = {row["duplicate_of"] for row in rows.values() if row["duplicate_of"]} - rows.keys()
        rows |= {row["image_name"]: row for row in read_rows(self.db, self.images, keepers)}
        for row in rows.values():
            row["thumb"], row["page"] = self._thumb(row["image_path"]), page_id(row["image_name"])
        return rows

    def _thumb(self, image_path: str | None) -> str | None:
        if image_path is None:
            return None
        name = f"{hashlib.sha256(image_path.encode()).hexdigest()[:24]}.webp"
        place = self.root / "thumbs" / name
        if not place.exists():
            try:
                link_or_copy(thumbnail_file(self.store, image_path), place)
            except (SourceError, ImageError):
                return None  # what the stages dropped as broken cannot be shown
        return name


def link_or_copy(source: Path, target: Path) -> None:
    """The same file at another place, without its bytes twice where the disk allows it."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def page_id(image_name: str) -> str:
    """File name of a picture's page, which no name can lead out of the folder."""
    return hashlib.sha256(image_name.encode()).hexdigest()[:20]


def page_address(base: str, number: int) -> str:
    """File of a list's page."""
    return f"{base}.html" if number == 1 else f"{base}-{number}.html"


def reason_addresses(stages: Sequence[StageDrops]) -> dict[tuple[str, str], str]:
    """By stage and kind, the file name of its first page without suffix; all differ."""
    taken: dict[tuple[str, str], str] = {}
    for reason in (reason for stage in stages for reason in stage.reasons):
        names = _names(reason.stage, reason.kind)
        taken[reason.stage, reason.kind] = next(name for name in names if name not in taken.values())
    return taken


def _names(stage: str, kind: str) -> Iterator[str]:
    plain = "".join(one if one.isascii() and one.isalnum() else "-" for one in kind.lower())[:40].strip("-")
    first = f"{stage}-{plain or 'reason'}"
    yield first
    # A trailing number would be the name of a second page.
    yield from (f"{first}-{letters}" for letters in ("b", "c", "d", "e", "f", "g"))
    yield f"{first}-{hashlib.sha256(kind.encode()).hexdigest()[:8]}"
