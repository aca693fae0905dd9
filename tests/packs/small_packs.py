"""Small packs whose every value is known."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file
from torch import Tensor

from pleinair.model.autoencoder import LatentSpace
from pleinair.model.text_encoder import EncodedText, FeatureProjection
from pleinair.packing.arrangement import Arrangement, Listed, arrange
from pleinair.packing.buckets import Bucket, BucketConfig
from pleinair.packing.latents import PackConfig, PackPicture, Read, write_latents, write_pack
from pleinair.packing.pictures import CuratedPicture
from pleinair.packs.pack import Pack


class PooledPixels:
    """A codec by average pooling: what it gives is easy to know."""

    latent_channels = 3
    downscale = 4

    def describe(self) -> LatentSpace:
        return LatentSpace(name="pooled", channels=3, downscale=4, patch_size=4, digest="a")

    def encode(self, pictures_BCHW: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(pictures_BCHW, 4)

    def decode(self, latents_BChw: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(latents_BChw, scale_factor=4)


@cache
def letter_LD(letter: str) -> Tensor:
    return torch.randn(2, 8, generator=torch.Generator().manual_seed(ord(letter)))


class Letters:
    """A text encoder with one token per letter and an end token."""

    name = "letters"
    digest = "letters"
    layers = (1, 2)
    num_layers = 2
    width = 8

    def encode(self, prompts: Sequence[str]) -> EncodedText:
        longest = max(len(prompt) for prompt in prompts) + 1
        features_BTLD = torch.zeros(len(prompts), longest, 2, 8)
        mask_BT = torch.zeros(len(prompts), longest, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            for place, letter in enumerate(prompt + "\n"):
                features_BTLD[row, place] = letter_LD(letter)
            mask_BT[row, : len(prompt) + 1] = True
        return EncodedText(features_BTLD, mask_BT)


def picture(number: int) -> CuratedPicture:
    colour = np.full((16, 16, 3), number % 256, np.uint8)
    captions = (f"picture {number} at length", f"picture {number}", f"{number}")
    return CuratedPicture(f"p{number}", "style", "concept", None, False, captions, {16: colour, 8: colour[:8, :8]})


def make_pack(directory: Path, count: int = 40) -> Pack:
    rows = [picture(number) for number in range(count)]
    write_pack(rows, directory, codec=PooledPixels(), autoencoder_sha256="a", text_encoder=Letters(), text_dim=4)
    return Pack(directory)


def features_of(pack: Pack, caption: str) -> Tensor:
    """What the pack should hold for a caption."""
    projection = FeatureProjection(2, 8, 4)
    projection.load_state_dict(load_file(pack.directory / "feature_projection.safetensors"))
    return projection(Letters().encode([caption]).features_BTLD.half())[0].half().float()


SIZES = ((64, 64), (64, 64), (96, 48), (48, 96), (80, 60))
STAGE = BucketConfig(resolution=32, step=8, max_lost_share=0.25)


def listed(count: int, repeats: Sequence[int] = ()) -> Listed:
    """Pictures of five sizes; the first ones repeat as told."""
    numbers = np.array([*repeats, *[1] * (count - len(repeats))])
    sizes = np.array([SIZES[number % len(SIZES)] for number in range(count)])
    weights = np.tile(np.array([0.5, 0.3, 0.2], np.float32), (count, 1))
    keys = pa.chunked_array([[f"p{number}" for number in range(count)]])
    return Listed(keys, numbers, sizes[:, 0], sizes[:, 1], weights)


def read(keys: Sequence[str], bucket: Bucket) -> list[PackPicture]:
    """Each picture in a colour that tells its number."""
    pictures = []
    for key in keys:
        number = int(key[1:])
        colours = np.full((bucket.height, bucket.width, 3), (number % 256, number // 256, 7), np.uint8)
        pictures.append(PackPicture(key, colours, *SIZES[number % len(SIZES)], 0.0, picture(number).captions))
    return pictures


def write_shapes_pack(
    directory: Path,
    count: int = 300,
    repeats: Sequence[int] = (),
    shard_bytes: int = 30_000,
    dtype: str = "float16",
    reader: Read = read,
) -> Arrangement:
    """A pack of several shapes and several shards of each."""
    arrangement = arrange(listed(count, repeats), [STAGE], seed=5)
    write_latents(
        arrangement,
        directory,
        reader,
        codec=PooledPixels(),
        autoencoder_sha256="a",
        text_encoder=Letters(),
        config=PackConfig(text_dim=4, group_rows=16, shard_bytes=shard_bytes, dtype=dtype),  # type: ignore[arg-type]
    )
    return arrangement


def number_of(latents_CHW: Tensor) -> int:
    """The number of the picture that these latents were made of."""
    red, green = (latents_CHW[:2].float().mean((1, 2)) + 1).mul(127.5).round().int().tolist()
    return red + 256 * green
