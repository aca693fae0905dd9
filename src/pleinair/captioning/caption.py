"""From curated rows to captioned ones: the queue stages run to the end, and what it cost."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pleinair.captioning.config import CaptioningConfig
from pleinair.captioning.stages import STAGES, TOWER, claim_scorer, declare_stages, settings_text
from pleinair.endpoints import ChatClient, Cost, Spending
from pleinair.krablet import Database, Progress, RunSummary, StageSpec, Table, run_workers
from pleinair.records.errors import ConfigError
from pleinair.records.wording import Wording

_FUNCTIONS = {"ocr": "ocr", "describe": "describe_rows", "reformat": "reformat_rows", "check": "check_rows"}


@dataclass(frozen=True)
class Captioned:
    """A captioning that ended."""

    run: RunSummary
    costs: tuple[Cost, ...]
    """What endpoints were asked, over all runs with this account."""
    spent: str
    """The sentence that says the budget is spent; empty while it is not."""
    claims: Mapping[str, int]
    """Claims of all checked pictures: how many hold, fail, and could not be judged."""


def caption(
    db: Database,
    images: Table,
    config: CaptioningConfig | None = None,
    *,
    store: Path,
    place: Path,
    small_model: Path,
    wording: Wording | None = None,
    tower: Path | None = None,
    processes: int = 2,
    again: str = "",
    give_up_after: int = 4,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Captioned:
    """Caption and check every picture that curation kept. It may be stopped anywhere; the same call goes on.

    `place` is the folder of the reply cache and the account of costs, `small_model` that of SmolLM2, `wording` how captions
    name kinds of pictures and styles, `tower` the image-text model for `scorer=tower`. `again` is a stage from which all
    rows are done anew; answers already paid for come from the cache. Raises ConfigError before anything is done when a key
    or that model is missing.
    """
    config = config or CaptioningConfig()
    _check_keys(config, place)
    if config.scorer == TOWER:
        _check_tower(images, tower, store)
    stages = declare_stages(images)
    if again:
        _take_back(images, again)
    arguments = _arguments(images, config, store, place, small_model, wording or Wording(), tower)
    specs: list[StageSpec] = [
        stages[name].spec(f"pleinair.captioning.stages:{_FUNCTIONS[name]}", **arguments[name]) for name in STAGES
    ]
    spending = Spending(place / "spending.sqlite", config.budget)
    try:
        failing = [0]

        def watch(now: Progress) -> None:
            failing[0] = sum(stage.failed for stage in now.stages)
            on_progress(now)

        # Cached answers cost nothing, so a spent budget ends the run only once rows have failed for it.
        run = run_workers(
            db,
            specs,
            processes=processes,
            give_up_after=give_up_after,
            on_progress=watch,
            stop=lambda: failing[0] > 0 and bool(spending.spent()),
        )
        spent = spending.spent() if any(run.failed.values()) else ""
        return Captioned(run, tuple(spending.report()), spent, claim_counts(images))
    finally:
        spending.close()


def _check_keys(config: CaptioningConfig, place: Path) -> None:
    for endpoint in (config.captioner, config.writer, config.verifier):
        if endpoint:
            ChatClient(endpoint, stage="start", place=place).close()


def _check_tower(images: Table, tower: Path | None, store: Path) -> None:
    """Raises ConfigError where no model was trained or nothing is embedded by its encoder."""
    if tower is None:
        raise ConfigError(
            "scorer=tower needs the image-text model: give tower=PATH, the file that 'pleinair tower' wrote"
        )
    encoder = claim_scorer(str(tower), str(store)).encoder_name
    embedded = "embedding_path" in images.columns
    if not embedded or not images.count("embedding_name = %(encoder)s", params={"encoder": encoder}):
        raise ConfigError(
            f"scorer=tower needs vectors of {encoder}, and no picture has one: run 'pleinair embed' first"
        )


def _arguments(
    images: Table,
    config: CaptioningConfig,
    store: Path,
    place: Path,
    small_model: Path,
    wording: Wording,
    tower: Path | None,
) -> dict[str, dict[str, Any]]:
    """What each stage's function is called with; must survive JSON."""
    shared = {
        "place": str(place.resolve()),
        "config": settings_text(config),
        "wording": json.dumps(wording.to_document(), sort_keys=True),
    }
    where = str(store.resolve())
    return {
        "ocr": {"store": where, "reader": config.ocr},
        "describe": {"store": where, **shared},
        "reformat": {**shared, "small_model": str(small_model)},
        "check": {"store": where, **shared, "rivals": _rivals(images, config, wording), "tower": str(tower or "")},
    }


def _rivals(images: Table, config: CaptioningConfig, wording: Wording) -> dict[str, list[str]]:
    """Other labels and styles of this table, the same ones in every run over the same rows."""
    if config.scorer in ("", TOWER):
        return {}
    labels: set[str] = set()
    styles: set[str] = set()
    for batch in images.read(where="label IS NOT NULL", columns=["label", "style", "source"]):
        labels.update(batch.column("label").to_pylist())
        styles.update(filter(None, map(wording.style, batch.to_pylist())))
    chosen = random.Random(0).sample(sorted(labels), min(config.num_rivals, len(labels)))
    return {"subject": chosen, "style": sorted(styles)}


def _take_back(images: Table, stage: str) -> None:
    """Make a stage and those after it look at every row again."""
    names = list(STAGES)
    if stage not in names:
        raise ConfigError(f"again is {stage!r}: use one of {', '.join(names)}")
    verdicts = {f"{name}_drop": None for name in names[names.index(stage) :]}
    for batch in images.read(where=f"{stage}_drop IS NOT NULL", columns=["image_name"]):
        images.update({"image_name": name, "failed_rounds": 0, **verdicts} for name in batch.column(0).to_pylist())


def claim_counts(images: Table) -> dict[str, int]:
    """How many claims of checked pictures hold, fail, or could not be judged."""
    counts = {"hold": 0, "fail": 0, "unknown": 0}
    names = {True: "hold", False: "fail", None: "unknown"}
    for batch in images.read(where="check_drop IS NOT NULL", columns=["claims"]):
        for stored in batch.column(0).to_pylist():
            for claim in json.loads(stored) if stored else []:
                counts[names[claim["holds"]]] += 1
    return counts
