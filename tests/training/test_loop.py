"""The loop's own promises: accumulation, ranks, phases, parents, guards, and what is stored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pleinair.checkpoint.manifests import identity
from pleinair.checkpoint.merge import merge_checkpoints
from pleinair.checkpoint.store import list_checkpoints, read_document, read_manifest, read_tensors
from pleinair.records.errors import CheckpointError, ConfigError
from pleinair.training.averaging import MovingAverage
from pleinair.training.engine import LossOutput, Parent, Phase, Run, read_records, train
from pleinair.training.hooks.progress import EachStep
from pleinair.training.mesh import Mesh
from pleinair.training.optimisers import OptimiserConfig
from pleinair.training.random import RowRandom
from pleinair.training.records import StepRecord
from pleinair.training.reductions import gradient_norm
from tests.training.small_stages import Latents, Line, Points, pretrain_stage, run_line, settings


def losses(directory: Path) -> list[float]:
    return [record.loss for record in read_records(directory / "steps.jsonl")]


def norms(directory: Path) -> list[float]:
    return [record.grad_norm for record in read_records(directory / "steps.jsonl")]


@pytest.mark.parametrize("pieces", [2, 8])
def test_micro_batches_give_the_losses_of_whole_batches(tmp_path: Path, pieces: int) -> None:
    for name, count in (("whole", 1), ("pieces", pieces)):
        stage, phase = pretrain_stage(), Phase("latents", 5, 8, Latents())
        train(
            stage,
            [phase],
            settings(num_micro_batches=count),
            tmp_path / name,
            config_digest="d",
            on_message=lambda _: None,
        )
    for measured in (losses, norms):  # of the gradient, too: neither AdamW nor clipping minds its scale
        assert measured(tmp_path / "pieces") == pytest.approx(measured(tmp_path / "whole"), rel=1e-4)
    assert losses(tmp_path / "pieces")[-1] != losses(tmp_path / "whole")[0]


def test_no_gradient_is_kept_from_one_step_to_the_next(tmp_path: Path) -> None:
    stage = Line()
    run_line(tmp_path, steps=2, stage=stage)
    assert [parameter.grad for parameter in stage.model.parameters()] == [None, None]


def test_rows_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    phases = [Phase("odd", 1, 6, Points(6)), Phase("even", 1, 8, Points(8))]
    with pytest.raises(ConfigError, match="num_micro_batches is 3 and a rank has 8 rows of a step of phase even"):
        run_line(tmp_path, config=settings(num_micro_batches=3), phases=phases)
    assert losses(tmp_path) == [], "before the first step, not before the second"


def test_a_ranks_rows_have_the_randomness_of_their_place_in_the_global_batch(tmp_path: Path) -> None:
    """Two ranks' losses, computed one after the other, average to the loss of one process on all rows."""

    class Half(Points):
        def __init__(self, rank: int) -> None:
            super().__init__()
            self.rank = rank

        def batch(self, step: int) -> Tensor:
            return super().batch(step)[4 * self.rank : 4 * self.rank + 4]

    run_line(tmp_path / "whole", steps=1)
    parts = []
    for rank in range(2):
        mesh = Mesh(data_rank=rank, num_data_ranks=2)
        run_line(tmp_path / str(rank), phases=[Phase("points", 1, 8, Half(rank))], mesh=mesh)
        parts += losses(tmp_path / str(rank))
    assert sum(parts) / 2 == pytest.approx(losses(tmp_path / "whole")[0], rel=1e-6)


class Beside(Line):
    """The same objective with a module that is trained beside the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.head = model, nn.Linear(4, 4)

    def loss(self, batch: Tensor, random: RowRandom) -> LossOutput:
        output = super().loss(batch, random)
        return LossOutput(output.loss + self.head(batch).square().mean(), output.metrics)


def beside_then_plain(directory: Path, stop_after: int | None = None, keep_every: int = 3) -> None:
    torch.manual_seed(0)
    stage = Line()
    phases = [Phase("beside", 6, 8, Points(), stage=Beside(stage.model)), Phase("plain", 6, 8, Points())]

    def stop(record: StepRecord, total: int) -> None:
        if record.step + 1 == stop_after:
            raise KeyboardInterrupt

    run_line(directory, stage=stage, phases=phases, hooks=[EachStep(stop)], config=settings(keep_every=keep_every))


def test_a_head_is_trained_and_stored_while_its_phase_lasts_and_then_gone(tmp_path: Path) -> None:
    beside_then_plain(tmp_path)
    middle, *after = [tmp_path / "checkpoints" / f"step-{step:08d}" for step in (3, 6, 9, 12)]
    assert "head.safetensors" in read_manifest(middle).files
    assert any(name.startswith("head/") for name in read_tensors(middle, "optimiser.safetensors"))
    for checkpoint in after:
        assert "head.safetensors" not in read_manifest(checkpoint).files
        assert set(read_document(checkpoint, "optimiser.json")) == {"adamw"}
        assert set(read_tensors(checkpoint, "line.safetensors")) == {"weight", "bias"}
    with pytest.raises(CheckpointError, match="only one of step-00000003 and step-00000006 was trained beside a head"):
        merge_checkpoints([middle, after[0]], out=tmp_path / "merged")


class SeesGradients:
    """Norms of what model and head are about to be updated by."""

    def __init__(self) -> None:
        self.norms: list[list[float]] = []

    def after_step(self, run: Run[Any], record: StepRecord) -> dict[str, float]:
        return {}

    def allows_update(self, run: Run[Any], loss: float, grad_norm: float) -> bool:
        self.norms.append([float(gradient_norm(module.parameters())) for module in run.modules()])
        return True


def test_model_and_head_are_clipped_each_by_its_own_norm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    seen = SeesGradients()
    run_line(tmp_path, steps=2, stage=Beside(nn.Linear(4, 4)), hooks=[seen], config=settings(clip_norm=0.01))
    assert seen.norms == [pytest.approx([0.01, 0.01], rel=1e-3)] * 2
    assert min(norms(tmp_path)) > 0.1, "what is recorded is the norm of both, as it was"


@pytest.mark.parametrize("stop_after", [4, 7, 10])
def test_a_run_with_a_head_resumes_in_and_after_its_phase_bit_for_bit(tmp_path: Path, stop_after: int) -> None:
    beside_then_plain(tmp_path / "calm")
    with pytest.raises(KeyboardInterrupt):
        beside_then_plain(tmp_path / "stopped", stop_after)
    beside_then_plain(tmp_path / "stopped")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "calm")


def test_checkpoints_at_fixed_steps_are_kept_for_good(tmp_path: Path) -> None:
    run_line(tmp_path, steps=11, config=settings(keep_every=3, keep_checkpoints=1))
    assert [int(path.name[5:]) for path in list_checkpoints(tmp_path / "checkpoints")] == [3, 6, 9, 11]


def test_a_stable_phase_continues_as_if_it_had_not_ended(tmp_path: Path) -> None:
    """Weights, moments and data go on; only the numbers of the steps, and with them the noise, start anew."""
    run_line(tmp_path / "long", steps=10, stage=Line(noise=0.0))
    half = run_line(tmp_path / "half", steps=5, stage=Line(noise=0.0))
    flat = settings(optimiser=OptimiserConfig(learning_rate=1e-2, warmup_steps=0, decay_share=0.0))
    run_line(
        tmp_path / "rest",
        stage=Line(noise=0.0),
        config=flat,
        phases=[Phase("points", 5, 8, Points(), first_batch=5)],
        parent=Parent(checkpoint=half, with_optimiser=True),
    )
    assert losses(tmp_path / "rest") == losses(tmp_path / "long")[5:]


def test_a_child_starts_from_its_parents_weights_and_tells_its_lineage(tmp_path: Path) -> None:
    first = run_line(tmp_path / "first", steps=5)
    second = run_line(tmp_path / "second", steps=1, parent=Parent(checkpoint=first))
    third = run_line(tmp_path / "third", steps=1, parent=Parent(checkpoint=second))
    lineage = read_document(third, "run.json")["lineage"]
    assert [Path(entry["checkpoint"]) for entry in lineage] == [first, second]
    assert lineage[1]["identity"] == identity(read_manifest(second))
    moved = read_tensors(second, "line.safetensors")["weight"] - read_tensors(first, "line.safetensors")["weight"]
    assert 0 < moved.abs().max() <= 1e-2, "one step of at most the learning rate from the parent"


def test_a_resumed_child_keeps_its_own_weights_and_its_lineage(tmp_path: Path) -> None:
    parent = Parent(checkpoint=run_line(tmp_path / "first", steps=5))
    config = settings(checkpoint_seconds=1e-9)

    def stop(record: StepRecord, total: int) -> None:
        if record.step == 3:
            raise KeyboardInterrupt

    run_line(tmp_path / "calm", config=config, parent=parent)
    with pytest.raises(KeyboardInterrupt):
        run_line(tmp_path / "stopped", config=config, parent=parent, hooks=[EachStep(stop)])
    final = run_line(tmp_path / "stopped", config=config, parent=parent)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "calm")
    assert len(read_document(final, "run.json")["lineage"]) == 1


def test_a_parent_of_another_shape_is_refused(tmp_path: Path) -> None:
    parent = Parent(checkpoint=run_line(tmp_path / "first", steps=1))
    phases = [Phase("points", 1, 8, Points(width=5))]
    with pytest.raises(CheckpointError, match=r"'weight' is torch.float32 \[4, 4\] in .*, not torch.float32 \[5, 5\]"):
        run_line(tmp_path / "second", stage=Line(width=5), phases=phases, parent=parent)


@pytest.mark.parametrize("others", ["", "theirs 4x1/8 0123"])
def test_a_parent_that_has_learned_other_latents_is_refused_and_an_older_one_passes(
    tmp_path: Path, others: str
) -> None:
    phases = [Phase("latents", 1, 8, Latents())]
    stages = {name: pretrain_stage() for name in ("first", "second")}
    stages["first"].latent_space, stages["second"].latent_space = others, "ours 4x1/8 4567"
    parent = Parent(checkpoint=run_line(tmp_path / "first", stage=stages["first"], phases=phases))
    if not others:
        run_line(tmp_path / "second", stage=stages["second"], phases=phases, parent=parent)
        return
    said = "has learned latents of 'theirs 4x1/8 0123' and this run's pack holds 'ours 4x1/8 4567'"
    with pytest.raises(CheckpointError, match=said):
        run_line(tmp_path / "second", stage=stages["second"], phases=phases, parent=parent)
    assert not (tmp_path / "second" / "steps.jsonl").exists(), "before any step"


class Refuses:
    """A guard that lets some steps through."""

    def __init__(self, steps: set[int]) -> None:
        self.steps = steps

    def allows_update(self, run: Run[Any], loss: float, grad_norm: float) -> bool:
        return run.step not in self.steps

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        return {"guard/step": float(record.step)}


def test_a_refused_update_leaves_the_weights_and_is_recorded_and_hooks_add_metrics(tmp_path: Path) -> None:
    final = run_line(tmp_path, steps=3, hooks=[Refuses({0, 1, 2})])
    assert read_tensors(final, "line.safetensors")["weight"].abs().max() == 0
    records = read_records(tmp_path / "steps.jsonl")
    assert [record.metrics["skipped"] for record in records] == [1.0] * 3
    assert [record.metrics["guard/step"] for record in records] == [0.0, 1.0, 2.0]


class Sharp(Line):
    """A finite loss with an infinite slope."""

    def loss(self, batch: Tensor, random: RowRandom) -> LossOutput:
        return LossOutput((self.model.weight.sum() * 0).abs().sqrt() + super().loss(batch, random).loss)  # type: ignore[union-attr,operator]


def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_weights(tmp_path: Path) -> None:
    stage = Sharp()
    with pytest.raises(
        FloatingPointError, match="the gradient's norm is (nan|inf) at step 0: look at the pictures s0r0"
    ):
        run_line(tmp_path, stage=stage)
    assert all(torch.isfinite(parameter).all() for parameter in stage.model.parameters())


def test_frozen_parameters_stay_and_have_no_moments(tmp_path: Path) -> None:
    stage = Line()
    stage.model.weight.requires_grad_(False)  # type: ignore[union-attr,operator]
    final = run_line(tmp_path, stage=stage)
    assert read_tensors(final, "line.safetensors")["weight"].abs().max() == 0
    assert {name.split("/")[1] for name in read_tensors(final, "optimiser.safetensors")} == {"bias"}


def test_an_average_of_late_weights_is_the_formulas_and_survives_a_stop(tmp_path: Path) -> None:
    seen: list[Tensor] = []
    config = settings(checkpoint_seconds=1e-9)

    class Watches:
        def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
            seen.append(run.stage.model.weight.detach().clone())  # type: ignore[union-attr,operator]
            return {}

    def stop(record: StepRecord, total: int) -> None:
        if record.step == 4:
            raise KeyboardInterrupt

    calm = run_line(tmp_path / "calm", config=config, hooks=[MovingAverage(0.9), Watches()])
    expected = torch.zeros(4, 4)
    for weight in seen:
        expected = 0.9 * expected + 0.1 * weight
    assert torch.allclose(read_tensors(calm, "ema.safetensors")["weight"], expected, atol=1e-6)
    with pytest.raises(KeyboardInterrupt):
        run_line(tmp_path / "stopped", config=config, hooks=[MovingAverage(0.9), EachStep(stop)])
    again = run_line(tmp_path / "stopped", config=config, hooks=[MovingAverage(0.9)])
    assert torch.equal(*(read_tensors(path, "ema.safetensors")["weight"] for path in (calm, again)))


def test_the_average_of_a_constant_rates_last_checkpoints_is_better_than_the_last(tmp_path: Path) -> None:
    """What merging is for: at a constant rate the last weights are noisy, and their mean is nearer to the optimum."""
    stage = Line(noise=3.0)
    config = settings(learning_rate=5e-2, keep_every=20)
    last = run_line(tmp_path, steps=400, stage=stage, config=config)
    merged = merge_checkpoints(list_checkpoints(tmp_path / "checkpoints")[-8:], out=tmp_path / "merged")

    def distance(checkpoint: Path) -> float:
        """Squared error of the weights, which is the loss above the noise for these inputs."""
        state = read_tensors(checkpoint, "line.safetensors")
        return float((state["weight"] - 2 * torch.eye(4)).square().sum() + (state["bias"] - 1).square().sum())

    assert distance(merged) < 0.5 * distance(last)
