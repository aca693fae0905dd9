"""Whole runs over real ranks: the engine, Muon, FSDP2, accumulation and the checkpoint writer together."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from pleinair.checkpoint.pieces import INDEX
from pleinair.checkpoint.store import list_checkpoints, newest_checkpoint, read_document, read_tensors
from pleinair.cli.main import main
from pleinair.model.float8 import float8_for
from pleinair.model.parallelize import MeshConfig, ParallelConfig, parallelize
from pleinair.records.errors import ConfigError
from pleinair.training.engine import Phase, Run, StepRecord, read_records, train
from pleinair.training.hooks.progress import EachStep
from pleinair.training.mesh import Mesh, open_mesh
from pleinair.training.optimisers import OptimiserConfig
from tests.training.ranks import run_ranks
from tests.training.small_stages import Share, pretrain_stage, settings

NUM_STEPS, STOP_AFTER = 6, 4
CONFIG = settings(
    checkpoint_seconds=1e-9,
    keep_checkpoints=2,
    num_micro_batches=2,
    optimiser=OptimiserConfig(rule="muon", learning_rate=1e-2, warmup_steps=2, decay_share=0.0),
)


class OneRankHasEnough:
    """Asks to end the run after a step, on one rank alone."""

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        return {}

    def stop_reason(self, run: Run[Any], record: StepRecord) -> str | None:
        return "rank 1 has enough" if run.mesh.rank == 1 and record.step == 2 else None


def run(directory: Path, mesh: Mesh, stop_after: int = NUM_STEPS, hooks: Sequence[Any] = ()) -> None:
    def stop(record: Any, total: int) -> None:
        if record.step + 1 > stop_after:
            raise KeyboardInterrupt

    stage = pretrain_stage()
    parallelize(stage.model, mesh.device_mesh, ParallelConfig(mesh=MeshConfig(shard=mesh.world_size)))
    phases = [Phase("latents", NUM_STEPS, 8, Share(mesh))]
    train(
        stage, phases, CONFIG, directory, config_digest="d", mesh=mesh, hooks=[EachStep(stop), *hooks], on_message=print
    )


def run_in_float8(directory: Path, mesh: Mesh) -> None:
    """Two phases under other scales, converted before the weights are spread."""
    stage = pretrain_stage()
    float8_for(stage.model, 256)
    parallelize(stage.model, mesh.device_mesh, ParallelConfig(mesh=MeshConfig(shard=mesh.world_size)))
    phases = [Phase(f"{side} px", 2, 8, Share(mesh), resolution=side) for side in (256, 512)]
    train(stage, phases, settings(precision="fp8"), directory, config_digest="d", mesh=mesh, on_message=lambda _: None)


def on_a_rank(directory: Path, ports: Sequence[int]) -> None:
    os.environ["MASTER_PORT"] = str(ports[0])
    with open_mesh(MeshConfig(shard=2), collective_timeout_seconds=300) as mesh:
        run(directory / "whole", mesh)
        with pytest.raises(KeyboardInterrupt):
            run(directory / "stopped", mesh, STOP_AFTER)
        run(directory / "stopped", mesh)
        run(directory / "early", mesh, hooks=[OneRankHasEnough()])
        run_in_float8(directory / "float8", mesh)
        spread = parallelize(
            pretrain_stage().model, mesh.device_mesh, ParallelConfig(mesh=MeshConfig(shard=mesh.world_size))
        )
        with pytest.raises(ConfigError, match="spread over ranks already: convert it to 8-bit products before"):
            float8_for(spread, 256)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ranks")
    run_ranks(2, partial(on_a_rank, directory), 1)
    run(directory / "alone", Mesh())
    run_in_float8(directory / "float8 alone", Mesh())
    return directory


def losses(directory: Path) -> list[float]:
    return [record.loss for record in read_records(directory / "steps.jsonl")]


def final(directory: Path) -> dict[str, Tensor]:
    return read_tensors(list_checkpoints(directory / "checkpoints")[-1], "transformer.safetensors")


def test_two_ranks_have_the_losses_and_weights_of_one(runs: Path) -> None:
    # Muon's Newton-Schulz steps, in bfloat16, magnify rounding in small directions; test_parallel holds AdamW to 1e-5.
    assert losses(runs / "whole") == pytest.approx(losses(runs / "alone"), abs=1e-4)
    expected = final(runs / "alone")
    for name, values in final(runs / "whole").items():
        assert (values - expected[name]).norm() <= 0.03 * expected[name].norm(), name


def test_two_ranks_in_8_bit_products_have_the_losses_of_one(runs: Path) -> None:
    # Scales are of each rank's own rows, so operands round apart; weights are gathered whole before they are rounded.
    assert losses(runs / "float8") == pytest.approx(losses(runs / "float8 alone"), rel=0.02)
    assert len(losses(runs / "float8")) == 4


def test_ranks_that_stop_go_on_bit_for_bit(runs: Path) -> None:
    assert losses(runs / "stopped") == losses(runs / "whole")


def test_all_ranks_end_early_where_one_has_a_reason(runs: Path) -> None:
    assert len(losses(runs / "early")) == 3
    newest = newest_checkpoint(runs / "early" / "checkpoints")
    assert newest is not None
    assert newest.name == "step-00000003"
    assert read_document(newest, "run.json")["stopped"] == "rank 1 has enough"


def test_every_rank_writes_its_pieces_and_the_checkpoint_verifies(runs: Path) -> None:
    newest = newest_checkpoint(runs / "whole" / "checkpoints")
    assert newest is not None
    files = {path.name for path in newest.iterdir()}
    assert {INDEX, "transformer.rank-00000.safetensors", "transformer.rank-00001.safetensors"} <= files
    assert [path.name for path in list_checkpoints(runs / "whole" / "checkpoints")] == [
        "step-00000005",
        "step-00000006",
    ]


def test_what_two_ranks_wrote_is_converted_like_any_checkpoint(runs: Path, tmp_path: Path) -> None:
    newest = list_checkpoints(runs / "whole" / "checkpoints")[-1]
    assert main(["convert", str(newest), str(tmp_path / "out"), "--to", "pleinair"]) == 0
    converted = load_file(tmp_path / "out" / "transformer.safetensors")
    expected = final(runs / "whole")
    assert converted.keys() == expected.keys()
    assert all(converted[name].equal(values) for name, values in expected.items())


def test_a_run_of_two_ranks_goes_on_in_one_process(runs: Path) -> None:
    earlier = list_checkpoints(runs / "whole" / "checkpoints")[0]
    kept = losses(runs / "whole")
    list_checkpoints(runs / "whole" / "checkpoints")[1].rename(runs / "set aside")
    run(runs / "whole", Mesh())
    assert earlier.name == "step-00000005"
    assert losses(runs / "whole")[:5] == kept[:5]
    assert losses(runs / "whole")[5] == pytest.approx(kept[5], abs=1e-5)
