"""What is measured of a model on the visual domains: the same prompts, and with each seed other noise, for all models.

    checkpoint --noise of the seed--> a domain's prompts drawn --the judge that ships--> things, styles, Frechet distance
         |                                    '--pixels--> saturation, fine detail
         '--the domain's held-out pictures--> error of the velocity
    real pictures of the prompts --autoencoder--> what saturation, detail and features are to be

Measurements are kept by the weights they are of and by how they were taken, apart from what trained the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiments.drawn import NUM_SHOWN, SIDE, Pixels, Scorer
from benchmarks.experiments.ground import Ground
from benchmarks.experiments.results import once
from pleinair.checkpoint.manifests import identity
from pleinair.checkpoint.store import read_manifest
from pleinair.config import config_digest
from pleinair.evaluation.domains import held_out_errors
from pleinair.evaluation.metrics import frechet_distance
from pleinair.evaluation.picture_statistics import high_frequency_share, saturation
from pleinair.evaluation.prompted import judged
from pleinair.packing.pictures import CuratedPicture
from pleinair.packs.pack import Pack
from pleinair.sampling import Sampler, SamplingConfig

Row = dict[str, Any]
GUIDANCE = 3.0
"""Of the drawings, g; fine-tuned models are used with it."""
NOISE_STEP = 1_000_003
"""Between the noise of two seeds."""


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How much is judged; nothing is trained anew when it changes."""

    num_pictures: int = 320
    """Of each domain and model with each seed; a prompt comes again, from other noise, once all have come."""
    num_features: int = 24
    """Of the judge's, along which pictures differ most; the Frechet distance is theirs."""
    num_steps: int = 16
    guidance: float = GUIDANCE


@dataclass(frozen=True)
class Domain:
    """A domain's prompts, who judges them, and the pictures that nothing was trained on."""

    scorer: Scorer
    held_out: Path
    """A pack."""

    def told(self, pixels: Pixels) -> dict[str, float]:
        """Everything that is measured of one picture for each prompt."""
        found = judged(self.scorer.judge, self.scorer.prompts, pixels)
        return {
            "concept": found.concept_accuracy,
            "style": found.style_accuracy,
            "frechet": frechet_distance(self.scorer.features(found.scores.embedding), self.scorer.real_features),
            "saturation": float(saturation(pixels).mean()),
            "fine_detail": float(high_frequency_share(pixels).mean()),
        }

    def drawn(self, sampler: Sampler, config: SamplingConfig, noise: int) -> Row:
        """What a model draws, told, with the first pictures."""
        seeds = [noise * NOISE_STEP + place for place in range(len(self.scorer.prompts))]
        pixels = sampler.sample([prompt for prompt, _, _ in self.scorer.prompts], seeds, config)
        return {**self.told(pixels), "pixels": pixels[:NUM_SHOWN].tolist()}

    @cached_property
    def real(self) -> dict[str, float]:
        """The real pictures as the autoencoder gives them back: what a model can have at best."""
        return self.told(self.scorer.given_back)


@dataclass(frozen=True)
class Bench:
    """Measures checkpoints, each once."""

    ground: Ground
    domains: Mapping[str, Domain]
    plan: Measuring

    @cached_property
    def home(self) -> Path:
        """All that a measurement depends on beside the weights is in its name."""
        asked = {name: of.scorer.prompts for name, of in self.domains.items()}
        return self.ground.runs / f"merging-measured-{config_digest([self.plan, asked, NOISE_STEP])[:12]}"

    def rows(self, model: str, seed: int, checkpoint: Path, guidance: float | None = None) -> list[Row]:
        """A model on every domain, drawn from the seed's noise."""
        strength = self.plan.guidance if guidance is None else guidance
        config = SamplingConfig(num_steps=self.plan.num_steps, guidance=strength, resolution=SIDE)

        def draw() -> dict[str, Row]:
            sampler = self.ground.sampler(checkpoint)
            return {name: one.drawn(sampler, config, seed) for name, one in self.domains.items()}

        found = once(self.home / f"drawn-{short(checkpoint)}-{strength:g}-{seed}.json", draw)
        errors = self.errors(checkpoint)
        return [
            {"model": model, "seed": seed, "domain": name, "error": errors[name], **of} for name, of in found.items()
        ]

    def errors(self, checkpoint: Path) -> dict[str, float]:
        """Mean held-out error by domain, always from the same noise."""

        def measure() -> dict[str, float]:
            sampler = self.ground.sampler(checkpoint)
            models = sampler.transformer, sampler.projection
            return {
                name: float(held_out_errors(*models, Pack(one.held_out)).mean()) for name, one in self.domains.items()
            }

        return dict(once(self.home / f"errors-{short(checkpoint)}.json", measure))


def short(checkpoint: Path) -> str:
    """A name by its weights."""
    return identity(read_manifest(checkpoint))[:12]


def chosen(pictures: Sequence[CuratedPicture], count: int) -> list[CuratedPicture]:
    """Held-out ones first, then the others at random, then from the start again."""
    order = np.random.default_rng(0).permutation(len(pictures))
    ordered = sorted((pictures[row] for row in order), key=lambda one: not one.held_out)
    return [ordered[place % len(ordered)] for place in range(count)]


def open_bench(
    ground: Ground, pictures: Mapping[str, Sequence[CuratedPicture]], held_out: Mapping[str, Path], plan: Measuring
) -> Bench:
    """Domains by name, with their pictures and packs of held-out ones. Features span all domains."""
    both = [one for of in pictures.values() for one in of]
    scorers = {name: Scorer(chosen(of, plan.num_pictures), both, plan.num_features) for name, of in pictures.items()}
    return Bench(ground, {name: Domain(scorer, held_out[name]) for name, scorer in scorers.items()}, plan)
