"""What all preference pairs are made with: weights that draw, latents of prompts and seeds, and the prompts' text features.

Drawing (weights, settings, prompt, seed) --draw_latents--> latents, as `Sampler` draws them but for the decoder
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from pleinair.config import config_digest
from pleinair.flow import euler, timestep_schedule
from pleinair.records.pairs import PAIRS_VERSION, PairSide, PairsManifest
from pleinair.sampling import Sampler, SamplingConfig
from pleinair.sampling.sampler import guided_velocity, seeded_noise

PROJECTION = "feature_projection.safetensors"
PIECE = 64
"""Pairs made between two pieces that are kept: what an interruption costs at most."""


@dataclass(frozen=True)
class Source:
    """Weights that draw, and what identifies them."""

    sampler: Sampler
    identity: str
    """`checkpoint.manifests.identity` of their checkpoint."""


@dataclass(frozen=True)
class Drawing:
    """How one side of a pair is drawn."""

    source: Source
    config: SamplingConfig
    prompt: str
    seed: int

    def side(self, asked: str) -> PairSide:
        """What the pair says of it."""
        kept = ("num_steps", "guidance", "shift_mu", "resolution")
        settings = {name: getattr(self.config, name) for name in kept}
        if self.prompt != asked:
            settings["prompt"] = self.prompt
        return PairSide(checkpoint=self.source.identity, seed=self.seed, settings=settings)


def projection_file(sampler: Sampler) -> bytes:
    """What the text features came through, as a safetensors file."""
    written: bytes = save({name: values.contiguous() for name, values in sampler.projection.state_dict().items()})
    return written


def empty_manifest(sampler: Sampler, made: Literal["drawn", "chosen"], plan: Any) -> PairsManifest:
    """A manifest of pairs in a sampler's latents and text features."""
    return PairsManifest(
        made=made,
        plan=config_digest([PAIRS_VERSION, plan]),
        latent_space=sampler.codec.describe().identity,
        text_encoder=sampler.text_encoder.name,
        text_layers=tuple(sampler.text_encoder.layers),
        text_dim=sampler.projection.dim,
    )


@torch.inference_mode()
def draw_latents(drawings: Sequence[Drawing]) -> list[Tensor]:
    """Latents (C, H, W) of drawings in their order; those of one source and settings are drawn together."""
    found: dict[int, Tensor] = {}
    alike: dict[tuple[str, str], list[int]] = {}
    for place, one in enumerate(drawings):
        alike.setdefault((one.source.identity, json.dumps(asdict(one.config))), []).append(place)
    for places in alike.values():
        sampler, config = drawings[places[0]].source.sampler, drawings[places[0]].config
        for start in range(0, len(places), config.batch_size):
            rows = places[start : start + config.batch_size]
            latents = _euler(sampler, [drawings[i].prompt for i in rows], [drawings[i].seed for i in rows], config)
            found.update(zip(rows, latents, strict=True))
    return [found[place] for place in range(len(drawings))]


def _euler(sampler: Sampler, prompts: Sequence[str], seeds: Sequence[int], config: SamplingConfig) -> Tensor:
    """As `Sampler.sample`, before the decoder."""
    transformer = sampler.transformer.eval()

    def encode(texts: Sequence[str]) -> Any:
        encoded = sampler.text_encoder.encode(texts)
        return transformer.encode_text(sampler.projection(encoded.features_BTLD), encoded.mask_BT)

    noise_BCHW = seeded_noise(seeds, sampler.codec, config.resolution)
    with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
        empty = encode([""]) if config.guidance > 0 else None
        velocity = guided_velocity(transformer, encode(prompts), empty, config.guidance)
        return euler(velocity, noise_BCHW, timestep_schedule(config.num_steps, config.shift_mu))


@torch.inference_mode()
def text_features(prompts: Sequence[str], sampler: Sampler) -> list[Tensor]:
    """Projected features (T, L, D) of each prompt, real tokens only; each distinct prompt is encoded once."""
    distinct = list(dict.fromkeys(prompts))
    encoded = sampler.text_encoder.encode(distinct)
    projected = zip(distinct, sampler.projection(encoded.features_BTLD), encoded.mask_BT, strict=True)
    rows = {prompt: row_TLD[mask_T] for prompt, row_TLD, mask_T in projected}
    return [rows[prompt] for prompt in prompts]
