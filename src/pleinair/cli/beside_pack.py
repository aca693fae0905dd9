"""What lies beside a run's pack: held-out rows to validate on, and patch features to align to.

RUN/pack   RUN/pack-held-out         a pack of the (concept, style) pairs that are never trained on, same projection
           RUN/pack-patch-features   what a frozen image encoder sees in the pictures, for iREPA's phases
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pleinair.cli.places import cache_dir
from pleinair.cli.progress import ProgressLine
from pleinair.cli.workspace import Workspace
from pleinair.config import config_digest

if TYPE_CHECKING:
    from pleinair.cli.parts import Parts
    from pleinair.model.text_encoder import FeatureProjection, TextEncoder
    from pleinair.packing.pictures import CuratedPicture
    from pleinair.packs.loader import LatentLoader
    from pleinair.packs.pack import Pack
    from pleinair.packs.plan import LoaderConfig
    from pleinair.training.mesh import Mesh
    from pleinair.training.patch_features import PatchFeatures

VALIDATION_BATCH = 64
ENCODE_BATCH = 64


def made_once(directory: Path, inputs: Any, make: Callable[[], object]) -> bool:
    """Make a directory unless what is there was made of the same inputs; whether it was made now."""
    stamp, digest = directory.with_name(f"{directory.name}-inputs.json"), config_digest(inputs)
    if directory.exists() and stamp.exists() and json.loads(stamp.read_text()) == digest:
        return False
    make()
    stamp.write_text(json.dumps(digest))
    return True


def write_held_out(
    work: Workspace,
    pictures: Sequence[CuratedPicture],
    parts: Parts,
    projection: FeatureProjection,
    open_encoder: Callable[[], TextEncoder],
) -> None:
    """Pack the held-out pictures at the last phase's resolution, unless they are there; without any, leave none."""
    from pleinair.model.digest import part_digest
    from pleinair.packing.latents import write_pack

    side = work.recipe.resolutions[-1]
    held_out = [replace(one, pixels={side: one.pixels[side]}) for one in pictures if one.held_out]
    if not held_out or not work.recipe.watch.validation.every:
        shutil.rmtree(work.held_out, ignore_errors=True)
        return
    keys = [[picture.key, *picture.captions] for picture in held_out]
    inputs = [keys, side, parts.autoencoder_sha256, part_digest(projection)]
    made_once(
        work.held_out,
        inputs,
        lambda: write_pack(
            held_out,
            work.held_out,
            codec=parts.autoencoder,
            autoencoder_sha256=parts.autoencoder_sha256,
            text_encoder=open_encoder(),
            text_dim=work.recipe.text_dim,
            projection=projection,
        ),
    )
    print(f"  {len(held_out)} held-out pictures beside it, to validate on")


def held_out_loader(work: Workspace, mesh: Mesh) -> LatentLoader | None:
    """This rank's rows of the held-out pack, in batches that the ranks share equally; None where there is none."""
    from pleinair.packs.pack import Pack

    if not (work.held_out / "pack.json").exists():
        return None
    return validation_loader(Pack(work.held_out), work.recipe.loader, mesh.data_rank, mesh.num_data_ranks)


def validation_loader(pack: Pack, loader: LoaderConfig, rank: int = 0, num_ranks: int = 1) -> LatentLoader | None:
    """Rows of a small pack in batches as large as fit, never with the empty prompt; None for fewer rows than ranks.

    Their order and captions are the same whatever the seed of the run, so losses of several runs compare.
    """
    from pleinair.packs.loader import LatentLoader

    size = min(VALIDATION_BATCH, pack.manifest.num_rows) // num_ranks * num_ranks
    if not size:
        return None
    config = replace(loader, batch_size=size, drop_caption=0.0, seed=0, remainder="drop")
    (resolution,) = pack.manifest.resolutions
    return LatentLoader(pack, resolution, config, rank=rank, num_ranks=num_ranks)


def write_features(work: Workspace, pictures: Sequence[CuratedPicture], parts: Parts) -> None:
    """Encode the trained pictures for the phases that iREPA has, unless that is done."""
    from pleinair.model.efficientnet import fetch_efficientnet, load_efficientnet
    from pleinair.training.patch_features import EfficientNetPatches, write_patch_features

    recipe = work.recipe
    if recipe.repa is None:
        return
    sides = sorted(set(recipe.resolutions[: recipe.repa_phases]))
    trained = [picture for picture in pictures if not picture.held_out]
    token = parts.autoencoder.downscale * recipe.transformer.patch_size
    encoder = EfficientNetPatches(load_efficientnet(fetch_efficientnet(cache_dir() / "efficientnet-lite0")))

    def make() -> None:
        shutil.rmtree(work.patch_features, ignore_errors=True)
        write_patch_features(work.patch_features, encoder, _batches(trained, sides, token))

    inputs = [[picture.key for picture in trained], sides, token, encoder.name]
    made_once(work.patch_features, inputs, make)
    print(f"  patch features of {encoder.name} beside it, at {', '.join(map(str, sides))} px")


def _batches(pictures: Sequence[CuratedPicture], sides: Sequence[int], token: int) -> Iterator[Any]:
    """(grid, keys, pictures) of every side, in batches."""
    line, total = ProgressLine("patch features"), len(pictures) * len(sides)
    for number, side in enumerate(sides):
        grid = (side // token, side // token)
        for start in range(0, len(pictures), ENCODE_BATCH):
            some = pictures[start : start + ENCODE_BATCH]
            yield grid, [one.key for one in some], [one.pixels[side] for one in some]
            line.update(number * len(pictures) + start + len(some), total)


def feature_words(work: Workspace) -> list[str]:
    """What a run's digest says of the features it aligns to: other ones are another run."""
    return [] if work.recipe.repa is None else [open_features(work).digest]


def open_features(work: Workspace) -> PatchFeatures:
    """What the phases with iREPA align to. Raises PackError where `pack` has written none."""
    from pleinair.training.patch_features import PatchFeatures

    return PatchFeatures(work.patch_features)
