"""Sources of pictures: each lists rows cheaply, and `open_image` gets the bytes of one.

    drawings, skin-tones     the ten drawing sets and their near-duplicates   npm:<package>@<version>/<entry>
    icons, cifar-10          further icon sets, small photographs             npm:<package>@<version>/<entry>
    openclipart, gcompris,   Debian's clip art, photographs, stamps           deb:<package>_<version>/<entry>
    tuxpaint
    a folder                 pictures with .txt or .json sidecars             file:<path>
    .parquet                 one row per picture                              parquet:<path>#<column>=<row>
    .tar                     WebDataset                                       tar:<path>#<member>
    a folder of .parquet or .tar shards
    .txt, .csv, .parquet     URLs; fetched by the stage `fetch` alone         https://...

A URI is all a worker needs, on any machine that sees the same paths.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from pleinair.curation.sources.cifar import CIFAR
from pleinair.curation.sources.collection import Collection, CollectionSource
from pleinair.curation.sources.drawings import (
    CLDR,
    DRAWINGS,
    SKIN_TONES,
    STYLES,
    TRAINING_STYLES,
    DrawingsSource,
    Style,
)
from pleinair.curation.sources.files import FolderSource, uri_path
from pleinair.curation.sources.gcompris import GCOMPRIS
from pleinair.curation.sources.icons import IconsSource
from pleinair.curation.sources.npm import FetchProgress, Package, fetch_packages, tarball_stem
from pleinair.curation.sources.openclipart import OPENCLIPART
from pleinair.curation.sources.rows import PictureRow, Source
from pleinair.curation.sources.shards import (
    SHARD_ROWS,
    ShardSource,
    read_parquet_picture,
    read_tar_picture,
    shard_source_name,
)
from pleinair.curation.sources.svg import looks_like_svg, rasterise
from pleinair.curation.sources.tuxpaint import TUXPAINT
from pleinair.curation.sources.urls import LIST_SUFFIXES, UrlSource, lists_urls
from pleinair.records.errors import SourceError

__all__ = [
    "CLDR",
    "SOURCE_NAMES",
    "STYLES",
    "TRAINING_STYLES",
    "DrawingsSource",
    "FetchProgress",
    "FolderSource",
    "Package",
    "PictureRow",
    "ShardSource",
    "Source",
    "Style",
    "fetch_packages",
    "find_source",
    "open_image",
]

COLLECTIONS: dict[str, Collection] = {each.name: each for each in (OPENCLIPART, GCOMPRIS, CIFAR, TUXPAINT)}
SOURCE_NAMES = (DRAWINGS, SKIN_TONES, IconsSource.name, *COLLECTIONS)
"""Sources that are packages, by the names a user types."""


def find_source(
    path_or_name: str,
    cache: Path,
    *,
    styles: Sequence[str] = (),
    on_progress: Callable[[FetchProgress], None] | None = None,
) -> Source:
    """The source a user means by a path or by one of `SOURCE_NAMES`.

    `styles` picks author sets of the drawings; for a path its first is the style of all pictures that name none.
    """
    if path_or_name in SOURCE_NAMES and not Path(path_or_name).exists():
        return _named_source(path_or_name, cache, styles, on_progress)
    path, style = Path(path_or_name), next(iter(styles), None)
    if path.is_dir():
        return _folder_source(path, style)
    if not path.exists():
        raise SourceError(
            f"no source {path_or_name!r}: give `drawings`, a folder, a .parquet file, a .tar shard or a list of URLs; "
            f"known by name are {', '.join(SOURCE_NAMES)}"
        )
    if path.suffix == ".parquet" and lists_urls(path):
        return UrlSource([path], style)
    if path.suffix in SHARD_ROWS:
        return ShardSource([path], shard_source_name(path.resolve()), style)
    if path.suffix in LIST_SUFFIXES:
        return UrlSource([path], style)
    raise SourceError(
        f"{path} is not a source: give `drawings`, a folder, a .parquet file, an uncompressed .tar shard, "
        "or URLs in a .txt, .csv or .parquet"
    )


def _named_source(
    name: str, cache: Path, styles: Sequence[str], on_progress: Callable[[FetchProgress], None] | None
) -> Source:
    if name in (DRAWINGS, SKIN_TONES):
        return DrawingsSource(cache, styles, on_progress, skin_tones=name == SKIN_TONES)
    if name == IconsSource.name:
        return IconsSource(cache, styles, on_progress)
    if styles:
        raise SourceError(f"{name} has one style: leave --style out")
    return CollectionSource(COLLECTIONS[name], cache, on_progress)


def _folder_source(folder: Path, style: str | None) -> Source:
    """A folder of shards when it holds shards and nothing says otherwise, else a folder of pictures."""
    for suffix in SHARD_ROWS:
        if shards := sorted(folder.glob(f"*{suffix}")):
            if suffix == ".parquet" and lists_urls(shards[0]):
                return UrlSource(shards, style, shard_source_name(folder.resolve()))
            return ShardSource(shards, shard_source_name(folder.resolve()), style)
    return FolderSource(folder, style)


def open_image(uri: str, cache: Path) -> bytes:
    """Bytes of a raster picture; vector drawings come as PNG with a transparent background.

    Raises SourceError when the place it names is gone or unreadable, ImageError when the picture there is broken.
    """
    scheme, _, rest = uri.partition(":")
    if scheme not in _OPENERS:
        raise SourceError(f"no way to open {uri!r}: known are {', '.join(_OPENERS)}")
    try:
        data = _OPENERS[scheme](rest, cache)
    except OSError as error:
        raise SourceError(
            f"{uri} cannot be read ({error.strerror or error}): put the file back or ingest its new place"
        ) from error
    return rasterise(data) if looks_like_svg(data) else data


def _open_file(rest: str, cache: Path) -> bytes:
    return uri_path(rest).read_bytes()


def _open_parquet(rest: str, cache: Path) -> bytes:
    path, _, place = rest.partition("#")
    column, _, number = place.rpartition("=")
    return read_parquet_picture(uri_path(path), unquote(column), int(number))


def _open_tar(rest: str, cache: Path) -> bytes:
    path, _, member = rest.partition("#")
    return read_tar_picture(uri_path(path), os.fsdecode(uri_path(member)))


def _open_npm(rest: str, cache: Path) -> bytes:
    spec, _, entry = rest.rpartition("/")
    return _open_entry(cache / "npm" / f"{tarball_stem(*spec.rsplit('@', 1))}.zip", entry, f"npm:{rest}")


def _open_deb(rest: str, cache: Path) -> bytes:
    spec, _, entry = rest.partition("/")
    return _open_entry(cache / "deb" / f"{spec}.zip", entry, f"deb:{rest}")


def _open_entry(archive: Path, entry: str, uri: str) -> bytes:
    try:
        return _opened_zip(str(archive)).read(entry)
    except (KeyError, zipfile.BadZipFile) as error:
        raise SourceError(f"{uri} is not in the cache {archive} ({error}): ingest its source again") from error


@lru_cache(maxsize=32)
def _opened_zip(path: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


_OPENERS: dict[str, Callable[[str, Path], bytes]] = {
    "deb": _open_deb,
    "file": _open_file,
    "npm": _open_npm,
    "parquet": _open_parquet,
    "tar": _open_tar,
}
