"""What the experiment on preference optimisation compares: options, each at levels of strength, with seeds.

    chosen on one seed   DPO, DPO+SFT: three margins    STPO: three anchors    DPOP, SDPO, MaPO: the middle margin
    compared on others   DPO, DPO+SFT, STPO, each at its level
    beside it            STPO with one switch off, and with shuffled labels

Everybody who is compared has three levels of what sets its pace. That is the margin for DPO and DPO+SFT. STPO pulls on the winner
from the first step whatever its margin is, so its anchor sets how far it goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pleinair.training.stages.preference import PreferenceConfig

HEADLINE = ("DPO", "DPO+SFT", "STPO")
ONCE = ("DPOP", "SDPO", "MaPO")
"""Options that are shown at one level."""
MARGINS = (5.0, 50.0, 500.0)
"""What one unit of error counts inside the sigmoid before training. Large: a pair is soon won."""
ANCHORS = (0.5, 2.0, 8.0)
"""Of STPO, whose margin is the middle one: weights of the drift."""
MIDDLE = 1
WITHOUT: Mapping[str, Mapping[str, Any]] = {
    "STPO without saturation": {"saturation": None},
    "STPO without the winner's own loss": {"winner_weight": 0.0},
    "STPO without anchor": {"anchor_weight": 0.0},
    "STPO without scaling": {"loser_mu": None},
}
SHUFFLED = "STPO, labels shuffled"
METHODS = {"DPO": "dpo", "DPO+SFT": "dpo_sft", "DPOP": "dpop", "SDPO": "sdpo"}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One option at one level with one seed."""

    name: str
    level: int
    """Place in `MARGINS`, or in `ANCHORS`."""
    seed: int

    @property
    def strength(self) -> str:
        """The level in words."""
        return f"anchor {ANCHORS[self.level]:g}" if self.name.startswith("STPO") else f"margin {MARGINS[self.level]:g}"

    @property
    def run(self) -> str:
        """Name of its run."""
        words = f"{self.name} {self.strength} {self.seed}".lower()
        return "-".join("".join(letter if letter.isalnum() or letter == "." else " " for letter in words).split())

    @property
    def config(self) -> PreferenceConfig:
        """The loss. DPO's beta counts half inside its sigmoid, and MaPO's odds fall by about a quarter of an error."""
        margin = MARGINS[self.level]
        if self.name == "MaPO":
            return PreferenceConfig(method="mapo", beta=0.1, mapo_scale=4 * margin)
        if self.name in METHODS:
            return PreferenceConfig(method=METHODS[self.name], beta=2 * margin)  # type: ignore[arg-type]
        own: dict[str, Any] = {"anchor_weight": ANCHORS[self.level], **WITHOUT.get(self.name, {})}
        return PreferenceConfig(beta=MARGINS[MIDDLE], **own)


def sweep(seed: int, levels: Sequence[int]) -> list[Arm]:
    """What levels are chosen by, and the options that are shown once."""
    chosen = [Arm(name=name, level=level, seed=seed) for name in HEADLINE for level in levels]
    return [*chosen, *(Arm(name=name, level=MIDDLE, seed=seed) for name in ONCE)]


def compared(levels: Mapping[str, int], seeds: Sequence[int]) -> list[Arm]:
    """The headline, seed by seed."""
    return [Arm(name=name, level=levels[name], seed=seed) for seed in seeds for name in HEADLINE]


def extras(level: int, seed: int) -> list[Arm]:
    """STPO with each switch off, and the control, at STPO's level."""
    return [Arm(name=name, level=level, seed=seed) for name in (*WITHOUT, SHUFFLED)]
