"""The suite `exploration` on a link's last checkpoint, kept in the link's folder: measured once, and not again.

checkpoint --Suite.measure: draw, look, measure--> Result --kept under a stamp--> FOLDER/explored.json
all results of a chain, in order --evaluation.exploration.ledger--> what every link cost and lost
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pleinair.config import config_digest
from pleinair.evaluation.exploration.suite import VERSION, Result, from_document, to_document
from pleinair.posttraining.materials import identity_at
from pleinair.sampling import SamplingConfig

EXPLORED = "explored.json"


@dataclass(frozen=True)
class Suite:
    """The suite with its judges, ready to look at checkpoints."""

    judges: Mapping[str, frozenset[str]]
    """By name the digests of what each is made of: none of them may be climbed."""
    asked: str
    """Digest of requests, size and seed: results of one are compared."""
    measure: Callable[[str, Path, SamplingConfig, Path], Result]
    """Name, checkpoint, how it is drawn and a folder to keep pictures in -> every measure."""


def explored(suite: Suite, name: str, checkpoint: Path, config: SamplingConfig, folder: Path) -> Result:
    """The suite's result of a checkpoint: the one that is kept, or a new one."""
    stamp = stamp_of(suite, checkpoint, config)
    kept = read_explored(folder, stamp)
    if kept is not None:
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    result = suite.measure(name, checkpoint, config, folder)
    staging = folder / f".{EXPLORED}.partial"
    staging.write_text(json.dumps({"stamp": stamp, "result": to_document(result)}) + "\n")
    os.replace(staging, folder / EXPLORED)
    return result


def read_explored(folder: Path, stamp: str) -> Result | None:
    """What is kept under this stamp."""
    path = folder / EXPLORED
    if not path.exists():
        return None
    document = json.loads(path.read_text())
    return from_document(document["result"]) if document["stamp"] == stamp else None


def stamp_of(suite: Suite, checkpoint: Path, config: SamplingConfig) -> str:
    """Of all that a result depends on."""
    judges = {name: sorted(parts) for name, parts in suite.judges.items()}
    return config_digest([VERSION, identity_at(checkpoint), config, suite.asked, judges])
