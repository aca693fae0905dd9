"""Ablations from the command line, on a tiny pack: trained, stopped, gone on, judged; and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pleinair.ablation.costs import NUM_BATCHES, measure_costs
from pleinair.ablation.matrix import SWEEP_SEED, Matrix, short_loss
from pleinair.ablation.running import run_jobs
from pleinair.ablation.switches import Side, Switch
from pleinair.ablation.trainings import read_result, train_job
from pleinair.cli.ablate import open_matrix, prepare, with_costs
from pleinair.cli.main import build_parser, main
from pleinair.cli.workspace import open_workspace
from pleinair.model.image_encoder import Picture
from pleinair.packs.loader import LatentLoader
from pleinair.packs.pack import Pack
from pleinair.packs.plan import LoaderConfig
from pleinair.training.engine import read_records
from pleinair.training.hooks.throughput import training_flops
from pleinair.training.patch_features import Grid, write_patch_features
from pleinair.training.stages.repa import RepaConfig
from tests.ablation.small_ablation import arguments, make_runs

TOLD = ("--switch", "gate", "--switch", "averages", "--seeds", "2")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runs(tmp_path_factory.mktemp("ablate") / "runs")


@pytest.fixture(scope="module")
def trained(runs: Path) -> Path:
    """The runs, with all trainings done and their page."""
    assert main(arguments(runs, *TOLD, "--jobs", "0")) == 0
    return runs


def numbers(runs: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((runs / "ablations" / "ablation" / "page" / "numbers.json").read_text())
    return found


def untimed(found: dict[str, Any]) -> dict[str, Any]:
    """Without what the trainings took."""
    for switch in found["switches"]:
        efficiency = switch["verdicts"]["efficiency"]
        efficiency["words"] = efficiency["words"].partition("; whole trainings")[0]
    return found


def opened(runs: Path, *more: str) -> Matrix:
    options = build_parser().parse_args(arguments(runs, *TOLD, *more))
    work = open_workspace(options)
    matrix = open_matrix(work, options)
    prepare(work, matrix)
    return matrix


def test_two_arms_are_trained_in_pairs_and_judged_at_both_horizons_and_resolutions(trained: Path) -> None:
    runs, found = trained, numbers(trained)
    gate, averages = found["switches"]
    assert found["trainings"] == {"done": 8, "planned": 8}
    expected = [(8, "short", [0, 1]), (8, "long", [0, 1]), (16, "short", [0, 1]), (16, "long", [0, 1])]
    for switch in (gate, averages):
        cells = [
            (one["resolution"], one["horizon"], [error["seed"] for error in one["errors"]]) for one in switch["cells"]
        ]
        assert cells == expected
        assert all(error["first"] != error["second"] for one in switch["cells"] for error in one["errors"])
    assert set(gate["verdicts"]) == {"stability", "performance", "efficiency", "simplicity"}
    assert "FLOPs -" in gate["verdicts"]["efficiency"]["words"], "a step without the gate costs less"
    assert "; whole trainings, 4 pairs: CPU time " in gate["verdicts"]["efficiency"]["words"]
    assert [one["resolution"] for one in averages["costs"]] == [8, 16]
    for plain, kept in (one["cpu_seconds"] for one in averages["costs"]):
        assert all(0 < more < 2 * step for step, more in zip(plain, np.subtract(kept, plain), strict=True))
    assert gate["verdicts"]["simplicity"]["report"] == "reproduced"
    assert gate["cells"][0]["difference"]["num"] == 2
    matrix = with_costs(opened(runs))
    short, long = ([matrix.steps(arm, 16, horizon) for arm in matrix.arms()] for horizon in (160, 320))
    assert short[1] > short[0] == 160, "equal FLOPs are more of the cheaper steps"
    assert long[1] == pytest.approx(2 * short[1], abs=1)
    page = (runs / "ablations" / "ablation" / "page" / "index.html").read_text()
    assert "of the report&#x27;s outcomes reproduced" in page
    assert not list((runs / "ablations" / "ablation" / "runs").glob("*/*/checkpoints"))


def test_no_pair_of_concept_and_style_is_both_trained_and_judged(runs: Path) -> None:
    places, config = opened(runs).places, LoaderConfig(batch_size=1)
    keys = []
    for directory in (places.trained, places.unseen):
        loader = LatentLoader(Pack(directory), 16, config)
        keys.append({key for number in range(len(loader)) for key in loader.keys(number)})
    assert keys[0] | keys[1] == {f"c{concept}s{style}" for concept in range(10) for style in range(6)}
    assert not keys[0] & keys[1]
    assert 5 <= len(keys[1]) <= 30


@pytest.mark.slow
def test_what_is_done_is_not_done_again_and_what_is_missing_is_said(trained: Path) -> None:
    runs = trained
    before, matrix = untimed(numbers(runs)), with_costs(opened(runs))
    lost = matrix.places.of(matrix.jobs()[-1])
    shutil.rmtree(lost)
    assert main(arguments(runs, *TOLD, "--page-only")) == 0
    partly = numbers(runs)
    assert partly["trainings"] == {"done": 7, "planned": 8}
    verdict = partly["switches"][0]["verdicts"]["performance"]
    assert verdict == {
        "overall": "missing",
        "words": "no verdict: missing: 16 px short, 16 px long",
        "report": "undecided",
    }
    assert not lost.exists()
    times = {path: path.stat().st_mtime_ns for path in lost.parent.glob("*/result.json")}
    assert main(arguments(runs, *TOLD, "--jobs", "2")) == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert untimed(numbers(runs)) == before, "a process of its own gives the same bits"


@pytest.mark.slow
def test_a_training_that_is_interrupted_ends_with_its_process_and_goes_on_to_the_same_result(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix = with_costs(opened(runs))
    job = matrix.jobs()[0]
    job = replace(job, short=60, long=100, merge_last=0, engine=replace(job.engine, checkpoint_seconds=0.05))

    def interrupt(done: float, whole: float, note: str) -> None:
        if done > 0.05 * whole:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs([job], matrix.places, {job.digest: 1.0}, 1, interrupt)
    directory = matrix.places.of(job)
    assert read_result(directory) is None
    run_jobs([job], matrix.places, {job.digest: 1.0}, 0, lambda done, whole, note: None)
    assert "resuming at step" in capsys.readouterr().out
    assert read_result(directory) == train_job(job, tmp_path / "undisturbed")


@pytest.mark.slow
def test_each_side_gets_its_best_rate_and_is_tried_at_larger_ones(runs: Path) -> None:
    muon = Side(name="Muon", overrides=("engine.optimiser.rule=muon",), rates=(1e-5, 1e-2))
    rule = Switch(name="rule", first=Side(name="AdamW", rates=(1e-5, 1e-2)), second=muon)
    matrix = replace(with_costs(opened(runs, "--config", "rate_multiples=(1.0, 1e9)")), switches=[rule])
    jobs = [job for side in (rule.first, rule.second) for job in matrix.sweep(rule, side).values()]
    assert {(job.seed, job.resolution, job.long) for job in jobs} == {(SWEEP_SEED, 8, None)}
    assert matrix.with_rates().rates == {}
    assert matrix.largest_multiple(matrix.baseline) is None
    jobs += matrix.probe(matrix.baseline).values()
    run_jobs(jobs, matrix.places, {job.digest: 1.0 for job in jobs}, 0, lambda done, whole, note: None)
    chosen = matrix.with_rates()
    for side in (rule.first, rule.second):
        losses = {rate: short_loss(matrix.result(job)) for rate, job in matrix.sweep(rule, side).items()}  # type: ignore[arg-type]
        best = chosen.arm(rule, side).recipe.engine.optimiser.learning_rate
        assert losses[best] == min(losses.values()) < max(losses.values())
    assert chosen.baseline == matrix.baseline
    assert chosen.largest_multiple(matrix.baseline) == 1.0


class Means:
    """A patch encoder that gives the mean colour of each cell."""

    name, width = "means", 3

    def patches(self, pictures: Sequence[Picture], grid: Grid) -> np.ndarray:
        cells = np.stack(pictures).reshape(len(pictures), grid[0], 16 // grid[0], grid[1], 16 // grid[1], 3)
        return np.ascontiguousarray(cells.mean((2, 4)).transpose(0, 3, 1, 2)).astype(np.float16)


@pytest.mark.slow
def test_irepa_is_on_for_the_first_steps_and_gone_after_them(runs: Path, tmp_path: Path) -> None:
    matrix = with_costs(opened(runs))
    keys = [f"c{concept}s{style}" for concept in range(10) for style in range(6)]
    pictures = [np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8) for number in range(60)]
    patches = write_patch_features(tmp_path / "patches", Means(), [((4, 4), keys, pictures)])
    plain = replace(matrix.judged(matrix.baseline, 16, 0), merge_last=0)
    job = replace(plain, repa=RepaConfig(depth=1), repa_steps=8, patches=patches)
    with_repa, without = (train_job(one, tmp_path / one.digest[:8]) for one in (job, plain))
    records = read_records(tmp_path / job.digest[:8] / "steady-short" / "steps.jsonl")
    assert [record.phase for record in records] == ["irepa"] * 8 + ["steady-short"] * 4
    assert ["repa_cosine" in record.metrics for record in records] == [True] * 8 + [False] * 4
    assert with_repa.validation != without.validation
    plainly, aligned = measure_costs({"plain": plain, "irepa": job}, 2, tmp_path, lambda done, total: None).values()
    assert aligned.flops_per_step == plainly.flops_per_step
    loader = LatentLoader(Pack(job.trained), 16, replace(job.loader, batch_size=8, seed=0))
    computed = [training_flops(job.transformer, loader.batch(number)) for number in range(NUM_BATCHES)]
    assert plainly.flops_per_step == pytest.approx(np.mean(computed), rel=0.05), "as from the configuration"
    convolution = 3 * 2 * 8 * 16 * 9 * 32 * 3
    assert 0.6 * convolution < aligned.extra_flops_per_step < 1.4 * convolution


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--switch", "gates"], "unknown switch 'gates': did you mean 'gate'?"),
        (["--switch", "gate", "--switch", "gate"], "the switch gate is given twice"),
        (["--switch", "depth=transformer.num_layers=2"], "does not have two different sides"),
        (
            ["--switch", "depth=transformer.depth=2,transformer.depth=3"],
            "unknown configuration key 'transformer.depth'",
        ),
        (["--seeds", "1"], "seeds is 1: an interval needs at least 2"),
        (["--config", "rate_multiples=(4.0, 16.0)"], "begin with 1"),
        (["--config", "repa_share=0.7"], "iREPA must end well before the decay"),
        (["--switch", "depth=transformer.num_layers=2,engine.seed=0"], "both sides of the switch depth are the same"),
        (["--long", "16"], "short is 16 and long 16: give two horizons"),
        (["--set", "phases=({'resolution': 32, 'num_steps': 1, 'batch_size': 8},)"], "has no pictures at 32 px"),
    ],
)
def test_wrong_input_is_refused_with_a_sentence(
    runs: Path, more: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(runs, *more)) == 1
    assert sentence in capsys.readouterr().err


def test_without_a_pack_one_is_told_how_to_make_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path / "none")) == 1
    assert "run 'pleinair pack ablations'" in capsys.readouterr().err
