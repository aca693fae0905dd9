"""Rollouts of a transformer, an autoencoder and rewards so small that an iteration takes milliseconds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pleinair.model.autoencoder import Autoencoder, AutoencoderConfig
from pleinair.model.parallelize import MeshConfig, ParallelConfig, parallelize
from pleinair.model.text_encoder import FeatureProjection
from pleinair.model.transformer import Transformer
from pleinair.records.rewards import Assessment, Pictures, RewardContext, Values
from pleinair.sampling import Sampler
from pleinair.training.engine import EngineConfig, Hook, Phase, train
from pleinair.training.mesh import Mesh
from pleinair.training.rollouts.drawing import DrawingConfig
from pleinair.training.rollouts.loader import RolloutBatch, RolloutConfig, Rollouts
from pleinair.training.rollouts.pool import PoolConfig, PromptPool
from pleinair.training.stages.grpo import Grpo, GrpoConfig
from pleinair.training.stages.nft import Nft, NftConfig, OldPolicy
from pleinair.training.stages.pretrain import Pretrain, PretrainConfig
from tests.packs.small_packs import Letters
from tests.small_transformers import tiny_config
from tests.training.small_stages import settings

TINY = tiny_config(
    width=32, num_heads=2, num_kv_heads=1, mlp_width=None, in_channels=4, patch_size=1, timestep_dim=16, text_dim=4,
    num_text_layers=2, text_num_heads=1, text_num_kv_heads=1, text_mlp_width=None,
)  # fmt: skip
SMALL = AutoencoderConfig(widths=(8, 16), encoder_blocks=(1, 1), decoder_blocks=(1, 1), latent_channels=4)
PROMPTS = ("fox", "a red apple", "two owls", "sea")
DRAWING = DrawingConfig(num_steps=4, resolution=8, window_size=2)
CONFIG = RolloutConfig(num_groups=2, group_size=4, drawing=DRAWING)
BATCH_SIZE = 4


def tiny_sampler(seed: int = 0) -> Sampler:
    """Random weights; the decoder's last layer is raised so that its pictures have contrast to reward."""
    torch.manual_seed(seed)
    sampler = Sampler(Transformer(TINY), Autoencoder(SMALL).eval(), Letters(), FeatureProjection(2, 8, 4))
    with torch.no_grad():
        sampler.codec.decoder[-2].weight.mul_(30)  # type: ignore[attr-defined]
    return sampler


def within_groups(reward: Values, context: RewardContext) -> Values:
    """Rewards less their group's mean, over its deviation; zero in a group without one."""
    advantages = np.zeros_like(reward)
    for group in set(context.groups):
        members = np.array(context.groups) == group
        advantages[members] = (reward[members] - reward[members].mean()) / (reward[members].std() + 1e-4)
    return advantages


class Brightness:
    """An assessor that likes bright pictures."""

    def __init__(self) -> None:
        self.contexts: list[RewardContext] = []

    def assess(self, prompts: Sequence[str], pictures: Pictures, context: RewardContext) -> Assessment:
        assert len(prompts) == len(pictures) == len(context.seeds) == len(context.groups)
        self.contexts.append(context)
        reward = (pictures.mean(axis=(1, 2, 3)) / 255).astype(np.float32)
        values = {"brightness": reward, "contrast": pictures.std(axis=(1, 2, 3)).astype(np.float32)}
        gates = {"lit": reward > 0.1}
        return Assessment(advantages=within_groups(reward, context), reward=reward, values=values, gates=gates)


def rollouts(
    root: Path, sampler: Sampler | None = None, assessor: Any = None, said: list[str] | None = None, **changes: Any
) -> Rollouts:
    config = replace(CONFIG, **{name: value for name, value in changes.items() if hasattr(CONFIG, name)})
    drawing = {name: value for name, value in changes.items() if hasattr(DRAWING, name)}
    return Rollouts(
        sampler or tiny_sampler(),
        assessor or Brightness(),
        PromptPool(PROMPTS, changes.get("pool", PoolConfig())),
        replace(config, drawing=replace(config.drawing, **drawing)),
        root,
        batch_size=changes.get("rows", BATCH_SIZE),
        seed=changes.get("seed", 0),
        mesh=changes.get("mesh", Mesh()),
        on_message=([] if said is None else said).append,
    )


def grpo_stage(sampler: Sampler, reference: Transformer | None = None, **changes: Any) -> Grpo:
    config = GrpoConfig(**{"clip": 0.05, **changes})
    return Grpo(Pretrain(sampler.transformer, sampler.projection, PretrainConfig()), config, reference)


def nft_stage(sampler: Sampler, **changes: Any) -> Nft:
    pretrain = Pretrain(sampler.transformer, sampler.projection, PretrainConfig())
    return Nft(pretrain, NftConfig(**changes), copy.deepcopy(sampler.transformer))


def run_grpo(directory: Path, iterations: int, *, assessor: Any = None, **changes: Any) -> Path:
    """A run of GRPO, or what is left of it."""
    sampler, mesh = changes.pop("sampler", None) or tiny_sampler(), changes.get("mesh", Mesh())
    reference = copy.deepcopy(sampler.transformer)
    parallelize(sampler.transformer, mesh.device_mesh, ParallelConfig(mesh=MeshConfig(shard=mesh.world_size)))
    loader = changes.pop("loader", None) or rollouts(directory / "rollouts", sampler, assessor, **changes)
    stage = grpo_stage(sampler, reference, kl_weight=0.01)
    return _run(directory, stage, loader, iterations, (), **changes)


def run_nft(directory: Path, iterations: int, *, assessor: Any = None, **changes: Any) -> Path:
    """The same by DiffusionNFT, whose old policy draws."""
    sampler = tiny_sampler()
    stage = nft_stage(sampler, decay_per_iteration=changes.pop("decay_per_iteration", 0.2))
    old = replace(sampler, transformer=stage.old)
    loader = rollouts(directory / "rollouts", old, assessor, **{"window_size": 0, **changes})
    return _run(directory, stage, loader, iterations, (OldPolicy(stage, loader.steps_per_iteration),), **changes)


def _run(
    directory: Path, stage: Any, loader: Rollouts, iterations: int, own_hooks: Sequence[Hook], **changes: Any
) -> Path:
    phase: Phase[RolloutBatch] = Phase("rl", iterations * loader.steps_per_iteration, loader.batch_size, loader)
    config: EngineConfig = settings(
        changes.get("learning_rate", 1e-3), keep_every=changes.get("keep_every", 0), asynchronous_checkpoints=False
    )
    told: Callable[[str], None] = ([] if changes.get("said") is None else changes["said"]).append
    every = (*own_hooks, *changes.get("hooks", ()))
    mesh = changes.get("mesh", Mesh())
    return train(stage, [phase], config, directory, config_digest="d", mesh=mesh, hooks=every, on_message=told)
