"""Wrong input of every source: refused with a sentence, and no row left behind."""

from __future__ import annotations

import base64
import gzip
import io
import json
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pleinair.cli.main import main
from pleinair.curation import find_source, images_table, ingest
from pleinair.curation.probe import ProbeLimits, probe
from pleinair.curation.sources import PictureRow, open_image
from pleinair.curation.sources.svg import rasterise
from pleinair.krablet import Database
from pleinair.records.errors import ImageError, SourceError


def png(colour: str = "red", size: tuple[int, int] = (80, 80)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


def rows(path: Path) -> list[PictureRow]:
    return list(find_source(str(path), path.parent / "cache").list())


def tar_of(path: Path, *members: tuple[str, bytes], **special: Any) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for field, value in special.items():
                setattr(member, field, value)
            archive.addfile(member, io.BytesIO(data))
    return path


def table(place: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), place)
    return place


def refused(database: Database, path: Path, sentence: str) -> None:
    with pytest.raises(SourceError, match=sentence):
        ingest(database, find_source(str(path), path.parent / "cache"))
    assert images_table(database).count() == 0


# A source that is refused is refused whole.


def test_one_cut_shard_among_many_leaves_no_row_of_the_others(database: Database, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(3):
        tar_of(folder / f"{number}.tar", ("a.png", png()))
    cut = (folder / "2.tar").read_bytes()[:600]
    (folder / "2.tar").write_bytes(cut)
    refused(database, folder, r"2\.tar is not a complete uncompressed tar")


@pytest.mark.parametrize("cut", [512, 1024, 1536])
def test_a_tar_cut_between_members_is_seen(tmp_path: Path, cut: int) -> None:
    whole = tar_of(tmp_path / "s.tar", ("a.png", b"x" * 512), ("b.png", b"y" * 512)).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:cut])
    with pytest.raises(SourceError, match=r"cut\.tar is not a complete uncompressed tar"):
        rows(tmp_path / "cut.tar")


def test_a_tar_with_a_damaged_header_inside_is_not_taken_for_a_shorter_one(tmp_path: Path) -> None:
    data = bytearray(tar_of(tmp_path / "s.tar", ("a.png", b"x" * 512), ("b.png", b"y" * 512)).read_bytes())
    data[1024 + 20] ^= 0xFF
    (tmp_path / "s.tar").write_bytes(data)
    with pytest.raises(SourceError, match="no end mark at byte 1024"):
        rows(tmp_path / "s.tar")


@pytest.mark.parametrize("name", ["../../etc/cron.d/x.png", "/etc/x.png", "a/../../x.png", ".."])
def test_a_tar_member_that_leads_out_is_refused(database: Database, tmp_path: Path, name: str) -> None:
    refused(database, tar_of(tmp_path / "s.tar", ("a.png", png()), (name, png())), "which leads out of it")


@pytest.mark.parametrize(
    ("kind", "word"),
    [(tarfile.SYMTYPE, "a link"), (tarfile.LNKTYPE, "a link"), (tarfile.CHRTYPE, "a device or pipe"),
     (tarfile.FIFOTYPE, "a device or pipe")],
)  # fmt: skip
def test_a_tar_with_links_or_devices_is_refused(database: Database, tmp_path: Path, kind: bytes, word: str) -> None:
    path = tar_of(tmp_path / "s.tar", ("a.png", b""), type=kind, linkname="/etc/passwd")
    refused(database, path, f"holds a.png, {word}: pack it anew")


def test_a_name_that_comes_twice_in_a_tar_is_refused(database: Database, tmp_path: Path) -> None:
    path = tar_of(tmp_path / "s.tar", ("a.png", png("red")), ("a.png", png("blue")))
    refused(database, path, r"holds a\.png twice: remove one")


def test_a_compressed_tar_is_answered(tmp_path: Path) -> None:
    packed = gzip.compress(tar_of(tmp_path / "s.tar", ("a.png", png())).read_bytes())
    (tmp_path / "s.tar").write_bytes(packed)
    with pytest.raises(SourceError, match="not a complete uncompressed tar"):
        rows(tmp_path / "s.tar")


def test_a_zip_is_no_source(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(10**7))
    with pytest.raises(SourceError, match="is not a source: give"):
        rows(tmp_path / "bomb.zip")


# Keys.


class Repeating:
    """A source that says one key twice."""

    name = "repeating"
    notes = ()

    def list(self) -> Any:
        for number in (1, 2, 1):
            yield PictureRow(image_name=f"repeating/{number}", uri=f"file:/{number}", source=self.name)


def test_a_source_that_lists_a_key_twice_leaves_no_row(database: Database) -> None:
    with pytest.raises(SourceError, match="lists repeating/1 twice, as picture 1 and picture 3"):
        ingest(database, Repeating())
    assert images_table(database).count() == 0


# Parquet.


@pytest.mark.parametrize(
    ("column", "kind"), [([1, 2], "int64"), ([[1.0], [2.0]], "list<element: double>"), ([{"a": 1}], "struct<a: int64>")]
)
def test_a_column_of_pictures_that_holds_none_is_refused(
    database: Database, tmp_path: Path, column: Any, kind: str
) -> None:
    refused(database, table(tmp_path / "p.parquet", image=column), f"has {kind} in column image: store bytes")


@pytest.mark.parametrize("path", ["/etc/passwd", "../secret.png", "link.png", "sub/../../secret.png"])
def test_a_path_in_a_table_stays_below_the_tables_folder(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (row,) = rows(table(folder / "p.parquet", path=[path]))
    with pytest.raises(ImageError, match="outside: .* leads out of the folder of its table"):
        open_image(row.uri, tmp_path)


def test_a_row_group_that_unfolds_like_no_picture_is_refused(tmp_path: Path) -> None:
    (row,) = rows(table(tmp_path / "p.parquet", image=[bytes(70 * 2**20)]))
    assert (tmp_path / "p.parquet").stat().st_size < 2**20 * 8
    with pytest.raises(ImageError, match="bomb: .* unpacks"):
        open_image(row.uri, tmp_path)


# Lists of URLs.


def test_a_list_of_urls_gives_rows_with_their_words(tmp_path: Path) -> None:
    text = 'url,caption,tags,licence\nHTTPS://a.example/1.png,A fox.,"red, wild",CC0-1.0\nhttp://b.example/2,,,\n'
    (tmp_path / "u.csv").write_text(text)
    first, second = rows(tmp_path / "u.csv")
    assert (first.uri, first.caption, first.tags) == ("https://a.example/1.png", "A fox.", ("red", "wild"))
    assert (first.licence, first.provenance) == ("CC0-1.0", "u.csv line 2")
    assert (second.uri, second.caption) == ("http://b.example/2", None)
    (tmp_path / "u.txt").write_text("# mine\n\nhttps://a.example/1.png\tA fox.\nhttps://b.example/2\n")
    assert [row.caption for row in rows(tmp_path / "u.txt")] == ["A fox.", None]
    listed = table(tmp_path / "u.parquet", url=["https://a.example/1.png"], text=["A fox."])
    assert [(row.uri, row.caption) for row in rows(listed)] == [("https://a.example/1.png", "A fox.")]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        (
            "u.txt",
            b"https://a.example/1\nfile:///etc/passwd\n",
            "line 2 holds 'file:///etc/passwd', no http or https URL",
        ),
        ("u.txt", b"data:image/png;base64,AAAA\n", "line 1 holds 'data:image"),
        ("u.txt", b"https:/a.example/1\n", "line 1 holds 'https:/a.example/1', no http"),
        ("u.txt", b"https://a.example/1 2.png\n", "with a space or control character: percent-encode it"),
        ("u.txt", b"https://a.example/1\nhttps://a.example/stra\xdfe\n", r"line 2 is not UTF-8 \(byte 22 is 0xdf\)"),
        ("u.txt", "https://a.example/1\n".encode("utf-16"), "line 1 is not UTF-8"),
        ("u.txt", b"# nothing\n", "no URL in"),
        ("u.txt", b"https://a.example/1\tone\nhttps://a.example/1\ttwo\n", "line 2 says something else of https"),
        ("u.csv", b"picture,caption\nx,y\n", "has no column of URLs among picture, caption: name one of url"),
        ("u.csv", b"url,caption\nhttps://a.example/1\n", "line 2 has not the 2 columns of the first line"),
        ("u.csv", b"url,caption\nhttps://a.example/1,x,y\n", "line 2 has not the 2 columns of the first line"),
        ("u.csv", b'url,caption\nhttps://a.example/1,"x', "is not CSV"),
        ("u.csv", b"url,url\na,b\n", "has the column url twice"),
        ("u.csv", b"url,caption\n,x\n", "line 2 has no URL in column url"),
        ("u.csv", b"", "has no column of URLs among none"),
        ("u.csv", b"url,caption\nhttps://a.example/1,Stra\xdfe\n", "line 2 is not UTF-8"),
    ],
)
def test_a_wrong_list_of_urls_is_refused_whole(
    database: Database, tmp_path: Path, name: str, text: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(text)
    refused(database, tmp_path / name, sentence)


def test_a_url_repeated_with_the_same_words_is_one_picture(database: Database, tmp_path: Path) -> None:
    (tmp_path / "u.txt").write_text("https://a.example/1\nhttps://a.example/2\nhttps://a.example/1\n")
    done = ingest(database, find_source(str(tmp_path / "u.txt"), tmp_path))
    assert (done.num_new, done.notes) == (2, ("1 lines repeat a URL and add nothing",))


def test_a_url_list_in_parquet_of_another_kind_is_refused(database: Database, tmp_path: Path) -> None:
    refused(database, table(tmp_path / "u.parquet", url=[1, 2]), "row 0 has no URL in column url")


# Captions.


def sidecar(folder: Path, text: bytes, suffix: str = "json") -> PictureRow:
    folder.mkdir()
    (folder / "a.png").write_bytes(png())
    (folder / f"a.{suffix}").write_bytes(text)
    (row,) = rows(folder)
    return row


@pytest.mark.parametrize("key", ["file_name", "image", "image_path"])
def test_a_caption_file_that_names_another_picture_is_not_believed(tmp_path: Path, key: str) -> None:
    row = sidecar(tmp_path / "mine", json.dumps({key: "x/b.jpg", "caption": "A boat."}).encode())
    assert row.caption is None
    assert "names another picture, 'x/b.jpg'" in (row.caption_error or "")


@pytest.mark.parametrize("name", ["a.png", "train/a.jpeg", "a", 3])
def test_a_caption_file_that_names_its_own_picture_is(tmp_path: Path, name: Any) -> None:
    row = sidecar(tmp_path / "mine", json.dumps({"file_name": name, "caption": "A boat."}).encode())
    assert (row.caption, row.caption_error) == ("A boat.", None)


def test_captions_without_a_picture_are_named(database: Database, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    sidecar(folder, b"A boat.", "txt")
    (folder / "b.txt").write_bytes(b"Whose?")
    done = ingest(database, find_source(str(folder), tmp_path))
    assert [note.rpartition("/")[2] for note in done.notes] == ["b.txt belongs to no picture"]
    shard = tar_of(tmp_path / "s.tar", ("a.png", png()), ("a.txt", b"A boat."), ("c.json", b"{}"))
    source = find_source(str(shard), tmp_path)
    list(source.list())
    assert list(source.notes) == ["s.tar c.json belongs to no picture"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (b"[" * 100_000, "nests too deeply"),
        (b'{"caption": "\\ud800"}', "half a surrogate pair"),
        (b'{"label": "\\udfff fox"}', "half a surrogate pair"),
        (b'{"tags": ["a\\u0000b"]}', "tags hold a NUL"),
        (b'{"caption": "' + b"x" * 2**20 + b'"}', "bytes, over 1048576: shorten it"),
    ],
)
def test_a_sidecar_made_to_hurt_costs_a_caption_and_nothing_else(
    database: Database, tmp_path: Path, text: bytes, part: str
) -> None:
    row = sidecar(tmp_path / "mine", text)
    assert part in (row.caption_error or "")
    assert ingest(database, find_source(str(tmp_path / "mine"), tmp_path)).num_new == 1
    shard = tar_of(tmp_path / "s.tar", ("a.png", png()), ("a.json", text))
    assert part in (rows(shard)[0].caption_error or "")


# Bombs.


def bomb_png(side: int) -> bytes:
    """A PNG of side x side black pixels in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = bytes(1 + side // 8)
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_a_bomb_is_judged_by_its_header_even_below_pillows_own_limit() -> None:
    data = bomb_png(12_000)
    assert len(data) < 20_000
    assert probe(data, ProbeLimits()).drop.startswith("bomb: 12000 x 12000 is 144 megapixels, over 100")


def svg(body: str, start: str = "") -> bytes:
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'{start}<svg {names} viewBox="0 0 9 9">{body}</svg>'.encode()


def embedded(data: bytes, kind: str = "image/png") -> str:
    return f'<image href="data:{kind};base64,{base64.b64encode(data).decode()}" width="9" height="9"/>'


@pytest.mark.parametrize(
    "drawing",
    [
        svg('<image href="SECRET" width="9" height="9"/>'),
        svg("<image width='9' height='9' xlink:href = 'SECRET'/>"),
        svg('<image title="a>b" href="SECRET" width="9" height="9"/>'),
        svg('<g:image xmlns:g="http://www.w3.org/2000/svg" href="SECRET" width="9" height="9"/>'),
        svg('<image href="&f;" width="9" height="9"/>', '<!DOCTYPE svg [<!ENTITY f "SECRET">]>'),
        svg("&f;", "<!DOCTYPE svg [<!ENTITY f \"<image href='SECRET' width='9' height='9'/>\">]>"),
        svg('<filter id="f"><feImage href="SECRET"/></filter><rect width="9" height="9" filter="url(#f)"/>'),
        svg(embedded(bomb_png(12_000))),
    ],
)
def test_a_drawing_that_reaches_out_of_itself_or_embeds_a_bomb_is_refused(tmp_path: Path, drawing: bytes) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    with pytest.raises(ImageError, match="outside: |bomb: "):
        rasterise(drawing.replace(b"SECRET", str(tmp_path / "secret.png").encode()))


def test_a_drawing_inside_a_drawing_reads_no_file_either(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    inner = svg(f'<image href="{tmp_path}/secret.png" width="9" height="9"/>')
    drawn = Image.open(io.BytesIO(rasterise(svg(embedded(inner, "image/svg+xml")))))
    assert drawn.getpixel((64, 64)) == (0, 0, 0, 0)


def test_an_honest_embedded_picture_and_a_namespace_entity_are_drawn() -> None:
    start = '<!DOCTYPE svg [<!ENTITY ns "http://example.com/ns">]>'
    drawn = Image.open(io.BytesIO(rasterise(svg(embedded(png("red")), start))))
    assert drawn.getpixel((64, 64)) == (255, 0, 0, 255)


def test_a_drawing_measured_in_points_or_millimetres_is_drawn() -> None:
    circle = b'<svg xmlns="http://www.w3.org/2000/svg" width="72pt" height="10mm"><rect width="999" height="99"/></svg>'
    assert max(Image.open(io.BytesIO(rasterise(circle))).size) == 128


def test_a_refused_source_is_one_sentence_on_the_command_line(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "u.txt").write_text("file:///etc/passwd\n")
    assert main(["ingest", str(tmp_path / "u.txt"), "--dsn", database.dsn, "--home", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        "pleinair: u.txt line 1 holds 'file:///etc/passwd', no http or https URL: correct or remove it\n"
    )
