"""Losses of preference optimisation on flow errors, as functions of four numbers a pair.

    l = mean square velocity error of a picture          D = l(policy) - l(reference), of winner and loser
    an error that falls is a likelihood that rises       same timestep and noise for both pictures of a pair

    dpo      -logsig(-b/2 (D_w - D_l))                                       Wallace et al. 2023, Diffusion-DPO
    dpo_sft  dpo + s b/4 l_w                      s in units of DPO's own pull on the winner before anything has moved
    dpop     -logsig(-b/2 (D_w - D_l + lambda relu(D_w)))                    Pal et al. 2024, DPO-Positive
    sdpo     dpo whose loser error passes a share of its gradient            Fu et al. 2025, Diffusion-SDPO
    mapo     l_w - b logsig(T (x(l_w) - x(l_l))),  x(l) = k l / (e^(k l) - 1)   Hong et al. 2024, MaPO; no reference
    stpo     -1/b logsig(b (c - D_w)) + alpha l_w [+ gamma anchor],  c = tau tanh(D_l / tau),  tau = rho l_l(reference)

STPO (saturating, our own design; Krea's is unpublished) pays for pushing the loser's error up only as far as (1 + rho) times
the reference's: beyond that, what would grow is damage. D_l passes a share of its gradient as in sdpo, the winner's own loss is a
floor under it, and the anchor, |v - v_ref|^2 on pretraining data, is the drift itself. B pairs; all errors float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class PairErrors:
    """Errors of both pictures of B pairs, (B,) each; those of the reference have no graph."""

    winner: Tensor
    loser: Tensor
    reference_winner: Tensor
    reference_loser: Tensor

    @property
    def winner_rise(self) -> Tensor:
        """D_w: how much worse than the reference the policy is on the winner."""
        return self.winner - self.reference_winner

    @property
    def loser_rise(self) -> Tensor:
        """D_l."""
        return self.loser - self.reference_loser


def dpo_loss(winner_rise_B: Tensor, loser_rise_B: Tensor, beta: float) -> Tensor:
    """(B,) Diffusion-DPO's; at the reference its gradient is b/4 (grad l_w - grad l_l)."""
    return -F.logsigmoid(-0.5 * beta * (winner_rise_B - loser_rise_B))


def dpop_loss(winner_rise_B: Tensor, loser_rise_B: Tensor, beta: float, penalty: float) -> Tensor:
    """(B,) DPO-Positive's: a winner whose error rises counts `penalty` times more."""
    return dpo_loss(winner_rise_B + penalty * F.relu(winner_rise_B), loser_rise_B, beta)


def mapo_loss(winner_B: Tensor, loser_B: Tensor, beta: float, scale: float, sharpness: float) -> Tensor:
    """(B,) MaPO's, of the policy's errors alone; `scale` is its number of diffusion steps, `sharpness` its k."""
    odds_B = _decay(sharpness * winner_B) - _decay(sharpness * loser_B)
    return winner_B - beta * F.logsigmoid(scale * odds_B)


def _decay(x: Tensor) -> Tensor:
    """x / (e^x - 1), 1 at 0."""
    safe = x.clamp_min(1e-6)
    return safe / torch.expm1(safe)


def stpo_loss(winner_rise_B: Tensor, credit_B: Tensor, beta: float) -> Tensor:
    """(B,) STPO's first term; its gradient's size does not depend on beta at the reference: 1/2 (grad D_w - grad c)."""
    return -F.logsigmoid(beta * (credit_B - winner_rise_B)) / beta


def saturated(loser_rise_B: Tensor, reference_loser_B: Tensor, rho: float) -> Tensor:
    """(B,) credit for the loser's rise: equal to it where it is small, never more than rho times the reference's error."""
    tau_B = rho * reference_loser_B
    return tau_B * torch.tanh(loser_rise_B / tau_B)


def passing(values: Tensor, share: Tensor | float) -> Tensor:
    """The same values, passing back only a share of their gradient."""
    return share * values + (1 - share) * values.detach()


@torch.no_grad()
def safe_share(winner_error_BCHW: Tensor, loser_error_BCHW: Tensor, mu: float) -> Tensor:
    """How much of the loser's gradient may pass without the winner's error rising, to first order; one scalar of the rows given.

    Eq. 17 of Diffusion-SDPO, with gradients in the space of outputs (velocity less target): with <g_w, g_l> > 0 it is
    (1 - mu) |g_w|^2 / <g_w, g_l> between 0 and 1, else 1. First order, plain gradient descent: a promise of none of AdamW.
    """
    aligned = (winner_error_BCHW * loser_error_BCHW).sum()
    share = (1 - mu) * winner_error_BCHW.square().sum() / aligned.clamp_min(1e-12)
    return torch.where(aligned > 0, share.clamp(0, 1), torch.ones_like(share))
