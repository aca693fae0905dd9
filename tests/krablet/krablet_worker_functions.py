"""Functions that worker processes of the tests run."""

from __future__ import annotations

import os
import signal
import time


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
