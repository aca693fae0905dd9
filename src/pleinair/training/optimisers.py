"""Update rules and the warmup-stable-decay schedule.

AdamW everywhere, or Muon on the matrices inside the blocks with AdamW on the rest: embeddings, first and last layers,
norms and modulation tables never go to Muon (Krea 2 report, optimiser ablation; RMS matching as in Moonlight).
Zero-centred norm weights take part in weight decay: they decay towards a scale of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pleinair.records.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """Update rule and schedule."""

    rule: Literal["adamw", "muon"] = "adamw"
    """AdamW alone, or Muon on hidden matrices beside it."""
    learning_rate: float = 1e-3
    """Peak learning rate, of both rules (Muon's updates are matched to AdamW's size)."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's averaging of gradient and square."""
    momentum: float = 0.95
    """Muon's momentum (Nesterov)."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    decay_share: float = 0.3
    """Share of all steps, at the end, over which the rate falls to zero as 1 - sqrt."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate is {self.learning_rate}: it must be positive")
        if not 0 <= self.decay_share <= 1:
            raise ValueError(f"decay_share is {self.decay_share}: it must lie in [0, 1]")


def warmup_stable_decay(step: int, total_steps: int, config: OptimiserConfig) -> float:
    """Learning rate of a step: linear warm-up, constant, then 1 - sqrt decay to zero."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    decay_steps = config.decay_share * total_steps
    into_decay = step - (total_steps - decay_steps)
    decay = 1.0 if into_decay <= 0 else 1.0 - (into_decay / decay_steps) ** 0.5
    return config.learning_rate * min(warmup, decay)


class ScheduledOptimiser:
    """One or two torch optimisers over a model's parameters, driven by one schedule."""

    def __init__(self, parts: dict[str, torch.optim.Optimizer], config: OptimiserConfig, total_steps: int) -> None:
        self.parts, self.config, self.total_steps = parts, config, total_steps

    def set_step(self, step: int) -> float:
        """Set the learning rate of this step and return it."""
        rate = warmup_stable_decay(step, self.total_steps, self.config)
        for part in self.parts.values():
            for group in part.param_groups:
                group["lr"] = rate
        return rate

    def step(self) -> None:
        """Update all parameters."""
        for part in self.parts.values():
            part.step()

    def zero_grad(self) -> None:
        """Free all gradients."""
        for part in self.parts.values():
            part.zero_grad(set_to_none=True)


def make_optimiser(model: nn.Module, config: OptimiserConfig, total_steps: int) -> ScheduledOptimiser:
    """The optimiser of a run; `total_steps` shapes the schedule."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    matrices = [p for name, p in named if config.rule == "muon" and is_hidden_matrix(name, p)]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen]
    parts: dict[str, torch.optim.Optimizer] = {
        "adamw": torch.optim.AdamW(
            rest, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
    }
    if matrices:
        # Stacking matrices of one shape into batched products was measured: no faster on a CPU.
        parts["muon"] = torch.optim.Muon(
            matrices,
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=True,
            adjust_lr_fn="match_rms_adamw",
        )
    return ScheduledOptimiser(parts, config, total_steps)


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon takes this parameter: a matrix inside a repeated block, but no modulation table."""
    return parameter.ndim == 2 and "blocks." in name and "table" not in name


def optimiser_tensors(optimiser: ScheduledOptimiser) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """All moments as flat tensors, and which states each part has."""
    tensors: dict[str, Tensor] = {}
    layout: dict[str, list[str]] = {}
    for part_name, part in optimiser.parts.items():
        layout[part_name] = []
        for index, state in part.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"{part_name}.{index}.{key}"] = torch.as_tensor(value)
                layout[part_name].append(f"{index}.{key}")
    return tensors, layout


def restore_optimiser(
    optimiser: ScheduledOptimiser, tensors: Mapping[str, Tensor], layout: Mapping[str, list[str]]
) -> None:
    """Put saved moments back. Raises CheckpointError when the parts differ from the saved ones."""
    if set(layout) != set(optimiser.parts):
        raise CheckpointError(
            f"the checkpoint's optimiser has parts {sorted(layout)}, this run has {sorted(optimiser.parts)}: use the same rule"
        )
    for part_name, part in optimiser.parts.items():
        parameters = [parameter for group in part.param_groups for parameter in group["params"]]
        saved: dict[int, dict[str, Any]] = {}
        for entry in layout[part_name]:
            index, key = entry.split(".", 1)
            value = tensors[f"{part_name}.{entry}"]
            if value.shape == parameters[int(index)].shape:
                # The fused update walks raw memory: a moment must have its parameter's strides (channels last).
                value = torch.empty_like(parameters[int(index)]).copy_(value)
            saved.setdefault(int(index), {})[key] = value
        document = part.state_dict()
        document["state"] = saved
        part.load_state_dict(document)
