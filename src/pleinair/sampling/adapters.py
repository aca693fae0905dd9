"""LoRAs in checkpoints: found again by what a checkpoint says of its base.

checkpoint of a LoRA   lora.safetensors   <layer>.down, <layer>.up      base.json   the parent, and how it is attached
"""

from __future__ import annotations

from pathlib import Path

from pleinair.checkpoint.manifests import identity
from pleinair.checkpoint.store import read_document, read_manifest, read_tensors
from pleinair.config import from_document
from pleinair.model.formats import LoraPair, LoraState
from pleinair.model.lora import LoraConfig, load_lora, merge_lora
from pleinair.model.transformer import Transformer
from pleinair.records.errors import CheckpointError

LORA_FILE = "lora.safetensors"
BASE_DOCUMENT = "base.json"


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
