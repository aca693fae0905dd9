"""Each loss against the formula in plain numbers, and its gradient where it is known in closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pleinair.records.errors import ConfigError
from pleinair.training.preference_losses import PairErrors, passing, safe_share, saturated
from pleinair.training.stages.preference import METHODS, PreferenceConfig, gate_metrics, pair_losses

NUM = 7


def errors(seed: int = 0, requires_grad: bool = False) -> PairErrors:
    generator = torch.Generator().manual_seed(seed)
    values = [0.2 + torch.rand(NUM, generator=generator, dtype=torch.float64) for _ in range(4)]
    policy = [value.requires_grad_(requires_grad) for value in values[:2]]
    return PairErrors(*policy, *values[2:])


def logsig(x: float) -> float:
    return -math.log1p(math.exp(-x))


def naive(lw: float, ll: float, rw: float, rl: float, weak: bool, c: PreferenceConfig) -> float:
    """The formulas of research, one pair at a time, with numbers."""
    dw, dl = lw - rw, ll - rl
    dpo = -logsig(-c.beta / 2 * (dw - dl))
    if c.method in ("dpo", "sdpo"):
        return dpo
    if c.method == "dpo_sft":
        return dpo + c.sft_weight * c.beta / 4 * lw
    if c.method == "dpop":
        return -logsig(-c.beta / 2 * (dw - dl + c.dpop_penalty * max(dw, 0)))
    if c.method == "mapo":
        odds = [c.mapo_sharpness * e / (math.exp(c.mapo_sharpness * e) - 1) for e in (lw, ll)]
        return lw - c.beta * logsig(c.mapo_scale * (odds[0] - odds[1]))
    credit = dl if c.saturation is None else c.saturation * rl * math.tanh(dl / (c.saturation * rl))
    return -1 / c.beta * logsig(c.beta * (credit - dw)) + (0 if weak else c.winner_weight) * lw


SETTINGS: list[dict[str, Any]] = [
    {"method": "dpo", "beta": 7.0},
    {"method": "dpo_sft", "beta": 7.0, "sft_weight": 0.3},
    {"method": "dpop", "beta": 7.0, "dpop_penalty": 2.0},
    {"method": "sdpo", "beta": 7.0},
    {"method": "mapo", "beta": 0.1, "mapo_scale": 3.0, "mapo_sharpness": 0.7},
    {"method": "stpo", "beta": 7.0},
    {"method": "stpo", "beta": 7.0, "saturation": None},
    {"method": "stpo", "beta": 7.0, "winner_weight": 0.0},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_loss_is_the_formulas_whatever_share_of_the_losers_gradient_passes(settings: dict[str, Any]) -> None:
    config, held, weak = PreferenceConfig(**settings), errors(), torch.arange(NUM) % 3 == 0
    found = pair_losses(held, torch.tensor(0.3), weak, config)
    rows = zip(held.winner, held.loser, held.reference_winner, held.reference_loser, weak, strict=True)
    expected = [naive(*(float(e) for e in row[:4]), bool(row[4]), config) for row in rows]
    assert found.tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_beta_that_is_not_given_is_the_methods_own(method: Any) -> None:
    given = PreferenceConfig(method=method, beta=0.1 if method == "mapo" else 50.0)
    told = [
        pair_losses(errors(), torch.tensor(1.0), torch.zeros(NUM).bool(), config).tolist()
        for config in (PreferenceConfig(method=method), given)
    ]
    assert told[0] == told[1]


def test_every_method_is_among_the_settings() -> None:
    assert {one["method"] for one in SETTINGS} == set(METHODS)


def at_reference(config: PreferenceConfig, share: float = 1.0) -> tuple[Tensor, Tensor]:
    """Gradients by the errors of winner and loser where nothing has moved yet."""
    start = errors(requires_grad=True)
    held = PairErrors(start.winner, start.loser, start.winner.detach().clone(), start.loser.detach().clone())
    pair_losses(held, torch.tensor(share), torch.zeros(NUM).bool(), config).sum().backward()
    assert start.winner.grad is not None
    assert start.loser.grad is not None
    return start.winner.grad, start.loser.grad


def test_dpos_gradient_at_the_reference_is_a_quarter_of_beta() -> None:
    winner, loser = at_reference(PreferenceConfig(method="dpo", beta=12.0))
    assert winner.tolist() == pytest.approx([3.0] * NUM)
    assert loser.tolist() == pytest.approx([-3.0] * NUM)


def test_stpos_gradient_at_the_reference_is_one_half_of_each_rise_and_the_winners_own() -> None:
    for beta in (2.0, 200.0):
        config = PreferenceConfig(method="stpo", beta=beta, winner_weight=0.5)
        winner, loser = at_reference(config, share=0.25)
        assert winner.tolist() == pytest.approx([1.0] * NUM)
        assert loser.tolist() == pytest.approx([-0.125] * NUM)


def test_a_weight_of_sft_is_in_units_of_dpos_pull_on_the_winner() -> None:
    winner, loser = at_reference(PreferenceConfig(method="dpo_sft", beta=12.0, sft_weight=2.0))
    assert winner.tolist() == pytest.approx([9.0] * NUM)
    assert loser.tolist() == pytest.approx([-3.0] * NUM)


def test_credit_for_the_loser_is_its_rise_at_first_and_never_more_than_rho_of_the_reference() -> None:
    reference = torch.tensor([0.4, 0.4, 0.4, 0.4], dtype=torch.float64)
    rise = torch.tensor([0.0, 1e-4, 0.1, 50.0], dtype=torch.float64, requires_grad=True)
    credit = saturated(rise, reference, rho=0.25)
    credit.sum().backward()
    assert credit[1].item() == pytest.approx(1e-4, rel=1e-5)
    assert credit[2].item() < 0.1
    assert credit[3].item() == pytest.approx(0.1)
    assert rise.grad is not None
    assert rise.grad[0].item() == 1.0
    assert rise.grad[3].item() == 0.0, "pushing further pays nothing"


def test_what_passes_keeps_its_value_and_a_share_of_its_gradient() -> None:
    value = torch.tensor([2.0, 3.0], requires_grad=True)
    held = passing(value, 0.25)
    held.square().sum().backward()
    assert held.tolist() == [2.0, 3.0]
    assert value.grad is not None
    assert value.grad.tolist() == [1.0, 1.5]


@pytest.mark.parametrize("seed", range(4))
def test_the_safe_share_is_the_papers_closed_form(seed: int) -> None:
    """(1 - mu) |g_w|^2 / <g_w, g_l>, of autograd's own gradients in the space of outputs."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(2, 3, 4, 4, 4, generator=generator)
    off = torch.randn(3, 4, 4, 4, generator=generator)
    other_off = (1 + seed) * off / 2 + torch.randn(3, 4, 4, 4, generator=generator)
    outputs = (target + torch.stack([off, other_off])).requires_grad_()
    losses = [(outputs[side] - target[side]).square().mean() for side in range(2)]
    own, other = (torch.autograd.grad(loss, outputs)[0][side] for side, loss in enumerate(losses))
    inner = float((own * other).sum())
    assert inner > 0
    expected = min(0.4 * float(own.square().sum()) / inner, 1.0)
    assert expected < 1
    share = safe_share((outputs - target)[0], (outputs - target)[1], mu=0.6)
    assert float(share) == pytest.approx(expected, rel=1e-5)


def test_a_step_with_the_safe_share_leaves_the_winners_error_to_first_order() -> None:
    """One linear output for both pictures: the loser alone would push the winner's error up."""
    winner, loser = torch.tensor([1.0, 0.2]), torch.tensor([3.0, 1.0])
    for share, rises in ((torch.tensor(1.0), True), (safe_share(winner, loser, mu=0.5), False)):
        moved = winner - 1e-3 * (winner - share * loser)
        assert bool(moved.square().sum() > winner.square().sum()) is rises


def test_opposite_errors_let_the_losers_whole_gradient_pass() -> None:
    assert float(safe_share(torch.ones(2, 3), -torch.ones(2, 3), mu=0.9)) == 1.0


def test_gate_metrics_are_means_and_shares_over_the_pairs() -> None:
    held = PairErrors(
        winner=torch.tensor([0.1, 0.5, 0.3, 0.9]),
        loser=torch.tensor([0.6, 0.4, 0.2, 0.8]),
        reference_winner=torch.tensor([0.2, 0.4, 0.3, 0.7]),
        reference_loser=torch.tensor([0.5, 0.5, 0.1, 0.5]),
    )
    found = {name: float(value) for name, value in gate_metrics(held, torch.tensor(0.5)).items()}
    assert found == pytest.approx(
        {
            "winner_error": 0.45,
            "loser_error": 0.5,
            "winner_rise": (-0.1 + 0.1 + 0.0 + 0.2) / 4,
            "loser_rise": (0.1 - 0.1 + 0.1 + 0.3) / 4,
            "winners_worse": 0.5,
            "margin_accuracy": 0.75,
            "loser_share": 0.5,
        }
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "ppo"}, "method is 'ppo': give one of dpo"),
        ({"beta": 0.0}, "beta is 0.0: it must be positive"),
        ({"winner_weight": -1.0}, "winner_weight is -1.0"),
        ({"loser_mu": 1.5}, "loser_mu is 1.5: give a number from 0 to 1"),
        ({"saturation": 0.0}, "saturation is 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        PreferenceConfig(**change)
