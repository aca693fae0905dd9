"""Runs in 8-bit products through the engine, emulated: recipes by phase, master weights, resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pleinair.checkpoint.store import newest_checkpoint, read_tensors
from pleinair.model.float8 import has_float8_products
from pleinair.records.errors import ConfigError
from pleinair.training.engine import Phase, StepRecord, read_records, train
from pleinair.training.hooks.progress import EachStep
from tests.training.small_stages import Latents, pretrain_stage, settings

PHASES = ((4, 256), (4, 512), (2, 1024))
NUM_STEPS = sum(steps for steps, _ in PHASES)


def run(
    directory: Path, precision: str = "fp8", stop_after: int = NUM_STEPS, schedule: tuple[tuple[int, int], ...] = PHASES
) -> tuple[Any, list[str]]:
    """The stage, and what was said."""

    def stop(record: StepRecord, total: int) -> None:
        if record.step + 1 > stop_after:
            raise KeyboardInterrupt

    stage, said = pretrain_stage(), list[str]()
    phases = [Phase(f"{side} px", steps, 8, Latents(first=side), resolution=side) for steps, side in schedule]
    config = settings(precision=precision, checkpoint_seconds=1e-9)
    train(stage, phases, config, directory, config_digest="d", hooks=[EachStep(stop)], on_message=said.append)
    return stage, said


def losses(directory: Path) -> list[float]:
    return [record.loss for record in read_records(directory / "steps.jsonl")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, list[str]]:
    directory = tmp_path_factory.mktemp("float8") / "whole"
    return directory, *run(directory)


def test_losses_are_near_those_in_bfloat16_and_not_the_same(whole: tuple[Path, Any, list[str]], tmp_path: Path) -> None:
    run(tmp_path / "bf16", "bf16")
    plain, rounded = losses(tmp_path / "bf16"), losses(whole[0])
    assert rounded == pytest.approx(plain, rel=0.02)
    assert all(one != other for one, other in zip(rounded, plain, strict=True))


def test_a_phase_without_8_bit_products_trains_as_in_bfloat16(tmp_path: Path) -> None:
    for precision in ("fp8", "bf16"):
        run(tmp_path / precision, precision, schedule=((2, 1024),))
    assert losses(tmp_path / "fp8") == losses(tmp_path / "bf16")


@pytest.mark.skipif(has_float8_products(), reason="nothing is emulated here")
def test_each_phase_says_which_scales_it_has_and_that_they_are_emulated(whole: tuple[Path, Any, list[str]]) -> None:
    emulated = "emulated: this device has none, so they save no time"
    said = [line for line in whole[2] if "8-bit" in line]
    assert said == [
        f"32 layers multiply in 8-bit floats at 256 px, tensorwise scales, {emulated}",
        f"32 layers multiply in 8-bit floats at 512 px, rowwise scales, {emulated}",
        "8-bit products are off at 1024 px, which trains in bfloat16",
    ]


def test_checkpoints_hold_the_weights_in_float32_by_their_own_names(whole: tuple[Path, Any, list[str]]) -> None:
    newest = newest_checkpoint(whole[0] / "checkpoints")
    assert newest is not None
    stored = read_tensors(newest, "transformer.safetensors")
    assert stored.keys() == pretrain_stage().model.state_dict().keys()
    for name, values in whole[1].model.state_dict().items():
        assert values.dtype == stored[name].dtype == torch.float32
        assert torch.equal(values, stored[name])


@pytest.mark.parametrize("stop_after", [2, 4, 6])
def test_a_run_stopped_in_any_phase_goes_on_bit_for_bit(
    whole: tuple[Path, Any, list[str]], tmp_path: Path, stop_after: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", stop_after=stop_after)
    run(tmp_path / "stopped")
    assert losses(tmp_path / "stopped") == losses(whole[0])


def test_rows_without_a_resolution_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="precision is fp8 and phase rows tells no resolution: use bf16, or tell it"):
        train(
            pretrain_stage(), [Phase("rows", 1, 8, Latents())], settings(precision="fp8"), tmp_path, config_digest="d"
        )
