"""Pictures of fixed prompts while training: the drawing itself is a callable, as training knows no text encoder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from pleinair.pages.picture import Pixels, encode_png
from pleinair.records.errors import ConfigError
from pleinair.training.engine import Run
from pleinair.training.hooks.validation import evaluating
from pleinair.training.records import StepRecord

Draw = Callable[[], Pixels]
"""One sheet (H, W, 3) drawn with the model as it is now."""


class Previews:
    """Writes `run_dir/previews/step-XXXXXXXX.png` every so many steps, with the model evaluating.

    Every rank draws, as the weights may be spread over all of them; rank 0 writes, by rename.
    """

    def __init__(self, draw: Draw, every: int) -> None:
        if every < 1:
            raise ConfigError(f"every is {every}: give a number of steps")
        self.draw, self.every = draw, every

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        """Draw when due."""
        if (record.step + 1) % self.every:
            return {}
        with evaluating(run.stage.model):
            sheet_HWC = self.draw()
        if run.mesh.rank == 0:
            place = run.run_dir / "previews" / f"step-{record.step + 1:08d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            staging = place.with_name(f".{place.name}.partial")
            staging.write_bytes(encode_png(sheet_HWC))
            os.replace(staging, place)
        return {}
