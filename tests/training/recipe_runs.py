"""Runs of recipes as the command line makes them, from pictures in memory: no warehouse, seconds each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from pleinair.checkpoint.store import digest_file
from pleinair.cli.main import build_parser, main
from pleinair.cli.parts import Parts
from pleinair.cli.places import shipped
from pleinair.cli.steps import pack_step
from pleinair.cli.workspace import Workspace, open_workspace
from pleinair.model.judge import load_judge
from pleinair.packing.pictures import CuratedPicture
from pleinair.sampling.shipped import load_autoencoder
from pleinair.training.records import StepRecord, read_records

STYLES = ("noto", "blob", "twemoji")
CONCEPTS = ("red-apple", "banana", "rocket", "house", "fish", "key", "guitar", "sun")
TINY = (
    "transformer.num_kv_heads=1",
    "transformer.num_heads=2",
    "transformer.width=64",
    "transformer.num_layers=2",
    "phases=({'resolution': 16, 'num_steps': 4, 'batch_size': 8}, {'resolution': 32, 'num_steps': 4, 'batch_size': 8})",
    "engine.num_threads=1",
    "engine.checkpoint_seconds=1000",
    "engine.optimiser.warmup_steps=1",
    "watch.validation.every=4",
    "loader.caption_weights=None",
    "sampling.num_steps=2",
    "sampling.guidance=1",
)


def pictures(styles: Sequence[str] = STYLES) -> list[CuratedPicture]:
    """A coloured shape for every pair, one pair in four held out."""
    made = []
    for row, concept in enumerate(CONCEPTS):
        for column, style in enumerate(STYLES):
            pixels = np.full((32, 32, 3), 255, np.uint8)
            pixels[4 + row : 20 + row, 6 : 12 + 4 * column] = (30 * row, 80 * column, 200 - 20 * row)
            words = concept.replace("-", " ")
            captions = (
                f"a drawing of a {words} in the middle of a white page, {style} style, with corners and one colour",
                f"a {words} on white, {style} style",
                f"a {words}, {style} style",
            )
            sizes = {32: pixels, 16: pixels[::2, ::2]}
            held_out = (row + column) % 4 == 0
            made.append(CuratedPicture(f"{style}/{concept}", style, concept, words, held_out, captions, sizes))
    return [picture for picture in made if picture.style in styles]


@cache
def parts() -> Parts:
    place = shipped("autoencoder")
    return Parts(load_autoencoder(place), digest_file(place).sha256, load_judge(shipped("judge")))


def arguments(runs: Path, *settings: str, recipe: str = "demo") -> list[str]:
    words = [word for setting in (*TINY, *settings) for word in ("--set", setting)]
    return [recipe, "--runs", str(runs), "--home", str(runs / "home"), *words]


def packed(runs: Path, *settings: str, recipe: str = "demo", of: Sequence[CuratedPicture] | None = None) -> Workspace:
    """The run's workspace, its pack written."""
    work = open_workspace(build_parser().parse_args(["train", *arguments(runs, *settings, recipe=recipe)]))
    pack_step(work, list(of or pictures()), parts())
    return work


def trained(runs: Path, *settings: str, recipe: str = "demo") -> list[StepRecord]:
    """Train from the pack that is there, by the command line."""
    assert main(["train", *arguments(runs, *settings, recipe=recipe)]) == 0
    name = next((one.partition("=")[2] for one in settings if one.startswith("name=")), recipe)
    return read_records(runs / name / "steps.jsonl")
