"""Packages of drawings, unpacked once into a zip with one entry per drawing.

An Iconify set is one JSON of up to 100 MB, and a compressed tarball has no random access; a worker that wants one
drawing must not read either. The zip opens in milliseconds, any tool can look into it, and it appears by rename.

    <cache>/noto.tgz (icons.json, chars.json)   ->  <cache>/noto.zip (red-apple.svg ..., index.json)
    <cache>/fluent-3d.tgz (assets/1f34e.webp)   ->  <cache>/fluent-3d.zip (1f34e.webp ...)
"""

from __future__ import annotations

import json
import os
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pleinair.records.errors import SourceError

_INDEX = "index.json"


@dataclass(frozen=True)
class IconIndex:
    """What a set holds: names of icons, other names for them, and code points."""

    icons: frozenset[str]
    aliases: dict[str, str]
    """Other name -> icon."""
    code_points: dict[str, str]
    """Hex code points joined by dashes -> icon or alias."""


def unpack_icons(tarball: Path) -> Path:
    """The zip of an Iconify package, beside its tarball, made on first use. Raises SourceError if it is none."""
    return _unpacked(tarball, _write_icons)


def unpack_files(tarball: Path, suffix: str) -> Path:
    """The zip of all files of a package that end in `suffix`, under their bare names. Raises SourceError."""
    return _unpacked(tarball, lambda file, archive: _write_files(file, archive, suffix))


def _unpacked(tarball: Path, write: Callable[[tarfile.TarFile, zipfile.ZipFile], None]) -> Path:
    target = tarball.with_suffix(".zip")
    if target.exists() and target.stat().st_mtime_ns >= tarball.stat().st_mtime_ns:
        return target
    handle, temporary = tempfile.mkstemp(prefix=".unpack-", dir=tarball.parent)
    try:
        with (
            os.fdopen(handle, "wb") as out,
            zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            tarfile.open(tarball) as file,
        ):
            write(file, archive)
        os.replace(temporary, target)
    except (tarfile.TarError, EOFError, KeyError, ValueError, zlib.error) as error:
        raise SourceError(
            f"{tarball} is not the package it should be ({error}): delete it and run the same command again"
        ) from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    return target


def _write_icons(file: tarfile.TarFile, archive: zipfile.ZipFile) -> None:
    icons, characters = (_json_member(file, f"package/{name}.json") for name in ("icons", "chars"))
    names = set()
    for name, document in _documents(icons):
        archive.writestr(f"{name}.svg", document)
        names.add(name)
    drawn = {name: _leads_to(icons, name) for name in icons.get("aliases", {})}
    aliases = {name: drawing for name, drawing in drawn.items() if drawing in names and drawing != name}
    archive.writestr(_INDEX, json.dumps({"icons": sorted(names), "aliases": aliases, "code_points": characters}))


def _write_files(file: tarfile.TarFile, archive: zipfile.ZipFile, suffix: str) -> None:
    for member in file:
        content = file.extractfile(member) if member.name.endswith(suffix) else None
        if content is not None:
            archive.writestr(Path(member.name).name, content.read(), zipfile.ZIP_STORED)


def _json_member(file: tarfile.TarFile, name: str) -> Any:
    member = file.extractfile(name)
    if member is None:
        raise KeyError(f"{name} is not a file")
    return json.load(member)


def read_index(archive: Path) -> IconIndex:
    """The index of an unpacked set."""
    with zipfile.ZipFile(archive) as file:
        index = json.loads(file.read(_INDEX))
    return IconIndex(frozenset(index["icons"]), index["aliases"], index["code_points"])


def _documents(icons: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, SVG document) of every icon in use and of every alias that mirrors one."""
    for name, icon in icons["icons"].items():
        if not icon.get("hidden"):
            yield name, _document(icons, icon, "")
    for name, alias in icons.get("aliases", {}).items():
        base = icons["icons"].get(_leads_to(icons, alias["parent"]))
        if _is_mirrored(alias) and base:
            yield name, _document(icons, base, _transform(alias, _box(icons, base)))


def _document(icons: dict[str, Any], icon: dict[str, Any], transform: str) -> str:
    left, top, width, height = _box(icons, icon)
    body = f'<g transform="{transform}">{icon["body"]}</g>' if transform else icon["body"]
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {names} viewBox="{left} {top} {width} {height}">{body}</svg>'


def _box(icons: dict[str, Any], icon: dict[str, Any]) -> tuple[float, float, float, float]:
    left, top, width, height = (
        icon.get(key, icons.get(key, default))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    return left, top, width, height


def _is_mirrored(alias: dict[str, Any]) -> bool:
    return bool(alias.get("hFlip") or alias.get("vFlip"))


def _transform(alias: dict[str, Any], box: tuple[float, float, float, float]) -> str:
    left, top, width, height = box
    mirrored = f"translate({2 * left + width} 0) scale(-1 1)" if alias.get("hFlip") else ""
    turned = f"translate(0 {2 * top + height}) scale(1 -1)" if alias.get("vFlip") else ""
    return " ".join(part for part in (mirrored, turned) if part)


def _leads_to(icons: dict[str, Any], name: str) -> str | None:
    """The drawing an alias stands for: an icon, or a mirrored alias (a drawing of its own). None for hidden ones."""
    for _ in range(8):
        if name in icons["icons"]:
            return None if icons["icons"][name].get("hidden") else name
        alias = icons.get("aliases", {}).get(name)
        if alias is None:
            return None
        if _is_mirrored(alias):
            return name
        name = alias["parent"]
    return None
