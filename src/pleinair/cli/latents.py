"""Whose latents a parent has learned, and the refusal of a pack that holds others.

    a checkpoint   config.json says it            a packaged model       its document; the shipped one: the autoencoder beside
    a file of ours its metadata says it           a pipeline folder      the autoencoder in it
    anything else  nobody says it: the recipe's `autoencoder` must

Latents of another autoencoder, or of the same with other statistics, have the same shape, so nothing else would notice.
"""

from __future__ import annotations

from pathlib import Path

from pleinair.checkpoint.store import digest_file, read_document
from pleinair.cli.encoders import open_codec
from pleinair.cli.places import shipped
from pleinair.model.autoencoder import LatentCodec
from pleinair.records.errors import ConfigError
from pleinair.sampling.shipped import load_autoencoder, packaged_latent_space

SHIPPED_MODEL = "drawings-64"
SAID = "latent_space"
"""Key in a checkpoint's `config.json`; checkpoints that are older have none, imported weights may have an empty one."""


def latents_of_package(path: Path) -> str:
    """What a packaged model has learned. The shipped one was written before packages said so, and is known by its bytes."""
    told = packaged_latent_space(path)
    if told or digest_file(path) != digest_file(shipped(SHIPPED_MODEL)):
        return told
    return load_autoencoder(shipped("autoencoder")).describe().identity


def latents_beside(folder: Path) -> str:
    """The latents of the autoencoder in a pipeline's folder; empty for another folder."""
    return open_codec(str(folder)).describe().identity if (folder / "vae" / "config.json").exists() else ""


def require_latents(known: str, codec: LatentCodec, model: Path) -> None:
    """Raise ConfigError for an autoencoder of other latents than a model has learned; one that says nothing ("") passes."""
    own = codec.describe().identity
    if known and known != own:
        raise ConfigError(
            f"{model} has learned latents of {known!r} and the autoencoder gives {own!r}: name the one it was trained with, "
            "--autoencoder FOLDER"
        )


def require_parents_latents(parent: Path | None, packed: str, pack: Path, autoencoder: str | None) -> None:
    """Raise ConfigError for a pack of other latents than a parent has learned.

    `autoencoder` is the recipe's, which speaks for a parent that says nothing. Checkpoints and packs ("") that are older than
    the word pass.
    """
    if parent is None or not packed:
        return
    config = read_document(parent, "config.json")
    known, told_by = config.get(SAID), f"the parent {parent} has learned"
    if known is None:
        return
    if not known:
        if autoencoder is None:
            raise ConfigError(
                f"the parent {parent} does not say whose latents it has learned, and the pack {pack} holds {packed!r}: name "
                "the autoencoder of the parent with --autoencoder FOLDER (Krea 2's is Qwen-Image's), or give a whole "
                "pipeline's folder as the parent"
            )
        known, told_by = open_codec(autoencoder).describe().identity, f"the autoencoder {autoencoder} gives"
    if known != packed:
        raise ConfigError(
            f"{told_by} latents of {known!r} and the pack {pack} holds {packed!r}: pack the pictures with the autoencoder of "
            "the parent (weights and latent statistics), or name another parent"
        )
