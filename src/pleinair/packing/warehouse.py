"""Pictures of a list, read from the warehouse in the order of the pack."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from pleinair.curation.pictures import decode
from pleinair.curation.store import ObjectStore
from pleinair.krablet import Table
from pleinair.packing.arrangement import Listed
from pleinair.packing.buckets import Bucket, BucketConfig, resize_to
from pleinair.packing.latents import PackPicture, Read
from pleinair.records.errors import PackError


def reader(images: Table, store: ObjectStore, stages: Sequence[BucketConfig], caption_columns: Sequence[str]) -> Read:
    """Reads pictures by key from the warehouse and their bytes from the store, cropped and resized to a bucket.

    A caption that is missing is the empty one. Raises PackError for a picture that is not as large as it was listed,
    when it would lose more than its stage allows.
    """
    limits = {stage.resolution: stage for stage in stages}
    columns = ["image_name", "image_path", "style", "concept", *caption_columns]

    def read(keys: Sequence[str], bucket: Bucket) -> list[PackPicture]:
        distinct = sorted(set(keys))
        batches = images.read(where="image_name = ANY(%s)", columns=columns, params=(distinct,))
        rows = {row["image_name"]: row for batch in batches for row in batch.to_pylist()}
        return [picture(rows[key], bucket) for key in keys if key in rows]

    def picture(row: dict[str, str | None], bucket: Bucket) -> PackPicture:
        whole = Image.fromarray(decode(store.get(str(row["image_path"]))))
        pixels_HWC, crop = resize_to(whole, bucket)
        if crop.lost_share > limits[bucket.resolution].max_lost_share + 1e-6:
            raise PackError(
                f"{row['image_name']} is {whole.width} x {whole.height} px and would lose {crop.lost_share:.0%} at "
                f"{bucket.width} x {bucket.height}: it is not the picture that was listed; make the list again"
            )
        captions = tuple(row[column] or "" for column in caption_columns)
        facts = (str(row["image_name"]), pixels_HWC, whole.width, whole.height, crop.lost_share, captions)
        return PackPicture(*facts, style=row["style"], concept=row["concept"])

    return read


def still_kept(listed: Listed, images: Table, where: str) -> Listed:
    """The listed pictures that satisfy `where` now: those dropped since, by a takedown for example, stay out."""
    kept = pa.concat_arrays(
        [pa.array([], pa.string()), *(batch.column(0) for batch in images.read(where=where, columns=["image_name"]))]
    )
    chosen = np.array(pc.is_in(listed.keys, value_set=kept))
    return listed.where(chosen.astype(bool))
