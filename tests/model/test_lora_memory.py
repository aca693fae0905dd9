from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from pleinair.config import to_document
from pleinair.model.allocations import AllocationCounter
from pleinair.model.fine_tuning_plan import MemoryPlan, fine_tuning_plan
from pleinair.model.lora import LoraConfig
from pleinair.model.transformer import TransformerConfig, count_parameters
from pleinair.records.errors import ConfigError

SMALL = TransformerConfig(
    width=192, num_layers=4, num_heads=6, num_kv_heads=6, in_channels=16, text_dim=32, num_text_layers=2,
    text_num_heads=2, text_num_kv_heads=2,
)  # fmt: skip
LORA = LoraConfig(rank=8)
RESOLUTION = 512

STEP = """
import json, re, sys
from pathlib import Path
import torch
from pleinair.config import from_document
from pleinair.model.lora import LoraConfig, add_lora, freeze_base
from pleinair.model.transformer import Transformer, TransformerConfig

def memory(kind):
    return 1024 * int(re.search(kind + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

def step(model, side, num_text):
    config = model.config
    latents = torch.randn(1, config.latent_channels, side, side)
    features = torch.randn(1, num_text, config.num_text_layers, config.text_dim)
    (model(latents, torch.rand(1), features) - latents).square().mean().backward()

torch.set_num_threads(1)
config = from_document(TransformerConfig, json.loads(sys.argv[1]))
model = Transformer(config)
add_lora(model, LoraConfig(rank=8))
freeze_base(model)
step(model, 8, 8)  # libraries are loaded, and the gradients are there
before = memory("VmRSS")
step(model, 64, 64)
print(memory("VmHWM") - before)
"""


@functools.cache
def plan(**changed: object) -> MemoryPlan:
    settings: dict[str, Any] = {
        "base_bits": 32,
        "offload": False,
        "checkpointing": False,
        "resolution": RESOLUTION,
        "batch_size": 1,
    }
    return fine_tuning_plan(SMALL, LORA, text_tokens=64, **(settings | changed))


def test_the_plan_names_what_the_model_holds() -> None:
    found = plan()
    widths = ((192, 192), (192, 192), (192, 192), (192, 192), (192, 192), (192, 512), (192, 512), (512, 192))
    trained = 4 * sum(8 * (inputs + outputs) for inputs, outputs in widths)
    assert (found.weights, found.lora, found.gradients, found.optimiser, found.host) == (
        4 * count_parameters(SMALL),
        4 * trained,
        4 * trained,
        8 * trained,
        0,
    )
    assert found.total == found.weights + 16 * trained + found.activations


def test_each_saving_saves_what_it_says() -> None:
    full, half, bytes_, kept, offloaded = (
        plan(), plan(base_bits=16), plan(base_bits=8), plan(checkpointing=True), plan(offload=True)
    )  # fmt: skip
    assert half.weights * 2 == full.weights
    assert bytes_.weights < 0.7 * half.weights
    assert kept.activations < 0.5 * full.activations
    assert offloaded.activations == kept.activations
    assert offloaded.weights + offloaded.host // 2 == full.weights
    assert plan(batch_size=2).activations > 1.9 * full.activations


@pytest.mark.slow
def test_the_plan_is_what_a_process_takes() -> None:
    arguments = [sys.executable, "-c", STEP, json.dumps(to_document(SMALL))]
    quick_to_return = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=quick_to_return)
    measured, planned = int(done.stdout), plan().activations
    print("MEASURED", measured, "PLANNED", planned, planned / measured)
    assert 0.9 < planned / measured < 1.1


def test_the_counter_knows_what_lives_and_what_is_gone() -> None:
    with AllocationCounter() as counter:
        first = torch.zeros(1000)
        view = first.view(10, 100)[2:]
        second = first + 1
        assert counter.alive == 8000
        del second
        assert counter.alive == 4000
        third = view * 2
        first.add_(1)
        assert counter.alive == 4000 + third.nbytes
    assert counter.peak == 8000


def test_unusable_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="base_bits is 4: give 8, 16 or 32"):
        plan(base_bits=4)
    with pytest.raises(ConfigError, match="resolution is 100: give a multiple of 16"):
        plan(resolution=100)
