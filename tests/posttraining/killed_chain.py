"""Forks a chain, kills it in every link, forks it again: `python -m tests.posttraining.killed_chain DIR`.

    midtrain:1      step 1 of midtraining is done, and a checkpoint of step 1 may hold it
    outline:0       one specialist is done, the other has begun
    merged          the merge is written and has no name yet
    pairs:1         pairs are written in part: the second piece is about to get its name
    stpo:1  calibrate:1  rl:2  tdm:0      in those links' steps
    measured.json   a link is done and drawn, and its numbers have no name yet
    sft student:1  rl:2      in another chain, whose specialists teach one student, which is then climbed by DiffusionNFT

Between `stpo` and `calibrate` a life ends by itself, in which choices are made among pictures of what `stpo` gave.
SIGKILL is real each time. Prints how many steps all lives of each chain together made.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pleinair.packing import delta_pairs
from pleinair.packs.pair_writer import PairsWriter
from pleinair.posttraining.chain import run_chain
from pleinair.posttraining.compared import run_compared
from pleinair.posttraining.links import Chain
from pleinair.training.engine import Hook
from tests.posttraining.small_chains import materials, on_policy, small_chain, write_base, write_packs
from tests.posttraining.small_events import choose_in_place_of_people
from tests.training.killed_rollouts import die, forked

CHOOSE = "choose"
LIVES: dict[str, tuple[str, ...]] = {
    "calm": (CHOOSE, ""),
    "killed": (
        "midtrain:1", "sft outline:0", "merged", "measured.json:2-sft", "pairs:1", "stpo:1", CHOOSE, "calibrate:1", "rl:2",
        "tdm:0", "measured.json:5-tdm", "",
    ),
    "calm-student": ("",),
    "killed-student": ("sft outline:1", "sft student:1", "rl:2", ""),
}  # fmt: skip


def main() -> None:
    directory = Path(sys.argv[1])
    assert forked(lambda: [write_base(directory / "base"), write_packs(directory)]) == 0
    for name, lives in LIVES.items():
        for moment in lives:
            code = forked(lambda name=name, moment=moment: live(directory, name, moment))  # type: ignore[misc]
            assert code == (0 if moment in (CHOOSE, "") else -signal.SIGKILL), f"{name} {moment}: ended with {code}"
    print(json.dumps({name: len((directory / f"{name}.steps").read_text().split()) for name in LIVES}))


def chain_of(name: str, events: str) -> Chain:
    """The whole one, or SFT with a student and NFT."""
    whole = small_chain(events=events)
    if not name.endswith("student"):
        return whole
    assert whole.sft is not None
    assert whole.rl is not None
    drawing = replace(whole.rl.rollout.drawing, window_size=0)
    nft = replace(whole.rl, method="nft", rollout=replace(whole.rl.rollout, drawing=drawing))
    return small_chain(midtrain=None, stpo=None, tdm=None, sft=on_policy(whole.sft), rl=nft)


def live(directory: Path, name: str, moment: str) -> None:
    delta_pairs.PIECE = 4  # two pieces of the eight pairs
    what, _, number = moment.partition(":")
    if what == "pairs":
        kill_at_piece(int(number))
    if what in ("merged", "measured.json"):
        kill_at_rename(what, number or "2-sft")
    note, events = directory / f"{name}.steps", directory / f"{name}.chosen"
    base = next((directory / "base").glob("step-*"))

    def hooks(link: str) -> Sequence[Hook]:
        return [Killer(note, link, int(number) if link == what else None)]

    made = materials(directory, hooks=hooks)
    if moment == CHOOSE:
        stpo = run_chain(small_chain(), base, directory / name, made, "stpo")
        choose_in_place_of_people(events, stpo, base, made)
    else:
        run_compared(chain_of(name, str(events) if events.exists() else ""), base, directory / name, made)


def kill_at_rename(name: str, folder: str) -> None:
    """Die where what is named so in this folder is whole, and about to appear."""
    rename = os.replace

    def replaced(source: Any, target: Any) -> None:
        if Path(target).name == name and Path(target).parent.name == folder:
            assert Path(source).exists()
            die()
        rename(source, target)

    os.replace = replaced  # type: ignore[assignment]


def kill_at_piece(number: int) -> None:
    """Die where so many pieces are written and another is about to be."""
    add, count = PairsWriter.add, [0]

    def adding(self: PairsWriter, *told: Any) -> None:
        if count[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        count[0] += 1
        add(self, *told)

    PairsWriter.add = adding  # type: ignore[method-assign]


class Killer:
    """Notes every step, and dies after one."""

    def __init__(self, note: Path, link: str, deadly: int | None) -> None:
        self.note, self.link, self.deadly = note, link, deadly

    def after_step(self, run: Any, record: Any) -> Mapping[str, float]:
        with self.note.open("a") as file:
            file.write(f"{self.link.replace(' ', '-')}:{record.step}\n")
        if record.step == self.deadly:
            die()
        return {}


if __name__ == "__main__":
    main()
