from __future__ import annotations

import json
from pathlib import Path

import pytest

from pleinair.cli.main import main
from pleinair.evaluation.exploration.ledger import ledger, ledger_page
from pleinair.evaluation.exploration.measured import measured
from pleinair.evaluation.exploration.orders import (
    SELF_TEST,
    SUBJECTS,
    UNORDERED,
    Order,
    agreements,
    check_orders,
    check_two_runs,
    two_runs_page,
)
from pleinair.evaluation.exploration.suite import MEANINGS, Result, from_document, to_document
from pleinair.records.errors import ConfigError


def result(subject: str, level: float, *, judges: tuple[str, ...] = ("first", "second"), **changed: object) -> Result:
    """A result whose prompts all gave about one level."""
    units = {f"prompt {place}": level + 0.01 * (place % 3) for place in range(20)}
    plain = {"size": "quick", "seed": 0, "prompts_sha256": "a" * 64, "num_pictures": 20, "seconds": 1.0}
    plain |= {"identity": subject * 20} | changed
    names = ("can_both", "diversity", "near_copies")
    measures = {name: {judge: measured(name, units, 20) for judge in judges} for name in names}
    return Result(subject=subject, measures=measures, **plain)  # type: ignore[arg-type]


def test_a_chain_is_read_from_text() -> None:
    assert Order.of("can_both", "noise < copies <= real") == Order("can_both", ["noise", "copies", "real"], ["<", "<="])


def test_every_measure_has_damage_that_it_must_see_and_an_order_of_subjects_or_a_reason_for_none() -> None:
    assert {order.measure for order in SELF_TEST} == set(MEANINGS)
    assert {order.measure for order in SUBJECTS} | set(UNORDERED) == set(MEANINGS)


def test_an_order_holds_where_each_paired_difference_has_its_sign() -> None:
    results = {"low": result("low", 0.2), "high": result("high", 0.8), "same": result("same", 0.8)}
    held = {
        chain: [step.holds for step in check_orders([Order.of("can_both", chain)], results)]
        for chain in (
            "low < high",
            "high < low",
            "high <= same",
            "high < same",
            "low < nobody",
            "low < nobody <= high",
            "high <= nobody < same",
        )
    }
    assert held == {
        "low < high": [True, True],
        "high < low": [False, False],
        "high <= same": [True, True],
        "high < same": [False, False],
        "low < nobody": [],
        "low < nobody <= high": [True, True],
        "high <= nobody < same": [False, False],
    }


def test_two_runs_agree_where_their_intervals_overlap() -> None:
    near = agreements(result("a", 0.5), result("a", 0.505))
    assert [(one.measure, one.judge) for one in near] == [
        (name, judge) for name in ("can_both", "diversity", "near_copies") for judge in ("first", "second")
    ]
    assert all(one.agrees for one in near)
    far = check_two_runs(result("a", 0.5), result("a", 0.9, seed=1))
    assert not any(one.agrees for one in far)
    assert far[0].comparison.difference == pytest.approx(0.4)
    assert two_runs_page("a", (0, 1), far).count("DIFFER") == 6


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"seed": 1, "identity": "b" * 20}, "two checkpoints are compared by `pleinair ledger`"),
        ({"seed": 1, "size": "full"}, "of other prompts or sizes"),
        ({"seed": 1, "prompts_sha256": "b" * 64}, "of other prompts or sizes"),
        ({}, "evaluate one again with --seed 1"),
    ],
)
def test_results_that_are_no_two_runs_of_one_checkpoint_are_refused(other: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_two_runs(result("a", 0.5), result("a", 0.5, **other))  # type: ignore[arg-type]


def test_the_command_says_of_two_runs_which_measures_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = {"one": result("a", 0.5), "same": result("a", 0.505, seed=1), "other": result("a", 0.9, seed=2)}
    for name, run in runs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps(to_document(run)))
    page = tmp_path / "page.html"
    assert main(["orders", str(tmp_path / "one"), str(tmp_path / "same"), "-o", str(page)]) == 0
    assert "6 of 6 agree" in capsys.readouterr().out
    assert "seed 1" in page.read_text()
    assert main(["orders", str(tmp_path / "one"), str(tmp_path / "other" / "metrics.json")]) == 1
    assert "0 of 6 agree" in capsys.readouterr().out
    assert main(["orders", str(tmp_path / "one")]) == 1
    assert "give one, and real; or two results of one checkpoint" in capsys.readouterr().err


def test_a_result_survives_its_json() -> None:
    before = result("a", 0.5, rejected={"can_both": ("second",)})
    assert before.is_rejected("can_both", "second")
    assert not before.is_rejected("can_both", "first")
    assert from_document(json.loads(json.dumps(to_document(before)))) == before


@pytest.mark.parametrize("document", [{}, {"suite": "other", "version": 1}, {"suite": "exploration", "version": 1}])
def test_another_document_is_refused(document: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="give a metrics.json"):
        from_document(document)


def test_a_ledger_tells_each_change_since_the_first_stage() -> None:
    rows = ledger([result("base", 0.5), result("tuned", 0.7)])
    (_, first), (name, entries) = rows
    assert [entry.since_first for entry in first] == [None] * 3
    assert name == "tuned"
    change = entries[0].since_first
    assert change is not None
    assert change.difference == pytest.approx(0.2)
    page = ledger_page(rows)
    assert "tuned" in page
    assert "of the first stage" in page
    assert "of the first stage" not in ledger_page(rows[:1])


def test_a_measure_that_its_self_test_rejects_is_doubted_in_the_ledger() -> None:
    rows = ledger([result("base", 0.5), result("tuned", 0.7, rejected={"diversity": ("first",)})])
    assert [list(entry.doubts) for entry in rows[1][1]] == [[], ["rejected by its self test"], []]
    assert ledger_page(rows).count("rejected by its self test") == 1


def test_judges_that_disagree_in_sign_are_told() -> None:
    base, tuned = result("base", 0.5), result("tuned", 0.7)
    measures = {
        **tuned.measures,
        "can_both": {**tuned.measures["can_both"], "second": result("x", 0.1).measure("can_both")},
    }
    rows = ledger([base, Result(**{**vars(tuned), "measures": measures})])
    assert [list(entry.doubts) for entry in rows[1][1]] == [["the judges disagree"], [], []]


def test_stages_that_were_asked_different_things_are_refused() -> None:
    with pytest.raises(ConfigError, match="asked different things"):
        ledger([result("base", 0.5), result("tuned", 0.7, seed=1)])
    with pytest.raises(ConfigError, match="no stages"):
        ledger([])
