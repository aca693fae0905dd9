"""Whether a model reads what its pack holds or will hold, and what its encoders give: refused before any work is done."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pleinair.model.autoencoder import LatentCodec
from pleinair.model.text_encoder import TextEncoder
from pleinair.model.transformer import TransformerConfig
from pleinair.recipes.recipe import Recipe
from pleinair.records.errors import ConfigError
from pleinair.records.packs import PackManifest


def require_codec_fits(recipe: Recipe, codec: LatentCodec) -> None:
    """Raise ConfigError where the autoencoder's latents, at the recipe's resolutions, are not what the transformer reads."""
    _require_channels(recipe.transformer, codec.latent_channels, "the autoencoder makes")
    side = codec.downscale * recipe.transformer.patch_size
    for resolution in sorted({*recipe.resolutions, recipe.sampling.resolution}):
        if resolution % side:
            raise ConfigError(
                f"resolution is {resolution}: the autoencoder takes {codec.downscale} pixels to a latent and patch_size is "
                f"{recipe.transformer.patch_size}, give a multiple of {side}"
            )


def require_pack_fits(recipe: Recipe, manifest: PackManifest, place: Path) -> None:
    """Raise ConfigError where a pack's latents or text features are not what the transformer reads."""
    model = recipe.transformer
    _require_features(model, manifest.token_shape, f"the pack {place} has")
    for shape in _shapes(recipe, manifest):
        _require_channels(model, shape[0], f"the pack {place} has")
        if shape[1] % model.patch_size or shape[2] % model.patch_size:
            raise ConfigError(
                f"the pack {place} has latents of {shape[1]} x {shape[2]} and transformer.patch_size is {model.patch_size}: "
                "give a divisor of both sides, or pack other resolutions"
            )


def require_encoders_fit(model: TransformerConfig, codec: LatentCodec, encoder: TextEncoder, text_dim: int) -> None:
    """Raise ConfigError where a transformer cannot read what these give; `text_dim` is that of the features it gets."""
    _require_channels(model, codec.latent_channels, "the autoencoder makes")
    _require_features(model, (encoder.num_layers, text_dim), "the text encoder gives")


def _shapes(recipe: Recipe, manifest: PackManifest) -> Iterable[tuple[int, ...]]:
    return sorted({shard.shape for shard in manifest.shards if shard.resolution in recipe.resolutions})


def _require_features(model: TransformerConfig, layers_and_dim: tuple[int, int], whose: str) -> None:
    layers, dim = layers_and_dim
    if (layers, dim) != (model.num_text_layers, model.text_dim):
        raise ConfigError(
            f"{whose} text features of {layers} layers x {dim} and the transformer reads {model.num_text_layers} x "
            f"{model.text_dim}: set transformer.num_text_layers={layers} and transformer.text_dim={dim}, or give others"
        )


def _require_channels(model: TransformerConfig, channels: int, whose: str) -> None:
    if channels != model.latent_channels:
        raise ConfigError(
            f"transformer.in_channels is {model.in_channels}, {model.latent_channels} latent channels at patch_size "
            f"{model.patch_size}, and {whose} {channels}: set transformer.in_channels={channels * model.patch_size**2}"
        )
