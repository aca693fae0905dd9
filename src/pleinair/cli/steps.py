"""The steps of a run, each a function of its workspace; the one place where the parts are wired together.

    ingest -> curate -> parts (autoencoder, judge) -> pack -> train -> evaluate -> report

Every step is a no-op when its result is there and still fits, so a run stopped anywhere goes on where it was.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from pleinair.checkpoint.store import newest_checkpoint, read_manifest
from pleinair.cli.encoders import as_they_are, open_text_encoder, stamp
from pleinair.cli.parts import Parts
from pleinair.cli.progress import ProgressLine
from pleinair.cli.workspace import Workspace
from pleinair.cluster.locks import only_one
from pleinair.config import config_digest, to_document
from pleinair.model.autoencoder import require_same_latents
from pleinair.model.pixels import to_bytes, to_signed_unit
from pleinair.model.text_encoder import FeatureProjection
from pleinair.model.transformer import Transformer
from pleinair.records.errors import CheckpointError, PleinairError
from pleinair.records.packs import PACK_VERSION
from pleinair.sampling.checkpoints import read_model
from pleinair.sampling.projection import projection_of, read_projection

if TYPE_CHECKING:
    from pleinair.evaluation.drawings import Drawings, Neighbours
    from pleinair.krablet import Database
    from pleinair.model.text_encoder import TextEncoder
    from pleinair.packing.pictures import CuratedPicture
    from pleinair.training.engine import Hook
    from pleinair.training.mesh import Mesh

OLD_TRAINER_SECONDS = 60.0
"""How long a trainer waits for one that is still ending."""


def open_database(work: Workspace) -> Database:
    """The workspace's warehouse."""
    from pleinair import krablet

    return krablet.connect(work.dsn) if work.dsn else krablet.connect(directory=work.home / "postgres")


def ingest_step(work: Workspace, db: Database) -> None:
    """List the recipe's source into the warehouse, fetching it first where needed."""
    from pleinair.curation import find_source, ingest

    source = find_source(
        work.recipe.source, work.cache, on_progress=lambda fetched: print(f"  fetching {fetched}", file=sys.stderr)
    )
    done = ingest(db, source)
    print(f"  {done.num_listed} pictures listed, {done.num_new} new")


def curate_step(work: Workspace, db: Database) -> None:
    """Run every queue stage to the end. Raises PleinairError when pictures are stuck."""
    from pleinair.cli.curate import drop_table, show_workers
    from pleinair.curation import curate

    line = ProgressLine("curate")
    done = curate(
        db,
        cache=work.cache,
        store=work.store,
        processes=work.processes,
        on_progress=lambda now: show_workers(line, now),
    )
    line.close()
    print("\n".join("  " + row for row in drop_table(done.drops).splitlines()))
    stuck = [(stage, row) for stage, rows in done.run.stuck.items() for row in rows]
    if stuck:
        stage, row = stuck[0]
        raise PleinairError(
            f"{len(stuck)} pictures are stuck, the first in {stage}: {row.key}: {row.error}; see 'pleinair krablet stuck'"
        )


def curated_pictures(work: Workspace, db: Database) -> list[CuratedPicture]:
    """The recipe's concepts, as far as they passed curation, at all its resolutions; held-out ones included."""
    from pleinair.curation.sources import TRAINING_STYLES, find_source
    from pleinair.curation.stages import images_table, kept_where
    from pleinair.curation.store import ObjectStore
    from pleinair.packing.pictures import read_curated

    images, line = images_table(db), ProgressLine("pictures read")
    where = f"{kept_where(images)} AND source = %s AND label = ANY(%s) AND style = ANY(%s)"
    source = find_source(work.recipe.source, work.cache)
    params = (source.name, list(work.recipe.concepts), list(work.recipe.styles or TRAINING_STYLES))
    total = images.count(where, params=params)
    pictures = read_curated(
        images,
        ObjectStore(work.store),
        sorted({*work.recipe.resolutions, work.recipe.sampling.resolution}),
        where=where,
        params=params,
        on_progress=lambda done: line.update(done, total),
    )
    line.close()
    return pictures


def pack_step(work: Workspace, pictures: list[CuratedPicture], parts: Parts) -> None:
    """Write the pack and what lies beside it, unless what is there was made of the same pictures, captions and parts."""
    from pleinair.cli.beside_pack import made_once, write_features, write_held_out
    from pleinair.cli.latents import require_parents_latents
    from pleinair.cli.parents import parent_of
    from pleinair.model.digest import part_digest
    from pleinair.recipes.fits import require_codec_fits, require_encoders_fit

    if work.recipe.pack is not None:
        print(f"  the recipe trains on {work.pack}, which was made elsewhere")
        return
    require_codec_fits(work.recipe, parts.autoencoder)
    trained = [picture for picture in pictures if not picture.held_out]
    parent = parent_of(work)
    require_parents_latents(parent, parts.autoencoder.describe().identity, work.pack, work.recipe.autoencoder)
    projection, encoder = projection_of(parent), cache(partial(open_text_encoder, work.recipe.text_encoder))
    if work.recipe.text_encoder is not None:
        projection = projection or as_they_are(encoder())
        require_encoders_fit(work.recipe.transformer, parts.autoencoder, encoder(), projection.dim)
    inputs = {
        "format": PACK_VERSION,
        "pictures": [[picture.key, *picture.captions] for picture in trained],
        "resolutions": list(work.recipe.resolutions),
        "text_dim": work.recipe.text_dim,
        "autoencoder": parts.autoencoder_sha256,
    }
    if projection is not None:
        inputs["projection"] = [part_digest(projection), *stamp(work.recipe.text_encoder)]
    if not made_once(work.pack, inputs, lambda: _write_pack(work, trained, parts, encoder, projection)):
        print("  the pack is there")
    print(f"  {len(pictures) - len(trained)} held-out pictures stay out of it")
    write_held_out(work, pictures, parts, read_projection(work.pack), encoder)
    write_features(work, pictures, parts)


def _write_pack(
    work: Workspace,
    pictures: list[CuratedPicture],
    parts: Parts,
    encoder: Callable[[], TextEncoder],
    projection: FeatureProjection | None,
) -> None:
    from pleinair.packing.latents import write_pack

    lines: dict[str, ProgressLine] = {}
    manifest = write_pack(
        pictures,
        work.pack,
        codec=parts.autoencoder,
        autoencoder_sha256=parts.autoencoder_sha256,
        text_encoder=encoder(),
        text_dim=work.recipe.text_dim,
        seed=work.recipe.engine.seed,
        projection=projection,
        on_progress=lambda what, done, total: lines.setdefault(what, ProgressLine(what)).update(done, total),
    )
    print(f"  {manifest.num_rows} rows at {manifest.resolutions} px")


def train_here(work: Workspace) -> Path:
    """Train in this process, from the pack alone; returns the final checkpoint."""
    from pleinair.training.mesh import open_mesh

    with open_mesh(work.recipe.parallel.mesh) as mesh:
        return train_on(work, mesh)


def train_on(work: Workspace, mesh: Mesh, hooks: Sequence[Hook] = ()) -> Path:
    """Train as one of a mesh's ranks. A new trainer waits for an old one to be gone."""
    from pleinair.cli.beside_pack import feature_words
    from pleinair.cli.latents import require_parents_latents
    from pleinair.cli.parents import parent_of, parent_words, require_same_projection
    from pleinair.cli.stages import hooks_of, phases_of, stage_of
    from pleinair.packs.pack import Pack
    from pleinair.recipes.fits import require_pack_fits
    from pleinair.records.run_events import EVENTS, failure_history
    from pleinair.training.engine import Parent, train
    from pleinair.training.reductions import from_rank_zero

    recipe, parent = work.recipe, from_rank_zero(lambda: parent_of(work), mesh)
    pack, projection = Pack(work.pack), read_projection(work.pack)
    require_pack_fits(recipe, pack.manifest, work.pack)
    require_same_projection(parent, work.pack, projection)
    require_parents_latents(parent, pack.manifest.latent_space, work.pack, recipe.autoencoder)
    torch.manual_seed(recipe.engine.seed)
    stage = stage_of(work, mesh, projection, parent, pack.manifest.latent_space)
    whole = parent is not None and recipe.finetune is None
    told = [*parent_words(parent), *feature_words(work)]
    settings = [to_document(recipe.training_part()), to_document(pack.manifest), *told]
    with _alone(work, mesh):
        return train(
            stage,
            phases_of(work, pack, stage, mesh),
            recipe.engine,
            work.run_dir,
            config_digest=config_digest(settings),
            mesh=mesh,
            hooks=hooks_of(work, stage, mesh, hooks),
            parent=Parent(checkpoint=parent, with_optimiser=recipe.with_optimiser) if parent and whole else None,
            failures=failure_history(work.run_dir / EVENTS) if mesh.rank == 0 else None,
            on_message=lambda said: print(f"  {said}"),
        )


def _alone(work: Workspace, mesh: Mesh) -> AbstractContextManager[None]:
    """No other trainer in the run's directory; rank 0 sees to it for all."""
    if mesh.rank:
        return nullcontext()
    return only_one(work.run_dir, "train.lock", patience_seconds=OLD_TRAINER_SECONDS)


def load_checkpoint(run_dir: Path) -> tuple[Transformer, FeatureProjection, str]:
    """The newest model of a run, its projection, and what identifies it. Raises CheckpointError when there is none."""
    checkpoint = newest_of(run_dir)
    return *read_model(checkpoint), config_digest(read_manifest(checkpoint))


def newest_of(run_dir: Path) -> Path:
    """The newest whole checkpoint of a run. Raises CheckpointError when there is none."""
    checkpoint = newest_checkpoint(run_dir / "checkpoints")
    if checkpoint is None:
        raise CheckpointError(f"{run_dir} holds no checkpoint: train first")
    return checkpoint


@dataclass(frozen=True)
class Evaluated:
    """What the report needs from the evaluation."""

    metrics: dict[str, Any]
    drawn: Drawings
    neighbours: list[Neighbours]


def evaluate_step(work: Workspace, pictures: list[CuratedPicture], parts: Parts) -> Evaluated:
    """Draw, judge, and write `metrics.json`; drawings of the same checkpoint are not made again."""
    from pleinair.evaluation.drawings import (
        Drawings,
        draw_pairs,
        nearest_trained,
        plan_pairs,
        read_drawings,
        score,
        write_drawings,
    )
    from pleinair.packs.pack import Pack
    from pleinair.sampling import Sampler

    recipe, resolution = work.recipe, work.recipe.sampling.resolution
    model, projection, identity = load_checkpoint(work.run_dir)
    require_same_latents(Pack(work.pack).manifest.latent_space, parts.autoencoder, work.pack)
    settings = recipe.evaluation
    plan = plan_pairs(pictures, settings.num_train_pairs, settings.samples_per_heldout_pair, settings.grid_concepts)
    held_out = [pair for pair in plan if pair.real.held_out and pair.seed == 0]
    torch.manual_seed(recipe.engine.seed)
    samplers = {"drawn": model, "floor": Transformer(recipe.transformer)}
    drawings: dict[str, Drawings] = {}
    for name, transformer in samplers.items():
        pairs = plan if name == "drawn" else held_out
        cached = work.run_dir / f"{name}.npz"
        stamp = config_digest([identity, recipe.sampling, [pair.prompt for pair in pairs], parts.autoencoder_sha256])
        pixels = read_drawings(cached, stamp)
        if pixels is None:
            line = ProgressLine(name)
            encoder = open_text_encoder(recipe.text_encoder)
            sampler = Sampler(transformer, parts.autoencoder, encoder, projection)
            pixels = draw_pairs(sampler, pairs, recipe.sampling, line.update).pixels_NHWC
            line.close()
            write_drawings(cached, stamp, pixels)
        drawings[name] = Drawings(pairs, pixels)

    def reconstruct(pixels_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        with torch.inference_mode():
            return to_bytes(parts.autoencoder.decode(parts.autoencoder.encode(to_signed_unit(pixels_NHWC))))

    metrics = dict(score(parts.judge, drawings["drawn"], drawings["floor"], reconstruct, resolution))
    trained = [picture for picture in pictures if not picture.held_out]
    neighbours = nearest_trained(parts.judge, drawings["drawn"], trained, resolution, settings.num_nearest)
    return Evaluated(metrics, drawings["drawn"], neighbours)
