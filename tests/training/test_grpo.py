from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from pleinair.flow.stochastic import Sde, coefficients
from pleinair.model.transformer import Transformer
from pleinair.records.errors import ConfigError
from pleinair.training.engine import read_records
from pleinair.training.random import RowRandom
from pleinair.training.rollouts.loader import RolloutBatch
from pleinair.training.rows import part
from pleinair.training.stages.grpo import Grpo, GrpoConfig, clipped
from tests.training.small_rollouts import DRAWING, grpo_stage, rollouts, run_grpo, tiny_sampler

RANDOM = RowRandom(0, 0, range(4))
KINDS: tuple[tuple[Sde, float], ...] = (("cps", 0.8), ("flow", 0.7), ("dance", 0.3))


def drawn(root: Path, sde: Sde = "cps", level: float = 0.8, first: int | None = None) -> tuple[Grpo, RolloutBatch]:
    """A stage with its defaults and the first batch of its rollouts."""
    sampler = tiny_sampler()
    batch = rollouts(root, sampler, sde=sde, noise_level=level, window_first=first).batch(0)
    return grpo_stage(sampler), batch


def changed(stage: Grpo, **changes: Any) -> Grpo:
    return Grpo(stage.base, replace(stage.config, **changes), stage.reference)


def nudge(model: nn.Module, size: float = 0.01) -> None:
    """Other weights, a little."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)


def gaussians(model: Transformer, batch: RolloutBatch) -> Iterator[tuple[Tensor, Normal, Tensor, float]]:
    """What each step of the window reached, what it was drawn from now, the old mean, and the mean's slope."""
    for place in range(batch.means_BWCHW.shape[1]):
        x, reached = batch.states_BSCHW[:, place], batch.states_BSCHW[:, place + 1]
        now, later = batch.timesteps_BS[:, place], batch.timesteps_BS[:, place + 1]
        step = coefficients(batch.sde, now[0], later[0], batch.noise_level)
        velocity = model(x, now.float(), batch.text_features_BTLD, batch.text_mask_BT)
        gaussian = Normal(float(step.of_state) * x + float(step.of_velocity) * velocity, float(step.deviation))
        yield reached, gaussian, batch.means_BWCHW[:, place], abs(float(step.of_velocity))


def gradient_of(loss: Tensor, model: nn.Module) -> list[Tensor]:
    """For the parameters that the loss depends on; zeros for the others."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [
        torch.zeros_like(p) if gradient is None else gradient for p, gradient in zip(parameters, found, strict=True)
    ]


def assert_alike(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert max(float(one.abs().max()) for one in theirs) > 0
    scale = torch.cat([one.flatten() for one in theirs]).norm()
    off = torch.cat([(one - other).flatten() for one, other in zip(ours, theirs, strict=True)]).norm()
    assert off < 1e-3 * scale, float(off / scale)


@pytest.mark.parametrize(("sde", "level"), KINDS)
def test_at_ratio_1_the_gradient_is_reinforces(tmp_path: Path, sde: Sde, level: float) -> None:
    stage, batch = drawn(tmp_path, sde, level)
    ours = changed(stage, guard=False, reweight=False).loss(batch, RANDOM).loss
    log_probabilities = [
        gaussian.log_prob(reached).mean(dim=(1, 2, 3)) for reached, gaussian, _, _ in gaussians(stage.model, batch)
    ]
    reinforce = -(batch.advantages_B * torch.stack(log_probabilities).mean(0)).mean()
    assert_alike(gradient_of(ours, stage.model), gradient_of(reinforce, stage.model))


def inverse_gains(sde: Sde, level: float, guard: bool) -> list[float]:
    """Velocity for one unit of a step's log ratio, of every step of the schedule that has noise."""
    steps = [coefficients(sde, now, later, level) for now, later in itertools.pairwise(DRAWING.schedule())]
    noisy = [(abs(float(step.of_velocity)), float(step.deviation)) for step in steps if float(step.deviation)]
    return [(1.0 if guard else deviation) / slope for slope, deviation in noisy]


@pytest.mark.parametrize("guard", [True, False])
@pytest.mark.parametrize(("sde", "level"), KINDS)
def test_weights_make_every_step_of_every_window_teach_the_velocity_by_its_noise_alone(
    tmp_path: Path, sde: Sde, level: float, guard: bool
) -> None:
    unit = np.mean(inverse_gains(sde, level, guard))
    for first in range(2 if sde == "cps" else 3):
        stage, batch = drawn(tmp_path / str(first), sde, level, first)
        ours = changed(stage, guard=guard).loss(batch, RANDOM).loss
        taught = []
        for place, (reached, gaussian, _, _) in enumerate(gaussians(stage.model, batch)):
            x, now = batch.states_BSCHW[:, place], batch.timesteps_BS[:, place].float()
            velocity = stage.model(x, now, batch.text_features_BTLD, batch.text_mask_BT)
            noise = ((reached - gaussian.mean) / gaussian.stddev).detach()
            taught.append(batch.advantages_B * (noise * velocity).mean(dim=(1, 2, 3)))
        # The mean falls where the velocity rises, so more of the noise that led to a good picture is less velocity.
        expected = torch.stack(taught).mean() / unit
        assert_alike(gradient_of(ours, stage.model), gradient_of(expected, stage.model))


def test_a_clip_that_is_not_given_is_the_published_one_at_its_size_and_wider_for_smaller_latents() -> None:
    assert [GrpoConfig().clip_at(size) for size in (65536, 1024, 256)] == pytest.approx([1e-4, 8e-4, 1.6e-3])
    assert GrpoConfig(clip=0.3).clip_at(256) == 0.3


@pytest.mark.parametrize("clip", [0.002, None, 10.0])
@pytest.mark.parametrize("guard", [True, False])
@pytest.mark.parametrize(("sde", "level"), KINDS)
def test_the_loss_is_the_formulas(tmp_path: Path, sde: Sde, level: float, guard: bool, clip: float | None) -> None:
    stage, batch = drawn(tmp_path, sde, level)
    stage = changed(stage, guard=guard, reweight=False, clip=clip, largest_advantage=0.9)
    nudge(stage.model, 0.03)
    batch = replace(batch, num_updates=1)
    found = stage.loss(batch, RANDOM)
    clip = clip or 1e-4 * (65536 / 16) ** 0.5  # latents of 4 x 2 x 2
    losses = []
    for place, (reached, new, old_mean, _) in enumerate(gaussians(stage.model, batch)):
        k, advantage = new.stddev.flatten()[0], batch.advantages_B.clamp(-0.9, 0.9)
        log_r = new.log_prob(reached).mean(dim=(1, 2, 3)) - batch.log_probabilities_BW[:, place]
        corrected = log_r * k + (new.mean - old_mean).square().mean(dim=(1, 2, 3)) / (2 * k)
        r = (corrected if guard else log_r).exp()
        losses.append(-torch.minimum(r * advantage, r.clamp(1 - clip, 1 + clip) * advantage))
    assert found.loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4, abs=1e-6)
    assert (float(found.metrics["rl/clipped"]) > 0) == (clip < 1)


def test_weights_undo_the_means_slope_in_units_of_the_schedules_mean(tmp_path: Path) -> None:
    stage, batch = drawn(tmp_path)
    nudge(stage.model)
    batch = replace(batch, num_updates=1)
    losses = [changed(stage, reweight=False).loss(_one_step(batch, place), RANDOM).loss.item() for place in range(2)]
    slopes = [slope for *_, slope in gaussians(stage.model, batch)]
    weights = np.array([1 / slope for slope in slopes]) / np.mean(inverse_gains("cps", 0.8, guard=True))
    assert weights[0] != pytest.approx(weights[1], rel=0.05), "the steps differ"
    assert stage.loss(batch, RANDOM).loss.item() == pytest.approx(np.mean(weights * losses), rel=1e-4, abs=1e-7)


def _one_step(batch: RolloutBatch, place: int) -> RolloutBatch:
    return replace(
        batch,
        states_BSCHW=batch.states_BSCHW[:, place : place + 2],
        means_BWCHW=batch.means_BWCHW[:, place : place + 1],
        log_probabilities_BW=batch.log_probabilities_BW[:, place : place + 1],
        timesteps_BS=batch.timesteps_BS[:, place : place + 2],
    )


@pytest.mark.parametrize(
    ("ratio", "advantage", "gradient"),
    [(1.2, 1.0, 0.0), (0.8, 1.0, 1.0), (1.05, 1.0, 1.0), (1.2, -1.0, -1.0), (0.8, -1.0, 0.0)],
)
def test_a_ratio_beyond_the_clip_teaches_only_the_way_back(ratio: float, advantage: float, gradient: float) -> None:
    r = torch.tensor(ratio, requires_grad=True)
    clipped(r, torch.tensor(advantage), 0.1).backward()
    assert r.grad is not None
    assert r.grad.item() == gradient


def test_the_reference_holds_the_velocity_back_and_learns_nothing(tmp_path: Path) -> None:
    stage, batch = drawn(tmp_path)
    reference = copy.deepcopy(stage.model)
    nudge(reference)
    near = Grpo(stage.base, replace(stage.config, kl_weight=3.0), reference)
    with torch.no_grad():
        drifts = [
            (
                stage.model(x, t, batch.text_features_BTLD, batch.text_mask_BT)
                - reference(x, t, batch.text_features_BTLD, batch.text_mask_BT)
            ).square().mean()
            for x, t in ((batch.states_BSCHW[:, place], batch.timesteps_BS[:, place].float()) for place in range(2))
        ]  # fmt: skip
    expected = stage.loss(batch, RANDOM).loss + 3.0 * torch.stack(drifts).mean()
    found = near.loss(batch, RANDOM)
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert float(found.metrics["rl/velocity_drift"]) == pytest.approx(torch.stack(drifts).mean().item(), rel=1e-5)
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    with pytest.raises(ConfigError, match=r"kl_weight is 3.0: give a reference"):
        Grpo(stage.base, near.config)


def test_ratios_that_are_not_1_before_any_update_stop_the_run(tmp_path: Path) -> None:
    stage, batch = drawn(tmp_path)
    stage.loss(batch, RANDOM)
    nudge(stage.model, 0.03)
    with pytest.raises(
        ConfigError, match="a ratio of the first update after a rollout is off by .* set drawing.precision"
    ):
        stage.loss(batch, RANDOM)
    stage.loss(replace(batch, num_updates=1), RANDOM)


def test_parts_of_a_batch_teach_what_the_batch_does(tmp_path: Path) -> None:
    stage, batch = drawn(tmp_path)
    whole = gradient_of(stage.loss(batch, RANDOM).loss, stage.model)
    halves = [gradient_of(stage.loss(part(batch, *rows), RANDOM).loss, stage.model) for rows in ((0, 2), (2, 4))]
    assert_alike([(one + other) / 2 for one, other in zip(*halves, strict=True)], whole)


def test_rollouts_without_a_window_are_refused(tmp_path: Path) -> None:
    sampler = tiny_sampler()
    batch = rollouts(tmp_path, sampler, window_size=0).batch(0)
    with pytest.raises(ConfigError, match="no stochastic steps: set window_size, or train with the stage Nft"):
        grpo_stage(sampler).loss(batch, RANDOM)


@pytest.mark.slow
def test_the_reward_of_a_toy_rises(tmp_path: Path) -> None:
    run_grpo(tmp_path, 30, group_size=16, rows=16, window_size=3, learning_rate=3e-3)
    rewards = [record.metrics["reward"] for record in read_records(tmp_path / "steps.jsonl")]
    assert np.mean(rewards[-10:]) > np.mean(rewards[:10]) + 2 * np.std(rewards[:10]), rewards
