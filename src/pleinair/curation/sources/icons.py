"""Further icon sets: about 9,000 drawings of things, whose names are their captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pleinair.curation.heldout import held_out
from pleinair.curation.sources.collection import OnProgress
from pleinair.curation.sources.drawings import Style
from pleinair.curation.sources.icon_sets import read_index, unpack_icons
from pleinair.curation.sources.npm import Package, fetch_packages
from pleinair.curation.sources.rows import PictureRow
from pleinair.records.errors import SourceError

ICON_STYLES: Mapping[str, Style] = {
    "game-icons": Style(
        words="game icon",
        package=Package(
            "@iconify-json/game-icons",
            "1.2.4",
            2_739_244,
            "sha512-/HDDZxowXgDJcOEwPspUCq5RuDdl25OyZKdtxqqiPJQNTrWIym7r4StLzIVs77DyNzOWWhH5wDqwYR3WHeDfkg==",
        ),
        licence="CC-BY-3.0",
        author="GameIcons",
    ),
    "icon-park": Style(
        words="icon park",
        package=Package(
            "@iconify-json/icon-park",
            "1.2.4",
            338_205,
            "sha512-S8fVl49LG/M9hvwb7ruFGInK21AHMv3IJehOJRJgXPLE39OOCP3wbfTWjro/XzsjxRwdvX/lYdGetFOZI0TaJQ==",
        ),
        licence="Apache-2.0",
        author="ByteDance",
    ),
    "flat-color-icons": Style(
        words="flat colour icon",
        package=Package(
            "@iconify-json/flat-color-icons",
            "1.2.3",
            47_566,
            "sha512-KcmJ7CY0TKFv5GuBjiS4/v++jEcNXna1jfY+yq014tnw/MN/jMI2oYpoMHGuIpYtUqDu7eove+WySnOYO8nS3w==",
        ),
        licence="MIT",
        author="Icons8",
    ),
    "lucide": Style(
        words="lucide",
        package=Package(
            "@iconify-json/lucide",
            "1.2.137",
            92_640,
            "sha512-uKz1+tFbv1RFX/mJQNksdnyKJijNfRGSNnxfiyKtr+dLNfA3ERph+IgpXClKGOlV/5GsZwLv2jgJXQ/bjF/JAg==",
        ),
        licence="ISC",
        author="Lucide Contributors",
    ),
}


class IconsSource:
    """Lists the icons of some sets, fetching their packages on first use. `styles` picks sets; none picks all."""

    name = "icons"
    notes: Sequence[str] = ()

    def __init__(self, cache: Path, styles: Sequence[str] = (), on_progress: OnProgress | None = None) -> None:
        if unknown := [style for style in styles if style not in ICON_STYLES]:
            raise SourceError(f"unknown icon set {unknown[0]!r}: use some of {', '.join(ICON_STYLES)}")
        self._styles = {name: ICON_STYLES[name] for name in styles or ICON_STYLES}
        self._cache, self._on_progress = cache, on_progress

    def list(self) -> Iterator[PictureRow]:
        """Rows set by set, in the order of their names."""
        packages = [style.package for style in self._styles.values()]
        tarballs = fetch_packages(packages, self._cache / "npm", self._on_progress)
        for (name, style), tarball in zip(self._styles.items(), tarballs, strict=True):
            for icon in sorted(read_index(unpack_icons(tarball)).icons):
                yield _row(name, style, icon)


def _row(name: str, style: Style, icon: str) -> PictureRow:
    return PictureRow(
        image_name=f"icons/{name}/{icon}",
        uri=f"npm:{style.package.spec}/{icon}.svg",
        source="icons",
        style=name,
        concept=icon,
        label=icon.replace("-", " "),
        licence=style.licence,
        author=style.author,
        provenance=f"{style.package.spec}/{icon}.svg",
        held_out=held_out(icon, name),
    )
