"""The loop of this part's small models: a loss per step, AdamW, a checkpoint now and then, the same run after a stop.

Everything random in a step depends on the seed and the step alone, so a run that was killed and goes on ends with the
weights of one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pleinair.checkpoint.store import newest_checkpoint, read_tensors, save_checkpoint, verify_checkpoint
from pleinair.records.errors import CheckpointError

STEPS_PER_SAVE = 200
STEPS_PER_REPORT = 20


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """How far a training is."""

    step: int
    num_steps: int
    loss: float
    seconds_left: float


def train_resumably(
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    *,
    num_steps: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    seed: int,
    identity: str,
    resume_dir: Path | None = None,
    after_step: Callable[[int], None] = lambda step: None,
    on_progress: Callable[[TrainingProgress], None] = lambda progress: None,
) -> None:
    """Train `model` in place. `identity` names configuration and data: another one's checkpoint is refused.

    `loss_of(step)` gives the loss of a step, `after_step` runs behind its update. Raises CheckpointError.
    """
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=learning_rate)
    first = _restore(model, optimiser, identity, resume_dir) if resume_dir else 0
    began = time.monotonic()
    with torch.random.fork_rng():
        for step in range(first, num_steps):
            torch.manual_seed(seed_of(seed, step, "step"))
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * schedule(step / num_steps)
            loss = loss_of(step)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            after_step(step)
            done = step + 1
            if resume_dir and (done == num_steps or done % STEPS_PER_SAVE == 0):
                _save(model, optimiser, identity, resume_dir, done)
            if done == num_steps or done % STEPS_PER_REPORT == 0:
                left = (time.monotonic() - began) / (done - first) * (num_steps - done)
                on_progress(
                    TrainingProgress(step=done, num_steps=num_steps, loss=float(loss.detach()), seconds_left=left)
                )


def schedule(done: float) -> float:
    """Share of the peak rate: 3% warm-up, then half a cosine to zero."""
    return min(done / 0.03 + 1e-3, 1.0) * 0.5 * (1 + math.cos(math.pi * done))


def seed_of(seed: int, count: int, purpose: str) -> int:
    """A seed that depends on its arguments alone."""
    entropy = np.random.SeedSequence([seed, count, *purpose.encode()]).generate_state(1, np.uint64)
    return int(entropy[0]) >> 1


def batch_of(step: int, num_rows: int, batch_size: int, seed: int) -> Tensor:
    """Rows of a step: every epoch in a new order, a last incomplete batch left out."""
    per_epoch = max(1, num_rows // batch_size)
    epoch, place = divmod(step, per_epoch)
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed_of(seed, epoch, "order")))
    return order[place * batch_size : (place + 1) * batch_size]


def _save(model: nn.Module, optimiser: torch.optim.Optimizer, identity: str, folder: Path, step: int) -> None:
    moments = {
        f"{parameter}.{name}": tensor
        for parameter, entries in optimiser.state_dict()["state"].items()
        for name, tensor in entries.items()
    }
    tensors = {"model.safetensors": model.state_dict(), "optimiser.safetensors": moments}
    save_checkpoint(folder, step, tensors, {}, config_digest=identity, keep=1)


def _restore(model: nn.Module, optimiser: torch.optim.Optimizer, identity: str, folder: Path) -> int:
    """The step to go on from."""
    found = newest_checkpoint(folder)
    if found is None:
        return 0
    manifest = verify_checkpoint(found)
    if manifest.config_digest != identity:
        raise CheckpointError(f"{found} is from another configuration or other pictures: remove {folder} to start over")
    model.load_state_dict(read_tensors(found, "model.safetensors"))
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in read_tensors(found, "optimiser.safetensors").items():
        parameter, name = key.split(".", 1)
        state.setdefault(int(parameter), {})[name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return manifest.step
