"""The switches of the ablation bench: which two sides are compared, and what the report found.

    SWITCHES   name -> Switch(first side, second side, what the report found)          the first side is K2's choice

A side is a list of overrides of the recipe, so a switch that is not in the table can be given as text:
`--switch rope=transformer.rope=axial,transformer.rope=golden_gate`, with `+` between the overrides of one side.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from pleinair.recipes.recipe import Recipe
from pleinair.records.errors import ConfigError
from pleinair.training.stages.repa import RepaConfig

Better = Literal["first", "second", "equal"]
AVERAGES = "averages"
"""The switch whose sides are averages of one run's weights: nothing is trained for it."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One way of a switch."""

    name: str
    """As it stands in the table."""
    overrides: tuple[str, ...] = ()
    """Of the recipe, as for `--set`; none leaves the recipe as it is."""
    repa: RepaConfig | None = None
    """iREPA in the first part of the short horizon."""
    rates: tuple[float, ...] = ()
    """Learning rates to choose from by a sweep at the lowest resolution; empty leaves the recipe's."""


@dataclass(frozen=True, kw_only=True)
class Claims:
    """Which side the report found better, where it says so."""

    stability: Better | None = None
    """Steadier loss and gradient norm."""
    performance: Better | None = None
    """Better model."""
    efficiency: Better | None = None
    """Cheaper step, or less memory."""
    simplicity: Better | None = None
    """Less of it."""
    words: str = ""
    """What the report says, in ours."""


@dataclass(frozen=True, kw_only=True)
class Switch:
    """Two sides of one choice."""

    name: str
    """What `--switch` takes."""
    first: Side
    """K2's choice, or the recipe's."""
    second: Side
    """What it is compared with."""
    claims: Claims = field(default_factory=Claims)
    """What the report found."""
    simpler: Better | None = None
    """Our judgement; None where it follows from parameters and modules alone."""
    why_simpler: str = ""
    """Its reason."""

    @property
    def trains(self) -> bool:
        """Whether its sides are trained; averages are compared on what the baseline's trainings left."""
        return self.name != AVERAGES


SWITCHES: dict[str, Switch] = {
    switch.name: switch
    for switch in (
        Switch(
            name="gate",
            first=Side(name="gated attention"),
            second=Side(name="no gate", overrides=("transformer.gate=False",)),
            claims=Claims(
                stability="first",
                performance="equal",
                efficiency="second",
                simplicity="second",
                words="no real quality gain, steadier loss and gradient norm",
            ),
            simpler="second",
            why_simpler="one matrix and one sigmoid less per block",
        ),
        Switch(
            name="modulation",
            first=Side(name="shared + bias"),
            second=Side(name="MLP per block", overrides=("transformer.modulation=mlp",)),
            claims=Claims(
                performance="equal",
                efficiency="first",
                simplicity="first",
                words="no loss of quality with a bias per block, and 20-30% fewer parameters",
            ),
            simpler="first",
            why_simpler="one projection for all blocks instead of one for each",
        ),
        Switch(
            name="text",
            first=Side(name="layers aggregated"),
            second=Side(name="last layer", overrides=("transformer.text_features=last",)),
            claims=Claims(
                performance="first",
                efficiency="second",
                simplicity="second",
                words="last-layer features alone are worse: they are shaped for next-token prediction",
            ),
            simpler="second",
            why_simpler="no attention over layers, and one hidden state to store instead of several",
        ),
        Switch(
            name="attention",
            first=Side(name="grouped-query"),
            second=Side(name="multi-head", overrides=("transformer.num_kv_heads=ALL",)),
            claims=Claims(
                performance="equal",
                efficiency="first",
                words="minimal degradation with grouped queries, and cheaper",
            ),
            simpler="equal",
            why_simpler="the same code with another number of heads",
        ),
        Switch(
            name="irepa",
            first=Side(name="iREPA first", repa=RepaConfig(depth=2)),
            second=Side(name="without"),
            claims=Claims(
                performance="first",
                simplicity="second",
                words="used in the first 256 px epoch only; no figure is given",
            ),
            simpler="second",
            why_simpler="no image encoder, no features beside the pack, no projector",
        ),
        Switch(
            name="optimiser",
            first=Side(name="AdamW", overrides=("engine.optimiser.rule=adamw",), rates=(1e-3, 2e-3, 4e-3)),
            second=Side(name="Muon", overrides=("engine.optimiser.rule=muon",), rates=(1.5e-3, 3e-3, 6e-3)),
            claims=Claims(
                performance="second",
                simplicity="first",
                words="with first and last layers left out and Nesterov momentum, Muon beat AdamW at low and high resolution",
            ),
            simpler="first",
            why_simpler="one rule for all parameters",
        ),
        Switch(
            name=AVERAGES,
            first=Side(name="PMA"),
            second=Side(name="EMA"),
            claims=Claims(
                performance="equal",
                efficiency="first",
                simplicity="first",
                words="averaged checkpoints: the same quality as an EMA, and no memory",
            ),
            simpler="first",
            why_simpler="made offline from checkpoints that are there; no second copy of the weights in training",
        ),
    )
}


def find_switches(texts: Iterable[str]) -> list[Switch]:
    """The switches of these names or descriptions; all of the table for none. Raises ConfigError for an unknown one."""
    found = [_described(text) if "=" in text else _named(text) for text in texts] or list(SWITCHES.values())
    names = [switch.name for switch in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"the switch {twice[0]} is given twice: name each once")
    return found


def _named(name: str) -> Switch:
    if name not in SWITCHES:
        near = difflib.get_close_matches(name, SWITCHES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known switches: {', '.join(SWITCHES)}"
        raise ConfigError(f"unknown switch '{name}': {hint}; or describe one as name=key=value,key=other")
    return SWITCHES[name]


def _described(text: str) -> Switch:
    name, _, rest = text.partition("=")
    sides = [tuple(side.split("+")) for side in rest.split(",")]
    if len(sides) != 2 or sides[0] == sides[1] or not all("=" in one for side in sides for one in side):
        raise ConfigError(
            f"the switch '{text}' does not have two different sides: write name=key=value,key=other, with + between the "
            "overrides of one side"
        )
    if name in SWITCHES:
        raise ConfigError(f"'{name}' is a switch of the table: give yours another name")
    first, second = (Side(name=", ".join(side), overrides=side) for side in sides)
    return Switch(name=name, first=first, second=second)


def overrides_of(side: Side, recipe: Recipe) -> list[str]:
    """A side's overrides for this recipe: `ALL` key-value heads are as many as it has query heads."""
    return [text.replace("=ALL", f"={recipe.transformer.num_heads}") for text in side.overrides]
