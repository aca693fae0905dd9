"""One description in the forms people and programs ask with: long, medium, short, tags, JSON, instruction.

Three writers, one result: a language model at an endpoint, SmolLM2 in this process, or rules. What a model writes is
kept only while it keeps the facts; else the rules' form stays, and `made_by` says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pleinair.captioning.ask import ask
from pleinair.captioning.facts import Facts
from pleinair.captioning.guards import caption_fault, clean
from pleinair.captioning.prompts import prompt
from pleinair.captioning.templates import DRAWN, Captions, completed, with_article
from pleinair.endpoints import Chat, ChatRequest, Reply, Schema
from pleinair.records.errors import AnswerError, BudgetError, EndpointError

RULES = "rules@1"
_MOST_TAGS = 12
_LONGEST = {"long": 320, "medium": 45, "short": 15, "instruction": 45}
"""Most words of each form; over it a model has not done what was asked."""

_WORDS: Schema = {"type": "string", "maxLength": 200}
_FORMS: Schema = {
    "type": "object",
    "properties": {
        "long": {"type": "string", "minLength": 10},
        "medium": {"type": "string", "minLength": 5},
        "short": {"type": "string", "minLength": 2},
        "tags": {"type": "array", "items": _WORDS, "minItems": 1, "maxItems": 24},
        "instruction": {"type": "string", "minLength": 5},
        "subject": _WORDS,
        "setting": _WORDS,
        "style": _WORDS,
        "colours": {"type": "array", "items": _WORDS, "maxItems": 12},
        "writing": {"type": "array", "items": {"type": "string"}, "maxItems": 40},
    },
    "required": ["long", "medium", "short", "tags", "instruction", "subject"],
    "additionalProperties": False,
}
_PARTS = ("subject", "setting", "style", "colours", "writing")


@dataclass(frozen=True, kw_only=True)
class Forms:
    """A picture's captions."""

    long: str
    medium: str
    short: str
    tags: tuple[str, ...]
    instruction: str
    parts: Mapping[str, Any] = field(default_factory=dict)
    """The JSON form: subject, setting, style, colours, writing; without those not said."""
    made_by: str


def rule_forms(made: Captions, facts: Facts) -> Forms:
    """The forms that templates and facts give."""
    tags = dict.fromkeys(filter(None, (facts.label, *facts.tags, facts.style and f"{facts.style} style")))
    subject = facts.label or made.short
    parts = {"subject": subject, "style": facts.style, "writing": list(facts.writing)}
    return Forms(
        long=made.long,
        medium=made.medium,
        short=made.short,
        tags=tuple(tags)[:_MOST_TAGS] or (made.short,),
        instruction=_instruction(subject, facts),
        parts={name: value for name, value in parts.items() if value},
        made_by=RULES,
    )


def _instruction(subject: str, facts: Facts) -> str:
    thing = with_article(facts.label) if facts.label else subject
    if facts.style and facts.medium.phrase in DRAWN:
        return f"Draw {thing} in {facts.style} style."
    return f"Make {facts.medium.phrase} of {thing}{f' in {facts.style} style' if facts.style else ''}."


def forms_of_model(
    chat: Chat, descriptions: Sequence[str], facts: Sequence[Facts], fallback: Sequence[Forms], *, tries: int = 2
) -> list[Forms | EndpointError]:
    """The forms a language model writes from descriptions; the fallback where no answer in `tries` is of use."""
    template = prompt("reformat")
    requests = [
        ChatRequest(
            messages=template.messages({"description": text, **_style_of(known)}), schema=_FORMS, max_tokens=1024
        )
        for text, known in zip(descriptions, facts, strict=True)
    ]
    replies = ask(chat, requests, lambda reply: forms_fault(reply.value), tries=tries)
    return [
        _forms(reply, template.label, known, rules)
        for reply, known, rules in zip(replies, facts, fallback, strict=True)
    ]


def _style_of(facts: Facts) -> dict[str, str]:
    return {"style": facts.style} if facts.style else {}


def forms_fault(value: Mapping[str, Any]) -> str:
    """Why a model's forms are of no use; empty when they are."""
    for name, most in _LONGEST.items():
        if fault := caption_fault(clean(value[name]), most_words=most, fewest_words=1):
            return f"{name}: {fault}"
    if len(value["short"].split()) > len(value["long"].split()):
        return "the short form is longer than the long one"
    return ""


def _forms(reply: Reply | EndpointError, label: str, facts: Facts, rules: Forms) -> Forms | EndpointError:
    if isinstance(reply, AnswerError):
        return replace(rules, made_by=f"{RULES} ({label}: {reply})"[:300])
    if isinstance(reply, EndpointError):
        return reply
    texts = {name: completed(clean(reply.value[name]), None, facts.style) for name in _LONGEST}
    tags = tuple(dict.fromkeys(filter(None, map(clean, reply.value["tags"]))))[:_MOST_TAGS]
    parts = {name: reply.value[name] for name in _PARTS if reply.value.get(name)}
    return Forms(**texts, tags=tags or rules.tags, parts=parts, made_by=f"{reply.model} {label}")


def rewritten(chat: Chat, forms: Sequence[Forms], facts: Sequence[Facts]) -> list[Forms]:
    """The medium form in a small model's words where it keeps the facts; the others as they are.

    Only the medium one: a model of this size loses the thread in long ones and gains nothing in short ones.
    """
    template = prompt("rewrite")
    requests = [ChatRequest(messages=template.messages(caption=made.medium), max_tokens=64) for made in forms]
    replies = chat.chat(requests)
    return [
        _rewritten(made, known, reply, template.label) for made, known, reply in zip(forms, facts, replies, strict=True)
    ]


def _rewritten(made: Forms, facts: Facts, reply: Reply | EndpointError, label: str) -> Forms:
    if isinstance(reply, BudgetError):
        raise reply
    if isinstance(reply, EndpointError):
        return made
    text = clean(reply.text)
    if reply.finish == "length" or rewrite_fault(made.medium, text, facts):
        return made
    return replace(made, medium=text, made_by=f"{made.made_by}, medium {reply.model} {label}")


_SAID_ANYWAY = """
a an and are as at background be being by depicted depicting depicts depiction drawing drawn featuring features for from
has have image illustration in into is it its of on one or picture placed plain portrait rendered set shape shown showing
shows simple small style that the there this to two with which white
"""
"""Words that add no fact."""


def rewrite_fault(source: str, text: str, facts: Facts) -> str:
    """What a rewrite has lost or made up; empty when it keeps the facts.

    Label and style words must be there, and every word that carries meaning must come from the caption or the facts:
    what a small model adds is wrong more often than right.
    """
    for needed in (facts.label, facts.style):
        if needed and not _says(text, needed):
            return f"lost {needed!r}"
    if fault := caption_fault(text, most_words=2 * len(source.split()) + 4):
        return fault
    given = _stems(" ".join((source, facts.label, facts.group, *facts.tags)))
    new = sorted(_stems(text) - given - _stems(_SAID_ANYWAY))
    if numbers := [word for word in new if word[0].isdigit()]:
        return f"made up the number {numbers[0]}"
    return f"made up {', '.join(new)}" if new else ""


def _says(text: str, words: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words.lower())}(?!\w)", text.lower()) is not None


def _stems(text: str) -> set[str]:
    return {re.sub(r"(?:'s|es|s|ed|ing)$", "", word) for word in re.findall(r"[a-z0-9']+", text.lower())}
