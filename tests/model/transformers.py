"""Tiny transformers whose every parameter is random, ours and diffusers'."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import Krea2Transformer2DModel
from torch import Tensor

from pleinair.model.transformer import Transformer, TransformerConfig, patchify, unpatchify

TINY = TransformerConfig(
    width=96,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    in_channels=16,
    patch_size=2,
    timestep_dim=32,
    text_dim=32,
    num_text_layers=5,
    text_num_heads=4,
    text_num_kv_heads=2,
)


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


def run_diffusers(model: Any, latents: Tensor, timestep: Tensor, features: Tensor, mask: Tensor | None) -> Tensor:
    """Velocity of diffusers' class, which works on packed tokens and explicit positions."""
    rows, columns = latents.shape[2] // TINY.patch_size, latents.shape[3] // TINY.patch_size
    num_text = features.shape[1]
    positions = torch.zeros(num_text + rows * columns, 3)
    positions[num_text:, 1] = torch.arange(rows).repeat_interleave(columns)
    positions[num_text:, 2] = torch.arange(columns).repeat(rows)
    packed = patchify(latents, TINY.patch_size)
    return unpatchify(model(packed, features, timestep, positions, mask).sample, rows, columns, TINY.patch_size)


def diffusers_twin(model: Transformer) -> Any:
    """diffusers' class with the same weights, its configuration spelled out by hand."""
    config = model.config
    twin = Krea2Transformer2DModel(
        in_channels=config.in_channels,
        num_layers=config.num_layers,
        attention_head_dim=config.head_dim,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        intermediate_size=config.hidden_width,
        timestep_embed_dim=config.timestep_dim,
        text_hidden_dim=config.text_dim,
        num_text_layers=config.num_text_layers,
        text_num_attention_heads=config.text_num_heads,
        text_num_key_value_heads=config.text_num_kv_heads,
        text_intermediate_size=config.text_hidden_width,
        axes_dims_rope=config.axes,
    )
    twin.load_state_dict(model.state_dict())
    return twin.eval()
