"""Training on packed text: the losses of padded text, one shape on all ranks, and resuming bit for bit."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pleinair.model.parallelize import MeshConfig, ParallelConfig, parallelize
from pleinair.packs.loader import LatentBatch
from pleinair.packs.pack import Pack
from pleinair.packs.packed_loader import PackedLatentBatch, PackedLoader, PackedPrompts
from pleinair.packs.plan import LoaderConfig
from pleinair.training.engine import Phase, StepRecord, read_records, train
from pleinair.training.hooks.progress import EachStep
from pleinair.training.hooks.rank_loads import BatchLoad, RankLoads, batch_load, num_graphs, skew
from pleinair.training.hooks.throughput import training_flops
from pleinair.training.mesh import Mesh, open_mesh
from pleinair.training.patch_features import PackedPatchBatch, PatchBatch
from pleinair.training.random import RowRandom
from pleinair.training.rows import on_device, part
from pleinair.training.stages.repa import Repa, RepaConfig
from tests.packs.small_packs import write_shapes_pack
from tests.training.ranks import run_ranks
from tests.training.small_stages import TINY, Latents, pretrain_stage, settings

NUM_STEPS, STOP_AFTER = 5, 3
FROM_PACK = replace(TINY, in_channels=3, text_dim=4)


def packed(batch: LatentBatch, num_parts: int = 1, budget: int = 64) -> PackedLatentBatch:
    """The same rows, packed by hand."""
    size = len(batch.keys) // num_parts
    features = batch.text_features_BTLD.new_zeros(num_parts, budget, *batch.text_features_BTLD.shape[2:])
    for number in range(num_parts):
        rows = slice(number * size, (number + 1) * size)
        valid = batch.text_features_BTLD[rows][batch.text_mask_BT[rows]]
        features[number, : len(valid)] = valid
    lengths = tuple(batch.text_mask_BT.sum(dim=1).tolist())
    return PackedLatentBatch(batch.keys, batch.latents_BCHW, PackedPrompts(features, lengths))


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def test_packed_text_has_the_loss_and_gradients_of_padded_text() -> None:
    stage, batch = pretrain_stage(), Latents().batch(0)
    padded, dense = (stage.loss(one, RowRandom(0, 0, range(8))).loss for one in (batch, packed(batch)))
    assert dense.item() == pytest.approx(padded.item(), rel=1e-6)
    for ours, theirs in zip(gradients(stage.model, dense), gradients(stage.model, padded), strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm() + 1e-6


def test_micro_batches_of_packed_text_are_its_parts() -> None:
    stage, batch, random = pretrain_stage(), Latents().batch(0), RowRandom(0, 0, range(8))
    whole = stage.loss(batch, random).loss
    in_parts = packed(batch, num_parts=4)
    losses = [stage.loss(part(in_parts, 2 * n, 2 * n + 2), random.part(2 * n, 2 * n + 2)).loss.item() for n in range(4)]
    assert sum(losses) / 4 == pytest.approx(whole.item(), rel=1e-6)


def test_packed_text_goes_to_a_device_with_its_lengths() -> None:
    batch = packed(Latents().batch(0), num_parts=2)
    moved = on_device(batch, torch.device("meta"))
    assert moved.latents_BCHW.is_meta
    assert moved.text.features_PRLD.is_meta
    assert moved.text.lengths == batch.text.lengths


def test_alignment_finds_the_image_tokens_of_packed_rows() -> None:
    stage, batch = pretrain_stage(), Latents().batch(0)
    repa, patches = Repa(stage, 3, RepaConfig(depth=1)), torch.randn(8, 3, 4, 4)
    padded = PatchBatch(**vars(batch), patches_BDHW=patches)
    dense = PackedPatchBatch(**vars(packed(batch)), patches_BDHW=patches)
    cosines = [float(repa.loss(one, RowRandom(0, 0, range(8))).metrics["repa_cosine"]) for one in (padded, dense)]
    assert cosines[0] == pytest.approx(cosines[1], abs=1e-6)


def test_flops_of_packed_text_are_those_of_each_prompt_by_itself() -> None:
    batch = Latents().batch(0)
    alone = [
        training_flops(
            TINY, LatentBatch(["k"], batch.latents_BCHW[:1], features[mask][None], torch.ones(1, int(mask.sum())))
        )
        for features, mask in zip(batch.text_features_BTLD, batch.text_mask_BT, strict=True)
    ]
    assert training_flops(TINY, packed(batch)) == sum(alone) < training_flops(TINY, batch)


def test_loads_count_tokens_padding_and_shapes() -> None:
    batch = Latents().batch(0)  # prompts of 2, 3, 4, 5, 6, 2, 3, 4 tokens, 16 image tokens each
    assert batch_load(1, batch, 1) == BatchLoad(128 + 29, 128 + 8 * 6, frozenset({(8, 16, 48)}))
    assert batch_load(1, batch, 2) == BatchLoad(128 + 29, 128 + 4 * 5 + 4 * 6, frozenset({(4, 16, 20), (4, 16, 24)}))
    assert batch_load(1, packed(batch, 2), 2) == BatchLoad(128 + 29, 128 + 2 * 64, frozenset({(4, 16, 64)}))
    assert batch_load(2, batch, 1) == BatchLoad(32 + 29, 32 + 8 * 6, frozenset({(8, 4, 48)}))
    assert skew([100.0, 50.0]) == 0.25
    assert skew([0.0, 0.0]) == 0.0


class OtherLengths:
    """Packed prompts whose lengths differ at every step."""

    def batch(self, step: int) -> PackedLatentBatch:
        whole = Latents().batch(step)
        lengths = 1 + torch.randperm(8, generator=torch.Generator().manual_seed(step)) % 6
        return packed(replace(whole, text_mask_BT=torch.arange(6) < lengths[:, None]))

    def keys(self, step: int) -> list[str]:
        return Latents().keys(step)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's own look at its inputs
def test_compiled_blocks_are_compiled_in_the_first_step_alone_and_counted(tmp_path: Path) -> None:
    torch._dynamo.reset()
    stage, before = pretrain_stage(config=replace(TINY, num_layers=1)), num_graphs()
    parallelize(stage.model, None, ParallelConfig(compile=True, compile_backend="eager"))
    phases: list[Phase[Any]] = [Phase("packed", 3, 8, OtherLengths())]
    hooks = [RankLoads(partial(batch_load, 1))]
    train(stage, phases, settings(), tmp_path, config_digest="d", hooks=hooks, on_message=lambda _: None)
    torch._dynamo.reset()
    graphs = [record.metrics["ranks/num_graphs"] - before for record in read_records(tmp_path / "steps.jsonl")]
    assert graphs[0] > 0
    assert graphs == graphs[:1] * 3


def run(directory: Path, pack: Path, mesh: Mesh, stop_after: int = NUM_STEPS) -> None:
    def stop(record: StepRecord, total: int) -> None:
        if record.step + 1 > stop_after:
            raise KeyboardInterrupt

    stage = pretrain_stage(config=FROM_PACK)
    parallelize(stage.model, mesh.device_mesh, ParallelConfig(mesh=MeshConfig(shard=mesh.world_size)))
    loader = PackedLoader(
        Pack(pack),
        32,
        LoaderConfig(batch_size=16, seed=1),
        rank=mesh.data_rank,
        num_ranks=mesh.num_data_ranks,
        num_parts=2,
    )
    phases: list[Phase[Any]] = [Phase("packed", NUM_STEPS, 16, loader)]
    config = settings(checkpoint_seconds=1e-9, num_micro_batches=2)
    hooks = [RankLoads(partial(batch_load, 1)), EachStep(stop)]
    train(stage, phases, config, directory, config_digest="d", mesh=mesh, hooks=hooks, on_message=lambda _: None)


def stopped_and_resumed(directory: Path, pack: Path, mesh: Mesh) -> None:
    run(directory / "whole", pack, mesh)
    with pytest.raises(KeyboardInterrupt):
        run(directory / "stopped", pack, mesh, STOP_AFTER)
    run(directory / "stopped", pack, mesh)


def on_a_rank(directory: Path, pack: Path, ports: Sequence[int]) -> None:
    os.environ["MASTER_PORT"] = str(ports[0])
    with open_mesh(MeshConfig(shard=2), collective_timeout_seconds=300) as mesh:
        stopped_and_resumed(directory, pack, mesh)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[StepRecord]]:
    """Of runs by one process and by two ranks, undisturbed, and stopped and resumed."""
    folder = tmp_path_factory.mktemp("packed")
    write_shapes_pack(folder / "pack")
    stopped_and_resumed(folder / "alone", folder / "pack", Mesh())
    run_ranks(2, partial(on_a_rank, folder / "ranks", folder / "pack"), 1)
    return lambda name: read_records(folder / name / "steps.jsonl")


def test_two_ranks_have_the_losses_of_one(records: Callable[[str], list[StepRecord]]) -> None:
    alone, ranks = ([record.loss for record in records(f"{name}/whole")] for name in ("alone", "ranks"))
    assert len(alone) == NUM_STEPS
    assert ranks == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("name", ["alone", "ranks"])
def test_a_run_on_packed_text_goes_on_bit_for_bit(name: str, records: Callable[[str], list[StepRecord]]) -> None:
    whole, stopped = records(f"{name}/whole"), records(f"{name}/stopped")
    assert [record.loss for record in stopped] == [record.loss for record in whole]


def test_every_rank_computes_on_as_many_tokens_in_one_shape_per_size_of_picture(
    records: Callable[[str], list[StepRecord]],
) -> None:
    metrics = [record.metrics for record in records("ranks/whole")]
    assert [one["ranks/token_skew"] for one in metrics] == [0.0] * NUM_STEPS
    assert metrics[-1]["ranks/num_shapes"] == len({(4, 64), (4, 60)}), "square pictures, and those of 6 x 10 either way"
    assert all(0 < one["ranks/padding"] < 0.5 for one in metrics)
    assert all(0 < one["ranks/time_skew"] < 1 for one in metrics)
