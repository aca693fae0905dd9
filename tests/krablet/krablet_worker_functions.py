"""Functions that worker processes of the tests run."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path


def has_odd_number(rows, sleep_seconds=0.0):
    time.sleep(sleep_seconds * len(rows))
    return [{"contains_text": int(row["image_name"][-5:]) % 2 == 1} for row in rows]


def name_length(rows):
    return [{"length": len(row["image_name"])} for row in rows]


def kill_the_worker_on(rows, poison):
    if any(row["image_name"] == poison for row in rows):
        os.kill(os.getpid(), signal.SIGSEGV)
    return has_odd_number(rows)


def refuse(rows, poison):
    if any(row["image_name"] == poison for row in rows):
        raise ValueError(f"cannot read {poison}")
    return has_odd_number(rows)


async def has_odd_number_later(rows, sleep_seconds=0.0):
    await asyncio.sleep(sleep_seconds * len(rows))
    return has_odd_number(rows)


def crash_or_swallow_memory_on(rows, crash, swallow, most_mb=4000):
    time.sleep(0.1)
    hoard = []
    while any(row["image_name"] == swallow for row in rows) and len(hoard) < most_mb // 10:
        hoard.append(b"x" * 10_000_000)
        time.sleep(0.002)
    return kill_the_worker_on(rows, crash)


class Leaky:
    """Keeps 20 MB of every batch it has seen."""

    def __init__(self):
        self.kept = []

    def __call__(self, rows):
        self.kept.append(b"x" * 20_000_000)
        return has_odd_number(rows)


class NeedsWeights:
    def __init__(self, path):
        Path(path).read_bytes()

    def __call__(self, rows):
        return has_odd_number(rows)


def number_each(rows, sleep_seconds=0.0):
    time.sleep(sleep_seconds * len(rows))
    return [{"length": random.getrandbits(60)} for _ in rows]


def number_by_the_clock(rows, sleep_seconds=0.0):
    """Results that say when this process believes it is: seconds, and six digits of chance."""
    time.sleep(sleep_seconds * len(rows))
    return [{"length": int(time.time()) * 1_000_000 + random.randrange(1_000_000)} for _ in rows]
