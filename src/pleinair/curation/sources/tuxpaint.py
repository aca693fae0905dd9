"""Tux Paint's stamps: about 950 cut-out photographs and drawings, nearly all with an English sentence.

The stamps are licensed under the GPL, version 2, whatever that means for a model trained on them: every row says so, and
nothing lists them unless it is asked for by name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pleinair.curation.sources.collection import Collection, Entry
from pleinair.curation.sources.debian import DebianPackage, deb_files

_ROOT = "usr/share/tuxpaint/stamps/"
_PICTURES, _WORDS = (".png", ".svg"), ".txt"


def _unpack(package: Path) -> Iterator[tuple[Entry, bytes]]:
    def wanted(name: str) -> bool:
        return name.startswith(_ROOT) and name.endswith((*_PICTURES, _WORDS))

    files = {name.removeprefix(_ROOT): data for name, data in deb_files(package, wanted)}
    for name in sorted(files):
        stem, suffix = os.path.splitext(name)
        is_part = stem.endswith(("_mirror", "_flip"))  # of a stamp that is listed already
        is_twice = suffix == ".png" and f"{stem}.svg" in files  # the drawing is listed, not its rendering
        if suffix in _PICTURES and not is_part and not is_twice:
            yield _entry(name, _sentence(files.get(stem + _WORDS, b""))), files[name]


def _entry(name: str, sentence: str | None) -> Entry:
    stem = os.path.splitext(os.path.basename(name))[0]
    return Entry(
        name=name,
        label=stem.replace("_", " ").replace("-", " "),
        group_name=os.path.dirname(name),
        caption=sentence,
        licence="GPL-2.0",
        author="Bill Kendrick and contributors",
        provenance=f"tuxpaint-stamps: {name}",
    )


def _sentence(text: bytes) -> str | None:
    """The first line of a stamp's text; the others are its translations."""
    return text.decode("utf-8", "replace").partition("\n")[0].strip() or None


TUXPAINT = Collection(
    name="tuxpaint",
    package=DebianPackage(
        "tuxpaint-stamps-default",
        "2022.06.04-1",
        160_880_444,
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    ),
    style="stamp",
    unpack=_unpack,
)
