"""Distances between pictures, against their formulas written out."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pleinair.model.autoencoders.latent_flow import LatentFlow
from pleinair.model.autoencoders.perception import LATE_CHANNELS, PictureFeatures, perceptual_distance
from pleinair.model.autoencoders.reconstruction import feature_distance, psnr, ssim
from pleinair.model.efficientnet import EfficientNetLite0


def pictures(seed: int = 0, side: int = 32) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def features() -> PictureFeatures:
    torch.manual_seed(0)
    network = EfficientNetLite0()
    for parameter in network.parameters():
        if parameter.ndim == 4:  # at the default initialisation nothing of the picture reaches the end
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
    return PictureFeatures(network)


def test_psnr_is_twenty_decibels_for_an_error_of_a_tenth_of_the_range() -> None:
    x_BCHW = pictures() * 0.5
    assert psnr(x_BCHW, x_BCHW + 0.2).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)
    assert psnr(x_BCHW, x_BCHW).tolist() == [math.inf] * 2


def test_ssim_is_the_formula_of_wang_at_every_place() -> None:
    a, b = pictures(0, 13), (pictures(0, 13) + 0.3 * pictures(1, 13)).clamp(-1, 1)
    places = np.arange(11) - 5
    window = np.exp(-(places[:, None] ** 2 + places[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for channel in range(3):
        for y in range(3):
            for x in range(3):
                p, q = (t[0, channel, y : y + 11, x : x + 11].double().numpy() for t in (a, b))
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                cov = (window * (p - mp) * (q - mq)).sum()
                c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
                values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    assert ssim(a, b)[0].item() == pytest.approx(np.mean(values), abs=1e-6)
    assert ssim(a, a).tolist() == pytest.approx([1.0, 1.0], abs=1e-6)
    with pytest.raises(ValueError, match="under 11 pixels: give larger ones"):
        ssim(pictures(0, 8), pictures(1, 8))


def test_feature_maps_end_in_the_networks_own_output() -> None:
    chosen, x_BCHW = features(), pictures(side=64)
    maps = chosen._maps(x_BCHW, range(len(chosen.network.blocks)))
    with torch.no_grad():
        expected = chosen.network((x_BCHW * 127.5 + 127.5 - 127.0) / 128.0)
        found = torch.nn.functional.relu6(chosen.network.head(maps[-1])).mean((2, 3))
    assert (found - expected).norm() < 1e-4 * expected.norm()
    assert [tuple(of_map.shape[1:]) for of_map in chosen.early(x_BCHW)] == [(16, 32, 32), (24, 16, 16), (40, 8, 8)]
    assert chosen.late(x_BCHW, (8, 8)).shape == (2, LATE_CHANNELS, 8, 8)


def test_the_distance_is_of_directions_and_grows_with_the_error() -> None:
    a, b = torch.randn(2, 5, 3, 3), torch.randn(2, 5, 3, 3)
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=1).mean((1, 2))
    assert torch.allclose(perceptual_distance([a, a], [3 * a, b]), (2 - 2 * cosine) / 2, atol=1e-5)
    chosen, x_BCHW = features(), pictures()
    near, far = (feature_distance(x_BCHW, x_BCHW + size * pictures(1), chosen) for size in (0.01, 0.5))
    assert all((low < high).all() for low, high in zip(near, far, strict=True))
    assert [of.abs().max().item() for of in feature_distance(x_BCHW, x_BCHW, chosen)] == pytest.approx([0, 0], abs=1e-6)


def test_the_flow_model_depends_on_time_and_learns_a_constant_latent() -> None:
    torch.manual_seed(0)
    model = LatentFlow(2, width=16)
    x0_BChw = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1).expand(16, 2, 4, 4)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(120):
        t_B, noise_BChw = torch.rand(16), torch.randn(16, 2, 4, 4)
        noisy_BChw = (1 - t_B.view(-1, 1, 1, 1)) * x0_BChw + t_B.view(-1, 1, 1, 1) * noise_BChw
        velocity_BChw, hidden_BWhw = model(noisy_BChw, t_B)
        loss = (velocity_BChw - (noise_BChw - x0_BChw)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.6, "v = (x_t - x0) / t is known exactly, a model without data would stay near 1"
    assert hidden_BWhw.shape == (16, 16, 4, 4)
    early, late = (model(torch.ones(1, 2, 4, 4), torch.tensor([t]))[0] for t in (0.2, 0.9))
    assert (early - late).abs().max() > 0.05
    with pytest.raises(ValueError, match="num_blocks is 1 and width 16: give 2 blocks or more"):
        LatentFlow(2, width=16, num_blocks=1)
