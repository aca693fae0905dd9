"""The fetch stage: bytes from wherever a row says into the object store, and whether they may be there.

    row --> taken down? --> bytes (web: politely, in parallel) --> taken down? --> object store
                                   consent, fetched_at            md5, sha256

A row has its columns filled all at once or not at all; a dropped one keeps the decision and what it rests on.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pleinair.curation import hashes as fingerprint
from pleinair.curation.sources import open_image
from pleinair.curation.sources.svg import looks_like_svg, rasterise
from pleinair.curation.store import ObjectStore
from pleinair.curation.takedowns import Refusals
from pleinair.curation.web import Consent, FetchPolicy, fetch_picture
from pleinair.curation.web.consent import consent_of_licence, joined
from pleinair.records.errors import ImageError, SourceError

Row = Mapping[str, Any]
Outcome = dict[str, object] | Exception


def is_web(uri: str) -> bool:
    """Whether the fetch of a row goes over the network."""
    return uri.startswith(("http://", "https://"))


def fetch_rows(
    batch: Sequence[Row], cache: Path, store: ObjectStore, policy: FetchPolicy, refusals: Refusals
) -> list[Outcome]:
    """The columns of the fetch stage for each row, or the exception for which it is tried again."""

    def fetched(row: Row) -> Outcome:
        try:
            return fetch_row(row, cache, store, policy, refusals)
        except SourceError as error:
            return error

    if not any(is_web(row["uri"]) for row in batch):
        return [fetched(row) for row in batch]
    with ThreadPoolExecutor(policy.threads) as threads:
        return list(threads.map(fetched, batch))


def fetch_row(row: Row, cache: Path, store: ObjectStore, policy: FetchPolicy, refusals: Refusals) -> dict[str, object]:
    """The columns of the fetch stage. Raises SourceError when trying again may help."""
    consent = consent_of_licence(row["licence"])
    if reason := refusals.of_uri(row["uri"]):
        return _columns(consent, drop=reason)
    try:
        consent, drop, data = _taken(row["uri"], cache, policy, consent)
    except ImageError as error:
        return _columns(consent, drop=str(error))
    if drop or data is None:
        return _columns(consent, drop=drop)
    md5, sha256 = fingerprint.md5(data), hashlib.sha256(data).hexdigest()
    if reason := refusals.of_bytes(md5, sha256):
        return _columns(consent, drop=reason)
    return _columns(consent, image_path=store.put(data), md5=md5, num_bytes=len(data))


def _taken(uri: str, cache: Path, policy: FetchPolicy, licence: Consent) -> tuple[Consent, str, bytes | None]:
    """(consent, drop, bytes): without bytes the drop says why."""
    if not is_web(uri):
        return licence, "", open_image(uri, cache)
    found = fetch_picture(uri, cache, policy)
    consent = joined([found.consent, licence])
    if consent.decision == "unknown" and not consent.signal:
        consent = Consent("unknown", "no opt-out in robots.txt, ai.txt, tdmrep.json and headers")
    if found.data is not None and looks_like_svg(found.data):
        return consent, "", rasterise(found.data)
    return consent, found.drop, found.data


def _columns(
    consent: Consent,
    *,
    drop: str = "",
    image_path: str | None = None,
    md5: str | None = None,
    num_bytes: int | None = None,
) -> dict[str, object]:
    now = datetime.datetime.now(datetime.UTC)
    return {
        "fetch_drop": drop,
        "image_path": image_path,
        "md5": md5,
        "num_bytes": num_bytes,
        "fetched_at": None if image_path is None else now,
        "consent": consent.decision,
        "consent_signal": consent.signal,
        "consent_at": now,
    }
