"""Stages, loaders and transformers so small that a step takes milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pleinair.model.text_encoder import FeatureProjection
from pleinair.model.transformer import Transformer, TransformerConfig
from pleinair.packs.loader import LatentBatch
from pleinair.training.engine import EngineConfig, LossOutput, Phase, train
from pleinair.training.mesh import Mesh
from pleinair.training.optimisers import OptimiserConfig
from pleinair.training.random import RowRandom
from pleinair.training.rows import part
from pleinair.training.stages.pretrain import Pretrain, PretrainConfig
from tests.small_transformers import tiny_config

TINY = tiny_config(
    width=32, num_heads=2, num_kv_heads=1, mlp_width=None, in_channels=4, patch_size=1, timestep_dim=16, text_dim=16,
    num_text_layers=2, text_num_kv_heads=2, text_mlp_width=None,
)  # fmt: skip


class Line:
    """Fits y = W x with noisy targets: a convex loss with noise in its gradient."""

    weights_file = "line.safetensors"

    def __init__(self, width: int = 4, noise: float = 1.0) -> None:
        self.model: nn.Module = nn.Linear(width, width)
        self.noise = noise
        nn.init.zeros_(self.model.weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.model.bias)  # type: ignore[arg-type]

    def documents(self) -> Mapping[str, Any]:
        return {"config.json": {"width": self.model.in_features}}

    def tensors(self) -> Mapping[str, Mapping[str, Tensor]]:
        return {}

    def loss(self, batch: Tensor, random: RowRandom) -> LossOutput:
        target = 2 * batch + 1 + self.noise * random.normal(batch.shape[1])
        loss = (self.model(batch) - target).square().mean()
        return LossOutput(loss, {"error": loss.detach()})


class Points:
    """A function of the step: rows of a tensor and their names."""

    def __init__(self, rows: int = 8, width: int = 4, spoil: Mapping[int, float] | None = None) -> None:
        self.rows, self.width, self.spoil = rows, width, spoil or {}

    def batch(self, step: int) -> Tensor:
        points = torch.randn(self.rows, self.width, generator=torch.Generator().manual_seed(step))
        points[0] *= self.spoil.get(step, 1.0)
        return points

    def keys(self, step: int) -> list[str]:
        return [f"s{step}r{row}" for row in range(self.rows)]


class Latents:
    """Latents with a pattern to learn, prompts of different lengths."""

    def __init__(self, rows: int = 8, side: int = 4, first: int = 0) -> None:
        self.rows, self.side, self.first = rows, side, first

    def batch(self, step: int) -> LatentBatch:
        generator = torch.Generator().manual_seed(self.first + step)
        colours = torch.randn(self.rows, 4, 1, 1, generator=generator)
        latents = colours.expand(-1, -1, self.side, self.side).clone()
        latents[:, :, : self.side // 2] *= -1
        features = torch.randn(self.rows, 6, 2, 16, generator=generator)
        features[:, :, :, :4] = colours[:, None, None, :, 0, 0]
        lengths = 2 + torch.arange(self.rows) % 5
        return LatentBatch(self.keys(step), latents, features, torch.arange(6) < lengths[:, None])

    def keys(self, step: int) -> list[str]:
        return [f"s{self.first + step}r{row}" for row in range(self.rows)]


class Share:
    """A rank's rows of every batch of latents."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh, self.whole = mesh, Latents()

    def batch(self, step: int) -> LatentBatch:
        rows = self.whole.rows // self.mesh.num_data_ranks
        shared: LatentBatch = part(self.whole.batch(step), self.mesh.data_rank * rows, (self.mesh.data_rank + 1) * rows)
        return shared

    def keys(self, step: int) -> list[str]:
        return self.batch(step).keys


def pretrain_stage(seed: int = 0, config: TransformerConfig = TINY) -> Pretrain:
    torch.manual_seed(seed)
    return Pretrain(Transformer(config), FeatureProjection(2, 24, 16), PretrainConfig(shift_tokens=16))


def settings(learning_rate: float = 1e-2, decay_share: float = 0.0, **changes: Any) -> EngineConfig:
    optimiser = OptimiserConfig(learning_rate=learning_rate, warmup_steps=2, decay_share=decay_share)
    return EngineConfig(
        **{
            "num_threads": 1,
            "precision": "fp32",
            "checkpoint_seconds": 1e9,
            "checkpoint_by": "time",
            "optimiser": optimiser,
            **changes,
        }
    )


def run_line(
    directory: Path, steps: int = 8, hooks: Any = (), config: EngineConfig | None = None, **changes: Any
) -> Path:
    stage = changes.pop("stage", None) or Line()
    phases = changes.pop("phases", None) or [Phase("points", steps, 8, Points())]
    return train(
        stage,
        phases,
        config or settings(),
        directory,
        config_digest="d",
        hooks=hooks,
        **{"on_message": lambda _: None, **changes},
    )
