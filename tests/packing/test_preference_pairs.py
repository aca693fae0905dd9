"""Pairs are drawn as their records say, kept when the maker is killed, refused where their order is not sure."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pleinair.evaluation.people.strength import wilson
from pleinair.model.autoencoder import Autoencoder, AutoencoderConfig
from pleinair.model.pixels import to_bytes
from pleinair.model.text_encoder import FeatureProjection
from pleinair.packing import chosen_pairs, delta_pairs
from pleinair.packing.chosen_pairs import chosen_pictures, drawn_again, handed_in, make_event_pairs
from pleinair.packing.delta_pairs import DeltaConfig, make_delta_pairs, shortened
from pleinair.packing.pair_drawing import Source
from pleinair.packs.pairs import Pairs
from pleinair.records.errors import ConfigError, PackError, RewardError
from pleinair.records.pairs import PairsManifest, WayCheck
from pleinair.records.preferences import PreferenceEvent, ShownPicture, ShownSide
from pleinair.sampling import Sampler, SamplingConfig
from tests.packs.small_packs import Letters
from tests.small_transformers import random_transformer, tiny_config

TINY = tiny_config(
    width=32, num_heads=2, num_kv_heads=1, mlp_width=None, in_channels=4, patch_size=1, text_dim=4, num_text_layers=2,
    text_num_heads=1, text_num_kv_heads=1,
)  # fmt: skip
SMALL = AutoencoderConfig(widths=(8, 16), encoder_blocks=(1, 1), decoder_blocks=(1, 1), latent_channels=4)
SAMPLING = SamplingConfig(num_steps=3, resolution=16, guidance=2.0, precision="fp32", batch_size=5)
CONFIG = DeltaConfig(sampling=SAMPLING, fewer_steps=1, num_judged=6, when_unsure="say")
PROMPTS = [f"thing {number} in red" for number in range(9)]


def source(seed: int = 0) -> Source:
    torch.manual_seed(0)
    codec, projection = Autoencoder(SMALL).eval(), FeatureProjection(2, 8, 4)
    return Source(Sampler(random_transformer(TINY, seed), codec, Letters(), projection), f"weights {seed}")


def latents_of(pairs: Pairs, name: str) -> torch.Tensor:
    rows = [pairs.binary(f"{name}_latents", *row).copy() for row in pairs.rows_of(pairs.shapes[0])]
    return torch.stack([torch.from_numpy(row).view(torch.float16) for row in rows]).reshape(-1, *pairs.shapes[0])


def pictures(pairs: Pairs, name: str, policy: Source) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        return to_bytes(policy.sampler.codec.decode(latents_of(pairs, name).float())).astype(int)


def test_each_side_is_what_its_record_draws(tmp_path: Path) -> None:
    policy, earlier = source(0), source(1)
    config = replace(CONFIG, ways=delta_pairs.WAYS)
    make_delta_pairs(tmp_path / "pairs", PROMPTS, policy, config, earlier=earlier)
    pairs = Pairs(tmp_path / "pairs")
    sources = {one.identity: one.sampler for one in (policy, earlier)}
    for name in ("winner", "loser"):
        drawn = pictures(pairs, name, policy)
        for row, pair in enumerate(pairs):
            side = getattr(pair, name)
            told = {key: value for key, value in side.settings.items() if key != "prompt"}
            prompt = side.settings.get("prompt", pair.prompt)
            again = sources[side.checkpoint].sample([prompt], [side.seed], replace(SAMPLING, **told))[0]
            assert np.abs(again - drawn[row]).max() <= 2
    assert all(pair.winner.seed == pair.loser.seed for pair in pairs)
    assert len({pair.winner.seed for pair in pairs}) == len(PROMPTS)


def test_the_ways_come_in_turn_and_only_weak_ones_have_weak_winners(tmp_path: Path) -> None:
    config = replace(CONFIG, ways=delta_pairs.WAYS)
    make_delta_pairs(tmp_path / "pairs", PROMPTS, source(0), config, earlier=source(1))
    pairs = list(Pairs(tmp_path / "pairs"))
    steps, guidance, prompt, earlier, weak = pairs[:5]
    assert [pair.loser.settings["num_steps"] for pair in (steps, guidance, prompt, earlier, weak)] == [1, 3, 3, 3, 1]
    assert [pair.loser.settings["guidance"] for pair in (steps, guidance, prompt)] == [2.0, 0.0, 2.0]
    assert prompt.loser.settings["prompt"] == shortened(prompt.prompt, 0.5, 0)
    assert (earlier.winner.checkpoint, earlier.loser.checkpoint) == ("weights 0", "weights 1")
    assert {weak.winner.checkpoint, weak.loser.checkpoint} == {"weights 1"}
    assert [pair.weak_winner for pair in pairs[:5]] == [False] * 4 + [True]
    assert {pair.origin for pair in pairs} == {"synthetic"}
    assert len({pair.event for pair in pairs}) == len(pairs)
    assert Pairs(tmp_path / "pairs").share_on_policy("weights 0") == 8 / 9


def test_text_features_are_the_prompts_own_also_where_the_loser_saw_less_of_it(tmp_path: Path) -> None:
    policy = source()
    make_delta_pairs(tmp_path / "pairs", PROMPTS, policy, replace(CONFIG, ways=("prompt",)))
    pairs = Pairs(tmp_path / "pairs")
    expected = policy.sampler.projection(Letters().encode([PROMPTS[3]]).features_BTLD)[0].half()
    stored = torch.from_numpy(pairs.binary("text_features", 0, 3).copy()).view(torch.float16).reshape(-1, 2, 4)
    assert torch.equal(stored, expected)
    kept = load_file(pairs.directory / "feature_projection.safetensors")
    assert torch.equal(kept["basis_LDK"], policy.sampler.projection.basis_LDK)
    assert pairs.manifest.latent_space == policy.sampler.codec.describe().identity


def test_a_shortened_prompt_keeps_words_in_their_order_and_never_all() -> None:
    words = ["one", "two", "three", "four", "five", "six"]
    for share, count in ((0.5, 3), (0.9, 5), (0.99, 5), (0.0, 0)):
        kept = shortened(" ".join(words), share).split()
        assert len(kept) == count
        assert [word for word in words if word in kept] == kept
    assert shortened("fox", 0.5) == ""
    assert shortened("a b c d e f", 0.5, 1) != shortened("a b c d e f", 0.5, 2)


def test_a_killed_maker_goes_on_and_gives_the_same_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta_pairs, "PIECE", 4)
    calm = make_delta_pairs(tmp_path / "calm", PROMPTS, source(), CONFIG, reward=("dark", dark))

    def killed(done: int, total: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_delta_pairs(tmp_path / "pairs", PROMPTS, source(), CONFIG, reward=("dark", dark), on_progress=killed)
    looked: list[int] = []

    def counted(prompts: Sequence[str], seen: Any) -> Any:
        looked.append(len(prompts))
        return dark(prompts, seen)

    again = make_delta_pairs(tmp_path / "pairs", PROMPTS, source(), CONFIG, reward=("dark", counted))
    assert again == calm
    assert [piece.num_pairs for piece in again.pieces] == [4, 4, 1]
    assert looked == [], "what was said of the first pairs is kept"
    assert make_delta_pairs(tmp_path / "pairs", PROMPTS, source(), CONFIG, reward=("dark", dark)) == calm


def dark(prompts: Sequence[str], seen: Any) -> Any:
    """The darker the better."""
    return -np.asarray(seen, np.float32).mean((1, 2, 3))


def uneven(prompts: Sequence[str], seen: Any) -> Any:
    """Darker for even things, lighter for odd ones."""
    signs = [1 if int(prompt.split()[1]) % 2 else -1 for prompt in prompts]
    return np.array(signs, np.float32) * np.asarray(seen, np.float32).mean((1, 2, 3))


def test_a_reward_says_how_many_winners_are_better_and_too_few_are_refused(tmp_path: Path) -> None:
    manifest = make_delta_pairs(tmp_path / "said", PROMPTS, source(), CONFIG, reward=("uneven", uneven))
    gap, pairs, policy = manifest.gap, Pairs(tmp_path / "said"), source()
    values = [uneven(PROMPTS[:6], pictures(pairs, name, policy)[:6]) for name in ("winner", "loser")]
    assert gap is not None
    assert (gap.judged_by, gap.num_judged) == ("uneven", 6)
    assert gap.num_right == int((values[0] > values[1]).sum())
    assert gap.mean_gap == pytest.approx(float((values[0] - values[1]).mean()), abs=0.05)
    assert 0 < gap.num_right < 6, "else nothing below is tested"
    looks = iter((1.0, 0.0))

    def first_is_better(seen: Any) -> Any:
        """Winners are looked at first."""
        return np.full(len(seen), next(looks), np.float32)

    strict = replace(CONFIG, when_unsure="refuse", least_right=1.0)
    with pytest.raises(PackError, match=rf"{gap.num_right} of 6 winners \(.*\) are better than their losers by uneven"):
        make_delta_pairs(tmp_path / "refused", PROMPTS, source(), strict, reward=("uneven", uneven))
    assert list(tmp_path.iterdir()) == [tmp_path / "said"], "nothing half-made stays"
    sure = make_delta_pairs(
        tmp_path / "sure", PROMPTS, source(), strict, reward=("told", lambda p, seen: first_is_better(seen))
    )
    assert sure.gap is not None
    assert sure.gap.share == 1.0


def sure_of_even(looks: list[int]) -> Any:
    """Winners of even things are better, every second winner of odd ones is; winners are looked at first."""

    def score(prompts: Sequence[str], seen: Any) -> Any:
        looks.append(len(prompts))
        numbers = np.array([int(prompt.split()[1]) for prompt in prompts])
        better = np.where(numbers % 2 == 0, 1 + numbers % 3, np.where(numbers % 4 == 1, 2, -2))
        return better.astype(np.float32) if len(looks) % 2 else np.zeros(len(prompts), np.float32)

    return score


def test_a_way_whose_order_nothing_shows_is_left_out_also_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta_pairs, "PIECE", 8)
    looks: list[int] = []
    prompts, config = (
        [f"thing {number} in red" for number in range(20)],
        replace(CONFIG, ways=("steps", "guidance"), num_judged=16, when_unsure="drop"),
    )

    def killed(done: int, total: int) -> None:
        raise KeyboardInterrupt

    def make(name: str, **changes: Any) -> PairsManifest:
        reward = ("even", sure_of_even(looks))
        return make_delta_pairs(tmp_path / name, prompts, source(), config, reward=reward, **changes)

    calm = make("calm")
    with pytest.raises(KeyboardInterrupt):
        make("pairs", on_progress=killed)
    looks.clear()
    assert make("pairs") == calm
    assert looks == [], "what was said of the first pairs is kept"
    gap = calm.gap
    assert gap is not None
    assert (gap.dropped, gap.num_judged, gap.num_right, gap.mean_gap) == (("guidance",), 8, 8, 2.0)
    assert {way: (check.num_judged, check.num_right) for way, check in gap.by_way.items()} == {
        "steps": (8, 8), "guidance": (8, 4),
    }  # fmt: skip
    half = 1.96 * np.std([1, 3, 2, 1, 3, 2, 1, 3], ddof=1) / 8**0.5
    assert gap.by_way["steps"].interval == pytest.approx((2 - half, 2 + half))
    assert str(gap).endswith("left out, as nothing shows their order: guidance")
    pairs = list(Pairs(tmp_path / "pairs"))
    assert [pair.prompt for pair in pairs] == prompts
    assert {pair.loser.settings["num_steps"] for pair in pairs} == {1}


def test_no_way_whose_order_is_shown_and_nothing_that_looks_make_no_pairs(tmp_path: Path) -> None:
    config = replace(CONFIG, ways=("steps",), num_judged=9, when_unsure="drop")
    signs = {prompt: -1 if number < 4 else 1 for number, prompt in enumerate(PROMPTS)}
    looks: list[int] = []

    def undecided(prompts: Sequence[str], seen: Any) -> Any:
        looks.append(len(prompts))
        return np.array([signs[prompt] * (len(looks) % 2) for prompt in prompts], np.float32)

    said = r"in no way are winners better than their losers by coin with 95% confidence \(steps 5 of 9, by 0\.111 \("
    with pytest.raises(PackError, match=said):
        make_delta_pairs(tmp_path / "pairs", PROMPTS, source(), config, reward=("coin", undecided))
    for unsure in ("drop", "refuse"):
        with pytest.raises(ConfigError, match=f"when_unsure is {unsure} and nothing looks at the order of the pairs"):
            make_delta_pairs(tmp_path / "pairs", PROMPTS, source(), replace(config, when_unsure=unsure))
    assert list(tmp_path.iterdir()) == [], "nothing half-made stays"


@pytest.mark.parametrize(
    ("num_judged", "num_right", "low", "is_shown"),
    [(4, 4, 0.1, True), (3, 3, 0.1, False), (42, 28, 0.1, True), (42, 27, 0.1, False), (42, 42, -0.1, False)],
)
def test_an_order_is_shown_by_more_right_pairs_than_a_coin_gives_and_a_gap_above_zero(
    num_judged: int, num_right: int, low: float, is_shown: bool
) -> None:
    check = WayCheck(num_judged=num_judged, num_right=num_right, mean_gap=0.5, interval=(low, 0.9))
    assert check.is_shown == is_shown
    assert (wilson(num_right / num_judged, num_judged)[0] > 0.5) >= is_shown, "Wilson's interval is inverted"


@pytest.mark.parametrize("values", [np.array([0.0, np.nan] * 3), np.zeros(5), np.zeros((6, 1))])
def test_a_reward_that_gives_no_number_for_each_picture_is_refused(tmp_path: Path, values: Any) -> None:
    with pytest.raises(RewardError, match="the reward broken gave .* it must give one number for each"):
        make_delta_pairs(tmp_path / "pairs", PROMPTS, source(), CONFIG, reward=("broken", lambda p, seen: values))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ways": ("luck",)}, "ways is .*luck"),
        ({"ways": ()}, r"ways is \(\)"),
        ({"fewer_steps": 3}, "fewer_steps is 3: give 1 to 2"),
        ({"lower_guidance": 2.0}, "lower_guidance is 2.0: give 0 to below 2.0"),
        ({"kept_words": 1.0}, "kept_words is 1.0"),
        ({"least_right": 0.2}, "least_right is 0.2: half is chance"),
    ],
)
def test_ways_that_make_no_gap_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(CONFIG, **change)


def test_earlier_weights_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the way 'weak' draws with earlier weights: name their checkpoint"):
        make_delta_pairs(tmp_path / "pairs", PROMPTS, source(), replace(CONFIG, ways=("steps", "weak")))


def side(name: str, *units: str) -> ShownSide:
    shown = tuple(ShownPicture(unit=unit, seed=10 * number) for number, unit in enumerate(units))
    return ShownSide(subject=name, identity=f"id {name}", pictures=shown)


def event(left: ShownSide, right: ShownSide, **changes: Any) -> PreferenceEvent:
    plain: dict[str, Any] = {
        "event": str(uuid.uuid4()),
        "trial": str(uuid.uuid4()),
        "comparison": "c",
        "attribute": "prefer",
        "about": "",
        "question": "Which?",
        "left": left,
        "right": right,
        "prompts_sha256": "0",
        "answer": "left",
        "control": "",
        "repeat": False,
        "person": "ada",
        "origin": "human",
        "at": datetime(2026, 1, 1, tzinfo=UTC),
        "seconds": 2.0,
    }
    return PreferenceEvent(**{**plain, **changes})


FOX, HOUSE = "default: a fox", "specified: a house, noto style"
A, B = side("A", FOX, FOX), side("B", FOX, FOX)


def test_only_answers_of_people_that_hold_between_single_pictures_make_choices() -> None:
    kept, taken_back = event(A, B), event(A, B, trial="t")
    others = [
        event(A, B, answer="same"),
        event(A, B, answer="cannot_tell"),
        event(A, B, control="left"),
        event(A, B, origin="synthetic"),
        event(A, B, attribute="styles"),
        taken_back,
        replace(taken_back, event=str(uuid.uuid4()), answer="withdrawn"),
    ]
    assert {choice.event.event for choice in chosen_pictures([kept, *others])} == {kept.event}
    synthetic = chosen_pictures([kept, *others], origins=("synthetic",))
    assert {choice.event.origin for choice in synthetic} == {"synthetic"}


def test_pictures_of_equal_prompt_are_paired_and_the_chosen_sides_win() -> None:
    left, right = side("A", FOX, HOUSE, HOUSE), side("B", HOUSE, FOX)
    (first, second) = chosen_pictures([event(left, right, answer="right")])
    assert [choice.prompt for choice in (first, second)] == ["a house, noto style", "a fox"]
    for choice in (first, second):
        assert (choice.winner[0].subject, choice.loser[0].subject) == ("B", "A")
        assert choice.winner[1].unit == choice.loser[1].unit
    assert [(choice.winner[1].seed, choice.loser[1].seed) for choice in (first, second)] == [(0, 10), (10, 0)]


def test_pictures_of_events_are_drawn_again_with_the_weights_that_drew_them(tmp_path: Path) -> None:
    policy, other = source(0), source(1)
    finder = drawn_again({"id A": (policy, SAMPLING), "id B": (other, SAMPLING)})
    assert finder.checkpoints == {"id A": "weights 0", "id B": "weights 1"}
    choices = chosen_pictures([event(A, B), event(A, B, answer="right")])
    make_event_pairs(tmp_path / "pairs", choices, finder, policy.sampler)
    pairs = Pairs(tmp_path / "pairs")
    told = [(pair.winner.checkpoint, pair.loser.checkpoint, pair.origin) for pair in pairs]
    assert told == [("weights 0", "weights 1", "human")] * 2 + [("weights 1", "weights 0", "human")] * 2
    assert [pair.event for pair in pairs] == [choice.event.event for choice in choices]
    expected = other.sampler.sample(["a fox", "a fox"], [0, 10], SAMPLING)
    assert np.abs(pictures(pairs, "loser", policy)[:2] - expected).max() <= 2
    with pytest.raises(ConfigError, match=r"pictures of C .* were judged and nothing says what draws them"):
        finder.find(side("C", FOX), ShownPicture(unit=FOX, seed=0))


def test_pictures_that_are_handed_in_go_through_the_autoencoder(tmp_path: Path) -> None:
    policy = source()
    shown = {
        (one.identity, picture.unit, picture.seed): np.full((16, 16, 3), shade, np.uint8)
        for one, shade in ((A, 20), (B, 230))
        for picture in one.pictures
    }
    finder = handed_in(shown, {"id A": "weights 0"}, policy.sampler)
    make_event_pairs(tmp_path / "pairs", chosen_pictures([event(A, B)]), finder, policy.sampler)
    pairs = Pairs(tmp_path / "pairs")
    assert [(pair.winner.checkpoint, pair.loser.checkpoint) for pair in pairs] == [("weights 0", "")] * 2
    with torch.inference_mode():
        encoded = policy.sampler.codec.encode(torch.full((1, 3, 16, 16), 20 / 127.5 - 1))
    assert torch.allclose(latents_of(pairs, "winner")[0].float(), encoded[0], atol=1e-2)
    assert pairs.share_on_policy("weights 0") == 1.0
    with pytest.raises(ConfigError, match="seed 3, of A is not there: hand it in"):
        finder.find(A, ShownPicture(unit=FOX, seed=3))
    with pytest.raises(PackError, match="there are no pairs to write"):
        make_event_pairs(tmp_path / "none", [], finder, policy.sampler)


def test_pairs_of_a_corrected_mapping_of_checkpoints_are_others(tmp_path: Path) -> None:
    policy, choices = source(), chosen_pictures([event(A, B)])
    shown = {
        (one.identity, picture.unit, picture.seed): np.zeros((16, 16, 3), np.uint8)
        for one in (A, B)
        for picture in one.pictures
    }
    wrong, right = (handed_in(shown, {"id A": weights}, policy.sampler) for weights in ("weights 1", "weights 0"))
    first = make_event_pairs(tmp_path / "pairs", choices, wrong, policy.sampler)
    assert make_event_pairs(tmp_path / "pairs", choices, wrong, policy.sampler) == first
    with pytest.raises(PackError, match="holds other pairs"):
        make_event_pairs(tmp_path / "pairs", choices, right, policy.sampler)
    make_event_pairs(tmp_path / "corrected", choices, right, policy.sampler)
    assert Pairs(tmp_path / "corrected").share_on_policy("weights 0") == 1.0


def test_chosen_pairs_of_another_autoencoder_are_others(tmp_path: Path) -> None:
    policy, choices = source(), chosen_pictures([event(A, B)])
    shown = {(one.identity, FOX, seed): np.zeros((16, 16, 3), np.uint8) for one in (A, B) for seed in (0, 10)}
    another = replace(policy.sampler, codec=Autoencoder(SMALL).eval())
    make_event_pairs(tmp_path / "pairs", choices, handed_in(shown, {}, policy.sampler), policy.sampler)
    with pytest.raises(PackError, match="holds other pairs"):
        make_event_pairs(tmp_path / "pairs", choices, handed_in(shown, {}, another), another)


def test_a_killed_maker_of_chosen_pairs_goes_on_and_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chosen_pairs, "PIECE", 2)
    policy, found = source(), list[str]()
    left, right = (side(name, FOX, FOX, FOX) for name in "AB")
    shown = {
        (name, FOX, seed): np.full((16, 16, 3), seed, np.uint8) for name in ("id A", "id B") for seed in (0, 10, 20)
    }
    choices = chosen_pictures([event(left, right, trial=trial) for trial in "tu"])
    plain = handed_in(shown, {"id A": "weights 0"}, policy.sampler)

    def noted(side: ShownSide, picture: ShownPicture) -> Any:
        found.append(side.subject)
        return plain.find(side, picture)

    def killed(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    calm = make_event_pairs(tmp_path / "calm", choices, plain, policy.sampler)
    with pytest.raises(KeyboardInterrupt):
        make_event_pairs(tmp_path / "pairs", choices, plain, policy.sampler, on_progress=killed)
    assert make_event_pairs(tmp_path / "pairs", choices, replace(plain, find=noted), policy.sampler) == calm
    assert found == ["A", "B"] * 2, "those of the last piece alone"
    assert len({pair.key for pair in Pairs(tmp_path / "pairs")}) == 6
