"""A folder that diffusers' Krea2Pipeline runs unchanged: our transformer with the parts it is handed.

    model_index.json    transformer/  (ours)    text_encoder/  tokenizer/  vae/  (their own save_pretrained)    scheduler/

diffusers itself is not needed to write it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from pleinair.model.formats.configs import DIFFUSERS_CLASS
from pleinair.model.formats.weights import appearing, save_transformer
from pleinair.model.transformer import Transformer, TransformerConfig
from pleinair.records.errors import CheckpointError

PIPELINE_CLASS = "Krea2Pipeline"
SCHEDULER_CLASS = "FlowMatchEulerDiscreteScheduler"
SCHEDULER_CONFIG: dict[str, Any] = {
    "_class_name": SCHEDULER_CLASS,
    "use_dynamic_shifting": True,
    "time_shift_type": "exponential",
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 6400,
    "shift": 1.0,
    "num_train_timesteps": 1000,
}
"""The released schedule, that of `pleinair.flow.shift_mu`; for a distilled model the pipeline itself fixes the shift at 1.15."""


class Pretrained(Protocol):
    """A model or tokenizer of diffusers or transformers; models have a `config` too."""

    def save_pretrained(self, save_directory: str | os.PathLike[str], /) -> Any:
        """Write configuration and weights into a folder."""
        ...


def save_pipeline(
    path: str | os.PathLike[str],
    transformer: Transformer,
    *,
    vae: Pretrained,
    text_encoder: Pretrained,
    tokenizer: Pretrained,
    text_layers: Sequence[int],
    is_distilled: bool = False,
) -> Path:
    """Write the whole pipeline; `text_layers` are the hidden states of the text encoder the transformer reads.

    Raises CheckpointError if `path` exists already, and where parts do not fit each other.
    """
    path, config = Path(path), transformer.config
    _check_fit(config, vae, text_encoder, text_layers)
    parts = {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer}
    index = {
        "_class_name": PIPELINE_CLASS,
        "is_distilled": is_distilled,
        "patch_size": config.patch_size,
        "text_encoder_select_layers": list(text_layers),
        "scheduler": ["diffusers", SCHEDULER_CLASS],
        "transformer": ["diffusers", DIFFUSERS_CLASS],
        **{name: [type(part).__module__.split(".")[0], type(part).__name__] for name, part in parts.items()},
    }
    with appearing(path) as partial:
        partial.mkdir()
        save_transformer(transformer, partial / "transformer", "diffusers")
        for name, part in parts.items():
            part.save_pretrained(partial / name)
        (partial / "scheduler").mkdir()
        _write_json(partial / "scheduler" / "scheduler_config.json", SCHEDULER_CONFIG)
        _write_json(partial / "model_index.json", index)
    return path


def _check_fit(config: TransformerConfig, vae: Any, text_encoder: Any, text_layers: Sequence[int]) -> None:
    text = getattr(text_encoder.config, "text_config", text_encoder.config)
    for what, given, read in (
        (f"{len(text_layers)} text layers are given", len(text_layers), config.num_text_layers),
        (f"the text_encoder has width {text.hidden_size}", text.hidden_size, config.text_dim),
        (f"the vae has {vae.config.z_dim} latent channels", vae.config.z_dim, config.latent_channels),
    ):
        if given != read:
            raise CheckpointError(f"{what}: this transformer reads {read}, give the parts it was trained with")
    if max(text_layers) > text.num_hidden_layers:
        raise CheckpointError(
            f"text_layers names {max(text_layers)}: this text_encoder has {text.num_hidden_layers} layers, name those"
        )


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
