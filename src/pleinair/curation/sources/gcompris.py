"""GCompris' photographs: about 250 of animals, fish, monuments, musicians and tools, under mixed licences.

Licence, author and origin of each picture come from the README beside it. Debian's own copyright file is not used: it
describes the photographs of an older release under the same file names. A picture no README names is not listed.
Titles come from the boards that show the pictures, else from file names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from pleinair.curation.sources.collection import Collection, Entry
from pleinair.curation.sources.debian import DebianPackage, deb_files
from pleinair.curation.sources.rcc import rcc_files

_RCC = "usr/share/gcompris-qt/rcc/"
_ACTIVITIES = "gcompris/src/activities/"
_GROUPS: Mapping[str, str] = {
    "erase/resource": "animals",
    "explore_farm_animals/resource/animals": "farm animals",
    "explore_world_animals/resource/animals": "wild animals",
    "explore_world_music/resource/music": "musicians",
    "explore_monuments/resource/egypt": "monuments of Egypt",
    "explore_monuments/resource/france": "monuments of France",
    "explore_monuments/resource/germany": "monuments of Germany",
    "explore_monuments/resource/india": "monuments of India",
    "explore_monuments/resource/usa": "monuments of the United States",
    "explore_monuments/resource/wonders": "monuments of the world",
    "categorization/resource/images/fishes": "fish",
    "categorization/resource/images/monuments": "monuments",
    "categorization/resource/images/others": "household goods",
    "categorization/resource/images/renewable": "renewable energy",
    "categorization/resource/images/tools": "tools",
}
"""Folders of photographs below `activities`, and what they show."""


@dataclass(frozen=True)
class Attribution:
    """What a README says of a picture."""

    licence: str
    author: str
    source: str | None


def _unpack(package: Path) -> Iterator[tuple[Entry, bytes]]:
    files = dict(_activity_files(package))
    titles = {}
    for path, data in files.items():
        if path.endswith(".qml"):
            titles.update(board_titles(data.decode("utf-8")))
    attributions = {}
    for path, data in files.items():
        if os.path.basename(path) == "README":
            attributions.update(read_attributions(data.decode("utf-8"), os.path.dirname(path)))
    for path in sorted(files):
        folder = os.path.dirname(path)
        if folder in _GROUPS and path.endswith(".webp") and path in attributions:
            yield _entry(path, _GROUPS[folder], attributions[path], titles.get(path)), files[path]


def _activity_files(package: Path) -> Iterator[tuple[str, bytes]]:
    """Files of all activities, by their paths below `activities`."""
    activities = {folder.partition("/")[0] for folder in _GROUPS}
    wanted = {f"{_RCC}{activity}.rcc" for activity in activities}
    for _, data in deb_files(package, wanted.__contains__):
        for path, content in rcc_files(data):
            if path.startswith(_ACTIVITIES):
                yield path.removeprefix(_ACTIVITIES), content


def read_attributions(readme: str, folder: str) -> dict[str, Attribution]:
    """Path -> attribution, for the files named in the paragraphs of a README.

    A paragraph has `Copyright:`, `License:`, sometimes `Source:`, and `Files:` with names on its line or below; a name
    may stand without that word. Paragraphs without a licence say nothing.
    """
    found = {}
    for paragraph in re.split(r"\n\s*\n", readme):
        fields = dict(re.findall(r"^(Copyright|License|Source):[ \t]*(.+)$", paragraph, re.MULTILINE))
        names = re.findall(r"^(?:Files:[ \t]*)?([\w./()-]+\.webp)[ \t]*$", paragraph, re.MULTILINE)
        if "License" in fields:
            told = Attribution(
                _spdx(fields["License"]), fields.get("Copyright", "").strip() or "unknown", fields.get("Source")
            )
            found.update({os.path.join(folder, name): told for name in names})
    return found


def _spdx(licence: str) -> str:
    """`CC-BY-SA 4.0` -> `CC-BY-SA-4.0`, `Public Domain` -> `public domain`."""
    text = licence.strip()
    return "public domain" if text.lower().replace("-", " ") == "public domain" else text.replace(" ", "-")


def board_titles(qml: str) -> dict[str, str]:
    """Path of a picture -> the title a board shows with it."""
    title = r'"title":\s*qsTr\("((?:[^"\\]|\\.)*)"\)'
    picture = rf'"image2?":\s*"qrc:/{_ACTIVITIES}([^"]+\.webp)"'
    found = {}
    for part in qml.split("{"):
        name, path = re.search(title, part), re.search(picture, part)
        if name and path:
            found[path.group(1)] = name.group(1).replace('\\"', '"')
    return found


def _entry(path: str, group: str, told: Attribution, title: str | None) -> Entry:
    activity, _, rest = path.partition("/")
    return Entry(
        name=f"{activity}/{rest.removeprefix('resource/')}",
        label=title or words_of(os.path.splitext(os.path.basename(path))[0]),
        tags=tuple(filter(None, [_original_title(told.source)])),
        group_name=group,
        licence=told.licence,
        author=told.author,
        provenance=told.source,
    )


def words_of(file_name: str) -> str:
    """`arcDeTriomphe` -> `arc de triomphe`, `red_panda` -> `red panda`, `hammer12` -> `hammer`."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", file_name.replace("_", " "))
    return re.sub(r"\s*\d+$", "", spaced).lower()


def _original_title(source: str | None) -> str | None:
    """The title a photograph has at Wikimedia Commons."""
    match = re.search(r"/File:(.+)\.\w+$", source or "")
    return unquote(match.group(1)).replace("_", " ") if match else None


GCOMPRIS = Collection(
    name="gcompris",
    package=DebianPackage(
        "gcompris-qt-data",
        "3.1-2",
        44_196_292,
        "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f",
    ),
    style="photo",
    unpack=_unpack,
)
