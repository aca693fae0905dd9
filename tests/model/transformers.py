"""diffusers' own transformer with the weights of one of ours."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import Krea2Transformer2DModel
from torch import Tensor

from pleinair.model.transformer import Transformer, patchify, unpatchify
from tests.small_transformers import TINY


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
