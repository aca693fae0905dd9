"""What the ranks of `test_rollout_ranks` do; imported by spawned processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pleinair.model.parallelize import MeshConfig
from pleinair.records.errors import RewardError
from pleinair.records.rewards import Assessment, Pictures, RewardContext
from pleinair.training.mesh import Mesh, open_mesh
from tests.training.small_rollouts import Brightness, run_grpo

WORLD_SIZE, NUM_ITERATIONS = 2, 3


class FailsOnRank1(Brightness):
    """A reward whose server only one rank cannot reach, at the second iteration."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def assess(self, prompts: Sequence[str], pictures: Pictures, context: RewardContext) -> Assessment:
        good = super().assess(prompts, pictures, context)
        if self.rank == 1 and len(self.contexts) == 2:
            raise RewardError("reward 'brightness' cannot be reached from rank 1: start its server, then run again")
        return good


def train_rank(root: Path, ports: Sequence[int]) -> tuple[int, str]:
    """A run that is disturbed by a broken reward and goes on; how many pictures this rank drew, and what it was told."""
    os.environ["MASTER_PORT"] = str(ports[0])
    with open_mesh(MeshConfig(shard=WORLD_SIZE), device_type="cpu") as mesh:
        told = _broken(root, mesh)
        assessor = Brightness()
        run_grpo(root, NUM_ITERATIONS, mesh=mesh, assessor=assessor, keep_every=1)
        return sum(len(context.seeds) for context in assessor.contexts), told


def _broken(root: Path, mesh: Mesh) -> str:
    try:
        run_grpo(root, NUM_ITERATIONS, mesh=mesh, assessor=FailsOnRank1(mesh.rank), keep_every=1)
    except RewardError as failure:
        return str(failure)
    return "nothing failed"
