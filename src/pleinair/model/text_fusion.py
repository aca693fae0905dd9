"""From the hidden states of several text-encoder layers to one row per text token.

    (rows, L, D) --blocks that attend over the L layers of each token--> --learned mix of L to 1--> (rows, D)
    (B, T, D)    --blocks that attend over the T tokens of each prompt--> (B, T, D)

The last layer alone is shaped for next-token prediction; mixing layers lets the model take what it needs (Krea 2
report, text conditioning); `last_layer_only` leaves that stage out. Padding never reaches it, and it is the dearer
one: it works on the valid rows of the whole batch laid end to end. Shapes: L text-encoder layers, T text tokens, D the
text encoder's width, R rows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pleinair.model.attention import Attention, Mask
from pleinair.model.layers import RMSNorm, SwiGLU
from pleinair.model.segments import segments_of


class TextFusionBlock(nn.Module):
    """Pre-norm attention and MLP, without positions or timestep."""

    def __init__(self, dim: int, num_heads: int, num_kv_heads: int, mlp_width: int, eps: float) -> None:
        super().__init__()
        self.norm1 = RMSNorm(dim, eps)
        self.norm2 = RMSNorm(dim, eps)
        self.attn = Attention(dim, num_heads, num_kv_heads, eps)
        self.ff = SwiGLU(dim, mlp_width)

    def forward(self, x_BSD: Tensor, mask: Mask = None) -> Tensor:
        """Attend over S."""
        x_BSD = x_BSD + self.attn(self.norm1(x_BSD), mask=mask)
        out: Tensor = x_BSD + self.ff(self.norm2(x_BSD))
        return out


class TextFusion(nn.Module):
    """Text features of several layers in, refined text tokens of the same width out."""

    def __init__(
        self,
        num_text_layers: int,
        dim: int,
        num_heads: int,
        num_kv_heads: int,
        mlp_width: int,
        num_layerwise_blocks: int,
        num_refiner_blocks: int,
        eps: float,
        last_layer_only: bool = False,
    ) -> None:
        super().__init__()

        def blocks(count: int) -> nn.ModuleList:
            return nn.ModuleList(TextFusionBlock(dim, num_heads, num_kv_heads, mlp_width, eps) for _ in range(count))

        self.layerwise_blocks = blocks(0 if last_layer_only else num_layerwise_blocks)
        self.projector = None if last_layer_only else nn.Linear(num_text_layers, 1, bias=False)
        self.refiner_blocks = blocks(num_refiner_blocks)

    def forward(
        self, features_BTLD: Tensor, mask_BT: Tensor | None, lengths: tuple[int, ...] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, T', D) with each prompt's valid rows first, and a mask of them, or None where all T' are valid.

        T' is the largest number of valid rows of any prompt; without a mask it is T. With `lengths` features and tokens
        are of prompts that lie end to end (`_fuse_packed`); one entry for both, as sharded weights are gathered by it.
        """
        if lengths is not None:
            return self._fuse_packed(features_BTLD, lengths), None
        if mask_BT is None:
            x_BTD, packed_mask_BT = (
                self._mix_layers(features_BTLD.flatten(0, 1)).unflatten(0, features_BTLD.shape[:2]),
                None,
            )
        else:
            packed_mask_BT = left_aligned(mask_BT)
            rows_RD = self._mix_layers(features_BTLD[mask_BT])
            if packed_mask_BT is None:
                x_BTD = rows_RD.unflatten(0, (len(mask_BT), -1))
            else:
                x_BTD = rows_RD.new_zeros(*packed_mask_BT.shape, rows_RD.shape[-1])
                x_BTD[packed_mask_BT] = rows_RD
        for block in self.refiner_blocks:
            x_BTD = block(x_BTD, packed_mask_BT)
        return x_BTD, packed_mask_BT

    def _fuse_packed(self, rows_RLD: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """Tokens (R, D) of prompts that lie end to end, `lengths` rows each; rows after them belong to none."""
        x_1RD = self._mix_layers(rows_RLD).unsqueeze(0)
        segments = segments_of(lengths, len(rows_RLD), x_1RD.device, x_1RD.dtype)
        for block in self.refiner_blocks:
            x_1RD = block(x_1RD, segments)
        return x_1RD.squeeze(0).clone()  # of views sharding warns, as an operation in place would lose its hook

    def _mix_layers(self, rows_RLD: Tensor) -> Tensor:
        if self.projector is None:
            return rows_RLD[:, -1]
        for block in self.layerwise_blocks:
            rows_RLD = block(rows_RLD)
        mixed_RD: Tensor = self.projector(rows_RLD.transpose(1, 2)).squeeze(-1)
        return mixed_RD


def left_aligned(mask_BT: Tensor) -> Tensor | None:
    """Mask of the same number of valid rows per prompt moved to the left and trimmed; None if nothing is padding then.

    Reads the lengths, so on an accelerator it waits for the device: once per prompt, not once per denoising step.
    """
    lengths_B = mask_BT.sum(dim=1)
    longest = int(lengths_B.max())
    if int(lengths_B.min()) == longest:
        return None
    return torch.arange(longest, device=mask_BT.device) < lengths_B[:, None]
