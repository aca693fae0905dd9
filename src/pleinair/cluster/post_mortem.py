"""What happened to a run, on one screen for a person, and the same as JSON.

run, attempt k of n .......... which rank first, of what ....... the last collective and who did not arrive
what was lost ................ what the repairs cost ........... what the launcher did, and where to look
"""

from __future__ import annotations

import json
import math
import shlex
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pleinair.cluster.goodput import Goodput, as_text, format_seconds, measure_goodput
from pleinair.records.errors import ConfigError
from pleinair.records.run_events import (
    EVENTS,
    CheckpointSaved,
    Crash,
    Decided,
    Event,
    Finished,
    Hang,
    Loaded,
    Restarted,
    Started,
    StoppedEarly,
    Straggler,
    read_events,
)

_TAIL_LINES = 6
_TAIL_BYTES = 8192
_RECORDS_BYTES = 1 << 17
"""Of the end of `steps.jsonl`: the last hundred steps or so."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One failure and what was done about it."""

    attempt: int
    at: float
    """Unix time."""
    cause: str
    """`crash` or `hang`."""
    ranks: tuple[int, ...]
    """The first to fail, or those that did not arrive."""
    told: str
    """In a sentence."""
    step: int
    collective: str = ""
    evidence: tuple[str, ...] = ()
    action: str = ""
    """`restart` or `stop`; empty when the launcher itself was ended."""
    reason: str = ""
    suspects: tuple[int, ...] = ()
    log: str = ""
    """Of the first of these ranks."""


@dataclass(frozen=True, kw_only=True)
class SavingCost:
    """What the checkpoints of a run cost it, as its lowest rank saw them."""

    num_saves: int
    stall_seconds: float
    """Median wait of training for one."""
    slowed_seconds: float | None
    """Median of what the steps beside one took longer; None where nobody compared them."""
    write_seconds: float
    """Median from the beginning of one until it was durable."""
    share: float
    """Of the time between the first and the last, stalls and slowed steps together."""


@dataclass(frozen=True, kw_only=True)
class RankLoad:
    """How evenly the last steps loaded the ranks, from `steps.jsonl`."""

    num_steps: int
    """Steps it is the mean of."""
    token_skew: float
    """Share of the ranks' tokens that the others would wait for the longest rank of each step."""
    time_skew: float
    """The same of the seconds of forward and backward."""
    padding: float
    """Share of the tokens that are none."""
    num_shapes: int
    """Shapes of tokens since the ranks began."""
    num_graphs: int
    """Graphs compiled since then."""


@dataclass(frozen=True, kw_only=True)
class PostMortem:
    """What happened to a run."""

    run: str
    command: tuple[str, ...]
    host: str
    world_size: int
    attempts: int
    state: str
    """`running`, `done`, `stopped` or `interrupted`; `running` also where the launcher was killed."""
    stopped_early: str
    """Why training ended before its last step by its own decision; empty where it did not."""
    durable_step: int
    durable_age_seconds: float
    """Since the last durable checkpoint, at the last event."""
    silent_seconds: float
    """Since the last event."""
    saving: SavingCost | None
    """None before the first checkpoint."""
    load: RankLoad | None
    """None where no step has measured it."""
    goodput: Goodput
    failures: tuple[Failure, ...]
    stragglers: tuple[str, ...]
    log_tail: tuple[str, ...]
    """Last lines of the log of the rank that failed last."""


def examine(run_dir: Path) -> PostMortem:
    """Read a run's event log. Raises ConfigError when there is none."""
    events = read_events(run_dir / EVENTS)
    if not events:
        raise ConfigError(
            f"{run_dir} has no {EVENTS}: only runs started with --supervise or --nproc keep one; "
            "give the folder of such a run, as in runs/demo"
        )
    started = [event for event in events if isinstance(event, Started)]
    saved = [event for event in events if isinstance(event, CheckpointSaved)]
    failures = tuple(_failures(run_dir, events))
    return PostMortem(
        run=str(run_dir),
        command=started[-1].command if started else (),
        host=started[-1].host if started else "",
        world_size=started[-1].world_size if started else 1,
        attempts=max((event.attempt for event in events if isinstance(event, Started | Restarted)), default=1),
        state=_state(events),
        stopped_early=next((one.reason for one in reversed(events) if isinstance(one, StoppedEarly)), ""),
        durable_step=max((event.step for event in events if isinstance(event, CheckpointSaved | Loaded)), default=0),
        durable_age_seconds=events[-1].at - (saved[-1].at if saved else events[0].at),
        silent_seconds=max(0.0, time.time() - events[-1].at),
        saving=saving_cost(saved),
        load=rank_load(run_dir / "steps.jsonl"),
        goodput=measure_goodput(events),
        failures=failures,
        stragglers=tuple(
            f"rank {event.rank} was {event.slowdown:.2f} times as slow as the others at step {event.step}"
            for event in events
            if isinstance(event, Straggler)
        ),
        log_tail=_tail(Path(failures[-1].log)) if failures and failures[-1].log else (),
    )


def saving_cost(saved: Sequence[CheckpointSaved]) -> SavingCost | None:
    """From the events of one rank, since every rank tells of every checkpoint; None without any."""
    own = [event for event in saved if event.rank == min(one.rank for one in saved)]
    if not own:
        return None
    slowed = [event.slowed_seconds for event in own if event.slowed_seconds is not None]
    lost = math.fsum([*slowed, *(event.stall_seconds for event in own)])
    span = own[-1].at - own[0].at + own[0].write_seconds
    return SavingCost(
        num_saves=len(own),
        stall_seconds=statistics.median(event.stall_seconds for event in own),
        slowed_seconds=statistics.median(slowed) if slowed else None,
        write_seconds=statistics.median(event.write_seconds for event in own),
        share=lost / span if span > 0 else 0.0,
    )


def rank_load(records: Path) -> RankLoad | None:
    """From the last records of a run; None where they tell nothing of it."""
    if not records.exists():
        return None
    with records.open("rb") as file:
        file.seek(max(0, records.stat().st_size - _RECORDS_BYTES))
        lines = file.read().split(b"\n")[:-1]  # the last may be half written
    if records.stat().st_size > _RECORDS_BYTES:
        lines = lines[1:]
    steps = [json.loads(line)["metrics"] for line in lines]
    measured = [step for step in steps if "ranks/token_skew" in step]
    if not measured:
        return None
    means = {
        name: statistics.fmean(step[f"ranks/{name}"] for step in measured)
        for name in ("token_skew", "time_skew", "padding")
    }
    last = measured[-1]
    return RankLoad(
        num_steps=len(measured),
        num_shapes=int(last["ranks/num_shapes"]),
        num_graphs=int(last["ranks/num_graphs"]),
        **means,
    )


def _state(events: Sequence[Event]) -> str:
    for event in reversed(events):
        if isinstance(event, Finished):
            return event.outcome
        if isinstance(event, Started | Restarted):
            break
    return "running"


def _failures(run_dir: Path, events: Sequence[Event]) -> Iterator[Failure]:
    attempt = 1
    for index, event in enumerate(events):
        if isinstance(event, Started | Restarted):
            attempt = event.attempt
        if isinstance(event, Crash | Hang):
            after = events[index + 1] if index + 1 < len(events) else None
            yield _failure(run_dir, attempt, event, after if isinstance(after, Decided) else None)


def _failure(run_dir: Path, attempt: int, event: Crash | Hang, decided: Decided | None) -> Failure:
    ranks: tuple[int, ...]
    if isinstance(event, Crash):
        ranks, told = (event.rank,), f"rank {event.rank} {event.cause}"
    else:
        ranks = event.missing
        who = f"rank {', '.join(map(str, ranks))} did not arrive" if ranks else "nothing tells which rank is missing"
        told = f"silent for {event.silent_seconds:.0f} s in {event.phase}: {who}"
    return Failure(
        attempt=attempt,
        at=event.at,
        cause=event.kind,
        ranks=ranks,
        told=told,
        step=event.step,
        collective=event.collective if isinstance(event, Hang) else "",
        evidence=event.evidence if isinstance(event, Hang) else (),
        action=decided.action if decided else "",
        reason=decided.reason if decided else "",
        suspects=decided.suspects if decided else (),
        log=str(run_dir / "logs" / f"attempt-{attempt:02d}" / f"rank-{event.rank}.log"),
    )


def _tail(log: Path) -> tuple[str, ...]:
    if not log.exists():
        return ()
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        return tuple(file.read().decode(errors="replace").splitlines()[-_TAIL_LINES:])


def as_screen(found: PostMortem) -> str:
    """One screen for a person."""
    return "\n".join(_lines(found))


def _lines(found: PostMortem) -> Iterator[str]:
    yield (
        f"{found.run}: {found.state} after {found.attempts} attempts, {found.world_size} ranks on {found.host}, "
        f"last event {format_seconds(found.silent_seconds)} ago"
    )
    yield f"command: {shlex.join(found.command)}"
    yield (
        f"step {found.goodput.steps}, last checkpoint at {found.durable_step}, "
        f"{format_seconds(found.durable_age_seconds)} old at the last event"
    )
    if found.stopped_early:
        yield f"ended early, by its own decision: {found.stopped_early}"
    if found.saving is not None:
        yield _told_of_saving(found.saving)
    if found.load is not None:
        yield _told_of_load(found.load)
    yield as_text(found.goodput)
    for failure in found.failures[-3:]:
        yield ""
        yield f"attempt {failure.attempt}, {failure.cause} after step {failure.step}: {failure.told}"
        if failure.collective:
            yield f"  the others waited in {failure.collective}"
        yield from (f"  {line}" for line in failure.evidence)
        yield f"  -> {failure.action or 'the launcher itself was ended'}: {failure.reason}"
        yield f"  log: {failure.log}"
    if len(found.failures) > 3:
        yield f"({len(found.failures) - 3} earlier failures: --json)"
    yield from (f"straggler: {line}" for line in found.stragglers[-3:])
    if found.log_tail:
        yield ""
        yield f"last lines of {found.failures[-1].log}:"
        yield from (f"  {line}" for line in found.log_tail)


def _told_of_saving(saving: SavingCost) -> str:
    slower = "" if saving.slowed_seconds is None else f" and {saving.slowed_seconds:.2f} s in slower steps"
    return (
        f"checkpoints: {saving.num_saves}, each {saving.stall_seconds:.2f} s of waiting{slower}, written in "
        f"{format_seconds(saving.write_seconds)}: {saving.share:.1%} of the time"
    )


def _told_of_load(load: RankLoad) -> str:
    return (
        f"ranks: {load.token_skew:.1%} of tokens and {load.time_skew:.1%} of the time of {load.num_steps} steps waited for the "
        f"longest rank, {load.padding:.1%} padding, {load.num_shapes} shapes of tokens, {load.num_graphs} graphs compiled"
    )


def as_json(found: PostMortem) -> str:
    """The same for machines; times are Unix seconds."""
    document: dict[str, Any] = asdict(found)
    goodput = found.goodput
    document["goodput"] |= {
        "share": goodput.share,
        "mtbf_seconds": goodput.mtbf_seconds if goodput.repairs else None,
        "mttr_seconds": goodput.mttr_seconds(),
    }
    return json.dumps(document, indent=1)
