"""Pictures as a generator's decoder leaves them, beside the same pictures without: examples for the AI-made detector.

A latent generator's pictures all pass through a decoder, and what that leaves behind is there in a reconstruction too. So
the two sides of an example are one picture at one size, once through the autoencoder; content, size and codec tell nothing.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from pleinair.curation.detectors.planted import Pair, Plant
from pleinair.curation.pictures import Pixels
from pleinair.model.autoencoder import LatentCodec
from pleinair.model.pixels import to_bytes, to_signed_unit

SIDES = (64, 96, 128, 192)


def reconstructed_by(codec: LatentCodec, sides: tuple[int, ...] = SIDES) -> Plant:
    """A plant: the picture at one of `sides`, and its reconstruction with a little latent noise half the time."""

    def plant(picture: Pixels, rng: np.random.Generator) -> Pair:
        side = int(rng.choice([one for one in sides if one <= max(picture.shape[:2])] or [min(sides)]))
        clean = square(picture, side)
        noise = float(rng.choice([0.0, 0.15]))
        return clean, reconstruct(codec, clean[None], noise, int(rng.integers(2**31)))[0]

    return plant


def square(picture: Pixels, side: int) -> Pixels:
    """The middle square of the picture at a size."""
    height, width = picture.shape[:2]
    length = min(height, width)
    top, left = (height - length) // 2, (width - length) // 2
    middle = np.ascontiguousarray(picture[top : top + length, left : left + length])
    return np.asarray(Image.fromarray(middle).resize((side, side), Image.Resampling.LANCZOS))


@torch.inference_mode()
def reconstruct(codec: LatentCodec, pixels_NHWC: Pixels, noise: float = 0.0, seed: int = 0) -> Pixels:
    """Pictures through the autoencoder, with Gaussian noise of that deviation on the latents; sides divide by its scale."""
    latents_NChw = codec.encode(to_signed_unit(np.array(pixels_NHWC)))
    if noise:
        drawn = torch.randn(latents_NChw.shape, generator=torch.Generator().manual_seed(seed))
        latents_NChw = latents_NChw + noise * drawn
    return to_bytes(codec.decode(latents_NChw))
