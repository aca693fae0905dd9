"""`python -m benchmarks.training damage`: which damage to a checkpoint is found before it is loaded.

A checkpoint of two files is copied, one file is damaged at a random place, and it is verified; beside it stands what
safetensors' own load of that file finds. Each kind is planted as often.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from benchmarks.aims import Aim
from benchmarks.krablet.rounds import Result, result
from benchmarks.training.checkpoints import NAME, scratch
from pleinair.checkpoint.store import save_checkpoint, verify_checkpoint
from pleinair.records.errors import CheckpointError

NUM_PLACES = 100
AIMS = (Aim(what="planted damage found, six kinds, a missing shard among them", name="damage_found", least=1),)


def measure(rounds: int, num_places: int = NUM_PLACES) -> list[Result]:
    """Share of planted damage that is found, beside what loading finds; `rounds` has no part in it."""
    draw, ours, library, planted = random.Random(0), 0, 0, 0
    with scratch() as root:
        state = {"w": torch.randn(200_000), "b": torch.randn(300)}
        whole = save_checkpoint(root, 1, {NAME: state, "other.safetensors": state}, {}, config_digest="c")
        for kind in KINDS:
            for _ in range(num_places):
                damaged = Path(shutil.copytree(whole, root / "damaged"))
                kind(damaged / NAME, draw)
                ours += refuses(lambda: verify_checkpoint(damaged))  # noqa: B023
                library += refuses(lambda: load_file(damaged / NAME))  # noqa: B023
                planted += 1
                shutil.rmtree(damaged)
    peer = f"safetensors load_file, {library / planted:.2f}"
    return [result("damage_found", ours / planted, f"share of {planted}", peer, ours / library if library else None)]


def refuses(load: Callable[[], object]) -> bool:
    try:
        load()
    except (CheckpointError, SafetensorError, FileNotFoundError, ValueError):
        return True
    return False


def flip_bit(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def zero_page(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    begin = draw.randrange(max(1, len(content) // 4096)) * 4096
    content[begin : begin + 4096] = bytes(len(content[begin : begin + 4096]))
    path.write_bytes(content)


def truncate(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size))


def half_write(path: Path, draw: random.Random) -> None:
    """As large as it should be, zeros from somewhere on."""
    size = path.stat().st_size
    os.truncate(path, draw.randrange(size - 8))
    os.truncate(path, size)


def swap(path: Path, draw: random.Random) -> None:
    """The bytes of another save of the same shapes."""
    save_file({name: torch.randn_like(tensor) for name, tensor in load_file(path).items()}, path)


def remove(path: Path, draw: random.Random) -> None:
    """A shard that is not there."""
    path.unlink()


KINDS = (flip_bit, zero_page, truncate, half_write, swap, remove)
