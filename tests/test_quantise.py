"""8-bit storage: the documented error holds, vectors stay in half precision, damage is told."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pleinair.quantise import SCALE_SUFFIX, dequantise, quantise_rowwise
from pleinair.records.errors import CheckpointError


def weights(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * torch.randn(shape[0], *[1] * (len(shape) - 1), generator=generator)


@settings(max_examples=50)
@given(st.integers(0, 1000), st.sampled_from([(3, 5), (4, 3, 2, 2), (1, 1), (64, 7)]), st.floats(-10, 10))
def test_no_entry_is_off_by_more_than_half_a_step_of_its_row(
    seed: int, shape: tuple[int, ...], exponent: float
) -> None:
    weight = weights(*shape, seed=seed) * 2.0**exponent
    back = dequantise(quantise_rowwise({"w": weight}))["w"]
    bound = weight.flatten(1).abs().amax(1) / 254 * (1 + 2**-10) + 2.0**-24
    assert bool(((weight - back).flatten(1).abs().amax(1) <= bound).all())


def test_the_largest_entry_of_a_row_never_wraps_around() -> None:
    weight = torch.tensor([[-3.0, 3.0], [60000.0, -60000.0], [1e-7, -1e-7]])
    back = dequantise(quantise_rowwise({"w": weight}))["w"]
    assert torch.equal(back.sign(), weight.sign())


def test_vectors_stay_in_half_precision_and_integers_as_they_are() -> None:
    stored = quantise_rowwise({"bias": torch.tensor([0.1, -2.0]), "steps": torch.tensor(7)})
    assert {name: tensor.dtype for name, tensor in stored.items()} == {"bias": torch.float16, "steps": torch.int64}
    back = dequantise(stored)
    assert torch.equal(back["bias"], torch.tensor([0.1, -2.0]).half().float())
    assert back["steps"] == 7


def test_a_row_of_zeros_comes_back_as_zeros() -> None:
    assert torch.equal(dequantise(quantise_rowwise({"w": torch.zeros(2, 3)}))["w"], torch.zeros(2, 3))


def test_storing_twice_changes_nothing_more() -> None:
    once = dequantise(quantise_rowwise({"w": weights(5, 8)}))
    assert torch.equal(dequantise(quantise_rowwise(once))["w"], once["w"])


def test_a_matrix_takes_a_byte_per_entry_and_two_per_row() -> None:
    stored = quantise_rowwise({"w": weights(16, 100)})
    assert sum(tensor.nbytes for tensor in stored.values()) == 16 * 100 + 16 * 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_a_value_that_does_not_fit_is_refused_by_name(value: float) -> None:
    with pytest.raises(ValueError, match=r"'head\.weight'"):
        quantise_rowwise({"head.weight": torch.tensor([[1.0, value]])})


def test_a_matrix_without_its_scale_is_damage() -> None:
    stored = quantise_rowwise({"w": weights(2, 3)})
    del stored["w" + SCALE_SUFFIX]
    with pytest.raises(CheckpointError, match="'w' is stored in 8 bits"):
        dequantise(stored)


def test_the_state_comes_back_in_the_dtype_asked_for() -> None:
    back = dequantise(quantise_rowwise({"w": weights(2, 3), "b": torch.ones(2)}), torch.bfloat16)
    assert {tensor.dtype for tensor in back.values()} == {torch.bfloat16}
