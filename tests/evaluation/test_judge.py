"""The judge: learns what can be told apart, resumes bit for bit, keeps its verdicts in 8 bits, refuses bad input."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pleinair.evaluation.augment import augment
from pleinair.evaluation.judge_training import PROGRESS_FILE, JudgeProgress, JudgeTraining, schedule, train_judge
from pleinair.evaluation.metrics import Indices, concept_top1, style_accuracy
from pleinair.model.judge import Judge, JudgeConfig, Pictures, judge_pictures, load_judge, save_judge
from pleinair.records.errors import CheckpointError, ConfigError

STYLES, CONCEPTS = ("filled", "outline"), ("disc", "bar", "cross")
SMALL = JudgeConfig(
    style_names=STYLES,
    concept_names=CONCEPTS,
    widths=(8, 16),
    blocks=(0, 1),
    concept_features=8,
    style_features=4,
    epochs=1,
    batch_size=12,
)


def drawings(num: int, seed: int = 0) -> tuple[Pictures, Indices, Indices]:
    """Discs, bars and crosses, filled or in outline, in random colours and places on white."""
    rng = np.random.default_rng(seed)
    styles, concepts = rng.integers(2, size=num), rng.integers(3, size=num)
    down, across = np.mgrid[:64, :64].astype(float)
    pictures = np.full((num, 64, 64, 3), 255, dtype=np.uint8)
    for index in range(num):
        y, x = np.abs(down - rng.integers(28, 36)), np.abs(across - rng.integers(28, 36))
        depth = (
            22 - np.hypot(y, x),
            np.minimum(22 - y, 7 - x),
            np.minimum(22 - np.maximum(x, y), 7 - np.minimum(x, y)),
        )
        inside = depth[concepts[index]]
        shown = inside > 0 if styles[index] == 0 else (inside > 0) & (inside < 3)
        pictures[index][shown] = rng.integers(0, 160, size=3)
    return pictures, styles, concepts


@pytest.mark.slow
def test_a_small_judge_learns_styles_and_concepts_that_can_be_told_apart() -> None:
    config = dataclasses.replace(SMALL, epochs=12, batch_size=32, learning_rate=0.02, half_size_share=0.3)
    judge = train_judge(*drawings(384), config)
    pictures, styles, concepts = drawings(150, seed=1)
    scores = judge_pictures(judge, pictures)
    assert concept_top1(scores.concept_logits, concepts).value > 0.9
    assert style_accuracy(scores.style_logits, styles).value > 0.9


def test_a_resumed_training_gives_the_weights_of_an_undisturbed_one(tmp_path: Path) -> None:
    pictures, styles, concepts = drawings(36)
    config = dataclasses.replace(SMALL, epochs=3)
    undisturbed = train_judge(pictures, styles, concepts, config)

    first = JudgeTraining(config, num_pictures=36)
    for rows in first.batches():
        batch = torch.from_numpy(pictures[rows.numpy()]).permute(0, 3, 1, 2).float() / 255
        first.update(batch, torch.from_numpy(styles)[rows], torch.from_numpy(concepts)[rows])
        if first.step == 4:
            break
    first.save(tmp_path / PROGRESS_FILE)
    seen: list[JudgeProgress] = []
    resumed = train_judge(pictures, styles, concepts, config, seen.append, resume_dir=tmp_path)

    assert [(one.step, one.num_steps) for one in seen] == [(9, 9)]
    for name, tensor in undisturbed.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    pictures, styles, concepts = drawings(24)
    once = train_judge(pictures, styles, concepts, SMALL, resume_dir=tmp_path)
    seen: list[JudgeProgress] = []
    again = train_judge(pictures, styles, concepts, SMALL, seen.append, resume_dir=tmp_path)
    assert seen == []
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), again.parameters(), strict=True))


def test_progress_of_another_configuration_is_refused(tmp_path: Path) -> None:
    pictures, styles, concepts = drawings(24)
    train_judge(pictures, styles, concepts, SMALL, resume_dir=tmp_path)
    with pytest.raises(CheckpointError, match="remove it to start over"):
        train_judge(pictures, styles, concepts, dataclasses.replace(SMALL, seed=1), resume_dir=tmp_path)


def test_damaged_progress_is_refused(tmp_path: Path) -> None:
    (tmp_path / PROGRESS_FILE).write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00 not a header")
    with pytest.raises(CheckpointError, match="is damaged"):
        train_judge(*drawings(24), SMALL, resume_dir=tmp_path)


def test_the_embedding_has_length_one_and_its_cosine_is_the_mean_of_concept_and_style() -> None:
    scores = judge_pictures(Judge(SMALL), drawings(5)[0])
    concept, style = scores.embedding[:, :8], scores.embedding[:, 8:]
    assert np.allclose(np.linalg.norm(scores.embedding, axis=1), 1, atol=1e-5)
    cosines = (2 * concept @ concept.T + 2 * style @ style.T) / 2
    assert np.allclose(scores.embedding @ scores.embedding.T, cosines, atol=1e-5)


def test_verdicts_do_not_depend_on_the_batch() -> None:
    judge, (pictures, _, _) = Judge(SMALL), drawings(7)
    together, apart = judge_pictures(judge, pictures), judge_pictures(judge, pictures, batch_size=2)
    assert np.allclose(together.concept_logits, apart.concept_logits, atol=1e-4)
    assert together.style_logits.shape == (7, 2)


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(ValueError, match="no pictures to judge"):
        judge_pictures(Judge(SMALL), np.zeros((0, 64, 64, 3), np.uint8))


@pytest.mark.parametrize(("shape", "dtype"), [((2, 32, 32, 3), np.uint8), ((2, 64, 64, 3), np.float32)])
def test_pictures_of_another_size_or_dtype_are_refused(shape: tuple[int, ...], dtype: type) -> None:
    with pytest.raises(ValueError, match="resize them on white"):
        judge_pictures(Judge(SMALL), np.zeros(shape, dtype))


def test_a_saved_judge_keeps_names_and_verdicts_in_a_byte_per_weight(tmp_path: Path) -> None:
    pictures, styles, concepts = drawings(60)
    judge = train_judge(pictures, styles, concepts, SMALL)
    save_judge(judge, tmp_path / "judge.safetensors")
    loaded = load_judge(tmp_path / "judge.safetensors")

    assert loaded.config == SMALL
    before, after = judge_pictures(judge, pictures), judge_pictures(loaded, pictures)
    assert np.abs(before.embedding - after.embedding).max() < 0.03
    stored = load_file(tmp_path / "judge.safetensors")
    assert stored["concept_head.directions"].dtype == torch.int8
    assert sum(tensor.nbytes for tensor in stored.values()) < 1.3 * sum(one.numel() for one in judge.parameters())
    assert [path.name for path in tmp_path.iterdir()] == ["judge.safetensors"]


def test_a_file_that_is_no_judge_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    for name in ("text", "other", "missing"):
        with pytest.raises(CheckpointError, match=rf"{name}' holds no judge"):
            load_judge(tmp_path / name)


def test_a_judge_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    save_judge(Judge(SMALL), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="holds no judge"):
        load_judge(path)


@pytest.mark.parametrize(
    "wrong",
    [{"widths": (8,)}, {"style_names": ()}, {"epochs": 0}, {"half_size_share": 1.5}],
    ids=lambda one: next(iter(one)),
)
def test_a_setting_out_of_range_is_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong)).split("_")[0]):
        dataclasses.replace(SMALL, **wrong)  # type: ignore[arg-type]


def test_labels_that_do_not_fit_are_refused() -> None:
    pictures, styles, concepts = drawings(24)
    with pytest.raises(ValueError, match="24 pictures with 23 styles"):
        train_judge(pictures, styles[1:], concepts, SMALL)
    with pytest.raises(ValueError, match="concept labels reach 5 for 3"):
        train_judge(pictures, styles, concepts + 3, SMALL)


def test_augmentation_depends_on_its_generator_alone_and_leaves_white_white() -> None:
    pictures = torch.from_numpy(drawings(8)[0]).permute(0, 3, 1, 2).float() / 255
    once, kept = augment(pictures, torch.Generator().manual_seed(3))
    again, _ = augment(pictures, torch.Generator().manual_seed(3))
    assert torch.equal(once, again)
    assert kept.shape == (8,)
    blank, _ = augment(torch.ones(64, 3, 64, 64), torch.Generator().manual_seed(0))
    assert blank.mean() == pytest.approx(1, abs=0.02)


def test_every_step_augments_anew() -> None:
    still = JudgeTraining(dataclasses.replace(SMALL, epochs=9, learning_rate=0.0, weight_decay=0.0), num_pictures=12)
    pictures, styles, concepts = drawings(12)
    batch = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    labels = torch.from_numpy(styles), torch.from_numpy(concepts)
    assert still.update(batch, *labels)[0] != still.update(batch, *labels)[0]


def test_every_epoch_shows_each_picture_once_in_a_new_order() -> None:
    training = JudgeTraining(dataclasses.replace(SMALL, epochs=2), num_pictures=36)
    shown = []
    for rows in training.batches():
        shown.append(rows)
        training.step += 1
    first, second = torch.cat(shown[:3]).tolist(), torch.cat(shown[3:]).tolist()
    assert sorted(first) == sorted(second) == list(range(36))
    assert first != second


def test_the_rate_warms_up_and_ends_at_zero() -> None:
    assert schedule(0.0) < 0.002
    assert schedule(0.02) == pytest.approx(1, abs=0.01)
    assert schedule(1.0) == pytest.approx(0)


def test_progress_is_one_line_with_rate_and_time_left() -> None:
    progress = JudgeProgress(
        step=20, num_steps=40, concept_loss=2.5, style_loss=0.5, pictures_per_second=300, seconds_left=90
    )
    assert str(progress) == "judge: step 20 of 40, concept loss 2.50, style loss 0.50, 300 pictures/s, 1.5 min left"
