"""The pixel filters: as fast as they can be beside plain numpy, with equal values; and what they find of planted faults.

The pictures are the photographs of gcompris, drawings of the npm packages, and photographs of CIFAR-10.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import median

import cv2
import numpy as np
from PIL import Image

from benchmarks.curation import planted
from benchmarks.krablet.rounds import Result, interleaved, ratio, result
from pleinair.captioning.ocr import RapidOCR
from pleinair.cli.places import cache_dir
from pleinair.curation import find_source, open_image
from pleinair.curation import pixels as measures
from pleinair.curation.curate import CurationConfig
from pleinair.curation.filters import PIXEL_FILTERS, judge
from pleinair.curation.pictures import Pixels, decode
from pleinair.curation.recipes import MIXED
from pleinair.records.errors import ImageError

NUM_TIMED = 60
SIDE = 512
FIVE = ("laplacian_v1", "entropy", "white_ratio", "black_ratio", "border_flatness")
AT_512 = CurationConfig(resolution=512, pixels=MIXED.pixels, overrides=MIXED.overrides)


def measure(rounds: int = 5) -> list[Result]:
    """`filters_vs_numpy` first, then the share of planted faults found and of clean pictures dropped."""
    photographs = pictures("gcompris", 253)
    cv2.setNumThreads(1)
    return [*speed(photographs[:NUM_TIMED], rounds), *found(photographs), *text_beside_ocr(photographs)]


def pictures(source: str, number: int) -> list[Pixels]:
    """Some pictures of a source, chosen at random but always the same."""
    rows = list(find_source(source, cache_dir()).list())
    chosen: list[Pixels] = []
    for place in np.random.default_rng(0).permutation(len(rows)):
        try:
            chosen.append(decode(open_image(rows[place].uri, cache_dir())))
        except ImageError:
            continue
        if len(chosen) == number:
            break
    return chosen


def speed(photographs: Sequence[Pixels], rounds: int) -> list[Result]:
    """Pictures a second of one core, at a shorter side of 512."""
    timed = [resized(pixels) for pixels in photographs]
    check_equal(timed)
    runs: dict[str, Callable[[Pixels], object]] = {
        "ours": five,
        "numpy": numpy_five,
        "bincount": lambda pixels: numpy_five(pixels, bincount_entropy),
        "all": measures.pixel_statistics,
    }
    values = interleaved(rounds, {name: lambda run=run: rate(run, timed) for name, run in runs.items()})  # type: ignore[misc]
    peers = {"numpy": "numpy, np.histogram", "bincount": "numpy, np.bincount"}
    return [
        result(
            "filters_vs_numpy" if peer == "numpy" else f"filters_vs_numpy_{peer}",
            median(values["ours"]),
            "pictures/CPU s",
            told,
            ratio(values["ours"], values[peer]),
        )
        for peer, told in peers.items()
    ] + [result("filters_all_measures", median(values["all"]), "pictures/CPU s")]


def resized(pixels: Pixels) -> Pixels:
    """The picture with a shorter side of `SIDE`."""
    scale = SIDE / min(pixels.shape[:2])
    size = round(pixels.shape[1] * scale), round(pixels.shape[0] * scale)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def rate(run: Callable[[Pixels], object], timed: Sequence[Pixels]) -> float:
    """Pictures per processor second."""
    began = time.process_time()
    for pixels in timed:
        run(pixels)
    return len(timed) / (time.process_time() - began)


def five(pixels: Pixels) -> dict[str, float]:
    """The five filters of the issue as they are shipped."""
    planes = cv2.split(pixels)
    white, black = measures.white_and_black(planes)
    values = (
        measures.laplacian_variance(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)),
        measures.entropy(planes),
        white,
        black,
        measures.border_flatness(pixels)[0],
    )
    return dict(zip(FIVE, values, strict=True))


def numpy_five(pixels: Pixels, entropy: Callable[[Pixels], float] | None = None) -> dict[str, float]:
    """The same in plain numpy, as one writes them from their definitions."""
    height, width = pixels.shape[:2]
    band = max(1, round(0.04 * min(height, width)))
    parts = (pixels[:band], pixels[-band:], pixels[:, :band], pixels[:, -band:])
    border = np.concatenate([part.reshape(-1, 3) for part in parts]).astype(np.int16)
    flat = (np.abs(border - np.median(border, axis=0)).max(axis=1) <= 8).mean()
    values = (
        numpy_laplacian(pixels),
        (entropy or histogram_entropy)(pixels),
        (pixels >= 250).all(-1).mean(),
        (pixels <= 5).all(-1).mean(),
        flat,
    )
    return {name: float(value) for name, value in zip(FIVE, values, strict=True)}


def numpy_laplacian(pixels: Pixels) -> float:
    """Variance of the Laplacian of grey, BT.601 in the fixed point of OpenCV so that values can be equal."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float64)
    inner = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    return float(inner.var())


def histogram_entropy(pixels: Pixels) -> float:
    """Mean entropy of the channels from np.histogram."""
    return _mean_entropy([np.histogram(pixels[..., channel], 256, (0, 256))[0] for channel in range(3)])


def bincount_entropy(pixels: Pixels) -> float:
    """Mean entropy of the channels from np.bincount."""
    return _mean_entropy([np.bincount(pixels[..., channel].ravel(), minlength=256) for channel in range(3)])


def _mean_entropy(counts: Sequence[np.ndarray]) -> float:
    shares = [count[count > 0] / count.sum() for count in counts]
    return float(np.mean([-(share * np.log2(share)).sum() for share in shares]))


def check_equal(timed: Sequence[Pixels]) -> None:
    """Both forms give the same values, or there is nothing to time."""
    for pixels in timed:
        ours, theirs = five(pixels), numpy_five(pixels)
        for name in FIVE:
            assert abs(ours[name] - theirs[name]) <= 1e-9 * max(1.0, abs(theirs[name])), (name, ours, theirs)


def found(photographs: Sequence[Pixels]) -> list[Result]:
    """Planted faults that the limits of `mixed` drop, and clean pictures that they drop."""
    rng = np.random.default_rng(1)
    drawings, small = pictures("drawings", 300), pictures("cifar-10", 1000)
    rows = [_share(f"clean_{name}", clean, source) for name, clean, source in _clean(photographs, drawings, small)]
    rows += [_share("clean_photographs_512", photographs, "gcompris", AT_512)]
    unflagged = [pixels for pixels in photographs if not reason(pixels, "gcompris", MIXED)]
    for name, fault in planted.FAULTS.items():
        config = AT_512 if name == "melted" else MIXED
        rows.append(_share(f"photographs_{name}", [fault(pixels, rng) for pixels in unflagged], "gcompris", config))
    for name in ("blank", "blank with a speck"):
        rows.append(_share(f"drawings_{name}", [planted.FAULTS[name](pixels, rng) for pixels in drawings], "drawings"))
    sheets = [planted.contact_sheet(photographs, rng) for _ in range(30)]
    rows += [_share("contact_sheets_256", sheets, "gcompris"), _share("contact_sheets_512", sheets, "gcompris", AT_512)]
    return rows


def _clean(*kinds: Sequence[Pixels]) -> list[tuple[str, Sequence[Pixels], str]]:
    return list(zip(("photographs", "drawings", "cifar"), kinds, ("gcompris", "drawings", "cifar-10"), strict=True))


def reason(pixels: Pixels, source: str, config: CurationConfig) -> str:
    """The kind of reason for which a picture goes, empty when it stays."""
    limits = config.filters.of(source, None).pixels
    return judge(PIXEL_FILTERS, asdict(measures.pixel_statistics(pixels)), limits, config.resolution).reason.partition(
        ":"
    )[0]


def _share(name: str, judged: Sequence[Pixels], source: str, config: CurationConfig = MIXED) -> Result:
    reasons = [reason(pixels, source, config) for pixels in judged]
    counts = {kind: reasons.count(kind) for kind in sorted(set(reasons) - {""})}
    told = ", ".join(f"{kind} {count}" for kind, count in counts.items())
    print(f"  {name}: {sum(counts.values())} of {len(reasons)} dropped ({told})", flush=True)
    label = name.replace(" ", "_")
    return result(f"filters_dropped_{label}", sum(counts.values()) / len(reasons), f"of {len(reasons)}", told)


def text_beside_ocr(photographs: Sequence[Pixels], number: int = 8) -> list[Result]:
    """The measure from pixels beside the share that OCR reads, where small print was planted and where it was not."""
    rng, reader, rows = np.random.default_rng(2), RapidOCR(), []
    printed = [planted.text_panel(pixels, rng) for pixels in photographs[:number]]
    for name, some in (("photographs", photographs[:number]), ("text_panel", printed)):
        began = time.process_time()
        read = [reader.read(pixels).share for pixels in some]
        seconds = (time.process_time() - began) / number
        dense = [measures.pixel_statistics(pixels).text_density_v1 for pixels in some]
        print(f"  {name}: OCR {np.round(read, 2)} in {seconds:.1f} s each, pixels {np.round(dense, 2)}", flush=True)
        rows += [
            result(f"text_density_{name}", median(dense), "share, median", f"OCR reads {median(read):.3f}"),
            result(f"text_ocr_seconds_{name}", seconds, "CPU s a picture"),
        ]
    return rows
