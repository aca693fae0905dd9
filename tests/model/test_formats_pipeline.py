from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoPipelineForText2Image, DiffusionPipeline, Krea2Pipeline

from pleinair.flow import euler, guide, shift_mu, timestep_schedule
from pleinair.flow.timesteps import SHIFT_ANCHORS
from pleinair.model.formats import load_transformer, save_pipeline
from pleinair.model.formats.pipeline import SCHEDULER_CONFIG
from pleinair.model.transformer import Transformer, patchify
from pleinair.records.errors import CheckpointError
from tests.model.pipelines import PROMPT, TEXT_LAYERS, tiny_autoencoder, tiny_text_encoder, tiny_tokenizer
from tests.small_transformers import TINY, random_transformer

HEIGHT, WIDTH, STEPS, GUIDANCE = 96, 64, 3, 2.0
QUICK = {"height": HEIGHT, "width": WIDTH, "num_inference_steps": STEPS, "max_sequence_length": 32}


@pytest.fixture(scope="module")
def model() -> Transformer:
    return random_transformer()


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    tokenizer = tiny_tokenizer()
    return {
        "tokenizer": tokenizer,
        "text_encoder": tiny_text_encoder(len(tokenizer)),
        "vae": tiny_autoencoder(TINY.latent_channels),
    }


@pytest.fixture(scope="module")
def folder(model: Transformer, parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("pipeline") / "k2", model, text_layers=TEXT_LAYERS, **parts)


def load_pipeline(folder: Path) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def parity_image(model: Transformer, pipeline: Any, latents_BCHW: torch.Tensor, guidance: float) -> torch.Tensor:
    """The picture of our transformer, schedule and sampler, with the pipeline's text features and autoencoder."""
    cond = model.encode_text(*pipeline.encode_prompt([PROMPT], max_sequence_length=32))
    uncond = model.encode_text(*pipeline.encode_prompt([""], max_sequence_length=32))

    def velocity(x: torch.Tensor, timestep_B: torch.Tensor) -> torch.Tensor:
        return guide(model.denoise(x, timestep_B, cond), model.denoise(x, timestep_B, uncond), guidance)

    num_image_tokens = HEIGHT * WIDTH // 16**2
    x0 = euler(velocity, latents_BCHW, timestep_schedule(STEPS, shift_mu(num_image_tokens)))
    vae = pipeline.vae
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std))
    picture: torch.Tensor = vae.decode((x0 * std + mean).unsqueeze(2)).sample.squeeze(2)
    return picture.clamp(-1, 1) / 2 + 0.5


def test_diffusers_draws_the_picture_our_sampler_draws(model: Transformer, folder: Path) -> None:
    pipeline = load_pipeline(folder)
    assert isinstance(pipeline, Krea2Pipeline)
    noise = torch.randn(1, TINY.latent_channels, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(3))
    latents = patchify(noise, 2)
    theirs = pipeline(PROMPT, latents=latents, guidance_scale=GUIDANCE, output_type="pt", **QUICK).images
    ours = parity_image(model, pipeline, noise, GUIDANCE)
    assert theirs.shape == (1, 3, HEIGHT, WIDTH)
    assert theirs.std() > 0.01
    print("PARITY", (ours - theirs).abs().max(), theirs.std())
    assert (ours - theirs).abs().max() <= 1e-4
    other = pipeline("", latents=latents, guidance_scale=GUIDANCE, output_type="pt", **QUICK).images
    assert (theirs - other).abs().max() > 1e-2, "the prompt must matter, or this compares little"


def test_the_folder_is_found_by_its_task_and_saved_again_the_same(folder: Path, tmp_path: Path) -> None:
    AutoPipelineForText2Image.from_pretrained(folder).save_pretrained(tmp_path / "again")
    index = json.loads((folder / "model_index.json").read_text())
    again = json.loads((tmp_path / "again" / "model_index.json").read_text())
    assert {key: value for key, value in again.items() if key not in ("_diffusers_version", "_name_or_path")} == index
    expected = load_transformer(folder).state_dict()
    loaded = load_transformer(tmp_path / "again").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_the_schedulers_shift_is_ours() -> None:
    keys = (("base_image_seq_len", "base_shift"), ("max_image_seq_len", "max_shift"))
    assert tuple((SCHEDULER_CONFIG[tokens], SCHEDULER_CONFIG[mu]) for tokens, mu in keys) == SHIFT_ANCHORS


def test_a_pipeline_whose_parts_do_not_fit_is_refused(
    model: Transformer, parts: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="2 text layers are given: this transformer reads 5"):
        save_pipeline(tmp_path / "k2", model, text_layers=(1, 2), **parts)
    narrow = random_transformer(replace(TINY, in_channels=8))
    with pytest.raises(CheckpointError, match="vae has 4 latent channels: this transformer reads 2"):
        save_pipeline(tmp_path / "k2", narrow, text_layers=TEXT_LAYERS, **parts)
    wide = random_transformer(replace(TINY, text_dim=64))
    with pytest.raises(CheckpointError, match="text_encoder has width 32: this transformer reads 64"):
        save_pipeline(tmp_path / "k2", wide, text_layers=TEXT_LAYERS, **parts)
    assert list(tmp_path.iterdir()) == []
