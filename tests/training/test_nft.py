from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pleinair.checkpoint.store import list_checkpoints, read_tensors
from pleinair.model.transformer import Transformer
from pleinair.records.errors import ConfigError
from pleinair.training.engine import read_records
from pleinair.training.random import RowRandom
from pleinair.training.rollouts.loader import RolloutBatch
from pleinair.training.rollouts.stored import read_facts
from pleinair.training.stages.nft import Nft, NftConfig
from tests.training.small_rollouts import nft_stage, rollouts, run_nft, tiny_sampler
from tests.training.test_grpo import nudge


def drawn(root: Path, **changes: Any) -> tuple[Nft, RolloutBatch]:
    sampler = tiny_sampler()
    batch = rollouts(root, sampler, window_size=0).batch(0)
    return nft_stage(sampler, **changes), batch


def random() -> RowRandom:
    return RowRandom(3, 0, range(4))


@pytest.mark.parametrize(
    ("beta", "given", "mu"),
    [(1.0, None, math.log(4 / 64) / 2), (0.1, 0.4, 0.4)],  # of 4 tokens, where the base's shift is 0 at 64
)
def test_the_loss_is_the_formula(tmp_path: Path, beta: float, given: float | None, mu: float) -> None:
    stage, batch = drawn(tmp_path, beta=beta, kl_weight=0.5, largest_advantage=2.0, shift_mu=given)
    nudge(stage.model, 0.02)
    found = stage.loss(batch, random())
    again = random()
    t, noise = again.logit_normal(mu)[:, None, None, None], again.normal(*batch.samples_BCHW.shape[1:])
    x0, xt = batch.samples_BCHW, (1 - t) * batch.samples_BCHW + t * noise

    def v(model: Transformer) -> Tensor:
        return model(xt, t.flatten(), batch.text_features_BTLD, batch.text_mask_BT)

    def error(velocity: Tensor) -> Tensor:
        off = xt - t * velocity - x0
        return off.square().mean(dim=(1, 2, 3)) / off.abs().mean(dim=(1, 2, 3)).detach()

    new, old, r = v(stage.model), v(stage.old), (batch.advantages_B / 4 + 0.5).clamp(0, 1)
    good, bad = error(beta * new + (1 - beta) * old), error((1 + beta) * old - beta * new)
    assert stage.reference is not None
    expected = 2.0 / beta * (r * good + (1 - r) * bad).mean() + 0.5 * (new - v(stage.reference)).square().mean()
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-4)
    gradients = [torch.autograd.grad(loss, stage.model.final_layer.linear.weight)[0] for loss in (found.loss, expected)]
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)


def test_good_and_bad_pull_in_opposite_directions_where_the_model_is_its_old_policy(tmp_path: Path) -> None:
    stage, batch = drawn(tmp_path, kl_weight=0.0)

    def gradient(advantage: float) -> Tensor:
        told = replace(batch, advantages_B=torch.full((4,), advantage))
        return torch.autograd.grad(stage.loss(told, random()).loss, stage.model.final_layer.linear.weight)[0]

    good, bad, even = gradient(5.0), gradient(-5.0), gradient(0.0)
    assert good.norm() > 0
    assert torch.allclose(good, -bad, rtol=1e-3, atol=1e-5)
    assert even.norm() < 1e-3 * good.norm()


def test_the_old_policys_decay_grows_to_its_limit() -> None:
    config = NftConfig(decay_per_iteration=0.2)
    assert [config.decay(iterations) for iterations in (0, 1, 2, 3)] == pytest.approx([0.0, 0.2, 0.4, 0.5])


def test_the_old_policy_draws_follows_after_each_iteration_and_is_in_every_checkpoint(tmp_path: Path) -> None:
    run_nft(tmp_path, 3, keep_every=2)
    before = dict(tiny_sampler().transformer.state_dict())
    old = before
    for iteration, place in enumerate(list_checkpoints(tmp_path / "checkpoints"), start=1):
        assert int(place.name[5:13]) == 2 * iteration
        decay = min(0.2 * iteration, 0.5)
        model, stored = (read_tensors(place, name) for name in ("transformer.safetensors", "old_policy.safetensors"))
        old = {name: decay * old[name] + (1 - decay) * model[name] for name in model}
        assert all(torch.allclose(stored[name], old[name], atol=1e-7) for name in model)
        assert not torch.equal(stored["img_in.weight"], model["img_in.weight"])
    policies = {read_facts(path).policy for path in (tmp_path / "rollouts").iterdir()}
    assert len(policies) == 3


def test_a_run_that_stops_inside_an_iteration_goes_on_with_the_same_losses(tmp_path: Path) -> None:
    run_nft(tmp_path / "calm", 3)
    with pytest.raises(KeyboardInterrupt):
        run_nft(tmp_path / "stopped", 3, keep_every=3, hooks=[Interrupt(after=4)])
    run_nft(tmp_path / "stopped", 3, keep_every=3)
    calm, stopped = (read_records(tmp_path / name / "steps.jsonl") for name in ("calm", "stopped"))
    assert [record.loss for record in stopped] == [record.loss for record in calm]
    final = [
        read_tensors(tmp_path / name / "checkpoints" / "step-00000006", "old_policy.safetensors")
        for name in ("calm", "stopped")
    ]
    assert all(torch.equal(final[0][name], final[1][name]) for name in final[0])


class Interrupt:
    def __init__(self, after: int) -> None:
        self.after = after

    def after_step(self, run: Any, record: Any) -> dict[str, float]:
        if record.step == self.after:
            raise KeyboardInterrupt
        return {}


@pytest.mark.slow
def test_the_reward_of_a_toy_rises(tmp_path: Path) -> None:
    run_nft(tmp_path, 30, group_size=16, rows=16, learning_rate=5e-3, decay_per_iteration=0.0)
    rewards = [record.metrics["reward"] for record in read_records(tmp_path / "steps.jsonl")]
    assert np.mean(rewards[-10:]) > np.mean(rewards[:10]) + 2 * np.std(rewards[:10]), rewards


def test_settings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    sampler = tiny_sampler()
    with pytest.raises(ConfigError, match=r"kl_weight is 0.0001: give a reference"):
        Nft(nft_stage(sampler).base, NftConfig())
    with pytest.raises(ConfigError, match="beta is 0"):
        NftConfig(beta=0)
    with pytest.raises(ConfigError, match="largest_decay 1"):
        NftConfig(largest_decay=1)
