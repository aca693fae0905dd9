"""How close a reconstruction is: PSNR, SSIM, and a distance in EfficientNet features that is ours alone.

All take pictures (B, 3, H, W) in [-1, 1] and give one float32 per picture.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pleinair.model.autoencoders.perception import PictureFeatures, perceptual_distance

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_CONSTANTS = ((0.01 * 2.0) ** 2, (0.03 * 2.0) ** 2)
"""(K1 L)^2 and (K2 L)^2 of Wang et al. 2004, L = 2 the range of values."""


def psnr(pictures_BCHW: Tensor, others_BCHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels; infinite where equal."""
    return -10 * ((pictures_BCHW.float() - others_BCHW.float()).square().mean((1, 2, 3)) / 4).log10()


def ssim(pictures_BCHW: Tensor, others_BCHW: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004): Gaussian window of 11 pixels and deviation 1.5, channels alike, no padding.

    Raises ValueError for pictures smaller than the window.
    """
    if min(pictures_BCHW.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(
            f"pictures of {tuple(pictures_BCHW.shape[-2:])} are under {SSIM_WINDOW} pixels: give larger ones"
        )
    a, b = pictures_BCHW.double(), others_BCHW.double()
    mean_a, mean_b = _blurred(a), _blurred(b)
    var_a, var_b = _blurred(a * a) - mean_a.square(), _blurred(b * b) - mean_b.square()
    covariance = _blurred(a * b) - mean_a * mean_b
    c1, c2 = SSIM_CONSTANTS
    similar: Tensor = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (similar / ((mean_a.square() + mean_b.square() + c1) * (var_a + var_b + c2))).mean((1, 2, 3)).float()


def _blurred(x_BCHW: Tensor) -> Tensor:
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * SSIM_SIGMA**2))
    weights = (weights / weights.sum()).to(x_BCHW.device)
    each = x_BCHW.flatten(0, 1)[:, None]
    rows = F.conv2d(each, weights.view(1, 1, 1, -1))
    blurred_BCHW: Tensor = F.conv2d(rows, weights.view(1, 1, -1, 1)).unflatten(0, x_BCHW.shape[:2])[:, :, 0]
    return blurred_BCHW


@torch.no_grad()
def feature_distance(pictures_BCHW: Tensor, others_BCHW: Tensor, features: PictureFeatures) -> tuple[Tensor, Tensor]:
    """`perceptual_distance` of the early maps, and the same of the late map, which no loss of ours looks at."""
    early = perceptual_distance(features.early(pictures_BCHW), features.early(others_BCHW))
    height, width = pictures_BCHW.shape[-2:]
    sides = (max(1, height // 8), max(1, width // 8))
    late = perceptual_distance([features.late(pictures_BCHW, sides)], [features.late(others_BCHW, sides)])
    return early, late
