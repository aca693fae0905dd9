"""How long a rank may be silent: by what it does, and while it trains by how long its steps take.

    rendezvous -> loading -> compile (until the first step) -> training <-> checkpoint | evaluation   -> ending
       600 s       1800 s           1800 s                  factor x slowest     600 s | 3600 s       120 s

Time is the launcher's own, taken when it reads an event, so clocks of other machines do not matter.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass

from pleinair.records.run_events import CheckpointSaved, Entered, Event, Loaded, Rendezvous, Step

_REMEMBERED_STEPS = 64


@dataclass(frozen=True, kw_only=True)
class WatchdogConfig:
    """Patience with a silent rank, in seconds."""

    rendezvous_seconds: float = 600.0
    """From the start of the process until it has met the others; infinite for programs without a heartbeat."""
    loading_seconds: float = 1800.0
    """Reading model and checkpoint."""
    compile_seconds: float = 1800.0
    """Until the first step is done, compilation included."""
    checkpoint_seconds: float = 600.0
    """Standing still for a checkpoint."""
    evaluation_seconds: float = 3600.0
    """Drawing previews and measuring."""
    ending_seconds: float = 120.0
    """From the end of the work to the end of the process."""
    training_floor_seconds: float = 30.0
    """Least patience between heartbeats while training."""
    training_factor: float = 8.0
    """Patience in multiples of the slowest usual heartbeat, seen in this attempt."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} is {value}: give a positive number")

    def of_phase(self, phase: str) -> float:
        """Patience with a phase whose length is not measured."""
        return float(getattr(self, f"{phase}_seconds"))


@dataclass(frozen=True, kw_only=True)
class Silence:
    """A rank that was silent for too long."""

    rank: int
    phase: str
    seconds: float
    allowed_seconds: float


class Watchdog:
    """Told of every event, it knows which rank has been silent for too long."""

    def __init__(self, config: WatchdogConfig, num_ranks: int, now: float) -> None:
        self._config = config
        self._heard = dict.fromkeys(range(num_ranks), now)
        self._phase: dict[int, str] = dict.fromkeys(range(num_ranks), "rendezvous")
        self._stepped: dict[int, float] = {}
        self._between: deque[float] = deque(maxlen=_REMEMBERED_STEPS)
        self._ended: set[int] = set()

    def hear(self, event: Event, now: float) -> None:
        """Take note of a rank's event."""
        rank = event.rank
        if rank not in self._heard:
            return
        self._heard[rank] = now
        match event:
            case Entered():
                self._phase[rank] = event.phase
                self._stepped.pop(rank, None)
            case Rendezvous():
                self._phase[rank] = "loading"
            case Loaded():
                self._phase[rank] = "compile"
            case Step():
                self._phase[rank] = "training"
                if rank in self._stepped:
                    self._between.append(now - self._stepped[rank])
                self._stepped[rank] = now
            case CheckpointSaved():
                self._stepped.pop(rank, None)  # the stall is no step

    def ended(self, rank: int) -> None:
        """A rank is through; it need not speak any more."""
        self._ended.add(rank)

    def allowed_seconds(self) -> float:
        """Patience now, with any rank: while one draws previews the others wait for it in silence."""
        return max((self._allowed(rank) for rank in self._heard if rank not in self._ended), default=float("inf"))

    def _allowed(self, rank: int) -> float:
        phase = self._phase[rank]
        if phase != "training":
            return self._config.of_phase(phase)
        return max(self._config.training_floor_seconds, self._config.training_factor * self.usual_seconds())

    def usual_seconds(self) -> float:
        """The slowest heartbeat that is usual: the 95th percentile of the last ones; 0 before there are any."""
        if len(self._between) < 2:
            return max(self._between, default=0.0)
        return statistics.quantiles(self._between, n=20, method="inclusive")[-1]

    def overdue(self, now: float) -> Silence | None:
        """The rank that is silent the longest beyond its patience, if any is."""
        allowed = self.allowed_seconds()
        late = [
            Silence(rank=rank, phase=self._phase[rank], seconds=now - heard, allowed_seconds=allowed)
            for rank, heard in self._heard.items()
            if rank not in self._ended and now - heard > allowed
        ]
        return max(late, key=lambda silence: silence.seconds, default=None)
