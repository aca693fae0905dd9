"""The description of a picture: all that the shorter captions may say.

A captioner writes it from the picture, the facts and the writing read in it. Without a captioner it is the long template
and the writing: true, as far as the labels are, and dull.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pleinair.captioning.ask import ask
from pleinair.captioning.facts import Facts
from pleinair.captioning.guards import caption_fault, clean
from pleinair.captioning.prompts import prompt
from pleinair.captioning.templates import Captions, captions
from pleinair.endpoints import Chat, ChatRequest, EncodedPicture, Reply
from pleinair.records.errors import AnswerError, EndpointError
from pleinair.records.wording import Wording

TEMPLATES = "templates@1"
"""Provenance of what our own templates wrote."""
_TOKENS_PER_WORD = 2


@dataclass(frozen=True)
class Described:
    """A description, or why there is none; and who made it."""

    text: str
    made_by: str
    drop: str = ""


def describe(
    chat: Chat,
    facts: Sequence[Facts],
    pictures: Sequence[EncodedPicture],
    wrong: Sequence[Sequence[str]] | None = None,
    *,
    most_words: int = 160,
    tries: int = 3,
) -> list[Described | EndpointError]:
    """What the captioner writes of each picture; `wrong` are claims of its earlier descriptions that did not hold.

    An answer that is refused, empty, cut, over-long or looping is asked for again, then the picture is dropped: what a
    captioner cannot describe, nothing can be learnt from. Errors of the way are returned for the queue to try again.
    """
    template = prompt("describe")
    requests = [
        ChatRequest(
            messages=template.messages(_known(of_picture, false), (picture,), words=most_words),
            max_tokens=_TOKENS_PER_WORD * most_words,
        )
        for of_picture, picture, false in zip(facts, pictures, wrong or [()] * len(facts), strict=True)
    ]
    replies = ask(chat, requests, lambda reply: reply_fault(reply, most_words), tries=tries)
    return [_described(reply, template.label, chat.name, tries) for reply in replies]


def _known(facts: Facts, wrong: Sequence[str]) -> dict[str, Any]:
    return {**facts.as_data(), **({"wrong_in_an_earlier_description": list(wrong)} if wrong else {})}


def reply_fault(reply: Reply, most_words: int) -> str:
    """Why a reply is no caption; empty when it is one."""
    text = clean(reply.text)
    if fault := caption_fault(text, most_words=most_words * 3 // 2):
        return fault
    return f"cut after {reply.completion_tokens} tokens" if reply.finish == "length" else ""


def _described(reply: Reply | EndpointError, label: str, model: str, tries: int) -> Described | EndpointError:
    if isinstance(reply, AnswerError):
        return Described("", f"{model} {label}", f"captioner: no usable answer in {tries} tries, the last {reply}")
    if isinstance(reply, EndpointError):
        return reply
    return Described(clean(reply.text), f"{reply.model} {label}")


def template_captions(
    row: Mapping[str, Any], facts: Facts, wording: Wording, wrong: Sequence[str] = (), *, white_background: bool = True
) -> Captions | None:
    """The templates' captions without the tags that were found wrong; None for a picture nobody has words for."""
    tags = [tag for tag in facts.tags if tag not in wrong]
    return captions({**row, "tags": tags}, wording, white_background=white_background)


def with_writing(made: Captions, facts: Facts, *, most_lines: int = 5) -> Captions:
    """The captions with what is written in the picture, in full in the long one."""
    if not facts.writing:
        return made
    lines = [line.replace('"', "'") for line in facts.writing[:most_lines]]
    told = ", ".join(f'"{line}"' for line in lines)
    stop = "" if made.long.endswith((".", "!", "?")) else "."
    return replace(made, long=f"{made.long}{stop} Written on it: {told}.")
