"""Few-step students: losses against five lines, a fixed point in closed form, toys whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from pleinair.checkpoint.store import list_checkpoints, read_document, read_manifest, read_tensors
from pleinair.evaluation.coverage import mode_coverage
from pleinair.flow.renoise import added_deviation, mixed_noise, renoise, split
from pleinair.model.transformer import Transformer
from pleinair.records.errors import ConfigError
from pleinair.sampling import SamplingConfig
from pleinair.sampling.stored import sampling_of
from pleinair.training.engine import Phase, read_records, train
from pleinair.training.hooks.progress import EachStep
from pleinair.training.optimisers import HeadConfig, OptimiserConfig
from pleinair.training.prompts import PromptBatch, PromptLoader, PromptSet
from pleinair.training.random import RowRandom
from pleinair.training.records import StepRecord
from pleinair.training.rows import part
from pleinair.training.stages.tdm import (
    Tdm,
    TdmConfig,
    by_segment,
    clean_errors,
    fresh_errors,
    importance,
    student_errors,
)
from tests.training import rings
from tests.training.small_stages import TINY, pretrain_stage, settings

FAKE = HeadConfig(rate_factor=3.0)


def test_the_students_loss_is_its_five_lines_and_pulls_along_teacher_minus_fake() -> None:
    clean, wanted, fake = torch.randn(4, 2, 3, requires_grad=True), torch.randn(4, 2, 3), torch.randn(4, 2, 3)
    found = student_errors(clean, wanted, fake, 1e-3)
    for row in range(4):
        pull = wanted[row] - fake[row]
        scale = (clean[row] - wanted[row]).abs().mean()
        assert found[row].item() == pytest.approx((((pull**2 + 1e-6).sqrt() - 1e-3).mean() / scale).item(), rel=1e-4)
    found.sum().backward()
    assert clean.grad is not None
    assert torch.equal(clean.grad.sign(), (fake - wanted).sign())


def test_the_fake_models_losses_are_their_five_lines() -> None:
    fake, clean, noise, fresh = (torch.randn(3, 2, 2) for _ in range(4))
    start_B, t_B = torch.tensor([0.0, 0.2, 0.5]), torch.tensor([0.3, 0.4, 0.9])
    noisy = renoise((1 - start_B)[:, None, None] * clean + start_B[:, None, None] * noise, start_B, t_B, fresh)
    deviation_B = added_deviation(start_B, t_B)
    found = [fresh_errors(fake, noisy, t_B, deviation_B, fresh, 5.0), clean_errors(fake, clean, t_B, 5.0)]
    weights = importance(mixed_noise(noise, start_B, t_B, fresh), fresh)
    for row, t in enumerate(t_B.tolist()):
        ratio = ((1 - t) / t) ** 2
        score = ((1 - t) * fake[row] - noisy[row]) / t**2
        expected = min(1.0, 5.0 / ratio) * (score * deviation_B[row] + fresh[row]).square().mean().item()
        assert found[0][row].item() == pytest.approx(expected, rel=1e-4)
        assert found[1][row].item() == pytest.approx(min(ratio, 5.0) * (fake[row] - clean[row]).square().mean().item())
        mixed = (noisy[row] - (1 - t) * clean[row]) / t
        log = 0.5 * (fresh[row].square().mean() - mixed.square().mean())
        assert weights[row].item() == pytest.approx(log.exp().item(), rel=1e-4)


def best_slope(loss: Callable[[float], float]) -> float:
    """The minimum of a parabola, from three of its points."""
    low, middle, high = (loss(slope) for slope in (0.0, 1.0, 2.0))
    return (low - high) / (2 * (low - 2 * middle + high)) + 1


@pytest.mark.parametrize("segment", [(0.75, 0.45, 0.6), (0.45, 0.2, 0.3), (0.2, 0.0, 0.1)])
def test_a_student_that_is_exact_is_left_alone_with_fresh_noise_as_the_target_and_moved_with_clean_data(
    segment: tuple[float, float, float],
) -> None:
    """Of N(0, s^2) all is linear: the teacher's clean prediction is a slope, and so is the best fake model's."""
    start, end, t = segment
    s, rows = 0.5, 40_000
    torch.manual_seed(0)
    sigma = {time: float(np.hypot((1 - time) * s, time)) for time in segment}
    x = sigma[start] * torch.randn(rows, 16)
    start_B, end_B, t_B = (torch.full((rows,), time) for time in segment)
    velocity = (sigma[end] / sigma[start] - 1) * x / (end - start)
    clean, noise = split(x, velocity, start_B)
    fresh = torch.randn_like(x)
    noisy = renoise(x + (end - start) * velocity, end_B, t_B, fresh)
    teacher = (1 - t) * s**2 / sigma[t] ** 2
    weight_B = importance(mixed_noise(noise, end_B, t_B, fresh), fresh)
    deviation_B = added_deviation(end_B, t_B)
    exact = best_slope(lambda k: fresh_errors(k * noisy, noisy, t_B, deviation_B, fresh, 5.0).mean().item())
    moved = best_slope(lambda k: (weight_B * clean_errors(k * noisy, clean, t_B, 5.0)).mean().item())
    assert exact == pytest.approx(teacher, rel=0.03)
    if end == 0:
        assert moved == pytest.approx(teacher, rel=0.03)
    else:
        assert abs(moved / teacher - 1) > 0.1


@pytest.mark.parametrize("fake_target", ["fresh", "clean"])
def test_the_loss_is_that_of_student_and_fake_between_the_ends_of_the_segments_the_student_goes_through(
    fake_target: Any,
) -> None:
    torch.manual_seed(0)
    student, teacher = rings.Points(), rings.Points()
    config = TdmConfig(num_steps=2, shift_mu=0.0, guidance=1.5, fake_target=fake_target)
    stage = Tdm(rings.stage_of(student), cast(Transformer, teacher), config, rings.EMPTY)
    stage.head.load_state_dict(rings.Points().state_dict())
    batch, random = rings.prompts((0, 1), batch_size=6).batch(0), RowRandom(0, 0, range(6))
    found = stage.loss(batch, RowRandom(0, 0, range(6))).loss.item()

    def velocity(model: Any, x: Tensor, t: float, features: Tensor = batch.text_features_BTLD) -> Tensor:
        return model(x, torch.full((len(x),), t), features)

    noise = random.normal(2, 4, 8)
    second_B, share_B, fresh = random.uniform() >= 0.5, random.uniform(), random.normal(2, 4, 8)
    middle = noise - 0.5 * velocity(student, noise, 1.0)
    expected = 0.0
    for row in range(6):
        one = slice(row, row + 1)
        text, start, end = batch.text_features_BTLD[one], 0.5 if second_B[row] else 1.0, 0.0 if second_B[row] else 0.5
        x = middle[one] if second_B[row] else noise[one]
        t = float(end + 0.02 + share_B[row] * 0.46)
        own = velocity(student, x, start, text)
        clean, toward = x - start * own, x + (1 - start) * own
        ends = (torch.tensor([end]), torch.tensor([t]))
        noisy = renoise(x + (end - start) * own, *ends, fresh[one])
        fake = noisy - t * velocity(stage.head, noisy, t, text)
        with_prompt, without = velocity(teacher, noisy, t, text), velocity(teacher, noisy, t, rings.EMPTY)
        wanted = noisy - t * (with_prompt + 1.5 * (with_prompt - without))
        expected += student_errors(clean, wanted, fake, config.huber).item() / 6
        if fake_target == "fresh":
            error = fresh_errors(fake, noisy, ends[1], added_deviation(*ends), fresh[one], 5.0)
        else:
            error = importance(mixed_noise(toward, *ends, fresh[one]), fresh[one])
            error = error * clean_errors(fake, clean, ends[1], 5.0)
        expected += error.item() / 6
    assert found == pytest.approx(expected, rel=1e-4)


def test_each_segments_part_of_a_metric_is_its_own_mean_over_steps_and_all_make_the_whole() -> None:
    values, segments = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([0, 2, 2, 0])
    found = by_segment("gap", values, segments, 3)
    assert {name: float(value) for name, value in found.items()} == {
        "gap": 3.75, "gap/0": 6.75, "gap/1": 0.0, "gap/2": 4.5,
    }  # fmt: skip
    metrics = small_stage().loss(small_prompts().batch(0), RowRandom(0, 0, range(4))).metrics
    for name in ("tdm/gap", "tdm/fake"):
        parts = [float(metrics[f"{name}/{segment}"]) for segment in range(3)]
        assert sum(parts) / 3 == pytest.approx(float(metrics[name]), rel=1e-5)


def test_parts_of_a_batch_have_the_loss_of_the_whole() -> None:
    stage, batch, random = small_stage(), small_prompts().batch(0), RowRandom(0, 0, range(4))
    whole = stage.loss(batch, random).loss.item()
    parts = [stage.loss(part(batch, first, first + 2), random.part(first, first + 2)).loss.item() for first in (0, 2)]
    assert sum(parts) / 2 == pytest.approx(whole, rel=1e-5)


def distilled(directory: Path, letters: tuple[int, ...], config: TdmConfig, steps: int) -> rings.Points:
    student = rings.base()
    stage = Tdm(rings.stage_of(student), cast(Transformer, rings.base()), config, rings.EMPTY)
    rings.run(stage, rings.prompts(letters), steps, directory, head=FAKE)
    return student


@pytest.mark.slow
def test_four_steps_of_the_student_are_far_nearer_to_the_teacher_than_its_own_four_and_lose_no_mode(
    tmp_path: Path,
) -> None:
    teacher = rings.base()
    student = distilled(tmp_path, (2,), TdmConfig(guidance=0.0, shift_mu=rings.SHIFT_MU), 600)
    target = rings.draw(teacher, 2, 50, seed=2)
    ours, same_steps = rings.draw(student, 2, 4), rings.draw(teacher, 2, 4)
    near, far = rings.mmd(ours, target), rings.mmd(same_steps, target)
    assert near < 0.4 * far, (near, far)
    assert rings.on_modes(ours) > 0.84
    assert rings.on_modes(same_steps) < 0.7
    covered = [mode_coverage(one.numpy(), rings.MODES.numpy(), 3 * rings.DEVIATION, 0.5) for one in (ours, same_steps)]
    assert covered[0] == 1.0 > covered[1]


@pytest.mark.slow
def test_a_student_without_guidance_has_most_of_what_guidance_gives_its_teacher(tmp_path: Path) -> None:
    config, teacher = TdmConfig(guidance=2.0, shift_mu=rings.SHIFT_MU), rings.base()
    student = distilled(tmp_path, (0, 1), config, 600)
    for letter in (0, 1):
        guided, unguided, ours = (
            rings.asked_for(drawn, letter)
            for drawn in (
                rings.draw(teacher, letter, 50, guidance=2.0),
                rings.draw(teacher, letter, 50),
                rings.draw(student, letter, 4),
            )
        )
        assert unguided < 0.75 < 0.9 < guided, (unguided, guided)
        assert ours - unguided > 0.5 * (guided - unguided), (ours, unguided, guided)


def small_prompts(rows: int = 8) -> PromptLoader:
    generator = torch.Generator().manual_seed(0)
    features, lengths = torch.randn(rows, 6, 2, 16, generator=generator), 2 + torch.arange(rows) % 5
    known = PromptSet(
        [f"p{row}" for row in range(rows)], features, torch.arange(6) < lengths[:, None], torch.zeros(rows).long()
    )
    return PromptLoader(known, (4, 4, 4), 4)


def small_stage(**changes: Any) -> Tdm:
    teacher = pretrain_stage(seed=1)
    student = pretrain_stage(seed=1)
    return Tdm(student, teacher.model, TdmConfig(num_steps=3, **changes), torch.ones(1, 3, 2, 16))


def run_small(directory: Path, stop_after: int | None = None, **changes: Any) -> Path:
    def stop(record: StepRecord, total: int) -> None:
        if record.step + 1 == stop_after:
            raise KeyboardInterrupt

    optimiser = OptimiserConfig(learning_rate=1e-3, betas=(0.0, 0.95), warmup_steps=1, head=FAKE)
    config = settings(optimiser=optimiser, checkpoint_seconds=1e-9, keep_checkpoints=9)
    phase = Phase("prompts", 6, 4, small_prompts())
    return train(
        small_stage(**changes),
        [phase],
        config,
        directory,
        config_digest="d",
        hooks=[EachStep(stop)],
        on_message=lambda _: None,
    )


@pytest.mark.parametrize("changes", [{}, {"fake_updates": 2}, {"fake_target": "clean"}])
def test_a_stopped_distillation_resumes_bit_for_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    calm = run_small(tmp_path / "calm", **changes)
    with pytest.raises(KeyboardInterrupt):
        run_small(tmp_path / "stopped", stop_after=3, **changes)
    assert [int(path.name[5:]) for path in list_checkpoints(tmp_path / "stopped" / "checkpoints")] < [6]
    again = run_small(tmp_path / "stopped", **changes)
    records = [read_records(tmp_path / name / "steps.jsonl") for name in ("calm", "stopped")]
    assert [record.loss for record in records[0]] == [record.loss for record in records[1]]
    assert len(records[0]) == 6
    for name in ("transformer.safetensors", "head.safetensors", "optimiser.safetensors"):
        first, second = (read_tensors(path, name) for path in (calm, again))
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_checkpoint_tells_the_schedule_that_its_weights_belong_to(tmp_path: Path) -> None:
    final = run_small(tmp_path)
    assert sampling_of(final) == SamplingConfig(num_steps=3, guidance=0.0, shift_mu=0.5, distilled=True)
    assert read_document(final, "config.json")["transformer"]["width"] == TINY.width
    assert "head.safetensors" in read_manifest(final).files


def gradients(stage: Tdm, step: int, precision: torch.dtype) -> tuple[list[Tensor | None], list[Tensor | None]]:
    batch: PromptBatch = small_prompts().batch(step)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        output = stage.loss(batch, RowRandom(0, step, range(4)))
    output.loss.backward()
    return [p.grad for p in stage.model.parameters()], [p.grad for p in stage.head.parameters()]


def test_every_parameter_of_student_and_fake_has_a_gradient_in_bfloat16_after_a_rollout_without() -> None:
    for of_model in gradients(small_stage(), 0, torch.bfloat16):
        assert all(grad is not None and grad.abs().max() > 0 for grad in of_model)


def test_between_its_turns_the_student_has_no_gradient_and_the_teacher_never_has() -> None:
    stage = small_stage(fake_updates=2)
    student, fake = gradients(stage, 1, torch.float32)
    assert student == [None] * len(student)
    assert all(grad is not None for grad in fake)
    assert not any(parameter.requires_grad for parameter in stage.teacher.parameters())


def test_the_student_learns_nothing_of_the_fake_models_loss_nor_the_other_way_round() -> None:
    """A Huber distance so wide that the student's loss is flat leaves its gradient zero, and the fake model's as it was."""
    (student, fake), (_, before) = (gradients(small_stage(huber=huber), 0, torch.float32) for huber in (1e6, 1e-3))
    assert max(grad.abs().max() for grad in student if grad is not None) < 1e-4
    assert max(grad.abs().max() for grad in fake if grad is not None) > 1e-3
    assert all(torch.equal(*pair) for pair in zip(fake, before, strict=True) if pair[0] is not None)  # type: ignore[arg-type]


def test_impossible_settings_are_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigError, match="guidance is 3.0: give the empty prompt's features, or 0"):
        Tdm(pretrain_stage(), Transformer(TINY), TdmConfig())
    with pytest.raises(ConfigError, match="num_steps is 0: give at least 1"):
        TdmConfig(num_steps=0)
    with pytest.raises(ConfigError, match="least_timestep 0.5: something must be left of the last segment"):
        TdmConfig(least_timestep=0.5)
