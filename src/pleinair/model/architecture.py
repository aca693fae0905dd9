"""The transformer's configuration: free sizes, and a switch for every row of the Krea 2 report's ablation table.

    sizes      width, num_layers, num_heads, ...      the defaults are the released 12.8-billion-parameter model's
    switches   attention, gate, modulation, norm, mlp, stream, rope, timestep, text_features, value_residual, laurel_rank

Every switch changes its own module and nothing else; the released model is every switch at its default. A size that
belongs to one choice of a switch (`mla_kv_rank`) is refused beside another choice, where it would do nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from pleinair.model.layers import swiglu_width
from pleinair.records.errors import ConfigError

AttentionKind = Literal["gqa", "mla"]
ModulationKind = Literal["bias", "mlp"]
NormKind = Literal["rms_zero_centred", "rms", "layer", "derf"]
MLPKind = Literal["swiglu", "gelu"]
StreamKind = Literal["single", "parallel", "dual", "hybrid"]
RopeKind = Literal["axial", "golden_gate", "partial", "normalised", "multimodal"]
TimestepKind = Literal["adaln", "tokens", "none"]
TextFeatures = Literal["aggregated", "last"]

_CHOICES = {
    "attention": get_args(AttentionKind),
    "gate": (True, False),
    "modulation": get_args(ModulationKind),
    "norm": get_args(NormKind),
    "mlp": get_args(MLPKind),
    "stream": get_args(StreamKind),
    "rope": get_args(RopeKind),
    "timestep": get_args(TimestepKind),
    "text_features": get_args(TextFeatures),
    "value_residual": (False, True),
}
"""Values of every switch, except laurel_rank."""
_BELONGS_TO = {
    "mla_kv_rank": ("attention", "mla"),
    "mla_q_rank": ("attention", "mla"),
    "mla_rotary_dim": ("attention", "mla"),
    "num_dual_layers": ("stream", "hybrid"),
    "rope_share": ("rope", "partial"),
    "rope_range": ("rope", "normalised"),
    "num_timestep_tokens": ("timestep", "tokens"),
}
"""Size -> the switch and the choice that reads it."""
_MAY_BE_ZERO = ("num_layerwise_text_blocks", "num_refiner_text_blocks", "laurel_rank")
SMALLEST_ROTARY_DIM = 16
"""Below this the released split of a head over the rotary axes leaves nothing for rows and columns."""


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes and switches of a K2 transformer; the defaults are the released 12.8-billion-parameter model."""

    width: int = 6144
    """Features per token."""
    num_layers: int = 28
    """Transformer blocks."""
    num_heads: int = 48
    """Query heads; head width is width / num_heads."""
    num_kv_heads: int = 12
    """Key and value heads: num_heads for plain multi-head attention, fewer for grouped-query; MLA does not read it."""
    mlp_width: int | None = None
    """Hidden width of the SwiGLU; None is the released rule (`swiglu_width`)."""
    in_channels: int = 64
    """Values per image token: latent channels * patch_size ** 2."""
    patch_size: int = 2
    """Side of the square of latent positions that becomes one token."""
    timestep_dim: int = 256
    """Width of the sinusoid of the timestep."""
    text_dim: int = 2560
    """Width of the text encoder's hidden states."""
    num_text_layers: int = 12
    """Hidden states taken from the text encoder per token."""
    text_num_heads: int = 20
    """Query heads of text fusion."""
    text_num_kv_heads: int = 20
    """Key and value heads of text fusion."""
    text_mlp_width: int | None = None
    """Hidden width of text fusion's SwiGLU; None is the released rule."""
    num_layerwise_text_blocks: int = 2
    """Text fusion blocks that attend over layers."""
    num_refiner_text_blocks: int = 2
    """Text fusion blocks that attend over tokens."""
    rope_axes: tuple[int, int, int] | None = None
    """Split of a head's rotated part over (frame, row, column); None is the released rule, 32/48/48 for 128."""
    rope_theta: float = 1000.0
    """Base of the rotary frequencies."""
    norm_eps: float = 1e-5
    """Epsilon of every norm."""

    attention: AttentionKind = "gqa"
    """Blocks' attention: grouped-query (multi-head if num_kv_heads = num_heads), or multi-head latent attention."""
    mla_kv_rank: int | None = None
    """Width of MLA's compressed keys and values; None is 4 heads' width, as in DeepSeek-V2."""
    mla_q_rank: int | None = None
    """Width of MLA's compressed queries; None is 12 heads' width, as in DeepSeek-V2."""
    mla_rotary_dim: int | None = None
    """Width of the part of MLA's heads that carries positions; None is half a head."""
    gate: bool = True
    """Sigmoid gate on the output of the blocks' attention."""
    modulation: ModulationKind = "bias"
    """Six vectors per block: one shared projection of the timestep plus the block's table, or a projection per block."""
    norm: NormKind = "rms_zero_centred"
    """Norm of blocks and final layer; text fusion, queries and keys keep the zero-centred RMSNorm."""
    mlp: MLPKind = "swiglu"
    """Blocks' MLP; "gelu" is 3/2 as wide, which makes the parameters equal."""
    stream: StreamKind = "single"
    """Text and image through the same weights; "parallel" runs attention and MLP side by side from one norm; "dual"
    has weights for each and joint attention (MMDiT); "hybrid" begins dual and goes on single."""
    num_dual_layers: int | None = None
    """Dual blocks of a hybrid; None is a third of the blocks."""
    rope: RopeKind = "axial"
    """How positions become rotations of queries and keys; see `pleinair.model.positions`."""
    rope_share: float | None = None
    """Rotated share of a head under "partial"; None is one half."""
    rope_range: float | None = None
    """Length of the longer side in positions under "normalised"; None is 16, that of 256 px."""
    timestep: TimestepKind = "adaln"
    """The timestep modulates norms and residuals, or stands in the sequence as tokens, or is not told at all."""
    num_timestep_tokens: int | None = None
    """Tokens that carry the timestep; None is 8."""
    text_features: TextFeatures = "aggregated"
    """Mix the text encoder's layers per token, or read the last one alone."""
    value_residual: bool = False
    """Blocks mix their values with the first block's, by a learned share each."""
    laurel_rank: int = 0
    """Rank of the learned map added to every residual of the blocks; 0 is none."""

    def __post_init__(self) -> None:
        self._check_switches()
        for field in fields(self):
            value = getattr(self, field.name)
            smallest = 0 if field.name in _MAY_BE_ZERO else 1
            if isinstance(value, int) and field.name not in _CHOICES and value < smallest:
                raise ConfigError(f"{field.name} is {value}: give at least {smallest}")
        if self.rope_theta <= 1 or self.norm_eps <= 0:
            raise ConfigError(
                f"rope_theta is {self.rope_theta} and norm_eps {self.norm_eps}: give more than 1 and more than 0"
            )
        _check_heads("width", self.width, self.num_heads, self.num_kv_heads, "")
        _check_heads("text_dim", self.text_dim, self.text_num_heads, self.text_num_kv_heads, "text_")
        if self.in_channels % self.patch_size**2:
            raise ConfigError(
                f"in_channels is {self.in_channels}: it must be latent channels * patch_size ** 2, "
                f"a multiple of {self.patch_size**2}"
            )
        if self.timestep_dim % 2:
            raise ConfigError(f"timestep_dim is {self.timestep_dim}: give an even number, half cosines and half sines")
        self._check_rope()

    def _check_switches(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is {getattr(self, name)!r}: choose one of {', '.join(map(str, choices))}")
        for name, (switch, choice) in _BELONGS_TO.items():
            if getattr(self, name) is not None and getattr(self, switch) != choice:
                raise ConfigError(
                    f"{name} is {getattr(self, name)} but {switch} is not {choice}: set that or remove this"
                )
        if self.timestep != "adaln" and self.modulation != "bias":
            raise ConfigError(f"modulation is mlp but timestep is {self.timestep}, which modulates nothing: remove one")
        if self.mlp == "gelu" and self.hidden_width % 2:
            raise ConfigError(f"mlp_width is {self.mlp_width}: give an even one, as a GELU MLP is 3/2 as wide")
        if self.stream == "hybrid" and not 0 < self.dual_layers < self.num_layers:
            raise ConfigError(
                f"num_dual_layers is {self.dual_layers} of {self.num_layers}: a hybrid has both dual and single blocks"
            )

    def _check_rope(self) -> None:
        if self.rope == "partial" and self.attention == "mla":
            raise ConfigError("rope is partial and attention mla, which rotates mla_rotary_dim of a head: choose one")
        if self.rope == "partial" and (not 0 < self.rotary_share <= 1 or self.head_dim % 2):
            raise ConfigError(
                f"rope_share is {self.rotary_share} of heads of {self.head_dim}: give above 0 to 1 of an even width"
            )
        if self.rope_range is not None and self.rope_range <= 0:
            raise ConfigError(f"rope_range is {self.rope_range}: give the longer side in positions, more than 0")
        if self.attention == "mla" and self.rotary_dim >= self.head_dim:
            raise ConfigError(f"mla_rotary_dim is {self.rotary_dim}: give less than the head width, {self.head_dim}")
        if self.rope == "golden_gate":
            if self.rope_axes is not None or self.rotary_dim % 2:
                raise ConfigError(
                    f"rope is golden_gate with rope_axes {self.rope_axes} and {self.rotary_dim} rotated features: "
                    "remove rope_axes, as every pair has its own direction, and rotate an even number"
                )
            return
        if self.rope_axes is None and (self.rotary_dim < SMALLEST_ROTARY_DIM or self.rotary_dim % 2):
            rotated = "" if self.rotary_dim == self.head_dim else f", of which {self.rotary_dim} are rotated"
            raise ConfigError(
                f"head width is {self.head_dim} (width {self.width} / num_heads {self.num_heads}){rotated}: "
                f"give an even one of at least {SMALLEST_ROTARY_DIM}, or set rope_axes"
            )
        if any(dim < 0 or dim % 2 for dim in self.axes) or sum(self.axes) != self.rotary_dim:
            raise ConfigError(f"rope_axes is {self.axes}: give three even numbers that add up to {self.rotary_dim}")

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.width // self.num_heads

    @property
    def latent_channels(self) -> int:
        """Channels of the latents the model reads and of the velocity it returns."""
        return self.in_channels // self.patch_size**2

    @property
    def rotary_share(self) -> float:
        """Rotated share of a head under "partial"."""
        return 0.5 if self.rope_share is None else self.rope_share

    @property
    def rotary_dim(self) -> int:
        """Features of a head that are rotated."""
        if self.attention == "mla":
            return self.head_dim // 2 if self.mla_rotary_dim is None else self.mla_rotary_dim
        return round(self.head_dim * self.rotary_share) if self.rope == "partial" else self.head_dim

    @property
    def axes(self) -> tuple[int, int, int]:
        """Split of the rotated features over (frame, row, column)."""
        if self.rope_axes is not None:
            return self.rope_axes
        unit = 6 * (self.rotary_dim // 16)
        return (self.rotary_dim - 2 * unit, unit, unit)

    @property
    def hidden_width(self) -> int:
        """Hidden width of the blocks' SwiGLU."""
        return self.mlp_width if self.mlp_width is not None else swiglu_width(self.width)

    @property
    def text_hidden_width(self) -> int:
        """Hidden width of text fusion's MLPs."""
        return self.text_mlp_width if self.text_mlp_width is not None else swiglu_width(self.text_dim)

    @property
    def kv_rank(self) -> int:
        """Width of MLA's compressed keys and values."""
        return 4 * self.head_dim if self.mla_kv_rank is None else self.mla_kv_rank

    @property
    def q_rank(self) -> int:
        """Width of MLA's compressed queries."""
        return 12 * self.head_dim if self.mla_q_rank is None else self.mla_q_rank

    @property
    def dual_layers(self) -> int:
        """Blocks with weights of their own for text and image; they come first."""
        match self.stream:
            case "dual":
                return self.num_layers
            case "hybrid":
                return self.num_layers // 3 if self.num_dual_layers is None else self.num_dual_layers
            case _:
                return 0

    @property
    def modulation_vectors(self) -> int:
        """Vectors that the timestep gives each block: scale, shift and gate per norm."""
        return 3 if self.stream == "parallel" else 6

    @property
    def timestep_tokens(self) -> int:
        """Tokens in the sequence that carry the timestep."""
        if self.timestep != "tokens":
            return 0
        return 8 if self.num_timestep_tokens is None else self.num_timestep_tokens


def _check_heads(name: str, width: int, num_heads: int, num_kv_heads: int, prefix: str) -> None:
    if width % num_heads:
        raise ConfigError(f"{name} is {width}: it must be a multiple of {prefix}num_heads, {num_heads}")
    if num_heads % num_kv_heads:
        raise ConfigError(f"{prefix}num_kv_heads is {num_kv_heads}: it must divide {prefix}num_heads, {num_heads}")


def is_released_layout(config: TransformerConfig) -> str:
    """An empty string if the released tensor names and diffusers' class can express `config`, else what differs.

    Sizes are free there; switches are not.
    """
    released = TransformerConfig()
    switches = (*_CHOICES, "laurel_rank")
    changed = [
        f"{name} is {getattr(config, name)}" for name in switches if getattr(config, name) != getattr(released, name)
    ]
    if not changed:
        return ""
    return (
        f"{', '.join(changed)}: the released layout has no place for that, keep the checkpoint in pleinair's own layout"
    )
