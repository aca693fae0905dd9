"""Losses that shape an autoencoder: which parts each trains, off-switches, and what is dropped."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pleinair.checkpoint.store import read_tensors
from pleinair.model.autoencoder import Autoencoder, AutoencoderConfig
from pleinair.model.autoencoders.perception import PictureFeatures
from pleinair.model.efficientnet import EfficientNetLite0
from pleinair.packs.pictures import PictureLoader, PictureSet
from pleinair.records.errors import ConfigError
from pleinair.sampling.shipped import load_autoencoder, save_autoencoder
from pleinair.training.engine import EngineConfig, Phase, read_records, train
from pleinair.training.optimisers import OptimiserConfig
from pleinair.training.random import RowRandom
from pleinair.training.stages.autoencode import Autoencode, AutoencodeConfig, misalignment, normalised_over_places

TINY = AutoencoderConfig(widths=(8, 16), encoder_blocks=(1, 1), decoder_blocks=(1, 1), latent_channels=4)
EVERY = AutoencodeConfig(
    perceptual_weight=0.1, alignment_weight=0.1, flow_weight=0.1, flow_alignment_weight=0.1, flow_width=16
)


@pytest.fixture(scope="module")
def features() -> PictureFeatures:
    torch.manual_seed(0)
    return PictureFeatures(EfficientNetLite0())


def draws(seed: int) -> RowRandom:
    return RowRandom(seed, 0, range(4))


def pictures() -> Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def gradients(config: AutoencodeConfig, features: PictureFeatures | None, term: str) -> dict[str, float]:
    """Size of the gradient of one term alone in every part of the stage, the encoder apart from the decoder."""
    torch.manual_seed(0)
    stage = Autoencode(Autoencoder(TINY), config, features)
    _, raw_BChw = stage.autoencoder.reconstruct(pictures(), torch.zeros(4, 4, 4, 4))
    terms = {name: value for name, _, value in stage._shaping(raw_BChw, pictures(), draws(0))}
    terms[term].backward()  # type: ignore[no-untyped-call]
    sums: dict[str, float] = {}
    for name, parameter in stage.model.named_parameters():
        part = ".".join(name.split(".")[:2]) if name.startswith("autoencoder") else name.split(".")[0]
        sums[part] = sums.get(part, 0.0) + (0.0 if parameter.grad is None else parameter.grad.abs().sum().item())
    return sums


def trained_parts(sums: dict[str, float]) -> set[str]:
    return {name for name, size in sums.items() if size > 0}


def test_each_term_trains_its_parts_and_the_flow_loss_stops_at_the_latents(features: PictureFeatures) -> None:
    assert trained_parts(gradients(EVERY, features, "alignment")) == {"autoencoder.encoder", "projection"}
    assert trained_parts(gradients(EVERY, features, "flow")) == {"flow"}
    aligned = trained_parts(gradients(EVERY, features, "flow_alignment"))
    assert aligned == {"autoencoder.encoder", "flow", "flow_projection"}
    reaching = AutoencodeConfig(flow_weight=0.1, flow_width=16, flow_reaches_encoder=True)
    assert trained_parts(gradients(reaching, None, "flow")) == {"autoencoder.encoder", "flow"}


def test_the_default_is_the_plain_loss_and_keeps_nothing_beside_the_autoencoder() -> None:
    torch.manual_seed(0)
    stage = Autoencode(Autoencoder(TINY), AutoencodeConfig())
    found = stage.loss(pictures(), draws(3))
    noise_BChw = draws(3).normal(4, 4, 4)
    decoded_BCHW, raw_BChw = stage.autoencoder.reconstruct(pictures(), noise_BChw)
    error_BCHW = decoded_BCHW - pictures()
    edges = [(error_BCHW.narrow(dim, 1, 15) - error_BCHW.narrow(dim, 0, 15)).abs().mean() for dim in (-2, -1)]
    expected = error_BCHW.abs().mean() + 0.5 * sum(edges) + 1e-3 * raw_BChw.square().mean()
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert set(found.metrics) == {"psnr"}
    assert {name.split(".")[0] for name in stage.model.state_dict()} == {"autoencoder"}


def test_every_term_enters_with_its_weight(features: PictureFeatures) -> None:
    torch.manual_seed(0)
    autoencoder = Autoencoder(TINY)
    plain = Autoencode(autoencoder, AutoencodeConfig()).loss(pictures(), draws(3))
    found = Autoencode(autoencoder, EVERY, features).loss(pictures(), draws(3))
    extra = sum(0.1 * found.metrics[name] for name in ("perceptual", "alignment", "flow", "flow_alignment"))
    assert found.loss.item() == pytest.approx(plain.loss.item() + extra, rel=1e-5)
    assert all(0 < found.metrics[name] < 4 for name in ("perceptual", "alignment", "flow", "flow_alignment"))


def test_targets_lose_most_of_their_mean_and_all_of_their_scale() -> None:
    target_BChw = normalised_over_places(5 + 3 * torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(target_BChw.std((2, 3), correction=0), torch.ones(2, 6), atol=1e-4)
    assert (target_BChw.mean((2, 3)) > 0).all(), "4 / 10 of the mean is left"
    assert torch.isfinite(normalised_over_places(torch.ones(1, 6, 1, 1))).all()
    assert misalignment(2 * target_BChw, target_BChw).item() == pytest.approx(0, abs=1e-6)
    assert misalignment(-target_BChw, target_BChw).item() == pytest.approx(2, abs=1e-6)


def test_a_run_with_every_term_learns_alignment_and_ships_the_autoencoder_alone(
    features: PictureFeatures, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 4, 4, 3), np.uint8).repeat(4, 1).repeat(4, 2)
    chosen = PictureSet([f"p{i}" for i in range(32)], pixels, ["s"] * 32, ["c"] * 32, np.zeros(32, bool))
    torch.manual_seed(0)
    stage = Autoencode(Autoencoder(TINY), EVERY, features)
    phase = Phase("pixels", 30, 8, PictureLoader(chosen, 8, seed=1, half_every=0))
    optimiser = OptimiserConfig(warmup_steps=2, learning_rate=1e-2)
    config = EngineConfig(num_threads=1, optimiser=optimiser, precision="fp32", checkpoint_seconds=1e9)
    final = train(stage, [phase], config, tmp_path, config_digest="d")
    records = read_records(tmp_path / "steps.jsonl")
    for name in ("alignment", "flow_alignment"):
        first, last = (np.mean([record.metrics[name] for record in part]) for part in (records[:5], records[-5:]))
        assert last < first - 0.05, name
    kept = {name.split(".")[0] for name in read_tensors(final, stage.weights_file)}
    assert kept == {"autoencoder", "projection", "flow", "flow_projection"}, "a resumed run goes on with its heads"
    save_autoencoder(stage.autoencoder, tmp_path / "autoencoder.safetensors")
    assert (
        load_autoencoder(tmp_path / "autoencoder.safetensors").state_dict().keys()
        == Autoencoder(TINY).state_dict().keys()
    )


def test_weights_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="perceptual_weight is -1: give 0 \\(off\\) or more"):
        AutoencodeConfig(perceptual_weight=-1)
    with pytest.raises(ConfigError, match="flow_alignment_weight is 0.5 and flow_weight 0: give both"):
        AutoencodeConfig(flow_alignment_weight=0.5)
    with pytest.raises(ConfigError, match="need image features: give load_efficientnet"):
        Autoencode(Autoencoder(TINY), AutoencodeConfig(alignment_weight=1))
