"""LoRAs as runs train them: attached to a frozen parent, stored alone, found again by what a checkpoint says of its base.

checkpoint of a LoRA   lora.safetensors   <layer>.down, <layer>.up      base.json   the parent, and how it is attached
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pleinair.checkpoint.manifests import identity
from pleinair.checkpoint.store import read_document, read_manifest, read_tensors
from pleinair.config import from_document, to_document
from pleinair.model.formats import LoraPair, LoraState
from pleinair.model.lora import LoraConfig, add_lora, freeze_base, load_lora, lora_state, merge_lora
from pleinair.model.transformer import Transformer
from pleinair.records.errors import CheckpointError

if TYPE_CHECKING:
    from pleinair.recipes import FinetuneConfig
    from pleinair.training.stages.finetune import Finetune
    from pleinair.training.stages.pretrain import Pretrain

LORA_FILE = "lora.safetensors"
BASE_DOCUMENT = "base.json"


def attach(model: Transformer, config: FinetuneConfig, device: torch.device, seed: int) -> None:
    """Freeze the model, with its blocks stored as told, and attach an untrained LoRA."""
    from pleinair.model.offload import offload_blocks
    from pleinair.model.quantised_base import quantise_base

    if config.base_bits == 8:
        quantise_base(model)
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


def holds_adapter(checkpoint: Path) -> bool:
    """Whether a folder is the checkpoint of a LoRA."""
    return (checkpoint / BASE_DOCUMENT).exists()


def read_adapter(checkpoint: Path) -> LoraState:
    """The LoRA of a checkpoint, by layer. Raises CheckpointError."""
    tensors = read_tensors(checkpoint, LORA_FILE)
    config = from_document(LoraConfig, read_document(checkpoint, BASE_DOCUMENT)["lora"])
    alpha = float(config.rank if config.alpha is None else config.alpha)
    layers = sorted(name.removesuffix(".down") for name in tensors if name.endswith(".down"))
    return {layer: LoraPair(tensors[f"{layer}.down"], tensors[f"{layer}.up"], alpha) for layer in layers}


def base_of(checkpoint: Path) -> Path:
    """The checkpoint that a LoRA was trained on. Raises CheckpointError when it is gone or another one."""
    base = read_document(checkpoint, BASE_DOCUMENT)
    place = Path(base["checkpoint"])
    if not place.exists() or identity(read_manifest(place)) != base["identity"]:
        raise CheckpointError(
            f"{checkpoint} holds a LoRA of the model that was at {place} and is there no more: put that checkpoint back, "
            "or export the LoRA and load it beside another"
        )
    return place


def apply_adapter(model: Transformer, checkpoint: Path) -> None:
    """Add a checkpoint's LoRA to the weights it was trained on."""
    load_lora(model, read_adapter(checkpoint))
    merge_lora(model)
