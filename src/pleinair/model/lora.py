"""LoRA: small trainable changes of a frozen transformer (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

    y = W x + sum over the attached LoRAs of  strength * alpha / rank * up (down x)

A LoRA is a child module of the linear layer and one forward hook that adds its output, so the layer keeps its class,
its name and its weights, whether they are float or 8 bits: every other part sees the model as before. Files in other
programs' dialects are read and written by `pleinair.model.formats`.

    add_lora(model, LoraConfig()); freeze_base(model); ... train ...; write_lora(lora_state(model), "x.safetensors", ...)
    load_lora(model, read_lora("x.safetensors")[0], "x", strength=0.8); set_lora_strengths(model, {"x": 0.5})
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pleinair.model.formats.lora import LoraPair, LoraState
from pleinair.model.formats.names import listed
from pleinair.model.transformer import Transformer, compute_dtype
from pleinair.records.errors import CheckpointError, ConfigError

DEFAULT = "default"
"""Name of a LoRA that is given none."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Where a LoRA is attached and how large it is."""

    rank: int = 16
    """Inner size of every pair of matrices."""
    alpha: float | None = None
    """The change is multiplied by alpha / rank; None is rank, a factor of 1."""
    targets: tuple[str, ...] = ("transformer_blocks.*.attn.*", "transformer_blocks.*.ff.*")
    """Layers by our names, `*` for anything: all projections and MLPs of the main blocks by default."""
    dropout: float = 0.0
    """Share of a layer's inputs that the LoRA, not the layer, does not see while training."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"rank is {self.rank}: give at least 1")
        if self.alpha is not None and self.alpha <= 0:
            raise ConfigError(f"alpha is {self.alpha}: give more than 0, or None for rank")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}: give at least 0 and less than 1")


class LoraBranch(nn.Module):
    """One LoRA of one layer."""

    def __init__(self, down: Tensor, up: Tensor, alpha: float, dropout: float = 0.0, strength: float = 1.0) -> None:
        super().__init__()
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(up)
        self.alpha, self.dropout, self.strength = alpha, dropout, strength

    @property
    def factor(self) -> float:
        """strength * alpha / rank."""
        return self.strength * self.alpha / self.down.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """What is added to the layer's output, in the branch's dtype or autocast's."""
        x = F.dropout(x.to(compute_dtype(self.down)), self.dropout, self.training)
        return self.factor * F.linear(F.linear(x, self.down), self.up)

    @torch.no_grad()
    def change(self) -> Tensor:
        """What is added to the layer's weight, float32."""
        return self.factor * (self.up.float() @ self.down.float())


def add_lora(
    model: Transformer, config: LoraConfig, name: str = DEFAULT, *, generator: torch.Generator | None = None
) -> list[str]:
    """Attach an untrained LoRA, which changes nothing yet; returns the names of its layers.

    `down` is random (kaiming uniform), `up` zero, both float32 on their layer's device. Raises ConfigError if no layer
    matches a target, or a LoRA of this name is there.
    """
    linears = {layer: module for layer, module in model.named_modules() if isinstance(module, nn.Linear)}
    for target in config.targets:
        if not fnmatch.filter(linears, target):
            raise ConfigError(
                f"targets names '{target}', which no layer matches: use names like '{next(iter(linears))}'"
            )
    chosen = [layer for layer in linears if any(fnmatch.fnmatchcase(layer, target) for target in config.targets)]
    alpha = float(config.rank if config.alpha is None else config.alpha)
    for layer in chosen:
        linear = linears[layer]
        device = linear.weight.device
        down = torch.empty(config.rank, linear.in_features, device=device)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        up = torch.zeros(linear.out_features, config.rank, device=device)
        _attach(linear, name, LoraBranch(down, up, alpha, config.dropout))
    return chosen


def load_lora(model: Transformer, state: Mapping[str, LoraPair], name: str = DEFAULT, *, strength: float = 1.0) -> None:
    """Attach a trained LoRA beside those that are there. Raises CheckpointError for layers that do not fit this model.

    Nothing is attached then: a LoRA is applied whole or not at all.
    """
    linears = {layer: module for layer, module in model.named_modules() if isinstance(module, nn.Linear)}
    misfits = [layer for layer, pair in state.items() if layer not in linears or not _fits(linears[layer], pair)]
    if misfits:
        raise CheckpointError(
            f"{len(misfits)} of {len(state)} layers of the LoRA do not fit this model ({listed(misfits)}): "
            "give one that was trained on a model of the same size"
        )
    for layer, pair in state.items():
        device = linears[layer].weight.device
        branch = LoraBranch(pair.down.to(device), pair.up.to(device), pair.alpha, strength=strength)
        _attach(linears[layer], name, branch)


def lora_state(model: Transformer, name: str = DEFAULT) -> LoraState:
    """The matrices of an attached LoRA by layer, strengths left out. Raises ConfigError if none has this name."""
    state = {
        layer: LoraPair(branch.down.detach(), branch.up.detach(), branch.alpha)
        for layer, _, found, branch in _branches(model)
        if found == name
    }
    if not state:
        raise _no_such(model, name)
    return state


def lora_names(model: Transformer) -> list[str]:
    """The attached LoRAs."""
    return sorted({name for _, _, name, _ in _branches(model)})


def lora_parameters(model: Transformer) -> list[nn.Parameter]:
    """What `freeze_base` leaves to be trained."""
    return [parameter for _, _, _, branch in _branches(model) for parameter in branch.parameters()]


def set_lora_strengths(model: Transformer, strengths: Mapping[str, float]) -> None:
    """How much each LoRA counts: 1 as trained, 0 not at all, negative the other way. Unnamed ones keep theirs."""
    for name in strengths:
        if name not in lora_names(model):
            raise _no_such(model, name)
    for _, _, name, branch in _branches(model):
        branch.strength = strengths.get(name, branch.strength)


def freeze_base(model: Transformer) -> None:
    """Only the attached LoRAs are trained from here on."""
    model.requires_grad_(False)
    for parameter in lora_parameters(model):
        parameter.requires_grad_(True)


@torch.no_grad()
def merge_lora(model: Transformer) -> None:
    """Add every attached LoRA, at its strength, to the weights and remove it. Raises ConfigError for 8-bit weights.

    The sum is taken in float32 and rounded once to the weight's dtype.
    """
    changes: dict[nn.Linear, Tensor] = {}
    for layer, linear, _, branch in _branches(model):
        if not linear.weight.is_floating_point():
            raise ConfigError(f"'{layer}' has 8-bit weights: load the model in floating point and merge into that")
        change = branch.change()
        changes[linear] = changes[linear] + change if linear in changes else change
    for linear, change in changes.items():
        linear.weight.copy_((linear.weight.float() + change).to(linear.weight.dtype))
    remove_lora(model)


def remove_lora(model: Transformer, name: str | None = None) -> None:
    """Detach one LoRA, or all; the model then computes what it did before."""
    if name is not None and name not in lora_names(model):
        raise _no_such(model, name)
    for _, linear, found, _ in list(_branches(model)):
        if name not in (None, found):
            continue
        branches = cast(nn.ModuleDict, linear.lora)
        del branches[found]
        if not branches:
            del linear.lora
            for key in [key for key, hook in linear._forward_hooks.items() if hook is _add_branches]:
                del linear._forward_hooks[key]


def _attach(linear: nn.Linear, name: str, branch: LoraBranch) -> None:
    if not hasattr(linear, "lora"):
        linear.lora = nn.ModuleDict()
        linear.register_forward_hook(_add_branches)
    branches = cast(nn.ModuleDict, linear.lora)
    if name in branches:
        raise ConfigError(f"a LoRA named '{name}' is attached already: remove it or give another name")
    branches[name] = branch.train(linear.training)


def _add_branches(linear: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    for branch in cast(nn.ModuleDict, linear.lora).values():
        output = output + branch(inputs[0]).to(output.dtype)
    return output


def _branches(model: nn.Module) -> Iterator[tuple[str, nn.Linear, str, LoraBranch]]:
    """(layer, module, LoRA's name, branch) of everything attached."""
    for layer, module in model.named_modules():
        if isinstance(module, nn.Linear) and hasattr(module, "lora"):
            for name, branch in cast(nn.ModuleDict, module.lora).items():
                yield layer, module, name, cast(LoraBranch, branch)


def _fits(linear: nn.Linear, pair: LoraPair) -> bool:
    return (pair.up.shape[0], pair.down.shape[1]) == (linear.out_features, linear.in_features)


def _no_such(model: Transformer, name: str) -> ConfigError:
    there = ", ".join(lora_names(model)) or "none"
    return ConfigError(f"no LoRA named '{name}' is attached: there are {there}")
