"""What every link gained and lost: the same prompts from the same noise through all of them, measured the same way.

    held-out prompts x pictures_per_prompt, noise by place --draw--> pictures --judge, rewards, gold, statistics--> row
    latents of the held-out pack --decode--> real pictures, the row they are compared with
    two rows --the same prompts resampled in both--> what changed, with its interval (`compare_rows`)

The judge that measures is no reward, and no gold. Rewards are shown too, as what was climbed; their rise beside a judge and
a gold that do not rise is what one looks for.

P prompts, N pictures, K directions of features.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pleinair.config import config_digest, from_document, to_document
from pleinair.evaluation.exploration.diversity import counted
from pleinair.evaluation.exploration.measured import LEVEL, POWER_FACTOR, Comparison, compare, mean_by_unit, measured
from pleinair.evaluation.exploration.sheet import NUM_GUESSES, among_first
from pleinair.evaluation.metrics import frechet_distance
from pleinair.evaluation.picture_statistics import high_frequency_share, saturation
from pleinair.evaluation.prompted import Prompted, at_judges_size
from pleinair.model.digest import part_digest
from pleinair.model.judge import JudgeScores, judge_pictures
from pleinair.model.pixels import to_bytes
from pleinair.packs.loader import LatentLoader
from pleinair.packs.pack import Pack
from pleinair.packs.plan import LoaderConfig
from pleinair.pages.picture import Pixels
from pleinair.posttraining.links import SideBySideConfig
from pleinair.posttraining.materials import Materials, identity_at, pack_digest, reward_identities
from pleinair.posttraining.watching import reward_values
from pleinair.sampling import SamplingConfig
from pleinair.sampling.stored import sampling_of

MEASURED, PICTURES, FEATURES = "measured.json", "pictures.npz", "features.npz"
VERSION = 2
"""Of the numbers: rows of another version are measured anew."""
NUM_RESAMPLES = 200
"""Of a Frechet distance, which is made anew from every resample."""
SEED_STEP = 7_919
"""Between the noises of two pictures; the seeds of pairs and rollouts are others."""
Features = npt.NDArray[np.float32]
Changes = Mapping[str, Comparison]
"""By value."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One model, drawn in one way."""

    name: str
    """Of the link, and how it was drawn where not as usual."""
    stamp: str
    """Digest of weights, prompts, settings and judges: equal stamps are equal numbers."""
    num_pictures: int
    num_steps: int
    guidance: float
    values: dict[str, float]
    units: dict[str, dict[str, float]]
    """What each prompt gave (of `entities_covered`, each thing), by value: that rows are compared by. A Frechet distance has
    none: its features are kept beside the row."""


class SideBySide:
    """Measures checkpoints by one plan; rows that are there are not measured again."""

    def __init__(self, config: SideBySideConfig, resolution: int, made: Materials) -> None:
        self.config, self.resolution, self.made = config, resolution, made
        self.asked = [
            one for one in made.answerable(made.asked)[: config.num_prompts] for _ in range(config.pictures_per_prompt)
        ]
        self.seeds = [SEED_STEP * (place + 1) for place in range(len(self.asked))]
        self.real_NHWC = real_pictures(made, resolution)
        embedding = judge_pictures(made.judge, at_judges_size(self.real_NHWC)).embedding
        self.mean_F = embedding.mean(0)
        self.directions_FK = np.linalg.svd(embedding - self.mean_F, full_matrices=False)[2][: config.num_features].T
        self.real_features = self._reduced(embedding)
        self._judges = [VERSION, part_digest(made.judge), reward_identities(made), pack_digest(made.held_out)]

    def of_checkpoint(self, name: str, checkpoint: Path, folder: Path) -> list[Measured]:
        """As it is sampled, and without guidance where it is sampled with some; kept in the link's folder."""
        usual = self.sampling(checkpoint)
        ways = [(name, usual)]
        if self.config.unguided and usual.guidance:
            ways.append((f"{name}, no guidance", replace(usual, guidance=0.0)))
        stamps = [
            config_digest([identity_at(checkpoint), to_document(self.config), way, self._judges]) for _, way in ways
        ]
        kept = read_measured(folder)
        if [one.stamp for one in kept] == stamps:
            return kept
        folder.mkdir(parents=True, exist_ok=True)
        sampler, prompts = self.made.sampler(checkpoint), [prompt for prompt, _, _ in self.asked]
        rows, shown, features = [], {}, {}
        for (row_name, way), stamp in zip(ways, stamps, strict=True):
            pictures = sampler.sample(prompts, self.seeds, way)
            shown[row_name] = pictures[self._shown()]
            row, features[row_name] = self.row(row_name, stamp, way, pictures)
            rows.append(row)
        _keep(folder, rows, shown, features)
        return rows

    def row(self, name: str, stamp: str, way: SamplingConfig, pictures_NHWC: Pixels) -> tuple[Measured, Features]:
        """Every number of the plan's pictures, and their features along the real ones' directions, (P, pictures, K)."""
        scores = judge_pictures(self.made.judge, at_judges_size(pictures_NHWC))
        units = self._units(scores, pictures_NHWC)
        reduced_NK = self._reduced(scores.embedding)
        values = {value: float(np.mean(list(by_prompt.values()))) for value, by_prompt in units.items()}
        values["frechet"] = frechet_distance(reduced_NK, self.real_features)
        row = Measured(
            name=name,
            stamp=stamp,
            num_pictures=len(pictures_NHWC),
            num_steps=way.num_steps,
            guidance=way.guidance,
            values=values,
            units=units,
        )
        return row, reduced_NK.reshape(-1, self.config.pictures_per_prompt, reduced_NK.shape[1])

    def of_real(self) -> dict[str, float]:
        """What real held-out pictures have of it, as far as it can be said without prompts in groups."""
        return {name: float(values.mean()) for name, values in _looks(self.real_NHWC).items()}

    def features(self, folder: Path) -> dict[str, Features]:
        """Those that were kept, by the row's name."""
        return _arrays(folder / FEATURES)

    def pictures(self, folder: Path) -> dict[str, Pixels]:
        """Those of the page, by the row's name."""
        return _arrays(folder / PICTURES)

    def changes(self, before: Path, after: Path) -> Changes:
        """From one folder's checkpoint to another's, each as it is usually drawn, over the same prompts."""
        ours, theirs = read_measured(before)[0], read_measured(after)[0]
        found = dict(compare_rows(ours, theirs))
        features = [self.features(folder)[row.name] for folder, row in ((before, ours), (after, theirs))]
        return found | {"frechet": compare_frechet(features[0], features[1], self.real_features)}

    def shown_prompts(self) -> list[str]:
        """Prompts of the pictures that are kept."""
        return [self.asked[place][0] for place in self._shown()]

    def _shown(self) -> list[int]:
        """The first picture of the first prompts."""
        return list(range(0, len(self.asked), self.config.pictures_per_prompt))[: self.config.num_shown]

    def sampling(self, checkpoint: Path) -> SamplingConfig:
        """As the chain's pictures are drawn; a distilled model by its own steps."""
        own = sampling_of(checkpoint)
        return replace(own if own.distilled else self.config.sampling, resolution=self.resolution)

    def _units(self, scores: JudgeScores, pictures_NHWC: Pixels) -> dict[str, dict[str, float]]:
        """Of every value what each prompt gave."""
        prompts, size = [prompt for prompt, _, _ in self.asked], self.config.pictures_per_prompt
        units = self._named(scores) | diversity_of(scores, self.asked, self.made.judge.config.concept_names, size)
        units |= {name: mean_by_unit(prompts, values) for name, values in _looks(pictures_NHWC).items()}
        said = reward_values([*self.made.rewards, *self.made.gold], prompts, pictures_NHWC, size)
        for name, (values, says) in said.items():
            rows = np.flatnonzero(says)
            if len(rows):
                units[name] = mean_by_unit([prompts[row] for row in rows], values[rows])
        return units

    def _named(self, scores: JudgeScores) -> dict[str, dict[str, float]]:
        """Whether style and thing are the judge's first guess, and each asked thing's at least once."""
        judge, units = self.made.judge.config, {}
        for what, place, names, logits in (
            ("style", 1, judge.style_names, scores.style_logits),
            ("concept", 2, judge.concept_names, scores.concept_logits),
        ):
            known = [row for row, one in enumerate(self.asked) if one[place] in names]
            right = np.array([names[logits[row].argmax()] == self.asked[row][place] for row in known], np.bool_)
            if known:
                units[f"{what}_named"] = mean_by_unit([self.asked[row][0] for row in known], right)
            if known and what == "concept":
                hits = mean_by_unit([self.asked[row][place] for row in known], right)
                units["entities_covered"] = {thing: float(share > 0) for thing, share in hits.items()}
        return units

    def _reduced(self, embedding: Features) -> Features:
        reduced: Features = (embedding - self.mean_F) @ self.directions_FK
        return reduced


def diversity_of(
    scores: JudgeScores, asked: Sequence[Prompted], concept_names: Sequence[str], group_size: int
) -> dict[str, dict[str, float]]:
    """`diversity` of every prompt's pictures and `diversity_ungated`, pictures of a prompt standing together.

    The first as the suite `exploration` counts it: a picture counts where the thing asked for is among the judge's first
    guesses. Without that gate noise is the most diverse of all. Prompts of things without a name have the second alone.
    """
    numbers = {name: number for number, name in enumerate(concept_names)}
    found: dict[str, dict[str, float]] = {"diversity": {}, "diversity_ungated": {}}
    for first in range(0, len(asked), group_size):
        (prompt, _, thing), rows = asked[first], slice(first, first + group_size)
        features_ND = scores.embedding[rows].astype(np.float64)
        found["diversity_ungated"][prompt] = counted(features_ND, np.ones(group_size, np.bool_))
        if thing in numbers:
            shown = among_first(scores.concept_logits[rows], [numbers[thing]] * group_size, NUM_GUESSES)
            found["diversity"][prompt] = counted(features_ND, shown)
    return {name: units for name, units in found.items() if units}


def compare_rows(before: Measured, after: Measured) -> Changes:
    """What changed from one row to another, by value, over the prompts of both; values of fewer than two are left out."""
    found = {}
    for name in before.units.keys() & after.units.keys():
        ours, theirs = before.units[name], after.units[name]
        if len(ours.keys() & theirs.keys()) > 1:
            found[name] = compare(measured(name, ours, before.num_pictures), measured(name, theirs, after.num_pictures))
    return found


def compare_frechet(before_PNK: Features, after_PNK: Features, real_MK: Features, *, seed: int = 0) -> Comparison:
    """The change of a Frechet distance, the same prompts drawn again of both.

    Repeated pictures move every distance, hence the quantiles are taken around the mean of the resamples and laid around
    the change itself.
    """

    def distance(features_PNK: Features) -> float:
        return frechet_distance(features_PNK.reshape(-1, features_PNK.shape[-1]), real_MK)

    rng, count = np.random.default_rng(seed), len(before_PNK)
    drawn = [rng.integers(count, size=count) for _ in range(NUM_RESAMPLES)]
    resampled_R = np.array([distance(after_PNK[rows]) - distance(before_PNK[rows]) for rows in drawn])
    difference = distance(after_PNK) - distance(before_PNK)
    low, high = difference + np.quantile(resampled_R, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)) - resampled_R.mean()
    return Comparison(
        difference=difference,
        interval=(float(low), float(high)),
        num_units=count,
        detectable=POWER_FACTOR * float(resampled_R.std()),
    )


def _looks(pictures_NHWC: Pixels) -> dict[str, npt.NDArray[np.floating[Any]]]:
    """(N,) each."""
    return {"high_frequency": high_frequency_share(pictures_NHWC), "saturation": saturation(pictures_NHWC)}


@torch.inference_mode()
def real_pictures(made: Materials, resolution: int) -> Pixels:
    """Pictures of the held-out pack as the autoencoder gives them back: what a perfect model could draw."""
    pack = Pack(made.held_out)
    config = LoaderConfig(batch_size=min(64, pack.manifest.num_rows), drop_caption=0.0, remainder="short")
    loader = LatentLoader(pack, resolution, config)
    decoded = [to_bytes(made.codec.decode(loader.batch(number).latents_BCHW.float())) for number in range(len(loader))]
    return np.concatenate(decoded)


def read_measured(folder: Path) -> list[Measured]:
    """The rows of a link, or none; rows of an older version are none."""
    path = folder / MEASURED
    if not all((folder / name).exists() for name in (MEASURED, PICTURES, FEATURES)):
        return []
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    return [from_document(Measured, row) for row in rows]


def _arrays(path: Path) -> dict[str, Any]:
    with np.load(path) as held:
        return {name: held[name] for name in held.files}


def _keep(folder: Path, rows: Sequence[Measured], shown: dict[str, Pixels], features: dict[str, Features]) -> None:
    """Rows last: they tell that the rest is there."""
    for name, arrays in ((PICTURES, shown), (FEATURES, features)):
        staging = folder / f".{name}.partial.npz"
        np.savez(staging, **arrays)
        os.replace(staging, folder / name)
    text = folder / f".{MEASURED}.partial"
    text.write_text(json.dumps(to_document(list(rows)), indent=1) + "\n")
    os.replace(text, folder / MEASURED)
