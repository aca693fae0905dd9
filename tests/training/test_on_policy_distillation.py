"""Two experts of a ring, one student."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch

from pleinair.model.transformer import Transformer
from pleinair.records.errors import ConfigError
from pleinair.training.random import RowRandom
from pleinair.training.stages.on_policy_distillation import OnPolicyConfig, OnPolicyDistillation
from pleinair.training.trajectories import at, visited
from tests.training import rings

EXPERT_STEPS = 500


@pytest.fixture(scope="module")
def experts() -> list[rings.Points]:
    """Each has learned to give one letter's modes alone, and nothing more."""
    return [rings.fit(rings.base(), EXPERT_STEPS, letters=(letter,), purity=0.999) for letter in (0, 1)]


def distillation(
    student: rings.Points, teachers: list[rings.Points], config: OnPolicyConfig, anchor: rings.Points | None = None
) -> OnPolicyDistillation:
    as_networks = [cast(Transformer, teacher) for teacher in teachers]
    return OnPolicyDistillation(rings.stage_of(student), as_networks, config, cast(Transformer, anchor))


def own_shares(model: rings.Points, of: tuple[int, ...] = (0, 1)) -> list[float]:
    return [rings.asked_for(rings.draw(model, letter, 24), letter) for letter in of]


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_the_student_has_both_experts_skills_and_more_of_them_than_their_merge(
    experts: list[rings.Points], tmp_path: Path, eta: float
) -> None:
    student = rings.base()
    stage = distillation(student, experts, OnPolicyConfig(eta=eta, anchor_weight=0.02), rings.base())
    rings.run(stage, rings.prompts((0, 1), domains=(0, 1)), 400, tmp_path, learning_rate=2e-3, betas=(0.9, 0.95))
    merge = rings.base()
    merge.load_state_dict(
        {name: (experts[0].state_dict()[name] + experts[1].state_dict()[name]) / 2 for name in merge.state_dict()}
    )
    wanted = [own_shares(experts[letter], (letter,))[0] for letter in (0, 1)]
    ours, merged, before = (own_shares(model) for model in (student, merge, rings.base()))
    assert all(own >= 0.95 * expert for own, expert in zip(ours, wanted, strict=True)), (ours, wanted)
    assert sum(ours) > sum(merged), (ours, merged)
    assert max(before) < 0.85 < min(wanted)


def test_the_loss_is_the_square_error_of_the_routed_teachers_at_visited_states_and_of_the_anchor() -> None:
    torch.manual_seed(0)
    student, teachers, anchor = rings.Points(), [rings.Points(), rings.Points()], rings.Points()
    config = OnPolicyConfig(num_steps=4, num_visits=2, anchor_weight=0.5)
    batch = rings.prompts((0, 1, 2), batch_size=6, domains=(0, 1, 1)).batch(0)
    output = distillation(student, teachers, config, anchor).loss(batch, RowRandom(0, 3, range(6)))
    random = RowRandom(0, 3, range(6))
    schedule = torch.tensor([1.0, *(torch.tensor([1.0, 0.0, -1.0]).mul(1.0986123).add(0.5).sigmoid()), 0.0])
    states = visited(lambda x, t: student(x, t, batch.text_features_BTLD), random.normal(2, 4, 8), schedule)
    expected = 0.0
    for visit in (0, 1):
        place_B = (2 * visit + 2 * random.uniform()).long()
        x, t_B = at(states, place_B), schedule[place_B]
        for row in range(6):
            one = (x[row : row + 1], t_B[row : row + 1], batch.text_features_BTLD[row : row + 1])
            own = student(*one)
            expected += (own - teachers[int(batch.domains_B[row])](*one)).square().mean().item() / 12
            expected += 0.5 * (own - anchor(*one)).square().mean().item() / 12
    assert output.loss.item() == pytest.approx(expected, rel=1e-4)


class AlmostOne(RowRandom):
    """Draws the largest number below 1."""

    def uniform(self, *shape: int) -> torch.Tensor:
        return torch.full((len(self.rows), *shape), 1 - 2**-24)


def test_a_visit_that_rounds_up_is_to_the_last_state() -> None:
    config, batch = OnPolicyConfig(num_steps=4, num_visits=2), rings.prompts((0, 1), batch_size=4).batch(0)
    loss = distillation(rings.Points(), [rings.Points()], config).loss(batch, AlmostOne(0, 0, range(4))).loss
    assert loss.isfinite()


def test_teachers_that_are_missing_are_named() -> None:
    with pytest.raises(ConfigError, match="there are no teachers: give one for each domain"):
        distillation(rings.Points(), [], OnPolicyConfig())
    with pytest.raises(ConfigError, match="anchor_weight is 0.1 and there is no anchor: give one, or 0"):
        distillation(rings.Points(), [rings.Points()], OnPolicyConfig(anchor_weight=0.1))
    with pytest.raises(ConfigError, match="num_visits is 20 of 12 steps"):
        OnPolicyConfig(num_visits=20)
    batch = rings.prompts((0, 1), domains=(0, 3)).batch(0)
    with pytest.raises(ValueError, match="a prompt is of domain 3 and there are 1 teachers"):
        distillation(rings.Points(), [rings.Points()], OnPolicyConfig()).loss(batch, RowRandom(0, 0, range(16)))
