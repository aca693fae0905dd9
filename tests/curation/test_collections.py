"""Collections: Debian packages read without dpkg, Qt resources, and what each says of its pictures."""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import struct
import tarfile
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pleinair.cli.places import cache_dir
from pleinair.curation.sources import COLLECTIONS, PictureRow, find_source, open_image
from pleinair.curation.sources.cifar import rows_of
from pleinair.curation.sources.collection import Collection, CollectionSource
from pleinair.curation.sources.debian import DebianPackage, deb_files, fetch_debian
from pleinair.curation.sources.gcompris import Attribution, board_titles, read_attributions, words_of
from pleinair.curation.sources.openclipart import OPENCLIPART
from pleinair.curation.sources.rcc import rcc_files
from pleinair.curation.sources.tuxpaint import TUXPAINT
from pleinair.records.errors import SourceError

DRAWING = """<?xml version="1.0"?>
<svg width="90mm" height="90mm" xmlns="http://www.w3.org/2000/svg" xmlns:rdf="r" xmlns:cc="c"
 xmlns:dc="d"><metadata><rdf:RDF><cc:Work>
<dc:title>%s</dc:title><dc:subject><rdf:Bag><rdf:li>Fruit</rdf:li><rdf:li></rdf:li><rdf:li>red &amp; round</rdf:li>
<rdf:li>Fruit</rdf:li></rdf:Bag></dc:subject><dc:publisher><cc:Agent><dc:title>Open Clip Art</dc:title></cc:Agent>
</dc:publisher><dc:creator><cc:Agent><dc:title>Ann</dc:title></cc:Agent></dc:creator></cc:Work></rdf:RDF></metadata>
<title>drawn</title><rect width="200" height="200"/></svg>"""


def png(colour: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (80, 80), colour).save(out, "PNG")
    return out.getvalue()


def deb(path: Path, packing: str = "xz", **files: bytes) -> Path:
    """A Debian package of these files below /usr/share."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        link = tarfile.TarInfo("./usr/share/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        for name, data in files.items():
            member = tarfile.TarInfo(f"./usr/share/{name.replace('__', '/')}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    packers = {"xz": lzma.compress, "zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True)}
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": b"odd",
        f"data.tar.{packing}": packers[packing](tar.getvalue()),
    }
    body = b"!<arch>\n"
    for name, data in parts.items():
        body += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    path.write_bytes(body)
    return path


def listed(collection: Collection, cache: Path, **files: bytes) -> list[PictureRow]:
    """Rows of a collection whose package holds these files."""
    (cache / "deb").mkdir(exist_ok=True)
    assert isinstance(collection.package, DebianPackage)
    path = deb(cache / "deb" / f"{collection.package.spec}.deb", **files)
    package = replace(collection.package, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    return list(CollectionSource(replace(collection, package=package), cache).list())


@pytest.mark.parametrize("packing", ["xz", "zst"])
def test_a_debian_package_is_read_without_dpkg_and_links_in_it_are_not_followed(tmp_path: Path, packing: str) -> None:
    path = deb(tmp_path / "x.deb", packing, a=b"one", b__c=b"two")
    assert list(deb_files(path, lambda name: True)) == [("usr/share/a", b"one"), ("usr/share/b/c", b"two")]
    assert [name for name, _ in deb_files(path, lambda name: name.endswith("c"))] == ["usr/share/b/c"]


@pytest.mark.parametrize("wrong", [b"", b"no archive", b"!<arch>\n", b"cut"])
def test_a_damaged_debian_package_is_answered(tmp_path: Path, wrong: bytes) -> None:
    path = deb(tmp_path / "x.deb", a=bytes(np.random.default_rng(0).bytes(9000)))
    path.write_bytes(path.read_bytes()[:700] if wrong == b"cut" else wrong)
    with pytest.raises(SourceError, match=r"x\.deb is not a complete Debian package"):
        list(deb_files(path, lambda name: True))


def test_a_package_that_is_there_and_whole_is_not_fetched_and_a_missing_apt_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    path = deb(tmp_path / "mine_2.0.deb", a=b"x")
    package = DebianPackage("mine", "1:2.0", 9, hashlib.sha256(path.read_bytes()).hexdigest())
    assert fetch_debian(package, tmp_path) == path
    with pytest.raises(SourceError, match=r"there is no apt-get here: .*`apt-get download mine=1:2\.0` and put the"):
        fetch_debian(replace(package, sha256="0" * 64), tmp_path)
    assert path.exists()


def test_a_drawings_own_words_become_its_row(tmp_path: Path) -> None:
    apple, plain = listed(
        OPENCLIPART,
        tmp_path,
        openclipart__svg__food__apple_01__svg=b"",
        **{
            "openclipart__svg__food__apple.svg": (DRAWING % "An <b>apple</b>\n tree").encode(),
            "openclipart__svg__plain.svg": (DRAWING % "").encode(),
            "openclipart__readme.txt": b"",
        },
    )
    assert (apple.image_name, apple.label, apple.concept) == (
        "openclipart/food/apple",
        "An apple tree",
        "an-apple-tree",
    )
    assert (apple.tags, apple.author, apple.licence) == (("Fruit", "red & round"), "Ann", "public domain")
    assert (apple.group_name, apple.style, plain.label) == ("food", "clip art", "drawn")
    drawn = Image.open(io.BytesIO(open_image(apple.uri, tmp_path)))
    assert drawn.size == (128, 128)


def test_a_stamp_has_the_first_line_of_its_text_and_mirrored_parts_are_not_listed(tmp_path: Path) -> None:
    names = ("cat.png", "cat_mirror.png", "fox.png", "fox.svg")
    files = {f"tuxpaint__stamps__animals__{name}": png("red") for name in names}
    files["tuxpaint__stamps__animals__cat.txt"] = b"A cat.\nfr.utf8=Un chat.\n"
    cat, fox = listed(TUXPAINT, tmp_path, **files)
    assert (cat.caption, cat.label, cat.licence, fox.caption) == ("A cat.", "cat", "GPL-2.0", None)
    assert fox.uri.endswith("/animals/fox.svg")
    assert open_image(cat.uri, tmp_path) == png("red")


def test_a_picture_gone_from_its_archive_is_answered(tmp_path: Path) -> None:
    (row,) = listed(TUXPAINT, tmp_path, tuxpaint__stamps__cat__png=b"", **{"tuxpaint__stamps__a.png": png("red")})
    with pytest.raises(SourceError, match="ingest its source again"):
        open_image(row.uri.replace("a.png", "b.png"), tmp_path)
    with pytest.raises(SourceError, match="cannot be read"):
        open_image(row.uri, tmp_path / "elsewhere")


def rcc(**files: bytes) -> bytes:
    """Qt resources of version 3 with one folder; names that begin with z or s are packed with zlib or zstd."""
    names, payload, name_at = b"", b"", {}
    for name in ("folder", *files):
        name_at[name] = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    nodes = [struct.pack(">IHIIQ", 0, 2, 1, 1, 0), struct.pack(">IHIIQ", name_at["folder"], 2, len(files), 2, 0)]
    for name, data in files.items():
        flags = {"z": 1, "s": 4}.get(name[0], 0)
        packed = {
            1: struct.pack(">I", len(data)) + zlib.compress(data),
            4: pa.Codec("zstd").compress(data, asbytes=True),
        }.get(flags, data)
        nodes.append(struct.pack(">IHHHIQ", name_at[name], flags, 0, 0, len(payload), 0))
        payload += struct.pack(">I", len(packed)) + packed
    tree = b"".join(nodes)
    start = 24
    places = (start, start + len(tree), start + len(tree) + len(payload))
    return struct.pack(">4sIIIII", b"qres", 3, *places, 0) + tree + payload + names


def test_qt_resources_are_read_whatever_they_are_packed_with() -> None:
    found = dict(rcc_files(rcc(plain=b"one", zlib=b"two" * 99, szstd=b"three" * 99)))
    assert found == {"folder/plain": b"one", "folder/zlib": b"two" * 99, "folder/szstd": b"three" * 99}
    for wrong in (b"", b"qres", b"nope" + bytes(40), rcc(zlib=b"two" * 99)[:60]):
        with pytest.raises(ValueError, match="Qt resources"):
            list(rcc_files(wrong))


README = """Copyright: Ann, 2020
License: CC-BY-SA 4.0
Files:
a.webp
sub/b.webp

Copyright: Ben
Source: https://commons.wikimedia.org/wiki/File:A_%28red%29_fox.jpg
License: Public Domain
Comments: cropping
Files: c.webp

Files: d.webp
"""


def test_each_picture_has_the_licence_of_the_paragraph_that_names_it() -> None:
    found = read_attributions(README, "x")
    ann = Attribution("CC-BY-SA-4.0", "Ann, 2020", None)
    ben = Attribution("public domain", "Ben", "https://commons.wikimedia.org/wiki/File:A_%28red%29_fox.jpg")
    assert found == {"x/a.webp": ann, "x/sub/b.webp": ann, "x/c.webp": ben}


def test_titles_come_from_boards_else_from_file_names() -> None:
    board = """{ "title": qsTr("The \\"Owl\\""), "text": qsTr("x"),
      "image2": "qrc:/gcompris/src/activities/x/owl.webp" }, { "title": qsTr("No picture") }"""
    assert board_titles(board) == {"x/owl.webp": 'The "Owl"'}
    assert [words_of(name) for name in ("arcDeTriomphe", "red_panda", "hammer12")] == [
        "arc de triomphe",
        "red panda",
        "hammer",
    ]


def test_a_batch_of_small_photographs_comes_apart_row_by_row() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels.reshape(5, 1024, 3)).save(out, "PNG")
    found = [np.asarray(Image.open(io.BytesIO(picture))) for picture in rows_of(out.getvalue())]
    assert np.array_equal(np.stack(found), pixels)


def test_an_unknown_name_lists_the_known_ones_and_styles_are_for_sets_of_several(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="known by name are drawings, skin-tones, icons, openclipart, gcompris"):
        find_source("cliparts", tmp_path)
    with pytest.raises(SourceError, match="unknown icon set 'noto': use some of game-icons"):
        find_source("icons", tmp_path, styles=["noto"])
    with pytest.raises(SourceError, match="gcompris has one style: leave --style out"):
        find_source("gcompris", tmp_path, styles=["photo"])


@pytest.mark.skipif(
    not (cache_dir() / "deb" / "gcompris-qt-data_3.1-2.deb").exists(), reason="gcompris has not been fetched here"
)
def test_the_real_photographs_have_a_title_a_licence_and_an_author_each() -> None:
    found = list(find_source("gcompris", cache_dir()).list())
    assert len(found) == 253
    assert all(row.label and row.licence and row.author != "unknown" for row in found)
    assert Counter(row.licence for row in found).most_common(3) == [
        ("public domain", 132),
        ("CC0-1.0", 86),
        ("CC-BY-SA-4.0", 27),
    ]
    one = next(row for row in found if os.path.basename(row.image_name) == "chichenItza")
    assert (one.label, one.author, one.licence) == ("Chichén Itzá", "Daniel Schwen", "CC-BY-SA-4.0")
    assert Image.open(io.BytesIO(open_image(one.uri, cache_dir()))).size == (1024, 545)


def test_every_collection_is_listed_under_its_own_name() -> None:
    assert list(COLLECTIONS) == [collection.name for collection in COLLECTIONS.values()]
