"""Pictures of a benchmark's prompts, in the files its official scorer looks for; resumable picture by picture.

    OUT/pictures/...      the layout of the benchmark, and nothing else
    OUT/drawn.jsonl       one line per finished file: what it was drawn from, and the digest of its bytes

A file that its line vouches for is not drawn again; one of another model, prompt, seed or setting is replaced.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pleinair.config import config_digest
from pleinair.evaluation.published.benchmark import Item

Pictures = npt.NDArray[np.uint8]
Draw = Callable[[Sequence[str], Sequence[int]], Pictures]
"""Prompts and seeds to (N, height, width, 3)."""
Progress = Callable[[int, int], None]

PIECE = 64
"""Pictures drawn between two times that files are written: what an interruption costs at most."""
_PRIME = 1_000_003
_COPIES = 1_009


@dataclass(frozen=True)
class Sheet:
    """A file to draw: one picture, or all copies of a prompt in a square grid."""

    file: str
    prompt: str
    seeds: tuple[int, ...]


def sheets(items: Sequence[Item[Any]], copies: int, seed: int) -> list[Sheet]:
    """The files of all prompts, each picture with a seed of its own that does not depend on how many others there are."""
    found = []
    for place, item in enumerate(items):
        seeds = [seed * _PRIME + place * _COPIES + copy for copy in range(copies)]
        per_file = copies // len(item.files)
        for number, file in enumerate(item.files):
            found.append(Sheet(file, item.prompt, tuple(seeds[number * per_file : (number + 1) * per_file])))
    return found


def draw_files(planned: Sequence[Sheet], draw: Draw, identity: str, out: Path, on_progress: Progress) -> None:
    """Draw the files that are not there yet. `identity` stands for model and settings."""
    stamps = {sheet.file: config_digest([identity, sheet.prompt, list(sheet.seeds)]) for sheet in planned}
    kept = kept_files(out, stamps)
    missing = [sheet for sheet in planned if sheet.file not in kept]
    done = len(planned) - len(missing)
    for piece in _pieces(missing):
        pictures = iter(
            draw([sheet.prompt for sheet in piece for _ in sheet.seeds], [s for one in piece for s in one.seeds])
        )
        with (out / "drawn.jsonl").open("a") as manifest:
            for sheet in piece:
                grid = as_grid([next(pictures) for _ in sheet.seeds])
                digest = write_picture(grid, out / "pictures" / sheet.file, out)
                line = {"file": sheet.file, "stamp": stamps[sheet.file], "sha256": digest}
                manifest.write(json.dumps(line) + "\n")
                manifest.flush()
        done += len(piece)
        on_progress(done, len(planned))


def kept_files(out: Path, stamps: Mapping[str, str]) -> set[str]:
    """Files that were drawn from just this, and whose bytes are still those that were written."""
    manifest = out / "drawn.jsonl"
    digests = {}
    for line in manifest.read_text().splitlines() if manifest.exists() else ():
        try:
            written = json.loads(line)
        except ValueError:
            continue  # the line during which the last run ended
        if stamps.get(written["file"]) == written["stamp"]:
            digests[written["file"]] = written["sha256"]
    pictures = out / "pictures"
    return {
        file
        for file, digest in digests.items()
        if (pictures / file).exists() and hashlib.sha256((pictures / file).read_bytes()).hexdigest() == digest
    }


def as_grid(pictures: Sequence[Pictures]) -> Pictures:
    """Pictures in a square, row by row."""
    side = math.isqrt(len(pictures))
    return np.concatenate([np.concatenate(pictures[row * side : (row + 1) * side], axis=1) for row in range(side)])


def from_grid(grid: Pictures, num: int) -> list[Pictures]:
    """The pictures of a square again."""
    side = math.isqrt(num)
    height, width = grid.shape[0] // side, grid.shape[1] // side
    return [
        grid[row * height : (row + 1) * height, column * width : (column + 1) * width]
        for row in range(side)
        for column in range(side)
    ]


def write_picture(picture: Pictures, path: Path, out: Path) -> str:
    """Write a PNG or a lossless WebP, by rename from outside the layout; gives the digest of its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = out / f".partial{path.suffix}"
    image = Image.fromarray(picture)
    if path.suffix == ".webp":
        image.save(staging, "WEBP", lossless=True)
    else:
        image.save(staging, "PNG")
    digest = hashlib.sha256(staging.read_bytes()).hexdigest()
    os.replace(staging, path)
    return digest


def read_picture(path: Path) -> Pictures:
    """(height, width, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _pieces(planned: Sequence[Sheet]) -> Iterator[list[Sheet]]:
    piece: list[Sheet] = []
    for sheet in planned:
        piece.append(sheet)
        if sum(len(one.seeds) for one in piece) >= PIECE:
            yield piece
            piece = []
    if piece:
        yield piece
