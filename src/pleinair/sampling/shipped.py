"""Models as single files, as they come with the package: save, load, and sample from them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from pleinair.checkpoint.compact import load_compact, read_document, save_compact
from pleinair.config import from_document, to_document
from pleinair.model.autoencoder import Autoencoder, AutoencoderConfig
from pleinair.model.text_encoder import FeatureProjection
from pleinair.model.transformer import Transformer, TransformerConfig
from pleinair.sampling.sampler import SamplingConfig


def save_autoencoder(autoencoder: Autoencoder, path: Path) -> None:
    """Write an autoencoder in 8 bits."""
    save_compact(path, autoencoder.state_dict(), {"autoencoder": to_document(autoencoder.config)})


def load_autoencoder(path: Path) -> Autoencoder:
    """An autoencoder in evaluation mode. Raises CheckpointError when the file holds none."""
    state, document = load_compact(path, "autoencoder")
    autoencoder = Autoencoder(from_document(AutoencoderConfig, document["autoencoder"]))
    autoencoder.load_state_dict(state)
    return autoencoder.eval()


def save_model(
    transformer: Transformer,
    projection: FeatureProjection,
    sampling: SamplingConfig,
    path: Path,
    *,
    latent_space: str = "",
) -> None:
    """Write a transformer, its feature projection and its sampling settings in 8 bits, and whose latents it has learned."""
    state: dict[str, Tensor] = {f"transformer.{name}": value for name, value in transformer.state_dict().items()}
    # One row per direction, so that each gets a scale of its own.
    state |= {f"projection.{name}": value for name, value in projection.state_dict().items() if name != "basis_LDK"}
    state["projection.basis_RD"] = projection.basis_LDK.transpose(1, 2).flatten(0, 1)
    document = {"transformer": to_document(transformer.config), "sampling": to_document(sampling)}
    save_compact(path, state, document | ({"latent_space": latent_space} if latent_space else {}))


def packaged_latent_space(path: Path) -> str:
    """Whose latents a packaged model has learned; empty for one that was written before packages said so."""
    return str(read_document(path, "transformer").get("latent_space", ""))


def load_model(path: Path) -> tuple[Transformer, FeatureProjection, SamplingConfig]:
    """What `save_model` wrote. Raises CheckpointError when the file holds something else."""
    state, document = load_compact(path, "transformer")
    transformer = Transformer(from_document(TransformerConfig, document["transformer"]))
    transformer.load_state_dict(_part(state, "transformer."))
    parts = _part(state, "projection.")
    basis_RD, num_layers = parts.pop("basis_RD"), len(parts["mean_LD"])
    basis_LKD = basis_RD.unflatten(0, (num_layers, len(basis_RD) // num_layers))
    projection = FeatureProjection.of({**parts, "basis_LDK": basis_LKD.transpose(1, 2)})
    return transformer.eval(), projection, from_document(SamplingConfig, document["sampling"])


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
