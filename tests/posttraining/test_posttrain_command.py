from __future__ import annotations

from pathlib import Path

import pytest

from pleinair.cli.main import main


def test_a_plan_names_links_steps_and_minutes_and_makes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["posttrain", "drawings-posttrain", "--plan", "--until", "stpo", "--runs", str(tmp_path / "runs")]
    assert main([*words, "--set", "midtrain.num_steps=400"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["0-base", "1-midtrain", "2-sft", "3-stpo"]
    # 64 prompts, 4 pictures, 28 steps guided and unguided; 553 pictures of the suite.
    drawn = 64 * 4 * 28 * 3 + 28 * 2 * 553
    assert lines[1].split()[1:] == ["about", f"{drawn * 0.0076 / 60:.1f}", "minutes"]
    # 400 steps of 64 pictures, three calls each.
    minutes = (400 * 64 * 3 + drawn) * 0.0076 / 60
    assert lines[2].split()[1:] == ["400", "steps", "about", f"{minutes:.1f}", "minutes"]
    assert not (tmp_path / "runs").exists()


def test_a_plan_counts_the_suite_where_it_looks(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["posttrain", "drawings-posttrain", "--plan", "--until", "stpo", "--measure"]
    minutes = {}
    for how in ("none", "ends", "all"):
        assert main([*words, how]) == 0
        minutes[how] = [float(line.split()[-2]) for line in capsys.readouterr().out.splitlines()[1:-1]]
    looked = [[one > none for one, none in zip(minutes[how], minutes["none"], strict=True)] for how in ("ends", "all")]
    assert looked == [[True, False, False, True], [True] * 4]


def test_a_plan_with_choices_of_people_has_the_link_that_trains_on_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["posttrain", "drawings-posttrain", "--plan", "--until", "rl", "--events", "chosen"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == [
        "0-base",
        "1-midtrain",
        "2-sft",
        "3-stpo",
        "3b-calibrate",
        "4-rl",
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--until", "calibrate"],
            "has no link 'calibrate': give one of midtrain, sft, stpo, rl, tdm; calibrate comes with",
        ),
        (["--set", "stpo.pairs=None"], "stpo.pairs is None: say how they are drawn"),
        (["--set", "stpo.gates.num_rows=0"], "gates.num_rows is 0: give at least 1"),
        (["--until", "ppo"], "has no link 'ppo'"),
        ([], "make it with `pleinair rewards fit drawings-64 --to"),
        (["--set", "rl.weights={'beauty': 1.0}"], "rl.weights names 'beauty'"),
        (["--until", "stpo", "--gold", "nowhere"], "make it with `pleinair rewards fit --judge-seed 2 --to nowhere`"),
        (["--set", "resolution=32"], "the suite's judges know pictures of 64, give 'none'"),
        (["--until", "stpo", "--base", "nowhere"], "there is no model at nowhere"),
        (["--set", "stpo.pairs.sampling.resolution=32"], "stpo.pairs.sampling.resolution is 32 and the chain's 64"),
    ],
)
def test_the_command_refuses_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    places = ["--runs", str(tmp_path / "runs"), "--rewards", str(tmp_path / "rewards")]
    assert main(["posttrain", "drawings-posttrain", *places, *words]) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
