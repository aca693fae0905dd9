"""What a drawing may go through and stay the same drawing: the judge's augmentation.

    shift, scale, stretch, shear, turn  ->  (half of them) restyle  ->  softness  ->  noise  ->  light jitter

Softness and noise make reconstructions and samples, which are a little soft or noisy, look familiar. Restyling teaches
that a concept is neither its colours nor its fill: a third stir the colours, the others turn into lines, a silhouette
or an outlined drawing, as the monochrome sets and OpenMoji would have it. The style is gone then, and the style loss
skips those pictures.

Shapes: B batch, C = 3 colours, H W height and width. Pictures lie on white; all is computed on 1 - picture, where the
surroundings are zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

MAX_TURN = 0.2
MAX_SCALE = 0.18
MAX_STRETCH = 0.1
MAX_SHEAR = 0.1
MAX_SHIFT = 0.15
SOFT_SHARE, NOISY_SHARE, RESTYLED_SHARE = 0.4, 0.4, 0.5
MAX_NOISE = 0.06


def augment(pictures_BCHW: Tensor, generator: Generator, flip_probability: float = 0.0) -> tuple[Tensor, Tensor]:
    """Augmented pictures, channels innermost in memory, and a (B,) mask of those that still show their style."""
    ink_BCHW = move(1 - pictures_BCHW, generator, flip_probability)
    restyled_B = chosen(len(ink_BCHW), RESTYLED_SHARE, generator)
    ink_BCHW[restyled_B] = restyle(ink_BCHW[restyled_B], generator)
    ink_BCHW = jitter(add_noise(soften(ink_BCHW, generator), generator), generator)
    return (1 - ink_BCHW).contiguous(memory_format=torch.channels_last), ~restyled_B


def move(ink_BCHW: Tensor, generator: Generator, flip_probability: float) -> Tensor:
    """A random affine map of each picture."""
    batch = len(ink_BCHW)
    turn, scale = MAX_TURN * signed(batch, generator), 1 + MAX_SCALE * signed(batch, generator)
    stretch, shear = torch.exp(MAX_STRETCH * signed(batch, generator)), MAX_SHEAR * signed(batch, generator)
    mirror = torch.where(chosen(batch, flip_probability, generator), -1.0, 1.0)
    rows = [
        [mirror * scale * stretch * turn.cos(), shear - scale * turn.sin(), MAX_SHIFT * signed(batch, generator)],
        [mirror * scale * turn.sin(), scale / stretch * turn.cos(), MAX_SHIFT * signed(batch, generator)],
    ]
    maps_B23 = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
    where_BHW2 = F.affine_grid(maps_B23, list(ink_BCHW.shape), align_corners=False)
    return F.grid_sample(ink_BCHW, where_BHW2, align_corners=False)


def soften(ink_BCHW: Tensor, generator: Generator) -> Tensor:
    """Some pictures mixed with themselves at a half or a third of the resolution."""
    factor = (1 / 2, 1 / 3)[int(torch.randint(2, (), generator=generator))]
    small = F.interpolate(ink_BCHW, scale_factor=factor, mode="area")
    soft = F.interpolate(small, size=ink_BCHW.shape[2:], mode="bilinear")
    return torch.lerp(ink_BCHW, soft, amount(len(ink_BCHW), SOFT_SHARE, generator))


def add_noise(ink_BCHW: Tensor, generator: Generator) -> Tensor:
    """Gaussian noise on some pictures."""
    strength = MAX_NOISE * amount(len(ink_BCHW), NOISY_SHARE, generator)
    return ink_BCHW + strength * torch.randn(ink_BCHW.shape, generator=generator)


def jitter(ink_BCHW: Tensor, generator: Generator) -> Tensor:
    """A little more or less contrast, a little tint."""
    batch = len(ink_BCHW)
    contrast = 1 + 0.15 * signed(batch, generator).view(-1, 1, 1, 1)
    tint = 0.03 * (torch.rand(batch, 3, 1, 1, generator=generator) * 2 - 1)
    return ink_BCHW * contrast + tint


def restyle(ink_BCHW: Tensor, generator: Generator) -> Tensor:
    """Each picture in stirred colours, as lines, as a silhouette, or outlined; a third, then two ninths each."""
    lines_BCHW = edges(ink_BCHW, generator)
    kinds = torch.stack(
        [recolour(ink_BCHW, generator), lines_BCHW, silhouette(ink_BCHW, generator), ink_BCHW.maximum(lines_BCHW)]
    )
    kind_B = (torch.rand(len(ink_BCHW), generator=generator) * 4.5 - 0.5).ceil().clamp(min=1).long() - 1
    return kinds[kind_B, torch.arange(len(ink_BCHW))]


def edges(ink_BCHW: Tensor, generator: Generator) -> Tensor:
    """Black lines where neighbouring pixels differ in any colour."""
    to_right = F.pad(ink_BCHW.diff(dim=3).abs(), (0, 1))
    below = F.pad(ink_BCHW.diff(dim=2).abs(), (0, 0, 0, 1))
    gain = 1 + 3 * torch.rand(len(ink_BCHW), 1, 1, 1, generator=generator)
    strongest_B1HW = torch.maximum(to_right, below).amax(dim=1, keepdim=True)
    return (gain * strongest_B1HW).clamp(max=1).expand_as(ink_BCHW)


def silhouette(ink_BCHW: Tensor, generator: Generator) -> Tensor:
    """Black where the ink is darker than a random threshold, with a soft border."""
    threshold = 0.1 + 0.5 * torch.rand(len(ink_BCHW), 1, 1, 1, generator=generator)
    grey_B1HW = ink_BCHW.mean(dim=1, keepdim=True)
    return (0.5 + 6 * (grey_B1HW - threshold)).clamp(0, 1).expand_as(ink_BCHW)


def recolour(ink_BCHW: Tensor, generator: Generator) -> Tensor:
    """Colours through a random matrix between identity and grey."""
    batch = len(ink_BCHW)
    grey = torch.full((3, 3), 1 / 3)
    mixed_B33 = torch.lerp(grey, torch.eye(3), torch.rand(batch, 1, 1, generator=generator))
    stir_B33 = torch.randn(batch, 3, 3, generator=generator) * torch.rand(batch, 1, 1, generator=generator)
    return torch.bmm(mixed_B33 + 0.25 * stir_B33, ink_BCHW.flatten(2)).view(ink_BCHW.shape)


def signed(num: int, generator: Generator) -> Tensor:
    """(num,) uniform values in [-1, 1)."""
    return torch.rand(num, generator=generator) * 2 - 1


def chosen(num: int, share: float, generator: Generator) -> Tensor:
    """(num,) booleans, true with probability `share`."""
    return torch.rand(num, generator=generator) < share


def amount(num: int, share: float, generator: Generator) -> Tensor:
    """(num, 1, 1, 1) strengths: uniform in [0, 1) for a share of the pictures, 0 for the rest."""
    return (torch.rand(num, generator=generator) * chosen(num, share, generator)).view(-1, 1, 1, 1)
