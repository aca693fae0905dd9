"""Which pictures training never sees.

One tenth of the (concept, style) pairs is held out. The model meets the concept in other styles and the style on other
concepts, never the two together; what it draws for such a pair is invention, not memory. The rule depends on the names
alone, so recipes, the judge and the autoencoder agree without sharing a file, and a new picture of such a pair is held
out on arrival.
"""

from __future__ import annotations

import hashlib

HELD_OUT_SHARE = 0.10


def held_out(concept: str | None, style: str | None) -> bool:
    """Whether the pair is kept from training. A picture without a concept or a style belongs to no pair: False."""
    if not concept or not style:
        return False
    digest = hashlib.sha256(f"{concept}/{style}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64
