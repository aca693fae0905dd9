"""Small folders of preference pairs whose every value is known."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import torch

from pleinair.packs.pair_writer import PairsWriter, PairTensors
from pleinair.packs.pairs import Pairs
from pleinair.records.pairs import PairSide, PairsManifest, PreferencePair

MANIFEST = PairsManifest(plan="p", text_layers=(1, 2), text_dim=16)
POLICY = "policy"
SHAPES = ((4, 4, 4), (4, 2, 8))


def pair(number: int, **changes: Any) -> PreferencePair:
    """Pair `number`, whose winner the policy drew."""
    sides = {
        name: PairSide(checkpoint=checkpoint, seed=number, settings={"num_steps": steps})
        for name, checkpoint, steps in (("winner", POLICY, 28), ("loser", "earlier", 4))
    }
    told = {
        "key": f"k{number}",
        "prompt": f"thing {number}",
        "origin": "synthetic",
        "event": str(uuid.UUID(int=number)),
    }
    return PreferencePair(**{**told, **sides, **changes})


def tensors(number: int, shape: tuple[int, ...] = SHAPES[0]) -> PairTensors:
    """Winners have `number` everywhere, losers `-number`; texts of 1 to 5 tokens."""
    winner = torch.full(shape, float(number))
    text = torch.full((1 + number % 5, 2, 16), number / 8)
    return PairTensors(winner, -winner, text)


def write_pairs(
    directory: Path, count: int = 20, piece: int = 6, manifest: PairsManifest = MANIFEST, **changes: Any
) -> Pairs:
    """Pairs of two shapes in turn, piece by piece."""
    writer = PairsWriter(directory, manifest)
    for number, first in enumerate(range(0, count, piece)):
        rows = range(first, min(first + piece, count))
        writer.add([(pair(row, **changes), tensors(row, SHAPES[number % 2])) for row in rows])
    writer.finish({"feature_projection.safetensors": b"values"})
    return Pairs(directory)
