"""What files say of their making: crafted files of every kind, and hostile ones."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from pleinair.curation.detectors.containers import MOST_TEXT, read_metadata
from pleinair.curation.detectors.provenance import Mark, ai_mark, ai_marks

IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/"
A1111 = "a red fox, oil\nNegative prompt: blurry\nSteps: 28, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 64x64"


def picture(form: str, **saved: object) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 90, 20)).save(out, form, **saved)
    return out.getvalue()


def png_with(*chunks: tuple[bytes, bytes]) -> bytes:
    plain = picture("PNG")
    made = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return plain[:33] + made + plain[33:]


def jpeg_with(*segments: tuple[int, bytes]) -> bytes:
    plain = picture("JPEG")
    made = b"".join(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in segments)
    return plain[:2] + made + plain[2:]


def webp_with(*chunks: tuple[bytes, bytes]) -> bytes:
    made = b"".join(kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2) for kind, body in chunks)
    data = picture("WEBP") + made
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body) + 8) + kind + body


def credentials(source_type: str) -> bytes:
    """A JUMBF superbox as C2PA lays it out: description, then an actions assertion in CBOR."""
    url = f"{IPTC}{source_type}".encode()
    cbor = b"\xa1\x71digitalSourceType" + bytes([0x78, len(url)]) + url
    described = box(b"jumd", b"c2pa" + bytes(12) + b"\x03c2pa\0")
    assertion = box(b"jumb", box(b"jumd", b"cbor" + bytes(12) + b"\x03c2pa.actions\0") + box(b"cbor", cbor))
    return box(b"jumb", described + assertion)


def app11(jumbf: bytes, size: int = 60000) -> list[tuple[int, bytes]]:
    """JUMBF split over segments, each after the first with the box's header again."""
    head, parts = jumbf[:8], [jumbf[8:][at : at + size] for at in range(0, len(jumbf) - 8, size)]
    return [(0xEB, b"JP\0\x01" + struct.pack(">I", n) + head + part) for n, part in enumerate(parts, 1)]


def xmp(inner: str) -> bytes:
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description {inner}/></rdf:RDF></x:xmpmeta>'.encode()


def itxt(keyword: str, text: str, packed: bool = False) -> tuple[bytes, bytes]:
    body = zlib.compress(text.encode()) if packed else text.encode()
    return b"iTXt", keyword.encode() + b"\0" + bytes([packed, 0]) + b"\0\0" + body


def exif(order: str, **fields: bytes) -> bytes:
    """A TIFF structure with Software in the first directory and UserComment in the second."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    first, second = 8, 8 + 2 + 24 + 4
    data_at = second + 2 + 12 + 4
    software, comment = fields.get("software", b"x\0"), fields.get("comment", b"")
    software = software.ljust(8, b"\0")
    entries = struct.pack(order + "HHII", 0x0131, 2, len(software), data_at)
    entries += struct.pack(order + "HHII", 0x8769, 4, 1, second)
    assert first == len(head)
    directory = struct.pack(order + "H", 2) + entries + struct.pack(order + "I", 0)
    inner = struct.pack(order + "H", 1) + struct.pack(order + "HHII", 0x9286, 7, len(comment), data_at + len(software))
    return head + directory + inner + struct.pack(order + "I", 0) + software + comment


XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0"
TRAINED = f'Iptc4xmpExt:DigitalSourceType="{IPTC}trainedAlgorithmicMedia"'
ELEMENT = f"<Iptc4xmpExt:DigitalSourceType>{IPTC}compositeWithTrainedAlgorithmicMedia</Iptc4xmpExt:DigitalSourceType>"

MADE = {
    "jpeg c2pa": (jpeg_with(*app11(credentials("trainedAlgorithmicMedia"))), "C2PA: trainedAlgorithmicMedia"),
    "jpeg c2pa over segments": (
        jpeg_with(*app11(credentials("trainedAlgorithmicMedia"), size=20)),
        "C2PA: trainedAlgorithmicMedia",
    ),
    "png c2pa": (png_with((b"caBX", credentials("trainedAlgorithmicMedia"))), "C2PA: trainedAlgorithmicMedia"),
    "webp c2pa": (
        webp_with((b"C2PA", credentials("compositeWithTrainedAlgorithmicMedia"))),
        "C2PA: compositeWithTrainedAlgorithmicMedia",
    ),
    "jpeg xmp": (jpeg_with((0xE1, XMP_HEAD + xmp(TRAINED))), "XMP DigitalSourceType: trainedAlgorithmicMedia"),
    "png xmp": (
        png_with(itxt("XML:com.adobe.xmp", ELEMENT, packed=True)),
        "XMP DigitalSourceType: compositeWithTrainedAlgorithmicMedia",
    ),
    "webp xmp": (webp_with((b"XMP ", xmp('xmp:CreatorTool="Adobe Firefly"'))), "XMP CreatorTool: Adobe Firefly"),
    "a1111": (png_with((b"tEXt", b"parameters\0" + A1111.encode())), "text parameters: settings of a generator"),
    "a1111 packed": (
        png_with((b"zTXt", b"parameters\0\0" + zlib.compress(A1111.encode()))),
        "text parameters: settings of a generator",
    ),
    "comfy prompt": (
        png_with((b"tEXt", b'prompt\0{"3": {"class_type": "KSampler"}}')),
        "text prompt: settings of a generator",
    ),
    "comfy workflow": (png_with(itxt("workflow", '{"nodes": [{"id": 1}]}')), "text workflow: graph of a generator"),
    "novelai": (png_with((b"tEXt", b"Software\0NovelAI")), "text Software: NovelAI"),
    "exif software": (
        jpeg_with((0xE1, b"Exif\0\0" + exif("<", software=b"Midjourney 6\0"))),
        "text Software: Midjourney",
    ),
    "exif comment": (
        jpeg_with((0xE1, b"Exif\0\0" + exif(">", comment=b"UNICODE\0" + A1111.encode("utf-16-be")))),
        "text UserComment: settings of a generator",
    ),
    "webp exif": (webp_with((b"ODD ", b"odd"), (b"EXIF", exif("<", software=b"ComfyUI\0"))), "text Software: ComfyUI"),
}

NOT_MADE = {
    "plain jpeg": picture("JPEG"),
    "plain png": picture("PNG"),
    "plain webp": picture("WEBP"),
    "a camera's credentials": jpeg_with(*app11(credentials("digitalCapture"))),
    "a procedural picture": jpeg_with((0xE1, XMP_HEAD + xmp(f'x:DigitalSourceType="{IPTC}algorithmicMedia"'))),
    "the words without a manifest": jpeg_with((0xEB, b"JP\0\1\0\0\0\1 trainedAlgorithmicMedia, says nobody")),
    "a caption about it": png_with((b"tEXt", b"Title\0My talk on Stable Diffusion")),
    "a prompt that is prose": png_with((b"tEXt", b"prompt\0draw what you see from the window")),
    "an editor": png_with((b"tEXt", b"Software\0GIMP 3.0")),
    "a plain workflow": png_with(itxt("workflow", "scan, crop, tint")),
    "credits of a person": jpeg_with((0xE1, XMP_HEAD + xmp('photoshop:Credit="Flux Studio, Lyon"'))),
}


@pytest.mark.parametrize(("data", "said"), MADE.values(), ids=MADE)
def test_a_file_that_names_its_generator_is_marked(data: bytes, said: str) -> None:
    assert ai_mark(data) == said
    Image.open(io.BytesIO(data)).load()  # the crafted file is a picture that readers open


@pytest.mark.parametrize("data", NOT_MADE.values(), ids=NOT_MADE)
def test_a_file_that_names_none_is_not_marked(data: bytes) -> None:
    assert ai_mark(data) == ""


def test_pillows_own_way_of_writing_texts_is_read() -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", A1111, zip=True)
    texts.add_itxt("Comment", "generated with Midjourney")
    assert [str(mark) for mark in ai_marks(picture("PNG", pnginfo=texts))] == [
        "text parameters: settings of a generator",
        "text Comment: Midjourney",
    ]


def test_a_text_that_unpacks_a_thousandfold_is_read_to_its_limit() -> None:
    bomb = zlib.compress(b"a" * (200 * MOST_TEXT), 9)
    found = read_metadata(png_with((b"zTXt", b"parameters\0\0" + bomb)))
    assert [len(text) for _, text in found.texts] == [MOST_TEXT]


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8" + b"\xff\xeb\x00\x02" * 200_000,
        b"\xff\xd8" + b"\xff" * 500_000,
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 2**32 - 1) + b"tEXt" + b"a" * 100,
        b"\x89PNG\r\n\x1a\n" + (struct.pack(">I", 0) + b"tEXt" + b"\0" * 4) * 100_000,
        b"RIFF\xff\xff\xff\xffWEBPXMP \xff\xff\xff\xff",
        jpeg_with(
            (0xE1, b"Exif\0\0II*\0" + struct.pack("<I", 8) + b"\xff\xff" + b"\x69\x87\4\0\1\0\0\0\x08\0\0\0" * 900)
        ),
        jpeg_with((0xE1, XMP_HEAD + b"DigitalSourceType" * 3000)),
        png_with((b"tEXt", b"parameters\0" + b"Steps: 1 " * 100_000)),
    ],
)
def test_files_made_to_keep_a_reader_busy_are_over_soon(data: bytes) -> None:
    import time

    began = time.process_time()
    assert ai_mark(data) == ""
    assert time.process_time() - began < 1.0


@settings(max_examples=150, derandomize=True)
@given(
    made=st.sampled_from([data for data, _ in MADE.values()]),
    cuts=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=6)), max_size=4),
    end=st.floats(0, 1),
)
def test_damaged_files_never_raise(made: bytes, cuts: list[tuple[float, bytes]], end: float) -> None:
    data = bytearray(made)
    for place, wrong in cuts:
        at = int(place * len(data))
        data[at : at + len(wrong)] = wrong
    assert all(isinstance(mark, Mark) for mark in ai_marks(bytes(data[: int(end * len(data))])))
