from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pleinair.flow import euler
from pleinair.flow.stochastic import Window, coefficients, log_probability, transition
from pleinair.model.text_encoder import EncodedText
from pleinair.records.errors import CheckpointError, ConfigError, RewardError
from pleinair.records.rewards import Assessment, Pictures, RewardContext
from pleinair.sampling import SamplingConfig
from pleinair.training.engine import read_records
from pleinair.training.hooks.rewards import Earnings
from pleinair.training.mesh import Mesh
from pleinair.training.rollouts.drawing import DrawingConfig, PromptFeatures, draw_groups, pictures_of
from pleinair.training.rollouts.loader import RolloutConfig, Rollouts
from pleinair.training.rollouts.pool import PromptPool
from pleinair.training.rollouts.stored import part_name, read_facts, read_rollout
from tests.packs.small_packs import Letters
from tests.training.small_rollouts import CONFIG, DRAWING, PROMPTS, Brightness, rollouts, run_grpo, tiny_sampler

SEEDS = tuple(range(100, 108))


def losses(directory: Path) -> list[float]:
    return [record.loss for record in read_records(directory / "steps.jsonl")]


def test_the_batches_of_an_iteration_hold_each_of_its_pictures_once_an_epoch(tmp_path: Path) -> None:
    loader = rollouts(tmp_path, num_epochs=2)
    assert loader.steps_per_iteration == 4
    batches = [loader.batch(step) for step in range(4)]
    epochs = [batches[0].keys + batches[1].keys, batches[2].keys + batches[3].keys]
    assert [len(set(keys)) for keys in epochs] == [8, 8]
    assert set(epochs[0]) == set(epochs[1])
    assert epochs[0] != epochs[1], "each epoch has an order of its own"
    assert [batch.num_updates for batch in batches] == [0, 1, 2, 3]
    assert [loader.keys(step) for step in range(4)] == [batch.keys for batch in batches]
    stored = read_rollout(tmp_path / "iteration-00000000")
    rows = {key: row for row, key in enumerate(loader._names(stored.facts, list(range(8))))}
    for batch in batches:
        places = [rows[key] for key in batch.keys]
        assert torch.equal(batch.states_BSCHW, stored.trajectory.states_BSCHW[places])
        assert batch.advantages_B.tolist() == stored.assessment.advantages[places].tolist()
        assert batch.timesteps_BS.tolist() == [list(stored.facts.window_timesteps)] * 4


def test_the_assessor_sees_whole_groups_their_seeds_and_whose_weights_drew_them(tmp_path: Path) -> None:
    assessor = Brightness()
    loader = rollouts(tmp_path, assessor=assessor)
    loader.batch(0)
    (context,) = assessor.contexts
    facts = read_facts(tmp_path / "iteration-00000000")
    assert context.groups == (0, 0, 0, 0, 1, 1, 1, 1)
    assert context.seeds == facts.seeds
    assert len(set(context.seeds)) == 8
    assert context.checkpoint == facts.policy != ""


def test_a_stored_rollout_reads_back_as_it_was_said_and_drawn(tmp_path: Path) -> None:
    sampler = tiny_sampler()
    rollouts(tmp_path, sampler).batch(0)
    stored = read_rollout(tmp_path / "iteration-00000000")
    facts, trajectory = stored.facts, stored.trajectory
    drawn = draw_groups(
        sampler, PromptFeatures(Letters(), sampler.projection), [group.prompt for group in facts.groups], facts.seeds,
        DRAWING, facts.window,
    )  # fmt: skip
    assert torch.equal(drawn.states_BSCHW, trajectory.states_BSCHW)
    pictures = pictures_of(sampler, trajectory.samples_BCHW, 64)
    said = Brightness().assess(facts.prompts, pictures, RewardContext(seeds=facts.seeds, groups=facts.group_numbers))
    assert stored.assessment.reward.tolist() == said.reward.tolist()
    assert stored.assessment.values["contrast"].tolist() == said.values["contrast"].tolist()
    assert stored.assessment.gates["lit"].tolist() == said.gates["lit"].tolist()
    for number, group in enumerate(facts.groups):
        rewards = said.reward[4 * number : 4 * number + 4].astype(np.float64)
        assert group.mean == pytest.approx(rewards.mean(), abs=1e-12)
        assert group.squares == pytest.approx(4 * rewards.var(), abs=1e-12)


def test_stored_probabilities_are_those_of_the_weights_that_drew(tmp_path: Path) -> None:
    sampler = tiny_sampler()
    batch = rollouts(tmp_path, sampler).batch(0)
    for place in range(2):
        x, now, later = (
            values[:, place + offset]
            for values, offset in ((batch.states_BSCHW, 0), (batch.timesteps_BS, 0), (batch.timesteps_BS, 1))
        )
        with torch.no_grad():
            velocity = sampler.transformer(x, now.float(), batch.text_features_BTLD, batch.text_mask_BT)
        given = transition("cps", x, velocity, now, later, 0.8)
        again = log_probability(batch.states_BSCHW[:, place + 1], given)
        assert torch.allclose(again, batch.log_probabilities_BW[:, place], atol=1e-5)


def draw(config: DrawingConfig, window: Window, seeds: Sequence[int] = SEEDS) -> Any:
    sampler = tiny_sampler()
    features = PromptFeatures(Letters(), sampler.projection)
    return draw_groups(sampler, features, ["fox", "sea"], seeds, config, window)


def test_a_picture_is_a_function_of_its_seed_whatever_is_drawn_beside_it() -> None:
    window = Window(first=1, size=2)
    together, apart = (draw(replace(DRAWING, batch_size=size), window) for size in (64, 4))
    assert torch.allclose(together.samples_BCHW, apart.samples_BCHW, atol=1e-5)
    others = draw(DRAWING, window, [7, *SEEDS[1:]])
    assert torch.allclose(together.samples_BCHW[1:], others.samples_BCHW[1:], atol=1e-5)
    assert not torch.allclose(together.samples_BCHW[0], others.samples_BCHW[0], atol=0.1)


def test_without_a_window_the_picture_is_the_samplers_own_without_guidance() -> None:
    sampler = tiny_sampler()
    drawn = draw(replace(DRAWING, window_size=0), Window(first=0, size=0))
    config = SamplingConfig(num_steps=4, guidance=0.0, shift_mu=0.5, resolution=8, precision="fp32")
    expected = sampler.sample(["fox"] * 4 + ["sea"] * 4, SEEDS, config)
    assert np.abs(pictures_of(sampler, drawn.samples_BCHW, 3).astype(int) - expected.astype(int)).max() <= 1


def test_every_step_of_the_window_adds_noise_of_its_own() -> None:
    drawn, schedule = draw(DRAWING, Window(first=0, size=2)), DRAWING.schedule()
    noises = []
    for step in range(2):
        deviation = coefficients("cps", schedule[step], schedule[step + 1], 0.8).deviation
        noises.append((drawn.states_BSCHW[:, step + 1] - drawn.means_BWCHW[:, step]) / float(deviation))
    for noise in noises:
        assert noise.std() == pytest.approx(1, abs=0.25)
    assert abs(float((noises[0] * noises[1]).mean())) < 0.35
    assert abs(float((noises[0] * drawn.states_BSCHW[:, 0]).mean())) < 0.35, "nor is it the noise that it began with"


def test_members_that_share_their_noise_part_at_the_window() -> None:
    drawn = draw(replace(DRAWING, shared_noise=True), Window(first=1, size=2))
    starts = drawn.states_BSCHW[:, 0]
    assert all(torch.equal(starts[row], starts[0]) for row in range(4))
    assert not torch.equal(starts[4], starts[0])
    assert not torch.allclose(drawn.samples_BCHW[0], drawn.samples_BCHW[1], atol=0.1)
    alone = draw(DRAWING, Window(first=1, size=2), [SEEDS[0]] * 4 + [SEEDS[4]] * 4)
    assert torch.allclose(starts, alone.states_BSCHW[:, 0], atol=1e-5), "the noise is that of the group's first seed"


class CountingLetters(Letters):
    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode(self, prompts: Sequence[str]) -> EncodedText:
        self.encoded += prompts
        return super().encode(prompts)


def test_each_prompt_is_encoded_once_and_the_empty_one_never(tmp_path: Path) -> None:
    encoder = CountingLetters()
    loader = rollouts(tmp_path, replace(tiny_sampler(), text_encoder=encoder))
    for step in range(12):
        loader.batch(step)
    assert len(list(tmp_path.glob("iteration-*"))) == 6
    assert sorted(encoder.encoded) == sorted(set(encoder.encoded))
    assert set(encoder.encoded) <= set(PROMPTS)


def test_the_window_moves_over_all_its_places_and_never_takes_the_last_step_of_cps() -> None:
    firsts = {DRAWING.window(0, iteration).first for iteration in range(40)}
    assert firsts == {0, 1}
    assert {replace(DRAWING, sde="flow").window(0, iteration).first for iteration in range(40)} == {0, 1, 2}
    assert replace(DRAWING, window_first=1).window(0, 3) == Window(first=1, size=2)


def test_prompts_are_chosen_by_all_that_was_stored_before_whoever_stored_it(tmp_path: Path) -> None:
    loader = rollouts(tmp_path)
    for step in range(0, 12, 2):
        loader.batch(step)
    pool = loader.pool
    known = pool.nothing_known()
    for iteration in range(6):
        facts = read_facts(tmp_path / f"iteration-{iteration:08d}")
        assert tuple(group.prompt for group in facts.groups) == pool.choose(known, iteration, 2, 0)
        known = pool.fold(known, iteration, facts.groups)
    late = rollouts(tmp_path)
    late.batch(12)
    facts = read_facts(tmp_path / "iteration-00000006")
    assert tuple(group.prompt for group in facts.groups) == pool.choose(known, 6, 2, 0)


def test_a_run_that_goes_on_uses_what_these_weights_drew_and_draws_anew_what_others_did(tmp_path: Path) -> None:
    sampler, assessor, said = tiny_sampler(), Brightness(), list[str]()
    first = rollouts(tmp_path, sampler, assessor).batch(0)
    again = rollouts(tmp_path, sampler, assessor).batch(0)
    assert len(assessor.contexts) == 1
    assert torch.equal(first.states_BSCHW, again.states_BSCHW)
    other = rollouts(tmp_path, tiny_sampler(seed=1), assessor, said).batch(0)
    assert said == ["iteration-00000000 was drawn by other weights than these: it is drawn again"]
    assert not torch.equal(first.means_BWCHW, other.means_BWCHW)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iteration-00000000", "iteration-00000000.1"]
    rollouts(tmp_path, tiny_sampler(seed=1), assessor, said, noise_level=0.5).batch(0)
    assert said[1:] == ["iteration-00000000.1 was drawn with other settings or rewards than these: it is drawn again"]
    resumed = rollouts(tmp_path, tiny_sampler(seed=1))
    newest = read_rollout(tmp_path / "iteration-00000000.2").trajectory.samples_BCHW
    assert torch.equal(resumed.batch(1).samples_BCHW, newest[resumed._rows(1)])


class Named(Brightness):
    """Tells what it is made of."""

    def __init__(self, identity: str) -> None:
        super().__init__()
        self.identity = identity


def test_what_another_assessor_said_or_another_autoencoder_drew_is_not_learned_from(tmp_path: Path) -> None:
    sampler, said = tiny_sampler(), list[str]()
    rollouts(tmp_path, sampler, Named("one"), said).batch(0)
    rollouts(tmp_path, sampler, Named("one"), said).batch(0)
    assert said == []
    rollouts(tmp_path, sampler, Named("two"), said).batch(0)
    rollouts(tmp_path, replace(sampler, codec=tiny_sampler(seed=1).codec), Named("two"), said).batch(0)
    assert said == [
        f"iteration-00000000{generation} was drawn with other settings or rewards than these: it is drawn again"
        for generation in ("", ".1")
    ]


def test_a_damaged_rollout_is_drawn_again_at_its_first_step_and_refused_inside(tmp_path: Path) -> None:
    said = list[str]()
    rollouts(tmp_path).batch(0)
    tensors = tmp_path / "iteration-00000000" / part_name(0)
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(CheckpointError, match="damaged: part-00000.safetensors does not match its hash"):
        rollouts(tmp_path).batch(1)
    rollouts(tmp_path, said=said).batch(0)
    assert said == [
        f"the rollout {tmp_path / 'iteration-00000000'} is damaged: part-00000.safetensors does not match its hash; it is "
        "drawn again"
    ]


def test_a_step_inside_an_iteration_needs_its_rollout(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="step 1 goes on inside iteration 0, whose rollout is not in"):
        rollouts(tmp_path).batch(1)
    with pytest.raises(
        CheckpointError, match="has no rollout of iteration 0, and iteration 1 chooses its prompts by it"
    ):
        rollouts(tmp_path).batch(2)


def spoilt(**changes: Any) -> Callable[[Assessment], Assessment]:
    return lambda good: replace(good, **{name: change(getattr(good, name).copy()) for name, change in changes.items()})


def _nan_at(place: int) -> Callable[[Any], Any]:
    def change(values: Any) -> Any:
        values[place] = np.nan
        return values

    return change


class Spoilt(Brightness):
    """Breaks its answer to one iteration, until it is mended."""

    def __init__(self, at: int, spoil: Callable[[Assessment], Assessment] | None) -> None:
        super().__init__()
        self.at, self.spoil = at, spoil

    def assess(self, prompts: Sequence[str], pictures: Pictures, context: RewardContext) -> Assessment:
        good = super().assess(prompts, pictures, context)
        if len(self.contexts) - 1 != self.at:
            return good
        if self.spoil is None:
            raise RewardError("reward 'brightness' answers with status 500: start its server, then run again")
        return self.spoil(good)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (spoilt(advantages=_nan_at(5)), "advantages of iteration 2 are not finite for 1 of 8 pictures, the first nan"),
        (spoilt(reward=_nan_at(0)), "reward of iteration 2 are not finite"),
        (
            spoilt(advantages=lambda values: values[:3]),
            r"has 8 pictures and the assessor's advantages have shape \(3,\)",
        ),
        (None, "reward 'brightness' answers with status 500"),
    ],
)
def test_a_broken_reward_stops_the_run_and_loses_nothing(
    tmp_path: Path, spoil: Callable[[Assessment], Assessment] | None, sentence: str
) -> None:
    run_grpo(tmp_path / "calm", 4)
    with pytest.raises(RewardError, match=sentence):
        run_grpo(tmp_path / "broken", 4, assessor=Spoilt(2, spoil), keep_every=3)
    stored = sorted(path.name for path in (tmp_path / "broken" / "rollouts").iterdir())
    assert stored == ["iteration-00000000", "iteration-00000001"], "and nothing of the broken iteration"
    assert (tmp_path / "broken" / "checkpoints" / "step-00000003").is_dir()
    run_grpo(tmp_path / "broken", 4, keep_every=3)
    assert losses(tmp_path / "broken") == losses(tmp_path / "calm")


def test_rollouts_are_refused_where_they_cannot_be(tmp_path: Path) -> None:
    sampler, pool = tiny_sampler(), PromptPool(PROMPTS)

    def loader(config: RolloutConfig, batch_size: int = 4, mesh: Mesh | None = None) -> Rollouts:
        return Rollouts(
            sampler, Brightness(), pool, config, tmp_path, batch_size=batch_size, seed=0, mesh=mesh or Mesh()
        )

    with pytest.raises(ConfigError, match="batch_size is 3 and an iteration has 8 pictures: give a divisor"):
        loader(CONFIG, batch_size=3)
    with pytest.raises(ConfigError, match="num_groups is 5 and the pool has 4 prompts"):
        loader(replace(CONFIG, num_groups=5))
    with pytest.raises(ConfigError, match="this run has 2 ranks for 1 shares of data.*set the mesh's tensor=1"):
        loader(CONFIG, mesh=Mesh(rank=1, world_size=2))
    with pytest.raises(ConfigError, match="num_groups is 2, batch_size 4 and there are 4 ranks: give multiples"):
        loader(CONFIG, mesh=Mesh(world_size=4, num_data_ranks=4))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"window_size": 4}, "window_size is 4: give 0 to 3, the steps that may be stochastic"),
        ({"window_first": 2}, "window_first is 2: a window of 2 begins at 0 to 1"),
        ({"noise_level": 0.0}, "noise_level is 0.0: it must be positive"),
        ({"shared_noise": True, "window_size": 0}, "shared_noise without a window gives equal pictures"),
        ({"num_steps": 0}, "num_steps is 0: give at least 1"),
    ],
)
def test_a_drawing_that_cannot_be_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        replace(DRAWING, **changes)


def test_training_draws_without_guidance_what_euler_draws_before_the_window() -> None:
    """The states at the window's start are the conditional flow's, for each prompt its own."""
    sampler = tiny_sampler()
    drawn = draw(DRAWING, Window(first=2, size=1))
    features = PromptFeatures(Letters(), sampler.projection).of(["sea"])
    noise = torch.stack([torch.randn(4, 2, 2, generator=torch.Generator().manual_seed(seed)) for seed in SEEDS[4:]])
    with torch.no_grad():
        text = copy.deepcopy(sampler.transformer).eval().encode_text(features.features_BTLD, features.mask_BT)
        many = replace(text, tokens_BTD=text.tokens_BTD.expand(4, -1, -1), mask_BT=None)
        reached = euler(lambda x, t: sampler.transformer.denoise(x, t, many), noise, DRAWING.schedule()[:3])
    assert torch.allclose(drawn.states_BSCHW[4:, 0], reached, atol=1e-5)


def test_a_rollout_of_another_layout_is_called_damaged(tmp_path: Path) -> None:
    rollouts(tmp_path).batch(0)
    document = tmp_path / "iteration-00000000" / "rollout.json"
    document.write_text(json.dumps({"facts": {"iteration": 0}, "parts": []}))
    with pytest.raises(CheckpointError, match=r"its rollout.json cannot be read \(RolloutFacts is incomplete"):
        read_facts(tmp_path / "iteration-00000000")


def test_tensors_of_old_iterations_go_where_asked_and_prompts_are_still_chosen_by_them(tmp_path: Path) -> None:
    run_grpo(tmp_path / "all", 4)
    run_grpo(tmp_path / "few", 4, keep=2)
    kept = sorted(path.parent.name for path in (tmp_path / "few" / "rollouts").glob("*/part-00000.safetensors"))
    assert kept == ["iteration-00000002", "iteration-00000003"]
    assert losses(tmp_path / "few") == losses(tmp_path / "all")
    with pytest.raises(CheckpointError, match=r"iteration-00000001 has no part-00000.safetensors any more"):
        read_rollout(tmp_path / "few" / "rollouts" / "iteration-00000001")


def test_each_iteration_tells_what_it_earned_by_reward_and_by_gate(tmp_path: Path) -> None:
    sampler = tiny_sampler()
    loader = rollouts(tmp_path / "rollouts", sampler, HalfFlat())
    run_grpo(tmp_path, 2, sampler=sampler, loader=loader, hooks=[Earnings(loader)])
    records = read_records(tmp_path / "steps.jsonl")
    assert ["rollout/reward" in record.metrics for record in records] == [True, False, True, False]
    for iteration, record in enumerate(records[::2]):
        said = read_rollout(tmp_path / "rollouts" / f"iteration-{iteration:08d}").assessment
        told = {name.removeprefix("rollout/"): value for name, value in record.metrics.items() if "rollout/" in name}
        assert told == pytest.approx(
            {
                "reward": said.reward.mean(),
                "deviation": np.mean([group.std() for group in said.reward.reshape(2, 4)]),
                "flat_groups": 0.5,
                "brightness": said.values["brightness"].mean(),
                "contrast": said.values["contrast"].mean(),
                "passes/lit": said.gates["lit"].mean(),
            },
            rel=1e-5,
        )


class HalfFlat(Brightness):
    """Has nothing to say of the second group."""

    def assess(self, prompts: Sequence[str], pictures: Pictures, context: RewardContext) -> Assessment:
        good = super().assess(prompts, pictures, context)
        return replace(good, advantages=np.where(np.array(context.groups) == 1, 0, good.advantages).astype(np.float32))


class Learning(Brightness):
    """Its advantages shrink with the number of pictures it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.num_seen = 0

    def assess(self, prompts: Sequence[str], pictures: Pictures, context: RewardContext) -> Assessment:
        good = super().assess(prompts, pictures, context)
        self.num_seen += len(pictures)
        return replace(good, advantages=good.advantages / np.float32(self.num_seen))

    def state(self) -> dict[str, Any]:
        return {"num_seen": self.num_seen}

    def load_state(self, state: dict[str, Any]) -> None:
        self.num_seen = state.get("num_seen", 0)


def test_an_assessor_that_learns_on_the_way_goes_on_with_what_it_knew(tmp_path: Path) -> None:
    run_grpo(tmp_path / "calm", 4, assessor=Learning())
    for iterations in (2, 4):  # the second process has an assessor that knows nothing
        with pytest.raises(RewardError) if iterations == 2 else nullcontext():
            run_grpo(tmp_path / "stopped", 4, assessor=LearningUntil(iterations), keep_every=3)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "calm")


class LearningUntil(Learning):
    def __init__(self, iterations: int) -> None:
        super().__init__()
        self.iterations = iterations

    def assess(self, prompts: Sequence[str], pictures: Pictures, context: RewardContext) -> Assessment:
        if self.num_seen >= 8 * self.iterations:
            raise RewardError("reward 'brightness' cannot be reached: start its server, then run again")
        return super().assess(prompts, pictures, context)
