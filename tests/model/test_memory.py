"""Recomputation gives equal gradients for less memory, and the estimate is what a step really takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pleinair.model.allocations import AllocationCounter
from pleinair.model.memory import MemoryEstimate, TableRow, estimate_memory, format_table
from pleinair.model.parallelize import Checkpointing, MeshConfig, ParallelConfig, parallelize
from pleinair.model.transformer import Transformer, count_parameters
from pleinair.records.errors import ConfigError
from tests.small_transformers import tiny_config

SMALL = tiny_config(width=128, num_layers=5, mlp_width=None, text_num_kv_heads=2, text_mlp_width=None)
BATCH, SIDE, NUM_TEXT = 3, 8, 16
CHECKPOINTINGS: tuple[Checkpointing, ...] = ("none", "selective", "full")


def real_step(checkpointing: Checkpointing) -> tuple[int, int, dict[str, Tensor]]:
    """Bytes saved by the forward pass, peak bytes beside the weights, and gradients."""
    torch.manual_seed(0)
    model = parallelize(Transformer(SMALL), None, ParallelConfig(checkpointing=checkpointing))
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(BATCH, SMALL.latent_channels, 2 * SIDE, 2 * SIDE, generator=generator)
    features = torch.randn(BATCH, NUM_TEXT, SMALL.num_text_layers, SMALL.text_dim, generator=generator)
    timestep = torch.rand(BATCH, generator=generator)
    with AllocationCounter() as counter:
        loss = model(latents, timestep, features).square().mean()
        saved = counter.alive
        loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(gradients) == len(dict(model.named_parameters()))
    return saved, counter.peak, gradients


@pytest.fixture(scope="module")
def steps() -> dict[Checkpointing, tuple[int, int, dict[str, Tensor]]]:
    return {checkpointing: real_step(checkpointing) for checkpointing in CHECKPOINTINGS}


def test_recomputed_gradients_are_equal(steps: dict[Checkpointing, tuple[int, int, dict[str, Tensor]]]) -> None:
    for checkpointing in ("selective", "full"):
        for name, gradient in steps["none"][2].items():
            assert torch.equal(steps[checkpointing][2][name], gradient), (checkpointing, name)


def test_memory_goes_down_from_none_to_selective_to_full(
    steps: dict[Checkpointing, tuple[int, int, dict[str, Tensor]]],
) -> None:
    saved = [steps[checkpointing][0] for checkpointing in CHECKPOINTINGS]
    assert saved[1] < 0.7 * saved[0]
    assert saved[2] < 0.5 * saved[1]


@pytest.mark.parametrize("checkpointing", CHECKPOINTINGS)
def test_the_estimate_is_within_a_tenth_of_a_real_step(
    checkpointing: Checkpointing, steps: dict[Checkpointing, tuple[int, int, dict[str, Tensor]]]
) -> None:
    saved, peak, _ = steps[checkpointing]
    estimate = estimate_memory(
        SMALL, ParallelConfig(checkpointing=checkpointing), batch=BATCH, image_tokens=SIDE**2, text_tokens=NUM_TEXT
    )
    weights = 4 * count_parameters(SMALL)
    assert (estimate.parameters, estimate.gradients, estimate.optimiser) == (weights, weights, 2 * weights)
    assert estimate.gathered == 0
    assert estimate.activations == pytest.approx(saved, rel=0.02)
    assert estimate.peak - estimate.parameters - estimate.optimiser == pytest.approx(peak, rel=0.1)


def sharded(**mesh: int) -> MemoryEstimate:
    parallel = ParallelConfig(mesh=MeshConfig(**mesh), checkpointing="full")
    return estimate_memory(SMALL, parallel, batch=1, image_tokens=SIDE**2, text_tokens=NUM_TEXT)


def test_shards_are_a_share_of_the_weights_and_copies_are_not() -> None:
    one, eight, copies = sharded(), sharded(shard=8), sharded(replicate=4, shard=2)
    assert eight.parameters == pytest.approx(one.parameters / 8, rel=1e-3)
    assert copies.parameters == pytest.approx(one.parameters / 2, rel=1e-3)
    assert one.gathered == 0 < eight.gathered == copies.gathered
    assert eight.block_activations == one.block_activations


def test_what_is_gathered_is_root_and_groups_whole_with_their_buffers() -> None:
    sizes = {"transformer_blocks.0.": 0, "text_fusion.": 0, "": 0}
    for name, parameter in Transformer(SMALL).named_parameters():
        if not name.startswith("transformer_blocks.") or name.startswith("transformer_blocks.0."):
            sizes[next(prefix for prefix in sizes if name.startswith(prefix))] += parameter.numel()
    block, fusion, root = sizes.values()
    assert block > fusion

    def gathered(**changes: Any) -> int:
        parallel = ParallelConfig(mesh=MeshConfig(shard=2), checkpointing="full", **changes)
        return estimate_memory(SMALL, parallel, batch=1, image_tokens=SIDE**2, text_tokens=NUM_TEXT).gathered

    assert gathered() == pytest.approx(4 * (2 * root + 4 * block), rel=1e-4)
    assert gathered(blocks_per_group=2) == pytest.approx(4 * (2 * root + 4 * 2 * block), rel=1e-4)
    assert gathered(param_dtype="bf16") == pytest.approx(2 * (2 * root + 3 * block) + 4 * block, rel=1e-4)
    kept = 4 * (SMALL.num_layers * block + fusion)
    assert gathered(reshard_after_forward=False) == pytest.approx(4 * (2 * root + 2 * block) + kept, rel=1e-4)


def test_muon_keeps_one_moment_of_hidden_matrices() -> None:
    parallel = ParallelConfig(checkpointing="full")
    muon = estimate_memory(SMALL, parallel, batch=1, image_tokens=SIDE**2, text_tokens=NUM_TEXT, optimiser="muon")
    assert 1.0 * muon.parameters < muon.optimiser < 1.5 * muon.parameters


def test_the_peak_is_where_activations_meet_gradients() -> None:
    always = {"parameters": 1, "optimiser": 2, "gathered": 3}
    block = {"num_blocks": 2, "other_activations": 4, "workspace": 5}
    few = {**always, **block, "gradients": 50, "last_gradients": 20}
    assert MemoryEstimate(**few, block_activations=8, accumulates=False).peak == 6 + max(9 + 4 + 30, 50)
    assert MemoryEstimate(**few, block_activations=44, accumulates=False).peak == 6 + 9 + 22 + 30
    assert MemoryEstimate(**few, block_activations=70, accumulates=False).peak == 6 + 9 + 70
    assert MemoryEstimate(**few, block_activations=70, accumulates=True).peak == 6 + 9 + 50 + 70


def test_estimating_leaves_no_fake_tensors_behind() -> None:
    sharded()
    with torch.no_grad():
        velocity = Transformer(SMALL)(
            torch.zeros(1, SMALL.latent_channels, 2, 2 * SIDE**2),
            torch.zeros(1),
            torch.zeros(1, 1, SMALL.num_text_layers, SMALL.text_dim),
        )
    assert type(velocity) is Tensor


def test_the_table_says_when_nothing_fits() -> None:
    estimate = MemoryEstimate(
        parameters=2**30,
        gradients=0,
        last_gradients=0,
        num_blocks=1,
        optimiser=2**30,
        gathered=2**29,
        block_activations=2**30,
        other_activations=0,
        workspace=2**30,
        accumulates=False,
    )
    row = TableRow(8, 1024, MeshConfig(shard=8), "full", 0, estimate)
    assert format_table([row]).splitlines()[-1] == "| 8 | 1024 | 1 x 8 | full | none | 2.0 | 0.5 | 2.0 | 4.5 |"


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="batch is 0: give at least 1"):
        estimate_memory(SMALL, ParallelConfig(), batch=0, image_tokens=4, text_tokens=4)
