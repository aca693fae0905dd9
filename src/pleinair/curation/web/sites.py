"""The files in which a host says what may be fetched, kept a day on this machine.

<cache>/web/sites/<sha256 of origin>.json     written by rename, shared by all processes
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from pleinair.curation.web.connection import Answer
from pleinair.curation.web.consent import SiteRules
from pleinair.curation.web.policy import FetchPolicy
from pleinair.records.errors import ImageError, SourceError

RULES_BYTES = 512 * 1024
"""A longer file is not read; RFC 9309 asks for 500 KiB at least."""
_UNREACHABLE_HOURS = 1.0

Get = Callable[[str], Answer]
"""GET of a URL of the host, redirects followed, addresses checked."""


def site_rules(origin: str, folder: Path, policy: FetchPolicy, get: Get) -> SiteRules:
    """What the host says, from the cache or asked anew; one process asks, the others wait for it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(origin.encode()).hexdigest()[:32]}.json"
    if (known := _read(path, policy)) is not None:
        return known
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (known := _read(path, policy)) is not None:
            return known
        rules = _asked(origin, get)
        _write(path, {"origin": origin, "at": time.time(), **asdict(rules)})
        return rules


def _read(path: Path, policy: FetchPolicy) -> SiteRules | None:
    try:
        values = json.loads(path.read_text())
        rules = SiteRules(**{name: str(values[name]) for name in ("robots", "ai", "tdmrep", "unreachable")})
        hours = min(policy.rules_hours, _UNREACHABLE_HOURS) if rules.unreachable else policy.rules_hours
        return rules if time.time() - float(values["at"]) < hours * 3600 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, values: dict[str, object]) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".site-")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(values, file)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _asked(origin: str, get: Get) -> SiteRules:
    """A missing file allows; a robots.txt that fails for another reason closes the host (RFC 9309, 2.3.1.4)."""
    try:
        robots = _text(get(f"{origin}/robots.txt"))
    except (SourceError, ImageError) as error:
        return SiteRules(unreachable=str(error))
    return SiteRules(
        robots=robots, ai=_optional(f"{origin}/ai.txt", get), tdmrep=_optional(f"{origin}/.well-known/tdmrep.json", get)
    )


def _text(answer: Answer) -> str:
    if answer.status == 200:
        return answer.body.decode("utf-8", "replace")
    if answer.status == 429 or answer.status >= 500:
        raise SourceError(f"robots.txt answered {answer.status}: tried again in an hour")
    return ""


def _optional(url: str, get: Get) -> str:
    """A file few hosts have; a web page sent in its place says nothing."""
    try:
        text = _text(get(url))
    except (SourceError, ImageError):
        return ""
    return "" if text.lstrip()[:1] == "<" else text
