"""From a recipe to what the engine runs: the model, its stage, the phases with their loaders, and the hooks.

transformer --(LoRA on the frozen parent)--> parallelize --> Pretrain | Finetune      phases: Repa in the first, if asked
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pleinair.cli.parents import config_of
from pleinair.cli.progress import ProgressLine
from pleinair.cli.workspace import Workspace
from pleinair.model.float8 import float8_for
from pleinair.model.parallelize import parallelize
from pleinair.model.transformer import Transformer
from pleinair.records.errors import ConfigError
from pleinair.training.engine import Hook, Phase, Stage, StepRecord
from pleinair.training.stages.pretrain import Pretrain

if TYPE_CHECKING:
    from pleinair.model.text_encoder import FeatureProjection
    from pleinair.packs.pack import Pack
    from pleinair.training.mesh import Mesh
    from pleinair.training.stages.finetune import Finetune


def stage_of(
    work: Workspace, mesh: Mesh, projection: FeatureProjection, parent: Path | None, latent_space: str
) -> Pretrain | Finetune:
    """What the recipe trains: all of a new model, which may start from `parent`, or a LoRA on it.

    `latent_space` is the pack's word for its latents.

    Seed torch before: every rank begins with the same weights.
    """
    recipe = work.recipe
    if recipe.finetune is None:
        # Of a parent that tells its sizes in other words, the same words: merging compares them.
        config = recipe.transformer if parent is None else config_of(parent)
        model = Transformer(config).to(mesh.device)
        if recipe.engine.precision == "fp8":  # the engine does it for every phase, but could not after `parallelize`
            float8_for(model, recipe.phases[0].resolution)
        spread = parallelize(model, mesh.device_mesh, recipe.parallel)
        return Pretrain(cast(Transformer, spread), projection, recipe.pretrain, latent_space)
    from pleinair.cli.adapters import adapter_stage, attach
    from pleinair.sampling.frozen_base import read_base

    assert parent is not None  # the recipe refuses to be without
    if mesh.world_size > 1:
        raise ConfigError(f"a LoRA trains in one process, not over {mesh.world_size} ranks: leave out --nproc")
    model = read_base(parent, recipe.finetune.base_bits)
    if not recipe.finetune.offload:
        model = model.to(mesh.device)
    attach(model, recipe.finetune, mesh.device, recipe.engine.seed)
    if not recipe.finetune.offload:  # which recomputes its blocks itself
        model = cast(Transformer, parallelize(model, mesh.device_mesh, recipe.parallel))
    return adapter_stage(Pretrain(model, projection, recipe.pretrain, latent_space), recipe.finetune, parent)


def phases_of(work: Workspace, pack: Pack, stage: Pretrain | Finetune, mesh: Mesh) -> list[Phase[Any]]:
    """The recipe's phases with their loaders; the first `repa_phases` share one iREPA stage, if the recipe has it."""
    from pleinair.cli.beside_pack import open_features
    from pleinair.packs.loader import LatentLoader, Prefetched
    from pleinair.packs.packed_loader import PackedLoader
    from pleinair.training.patch_features import WithPatches
    from pleinair.training.stages.repa import Repa

    recipe = work.recipe
    part = {"rank": mesh.data_rank, "num_ranks": mesh.num_data_ranks}
    repa: Repa | None = None
    if recipe.repa is not None:
        assert isinstance(stage, Pretrain)  # the recipe refuses iREPA beside a LoRA
        features = open_features(work)
        repa = Repa(stage, features.width, recipe.repa)
        repa.head.to(mesh.device)
    phases: list[Phase[Any]] = []
    for number, phase in enumerate(recipe.phases):
        settings, loader = recipe.loader_of(phase), None  # type: Any, Any
        if recipe.pack_text:
            num_parts = recipe.engine.num_micro_batches
            loader = PackedLoader(pack, phase.resolution, settings, **part, num_parts=num_parts)
        else:
            loader = LatentLoader(pack, phase.resolution, settings, **part)
        aligned: Stage[Any] | None = repa if number < recipe.repa_phases else None
        if aligned is not None:
            loader = WithPatches(loader, features, recipe.transformer.patch_size)
        name = f"{phase.resolution} px" + (", decaying" if phase.decays else "")
        phases.append(
            Phase(
                name,
                phase.num_steps,
                phase.batch_size,
                Prefetched(loader),
                stage=aligned,
                decays=phase.decays,
                resolution=phase.resolution,
            )
        )
    return phases


def hooks_of(work: Workspace, stage: Pretrain | Finetune, mesh: Mesh, more: Sequence[Hook]) -> list[Hook]:
    """What watches the run, progress on the screen last but for `more`."""
    from pleinair.cli.beside_pack import held_out_loader
    from pleinair.cli.previews import previews_of
    from pleinair.training.hooks.progress import EachStep
    from pleinair.training.hooks.rank_loads import batch_load
    from pleinair.training.hooks.throughput import training_flops
    from pleinair.training.hooks.watching import watching

    config, held_out = work.recipe.watch, held_out_loader(work, mesh)
    if held_out is not None:
        num_batches = min(config.validation.num_batches, len(held_out))
        config = replace(config, validation=replace(config.validation, num_batches=num_batches))
    watchers = watching(
        config,
        flops_of=partial(training_flops, work.recipe.transformer),
        load_of=partial(batch_load, work.recipe.transformer.patch_size),
        held_out=held_out,
        draw=previews_of(work, stage),
    )
    return [*watchers, *([EachStep(_progress())] if mesh.rank == 0 else []), *more]


def _progress() -> Any:
    lines: dict[str, ProgressLine] = {}

    def show(record: StepRecord, total: int) -> None:
        note = f"loss {record.loss:.3f}, {record.samples_per_second:.0f} pictures/s"
        lines.setdefault(record.phase, ProgressLine(f"train {record.phase}")).update(record.step + 1, total, note)

    return show
