"""Every network: the transformer and its layouts, text encoder, autoencoder."""

from pleinair.model.formats import load_transformer, save_transformer
from pleinair.model.transformer import TextTokens, Transformer, TransformerConfig, count_parameters

__all__ = [
    "TextTokens",
    "Transformer",
    "TransformerConfig",
    "count_parameters",
    "load_transformer",
    "save_transformer",
]
