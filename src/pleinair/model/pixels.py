"""Bytes to signed unit tensors and back."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def to_signed_unit(pixels_BHWC: npt.NDArray[np.uint8]) -> Tensor:
    """Bytes (B, H, W, 3) as float32 (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_bytes(pictures_BCHW: Tensor) -> npt.NDArray[np.uint8]:
    """Pictures in [-1, 1], (B, 3, H, W), as bytes (B, H, W, 3)."""
    scaled_BCHW = pictures_BCHW.float().clamp(-1, 1).add(1).mul(127.5).round()
    return scaled_BCHW.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
