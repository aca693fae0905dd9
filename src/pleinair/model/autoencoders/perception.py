"""Frozen feature maps of pictures, for losses and distances: EfficientNet-Lite0 cut open.

    pictures in [-1, 1] --stem, blocks--> /2, /4, /8 early maps: edges, textures      -> `perceptual_distance`
                                      --> /16        late map: parts of things       -> what latents are aligned to

The distance is made like LPIPS (Zhang et al. 2018) but with other features and without their learned weights, so its
numbers compare with nothing but themselves.

B batch, C channels, H height, W width; h, w are the sides of a map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pleinair.model.efficientnet import EfficientNetLite0

EARLY_BLOCKS = (0, 2, 4)
"""Blocks whose outputs are compared: 16, 24 and 40 channels at 1/2, 1/4 and 1/8 of the picture's side."""
LATE_BLOCK, LATE_CHANNELS, LATE_DOWNSCALE = 10, 112, 16
"""The block that latents are aligned to."""


class PictureFeatures:
    """Feature maps of a frozen `EfficientNetLite0`; gradients reach the pictures, never the network."""

    def __init__(self, network: EfficientNetLite0) -> None:
        self.network = network.eval().requires_grad_(False)

    def early(self, pictures_BCHW: Tensor) -> list[Tensor]:
        """Maps of `EARLY_BLOCKS`, at the size the pictures have."""
        return self._maps(pictures_BCHW, EARLY_BLOCKS)

    @torch.no_grad()
    def late(self, pictures_BCHW: Tensor, sides: tuple[int, int]) -> Tensor:
        """(B, LATE_CHANNELS, h, w) float32 on a grid of those sides; the pictures are resized to fit it."""
        height, width = sides
        resized_BCHW = F.interpolate(pictures_BCHW, (height * LATE_DOWNSCALE, width * LATE_DOWNSCALE), mode="bilinear")
        return self._maps(resized_BCHW, (LATE_BLOCK,))[0].float()

    def _maps(self, pictures_BCHW: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        # The network was trained on (byte - 127) / 128.
        x_BCHW = F.relu6(self.network.stem((pictures_BCHW * 127.5 + 0.5) / 128.0))
        maps = []
        for number, block in enumerate(list(self.network.blocks)[: max(blocks) + 1]):
            x_BCHW = block(x_BCHW)
            if number in blocks:
                maps.append(x_BCHW)
        return maps


def perceptual_distance(maps: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """(B,) float32: squared difference of feature vectors of length one, mean over places, then over maps; 0 to 4."""
    per_map = [
        (F.normalize(a_BChw.float(), dim=1) - F.normalize(b_BChw.float(), dim=1)).square().sum(1).mean((1, 2))
        for a_BChw, b_BChw in zip(maps, others, strict=True)
    ]
    return torch.stack(per_map).mean(0)
