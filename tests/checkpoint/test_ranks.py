"""Several real processes write one checkpoint and load it under any other sharding, bit for bit."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pleinair.checkpoint import store
from tests.checkpoint.sharded_ranks import NAME, Layers, as_rank, whole_tensors
from tests.training.ranks import run_ranks


@pytest.fixture(scope="module")
def saved_by_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    root = tmp_path_factory.mktemp("ranks")
    return root, run_ranks(2, partial(as_rank, root), 1)


@pytest.fixture(scope="module")
def found_by_four(saved_by_two: tuple[Path, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return run_ranks(4, partial(as_rank, saved_by_two[0]), 1)


def test_each_rank_writes_its_pieces_and_both_learn_the_same_name(saved_by_two: Any) -> None:
    root, found = saved_by_two
    assert [each["fsdp"] for each in found] == ["step-00000001"] * 2
    manifest = store.verify_checkpoint(root / "step-00000001")
    assert manifest.world_size == 2
    assert sorted(manifest.files) == [
        "c.json",
        "pieces.json",
        "projection.safetensors",
        "transformer.rank-00000.safetensors",
        "transformer.rank-00001.safetensors",
    ]
    sizes = [manifest.files[f"transformer.rank-0000{rank}.safetensors"].num_bytes for rank in range(2)]
    assert max(sizes) < 0.51 * sum(tensor.nbytes for tensor in whole_tensors().values()) + 1000


@pytest.mark.parametrize("step", [1, 2])
def test_one_process_reads_whole_tensors_from_the_pieces(saved_by_two: Any, step: int) -> None:
    read = store.read_tensors(saved_by_two[0] / f"step-{step:08d}", NAME)
    assert {name: torch.equal(read[name], tensor) for name, tensor in whole_tensors().items()} == dict.fromkeys(
        read, True
    )


@pytest.mark.parametrize("change", ["fsdp_as_tensor_parallel", "tensor_parallel_as_fsdp"])
def test_another_sharding_of_two_ranks_loads_the_same_bits(saved_by_two: Any, change: str) -> None:
    assert [each[change] for each in saved_by_two[1]] == [True, True]


@pytest.mark.parametrize("change", ["two_as_four", "two_as_four_flat", "model_again"])
def test_four_ranks_load_the_same_bits(found_by_four: list[dict[str, Any]], change: str) -> None:
    assert [each[change] for each in found_by_four] == [True] * 4


def test_a_model_sharded_in_both_ways_reads_back_whole(saved_by_two: Any, found_by_four: Any) -> None:
    read = store.read_tensors(saved_by_two[0] / "step-00000004", NAME)
    expected = Layers().state_dict()
    assert {name: torch.equal(read[name], tensor) for name, tensor in expected.items()} == dict.fromkeys(read, True)


def test_a_rank_without_disk_space_leaves_no_checkpoint_and_is_named(saved_by_two: Any) -> None:
    root, found = saved_by_two
    assert "rank 1 could not write its part" in found[0]["refused"]
    assert "free space" in found[1]["refused"]
    assert not (root / "step-00000003").exists()
    assert list(root.glob(".step-*")) == []
