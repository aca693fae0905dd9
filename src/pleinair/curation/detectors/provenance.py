"""What a picture file says of its own making: whether it names a generator.

    C2PA manifest (JUMBF)      digitalSourceType trainedAlgorithmicMedia, or a composite with it
    XMP                        the same as Iptc4xmpExt:DigitalSourceType; AISystemUsed; CreatorTool of a generator
    PNG texts, EXIF fields     generators' own records: `parameters`, `prompt`, `workflow`, Software

A signature is not verified: whoever strips or forges metadata gets his way, so the absence of a mark says nothing, and a
mark is a reason to leave a picture out, not a proof. Content credentials alone are no mark: cameras and editors sign too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pleinair.curation.detectors.containers import Metadata, read_metadata

_SOURCE_TYPE = re.compile(r"(compositeWith[Tt]|t)rainedAlgorithmicMedia\b")
_XMP_FIELD = re.compile(r"DigitalSourceType(?:\s*=\s*[\"']|[^>]{0,200}>)\s*([^\"'<]{1,200})")
_XMP_AI = re.compile(r"(AISystemUsed|AIPromptInformation)(?:\s*=\s*[\"']|[^>]{0,200}>)\s*([^\"'<]{1,200})")
_XMP_TOOL = re.compile(r"(CreatorTool|Credit)(?:\s*=\s*[\"']|[^>]{0,200}>)\s*([^\"'<]{1,200})")
_GENERATORS = re.compile(
    r"stable[ -]?diffusion|\bsdxl\b|comfyui|automatic1111|invokeai|novelai|midjourney|dall[-\u00b7 .]?e\b|adobe firefly"
    r"|google imagen|\bimagen [2-9]|made with google ai|\bflux\.?1|black forest labs|ideogram|leonardo\.ai|\bopenai\b"
    r"|\bgpt-(4o|image)|dreamstudio|stability ai|bing image creator|fooocus|swarmui|draw things",
    re.IGNORECASE,
)
_MIDJOURNEY_JOB = re.compile(r"Job ID: [0-9a-f]{8}-[0-9a-f-]{27}")
_STEPS, _SAMPLER = re.compile(r"\bSteps: \d"), re.compile(r"\b(Sampler|CFG scale): ")
_COMFY_NODE, _COMFY_GRAPH = re.compile(r'"class_type"\s*:'), re.compile(r'"nodes"\s*:\s*\[')
_OWN_KEYWORDS = ("sd-metadata", "invokeai_metadata", "invokeai_graph", "dream", "generation_data", "fooocus_scheme")
_TOOL_FIELDS = (
    "software",
    "creator",
    "generator",
    "comment",
    "source",
    "imagedescription",
    "description",
    "usercomment",
)


@dataclass(frozen=True)
class Mark:
    """One thing a file says of its making."""

    where: str
    """`C2PA`, `XMP DigitalSourceType`, `text parameters`."""
    says: str

    def __str__(self) -> str:
        return f"{self.where}: {self.says}"


def ai_mark(data: bytes) -> str:
    """The first sign in the file that a generator made it, as one short line; '' where there is none. Never raises."""
    return next((str(mark) for mark in ai_marks(data)), "")


def ai_marks(data: bytes) -> list[Mark]:
    """Every sign, content credentials first."""
    found = read_metadata(data)
    return [*_of_credentials(found), *_of_xmp(found), *(mark for pair in found.texts for mark in _of_text(*pair))]


def _of_credentials(found: Metadata) -> Iterator[Mark]:
    if b"jumb" in found.jumbf and b"c2pa" in found.jumbf:
        for match in dict.fromkeys(one[0] for one in _SOURCE_TYPE.finditer(found.jumbf.decode("latin-1"))):
            yield Mark("C2PA", match)


def _of_xmp(found: Metadata) -> Iterator[Mark]:
    for packet in found.xmp:
        for value in _XMP_FIELD.findall(packet):
            if match := _SOURCE_TYPE.search(value):
                yield Mark("XMP DigitalSourceType", match[0])
        for name, value in _XMP_AI.findall(packet):
            if value.strip():
                yield Mark(f"XMP {name}", _short(value))
        for name, value in _XMP_TOOL.findall(packet):
            if _GENERATORS.search(value):
                yield Mark(f"XMP {name}", _short(value))


def _of_text(keyword: str, text: str) -> Iterator[Mark]:
    name, where = keyword.lower(), f"text {_short(keyword)}"
    if name in _OWN_KEYWORDS:
        yield Mark(where, _short(text))
    elif (_STEPS.search(text) and _SAMPLER.search(text)) or (name == "prompt" and _COMFY_NODE.search(text)):
        yield Mark(where, "settings of a generator")
    elif name == "workflow" and _COMFY_GRAPH.search(text):
        yield Mark(where, "graph of a generator")
    elif name in _TOOL_FIELDS and (match := _GENERATORS.search(text) or _MIDJOURNEY_JOB.search(text)):
        yield Mark(where, _short(match[0]))


def _short(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text[:300]).split())[:60]
