"""Prompts packed into one row: the same velocities and gradients as padded ones, one shape whatever the lengths."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from pleinair.model.attention import attend
from pleinair.model.packed_text import (
    PackedText,
    RankSkew,
    images_of,
    interleave,
    pack_text,
    rank_skew,
    text_budget,
)
from pleinair.model.parallelize import ParallelConfig, parallelize
from pleinair.model.segments import segments_of, spread
from pleinair.model.transformer import Transformer
from tests.small_transformers import SWITCHABLE as SMALL
from tests.small_transformers import random_inputs, random_transformer

RAGGED = torch.rand(3, 12, generator=torch.Generator().manual_seed(2)) > 0.4
VARIANTS: dict[str, dict[str, Any]] = {
    "released": {},
    "parallel": {"stream": "parallel"},
    "mla": {"attention": "mla"},
    "modulation mlp": {"modulation": "mlp"},
    "norm derf": {"norm": "derf"},
    "norm layer": {"norm": "layer"},
    "multimodal": {"rope": "multimodal"},
    "value residual": {"value_residual": True, "laurel_rank": 2},
    "no timestep": {"timestep": "none"},
    "last text layer": {"text_features": "last"},
}


def gradients(model: Transformer, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_packed_text_gives_the_velocities_and_gradients_of_padded_text(changes: dict[str, Any]) -> None:
    model = random_transformer(replace(SMALL, **changes))
    latents, timestep, features = random_inputs(SMALL)
    padded = model(latents, timestep, features, RAGGED)
    packed = model(latents, timestep, pack_text(features, RAGGED, 64))
    assert (packed - padded).abs().max() <= 1e-5
    wanted = torch.randn(latents.shape, generator=torch.Generator().manual_seed(5))
    for got, expected in zip(
        gradients(model, (packed - wanted).square().mean()),
        gradients(model, (padded - wanted).square().mean()),
        strict=True,
    ):
        assert (got - expected).norm() <= 1e-4 * expected.norm() + 1e-6


@torch.no_grad()
def test_in_bfloat16_packed_text_is_as_close_as_padded_text() -> None:
    model = random_transformer(SMALL)
    latents, timestep, features = random_inputs(SMALL)
    exact = model(latents, timestep, features, RAGGED)
    with torch.autocast("cpu", torch.bfloat16):
        errors = [
            (model(latents, timestep, *text).float() - exact).norm() / exact.norm()
            for text in ((features, RAGGED), (pack_text(features, RAGGED, 64),))
        ]
    assert errors[1] < 1.2 * errors[0] < 0.03


@torch.no_grad()
def test_neither_the_budget_nor_what_fills_it_matters() -> None:
    model = random_transformer(SMALL)
    latents, timestep, features = random_inputs(SMALL)
    small, large = (pack_text(features, RAGGED, budget) for budget in (64, 192))
    expected = model(latents, timestep, small)
    assert torch.allclose(model(latents, timestep, large), expected, atol=1e-5)
    poisoned = small.features_RLD.clone()
    poisoned[sum(small.lengths) :] = 1e4
    assert torch.allclose(model(latents, timestep, PackedText(poisoned, small.lengths)), expected, atol=1e-5)


@torch.no_grad()
def test_a_prompt_without_rows_and_a_full_budget_are_packed_too() -> None:
    model = random_transformer(SMALL)
    latents, timestep, features = random_inputs(SMALL, num_text=32)
    mask = torch.arange(32) < torch.tensor([32, 0, 32])[:, None]
    packed = pack_text(features, mask, 64)
    assert packed.lengths == (32, 0, 32)
    for i, row in enumerate(model(latents, timestep, packed)):
        alone = model(latents[i : i + 1], timestep[i : i + 1], features[i : i + 1, : packed.lengths[i]])
        assert torch.allclose(row, alone[0], atol=1e-5)


def test_packing_lays_valid_rows_end_to_end_and_fills_up_with_zeros() -> None:
    features = torch.arange(1.0, 7.0).reshape(2, 3, 1, 1)
    packed = pack_text(features, torch.tensor([[True, False, True], [False, True, False]]), 64)
    assert packed.lengths == (2, 1)
    assert packed.features_RLD.flatten().tolist() == [1, 3, 5] + [0] * 61


def test_interleaved_rows_are_text_then_image_of_each_sample_and_come_apart_again() -> None:
    text, image = torch.tensor([[1], [2], [3], [0]]), torch.tensor([[[10], [11]], [[20], [21]]])
    row = interleave(text, image, (1, 2))
    assert row.flatten().tolist() == [1, 10, 11, 2, 3, 20, 21, 0]
    assert torch.equal(images_of(row, (1, 2), 2), image)


def test_segments_attend_to_themselves_alone_and_the_filling_to_nothing() -> None:
    q, k, v = (torch.randn(1, 9, heads, 8) for heads in (4, 2, 2))
    out = attend(q, k, v, segments_of((3, 4), 9, q.device, q.dtype))
    for own in (slice(0, 3), slice(3, 7)):
        assert torch.allclose(out[:, own], attend(q[:, own], k[:, own], v[:, own], None))
    assert not out[:, 7:].any()


def test_a_vector_per_sample_is_spread_over_its_tokens_exactly() -> None:
    vectors = torch.randn(3, 1, 5, dtype=torch.bfloat16)
    spread_1SD = spread(vectors, segments_of((2, 0, 3), 6, vectors.device, torch.float32))
    rows = [vectors[0, 0], vectors[0, 0], *[vectors[2, 0]] * 3, torch.zeros(5)]
    assert torch.equal(spread_1SD, torch.stack(rows).to(torch.bfloat16).unsqueeze(0))
    assert spread(vectors, None) is vectors


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's own look at its inputs
def test_compiled_blocks_are_compiled_once_whatever_the_lengths() -> None:
    torch._dynamo.reset()
    model, eager = (random_transformer(replace(SMALL, num_layers=1)) for _ in range(2))
    latents, timestep, features = random_inputs(SMALL)
    counter = CompileCounter()
    torch._dynamo.register_backend(counter, name="counted")
    parallelize(model, None, ParallelConfig(compile=True, compile_backend="counted"))
    graphs = []
    for seed in range(4):
        mask = torch.rand(3, 12, generator=torch.Generator().manual_seed(seed)) > 0.4
        packed = model(latents, timestep, pack_text(features, mask, 64))
        assert (packed - eager(latents, timestep, features, mask)).abs().max() <= 1e-5
        graphs.append(counter.frame_count)
    torch._dynamo.reset()
    assert graphs[0] > 0
    assert graphs == graphs[:1] * 4


@pytest.mark.parametrize("changes", [{"stream": "dual"}, {"stream": "hybrid"}, {"timestep": "tokens"}])
def test_what_cannot_be_packed_is_refused(changes: dict[str, Any]) -> None:
    latents, timestep, features = random_inputs(SMALL)
    packed = pack_text(features, RAGGED, 64)
    with pytest.raises(ValueError, match="dual streams and timestep tokens take padded text"):
        random_transformer(replace(SMALL, **changes))(latents, timestep, packed)


def test_packs_that_do_not_fit_are_refused_with_the_remedy() -> None:
    model = random_transformer(SMALL)
    latents, timestep, features = random_inputs(SMALL, num_text=40)
    mask = torch.ones(3, 40, dtype=torch.bool)
    with pytest.raises(ValueError, match="120 text rows do not fit a budget of 64: give 128 or fewer prompts"):
        pack_text(features, mask, 64)
    with pytest.raises(ValueError, match="text budget is 100: give a positive multiple of 64"):
        pack_text(features, mask, 100)
    packed = pack_text(features, mask, 128)
    with pytest.raises(ValueError, match="packed text has 3 prompts for 2 latents"):
        model(latents[:2], timestep[:2], packed)
    with pytest.raises(ValueError, match="none beside packed text"):
        model(latents, timestep, packed, mask)
    with pytest.raises(ValueError, match=r"this model reads \(rows, 5, 32\)"):
        model(latents, timestep, PackedText(features, packed.lengths))


def test_a_budget_holds_the_fullest_batch_in_whole_steps() -> None:
    assert text_budget([(10, 20), (60, 5)]) == 128
    assert text_budget([(32, 32)]) == 64
    assert text_budget([]) == 64


def test_skew_counts_what_every_rank_computes_and_waits_for() -> None:
    steps = [[(10, 30), (20, 20)], [(5, 5), (40, 10)]]
    assert rank_skew(steps, num_image=100) == RankSkew(
        tokens_per_rank=(260 + 210, 240 + 280),
        wait_share=1 - 990 / (2 * (260 + 280)),
        valid_share=(240 + 240 + 210 + 250) / 990,
        num_shapes=4,
    )
    packed = rank_skew(steps, num_image=100, budget=64)
    assert packed == RankSkew(tokens_per_rank=(528, 528), wait_share=0.0, valid_share=940 / 1056, num_shapes=1)
