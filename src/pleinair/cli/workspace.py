"""One run's place on disk: its recipe, its directory, who works there, and how long each step took."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pleinair.recipes import Recipe


@dataclass(frozen=True)
class Workspace:
    """Everything a step of a run needs to know."""

    recipe: Recipe
    run_dir: Path
    home: Path
    cache: Path
    dsn: str | None = field(repr=False)
    processes: int
    from_scratch: bool
    overrides: tuple[str, ...]

    @property
    def store(self) -> Path:
        """The object store."""
        return self.home / "store"

    @property
    def pack(self) -> Path:
        """The run's pack, or the one made elsewhere that its recipe names."""
        return self.run_dir / "pack" if self.recipe.pack is None else Path(self.recipe.pack).resolve()

    @property
    def held_out(self) -> Path:
        """A pack of the pairs that are never trained on, beside the pack."""
        return self.pack.with_name(f"{self.pack.name}-held-out")

    @property
    def patch_features(self) -> Path:
        """What iREPA aligns to, beside the pack."""
        return self.pack.with_name(f"{self.pack.name}-patch-features")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Options of every verb that works on a recipe's run."""
    from pleinair.cli.curate import add_warehouse_options

    parser.add_argument(
        "recipe",
        help="demo, drawings-64, progressive, drawings-midtrain, drawings-sft-solid or -line, drawings-lora, k2-lora",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. engine.seed=1 (repeatable)"
    )
    parser.add_argument(
        "--parent",
        metavar="CHECKPOINT",
        help="start from it: a checkpoint, a run, weights in any layout, a packaged or a shipped model (drawings-64)",
    )
    parser.add_argument(
        "--text-encoder",
        metavar="FOLDER",
        help="pack the features of this model as they are (Qwen3-VL's for K2), not SmolLM2's; a pipeline's folder will do",
    )
    parser.add_argument(
        "--autoencoder",
        metavar="FOLDER",
        help="pack the latents of this one (Qwen-Image's, FLUX.2's), not of ours; a pipeline's folder will do",
    )
    parser.add_argument("--with-optimiser", action="store_true", help="go on with the parent's moments too")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="folder of run directories (default: %(default)s)"
    )
    parser.add_argument("--processes", type=int, default=2, help="curation workers (default: %(default)s)")
    parser.add_argument(
        "--from-scratch", action="store_true", help="train autoencoder and judge too, instead of the shipped ones"
    )
    add_warehouse_options(parser)


def open_workspace(options: argparse.Namespace) -> Workspace:
    """The workspace the options name; its directory is made. Raises ConfigError for an unknown recipe or key."""
    from pleinair.cli.places import cache_dir
    from pleinair.config import override
    from pleinair.recipes import find_recipe

    overrides = [*options.set, *_places_told(options)]
    recipe = override(find_recipe(options.recipe), overrides)
    run_dir: Path = options.runs / recipe.name
    run_dir.mkdir(parents=True, exist_ok=True)
    return Workspace(
        recipe=recipe,
        run_dir=run_dir.resolve(),
        home=options.home.resolve(),
        cache=cache_dir(),
        dsn=options.dsn,
        processes=options.processes,
        from_scratch=options.from_scratch,
        overrides=tuple(overrides),
    )


def _places_told(options: argparse.Namespace) -> list[str]:
    """Some options as the overrides that they are, so that ranks and `config.json` know of them."""
    told = []
    for name in ("parent", "text_encoder", "autoencoder"):
        if (value := getattr(options, name)) is not None:
            place = Path(value)
            told.append(f"{name}={str(place.resolve() if place.exists() else place)!r}")
    return told + (["with_optimiser=True"] if options.with_optimiser else [])


class StepClock:
    """Wall seconds per step, added up over interrupted tries, in `timings.json`."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "timings.json"
        self.seconds: dict[str, float] = json.loads(self.path.read_text()) if self.path.exists() else {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time the body, also when it is interrupted."""
        began, before = time.monotonic(), self.seconds.get(name, 0.0)
        try:
            yield
        finally:
            self.seconds[name] = before + time.monotonic() - began
            staging = self.path.with_suffix(".partial")
            staging.write_text(json.dumps(self.seconds, indent=2) + "\n")
            os.replace(staging, self.path)
