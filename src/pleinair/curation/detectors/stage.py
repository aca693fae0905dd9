"""A detector as a queue stage: a score per picture, and a verdict that can be taken again at another threshold.

    images.detector_<name>_v<k>     score in 0..1; NULL until this version has looked
    images.detector_<name>_mark     what the file says of itself, for detectors that read provenance
    images.detector_<name>_drop     '' or `detector frame v1: 0.97, over 0.90`

A new version is another column, so the stage looks at every picture again and old scores stay to be compared. A changed
threshold rewrites verdicts from scores and opens no picture. `kept_where` heeds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pleinair.curation.detectors.detector import Detector, Manifest, check_name, load_detector
from pleinair.curation.detectors.features import GLOBAL
from pleinair.curation.detectors.labels import TO_LOOK_AT
from pleinair.curation.detectors.provenance import ai_mark
from pleinair.curation.embeddings import embedded_table, get_vectors
from pleinair.curation.pictures import decode
from pleinair.curation.stages import IMAGES
from pleinair.curation.store import ObjectStore
from pleinair.krablet import Database, Progress, RunSummary, Stage, Table, run_workers
from pleinair.records.errors import ImageError, SourceError

Row = Mapping[str, Any]
Outcome = dict[str, object] | Exception
BATCH = 64
MARK_KIND = "made by a generator, says the file"


def columns_of(manifest: Manifest) -> dict[str, str]:
    """Columns of one version; the verdict is shared by all versions of a name."""
    prefix = f"detector_{manifest.name}"
    marks = {f"{prefix}_mark": "text"} if manifest.reads_provenance else {}
    return {score_column(manifest): "double precision", **marks, f"{prefix}_drop": "text"}


def score_column(manifest: Manifest) -> str:
    """`detector_frame_v1`."""
    return f"detector_{manifest.name}_v{manifest.version}"


def drop_column(name: str) -> str:
    """`detector_frame_drop`."""
    check_name(name)
    return f"detector_{name}_drop"


def detected_table(db: Database, manifest: Manifest) -> Table:
    """`images` with the columns of a detector."""
    return db.table(IMAGES, key="image_name", columns={**embedded_table(db).columns, **columns_of(manifest)})


def detector_stage(images: Table, manifest: Manifest) -> Stage:
    """The stage of a detector: one per name, ready for pictures that this version has not scored."""
    ready = f"{TO_LOOK_AT} AND {score_column(manifest)} IS NULL"
    stored = reads_vectors(manifest)
    return images.stage(
        f"detector_{manifest.name}",
        ready=f"{ready} AND embedding_name = '{GLOBAL}'" if stored else ready,
        writes=list(columns_of(manifest)),
        reads=["embedding_path" if stored else "image_path"],
        batch=BATCH,
        lease_seconds=300.0,
    )


def reads_vectors(manifest: Manifest) -> bool:
    """Whether stored embeddings are all it needs: no picture is opened then."""
    return manifest.features == (GLOBAL,) and not manifest.reads_provenance


def run_detector(
    db: Database,
    detector: Detector,
    folder: Path,
    *,
    cache: Path,
    store: Path,
    threshold: float | None = None,
    processes: int = 2,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> RunSummary:
    """Score what this version has not scored, then take every verdict at the threshold (default: the manifest's)."""
    manifest = detector.manifest
    images = detected_table(db, manifest)
    limit = manifest.threshold if threshold is None else threshold
    spec = detector_stage(images, manifest).spec(
        "pleinair.curation.detectors.stage:score",
        folder=str(folder.resolve()),
        name=manifest.name,
        version=manifest.version,
        threshold=limit,
        cache=str(cache.resolve()),
        store=str(store.resolve()),
    )
    done = run_workers(db, [spec], processes=processes, on_progress=on_progress)
    replay(images, manifest, limit)
    return done


def score(
    batch: Sequence[Row], *, folder: str, name: str, version: int, threshold: float, cache: str, store: str
) -> list[Outcome]:
    """The stage's function."""
    return score_rows(batch, _detector(folder, name, version), Path(cache), ObjectStore(Path(store)), threshold)


@lru_cache(maxsize=4)
def _detector(folder: str, name: str, version: int) -> Detector:
    import torch

    torch.set_num_threads(1)  # there are as many workers as cores
    return load_detector(Path(folder), name, version)


def score_rows(
    batch: Sequence[Row], detector: Detector, cache: Path, store: ObjectStore, threshold: float
) -> list[Outcome]:
    """Columns of every row, or the reason why its picture could not be read."""
    manifest = detector.manifest
    if reads_vectors(manifest):
        vectors_ND = get_vectors(store, [row["embedding_path"] for row in batch])
        return [_outcome(manifest, float(one), "", threshold) for one in detector.probe.scores(vectors_ND)]
    read = [_read(row, store) for row in batch]
    pictures = [decoded[1] for decoded in read if not isinstance(decoded, Exception)]
    scores = iter(detector.scores(pictures, cache) if pictures else ())
    return [
        one if isinstance(one, Exception) else _outcome(manifest, float(next(scores)), ai_mark(one[0]), threshold)
        for one in read
    ]


def _read(row: Row, store: ObjectStore) -> tuple[bytes, np.ndarray[Any, np.dtype[np.uint8]]] | Exception:
    try:
        data = store.get(row["image_path"])
        return data, decode(data)
    except (SourceError, ImageError) as error:
        return error


def _outcome(manifest: Manifest, value: float, mark: str, threshold: float) -> dict[str, object]:
    marks = {f"detector_{manifest.name}_mark": mark} if manifest.reads_provenance else {}
    verdict = verdict_of(manifest, value, mark if manifest.reads_provenance else "", threshold)
    return {score_column(manifest): value, **marks, drop_column(manifest.name): verdict}


def verdict_of(manifest: Manifest, value: float, mark: str, threshold: float) -> str:
    """Why a picture goes, or ''. What the file says of itself comes first."""
    if mark:
        return f"detector {manifest.label}: {MARK_KIND}: {mark}"
    return f"detector {manifest.label}: {value:.2f}, over {threshold:.2f}" if value > threshold else ""


def replay(images: Table, manifest: Manifest, threshold: float) -> int:
    """Take every verdict of scored pictures again at a threshold; how many changed. No picture is opened."""
    return images.update(_changed(images, manifest, threshold))


def _changed(images: Table, manifest: Manifest, threshold: float) -> Iterator[dict[str, object]]:
    score_, drop = score_column(manifest), drop_column(manifest.name)
    mark = f"detector_{manifest.name}_mark"
    columns = ["image_name", score_, drop, *([mark] if manifest.reads_provenance else [])]
    for batch in images.read(where=f"{score_} IS NOT NULL", columns=columns):
        for row in batch.to_pylist():
            verdict = verdict_of(manifest, row[score_], row.get(mark) or "", threshold)
            if verdict != row[drop]:
                yield {"image_name": row["image_name"], drop: verdict}
