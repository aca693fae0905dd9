"""Curation: sources of pictures, filters that say why they drop, fingerprints, near-duplicates, held-out pairs."""

from pleinair.curation.curate import Curated, CurationConfig, Ingested, curate, ingest, mark_duplicates
from pleinair.curation.drops.reading import Dropped, ReasonDrops, StageDrops, read_drops
from pleinair.curation.heldout import held_out
from pleinair.curation.sources import STYLES, TRAINING_STYLES, PictureRow, Source, find_source, open_image
from pleinair.curation.sources.media import WORDING
from pleinair.curation.stages import KEPT, images_table, kept_where
from pleinair.curation.store import ObjectStore

__all__ = [
    "KEPT",
    "STYLES",
    "TRAINING_STYLES",
    "WORDING",
    "Curated",
    "CurationConfig",
    "Dropped",
    "Ingested",
    "ObjectStore",
    "PictureRow",
    "ReasonDrops",
    "Source",
    "StageDrops",
    "curate",
    "find_source",
    "held_out",
    "images_table",
    "ingest",
    "kept_where",
    "mark_duplicates",
    "open_image",
    "read_drops",
]
