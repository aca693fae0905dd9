from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pleinair.model.text_encoder import FeatureProjection, TextFeatures
from pleinair.packing.latents import write_pack
from pleinair.packing.pictures import CuratedPicture
from pleinair.packs.loader import LatentLoader
from pleinair.packs.pack import Pack
from pleinair.packs.plan import LoaderConfig
from pleinair.records.errors import PackError


class PooledPixels:
    """A codec by average pooling: what it gives is easy to know."""

    latent_channels = 3
    downscale = 4

    def encode(self, pictures_BCHW: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(pictures_BCHW, 4)

    def decode(self, latents_BChw: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(latents_BChw, scale_factor=4)


class Letters:
    """A text encoder with one token per letter and an end token."""

    name = "letters"
    layers = (1, 2)
    width = 8

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        longest = max(len(prompt) for prompt in prompts) + 1
        features_BTLD = torch.zeros(len(prompts), longest, 2, 8)
        mask_BT = torch.zeros(len(prompts), longest, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            for place, letter in enumerate(prompt + "\n"):
                features_BTLD[row, place] = torch.randn(2, 8, generator=torch.Generator().manual_seed(ord(letter)))
            mask_BT[row, : len(prompt) + 1] = True
        return TextFeatures(features_BTLD, mask_BT)


def picture(number: int) -> CuratedPicture:
    colour = np.full((16, 16, 3), number, np.uint8)
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


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    return make_pack(tmp_path / "pack")


def test_every_row_carries_its_key_latents_and_captions(pack: Pack) -> None:
    loader = LatentLoader(pack, 16, LoaderConfig(batch_size=8, drop_caption=0.0))
    for step in range(len(loader)):
        batch = loader.batch(step)
        for key, latents_CHW in zip(batch.keys, batch.latents_BCHW, strict=True):
            assert latents_CHW.shape == (3, 4, 4)
            assert latents_CHW.numpy() == pytest.approx(int(key[1:]) / 127.5 - 1, abs=1e-3)


def test_an_epoch_shows_every_picture_once_and_each_epoch_in_another_order(pack: Pack) -> None:
    loader = LatentLoader(pack, 16, LoaderConfig(batch_size=8, seed=3))
    epochs = [[key for step in range(5 * epoch, 5 * epoch + 5) for key in loader.keys(step)] for epoch in range(2)]
    assert [sorted(keys) for keys in epochs] == [sorted(f"p{n}" for n in range(40))] * 2
    assert epochs[0] != epochs[1]


def test_any_batch_can_be_had_again_by_a_new_loader(pack: Pack) -> None:
    first, again = (LatentLoader(pack, 8, LoaderConfig(batch_size=8, seed=3)) for _ in range(2))
    for _ in range(12):
        first.batch(_)
    one, other = first.batch(17), again.batch(17)
    assert one.keys == other.keys == again.keys(17)
    assert torch.equal(one.latents_BCHW, other.latents_BCHW)
    assert torch.equal(one.text_features_BTLD, other.text_features_BTLD)


def test_a_batch_has_the_features_of_one_of_the_captions_or_of_the_empty_prompt(pack: Pack) -> None:
    loader = LatentLoader(pack, 16, LoaderConfig(batch_size=8, drop_caption=0.3))
    num_empty = 0
    for step in range(20):
        batch = loader.batch(step)
        for row, key in enumerate(batch.keys):
            features_TLD = batch.text_features_BTLD[row][batch.text_mask_BT[row]]
            known = [features_of(pack, caption) for caption in (*picture(int(key[1:])).captions, "")]
            matches = [place for place, known_TLD in enumerate(known) if torch.equal(known_TLD, features_TLD)]
            assert len(matches) == 1
            num_empty += matches == [3]
    assert 20 < num_empty < 80


def test_batches_hold_captions_of_like_length(pack: Pack) -> None:
    loader = LatentLoader(pack, 16, LoaderConfig(batch_size=4, drop_caption=0.0))
    valid = [loader.batch(step).text_mask_BT for step in range(10)]
    kept = sum(int(mask_BT.sum()) for mask_BT in valid) / sum(mask_BT.numel() for mask_BT in valid)
    assert kept > 0.85


@pytest.mark.parametrize(
    "name", ["0016-03x04x04-00000.parquet", "empty_prompt.parquet", "feature_projection.safetensors"]
)
def test_a_damaged_pack_is_refused_and_the_file_is_named(pack: Pack, name: str) -> None:
    path = pack.directory / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(PackError, match=f"damaged: {name} .*pack again"):
        Pack(pack.directory)


def test_what_does_not_fit_the_pack_is_refused_before_any_work(pack: Pack) -> None:
    with pytest.raises(PackError, match=r"no pictures at 32 px, only \(8, 16\)"):
        LatentLoader(pack, 32, LoaderConfig())
    with pytest.raises(PackError, match="40 pictures at 16 px do not fill a batch of 64"):
        LatentLoader(pack, 16, LoaderConfig(batch_size=64))
    with pytest.raises(PackError, match="caption_weights has 2 entries"):
        LatentLoader(pack, 16, LoaderConfig(batch_size=8, caption_weights=(1.0, 1.0)))


def test_nothing_to_pack_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="there is nothing to pack"):
        write_pack(
            [], tmp_path / "pack", codec=PooledPixels(), autoencoder_sha256="a", text_encoder=Letters(), text_dim=4
        )
    assert list(tmp_path.iterdir()) == []
