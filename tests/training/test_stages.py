import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pleinair.checkpoint.store import read_document, read_manifest, read_tensors
from pleinair.model.efficientnet import EfficientNetLite0
from pleinair.model.image_encoder import Picture
from pleinair.records.errors import ConfigError, PackError
from pleinair.training.engine import Phase, read_records, train
from pleinair.training.patch_features import (
    EfficientNetPatches,
    Grid,
    PatchBatch,
    PatchFeatures,
    WithPatches,
    write_patch_features,
)
from pleinair.training.random import RowRandom
from pleinair.training.stages.finetune import Finetune
from pleinair.training.stages.pretrain import PretrainConfig, timesteps_told
from pleinair.training.stages.repa import Repa, RepaConfig, spatially_normalised
from tests.training.small_stages import TINY, Latents, pretrain_stage, settings


class Colours:
    """A patch encoder that gives the colour in the middle of each cell."""

    name, width = "colours", 3

    def patches(self, pictures: Sequence[Picture], grid: Grid) -> np.ndarray:
        step = pictures[0].shape[0] // grid[0]
        pixels = np.stack(pictures)[:, step // 2 :: step, step // 2 :: step]
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float16)


def picture(number: int, rows: int, columns: int) -> Picture:
    return np.random.default_rng(number).integers(0, 256, (rows, columns, 3), np.uint8)


def test_features_come_back_by_key_and_grid_in_any_order(tmp_path: Path) -> None:
    square = [picture(number, 8, 8) for number in range(4)]
    wide = [picture(number, 4, 12) for number in (7, 8)]
    batches = [((4, 4), ["a", "b"], square[:2]), ((2, 6), ["e", "f"], wide), ((4, 4), ["c", "d"], square[2:])]
    features = PatchFeatures(write_patch_features(tmp_path / "features", Colours(), batches))
    assert (features.encoder, features.width) == ("colours", 3)
    found = features.of(["d", "a"], (4, 4))
    assert torch.equal(found, torch.from_numpy(Colours().patches([square[3], square[0]], (4, 4))).float())
    assert features.of(["f"], (2, 6)).shape == (1, 3, 2, 6)
    with pytest.raises(PackError, match="no features of 'z' on a"):
        features.of(["z"], (4, 4))
    with pytest.raises(PackError, match="no features on a 3 x 3 grid"):
        features.of(["a"], (3, 3))
    with pytest.raises(PackError, match="holds no patch features"):
        PatchFeatures(tmp_path)


def test_efficientnets_patches_lie_on_the_grid_of_image_tokens() -> None:
    torch.manual_seed(0)
    encoder = EfficientNetPatches(EfficientNetLite0().eval())
    dark, light = np.zeros((32, 64, 3), np.uint8), np.zeros((32, 64, 3), np.uint8)
    light[:, 48:] = 255
    plain, changed = (encoder.patches([one], (4, 8)).astype(np.float32) for one in (dark, light))
    assert plain.shape == (1, encoder.width, 4, 8)
    moved = np.abs(changed - plain).sum(axis=(0, 1, 2))
    assert moved[6:].mean() > 2 * moved[:2].mean(), "what changes on the right changes on the right"


def test_spatial_normalisation_is_over_the_tokens_of_each_picture() -> None:
    features = torch.randn(2, 3, 4, 5) * 7 + 2
    normalised = spatially_normalised(features, 0.6)
    for row in range(2):
        for feature in range(3):
            values = features[row, feature].flatten()
            naive = (values - 0.6 * values.mean()) / (values.std() + 1e-6)
            assert torch.allclose(normalised[row, feature].flatten(), naive, atol=1e-5)


def wide_batch() -> PatchBatch:
    batch = Latents().batch(0)
    latents = torch.randn(8, 4, 2, 6, generator=torch.Generator().manual_seed(3))
    return PatchBatch(batch.keys, latents, batch.text_features_BTLD, batch.text_mask_BT, torch.randn(8, 3, 2, 6))


def test_the_projector_sees_image_tokens_on_their_grid_and_no_text() -> None:
    """With a projector that copies, the cosine is that of tokens taken from the block by hand."""
    stage, batch = pretrain_stage(), wide_batch()
    repa = Repa(stage, 3, RepaConfig(depth=1))
    with torch.no_grad():
        repa.head.weight.zero_()
        repa.head.bias.zero_()  # type: ignore[union-attr]
        repa.head.weight[range(3), range(3), 1, 1] = 1.0
    outputs: list[torch.Tensor] = []
    stage.model.transformer_blocks[0].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    given = repa.loss(batch, RowRandom(0, 0, range(8))).metrics["repa_cosine"]
    num_text = outputs[0].shape[1] - 12
    cosines = [
        nn.functional.cosine_similarity(
            outputs[0][row, num_text + 6 * y + x, :3],
            spatially_normalised(batch.patches_BDHW, 0.6)[row, :, y, x],
            dim=0,
        )
        for row in range(8)
        for y in range(2)
        for x in range(6)
    ]
    assert float(given) == pytest.approx(float(torch.stack(cosines).mean().detach()), abs=1e-5)
    assert len(stage.model.transformer_blocks[1]._forward_hooks) == 0


def test_blocks_that_hand_their_values_on_are_aligned_too() -> None:
    stage = pretrain_stage(config=replace(TINY, value_residual=True))
    loss = Repa(stage, 3, RepaConfig(depth=1)).loss(wide_batch(), RowRandom(0, 0, range(8))).loss
    assert loss.isfinite()


def test_training_timesteps_grow_with_the_number_of_image_tokens() -> None:
    config = PretrainConfig(shift_mu=0.3, shift_tokens=64)
    assert [config.mu(tokens) for tokens in (64, 256)] == pytest.approx([0.3, 0.3 + math.log(2)])


def test_a_checkpoint_tells_the_timesteps_that_its_model_was_trained_at() -> None:
    stage = pretrain_stage()
    assert timesteps_told(stage.documents()["config.json"]) == stage.config != PretrainConfig()
    assert timesteps_told({"transformer": {}}) == PretrainConfig()


class Patched(Latents):
    """Features that the latents tell."""

    def batch(self, step: int) -> PatchBatch:  # type: ignore[override]
        batch = super().batch(step)
        return PatchBatch(**vars(batch), patches_BDHW=batch.latents_BCHW[:, :3] * 3 + 1)


def test_alignment_rises_and_after_its_phase_the_loss_goes_on_and_no_projector_is_left(tmp_path: Path) -> None:
    stage = pretrain_stage()
    repa = Repa(stage, 3, RepaConfig(depth=1))
    phases = [Phase("repa", 40, 8, Patched(), stage=repa), Phase("plain", 20, 8, Latents(first=40))]
    final = train(stage, phases, settings(keep_every=20), tmp_path, config_digest="d", on_message=lambda _: None)
    records = read_records(tmp_path / "steps.jsonl")
    cosine = [record.metrics["repa_cosine"] for record in records[:40]]
    assert np.mean(cosine[-10:]) > np.mean(cosine[:3]) + 0.3
    flow = np.array([*(record.metrics["flow"] for record in records[:40]), *(record.loss for record in records[40:])])
    before, after = flow[20:40], flow[40:50]
    assert after.mean() < before.mean() + 2 * before.std()
    during = tmp_path / "checkpoints" / "step-00000020"
    assert set(read_tensors(during, "head.safetensors")) == {"weight", "bias"}
    assert "head.safetensors" not in read_manifest(final).files
    assert set(read_tensors(final, "transformer.safetensors")) == set(stage.model.state_dict())
    assert set(read_document(final, "optimiser.json")) == {"adamw"}


def test_a_loader_with_patches_gives_each_row_its_own(tmp_path: Path) -> None:
    keys = Latents().keys(3)
    pictures = [picture(number, 4, 4) for number in range(8)]
    features = PatchFeatures(write_patch_features(tmp_path / "f", Colours(), [((4, 4), keys, pictures)]))
    loader = WithPatches(Latents(), features, patch_size=1)
    batch = loader.batch(3)
    assert torch.equal(batch.latents_BCHW, Latents().batch(3).latents_BCHW)
    assert torch.equal(batch.patches_BDHW, features.of(keys, (4, 4)))
    assert loader.keys(3) == keys


def test_a_depth_beyond_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="depth is 3: the model has only 2 blocks"):
        Repa(pretrain_stage(), 3, RepaConfig(depth=3))


class Adapted(nn.Module):
    """A linear layer with a low-rank addition, written out."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base
        self.lora_A = nn.Parameter(torch.randn(rank, base.in_features) / rank)
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.base(x) + x @ self.lora_A.T @ self.lora_B.T
        return out


def adapted_stage() -> Finetune:
    stage = pretrain_stage()
    stage.model.requires_grad_(False)
    for block in stage.model.transformer_blocks:
        block.attn.to_q = Adapted(block.attn.to_q)  # type: ignore[assignment,union-attr,arg-type]

    def trained() -> dict[str, torch.Tensor]:
        return {name: values for name, values in stage.model.named_parameters() if values.requires_grad}

    return Finetune(stage, trained, base={"checkpoint": "base"})


def test_a_lora_is_trained_and_stored_alone_and_resumes(tmp_path: Path) -> None:
    stage = adapted_stage()
    frozen = {name: values.clone() for name, values in stage.model.named_parameters() if not values.requires_grad}
    phases = [Phase("lora", 4, 8, Latents())]
    final = train(stage, phases, settings(), tmp_path, config_digest="d", on_message=lambda _: None)
    state = read_tensors(final, "lora.safetensors")
    assert {name.rsplit(".", 1)[1] for name in state} == {"lora_A", "lora_B"}
    assert all(values.abs().max() > 0 for values in state.values())
    assert "transformer.safetensors" not in read_manifest(final).files
    assert read_document(final, "base.json") == {"checkpoint": "base"}
    now = dict(stage.model.named_parameters())
    assert all(torch.equal(now[name], values) for name, values in frozen.items())
    again = adapted_stage()
    train(again, phases, settings(), tmp_path, config_digest="d", on_message=lambda _: None)
    assert all(torch.equal(again.weights()[name], values) for name, values in state.items())


def test_finetuning_a_model_that_is_not_frozen_is_refused() -> None:
    with pytest.raises(ConfigError, match="freeze the base"):
        Finetune(pretrain_stage(), dict, base={})
