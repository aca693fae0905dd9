"""Captions per second: the client over a server that takes 20 ms an answer, cache cold and warm, beside a plain loop of
requests; and what the stages without endpoints cost.

The server is in a process of its own and answers without a model, so the figures are ours: what a model adds is its own.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from benchmarks.krablet.rounds import Result, interleaved, ratio, result
from pleinair.captioning.accuracy import Case, PixelVerifier, WritingVerifier, check
from pleinair.captioning.claims import template_claims
from pleinair.captioning.describe import describe, template_captions
from pleinair.captioning.facts import Facts
from pleinair.captioning.ocr import RapidOCR
from pleinair.captioning.pictures import to_send
from pleinair.captioning.prompts import prompt
from pleinair.curation import WORDING
from pleinair.endpoints import ChatClient, ChatRequest, EncodedPicture, Endpoint
from tests.endpoints.servers import completion, serve

ANSWER_SECONDS = 0.02
NUM_PICTURES = 200
CONCURRENCY = 16
SAID = "A red fox sleeps under an old oak tree while snow falls on the meadow behind it."


def measure(rounds: int) -> list[Result]:
    """The figures of captioning."""
    pictures = [to_send(_noise(number), 256) for number in range(NUM_PICTURES)]
    facts = [Facts(label=f"thing {number}") for number in range(NUM_PICTURES)]
    with _server() as url:
        values = interleaved(
            rounds,
            {
                "a plain loop": lambda: _plain(url, facts[:50], pictures[:50]),
                "cold": lambda: _client(url, facts, pictures, warm=False),
                "warm": lambda: _client(url, facts, pictures, warm=True),
            },
        )
    plain, cold, warm = (statistics.median(values[name]) for name in ("a plain loop", "cold", "warm"))
    peer = "one request after another over one httpx2 client"
    return [
        result("captions_cold_per_s", cold, "captions/s", peer, ratio(values["cold"], values["a plain loop"])),
        result("captions_plain_loop_per_s", plain, "captions/s"),
        result("captions_warm_per_s", warm, "captions/s", peer, ratio(values["warm"], values["a plain loop"])),
        *_without_endpoints(),
    ]


def _without_endpoints() -> list[Result]:
    pixels = [_noise(number, 128) for number in range(40)]
    facts = Facts(label="red apple", style="noto", tags=("fruit", "diet"))
    row = {"image_name": "x", "source": "drawings", "label": "red apple", "style": "noto"}
    made = template_captions(row, facts, WORDING)
    assert made is not None
    texts = (made.long, made.medium, made.short)
    verifiers = [PixelVerifier(), WritingVerifier()]
    reader = RapidOCR()
    return [
        result("checks_pixels_per_s", _cpu(lambda: check([Case(p, template_claims(texts, facts)) for p in pixels], verifiers), 40),
               "pictures of 128 px/CPU-s"),
        result("ocr_per_s", _cpu(lambda: [reader.read(p) for p in pixels[:10]], 10), "pictures of 128 px/CPU-s"),
    ]  # fmt: skip


def _cpu(run: Callable[[], object], count: int) -> float:
    run()
    began = time.process_time()
    run()
    return count / (time.process_time() - began)


def _client(url: str, facts: list[Facts], pictures: list[EncodedPicture], *, warm: bool) -> float:
    endpoint = Endpoint(url=url, model="m", concurrency=CONCURRENCY)
    with tempfile.TemporaryDirectory() as place, ChatClient(endpoint, stage="describe", place=Path(place)) as chat:
        if warm:
            describe(chat, facts, pictures)
        began = time.monotonic()
        found = describe(chat, facts, pictures)
        seconds = time.monotonic() - began
    assert all(getattr(one, "text", "") == SAID for one in found)
    return len(found) / seconds


def _plain(url: str, facts: list[Facts], pictures: list[EncodedPicture]) -> float:
    requests = [
        ChatRequest(messages=prompt("describe").messages(known.as_data(), (picture,), words=160))
        for known, picture in zip(facts, pictures, strict=True)
    ]
    with httpx2.Client() as client:
        began = time.monotonic()
        for request in requests:
            body: dict[str, Any] = {"model": "m", "messages": [message.as_json() for message in request.messages]}
            client.post(f"{url}/chat/completions", json=body).raise_for_status()
        return len(requests) / (time.monotonic() - began)


def _noise(number: int, side: int = 256) -> Any:
    return np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)


@contextmanager
def _server() -> Iterator[str]:
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send("stop")
        process.join()


def _serve(pipe: Any) -> None:
    def answer(body: Any) -> Any:
        time.sleep(ANSWER_SECONDS)
        return completion(SAID)

    with serve(answer) as served:
        pipe.send(served.url)
        pipe.recv()
