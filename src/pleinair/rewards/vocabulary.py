"""What a judge has names for: the classes of a network as slugs, and the parser of prompts that knows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from pleinair.records.names import slug
from pleinair.rewards.parser import PromptParser


@dataclass(frozen=True)
class Vocabulary:
    """Names in the order of a network's classes."""

    concept_names: Sequence[str]
    """Things, as slugs."""
    style_names: Sequence[str]

    @cached_property
    def things(self) -> dict[str, int]:
        """Classes by slug."""
        return {name: number for number, name in enumerate(self.concept_names)}

    @cached_property
    def styles(self) -> dict[str, int]:
        """Classes by slug."""
        return {slug(name): number for number, name in enumerate(self.style_names)}

    def parser(self) -> PromptParser:
        """A parser of prompts that knows these names."""
        return PromptParser(*([name.replace("-", " ") for name in names] for names in (self.things, self.styles)))

    def thing(self, name: str) -> int | None:
        """The class of a thing, however it is written; None where there is none."""
        return self.things.get(slug(name))

    def style(self, name: str) -> int | None:
        """The class of a style, likewise."""
        return self.styles.get(slug(name))
