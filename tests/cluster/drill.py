"""A small real training run for drills: two ranks, gloo, a state file by rename every few steps, a loss per step.

    python drill.py RUN_DIR NUM_STEPS [--step-seconds S] [--fault KIND:RANK:STEP:ATTEMPT ...]

KIND is what the rank does to itself at that step of that attempt: kill, stop, sleep, raise or slow (from there on).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from pleinair.cluster.rank import arm, timeouts
from pleinair.records.run_events import Rendezvous

SAVE_EVERY = 5


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("num_steps", type=int)
    parser.add_argument("--step-seconds", type=float, default=0.0)
    parser.add_argument("--fault", action="append", default=[])
    options = parser.parse_args()
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    heartbeat = arm(options.run_dir, rank)
    init_seconds, collective_seconds = timeouts()
    dist.init_process_group("gloo", timeout=timedelta(seconds=init_seconds))
    everyone = dist.new_group(timeout=timedelta(seconds=collective_seconds))
    heartbeat.tell(Rendezvous(rank=rank, world_size=world_size))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))
    # Momentum by hand: torch.optim imports the compiler, which takes longer than the drill.
    momentum = [torch.zeros_like(parameter) for parameter in model.parameters()]
    state_file = options.run_dir / "state.pt"
    step = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        momentum = state["momentum"]
        step = state["step"]
    heartbeat.loaded(step)

    while step < options.num_steps:
        began = time.perf_counter()
        for fault in options.fault:
            inject(fault, rank, step)
        time.sleep(options.step_seconds)
        random = torch.Generator().manual_seed(step * world_size + rank)
        inputs = torch.randn(8, 16, generator=random)
        loss = (model(inputs) - inputs[:, :4].cumsum(1)).square().mean()
        model.zero_grad()
        loss.backward()
        compute_seconds = time.perf_counter() - began
        flat = torch.cat([loss.detach().reshape(1), *(one.grad.flatten() for one in model.parameters())])
        dist.all_reduce(flat, group=everyone)
        flat /= world_size
        offset = 1
        with torch.no_grad():
            for parameter, moving in zip(model.parameters(), momentum, strict=True):
                moving.mul_(0.9).add_(flat[offset : offset + parameter.numel()].view_as(parameter))
                parameter.sub_(0.01 * moving)
                offset += parameter.numel()
        step += 1
        if rank == 0:
            with (options.run_dir / "losses.jsonl").open("a") as log:
                log.write(json.dumps([step, flat[0].item()]) + "\n")
            if step % SAVE_EVERY == 0 or step == options.num_steps:
                began = time.monotonic()
                staging = state_file.with_suffix(".partial")
                torch.save({"model": model.state_dict(), "momentum": momentum, "step": step}, staging)
                os.replace(staging, state_file)
                spent = time.monotonic() - began
                heartbeat.saved(step, stall_seconds=spent, write_seconds=spent)
        heartbeat(step, compute_seconds)
    heartbeat.flush()
    dist.destroy_process_group()


def inject(fault: str, rank: int, step: int) -> None:
    """Be the fault, if it is this rank's and this step's turn."""
    kind, at_rank, at_step, at_attempt = fault.split(":")
    if "PLEINAIR_ATTEMPT_DIR" in os.environ:
        attempt = int(Path(os.environ["PLEINAIR_ATTEMPT_DIR"]).name.rpartition("-")[2])
    else:
        attempt = 1 + int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if rank != int(at_rank) or attempt != int(at_attempt):
        return
    if kind == "slow" and step >= int(at_step):
        time.sleep(0.02)
    if step != int(at_step):
        return
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "sleep":
        asleep_in_python()
    elif kind == "raise":
        raise RuntimeError("this batch cannot be read")


def asleep_in_python() -> None:
    time.sleep(3600)


if __name__ == "__main__":
    main()
