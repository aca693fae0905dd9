"""`pleinair pairs` as it is typed, and a preference run on what it wrote, on a model of seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pleinair.checkpoint.manifests import identity
from pleinair.checkpoint.store import newest_checkpoint, read_manifest
from pleinair.cli.exploration import open_model
from pleinair.cli.main import main
from pleinair.evaluation.exploration.subjects import Drawn
from pleinair.evaluation.people.shown import read_gallery
from pleinair.packs.loader import LatentLoader
from pleinair.packs.pack import Pack
from pleinair.packs.pairs import Anchored, PairLoader, PairLoaderConfig, Pairs
from pleinair.packs.plan import LoaderConfig
from pleinair.records.preferences import PreferenceLog
from pleinair.sampling.checkpoints import read_model
from pleinair.training.engine import EngineConfig, Phase, read_records, train
from pleinair.training.optimisers import OptimiserConfig
from pleinair.training.stages.preference import FrozenCopy, Preference, PreferenceConfig
from pleinair.training.stages.pretrain import Pretrain, PretrainConfig
from tests.evaluation.people.showings import event, write_three
from tests.training.recipe_runs import packed, trained


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run of seconds, `demo`."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("runs")
    packed(place)
    trained(place)
    return place


def drawn(runs: Path, out: Path, *more: str) -> list[str]:
    words = ["pairs", str(runs / "demo"), "--runs", str(runs), "--prompts", str(runs / "demo" / "pack"), "-o", str(out)]
    few = ["--count", "6", "--ways", "steps", "guidance", "--steps", "3", "--fewer-steps", "1", "--resolution", "32"]
    return [*words, *few, *more]


def test_pairs_of_a_runs_own_prompts_are_drawn_and_trained_on(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(drawn(runs, tmp_path / "pairs", "--say")) == 0
    said = capsys.readouterr().out
    assert "6 pairs in" in said
    assert ": 6 ordered by how they were drawn" in said
    assert "100% hold a picture of" in said
    assert "of 6 winners are better by the judge" in said
    checkpoint = newest_checkpoint(runs / "demo" / "checkpoints")
    assert checkpoint is not None
    policy = identity(read_manifest(checkpoint))
    model, projection = read_model(checkpoint)
    stage = Preference(
        Pretrain(model, projection, PretrainConfig()), FrozenCopy(model), PreferenceConfig(), reference_identity=policy
    )
    loader = Anchored(
        PairLoader(Pairs(tmp_path / "pairs"), PairLoaderConfig(batch_size=3), policy),
        LatentLoader(Pack(runs / "demo" / "pack"), 32, LoaderConfig(batch_size=3)),
    )
    config = EngineConfig(
        num_threads=1, precision="fp32", optimiser=OptimiserConfig(learning_rate=1e-4, warmup_steps=1)
    )
    train(stage, [Phase("pairs", 3, 3, loader)], config, tmp_path / "run", config_digest="d", on_message=lambda _: None)
    first, *_, last = read_records(tmp_path / "run" / "steps.jsonl")
    assert first.metrics["drift"] < 1e-9 < last.metrics["drift"]


def test_pairs_that_a_judge_is_not_sure_of_are_refused_with_a_sentence(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model has seen eight steps: its pictures show nothing yet."""
    assert main(drawn(runs, tmp_path / "pairs")) == 1
    assert "are better than their losers by the judge, and 95% must be" in capsys.readouterr().err
    assert main(drawn(runs, tmp_path / "pairs", "--drop")) == 1
    assert "in no way are winners better than their losers by the judge" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_prompts_of_a_text_file_have_nothing_to_be_judged_by(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a lighthouse\n\na blue door\n")
    words = drawn(runs, tmp_path / "pairs", "--prompts", str(prompts), "--count", "3")
    assert main(words) == 0
    assert "nothing looks at the order of the pairs" in capsys.readouterr().out
    assert [pair.prompt for pair in Pairs(tmp_path / "pairs")] == ["a lighthouse", "a blue door", "a lighthouse"]
    prompts.write_text("\n")
    assert main(words) == 1
    assert "has no prompt: write one a line" in capsys.readouterr().err


def as_drawn_by(result: Path, run: Path) -> None:
    """A result that says a run's newest checkpoint drew it."""
    metrics = json.loads((result / "metrics.json").read_text())
    told = {"identity": Drawn("demo", *open_model(str(run))).identity}
    (result / "metrics.json").write_text(json.dumps({**metrics, **told}))


def test_pairs_are_made_of_what_people_chose_on_the_page(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, _ = write_three(tmp_path)
    as_drawn_by(first, runs / "demo")
    left, right = (read_gallery(folder).side([0, 1]) for folder in (first, second))
    log = PreferenceLog(tmp_path / "preferences.jsonl")
    chosen = event(left=left, right=right, answer="right")
    log.append([event(left=left, right=right, control="left", trial="control"), chosen])
    words = ["pairs", str(runs / "demo"), "--runs", str(runs), "--events", str(log.path), "-o", str(tmp_path / "pairs")]
    told = ["--results", f"{first}={runs / 'demo'}", str(second)]
    assert main([*words, *told]) == 0
    assert ": 2 ordered by people" in capsys.readouterr().out
    pairs = list(Pairs(tmp_path / "pairs"))
    checkpoint = newest_checkpoint(runs / "demo" / "checkpoints")
    assert checkpoint is not None
    policy = identity(read_manifest(checkpoint))
    assert [(pair.winner.checkpoint, pair.loser.checkpoint) for pair in pairs] == [("", policy)] * 2
    assert {pair.event for pair in pairs} == {chosen.event}
    log.append([event(left=left, right=right, trial=chosen.trial, answer="withdrawn")])
    assert main([*words[:-1], str(tmp_path / "none"), *told]) == 1
    assert "holds no choice by a person between single pictures" in capsys.readouterr().err


def test_results_that_the_named_checkpoint_did_not_draw_are_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, _ = write_three(tmp_path)
    as_drawn_by(first, runs / "demo")
    left, right = (read_gallery(folder).side([0]) for folder in (first, second))
    log = PreferenceLog(tmp_path / "preferences.jsonl")
    log.append([event(left=left, right=right)])
    words = ["pairs", str(runs / "demo"), "--runs", str(runs), "--events", str(log.path), "-o", str(tmp_path / "pairs")]
    exchanged = ["--results", str(first), f"{second}={runs / 'demo'}"]
    assert main([*words, *exchanged]) == 1
    said = capsys.readouterr().err
    own = read_gallery(first).identity
    assert (
        f"the pictures in {second} are of narrow-model, narrow-model, and {runs / 'demo'} draws as {own[:12]}" in said
    )
    assert "name the checkpoint that drew them" in said
    assert not (tmp_path / "pairs").exists()
    log.append([event(left=left, right=right, trial="judged", origin="synthetic", person="a judge")])
    words += ["--results", f"{first}={runs / 'demo'}", str(second)]
    assert main(words) == 0
    assert ": 1 ordered by people\n" in capsys.readouterr().out
    assert main([*words, "--synthetic", "-o", str(tmp_path / "both")]) == 0
    assert ": 1 ordered by people, 1 ordered by judges in people's place" in capsys.readouterr().out


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\n")
    assert main(["pairs", "--prompts", str(prompts)]) == 1
    assert "give CHECKPOINT and -o FOLDER" in capsys.readouterr().err
    assert main(["pairs", "--show", str(tmp_path)]) == 1
    assert "holds no pairs" in capsys.readouterr().err
