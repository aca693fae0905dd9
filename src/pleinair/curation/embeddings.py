"""The `embed` queue stage: a frozen encoder's vector of every picture that is kept.

    images --claim 64--> decode, embed --> one array per claim into the object store --> embedding_path = file#row

A claim's vectors are one file of half-precision rows and a picture's row names its place in it. Beside a `real[]` column
that is a fifth of the bytes and a fraction of the time (benchmarks/curation/embeddings.py); beside a file per picture,
one inode instead of 64. A vector is valid under the name of the encoder that made it, which the row keeps: another
encoder makes the stage look at every picture again.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pleinair.curation.pictures import Pixels, decode
from pleinair.curation.stages import IMAGES, images_table
from pleinair.curation.store import ObjectStore
from pleinair.krablet import Database, Progress, RunSummary, Stage, Table, run_workers
from pleinair.records.errors import ImageError, SourceError

if TYPE_CHECKING:
    from pleinair.model.image_encoder import ImageEncoder

EMBEDDING_COLUMNS: Mapping[str, str] = {"embedding_name": "text", "embedding_path": "text"}
TO_EMBED = "pixels_drop = '' AND duplicate_drop = ''"
"""SQL condition of the pictures that get a vector: those the cheap stages keep."""
BATCH = 64

Row = Mapping[str, Any]
Outcome = dict[str, object] | Exception


@dataclass(frozen=True)
class Embedded:
    """Vectors of pictures, one row each, in the order of the names."""

    names: list[str]
    vectors_ND: npt.NDArray[np.float32]

    def unit(self) -> npt.NDArray[np.float32]:
        """The vectors at length 1, their mean taken off first: all pictures share a direction that says nothing."""
        centred_ND = self.vectors_ND - self.vectors_ND.mean(axis=0)
        unit_ND: npt.NDArray[np.float32] = centred_ND / np.maximum(
            np.linalg.norm(centred_ND, axis=1, keepdims=True), 1e-12
        )
        return unit_ND


def embedded_table(db: Database) -> Table:
    """`images` with the columns of this stage."""
    return db.table(IMAGES, key="image_name", columns={**images_table(db).columns, **EMBEDDING_COLUMNS})


def embed_stage(images: Table, name: str) -> Stage:
    """The stage for the encoder called `name`."""
    return images.stage(
        "embed",
        ready=f"{TO_EMBED} AND embedding_name IS DISTINCT FROM '{name.replace(chr(39), chr(39) * 2)}'",
        writes=list(EMBEDDING_COLUMNS),
        reads=["image_path"],
        batch=BATCH,
        lease_seconds=300.0,
    )


def embed_pictures(
    db: Database,
    encoder: str = "efficientnet-lite0",
    *,
    cache: Path,
    store: Path,
    processes: int = 2,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> RunSummary:
    """Embed every kept picture that has no vector of this encoder. `encoder` is a name or a model's folder."""
    from pleinair.model.image_encoder import load_image_encoder

    stage = embed_stage(embedded_table(db), load_image_encoder(encoder, cache).name)
    places = str(cache.resolve()), str(store.resolve())
    spec = stage.spec("pleinair.curation.embeddings:embed", encoder=encoder, cache=places[0], store=places[1])
    return run_workers(db, [spec], processes=processes, on_progress=on_progress)


def embed(batch: Sequence[Row], *, encoder: str, cache: str, store: str) -> list[Outcome]:
    """The stage's function: vectors of a claim into one file."""
    return embed_rows(batch, _encoder(encoder, cache), ObjectStore(Path(store)))


@lru_cache(maxsize=1)
def _encoder(encoder: str, cache: str) -> ImageEncoder:
    import torch

    from pleinair.model.image_encoder import load_image_encoder

    torch.set_num_threads(1)  # there are as many workers as cores
    return load_image_encoder(encoder, Path(cache))


def embed_rows(batch: Sequence[Row], encoder: ImageEncoder, store: ObjectStore) -> list[Outcome]:
    """Columns of every row, or the reason why its picture could not be read."""
    read = [_read(row, store) for row in batch]
    pictures = [picture for picture in read if not isinstance(picture, Exception)]
    places = iter(put_vectors(store, encoder.embed(pictures)) if pictures else ())
    return [
        picture if isinstance(picture, Exception) else {"embedding_name": encoder.name, "embedding_path": next(places)}
        for picture in read
    ]


def _read(row: Row, store: ObjectStore) -> Pixels | Exception:
    try:
        return decode(store.get(row["image_path"]))
    except (SourceError, ImageError) as error:
        return error


def put_vectors(store: ObjectStore, vectors_ND: npt.NDArray[np.float32]) -> list[str]:
    """Store vectors as one file; the place of each, `path#row`. Raises ValueError for vectors that are not finite."""
    if not np.isfinite(vectors_ND).all():
        raise ValueError("an encoder gave infinities or NaN: check its weights and precision")
    fits_half = float(np.abs(vectors_ND).max(initial=0)) <= float(np.finfo(np.float16).max)
    written = io.BytesIO()
    np.save(written, vectors_ND.astype(np.float16 if fits_half else np.float32), allow_pickle=False)
    path = store.put(written.getvalue())
    return [f"{path}#{row}" for row in range(len(vectors_ND))]


def get_vectors(store: ObjectStore, places: Sequence[str]) -> npt.NDArray[np.float32]:
    """(N, D) float32 vectors at places that `put_vectors` gave; each file is read once. Raises SourceError."""
    rows_of: dict[str, list[int]] = {}
    for number, place in enumerate(places):
        rows_of.setdefault(place.partition("#")[0], []).append(number)
    vectors_ND: npt.NDArray[np.float32] | None = None
    for path, numbers in rows_of.items():
        stored = np.load(io.BytesIO(store.get(path)), allow_pickle=False)
        if vectors_ND is None:
            vectors_ND = np.empty((len(places), stored.shape[1]), dtype=np.float32)
        vectors_ND[numbers] = stored[[int(places[number].partition("#")[2]) for number in numbers]]
    return np.empty((0, 0), np.float32) if vectors_ND is None else vectors_ND


def read_embeddings(
    images: Table, store: ObjectStore, *, where: str = "TRUE", params: Iterable[object] = ()
) -> Embedded:
    """Vectors of all rows that have one and satisfy `where`, in the order of their names.

    Raises SourceError when there is none, or when they come from different encoders.
    """
    names, places, encoders = list[str](), list[str](), set[str]()
    columns = ["image_name", "embedding_name", "embedding_path"]
    condition = f"({where}) AND embedding_path IS NOT NULL"
    for batch in images.read(where=condition, columns=columns, order_by="image_name", params=tuple(params) or None):
        names += batch.column("image_name").to_pylist()
        places += batch.column("embedding_path").to_pylist()
        encoders |= set(batch.column("embedding_name").to_pylist())
    if len(encoders) != 1:
        found = "no picture has an embedding" if not encoders else f"embeddings of {len(encoders)} encoders are mixed"
        raise SourceError(f"{found}: run 'pleinair embed' to the end first")
    order = sorted(range(len(names)), key=names.__getitem__)  # shards come one after the other
    return Embedded([names[place] for place in order], get_vectors(store, [places[place] for place in order]))
