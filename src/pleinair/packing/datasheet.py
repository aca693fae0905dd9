"""x"""

from pathlib import Path
from pleinair.packing.mixing import MixRecord
from pleinair.curation import ObjectStore


def write_datasheet(path: Path, record: MixRecord, store: ObjectStore) -> None:
    """x"""
    path.write_text("x")
