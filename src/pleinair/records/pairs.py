"""The format of preference pairs: what crosses from drawing, people and judges to preference training.

    PAIRS/
      pairs.json                       PairsManifest
      00000-16x04x04.arrow ...         pieces: pairs of one shape, as they were made
      feature_projection.safetensors   what the text features came through

A pair is two latents of one prompt, the preferred one first, and where each came from. Latents and text features have two
bytes a value in C order, little endian. A piece is one record batch of Arrow's file format, uncompressed: mapped, a row is
an address.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from pleinair.records.errors import ConfigError
from pleinair.records.packs import ITEM_BYTES
from pleinair.records.preferences import ORIGINS, Origin, checked_uuid

PAIRS_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class PairSide:
    """Where one picture of a pair came from."""

    checkpoint: str
    """Identity of the weights that drew it (`checkpoint.manifests.identity`); empty where no model of ours did."""
    seed: int
    """Of its noise."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How it was drawn, as JSON values: steps, guidance, the prompt where it was another one."""


@dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """One pair, without its tensors."""

    key: str
    """Unique among the pairs."""
    prompt: str
    """What the text features are of."""
    winner: PairSide
    loser: PairSide
    origin: Origin
    """`human` where a person chose; `synthetic` where a judge did in their place, or the order follows from how the two were
    made."""
    event: str
    """UUID of the preference event, or of the making."""
    weak_winner: bool = False
    """Whether the winner is known to be worse than what the policy draws: its order teaches, its picture does not."""

    def __post_init__(self) -> None:
        if self.origin not in ORIGINS:
            raise ConfigError(
                f"the origin {self.origin!r:.60} of pair {self.key} is unknown: give {', '.join(ORIGINS)}"
            )
        checked_uuid(self.event)

    def on_policy(self, policy: str) -> bool:
        """Whether the weights of this identity drew a side of it."""
        return policy in (self.winner.checkpoint, self.loser.checkpoint)


@dataclass(frozen=True, kw_only=True)
class PieceEntry:
    """One file of pairs."""

    name: str
    """File name."""
    shape: tuple[int, ...]
    """Channels, height and width of both latents."""
    num_pairs: int
    """Rows."""
    num_bytes: int
    """Size of the file."""
    sha256: str
    """Hash of the file."""


@dataclass(frozen=True, kw_only=True)
class WayCheck:
    """What a reward said of pairs whose losers were made worse in one way."""

    num_judged: int
    """Pairs looked at."""
    num_right: int
    """Pairs whose winner got the higher value."""
    mean_gap: float
    """Winner less loser, mean, in the reward's unit."""
    interval: tuple[float, float] | None
    """95% of the mean gap, by its standard error; None of a single pair."""

    @property
    def is_shown(self) -> bool:
        """Whether winners are better with 95% confidence: more of them than a coin gives, and the mean gap above 0.

        The first is the score test of a share, which Wilson's interval inverts: three pairs never pass, four must all be right.
        """
        above_chance = self.num_right / self.num_judged - 0.5 > 1.96 / (2 * math.sqrt(self.num_judged))
        return above_chance and self.interval is not None and self.interval[0] > 0

    def __str__(self) -> str:
        """As words."""
        within = "" if self.interval is None else f" ({self.interval[0]:.3f} to {self.interval[1]:.3f})"
        return f"{self.num_right} of {self.num_judged}, by {self.mean_gap:.3f}{within}"


@dataclass(frozen=True, kw_only=True)
class GapCheck:
    """What a reward said of a sample of synthetic pairs: whether the winners are better."""

    judged_by: str
    """Name of the reward."""
    num_judged: int
    """Pairs looked at, of the ways that were kept."""
    num_right: int
    """Pairs whose winner got the higher value."""
    mean_gap: float
    """Winner less loser, mean, in the reward's unit."""
    by_way: dict[str, WayCheck] = field(default_factory=dict)
    """The same of each way of making losers worse, dropped ones among them."""
    dropped: tuple[str, ...] = ()
    """Ways that no pair is made by, as nothing shows their order."""

    @property
    def share(self) -> float:
        """Of pairs with the right sign."""
        return self.num_right / self.num_judged

    def __str__(self) -> str:
        """As a sentence."""
        told = [
            f"{self.num_right} of {self.num_judged} winners are better by {self.judged_by}, by {self.mean_gap:.3f} on average",
            *(f"{way} {check}" for way, check in self.by_way.items()),
        ]
        if self.dropped:
            told.append(f"left out, as nothing shows their order: {', '.join(self.dropped)}")
        return "; ".join(told)


@dataclass(frozen=True, kw_only=True)
class PairsManifest:
    """What a folder of pairs holds and what made it."""

    version: int = PAIRS_VERSION
    """Format version."""
    plan: str
    """Digest of all that decides the pairs: equal plans give equal pairs."""
    dtype: Literal["float16", "bfloat16"] = "float16"
    """Type of latents and text features."""
    latent_space: str = ""
    """What the latents are, as in a pack."""
    text_encoder: str = ""
    """Name of the language model."""
    text_layers: tuple[int, ...] = ()
    """Its hidden states used."""
    text_dim: int = 0
    """Features per layer after projection."""
    made: Literal["", "drawn", "chosen"] = ""
    """Whether the order follows from how pictures were drawn, or somebody chose; empty in pairs of earlier versions."""
    gap: GapCheck | None = None
    """None for pairs that people chose, and for those that nothing looked at."""
    pieces: tuple[PieceEntry, ...] = ()
    """All files of pairs, in order."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every other file."""

    @property
    def num_pairs(self) -> int:
        """Pairs over all shapes."""
        return sum(piece.num_pairs for piece in self.pieces)

    @property
    def token_shape(self) -> tuple[int, int]:
        """Layers and dimensions of the text features of one token."""
        return len(self.text_layers), self.text_dim

    @property
    def token_bytes(self) -> int:
        """Bytes of the features of one token."""
        return math.prod(self.token_shape) * ITEM_BYTES[self.dtype]


def piece_schema(manifest: PairsManifest, shape: tuple[int, ...]) -> pa.Schema:
    """Columns of a piece; the plan in its metadata tells a piece of other pairs from these."""
    latents = pa.binary(math.prod(shape) * ITEM_BYTES[manifest.dtype])
    side = [("checkpoint", pa.string()), ("seed", pa.int64()), ("settings", pa.string())]
    columns: list[tuple[str, pa.DataType]] = [
        ("key", pa.string()),
        ("prompt", pa.string()),
        *((f"{name}_{part}", kind) for name in ("winner", "loser") for part, kind in side),
        ("origin", pa.string()),
        ("event", pa.string()),
        ("weak_winner", pa.bool_()),
        ("winner_latents", latents),
        ("loser_latents", latents),
        ("text_features", pa.large_binary()),  # the prompt's tokens, one after the other
    ]
    fields = [pa.field(name, kind, nullable=False) for name, kind in columns]
    return pa.schema(fields, metadata={"pleinair.plan": manifest.plan})
