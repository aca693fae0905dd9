"""Each hook on a real run of a small stage."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pleinair.model.flops import forward_flops
from pleinair.packs.loader import LatentBatch
from pleinair.records.errors import ConfigError, MissingExtraError
from pleinair.training.averaging import MovingAverage
from pleinair.training.engine import Phase, Run, StepRecord, read_records, train
from pleinair.training.hooks.curves import TensorBoard, Tracker
from pleinair.training.hooks.determinism import Deterministic
from pleinair.training.hooks.pace import Pace, PaceConfig
from pleinair.training.hooks.previews import Previews
from pleinair.training.hooks.profiler import Profile
from pleinair.training.hooks.progress import Beats, EachStep
from pleinair.training.hooks.spikes import SpikeConfig, SpikeError, Spikes, robust_sigmas
from pleinair.training.hooks.throughput import Throughput, measure_peak, training_flops
from pleinair.training.hooks.validation import Validation, ValidationConfig, validation_losses, velocity_drift
from pleinair.training.hooks.watching import WatchConfig
from pleinair.training.mesh import Mesh
from pleinair.training.random import RowRandom
from tests.training.small_stages import TINY, Latents, Line, Points, pretrain_stage, run_line, settings


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def spiky(directory: Path, policy: Any, hooks: Any = (), steps: int = 40, said: list[str] | None = None) -> None:
    phases = [Phase("points", steps, 8, Points(spoil={30: 200.0}))]
    config = SpikeConfig(policy=policy, window=20, least_steps=5)
    train(
        Line(),
        phases,
        settings(learning_rate=1e-3, keep_every=6, keep_checkpoints=1),
        directory,
        config_digest="d",
        hooks=[Spikes(config), *hooks],
        on_message=([] if said is None else said).append,
    )


def test_a_planted_spike_is_told_with_the_pictures_of_its_batch(tmp_path: Path) -> None:
    said: list[str] = []
    spiky(tmp_path, "note", said=said)
    (spike,) = lines(tmp_path / "spikes.jsonl")
    assert (spike["step"], spike["keys"]) == (30, [f"s30r{row}" for row in range(8)])
    assert spike["sigmas"]["loss"] > 8
    assert sum("a spike at step 30" in line and "s30r0" in line for line in said) == 1


def test_a_skipped_spike_leaves_the_run_as_if_its_step_had_not_been(tmp_path: Path) -> None:
    spiky(tmp_path, "skip")
    skipped = [record.step for record in read_records(tmp_path / "steps.jsonl") if "skipped" in record.metrics]
    assert skipped == [30]


def test_a_run_that_is_to_stop_does_so_before_the_update_and_again_when_resumed(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(SpikeError, match=r"a spike at step 30: .*s30r0.* set the policy to skip or note"):
            spiky(tmp_path, "stop")
    assert [spike["step"] for spike in lines(tmp_path / "spikes.jsonl")] == [30]
    assert len(read_records(tmp_path / "steps.jsonl")) == 30


@pytest.mark.parametrize("stop_after", [29, 33])
def test_a_resumed_run_judges_spikes_as_an_undisturbed_one(tmp_path: Path, stop_after: int) -> None:
    def stop(record: StepRecord, total: int) -> None:
        if record.step == stop_after:
            raise KeyboardInterrupt

    spiky(tmp_path / "calm", "skip")
    with pytest.raises(KeyboardInterrupt):
        spiky(tmp_path / "stopped", "skip", [EachStep(stop)])
    spiky(tmp_path / "stopped", "skip")
    for name in ("spikes.jsonl", "steps.jsonl"):
        calm, stopped = ([untimed(line) for line in lines(tmp_path / run / name)] for run in ("calm", "stopped"))
        assert stopped == calm
        assert calm


def untimed(line: dict[str, Any]) -> dict[str, Any]:
    """A line without what a clock says."""
    kept = {name: value for name, value in line.get("metrics", {}).items() if not name.startswith("checkpoint/")}
    return {**line, "samples_per_second": 0, "metrics": kept}


def test_a_new_phase_is_not_judged_by_the_losses_of_the_one_before(tmp_path: Path) -> None:
    dearer = Points(spoil=dict.fromkeys(range(6), 200.0))
    phases = [Phase("points", 10, 8, Points()), Phase("dearer", 5, 8, dearer)]
    run_line(tmp_path, phases=phases, hooks=[Spikes(SpikeConfig(policy="stop", window=10, least_steps=5))])
    assert [line["phase"] for line in lines(tmp_path / "steps.jsonl")] == ["points"] * 10 + ["dearer"] * 5


def test_noise_without_spikes_is_left_alone(tmp_path: Path) -> None:
    run_line(tmp_path, steps=200, hooks=[Spikes(SpikeConfig(policy="stop"))], config=settings(learning_rate=1e-3))
    assert not (tmp_path / "spikes.jsonl").exists() or not lines(tmp_path / "spikes.jsonl")


def test_robust_sigmas_are_standard_deviations_of_normal_noise_whatever_outliers_it_has() -> None:
    noise = np.random.default_rng(0).normal(5, 2, 5001)
    noise[:100] = 1e9
    assert robust_sigmas(5 + 3 * 2, noise) == pytest.approx(3, rel=0.1)


def test_every_ranks_held_out_rows_have_noise_of_their_own() -> None:
    stage, batch, place = pretrain_stage(), Latents(first=900).batch(0), Mesh(rank=1, data_rank=1, num_data_ranks=2)
    measured = validation_losses(stage, [batch], (0.2,), 5, place)
    random = RowRandom(5, 0, range(8, 16))
    assert measured[0.2] == pytest.approx(stage.velocity_errors(batch, torch.full((8,), 0.2), random).mean().item())


def test_validation_is_the_mean_error_at_each_timestep_and_repeats_exactly() -> None:
    stage, batches = pretrain_stage(), [Latents(first=900).batch(step) for step in range(2)]
    first, again = (validation_losses(stage, batches, (0.2, 0.8), 5, Mesh()) for _ in range(2))
    assert first == again
    assert list(first) == [0.2, 0.8]
    assert stage.model.training
    with torch.no_grad():
        naive = [
            stage.velocity_errors(batch, torch.full((8,), 0.2), RowRandom(5, number, range(8))).mean().item()
            for number, batch in enumerate(batches)
        ]
    assert first[0.2] == pytest.approx(sum(naive) / 2, rel=1e-5)


def test_drift_is_the_mean_square_of_velocities_apart_in_the_noise_of_validation() -> None:
    stage, reference, batch = pretrain_stage(), pretrain_stage(seed=1), Latents(first=900).batch(0)
    found = velocity_drift(stage.model, reference.model, [batch], (0.2, 0.8), 5, Mesh())
    noise_BCHW = RowRandom(5, 0, range(8)).normal(4, 4, 4)
    noisy_BCHW = 0.2 * batch.latents_BCHW + 0.8 * noise_BCHW
    with torch.no_grad():
        first, second = (
            one.model(noisy_BCHW, torch.full((8,), 0.8), batch.text_features_BTLD, batch.text_mask_BT)
            for one in (stage, reference)
        )
    assert found[0.8] == pytest.approx((first - second).square().mean().item(), rel=1e-5)
    assert found[0.2] != found[0.8] > 0
    assert stage.model.training
    assert velocity_drift(stage.model, stage.model, [batch], (0.2,), 5, Mesh()) == {0.2: 0.0}


def test_a_grid_of_many_timesteps_keeps_their_order() -> None:
    grid = tuple(place / 12 for place in range(1, 13))
    found = validation_losses(pretrain_stage(), [Latents(first=900).batch(0)], grid, 5, Mesh())
    alone = validation_losses(pretrain_stage(), [Latents(first=900).batch(0)], grid[2:3], 5, Mesh())
    assert found[grid[2]] == pytest.approx(alone[grid[2]], rel=1e-6)


def test_validation_falls_with_training_and_changes_nothing_of_it(tmp_path: Path) -> None:
    validation = ValidationConfig(every=20, timesteps=(0.3, 0.7), num_batches=1)
    for name, hooks in (
        ("watched", [MovingAverage(0.9), Validation(Latents(first=900), validation)]),
        ("alone", []),
    ):
        if hooks:
            hooks[1].average = hooks[0]  # type: ignore[attr-defined]
        phase = Phase("latents", 50, 8, Latents())
        train(
            pretrain_stage(),
            [phase],
            settings(),
            tmp_path / name,
            config_digest="d",
            hooks=hooks,
            on_message=lambda _: None,  # type: ignore[arg-type]
        )
    watched, alone = (read_records(tmp_path / name / "steps.jsonl") for name in ("watched", "alone"))
    assert [record.loss for record in watched] == [record.loss for record in alone]
    measured = {record.step: record.metrics for record in watched if "validation/loss" in record.metrics}
    assert list(measured) == [19, 39, 49]
    assert measured[49]["validation/loss"] < 0.9 * measured[19]["validation/loss"]
    last = measured[49]
    assert last["validation/loss"] == pytest.approx((last["validation/t0.3"] + last["validation/t0.7"]) / 2)
    assert last["validation_ema/loss"] != last["validation/loss"]


def test_previews_are_drawn_when_due_with_the_model_evaluating(tmp_path: Path) -> None:
    stage, modes = Line(), []

    def draw() -> np.ndarray[Any, np.dtype[np.uint8]]:
        modes.append(stage.model.training)
        return np.full((4, 6, 3), len(modes), np.uint8)

    run_line(tmp_path, steps=5, stage=stage, hooks=[Previews(draw, every=2)])
    assert sorted(path.name for path in (tmp_path / "previews").iterdir()) == ["step-00000002.png", "step-00000004.png"]
    with Image.open(tmp_path / "previews" / "step-00000004.png") as sheet:
        assert np.array_equal(np.asarray(sheet), np.full((4, 6, 3), 2, np.uint8))
    assert modes == [False, False]
    assert stage.model.training


def test_throughput_is_three_forward_passes_over_the_steps_seconds(tmp_path: Path) -> None:
    def flops(batch: LatentBatch) -> float:
        return training_flops(TINY, batch)

    phase = Phase("latents", 2, 8, Latents())
    train(
        pretrain_stage(),
        [phase],
        settings(),
        tmp_path,
        config_digest="d",
        hooks=[Throughput(flops, 1e12)],
        on_message=print,
    )
    record = read_records(tmp_path / "steps.jsonl")[1]
    expected = 3 * 8 * forward_flops(TINY, 4, 4, 6) * record.samples_per_second / 8
    assert record.metrics["throughput/flops_per_second"] == pytest.approx(expected)
    assert record.metrics["throughput/mfu"] == pytest.approx(expected / 1e12)


def test_a_measured_peak_is_what_large_products_reach() -> None:
    assert 1e8 < measure_peak(torch.device("cpu"), torch.float32, side=128, seconds=0.05) < 1e14


def test_a_slow_step_is_told_and_a_stalled_one_leaves_its_stack(tmp_path: Path) -> None:
    """The thirtieth step takes longer than ten of the slowest so far, however busy the machine is."""
    said: list[str] = []
    ends = [time.monotonic()]

    def sleep_in_step_thirty(record: StepRecord, total: int) -> None:
        if record.step == 30:
            slowest = max(after - before for before, after in pairwise(ends))
            time.sleep(10 * slowest + 0.3)
            while not (tmp_path / "stalls.txt").read_text():
                time.sleep(0.05)
        ends.append(time.monotonic())

    hooks = [EachStep(sleep_in_step_thirty), Pace(PaceConfig(stall_seconds=0.2))]
    phases = [Phase("points", 33, 8, Points())]
    train(Line(), phases, settings(), tmp_path, config_digest="d", hooks=hooks, on_message=said.append)
    assert [line for line in said if line.startswith("step 30 took ")]
    assert "sleep_in_step_thirty" in (tmp_path / "stalls.txt").read_text()
    assert read_records(tmp_path / "steps.jsonl")[30].metrics["pace/seconds"] >= 0.3


def test_a_trace_holds_the_asked_steps(tmp_path: Path) -> None:
    run_line(tmp_path, steps=5, hooks=[Profile(1, 2)])
    events = json.loads((tmp_path / "trace-1-2.json").read_text())["traceEvents"]
    backward = [event for event in events if str(event.get("name", "")).startswith("Optimizer.step")]
    assert len(backward) == 2


def test_deterministic_mode_is_on_during_the_run_only(tmp_path: Path) -> None:
    states: list[bool] = []
    look = EachStep(lambda record, total: states.append(torch.are_deterministic_algorithms_enabled()))
    run_line(tmp_path, steps=2, hooks=[Deterministic(), look])
    assert states == [True, True]
    assert not torch.are_deterministic_algorithms_enabled()


class Listens:
    """A heart that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def __call__(self, step: int, compute_seconds: float | None = None) -> None:
        assert compute_seconds is not None
        assert compute_seconds > 0
        self.told.append(("step", step))

    def loaded(self, step: int) -> None:
        self.told.append(("loaded", step))

    def saved(
        self, step: int, *, stall_seconds: float, write_seconds: float, slowed_seconds: float | None = None
    ) -> None:
        assert slowed_seconds is None, "no step runs beside a save that is waited for"
        assert stall_seconds > 0
        assert write_seconds > 0
        self.told.append(("saved", step))


def test_a_heart_hears_of_the_start_the_steps_and_the_checkpoints(tmp_path: Path) -> None:
    heart = Listens()
    run_line(tmp_path, steps=3, hooks=[Beats(heart)], config=settings(keep_every=2, asynchronous_checkpoints=False))
    assert heart.told == [("loaded", 0), ("step", 1), ("step", 2), ("step", 3), ("saved", 2), ("saved", 3)]


class Measures:
    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        return {"group/value": 10.0 * record.step}


def test_tensorboard_shows_what_the_records_hold(tmp_path: Path) -> None:
    run_line(tmp_path, steps=3, hooks=[Measures(), TensorBoard()])
    curves = EventAccumulator(str(tmp_path / "tensorboard"))
    curves.Reload()
    records = read_records(tmp_path / "steps.jsonl")
    shown = {
        name: [point.value for point in curves.Scalars(name)] for name in ("train/loss", "train/error", "group/value")
    }
    assert shown["train/loss"] == pytest.approx([record.loss for record in records])
    assert shown["train/error"] == pytest.approx([record.metrics["error"] for record in records])
    assert shown["group/value"] == [0.0, 10.0, 20.0]


class Recorder(ModuleType):
    """The three calls that trackio and wandb share, by the names and keywords that both take."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def init(self, *, project: str, name: str) -> None:
        self.calls.append(("init", {"project": project, "name": name}))

    def log(self, metrics: dict[str, Any]) -> None:
        self.calls.append(("log", metrics))

    def finish(self) -> None:
        self.calls.append(("finish", {}))


@pytest.mark.parametrize("package", ["trackio", "wandb"])
def test_a_tracker_is_told_of_the_run_of_every_record_and_of_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, recorder := Recorder(package))
    run_line(tmp_path / "line", steps=3, hooks=[Measures(), Tracker(package, "paintings")])
    records = read_records(tmp_path / "line" / "steps.jsonl")
    (opened, *logged, closed) = recorder.calls
    assert opened == ("init", {"project": "paintings", "name": "line"})
    assert [metrics["step"] for _, metrics in logged] == [0, 1, 2]
    assert {kind for kind, _ in logged} == {"log"}
    for (_, metrics), record in zip(logged, records, strict=True):
        shown = (metrics["train/loss"], metrics["train/error"], metrics["group/value"])
        assert shown == (record.loss, record.metrics["error"], 10.0 * record.step)
    assert closed == ("finish", {})


def test_a_tracker_is_closed_where_training_ends_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaks:
        def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
            raise RuntimeError("broken")

    monkeypatch.setitem(sys.modules, "wandb", recorder := Recorder("wandb"))
    with pytest.raises(RuntimeError, match="broken"):
        run_line(tmp_path, steps=3, hooks=[Tracker("wandb", "paintings"), Breaks()])
    assert [kind for kind, _ in recorder.calls] == ["init", "log", "finish"]


def test_a_missing_tracker_is_named_before_any_step(tmp_path: Path) -> None:
    assert "wandb" not in sys.modules
    with pytest.raises(MissingExtraError, match="curves in wandb need its package: pip install wandb"):
        run_line(tmp_path, hooks=[Tracker("wandb", "project")])
    assert not (tmp_path / "steps.jsonl").exists()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: SpikeConfig(least_steps=200), "least_steps is 200: give 3 to window, 100"),
        (lambda: ValidationConfig(timesteps=(0.0,)), r"timesteps is \(0.0,\)"),
        (lambda: PaceConfig(slow_factor=1), "slow_factor is 1"),
        (lambda: Profile(3, 2), "steps 3 to 2 cannot be traced"),
        (lambda: Previews(lambda: np.zeros((1, 1, 3), np.uint8), 0), "every is 0"),
        (lambda: WatchConfig(preview_every=5), "preview_every is 5 but preview_prompts is empty"),
        (lambda: ValidationConfig(every=-1), "every is -1"),
        (lambda: MovingAverage(1.0), "decay is 1.0"),
        (lambda: Throughput(len, 0.0), "peak_flops_per_second is 0.0"),
    ],
)
def test_impossible_settings_of_hooks_are_refused(make: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make()
