"""Pages: markup is escaped by type, pictures survive, plots place values, and the file asks nobody for anything."""

import html.parser
import io
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from pleinair.pages import (
    GridCell,
    GridRow,
    Html,
    Section,
    Series,
    data_uri,
    element,
    encode_png,
    encode_webp,
    escape,
    facts,
    grid,
    interval_bar,
    line_plot,
    page,
    strip,
    table,
    write_page,
)
from pleinair.pages.picture import paeth_predictor
from pleinair.pages.plot import MAX_POINTS, Axis, finite_points, short, tick_step, ticks

RED = np.full((4, 4, 3), (255, 0, 0), dtype=np.uint8)


class WellFormed(html.parser.HTMLParser):
    """Fails on a closing tag that does not match; collects what the page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"br", "col", "hr", "img", "meta", "wbr"}:
            self.open.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        self.ids |= {value or "" for name, value in attrs if name == "id"}

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(text: str) -> WellFormed:
    parser = WellFormed()
    parser.feed(text)
    assert parser.open == []
    return parser


def test_text_is_escaped_and_markup_is_not() -> None:
    assert escape('<script>"&') == "&lt;script&gt;&quot;&amp;"
    assert escape(Html("<b>x</b>")) == "<b>x</b>"
    assert element("td", "a < b", class_="number", title='"q"', hidden=True, width=None) == (
        '<td class="number" title="&quot;q&quot;" hidden>a &lt; b</td>'
    )


@settings(max_examples=60)
@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=12).map(lambda size: (*size, 3))))
def test_a_png_decodes_to_the_pixels_it_was_made_from(pixels: np.ndarray) -> None:
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_png(pixels)))), pixels)


def test_a_png_of_a_smooth_picture_is_smaller_than_without_filters() -> None:
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None] * 3, (64, 64, 3)) + np.arange(64)[None, :, None]
    assert len(encode_png(ramp.astype(np.uint8))) < 400


def test_a_webp_is_close_to_its_pixels() -> None:
    decoded = np.asarray(Image.open(io.BytesIO(encode_webp(np.full((16, 16, 3), 200, dtype=np.uint8)))))
    assert np.abs(decoded.astype(int) - 200).max() <= 3


@pytest.mark.parametrize("pixels", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_an_array_that_is_no_rgb_picture_is_refused_by_name(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=re.escape(str(pixels.shape))):
        encode_png(pixels)


def test_encoded_bytes_keep_their_format_and_unknown_bytes_are_refused() -> None:
    assert data_uri(encode_webp(RED)).startswith("data:image/webp;base64,")
    assert data_uri(RED).startswith("data:image/png;base64,")
    with pytest.raises(ValueError, match="<svg"):
        data_uri(b"<svg onload=alert(1)>")


def test_a_column_of_numbers_is_set_flush_right_and_an_empty_cell_shows_a_dash() -> None:
    text = table(("name", "count"), [["a", "1,204"], ["b", ""], ["c", 7]])
    assert text.count('class="number"') == 4
    assert '<td class="number">\u2013</td>' in text
    with pytest.raises(ValueError, match="3 cells for 2 columns"):
        table(("name", "count"), [["a", 1, 2]])


def test_a_grid_marks_the_chosen_cells_and_leaves_gaps_where_there_is_no_picture() -> None:
    row = GridRow(name="fox <3", cells=[GridCell(picture=RED, alt="a fox", marked=True), GridCell(picture=None)])
    text = grid(("noto", "fluent-emoji-flat"), [row])
    assert text.count('<td class="marked">') == 1
    assert text.count('class="gap"') == 1
    assert "fox &lt;3" in text
    assert "fluent-<wbr>emoji-<wbr>flat" in text
    with pytest.raises(ValueError, match="'fox <3' has 2 cells for 1 columns"):
        grid(("noto",), [row])


def test_a_page_is_well_formed_and_refers_only_to_itself() -> None:
    sections = [
        Section(heading="Is it memory?", body=strip([GridCell(picture=RED, alt="red", note="a note")])),
        Section(heading="Losses", body=line_plot([Series(name="a", x=[0, 1], y=[1, 2])], x_label="x", y_label="y")),
        Section(heading="Facts", body=facts({"commit": "abc"})),
    ]
    text = page("A </title><script>alert(1)</script>", Html("<p>opening</p>"), sections)
    parser = parsed(text)
    assert "<script" not in text
    for reference in parser.references:
        assert reference.startswith("data:image/") or reference.removeprefix("#") in parser.ids
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text.replace("&#x27;", "'")


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_page(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_page(path, "new \ud800")
    assert [found.name for found in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text() == "old"


def test_an_axis_maps_its_ends_to_its_pixels() -> None:
    assert Axis(low=1, high=3, start=200, stop=0).place(np.array([1.0, 2.0, 3.0])).tolist() == [200, 100, 0]
    logarithmic = Axis(low=1, high=100, start=0, stop=200, logarithmic=True)
    assert logarithmic.place(np.array([1.0, 10.0, 100.0])).tolist() == [0, 100, 200]


@given(st.floats(1e-9, 1e9))
def test_ticks_are_round_and_between_two_and_six_steps(span: float) -> None:
    step = tick_step(span)
    assert f"{step:.0e}"[0] in "125"
    assert 2 <= span / step <= 5.5 * (1 + 1e-9)


def test_ticks_of_a_logarithmic_axis_are_one_two_five() -> None:
    assert ticks(Axis(low=0.09, high=3, start=0, stop=1, logarithmic=True)).round(6).tolist() == [0.1, 0.2, 0.5, 1, 2]


@pytest.mark.parametrize("neighbours", list(itertools.product((0, 40, 100, 130, 255), repeat=3)))
def test_the_paeth_predictor_breaks_ties_as_the_png_standard_does(neighbours: tuple[int, int, int]) -> None:
    left, above, corner = neighbours
    guess = left + above - corner
    expected = min(neighbours, key=lambda near: abs(guess - near))
    arrays_of = [np.full((1, 1, 3), value, np.int16) for value in neighbours]
    assert paeth_predictor(*arrays_of).tolist() == [[[expected] * 3]]


def test_a_long_flat_series_stays_flat_when_averaged_down() -> None:
    _, thinned_y = finite_points(Series(name="loss", x=range(7 * MAX_POINTS + 13), y=[2.0] * (7 * MAX_POINTS + 13)))
    assert thinned_y.tolist() == [2.0] * MAX_POINTS


def test_a_long_series_is_averaged_down_and_keeps_its_mean() -> None:
    y = np.random.default_rng(0).random(7 * MAX_POINTS)
    thinned_x, thinned_y = finite_points(Series(name="loss", x=range(y.size), y=y))
    assert thinned_x.size == thinned_y.size == MAX_POINTS
    assert thinned_y.mean() == pytest.approx(y.mean())


def test_a_line_lifts_the_pen_where_a_value_is_missing() -> None:
    text = line_plot([Series(name="a", x=[0, 1, 2, 3], y=[1, float("nan"), 2, 3])], x_label="x", y_label="y")
    path = re.search(r'<path d="([^"]*)"', text)
    assert path is not None
    assert re.sub(r"[\d. ]", "", path.group(1)) == "MML"


def test_a_plot_without_a_finite_value_or_of_zero_on_a_logarithmic_axis_is_refused() -> None:
    with pytest.raises(ValueError, match="no finite value"):
        line_plot([Series(name="a", x=[0], y=[float("nan")])], x_label="x", y_label="loss")
    with pytest.raises(ValueError, match=r"reaches 0\.0"):
        line_plot([Series(name="a", x=[0, 1], y=[0, 1])], x_label="x", y_label="loss", logarithmic=True)
    with pytest.raises(ValueError, match="2 x and 1 y"):
        line_plot([Series(name="a", x=[0, 1], y=[0])], x_label="x", y_label="loss")


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [-3.0, -3.0], [1e-8, 2e-8], [0.7, 0.70001]])
def test_a_plot_of_equal_or_tiny_values_is_still_a_plot(values: list[float]) -> None:
    text = line_plot([Series(name="a", x=range(len(values)), y=values)], x_label="x", y_label="y")
    assert "nan" not in text
    assert "inf" not in text


def test_an_interval_says_its_numbers_to_who_cannot_see_it() -> None:
    assert 'aria-label="0.50, interval 0.40 to 0.60"' in interval_bar(0.5, (0.4, 0.6), 0.1, 0.9)


def test_tick_labels_are_short() -> None:
    assert [short(value) for value in (0.05, 1200, 2_500_000, 0)] == ["0.05", "1.2k", "2.5M", "0"]
