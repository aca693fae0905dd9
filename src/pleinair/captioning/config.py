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
    """An image-text scorer as `module:function`, which is called without arguments and returns one."""
    holds_over: float = 0.95
    """A subject or style holds when it fits the picture better than this share of its rivals, by the scorer."""
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
        for name in ("subject_fails_under", "style_fails_under"):
            if not 0 <= getattr(self, name) <= self.holds_over <= 1:
                raise ConfigError(
                    f"{name}={getattr(self, name)} and holds_over={self.holds_over} are shares: "
                    f"give 0 <= {name} <= holds_over <= 1"
                )
