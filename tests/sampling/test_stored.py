"""Weights that belong to a schedule are sampled with it, whoever asks."""

from pathlib import Path

import pytest
import torch

from pleinair.checkpoint.merge import merge_checkpoints
from pleinair.checkpoint.store import save_checkpoint
from pleinair.config import to_document
from pleinair.model.text_encoder import FeatureProjection
from pleinair.model.transformer import Transformer
from pleinair.records.errors import ConfigError
from pleinair.sampling import SamplingConfig
from pleinair.sampling.shipped import load_model, save_model
from pleinair.sampling.stored import SAMPLING_DOCUMENT, sampling_of, with_choices
from tests.sampling.test_sampler import TINY

FOUR = SamplingConfig(num_steps=4, guidance=0.0, shift_mu=1.0, distilled=True)


def checkpoint(root: Path, step: int = 1, documents: dict[str, object] | None = None) -> Path:
    tensors = {"transformer.safetensors": {"w": torch.full((2,), float(step))}}
    return save_checkpoint(root, step, tensors, {"run.json": {}, **(documents or {})}, config_digest="d")


def test_a_checkpoint_without_a_schedule_is_sampled_by_default_and_one_with_it_as_it_says(tmp_path: Path) -> None:
    assert sampling_of(checkpoint(tmp_path / "plain")) == SamplingConfig()
    assert sampling_of(checkpoint(tmp_path / "few", documents={SAMPLING_DOCUMENT: to_document(FOUR)})) == FOUR


def test_averages_of_students_keep_their_schedule(tmp_path: Path) -> None:
    both = [checkpoint(tmp_path / "few", step, {SAMPLING_DOCUMENT: to_document(FOUR)}) for step in (1, 2)]
    assert sampling_of(merge_checkpoints(both, out=tmp_path / "merged")) == FOUR


def test_a_packaged_student_keeps_its_schedule(tmp_path: Path) -> None:
    save_model(Transformer(TINY), FeatureProjection(2, 8, 4), FOUR, tmp_path / "few.safetensors")
    assert load_model(tmp_path / "few.safetensors")[2] == FOUR


def test_other_steps_than_a_students_own_are_refused_and_its_own_are_not() -> None:
    assert with_choices(FOUR, 4, 0.0) == with_choices(FOUR, None, None) == FOUR
    with pytest.raises(ConfigError, match="num_steps is 28 and the model was distilled for 4 steps without guidance"):
        with_choices(FOUR, 28, None)
    with pytest.raises(ConfigError, match="guidance is 3 and the model was distilled"):
        with_choices(FOUR, None, 3.0)
    assert with_choices(SamplingConfig(), 9, 1.0) == SamplingConfig(num_steps=9, guidance=1.0)
    with pytest.raises(ValueError, match="distilled: it is in them, give 0"):
        SamplingConfig(guidance=1.0, distilled=True)
