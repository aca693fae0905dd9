import json
import math
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from pleinair.checkpoint.store import list_checkpoints, read_tensors
from pleinair.model.autoencoder import Autoencoder, AutoencoderConfig
from pleinair.packs.pictures import PictureLoader, PictureSet
from pleinair.records.errors import CheckpointError
from pleinair.training.engine import EngineConfig, Phase, read_records, train
from pleinair.training.optimisers import OptimiserConfig
from pleinair.training.stages.autoencode import Autoencode, AutoencodeConfig
from tests.training.ranks import forking

TINY = AutoencoderConfig(widths=(8, 16), encoder_blocks=(1, 1), decoder_blocks=(1, 1), latent_channels=4)


def pictures(count: int = 64) -> PictureSet:
    colours = np.random.default_rng(0).integers(0, 256, (count, 1, 1, 3), np.uint8)
    pixels = np.broadcast_to(colours, (count, 16, 16, 3)).copy()
    pixels[:, 4:12, 4:12] = 255 - pixels[:, 4:12, 4:12]
    return PictureSet([f"p{i}" for i in range(count)], pixels, ["s"] * count, ["c"] * count, np.zeros(count, bool))


def run(
    directory: Path,
    steps: int = 12,
    rule: str = "adamw",
    checkpoint_seconds: float = 1e-9,
    digest: str = "d",
    said: list[str] | None = None,
) -> Path:
    torch.manual_seed(0)
    stage = Autoencode(Autoencoder(TINY), AutoencodeConfig())
    phase = Phase("pixels", steps, 8, PictureLoader(pictures(), 8, seed=1, half_every=0))
    optimiser = OptimiserConfig(rule=rule, warmup_steps=2, learning_rate=1e-2)  # type: ignore[arg-type]
    config = EngineConfig(
        checkpoint_seconds=checkpoint_seconds, checkpoint_by="time", num_threads=1, optimiser=optimiser
    )
    return train(
        stage, [phase], config, directory, config_digest=digest, on_message=([] if said is None else said).append
    )


def losses(directory: Path) -> list[float]:
    return [record.loss for record in read_records(directory / "steps.jsonl")]


def test_a_tiny_model_learns_its_pictures(tmp_path: Path) -> None:
    run(tmp_path, steps=120)
    sequence = losses(tmp_path)
    assert len(sequence) == 120
    assert sum(sequence[-5:]) < 0.6 * sum(sequence[:5])


@pytest.mark.slow
def test_a_trainer_killed_at_any_step_resumes_with_bit_equal_losses(tmp_path: Path) -> None:
    run(tmp_path / "calm", steps=40)
    for moment in (0.3, 0.9):
        kill_trainer(tmp_path / "killed", after_steps=40 * moment)
    run(tmp_path / "killed", steps=40)
    assert losses(tmp_path / "killed") == losses(tmp_path / "calm")
    final = [
        read_tensors(tmp_path / name / "checkpoints" / "step-00000040", "autoencoder.safetensors")
        for name in ("calm", "killed")
    ]
    assert all(torch.equal(final[0][key], final[1][key]) for key in final[0])


def kill_trainer(directory: Path, after_steps: float) -> None:
    """Start one in a process of its own, or go on, and kill it once there are a checkpoint and that many records."""
    trainer = forking().Process(target=run, args=(directory, 40))
    trainer.start()
    log = directory / "steps.jsonl"
    while not list_checkpoints(directory / "checkpoints") or len(log.read_text().splitlines()) < after_steps:
        assert trainer.is_alive(), "the trainer ended before it could be killed"
        time.sleep(0.01)
    trainer.kill()
    trainer.join()
    assert trainer.exitcode == -signal.SIGKILL


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses every byte beyond `size`, as a full disk does; unlike one, it needs no mount to be had."""
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_disk_that_refuses_a_checkpoint_costs_a_message_and_only_the_last_one_must_succeed(tmp_path: Path) -> None:
    said: list[str] = []
    refused = "the final checkpoint is not there: .* could not be written .*: free space there; .*; then run again"
    with files_of_at_most(8000), pytest.raises(CheckpointError, match=refused):
        run(tmp_path, steps=8, said=said)
    assert len(losses(tmp_path)) == 8, "training went on"
    assert sum("could not be written" in line and "training goes on" in line for line in said) == 7
    assert list((tmp_path / "checkpoints").iterdir()) == [], "nothing half-written is left"
    run(tmp_path, steps=8)
    run(tmp_path / "calm", steps=8)
    assert losses(tmp_path) == losses(tmp_path / "calm")


def test_a_run_with_other_settings_is_refused(tmp_path: Path) -> None:
    run(tmp_path, steps=2)
    with pytest.raises(CheckpointError, match="made with other settings or data: give this run another name"):
        run(tmp_path, steps=2, digest="other")


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    final = run(tmp_path, steps=3)
    before = (tmp_path / "steps.jsonl").read_text()
    assert run(tmp_path, steps=3) == final
    assert (tmp_path / "steps.jsonl").read_text() == before


def test_a_loss_that_is_not_finite_names_the_step_and_its_pictures(tmp_path: Path) -> None:
    stage = Autoencode(Autoencoder(TINY), AutoencodeConfig(latent_weight=math.inf))
    phase = Phase("pixels", 2, 8, PictureLoader(pictures(), 8, seed=1, half_every=0))
    with pytest.raises(FloatingPointError, match=r"the loss is (inf|nan) at step 0: look at the pictures p\d+"):
        train(stage, [phase], EngineConfig(num_threads=1), tmp_path, config_digest="d")


def test_a_half_written_record_and_those_of_repeated_steps_are_dropped(tmp_path: Path) -> None:
    run(tmp_path, steps=4, checkpoint_seconds=1e9)
    log = tmp_path / "steps.jsonl"
    log.write_text(log.read_text() + json.dumps({"step": 4})[:-3])
    run(tmp_path, steps=4)
    assert [record.step for record in read_records(log)] == [0, 1, 2, 3]
