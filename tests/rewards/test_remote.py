"""Rewards behind real HTTP on loopback: the same values, and whatever goes wrong on the way said, waited for, or refused."""

from __future__ import annotations

import dataclasses
import json
import socket
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pleinair.endpoints import Endpoint
from pleinair.records.errors import ConfigError, RewardError
from pleinair.records.rewards import Pictures, Reward, RewardContext, RewardValues
from pleinair.rewards.combine import MixConfig, RewardMix
from pleinair.rewards.diversity import DiversityReward
from pleinair.rewards.gold import Gold
from pleinair.rewards.identity import bounds_of, unanswerable_by
from pleinair.rewards.kept import KeptReward, kept
from pleinair.rewards.remote import RemoteConfig, RemoteReward, along_groups
from pleinair.rewards.server import serving
from pleinair.rewards.wire import Question, from_answer, from_body, prompts_of, to_body
from pleinair.rewards.writing import WritingReward
from tests.endpoints.servers import Answer, script, serve
from tests.rewards.shapes import context
from tests.rewards.small_rewards import Brightness, Told, noise


def remote(url: str, name: str = "brightness", say: list[str] | None = None, **changes: Any) -> RemoteReward:
    endpoint = Endpoint(url=url, model=name, timeout_seconds=2.0, longest_wait_seconds=0.1)
    config = dataclasses.replace(RemoteConfig(endpoint=endpoint, patience_seconds=5.0), **changes)
    return RemoteReward(config, say=(say if say is not None else []).append)


PROMPTS = ["a fox", "a key", "", "a key", "a fox", "a very long prompt"]
GROUPS = [0, 1, 2, 1, 0, 3]


def equal(one: RewardValues, other: RewardValues) -> None:
    for part in ("values", "gates", "applies"):
        told, expected = getattr(one, part), getattr(other, part)
        assert set(told) == set(expected), part
        for name in told:
            np.testing.assert_array_equal(told[name], expected[name], err_msg=name)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_served_reward_gives_the_values_it_gives_here(batch_size: int) -> None:
    here = Brightness()
    with serving([Brightness()]) as url:
        given = remote(url, batch_size=batch_size).score(PROMPTS, noise(6), context(GROUPS))
    expected = here.score(PROMPTS, noise(6), context(GROUPS))
    for name in expected.values:
        applies = expected.applies.get(name, np.True_)
        np.testing.assert_array_equal(given.values[name], np.where(applies, expected.values[name], given.values[name]))
    equal(RewardValues(values={}, gates=given.gates, applies=given.applies),
          RewardValues(values={}, gates=expected.gates, applies=expected.applies))  # fmt: skip


def test_groups_travel_whole() -> None:
    features = np.random.default_rng(0).normal(size=(8 * 8 * 3, 4))

    def of(pictures: Pictures) -> Any:
        return pictures.reshape(len(pictures), -1).astype(float) @ features

    reward, told = (
        DiversityReward(of),
        dataclasses.replace(context([0, 1, 0, 1, 0, 1]), passes=(True, False, *[True] * 4)),
    )
    with serving([reward]) as url:
        given = remote(url, "diversity", batch_size=2).score(PROMPTS, noise(6), told)
    expected = reward.score(PROMPTS, noise(6), told)
    np.testing.assert_array_equal(given.values["diversity"], expected.values["diversity"])


def test_batches_hold_groups_whole_and_no_more_than_asked_where_that_can_be() -> None:
    batches = along_groups([5, 5, 1, 1, 1, 2, 5, 3], batch_size=3)
    assert [batch.tolist() for batch in batches] == [[0, 1, 6], [2, 3, 4], [5, 7]]
    assert [len(batch) for batch in along_groups([0] * 5, batch_size=2)] == [5]


def test_a_question_survives_the_wire_and_what_is_none_is_refused() -> None:
    known = RewardContext(seeds=(2**62, 0), groups=(0, 0), checkpoint="w", passes=(True, False))
    asked = Question("a", ("\u72d0\u72f8", 'say "x"'), noise(2), known)
    assert prompts_of(b'{"reward": "a", "prompts": ["x"]}') == ("a", ["x"])
    with pytest.raises(ValueError, match="no question about prompts"):
        prompts_of(b'{"reward": "a"}')
    again = from_body(to_body(asked))
    assert (again.reward, again.prompts, again.context) == (asked.reward, asked.prompts, asked.context)
    np.testing.assert_array_equal(again.pictures, asked.pictures)
    for body in (b"", b"{}", b"[1]", to_body(asked).replace(b"[2, 8, 8, 3]", b"[2, 8, 8, 4]")):
        with pytest.raises(ValueError, match="no question to a reward"):
            from_body(body)


def test_a_server_that_comes_back_is_waited_for_and_nothing_is_lost() -> None:
    said: list[str] = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers: list[RewardValues] = []
    reward = remote(f"http://127.0.0.1:{port}", say=said)
    asking = threading.Thread(target=lambda: answers.append(reward.score(PROMPTS, noise(6), context(GROUPS))))
    asking.start()
    while not said:
        time.sleep(0.01)
    with serving([Brightness()], port=port):
        asking.join(timeout=10)
    assert len(answers) == 1
    np.testing.assert_array_equal(
        answers[0].values["brightness"],
        Brightness().score(PROMPTS, noise(6), context(GROUPS)).values["brightness"],
    )
    assert len(said) == 2
    assert "the run pauses, for up to 5 s" in said[0]
    assert "answers again" in said[1]


def test_patience_ends_with_a_sentence() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(RewardError, match=r"brightness gave no answer for \d s, at last ConnectError"):
        remote(url, patience_seconds=0.3).score(PROMPTS, noise(6), context(GROUPS))


class Slow(Brightness):
    """Takes its time."""

    def score(self, prompts: Sequence[str], pictures: Pictures, context: RewardContext) -> RewardValues:
        time.sleep(1.0)
        return super().score(prompts, pictures, context)


def test_a_server_that_is_too_slow_pauses_the_run_and_then_stops_it() -> None:
    said: list[str] = []
    endpoint = Endpoint(url="http://x", model="brightness", timeout_seconds=0.2, longest_wait_seconds=0.1)
    with (
        serving([Slow()]) as url,
        pytest.raises(RewardError, match=r"no answer within 0\.2 s: see that its server runs"),
    ):
        remote(url, say=said, endpoint=dataclasses.replace(endpoint, url=url), patience_seconds=0.6).score(
            PROMPTS, noise(6), context(GROUPS)
        )
    assert len(said) == 1


class Refuses(Brightness):
    def score(self, prompts: Sequence[str], pictures: Pictures, context: RewardContext) -> RewardValues:
        raise RewardError("the judge has lost its glasses")


class Breaks(Brightness):
    """Breaks twice, then works."""

    def score(self, prompts: Sequence[str], pictures: Pictures, context: RewardContext) -> RewardValues:
        if self.num_asked < 2:
            self.num_asked += 1
            raise RuntimeError("out of memory")
        return super().score(prompts, pictures, context)


def test_what_a_reward_refuses_is_said_at_once_and_what_breaks_is_tried_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with serving([Refuses()]) as url, pytest.raises(RewardError, match="the judge has lost its glasses"):
        remote(url).score(PROMPTS, noise(6), context(GROUPS))
    said: list[str] = []
    with serving([Breaks()]) as url:
        remote(url, say=said).score(PROMPTS, noise(6), context(GROUPS))
    assert "status 500: the reward broke with RuntimeError: out of memory" in said[0]
    assert "out of memory" in capsys.readouterr().err


BROKEN = [
    (Brightness(spoil=lambda values: values * np.float32("nan")), "brightness is nan for 6 of 6 pictures"),
    (Brightness(spoil=lambda values: values[:4]), r"brightness has shape \(4,\) for 6 pictures"),
    (Told("brightness", {"darkness": [1.0] * 6}), "gave 'darkness': the names"),
    (Told("brightness", {}), "gave no value at all"),
]


@pytest.mark.parametrize(("broken", "why"), BROKEN)
def test_values_that_are_none_stop_a_run_at_once(broken: Reward, why: str) -> None:
    with serving([broken]) as url, pytest.raises(RewardError, match=why):
        remote(url).score(PROMPTS, noise(6), context(GROUPS))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("<html>", "which is no JSON"),
        ("[]", "in another form than a reward's"),
        ('{"values": {"brightness": "high"}}', "in another form than a reward's"),
        ('{"values": {"brightness": [1, 2, 3, 4, 5, null]}}', "brightness is nan for 1 of 6"),
        (
            '{"values": {"brightness": [1, 2, 3, 4, 5, 6]}, "gates": {"brightness.lit": [1, 1, 1, 1, 1, 1]}}',
            "another form",
        ),
    ],
)
def test_a_server_of_something_else_is_found_out(body: str, why: str) -> None:
    with serve(script(Answer(body))) as served, pytest.raises(RewardError, match=why):
        remote(served.url).score(PROMPTS, noise(6), context(GROUPS))


def test_a_run_goes_on_as_if_nothing_had_been_once_a_broken_server_is_mended() -> None:
    mended = threading.Event()

    def spoil(values: Any) -> Any:
        return values if mended.is_set() else values * np.float32("nan")

    with serving([Brightness(spoil=spoil)]) as url:
        mix = RewardMix([remote(url)], MixConfig(weights={"brightness": 1.0}))
        with pytest.raises(RewardError):
            mix.assess(PROMPTS, noise(6), context(GROUPS))
        assert mix.state() == {}
        mended.set()
        given = mix.assess(PROMPTS, noise(6), context(GROUPS))
    here = RewardMix([Brightness()], MixConfig(weights={"brightness": 1.0}))
    np.testing.assert_array_equal(given.advantages, here.assess(PROMPTS, noise(6), context(GROUPS)).advantages)


class Swapped(Brightness):
    """Other weights under the same name."""

    identity = "brightness of version 2"


def test_a_server_that_comes_back_with_another_reward_is_found_out() -> None:
    with serving([Brightness()]) as url:
        reward = remote(url)
        reward.score(PROMPTS, noise(6), context(GROUPS))
        port = int(url.rsplit(":", 1)[1])
    with serving([Swapped()], port=port), pytest.raises(RewardError, match="started with something else"):
        reward.score(PROMPTS, noise(6), context(GROUPS))


def test_a_server_answers_several_batches_at_once_and_each_reward_in_its_turn() -> None:
    at_once = {"now": 0, "most": 0}

    def spoil(values: Any) -> Any:
        at_once["now"] += 1
        at_once["most"] = max(at_once["most"], at_once["now"])
        time.sleep(0.02)
        at_once["now"] -= 1
        return values

    with serving([Brightness(spoil=spoil)]) as url:
        remote(url, batch_size=1).score(PROMPTS, noise(6), context(range(6)))
    assert at_once == {"now": 0, "most": 1}


def test_a_key_is_asked_for_and_never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving([Brightness()], key="sesame") as url:
        with pytest.raises(RewardError, match="with status 401: the key is missing or another"):
            remote(url).score(PROMPTS, noise(6), context(GROUPS))
        monkeypatch.setenv("REWARD_KEY", "sesame")
        endpoint = Endpoint(url=url, model="brightness", key_variable="REWARD_KEY")
        RemoteReward(RemoteConfig(endpoint=endpoint)).score(PROMPTS, noise(6), context(GROUPS))
        monkeypatch.delenv("REWARD_KEY")
        with pytest.raises(ConfigError, match="REWARD_KEY is not set"):
            RemoteReward(RemoteConfig(endpoint=endpoint))


def test_what_is_served_openly_or_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="open to everyone"), serving([Brightness()], host="0.0.0.0"):
        pass
    with pytest.raises(ConfigError, match="each its own"), serving([Brightness(), Brightness()]):
        pass
    with serving([Brightness()]) as url:
        port = int(url.rsplit(":", 1)[1])
        with pytest.raises(ConfigError, match="cannot be served on"), serving([Brightness()], port=port):
            pass


def test_a_reward_the_server_does_not_have_is_named_and_those_it_has_are_told() -> None:
    with serving([Brightness(), Told("told", [1.0])]) as url:
        with pytest.raises(RewardError, match="there is no reward 'other'"):
            remote(url, "other").score(PROMPTS, noise(6), context(GROUPS))
        with pytest.raises(RewardError, match="serves no reward 'other'"):
            _ = remote(url, "other").identity
        served = remote(url)
        assert (served.identity, served.parts, served.pointwise) == (
            Brightness.identity, Brightness.parts, True,
        )  # fmt: skip
        assert not remote(url, "told").pointwise
        with pytest.raises(ConfigError, match="built on the same, with brightness"):
            RewardMix([served], MixConfig(weights={"brightness": 1.0}), gold=[Gold(Brightness("gold judge"))])


class Choosy(Brightness):
    """Says nothing of prompts without a word, and where its values lie."""

    bounds = (0.0, 30.0)

    def unanswerable(self, prompts: Sequence[str]) -> list[str]:
        return [prompt for prompt in prompts if not prompt]


def test_a_served_reward_tells_its_bounds_and_the_prompts_it_has_no_value_for(tmp_path: Path) -> None:
    with serving([Choosy(), Told("told", [1.0])]) as url:
        reward, other, listed = remote(url), remote(url, "told"), remote(url)
        assert (reward.bounds, other.bounds, listed.bounds) == ((0.0, 30.0), None, (0.0, 30.0))
        assert reward.unanswerable(PROMPTS) == [""]
        assert other.unanswerable(PROMPTS) == []
        (remembered,) = kept([reward], tmp_path)
        assert unanswerable_by(remembered, PROMPTS) == [""]
        assert bounds_of(remembered) == (0.0, 30.0)
        port = int(url.rsplit(":", 1)[1])
    with serving([Swapped()], port=port):
        with pytest.raises(RewardError, match="started with something else"):
            reward.unanswerable(PROMPTS)
        with pytest.raises(RewardError, match="started with something else"):
            listed.score(PROMPTS, noise(6), context(GROUPS))


class Earlier(BaseHTTPRequestHandler):
    """A server of the version before bounds and questions about prompts."""

    def do_GET(self) -> None:
        body = json.dumps(
            {"rewards": [{"name": "brightness", "identity": "old", "parts": [], "pointwise": True}]}
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


def test_a_server_of_an_earlier_version_serves_as_before() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Earlier)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        reward = remote(f"http://127.0.0.1:{server.server_port}")
        assert (reward.identity, reward.bounds, reward.unanswerable(PROMPTS)) == ("old", None, [])
    finally:
        server.shutdown()
        server.server_close()


def test_values_of_a_served_reward_outside_its_bounds_stop_a_run() -> None:
    with serving([Choosy(spoil=lambda values: values + 100)]) as url:
        mix = RewardMix([remote(url)], MixConfig(weights={"brightness": 1.0}))
        with pytest.raises(RewardError, match="brightness is 10.* says that its values lie in 0 to 30"):
            mix.assess(PROMPTS, noise(6), context(GROUPS))


def test_only_answers_that_are_dear_are_remembered(tmp_path: Path) -> None:
    local, group = Brightness(), Told("told", [1.0])
    reads = WritingReward(lambda picture: "SALE")
    with serving([Brightness("far"), Told("whole", [1.0])]) as url:
        rewards = [local, group, reads, remote(url, "far"), remote(url, "whole")]
        found = kept(rewards, tmp_path)
    assert [isinstance(one, KeptReward) for one in found] == [False, False, True, True, False]


def test_values_are_remembered_by_prompt_and_picture(tmp_path: Path) -> None:
    pictures, here = noise(6), Brightness()
    with serving([here]) as url:
        kept = KeptReward(remote(url), tmp_path)
        first = kept.score(PROMPTS, pictures, context(GROUPS))
        assert (kept.num_asked, kept.num_found, here.num_asked) == (6, 0, 6)
    # The server is gone: what was asked is known, in another process too.
    again = KeptReward(Brightness(), tmp_path)
    equal(again.score(PROMPTS, pictures, context(GROUPS)), first)
    backwards = again.score(PROMPTS[::-1], pictures[::-1], context(GROUPS[::-1]))
    np.testing.assert_array_equal(backwards.values["brightness"], first.values["brightness"][::-1])
    assert (again.num_asked, again.num_found) == (0, 12)
    again.score(["another prompt", *PROMPTS[1:]], pictures, context(GROUPS))
    assert again.num_asked == 1
    again.score(PROMPTS, np.concatenate([255 - pictures[:1], pictures[1:]]), context(GROUPS))
    assert again.num_asked == 2
    kept.close()
    again.close()


def test_the_same_picture_twice_in_a_batch_is_asked_about_once(tmp_path: Path) -> None:
    kept = KeptReward(Brightness(), tmp_path)
    given = kept.score(["a fox"] * 3, np.stack([noise(1)[0]] * 3), context([0] * 3))
    assert kept.num_asked == 1
    assert len(set(given.values["brightness"].tolist())) == 1
    kept.close()


def test_a_broken_answer_is_not_remembered(tmp_path: Path) -> None:
    broken = KeptReward(Brightness(spoil=lambda values: values * np.float32("nan")), tmp_path)
    with pytest.raises(RewardError):
        broken.score(PROMPTS, noise(6), context(GROUPS))
    broken.close()
    sound = KeptReward(Brightness(), tmp_path)
    assert np.isfinite(sound.score(PROMPTS, noise(6), context(GROUPS)).values["brightness"]).all()
    assert sound.num_found == 0
    sound.close()
    outside = KeptReward(Choosy(spoil=lambda values: values + 100), tmp_path / "other")
    for _ in range(2):
        with pytest.raises(RewardError, match="lie in 0 to 30"):
            outside.score(PROMPTS, noise(6), context(GROUPS))
    assert outside.num_found == 0
    outside.close()


def test_a_reward_that_looks_at_the_whole_group_is_not_remembered(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="diversity cannot be remembered"):
        KeptReward(DiversityReward(lambda pictures: pictures.reshape(len(pictures), -1)), tmp_path)


def test_an_answer_of_another_form_names_the_reward() -> None:
    with pytest.raises(RewardError, match="rubric answered in another form"):
        from_answer({"values": {"rubric": [[1.0]]}}, "rubric")
