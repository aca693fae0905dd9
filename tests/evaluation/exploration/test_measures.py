"""Each measure under planted damage: what it must see, and what it must not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pleinair.evaluation.exploration.diversity import counted, gated_diversity
from pleinair.evaluation.exploration.following import following
from pleinair.evaluation.exploration.measured import Measured, compare
from pleinair.evaluation.exploration.memory import near_copies, unseen_pairs
from pleinair.evaluation.exploration.requests import Asked
from pleinair.evaluation.exploration.sheet import Sheet
from pleinair.evaluation.exploration.styles import can_styles, default_styles
from pleinair.evaluation.exploration.tail import recall_by_count, tail
from pleinair.evaluation.exploration.transfer import in_turn, transfer
from tests.evaluation.exploration.sheets import COPIES, FEATURES, LABELS, STYLES, WORLD, asked, real, sheet_of

TEST_ROWS = np.flatnonzero(WORLD.held_out)


def named(measures: list[Measured]) -> dict[str, Measured]:
    return {one.name: one for one in measures}


def all_measures(sheet: Sheet) -> dict[str, Measured]:
    return named(
        [
            *default_styles(sheet, "first"),
            *can_styles(sheet, "first"),
            *gated_diversity(sheet, "first"),
            *unseen_pairs(sheet, "first"),
            *tail(sheet, "first"),
            *near_copies(sheet, COPIES, 0.99),
            *transfer(sheet, TEST_ROWS, FEATURES[TEST_ROWS]),
        ]
    )


def in_ink(one: Asked) -> int:
    return real(Asked(replace(one.request, style="ink"), one.seed))


def one_thing(one: Asked) -> int:
    return real(Asked(replace(one.request, label=LABELS[0]), one.seed))


def again(one: Asked) -> int:
    return real(Asked(one.request, 0))


def nothing(one: Asked) -> None:
    return None


def of_another_prompt(one: Asked) -> int:
    other = LABELS[(LABELS.index(one.request.label) + 7) % len(LABELS)]
    return real(Asked(replace(one.request, label=other), one.seed))


def trained_only(one: Asked) -> int:
    rows = WORLD.rows_of_concept[WORLD.concept_of_label[one.request.label]]
    return int(np.random.default_rng(one.seed).choice(rows[~WORLD.held_out[rows]]))


REAL = all_measures(sheet_of(real))


@pytest.mark.parametrize(
    ("damage", "sign"),
    [
        (in_ink, {"default_styles": -1, "default_style_distance": 1, "default_styles_per_prompt": -1, "can_style": -1}),
        (one_thing, {"can_concept": -1, "can_both": -1, "diversity": -1, "transfer": -1}),
        (again, {"default_styles_per_prompt": -1, "diversity": -1, "diversity_ungated": -1}),
        (nothing, {"can_style": -1, "can_concept": -1, "can_unseen": -1, "diversity": -1, "transfer": -1}),
        (of_another_prompt, {"can_concept": -1, "can_both": -1, "diversity": -1, "transfer": -1}),
        (trained_only, {"nearer_to_trained": 1}),
    ],
)
def test_a_measure_sees_its_damage(damage: object, sign: dict[str, int]) -> None:
    damaged = all_measures(sheet_of(damage))  # type: ignore[arg-type]
    assert {name: compare(REAL[name], damaged[name]).sign for name in sign} == sign


def test_right_pictures_score_what_they_must() -> None:
    assert {name: REAL[name].value for name in ("can_style", "can_concept", "can_both", "can_unseen")} == {
        "can_style": 1,
        "can_concept": 1,
        "can_both": 1,
        "can_unseen": 1,
    }
    assert REAL["default_styles"].value == pytest.approx(len(STYLES), rel=0.05)
    assert REAL["unseen_gap"].value == REAL["tail_gap"].value == 0


def test_the_order_of_work_and_another_seed_move_nothing() -> None:
    whole = asked()
    order = np.random.default_rng(0).permutation(len(whole))
    shuffled = all_measures(sheet_of(real, [whole[place] for place in order]))
    for name, one in REAL.items():
        assert shuffled[name].value == pytest.approx(one.value, abs=1e-9), name
        assert shuffled[name].interval == pytest.approx(one.interval, abs=1e-9), name
    reseeded = all_measures(sheet_of(real, [Asked(one.request, one.seed + 10_007) for one in whole]))
    for name, one in REAL.items():
        low, high = reseeded[name].interval
        assert one.interval[0] <= high, name
        assert low <= one.interval[1], name


def test_a_classifier_learns_from_the_first_picture_of_every_prompt_first_in_any_order_of_work() -> None:
    told = [one.request for one in asked() if one.request.kind == "specified"][:4]
    whole = [Asked(request, seed) for seed in (3, 1, 2) for request in told]
    shuffled = [whole[place] for place in np.random.default_rng(1).permutation(len(whole))]
    sheet = sheet_of(real, shuffled)
    order = [shuffled[row] for row in in_turn(sheet).tolist()]
    assert [one.seed for one in order] == [1] * 4 + [2] * 4 + [3] * 4
    assert [one.request.unit for one in order] == sorted(request.unit for request in told) * 3


def test_copies_of_one_picture_are_worth_one_and_half_of_them_wrong_half() -> None:
    features = np.repeat(np.random.default_rng(1).normal(size=(1, 16)), 8, axis=0)
    assert counted(features, np.ones(8, bool)) == pytest.approx(1)
    assert counted(features, np.arange(8) < 4) == pytest.approx(0.5)
    assert counted(features, np.zeros(8, bool)) == 0


def test_without_the_gate_noise_would_be_the_most_diverse() -> None:
    noise = named(gated_diversity(sheet_of(nothing), "first"))
    assert noise["diversity_ungated"].value > REAL["diversity_ungated"].value
    assert noise["diversity"].value < REAL["diversity"].value / 2


def test_pairs_that_fail_only_where_unseen_show_as_the_gap() -> None:
    found = named(unseen_pairs(sheet_of(lambda one: None if one.request.kind == "unseen" else real(one)), "first"))
    assert found["can_unseen"].value < 0.2
    assert found["unseen_gap"].value > 0.8


def test_copying_is_a_share_and_chance_is_one_half() -> None:
    assert REAL["nearer_to_trained"].value == pytest.approx(0.5, abs=0.3)
    copied = named(near_copies(sheet_of(trained_only), COPIES, 0.99))
    assert copied["near_copies"].value == 1
    none = named(near_copies(sheet_of(nothing), COPIES, 0.99))
    assert none["near_copies"].value == 0


def test_a_model_that_knows_only_what_is_common_has_a_tail_gap() -> None:
    counts = np.bincount(WORLD.concepts[WORLD.trained_rows])
    common = {label for label in LABELS if counts[WORLD.concept_of_label[label]] == counts.max()}
    assert common != set(LABELS)
    sheet = sheet_of(lambda one: real(one) if one.request.label in common else None)
    assert tail(sheet, "first")[0].value > 0.5
    shares = [share for _, share, _ in recall_by_count(sheet, "first")]
    assert shares[-1] == 1
    assert shares[0] < 0.5


def test_kinds_that_were_not_asked_are_not_measured() -> None:
    assert following(sheet_of(real), "first") == []


def test_pairs_of_one_kind_only_are_refused() -> None:
    seen = [one for one in asked() if one.request.kind == "specified"]
    with pytest.raises(ValueError, match="draw pairs of both kinds"):
        unseen_pairs(sheet_of(real, seen), "first")
