"""Names that are made of words: the same in a table, a path and a class of the judge."""

from __future__ import annotations

import re
import unicodedata


def slug(text: str) -> str:
    """A lower-case ASCII name usable in keys and paths: `Flag: Cote d'Ivoire` -> `flag-cote-divoire`."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    for sign, word in (("&", "and"), ("'", ""), ("#", "hash"), ("*", "asterisk")):
        ascii_text = ascii_text.replace(sign, word)
    return re.sub(r"[^a-z0-9]+", "-", ascii_text).strip("-")
