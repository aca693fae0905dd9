"""From bytes to fingerprints, beside Pillow with the `imagehash` package; the second definition beside the first.

large     gcompris photographs of 1920 x 1080 enlarged to 3840 x 2160, JPEG 92, 0.9 MB
medium    gcompris photographs of 1024 pixels, JPEG 90, 0.2 MB; `hash_vs_imagehash` is on these
usual     the same at 640 pixels, JPEG 80, 57 KB
small     gcompris photographs of 320 pixels, JPEG 90, 21 KB
drawing   PNG drawings of 128 pixels, 4 KB, where no decoding can be spared
"""

from __future__ import annotations

import io
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import IO

import cv2
import numpy as np
from PIL import Image

from benchmarks.curation.entities import peer_python
from benchmarks.krablet.rounds import Result, interleaved, ratio, result
from pleinair.cli.places import cache_dir
from pleinair.curation import hashes_v1
from pleinair.curation.hashes import DECODED_SIDE, fingerprints_of
from pleinair.curation.pictures import decode
from pleinair.curation.sources import find_source, open_image

PEER = Path(__file__).with_name("peers") / "imagehash_folder.py"
NUM = {"large": 12, "medium": 40, "usual": 40, "small": 120, "drawing": 240}


def measure(rounds: int = 5) -> list[Result]:
    """`hash_vs_imagehash` is the ratio on medium photographs; one line for each size."""
    rows, pictures = list[Result](), {kind: files(kind) for kind in NUM}
    cv2.setNumThreads(1)
    fingerprints_of(pictures["small"][0])
    with tempfile.TemporaryDirectory() as folder, imagehash() as ask:
        for kind, encoded in pictures.items():
            place = Path(folder) / kind
            place.mkdir()
            for number, data in enumerate(encoded):
                (place / f"{number:04}").write_bytes(data)
            values = interleaved(rounds, _runs(encoded, lambda place=place: ask(f"time {place}")))
            rates = {name: [len(encoded) / seconds for seconds in run] for name, run in values.items()}
            size = f"{sum(map(len, encoded)) / len(encoded) / 1e3:.0f} KB"
            peer = f"Pillow + imagehash, {median(rates['imagehash']):.0f}/s"
            name = "hash_vs_imagehash" if kind == "medium" else f"hash_vs_imagehash_{kind}"
            times = ratio(rates["ours"], rates["imagehash"])
            rows.append(result(name, median(rates["ours"]), f"pictures/s/core, {kind}, {size}", peer, times))
            rows.append(result(f"hash_v1_per_s_{kind}", median(rates["first"]), "pictures/s/core"))
            rows.append(result(f"decode_full_per_s_{kind}", median(rates["full"]), "pictures/s/core"))
            rows.append(result(f"decode_small_per_s_{kind}", median(rates["small"]), "pictures/s/core"))
    return rows + agreement(pictures)


def _runs(encoded: list[bytes], peer: Callable[[], float]) -> dict[str, Callable[[], float]]:
    def seconds(work: Callable[[bytes], object]) -> Callable[[], float]:
        def run() -> float:
            began = time.process_time()
            for data in encoded:
                work(data)
            return time.process_time() - began

        return run

    return {
        "ours": seconds(fingerprints_of),
        "imagehash": peer,
        "first": seconds(lambda data: hashes_v1.fingerprints(decode(data))),
        "full": seconds(decode),
        "small": seconds(lambda data: decode(data, at_least=DECODED_SIDE)),
    }


def agreement(pictures: dict[str, list[bytes]]) -> list[Result]:
    """Bits of 144 that differ between the definitions on the same pictures, and how many of either are set."""
    rows = []
    for kind, encoded in pictures.items():
        second = np.array([_bits(fingerprints_of(data).phash12_v2) for data in encoded])
        first = np.array([_bits(hashes_v1.fingerprints(decode(data)).phash12_v1) for data in encoded])
        apart = (first != second).sum(axis=1)
        rows.append(
            result(f"hash_v2_v1_bits_{kind}", float(np.median(apart)), f"median; p95 {np.percentile(apart, 95):.0f}")
        )
        rows.append(result(f"hash_v2_bits_set_{kind}", float(second.sum(axis=1).mean()), "of 144; v1 sets 72"))
    return rows


def _bits(phash: str) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.unpackbits(np.frombuffer(bytes.fromhex(phash), np.uint8))


def files(kind: str) -> list[bytes]:
    """Encoded pictures of a kind, the first of their source in its order."""
    source = "drawings" if kind == "drawing" else "gcompris"
    found = list[bytes]()
    for row in find_source(source, cache_dir()).list():
        data = open_image(row.uri, cache_dir())
        with Image.open(io.BytesIO(data)) as image:
            longest = max(image.size)
        if kind == "drawing":
            found.append(data)
        elif kind == "large" and longest == 1920:
            found.append(_jpeg(Image.fromarray(decode(data)).resize((3840, 2160), Image.Resampling.LANCZOS), 92))
        elif kind == "usual" and longest == 1024:
            image = Image.fromarray(decode(data))
            image.thumbnail((640, 640))
            found.append(_jpeg(image, 80))
        elif longest == {"medium": 1024, "small": 320}.get(kind):
            found.append(_jpeg(Image.fromarray(decode(data)), 90))
        if len(found) == NUM[kind]:
            break
    return found


def _jpeg(image: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


@contextmanager
def imagehash() -> Iterator[Callable[[str], float]]:
    """The peer in a process of its own: a command for it, its seconds back."""
    python = peer_python("imagehash", "imagehash==4.3.2", "pillow==13.0.0", "numpy==2.4.6")
    with subprocess.Popen([python, str(PEER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def ask(command: str) -> float:
            return float(_ask(process.stdin, process.stdout, command))

        yield ask
        process.stdin.close()  # type: ignore[union-attr]


def _ask(stdin: IO[str] | None, stdout: IO[str] | None, command: str) -> str:
    assert stdin
    assert stdout
    stdin.write(f"{command}\n")
    stdin.flush()
    return stdout.readline()
