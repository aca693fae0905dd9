"""Multi-teacher on-policy distillation: several specialists into one student, on the student's own trajectories.

    prompt of domain d --student samples, no gradient--> states x_t it visits
        loss = |v_student(x_t, prompt) - v_teacher d(x_t, prompt)|^2  +  a |v_student(x_t, prompt) - v_anchor(x_t, prompt)|^2

A merge of weights averages what specialists have learned; here each answers for its own prompts, where the student goes, not
where the data lay. The anchor is a teacher of no domain, commonly what all descend from: it keeps what prompts of the
domains do not ask for. Prompts that belong to no domain may be routed to it as a teacher of their own. After Flow-OPD,
"On-policy distillation for flow matching models" (arXiv 2605.08063); without their cold start and their reward teachers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pleinair.flow import VelocityFunction, timestep_schedule
from pleinair.model.transformer import Transformer
from pleinair.records.errors import ConfigError
from pleinair.training.engine import LossOutput
from pleinair.training.prompts import PromptBatch
from pleinair.training.random import RowRandom
from pleinair.training.stages.derived import DerivedStage
from pleinair.training.stages.pretrain import Pretrain
from pleinair.training.trajectories import at, visited


@dataclass(frozen=True, kw_only=True)
class OnPolicyConfig:
    """How the student samples, and where it is compared."""

    num_steps: int = 12
    """Steps of its trajectories."""
    shift_mu: float = 0.5
    """Shift of their schedule."""
    eta: float = 0.0
    """Share of its length by which a step goes on, to be brought back by fresh noise: 0 for the ODE, at most 1."""
    num_visits: int = 3
    """States of each trajectory that are compared, spread over its steps."""
    anchor_weight: float = 0.0
    """Weight of the anchor's error beside the teachers'; it draws the student a / (1 + a) of the way."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_visits <= self.num_steps:
            raise ConfigError(f"num_visits is {self.num_visits} of {self.num_steps} steps: give 1 up to all of them")
        if not 0 <= self.eta <= 1 or self.anchor_weight < 0:
            raise ConfigError(f"eta is {self.eta}, anchor_weight {self.anchor_weight}: eta is a share, the weight >= 0")


class OnPolicyDistillation(DerivedStage):
    """The stage: the student is the model of `pretrain`, the teachers stay as they are.

    Guidance has no part: teachers and student are compared without it. Let empty prompts be among the prompts, or the
    student forgets what guidance is taken against.
    """

    def __init__(
        self,
        pretrain: Pretrain,
        teachers: Sequence[Transformer],
        config: OnPolicyConfig,
        anchor: Transformer | None = None,
    ) -> None:
        """`teachers[d]` answers for prompts of domain d. Raises ConfigError without any, and for a weight without an anchor."""
        if not teachers:
            raise ConfigError("there are no teachers: give one for each domain")
        if config.anchor_weight and anchor is None:
            raise ConfigError(f"anchor_weight is {config.anchor_weight} and there is no anchor: give one, or 0")
        super().__init__(pretrain)
        self.pretrain, self.config = pretrain, config
        self.teachers = [teacher.eval().requires_grad_(False) for teacher in teachers]
        self.anchor = anchor if anchor is None else anchor.eval().requires_grad_(False)

    def loss(self, batch: PromptBatch, random: RowRandom) -> LossOutput:
        """Mean square error of the velocity at visited states; teachers' and anchor's are logged."""
        config, device = self.config, random.device
        schedule = timestep_schedule(config.num_steps, config.shift_mu).float().to(device)
        noise = random.normal(*batch.latent_shape)
        states = visited(self._students_velocity(batch), noise, schedule, eta=config.eta, random=random)
        routed, anchored = torch.zeros((), device=device), torch.zeros((), device=device)
        for visit in range(config.num_visits):
            place_B = ((visit + random.uniform()) * config.num_steps / config.num_visits).long()
            place_B = place_B.clamp_max(config.num_steps - 1)  # float32 rounds visit + 0.99999997 up to a whole number
            x, timestep_B = at(states, place_B), schedule[place_B]
            velocity = self.model(x, timestep_B, batch.text_features_BTLD, batch.text_mask_BT).float()
            routed = routed + (velocity - self.wanted(x, timestep_B, batch)).square().mean() / config.num_visits
            if config.anchor_weight and self.anchor is not None:
                with torch.no_grad():
                    kept = self.anchor(x, timestep_B, batch.text_features_BTLD, batch.text_mask_BT).float()
                anchored = anchored + (velocity - kept).square().mean() / config.num_visits
        metrics = {"opd/teachers": routed.detach(), "opd/anchor": anchored.detach()}
        return LossOutput(routed + config.anchor_weight * anchored, metrics)

    @torch.no_grad()
    def wanted(self, x: Tensor, timestep_B: Tensor, batch: PromptBatch) -> Tensor:
        """(B, C, H, W) of each row the velocity of its domain's teacher. Raises ValueError for a domain without one."""
        if int(batch.domains_B.max()) >= len(self.teachers):
            raise ValueError(
                f"a prompt is of domain {int(batch.domains_B.max())} and there are {len(self.teachers)} teachers: count "
                "domains from 0, and give one for each"
            )
        wanted = torch.empty_like(x)
        for domain, teacher in enumerate(self.teachers):
            rows = (batch.domains_B == domain).nonzero()[:, 0]
            if len(rows):
                text = (batch.text_features_BTLD[rows], batch.text_mask_BT[rows])
                wanted[rows] = teacher(x[rows], timestep_B[rows], *text).float()
        return wanted

    @torch.no_grad()
    def _students_velocity(self, batch: PromptBatch) -> VelocityFunction:
        text = self.model.encode_text(batch.text_features_BTLD, batch.text_mask_BT)
        return lambda x, timestep_B: self.model.denoise(x, timestep_B, text)
