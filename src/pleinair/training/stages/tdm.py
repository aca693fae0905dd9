"""Trajectory Distribution Matching: a student of few steps whose every step ends where the teacher's path passes.

    noise --student, K steps, no gradient--> x at the start of one segment (t_start .. t_end) of each row
       x --student--> clean --Euler--> x_end --renoise to a t inside the segment--> x_t
                        |                    teacher, guided: what is clean in x_t for the data
                        |                    fake (the head): what is clean in x_t for the student's own pictures
                        '-- pulled to  clean + (teacher's clean - fake's clean)           pseudo-Huber

The fake model learns the student's marginals beside it; where both agree at every t the student's distributions at the
segments' ends are the teacher's. Guidance is in the teacher's clean, so student and fake need none: one call a step. No
pictures are needed, prompts alone. After Luo et al., "Learning few-step diffusion models by trajectory distribution
matching", 2025, and their code; what differs, and why, is in docs/distillation.md.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pleinair.config import to_document
from pleinair.flow import VelocityFunction, timestep_schedule
from pleinair.flow.renoise import added_deviation, mixed_noise, per_row, renoise, split
from pleinair.model.transformer import Transformer
from pleinair.records.errors import ConfigError
from pleinair.sampling.sampler import SamplingConfig, guided_velocity
from pleinair.sampling.stored import SAMPLING_DOCUMENT
from pleinair.training.engine import LossOutput
from pleinair.training.prompts import PromptBatch
from pleinair.training.random import RowRandom
from pleinair.training.stages.derived import DerivedStage
from pleinair.training.stages.pretrain import Pretrain
from pleinair.training.trajectories import at, visited

LEAST_SCALE = 1e-4
"""Below this mean distance to the teacher a row's loss is not scaled up any further."""


@dataclass(frozen=True, kw_only=True)
class TdmConfig:
    """The student's steps and how it is matched."""

    num_steps: int = 4
    """Steps of the student, K."""
    shift_mu: float = 0.5
    """Shift of its schedule, as for sampling."""
    guidance: float = 3.0
    """g of the teacher, which becomes a part of the student; 0 is off."""
    fake_target: Literal["fresh", "clean"] = "fresh"
    """What the fake model regresses: the noise added within the segment, exact for any student, or as the authors do the
    student's own clean prediction with importance weights."""
    fake_updates: int = 1
    """Updates of the fake model for one of the student."""
    huber: float = 1e-3
    """Below this difference the student's loss is quadratic, above it absolute."""
    snr_clip: float = 5.0
    """Largest signal-to-noise ratio that weighs the fake model's loss."""
    least_timestep: float = 0.02
    """Nothing is compared at less noise than this."""
    edge: float = 0.04
    """Share of a segment, at each of its ends, where nothing is compared."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "fake_updates"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: give at least 1")
        if self.guidance < 0 or self.huber <= 0 or self.snr_clip <= 0:
            raise ConfigError(
                f"guidance is {self.guidance}, huber {self.huber} and snr_clip {self.snr_clip}: guidance is 0 (off) or "
                "more, the others are positive"
            )
        last = float(self.schedule()[-2])
        if not 0 <= self.edge < 0.5 or not 0 < self.least_timestep < last * (1 - self.edge):
            raise ConfigError(
                f"edge is {self.edge} and least_timestep {self.least_timestep}: something must be left of the last "
                f"segment, which begins at {last:.3f}"
            )

    def schedule(self) -> Tensor:
        """Timesteps (num_steps + 1,) float32 from 1 to 0."""
        return timestep_schedule(self.num_steps, self.shift_mu).float()

    def sampling(self) -> SamplingConfig:
        """How the student is sampled."""
        return SamplingConfig(num_steps=self.num_steps, guidance=0.0, shift_mu=self.shift_mu, distilled=True)


@dataclass(frozen=True)
class Drawn:
    """Where the rows of a batch are compared."""

    x: Tensor
    """(B, C, H, W) the student's states at the starts of their segments."""
    segment_B: Tensor
    """Which of the student's steps, from 0 at t = 1."""
    start_B: Tensor
    end_B: Tensor
    between_B: Tensor
    """The timesteps of comparison, inside the segments."""
    fresh: Tensor
    """(B, C, H, W) noise to get there from the ends."""


class Tdm(DerivedStage):
    """The stage: the student is the model, the fake model the head, which begins as the teacher.

    Start from the teacher's weights (`engine.Parent`). Give the fake model a higher rate and less momentum than the
    student: `OptimiserConfig(rule="adamw", betas=(0, 0.95), head=HeadConfig(rate_factor=5))`.
    """

    def __init__(
        self, pretrain: Pretrain, teacher: Transformer, config: TdmConfig, empty_1TLD: Tensor | None = None
    ) -> None:
        """`pretrain` holds the student; `empty_1TLD` is the empty prompt's features, needed for guidance."""
        if config.guidance and empty_1TLD is None:
            raise ConfigError(f"guidance is {config.guidance}: give the empty prompt's features, or 0")
        super().__init__(pretrain, {SAMPLING_DOCUMENT: to_document(config.sampling())})
        self.pretrain, self.config, self.empty_1TLD = pretrain, config, empty_1TLD
        self.teacher = teacher.eval().requires_grad_(False)
        self.head = copy.deepcopy(teacher).train().requires_grad_(True)

    def loss(self, batch: PromptBatch, random: RowRandom) -> LossOutput:
        """The student's and the fake model's losses, which share no gradient; both are logged.

        In steps that are the fake model's alone the student's loss is 0 and without gradient.
        """
        config, text = self.config, (batch.text_features_BTLD, batch.text_mask_BT)
        drawn = self._drawn(batch, random)
        turn = random.step % config.fake_updates == 0
        with torch.set_grad_enabled(turn):
            velocity = self.model(drawn.x, drawn.start_B, *text).float()
        clean, noise = split(drawn.x, velocity, drawn.start_B)
        ended = drawn.x + per_row(drawn.end_B - drawn.start_B, drawn.x) * velocity.detach()
        noisy = renoise(ended, drawn.end_B, drawn.between_B, drawn.fresh)
        fake_clean, _ = split(noisy, self.head(noisy, drawn.between_B, *text).float(), drawn.between_B)
        fake_B = self._fake_errors(fake_clean, noisy, clean.detach(), noise.detach(), drawn)
        wanted = self._teachers_clean(noisy, drawn.between_B, batch)
        student_B = student_errors(clean, wanted, fake_clean, config.huber)
        gap_B = (wanted - fake_clean.detach()).abs().flatten(1).mean(1)
        metrics = {
            "tdm/student": student_B.detach().mean(),
            **by_segment("tdm/fake", fake_B.detach(), drawn.segment_B, config.num_steps),
            **by_segment("tdm/gap", gap_B, drawn.segment_B, config.num_steps),
        }
        return LossOutput(fake_B.mean() + (student_B.mean() if turn else 0.0), metrics)

    def _drawn(self, batch: PromptBatch, random: RowRandom) -> Drawn:
        """A segment of every row, the student's state at its start, and where inside it is compared."""
        schedule = self.config.schedule().to(random.device)
        noise = random.normal(*batch.latent_shape)
        states = visited(self._velocity(self.model, batch, 0.0), noise, schedule)
        place_B = (random.uniform() * self.config.num_steps).long()
        start_B, end_B = schedule[place_B], schedule[place_B + 1]
        edge_B = self.config.edge * (start_B - end_B)
        least_B, most_B = (end_B + edge_B).clamp_min(self.config.least_timestep), start_B - edge_B
        between_B = least_B + random.uniform() * (most_B - least_B)
        return Drawn(at(states, place_B), place_B, start_B, end_B, between_B, random.normal(*batch.latent_shape))

    def _fake_errors(self, fake_clean: Tensor, noisy: Tensor, clean: Tensor, noise: Tensor, drawn: Drawn) -> Tensor:
        """(B,) of the chosen target."""
        if self.config.fake_target == "fresh":
            deviation_B = added_deviation(drawn.end_B, drawn.between_B)
            return fresh_errors(fake_clean, noisy, drawn.between_B, deviation_B, drawn.fresh, self.config.snr_clip)
        mixed = mixed_noise(noise, drawn.end_B, drawn.between_B, drawn.fresh)
        weight_B = importance(mixed, drawn.fresh)
        return weight_B * clean_errors(fake_clean, clean, drawn.between_B, self.config.snr_clip)

    @torch.no_grad()
    def _teachers_clean(self, noisy: Tensor, timestep_B: Tensor, batch: PromptBatch) -> Tensor:
        """What the guided teacher takes for the data in noisy latents."""
        velocity = self._velocity(self.teacher, batch, self.config.guidance)(noisy, timestep_B)
        return split(noisy, velocity, timestep_B)[0]

    @torch.no_grad()
    def _velocity(self, model: Transformer, batch: PromptBatch, guidance: float) -> VelocityFunction:
        """A model's velocity for the prompts of a batch, which are encoded once."""
        text = model.encode_text(batch.text_features_BTLD, batch.text_mask_BT)
        empty = None
        if guidance and self.empty_1TLD is not None:
            empty = model.encode_text(self.empty_1TLD.to(batch.text_features_BTLD.device))
        return guided_velocity(model, text, empty, guidance)


def by_segment(name: str, values_B: Tensor, segment_B: Tensor, num_segments: int) -> dict[str, Tensor]:
    """The mean over rows, and the part of it that each segment makes, times their number: means over rows, as metrics must be.

    A batch without rows of a segment gives 0 for it, one with many gives more: over steps these are the segment's own mean.
    """
    parts = {
        f"{name}/{segment}": num_segments * (values_B * (segment_B == segment)).mean()
        for segment in range(num_segments)
    }
    return {name: values_B.mean(), **parts}


def student_errors(clean: Tensor, wanted: Tensor, fake_clean: Tensor, huber: float) -> Tensor:
    """(B,) pseudo-Huber distance of the student's clean to clean + wanted - fake, over its mean distance to `wanted`.

    Its gradient pulls `clean` along wanted - fake; the value itself says how far teacher and fake are apart.
    """
    target = (clean + wanted - fake_clean).detach()
    scale_B = (clean - wanted).detach().abs().flatten(1).mean(1).clamp_min(LEAST_SCALE)
    distance = ((clean - target).square() + huber**2).sqrt() - huber
    return distance.flatten(1).mean(1) / scale_B


def fresh_errors(
    fake_clean: Tensor, noisy: Tensor, timestep_B: Tensor, deviation_B: Tensor, fresh: Tensor, snr_clip: float
) -> Tensor:
    """(B,) square error of the fresh noise as the fake model's clean prediction implies it.

    The score of what was made by adding deviation * fresh is -E[fresh] / deviation, and by Tweedie's formula
    clean = (noisy + t^2 score) / (1 - t): so the best prediction is that of the marginal, however the student got there.
    """
    t, deviation = per_row(timestep_B, noisy), per_row(deviation_B, noisy)
    implied = (noisy - (1 - t) * fake_clean) / t * (deviation / t)
    return (snr_clip / snr(timestep_B)).clamp_max(1.0) * (implied - fresh).square().flatten(1).mean(1)


def clean_errors(fake_clean: Tensor, clean: Tensor, timestep_B: Tensor, snr_clip: float) -> Tensor:
    """(B,) square error of the student's clean prediction, weighed by min(signal-to-noise ratio, clip)."""
    return snr(timestep_B).clamp_max(snr_clip) * (fake_clean - clean).square().flatten(1).mean(1)


def importance(mixed: Tensor, fresh: Tensor) -> Tensor:
    """(B,) exp(-|mixed|^2 / 2) / exp(-|fresh|^2 / 2), of means over a row: noise that is no longer normal counts less."""
    squares_B = [one.square().flatten(1).mean(1) for one in (mixed, fresh)]
    return (0.5 * (squares_B[1] - squares_B[0])).exp()


def snr(timestep_B: Tensor) -> Tensor:
    """(B,) ((1 - t) / t)^2."""
    return ((1 - timestep_B) / timestep_B).square()
