"""A link of reinforcement learning whose rewards are served by another process, which is killed while it is climbed."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pleinair.checkpoint.store import read_manifest
from pleinair.cli.reward_places import JUDGE, find_rewards
from pleinair.config import override
from pleinair.posttraining.chain import run_chain
from pleinair.posttraining.links import Chain
from pleinair.records.errors import RewardError
from pleinair.rewards.kept import kept
from pleinair.rewards.picture_judge import save_picture_judge
from pleinair.training.records import read_records
from tests.posttraining.small_chains import materials, small_chain, write_base, write_packs
from tests.rewards.shapes import picture_judge

KILLED_AT = 2
"""The last step of the second iteration; the third needs the server."""


class Server:
    """`pleinair rewards serve` of a folder, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, 0
        self.start()

    def start(self) -> None:
        words = ["rewards", "serve", str(self.folder), "--reward", "rubric", "--port", str(self.port)]
        # One thread, or sums of another order are other numbers.
        told = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pleinair.cli.main", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=told)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.url = line.split()[0]
        assert "serves rubric" in line
        self.port = int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


class KillsServer:
    """Kills the server when a step is done."""

    def __init__(self, server: Server, step: int) -> None:
        self.server, self.step = server, step

    def after_step(self, run: Any, record: Any) -> Mapping[str, float]:
        if record.step == self.step:
            self.server.kill()
        return {}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    write_packs(folder)
    write_base(folder / "base")
    save_picture_judge(picture_judge(), folder / "rewards" / JUDGE)
    return folder


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Server]:
    running = Server(place / "rewards")
    yield running
    running.kill()


def climbing(limits: Sequence[str]) -> Chain:
    """Four iterations of one update, on prompts that a served rubric answers."""
    link = small_chain().rl
    assert link is not None
    settings = {**vars(link), "num_iterations": 4, "batch_size": 8, "weights": {"rubric": 1.0}}
    return override(small_chain(midtrain=None, sft=None, stpo=None, tdm=None, rl=type(link)(**settings)), limits)


def climbed(
    place: Path,
    name: str,
    rewards: str,
    hooks: Sequence[Any] = (),
    said: list[str] | None = None,
    limits: Sequence[str] = (),
) -> Path:
    """The last checkpoint of a run whose rewards are where the option says."""
    options = argparse.Namespace(rewards=rewards, rewards_key_variable="", rewards_patience=0.5)
    made = materials(place, hooks=lambda link: hooks, said=said)
    unknown = ("a dragon with nothing of a name", "", "")
    found = kept(find_rewards(options, ["rubric"], ""), place / name / "rewards")
    made = type(made)(**{**vars(made), "rewards": found, "prompts": [*made.prompts, unknown]})
    (base,) = (place / "base").glob("step-*")
    return run_chain(climbing(limits), base, place / name, made)


def weights(checkpoint: Path) -> dict[str, str]:
    """Hashes of what was learnt."""
    return {name: entry.sha256 for name, entry in read_manifest(checkpoint).files.items() if "safetensors" in name}


@pytest.fixture(scope="module")
def calm(place: Path, server: Server) -> Path:
    return climbed(place, "calm", server.url)


def test_a_served_rubric_is_climbed_as_one_in_this_process(place: Path, server: Server, calm: Path) -> None:
    said: list[str] = []
    here = climbed(place, "here", str(place / "rewards"), said=said)
    assert any("1 of 7 prompts are left out" in one for one in said), said
    for run in (calm, here):
        rollouts = sorted((place / run.relative_to(place).parts[0]).rglob("rollout.json"))
        assert len(rollouts) == 4
        told = [json.loads(path.read_text())["facts"]["groups"] for path in rollouts]
        assert not any("dragon" in group["prompt"] for groups in told for group in groups)
        assert any(group["squares"] > 0 for groups in told for group in groups), "else there is nothing to climb"
    logged = [read_records(run.parents[1] / "steps.jsonl") for run in (calm, here)]
    for served, local in zip(*logged, strict=True):
        assert served.loss == pytest.approx(local.loss, rel=1e-3, abs=1e-6)


def test_a_run_whose_server_is_killed_stops_and_goes_on_bit_for_bit_when_it_is_back(
    place: Path, server: Server, calm: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        RewardError, match=r"rubric gave no answer for \d s, at last ConnectError.*see that its server runs"
    ):
        climbed(place, "killed", server.url, [KillsServer(server, KILLED_AT - 1)])
    assert "rubric: ConnectError" in capfd.readouterr().err, "and said so before it stopped"
    root = place / "killed" / "4-rl"
    assert sorted(path.name for path in (root / "rollouts").iterdir()) == ["iteration-00000000", "iteration-00000001"]
    assert (root / "checkpoints" / f"step-{KILLED_AT:08d}").is_dir(), "every step that was made is kept"
    with pytest.raises(RewardError, match="gave no answer"):
        climbed(place, "killed", server.url)
    server.start()
    again = climbed(place, "killed", server.url, limits=["rl.statistics.leap=1000"])
    assert "transformer.safetensors" in weights(again)
    assert weights(again) == weights(calm), "the optimiser's too, whatever the limits of a broken reward are by now"
    drawn = [sorted(run.parents[1].rglob("part-*.safetensors")) for run in (again, calm)]
    assert [path.read_bytes() for path in drawn[0]] == [path.read_bytes() for path in drawn[1]]
    losses = [[record.loss for record in read_records(run.parents[1] / "steps.jsonl")] for run in (again, calm)]
    assert losses[0] == losses[1]
