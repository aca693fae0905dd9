"""Frozen features of small pictures, for what is fitted on them: the second judge and the copy embedding.

    (N, H, W, 3) uint8 -> EfficientNet-Lite0 at 96 px, blocks 2, 5 and 11 and the head: channel means and spreads -> (N, F)

Early blocks hold texture and palette, the head holds shape. The network was trained on ImageNet's photographs and never
on drawings: it shares neither weights nor data with the judge that is a small network of its own (`judge`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from pleinair.model.efficientnet import EfficientNetLite0, load_efficientnet
from pleinair.model.image_encoder import resized

Features = npt.NDArray[np.float32]
Pictures = npt.NDArray[np.uint8]

SIDE = 96
TAPPED_BLOCKS = (2, 5, 11)
NAME = f"efficientnet-lite0-{SIDE}-taps-v1"


class PictureFeatures:
    """Pictures to features."""

    name = NAME

    def __init__(self, directory: Path, batch_size: int = 64) -> None:
        self.network, self.batch_size = load_efficientnet(directory), batch_size

    @torch.inference_mode()
    def of(
        self, pictures_NHWC: Pictures, on_progress: Callable[[int, int], None] = lambda done, total: None
    ) -> Features:
        """(N, F) float32, not standardised. Raises ValueError for no pictures."""
        if not len(pictures_NHWC):
            raise ValueError("there are no pictures to look at: give one or more")
        parts = []
        for start in range(0, len(pictures_NHWC), self.batch_size):
            batch = pictures_NHWC[start : start + self.batch_size]
            parts.append(tapped(self.network, (resized(list(batch), SIDE) - 127.0) / 128.0).numpy())
            on_progress(start + len(batch), len(pictures_NHWC))
        return np.concatenate(parts)


def tapped(network: EfficientNetLite0, pictures_BCHW: Tensor) -> Tensor:
    """(B, F): means and spreads of the tapped blocks, and the head's means."""
    x_BCHW = F.relu6(network.stem(pictures_BCHW))
    found = []
    for number, block in enumerate(network.blocks):
        x_BCHW = block(x_BCHW)
        if number in TAPPED_BLOCKS:
            found += [x_BCHW.mean(dim=(2, 3)), x_BCHW.std(dim=(2, 3))]
    found.append(F.relu6(network.head(x_BCHW)).mean(dim=(2, 3)))
    return torch.cat(found, dim=1)
