"""Probe, pixel statistics and the object store, on pictures made here and damaged on purpose."""

from __future__ import annotations

import io
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pleinair.curation.pictures import decode, read_header
from pleinair.curation.pixels import PixelLimits
from pleinair.curation.probe import Probe, ProbeLimits, probe
from pleinair.curation.store import ObjectStore
from pleinair.records.errors import ConfigError, ImageError, SourceError

LIMITS = ProbeLimits()


def photo(width: int = 96, height: int = 80, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format_, **options)  # type: ignore[arg-type]
    return out.getvalue()


def bomb(side: int = 12_000) -> bytes:
    """A real 1-bit PNG of side x side black pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes(side // 8 + 1) * side, 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_whole_pictures_pass_with_their_size(format_: str) -> None:
    assert probe(encoded(photo(), format_), LIMITS) == Probe("", format_, 96, 80, 1.2)


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_picture_cut_anywhere_never_crashes_and_never_passes(format_: str) -> None:
    whole = encoded(photo(), format_)
    for share in (0.0, 0.01, 0.1, 0.5, 0.9):
        found = probe(whole[: int(len(whole) * share)], LIMITS)
        assert found.drop.startswith("broken: "), (share, found)
        assert found.drop.endswith("; re-export or remove it")


def test_a_truncated_picture_says_after_how_many_bytes() -> None:
    whole = encoded(photo())
    assert probe(whole[:400], LIMITS).drop == "broken: truncated after 400 bytes; re-export or remove it"
    assert probe(b"", LIMITS).drop == "broken: empty file of 0 bytes; re-export or remove it"
    assert (
        probe(b"<html>not", LIMITS).drop
        == "broken: not a picture (9 bytes beginning b'<html>no'); re-export or remove it"
    )


def test_bytes_flipped_anywhere_never_crash() -> None:
    rng = np.random.default_rng(1)
    for format_ in ("PNG", "JPEG", "WEBP", "GIF", "TIFF"):
        whole = bytearray(encoded(photo(), format_))
        for _ in range(60):
            damaged = bytearray(whole)
            for place in rng.integers(0, len(whole), 3):
                damaged[place] = rng.integers(0, 256)
            verdict = probe(bytes(damaged), LIMITS).drop
            assert verdict == "" or verdict.startswith(("broken: ", "bomb: ", "small: ", "aspect: ")), verdict


def test_144_megapixels_in_17_kilobytes_are_refused_without_decoding() -> None:
    data = bomb()
    assert len(data) < 20_000
    found = probe(data, LIMITS)
    assert found.drop == "bomb: 12000 x 12000 is 144 megapixels, over 100; scale it down"
    assert (found.width, found.height) == (12_000, 12_000)


def test_a_picture_beyond_what_pillow_opens_is_a_bomb_too() -> None:
    # A header alone: a real one of this size would take seconds to make.
    data = bomb(800)
    huge = data[:16] + struct.pack(">II", 60_000, 60_000) + data[24:29]
    huge += struct.pack(">I", zlib.crc32(huge[12:29])) + data[33:]
    assert probe(huge, LIMITS).drop.startswith("bomb: ")


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((63, 200), "small: 63 x 200, under 64 pixels"),
        ((64, 461), "aspect: 7.2, over 4"),
        ((64, 256), ""),
        ((64, 64), ""),
    ],
)
def test_size_and_aspect_are_judged_at_the_limit(size: tuple[int, int], reason: str) -> None:
    assert probe(encoded(photo(*size)), LIMITS).drop == reason


def test_transparency_becomes_white() -> None:
    half = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    half.paste((0, 0, 0, 255), (0, 0, 32, 64))
    palette = half.convert("P")
    palette.info["transparency"] = palette.getpixel((63, 0))
    grey = half.convert("LA")
    for image in (half, palette, grey):
        pixels = decode(encoded(image))
        assert pixels.shape == (64, 64, 3)
        assert (pixels[:, :32] == 0).all()
        assert (pixels[:, 32:] == 255).all()


def test_sixteen_bit_greys_keep_their_shades() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)
    pixels = decode(encoded(Image.fromarray(np.tile(ramp, (64, 1)))))
    assert np.abs(pixels[0, :, 0].astype(int) - ramp // 257).max() <= 1


def test_cmyk_decodes_and_turned_photos_stand_upright() -> None:
    assert decode(encoded(photo().convert("CMYK"), "JPEG")).shape == (80, 96, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(photo(), "JPEG", exif=exif)).shape == (96, 80, 3)


def test_only_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("white", "black")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(data) == 255).all()


def test_header_reading_raises_a_sentence() -> None:
    with pytest.raises(ImageError, match="broken: not a picture"):
        read_header(b"nonsense")


def test_limits_out_of_range_name_field_value_and_remedy() -> None:
    with pytest.raises(ConfigError, match=r"probe\.max_aspect is 0\.5: give at least 1"):
        ProbeLimits(max_aspect=0.5)
    with pytest.raises(ConfigError, match=r"pixels\.max_white_ratio is 2: give a share from 0 to 1"):
        PixelLimits(max_white_ratio=2)
    with pytest.raises(ConfigError, match=r"pixels\.min_entropy is 9: give 0 to 8 bits"):
        PixelLimits(min_entropy=9)


def test_the_store_keeps_one_file_per_content(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    data = encoded(photo())
    first = store.put(data)
    written = (tmp_path / first).stat()
    assert store.put(data) == first
    assert ((tmp_path / first).stat().st_ino, (tmp_path / first).stat().st_mtime_ns) == (
        written.st_ino,
        written.st_mtime_ns,
    )
    assert first.endswith(".png")
    assert store.get(first) == data
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")] == [first]


@pytest.mark.parametrize(("format_", "suffix"), [("JPEG", "jpg"), ("WEBP", "webp"), ("GIF", "gif"), ("TIFF", "tif")])
def test_stored_files_carry_the_suffix_of_their_format(tmp_path: Path, format_: str, suffix: str) -> None:
    assert ObjectStore(tmp_path).put(encoded(photo(), format_)).endswith(f".{suffix}")


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the folder should be")
    with pytest.raises(SourceError, match="cannot store 3 bytes in .*store .*: free space or fix its permissions"):
        ObjectStore(tmp_path / "store").put(b"abc")


def test_a_picture_that_cannot_be_written_whole_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(SourceError, match=r"cannot store 5000 bytes in .* \(File too large\): free space"):
            ObjectStore(tmp_path).put(bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_stored_picture_that_is_gone_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match="cannot be read .*: restore the store, or run `pleinair curate --fetch-again`"
    ):
        ObjectStore(tmp_path).get("ab/abc.png")
