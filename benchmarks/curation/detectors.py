"""Detectors on planted frames and on pictures of our own generator, measured on pictures they never saw.

detector_frame_*                recall, precision (half of the slice is framed) and false rate on unseen pictures of each
                                source, on a source not trained on, and of the frozen global vector alone
detector_ai_*                   trained on reconstructions by the shipped autoencoder; unseen pictures of each source, a source
                                not trained on, after JPEG, halved, and pictures of the shipped sampler
detector_provenance_per_s       files looked at for marks of generators, per second of one core
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.krablet.rounds import Result, result
from pleinair.cli.places import cache_dir, shipped
from pleinair.cli.sample import open_sampler
from pleinair.curation.detectors.detector import Detector, Manifest
from pleinair.curation.detectors.features import EDGES, GLOBAL, RESIDUAL, RIM, features_of
from pleinair.curation.detectors.fitting import FitConfig, fit_detector
from pleinair.curation.detectors.generated import reconstruct, reconstructed_by, square
from pleinair.curation.detectors.labels import Sampled, planted_examples
from pleinair.curation.detectors.measures import Measure, measure
from pleinair.curation.detectors.planted import framed, recompressed
from pleinair.curation.detectors.provenance import ai_mark
from pleinair.curation.pictures import Pixels, decode
from pleinair.curation.sources import STYLES, PictureRow, find_source, open_image
from pleinair.recipes.concepts import DRAWINGS
from pleinair.records.errors import ImageError
from pleinair.sampling.shipped import load_autoencoder

Named = list[tuple[Sampled, Pixels]]
NUM_SAMPLES = 150


def measure_frames(seed: int = 0) -> list[Result]:
    """The detector of frames."""
    pictures = [
        *gather(listed("gcompris"), 250, seed),
        *gather(listed("drawings"), 500, seed),
        *gather(listed("openclipart"), 350, seed),
    ]
    examples = planted_examples(pictures, framed, [GLOBAL, RIM, EDGES], cache_dir(), seed=seed, on_progress=show)
    config = FitConfig(candidates=((GLOBAL,), (RIM,), (EDGES,), (EDGES, RIM)))
    made = fit_detector(
        examples, Manifest(name="frame", version=1, prompt="frame", features=(RIM,), threshold=0.5), config
    )
    print(made.manifest.features, made.manifest.threshold, made.manifest.candidates)
    rows = [row for one in made.manifest.measures for row in three("frame", one)]
    rows += [
        result(f"detector_frame_folds_{names.replace(' + ', '_and_')}", recall, "share")
        for names, recall in made.manifest.candidates.items()
    ]
    return rows


def measure_generated(seed: int = 0) -> list[Result]:
    """The detector of generated pictures, and the reader of marks."""
    drawings = [row for row in listed("drawings") if row.label in DRAWINGS]
    order = np.random.default_rng(seed).permutation(len(drawings))
    prompted = [drawings[place] for place in order[:NUM_SAMPLES]]
    asked = {row.image_name for row in prompted}
    others = [row for row in listed("drawings") if row.image_name not in asked]
    photos = gather(listed("gcompris"), 250, seed)
    pictures = [
        *photos,
        *gather(others, 450, seed),
        *gather(listed("openclipart"), 200, seed),
    ]
    codec = load_autoencoder(shipped("autoencoder"))
    examples = planted_examples(
        pictures, reconstructed_by(codec), [GLOBAL, RIM, RESIDUAL], cache_dir(), seed=seed, on_progress=show
    )
    config = FitConfig(candidates=((GLOBAL,), (RIM,), (RESIDUAL,), (RIM, RESIDUAL)), max_false_rate=0.02)
    made = fit_detector(examples, Manifest(name="ai", version=1, prompt="ai", features=(RIM,), threshold=0.5), config)
    print(made.manifest.features, made.manifest.threshold, made.manifest.candidates)
    rows = [row for one in made.manifest.measures for row in three("ai", one)]
    rows += [
        result(f"detector_ai_folds_{names.replace(' + ', '_and_')}", recall, "share")
        for names, recall in made.manifest.candidates.items()
    ]
    real = np.stack([square(read(row), 64) for row in prompted])
    for name, change in CHANGES.items():
        rows += three("ai", on_pairs(made, real, drawn(prompted), change, f"sampler {name}"))
    again = reconstruct(codec, real)
    for name, change in CHANGES.items():
        rows += three("ai", on_pairs(made, real, again, change, f"reconstructed {name}"))
    rows += three("ai", untouched(made, [read(row) for row in prompted], "drawings as they are"))
    # Four in five of these were fitted on at smaller sizes.
    rows += three("ai", untouched(made, [picture for _, picture in photos], "photographs as they are"))
    return [*rows, result("detector_provenance_per_s", marks_per_second(prompted), "files/s")]


def listed(name: str) -> list[PictureRow]:
    """Rows of a source, near-duplicates left out."""
    return [row for row in find_source(name, cache_dir()).list() if row.style != "fluent"]


def gather(rows: Sequence[PictureRow], num: int, seed: int) -> Named:
    """Some pictures of a source that can be drawn."""
    order, found = np.random.default_rng(seed).permutation(len(rows)), list[tuple[Sampled, Pixels]]()
    for place in order[: 2 * num].tolist():
        try:
            found.append((Sampled(rows[place].image_name, rows[place].source, ""), read(rows[place])))
        except ImageError:
            continue
        if len(found) == num:
            break
    return found


def read(row: PictureRow) -> Pixels:
    """Pixels of a row."""
    return decode(open_image(row.uri, cache_dir()))


def drawn(rows: Sequence[PictureRow]) -> Pixels:
    """The shipped sampler's pictures of the rows' things and styles, (N, 64, 64, 3); drawn once, kept in the cache."""
    path = cache_dir() / "bench" / f"sampler-{len(rows)}-v1.npz"
    if not path.exists():
        sampler, config = open_sampler()
        prompts = [f"a {row.label}, {STYLES[str(row.style)].words} style" for row in rows]
        pixels = sampler.sample(prompts, list(range(len(rows))), replace(config, batch_size=16), show)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, pixels=pixels)
    with np.load(path, allow_pickle=False) as stored:
        pixels_NHWC: Pixels = stored["pixels"]
    return pixels_NHWC


def resized(picture: Pixels, side: int) -> Pixels:
    """At another size."""
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC))


CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "as drawn": lambda picture: picture,
    "after jpeg 75": lambda picture: recompressed(picture, 75),
    "after jpeg 50": lambda picture: recompressed(picture, 50),
    "enlarged to 128": lambda picture: resized(picture, 128),
    "shrunk to 48": lambda picture: resized(picture, 48),
}


def on_pairs(made: Detector, real: Pixels, fake: Pixels, change: Callable[[Pixels], Pixels], slice_: str) -> Measure:
    """Real and generated pictures, changed alike."""
    pictures = [change(picture) for picture in (*real, *fake)]
    labels = np.arange(len(pictures)) >= len(real)
    return scored(made, pictures, labels, slice_)


def untouched(made: Detector, pictures: Sequence[Pixels], slice_: str) -> Measure:
    """Real pictures at their own size: what is dropped of them is wrongly dropped."""
    return scored(made, pictures, np.zeros(len(pictures), bool), slice_)


def scored(made: Detector, pictures: Sequence[Pixels], labels: npt.NDArray[np.bool_], slice_: str) -> Measure:
    """Counts at the detector's threshold."""
    features = features_of(pictures, made.manifest.features, cache_dir())
    return measure(made.probe.scores(features), labels, made.manifest.threshold, slice_, "planted")


def three(kind: str, one: Measure) -> list[Result]:
    """Recall, precision and false rate of a slice; its counts are printed."""
    print(f"  {kind} {one.slice}: recall {one.recall}, false {one.false_rate}, precision {one.precision}", flush=True)
    words = one.slice.replace(":", "").replace(" ", "_").replace("-", "_")
    prefix = f"detector_{kind}" if one.slice == "unseen pictures" else f"detector_{kind}_{words}"
    shares = {"recall": one.recall, "precision": one.precision, "false_rate": one.false_rate}
    return [result(f"{prefix}_{name}", share.value, "share") for name, share in shares.items() if share.total]


def marks_per_second(rows: Sequence[PictureRow]) -> float:
    """Rate of `ai_mark` over files as they are stored."""
    files = [open_image(row.uri, cache_dir()) for row in rows]
    began = time.process_time()
    for data in files * 20:
        ai_mark(data)
    return len(files) * 20 / (time.process_time() - began)


def show(done: int, total: int) -> None:
    """A line now and then."""
    if done == total or done % 320 == 0:
        print(f"  {done}/{total}", flush=True)
