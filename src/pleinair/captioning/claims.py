"""Captions taken apart into claims that can be checked one by one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pleinair.captioning.facts import Facts
from pleinair.captioning.guards import clean
from pleinair.captioning.prompts import prompt
from pleinair.captioning.templates import DRAWN, with_article
from pleinair.endpoints import Chat, ChatRequest, Reply, Schema
from pleinair.records.errors import AnswerError, EndpointError
from pleinair.records.wording import Medium

KINDS = ("subject", "number", "colour", "action", "place", "style", "background", "writing", "tag", "other")
_MOST_CLAIMS = 24

_CLAIMS: Schema = {
    "type": "object",
    "properties": {
        "claims": {
            "type": "array",
            "minItems": 1,
            "maxItems": _MOST_CLAIMS,
            "items": {
                "type": "object",
                "properties": {
                    "text": {"type": "string", "minLength": 3, "maxLength": 300},
                    "kind": {"enum": list(KINDS)},
                },
                "required": ["text", "kind"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["claims"],
    "additionalProperties": False,
}

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey", "gray")
_COLOUR = re.compile(rf"(?<![\w-])({'|'.join(COLOURS)})(?![\w-])", re.IGNORECASE)
_WHITE_BACKGROUND = re.compile(r"white background|background is white|\bon white\b", re.IGNORECASE)
_TAGS = re.compile(r"It shows: ([^.]*)\.")
_WRITTEN = re.compile(r"Written on it: (.*)\.$")


@dataclass(frozen=True)
class Claim:
    """One thing a caption says of its picture."""

    text: str
    """As a sentence, for a person or a model."""
    kind: str
    """One of KINDS."""
    value: str = ""
    """What is claimed, where that is known: the label, the style, the colour, the text."""


def template_claims(captions: Sequence[str], facts: Facts) -> list[Claim]:
    """The claims in captions that our templates wrote, found by their own words; nothing is claimed that no caption says."""
    said = " ".join(captions)
    claims = []
    if facts.label and facts.label.lower() in said.lower():
        claims.append(Claim(f"the picture shows {with_article(facts.label)}", "subject", facts.label))
        colours = [colour.lower() for colour in _COLOUR.findall(facts.label)]
        claims += [Claim(f"something in it is {colour}", "colour", colour) for colour in colours]
    if facts.style and facts.style.lower() in said.lower():
        drawn = "drawn in" if facts.medium.phrase in DRAWN else "in"
        claims.append(Claim(f"it is {drawn} {facts.style} style", "style", facts.style))
    if facts.medium.phrase != Medium().phrase and not facts.medium.says_style and facts.medium.phrase in said:
        claims.append(Claim(f"it is {facts.medium.phrase}", "other"))
    if _WHITE_BACKGROUND.search(said):
        claims.append(Claim("the background is white", "background", "white"))
    for listed in dict.fromkeys(_TAGS.findall(said)):
        claims += [Claim(f"it has to do with {tag}", "tag", tag) for tag in listed.split(", ")]
    for text in captions:
        if written := _WRITTEN.search(text):
            claims += [
                Claim(f'"{line}" is written in it', "writing", line) for line in re.findall(r'"([^"]*)"', written[1])
            ]
    return list(dict.fromkeys(claims))


def claims_of_model(chat: Chat, captions: Sequence[Sequence[str]]) -> list[list[Claim] | EndpointError]:
    """The claims a language model finds in each picture's captions; its sentences where the model finds none.

    Captions of one picture are decomposed together, so what several of them say is one claim.
    """
    template = prompt("claims")
    requests = [
        ChatRequest(
            messages=template.messages({"captions": list(of_picture)}, most=_MOST_CLAIMS),
            schema=_CLAIMS,
            max_tokens=1500,
        )
        for of_picture in captions
    ]
    replies = chat.chat(requests)
    return [_claims(reply, of_picture) for reply, of_picture in zip(replies, captions, strict=True)]


def _claims(reply: Reply | EndpointError, captions: Sequence[str]) -> list[Claim] | EndpointError:
    if isinstance(reply, AnswerError):
        return sentences(captions)
    if isinstance(reply, EndpointError):
        return reply
    found = [Claim(clean(claim["text"]), claim["kind"]) for claim in reply.value["claims"]]
    return [claim for claim in dict.fromkeys(found) if claim.text]


def sentences(captions: Sequence[str]) -> list[Claim]:
    """The sentences of the longest caption, each as one claim: coarse, but nothing that is said goes unchecked."""
    longest = max(captions, key=len)
    parts = [clean(part).rstrip(".") for part in re.split(r"(?<=[.!?;])\s+", longest)]
    return [Claim(part, "other") for part in dict.fromkeys(parts) if part][:_MOST_CLAIMS]
