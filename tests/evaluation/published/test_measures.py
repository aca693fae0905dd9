"""Aggregates by the published formulas: answers written down, results worked out by hand beside them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from pleinair.evaluation.published import BENCHMARKS, Answer, Plan
from pleinair.evaluation.published.dimcim import evenness
from pleinair.evaluation.published.matching import closeness, edit_distance, letters, num_shared, signs
from tests.evaluation.published import prompt_files as files


def measures(suite: str, path: Path, copies: int, says: Any) -> dict[str, float]:
    benchmark = BENCHMARKS[suite]
    items = benchmark.read(path, Plan(model="ours", copies=copies))
    return {name: one.value for name, one in benchmark.measure(files.answered(items, copies, says)).items()}


def test_geneval2_is_the_arithmetic_and_geometric_mean_over_atoms_then_over_prompts(tmp_path: Path) -> None:
    chances = {"How many foxes": 0.5, "Are the foxes red": 1.0, "Are there any foxes": 1.0, "Are the foxes on": 0.125}
    chances |= {"How many drums": 0.25, "Are there any drums": 1.0}

    def says(key: str, picture: int, question: str) -> Answer:
        return Answer("", next(chance for start, chance in chances.items() if question.startswith(start)))

    assert measures("geneval2", files.geneval2_file(tmp_path), 1, says) == pytest.approx(
        {
            "soft_tifa_am": 100 * (2.625 / 4 + 1.25 / 2) / 2,
            "soft_tifa_gm": 100 * (0.5 + 0.5) / 2,  # the fourth root of 1/16, and the root of 1/4
            "am_object": 100.0,
            "am_attribute": 100.0,
            "am_count": 37.5,
            "am_position": 12.5,
            "gm_3_atoms": 50.0,
            "gm_4_atoms": 50.0,
        }
    )


def test_geneval2_gives_a_prompt_with_an_impossible_atom_no_geometric_mean(tmp_path: Path) -> None:
    def says(key: str, picture: int, question: str) -> Answer:
        return Answer("", 0.0 if question.startswith("How many") else 1.0)

    found = measures("geneval2", files.geneval2_file(tmp_path), 1, says)
    assert (found["soft_tifa_gm"], found["soft_tifa_am"]) == (0.0, 100 * (0.75 + 0.5) / 2)


def test_dpg_counts_a_child_only_under_parents_that_count(tmp_path: Path) -> None:
    no = {
        ("lamp", 0): ["Is there a lamp?"],
        ("lamp", 1): ["Is the lamp green?"],
        ("gull", 0): [],
        ("gull", 1): ["asleep"],
    }

    def says(key: str, picture: int, question: str) -> Answer:
        return Answer("no" if any(part in question for part in no[key, picture]) else "Yes.")

    found = measures("dpg", files.dpg_file(tmp_path), 2, says)
    # lamp: the first picture loses all three (the third by its grandparent), the second two of three; gull: 1 and 1/2
    assert found["dpg"] == pytest.approx(100 * ((0 + 1 / 3) / 2 + (1 + 1 / 2) / 2) / 2)
    # categories: bare answers on the last picture, so the third question of lamp holds although its parent does not
    assert {name: found[name] for name in ("attribute", "entity", "relation", "entity - state")} == pytest.approx(
        {"attribute": 0.0, "entity": 100 * 2 / 3, "relation": 100.0, "entity - state": 0.0}
    )


def test_oneig_asks_only_the_parents_own_answers_and_leaves_black_pictures_out(tmp_path: Path) -> None:
    files.oneig_folder(tmp_path)

    def says(key: str, picture: int, question: str) -> Answer:
        if key == "text/000":
            return Answer(["OPEN late till 9", "open late"][picture])
        return Answer("No" if "Is there" in question else "Yes")

    found = measures("oneig", tmp_path, 2, says)
    # sailor: the second falls with the first, the third stays since the second was answered yes; kettle: none
    assert [found[f"alignment{name}"] for name in ("", "_human", "_object")] == pytest.approx([1 / 6, 1 / 3, 0.0])
    # exact once; from "open late" to "OPEN late till 9" are 4 signs to replace and 7 to add
    assert found["text_ed"] == 11 / 2
    assert (found["text_cr"], found["text_wac"]) == (0.5, 5 / 8)
    assert found["text"] == pytest.approx(1 - 5.5 * 0.5 * (3 / 8) / 100)
    benchmark = BENCHMARKS["oneig"]
    items = benchmark.read(tmp_path, Plan(copies=2))
    judged = [one for one in files.answered(items, 2, says) if one.item.about.folder == "human"]
    black = type(judged[0])(judged[0].item, ())
    assert benchmark.measure([*judged, black])["alignment"].num == 1


def test_oneig_compares_signs_in_chinese_and_caps_the_distance_at_fifty(tmp_path: Path) -> None:
    table = files.oneig_folder(tmp_path, chinese=True)
    found = measures("oneig", table, 1, lambda key, picture, question: Answer("\u6625 \u6765" + "x" * 60))
    # 2 of 4 signs are read; to the text it is one sign to put in, one to replace and 59 to take away, and 50 count
    assert (found["text_wac"], found["text_ed"]) == (0.5, 61.0)
    assert found["text"] == pytest.approx(1 - 50 * 1 * 0.5 / 50)


def test_longtext_counts_words_over_all_pictures_as_often_as_they_are_wanted(tmp_path: Path) -> None:
    read = {
        ("0000", 0): "FRESH bread!\nrolls rolls",
        ("0000", 1): "No text recognized.",
        ("0012", 0): "creme cr\u00e8me",
        ("0012", 1): "",
    }
    found = measures("longtext", files.longtext_file(tmp_path), 2, lambda key, n, question: Answer(read[key, n]))
    assert found == {"text_score": (3 + 0 + 1 + 0) / (4 + 4 + 1 + 1)}


def test_cvtg_takes_accuracy_and_closeness_over_words(tmp_path: Path) -> None:
    read = {"CVTG/2/0": "NO\nENTRAY", "CVTG-Style/3/5": "No text recognized."}
    found = measures("cvtg", files.cvtg_folder(tmp_path), 1, lambda key, n, question: Answer(read[key]))
    # by difflib hello is nearer to no (2/7) than to entray (2/11), from which it is 4 edits away
    close = [1.0, 1 - 1 / (6 + 1e-5), 1 - 4 / (5 + 1e-5)]
    nothing = [1 - 3 / (3 + 1e-5), 1 - 4 / (4 + 1e-5), 1 - 4 / (4 + 1e-5)]
    assert found == pytest.approx(
        {
            "word_accuracy": 1 / 6,
            "word_accuracy_CVTG": 1 / 3,
            "word_accuracy_CVTG-Style": 0.0,
            "normalised_edit_distance": sum(close + nothing) / 6,
            "normalised_edit_distance_CVTG": sum(close) / 3,
            "normalised_edit_distance_CVTG-Style": sum(nothing) / 3,
        }
    )
    assert closeness("hello", ["hallo", "help"]) == pytest.approx(1 - 1 / (5 + 1e-5))


def test_dimcim_tells_what_is_shown_unasked_from_what_is_shown_when_asked(tmp_path: Path) -> None:
    def says(key: str, picture: int, question: str) -> Answer:
        if "/dense/" in key:
            return Answer("", 0.8 if "red" in question else 0.4)
        return Answer(
            "", {"red": [0.9, 0.4], "blue": [0.2, 0.5], "round": [0.2, 0.3]}[question.split()[-8][:-1]][picture]
        )

    found = measures("dimcim", files.dimcim_folder(tmp_path), 2, says)
    share = 0.65  # red is 0.65 and blue 0.35 on average
    even = -(share * math.log(share) + (1 - share) * math.log(1 - share)) / math.log(2)
    assert found == pytest.approx({"can_it_share": 0.6, "does_it_coverage": 1 / 3, "does_it_evenness": even})


@pytest.mark.parametrize(("shares", "told"), [([0.3, 0.3, 0.3], 1.0), ([0.7, 0.0], 0.0), ([0.0, 0.0], 0.0)])
def test_evenness_runs_from_one_thing_always_to_all_alike(shares: list[float], told: float) -> None:
    assert evenness(shares) == pytest.approx(told)


def test_hpsv3_averages_categories_not_pictures(tmp_path: Path) -> None:
    scores = {"animals/00000": 3.0, "animals/00001": 5.0, "animals/00002": 7.0, "food/00000": -1.0, "food/00001": 2.0}
    found = measures("hpsv3", files.hpsv3_folder(tmp_path), 1, lambda key, n, question: Answer("", scores[key]))
    assert found == {"hpsv3": (5.0 + 0.5) / 2, "hpsv3_animals": 5.0, "hpsv3_food": 0.5}


@pytest.mark.parametrize(
    ("one", "other", "far"), [("", "", 0), ("", "ab", 2), ("kitten", "sitting", 3), ("abc", "cab", 2)]
)
def test_edit_distance_is_levenshteins(one: str, other: str, far: int) -> None:
    assert edit_distance(one, other) == edit_distance(other, one) == far


def test_texts_are_compared_by_letters_and_digits_alone() -> None:
    assert letters("  A-b,\n c\u00e9 \u20ac9 \u6625 ") == "Ab c\u00e9 9 \u6625"
    assert signs("\u6625 \u5929\uff0cA b") == "\u6625\u5929Ab"
    assert num_shared(["a", "a", "b"], ["a", "b", "b", "c"]) == 2
