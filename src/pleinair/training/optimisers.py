"""Update rules: AdamW, or Muon on the matrices inside the blocks with AdamW on the rest.

    matrices inside the blocks            Muon (rule "muon") or AdamW, decayed: attention, MLP, and where switches make
                                          them a block's own modulation and LAuReL's two maps
    other matrices, zero-centred norms    AdamW, decayed: a norm's scale 1 + g decays towards 1
    other norms, biases, tables, vectors  AdamW, not decayed: a scale stored around 1 would decay to 0
    a stage's head (iREPA's projector)    AdamW, and gone with it; at a rate and with betas of its own if asked

Embeddings, first and last layers, norms and the modulation that blocks share never go to Muon (Krea 2 report, optimiser
ablation); its updates are matched to AdamW's size, 0.2 sqrt(max(inputs, outputs)), as in Moonlight, so both share one
learning rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pleinair.model.layers import RMSNorm
from pleinair.records.errors import CheckpointError, ConfigError
from pleinair.training.schedule import DecayShape, warmup_stable_decay

HEAD = "head"
"""Name of the optimiser's part that updates a stage's head."""
Named = Sequence[tuple[str, nn.Parameter]]


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """How a stage's head is updated where it differs from the model."""

    rate_factor: float = 1.0
    """Its learning rate over the model's, at every step."""
    betas: tuple[float, float] | None = None
    """AdamW's averaging of its gradient and square; None for the model's."""

    def __post_init__(self) -> None:
        if self.rate_factor <= 0:
            raise ConfigError(f"head.rate_factor is {self.rate_factor}: it must be positive")
        if self.betas is not None:
            _check_betas("head.betas", self.betas)


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
    """Share of all steps, at the end, over which the rate decays; a run with phases that decay heeds those instead."""
    decay_shape: DecayShape = "1-sqrt"
    """Curve of the decay."""
    min_factor: float = 0.0
    """Share of the peak rate that the decay ends at."""
    head: HeadConfig = field(default_factory=HeadConfig)
    """What is trained beside the model, while a stage has such a thing."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ConfigError(f"learning_rate is {self.learning_rate}: it must be positive")
        for name in ("decay_share", "min_factor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must lie in [0, 1]")
        _check_betas("betas", self.betas)
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum is {self.momentum}: give 0 to less than 1")
        for name in ("weight_decay", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: give 0 or more")


def _check_betas(name: str, betas: tuple[float, float]) -> None:
    if not all(0 <= beta < 1 for beta in betas):
        raise ConfigError(f"{name} is {betas}: give two numbers from 0 to less than 1")


@dataclass(frozen=True)
class Groups:
    """The trained parameters of a model by treatment, each with its name."""

    muon: Named
    decayed: Named
    plain: Named


def group_parameters(model: nn.Module, rule: Literal["adamw", "muon"]) -> Groups:
    """Sort the parameters that require gradients."""
    norms = [module for module in model.modules() if isinstance(module, RMSNorm)]
    centred = {id(norm.weight) for norm in norms if norm.centre == 1.0}
    muon, decayed, plain = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if rule == "muon" and is_hidden_matrix(name, parameter):
            muon.append((name, parameter))
        elif id(parameter) in centred or (parameter.ndim >= 2 and "table" not in name):
            decayed.append((name, parameter))
        else:
            plain.append((name, parameter))
    return Groups(muon, decayed, plain)


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon takes this parameter: a matrix inside a repeated block, but no modulation table and no adapter.

    A block's own modulation projection and LAuReL's maps are such matrices: their inputs are hidden vectors like any other's.
    """
    return parameter.ndim == 2 and "blocks." in name and not any(word in name for word in ("table", "lora"))


class ScheduledOptimiser:
    """Torch optimisers over the parts of a model, driven by one schedule."""

    def __init__(self, model: nn.Module, config: OptimiserConfig, total_steps: int, decay_steps: float) -> None:
        self.config, self.total_steps, self.decay_steps = config, total_steps, decay_steps
        self.parts: dict[str, torch.optim.Optimizer] = {}
        self.names: dict[str, list[str]] = {}
        groups = group_parameters(model, config.rule)
        self._add_adamw("adamw", groups.decayed, groups.plain, config.betas)
        if groups.muon:
            # Stacking matrices of one shape into batched products was measured: no faster on a CPU.
            self.names["muon"] = [name for name, _ in groups.muon]
            self.parts["muon"] = torch.optim.Muon(
                [parameter for _, parameter in groups.muon],
                lr=config.learning_rate,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                nesterov=True,
                adjust_lr_fn="match_rms_adamw",
            )
        if not self.parts:
            raise ConfigError("no parameter of the model requires gradients: there is nothing to train")

    def _add_adamw(self, part: str, decayed: Named, plain: Named, betas: tuple[float, float]) -> None:
        config = self.config
        groups = [
            {"params": [parameter for _, parameter in named], "weight_decay": decay}
            for named, decay in ((decayed, config.weight_decay), (plain, 0.0))
            if named
        ]
        if groups:
            self.names[part] = [name for name, _ in (*decayed, *plain)]
            self.parts[part] = torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)

    def set_head(self, head: nn.Module | None) -> None:
        """Train this head from now on, without moments yet; None forgets the one there was, and its moments."""
        self.parts.pop(HEAD, None)
        self.names.pop(HEAD, None)
        if head is not None:
            groups = group_parameters(head, "adamw")
            self._add_adamw(HEAD, groups.decayed, groups.plain, self.config.head.betas or self.config.betas)

    def set_step(self, step: int) -> float:
        """Set the learning rate of this step, the head's by its factor, and return the model's."""
        config = self.config
        rate = config.learning_rate * warmup_stable_decay(
            step,
            total_steps=self.total_steps,
            warmup_steps=config.warmup_steps,
            decay_steps=self.decay_steps,
            shape=config.decay_shape,
            min_factor=config.min_factor,
        )
        for name, part in self.parts.items():
            for group in part.param_groups:
                group["lr"] = rate * config.head.rate_factor if name == HEAD else rate
        return rate

    def step(self) -> None:
        """Update all parameters."""
        for part in self.parts.values():
            part.step()

    def zero_grad(self) -> None:
        """Free all gradients."""
        for part in self.parts.values():
            part.zero_grad(set_to_none=True)

    def named_parameters(self, part: str) -> list[tuple[str, Tensor]]:
        """Names and parameters of a part, in the order of its state."""
        parameters = [parameter for group in self.parts[part].param_groups for parameter in group["params"]]
        return list(zip(self.names[part], parameters, strict=True))


def optimiser_tensors(optimiser: ScheduledOptimiser) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """All moments as `part/parameter/moment`, and the names of each part's. Parameters never updated have none."""
    tensors: dict[str, Tensor] = {}
    layout: dict[str, list[str]] = {}
    for part_name, part in optimiser.parts.items():
        layout[part_name] = []
        for name, parameter in optimiser.named_parameters(part_name):
            for key, value in part.state.get(parameter, {}).items():
                tensors[f"{part_name}/{name}/{key}"] = torch.as_tensor(value)
                layout[part_name].append(f"{name}/{key}")
    return tensors, layout


def ready_moments(optimiser: ScheduledOptimiser, layout: Mapping[str, list[str]]) -> dict[str, Tensor]:
    """Give every parameter the moments that `layout` lists, all zero, and return them under their saved names.

    A moment takes its parameter's sharding and strides: fused updates walk raw memory. Raises CheckpointError when the
    parts or parameters differ from the saved ones.
    """
    if set(layout) != set(optimiser.parts):
        raise CheckpointError(
            f"the checkpoint's optimiser has parts {sorted(layout)}, this run has {sorted(optimiser.parts)}: use the same rule"
        )
    tensors: dict[str, Tensor] = {}
    for part_name, part in optimiser.parts.items():
        parameters = dict(optimiser.named_parameters(part_name))
        for entry in layout[part_name]:
            name, key = entry.split("/")
            if name not in parameters:
                raise CheckpointError(
                    f"the checkpoint has moments of {name}, which this run does not train: use its model"
                )
            parameter = parameters[name]
            state: dict[str, Any] = part.state[parameter]
            state[key] = torch.zeros(()) if key == "step" else torch.zeros_like(parameter)
            tensors[f"{part_name}/{entry}"] = state[key]
    return tensors
