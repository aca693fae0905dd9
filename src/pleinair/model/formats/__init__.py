"""Files other programs read and write: transformer weights in four layouts, LoRAs in four dialects, whole pipelines.

weights.py    a file or folder -> configuration and unread tensors -> any other layout, one tensor at a time
lora.py       a LoRA file of ComfyUI, AI-Toolkit, diffusers or kohya -> pairs of matrices -> any other dialect
pipeline.py   transformer, text encoder, tokenizer, autoencoder -> a folder that diffusers runs
names.py, configs.py    the key map, the configurations
"""

from pleinair.model.formats.configs import config_from_diffusers, diffusers_config, require_released_layout
from pleinair.model.formats.lora import LoraPair, LoraState, is_lora, read_lora, write_lora
from pleinair.model.formats.names import NATIVE_PREFIX, native_from_pleinair, pleinair_from_native
from pleinair.model.formats.pipeline import save_pipeline
from pleinair.model.formats.weights import (
    Layout,
    Weights,
    load_transformer,
    open_weights,
    save_transformer,
    write_weights,
)

__all__ = [
    "NATIVE_PREFIX",
    "Layout",
    "LoraPair",
    "LoraState",
    "Weights",
    "config_from_diffusers",
    "diffusers_config",
    "is_lora",
    "load_transformer",
    "native_from_pleinair",
    "open_weights",
    "pleinair_from_native",
    "read_lora",
    "require_released_layout",
    "save_pipeline",
    "save_transformer",
    "write_lora",
    "write_weights",
]
