"""What part of the time a run of 128 to 16,384 GPUs would train: discrete events from failure to failure.

    repair: detect decide start load warm-up -> [ T training | C stall ] [ T | C ] ... failure -> repair ...
                 ^ may fail, too                        '--- write ---> durable      ^ what is not durable is lost

Assumptions, each a field: nodes fail independently at one rate; a share of lemon nodes fails more often, and may be
avoided after some failures; the fabric adds failures that grow faster than the number of nodes. Nothing here was
measured on such a cluster: the rates are other people's (docs/runs.md names them) and the repair is what one sets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from pleinair.cluster.intervals import DAY_SECONDS, young_interval

BUCKETS = ("productive", "stall", "slowdown", "lost", "detect", "decide", "start", "load", "warm-up")


@dataclass(frozen=True, kw_only=True)
class RepairTimes:
    """Seconds of every part of a repair."""

    detect: float = 30.0
    decide: float = 5.0
    start: float = 60.0
    load: float = 60.0
    warm_up: float = 120.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise ValueError(f"{name} is {value}: seconds cannot be negative")

    @property
    def parts(self) -> tuple[tuple[str, float], ...]:
        """In the order in which they happen."""
        return (
            ("detect", self.detect),
            ("decide", self.decide),
            ("start", self.start),
            ("load", self.load),
            ("warm-up", self.warm_up),
        )

    @property
    def seconds(self) -> float:
        """Of all parts."""
        return math.fsum(spent for _, spent in self.parts)


@dataclass(frozen=True, kw_only=True)
class SimulatedRun:
    """A run on an imagined cluster."""

    num_gpus: int
    gpus_per_node: int = 8
    per_1000_node_days: float = 6.5
    """Failures of nodes; 6.5 and 2.34 were measured on Meta's two research clusters, 3.79 in Llama 3's training."""
    fabric_per_day: float = 0.0
    """Failures a day that the fabric adds at `fabric_nodes` nodes; an assumption."""
    fabric_nodes: int = 128
    fabric_exponent: float = 2.0
    """How these grow with the number of nodes; an assumption."""
    lemon_share: float = 0.0
    """Share of nodes that fail far more often, such as 3 of 63."""
    lemon_failures: float = 0.5
    """Share of the nodes' failures that happen on those."""
    avoid_after: int | None = None
    """Failures after which a node is replaced by a good one; None for never."""
    interval_seconds: float | None = None
    """Training between two checkpoints; None for Young's interval."""
    stall_seconds: float = 0.3
    """Training stands still for a checkpoint."""
    write_seconds: float = 30.0
    """From the beginning of the stall until the checkpoint is durable."""
    slowdown_seconds: float = 1.0
    """Training time lost to slower steps during one write."""
    repair: RepairTimes = field(default_factory=RepairTimes)
    days: float = 54.0
    """Length of the run."""

    def __post_init__(self) -> None:
        if self.num_gpus < 1:
            raise ValueError(f"num_gpus is {self.num_gpus}: a run has at least one")
        if not 0 <= self.lemon_share < 1 or not 0 <= self.lemon_failures <= 1:
            raise ValueError(f"lemon_share is {self.lemon_share}, lemon_failures {self.lemon_failures}: give shares")
        if self.interval <= max(self.slowdown_seconds, self.write_seconds - self.stall_seconds):
            raise ValueError(
                f"interval_seconds is {self.interval:.0f}: a checkpoint must be durable before the next one begins, "
                f"so give more than {max(self.slowdown_seconds, self.write_seconds - self.stall_seconds):g}"
            )

    @property
    def num_nodes(self) -> int:
        """Whole nodes."""
        return math.ceil(self.num_gpus / self.gpus_per_node)

    @property
    def num_lemons(self) -> int:
        """Nodes that fail far more often."""
        return round(self.lemon_share * self.num_nodes)

    @property
    def node_rate(self) -> float:
        """Failures a second of all nodes together, at the beginning."""
        return self.num_nodes * self.per_1000_node_days / 1000.0 / DAY_SECONDS

    @property
    def fabric_rate(self) -> float:
        """Failures a second of the fabric."""
        return self.fabric_per_day * math.pow(self.num_nodes / self.fabric_nodes, self.fabric_exponent) / DAY_SECONDS

    @property
    def mean_between_failures(self) -> float:
        """Seconds, at the beginning."""
        return 1.0 / (self.node_rate + self.fabric_rate)

    @property
    def interval(self) -> float:
        """Training seconds between two checkpoints, at least so many that writes do not overlap."""
        if self.interval_seconds is not None:
            return self.interval_seconds
        best = young_interval(self.mean_between_failures, self.stall_seconds + self.slowdown_seconds)
        return max(best, 1.01 * (self.write_seconds - self.stall_seconds), 1.01 * self.slowdown_seconds, 1e-3)


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What became of a simulated run."""

    wall_seconds: float
    seconds: dict[str, float]
    """By bucket; they sum to `wall_seconds`."""
    failures: int
    avoided_nodes: int

    @property
    def goodput(self) -> float:
        """Productive over wall time."""
        return self.seconds["productive"] / self.wall_seconds

    @property
    def mean_between_failures(self) -> float:
        """Wall seconds per failure."""
        return self.wall_seconds / self.failures if self.failures else math.inf


class _Nodes:
    """Which node fails next, and which have been replaced."""

    def __init__(self, run: SimulatedRun, random: np.random.Generator) -> None:
        self._run, self._random = run, random
        lemons, healthy = run.num_lemons, run.num_nodes - run.num_lemons
        share = run.lemon_failures if lemons else 0.0
        self._healthy_rate = run.node_rate * (1.0 - share)
        self._lemon_rate = run.node_rate * share / lemons if lemons else 0.0
        self._good_rate = self._healthy_rate / max(1, healthy)
        self._lemons_left, self._replaced = lemons, 0
        self._failed: dict[int, int] = {}
        self.avoided = 0

    def rate(self) -> float:
        """Failures a second, of nodes and fabric together."""
        lemons = self._lemons_left * self._lemon_rate + self._replaced * self._good_rate
        return self._healthy_rate + lemons + self._run.fabric_rate

    def fail(self) -> None:
        """Something fails: when it is a lemon, often enough, it is replaced."""
        if self._random.random() * self.rate() >= self._lemons_left * self._lemon_rate or not self._lemons_left:
            return
        at_work = [node for node in range(self._run.num_lemons) if self._failed.get(node, 0) >= 0]
        node = at_work[int(self._random.integers(len(at_work)))]
        self._failed[node] = self._failed.get(node, 0) + 1
        if self._run.avoid_after is not None and self._failed[node] >= self._run.avoid_after:
            self._failed[node] = -1
            self._lemons_left -= 1
            self._replaced += 1
            self.avoided += 1


def simulate(run: SimulatedRun, seed: int = 0) -> Simulated:
    """Live through one run. The same seed meets the same luck."""
    random = np.random.default_rng(seed)
    nodes = _Nodes(run, random)
    spent: dict[str, list[float]] = {bucket: [] for bucket in BUCKETS}
    left, failures = run.days * DAY_SECONDS, 0
    repairing = False  # the first start is not counted as a repair
    while left > 0:
        until_failure = random.exponential(1.0 / nodes.rate())
        life = min(until_failure, left)
        left = left - life if until_failure < left else 0.0
        used = _repair(run, life, spent) if repairing else 0.0
        _train(run, life - used, failed=left > 0, spent=spent)
        if left > 0:
            failures += 1
            nodes.fail()
            repairing = True
    return Simulated(
        wall_seconds=run.days * DAY_SECONDS,
        seconds={bucket: math.fsum(parts) for bucket, parts in spent.items()},
        failures=failures,
        avoided_nodes=nodes.avoided,
    )


def _repair(run: SimulatedRun, life: float, spent: dict[str, list[float]]) -> float:
    """Parts of a repair until it is done or fails as well; seconds used."""
    used = 0.0
    for part, seconds in run.repair.parts:
        now = min(seconds, life - used)
        spent[part].append(now)
        used += now
    return used


def _train(run: SimulatedRun, life: float, *, failed: bool, spent: dict[str, list[float]]) -> None:
    """Training for so long; when it ends by a failure, what was not durable is lost."""
    cycle = run.interval + run.stall_seconds
    kept, stall = life, 0.0
    if failed:
        first_durable = run.interval + max(run.stall_seconds, run.write_seconds)
        saved = math.floor((life - first_durable) / cycle) + 1 if life >= first_durable else 0
        kept = saved * cycle
    else:
        saved = math.floor(life / cycle)
        stall = max(0.0, life - saved * cycle - run.interval)  # of the checkpoint that is being taken
    stall += saved * run.stall_seconds
    slowdown = saved * run.slowdown_seconds
    for bucket, seconds in (("lost", life - kept), ("stall", stall), ("slowdown", slowdown)):
        spent[bucket].append(seconds)
    spent["productive"].append(kept - stall - slowdown)


def mean_goodput(run: SimulatedRun, num_runs: int = 8) -> float:
    """Mean over several lucks."""
    return math.fsum(simulate(run, seed).goodput for seed in range(num_runs)) / num_runs


def no_failure_probability(run: SimulatedRun, hours: float) -> float:
    """Chance that a run of so many hours meets no failure."""
    return math.exp(-hours * 3600.0 / run.mean_between_failures)
