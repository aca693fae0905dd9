"""`pleinair evaluate --suite`: the shipped model draws a benchmark's prompts, and a judge over HTTP looks at them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pleinair.cli.main import main
from tests.endpoints.servers import completion, one_thread, serve
from tests.evaluation.published import prompt_files as files


def test_pictures_are_drawn_judged_and_written_and_the_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = files.write_csv(
        tmp_path / "dpg_bench.csv", [files.dpg_row("lamp", 1, "0", "entity - whole", "Is there a lamp?")]
    )
    out = tmp_path / "out"
    command = ["evaluate", "shipped", "--suite", "dpg", "--prompts", str(prompts), "--copies", "1", "-o", str(out)]
    with one_thread(), serve(lambda body: completion("yes")) as served:
        assert main(command) == 0
        drawn = capsys.readouterr().out
        assert f"official scorer: bash dpg_bench/dist_eval.sh {out}/pictures" in drawn
        picture = (out / "pictures" / "lamp.png").read_bytes()
        assert main([*command, "--judge", served.url, "--judge-model", "some-vlm"]) == 0
        judged = capsys.readouterr().out
        assert len(served.bodies) == 1
    assert (out / "pictures" / "lamp.png").read_bytes() == picture
    assert "dpg protocol judged by some-vlm; not a DPG-Bench score: its judge is damo/mplug" in judged
    document = json.loads((out / "metrics.json").read_text())
    assert document["measures"]["dpg"] == {"value": 100.0, "num": 1, "of": "prompts"}
    assert document["note"] == "not run here by the authors: prompts and judge are the user's"
    assert [document[name] for name in ("suite", "subject", "judge", "num_prompts", "copies", "unusable")] == [
        "dpg", "shipped", "some-vlm", 1, 1, 0,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["shipped", "--suite", "dpg"], "DPG-Bench comes without its prompts: give --prompts dpg_bench.csv"),
        (["shipped", "--suite", "dpg", "--prompts", "none.csv"], "there is no none.csv"),
        (["shipped", "--suite", "dpg", "--copies", "3"], "--copies is 3: the layout of DPG-Bench holds 1, 4"),
        (["shipped", "--suite", "longtext", "--limit", "0"], "--limit is 0: give 1 or more"),
        (["real", "--suite", "cvtg"], "real shows the drawing sets, not a benchmark's prompts: give a model"),
    ],
)
def test_what_cannot_be_run_is_refused_before_a_model_is_loaded(
    options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *options]) != 0
    assert told in capsys.readouterr().err


def test_a_reader_of_text_is_no_judge_of_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pleinair.cli.published import open_judge
    from pleinair.evaluation.published import BENCHMARKS
    from pleinair.records.errors import ConfigError

    class Options:
        suite, judge, judge_model, judge_set = "dpg", "rapidocr", "", []

    opened = open_judge(Options, BENCHMARKS["dpg"], tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="rapidocr reads text and answers no questions of DPG-Bench"), opened:
        pass
