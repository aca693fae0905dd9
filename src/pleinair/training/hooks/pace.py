"""How fast a run goes: slow steps are told, and one that hangs leaves the stacks of all threads in `stalls.txt`."""

from __future__ import annotations

import faulthandler
import statistics
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

from pleinair.records.errors import ConfigError
from pleinair.training.engine import Run
from pleinair.training.records import StepRecord


@dataclass(frozen=True, kw_only=True)
class PaceConfig:
    """What is slow, and what is a stall."""

    slow_factor: float = 3.0
    """A step that takes so many medians of the last ones is told."""
    window: int = 50
    """Steps of that median; the first `window // 5` are never slow."""
    stall_seconds: float = 300.0
    """A step that is not done after so long has its stacks written down; the process goes on waiting."""

    def __post_init__(self) -> None:
        if self.slow_factor <= 1 or self.window < 5 or self.stall_seconds <= 0:
            raise ConfigError(
                f"slow_factor is {self.slow_factor}, window {self.window}, stall_seconds {self.stall_seconds}: give more "
                "than 1, at least 5, and more than 0"
            )


class Pace:
    """The hook: adds `pace/seconds`, from the end of one step to the end of the next, hooks and checkpoints included."""

    def __init__(self, config: PaceConfig) -> None:
        self.config = config
        self._recent: deque[float] = deque(maxlen=config.window)
        self._before = 0.0
        self._stalls: IO[str] | None = None

    def begin(self, run: Run[Any]) -> None:
        """Start the clock."""
        run.run_dir.mkdir(parents=True, exist_ok=True)
        name = "stalls.txt" if run.mesh.world_size == 1 else f"stalls-{run.mesh.rank}.txt"
        self._stalls = (run.run_dir / name).open("a")
        self._wind()

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        """Compare the step with the last ones and wind the clock again."""
        seconds = time.monotonic() - self._before
        if len(self._recent) >= self.config.window // 5:
            median = statistics.median(self._recent)
            if seconds > self.config.slow_factor * median:
                run.say(f"step {record.step} took {seconds:.2f} s, the ones before {median:.2f} s")
        self._recent.append(seconds)
        self._wind()
        return {"pace/seconds": seconds}

    def end(self) -> None:
        """Stop the clock."""
        faulthandler.cancel_dump_traceback_later()
        if self._stalls is not None:
            self._stalls.close()

    def _wind(self) -> None:
        self._before = time.monotonic()
        assert self._stalls is not None
        faulthandler.dump_traceback_later(self.config.stall_seconds, file=self._stalls)
