"""The drawing sets: about 1,950 concepts drawn by ten hands, plus one set of near-duplicates.

Every set draws the same list, the emoji of Unicode, each in its own style, so a concept is shared over the styles and a
(concept, style) pair names one picture. Concepts, labels and tags come from CLDR (package emojibase-data). An icon is
matched by code point where its set lists them, else by the slug of its CLDR label, first among icons, then among other
names; an icon serves one concept only. Skin-tone variants are a source of their own, `skin-tones`, which the drawings
leave out; each shares the fate of the drawing it varies.

    emojibase-data -> concepts --+
    <set>.tgz -> <set>.zip ------+-> rows drawings/<style>/<concept>
"""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pleinair.curation.heldout import held_out
from pleinair.curation.sources.icon_sets import IconIndex, read_index, unpack_files, unpack_icons
from pleinair.curation.sources.npm import FetchProgress, Package, fetch_packages
from pleinair.curation.sources.rows import PictureRow
from pleinair.records.errors import SourceError
from pleinair.records.names import slug

DRAWINGS, SKIN_TONES = "drawings", "skin-tones"

CLDR = Package(
    "emojibase-data",
    "17.0.0",
    6_711_091,
    "sha512-Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
)


@dataclass(frozen=True, kw_only=True)
class Style:
    """One author set."""

    words: str
    """How a prompt names the style: `a red apple, <words> style`."""
    package: Package
    licence: str
    """SPDX identifier."""
    author: str
    renders: str | None = None
    """The style whose drawings these are too, rendered another way: near-duplicates, listed but not trained on."""


STYLES: dict[str, Style] = {
    "openmoji": Style(
        words="openmoji",
        package=Package(
            "@iconify-json/openmoji",
            "1.2.29",
            1_264_633,
            "sha512-vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ==",
        ),
        licence="CC-BY-SA-4.0",
        author="OpenMoji",
    ),
    "twemoji": Style(
        words="twemoji",
        package=Package(
            "@iconify-json/twemoji",
            "1.2.5",
            1_555_888,
            "sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        ),
        licence="CC-BY-4.0",
        author="Twitter and contributors",
    ),
    "noto": Style(
        words="noto",
        package=Package(
            "@iconify-json/noto",
            "1.2.9",
            3_102_958,
            "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        ),
        licence="Apache-2.0",
        author="Google",
    ),
    "blob": Style(
        words="blob",
        package=Package(
            "@iconify-json/noto-v1",
            "1.2.5",
            1_587_591,
            "sha512-/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        ),
        licence="Apache-2.0",
        author="Google",
    ),
    "fluent-flat": Style(
        words="fluent flat",
        package=Package(
            "@iconify-json/fluent-emoji-flat",
            "1.2.6",
            1_172_438,
            "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        ),
        licence="MIT",
        author="Microsoft",
    ),
    "fluent-3d": Style(
        words="fluent 3d",
        package=Package(
            "@lobehub/fluent-emoji-3d",
            "1.1.0",
            15_792_027,
            "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        ),
        licence="MIT",
        author="Microsoft",
    ),
    "high-contrast": Style(
        words="high contrast",
        package=Package(
            "@iconify-json/fluent-emoji-high-contrast",
            "1.2.6",
            1_054_969,
            "sha512-esqhZPpkrF7sNX3NsLoh8KW64okEr/bzko7WNnFP+qTJGAqDPDYjp0925yxuivXy3HtVQB8xhIKu3+Nq1byX5w==",
        ),
        licence="MIT",
        author="Microsoft",
    ),
    "emojione": Style(
        words="emojione",
        package=Package(
            "@iconify-json/emojione",
            "1.2.3",
            687_690,
            "sha512-T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
        ),
        licence="CC-BY-4.0",
        author="EmojiOne",
    ),
    "emojione-classic": Style(
        words="emojione classic",
        package=Package(
            "@iconify-json/emojione-v1",
            "1.2.3",
            3_704_153,
            "sha512-UjI2VQEXVtGlPBvQuxEizro7QCgBcJDOYwKUupquvvZ8UV4xOlvm45IU82JYWegiAWLerY79gFLMZ26U6Ms+ww==",
        ),
        licence="CC-BY-SA-4.0",
        author="EmojiOne",
    ),
    "monotone": Style(
        words="monotone",
        package=Package(
            "@iconify-json/emojione-monotone",
            "1.2.1",
            1_094_642,
            "sha512-cZSNcPsuiAD6HCzCh/2dYKGh3pNI0jJlxBxQWfC33cQsPtqYZqulGBvlkThXYNvDl8VxgVHT9u+izyX/yeEIkA==",
        ),
        licence="CC-BY-4.0",
        author="EmojiOne",
    ),
    "fluent": Style(
        words="fluent",
        package=Package(
            "@iconify-json/fluent-emoji",
            "1.2.7",
            14_323_330,
            "sha512-D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
        ),
        licence="MIT",
        author="Microsoft",
        renders="fluent-3d",
    ),
}

TRAINING_STYLES = tuple(name for name, style in STYLES.items() if style.renders is None)
"""The ten styles a model learns, in the order in which near-duplicates are kept."""

_GROUP_WITHOUT_NAME = "components"


@dataclass(frozen=True, kw_only=True)
class Concept:
    """One thing all styles draw."""

    name: str
    """Slug, the same in all styles: `red-apple`."""
    label: str
    """Plain words: `red apple`, `flag of Canada`."""
    tags: tuple[str, ...]
    group_name: str
    code_points: str
    """Lower-case hex joined by dashes, without joiners and variation selectors."""
    icon_names: tuple[str, ...]
    """Names sets without code points may use, best first."""
    varies: str | None = None
    """Name of the concept this one varies by skin tone."""


class DrawingsSource:
    """Lists the drawings, fetching the packages they come from on first use."""

    notes: Sequence[str] = ()

    def __init__(
        self,
        cache: Path,
        styles: Sequence[str] = (),
        on_progress: Callable[[FetchProgress], None] | None = None,
        *,
        catalogue: Mapping[str, Style] = STYLES,
        cldr: Package = CLDR,
        skin_tones: bool = False,
    ) -> None:
        """`styles` picks some of the catalogue; none picks all. `cldr` names the concepts, or their skin tones."""
        unknown = [style for style in styles if style not in catalogue]
        if unknown:
            raise SourceError(f"unknown drawing style {unknown[0]!r}: use some of {', '.join(catalogue)}")
        self._cache = cache
        self._catalogue = {name: catalogue[name] for name in styles or catalogue}
        self._cldr = cldr
        self._on_progress = on_progress
        self._skin_tones = skin_tones
        self.name = SKIN_TONES if skin_tones else DRAWINGS

    def list(self) -> Iterator[PictureRow]:
        """Rows style by style. Raises SourceError when a package cannot be fetched or read."""
        packages = [self._cldr, *(style.package for style in self._catalogue.values())]
        cldr, *tarballs = fetch_packages(packages, self._cache / "npm", self._on_progress)
        concepts = read_concepts(cldr, skin_tones=self._skin_tones)
        for (name, style), tarball in zip(self._catalogue.items(), tarballs, strict=True):
            for concept, entry in _match(concepts, tarball):
                yield _row(self.name, name, style, concept, entry)


def _row(source: str, name: str, style: Style, concept: Concept, entry: str) -> PictureRow:
    return PictureRow(
        image_name=f"{source}/{name}/{concept.name}",
        uri=f"npm:{style.package.spec}/{entry}",
        source=source,
        style=name,
        concept=concept.name,
        label=concept.label,
        tags=concept.tags,
        group_name=concept.group_name,
        licence=style.licence,
        author=style.author,
        provenance=f"{style.package.spec}/{entry}",
        # A second render of a held-out drawing is as good as the drawing, so both share one fate.
        held_out=held_out(concept.varies or concept.name, style.renders or name),
    )


def read_concepts(tarball: Path, *, skin_tones: bool = False) -> list[Concept]:
    """All base concepts of CLDR, in its order, or all their skin-tone variants.

    Raises SourceError when the tarball is not emojibase-data.
    """
    try:
        with tarfile.open(tarball) as file:
            data, messages = (json.load(_member(file, f"package/en/{name}.json")) for name in ("data", "messages"))
    except (tarfile.TarError, EOFError, KeyError, ValueError, OSError) as error:
        raise SourceError(
            f"{tarball} is not emojibase-data ({error}): delete it and run the same command again to fetch it anew"
        ) from error
    groups = {group["order"]: group["message"] for group in messages["groups"]}
    concepts = [(entry, _concept(entry, groups.get(entry.get("group"), _GROUP_WITHOUT_NAME))) for entry in data]
    if not skin_tones:
        return [concept for _, concept in concepts]
    return [_variant(skin, base) for entry, base in concepts for skin in entry.get("skins", ())]


def _variant(entry: dict[str, Any], base: Concept) -> Concept:
    label: str = entry["label"]
    return replace(
        base,
        name=slug(label),
        label=label,
        code_points=_plain_code_points(entry["hexcode"]),
        icon_names=(slug(label),),
        varies=base.name,
    )


def _member(file: tarfile.TarFile, name: str) -> Any:
    member = file.extractfile(name)
    if member is None:
        raise KeyError(f"{name} is not a file")
    return member


def _concept(entry: dict[str, Any], group_name: str) -> Concept:
    label: str = entry["label"]
    return Concept(
        name=slug(label),
        label=_plain_label(label),
        tags=tuple(entry.get("tags", ())),
        group_name=group_name,
        code_points=_plain_code_points(entry["hexcode"]),
        icon_names=_icon_names(label),
    )


def _plain_label(label: str) -> str:
    kind, _, rest = label.partition(": ")
    if kind == "flag":
        return f"flag of {rest}"
    return f"keycap {rest}" if kind == "keycap" else label


def _icon_names(label: str) -> tuple[str, ...]:
    kind, _, rest = label.partition(": ")
    names = [slug(label)]
    if kind == "flag":
        names += [f"flag-for-{slug(rest)}", f"flag-for-flag-{slug(rest)}", f"{slug(rest)}-flag"]
    names += [slug(label.partition(" (")[0]), f"{slug(label)}-face"]
    return tuple(dict.fromkeys(names))


def _plain_code_points(hexcode: str) -> str:
    return "-".join(point for point in hexcode.lower().split("-") if point not in ("fe0f", "200d"))


def _match(concepts: Sequence[Concept], tarball: Path) -> Iterator[tuple[Concept, str]]:
    """(concept, entry in the package) for every concept the set draws."""
    if tarball.name.startswith("lobehub-"):
        with zipfile.ZipFile(unpack_files(tarball, ".webp")) as archive:
            entries = {_plain_code_points(Path(name).stem): name for name in archive.namelist()}
    else:
        icons = match_icons(concepts, read_index(unpack_icons(tarball)))
        entries = {c.code_points: f"{icons[c.name]}.svg" for c in concepts if c.name in icons}
    yield from ((concept, entries[concept.code_points]) for concept in concepts if concept.code_points in entries)


def match_icons(concepts: Sequence[Concept], index: IconIndex) -> dict[str, str]:
    """Concept -> icon: by code point, then by name among icons, then among other names. An icon serves one concept."""
    by_code_points = {_plain_code_points(points): name for points, name in index.code_points.items()}
    passes: list[Callable[[Concept], str | None]] = [
        lambda concept: _drawn(index, by_code_points.get(concept.code_points)),
        lambda concept: next((name for name in concept.icon_names if name in index.icons), None),
        lambda concept: next((index.aliases[name] for name in concept.icon_names if name in index.aliases), None),
    ]
    matched: dict[str, str] = {}
    taken: set[str] = set()
    for find in passes:
        for concept in concepts:
            icon = None if concept.name in matched else find(concept)
            if icon is not None and icon not in taken:
                matched[concept.name] = icon
                taken.add(icon)
    return matched


def _drawn(index: IconIndex, name: str | None) -> str | None:
    return name if name in index.icons else index.aliases.get(name or "")
