"""What captions pictures, and how often it may try."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pleinair.endpoints import Budget, Endpoint
from pleinair.records.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CaptioningConfig:
    """Every setting of a captioning; the defaults need no endpoint."""

    ocr: Literal["rapidocr", "off"] = "rapidocr"
    """Who reads writing in pictures."""
    captioner: Endpoint = field(default_factory=Endpoint)
    """A vision-language model that describes pictures; none: the templates of labels and tags."""
    writer: Endpoint = field(default_factory=Endpoint)
    """A language model that reformats descriptions and takes captions apart; none: rules."""
    verifier: Endpoint = field(default_factory=Endpoint)
    """A vision-language model that checks claims; none: pixels, OCR and the scorer alone."""
    small_rewrites: bool = False
    """Without a writer: let SmolLM2 rewrite medium captions. Half a second of a core each, and four of five are refused."""
    scorer: str = ""
    """`tower`: the model that `pleinair tower` trained; or another image-text scorer as `module:function`, which is called
    without arguments and returns one."""
    tower_fails_under: float = 0.05
    """With `tower`, a subject or style fails when it is less likely than this."""
    tower_holds_over: float = 0.95
    """With `tower`, a subject or style holds when it is at least so likely."""
    holds_over: float = 0.95
    """With another scorer, a subject or style holds when it fits the picture better than this share of its rivals."""
    subject_fails_under: float = 0.8
    """A subject fails when it fits better than less than this share of them."""
    style_fails_under: float = 0.5
    """The same of a style, of which there are fewer to be compared with."""
    num_rivals: int = 64
    """Other labels that a label is compared with."""
    budget: Budget = field(default_factory=Budget)
    """The most that all endpoints together may cost."""
    most_words: int = 160
    """Words a captioner is asked to stay under; half as much again is refused."""
    longest_side: int = 1024
    """Pictures are scaled down to this many pixels before they are sent."""
    tries: int = 3
    """Answers asked for until one can be used."""
    rounds: int = 3
    """Descriptions whose claims may fail before the picture is dropped."""

    def __post_init__(self) -> None:
        for name in ("num_rivals", "most_words", "longest_side", "tries", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: give 1 or more")
        if not 0 <= self.tower_fails_under <= self.tower_holds_over <= 1:
            raise ConfigError(
                f"tower_fails_under={self.tower_fails_under} and tower_holds_over={self.tower_holds_over} are probabilities: "
                "give 0 <= tower_fails_under <= tower_holds_over <= 1"
            )
        for name in ("subject_fails_under", "style_fails_under"):
            if not 0 <= getattr(self, name) <= self.holds_over <= 1:
                raise ConfigError(
                    f"{name}={getattr(self, name)} and holds_over={self.holds_over} are shares: "
                    f"give 0 <= {name} <= holds_over <= 1"
                )
