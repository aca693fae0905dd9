"""Which kernel attention takes on a CPU in bfloat16, and that all give the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from pleinair.model.attention import attend

KERNEL = "aten::_scaled_dot_product_flash_attention_for_cpu"


def inputs(dtype: torch.dtype) -> list[Tensor]:
    """Queries of 6 heads, keys and values of 2."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 40, heads, 16, generator=generator).to(dtype).requires_grad_() for heads in (6, 2, 2)]


def operators(call: Callable[[], object]) -> set[str]:
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        call()
    return {event.name for event in recorded.events()}


@pytest.mark.parametrize("masked", [False, True])
def test_the_two_products_are_for_gradients_and_torchs_kernel_for_the_rest(masked: bool) -> None:
    mask = torch.arange(40) < torch.tensor([[30], [40]]) if masked else None
    rows = inputs(torch.bfloat16)
    expected = attend(*inputs(torch.float32), mask).detach()
    assert KERNEL not in operators(lambda: attend(*rows, mask))
    with torch.no_grad():
        assert KERNEL in operators(lambda: attend(*rows, mask))
        without = attend(*rows, mask)
    deviation = float(expected.std())
    for found in (attend(*rows, mask), without):
        assert (found.detach().float() - expected).abs().max() <= 0.1 * deviation
