"""A mix: what is trained on, as a file. Every part but the sources may be left out.

    name = "drawings-256"          seed = 0               pictures = 20000        # or epochs = 1.0
    [[sources]]                    name = "openclipart"   weight = 2.0            # condition = "licence = 'CC0-1.0'"
    [stage]                        resolution = 256       max_enlarge = 1.0       limits.entropy = { max = 7.5 }
    [clusters]                     levels = 3
    [entities]                     keep = 1               power = 0.5
    [captions]                     long = 0.7             medium = 0.2            short = 0.1

No score shapes a mix: weights are numbers that a person wrote for a source, and a source is told by what its pictures are.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pleinair.config import from_document
from pleinair.packing.conditions import check_condition, columns_of, is_quality
from pleinair.records.errors import ConfigError

CAPTION_KINDS = ("long", "medium", "short", "own")
FLOOR_RESOLUTION = 512
"""From this resolution on a floor under a quality score may be set."""
MAX_FLOOR_SHARE = 0.05
"""The largest share of a mix's pictures that such floors may cut."""
_WHY = (
    "no score oversamples: a model of taste would decide what the training set looks like, and its mistakes would be "
    "learned as the world"
)


@dataclass(frozen=True, kw_only=True)
class MixSource:
    """Pictures that share a weight."""

    name: str
    """Shown in the datasheet; without a condition, the value of the column `source`."""
    condition: str = ""
    """SQL over the columns of `images` that picks the pictures; see `packing.conditions`."""
    weight: float | str | None = None
    """Share of the mix, in proportion to the other weights; None in all sources: each in its own size."""

    def __post_init__(self) -> None:
        if isinstance(self.weight, str):
            reason = _WHY if is_quality(self.weight) else "a weight is one number for the whole source"
            raise ConfigError(f"sources.{self.name}.weight is {self.weight!r}: {reason}; give a number such as 2.0")
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise ConfigError(
                f"sources.{self.name}.weight is {self.weight:g}: give a number over 0, or remove the source"
            )
        if not self.name.strip():
            raise ConfigError("sources.name is empty: name the source as the column `source` does")

    @property
    def where(self) -> str:
        """The condition, or the one that the name stands for."""
        return self.condition or f"source = '{self.name.replace(chr(39), chr(39) * 2)}'"


@dataclass(frozen=True, kw_only=True)
class Limit:
    """Bounds on one column; a picture outside stays out of the mix and in the warehouse."""

    min: float | None = None
    """Least value, or None."""
    max: float | None = None
    """Greatest value, or None."""

    def __post_init__(self) -> None:
        if self.min is None and self.max is None:
            raise ConfigError("a limit without min and max limits nothing: give one of them")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ConfigError(f"a limit of min {self.min:g} and max {self.max:g} lets nothing through: swap them")


@dataclass(frozen=True, kw_only=True)
class ResolutionStage:
    """What pictures must be to be trained on at a resolution."""

    resolution: int = 256
    """Side in pixels of the square whose area every picture gets."""
    max_enlarge: float = 1.0
    """The most a picture's sides may be enlarged to get that area; 1 enlarges none."""
    max_aspect: float | None = None
    """The longest picture, as its long side over its short one."""
    limits: dict[str, Limit] = field(default_factory=dict)
    """Bounds by column, such as `entropy` or `ocr_share`."""

    def __post_init__(self) -> None:
        if not 16 <= self.resolution <= 8192:
            raise ConfigError(f"stage.resolution is {self.resolution}: give 16 to 8192 pixels")
        if not self.max_enlarge > 0:
            raise ConfigError(f"stage.max_enlarge is {self.max_enlarge:g}: give a number over 0, 1 to enlarge nothing")
        if self.max_aspect is not None and not self.max_aspect >= 1:
            raise ConfigError(f"stage.max_aspect is {self.max_aspect:g}: give 1 (squares only) or more")
        for column in filter(is_quality, self.limits):
            self._check_floor(column)

    def _check_floor(self, column: str) -> None:
        if self.resolution < FLOOR_RESOLUTION:
            raise ConfigError(
                f"stage.limits.{column} judges quality at {self.resolution} pixels: below {FLOOR_RESOLUTION} a picture "
                "stays if its caption is right, and a score would only teach the scorer's taste; remove the limit"
            )
        if self.limits[column].max is not None:
            raise ConfigError(
                f"stage.limits.{column}.max would keep the worst of a quality score: give min, as a floor under failures"
            )


@dataclass(frozen=True, kw_only=True)
class ClusterBalance:
    """Equal shares over the clusters of each level, from the top down, as far as each has pictures."""

    levels: int | None = None
    """How many levels, counted from the top; None: all."""

    def __post_init__(self) -> None:
        if self.levels is not None and self.levels < 1:
            raise ConfigError(f"clusters.levels is {self.levels}: give 1 or more, or leave it out for all")


@dataclass(frozen=True, kw_only=True)
class EntityPriority:
    """No entity that the pictures name may vanish, and rare ones come first."""

    keep: int = 1
    """Pictures that every entity keeps, or all it has."""
    power: float = 0.5
    """0 draws the rest evenly, 1 favours the rare most."""

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ConfigError(f"entities.keep is {self.keep}: give 1 or more, or remove [entities]")
        if not 0 <= self.power <= 2:
            raise ConfigError(f"entities.power is {self.power:g}: give 0 (evenly) to 2")


@dataclass(frozen=True, kw_only=True)
class CaptionMix:
    """How often each caption of a picture is trained on; one that is missing leaves its share to the others."""

    long: float = 0.7
    """The full description."""
    medium: float = 0.2
    """A sentence or two."""
    short: float = 0.1
    """A few words."""
    own: float = 0.0
    """What the picture's owner wrote, as it came."""

    def __post_init__(self) -> None:
        for kind in CAPTION_KINDS:
            if not 0 <= getattr(self, kind) < float("inf"):
                raise ConfigError(f"captions.{kind} is {getattr(self, kind)}: give 0 or more")
        if not sum(self.weights):
            raise ConfigError("captions are all 0: give one of long, medium, short and own a share")

    @property
    def weights(self) -> tuple[float, float, float, float]:
        """In the order of CAPTION_KINDS."""
        return self.long, self.medium, self.short, self.own


@dataclass(frozen=True, kw_only=True)
class Mix:
    """One mix, whole."""

    name: str
    """Lower-case name, used for the folder."""
    sources: tuple[MixSource, ...]
    """A picture that several would take belongs to the first."""
    pictures: int | None = None
    """Length of one pass, repeats counted; None: `epochs` of what there is."""
    epochs: float | None = None
    """The same as a multiple of all pictures the sources offer."""
    max_repeats: int = 1
    """How often one picture may come in a pass, where a weight asks for more than a source has."""
    seed: int = 0
    """Of the luck of every key."""
    stage: ResolutionStage = field(default_factory=ResolutionStage)
    """Resolution and what it can carry."""
    clusters: ClusterBalance | None = None
    """None: no balance."""
    entities: EntityPriority | None = None
    """None: no priority."""
    captions: CaptionMix = field(default_factory=CaptionMix)
    """Lengths of captions."""

    def __post_init__(self) -> None:
        if not self.name or not self.name.replace("-", "").replace("_", "").isalnum() or self.name.startswith("-"):
            raise ConfigError(f"name is {self.name!r}: give letters, digits, - and _, as it names a folder")
        self._check_sources()
        if self.pictures is not None and self.epochs is not None:
            raise ConfigError("pictures and epochs both say how long the mix is: remove one")
        for key, value in (("pictures", self.pictures), ("epochs", self.epochs), ("max_repeats", self.max_repeats)):
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{key} is {value:g}: give more than 0")

    def _check_sources(self) -> None:
        if not self.sources:
            raise ConfigError("a mix needs pictures: write at least one [[sources]] with a name")
        names = [source.name for source in self.sources]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"sources.name {twice[0]!r} comes twice: rename or merge them")
        without = [source.name for source in self.sources if source.weight is None]
        if without and len(without) < len(names):
            raise ConfigError(f"sources.{without[0]} has no weight and others have: give all sources a weight, or none")


def parse_mix(text: str, origin: str = "the mix") -> Mix:
    """The mix a TOML text describes. Raises ConfigError naming the origin, the key and the remedy."""
    try:
        document = tomllib.loads(text)
        _refuse_scores(document)
        return from_document(Mix, document)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin} is not TOML: {error}; correct that line") from error
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from error


def _refuse_scores(document: Mapping[str, Any], place: str = "") -> None:
    """Raises ConfigError for a score anywhere but under stage.limits, whatever the key beside it is called."""
    for key, value in document.items():
        named = f"{place}{key}"
        if named == "stage.limits":
            continue
        if is_quality(key) or (key.startswith("weight") and isinstance(value, str) and is_quality(value)):
            raise ConfigError(
                f"'{named}' weighs pictures by a score: {_WHY}; remove it, and give sources plain weights"
            )
        for inside in value if isinstance(value, list) else [value]:
            if isinstance(inside, dict):
                _refuse_scores(inside, f"{named}.")


def read_mix(path: Path) -> tuple[Mix, str]:
    """The mix in a file, and its text. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): give the path of a mix file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    return parse_mix(text, str(path)), text


def check_against(mix: Mix, columns: Mapping[str, str]) -> None:
    """That every column the mix names exists and may be used so. `columns`: name to SQL type. Raises ConfigError."""
    for source in mix.sources:
        place = f"sources.{source.name}.condition"
        check_condition(source.where, columns, place)
        if scores := [column for column in columns_of(source.where) if is_quality(column)]:
            raise ConfigError(
                f"{place} chooses by '{scores[0]}': {_WHY}; tell a source by what its pictures are, and set a floor "
                f"under failures with stage.limits.{scores[0]}.min from {FLOOR_RESOLUTION} pixels on"
            )
    _check_limits(mix.stage.limits, columns)


def _check_limits(limits: Mapping[str, Any], columns: Mapping[str, str]) -> None:
    numbers: Collection[str] = [name for name, type_ in columns.items() if type_ in _NUMBERS]
    for column in limits:
        if column not in numbers:
            check_condition(column, columns, f"stage.limits.{column}")
            raise ConfigError(
                f"stage.limits.{column} is on a column of {columns[column]}: limit one of {sorted(numbers)}"
            )


_NUMBERS = ("smallint", "integer", "bigint", "real", "double precision")
