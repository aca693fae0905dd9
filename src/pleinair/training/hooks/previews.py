"""Pictures of fixed prompts while training: the drawing itself is a callable, as training knows no text encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pleinair.records.errors import ConfigError
from pleinair.training.engine import Run
from pleinair.training.hooks.validation import evaluating
from pleinair.training.records import StepRecord

Draw = Callable[[Path], None]
"""Draws with the model as it is now and writes one picture file."""


class Previews:
    """Calls `draw(run_dir/previews/step-XXXXXXXX.png)` every so many steps, on rank 0, with the model evaluating."""

    def __init__(self, draw: Draw, every: int) -> None:
        if every < 1:
            raise ConfigError(f"every is {every}: give a number of steps")
        self.draw, self.every = draw, every

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        """Draw when due."""
        if (record.step + 1) % self.every == 0 and run.mesh.rank == 0:
            place = run.run_dir / "previews" / f"step-{record.step + 1:08d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            with evaluating(run.stage.model):
                self.draw(place)
        return {}
