"""The page of a run: everything it is given is on it, what is missing is left out, and it is one file."""

import dataclasses
import re
from pathlib import Path

import numpy as np

from pleinair.evaluation.report import (
    MAX_LOSSLESS_PICTURES,
    Drawing,
    DrawingRow,
    Dropped,
    LossCurve,
    NearestExample,
    Neighbour,
    ReportData,
    StepTime,
    StyleLicence,
    duration,
    render_report,
    write_report,
)


def solid(shade: int) -> np.ndarray:
    return np.full((64, 64, 3), shade, dtype=np.uint8)


FOX = Drawing(picture=solid(10), prompt="fox, noto style")
HELD_OUT = Drawing(picture=solid(20), prompt="fox, twemoji style", held_out=True)
OPENMOJI = StyleLicence(
    style="openmoji",
    author="OpenMoji contributors",
    licence="CC-BY-SA-4.0",
    licence_url="https://creativecommons.org/licenses/by-sa/4.0/",
    source="@iconify-json/openmoji 1.2.29",
)
METRICS = {
    "concept_top5_heldout": 0.6,
    "concept_top5_heldout_interval": [0.55, 0.65],
    "concept_top5_heldout_n": 1412,
    "concept_top5_ceiling": 0.9,
    "concept_top5_floor": 0.01,
    "frechet": 0.0412,
    "frechet_interval": [0.03, 0.05],
    "frechet_n": 1412,
}
WHOLE = ReportData(
    title="Forty <things>",
    description="A small model.",
    styles=("noto", "twemoji"),
    rows=[
        DrawingRow(concept="fox", drawings=[FOX, HELD_OUT]),
        DrawingRow(concept="owl", drawings=[FOX, Drawing(picture=None, prompt="owl, twemoji style")]),
    ],
    metrics=METRICS,
    licences=[OPENMOJI],
    num_pictures_in=2000,
    dropped=[Dropped(stage="probe", reason="cut short", num=1234, examples=[(solid(30), "a cut picture")])],
    loss_curves=[LossCurve(name="32 px", steps=[0, 1, 2], losses=[1.0, 0.8, 0.7])],
    nearest=[
        NearestExample(
            drawing=HELD_OUT, neighbours=[Neighbour(picture=solid(40), caption="fox, noto", similarity=0.93)]
        )
    ],
    weaknesses=["Hands are unrecognisable."],
    configuration={"model": {"width": 256}},
    commit="1f3a9c2",
    machine="2 cores",
    step_times=[StepTime(name="train", seconds=754, budget_seconds=900)],
)
BARE = ReportData(title="Bare", description="", styles=(), rows=(), metrics={}, licences=())


def test_the_page_holds_everything_it_was_given(tmp_path: Path) -> None:
    path = write_report(tmp_path, WHOLE)
    text = path.read_text()
    assert path == tmp_path / "report.html"
    assert [found.name for found in tmp_path.iterdir()] == ["report.html"]
    for told in (
        "Forty &lt;things&gt;",
        "OpenMoji contributors",
        "CC-BY-SA-4.0",
        "@iconify-json/openmoji 1.2.29",
        "cut short",
        "1,234 of 2,000 pictures",
        "Hands are unrecognisable.",
        "1f3a9c2",
        "2 cores",
        "12 min 34 s",
        "15 min 0 s",
        "fox, noto, 0.93",
        "&quot;width&quot;: 256",
        "0.55\u20130.65",
        "0.67",
    ):
        assert told in text, told


def test_the_first_screen_compares_held_out_pairs_with_real_drawings() -> None:
    figures = re.search(r'<div class="figures">.*?</div></div>', render_report(WHOLE))
    assert figures is not None
    assert " ".join(re.sub(r"<[^>]*>", " ", figures.group()).split()) == (
        "60% concept among five guesses of pairs it was never trained on; real drawings reach 90% (ratio 0.67)"
    )


def test_held_out_pairs_are_outlined_and_counted_in_the_legend() -> None:
    text = render_report(WHOLE)
    grid = text[text.index('<table class="grid">') : text.index("</table>")]
    assert grid.count('class="marked"') == 1
    assert 'alt="fox, twemoji style (never trained on)"' in grid
    assert "marks the 1 pairs" in text
    assert grid.count('class="gap"') == 1


def test_what_the_numbers_admit_is_said_in_words() -> None:
    assert (
        "40 have a concept that the judge does not find among its first five; of 100 real ones, 10."
        in render_report(WHOLE)
    )


def test_parts_without_data_are_left_out() -> None:
    headings = re.findall(r'<section id="([^"]*)"', render_report(BARE))
    assert headings == ["how-it-was-made"]
    assert re.findall(r'<section id="([^"]*)"', render_report(WHOLE)) == [
        "how-good",
        "how-weak",
        "memory-or-invention",
        "losses",
        "what-was-dropped",
        "how-it-was-made",
        "whose-drawings",
    ]


def test_the_page_asks_no_other_address_for_anything() -> None:
    text = render_report(WHOLE)
    assert re.findall(r'(?:src|srcset|data|poster)="(?!data:image/)', text) == []
    assert set(re.findall(r'href="([^#"][^"]*)"', text)) == {OPENMOJI.licence_url}
    assert re.findall(r"<(?:script|link|iframe|object)", text) == []


def test_a_page_of_very_many_pictures_stays_under_six_megabytes() -> None:
    noise = np.random.default_rng(0).integers(0, 40, size=(64, 64, 3), dtype=np.uint8)
    pixels = np.repeat(np.repeat(noise[::8, ::8], 8, axis=0), 8, axis=1)
    row = DrawingRow(concept="noise", drawings=[Drawing(picture=pixels, prompt="noise")] * 2)
    large = render_report(dataclasses.replace(WHOLE, rows=[row] * (MAX_LOSSLESS_PICTURES + 300)))
    assert "data:image/webp" in large
    assert len(large) < 6e6


def test_durations_are_read_at_a_glance() -> None:
    assert [duration(seconds) for seconds in (4.4, 754, 9060)] == ["4 s", "12 min 34 s", "2 h 31 min"]
