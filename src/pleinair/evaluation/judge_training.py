"""Training the judge on real drawings: about 17 minutes of one core, resumable at any step.

    every step:  order(epoch) -> batch -> augment(seed, step) -> concept loss + style loss -> Muon and AdamW -> average

Randomness depends on the seed and the step alone, so a resumed run repeats the undisturbed one. What is returned is the
running average of the weights, which is steadier than the last ones.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

from pleinair.evaluation.augment import augment
from pleinair.evaluation.metrics import Indices
from pleinair.model.judge import Filters, Judge, JudgeConfig, Pictures, as_tensor
from pleinair.records.errors import CheckpointError
from pleinair.tensor_files import save_tensors

PROGRESS_FILE = "judge-progress.safetensors"
STEPS_PER_SAVE = 200
STEPS_PER_REPORT = 20
MAX_AVERAGE_DECAY = 0.995


@dataclass(frozen=True, kw_only=True)
class JudgeProgress:
    """How far a training is; `str()` makes one line of it."""

    step: int
    num_steps: int
    concept_loss: float
    style_loss: float
    pictures_per_second: float
    seconds_left: float

    def __str__(self) -> str:
        return (
            f"judge: step {self.step} of {self.num_steps}, concept loss {self.concept_loss:.2f}, style loss "
            f"{self.style_loss:.2f}, {self.pictures_per_second:.0f} pictures/s, {self.seconds_left / 60:.1f} min left"
        )


def train_judge(
    pictures_NHWC: Pictures,
    styles_N: Indices,
    concepts_N: Indices,
    config: JudgeConfig,
    on_progress: Callable[[JudgeProgress], None] | None = None,
    resume_dir: Path | None = None,
) -> Judge:
    """Train a judge on real drawings, (N, 64, 64, 3) uint8 on white, and return it in evaluation mode.

    Leave held-out drawings out of the arrays. With `resume_dir`, progress is kept there every 200 steps and a second
    call continues; the finished progress stays until the caller removes it. Raises ValueError for labels outside the
    names, CheckpointError for progress of another configuration.
    """
    check_labels(pictures_NHWC, styles_N, concepts_N, config)
    training = JudgeTraining(config, num_pictures=len(pictures_NHWC))
    if resume_dir is not None and (resume_dir / PROGRESS_FILE).exists():
        training.load(resume_dir / PROGRESS_FILE)
    started, first_step = time.monotonic(), training.step
    styles, concepts = torch.from_numpy(styles_N.astype(np.int64)), torch.from_numpy(concepts_N.astype(np.int64))
    for rows in training.batches():
        losses = training.update(as_tensor(pictures_NHWC[rows.numpy()]), styles[rows], concepts[rows])
        last = training.step == training.num_steps
        if on_progress is not None and (last or training.step % STEPS_PER_REPORT == 0):
            on_progress(training.progress(losses, training.step - first_step, time.monotonic() - started))
        if resume_dir is not None and (last or training.step % STEPS_PER_SAVE == 0):
            training.save(resume_dir / PROGRESS_FILE)
    return training.average.eval()


class JudgeTraining:
    """The whole state of a training: weights, their average, both optimisers, and the step."""

    def __init__(self, config: JudgeConfig, num_pictures: int) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.judge = Judge(config).train()
        self.average = Judge(config)
        self.average.load_state_dict(self.judge.state_dict())
        self.config = config
        self.num_pictures = num_pictures
        self.batch_size = min(config.batch_size, num_pictures)
        self.steps_per_epoch = num_pictures // self.batch_size
        self.num_steps = config.epochs * self.steps_per_epoch
        self.optimisers = build_optimisers(self.judge)
        self.step = 0

    def batches(self) -> Iterator[Tensor]:
        """The rows of each remaining step: every epoch in a new order, a last incomplete batch left out."""
        while self.step < self.num_steps:
            epoch, at = divmod(self.step, self.steps_per_epoch)
            order = torch.randperm(self.num_pictures, generator=seeded(self.config.seed, epoch, "order"))
            for start in range(at, self.steps_per_epoch):
                yield order[start * self.batch_size : (start + 1) * self.batch_size]

    def update(self, pictures_BCHW: Tensor, styles_B: Tensor, concepts_B: Tensor) -> tuple[Tensor, Tensor]:
        """One step. Returns the concept and the style loss."""
        if self.step < self.config.half_size_share * self.num_steps:
            pictures_BCHW = F.avg_pool2d(pictures_BCHW, 2)
        generator = seeded(self.config.seed, self.step, "augment")
        seen_BCHW, keeps_style_B = augment(pictures_BCHW, generator, self.config.flip_probability)
        with torch.autocast("cpu", torch.bfloat16):
            output = self.judge(seen_BCHW)
        smoothing = self.config.label_smoothing
        concept_loss = F.cross_entropy(output.concept_logits, concepts_B, label_smoothing=smoothing)
        by_picture = F.cross_entropy(output.style_logits, styles_B, label_smoothing=smoothing / 2, reduction="none")
        style_loss = (by_picture * keeps_style_B).sum() / keeps_style_B.sum().clamp(min=1)
        (concept_loss + self.config.style_weight * style_loss).backward()
        self.apply_gradients()
        return concept_loss.detach(), style_loss.detach()

    def apply_gradients(self) -> None:
        """Step both optimisers at the scheduled rate, then move the average."""
        rate = self.config.learning_rate * schedule(self.step / self.num_steps)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * group["rate_factor"]
                group["weight_decay"] = self.config.weight_decay * group["decays"]
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        decay = min(MAX_AVERAGE_DECAY, 1 - 10 / (self.step + 10))
        averages, weights = (floating(judge) for judge in (self.average, self.judge))
        torch._foreach_lerp_(averages, weights, 1 - decay)

    def progress(self, losses: tuple[Tensor, Tensor], num_steps_done: int, seconds: float) -> JudgeProgress:
        """What to show after `num_steps_done` steps of this process; full size costs about three times more."""
        concept_loss, style_loss = (float(loss) for loss in losses)
        left = self.cost(self.num_steps) - self.cost(self.step)
        done = self.cost(self.step) - self.cost(self.step - num_steps_done)
        return JudgeProgress(
            step=self.step,
            num_steps=self.num_steps,
            concept_loss=concept_loss,
            style_loss=style_loss,
            pictures_per_second=num_steps_done * self.batch_size / max(seconds, 1e-9),
            seconds_left=seconds * left / done,
        )

    def cost(self, step: int) -> float:
        """The work of the first `step` steps, in steps at half resolution."""
        num_half = self.config.half_size_share * self.num_steps
        return min(step, num_half) + 3 * max(step - num_half, 0)

    def save(self, path: Path) -> None:
        """Write the whole state; it appears by rename."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            save_tensors(self.tensors(), unfinished, metadata={"step": str(self.step), "run": self.identity()})
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    def load(self, path: Path) -> None:
        """Continue from a saved state. Raises CheckpointError when it is damaged or of another configuration."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                names: list[str] = file.keys()
                tensors = {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as problem:
            raise CheckpointError(f"'{path}' is damaged ({problem}): remove it to start over") from problem
        if metadata.get("run") != self.identity():
            raise CheckpointError(f"'{path}' is from another judge configuration or data: remove it to start over")
        for prefix, judge in (("judge.", self.judge), ("average.", self.average)):
            judge.load_state_dict(with_prefix(tensors, prefix))
        for index, optimiser in enumerate(self.optimisers):
            restore_optimiser(optimiser, with_prefix(tensors, f"optimiser.{index}."))
        self.step = int(metadata["step"])

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state under one name each."""
        named = {f"judge.{name}": tensor for name, tensor in self.judge.state_dict().items()}
        named |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for index, optimiser in enumerate(self.optimisers):
            for parameter, entries in optimiser.state_dict()["state"].items():
                named |= {f"optimiser.{index}.{parameter}.{name}": tensor for name, tensor in entries.items()}
        return named

    def identity(self) -> str:
        """What must agree for a state to be continued."""
        return json.dumps([dataclasses.asdict(self.config), self.num_pictures])


def build_optimisers(judge: Judge) -> list[Optimizer]:
    """Muon for the filters between feature maps; AdamW for first filters, heads, norms and scales.

    Muon's update is scaled to AdamW's usual size (match_rms_adamw), so that both share one learning rate; AdamW takes
    half of it.
    """
    hidden = [one.weight for one in judge.modules() if isinstance(one, Filters) and one.shape[1] > 3]
    ours = {id(weight) for weight in hidden}
    others = [weight for weight in judge.parameters() if id(weight) not in ours]
    groups = [
        {"params": [weight for weight in others if weight.ndim > 1], "rate_factor": 0.5, "decays": 1.0},
        {"params": [weight for weight in others if weight.ndim <= 1], "rate_factor": 0.5, "decays": 0.0},
    ]
    muon = Muon([{"params": hidden, "rate_factor": 1.0, "decays": 1.0}], adjust_lr_fn="match_rms_adamw")
    return [muon, AdamW(groups, betas=(0.9, 0.99))]


def restore_optimiser(optimiser: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put `<parameter>.<name>` tensors back as an optimiser's state."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        parameter, name = key.split(".", 1)
        state.setdefault(int(parameter), {})[name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def schedule(done: float) -> float:
    """The share of the peak rate when a share of the steps is done: 2% warm-up, then half a cosine."""
    return min(done / 0.02 + 1e-3, 1.0) * 0.5 * (1 + math.cos(math.pi * done))


def seeded(seed: int, count: int, purpose: str) -> torch.Generator:
    """A generator that depends on its arguments alone."""
    entropy = np.random.SeedSequence([seed, count, *purpose.encode()]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(entropy[0]) >> 1)


def floating(judge: Judge) -> list[Tensor]:
    """Weights and running statistics, without gradients."""
    return [tensor for tensor in judge.state_dict().values() if tensor.is_floating_point()]


def with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name starts so, under the rest of their name."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def check_labels(pictures_NHWC: Pictures, styles_N: Indices, concepts_N: Indices, config: JudgeConfig) -> None:
    """Raise ValueError when pictures and labels do not fit together or do not fit the names."""
    if not len(pictures_NHWC) == len(styles_N) == len(concepts_N) or len(pictures_NHWC) < 2:
        raise ValueError(
            f"{len(pictures_NHWC)} pictures with {len(styles_N)} styles and {len(concepts_N)} concepts: give one of "
            "each per picture, for two pictures or more"
        )
    for kind, labels, names in (("style", styles_N, config.style_names), ("concept", concepts_N, config.concept_names)):
        if labels.min() < 0 or labels.max() >= len(names):
            raise ValueError(f"{kind} labels reach {labels.max()} for {len(names)} {kind} names: number them from 0")
