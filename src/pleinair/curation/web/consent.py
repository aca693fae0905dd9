"""Whether a picture may be taken, as its host says it: robots.txt and the signals made for training data.

    robots.txt             RFC 9309; also `Content-Signal: ai-train=no` in it
    ai.txt                 Spawning's, read like robots.txt
    /.well-known/tdmrep.json, header `tdm-reservation`     the TDM Reservation Protocol
    headers X-Robots-Tag and Content-Usage; <meta name="robots"> of an HTML answer

Silence is not consent: a picture nobody reserved is `unknown`, only an open licence or a signal that allows makes it
`allowed`. Every decision keeps the signal it rests on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from email.message import Message
from functools import lru_cache
from html.parser import HTMLParser
from typing import Any

from pleinair.curation.web.policy import FetchPolicy
from pleinair.records.errors import require

_OPEN_LICENCE = re.compile(
    r"(cc0|cc-by(-sa)?(-\d|$)|cc by(-sa)?( \d|$)|public.domain|pd$|pddl|mit|apache|bsd|isc|[la]?gpl|gfdl|mpl|ofl|unlicense)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Consent:
    """A decision and what it rests on."""

    decision: str
    """`allowed`, `unknown`, or `refused: <reason>`."""
    signal: str | None = None
    """What was said, and where; None when nothing was found or asked."""

    @property
    def refused(self) -> bool:
        """Whether the picture must not be taken."""
        return self.decision.startswith("refused")


UNKNOWN = Consent("unknown")


def refusal(reason: str, signal: str) -> Consent:
    """A refusal with its reason."""
    return Consent(f"refused: {reason}", signal)


def consent_of_licence(licence: str | None) -> Consent:
    """What a licence alone says: allowed when it is an open one, else unknown."""
    if not licence:
        return UNKNOWN
    is_open = _OPEN_LICENCE.match(licence.strip()) is not None
    return Consent("allowed" if is_open else "unknown", f"licence {licence}")


@dataclass(frozen=True, kw_only=True)
class SiteRules:
    """What a host says in files; an empty text says nothing."""

    robots: str = ""
    ai: str = ""
    tdmrep: str = ""
    unreachable: str = ""
    """Why robots.txt could not be had though it may exist; RFC 9309 then closes the whole host."""


def consent_of_site(rules: SiteRules, url: str, path: str, policy: FetchPolicy) -> Consent:
    """What the host's files say about a URL. The first refusal counts; `allowed` only where a file says so."""
    if rules.unreachable:
        return refusal("robots.txt cannot be had", rules.unreachable)
    for name, text in (("robots.txt", rules.robots), ("ai.txt", rules.ai)):
        parsed = _parsed(text)
        for agent in policy.agents:
            if text and not parsed.can_fetch(url, agent):
                return refusal(f"{name} disallows it", f"{name}, rules for {agent}")
    if signal := _content_signal(rules.robots):
        return signal
    return _consent_of_tdmrep(rules.tdmrep, path)


def crawl_delay(rules: SiteRules, agent: str) -> float:
    """Seconds the host wants between requests; 0 when it does not say."""
    return float(_parsed(rules.robots).crawl_delay(agent) or 0.0)


@lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    return require("protego", "curate").Protego.parse(text)


def _content_signal(robots: str) -> Consent | None:
    found = re.findall(r"(?im)^\s*content-(?:signal|usage)\s*:\s*(.+)$", robots)
    return _usage(", ".join(found), "robots.txt") if found else None


def _usage(text: str, where: str) -> Consent | None:
    """`ai-train=no`, `train-ai=n` and their opposites."""
    match = re.search(r"\b(ai-train|train-ai)\s*=\s*(yes|no|y|n)\b", text, re.IGNORECASE)
    if not match:
        return None
    signal = f"{where}: {match.group(0)}"
    if match.group(2)[0].lower() == "n":
        return refusal("its owner says no to training", signal)
    return Consent("allowed", signal)


def _consent_of_tdmrep(text: str, path: str) -> Consent:
    try:
        rules = json.loads(text or "[]")
        for rule in rules:
            if _matches(str(rule["location"]), path):
                return _reservation(str(rule["tdm-reservation"]), f"tdmrep.json, {rule['location']}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        # Somebody meant to say something: it is not for us to guess that it was a yes.
        return refusal("tdmrep.json cannot be read", f"tdmrep.json: {type(error).__name__}")
    return UNKNOWN


def _reservation(value: str, where: str) -> Consent:
    if value.strip() == "1":
        return refusal("rights are reserved", f"{where}: tdm-reservation 1")
    return Consent("allowed", f"{where}: tdm-reservation {value.strip()}") if value.strip() == "0" else UNKNOWN


def _matches(pattern: str, path: str) -> bool:
    """Patterns as in robots.txt: a prefix, `*` for anything, `$` for the end."""
    expression = re.escape(pattern).replace(r"\*", ".*")
    expression = expression[:-2] + "$" if expression.endswith(r"\$") else expression
    return re.match(expression, path) is not None


def consent_of_headers(headers: Message, policy: FetchPolicy) -> Consent:
    """What the headers of an answer say."""
    for value in headers.get_all("X-Robots-Tag", []):
        if word := _refusing_word(str(value), policy):
            return refusal(f"it is marked {word}", f"X-Robots-Tag: {word}")
    usage = _usage(", ".join(map(str, headers.get_all("Content-Usage", []))), "Content-Usage")
    if usage and usage.refused:
        return usage
    reserved = _reservation(str(headers.get("tdm-reservation", "")), "header")
    return reserved if reserved.refused or not usage else usage


def _refusing_word(value: str, policy: FetchPolicy) -> str:
    """The first refusing word of an `X-Robots-Tag`; words after another agent's name are not for us."""
    for_us = True
    for part in value.lower().split(","):
        agent, colon, words = part.partition(":")
        if colon and not agent.strip().startswith(("unavailable_after", "max-")):
            for_us = agent.strip() in {name.lower() for name in policy.agents} | {"*"}
            part = words
        if for_us and part.strip() in policy.directives:
            return part.strip()
    return ""


def consent_of_html(html: bytes, policy: FetchPolicy) -> Consent:
    """What the `<meta>` elements of a page say."""
    page = _Metas()
    page.feed(html[: 2**20].decode("utf-8", "replace"))
    names = {"robots", *(agent.lower() for agent in policy.agents)}
    for name, content in page.found:
        words = {word.strip() for word in content.lower().split(",")}
        if name in names and (refusing := words & set(policy.directives)):
            return refusal(f"its page is marked {min(refusing)}", f"<meta name={name}>: {content}")
        if name == "tdm-reservation" and content.strip() == "1":
            return refusal("rights are reserved", "<meta name=tdm-reservation>: 1")
    return UNKNOWN


class _Metas(HTMLParser):
    """Collects (name, content) of `<meta>` elements."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "meta":
            self.found.append(((values.get("name") or "").lower(), values.get("content") or ""))


def joined(consents: Iterable[Consent]) -> Consent:
    """One decision from several: a refusal wins, then what allows."""
    found = list(consents)
    refusing = [consent for consent in found if consent.refused]
    allowing = [consent for consent in found if consent.decision == "allowed"]
    return next(iter([*refusing, *allowing]), UNKNOWN)
