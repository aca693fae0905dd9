"""What is put side by side: the pictures of two or more results of the suite `exploration`, and real ones.

RESULT/metrics.json, requests.jsonl, pictures/*.npz --read--> Gallery     the same prompts and seeds in all, or a sentence
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from pleinair.evaluation.exploration.requests import Asked, Request, digest_requests
from pleinair.evaluation.exploration.subjects import noise_pictures
from pleinair.evaluation.exploration.trace import REQUESTS, read_asked
from pleinair.evaluation.exploration.world import Pictures
from pleinair.records.errors import ConfigError
from pleinair.records.preferences import ShownPicture, ShownSide

REAL, NOISE, COPIES = "real", "noise", "copies of one picture"


@dataclass(frozen=True)
class Gallery:
    """One subject's pictures, row by row as they were asked for."""

    subject: str
    identity: str
    """As in `ShownSide`."""
    asked: Sequence[Asked]
    pictures: Pictures
    """(N, 64, 64, 3)."""

    def side(self, rows: Sequence[int]) -> ShownSide:
        """What an event says of some of them."""
        shown = tuple(ShownPicture(unit=self.asked[row].request.unit, seed=self.asked[row].seed) for row in rows)
        return ShownSide(subject=self.subject, identity=self.identity, pictures=shown)


@dataclass(frozen=True)
class Showing:
    """Everything a session may show."""

    prompts_sha256: str
    subjects: Sequence[Gallery]
    """Two or more, of the same prompts and seeds."""
    real: Gallery
    """Real pictures of the same: one side of controls, and examples of a style."""

    @property
    def asked(self) -> Sequence[Asked]:
        """What every gallery answers."""
        return self.real.asked

    @property
    def noise(self) -> Gallery:
        """No pictures at all: the other side of controls."""
        return Gallery(NOISE, NOISE, self.asked, noise_pictures(len(self.asked), 0))

    @property
    def copies(self) -> Gallery:
        """Real pictures, of which a control shows one again and again."""
        return replace(self.real, subject=COPIES)


def read_showing(folders: Sequence[Path], real: Path | None) -> Showing:
    """The results in `folders`, and real pictures in `real` or in one of them. Raises ConfigError for results that cannot
    be compared.
    """
    if len(folders) < 2:
        raise ConfigError(f"{len(folders)} result is given: sides are of two or more, as `evaluate --suite` wrote them")
    read = {folder.resolve(): read_gallery(folder) for folder in [*folders, *([real] if real else [])]}
    subjects = [read[folder.resolve()] for folder in folders]
    galleries = list(read.values())
    for folder, one in read.items():
        if one.asked != galleries[0].asked:
            raise ConfigError(
                f"{folder} answers other prompts or seeds than {next(iter(read))}: evaluate both with one --size, --seed "
                "and --prompts"
            )
    if len({one.identity for one in subjects}) < len(subjects):
        raise ConfigError("two of the results are of the same pictures: give different subjects")
    found = [one for one in galleries if one.subject == REAL]
    if not found or (real and read[real.resolve()].subject != REAL):
        raise ConfigError(
            "controls need real pictures of the same prompts: run `pleinair evaluate real --suite exploration` and give "
            "its folder with --real"
        )
    return Showing(digest_requests(_distinct(galleries[0].asked)), subjects, found[0])


def read_gallery(folder: Path) -> Gallery:
    """A result's pictures. Raises ConfigError when it is unfinished, was changed, or is no result."""
    try:
        metrics: Any = json.loads((folder / "metrics.json").read_text())
        subject, identity, digest = (str(metrics[name]) for name in ("subject", "identity", "prompts_sha256"))
        asked = read_asked(folder / REQUESTS)
        pieces = list(_read_pieces(folder / "pictures", len(asked)))
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as unreadable:
        raise ConfigError(
            f"{folder} holds no finished result ({unreadable}): run `pleinair evaluate ... --suite exploration -o {folder}`"
        ) from unreadable
    if digest_requests(_distinct(asked)) != digest:
        raise ConfigError(f"{folder / REQUESTS} lists other prompts than {folder / 'metrics.json'}: evaluate it again")
    pictures = np.concatenate(pieces) if pieces else np.zeros((0, 64, 64, 3), np.uint8)
    if len(pictures) != len(asked):
        raise ConfigError(f"{folder} holds {len(pictures)} pictures of {len(asked)} prompts: evaluate it again")
    return Gallery(subject, identity, asked, pictures)


def _read_pieces(folder: Path, num: int) -> Iterator[Pictures]:
    """Pieces, until there are enough: behind them a longer evaluation may have left others."""
    for path in sorted(folder.glob("[0-9]*.npz")):
        if num <= 0:
            break
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            pixels: Pictures = file["pixels"]
            if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
                raise ValueError(f"{path.name} holds {pixels.dtype} {pixels.shape}")
            yield pixels
        num -= len(pixels)


def _distinct(asked: Sequence[Asked]) -> list[Request]:
    return list({one.request.unit: one.request for one in asked}.values())
