"""FLOPs from the configuration, against a count of the products that really run, under every switch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pleinair.model.flops import forward_flops
from pleinair.model.transformer import Transformer, TransformerConfig
from tests.small_transformers import SWITCHABLE, SWITCHES, random_inputs, tiny_config


def counted(config: TransformerConfig, height: int, width: int, text: int) -> int:
    latents, timestep, features = random_inputs(config, batch=1, height=height, width=width, num_text=text)
    model = Transformer(config)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(latents, timestep, features)  # by products: the CPU's fused attention is not counted
    flops: int = counter.get_total_flops()
    return flops


@pytest.mark.parametrize(
    "changes",
    [
        {},
        *SWITCHES.values(),
        {"attention": "mla", "mla_q_rank": 24, "mla_kv_rank": 40, "mla_rotary_dim": 8, "rope_axes": (4, 2, 2)},
        {"stream": "hybrid", "num_dual_layers": 2, "gate": False, "mlp": "gelu"},
        {"stream": "parallel", "laurel_rank": 4, "modulation": "mlp"},
    ],
    ids=str,
)
def test_flops_are_those_of_the_real_products_under_every_switch(changes: dict[str, Any]) -> None:
    config = replace(SWITCHABLE, **changes)
    assert forward_flops(config, 4, 6, 5) == counted(config, 4, 6, 5)


def test_flops_follow_the_sizes_of_picture_prompt_and_fusion() -> None:
    config = tiny_config(num_refiner_text_blocks=2, patch_size=1)
    assert forward_flops(config, 3, 5, 7) == counted(config, 3, 5, 7)
