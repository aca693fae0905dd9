"""What every link gained and lost: the same prompts from the same noise through all of them, measured the same way.

    held-out prompts x pictures_per_prompt, noise by place --draw--> pictures --judge, rewards, gold, statistics--> row
    latents of the held-out pack --decode--> real pictures, the row they are compared with

The judge that measures is no reward. Rewards are shown too, as what was climbed; their rise beside a judge that does not
rise is what one looks for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pleinair.config import config_digest, from_document, to_document
from pleinair.evaluation.metrics import frechet_distance, vendi_score
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
from pleinair.posttraining.watching import reward_means
from pleinair.sampling import SamplingConfig
from pleinair.sampling.stored import sampling_of

MEASURED, PICTURES = "measured.json", "pictures.npz"
SEED_STEP = 7_919
"""Between the noises of two pictures; the seeds of pairs and rollouts are others."""
Features = npt.NDArray[np.float32]


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
        self._judges = [part_digest(made.judge), reward_identities(made), pack_digest(made.held_out)]

    def of_checkpoint(self, name: str, checkpoint: Path, folder: Path) -> list[Measured]:
        """As it is sampled, and without guidance where it is sampled with some; kept in the link's folder."""
        usual = self._sampling(checkpoint)
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
        rows, shown = [], {}
        for (row_name, way), stamp in zip(ways, stamps, strict=True):
            pictures = sampler.sample(prompts, self.seeds, way)
            shown[row_name] = pictures[self._shown()]
            rows.append(
                Measured(
                    name=row_name,
                    stamp=stamp,
                    num_pictures=len(pictures),
                    num_steps=way.num_steps,
                    guidance=way.guidance,
                    values=self.measure(pictures, self.asked, self.config.pictures_per_prompt),
                )
            )
        _keep(folder, rows, shown)
        return rows

    def of_real(self) -> dict[str, float]:
        """What real held-out pictures have of it, as far as it can be said without prompts in groups."""
        return _looks(self.real_NHWC)

    def measure(self, pictures_NHWC: Pixels, asked: Sequence[Prompted], group_size: int) -> dict[str, float]:
        """Every number of pictures that stand in groups of a prompt."""
        scores = judge_pictures(self.made.judge, at_judges_size(pictures_NHWC))
        prompts = [prompt for prompt, _, _ in asked]
        values = self._named(scores, asked)
        groups = scores.embedding.reshape(-1, group_size, scores.embedding.shape[1])
        values["diversity"] = float(np.mean([vendi_score(one) for one in groups]))
        values["frechet"] = frechet_distance(self._reduced(scores.embedding), self.real_features)
        values |= _looks(pictures_NHWC)
        return values | reward_means([*self.made.rewards, *self.made.gold], prompts, pictures_NHWC, group_size)

    def pictures(self, folder: Path) -> dict[str, Pixels]:
        """Those of the page, by the row's name."""
        with np.load(folder / PICTURES) as held:
            return {name: held[name] for name in held.files}

    def shown_prompts(self) -> list[str]:
        """Prompts of the pictures that are kept."""
        return [self.asked[place][0] for place in self._shown()]

    def _shown(self) -> list[int]:
        """The first picture of the first prompts."""
        return list(range(0, len(self.asked), self.config.pictures_per_prompt))[: self.config.num_shown]

    def _sampling(self, checkpoint: Path) -> SamplingConfig:
        own = sampling_of(checkpoint)
        return replace(own if own.distilled else self.config.sampling, resolution=self.resolution)

    def _named(self, scores: JudgeScores, asked: Sequence[Prompted]) -> dict[str, float]:
        """Shares of pictures whose style and thing the judge names, and of asked things that it names at least once."""
        judge, values = self.made.judge.config, {}
        for what, place, names, logits in (
            ("style", 1, judge.style_names, scores.style_logits),
            ("concept", 2, judge.concept_names, scores.concept_logits),
        ):
            known = [(names[best] == one[place], one[place]) for best, one in zip(logits.argmax(1), asked, strict=True)
                     if one[place] in names]  # fmt: skip
            if known:
                values[f"{what}_named"] = float(np.mean([right for right, _ in known]))
            if known and what == "concept":
                reached = {name for right, name in known if right}
                values["entities_covered"] = len(reached) / len({name for _, name in known})
        return values

    def _reduced(self, embedding: Features) -> Features:
        reduced: Features = (embedding - self.mean_F) @ self.directions_FK
        return reduced


def _looks(pictures_NHWC: Pixels) -> dict[str, float]:
    return {
        "high_frequency": float(high_frequency_share(pictures_NHWC).mean()),
        "saturation": float(saturation(pictures_NHWC).mean()),
    }


@torch.inference_mode()
def real_pictures(made: Materials, resolution: int) -> Pixels:
    """Pictures of the held-out pack as the autoencoder gives them back: what a perfect model could draw."""
    pack = Pack(made.held_out)
    config = LoaderConfig(batch_size=min(64, pack.manifest.num_rows), drop_caption=0.0, remainder="short")
    loader = LatentLoader(pack, resolution, config)
    decoded = [to_bytes(made.codec.decode(loader.batch(number).latents_BCHW.float())) for number in range(len(loader))]
    return np.concatenate(decoded)


def read_measured(folder: Path) -> list[Measured]:
    """The rows of a link, or none."""
    path = folder / MEASURED
    if not path.exists() or not (folder / PICTURES).exists():
        return []
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    return [from_document(Measured, row) for row in rows]


def _keep(folder: Path, rows: Sequence[Measured], shown: dict[str, Pixels]) -> None:
    """Pictures first: rows tell that they are there."""
    staging = folder / f".{PICTURES}.partial.npz"
    np.savez(staging, **shown)  # type: ignore[arg-type]
    os.replace(staging, folder / PICTURES)
    text = folder / f".{MEASURED}.partial"
    text.write_text(json.dumps(to_document(list(rows)), indent=1) + "\n")
    os.replace(text, folder / MEASURED)
