"""The page `filters.html`: what every limit costs, source by source, with pictures from both sides of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pleinair.curation.filter_costs import FilterCost, Near, SourceCost, Trial
from pleinair.curation.filters import Filter, as_stored
from pleinair.curation.limits import LimitTable
from pleinair.curation.pictures import decode
from pleinair.curation.store import ObjectStore
from pleinair.pages import (
    GridCell,
    Html,
    Node,
    Section,
    Series,
    element,
    encode_webp,
    headline_figures,
    histogram,
    join,
    line_plot,
    page,
    strip,
    table,
    write_page,
)
from pleinair.records.errors import ImageError, SourceError

ABOUT: Mapping[str, str] = {
    "bomb": "Pixels of the picture, read from the header.",
    "small": "The shorter side in pixels.",
    "aspect": "The longer side over the shorter.",
    "entropy": "Mean entropy of red, green and blue in bits; a picture of one colour has 0.",
    "white": "Share of pixels that are white.",
    "black": "Share of pixels that are black.",
    "flat border": "Share of the outermost 4% that has the border's median colour: frames and flat backgrounds.",
    "bars": "The same of two opposite borders, the flatter pair: bars above and below, or left and right.",
    "flat background": "Share of the whole picture that has the border's median colour.",
    "noise": "Variance of the Laplacian: extreme texture and noise have much.",
    "nothing sharp": "Variance of the Laplacian: a floor of quality, from 512 on, for pictures with nothing sharp at all.",
    "complex": "Share of pixels on an edge once the picture has the size it is trained at.",
    "text": "Share under what looks like lines of small writing, from pixels.",
    "read text": "Share under lines that were read by captioning; unknown before it has run.",
}
_LOSSES = (0.001, 0.01, 0.05)
_THUMBNAIL = 112
_NUM_STEPS = 120


def write_filter_page(
    path: Path, costs: Sequence[FilterCost], trial: Trial, used: LimitTable, store: ObjectStore
) -> None:
    """Write the page; it appears whole or not at all."""
    shown = [cost for cost in costs if any(own.known().size for own in cost.by_source.values())]
    opening = join([headline_figures(_headline(trial)), element("p", _limits_said(used), class_="lead")])
    sections = [_trial_section(trial), *(_filter_section(cost, store) for cost in shown)]
    write_page(path, page("What each limit costs", opening, sections, kicker="pleinair curation: filters"))


def _headline(trial: Trial) -> list[tuple[str, str, Node]]:
    return [
        (f"{trial.num_judged:,}", "pictures judged", "from columns, none was opened"),
        (f"{trial.num_kept:,}", "stay now", "under the limits the warehouse follows"),
        (f"{trial.would_go.total():,}", "would go", "that stay now"),
        (f"{trial.would_return.total():,}", "would come back", "that are dropped now"),
    ]


def _limits_said(used: LimitTable) -> str:
    overrides = f", {len(used.overrides)} overrides" if used.overrides else ""
    return (
        f"Limits of this page: resolution {used.resolution}{overrides}. A bar is a number of pictures (logarithmic); "
        "bars beyond the limit are coloured. Costs of one filter count pictures whatever the other filters say."
    )


def _trial_section(trial: Trial) -> Section:
    keys = sorted(set(trial.would_go) | set(trial.would_return) | set(trial.unknown))
    rows = [
        (source, kind, *(f"{counts[source, kind]:,}" for counts in (trial.would_go, trial.would_return, trial.unknown)))
        for source, kind in keys
    ]
    columns = ("source", "reason", "would go", "would come back", "would be measured first")
    body = table(columns, rows, number_columns=columns[2:]) if rows else element("p", "No verdict would change.")
    return Section(
        heading="With these limits",
        body=body,
        lead="Verdicts under the limits of this page beside those the warehouse follows now. Nothing was written.",
    )


def _filter_section(cost: FilterCost, store: ObjectStore) -> Section:
    sources = {name: own for name, own in sorted(cost.by_source.items()) if own.known().size}
    body = join(
        [
            _cost_table(cost.filter, sources),
            element("div", *_histograms(cost.filter, sources), _curves(cost.filter, sources), class_="plots"),
            element("h3", "Just beyond the limit: dropped"),
            _pictures([near for own in sources.values() for near in own.dropped], store),
            element("h3", "Just within: the first to go if it moved"),
            _pictures([near for own in sources.values() for near in own.kept], store),
        ]
    )
    return Section(heading=cost.filter.kind.capitalize(), body=body, lead=ABOUT[cost.filter.kind])


def _cost_table(one: Filter, sources: Mapping[str, SourceCost]) -> Html:
    columns = (
        "source",
        "pictures",
        "unknown",
        "limit",
        "dropped",
        "share",
        *(f"limit to lose {x:.1%}" for x in _LOSSES),
    )
    rows = []
    for name, own in sources.items():
        values = own.known()
        limits = ", ".join("off" if is_off(one, limit) else _number(limit) for limit in sorted(own.limits))
        rows.append(
            (
                name,
                f"{values.size:,}",
                f"{own.num_unknown:,}",
                limits,
                f"{own.num_dropped:,}",
                f"{own.num_dropped / values.size:.2%}",
                *(_number(limit_to_lose(one, values, share)) for share in _LOSSES),
            )
        )
    return table(columns, rows, number_columns=columns[1:])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def is_off(one: Filter, limit: float) -> bool:
    """Whether a filter drops nothing at this limit."""
    return limit <= one.off if one.under else limit >= one.off


def limit_to_lose(one: Filter, values: NDArray[np.float32], share: float) -> float:
    """The strictest limit at which no more than a share of the sorted values is lost."""
    number = min(int(share * values.size), values.size - 1)
    return float(values[number] if one.under else values[values.size - 1 - number])


def lost(one: Filter, values: NDArray[np.float32], limits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the sorted values that each limit drops."""
    places = as_stored(limits)
    under = np.searchsorted(values, places, side="left")
    over = values.size - np.searchsorted(values, places, side="right")
    share: NDArray[np.float64] = (under if one.under else over) / values.size
    return share


def _span(one: Filter, sources: Mapping[str, SourceCost]) -> tuple[float, float]:
    """Lowest and highest value and limit to show, all sources on one axis."""
    values = [edge for own in sources.values() for edge in (own.known()[0], own.known()[-1])]
    values += [limit for own in sources.values() for limit in own.limits if not is_off(one, limit)]
    low, high = float(min(values)), float(max(values))
    return (low, high) if high > low else (low, low + 1)


def _histograms(one: Filter, sources: Mapping[str, SourceCost]) -> list[Html]:
    low, high = _span(one, sources)
    return [
        histogram(
            own.known(),
            low=low,
            high=high,
            marks=[limit for limit in sorted(own.limits) if not is_off(one, limit)],
            dropped=lambda values, own=own: one.fails(values, max(own.limits) if one.under else min(own.limits)),  # type: ignore[misc]
            name=name,
            logarithmic=one.logarithmic,
        )
        for name, own in sources.items()
    ]


def _curves(one: Filter, sources: Mapping[str, SourceCost]) -> Html:
    low, high = _span(one, sources)
    limits = np.geomspace(max(low, 1e-3), high, _NUM_STEPS) if one.logarithmic else np.linspace(low, high, _NUM_STEPS)
    across = np.log10(limits) if one.logarithmic else limits
    series = [
        Series(name=name, x=across.tolist(), y=(100 * lost(one, own.known(), limits)).tolist())
        for name, own in sources.items()
    ]
    label = "limit, as a power of ten" if one.logarithmic else "limit"
    return line_plot(series, x_label=label, y_label="% of the source lost")


def _pictures(near: Sequence[Near], store: ObjectStore) -> Html:
    if not near:
        return element("p", "None.")
    return strip([GridCell(picture=_thumbnail(one, store), note=f"{_number(one.value)} {one.source}") for one in near])


def _thumbnail(one: Near, store: ObjectStore) -> bytes | None:
    """A small copy; None for what cannot be decoded, or was too large for anyone to try."""
    if one.image_path is None:
        return None
    try:
        pixels = decode(store.get(one.image_path))
    except (ImageError, SourceError):
        return None
    scale = min(1.0, _THUMBNAIL / max(pixels.shape[:2]))
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    return encode_webp(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), 80)
