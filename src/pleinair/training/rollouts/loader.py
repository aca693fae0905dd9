"""Rollouts as the engine's batches: an iteration is drawn, assessed and stored when its first batch is asked for.

    step -> iteration i, batch within it
      stored by these weights?  ---------------------------------------------------------------------.
      no: pool.fold(iterations < i).choose -> draw_groups -> pictures -> assess -> write, publish ----+--> read_rollout
                                                                                                             |
    batch(step): some rows of a permutation of the iteration's pictures, with text features  <---------------'

What is drawn is a function of the weights, the seed and the iterations before, and an iteration is stored before it is
used. So a run killed at any moment goes on bit for bit: from a checkpoint inside an iteration it reads the iteration; from
one before it, it draws with the same weights again, or finds that this was done and stored. A reward that gives no
usable answer ends the run with its sentence and leaves the last checkpoint and all stored iterations.

Of several ranks each draws and assesses its own groups, which are never split, and stores them as a part; the directory
appears once all parts are there. Every rank then reads all of it (they share a file system) and takes its rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from pleinair.checkpoint.pieces import local_tensor
from pleinair.config import config_digest, from_document, to_document
from pleinair.flow.stochastic import Sde
from pleinair.records.errors import CheckpointError, ConfigError, RewardError
from pleinair.records.rewards import Assessment, Assessor, RewardContext
from pleinair.sampling.sampler import Sampler
from pleinair.tensor_files import tensor_bytes
from pleinair.training.mesh import Mesh
from pleinair.training.reductions import from_rank_zero, gather_keys
from pleinair.training.rollouts.drawing import DrawingConfig, PromptFeatures, draw_groups, pictures_of, seed_of
from pleinair.training.rollouts.pool import Posterior, PromptPool
from pleinair.training.rollouts.stored import (
    GroupRewards,
    Rollout,
    RolloutFacts,
    StoredPart,
    forget_tensors,
    group_rewards,
    open_draft,
    publish,
    read_facts,
    read_parts,
    read_rollout,
    stored_iterations,
    stored_rollout,
    write_part,
)


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """Size of an iteration and how often it is learned from."""

    num_groups: int = 8
    """Prompts of an iteration."""
    group_size: int = 8
    """Pictures of a prompt, compared with each other."""
    num_epochs: int = 1
    """Times that each picture is learned from."""
    keep: int = 0
    """Newest iterations whose tensors are kept, at least those since the older of the checkpoints; 0 for all of them."""
    drawing: DrawingConfig = field(default_factory=DrawingConfig)
    """How the pictures are drawn."""

    def __post_init__(self) -> None:
        if self.num_groups < 1 or self.num_epochs < 1 or self.group_size < 2:
            raise ConfigError(
                f"num_groups is {self.num_groups}, num_epochs {self.num_epochs}, group_size {self.group_size}: give at "
                "least 1, 1 and 2"
            )

    @property
    def num_pictures(self) -> int:
        """Pictures of an iteration."""
        return self.num_groups * self.group_size


@dataclass(frozen=True)
class RolloutBatch:
    """Pictures of an iteration, as rows."""

    keys: list[str]
    states_BSCHW: Tensor
    """Before each step of the window and after its last; S is 0 without a window."""
    means_BWCHW: Tensor
    """Means of the Gaussians that the steps were drawn from."""
    log_probabilities_BW: Tensor
    """Of the steps, by the weights that drew them."""
    timesteps_BS: Tensor
    """Of the states, float64; the same in every row."""
    samples_BCHW: Tensor
    """Latents at t = 0."""
    advantages_B: Tensor
    rewards_B: Tensor
    text_features_BTLD: Tensor
    text_mask_BT: Tensor
    num_updates: int
    """Updates since the pictures were drawn: at 0 their policy is the model itself."""
    schedule: tuple[float, ...]
    """Timesteps of all steps, from 1 to 0: the window moves over them from iteration to iteration."""
    sde: Sde
    noise_level: float


@runtime_checkable
class HasState(Protocol):
    """An assessor whose answers depend on those before, by running statistics for example; its state is stored with each."""

    def state(self) -> dict[str, Any]:
        """As JSON; of a fresh assessor it may be empty."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; from an empty one as if fresh."""
        ...


@runtime_checkable
class HasIdentity(Protocol):
    """An assessor that tells what it is made of: what another one said is not learned from."""

    @property
    def identity(self) -> str:
        """What decides its answers, beside its state."""
        ...


class Rollouts:
    """A loader (`engine.Loader`) of a phase whose `batch_size` it is given."""

    def __init__(
        self,
        sampler: Sampler,
        assessor: Assessor,
        pool: PromptPool,
        config: RolloutConfig,
        root: Path,
        *,
        batch_size: int,
        seed: int,
        mesh: Mesh,
        on_message: Callable[[str], None] = print,
    ) -> None:
        """`sampler` draws with the weights that are trained, or with those of the old policy where the stage has one.

        `root` is where rollouts are stored, usually `run_dir/rollouts`; `batch_size` is over all ranks. Raises ConfigError
        when the batch does not divide an iteration, the pool has too few prompts, or the ranks cannot share the groups.
        """
        if config.num_pictures % batch_size:
            raise ConfigError(
                f"batch_size is {batch_size} and an iteration has {config.num_pictures} pictures: give a divisor of them"
            )
        if config.num_groups > len(pool.prompts):
            raise ConfigError(
                f"num_groups is {config.num_groups} and the pool has {len(pool.prompts)} prompts: ask for fewer groups"
            )
        num_ranks = mesh.num_data_ranks
        if mesh.world_size != num_ranks:
            raise ConfigError(
                f"this run has {mesh.world_size} ranks for {num_ranks} shares of data, and each rank draws groups of its own: "
                "set the mesh's tensor=1"
            )
        if config.num_groups % num_ranks or batch_size % num_ranks:
            raise ConfigError(
                f"num_groups is {config.num_groups}, batch_size {batch_size} and there are {num_ranks} ranks: give multiples"
            )
        self.sampler, self.assessor, self.pool, self.config, self.root = sampler, assessor, pool, config, root
        self.batch_size, self.seed, self.mesh, self._on_message = batch_size, seed, mesh, on_message
        made_by = (
            sampler.text_encoder.digest,
            sampler.codec.describe().identity,
            assessor.identity if isinstance(assessor, HasIdentity) else "",
        )
        self._settings = config_digest((replace(config, keep=0), pool.config, pool.prompts, seed, made_by))
        self.features = PromptFeatures(sampler.text_encoder, sampler.projection)
        self._current: Rollout | None = None
        self._known: tuple[int, Posterior] = (0, pool.nothing_known())

    @property
    def steps_per_iteration(self) -> int:
        """Updates made from one rollout."""
        return self.config.num_pictures // self.batch_size * self.config.num_epochs

    def batch(self, step: int) -> RolloutBatch:
        """The rows of a step; draws an iteration when its first step needs one.

        Raises RewardError where the assessor gives nothing usable, and CheckpointError where a step inside an iteration
        finds no rollout to go on with.
        """
        rollout = self.rollout(step)
        rows = self._rows(step)
        facts, trajectory, assessment = rollout.facts, rollout.trajectory, rollout.assessment
        prompts = facts.prompts
        encoded = self.features.of([prompts[row] for row in rows])
        return RolloutBatch(
            keys=self._names(facts, rows),
            states_BSCHW=trajectory.states_BSCHW[rows],
            means_BWCHW=trajectory.means_BWCHW[rows],
            log_probabilities_BW=trajectory.log_probabilities_BW[rows],
            timesteps_BS=torch.tensor(facts.window_timesteps, dtype=torch.float64).expand(len(rows), -1),
            samples_BCHW=trajectory.samples_BCHW[rows],
            advantages_B=torch.from_numpy(assessment.advantages)[rows].float(),
            rewards_B=torch.from_numpy(assessment.reward)[rows].float(),
            text_features_BTLD=encoded.features_BTLD,
            text_mask_BT=encoded.mask_BT,
            num_updates=step % self.steps_per_iteration,
            schedule=facts.schedule,
            sde=facts.sde,
            noise_level=facts.noise_level,
        )

    def keys(self, step: int) -> list[str]:
        """Iteration, member and prompt of each row of a step whose rollout is there."""
        return self._names(self.rollout(step).facts, self._rows(step))

    def rollout(self, step: int) -> Rollout:
        """The iteration that a step learns from, drawn now if the step begins it."""
        iteration, update = divmod(step, self.steps_per_iteration)
        if self._current is None or self._current.facts.iteration != iteration:
            self._current = self._begun(iteration) if update == 0 else self._resumed(iteration, step)
        return self._current

    def _names(self, facts: RolloutFacts, rows: list[int]) -> list[str]:
        prompts, size = facts.prompts, facts.group_size
        return [f"iteration {facts.iteration}, picture {row % size} of '{prompts[row]}'" for row in rows]

    def _rows(self, step: int) -> list[int]:
        """Rows of an iteration that this rank learns from in a step: a new permutation in each of its epochs."""
        iteration, update = divmod(step, self.steps_per_iteration)
        epoch, place = divmod(update, self.config.num_pictures // self.batch_size)
        order = np.random.default_rng([self.seed, iteration, epoch]).permutation(self.config.num_pictures)
        own = self.batch_size // self.mesh.num_data_ranks
        first = place * self.batch_size + self.mesh.data_rank * own
        rows: list[int] = order[first : first + own].tolist()
        return rows

    def _begun(self, iteration: int) -> Rollout:
        """The iteration that begins with the weights as they are: drawn now, or stored before this process was killed."""
        policy = policy_digest(self.sampler.transformer, self.mesh)
        path = from_rank_zero(lambda: self._stored_by(policy, iteration), self.mesh)
        if path is None:
            path = self._drawn(iteration, policy)
        return read_rollout(path)

    def _stored_by(self, policy: str, iteration: int) -> Path | None:
        """An iteration that is whole and was drawn by these weights."""
        path = stored_rollout(self.root, iteration)
        if path is None:
            return None
        try:
            facts = read_rollout(path).facts
            if (facts.policy, facts.settings) == (policy, self._settings):
                return path
            what = "by other weights" if facts.policy != policy else "with other settings or rewards"
            self._on_message(f"{path.name} was drawn {what} than these: it is drawn again")
        except CheckpointError as damaged:
            self._on_message(f"{damaged}; it is drawn again")
        return None

    def _resumed(self, iteration: int, step: int) -> Rollout:
        stored = stored_rollout(self.root, iteration)
        if stored is None:
            raise CheckpointError(
                f"step {step} goes on inside iteration {iteration}, whose rollout is not in {self.root}: bring it back, or "
                "remove the checkpoints after the iteration's first step"
            )
        return read_rollout(stored)

    def _drawn(self, iteration: int, policy: str) -> Path:
        """Draw, assess and store an iteration; every rank its share of the groups."""
        config, drawing = self.config, self.config.drawing
        prompts = self.pool.choose(self._posterior(iteration), iteration, config.num_groups, self.seed)
        seeds = {
            prompt: [seed_of(self.seed, iteration, prompt, member) for member in range(config.group_size)]
            for prompt in prompts
        }
        window, share = drawing.window(self.seed, iteration), config.num_groups // self.mesh.num_data_ranks
        own = prompts[self.mesh.data_rank * share : (self.mesh.data_rank + 1) * share]
        own_seeds = [seed for prompt in own for seed in seeds[prompt]]
        trajectory = draw_groups(self.sampler, self.features, own, own_seeds, drawing, window)
        assessment = self._assessed(iteration, policy, own, own_seeds, trajectory.samples_BCHW)
        draft = from_rank_zero(lambda: open_draft(self.root, iteration), self.mesh)
        part = StoredPart(
            sha256=write_part(draft, self.mesh.data_rank, trajectory, assessment),
            assessor=self.assessor.state() if isinstance(self.assessor, HasState) else {},
        )
        groups, parts = self._gathered(group_rewards(own, assessment.reward), part)
        facts = RolloutFacts(
            iteration=iteration,
            policy=policy,
            settings=self._settings,
            group_size=config.group_size,
            groups=groups,
            seeds=tuple(seed for prompt in prompts for seed in seeds[prompt]),
            schedule=tuple(drawing.schedule().tolist()),
            window=window,
            sde=drawing.sde,
            noise_level=drawing.noise_level,
        )
        return from_rank_zero(lambda: self._published(draft, facts, parts), self.mesh)

    def _published(self, draft: Path, facts: RolloutFacts, parts: Sequence[StoredPart]) -> Path:
        path = publish(draft, facts, parts)
        if self.config.keep:
            forget_tensors(self.root, facts.iteration + 1 - self.config.keep)
        return path

    def _gathered(
        self, groups: tuple[GroupRewards, ...], part: StoredPart
    ) -> tuple[tuple[GroupRewards, ...], tuple[StoredPart, ...]]:
        """Groups and parts of all ranks, in order of rank; once it returns, all are written."""
        own = {"rank": self.mesh.data_rank, "groups": to_document(groups), "part": to_document(part)}
        told = [json.loads(one) for one in gather_keys([json.dumps(own)], self.mesh)]
        return (
            tuple(from_document(GroupRewards, group) for one in told for group in one["groups"]),
            tuple(from_document(StoredPart, one["part"]) for one in told),
        )

    def _assessed(
        self, iteration: int, policy: str, prompts: Sequence[str], seeds: Sequence[int], latents_BCHW: Tensor
    ) -> Assessment:
        """Of this rank's groups. Raises RewardError on all ranks where that of one gives nothing usable."""
        size = self.config.group_size
        of_each = [prompt for prompt in prompts for _ in range(size)]
        groups = tuple(number for number in range(len(prompts)) for _ in range(size))
        pictures = pictures_of(self.sampler, latents_BCHW, self.config.drawing.batch_size)
        context = RewardContext(seeds=tuple(seeds), groups=groups, checkpoint=policy)
        assessment: Assessment | None = None
        failures: list[str] = []
        self._remind_assessor(iteration)
        try:
            assessment = self.assessor.assess(of_each, pictures, context)
            require_usable(assessment, of_each, iteration)
        except RewardError as unusable:
            failures.append(str(unusable))
        if failures := gather_keys(failures, self.mesh):
            raise RewardError(failures[0])
        assert assessment is not None
        return assessment

    def _remind_assessor(self, iteration: int) -> None:
        """Give an assessor that learns on the way what it knew after the iteration before, whichever process that was."""
        if isinstance(self.assessor, HasState):
            before = stored_iterations(self.root, max(iteration - 1, 0), iteration)
            parts = read_parts(before[0]) if before else ()
            self.assessor.load_state(parts[min(self.mesh.data_rank, len(parts) - 1)].assessor if parts else {})

    def _posterior(self, iteration: int) -> Posterior:
        """What all iterations before this one say of the prompts."""
        done, known = self._known
        if done > iteration:  # the run went back
            done, known = 0, self.pool.nothing_known()
        for path in stored_iterations(self.root, done, iteration):
            facts = read_facts(path)
            known = self.pool.fold(known, facts.iteration, facts.groups)
        self._known = (iteration, known)
        return known


def policy_digest(model: nn.Module, mesh: Mesh) -> str:
    """A word for a model's weights, the same on all ranks; of a sharded model it is also one for how it is sharded."""
    hashed = hashlib.sha256()
    for name, values in sorted(model.state_dict().items()):
        local = local_tensor(values)
        hashed.update(f"{name} {local.dtype} {tuple(local.shape)}\n".encode())
        hashed.update(tensor_bytes(local.cpu().contiguous()))
    return hashlib.sha256(" ".join(gather_keys([hashed.hexdigest()], mesh)).encode()).hexdigest()


def require_usable(assessment: Assessment, prompts: list[str], iteration: int) -> None:
    """Raise RewardError for an assessment that is not of these pictures, or not finite: it would spoil the weights."""
    for name, values in (("advantages", assessment.advantages), ("reward", assessment.reward)):
        if values.shape != (len(prompts),):
            raise RewardError(
                f"iteration {iteration} has {len(prompts)} pictures and the assessor's {name} have shape {values.shape}: "
                "mend it, then run again"
            )
        if broken := np.flatnonzero(~np.isfinite(values)).tolist():
            raise RewardError(
                f"the assessor's {name} of iteration {iteration} are not finite for {len(broken)} of {len(prompts)} pictures, "
                f"the first {values[broken[0]]} for '{prompts[broken[0]]}': mend the reward, then run again"
            )
