"""Sources list pictures cheaply, answer bad files with a sentence, and open what they listed."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pleinair.curation.sources import FolderSource, PictureRow, find_source, open_image
from pleinair.curation.sources.svg import VECTOR_SIDE
from pleinair.records.errors import ImageError, SourceError

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 10"><path fill="currentColor" d="M0 0h20v10H0z"/></svg>'


def png(colour: str = "red", size: tuple[int, int] = (8, 8)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


def rows(path: Path, *styles: str) -> list[PictureRow]:
    return list(find_source(str(path), path.parent / "cache", styles=styles).list())


def write(folder: Path, **files: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


def tar_of(path: Path, **files: bytes) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name.replace("__", "."))
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_a_folder_lists_pictures_with_their_text_and_json_sidecars(tmp_path: Path) -> None:
    facts = {
        "text": "A fox.",
        "label": "red fox",
        "tags": "animal, wild",
        "style": "ink",
        "license": "CC0-1.0",
        "author": "Ann",
    }
    folder = write(
        tmp_path / "mine", a__png=png(), a__txt=b"ein Fuchs \n", b__jpg=b"", b__json=json.dumps(facts).encode()
    )
    first, second = rows(folder)
    assert (first.caption, first.label, first.style, first.caption_error) == ("ein Fuchs", None, None, None)
    assert first.image_name.startswith("mine-")
    assert first.image_name.endswith("/a.png")
    assert (second.caption, second.label, second.concept, second.tags) == (
        "A fox.",
        "red fox",
        "red-fox",
        ("animal", "wild"),
    )
    assert (second.style, second.licence, second.author) == ("ink", "CC0-1.0", "Ann")


def test_the_style_given_fills_in_only_where_a_picture_names_none(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", a__png=png(), b__png=png(), b__json=b'{"style": "ink"}')
    assert [row.style for row in rows(folder, "oil")] == ["oil", "ink"]


def test_a_caption_in_another_encoding_costs_the_caption_and_names_file_byte_and_remedy(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", a__png=png(), a__txt=b"Stra\xdfe", b__png=png(), b__txt=b"fine")
    bad, good = rows(folder)
    assert bad.caption is None
    assert bad.caption_error is not None
    assert bad.caption_error.endswith("a.txt is not UTF-8 (byte 4 is 0xdf): save it as UTF-8")
    assert (good.caption, good.caption_error) == ("fine", None)


def test_utf16_and_nul_characters_in_captions_are_errors_not_crashes(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", a__png=png(), a__txt="fox".encode("utf-16"), b__png=png(), b__txt=b"a\x00b")
    errors = [row.caption_error or "" for row in rows(folder)]
    assert "not UTF-8" in errors[0]
    assert "NUL character" in errors[1]


@pytest.mark.parametrize(
    ("text", "part"),
    [("{", "is not JSON (line 1"), ("[1]", "holds a list: make it a JSON object"), ('{"caption": 3}', "caption is a int"),
     ('{"tags": {"a": 1}}', "tags are neither text nor a list")],
)  # fmt: skip
def test_a_wrong_json_sidecar_is_a_caption_error(tmp_path: Path, text: str, part: str) -> None:
    (row,) = rows(write(tmp_path / "mine", a__png=png(), a__json=text.encode()))
    assert part in (row.caption_error or "")


def test_file_names_with_spaces_and_bytes_that_are_no_utf8_can_be_opened(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine")
    for name, colour in ((b"a fox%20#1.png", "red"), (b"stra\xdfe.png", "blue")):
        (folder / os.fsdecode(name)).write_bytes(png(colour))
    listed = rows(folder)
    assert [open_image(row.uri, tmp_path) for row in listed] == [png("red"), png("blue")]
    assert all(row.image_name.isprintable() and row.image_name.encode() for row in listed)


def test_two_folders_of_one_name_do_not_share_keys(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    names = {rows(write(tmp_path / parent / "photos", a__png=png()))[0].image_name for parent in "xy"}
    assert len(names) == 2


def test_hidden_files_and_files_that_are_no_pictures_are_not_listed(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", a__png=png(), notes__md=b"x")
    (folder / ".thumb.png").write_bytes(png())
    assert [row.provenance for row in rows(folder)] == ["a.png"]


def test_an_empty_folder_is_answered_with_the_suffixes_it_needs(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no picture in .*empty: it needs files ending in \.png"):
        list(FolderSource(write(tmp_path / "empty")).list())


def test_an_unknown_source_names_what_is_possible(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no source .*nothing.*: give `drawings`, a folder"):
        find_source(str(tmp_path / "nothing"), tmp_path)
    with pytest.raises(SourceError, match="is not a source"):
        find_source(str(write(tmp_path / "f", a__tgz=b"") / "a.tgz"), tmp_path)
    with pytest.raises(SourceError, match="unknown drawing style 'crayon': use some of openmoji"):
        find_source("drawings", tmp_path, styles=["crayon"])


@pytest.mark.parametrize("group_rows", [1, 2, 100])
def test_parquet_rows_open_whatever_the_row_groups(tmp_path: Path, group_rows: int) -> None:
    path = tmp_path / "p.parquet"
    pictures = [png(colour) for colour in ("red", "green", "blue")]
    table = pa.table(
        {"jpg": pictures, "caption": ["one", None, "three"], "tags": [["a"], [], None], "other": [1, 2, 3]}
    )
    pq.write_table(table, path, row_group_size=group_rows)
    listed = rows(path)
    assert [row.caption for row in listed] == ["one", None, "three"]
    assert [row.tags for row in listed] == [("a",), (), ()]
    assert [open_image(row.uri, tmp_path) for row in listed] == pictures


def test_parquet_takes_hugging_face_structs_and_paths(tmp_path: Path) -> None:
    write(tmp_path / "pictures", b__png=png("blue"))
    structs = pa.table({"image": [{"bytes": png("red"), "path": None}, {"bytes": None, "path": "pictures/b.png"}]})
    pq.write_table(structs, tmp_path / "s.parquet")
    pq.write_table(pa.table({"path": ["pictures/b.png", ""]}), tmp_path / "q.parquet")
    assert [open_image(row.uri, tmp_path) for row in rows(tmp_path / "s.parquet")] == [png("red"), png("blue")]
    there, missing = rows(tmp_path / "q.parquet")
    assert open_image(there.uri, tmp_path) == png("blue")
    with pytest.raises(ImageError, match="no picture in column path of row 1"):
        open_image(missing.uri, tmp_path)


def test_parquet_without_pictures_or_cut_short_is_answered(tmp_path: Path) -> None:
    pq.write_table(pa.table({"caption": ["x"]}), tmp_path / "c.parquet")
    with pytest.raises(SourceError, match="no column of pictures among caption: name one of image, bytes"):
        rows(tmp_path / "c.parquet")
    (tmp_path / "t.parquet").write_bytes((tmp_path / "c.parquet").read_bytes()[:-9])
    with pytest.raises(SourceError, match="is not readable as Parquet"):
        rows(tmp_path / "t.parquet")


def test_webdataset_pairs_members_by_stem(tmp_path: Path) -> None:
    shard = tar_of(
        tmp_path / "s.tar", a__png=png("red"), a__txt=b"one", b__json=b'{"caption": "two"}', b__png=png("blue")
    )
    listed = rows(shard)
    assert [row.caption for row in listed] == ["one", "two"]
    assert [open_image(row.uri, tmp_path) for row in listed] == [png("red"), png("blue")]


def test_a_tar_cut_short_is_answered(tmp_path: Path) -> None:
    whole = tar_of(tmp_path / "s.tar", a__png=png(), b__png=np.random.default_rng(0).bytes(20_000)).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:9_000])
    with pytest.raises(SourceError, match=r"cut\.tar is not a complete uncompressed tar"):
        rows(tmp_path / "cut.tar")


def test_a_folder_of_shards_is_one_source(tmp_path: Path) -> None:
    folder = write(tmp_path / "shards")
    tar_of(folder / "0.tar", a__png=png())
    tar_of(folder / "1.tar", a__png=png())
    assert len({row.image_name for row in rows(folder)}) == 2


def test_vector_drawings_open_as_png_with_transparent_ground_and_black_current_colour(tmp_path: Path) -> None:
    (row,) = rows(write(tmp_path / "mine", a__svg=SVG))
    image = Image.open(io.BytesIO(open_image(row.uri, tmp_path)))
    assert (image.format, image.mode, image.size) == ("PNG", "RGBA", (VECTOR_SIDE, VECTOR_SIDE // 2))
    assert image.getpixel((64, 32)) == (0, 0, 0, 255)


def test_a_vector_drawing_of_extreme_aspect_stays_small(tmp_path: Path) -> None:
    tall = SVG.replace(b"0 0 20 10", b"0 0 1 100000")
    (row,) = rows(write(tmp_path / "mine", a__svg=tall))
    assert max(Image.open(io.BytesIO(open_image(row.uri, tmp_path))).size) <= VECTOR_SIDE


@pytest.mark.parametrize("broken", [SVG[:60], SVG.replace(b"currentColor", b"\xe9")])
def test_a_broken_vector_drawing_is_an_image_error(tmp_path: Path, broken: bytes) -> None:
    (row,) = rows(write(tmp_path / "mine", a__svg=broken))
    with pytest.raises(ImageError, match="broken: SVG"):
        open_image(row.uri, tmp_path)


def test_a_file_that_is_gone_is_a_source_error_naming_it(tmp_path: Path) -> None:
    (row,) = rows(write(tmp_path / "mine", a__png=png()))
    (tmp_path / "mine" / "a.png").unlink()
    with pytest.raises(SourceError, match=r"a\.png cannot be read \(No such file or directory\): put the file back"):
        open_image(row.uri, tmp_path)


def test_a_uri_of_no_known_scheme_is_a_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no way to open 's3:x/y': known are deb, file, npm, parquet, tar"):
        open_image("s3:x/y", tmp_path)
