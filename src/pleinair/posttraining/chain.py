"""A chain from its base to its last link: each link a run below one folder, started from the link before.

    RUNS/NAME/ chain.json, index.html
               1-midtrain/ checkpoints/ steps.jsonl  link.json   <- written when the link is done
               2-sft/solid/ line/ merged/            link.json
               3-stpo/ pairs/ checkpoints/ ...       link.json
               3b-calibrate/ checkpoints/ ...        link.json
               4-rl/   rollouts/ checkpoints/ ...    link.json
               5-tdm/  checkpoints/ ...              link.json

Started again after any end, a link whose `link.json` names the same parent and settings is not done again, and one under
way goes on by the engine's own checkpoints.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pleinair.checkpoint.store import verify_checkpoint
from pleinair.config import config_digest, from_document, to_document, write_config
from pleinair.packs.pairs import read_pairs_manifest
from pleinair.posttraining.links import Chain, Link, LinkName, PreferenceLink, RewardLink, folder_of
from pleinair.posttraining.materials import Materials, check, identity_at, reward_identities
from pleinair.posttraining.training import Place, train_link
from pleinair.records.errors import CheckpointError, ConfigError
from pleinair.training.records import read_records

DONE = "link.json"


@dataclass(frozen=True, kw_only=True)
class Done:
    """A link that is done."""

    link: str
    checkpoint: str
    """Its last one, relative to the link's folder."""
    identity: str
    """Of that checkpoint."""
    parent: str
    """Identity of what it started from."""
    settings: str
    """Digest of its settings."""
    num_steps: int
    """Steps that were made: fewer than asked for where it ended itself."""
    seconds: float
    """Of all steps, and of what the last try did beside them (pairs, merging)."""


def run_chain(
    chain: Chain,
    base: Path,
    root: Path,
    made: Materials,
    until: str | None = None,
    after_link: Callable[[LinkName, Path, Done], None] = lambda name, checkpoint, done: None,
) -> Path:
    """Do every link that is not done, up to `until`; the last checkpoint.

    `after_link` is called with each, done now or before. Raises the errors of `materials.check` before any work.
    """
    links = chain.links(until)
    check(chain, base, made, until)
    root.mkdir(parents=True, exist_ok=True)
    write_config(chain, root / "chain.json")
    checkpoint = base
    for name, link in links.items():
        place = Place(chain, name, root / folder_of(name), checkpoint, made)
        checkpoint, done = do_link(place, link)
        after_link(name, checkpoint, done)
    return checkpoint


def do_link(place: Place, link: Link) -> tuple[Path, Done]:
    """One link: trained, or found done."""
    place.folder.mkdir(parents=True, exist_ok=True)
    settings, parent = settings_digest(place, link), identity_at(place.parent)
    found = read_done(place.folder)
    if found is not None and (found.parent, found.settings) == (parent, settings):
        checkpoint = place.folder / found.checkpoint
        try:
            if identity_at(checkpoint) == found.identity:
                verify_checkpoint(checkpoint)
                place.made.say(f"{place.name}: done before")
                return checkpoint, found
        except CheckpointError as damaged:
            place.made.say(f"{damaged}; the link {place.name} goes on from what is left")
    began, before = time.monotonic(), sum(_step_seconds(place.folder, link.batch_size))
    checkpoint = train_link(place, link)
    steps = _step_seconds(place.folder, link.batch_size)
    beside = max(0.0, time.monotonic() - began - (sum(steps) - before))
    done = Done(
        link=place.name,
        checkpoint=str(checkpoint.relative_to(place.folder)),
        identity=identity_at(checkpoint),
        parent=parent,
        settings=settings,
        num_steps=len(steps),
        seconds=sum(steps) + beside,
    )
    _write(place.folder / DONE, done)
    return checkpoint, done


def settings_digest(place: Place, link: Link) -> str:
    """Of all that a link's weights depend on, rewards and events among it, but its parent and packs, which the engine looks at."""
    beside: dict[str, str] = reward_identities(place.made) if isinstance(link, RewardLink) else {}
    if isinstance(link, PreferenceLink) and link.pairs is None:
        beside = {"events": read_pairs_manifest(Path(place.chain.events)).plan}
    told = to_document(link)
    told.pop("statistics", None)  # when a reward is refused changes nothing that was learnt
    return config_digest([told, to_document(place.chain.engine), place.chain.resolution, beside])


def read_done(folder: Path) -> Done | None:
    """What a finished link left, or None. Raises ConfigError for a file that is none."""
    path = folder / DONE
    if not path.exists():
        return None
    try:
        return from_document(Done, json.loads(path.read_text()))
    except json.JSONDecodeError as damaged:
        raise ConfigError(f"{path} is no JSON ({damaged}): remove it, and the link is looked at again") from damaged


def _write(path: Path, done: Done) -> None:
    staging = path.with_name(f".{path.name}.partial")
    staging.write_text(json.dumps(to_document(done), indent=1) + "\n")
    os.replace(staging, path)


def _step_seconds(folder: Path, batch_size: int) -> list[float]:
    """Of every step recorded in a link's folder, specialists included; what loaders draw is in them."""
    paths = sorted(folder.glob("**/steps.jsonl"))
    return [batch_size / record.samples_per_second for path in paths for record in read_records(path)]
