"""LoRAs as runs train them: attached to a frozen parent, stored alone; `sampling.adapters` finds them again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pleinair.checkpoint.manifests import identity
from pleinair.checkpoint.store import read_manifest
from pleinair.config import to_document
from pleinair.model.lora import add_lora, freeze_base, lora_state
from pleinair.model.transformer import Transformer
from pleinair.sampling.adapters import LORA_FILE

if TYPE_CHECKING:
    from pleinair.recipes import FinetuneConfig
    from pleinair.training.stages.finetune import Finetune
    from pleinair.training.stages.pretrain import Pretrain


def attach(model: Transformer, config: FinetuneConfig, device: torch.device, seed: int) -> None:
    """Attach an untrained LoRA to a frozen model, whose blocks stay on the CPU where that is asked for."""
    from pleinair.model.offload import offload_blocks

    add_lora(model, config.lora, generator=torch.Generator().manual_seed(seed))
    freeze_base(model)
    if config.offload:
        offload_blocks(model, device)


def adapter_stage(pretrain: Pretrain, config: FinetuneConfig, parent: Path) -> Finetune:
    """The stage that trains what `attach` attached."""
    from pleinair.training.stages.finetune import Finetune

    base = {
        "checkpoint": str(parent),
        "identity": identity(read_manifest(parent)),
        "lora": to_document(config.lora),
    }
    return Finetune(pretrain, lambda: adapter_tensors(pretrain.model), weights_file=LORA_FILE, base=base)


def adapter_tensors(model: Transformer) -> dict[str, Tensor]:
    """The live matrices of the attached LoRA."""
    pairs = lora_state(model).items()
    return {f"{layer}.down": pair.down for layer, pair in pairs} | {f"{layer}.up": pair.up for layer, pair in pairs}
