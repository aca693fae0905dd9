"""The texts that are sent to models: one TOML file each, with a version that every row they made names.

What comes from outside, writing read in a picture above all, goes into a prompt only as data: JSON between <data> and
</data>, in which no character can end the block, start a turn of a chat template or hide.
"""

from __future__ import annotations

import json
import tomllib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from pleinair.endpoints import EncodedPicture, Message

_ESCAPED_CATEGORIES = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


@dataclass(frozen=True)
class Prompt:
    """One text for a model, with the places where words go in."""

    name: str
    version: int
    system: str
    user: str

    @property
    def label(self) -> str:
        """How provenance columns name it: `describe@1`."""
        return f"{self.name}@{self.version}"

    def messages(
        self, data: Mapping[str, Any] | None = None, pictures: tuple[EncodedPicture, ...] = (), **words: object
    ) -> tuple[Message, Message]:
        """System and user turn; `data` is quoted, `words` are ours and go in as they are."""
        block = {} if data is None else {"data": quoted(data)}
        return Message("system", self.system.format(**words)), Message(
            "user", self.user.format(**block, **words), pictures
        )


@cache
def prompt(name: str) -> Prompt:
    """The prompt of that name, as it comes with the package."""
    text = files(__name__).joinpath(f"{name}.toml").read_text(encoding="utf-8")
    fields = tomllib.loads(text)
    return Prompt(name, fields["version"], fields["system"].strip(), fields["user"].strip())


def quoted(data: Mapping[str, Any]) -> str:
    """JSON that reads back equal and holds neither a markup sign nor an invisible character."""
    return "".join(_escaped(character) for character in json.dumps(data, ensure_ascii=False, indent=1))


def _escaped(character: str) -> str:
    if character == "\n":
        return character  # the indentation; json.dumps has escaped those inside strings
    if character in "<>&":
        return f"\\u{ord(character):04x}"
    return json.dumps(character)[1:-1] if unicodedata.category(character) in _ESCAPED_CATEGORIES else character
