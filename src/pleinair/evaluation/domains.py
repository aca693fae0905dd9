"""Checkpoints by domains: the held-out error of each model on each domain's own pictures.

    held-out packs, one per domain  x  checkpoints (parent, specialists, generalist)  ->  DomainMatrix -> page, JSON

Every picture is seen at every timestep of a grid with the same noise by every checkpoint, so differences are paired: what
is compared with the first checkpoint is each picture with itself. The interval is over pictures; it says nothing of what
another training run would give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pleinair.model.text_encoder import FeatureProjection
from pleinair.model.transformer import Transformer
from pleinair.packs.loader import LatentLoader
from pleinair.packs.pack import Pack
from pleinair.packs.plan import LoaderConfig
from pleinair.pages import Section, element, page, table
from pleinair.records.errors import ConfigError
from pleinair.training.hooks.validation import ValidationConfig, evaluating
from pleinair.training.random import RowRandom
from pleinair.training.stages.pretrain import Pretrain, PretrainConfig

BATCH = 64
NORMAL_95 = 1.96
Errors = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DomainCell:
    """One checkpoint on one domain."""

    loss: float
    """Mean held-out error over pictures and timesteps."""
    change: float
    """Less that of the first checkpoint; below 0 is better."""
    half_width: float
    """Of the 95% interval of the change, over pictures."""
    num_pictures: int
    accuracies: Mapping[str, float]
    """What a judge names right of pictures drawn for the domain's prompts; empty where none were drawn."""


@dataclass(frozen=True, kw_only=True)
class DomainMatrix:
    """All checkpoints on all domains."""

    checkpoints: tuple[str, ...]
    domains: tuple[str, ...]
    cells: Mapping[str, Mapping[str, DomainCell]]
    """By domain, then by checkpoint."""


@torch.inference_mode()
def held_out_errors(
    model: Transformer, projection: FeatureProjection, pack: Pack, grid: ValidationConfig | None = None
) -> Errors:
    """(pictures,) error of each row of a held-out pack, mean over the grid's timesteps; the same on every call."""
    grid = grid or ValidationConfig()
    stage = Pretrain(model, projection, PretrainConfig())
    (resolution,) = pack.manifest.resolutions
    config = LoaderConfig(batch_size=min(BATCH, pack.manifest.num_rows), drop_caption=0.0, remainder="short")
    loader = LatentLoader(pack, resolution, config)
    errors = []
    with evaluating(model):
        for number in range(len(loader)):
            batch, count = loader.batch(number), len(loader.keys(number))
            of_batch = [
                stage.velocity_errors(batch, torch.full((count,), timestep), RowRandom(grid.seed, number, range(count)))
                for timestep in grid.timesteps
            ]
            errors.append(torch.stack(of_batch).mean(0).double().numpy())
    return np.concatenate(errors)


def compare(
    errors: Mapping[str, Mapping[str, Errors]],
    accuracies: Callable[[str, str], Mapping[str, float]] = lambda domain, checkpoint: {},
) -> DomainMatrix:
    """The matrix of errors by domain and checkpoint, the first checkpoint being what others are compared with."""
    if not errors or not all(errors.values()):
        raise ConfigError("a matrix needs a domain and a checkpoint: give at least one of each")
    cells: dict[str, dict[str, DomainCell]] = {}
    for domain, by_checkpoint in errors.items():
        first = next(iter(by_checkpoint.values()))
        cells[domain] = {name: _cell(of, first, accuracies(domain, name)) for name, of in by_checkpoint.items()}
    return DomainMatrix(checkpoints=tuple(next(iter(cells.values()))), domains=tuple(cells), cells=cells)


def _cell(errors_N: Errors, first_N: Errors, accuracies: Mapping[str, float]) -> DomainCell:
    changes_N = errors_N - first_N
    deviation = float(changes_N.std(ddof=1)) if len(changes_N) > 1 else math.nan
    return DomainCell(
        loss=float(errors_N.mean()),
        change=float(changes_N.mean()),
        half_width=NORMAL_95 * deviation / math.sqrt(len(changes_N)),
        num_pictures=len(errors_N),
        accuracies=accuracies,
    )


def domain_page(matrix: DomainMatrix, told: Mapping[str, Any]) -> str:
    """A self-contained page: one table of losses, and one of the judge's accuracies where there are any."""
    opening = element(
        "p",
        f"Held-out error of {len(matrix.checkpoints)} checkpoints on {len(matrix.domains)} domains, and in brackets the "
        f"change against {matrix.checkpoints[0]} with its 95% interval over pictures. Lower is better.",
    )
    sections = [Section(heading="Held-out error", body=_losses(matrix))]
    kinds = list(next(iter(next(iter(matrix.cells.values())).values())).accuracies)
    sections += [Section(heading=f"Judge: {kind.replace('_', ' ')}", body=_accuracies(matrix, kind)) for kind in kinds]
    footer = ", ".join(f"{name}: {value}" for name, value in told.items())
    return page("Checkpoints by domain", opening, sections, footer=footer)


def _losses(matrix: DomainMatrix) -> Any:
    rows: list[Sequence[str]] = []
    for domain in matrix.domains:
        cells = [matrix.cells[domain][name] for name in matrix.checkpoints]
        shown = [
            f"{cell.loss:.4f}" + (f" ({cell.change:+.4f} \u00b1 {cell.half_width:.4f})" if place else "")
            for place, cell in enumerate(cells)
        ]
        rows.append([f"{domain} ({cells[0].num_pictures} pictures)", *shown])
    return table(["domain", *matrix.checkpoints], rows)


def _accuracies(matrix: DomainMatrix, kind: str) -> Any:
    rows = [
        [domain, *(f"{matrix.cells[domain][name].accuracies[kind]:.1%}" for name in matrix.checkpoints)]
        for domain in matrix.domains
    ]
    return table(["domain", *matrix.checkpoints], rows)
