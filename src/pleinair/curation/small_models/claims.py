"""How likely it is that a claim about a picture holds, by the two-tower model.

    cosines with the claim and with rivals --> evidence --calibrated on held-out pictures--> probability

A cosine says little by itself: some pictures are near to every text. So the evidence for a claim is how much better it fits
its picture than rivals do, other labels or styles, by the model's own softmax. Held-out pictures, with their own words and
with others', say how much evidence there is for true claims and for wrong ones; that makes it a probability, with as many
wrong claims as true ones taken for granted. One half of them is fitted, the other measured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pleinair.curation.detectors.logistic import platt
from pleinair.curation.embeddings import get_vectors
from pleinair.curation.small_models.tower import LABEL_WAY, STYLE_WAY, SpokenPictures
from pleinair.curation.small_models.tower_file import ClaimCalibration, load_claims, load_two_tower
from pleinair.curation.store import ObjectStore
from pleinair.model.two_tower import TwoTower, words_of
from pleinair.records.errors import ConfigError

Array = npt.NDArray[np.float32]
WAYS: Mapping[str, int] = {"subject": LABEL_WAY, "style": STYLE_WAY}
"""By kind of claim, the way of saying that names it."""
_SAID = {"subject": "{}", "style": "{} style"}
NUM_RIVALS = 128
WRONG_PER_PICTURE = 4
FEWEST = 20
"""Held-out pictures without which nothing is calibrated."""


@dataclass(frozen=True)
class Rates:
    """What a threshold on the probability does to claims that were not fitted."""

    num_pictures: int
    true_probabilities: Array
    wrong_probabilities: Array

    def found(self, fails_under: float) -> float:
        """The share of wrong claims that fail."""
        return float((self.wrong_probabilities < fails_under).mean())

    def lost(self, fails_under: float) -> float:
        """The share of true claims that fail."""
        return float((self.true_probabilities < fails_under).mean())


@torch.inference_mode()
def evidence(model: TwoTower, vectors_NE: Array, texts: Sequence[str], rivals: Sequence[str]) -> Array:
    """(N, T) evidence for each text on each picture, 0 where it fits as rivals do; NaN for a text without a word."""
    images_ND = model.image_features(torch.from_numpy(vectors_NE))
    rivals_NR = model.scale * images_ND @ model.text_features(rivals).T
    found_NT = np.full((len(vectors_NE), len(texts)), np.nan, np.float32)
    for place, text in enumerate(texts):
        others = [number for number, rival in enumerate(rivals) if rival != text]
        if not others or not words_of(text):
            continue
        own_N = model.scale * (images_ND @ model.text_features([text])[0])
        usual_N = torch.logsumexp(rivals_NR[:, others], dim=1) - float(np.log(len(others)))
        found_NT[:, place] = (own_N - usual_N).numpy()
    return found_NT


def probabilities(evidence_: Array, calibration: ClaimCalibration) -> Array:
    """Of any shape, in 0..1."""
    return np.asarray(1 / (1 + np.exp(-(calibration.slope * evidence_ + calibration.offset))), np.float32)


def calibrate(
    model: TwoTower, held_out: SpokenPictures, kind: str, seed: int = 0
) -> tuple[ClaimCalibration, Rates] | None:
    """The calibration of a kind of claim on half of the held-out pictures, its rates on the others; None for too few."""
    way = held_out.texts[WAYS[kind]]
    spoken = [row for row, text in enumerate(way) if words_of(text)]
    values = sorted({way[row] for row in spoken})
    halves = [[row for row in spoken if half_of(held_out.names[row]) == half] for half in (0, 1)]
    if min(map(len, halves)) < FEWEST // 2 or len(values) < 2:
        return None
    rng = np.random.default_rng(seed)
    rivals = sorted(rng.permutation(values)[:NUM_RIVALS].tolist())
    fitted, measured = (
        _true_and_wrong(model, held_out.where(rows), [way[row] for row in rows], values, rivals, rng) for rows in halves
    )
    labels = np.concatenate([np.ones(len(fitted[0]), np.bool_), np.zeros(len(fitted[1]), np.bool_)])
    slope, offset = platt(np.concatenate(fitted), labels)
    calibration = ClaimCalibration(rivals=tuple(rivals), slope=slope, offset=offset)
    true, wrong = (probabilities(of, calibration) for of in measured)
    return calibration, Rates(len(halves[1]), true, wrong)


def half_of(name: str) -> int:
    """Of held-out pictures by their names: 0 is fitted, 1 is measured."""
    return hashlib.sha256(name.encode()).digest()[0] & 1


def _true_and_wrong(
    model: TwoTower,
    pictures: SpokenPictures,
    own: Sequence[str],
    values: Sequence[str],
    rivals: Sequence[str],
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """Evidence for each picture's own text, and for others' drawn at random."""
    all_NV = evidence(model, pictures.vectors_NE, values, rivals)
    place = {value: number for number, value in enumerate(values)}
    own_N = np.array([place[text] for text in own])
    rows_N = np.arange(len(own_N))
    others = [(own_N + rng.integers(1, len(values), len(own_N))) % len(values) for _ in range(WRONG_PER_PICTURE)]
    return all_NV[rows_N, own_N], np.concatenate([all_NV[rows_N, other_N] for other_N in others])


class TowerClaims:
    """Judges claims about embedded pictures; see `pleinair.captioning.scorer.ClaimScorer`."""

    def __init__(self, model: TwoTower, calibrations: Mapping[str, ClaimCalibration], store: ObjectStore) -> None:
        self.model, self.calibrations, self.store = model, calibrations, store
        self.encoder_name = model.config.encoder_name
        self.name = f"two-tower-v1 on {self.encoder_name} claims@1"

    def probabilities(self, places: Sequence[str], kind: str, values: Sequence[str]) -> Array:
        """(N, V): how likely each value is true of the picture whose vector lies at each place; NaN where nobody knows."""
        if kind not in self.calibrations or not places:
            return np.full((len(places), len(values)), np.nan, np.float32)
        calibration = self.calibrations[kind]
        texts = [_SAID[kind].format(value) for value in values]
        return probabilities(
            evidence(self.model, get_vectors(self.store, places), texts, calibration.rivals), calibration
        )


def tower_claims(model: Path, store: Path) -> TowerClaims:
    """The scorer of the model that `pleinair tower` trained. Raises ConfigError for one that was not calibrated."""
    if not model.exists():
        raise ConfigError(
            f"scorer=tower needs the image-text model, and {model} is not there: run 'pleinair tower' first"
        )
    calibrations = load_claims(model)
    if not calibrations:
        raise ConfigError(
            f"{model} was not calibrated on held-out pictures: run 'pleinair tower' again, with {FEWEST} or more of them that "
            "have labels, or leave scorer=tower out"
        )
    torch.set_num_threads(1)  # a worker is a process, and several share the machine
    return TowerClaims(load_two_tower(model), calibrations, ObjectStore(store))
