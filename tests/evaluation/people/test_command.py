"""`pleinair sides` as it is typed."""

from __future__ import annotations

import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from pleinair.cli.main import main
from pleinair.records.preferences import PreferenceLog, read_preferences
from tests.evaluation.people.showings import event, write_three
from tests.pages.visitor import Visitor


def test_a_report_without_people_says_so_in_the_terminal_and_on_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, page = tmp_path / "log.jsonl", tmp_path / "page.html"
    assert main(["sides", "--report", "--log", str(log), "-o", str(page)]) == 0
    assert "no person has judged, 0 synthetic ones" in capsys.readouterr().out
    assert "No person has judged" in page.read_text()
    PreferenceLog(log).append([event(), event(origin="synthetic", person="first judge")])
    assert main(["sides", "--report", "--log", str(log), "-o", str(page)]) == 0
    assert "1 events by people, 1 synthetic ones" in capsys.readouterr().out
    assert "No person has judged" not in page.read_text()


def test_what_cannot_be_compared_is_refused_with_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, _ = (str(folder) for folder in write_three(tmp_path))
    refused = {
        (): "no result is given",
        (first,): "1 result is given",
        (first, second): "give its folder with --real",
        (first, str(tmp_path / "none")): "holds no finished result",
        (first, second, "--trials", "0", "--real", str(tmp_path / "real")): "0 trials asks nothing",
    }
    for given, said in refused.items():
        assert main(["sides", *given]) == 1
        assert said in capsys.readouterr().err, given
    assert not (tmp_path / "preferences.jsonl").exists()


@pytest.mark.slow
def test_the_page_is_served_until_it_is_told_to_end_and_the_answers_lie_beside_the_results(tmp_path: Path) -> None:
    first, second, real = (str(folder) for folder in write_three(tmp_path))
    command = [sys.executable, "-m", "pleinair.cli.main", "sides", first, second, "--real", real]
    options = ["--person", "ada", "--trials", "5", "--port", "0"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith("9 of 9 questions for ada; ")
        visitor = Visitor(line.rpartition(" ")[2].strip())
        trial = visitor.ask("state")[1]["trials"][0]["trial"]
        given = {"event": str(uuid.uuid4()), "trial": trial, "answer": "same", "seconds": 3}
        assert visitor.ask("answers", [given])[1] == {"answers": {trial: "same"}}
        process.send_signal(signal.SIGTERM)
        assert "1 of 9 are answered" in process.stdout.read()
    assert process.returncode == 0
    (found,) = read_preferences(tmp_path / "preferences.jsonl")
    assert (found.event, found.person, found.answer) == (given["event"], "ada", "same")
    assert (tmp_path / "preferences.token").stat().st_mode & 0o777 == 0o600
