"""One picture from the web: checked, asked for, consented to, capped and sniffed."""

from __future__ import annotations

import datetime
import email.utils
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from urllib.parse import urljoin

from pleinair.curation.sources.svg import looks_like_svg
from pleinair.curation.store import looks_like_raster
from pleinair.curation.web.addresses import Target, parse_url, resolve
from pleinair.curation.web.connection import Answer, ask
from pleinair.curation.web.consent import (
    Consent,
    consent_of_headers,
    consent_of_html,
    consent_of_site,
    crawl_delay,
    joined,
)
from pleinair.curation.web.policy import AGENT, FetchPolicy
from pleinair.curation.web.sites import RULES_BYTES, site_rules
from pleinair.curation.web.turns import hold_back, turn
from pleinair.records.errors import ImageError, SourceError

_REDIRECTS = (301, 302, 303, 307, 308)
_BUSY = (429, 503)


@dataclass(frozen=True)
class WebPicture:
    """What came of a URL: bytes, or why there are none."""

    consent: Consent
    data: bytes | None = None
    drop: str = ""
    """Empty with bytes, else `kind: reason`."""


def fetch_picture(url: str, cache: Path, policy: FetchPolicy) -> WebPicture:
    """The picture behind a URL; what is wrong with it for good is its `drop`.

    Raises SourceError for what may pass (no answer, a busy host), ConfigError when the policy names no contact.
    """
    _ = policy.user_agent  # raises before anybody is asked
    said: list[Consent] = []
    try:
        answer = _followed(url, policy, lambda hop: _polite_hop(hop, cache / "web", policy, said))
    except ImageError as error:
        return WebPicture(joined(said), drop=str(error))
    consent = joined(said)
    if consent.refused:
        return WebPicture(consent, drop=f"consent: {consent.decision.removeprefix('refused: ')} ({consent.signal})")
    if answer.status != 200:
        return WebPicture(consent, drop=f"gone: the host answers {answer.status}")
    return _sniffed(answer, consent, policy)


def _sniffed(answer: Answer, consent: Consent, policy: FetchPolicy) -> WebPicture:
    """The bytes when they begin like a picture, whatever their Content-Type claims."""
    is_page = b"<html" in answer.body[:4096].lower()
    if looks_like_raster(answer.body) or (looks_like_svg(answer.body) and not is_page):
        return WebPicture(consent, data=answer.body)
    if is_page:
        consent = joined([consent, consent_of_html(answer.body, policy)])
    kind = str(answer.headers.get("Content-Type", "nothing")).partition(";")[0][:60]
    begins = answer.body[:8]
    return WebPicture(consent, drop=f"type: {len(answer.body)} bytes of {kind} beginning {begins!r} are no picture")


def _followed(url: str, policy: FetchPolicy, hop: Callable[[Target], Answer | None]) -> Answer:
    """The last answer of a chain of redirects; `hop` gives None where the host does not want to be asked."""
    target = parse_url(url)
    for _ in range(policy.max_redirects + 1):
        answer = hop(target)
        if answer is None:
            return Answer(0, Message(), b"")
        place = answer.headers.get("Location")
        if answer.status not in _REDIRECTS or not place:
            return answer
        target = parse_url(urljoin(target.url, str(place)))
    raise ImageError(f"redirects: {url} leads on after {policy.max_redirects} hops; give the picture's own address")


def _polite_hop(target: Target, folder: Path, policy: FetchPolicy, said: list[Consent]) -> Answer | None:
    """One request that its host agrees to; what was said on the way is added to `said`."""
    addresses = resolve(target, policy)
    rules = site_rules(target.origin, folder / "sites", policy, lambda url: _rules_file(url, folder, policy))
    said.append(consent_of_site(rules, target.url, target.path, policy))
    if said[-1].refused:
        return None
    answer = _asked(target, addresses, folder, policy, delay=crawl_delay(rules, AGENT))
    said.append(consent_of_headers(answer.headers, policy))
    return None if said[-1].refused else answer


def _rules_file(url: str, folder: Path, policy: FetchPolicy) -> Answer:
    def hop(target: Target) -> Answer:
        return _asked(target, resolve(target, policy), folder, policy, max_bytes=RULES_BYTES)

    return _followed(url, policy, hop)


def _asked(
    target: Target,
    addresses: Sequence[str],
    folder: Path,
    policy: FetchPolicy,
    *,
    delay: float = 0.0,
    max_bytes: int | None = None,
) -> Answer:
    """The host's answer, tried again while the reason may pass. Raises SourceError when it does not."""
    attempt = 0
    while True:
        attempt += 1
        try:
            with _turn(target, folder, policy, delay):
                # The first, third ... try goes to the first address, the others to the next one if there is one.
                answer = ask(target, addresses[(attempt - 1) % len(addresses)], policy, max_bytes=max_bytes)
            if answer.status < 500 and answer.status not in _BUSY:
                return answer
            pause = _retry_after(answer) or 2.0 ** (attempt - 1)
            failure = SourceError(f"{target.url} answered {answer.status}: it is tried again later")
            if answer.status in _BUSY:
                hold_back(folder / "hosts", target.host, pause)
        except SourceError as error:
            pause, failure = 2.0 ** (attempt - 1), error
        if attempt >= policy.attempts or pause > policy.max_wait_seconds:
            raise failure
        time.sleep(pause)


def _turn(target: Target, folder: Path, policy: FetchPolicy, delay: float) -> AbstractContextManager[None]:
    return turn(
        folder / "hosts",
        target.host,
        per_host=policy.per_host,
        delay_seconds=max(delay, policy.delay_seconds),
        max_wait_seconds=policy.max_wait_seconds,
    )


def _retry_after(answer: Answer) -> float | None:
    """Seconds the host asks for, given in seconds or as a date; None when it does not ask."""
    value = str(answer.headers.get("Retry-After", "")).strip()
    if value.isdigit():
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (moment - datetime.datetime.now(datetime.UTC)).total_seconds())
