"""What the experiment on specialists makes of its measurements: by hand-made rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.experiments import merging_page as page
from benchmarks.experiments.merging import Training, at_thirds
from benchmarks.experiments.merging_measures import chosen
from benchmarks.experiments.paired import less, over_seeds, verdict
from pleinair.checkpoint.store import save_checkpoint
from pleinair.packing.pictures import CuratedPicture
from pleinair.records.errors import ConfigError

SOLID, LINE = page.NAMES
AVERAGE = page.merge_name(page.HALF)


def rows(model: str, concept: float, domain: str = SOLID, **more: float) -> list[dict[str, Any]]:
    """Three seeds that differ by noise which all models share, and by a little of their own."""
    found = []
    for seed, noise in enumerate((-0.05, 0.0, 0.05)):
        own = 0.001 * (seed - 1) * (len(model) % 3)
        skills = {
            "concept": concept + noise + own,
            "style": concept + noise + own,
            "frechet": 1.0 - concept,
            "error": 0.5,
        }
        found.append({"model": model, "seed": seed, "domain": domain, **skills, **more})
    return found


def test_a_verdict_needs_every_interval_on_one_side_and_a_single_seed_decides_nothing() -> None:
    assert verdict([0.10, 0.11, 0.12]) == "reached"
    assert verdict([0.10, 0.11, 0.12], (-0.01, 0.2)) == "undecided"
    assert verdict([0.10, 0.11, 0.12], (-0.2, -0.1)) == "not reached"
    assert verdict([-0.10, -0.11, -0.12]) == "not reached"
    assert verdict([0.3]) == verdict([-0.1, 0.1, 0.3]) == "undecided"
    assert over_seeds([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.30 / math.sqrt(3), 2 + 4.30 / math.sqrt(3)))
    assert less([1.0, 2.0], [1.0, 1.0], 0.5) == [0.5, 1.5]


@pytest.mark.parametrize(
    ("student", "says"), [(0.59, "95%; to reach: 95%, undecided."), (0.63, "115%; to reach: 95%, reached."),
                          (0.5, "50%; to reach: 95%, not reached.")]
)  # fmt: skip
def test_a_student_is_told_by_its_share_of_the_specialists_gain(student: float, says: str) -> None:
    told = rows(page.BASE, 0.4) + rows(SOLID, 0.6) + rows(page.STUDENT, student)
    assert page.kept_line(told, SOLID, "concept").endswith(says)


def test_an_untrained_student_claims_nothing_where_the_specialist_gains_nothing() -> None:
    told = rows(page.BASE, 0.6) + rows(SOLID, 0.6) + rows(page.STUDENT, 0.6)
    line = page.kept_line(told, SOLID, "concept")
    assert "95% of the specialist's: reached" in line
    assert line.endswith("no gain is shown: nothing is claimed.")


def test_a_smaller_distance_is_a_gain() -> None:
    told = rows(page.BASE, 0.4) + rows(SOLID, 0.6)
    assert page.gains(told, SOLID, SOLID, "frechet") == pytest.approx([0.2] * 3)


def test_the_student_is_held_against_the_merge_of_least_held_out_error() -> None:
    told = []
    for domain in page.NAMES:
        told += rows(page.BASE, 0.4, domain) + rows(page.STUDENT, 0.61, domain, error=0.3)
        told += rows(AVERAGE, 0.5, domain, error=0.4) + rows(page.merge_name(1.0), 0.7, domain, error=0.45)
    assert page.rivals_of(told)[0] == AVERAGE
    line = page.rival_line(told, AVERAGE)
    assert "things and styles named +0.110" in line
    assert "more: reached" in line
    assert "lower by +0.1000" in line


def looks(base: float, expert: float) -> str:
    told = [
        {"model": model, "seed": seed, "domain": LINE, "saturation": value + 0.001 * seed}
        for model, value in ((page.BASE, base), (LINE, expert))
        for seed in range(3)
    ]
    return page.look_line(told, LINE, "saturation", 0.2)


def test_fine_tuning_cures_only_a_fault_that_the_base_has() -> None:
    assert looks(0.3, 0.22).endswith(
        "The base has too much; fine-tuning brings it nearer by +0.080 \u00b1 0.000: reached."
    )
    assert looks(0.1, 0.19).endswith("too little; fine-tuning brings it nearer by +0.090 \u00b1 0.000: reached.")
    assert looks(0.3, 0.45).endswith("not reached.")
    assert looks(0.199, 0.45).endswith("nothing to cure.")


def returns(*falls: float) -> list[dict[str, Any]]:
    return [
        {"seed": seed, "step": 20 * (third + 1), "domain": domain, "merge": fall + 0.001 * seed, "specialist": 0.1}
        for third, fall in enumerate(falls)
        for domain in page.NAMES
        for seed in range(3)
    ]


def test_returns_diminish_where_the_last_third_brings_less_than_the_first() -> None:
    line = page.returns_line(returns(0.05, 0.07, 0.08))
    assert "of what the specialists gain on their own domains 51%, 71%, 81%" in line
    assert "+0.0410 \u00b1 0.0025 more than the last; diminishing: reached." in line
    assert "diminishing: not reached" in page.returns_line(returns(0.01, 0.02, 0.09))


def test_the_page_says_how_things_are_compared_and_shows_every_model_on_every_domain() -> None:
    more = {"saturation": 0.3, "fine_detail": 0.1}
    models = (page.BASE, *page.NAMES, AVERAGE, page.MIXED, page.REWARDED, f"{page.REWARDED}, no guidance", page.STUDENT)
    told = [
        {**one, "pixels": [[[[9, 9, 9]]]]}
        for domain in page.NAMES
        for name in models
        for one in rows(name, 0.5, domain, **more)
    ]
    real = {domain: {"concept": 0.9, **more} for domain in page.NAMES}
    texts = {domain: [f"a {domain} fox"] for domain in page.NAMES}
    html = page.report(
        "Title\n\npicture\n\nHow it is compared.", told, returns(0.05, 0.07, 0.08), real, texts, "a commit"
    )
    assert "<p>How it is compared.</p>" in html
    assert "a commit" in html
    assert all(f"a {domain} fox" in html for domain in page.NAMES)
    assert html.count("<li>") >= len(page.verdicts(told, returns(0.05, 0.07, 0.08), real)) == 8 + 4 + 4 + 1


def test_thirds_are_of_equal_steps_whatever_the_clock_saved(tmp_path: Path) -> None:
    for step in (15, 20, 33, 40, 52, 60):
        save_checkpoint(tmp_path, step, {}, {"run.json": {}}, config_digest="0", keep=9)
    paths = sorted(tmp_path.glob("step-*"))
    assert [one.name for one in at_thirds(paths, 60)] == ["step-00000020", "step-00000040", "step-00000060"]
    with pytest.raises(ConfigError, match="multiple of 3"):
        Training(num_steps=61)


def picture(key: str, held_out: bool) -> CuratedPicture:
    return CuratedPicture(key, "noto", "fox", "fox", held_out, ("", "", key), {})


def test_held_out_pictures_are_judged_first_and_all_come_again_when_all_have_come() -> None:
    pictures = [picture("a", False), picture("b", True)]
    assert [one.key for one in chosen(pictures, 5)] == ["b", "a", "b", "a", "b"]
