"""Transformers that run in milliseconds, one factory for all tests: sizes, every switch, weights and inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pleinair.model.transformer import Transformer, TransformerConfig


def tiny_config(**changes: Any) -> TransformerConfig:
    """A configuration that no two sizes of are equal by accident; name what the test depends on."""
    sizes: dict[str, Any] = {
        "width": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "mlp_width": 96, "in_channels": 16,
        "timestep_dim": 32, "text_dim": 32, "num_text_layers": 3, "text_num_heads": 2, "text_num_kv_heads": 1,
        "text_mlp_width": 48, "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1,
    }  # fmt: skip
    return TransformerConfig(**{**sizes, **changes})


TINY = TransformerConfig(
    width=96,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    in_channels=16,
    timestep_dim=32,
    text_dim=32,
    num_text_layers=5,
    text_num_heads=4,
    text_num_kv_heads=2,
)
"""All optional sizes by the released rules, as diffusers' class has them."""
SWITCHABLE = replace(TINY, width=128, num_heads=4)
"""Heads of 32, so that half a head still splits over three axes."""
SWITCHES: dict[str, dict[str, Any]] = {
    "mha": {"num_kv_heads": 4},
    "mla": {"attention": "mla"},
    "mla golden gate": {"attention": "mla", "rope": "golden_gate"},
    "no gate": {"gate": False},
    "modulation mlp": {"modulation": "mlp"},
    "norm rms": {"norm": "rms"},
    "norm layer": {"norm": "layer"},
    "norm derf": {"norm": "derf"},
    "mlp gelu": {"mlp": "gelu"},
    "parallel": {"stream": "parallel"},
    "dual": {"stream": "dual"},
    "dual mla": {"stream": "dual", "attention": "mla", "value_residual": True, "laurel_rank": 2, "modulation": "mlp"},
    "hybrid": {"stream": "hybrid"},
    "rope golden gate": {"rope": "golden_gate"},
    "rope partial": {"rope": "partial"},
    "rope normalised": {"rope": "normalised"},
    "rope multimodal": {"rope": "multimodal"},
    "timestep tokens": {"timestep": "tokens"},
    "timestep tokens dual": {"timestep": "tokens", "num_timestep_tokens": 4, "stream": "dual"},
    "no timestep": {"timestep": "none"},
    "last text layer": {"text_features": "last"},
    "value residual": {"value_residual": True},
    "laurel": {"laurel_rank": 4},
}
"""Every row of the ablation table, as changes of `SWITCHABLE`."""


def random_transformer(config: TransformerConfig = TINY, seed: int = 0) -> Transformer:
    """No parameter keeps its initial value, so an ignored norm, table or bias cannot hide behind zeros."""
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_matrix = parameter.ndim == 2 and not name.endswith("scale_shift_table")
            deviation = parameter.shape[1] ** -0.5 if is_matrix else 0.3
            parameter.copy_(deviation * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def random_inputs(
    config: TransformerConfig = TINY, *, batch: int = 3, height: int = 8, width: int = 14, num_text: int = 12
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (not square), timesteps and text features."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, config.latent_channels, height, width, generator=generator)
    features = torch.randn(batch, num_text, config.num_text_layers, config.text_dim, generator=generator)
    return latents, torch.rand(batch, generator=generator), features
