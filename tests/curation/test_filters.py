"""Measures equal to plain numpy, verdicts at their limits, limits by source and resolution, planted faults."""

from __future__ import annotations

import io
import tomllib
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.curation import planted
from benchmarks.curation.filters import FIVE, five, numpy_five
from pleinair.cli.curate import RECIPE_NAMES
from pleinair.config.overrides import from_document, override, to_document
from pleinair.curation import stages
from pleinair.curation.curate import CurationConfig
from pleinair.curation.filter_page import ABOUT, is_off, limit_to_lose, lost
from pleinair.curation.filters import FILTERS, PIXEL_FILTERS, PROBE_FILTERS, Verdict, judge, with_sizes
from pleinair.curation.limits import LimitTable, Override
from pleinair.curation.pictures import Pixels
from pleinair.curation.pixels import PixelLimits, pixel_statistics, text_density
from pleinair.curation.probe import COLUMNS, ProbeLimits, from_columns, judged, measure
from pleinair.curation.recipes import MIXED, RECIPES
from pleinair.records.errors import ConfigError, SourceError


def scene(seed: int = 0, size: tuple[int, int] = (300, 240)) -> Pixels:
    """Soft shapes of all colours with some grain, like a photograph out of focus."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return (np.asarray(coarse) + rng.normal(0, 4, (size[1], size[0], 3))).clip(0, 255).astype(np.uint8)


def drawing() -> Pixels:
    image = Image.new("RGB", (128, 128), "white")
    image.paste("red", (24, 24, 100, 90))
    return np.asarray(image)


def reason(pixels: Pixels, limits: PixelLimits, resolution: int = 256, **known: float) -> str:
    return judge(PIXEL_FILTERS, {**asdict(pixel_statistics(pixels)), **known}, limits, resolution).reason


def test_the_five_filters_equal_plain_numpy() -> None:
    framed = scene(1).copy()
    framed[:12], framed[-40:, :60] = (250, 251, 255), (0, 3, 5)
    odd = scene(2, (97, 61))
    between = np.full((40, 40, 3), 100, np.uint8)  # the border's median is 100.5, and 92 and 109 are 8.5 away
    between[:, 20:], between[0, :4], between[0, -7:] = 101, 92, 109
    for pixels in (scene(), framed, odd, between, drawing(), np.full((64, 64, 3), 255, np.uint8), scene(3, (70, 5))):
        ours, naive = five(pixels), numpy_five(pixels)
        assert [ours[name] for name in FIVE] == pytest.approx([naive[name] for name in FIVE], rel=1e-9, abs=1e-9)
        shipped = asdict(pixel_statistics(pixels))
        assert {name: shipped[name] for name in FIVE} == ours


def naive_shares(pixels: Pixels) -> tuple[float, float, float]:
    """Bars, flat share and complexity of a picture smaller than every resolution stage."""
    height, width = pixels.shape[:2]
    band = max(1, round(0.04 * min(height, width)))
    ends = ((pixels[:band], pixels[-band:]), (pixels[:, :band], pixels[:, -band:]))
    pairs = [np.concatenate([one.reshape(-1, 3), other.reshape(-1, 3)]).astype(int) for one, other in ends]

    def near(some: np.ndarray, colour: np.ndarray) -> float:  # type: ignore[type-arg]
        return float((abs(some - colour).max(-1) <= 8).mean())

    bars = max(near(pair, np.median(pair, axis=0)) for pair in pairs)
    flat = near(pixels.reshape(-1, 3).astype(int), np.median(np.concatenate(pairs), axis=0))
    grey = np.asarray(Image.fromarray(pixels).convert("L")).astype(int)
    steps = abs(grey[1:-1, 2:] - grey[1:-1, :-2]) + abs(grey[2:, 1:-1] - grey[:-2, 1:-1])
    return bars, flat, float((steps >= 48).mean())


def test_bars_flat_share_and_complexity_equal_their_definitions() -> None:
    barred = planted.bars(scene(4, (120, 90)), np.random.default_rng(0))
    for pixels in (scene(5, (120, 90)), barred, drawing()):
        ours = pixel_statistics(pixels)
        bars, flat, complexity = naive_shares(pixels)
        assert (ours.bar_flatness_v1, ours.flat_share_v1) == pytest.approx((bars, flat))
        # Pillow and OpenCV round grey differently by at most one level.
        assert ours.complexity_256_v1 == pytest.approx(complexity, abs=0.02)
        assert ours.complexity_256_v1 == ours.complexity_1024_v1


def test_fine_detail_is_too_complex_for_256_and_not_for_1024() -> None:
    stripes = np.zeros((1024, 1024, 3), np.uint8)
    stripes[:, np.arange(1024) % 16 < 8] = 255
    found = pixel_statistics(stripes)
    assert found.complexity_256_v1 > 0.9
    assert 0.2 < found.complexity_1024_v1 < 0.3
    limits = PixelLimits(max_complexity=0.5)
    assert reason(stripes, limits, 256) == f"complex: {found.complexity_256_v1:.3f}, over 0.5"
    assert reason(stripes, limits, 1024) == ""


def test_small_print_is_dense_text_and_a_scene_is_not() -> None:
    rng = np.random.default_rng(0)
    page, panel = planted.text_page(scene(), rng), planted.text_panel(scene(), rng)
    assert pixel_statistics(page).text_density_v1 > 0.3
    assert 0.1 < pixel_statistics(panel).text_density_v1 < 0.5
    assert pixel_statistics(scene()).text_density_v1 < 0.02
    assert text_density(np.zeros((2, 2), np.uint8)) == 0


@pytest.mark.parametrize(
    ("fault", "kinds"),
    [
        ("blank", {"entropy"}),
        ("blank with a speck", {"entropy"}),
        ("frame", {"flat border"}),
        ("bars", {"bars"}),
        ("flat background", {"entropy", "flat border", "white"}),
        ("noise", {"noise"}),
        ("text page", {"entropy"}),
        ("text panel", {"text"}),
        ("melted", {"nothing sharp"}),
    ],
)
def test_a_planted_fault_is_dropped_for_what_it_is_and_the_scene_stays(fault: str, kinds: set[str]) -> None:
    config = CurationConfig(resolution=512, pixels=MIXED.pixels, overrides=MIXED.overrides)
    limits = config.filters.of("gcompris", None).pixels
    rng = np.random.default_rng(7)
    assert reason(scene(), limits, 512) == ""
    found = {reason(planted.FAULTS[fault](scene(seed), rng), limits, 512).partition(":")[0] for seed in range(5)}
    assert found <= kinds


def test_verdicts_say_kind_value_and_limit() -> None:
    measures = {"entropy": 4.0, "white_ratio": 0.996, "black_ratio": 0.0, "laplacian_v1": 20_000.4}
    assert judge(PIXEL_FILTERS, measures, PixelLimits(), 256) == Verdict(False, "white: 0.996, over 0.99", 0.996)
    loose = PixelLimits(max_white_ratio=1.0, max_laplacian=15_000)
    assert judge(PIXEL_FILTERS, measures, loose, 256) == Verdict(False, "noise: 20000, over 15000", 20_000.4)
    assert judge(PIXEL_FILTERS, measures, PixelLimits(max_white_ratio=1.0), 256) == Verdict(True)


def test_what_is_not_known_speaks_against_no_picture() -> None:
    strict = PixelLimits(max_ocr_share=0.1)
    assert reason(scene(), strict) == ""
    assert reason(scene(), strict, ocr_share=0.25) == "read text: 0.250, over 0.1"
    assert judge(PIXEL_FILTERS, {"entropy": None, "ocr_share": None}, strict, 256) == Verdict(True)


@pytest.mark.parametrize("one", FILTERS, ids=lambda one: one.kind)
def test_a_value_at_its_limit_stays_also_after_a_real_column_has_rounded_it(one) -> None:  # type: ignore[no-untyped-def]
    for limit in (0.99, 0.1, 0.37, 0.35):
        assert not one.fails(float(np.float32(limit)), limit)
        assert not one.fails(limit, limit)
    step = -1e-3 if one.under else 1e-3
    assert one.fails(0.99 + step, 0.99)


def test_every_filter_has_a_limit_that_is_off_and_a_sentence() -> None:
    for one in FILTERS:
        limits = ProbeLimits() if one.stage == "probe" else PixelLimits()
        assert hasattr(limits, one.limit)
        assert is_off(one, one.off)
        assert ABOUT[one.kind]
    named = {one.limit for one in FILTERS}
    assert named == {field.name for kind in (ProbeLimits, PixelLimits) for field in fields(kind)}


def test_limits_follow_source_style_and_resolution_and_the_later_override_holds() -> None:
    table = LimitTable(
        resolution=512,
        pixels=PixelLimits(max_white_ratio=0.9),
        overrides=(
            Override(source="cifar-*", probe={"min_side": 32}),
            Override(style="photo", pixels={"max_white_ratio": 0.5, "min_entropy": 3.0}),
            Override(source="cifar-10", style="photo", pixels={"max_white_ratio": 0.7}),
            Override(resolution=1024, pixels={"max_white_ratio": 0.1}),
        ),
    )
    assert table.of("cifar-10", None).probe.min_side == 32
    assert table.of(None, None).probe.min_side == ProbeLimits().min_side
    whites = [
        table.of(*pair).pixels.max_white_ratio for pair in (("cifar-10", "photo"), ("mine", "photo"), ("mine", None))
    ]
    assert whites == [0.7, 0.5, 0.9]
    assert table.of("cifar-10", "photo").pixels.min_entropy == 3.0


def test_a_floor_of_quality_is_refused_below_512() -> None:
    floor = {"min_laplacian": 4.0}
    with pytest.raises(ConfigError, match=r"pixels\.min_laplacian is 4 at resolution 256: a floor .* begins at 512"):
        override(CurationConfig(), ["pixels.min_laplacian=4"])
    with pytest.raises(ConfigError, match=r"overrides\[0\]\.pixels\.min_laplacian is 4 at resolution 256"):
        LimitTable(overrides=(Override(source="mine", pixels=floor),))
    at_512 = LimitTable(resolution=512, overrides=(Override(resolution=512, pixels=floor),))
    assert at_512.of("mine", None).pixels.min_laplacian == 4.0
    assert LimitTable(overrides=(Override(resolution=512, pixels=floor),)).of("mine", None).pixels.min_laplacian == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pixels": {"max_whit": 0.5}}, "overrides: pixels: unknown key 'max_whit'"),
        ({"pixels": {"max_white_ratio": 2}}, r"pixels\.max_white_ratio is 2.0: give a share from 0 to 1"),
        ({"probe": {"min_side": "x"}}, "overrides: probe: min_side='x' has the wrong type"),
        ({"resolution": 300}, r"overrides\.resolution is 300: give one of 256, 512, 1024"),
    ],
)
def test_a_wrong_override_is_refused_with_its_place(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Override(**values)  # type: ignore[arg-type]


def test_a_table_of_limits_can_be_written_as_toml() -> None:
    document = tomllib.loads("""
        resolution = 512
        [pixels]
        max_white_ratio = 0.9
        [[overrides]]
        source = "cifar-10"
        probe = {min_side = 32}
        pixels = {max_complexity = 1}
    """)
    config = from_document(CurationConfig, document)
    assert config.filters.of("cifar-10", None).probe.min_side == 32
    assert config.filters.of("cifar-10", None).pixels == PixelLimits(max_white_ratio=0.9)


def test_the_old_recipes_judge_by_the_old_measures_alone() -> None:
    old = {"entropy", "white", "black", "flat border", "bomb", "small", "aspect"}
    for name in ("drawings", "photos"):
        limits = RECIPES[name].filters.of("drawings", "noto")
        judging = {one.kind for one in FILTERS if not is_off(one, getattr(limits.of(one.stage), one.limit))}
        assert judging <= old
    assert tuple(RECIPES) == RECIPE_NAMES


def encoded(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def test_a_probes_columns_are_enough_for_its_verdict_under_any_limits() -> None:
    good = encoded(Image.fromarray(scene(0, (200, 60))))
    for data in (good, good[:-300], b"nothing", encoded(Image.new("RGB", (500, 500)))):
        for first in (ProbeLimits(), ProbeLimits(min_side=8)):
            row = asdict(measure(data, first.max_pixels))
            for then in (ProbeLimits(), ProbeLimits(min_side=8), ProbeLimits(min_side=8, max_aspect=2)):
                assert from_columns(row, then) == judged(measure(data, then.max_pixels), then)
    assert set(COLUMNS) < set(row)


def test_a_bomb_nobody_decoded_must_be_looked_at_when_it_is_one_no_more() -> None:
    row = asdict(measure(encoded(Image.new("L", (300, 300))), 10_000))
    assert row["damage"] is None
    bomb = from_columns(row, ProbeLimits(max_pixels=10_000))
    assert bomb is not None
    assert bomb.drop.startswith("bomb: 300 x 300")
    assert from_columns(row, ProbeLimits()) is None


def test_a_measured_row_is_judged_without_its_picture(tmp_path: Path) -> None:
    measured = {**asdict(pixel_statistics(scene())), "ocr_share": None}
    probed = asdict(measure(encoded(Image.fromarray(scene())), 10**8))
    row = {"image_path": "not/there.png", "source": "mine", "style": None, **measured, **probed}
    arguments = {"store": str(tmp_path), "limits": to_document(LimitTable())}
    for stage, unknown in ((stages.probe, "damage"), (stages.pixels, "entropy")):
        (verdict,) = stage([row], **arguments)
        assert isinstance(verdict, dict)
        assert verdict[f"{stage.__name__}_drop"] == ""
        (missing,) = stage([{**row, unknown: None}], **arguments)
        assert isinstance(missing, SourceError)


def test_lost_pictures_are_counted_as_the_filter_counts_them() -> None:
    values = np.sort(np.random.default_rng(0).random(500).astype(np.float32))
    limits = np.array([0.0, 0.25, float(values[40]), 0.9, 1.0])
    for one in (PIXEL_FILTERS[0], PIXEL_FILTERS[1]):
        assert lost(one, values, limits).tolist() == [float(one.fails(values, limit).mean()) for limit in limits]
        at = limit_to_lose(one, values, 0.01)
        assert one.fails(values, at).sum() == 5


def test_sizes_are_judged_in_the_order_bomb_small_aspect() -> None:
    sizes = with_sizes({"width": 10, "height": 1000, "aspect": 100.0})
    assert judge(PROBE_FILTERS, sizes, ProbeLimits(max_pixels=1000), 0).reason.startswith("bomb: 10 x 1000")
    assert judge(PROBE_FILTERS, sizes, ProbeLimits(), 0).reason == "small: 10 x 1000, under 64 pixels"
    assert judge(PROBE_FILTERS, sizes, ProbeLimits(min_side=1), 0).reason == "aspect: 100.0, over 4"
