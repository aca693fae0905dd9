"""Captions of pictures: from labels and tags now, by templates."""

from pleinair.captioning.templates import Captions, captions, with_article

__all__ = ["Captions", "captions", "with_article"]
