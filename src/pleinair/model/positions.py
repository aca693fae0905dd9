"""Where tokens stand, as rotations of query and key pairs (RoPE), in the kinds of the report's ablation table.

    axial        a head is split over (frame, row, column); image at (0, row, column), text at 0        released
    partial      the same on a share of the head; the rest carries no position
    normalised   the same with rows and columns scaled so that the longer side has one length at every resolution
    multimodal   text has positions of its own, the same on all three axes, counted away from the image's corner
    golden_gate  every pair turns along its own direction in the plane, by golden-ratio steps

All tables are (S, P, 2), cos and sin, computed in float64 as in the released model. S tokens, P rotary pairs.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from pleinair.model.architecture import TransformerConfig

NORMALISED_RANGE = 16.0
"""Positions along the longer side under "normalised": the image tokens per side of 256 px."""
GOLDEN_STEP = math.pi * (math.sqrt(5) - 1) / 2
"""Angle between the directions of neighbouring pairs; directions differ over half a turn."""


def rotations(config: TransformerConfig, num_text: int, height: int, width: int, device: torch.device) -> Tensor:
    """(num_text + height * width, P, 2) of [text | image], image tokens in row-major order."""
    image_IP2 = image_rotations(config, height, width, device)
    return torch.cat([text_rotations(config, num_text, image_IP2), image_IP2])


def text_rotations(config: TransformerConfig, num_text: int, like_IP2: Tensor) -> Tensor:
    """(num_text, P, 2): no rotation, except under "multimodal", where text has positions of its own.

    There text token j stands at -(j + 1) on every axis (Qwen2-VL's M-RoPE gives text equal positions on all axes and
    places the image behind it; counting from the image's corner keeps a prompt independent of its batch's longest).
    """
    if config.rope == "multimodal":
        place_T = -torch.arange(1, num_text + 1).double()
        return _axial(config, (place_T, place_T, place_T)).to(like_IP2)
    text_TP2 = like_IP2.new_zeros(num_text, *like_IP2.shape[1:])
    text_TP2[..., 0] = 1.0  # cos 0, sin 0: text stays where it is
    return text_TP2


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def image_rotations(config: TransformerConfig, height: int, width: int, device: torch.device) -> Tensor:
    """(height * width, P, 2) of image tokens in row-major order.

    An ordinary tensor also when a preview asks first: training keeps the table for its backward pass.
    """
    row_I, column_I = (
        axis.reshape(-1).double() for axis in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    )
    match config.rope:
        case "golden_gate":
            table_IP2 = _golden_gate(config, row_I, column_I)
        case "normalised":
            unit = (NORMALISED_RANGE if config.rope_range is None else config.rope_range) / max(height, width)
            table_IP2 = _axial(config, (torch.zeros_like(row_I), (row_I + 0.5) * unit, (column_I + 0.5) * unit))
        case _:
            table_IP2 = _axial(config, (torch.zeros_like(row_I), row_I, column_I))
    return table_IP2.to(device)


def _axial(config: TransformerConfig, positions: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Frequencies theta ** (-2 i / dim) per axis; pairs beyond the rotated share of a head stay unturned."""
    angles = [
        position_S[:, None] * config.rope_theta ** (-torch.arange(0, dim, 2).double() / dim)
        for position_S, dim in zip(positions, config.axes, strict=True)
    ]
    if config.rope == "partial":
        angles.append(positions[0].new_zeros(len(positions[0]), (config.head_dim - config.rotary_dim) // 2))
    return _table(torch.cat(angles, dim=-1))


def _golden_gate(config: TransformerConfig, row_I: Tensor, column_I: Tensor) -> Tensor:
    """Pair i turns by omega_i <direction_i, (row, column)>, direction_i at i golden steps (J. Xiong, "On N-dimensional
    rotary positional embeddings", 2025). Ours shares directions between heads and takes frequencies from rope_theta,
    so that all heads of a group rotate their one key alike and positions stay in tokens.
    """
    index_P = torch.arange(config.rotary_dim // 2).double()
    frequency_P = config.rope_theta ** (-2 * index_P / config.rotary_dim)
    direction_P = index_P * GOLDEN_STEP
    along_IP = row_I[:, None] * direction_P.sin() + column_I[:, None] * direction_P.cos()
    return _table(along_IP * frequency_P)


def _table(angles_SP: Tensor) -> Tensor:
    return torch.stack([angles_SP.cos(), angles_SP.sin()], dim=-1).float()


def rotate(x_BSNK: Tensor, rotations_SP2: Tensor) -> Tensor:
    """Rotate neighbouring pairs (x[2i], x[2i+1]) by their position's angles; float32 out."""
    pairs_BSNP2 = x_BSNK.float().reshape(*x_BSNK.shape[:-1], -1, 2)
    rotations_S1P2 = rotations_SP2.unsqueeze(1)
    if torch.compiler.is_compiling():  # inductor has no complex arithmetic, eager is 5 times faster with it
        a, b = pairs_BSNP2.unbind(-1)
        cos, sin = rotations_S1P2.unbind(-1)
        return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
    return torch.view_as_real(torch.view_as_complex(pairs_BSNP2) * torch.view_as_complex(rotations_S1P2)).flatten(-2)
