"""From answers to what they say: people and judges apart, the careless left out, nothing claimed that nobody said."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pleinair.evaluation.people.findings import agreement, agreement_of_people, findings
from pleinair.evaluation.people.judged import answer_as_judges
from pleinair.evaluation.people.report import NO_PERSON, people_page, people_section
from pleinair.evaluation.people.shown import Showing
from pleinair.evaluation.people.sitting import Answered, Sitting
from pleinair.evaluation.people.trials import Trial, comparisons, controls, session
from pleinair.records.errors import ConfigError
from pleinair.records.preferences import Answer, PreferenceEvent, PreferenceLog
from tests.evaluation.people.showings import CONCEPTS, SIDES, STYLES, event, look, read_three

Person = Callable[[Trial], Answer]


@pytest.fixture(scope="module")
def showing(tmp_path_factory: pytest.TempPathFactory) -> Showing:
    return read_three(tmp_path_factory.mktemp("results"))


@pytest.fixture
def log(tmp_path: Path) -> PreferenceLog:
    return PreferenceLog(tmp_path / "log.jsonl")


def likes_rich(trial: Trial) -> Answer:
    """Looks, and prefers the richer subject."""
    if trial.control:
        return trial.control
    return "left" if trial.left.gallery.subject == "rich-model" else "right"


def likes_narrow(trial: Trial) -> Answer:
    """Looks, and prefers the other."""
    return trial.control or ("right" if likes_rich(trial) == "left" else "left")


def always_left(trial: Trial) -> Answer:
    """Does not look."""
    return "left"


def sit(showing: Showing, log: PreferenceLog, name: str, person: Person, num: int = 12) -> None:
    trials = session(comparisons(showing, STYLES), controls(showing, STYLES), name, num, 0)
    given = [Answered(event=str(uuid.uuid4()), trial=one.trial, answer=person(one), seconds=2) for one in trials]
    Sitting(showing, trials, log, name).answer(given)


def judge(showing: Showing, log: PreferenceLog) -> int:
    return answer_as_judges(
        showing, comparisons(showing, STYLES), controls(showing, STYLES), log, look, list(STYLES), CONCEPTS
    )


def test_without_a_person_the_page_says_so_whatever_judges_said(showing: Showing, log: PreferenceLog) -> None:
    assert people_section([]).lead == NO_PERSON
    judge(showing, log)
    events = log.events()
    assert {one.origin for one in events} == {"synthetic"}
    assert findings(events, "human") is None
    assert people_section(events).lead == NO_PERSON
    page = people_page(events)
    assert "No person has judged" in page
    assert "synthetic, no person" in page


def test_judges_answer_what_they_see_once_and_pass_their_own_controls(showing: Showing, log: PreferenceLog) -> None:
    num = judge(showing, log)
    assert num == len(log.events())
    assert judge(showing, log) == 0
    found = findings(log.events(), "synthetic")
    assert found is not None
    assert (found.persons, found.careless) == (["first judge", "second judge"], [])
    assert found.controls is not None
    assert found.itself is not None
    assert (found.controls.value, found.itself.value) == (1.0, 1.0)
    by_name = {one.attribute: one for one in found.standings}
    assert set(by_name) == {"styles", "follows_style", "shows_thing"}
    narrow, rich = found.subjects.index("narrow-model"), found.subjects.index("rich-model")
    # Open prompts of the narrow subject are all in one style, and so are its answers to the prompts that name another.
    assert by_name["styles"].wins[rich] == by_name["styles"].num == 10
    assert by_name["follows_style"].wins[narrow] == 0
    assert by_name["follows_style"].same == [2, 2]  # asked for the one style it has
    assert by_name["shows_thing"].same[rich] == by_name["shows_thing"].num


def test_people_who_prefer_one_subject_make_it_strong_and_agree_with_the_judges(
    showing: Showing, log: PreferenceLog
) -> None:
    for name in ("ada", "bo", "cy"):
        sit(showing, log, name, likes_rich)
    judge(showing, log)
    events = log.events()
    found = findings(events, "human")
    assert found is not None
    assert (found.persons, found.careless) == (["ada", "bo", "cy"], [])
    rich = found.subjects.index("rich-model")
    for one in found.standings:
        assert one.strengths.theta_K[rich] > 0
        assert one.strengths.interval_K2[rich, 0] > 0, one.attribute
        assert one.wins[rich] == one.num
    styles = agreement(events, "first judge", "styles")
    people = agreement_of_people(events, "styles")
    assert styles is not None
    assert people is not None
    assert (styles.value, people.value) == (1.0, 1.0)
    assert styles.num == sum(one.num for one in found.standings if one.attribute == "styles")
    assert agreement(events, "first judge", "prefer") is None
    assert agreement(events, "first judge", "shows_thing") is None  # the judges saw no difference
    text = people_page(events)
    assert "No person has judged" not in text
    assert "3 people" in text
    assert "not asked" in text


def test_a_person_who_contradicts_the_judges_is_counted_as_such(showing: Showing, log: PreferenceLog) -> None:
    sit(showing, log, "ada", likes_rich)
    sit(showing, log, "bo", likes_narrow)
    judge(showing, log)
    events = log.events()
    own = {one.person: one for one in events}
    assert set(own) == {"ada", "bo", "first judge", "second judge"}
    of_bo = [one for one in events if one.person != "ada"]
    found = agreement(of_bo, "second judge", "styles")
    assert found is not None
    assert found.value == 0.0
    between = agreement_of_people(events, "styles")
    assert between is None or between.value == 0.0


def test_who_does_not_look_is_recognised_and_left_out(showing: Showing, log: PreferenceLog) -> None:
    sit(showing, log, "ada", likes_rich, 14)
    possible, known = comparisons(showing, STYLES), controls(showing, STYLES)
    persons = (f"zed{number}" for number in range(20))
    # One whose two controls are not both on the left, where not looking is right.
    zed = next(one for one in persons if any(t.control == "right" for t in session(possible, known, one, 14, 0)))
    sit(showing, log, zed, always_left, 14)
    found = findings(log.events(), "human")
    assert found is not None
    assert (found.persons, found.careless) == (["ada"], [zed])
    assert sum(one.num for one in found.standings) == 14
    assert zed in people_page(log.events())
    assert found.controls is not None
    assert found.controls.value < 1


def test_an_answer_for_one_side_whatever_stands_there_is_seen_in_repeats_and_sides(
    showing: Showing, log: PreferenceLog
) -> None:
    sit(showing, log, "zed", lambda trial: trial.control or "left", 14)
    found = findings(log.events(), "human")
    assert found is not None
    assert found.itself is not None
    assert found.left is not None
    assert (found.itself.value, found.left.value) == (0.0, 1.0)


def made(answers: str, person: str = "ada") -> list[PreferenceEvent]:
    names = {"l": "left", "r": "right", "s": "same", "x": "cannot_tell"}
    return [
        event(trial=f"{person} {place}", comparison=f"c{place}", answer=names[one], person=person)
        for place, one in enumerate(answers)
    ]


def test_ties_count_and_cannot_tell_does_not() -> None:
    found = findings(made("llrsx"), "human")
    assert found is not None
    (one,) = found.standings
    assert (one.wins, one.losses, one.same, one.num, one.cannot_tell) == ([2, 1], [1, 2], [1, 1], 4, 1)
    assert one.strengths.beats_KK[0, 1] == pytest.approx(2.1 / 3.2)
    assert findings(made("xx"), "human").standings == []  # type: ignore[union-attr]


def test_subjects_of_one_name_are_told_apart_and_other_prompts_are_refused() -> None:
    twin = type(SIDES["A"])(subject="A", identity="other-weights", pictures=SIDES["A"].pictures)
    found = findings([event(right=twin), event(trial="t2", comparison="c2", right=twin)], "human")
    assert found is not None
    assert found.subjects == ["A (AA)", "A (other-we)"]
    with pytest.raises(ConfigError, match="different prompts"):
        findings([event(), event(trial="t2", prompts_sha256="1" * 64)], "human")


def test_strengths_do_not_depend_on_the_order_of_events() -> None:
    events = [one for person in ("ada", "bo") for one in made("lrlsl", person)]
    one, other = findings(events, "human"), findings(events[::-1], "human")
    assert one is not None
    assert other is not None
    assert np.array_equal(one.standings[0].strengths.theta_K, other.standings[0].strengths.theta_K)
