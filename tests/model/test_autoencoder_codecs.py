"""Codecs on real autoencoders of random weights, against what diffusers' pipelines do with them."""

from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from pleinair.cli.places import shipped
from pleinair.model.autoencoder import Autoencoder, AutoencoderConfig, LatentCodec, require_same_latents
from pleinair.model.autoencoders.flux2 import Flux2Codec
from pleinair.model.autoencoders.folder import load_codec
from pleinair.model.autoencoders.qwen_image import QwenImageCodec
from pleinair.records.errors import ConfigError, PackError, SourceError
from pleinair.sampling.shipped import load_autoencoder

SMALL = AutoencoderConfig(widths=(8, 16, 16), encoder_blocks=(1, 1, 1), decoder_blocks=(1, 1, 1), latent_channels=4)


@cache
def qwen_image() -> Any:
    torch.manual_seed(0)
    return diffusers.AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()


@cache
def flux2() -> Any:
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1, "sample_size": 32}
    vae = diffusers.AutoencoderKLFlux2(**sizes)
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae.eval()


def codecs() -> list[LatentCodec]:
    torch.manual_seed(0)
    return [QwenImageCodec(qwen_image()), Flux2Codec(flux2()), Autoencoder(SMALL).eval()]


def pictures(height: int = 32, width: int = 48) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def scheduler() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_image_seq_len=256)


@torch.no_grad()
def test_qwen_image_latents_and_pictures_are_those_of_the_pipelines() -> None:
    codec, x_BCHW = QwenImageCodec(qwen_image()), pictures()
    edit = diffusers.QwenImageEditPipeline(scheduler(), qwen_image(), None, None, None, None)
    expected_BCFhw = edit._encode_vae_image(x_BCHW[:, :, None], generator=None)
    latents_BChw = codec.encode(x_BCHW)
    assert latents_BChw.shape == (2, 16, 4, 6)
    assert (latents_BChw - expected_BCFhw[:, :, 0]).abs().max() < 1e-5

    sizes = {"num_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    text = {"text_hidden_dim": 16, "num_text_layers": 1, "text_num_attention_heads": 1, "text_num_key_value_heads": 1}
    more = {
        "axes_dims_rope": (4, 6, 6),
        "text_intermediate_size": 16,
        "intermediate_size": 32,
        "timestep_embed_dim": 16,
    }
    transformer = diffusers.Krea2Transformer2DModel(in_channels=64, **sizes, **text, **more)
    pipeline = diffusers.Krea2Pipeline(scheduler(), qwen_image(), None, None, transformer)
    drawn = {kind: _draw(pipeline, kind) for kind in ("latent", "pt")}
    unpacked_BCFhw = pipeline._unpack_latents(drawn["latent"], 32, 48)
    shown = codec.decode(unpacked_BCFhw[:, :, 0]) / 2 + 0.5
    assert drawn["pt"].std() > 0.01
    assert (shown - drawn["pt"]).abs().max() < 1e-5


def _draw(pipeline: Any, output_type: str) -> Tensor:
    embeds, mask = torch.ones(1, 3, 1, 16), torch.ones(1, 3, dtype=torch.bool)
    pipeline.set_progress_bar_config(disable=True)
    images: Tensor = pipeline(
        prompt_embeds=embeds, prompt_embeds_mask=mask, height=32, width=48, num_inference_steps=2, guidance_scale=0.0,
        generator=torch.Generator().manual_seed(0), output_type=output_type,
    ).images  # fmt: skip
    return images


@torch.no_grad()
def test_flux2_latents_and_pictures_are_those_of_the_pipeline() -> None:
    codec, x_BCHW = Flux2Codec(flux2()), pictures()
    pipeline = diffusers.Flux2Pipeline(scheduler(), flux2(), None, None, _flux2_transformer())
    latents_BChw = codec.encode(x_BCHW)
    assert latents_BChw.shape == (2, 128, 2, 3)
    assert (latents_BChw - pipeline._encode_vae_image(x_BCHW, generator=None)).abs().max() < 1e-5

    pipeline.set_progress_bar_config(disable=True)

    def draw(output_type: str) -> Tensor:
        images: Tensor = pipeline(
            prompt_embeds=torch.ones(1, 3, 16), height=32, width=48, num_inference_steps=2, guidance_scale=1.0,
            generator=torch.Generator().manual_seed(0), output_type=output_type,
        ).images  # fmt: skip
        return images

    tokens_1ND = draw("latent")
    drawn = draw("pt")
    shown = codec.decode(tokens_1ND.transpose(1, 2).unflatten(2, (2, 3))) / 2 + 0.5
    assert drawn.std() > 0.01
    assert (shown - drawn).abs().max() < 1e-5


def _flux2_transformer() -> Any:
    torch.manual_seed(0)
    return diffusers.Flux2Transformer2DModel(
        num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=1, joint_attention_dim=16,
        timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip


@pytest.mark.parametrize("number", range(3), ids=["qwen-image", "flux2", "ours"])
@torch.no_grad()
def test_every_codec_keeps_shapes_and_refuses_what_does_not_fit(number: int) -> None:
    codec = codecs()[number]
    space = codec.describe()
    assert (space.channels, space.downscale) == (codec.latent_channels, codec.downscale)
    assert space.patch_size * space.downscale == 16
    latents_BChw = codec.encode(pictures(64, 48))
    assert latents_BChw.shape == (2, space.channels, 64 // space.downscale, 48 // space.downscale)
    seen_BCHW = codec.decode(latents_BChw * 10)
    assert seen_BCHW.shape == (2, 3, 64, 48)
    assert seen_BCHW.dtype == torch.float32
    assert seen_BCHW.abs().max() <= 1
    with pytest.raises(ValueError, match=rf"a 36x48 picture does not divide by {space.downscale}: resize or crop"):
        codec.encode(pictures(36, 48))


def test_gradients_reach_pictures_but_no_weights() -> None:
    for codec in codecs()[:2]:
        x_BCHW = pictures(32, 32).requires_grad_()
        codec.decode(codec.encode(x_BCHW)).square().mean().backward()
        assert x_BCHW.grad is not None
        assert x_BCHW.grad.abs().max() > 0
        assert all(parameter.grad is None for parameter in codec.vae.parameters())  # type: ignore[attr-defined]


def test_a_pack_of_other_latents_is_refused_and_an_older_pack_passes() -> None:
    ours, other = Autoencoder(SMALL), Autoencoder(SMALL)
    other.load_state_dict(ours.state_dict())
    packed = ours.describe().identity
    require_same_latents(packed, other, Path("pack"))
    other.latent_std[1] = 2
    with pytest.raises(
        PackError, match=r"the pack runs/pack holds latents of 'pleinair 4x1/8 \w{16}' and the autoencoder"
    ):
        require_same_latents(packed, other, Path("runs/pack"))
    require_same_latents("", other, Path("pack"))


def test_the_description_of_a_codec_follows_its_statistics() -> None:
    before = Flux2Codec(flux2()).describe()
    flux2().bn.running_mean[3] += 1
    assert Flux2Codec(flux2()).describe().digest != before.digest
    flux2().bn.running_mean[3] -= 1
    means = [0.5, *qwen_image().config.latents_mean[1:]]
    changed = diffusers.AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=means)
    changed.load_state_dict(qwen_image().state_dict())
    assert QwenImageCodec(changed).describe().digest != QwenImageCodec(qwen_image()).describe().digest


def test_autoencoders_and_latents_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="the latents have 16 channels and flux2 has 128: decode them with"):
        Flux2Codec(flux2()).decode(torch.zeros(1, 16, 2, 2))
    with pytest.raises(ValueError, match="the latents have 128 channels and qwen-image has 16"):
        QwenImageCodec(qwen_image()).decode(torch.zeros(1, 128, 2, 2))
    bare = diffusers.AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0])
    with pytest.raises(ConfigError, match="has 16 channels, 1 entries of latents_mean and 16 of latents_std: give one"):
        QwenImageCodec(bare)
    other = diffusers.AutoencoderKLFlux2(block_out_channels=(8,) * 4, norm_num_groups=4, patch_size=(1, 1))
    with pytest.raises(ConfigError, match=r"packs latents \(1, 1\): only 2 x 2 is known"):
        Flux2Codec(other)


@torch.no_grad()
def test_a_saved_folder_or_pipeline_opens_as_its_codec(tmp_path: Path) -> None:
    flux2().save_pretrained(tmp_path / "alone")
    qwen_image().save_pretrained(tmp_path / "pipeline" / "vae")
    for folder, codec in (("alone", Flux2Codec(flux2())), ("pipeline", QwenImageCodec(qwen_image()))):
        opened = load_codec(tmp_path / folder)
        assert opened.describe() == codec.describe()  # type: ignore[attr-defined]
    with pytest.raises(SourceError, match="has no readable config.json"):
        load_codec(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderDC"}')
    with pytest.raises(
        SourceError, match="holds a AutoencoderDC: give one of AutoencoderKLQwenImage, AutoencoderKLFlux2"
    ):
        load_codec(tmp_path)


@torch.no_grad()
def test_the_shipped_autoencoder_is_described_alike_every_time() -> None:
    first, second = (load_autoencoder(shipped("autoencoder")).describe() for _ in range(2))
    assert first == second
    assert (first.channels, first.downscale, first.patch_size) == (16, 8, 2)
