"""A transformer spread over real ranks trains as in one process: FSDP2, HSDP, tensor parallel and their product."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pleinair.model.parallelize import ParallelConfig
from pleinair.training.mesh import Mesh
from tests.training.parallel_steps import (
    FEWER_STEPS,
    FOUR_RANKS,
    NUM_STEPS,
    SHARDED,
    SPLIT,
    TWO_RANKS,
    Course,
    courses,
    gradients_in_two_calls,
    small_batch,
    small_transformer,
    train_steps,
    two_ranks,
)
from tests.training.ranks import run_ranks

IN_FLOAT32 = [name for name, config in TWO_RANKS.items() if config.param_dtype == "fp32"]


@pytest.fixture(scope="module")
def alone() -> Course:
    return train_steps(Mesh(), ParallelConfig())


@pytest.fixture(scope="module")
def pair() -> list[dict[str, Any]]:
    return run_ranks(2, two_ranks, num_ports=2 + len(TWO_RANKS))


def assert_same_course(course: Course, alone: Course) -> None:
    num_steps = len(course.losses)
    assert course.losses == pytest.approx(alone.losses[:num_steps], abs=1e-5)
    assert course.norms == pytest.approx(alone.norms[:num_steps], rel=1e-4)
    assert course.weights.keys() == alone.weights.keys()
    if num_steps < NUM_STEPS:
        return
    for name, weight in course.weights.items():
        torch.testing.assert_close(weight, alone.weights[name], atol=2e-5, rtol=0, msg=name)


def test_the_reference_learns_and_is_clipped(alone: Course) -> None:
    assert alone.losses[-1] < 0.7 * alone.losses[0]
    assert min(alone.norms) < 1 < max(alone.norms)


@pytest.mark.parametrize("name", IN_FLOAT32)
def test_two_ranks_train_as_one_process_does(name: str, pair: list[dict[str, Any]], alone: Course) -> None:
    for rank in pair:
        assert_same_course(rank["courses"][name], alone)


def test_four_ranks_train_as_one_process_does(alone: Course) -> None:
    ranks = run_ranks(4, courses, num_ports=len(FOUR_RANKS))
    for rank in ranks:
        for name in FOUR_RANKS:
            assert_same_course(rank[name], alone)


def test_bf16_weights_with_float32_reduction_stay_close(pair: list[dict[str, Any]], alone: Course) -> None:
    course = pair[0]["courses"]["fsdp in bf16"]
    assert course.losses == pytest.approx(alone.losses[:FEWER_STEPS], rel=0.02)
    assert course.losses != pytest.approx(alone.losses[:FEWER_STEPS], rel=1e-6)
    assert {weight.dtype for weight in course.weights.values()} == {torch.float32}


def test_8_bit_products_split_over_ranks_stay_close(pair: list[dict[str, Any]], alone: Course) -> None:
    course = pair[0]["in 8 bits"]
    assert course.losses == pytest.approx(alone.losses[:FEWER_STEPS], rel=0.05)
    assert course.losses != pytest.approx(alone.losses[:FEWER_STEPS], rel=1e-6)


@pytest.mark.parametrize("name", SPLIT)
def test_a_switch_split_over_two_ranks_has_the_gradients_of_one_process(name: str, pair: list[dict[str, Any]]) -> None:
    assert max(rank["switches"][name] for rank in pair) < 1e-4


@pytest.mark.parametrize("name", SHARDED)
def test_blocks_that_hand_values_on_are_sharded_too(name: str, pair: list[dict[str, Any]]) -> None:
    assert max(rank["sharded switches"][name] for rank in pair) < 1e-4


def test_each_rank_knows_its_place_and_its_share_of_the_rows(pair: list[dict[str, Any]]) -> None:
    assert [rank["place"] for rank in pair] == [(0, 2, 0, 2), (1, 2, 1, 2)]


def test_metrics_and_decisions_are_the_same_on_every_rank(pair: list[dict[str, Any]]) -> None:
    assert [rank["reduced"] for rank in pair] == [({"a": 2.0, "b": 2.5}, True, False, 7.0)] * 2


def test_gradients_of_what_every_rank_holds_whole_are_averaged(pair: list[dict[str, Any]]) -> None:
    assert [rank["averaged"] for rank in pair] == [2.5, 2.5]


def test_a_sharded_model_samples_through_its_methods(pair: list[dict[str, Any]]) -> None:
    with torch.no_grad():
        expected = small_transformer()(*small_batch())
    for rank in pair:
        torch.testing.assert_close(rank["sampled"], expected)


def test_text_encoded_once_for_two_steps_gets_both_gradients(pair: list[dict[str, Any]]) -> None:
    expected = gradients_in_two_calls(small_transformer(), slice(None))
    for name, gradient in pair[0]["gradients in two calls"].items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=name)


def test_a_model_built_without_memory_is_filled_after_sharding(pair: list[dict[str, Any]]) -> None:
    for name, weight in small_transformer().state_dict().items():
        assert torch.equal(pair[0]["from meta"][name], weight), name


def test_every_parameter_is_sharded(pair: list[dict[str, Any]]) -> None:
    placements = pair[0]["placements"]
    assert placements.keys() == dict(small_transformer().named_parameters()).keys()
    assert set(placements.values()) == {"(Shard(dim=0),)"}
