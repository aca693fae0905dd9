"""Inside a rank: what lets the launcher ask it where it is.

    launcher                              rank (any thread state)
    --------                              -----------------------
    SIGUSR1           ------------------> faulthandler writes rank-N.stacks (in C: also when Python is stuck)
    attempt dir/asked ------------------> a thread of ours writes rank-N.answer.json: how far each process group is
    an exception ends the rank ---------> `failed` in events.jsonl, before the process is gone

A rank that is stopped or holds the interpreter's lock answers one or none of the two; that is an answer as well.
The flight recorder of torch (TORCH_FR_BUFFER_SIZE) records gloo and NCCL alike. torch is looked up, never imported.
"""

from __future__ import annotations

import atexit
import faulthandler
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

from pleinair.records.run_events import EVENTS, Heartbeat, RankFailed

ATTEMPT_DIR = "PLEINAIR_ATTEMPT_DIR"
"""Environment variable: the folder of the attempt's logs; the launcher sets it."""
INIT_TIMEOUT = "PLEINAIR_INIT_TIMEOUT_SECONDS"
COLLECTIVE_TIMEOUT = "PLEINAIR_COLLECTIVE_TIMEOUT_SECONDS"
HEARTBEAT_EVERY = "PLEINAIR_HEARTBEAT_SECONDS"
ASKED = "asked"
GIVE_UP = 93
"""Exit code of a rank that must not be started again: the cause would be the same (as in NVIDIA's ft_launcher)."""
_LOOK_SECONDS = 0.2


def arm(run_dir: Path, rank: int) -> Heartbeat:
    """Make this process one that can be asked; returns its heartbeat. Call it once, early, in the main thread.

    Works without a launcher too: stacks and answers then go to `RUN/logs`.
    """
    directory = Path(os.environ.get(ATTEMPT_DIR, run_dir / "logs"))
    directory.mkdir(parents=True, exist_ok=True)
    stacks = (directory / f"rank-{rank}.stacks").open("w")
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    heartbeat = Heartbeat(run_dir / EVENTS, rank, every_seconds=float(os.environ.get(HEARTBEAT_EVERY, "1")))
    _tell_exceptions(heartbeat, rank)
    threading.Thread(target=_answer_when_asked, args=(directory, rank), name="pleinair-answers", daemon=True).start()
    atexit.register(heartbeat.close)
    heartbeat.entered("rendezvous")
    return heartbeat


def timeouts() -> tuple[float, float]:
    """Seconds to wait for all ranks to meet, and for one collective, as the launcher was told.

    They are two: a group that is started anew on a busy machine needs minutes to form, and a collective that takes
    minutes is a hang.
    """
    return float(os.environ.get(INIT_TIMEOUT, "600")), float(os.environ.get(COLLECTIVE_TIMEOUT, "600"))


def _tell_exceptions(heartbeat: Heartbeat, rank: int) -> None:
    shown = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            heartbeat.flush()
            said = traceback.format_exception_only(kind, error)[-1].strip()
            heartbeat.tell(RankFailed(rank=rank, error=said[:500]))
        shown(kind, error, trace)

    sys.excepthook = hook


def _answer_when_asked(directory: Path, rank: int) -> None:
    while not (directory / ASKED).exists():
        time.sleep(_LOOK_SECONDS)
    staging = directory / f".rank-{rank}.answer.partial"
    staging.write_text(json.dumps({"rank": rank, "groups": flight_groups()}))
    os.replace(staging, directory / f"rank-{rank}.answer.json")


def flight_groups() -> dict[str, dict[str, Any]]:
    """How far this rank is in every process group: its members, operations begun and ended, and the last one's name."""
    distributed = sys.modules.get("torch.distributed")
    bindings = sys.modules.get("torch._C._distributed_c10d")
    if distributed is None or bindings is None or not distributed.is_initialized():
        return {}
    trace = json.loads(bindings._dump_fr_trace_json())
    names = {str(entry["pg_id"]): entry["process_group"][0] for entry in trace["entries"]}
    last = {str(entry["pg_id"]): entry["profiling_name"] for entry in trace["entries"]}
    members = _members()
    return {
        names[number]: {
            "members": members.get(names[number], []),
            "begun": int(status["last_enqueued_collective"]),
            "ended": int(status["last_completed_collective"]),
            "last": last[number],
        }
        for number, status in trace["pg_status"].items()
        if number in names
    }


def _members() -> dict[str, list[int]]:
    """The global ranks of every process group this rank knows, by the group's name."""
    world = sys.modules["torch.distributed.distributed_c10d"]._world
    return {name: sorted(world.pg_group_ranks[group]) for group, name in world.pg_names.items()}
