"""The judge: a small CNN that names the style and the concept of a 64-pixel picture on white.

    (B, 3, 64, 64) -> stem /2 -> stages, each halved by averaging (antialiased) -> mean and spread of every stage
        last stage's means     -> 192 concept features, length 1 -> cosine to one direction per concept
        all means and spreads  ->  64 style features, length 1   -> cosine to one direction per style
    embedding = both, one after the other: its cosine is the mean of concept and style similarity

It learns from real drawings only (pleinair.evaluation.judge_training) and is never trained against. Style is texture
and palette, which early stages hold; concept is shape, which the last stage holds: hence the two readings.

Shapes: B batch, C channels, H W height and width, K styles, N concepts, D features.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pleinair.quantise import dequantise, quantise_rowwise
from pleinair.records.errors import CheckpointError, ConfigError
from pleinair.tensor_files import save_tensors

PICTURE_SIZE = 64
Pictures = npt.NDArray[np.uint8]
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """What the judge can name, its sizes, and how it is trained."""

    style_names: tuple[str, ...]
    """The styles, in the order of the labels."""
    concept_names: tuple[str, ...]
    """The concepts, in the order of the labels."""
    widths: tuple[int, ...] = (24, 64, 160)
    """Channels of each stage; the first works at half resolution, each further one at half of that."""
    blocks: tuple[int, ...] = (0, 1, 2)
    """Residual blocks of each stage."""
    concept_features: int = 192
    """Size of the concept half of the embedding."""
    style_features: int = 64
    """Size of the style half of the embedding."""
    epochs: int = 24
    """Passes over the pictures."""
    half_size_share: float = 0.5
    """The first share of the steps sees pictures at half resolution, at a third of the cost."""
    batch_size: int = 64
    """Pictures in a step."""
    learning_rate: float = 4e-3
    """Peak rate; warmed up over 2% of the steps, then a cosine to zero."""
    weight_decay: float = 0.05
    """Decoupled, on matrices and filters."""
    style_weight: float = 2.0
    """Of the style loss beside the concept loss, which is larger and would otherwise own the trunk."""
    label_smoothing: float = 0.1
    """Share of the concept target spread over all concepts; half of it for styles."""
    flip_probability: float = 0.25
    """How often a training picture is mirrored: rarely enough that arrows and writing keep their direction."""
    seed: int = 0
    """Of initial weights, order and augmentation."""

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.blocks) or not self.widths:
            raise ConfigError(f"judge widths {self.widths} and blocks {self.blocks}: give one of each per stage")
        if not self.style_names or not self.concept_names:
            raise ConfigError("a judge needs style_names and concept_names: name at least one style and one concept")
        if not 0 <= self.half_size_share <= 1:
            raise ConfigError(f"half_size_share is {self.half_size_share}: give a share between 0 and 1")
        for name in ("epochs", "batch_size", "concept_features", "style_features"):
            if getattr(self, name) < 1:
                raise ConfigError(f"judge {name} is {getattr(self, name)}: give 1 or more")


@dataclass(frozen=True)
class JudgeOutput:
    """What one forward pass gives: (B, K) and (B, N) logits, and (B, D) features of length 1."""

    style_logits: Tensor
    concept_logits: Tensor
    embedding: Tensor


@dataclass(frozen=True, kw_only=True)
class JudgeScores:
    """The judge's outputs for many pictures, as float32 arrays with one row per picture."""

    style_logits: Scores
    concept_logits: Scores
    embedding: Scores

    def take(self, rows: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> JudgeScores:
        """The chosen rows."""
        return JudgeScores(
            style_logits=self.style_logits[rows],
            concept_logits=self.concept_logits[rows],
            embedding=self.embedding[rows],
        )


class Filters(nn.Module):
    """A convolution without bias whose weight is a matrix, one row per output channel.

    Matrices are what the optimiser (Muon) orthogonalises and what 8-bit storage scales row by row.
    """

    def __init__(self, channels_in: int, channels_out: int, size: int, stride: int = 1) -> None:
        super().__init__()
        self.shape = (channels_out, channels_in, size, size)
        self.stride, self.padding = stride, size // 2
        fan_in = channels_in * size * size
        self.weight = nn.Parameter(torch.randn(channels_out, fan_in) * (2 / fan_in) ** 0.5)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.conv2d(x_BCHW, self.weight.view(self.shape), stride=self.stride, padding=self.padding)


class Block(nn.Module):
    """Two 3x3 convolutions around a skip; starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.filters_in, self.norm_in = Filters(width, width, 3), nn.BatchNorm2d(width)
        self.filters_out, self.norm_out = Filters(width, width, 3), nn.BatchNorm2d(width)
        nn.init.zeros_(self.norm_out.weight)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        hidden = F.relu(self.norm_in(self.filters_in(x_BCHW)))
        return F.relu(x_BCHW + self.norm_out(self.filters_out(hidden)))


class CosineHead(nn.Module):
    """Pooled features -> features of length 1 -> scaled cosines to one learned direction per class."""

    def __init__(self, width: int, features: int, num_classes: int) -> None:
        super().__init__()
        self.norm_in = nn.BatchNorm1d(width)
        self.project = nn.Linear(width, features, bias=False)
        self.norm_out = nn.BatchNorm1d(features)
        self.directions = nn.Parameter(torch.randn(num_classes, features) * features**-0.5)
        self.scale = nn.Parameter(torch.tensor([16.0]))

    def forward(self, pooled_BD: Tensor) -> tuple[Tensor, Tensor]:
        features = F.normalize(self.norm_out(self.project(self.norm_in(pooled_BD))).float(), dim=1)
        with torch.autocast(features.device.type, enabled=False):
            return self.scale * features @ F.normalize(self.directions, dim=1).T, features


class Judge(nn.Module):
    """The network; pictures come as (B, 3, H, W) in [0, 1] on white."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        inputs = (3, *config.widths[:-1])
        self.stages = nn.ModuleList(
            stage(before, width, num_blocks, first=index == 0)
            for index, (before, width, num_blocks) in enumerate(zip(inputs, config.widths, config.blocks, strict=True))
        )
        self.concept_head = CosineHead(config.widths[-1], config.concept_features, len(config.concept_names))
        self.style_head = CosineHead(2 * sum(config.widths), config.style_features, len(config.style_names))

    def forward(self, pictures_BCHW: Tensor) -> JudgeOutput:
        x_BCHW = pictures_BCHW
        pooled: list[Tensor] = []
        for one in self.stages:
            x_BCHW = one(x_BCHW)
            wide_BCHW = x_BCHW.float()
            # As moments: torch.var_mean over channels-last memory takes 7% of a training step.
            mean_BC, square_BC = wide_BCHW.mean(dim=(2, 3)), wide_BCHW.square().mean(dim=(2, 3))
            pooled += [((square_BC - mean_BC.square()).clamp(min=0) + 1e-5).sqrt(), mean_BC]
        concept_logits, concept_features = self.concept_head(pooled[-1])
        style_logits, style_features = self.style_head(torch.cat(pooled, dim=1))
        embedding = torch.cat([concept_features, style_features], dim=1) * 0.5**0.5
        return JudgeOutput(style_logits, concept_logits, embedding)


def stage(channels_in: int, width: int, num_blocks: int, *, first: bool) -> nn.Sequential:
    """Halve the resolution, widen, then refine. The first stage strides; later ones average, which does not alias."""
    widen = Filters(channels_in, width, 5, stride=2) if first else Filters(channels_in, width, 3)
    halve = nn.Identity() if first else nn.AvgPool2d(2)
    return nn.Sequential(halve, widen, nn.BatchNorm2d(width), nn.ReLU(), *(Block(width) for _ in range(num_blocks)))


def judge_pictures(judge: Judge, pictures_NHWC: Pictures, *, batch_size: int = 256) -> JudgeScores:
    """Score pictures, (N, 64, 64, 3) uint8 on white. Raises ValueError for none, or another shape or dtype."""
    if not len(pictures_NHWC):
        raise ValueError("there are no pictures to judge: give one or more")
    if pictures_NHWC.dtype != np.uint8 or pictures_NHWC.shape[1:] != (PICTURE_SIZE, PICTURE_SIZE, 3):
        raise ValueError(
            f"the judge takes (N, {PICTURE_SIZE}, {PICTURE_SIZE}, 3) uint8 pictures, not {pictures_NHWC.dtype} "
            f"{pictures_NHWC.shape}: resize them on white"
        )
    judge.eval()
    with torch.inference_mode():
        outputs = [
            judge(as_tensor(pictures_NHWC[start : start + batch_size]))
            for start in range(0, len(pictures_NHWC), batch_size)
        ]
    return JudgeScores(
        style_logits=torch.cat([one.style_logits for one in outputs]).numpy(),
        concept_logits=torch.cat([one.concept_logits for one in outputs]).numpy(),
        embedding=torch.cat([one.embedding for one in outputs]).numpy(),
    )


def as_tensor(pictures_NHWC: Pictures) -> Tensor:
    """uint8 pictures as (B, 3, H, W) float32 in [0, 1]; channels stay innermost in memory."""
    return torch.from_numpy(np.ascontiguousarray(pictures_NHWC)).permute(0, 3, 1, 2).float() / 255


def save_judge(judge: Judge, path: Path) -> None:
    """Write the judge in 8 bits per weight as one safetensors file, which appears by rename."""
    config = json.dumps(dataclasses.asdict(judge.config))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_tensors(quantise_rowwise(judge.state_dict()), unfinished, metadata={"judge": config})
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def load_judge(path: Path) -> Judge:
    """Read a judge that `save_judge` wrote, in evaluation mode. Raises CheckpointError for anything else."""
    try:
        with safe_open(path, framework="pt") as file:
            written = json.loads((file.metadata() or {})["judge"])
            names: list[str] = file.keys()
            state = dequantise({name: file.get_tensor(name) for name in names})
        judge = Judge(config_from(written))
        judge.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as problem:
        raise CheckpointError(f"'{path}' holds no judge ({problem}): train one, or fetch the file again") from problem
    return judge.eval()


def config_from(written: Mapping[str, object]) -> JudgeConfig:
    """A configuration from its JSON, lists as tuples again."""
    tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in written.items()}
    return JudgeConfig(**tuples)  # type: ignore[arg-type]
