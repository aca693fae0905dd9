from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pleinair.checkpoint.store import save_checkpoint
from pleinair.config import to_document
from pleinair.model.allocations import AllocationCounter
from pleinair.model.fine_tuning_plan import MemoryPlan, fine_tuning_plan
from pleinair.model.lora import LoraConfig
from pleinair.model.transformer import Transformer, TransformerConfig, count_parameters
from pleinair.records.errors import ConfigError

SMALL = TransformerConfig(
    width=192, num_layers=4, num_heads=6, num_kv_heads=6, in_channels=16, text_dim=32, num_text_layers=2,
    text_num_heads=2, text_num_kv_heads=2,
)  # fmt: skip
LORA = LoraConfig(rank=8)
RESOLUTION = 512
PAGE, MALLOC_BYTES = 4096, 300_000
"""What a process has beside some hundred tensors: their ends of pages and Python's objects."""

PROCESS = """
import json, re, sys
from pathlib import Path
import torch
from pleinair.cli.adapters import attach
from pleinair.config import from_document
from pleinair.model.lora import LoraConfig, lora_parameters
from pleinair.model.parallelize import ParallelConfig, parallelize
from pleinair.recipes import FinetuneConfig
from pleinair.sampling.frozen_base import read_base

def memory(kind):
    return 1024 * int(re.search(kind + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

def since_here():
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    return memory("VmRSS")

def loaded(checkpoint):
    model = read_base(Path(checkpoint), settings["base_bits"])
    finetune = FinetuneConfig(lora=LoraConfig(rank=8), base_bits=settings["base_bits"], offload=settings["offload"])
    attach(model, finetune, torch.device("cpu"), 0)
    if settings["checkpointing"]:
        parallelize(model, None, ParallelConfig(checkpointing="full"))
    optimiser = torch.optim.AdamW(lora_parameters(model))
    return model.train(), optimiser

def step(model, optimiser, side, num_text):
    config = model.config
    latents = torch.randn(1, config.latent_channels, side, side)
    features = torch.randn(1, num_text, config.num_text_layers, config.text_dim)
    with torch.autocast("cpu", torch.bfloat16, enabled=settings["base_bits"] < 32):
        velocity = model(latents, torch.rand(1), features)
    (velocity.float() - latents).square().mean().backward()
    optimiser.step()

torch.set_num_threads(1)
settings = json.loads(sys.argv[2])
step(*loaded(sys.argv[3]), 8, 8)  # of a tiny model: libraries are loaded
before = since_here()
model, optimiser = loaded(sys.argv[1])
found = {"loading": memory("VmHWM") - before, "resident": memory("VmRSS") - before}
step(model, optimiser, 64, 64)  # gradients, moments, and the kernels that oneDNN compiles for these shapes, 30 MB in bfloat16
here = since_here()
step(model, optimiser, 64, 64)
print(json.dumps({**found, "activations": memory("VmHWM") - here}))
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


CASES: dict[str, dict[str, Any]] = {
    "32 bits": {},
    "32 bits, recomputed": {"checkpointing": True},
    "16 bits": {"base_bits": 16},
    "8 bits": {"base_bits": 8},
    "8 bits, recomputed": {"base_bits": 8, "checkpointing": True},
    "8 bits, offloaded": {"base_bits": 8, "offload": True},
    "32 bits, offloaded": {"offload": True},
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Checkpoints of the model that is planned and of a tiny one."""
    folder = tmp_path_factory.mktemp("bases")
    places = []
    for number, config in enumerate((SMALL, replace(SMALL, width=48, num_layers=1, num_heads=3, num_kv_heads=3))):
        documents = {"config.json": {"transformer": to_document(config)}}
        tensors = {"transformer.safetensors": Transformer(config).state_dict()}
        places.append(save_checkpoint(folder / str(number), 0, tensors, documents, config_digest="x"))
    return places[0], places[1]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_plan_is_what_a_process_takes(case: str, stored: tuple[Path, Path]) -> None:
    settings = {"base_bits": 32, "offload": False, "checkpointing": False} | CASES[case]
    arguments = [sys.executable, "-c", PROCESS, str(stored[0]), json.dumps(settings), str(stored[1])]
    quick_to_return = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=quick_to_return)
    measured, planned = json.loads(done.stdout), plan(**CASES[case])
    kept = plan(**{**CASES[case], "offload": False}).weights + planned.lora  # a CPU holds offloaded weights as well
    arriving = planned.host // SMALL.num_layers  # between steps one block is there, and two while it runs
    print("MEASURED", case, measured, "PLANNED", kept, planned.activations + arriving)
    assert kept - PAGE < measured["resident"] < 1.1 * kept + MALLOC_BYTES
    assert 0.9 < (planned.activations + arriving) / measured["activations"] < 1.1
    largest_block = 4 * sum(values.numel() for values in Transformer(SMALL).transformer_blocks[0].parameters())
    assert measured["loading"] < measured["resident"] + 1.1 * largest_block


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
