"""Linear layers whose matrix products run in 8-bit floats, through torchao; weights stay as they are.

    below 512 px   tensorwise   one scale per tensor: fastest
    from 512 px    rowwise      one scale per row: an outlier spoils its own row only
    from 1024 px   off          bfloat16

(Krea 2 report, training: 15 to 20% faster at the low resolutions, off from 1024 px on.) Forward, input gradient and
weight gradient are all products of 8-bit operands with float32 accumulation; each operand is scaled by its largest
magnitude just before it is cast. Parameters, their names and the optimiser are untouched.

Convert before `parallelize`: tensor parallelism and FSDP then act on the converted layers. Between phases `to_float8`
again switches converted layers to another recipe, or off, without replacing modules or parameters. A run whose
`engine.precision` is "fp8" does both by itself (`float8_for` at the start of each phase).

Without hardware for it `emulate=True` rounds the operands and multiplies in the original dtype: same losses, no speed.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType, ModuleType
from typing import Literal

import torch
from torch import distributed, nn

from pleinair.records.errors import ConfigError, require

Recipe = Literal["tensorwise", "rowwise"]

ROWWISE_FROM_PIXELS = 512
OFF_FROM_PIXELS = 1024
EXCLUDED = ("img_in", "final_layer", "time_embed", "time_mod_proj", "txt_in", "text_fusion.projector")
"""Layers that stay as they are: first and last, the timestep's and its modulation, text's entry, the mix of layers."""
SMALLEST_MULTIPLE = 16
"""8-bit products need inputs and outputs that are multiples of this."""
FLOAT8_CAPABILITY = (8, 9)
"""First CUDA compute capability with 8-bit float products."""


def recipe_for(resolution: int) -> Recipe | None:
    """The recipe of a phase at `resolution` pixels per side; None is no 8-bit products."""
    if resolution >= OFF_FROM_PIXELS:
        return None
    return "rowwise" if resolution >= ROWWISE_FROM_PIXELS else "tensorwise"


def float8_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers that are converted, in order."""
    return [name for name, module in model.named_modules() if _is_converted(module, name)]


def _is_converted(module: nn.Module, name: str) -> bool:
    if not isinstance(module, nn.Linear) or any(name == part or name.startswith(part + ".") for part in EXCLUDED):
        return False
    return module.in_features % SMALLEST_MULTIPLE == 0 and module.out_features % SMALLEST_MULTIPLE == 0


def to_float8(model: nn.Module, recipe: Recipe | None, *, emulate: bool = False) -> nn.Module:
    """`model` itself with its `float8_layers` under `recipe`, in place, keeping parameters and names; None is off.

    Raises ConfigError when `recipe` is unknown, when no layer qualifies, or when the device has no 8-bit products and
    `emulate` is off; MissingExtraError without torchao.
    """
    if recipe not in ("tensorwise", "rowwise", None):
        raise ConfigError(f"recipe is {recipe!r}: give 'tensorwise', 'rowwise' or None")
    chosen = float8_layers(model)
    if not chosen:
        raise ConfigError(f"no linear layer has inputs and outputs that are multiples of {SMALLEST_MULTIPLE}: use bf16")
    if recipe is not None and not emulate and not has_float8_products():
        raise ConfigError("8-bit products need a GPU of compute capability 8.9 or newer: set emulate=True, or use bf16")
    float8 = _torchao_float8()
    linear_class = float8.float8_linear.Float8Linear
    config = dataclasses.replace(float8.Float8LinearConfig.from_recipe_name(recipe or "tensorwise"), emulate=emulate)
    # How a layer multiplies follows from its configuration; converted layers take that from a fresh one.
    fresh = linear_class(SMALLEST_MULTIPLE, SMALLEST_MULTIPLE, bias=False, device="meta", config=config)
    for name in chosen:
        layer = model.get_submodule(name)
        if isinstance(layer, linear_class):
            layer.config, layer.linear_mm_config = fresh.config, fresh.linear_mm_config
    remaining = {name for name in chosen if not isinstance(model.get_submodule(name), linear_class)}
    if remaining and _is_spread(model):
        raise ConfigError("the model is spread over ranks already: convert it to 8-bit products before parallelize")
    float8.convert_to_float8_training(model, config=config, module_filter_fn=lambda _, name: name in remaining)
    for name in chosen:
        _switch(model.get_submodule(name), on=recipe is not None)
    return model


def _switch(layer: nn.Module, *, on: bool) -> None:
    """Let a converted layer multiply in 8 bits, or as an ordinary one. torchao's own "off" knows no autocast: its backward
    pass meets bfloat16 gradients with float32 weights.
    """
    if on:
        vars(layer).pop("forward", None)
    else:
        layer.forward = MethodType(nn.Linear.forward, layer)


def _is_spread(model: nn.Module) -> bool:
    if not distributed.is_initialized():
        return False
    from torch.distributed.tensor import DTensor  # 2 s that one process alone need not wait

    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def float8_for(model: nn.Module, resolution: int) -> str:
    """Put `model` under the recipe of a phase at `resolution`, emulated where there is no hardware; what was done, in words."""
    recipe = recipe_for(resolution)
    emulate = not has_float8_products()
    to_float8(model, recipe, emulate=emulate)
    if recipe is None:
        return f"8-bit products are off at {resolution} px, which trains in bfloat16"
    how = ", emulated: this device has none, so they save no time" if emulate else ""
    return f"{len(float8_layers(model))} layers multiply in 8-bit floats at {resolution} px, {recipe} scales{how}"


def has_float8_products() -> bool:
    """Whether this process's CUDA device multiplies 8-bit floats."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= FLOAT8_CAPABILITY


def _torchao_float8() -> ModuleType:
    with _quiet("torchao", "torch.utils._pytree"):
        return require("torchao.float8", "train")


@contextmanager
def _quiet(*loggers: str) -> Iterator[None]:
    """No warnings from these loggers: importing torchao reports kernels of other machines and its own deprecations."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
