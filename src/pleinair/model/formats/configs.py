"""A transformer's configuration as diffusers writes it, and as nothing but tensor shapes tell it.

A native file states no configuration; all sizes follow from the shapes of its tensors, what does not (patch size,
rotary settings, epsilon) from metadata that we write into every file, and for files written elsewhere from the released
values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from pleinair.config import from_document
from pleinair.model.transformer import TransformerConfig
from pleinair.records.errors import CheckpointError, ConfigError

DIFFUSERS_CLASS = "Krea2Transformer2DModel"
METADATA_KEY = "pleinair_transformer"
"""safetensors metadata: the whole TransformerConfig as JSON."""
LATENTS_KEY = "pleinair_latent_space"
"""safetensors metadata: whose latents the weights have learned, `LatentSpace.identity`."""

# Keys of TransformerConfig and of diffusers' config.json.
_DIFFUSERS_KEYS = {
    "num_layers": "num_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "mlp_width": "intermediate_size",
    "in_channels": "in_channels",
    "timestep_dim": "timestep_embed_dim",
    "text_dim": "text_hidden_dim",
    "num_text_layers": "num_text_layers",
    "text_num_heads": "text_num_attention_heads",
    "text_num_kv_heads": "text_num_key_value_heads",
    "text_mlp_width": "text_intermediate_size",
    "num_layerwise_text_blocks": "num_layerwise_text_blocks",
    "num_refiner_text_blocks": "num_refiner_text_blocks",
    "rope_axes": "axes_dims_rope",
    "rope_theta": "rope_theta",
    "norm_eps": "norm_eps",
}


_RELEASED_FIELDS = {*_DIFFUSERS_KEYS, "width", "patch_size"}
"""Sizes, which other programs' K2 classes take any value of; every other field is a switch they do not have."""


def require_released_layout(config: TransformerConfig) -> None:
    """Refuse an architecture that other programs cannot run. Raises CheckpointError naming the switches.

    Sizes are free. A field of TransformerConfig that is no size must have its default, which is the released model's.
    """
    switched = [
        f"{field.name} is {getattr(config, field.name)!r} instead of {field.default!r}"
        for field in fields(config)
        if field.name not in _RELEASED_FIELDS and getattr(config, field.name) != field.default
    ]
    if switched:
        raise CheckpointError(
            f"the released layouts have one architecture, and here {'; '.join(switched)}: keep this model in the "
            "pleinair layout, or train one without these switches"
        )


def diffusers_config(config: TransformerConfig) -> dict[str, Any]:
    """The `config.json` of diffusers' class. Patch size has no key there: it belongs to the pipeline."""
    sizes = resolved(config)
    values = {theirs: getattr(sizes, ours) for ours, theirs in _DIFFUSERS_KEYS.items()}
    return {"_class_name": DIFFUSERS_CLASS, "attention_head_dim": config.head_dim, **values}


def config_from_diffusers(document: Mapping[str, Any], patch_size: int = 2) -> TransformerConfig:
    """The configuration in diffusers' `config.json`; absent keys take diffusers' defaults, the released values."""
    values = {ours: document[theirs] for ours, theirs in _DIFFUSERS_KEYS.items() if theirs in document}
    head_dim = document.get("attention_head_dim", TransformerConfig().head_dim)
    width = head_dim * values.get("num_heads", TransformerConfig().num_heads)
    return from_document(TransformerConfig, {**values, "width": width, "patch_size": patch_size})


def config_from_shapes(shapes: Mapping[str, tuple[int, ...]], path: Path) -> TransformerConfig:
    """The configuration that shapes under our names imply; what no shape tells takes the released values."""

    def size(name: str, dim: int) -> int:
        if len(shapes.get(name, ())) <= dim:
            raise CheckpointError(f"{path} holds no tensor '{name}': this is not a K2 transformer")
        return shapes[name][dim]

    def count(prefix: str) -> int:
        return len({name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)})

    def heads(prefix: str, projection: str) -> int:
        return size(f"{prefix}.attn.{projection}.weight", 0) // size(f"{prefix}.attn.norm_q.weight", 0)

    block = "transformer_blocks.0"
    layerwise, refiner = "text_fusion.layerwise_blocks.", "text_fusion.refiner_blocks."
    text_block = (layerwise if count(layerwise) else refiner) + "0"
    try:
        return TransformerConfig(
            width=size("img_in.weight", 0),
            num_layers=count("transformer_blocks."),
            num_heads=heads(block, "to_q"),
            num_kv_heads=heads(block, "to_k"),
            mlp_width=size(f"{block}.ff.up.weight", 0),
            in_channels=size("img_in.weight", 1),
            timestep_dim=size("time_embed.linear_1.weight", 1),
            text_dim=size("txt_in.norm.weight", 0),
            num_text_layers=size("text_fusion.projector.weight", 1),
            text_num_heads=heads(text_block, "to_q"),
            text_num_kv_heads=heads(text_block, "to_k"),
            text_mlp_width=size(f"{text_block}.ff.up.weight", 0),
            num_layerwise_text_blocks=count(layerwise),
            num_refiner_text_blocks=count(refiner),
        )
    except ConfigError as refused:
        raise CheckpointError(f"{path} holds tensors that fit no K2 transformer: {refused}") from refused


def resolved(config: TransformerConfig) -> TransformerConfig:
    """The same with every optional size written out."""
    return replace(
        config, mlp_width=config.hidden_width, text_mlp_width=config.text_hidden_width, rope_axes=config.axes
    )
