"""Who did not arrive, from what each rank says of its groups."""

from pathlib import Path

from pleinair.cluster.missing import Answer, GroupState, find_missing, read_answer, where_it_stands


def state(members: tuple[int, ...], begun: int, ended: int) -> GroupState:
    return GroupState(members=members, begun=begun, ended=ended, last="gloo:all_reduce")


def test_the_rank_that_has_not_begun_what_the_others_wait_in_is_missing() -> None:
    everyone = (0, 1, 2)
    answers: dict[int, Answer | None] = {
        0: {"0": state(everyone, 41, 40)},
        1: {"0": state(everyone, 40, 40)},
        2: {"0": state(everyone, 41, 40)},
    }
    found = find_missing(answers)
    assert found.ranks == (1,)
    assert found.collective == "gloo:all_reduce number 41 of group 0, 3 ranks"
    assert found.evidence == ("rank 1 did 40 collectives of group 0, the others began number 41",)


def test_a_rank_that_gives_no_answer_is_missing_where_somebody_waits() -> None:
    found = find_missing({0: {"0": state((0, 1), 5, 4)}, 1: None})
    assert (found.ranks, found.evidence) == ((1,), ("rank 1 gave no answer while rank 0 waits",))


def test_a_silent_rank_is_named_also_when_the_others_wait_in_nothing() -> None:
    assert find_missing({0: {}, 1: None}).ranks == (1,)


def test_a_rank_that_is_late_because_it_waits_elsewhere_is_not_named() -> None:
    """A mesh of 2 x 2: rank 3 sleeps; 2 waits for it along one axis, and so 0 waits for 2 along the other."""
    rows, columns = {0: (0, 1), 1: (0, 1), 2: (2, 3), 3: (2, 3)}, {0: (0, 2), 1: (1, 3), 2: (0, 2), 3: (1, 3)}
    row_name, column_name = {0: "1", 1: "1", 2: "2", 3: "2"}, {0: "3", 1: "4", 2: "3", 3: "4"}
    in_row = {0: (7, 7), 1: (7, 7), 2: (7, 6), 3: (6, 6)}
    in_column = {0: (7, 6), 1: (7, 6), 2: (6, 6), 3: (6, 6)}
    answers: dict[int, Answer | None] = {
        rank: {
            row_name[rank]: state(rows[rank], *in_row[rank]),
            column_name[rank]: state(columns[rank], *in_column[rank]),
        }
        for rank in range(4)
    }
    assert find_missing(answers).ranks == (3,)


def test_nobody_is_named_when_all_have_arrived() -> None:
    assert find_missing({rank: {"0": state((0, 1), 5, 4)} for rank in range(2)}).ranks == ()
    assert find_missing({0: None, 1: None}).ranks == ()


def test_nobody_is_missing_who_is_late_for_a_collective_that_waits_for_nobody() -> None:
    """Rank 0 has broadcast and goes on; rank 1 will come for it."""
    assert find_missing({0: {"0": state((0, 1), 41, 41)}, 1: {"0": state((0, 1), 40, 40)}}).ranks == ()


def test_an_answer_that_never_came_is_none(tmp_path: Path) -> None:
    assert read_answer(tmp_path / "rank-0.answer.json") is None
    (tmp_path / "rank-0.answer.json").write_text(
        '{"rank": 0, "groups": {"0": {"members": [0, 1], "begun": 2, "ended": 1, "last": "gloo:all_reduce"}}}'
    )
    assert read_answer(tmp_path / "rank-0.answer.json") == {"0": state((0, 1), 2, 1)}


def test_a_stack_dump_tells_where_the_main_thread_stands(tmp_path: Path) -> None:
    stacks = tmp_path / "rank-0.stacks"
    stacks.write_text(
        'Thread 0x00007f (most recent call first):\n  File "/x/rank.py", line 88 in _answer\n\n'
        'Current thread 0x00007e (most recent call first):\n  File "/x/loader.py", line 12 in read_batch\n'
        '  File "/x/main.py", line 3 in <module>\n'
    )
    assert where_it_stands(stacks) == "read_batch (loader.py:12)"
    assert where_it_stands(tmp_path / "none") is None
