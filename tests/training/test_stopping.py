"""A run that ends itself: cleanly, for good, with its reason told; and what asks it to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pleinair.checkpoint.store import read_document, read_manifest
from pleinair.cluster.post_mortem import as_json, as_screen, examine
from pleinair.records.errors import ConfigError
from pleinair.records.run_events import EVENTS, Heartbeat, Started, append
from pleinair.training.engine import Parent, Phase, Run, read_records
from pleinair.training.hooks.divergence import Divergence, DivergenceConfig
from pleinair.training.hooks.progress import Beats, EachStep
from pleinair.training.hooks.samples import Samples, high_frequency_shares
from pleinair.training.hooks.validation import Validation, ValidationConfig
from pleinair.training.records import StepRecord
from tests.training.small_stages import Latents, Line, pretrain_stage, run_line, settings


class StopsAt:
    """Asks to end after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        return {}

    def stop_reason(self, run: Run[Any], record: StepRecord) -> str | None:
        return f"loss {record.loss:.0f} is enough" if record.step == self.step else None


def test_a_run_that_stops_writes_its_last_checkpoint_and_says_why(tmp_path: Path) -> None:
    said: list[str] = []
    final = run_line(tmp_path, hooks=[StopsAt(3)], on_message=said.append)
    records = read_records(tmp_path / "steps.jsonl")
    assert [record.step for record in records] == [0, 1, 2, 3]
    assert read_manifest(final).step == 4
    reason = f"loss {records[-1].loss:.0f} is enough"
    assert read_document(final, "run.json")["stopped"] == reason
    assert f"the run ends early, after 4 of 8 steps: {reason}" in said


def test_a_stopped_run_that_is_started_again_is_over(tmp_path: Path) -> None:
    first = run_line(tmp_path, hooks=[StopsAt(3)])
    said: list[str] = []
    assert run_line(tmp_path, on_message=said.append) == first
    assert len(read_records(tmp_path / "steps.jsonl")) == 4
    assert len(said) == 1
    assert said[0].startswith("the run ended at step 4: loss ")
    assert "start another run from" in said[0]


def test_another_run_may_go_on_from_a_stopped_one(tmp_path: Path) -> None:
    parent = Parent(checkpoint=run_line(tmp_path / "first", hooks=[StopsAt(3)]), with_optimiser=True)
    final = run_line(tmp_path / "second", steps=2, parent=parent)
    assert read_manifest(final).step == 2
    assert read_document(final, "run.json")["stopped"] is None


class DiesWhenTold:
    """Ends the process, as a kill would, between the decision and the last checkpoint."""

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        return {}

    def stopped_early(self, step: int, reason: str) -> None:
        raise KeyboardInterrupt


def test_a_run_killed_between_decision_and_checkpoint_decides_the_same_again(tmp_path: Path) -> None:
    calm = run_line(tmp_path / "calm", hooks=[StopsAt(4)])
    with pytest.raises(KeyboardInterrupt):
        run_line(tmp_path / "killed", hooks=[StopsAt(4), DiesWhenTold()], config=settings(keep_every=2))
    again = run_line(tmp_path / "killed", hooks=[StopsAt(4)], config=settings(keep_every=2))
    assert read_document(again, "run.json")["stopped"] == read_document(calm, "run.json")["stopped"]
    assert read_manifest(again).step == 5


def test_the_last_step_is_no_early_end(tmp_path: Path) -> None:
    final = run_line(tmp_path, hooks=[StopsAt(7)])
    assert read_document(final, "run.json")["stopped"] is None


def test_the_post_mortem_tells_of_an_early_end(tmp_path: Path) -> None:
    append(tmp_path / EVENTS, Started(attempt=1, world_size=1))
    beats = Beats(Heartbeat(tmp_path / EVENTS, 0, every_seconds=0))
    run_line(tmp_path, hooks=[StopsAt(3), beats])
    found = examine(tmp_path)
    assert found.stopped_early.endswith("is enough")
    assert f"ended early, by its own decision: {found.stopped_early}" in as_screen(found).splitlines()
    assert json.loads(as_json(found))["stopped_early"] == found.stopped_early
    assert found.goodput.steps == 4


class Measures:
    """Numbers by step."""

    def __init__(self, name: str, values: Mapping[int, float], otherwise: float = 0.0) -> None:
        self.name, self.values, self.otherwise = name, values, otherwise

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        return {self.name: self.values.get(record.step, self.otherwise)}


def ended_at(directory: Path, config: DivergenceConfig, *hooks: Any, steps: int = 12) -> tuple[int, str]:
    final = run_line(directory, steps, hooks=[*hooks, Divergence(config)])
    return read_manifest(final).step, read_document(final, "run.json")["stopped"] or ""


def test_a_drift_whose_mean_over_the_window_is_beyond_the_budget_ends_the_run(tmp_path: Path) -> None:
    """One high value of four is not enough, two are."""
    drift = Measures("drift", {2: 1.0, 7: 1.0, 8: 1.0})
    step, reason = ended_at(tmp_path, DivergenceConfig(drift=0.4, window=4), drift)
    assert step == 9
    assert reason == "the drift on pretraining data is 0.5 over the last 4 steps, the budget is 0.4"


def test_winners_that_got_worse_end_the_run_and_nothing_is_decided_before_the_window_is_full(tmp_path: Path) -> None:
    worse = Measures("winners_worse", {}, otherwise=0.6)
    config = DivergenceConfig(drift=None, winners_worse=0.5, window=5)
    assert ended_at(tmp_path, config, worse)[0] == 5


def test_a_rise_of_the_held_out_loss_ends_the_run(tmp_path: Path) -> None:
    rise = Measures("validation_rise/loss", {3: 0.1, 6: 0.3})
    step, reason = ended_at(tmp_path, DivergenceConfig(drift=None, validation_rise=0.2), rise)
    assert (step, reason) == (7, "the held-out flow loss is 0.3 above the reference's, the budget is 0.2")


def test_a_resumed_run_spends_its_budget_as_an_undisturbed_one(tmp_path: Path) -> None:
    def killed(record: StepRecord, total: int) -> None:
        if record.step == 4:
            raise KeyboardInterrupt

    values = {step: 0.1 * step for step in range(12)}
    config, often = DivergenceConfig(drift=0.42, window=4), settings(keep_every=1)
    calm, calm_reason = ended_at(tmp_path / "calm", config, Measures("drift", values))
    hooks = [Measures("drift", values), Divergence(config)]
    with pytest.raises(KeyboardInterrupt):
        run_line(tmp_path / "killed", 12, hooks=[*hooks, EachStep(killed)], config=often)
    final = run_line(tmp_path / "killed", 12, hooks=[Measures("drift", values), Divergence(config)], config=often)
    assert read_manifest(final).step == calm == 7
    assert read_document(final, "run.json")["stopped"] == calm_reason


def test_a_limit_on_what_nobody_measures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="drift has a limit and step 0 no such number"):
        run_line(tmp_path, hooks=[Divergence(DivergenceConfig())])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"drift": None}, "none of drift, winners_worse, validation_rise has a limit"),
        ({"drift": -1.0}, "drift is -1.0: give a positive limit"),
        ({"window": 0}, "window is 0"),
    ],
)
def test_budgets_out_of_range_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DivergenceConfig(**change)


def test_validation_against_a_reference_tells_the_rise_at_each_timestep(tmp_path: Path) -> None:
    stage, reference = pretrain_stage(), pretrain_stage()
    config = ValidationConfig(every=2, timesteps=(0.3, 0.7), num_batches=1)
    hook = Validation(Latents(first=500), config, reference=reference)
    run_line(tmp_path, stage=stage, phases=[Phase("latents", 4, 8, Latents())], hooks=[hook])
    last = read_records(tmp_path / "steps.jsonl")[-1].metrics
    other = Validation(Latents(first=500), config)
    run_line(tmp_path / "own", steps=1, stage=reference, phases=[Phase("l", 1, 8, Latents())], hooks=[Still(), other])
    start = read_records(tmp_path / "own" / "steps.jsonl")[0].metrics
    for name in ("t0.3", "t0.7", "loss"):
        expected = last[f"validation/{name}"] - start[f"validation/{name}"]
        assert last[f"validation_rise/{name}"] == pytest.approx(expected, abs=1e-6)
        assert expected != 0
    drifts = [last[f"validation_drift/{name}"] for name in ("t0.3", "t0.7")]
    assert min(drifts) > 0
    assert last["validation_drift/mean"] == pytest.approx(sum(drifts) / 2)


class Still:
    """Refuses every update, so that a run measures the model it was given."""

    def allows_update(self, run: Run[Any], loss: float, grad_norm: float) -> bool:
        return False

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        return {}


def waves(cycles_per_pixel: float, size: int = 32) -> np.ndarray[Any, np.dtype[np.uint8]]:
    across = 127.5 + 100 * np.cos(2 * np.pi * cycles_per_pixel * np.arange(size))
    return np.broadcast_to(across[None, None, :, None], (1, size, size, 3)).astype(np.uint8)


def test_high_frequency_shares_know_fine_from_coarse_and_flat() -> None:
    flat = np.full((1, 32, 32, 3), 200, np.uint8)
    shares = high_frequency_shares(np.concatenate([flat, waves(1 / 16), waves(3 / 8)]))
    assert shares[0] == 0.0
    assert shares[1] < 0.01
    assert shares[2] > 0.95


def test_samples_are_measured_when_due_and_at_the_end(tmp_path: Path) -> None:
    drawn: list[int] = []

    def draw() -> Any:
        drawn.append(len(drawn))
        return np.concatenate([waves(1 / 16), waves(3 / 8)])

    hook = Samples(draw, every=3, gold=lambda pixels: {"gold": float(len(pixels))})
    run_line(tmp_path, steps=8, hooks=[hook], stage=Line())
    measured = {r.step: r.metrics for r in read_records(tmp_path / "steps.jsonl") if "samples/gold" in r.metrics}
    assert sorted(measured) == [2, 5, 7]
    assert measured[5]["samples/gold"] == 2.0
    assert measured[5]["samples/high_frequency"] == pytest.approx(0.5, abs=0.03)
    with pytest.raises(ConfigError, match="every is 0: give a number of steps"):
        Samples(draw, every=0)
