"""Rollouts on disk: what was drawn, by which weights, and what was said of it. Any update can be made again from one.

    ROOT/iteration-00000012/            whole: it appeared by rename
             rollout.json               prompts, seeds, schedule, window, policy, rewards of the groups, the assessor's state
             part-00000.safetensors     trajectory and assessment of the groups that a rank drew
         iteration-00000012.1/          the same iteration, drawn anew after the run went back with other weights
         .iteration-00000013.partial/   being written, or left by a killed process

An iteration is read back before it is used, so a resumed run and an undisturbed one learn from the same bytes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pleinair.checkpoint.drafts import fsync_directory
from pleinair.checkpoint.store import digest_file
from pleinair.config import from_document, to_document
from pleinair.flow.stochastic import Sde, Trajectory, Window
from pleinair.records.errors import CheckpointError, ConfigError
from pleinair.records.rewards import Assessment
from pleinair.tensor_files import read_tensors, save_tensors

DOCUMENT = "rollout.json"
NAME = re.compile(r"iteration-(\d{8,})(?:\.(\d+))?")
ASSESSED = tuple(field.name for field in fields(Assessment))


@dataclass(frozen=True, kw_only=True)
class GroupRewards:
    """What a group's rewards say of its prompt."""

    prompt: str
    count: int
    """Pictures."""
    mean: float
    squares: float
    """Sum of the squared distances from the mean."""


@dataclass(frozen=True, kw_only=True)
class RolloutFacts:
    """The part of a rollout that people and the prompt pool read."""

    iteration: int
    policy: str
    """Digest of the weights that drew it."""
    settings: str
    """Digest of what else decides what is drawn and said: seed, prompts, sizes, schedule, text encoder, codec, assessor."""
    group_size: int
    groups: tuple[GroupRewards, ...]
    """One for each prompt."""
    seeds: tuple[int, ...]
    """One for each picture; the pictures of a group follow one another."""
    schedule: tuple[float, ...]
    """Timesteps from 1 to 0."""
    window: Window
    sde: Sde
    noise_level: float

    @property
    def prompts(self) -> tuple[str, ...]:
        """One for each picture."""
        return tuple(group.prompt for group in self.groups for _ in range(group.count))

    @property
    def group_numbers(self) -> tuple[int, ...]:
        """One for each picture."""
        return tuple(number for number, group in enumerate(self.groups) for _ in range(group.count))

    @property
    def window_timesteps(self) -> tuple[float, ...]:
        """Of the stored states."""
        if not self.window.size:
            return ()
        return self.schedule[self.window.first : self.window.first + self.window.size + 1]


@dataclass(frozen=True, kw_only=True)
class StoredPart:
    """What one rank drew, beside its tensors."""

    sha256: str
    """Of its file."""
    assessor: dict[str, Any]
    """State of the rank's assessor after it, where the assessor has one."""


@dataclass(frozen=True, kw_only=True)
class StoredDocument:
    """`rollout.json`."""

    facts: RolloutFacts
    parts: tuple[StoredPart, ...]


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """All that an update needs."""

    facts: RolloutFacts
    trajectory: Trajectory
    assessment: Assessment


def group_rewards(prompts: tuple[str, ...], rewards: npt.NDArray[np.float32]) -> tuple[GroupRewards, ...]:
    """Statistics of equal groups, in float64; `prompts` has one entry per group."""
    rewards_GM = rewards.astype(np.float64).reshape(len(prompts), -1)
    means_G = rewards_GM.mean(axis=1)
    squares_G = np.square(rewards_GM - means_G[:, None]).sum(axis=1)
    size = rewards_GM.shape[1]
    return tuple(
        GroupRewards(prompt=prompt, count=size, mean=float(mean), squares=float(squares))
        for prompt, mean, squares in zip(prompts, means_G, squares_G, strict=True)
    )


def open_draft(root: Path, iteration: int) -> Path:
    """An empty hidden directory to write an iteration in; what a killed process left there is removed."""
    draft = root / f".iteration-{iteration:08d}.partial"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    return draft


def write_part(draft: Path, number: int, trajectory: Trajectory, assessment: Assessment) -> str:
    """Write what one rank drew, durably; returns its SHA-256. Raises OSError."""
    path = draft / part_name(number)
    save_tensors(_tensors(trajectory, assessment), path)
    return digest_file(path).sha256


def part_name(number: int) -> str:
    """File of the rank of this number."""
    return f"part-{number:05d}.safetensors"


def publish(draft: Path, facts: RolloutFacts, parts: Sequence[StoredPart]) -> Path:
    """Give a draft whose parts are all written a name that was never used; returns its directory. Raises OSError."""
    document = to_document(StoredDocument(facts=facts, parts=tuple(parts)))
    with (draft / DOCUMENT).open("w") as file:
        file.write(json.dumps(document, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    fsync_directory(draft)
    target = draft.parent / _free_name(draft.parent, facts.iteration)
    os.rename(draft, target)
    fsync_directory(draft.parent)
    return target


def _tensors(trajectory: Trajectory, assessment: Assessment) -> dict[str, Tensor]:
    tensors = {
        "states": trajectory.states_BSCHW,
        "means": trajectory.means_BWCHW,
        "log_probabilities": trajectory.log_probabilities_BW,
        "samples": trajectory.samples_BCHW,
    }
    for name in ASSESSED:
        said = getattr(assessment, name)
        arrays = (
            {f"{name}/{key}": values for key, values in said.items()} if isinstance(said, Mapping) else {name: said}
        )
        tensors |= {key: torch.from_numpy(np.ascontiguousarray(values)) for key, values in arrays.items()}
    return tensors


def _assessment(tensors: Mapping[str, Tensor]) -> Assessment:
    """What was said: `name` for arrays, `name/key` for those that have several."""
    said: dict[str, Any] = {}
    for name in ASSESSED:
        several = {key.split("/", 1)[1]: tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}
        said[name] = (
            tensors[name].numpy() if name in tensors else {key: tensor.numpy() for key, tensor in several.items()}
        )
    return Assessment(**said)


def read_rollout(directory: Path) -> Rollout:
    """A stored iteration, of all ranks, verified. Raises CheckpointError when it is damaged or its tensors were removed."""
    facts, read = read_facts(directory), []
    for number, part in enumerate(read_parts(directory)):
        path = directory / part_name(number)
        if not path.exists():
            raise CheckpointError(f"the rollout {directory} has no {path.name} any more")
        if digest_file(path).sha256 != part.sha256:
            raise CheckpointError(f"the rollout {directory} is damaged: {path.name} does not match its hash")
        read.append(read_tensors(path))
    tensors = {name: torch.cat([part[name] for part in read]) for name in read[0]}
    trajectory = Trajectory(
        states_BSCHW=tensors["states"],
        means_BWCHW=tensors["means"],
        log_probabilities_BW=tensors["log_probabilities"],
        samples_BCHW=tensors["samples"],
    )
    return Rollout(facts=facts, trajectory=trajectory, assessment=_assessment(tensors))


def forget_tensors(root: Path, end: int) -> None:
    """Remove the tensors of all iterations below `end`; their documents stay, as prompts are chosen by them."""
    for path in root.iterdir():
        if (match := NAME.fullmatch(path.name)) and int(match[1]) < end:
            for part in path.glob("part-*.safetensors"):
                part.unlink(missing_ok=True)


def read_facts(directory: Path) -> RolloutFacts:
    """The facts alone. Raises CheckpointError when they cannot be read."""
    return _stored(directory).facts


def read_parts(directory: Path) -> tuple[StoredPart, ...]:
    """What is known of the parts, without their tensors. Raises CheckpointError when it cannot be read."""
    return _stored(directory).parts


def _stored(directory: Path) -> StoredDocument:
    try:
        stored = from_document(StoredDocument, json.loads((directory / DOCUMENT).read_text()))
        if not stored.parts:
            raise ConfigError("it names no parts")
    except (OSError, ValueError, TypeError) as unreadable:
        raise CheckpointError(
            f"the rollout {directory} is damaged: its {DOCUMENT} cannot be read ({unreadable})"
        ) from unreadable
    return stored


def stored_rollout(root: Path, iteration: int) -> Path | None:
    """The last one drawn for an iteration, None where there is none."""
    return max(_of_iteration(root, iteration), key=_generation, default=None)


def stored_iterations(root: Path, first: int, end: int) -> list[Path]:
    """The last one drawn for each iteration from `first` to below `end`. Raises CheckpointError when one is not there."""
    newest: dict[int, Path] = {}
    named = [(match, path) for path in root.glob("iteration-*") if (match := NAME.fullmatch(path.name))]
    for match, path in sorted(named, key=lambda one: _generation(one[1])):
        newest[int(match[1])] = path
    for iteration in range(first, end):
        if iteration not in newest:
            raise CheckpointError(
                f"{root} has no rollout of iteration {iteration}, and iteration {end} chooses its prompts by it: bring it "
                "back, or start a new run from the last checkpoint"
            )
    return [newest[iteration] for iteration in range(first, end)]


def _of_iteration(root: Path, iteration: int) -> list[Path]:
    return [path for path in root.glob(f"iteration-{iteration:08d}*") if NAME.fullmatch(path.name)]


def _generation(path: Path) -> int:
    match = NAME.fullmatch(path.name)
    assert match is not None
    return int(match[2] or 0)


def _free_name(root: Path, iteration: int) -> str:
    taken = [_generation(path) for path in _of_iteration(root, iteration)]
    return f"iteration-{iteration:08d}" + (f".{max(taken) + 1}" if taken else "")
