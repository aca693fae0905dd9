"""Captions of pictures: written by templates or a captioner, reformatted, and checked against the picture."""

from pleinair.captioning.caption import Captioned, caption
from pleinair.captioning.config import CaptioningConfig
from pleinair.captioning.scorer import Scorer
from pleinair.captioning.templates import Captions, captions, with_article

__all__ = ["Captioned", "CaptioningConfig", "Captions", "Scorer", "caption", "captions", "with_article"]
