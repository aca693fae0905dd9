"""What the pictures of each source are: the one place that says which captions speak of drawings, photographs, icons."""

from __future__ import annotations

from collections.abc import Mapping

from pleinair.curation.sources.drawings import DRAWINGS, SKIN_TONES, STYLES
from pleinair.curation.sources.icons import ICON_STYLES
from pleinair.records.wording import Medium, Wording

_DRAWING = Medium(phrase="a drawing", on_white=True)

MEDIA: Mapping[str, Medium] = {
    DRAWINGS: _DRAWING,
    SKIN_TONES: _DRAWING,
    "icons": Medium(phrase="an icon", on_white=True),
    "openclipart": Medium(phrase="clip art", says_style=False),
    "gcompris": Medium(phrase="a photo", says_style=False),
    "cifar-10": Medium(phrase="a small photo", says_style=False),
    # Cut-out photographs and drawings, and nothing says which is which.
    "tuxpaint": Medium(says_style=False, labels_are_words=False),
}
"""By source. Folders, shards and lists of URLs are not in it: what they hold is for their owners' captions to say."""

WORDING = Wording(media=MEDIA, styles={name: style.words for name, style in {**ICON_STYLES, **STYLES}.items()})
"""What captions of all sources are written with."""
