from __future__ import annotations

import json

import pytest

from pleinair.evaluation.exploration.ledger import ledger, ledger_page
from pleinair.evaluation.exploration.measured import measured
from pleinair.evaluation.exploration.orders import SELF_TEST, SUBJECTS, Order, check_orders, moved
from pleinair.evaluation.exploration.suite import MEANINGS, Result, from_document, to_document
from pleinair.records.errors import ConfigError


def result(subject: str, level: float, *, judges: tuple[str, ...] = ("first", "second"), **changed: object) -> Result:
    """A result whose prompts all gave about one level."""
    units = {f"prompt {place}": level + 0.01 * (place % 3) for place in range(20)}
    plain = {"size": "quick", "seed": 0, "prompts_sha256": "a" * 64, "num_pictures": 20, "seconds": 1.0} | changed
    names = ("can_both", "diversity", "near_copies")
    measures = {name: {judge: measured(name, units, 20) for judge in judges} for name in names}
    return Result(subject=subject, measures=measures, **plain)  # type: ignore[arg-type]


def test_a_chain_is_read_from_text() -> None:
    assert Order.of("can_both", "noise < copies <= real") == Order("can_both", ["noise", "copies", "real"], ["<", "<="])


def test_orders_name_measures_that_exist() -> None:
    assert {order.measure for order in (*SELF_TEST, *SUBJECTS)} <= set(MEANINGS)


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


def test_two_runs_that_agree_have_not_moved() -> None:
    assert moved(result("a", 0.5), result("a", 0.505)) == []
    assert [name for name, _, _ in moved(result("a", 0.5), result("a", 0.9))][::2] == [
        "can_both",
        "diversity",
        "near_copies",
    ]


def test_a_result_survives_its_json() -> None:
    before = result("a", 0.5)
    assert from_document(json.loads(json.dumps(to_document(before)))) == before


@pytest.mark.parametrize("document", [{}, {"suite": "other", "version": 1}, {"suite": "exploration", "version": 2}])
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
    assert "tuned" in ledger_page(rows)


def test_judges_that_disagree_in_sign_are_told() -> None:
    base, tuned = result("base", 0.5), result("tuned", 0.7)
    measures = {
        **tuned.measures,
        "can_both": {**tuned.measures["can_both"], "second": result("x", 0.1).measure("can_both")},
    }
    rows = ledger([base, Result(**{**vars(tuned), "measures": measures})])
    assert [entry.judges_agree for entry in rows[1][1]] == [False, True, True]


def test_stages_that_were_asked_different_things_are_refused() -> None:
    with pytest.raises(ConfigError, match="asked different things"):
        ledger([result("base", 0.5), result("tuned", 0.7, seed=1)])
    with pytest.raises(ConfigError, match="no stages"):
        ledger([])
