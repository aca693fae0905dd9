"""JSON found in what models say, and held against the form asked for; and waits read from headers."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pleinair.endpoints.retry import retry_after_seconds, wait_seconds
from pleinair.endpoints.schema import parse, problem
from pleinair.records.errors import AnswerError, ConfigError

CLAIM = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "minLength": 2, "maxLength": 8},
        "kind": {"enum": ["colour", "number"]},
        "scores": {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 2},
        "count": {"type": "integer"},
    },
    "required": ["text", "kind"],
    "additionalProperties": False,
}
GOOD = {"text": "a fox", "kind": "colour", "scores": [1, 0.5], "count": 3}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    ).filter(lambda value: isinstance(value, dict | list)),
    st.sampled_from(["{}", "Sure! {}", "```json\n{}\n```", "{} I hope this helps."]),
)
def test_json_is_found_in_whatever_a_model_wraps_it_in(value: Any, wrapping: str) -> None:
    assert parse(wrapping.replace("{}", json.dumps(value), 1), {}) == value


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"text": "a"}, "the answer.text has 1 characters, minLength is 2"),
        ({"text": "a long sentence"}, "maxLength is 8"),
        ({"text": 3}, "the answer.text is 3, not string"),
        ({"kind": "size"}, 'the answer.kind is "size", not one of'),
        ({"scores": []}, "the answer.scores has 0 items, minItems is 1"),
        ({"scores": [1, 2, 3]}, "maxItems is 2"),
        ({"scores": ["1"]}, 'the answer.scores[0] is "1", not number'),
        ({"count": 1.5}, "not integer"),
        ({"count": True}, "the answer.count is true, not integer"),
        ({"more": 1}, "has 'more', which was not asked for"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], told: str) -> None:
    assert problem(GOOD, CLAIM) == ""
    assert told in problem({**GOOD, **change}, CLAIM)
    with pytest.raises(AnswerError):
        parse(json.dumps({**GOOD, **change}), CLAIM)


@pytest.mark.parametrize("text", ["", "no", '{"a": ', "[1, 2", '{"a": NaN}', "[" * 100_000])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(AnswerError, match="no JSON can be read"):
        parse(text, {})


def test_a_schema_we_could_not_check_is_refused() -> None:
    with pytest.raises(ConfigError, match="schema keyword 'pattern' is not checked here"):
        problem("x", {"type": "string", "pattern": "y"})


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, None), ("7", 7.0), ("0.25", 0.25), ("-3", 0.0), ("soon", None), ("", None),
     ("Tue, 24 Nov 2026 12:00:30 GMT", 30.0), ("Tue, 24 Nov 2026 11:00:00 GMT", 0.0)],
)  # fmt: skip
def test_retry_after_is_read_as_seconds_or_as_a_date(header: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(header, datetime(2026, 11, 24, 12, tzinfo=UTC)) == seconds


def test_waits_double_up_to_the_longest_and_are_never_the_same() -> None:
    waits = [[wait_seconds(attempt, 10.0) for _ in range(50)] for attempt in range(1, 9)]
    for attempt, of_attempt in enumerate(waits):
        top = min(10.0, 0.5 * 2**attempt)
        assert top / 2 <= min(of_attempt) < max(of_attempt) <= top
