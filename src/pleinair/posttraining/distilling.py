"""Students and their teachers from checkpoints: what the two stages of distillation are made of.

    teacher --few_step_stage--> Tdm                    start, teachers, anchor --on_policy_stage--> OnPolicyDistillation

Train either with `engine.Parent(checkpoint=...)` of the same checkpoint, which writes the descent.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pleinair.checkpoint.store import read_document
from pleinair.model.digest import part_digest
from pleinair.model.text_encoder import TextEncoder
from pleinair.records.errors import ConfigError
from pleinair.sampling.checkpoints import read_model, read_transformer
from pleinair.sampling.projection import projection_of
from pleinair.training.stages.on_policy_distillation import OnPolicyConfig, OnPolicyDistillation
from pleinair.training.stages.pretrain import Pretrain, timesteps_told
from pleinair.training.stages.tdm import Tdm, TdmConfig


def few_step_stage(teacher: Path, config: TdmConfig, encoder: TextEncoder, device: torch.device | str = "cpu") -> Tdm:
    """A student, as yet the teacher's copy, with the teacher and the fake model."""
    student = student_of(teacher, device)
    empty_1TLD = student.projection(encoder.encode([""]).features_BTLD)
    return Tdm(student, read_transformer(teacher).to(device), config, empty_1TLD.to(device))


def on_policy_stage(
    start: Path,
    teachers: Sequence[Path],
    config: OnPolicyConfig,
    anchor: Path | None = None,
    device: torch.device | str = "cpu",
) -> OnPolicyDistillation:
    """A student that starts at one checkpoint, with its teachers by domain. Raises ConfigError where text differs."""
    student = student_of(start, device)
    for other in (*teachers, *([] if anchor is None else [anchor])):
        theirs = projection_of(other)
        if theirs is not None and part_digest(theirs) != part_digest(student.projection):
            raise ConfigError(
                f"the teacher {other} reads text features of another projection than {start}: choose models of one parent"
            )
    models = [read_transformer(teacher).to(device) for teacher in teachers]
    kept = None if anchor is None else read_transformer(anchor).to(device)
    return OnPolicyDistillation(student, models, config, kept)


def student_of(checkpoint: Path, device: torch.device | str = "cpu") -> Pretrain:
    """A checkpoint's model to go on with, whose latents it knows, and the timesteps it was trained at."""
    model, projection = read_model(checkpoint)
    config = read_document(checkpoint, "config.json")
    return Pretrain(model.to(device), projection, timesteps_told(config), config.get("latent_space", ""))
