from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pleinair.model.full_fine_tuning import full_fine_tuning_plan, largest_trained, narrowed
from pleinair.model.memory import estimate_memory
from pleinair.model.parallelize import ParallelConfig
from pleinair.model.transformer import TransformerConfig, count_parameters
from pleinair.records.errors import ConfigError

SHAPE = TransformerConfig(
    width=256, num_layers=8, num_heads=8, num_kv_heads=4, in_channels=16, text_dim=32, num_text_layers=2, text_num_heads=2,
    text_num_kv_heads=2,
)  # fmt: skip
SIZE: dict[str, Any] = {"resolution": 128, "text_tokens": 16}


def test_a_plan_is_the_estimate_for_one_card_and_says_whether_it_fits() -> None:
    plan = full_fine_tuning_plan(SHAPE, 10**9, **SIZE)
    whole = estimate_memory(SHAPE, ParallelConfig(checkpointing="full"), batch=1, image_tokens=64, text_tokens=16)
    assert plan.memory == whole
    assert plan.memory.parameters == plan.memory.gradients == plan.memory.optimiser // 2 == 4 * count_parameters(SHAPE)
    assert plan.fits
    tight = full_fine_tuning_plan(SHAPE, whole.peak - 1, **SIZE)
    assert not tight.fits
    assert f"{whole.peak / 1e9:.1f} GB, does not fit" in str(tight)
    assert "in bfloat16 its weights alone are" in str(tight)


def test_the_largest_that_fits_is_the_last_before_one_that_does_not() -> None:
    peaks = {heads: full_fine_tuning_plan(narrowed(SHAPE, heads), 1, **SIZE).memory.peak for heads in (2, 4, 6, 8)}
    assert sorted(peaks.values()) == list(peaks.values())
    for card, heads in ((peaks[6] - 1, 4), (peaks[6], 6), (10**12, 8)):
        found = largest_trained(SHAPE, card, **SIZE)
        assert found is not None
        assert found.config == narrowed(SHAPE, heads)
        assert found.memory.peak == peaks[heads] <= card
    assert largest_trained(SHAPE, peaks[2] - 1, **SIZE) is None


def test_rule_and_batch_count() -> None:
    sizes: dict[str, Any] = {"batch": 2, "image_tokens": 64, "text_tokens": 16}
    muon = estimate_memory(SHAPE, ParallelConfig(checkpointing="full"), **sizes, optimiser="muon")
    assert full_fine_tuning_plan(SHAPE, 1, optimiser="muon", batch_size=2, **SIZE).memory == muon
    half = narrowed(SHAPE, 4)
    card = full_fine_tuning_plan(half, 1, optimiser="muon", **SIZE).memory.peak
    largest, by_adamw = largest_trained(SHAPE, card, optimiser="muon", **SIZE), largest_trained(SHAPE, card, **SIZE)
    assert largest is not None
    assert by_adamw is not None
    assert (largest.config, by_adamw.config) == (half, narrowed(SHAPE, 2))


def test_a_narrowed_model_keeps_its_heads_its_groups_and_its_text_features() -> None:
    half = narrowed(SHAPE, 4)
    assert (half.width, half.num_layers, half.num_kv_heads) == (128, 4, 2)
    assert (half.head_dim, half.text_dim, half.num_text_layers) == (
        SHAPE.head_dim,
        SHAPE.text_dim,
        SHAPE.num_text_layers,
    )
    assert [narrowed(replace(SHAPE, num_layers=7), heads).num_layers for heads in (2, 4, 6, 8)] == [2, 4, 5, 7]
    assert narrowed(replace(SHAPE, num_layers=1), 2).num_layers == 1
    for heads in (0, 3, 10):
        with pytest.raises(ConfigError, match=f"num_heads is {heads}: give a multiple of 2 up to 8"):
            narrowed(SHAPE, heads)
    for side in (0, 100):
        with pytest.raises(ConfigError, match=f"resolution is {side}: give a multiple of 16"):
            full_fine_tuning_plan(SHAPE, 1, resolution=side)
