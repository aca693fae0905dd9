"""Whether to start again: unchanged at first, never for ever.

    a rank asked not to be            -> stop
    3 attempts without progress       -> stop   (a checkpoint further than any before is progress)
    restarts used up                  -> stop   (they refill with `refill_steps` of progress)
    otherwise                         -> restart unchanged; the second failure of one rank makes it a suspect

Most failures of large runs go away by themselves (a run that had crashed for two hours ran 16 h unchanged, says the
Krea 2 report), so the first answer is to try again; what the rule must prevent is a crash loop overnight.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pleinair.records.run_events import Decided


@dataclass(frozen=True, kw_only=True)
class RestartConfig:
    """When to stop trying."""

    max_restarts: int = 10
    """Restarts before progress must have been made."""
    refill_steps: int = 100
    """Durable steps that give all restarts back."""
    max_without_progress: int = 3
    """Attempts in a row without a new durable step that stop the run."""
    first_pause_seconds: float = 1.0
    """Pause before a restart when the attempt made no progress; doubles each time, up to a minute."""

    def __post_init__(self) -> None:
        for name in ("refill_steps", "max_without_progress"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give at least 1")
        for name in ("max_restarts", "first_pause_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it cannot be negative")


class Restarts:
    """Remembers the failures of one launch and decides after each."""

    def __init__(self, config: RestartConfig, durable_step: int) -> None:
        """`durable_step`: of the newest checkpoint when the launch began."""
        self._config = config
        self._durable = self._refilled_at = durable_step
        self._left = config.max_restarts
        self._without_progress = 0
        self._failures: Counter[int] = Counter()

    def decide(self, ranks: tuple[int, ...], durable_step: int, *, give_up: bool = False) -> Decided:
        """What to do after a failure of these ranks, with the newest checkpoint at `durable_step`."""
        self._failures.update(ranks)
        self._note_progress(durable_step)
        suspects = tuple(sorted(rank for rank, times in self._failures.items() if times >= 2))
        reason = self._why_stop(give_up)
        if reason is not None:
            return Decided(action="stop", reason=reason, suspects=suspects)
        self._left -= 1
        what = "restart unchanged from the last checkpoint"
        if suspects:
            what += f"; rank {', '.join(map(str, suspects))} failed more than once: look at its machine"
        return Decided(action="restart", reason=f"{what} ({self._left} restarts left)", suspects=suspects)

    def pause_seconds(self) -> float:
        """How long to wait before the restart that was decided."""
        if not self._without_progress:
            return 0.0
        return min(60.0, self._config.first_pause_seconds * 2.0 ** (self._without_progress - 1))

    def _note_progress(self, durable_step: int) -> None:
        self._without_progress = 0 if durable_step > self._durable else self._without_progress + 1
        self._durable = max(self._durable, durable_step)
        if self._durable - self._refilled_at >= self._config.refill_steps:
            self._left, self._refilled_at = self._config.max_restarts, self._durable

    def _why_stop(self, give_up: bool) -> str | None:
        if give_up:
            return "a rank asked not to be started again: see its message in the log"
        if self._without_progress >= self._config.max_without_progress and self._config.max_restarts:
            return (
                f"{self._without_progress} attempts in a row made no progress beyond step {self._durable}: "
                "find the cause in the logs, then give the same command"
            )
        if self._left <= 0:
            return (
                f"no restart is left of {self._config.max_restarts}: find the cause in the logs, "
                "then give the same command, or a larger --max-restarts"
            )
        return None
