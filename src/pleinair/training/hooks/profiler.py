"""A torch.profiler trace of some steps, for chrome://tracing or Perfetto."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pleinair.records.errors import ConfigError
from pleinair.training.engine import Run
from pleinair.training.records import StepRecord


class Profile:
    """Traces steps `first` to `last`, both included, into `run_dir/trace-<first>-<last>[-rank].json`."""

    def __init__(self, first: int, last: int) -> None:
        if not 0 <= first <= last:
            raise ConfigError(f"steps {first} to {last} cannot be traced: give a first one that is not after the last")
        self.first, self.last = first, last
        self._profiler: torch.profiler.profile | None = None

    def begin(self, run: Run[Any]) -> None:
        """Start at once if the run begins with the first step."""
        self._start_before(run.step)

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        """Write the trace after the last step, or start it before the first."""
        if record.step == self.last and self._profiler is not None:
            self._profiler.stop()
            rank = "" if run.mesh.world_size == 1 else f"-{run.mesh.rank}"
            place = run.run_dir / f"trace-{self.first}-{self.last}{rank}.json"
            self._profiler.export_chrome_trace(str(place))
            self._profiler = None
            run.say(f"steps {self.first} to {self.last} are traced in {place}")
        self._start_before(record.step + 1)
        return {}

    def end(self) -> None:
        """Give up a trace that is under way."""
        if self._profiler is not None:
            self._profiler.stop()

    def _start_before(self, step: int) -> None:
        if step == self.first:
            self._profiler = torch.profiler.profile()
            self._profiler.start()
