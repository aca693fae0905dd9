"""Real ranks for tests: processes with Gloo, a free port for every mesh they open, and what each returns.

They are forked from a server that has imported torch and the package once, so that a rank costs no start of its own.
"""

from __future__ import annotations

import os
import pickle
import random
import socket
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.queues import Queue
from typing import Any

import torch
import torch.multiprocessing

# Below those that the system gives to outgoing connections: a mesh that is opened minutes later still finds its port free.
_PORTS = range(20_000, 32_000)
_IMPORTED = (
    "pleinair.checkpoint.writer",
    "pleinair.model.parallelize",
    "pleinair.training.engine",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
)
"""By the server; none of them may start a thread or run a backward pass, which a fork would not survive."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    found: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        if len(found) == count:
            break
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            found.append(port)
    return found


def forking() -> Any:
    """A context of multiprocessing whose processes have torch and the package at once."""
    context: Any = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    return context


def run_ranks(
    world_size: int,
    function: Callable[..., Any],
    num_ports: int,
    *,
    to_the_end: bool = False,
    timeout_seconds: float = 900,
) -> list[Any]:
    """`function(ports)` on every rank, with torchrun's variables set but MASTER_PORT; what each returned, by rank.

    `to_the_end` starts an interpreter for each and lets it end by itself, which takes some seconds each.
    """
    context = torch.multiprocessing.get_context("spawn") if to_the_end else forking()
    queue, ports = context.Queue(), free_ports(num_ports)
    processes = [
        context.Process(target=_rank, args=(rank, world_size, function, ports, queue, to_the_end))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    answers: dict[int, Any] = {}
    try:
        while len(answers) < world_size:
            rank, answer = pickle.loads(queue.get(timeout=timeout_seconds))
            if isinstance(answer, str):  # a traceback; the other ranks may wait for this one forever
                raise AssertionError(answer)
            answers[rank] = answer
        for process in processes:
            process.join(timeout=300)  # a busy machine takes its time to unload torch
        exit_codes = [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert exit_codes == [0] * world_size, exit_codes
    return [answers[rank] for rank in range(world_size)]


def _rank(
    rank: int, world_size: int, function: Callable[..., Any], ports: Sequence[int], queue: Queue[Any], to_the_end: bool
) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
    }
    try:
        queue.put(pickle.dumps((rank, function(ports))))  # by value: a queue would share a tensor's memory
    except BaseException:
        queue.put(pickle.dumps((rank, traceback.format_exc())))
        raise
    if not to_the_end:
        queue.close()
        queue.join_thread()
        os._exit(0)
