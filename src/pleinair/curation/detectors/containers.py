"""Metadata blocks of picture files, cut out without decoding a pixel: JPEG segments, PNG chunks, WebP chunks, EXIF fields.

The bytes are strangers': lengths lie, chunks repeat a million times, text is compressed a thousandfold. Every loop and every
size is bounded, what does not fit ends the walk, and nothing here raises.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

MOST_BLOCKS = 4096
MOST_TEXT = 1 << 20
"""Bytes of one text or packet that are looked at."""
_PNG, _XMP_KEYWORD = b"\x89PNG\r\n\x1a\n", "XML:com.adobe.xmp"
_XMP, _XMP_MORE = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
_XMP_MORE_HEADER = 32 + 8
_EXIF_IFD = 0x8769
_EXIF_NAMES = {0x010E: "ImageDescription", 0x0131: "Software", 0x013B: "Artist", 0x9286: "UserComment"}


@dataclass
class Metadata:
    """What a file says beside its pixels."""

    xmp: list[str] = field(default_factory=list)
    """XMP packets."""
    jumbf: bytes = b""
    """JUMBF boxes, in which C2PA manifests are kept."""
    texts: list[tuple[str, str]] = field(default_factory=list)
    """(keyword, text) of PNG chunks and EXIF fields."""


def read_metadata(data: bytes) -> Metadata:
    """All there is; empty for other formats and for nonsense."""
    found = Metadata()
    if data.startswith(b"\xff\xd8"):
        _read_jpeg(data, found)
    elif data.startswith(_PNG):
        _read_png(data, found)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        _read_webp(data, found)
    return found


def _read_jpeg(data: bytes, found: Metadata) -> None:
    boxes, more = [], []
    for marker, body in _jpeg_segments(data):
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            found.texts += exif_texts(body[6:])
        elif marker == 0xE1 and body.startswith(_XMP):
            found.xmp.append(_text(body[len(_XMP) :]))
        elif marker == 0xE1 and body.startswith(_XMP_MORE):
            more.append(body[len(_XMP_MORE) + _XMP_MORE_HEADER :])
        elif marker == 0xEB and body.startswith(b"JP") and len(body) > 16:
            # Segments after the first repeat the box's header of 8 bytes.
            later = int.from_bytes(body[4:8], "big") > 1
            boxes.append(body[16 if later else 8 :])
        elif marker == 0xFE:
            found.texts.append(("comment", _text(body)))
    found.jumbf = b"".join(boxes)[:MOST_TEXT]
    if more:
        found.xmp.append(_text(b"".join(more)))


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and body of every segment before the pixels."""
    at = 2
    for _ in range(MOST_BLOCKS):
        if at + 4 > len(data) or data[at] != 0xFF:
            return
        marker = data[at + 1]
        if marker == 0xFF:  # fill bytes
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in (0xDA, 0xD9) or length < 2:
            return
        yield marker, data[at + 4 : at + 2 + length]
        at += 2 + length


def _read_png(data: bytes, found: Metadata) -> None:
    at = len(_PNG)
    for _ in range(MOST_BLOCKS):
        if at + 8 > len(data):
            return
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind in (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"caBX"):
            _read_png_chunk(kind, data[at + 8 : at + 8 + length], found)
        at += 12 + length


def _read_png_chunk(kind: bytes, body: bytes, found: Metadata) -> None:
    if kind == b"caBX":
        found.jumbf = (found.jumbf + body)[:MOST_TEXT]
    elif kind == b"eXIf":
        found.texts += exif_texts(body)
    else:
        keyword, text = _png_text(kind, body)
        if keyword == _XMP_KEYWORD:
            found.xmp.append(text)
        else:
            found.texts.append((keyword, text))


def _png_text(kind: bytes, body: bytes) -> tuple[str, str]:
    name, _, rest = body.partition(b"\0")
    keyword = name[:80].decode("latin-1")
    if kind == b"tEXt":
        return keyword, rest[:MOST_TEXT].decode("latin-1")
    if kind == b"zTXt":
        return keyword, _inflated(rest[1:]).decode("latin-1")
    packed, rest = rest[:1] == b"\x01", rest[2:]
    text = rest.split(b"\0", 2)[2:]  # language, translated keyword
    body = text[0] if text else b""
    return keyword, _text(_inflated(body) if packed else body)


def _inflated(body: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(body, MOST_TEXT)
    except zlib.error:
        return b""


def _read_webp(data: bytes, found: Metadata) -> None:
    at = 12
    for _ in range(MOST_BLOCKS):
        if at + 8 > len(data):
            return
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        body = data[at + 8 : at + 8 + length]
        if kind == b"EXIF":
            found.texts += exif_texts(body.removeprefix(b"Exif\0\0"))
        elif kind == b"XMP ":
            found.xmp.append(_text(body))
        elif kind == b"C2PA":
            found.jumbf = (found.jumbf + body)[:MOST_TEXT]
        at += 8 + length + length % 2


def exif_texts(tiff: bytes) -> list[tuple[str, str]]:
    """Description, software, artist and comment of a TIFF structure; what points outside it is not there."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return []
    found: list[tuple[str, str]] = []
    waiting, seen = [struct.unpack(order + "I", tiff[4:8])[0]], set[int]()
    while waiting and len(seen) < 4:
        at = waiting.pop()
        if at in seen or at + 2 > len(tiff):
            continue
        seen.add(at)
        (count,) = struct.unpack(order + "H", tiff[at : at + 2])
        for number in range(count):
            entry = tiff[at + 2 + 12 * number : at + 14 + 12 * number]
            if len(entry) < 12:
                break
            tag, _, size, place = struct.unpack(order + "HHII", entry)
            if tag == _EXIF_IFD:
                waiting.append(place)
            elif tag in _EXIF_NAMES:
                value = entry[8 : 8 + size] if size <= 4 else tiff[place : place + min(size, MOST_TEXT)]
                found.append((_EXIF_NAMES[tag], _exif_text(tag, value, order)))
    return found


def _exif_text(tag: int, value: bytes, order: str) -> str:
    if tag == 0x9286 and value[:8] == b"UNICODE\0":
        # Writers disagree on the byte order of the comment; letters tell.
        little, big = (value[8:].decode(f"utf-16-{name}", "replace") for name in ("le", "be"))
        return max((little, big), key=lambda text: sum(character.isascii() for character in text)).strip("\0 ")
    return _text(value[8:] if tag == 0x9286 else value).strip("\0 ")


def _text(body: bytes) -> str:
    return body[:MOST_TEXT].decode("utf-8", "replace")
