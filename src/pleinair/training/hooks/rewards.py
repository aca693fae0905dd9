"""What each rollout earned, by reward and by gate, in the record of its iteration's first step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pleinair.training.engine import Run
from pleinair.training.records import StepRecord
from pleinair.training.rollouts.loader import Rollouts


class Earnings:
    """Logs `rollout/reward`, its mean deviation inside groups, every named value and the share that passes each gate.

    `rollout/flat_groups` is the share of groups that teach nothing, as all of their advantages are zero.
    """

    def __init__(self, rollouts: Rollouts) -> None:
        self.rollouts = rollouts

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        """Tell of the rollout if the step was its first."""
        assert run.phase is not None
        step = run.phase.first_batch + run.phase_step
        if step % self.rollouts.steps_per_iteration:
            return {}
        rollout = self.rollouts.rollout(step)
        facts, said = rollout.facts, rollout.assessment
        advantages_GM = said.advantages.reshape(len(facts.groups), -1)
        deviations = [(group.squares / group.count) ** 0.5 for group in facts.groups]
        return {
            "rollout/reward": float(said.reward.mean()),
            "rollout/deviation": float(np.mean(deviations)),
            "rollout/flat_groups": float((advantages_GM == 0).all(axis=1).mean()),
            **{f"rollout/{name}": float(values.mean()) for name, values in said.values.items()},
            **{f"rollout/passes/{name}": float(passed.mean()) for name, passed in said.gates.items()},
        }
