from pathlib import Path

import numpy as np
import pytest
import torch

from pleinair.cli.places import shipped
from pleinair.model.autoencoder import Autoencoder, AutoencoderConfig
from pleinair.model.pixels import to_bytes, to_signed_unit
from pleinair.model.text_encoder import FeatureProjection
from pleinair.model.transformer import Transformer, TransformerConfig
from pleinair.records.errors import CheckpointError
from pleinair.sampling import Sampler, SamplingConfig
from pleinair.sampling.shipped import load_autoencoder, load_model, save_autoencoder, save_model
from tests.packs.small_packs import Letters

TINY = TransformerConfig(
    width=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    in_channels=4,
    patch_size=1,
    text_dim=4,
    num_text_layers=2,
    text_num_heads=1,
    text_num_kv_heads=1,
)
SMALL = AutoencoderConfig(widths=(8, 16), encoder_blocks=(1, 1), decoder_blocks=(1, 1), latent_channels=4)
CONFIG = SamplingConfig(num_steps=3, resolution=16, guidance=2.0, precision="fp32")


@pytest.fixture
def sampler() -> Sampler:
    torch.manual_seed(0)
    return Sampler(Transformer(TINY), Autoencoder(SMALL).eval(), Letters(), FeatureProjection(2, 8, 4))


def test_a_picture_depends_on_its_prompt_and_seed_and_not_on_its_batch(sampler: Sampler) -> None:
    prompts, seeds = ["fox", "a red apple", "fox", "fox"], [1, 1, 2, 1]
    together = sampler.sample(prompts, seeds, CONFIG).astype(int)
    for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        alone = sampler.sample([prompt], [seed], CONFIG).astype(int)[0]
        assert np.abs(together[row] - alone).max() <= 1
    assert np.abs(together[0] - together[3]).max() <= 1
    assert np.abs(together[0] - together[2]).max() > 5


def test_guidance_moves_the_picture_and_zero_is_off(sampler: Sampler) -> None:
    off, on = (sampler.sample(["fox"], [1], SamplingConfig(num_steps=3, resolution=16, guidance=g)) for g in (0.0, 8.0))
    assert not np.array_equal(off, on)
    text = sampler.transformer.encode_text(sampler.projection(sampler.text_encoder.encode(["fox"]).features_BTLD))
    with torch.inference_mode():
        noise = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(1))[None]
        one_step = noise - sampler.transformer.denoise(noise, torch.ones(1), text)
        expected = to_bytes(sampler.codec.decode(one_step))
    config = SamplingConfig(num_steps=1, resolution=16, guidance=0.0, precision="fp32")
    assert np.abs(sampler.sample(["fox"], [1], config).astype(int) - expected.astype(int)).max() <= 1


def test_wrong_settings_are_refused_with_a_sentence(sampler: Sampler) -> None:
    with pytest.raises(ValueError, match="2 prompts and 1 seeds: give one seed per prompt"):
        sampler.sample(["a", "b"], [1], CONFIG)
    with pytest.raises(ValueError, match="resolution is 18: it must be a multiple of 4"):
        sampler.sample(["a"], [1], SamplingConfig(resolution=18))
    with pytest.raises(ValueError, match="num_steps is 0: give at least 1"):
        SamplingConfig(num_steps=0)
    with pytest.raises(ValueError, match="guidance is -1: give 0"):
        SamplingConfig(guidance=-1)


def test_a_model_file_gives_the_model_back_within_its_eight_bits(sampler: Sampler, tmp_path: Path) -> None:
    save_model(sampler.transformer, sampler.projection, CONFIG, tmp_path / "model.safetensors")
    transformer, projection, sampling = load_model(tmp_path / "model.safetensors")
    assert (transformer.config, sampling) == (TINY, CONFIG)
    for name, value in sampler.transformer.state_dict().items():
        assert torch.allclose(transformer.state_dict()[name], value, atol=float(value.abs().max()) / 200), name
    for name, value in sampler.projection.state_dict().items():
        assert torch.allclose(projection.state_dict()[name], value, atol=0.01), name


def test_a_file_of_another_kind_or_damaged_is_refused(tmp_path: Path) -> None:
    save_autoencoder(Autoencoder(SMALL), tmp_path / "autoencoder.safetensors")
    with pytest.raises(CheckpointError, match="holds autoencoder, not a transformer"):
        load_model(tmp_path / "autoencoder.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "autoencoder.safetensors").read_bytes()[:200])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_autoencoder(tmp_path / "cut.safetensors")


def test_the_shipped_autoencoder_keeps_a_drawing() -> None:
    picture = np.full((1, 64, 64, 3), 255, np.uint8)
    picture[:, 16:48, 16:48] = (200, 40, 40)
    with torch.inference_mode():
        autoencoder = load_autoencoder(shipped("autoencoder"))
        latents = autoencoder.encode(to_signed_unit(picture))
        seen = to_bytes(autoencoder.decode(latents))
    assert latents.shape == (1, 16, 8, 8)
    assert np.abs(seen.astype(int) - picture).mean() < 5
