"""Pictures as captioning sees them: sent without metadata, the camera read, the place never; writing read by a real model."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from pleinair.captioning.accuracy import Case, PixelVerifier, white_border
from pleinair.captioning.claims import Claim
from pleinair.captioning.ocr import NoReader, RapidOCR, Writing
from pleinair.captioning.pictures import Pixels, camera, pixels_of, read_bytes, to_send
from pleinair.records.colours import is_grey, share_of
from pleinair.records.errors import SourceError


def photograph() -> bytes:
    image = Image.effect_noise((320, 240), 60).convert("RGB")
    exif = image.getexif()
    exif[271], exif[272], exif[315] = "NIKON CORPORATION", "NIKON D90", "Jane Doe"
    exif.get_ifd(0x8769).update({33434: 0.005, 33437: 2.8, 34855: 100, 37386: 50.0, 42033: "serial-123"})
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0)})
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def sign(text: str, size: tuple[int, int] = (420, 120)) -> Pixels:
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).text((20, 30), text, font=ImageFont.load_default(44), fill="darkblue")
    return np.asarray(image)


def test_the_camera_is_read_and_neither_place_nor_owner_nor_serial_number() -> None:
    assert camera(photograph()) == "NIKON D90, 50 mm, f/2.8, 1/200 s, ISO 100"


@pytest.mark.parametrize("data", [b"", b"no picture", photograph()[:120]])
def test_a_picture_without_readable_metadata_has_no_camera(data: bytes) -> None:
    assert camera(data) == ""


def test_what_is_sent_is_small_and_carries_no_metadata() -> None:
    sent = to_send(pixels_of(photograph()), 160)
    with Image.open(io.BytesIO(sent.data)) as image:
        assert (image.size, image.format, dict(image.getexif()), sent.media_type) == (
            (160, 120),
            "PNG",
            {},
            "image/png",
        )
    large = to_send(pixels_of(photograph()), 300)
    assert large.media_type == "image/jpeg"
    assert large.data_url.startswith("data:image/jpeg;base64,/9j/")


def test_transparency_is_seen_on_white() -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(buffer, "PNG")
    assert (pixels_of(buffer.getvalue()) == 255).all()


def test_a_picture_gone_from_the_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="stored picture .*gone.png cannot be read"):
        read_bytes(tmp_path, "gone.png")


def test_writing_is_read_by_a_real_model_and_a_picture_without_has_none() -> None:
    reader = RapidOCR()
    found = reader.read(sign("PLEIN AIR 2026"))
    assert " ".join(found.lines) == "PLEIN AIR 2026"
    assert 0.1 < found.share < 0.6
    assert reader.name.startswith("rapidocr-3.")
    assert reader.read(np.full((64, 64, 3), 255, np.uint8)) == Writing() == NoReader().read(sign("A"))


def dot(colour: str, ground: str = "white") -> Pixels:
    image = Image.new("RGB", (64, 64), ground)
    ImageDraw.Draw(image).ellipse((16, 16, 48, 48), fill=colour)
    return np.asarray(image)


@pytest.mark.parametrize(
    ("fill", "called"),
    [("#d00000", "red"), ("#ff8c00", "orange"), ("#ffd800", "yellow"), ("#2e8b57", "green"), ("#1e60d0", "blue"),
     ("#8020a0", "purple"), ("#ff80b0", "pink"), ("#7a4a20", "brown"), ("#101010", "black"), ("#909090", "grey")],
)  # fmt: skip
def test_a_colour_is_found_where_it_is_and_not_across_the_circle(fill: str, called: str) -> None:
    opposite = {"red": "green", "orange": "blue", "yellow": "purple", "green": "red", "blue": "orange", "purple": "green",
                "pink": "green", "brown": "blue", "black": "red", "grey": "red"}  # fmt: skip
    assert share_of(dot(fill), called) > 0.15
    assert share_of(dot(fill), opposite[called]) == 0


def verdicts(pixels: Pixels, *claims: Claim) -> list[bool | None]:
    (found,) = PixelVerifier().verify([Case(pixels, claims)])
    assert isinstance(found, list)
    return [verdict.holds for verdict in found]


def test_colours_and_backgrounds_are_judged_by_pixels_and_all_else_is_left_alone() -> None:
    red, blue = Claim("something in it is red", "colour", "red"), Claim("something in it is blue", "colour", "blue")
    white, subject = Claim("the background is white", "background", "white"), Claim("a ball", "subject", "ball")
    assert verdicts(dot("#d00000"), red, blue, white, subject) == [True, False, True, None]
    assert verdicts(dot("#d00000", "#204080"), white) == [False]


def test_a_grey_picture_says_nothing_of_colours() -> None:
    assert is_grey(dot("#404040"))
    assert verdicts(dot("#404040"), Claim("something in it is red", "colour", "red")) == [None]


def test_the_border_is_the_outer_frame_only() -> None:
    assert white_border(dot("#d00000")) == 1.0
    assert white_border(255 - dot("black")) == 0.0
