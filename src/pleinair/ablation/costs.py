"""What a training step of each arm costs, measured in one process before anything is trained.

FLOPs      counted by torch over real steps: forward, backward, clipping and update, whatever the switches
CPU time   of one thread, all arms in turn in every round, so that other work on the machine meets all of them
average    CPU time of moving an average of the weights, beside the steps of the same round
memory     weights, moments, and the most that a step holds beside them
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from pleinair.ablation.results import ArmCost
from pleinair.ablation.trainings import Job
from pleinair.config import config_digest, from_document, to_document
from pleinair.model.allocations import AllocationCounter
from pleinair.model.transformer import Transformer
from pleinair.packs.loader import LatentLoader
from pleinair.packs.pack import Pack
from pleinair.sampling.projection import read_projection
from pleinair.training.averaging import MovingAverage
from pleinair.training.optimisers import ScheduledOptimiser, optimiser_tensors
from pleinair.training.patch_features import PatchFeatures, WithPatches
from pleinair.training.random import RowRandom
from pleinair.training.reductions import clip_gradients
from pleinair.training.stages.pretrain import Pretrain
from pleinair.training.stages.repa import Repa

NUM_BATCHES = 4
"""Batches that costs are averaged over: their texts differ in length."""
CPU_ATTENTION: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}
"""Torch counts other devices' attention kernels, and not this one."""
Told = Callable[[int, int], None]


class Bench:
    """One arm ready to step, as the engine steps it."""

    def __init__(self, job: Job, *, aligned: bool) -> None:
        self.job = job
        torch.manual_seed(job.seed)
        pretrain = Pretrain(Transformer(job.transformer), read_projection(job.trained), job.pretrain)
        self.model: nn.Module = pretrain.model
        config = replace(job.loader, batch_size=job.batch_size, seed=job.seed)
        loader: Any = LatentLoader(Pack(job.trained), job.resolution, config)
        self.stage: Any = pretrain
        self.optimiser = ScheduledOptimiser(self.model, job.engine.optimiser, 1, 0.0)
        if aligned:
            assert job.patches is not None
            assert job.repa is not None
            features = PatchFeatures(job.patches)
            self.stage = Repa(pretrain, features.width, job.repa)
            self.optimiser.set_head(self.stage.head)
            loader = WithPatches(loader, features, job.transformer.patch_size)
        self.batches = [loader.batch(number) for number in range(NUM_BATCHES)]
        self.optimiser.set_step(0)
        self.average = MovingAverage()
        self.average.start(self.model)

    def step(self, number: int) -> None:
        """One step on one of the batches."""
        batch = self.batches[number % NUM_BATCHES]
        self.model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.job.engine.precision == "bf16"):
            loss = self.stage.loss(batch, RowRandom(0, number, range(self.job.batch_size))).loss
        loss.backward()
        clip_gradients(list(self.model.parameters()), self.job.engine.clip_norm)
        self.optimiser.step()
        self.optimiser.zero_grad()

    def move_average(self, number: int) -> None:
        """What an average of the weights costs after each step."""
        self.average.move(self.model)

    def flops_per_step(self) -> float:
        """Mean over the batches."""
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counted:
            for number in range(NUM_BATCHES):
                self.step(number)
        return cast(int, counted.get_total_flops()) / NUM_BATCHES

    def peak_bytes(self) -> int:
        """Weights, moments, and the peak of what one step allocates; a step was done before."""
        longest = max(range(NUM_BATCHES), key=lambda number: self.batches[number].text_mask_BT.shape[1])
        moments, _ = optimiser_tensors(self.optimiser)
        held = [*self.model.state_dict().values(), *moments.values()]
        with AllocationCounter() as counter:
            self.step(longest)
        return int(counter.peak + sum(tensor.nbytes for tensor in held))


def measure_costs(arms: Mapping[str, Job], rounds: int, directory: Path, on_progress: Told) -> dict[str, ArmCost]:
    """The cost of each arm's step at its job's resolution; kept in `directory`, and measured once."""
    digest = config_digest([{name: job.digest for name, job in arms.items()}, rounds])
    path = directory / f"costs-{digest[:12]}.json"
    if path.exists():
        return {name: from_document(ArmCost, one) for name, one in json.loads(path.read_text()).items()}
    torch.set_num_threads(1)
    benches = {name: Bench(job, aligned=job.repa is not None) for name, job in arms.items()}
    costs = {name: _counted(bench) for name, bench in benches.items()}
    steps, averages = ({name: list[float]() for name in benches} for _ in range(2))
    for number in range(rounds):
        for name, bench in benches.items():
            steps[name].append(_cpu_seconds(bench.step))
            averages[name].append(_cpu_seconds(bench.move_average))
        on_progress(number + 1, rounds)
    measured = {
        name: replace(cost, cpu_seconds=tuple(steps[name]), average_seconds=tuple(averages[name]))
        for name, cost in costs.items()
    }
    staging = path.with_name(f".{path.name}.partial")
    staging.write_text(json.dumps(to_document(measured), indent=1) + "\n")
    os.replace(staging, path)
    return measured


def _counted(bench: Bench) -> ArmCost:
    flops, plain = bench.flops_per_step(), 0.0
    if bench.job.repa is not None:
        plain = Bench(bench.job, aligned=False).flops_per_step()
    return ArmCost(
        parameters=sum(parameter.numel() for parameter in bench.model.parameters()),
        modules=sum(1 for _ in bench.model.modules()),
        flops_per_step=plain or flops,
        extra_flops_per_step=flops - plain if plain else 0.0,
        peak_bytes=bench.peak_bytes(),
    )


def _cpu_seconds(once: Callable[[int], None]) -> float:
    began = time.process_time()
    for number in range(NUM_BATCHES):
        once(number)
    return (time.process_time() - began) / NUM_BATCHES
