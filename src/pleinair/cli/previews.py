"""Pictures of fixed prompts while a recipe trains: what the engine's hook calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from pleinair.cli.parts import codec_of
from pleinair.cli.workspace import Workspace
from pleinair.model.text_encoder import EncodedText, TextEncoder, padded

if TYPE_CHECKING:
    from pleinair.pages.picture import Pixels
    from pleinair.training.hooks.previews import Draw
    from pleinair.training.stages.finetune import Finetune
    from pleinair.training.stages.pretrain import Pretrain


class KnownPrompts:
    """A text encoder of some prompts, encoded once: the language model need not stay in memory. Others are a KeyError."""

    def __init__(self, encoder: TextEncoder, prompts: Sequence[str]) -> None:
        self.name, self.digest, self.layers = encoder.name, encoder.digest, encoder.layers
        self.num_layers, self.width = encoder.num_layers, encoder.width
        encoded = encoder.encode(prompts)
        rows = zip(prompts, encoded.features_BTLD, encoded.mask_BT, strict=True)
        self._features: dict[str, Tensor] = {prompt: row_TLD[mask_T] for prompt, row_TLD, mask_T in rows}

    def encode(self, prompts: Sequence[str]) -> EncodedText:
        """What the encoder gave."""
        return padded([self._features[prompt] for prompt in prompts])


def previews_of(work: Workspace, stage: Pretrain | Finetune) -> Draw | None:
    """Draws `watch.preview_prompts` side by side at the last phase's resolution; None where none are asked for."""
    from pleinair.cli.encoders import open_text_encoder
    from pleinair.sampling import Sampler
    from pleinair.training.stages.finetune import Finetune

    watch = work.recipe.watch
    if not watch.preview_every:
        return None
    prompts = list(watch.preview_prompts)
    pretrain = stage.pretrain if isinstance(stage, Finetune) else stage
    sampler = Sampler(
        stage.model,
        codec_of(work)[0],
        KnownPrompts(open_text_encoder(work.recipe.text_encoder), list(dict.fromkeys([*prompts, ""]))),
        pretrain.projection,
    )
    config = replace(work.recipe.sampling, resolution=work.recipe.resolutions[-1])

    def draw() -> Pixels:
        return np.concatenate(sampler.sample(prompts, range(len(prompts)), config), axis=1)

    return draw
