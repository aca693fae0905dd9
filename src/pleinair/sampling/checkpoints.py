"""Models of checkpoints, to draw with or to go on from."""

from __future__ import annotations

from pathlib import Path

from pleinair.checkpoint.store import read_document, read_tensors
from pleinair.config import from_document
from pleinair.model.text_encoder import FeatureProjection
from pleinair.model.transformer import Transformer, TransformerConfig
from pleinair.sampling.adapters import apply_adapter, base_of, holds_adapter
from pleinair.sampling.projection import read_projection

WEIGHTS_FILE = "transformer.safetensors"
"""Of a checkpoint: the transformer."""


def read_model(checkpoint: Path) -> tuple[Transformer, FeatureProjection]:
    """Model and projection of one checkpoint, verified. Raises CheckpointError naming what is missing or damaged."""
    return read_transformer(checkpoint), read_projection(checkpoint)


def read_transformer(checkpoint: Path) -> Transformer:
    """The transformer of one checkpoint, a LoRA added to the base it was trained on."""
    adapted = holds_adapter(checkpoint)
    model = Transformer(from_document(TransformerConfig, read_document(checkpoint, "config.json")["transformer"]))
    model.load_state_dict(read_tensors(base_of(checkpoint) if adapted else checkpoint, WEIGHTS_FILE))
    if adapted:
        apply_adapter(model, checkpoint)
    return model.eval()
