"""A tiny model in the released layout: packed for with the true classes, fine-tuned, exported, and run by diffusers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from pleinair.checkpoint.store import newest_checkpoint, read_document
from pleinair.cli.encoders import open_text_encoder
from pleinair.cli.main import build_parser, main
from pleinair.cli.parts import ready_parts
from pleinair.cli.steps import pack_step
from pleinair.cli.workspace import Workspace, open_workspace
from pleinair.model.autoencoders.qwen_image import QwenImageCodec
from pleinair.model.formats import read_lora, save_pipeline
from pleinair.model.pixels import to_signed_unit
from pleinair.model.text_encoders.qwen3_vl import K2_LAYERS, qwen3_vl
from pleinair.packs.loader import LatentLoader
from pleinair.packs.pack import Pack
from pleinair.packs.plan import LoaderConfig
from pleinair.recipes.fits import require_encoders_fit
from pleinair.records.errors import ConfigError
from pleinair.sampling.checkpoints import read_transformer
from pleinair.sampling.projection import read_projection
from tests.model.test_autoencoder_codecs import flux2, qwen_image
from tests.model.tiny_language_models import qwen_like_tokenizer, tiny_qwen3_vl
from tests.small_transformers import random_transformer, tiny_config
from tests.training.recipe_runs import pictures

K2 = tiny_config(in_channels=64, text_dim=16, num_text_layers=12, text_num_heads=2, text_num_kv_heads=1)
SIZES = (
    "width", "num_layers", "num_heads", "num_kv_heads", "mlp_width", "in_channels", "timestep_dim", "text_dim", "patch_size",
    "num_text_layers", "text_num_heads", "text_num_kv_heads", "text_mlp_width", "num_layerwise_text_blocks",
    "num_refiner_text_blocks",
)  # fmt: skip
RECIPE = [f"transformer.{name}={getattr(K2, name)}" for name in SIZES]
RECIPE += [
    "phases=({'resolution': 32, 'num_steps': 4, 'batch_size': 4},)",
    "text_dim=16",
    "finetune={'lora': {'rank': 4}}",
    "engine.num_threads=1",
    "engine.optimiser.warmup_steps=1",
    "engine.optimiser.learning_rate=3e-2",
    "watch.validation.every=4",
    "loader.caption_weights=None",
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pipeline_folder(path: Path, vae: Any) -> Path:
    return save_pipeline(
        path, random_transformer(K2), vae=vae, text_encoder=tiny_qwen3_vl(), tokenizer=qwen_like_tokenizer(),
        text_layers=K2_LAYERS,
    )  # fmt: skip


@pytest.fixture(scope="module")
def k2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole pipeline with tiny random parts of the real classes."""
    return pipeline_folder(tmp_path_factory.mktemp("released") / "k2", qwen_image())


def words(runs: Path, *more: str) -> list[str]:
    told = [word for setting in RECIPE for word in ("--set", setting)]
    return ["demo", "--runs", str(runs), "--home", str(runs / "home"), *told, *more]


def packed(runs: Path, *more: str) -> Workspace:
    work = open_workspace(build_parser().parse_args(["pack", *words(runs, *more)]))
    pack_step(work, pictures(), ready_parts(work, None))  # type: ignore[arg-type]
    return work


def named(folder: Path) -> tuple[str, ...]:
    return ("--text-encoder", str(folder), "--autoencoder", str(folder))


@pytest.fixture(scope="module")
def trained(k2: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A run that is packed and trained by the command line's own steps, a LoRA on the pipeline's transformer."""
    runs = tmp_path_factory.mktemp("runs")
    work = packed(runs, *named(k2), "--parent", str(k2))
    assert main(["train", *words(runs, *named(k2), "--parent", str(k2))]) == 0
    return work


def final(work: Workspace) -> Path:
    checkpoint = newest_checkpoint(work.run_dir / "checkpoints")
    assert checkpoint is not None
    return checkpoint


def batch_of(work: Workspace) -> Any:
    pack = Pack(work.pack)
    config = LoaderConfig(batch_size=4, caption_weights=(1.0, 0.0, 0.0), drop_caption=0.0)
    return LatentLoader(pack, 32, config).batch(0)


def test_the_pack_holds_the_twelve_layers_that_the_pipeline_encodes_and_its_autoencoders_latents(
    trained: Workspace, k2: Path
) -> None:
    manifest = Pack(trained.pack).manifest
    codec = QwenImageCodec(qwen_image())
    assert manifest.latent_space == codec.describe().identity
    assert (manifest.text_layers, manifest.text_dim, manifest.dtype) == (K2_LAYERS, 16, "bfloat16")
    assert read_projection(trained.pack).passes_on
    assert (trained.pack / "feature_projection.safetensors").stat().st_size < 4096, "nothing was fitted, nothing stored"
    batch, by_key = batch_of(trained), {picture.key: picture for picture in pictures()}
    parts: dict[str, Any] = {"scheduler": None, "vae": None, "transformer": None}
    pipeline = diffusers.Krea2Pipeline(**parts, text_encoder=tiny_qwen3_vl(), tokenizer=qwen_like_tokenizer())
    for row, key in enumerate(batch.keys):
        with torch.inference_mode():
            theirs_BTLD, theirs_BT = pipeline.encode_prompt(
                [by_key[key].captions[0]], device=torch.device("cpu"), max_sequence_length=512
            )
            latents = codec.encode(to_signed_unit(by_key[key].pixels[32][None]))[0]
        ours_TLD, theirs_TLD = batch.text_features_BTLD[row][batch.text_mask_BT[row]], theirs_BTLD[0][theirs_BT[0]]
        assert ours_TLD.shape == theirs_TLD.shape
        error = (ours_TLD - theirs_TLD).norm() / theirs_TLD.norm()
        assert error < 0.02, "the encoder runs in bfloat16 here and in float32 there"
        assert torch.allclose(batch.latents_BCHW[row].float(), latents, rtol=2**-8, atol=1e-6)


def test_a_lora_of_the_run_changes_diffusers_pictures_as_it_changes_ours(
    trained: Workspace, k2: Path, tmp_path: Path
) -> None:
    file = tmp_path / "style.safetensors"
    assert main(["export", str(final(trained)), "--to", "native", "-o", str(file)]) == 0
    assert len(read_lora(file)[0]) == 8 * K2.num_layers
    pipeline = diffusers.DiffusionPipeline.from_pretrained(k2)
    pipeline.set_progress_bar_config(disable=True)
    without, before = drawn(pipeline), transformed(pipeline.transformer, trained)
    pipeline.load_lora_weights(file.parent, weight_name=file.name)
    with_lora, after = drawn(pipeline), transformed(pipeline.transformer, trained)
    assert np.abs(without - with_lora).mean() > 1e-3
    ours = ours_transformed(trained)
    assert (before - ours).abs().max() > 1e-2
    assert (after - ours).abs().max() < 1e-4


def drawn(pipeline: Any) -> Any:
    latents = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(0))
    return pipeline(
        "a red apple", latents=latents, height=32, width=32, num_inference_steps=2, guidance_scale=1.0, output_type="np"
    ).images


def inputs_of(work: Workspace) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch = batch_of(work)
    return batch.latents_BCHW.float(), torch.full((4,), 0.5), batch.text_features_BTLD.float(), batch.text_mask_BT


@torch.no_grad()
def ours_transformed(work: Workspace) -> Tensor:
    velocity: Tensor = read_transformer(final(work))(*inputs_of(work))
    return velocity


@torch.no_grad()
def transformed(theirs: Any, work: Workspace) -> Tensor:
    """The velocity of diffusers' class for the same batch."""
    from pleinair.model.transformer import patchify, unpatchify

    latents_BCHW, timestep_B, features_BTLD, mask_BT = inputs_of(work)
    num_text, (rows, columns) = features_BTLD.shape[1], (side // 2 for side in latents_BCHW.shape[2:])
    grid = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1).flatten(0, 1)
    places = torch.cat([torch.zeros(num_text, 3), torch.cat([torch.zeros(len(grid), 1), grid], 1)])
    out = theirs(
        hidden_states=patchify(latents_BCHW, 2), encoder_hidden_states=features_BTLD, timestep=timestep_B,
        encoder_attention_mask=mask_BT, position_ids=places,
    ).sample  # fmt: skip
    return unpatchify(out, rows, columns, 2)


def test_the_run_is_exported_as_a_whole_pipeline_that_draws_as_the_base_with_the_lora(
    trained: Workspace, k2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = tmp_path / "mine", tmp_path / "style.safetensors"
    export = ["export", str(final(trained)), "-o", str(folder), "--to", "pipeline"]
    assert main(export) == 1
    assert "name them with --text-encoder and --autoencoder" in capsys.readouterr().err
    assert main([*export, *named(k2)]) == 0
    assert main(["export", str(final(trained)), "--to", "diffusers", "-o", str(file)]) == 0
    whole, beside = (diffusers.DiffusionPipeline.from_pretrained(place) for place in (folder, k2))
    assert isinstance(whole, diffusers.Krea2Pipeline)
    beside.load_lora_weights(file.parent, weight_name=file.name)
    for pipeline in (whole, beside):
        pipeline.set_progress_bar_config(disable=True)
    assert np.abs(drawn(whole) - drawn(beside)).max() < 1e-4
    assert main([*export, *named(k2)]) == 1
    assert "exists already" in capsys.readouterr().err


def test_a_pipeline_of_parts_that_the_model_was_not_trained_on_is_refused(
    trained: Workspace, k2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flux2().save_pretrained(tmp_path / "flux2")
    stretched().save_pretrained(tmp_path / "stretched")
    for autoencoder, sentence in (
        ("flux2", "holds no autoencoder of Qwen-Image, and diffusers' Krea2Pipeline decodes with no other"),
        ("stretched", "has learned latents of 'qwen-image 16x1/8"),
    ):
        told = ["--text-encoder", str(k2), "--autoencoder", str(tmp_path / autoencoder), "-o", str(tmp_path / "out")]
        assert main(["export", str(final(trained)), "--to", "pipeline", *told]) == 1
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def stretched() -> Any:
    """The same weights with other statistics."""
    std = [2 * value for value in qwen_image().config.latents_std]
    other = diffusers.AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_std=std)
    other.load_state_dict(qwen_image().state_dict())
    return other.eval()


def test_a_pipelines_transformer_knows_the_latents_of_its_own_autoencoder(
    trained: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = pipeline_folder(tmp_path / "other", stretched())
    for way in ("finetune={}", "finetune=None"):
        told = ["--set", f"pack={str(trained.pack)!r}", "--set", way, "--parent", str(other)]
        assert main(["train", *words(tmp_path, *told)]) == 1
        assert "has learned latents of 'qwen-image 16x1/8" in capsys.readouterr().err
    config = read_document(final(trained), "config.json")
    assert config["latent_space"] == Pack(trained.pack).manifest.latent_space


def test_flux2_latents_are_packed_for_patches_of_one_and_sizes_that_do_not_fit_are_refused(
    k2: Path, tmp_path: Path
) -> None:
    flux2().save_pretrained(tmp_path / "flux2")
    told = ("--text-encoder", str(k2), "--autoencoder", str(tmp_path / "flux2"))
    with pytest.raises(
        ConfigError, match="in_channels is 64.*the autoencoder makes 128: set transformer.in_channels=512"
    ):
        packed(tmp_path, *told, "--set", "finetune=None")
    sizes = ("--set", "transformer.in_channels=128", "--set", "transformer.patch_size=1")
    with pytest.raises(
        ConfigError, match="the text encoder gives text features of 12 layers x .* the transformer reads 5 x"
    ):
        packed(tmp_path, *told, *sizes, "--set", "finetune=None", "--set", "transformer.num_text_layers=5")
    work = packed(tmp_path, *told, *sizes, "--set", "finetune=None")
    assert [shard.shape for shard in Pack(work.pack).manifest.shards] == [(128, 1, 1), (128, 2, 2)]
    assert Pack(work.pack).manifest.latent_space.startswith("flux2 128x1/16")
    assert main(["train", *words(tmp_path, *told, *sizes, "--set", "finetune=None")]) == 0


@pytest.mark.parametrize("field", ["in_channels", "num_text_layers", "text_dim"])
def test_every_size_that_the_parts_decide_is_compared(field: str) -> None:
    codec, encoder = QwenImageCodec(qwen_image()), qwen3_vl(tiny_qwen3_vl(), qwen_like_tokenizer())
    require_encoders_fit(K2, codec, encoder, 16)
    given = getattr(K2, field)
    sentence = f"set .*transformer.{field}={given}"
    with pytest.raises(ConfigError, match=sentence):
        require_encoders_fit(replace(K2, **{field: 2 * given}), codec, encoder, 16)


def test_pictures_of_the_run_are_drawn_with_the_parts_it_was_packed_with(
    trained: Workspace, k2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "apple.png"
    draw = ["sample", "a red apple", "--run", str(trained.run_dir), "--steps", "2", "-o", str(picture)]
    assert main(draw) == 1
    assert "has learned latents of 'qwen-image 16x1/8" in capsys.readouterr().err
    assert main([*draw, "--autoencoder", str(k2)]) == 1
    assert "the text encoder gives text features of 4 layers x" in capsys.readouterr().err
    assert not picture.exists()
    assert main([*draw, *named(k2)]) == 0
    assert picture.exists()


def test_the_encoder_of_a_pipelines_folder_is_the_one_in_it(k2: Path) -> None:
    opened, own = open_text_encoder(str(k2)), qwen3_vl(tiny_qwen3_vl(), qwen_like_tokenizer())
    assert (opened.layers, opened.width) == (own.layers, own.width)
