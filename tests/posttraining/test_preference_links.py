"""Both links of preferences: pairs of known order, then what people (here the judge in their place) chose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pleinair.checkpoint.store import read_document
from pleinair.packs.pairs import read_pairs_manifest
from pleinair.posttraining.chain import run_chain
from pleinair.posttraining.compared import run_compared
from pleinair.posttraining.links import Chain
from pleinair.posttraining.materials import Materials, identity_at
from pleinair.records.errors import CheckpointError, ConfigError, PackError
from pleinair.training.hooks.validation import ValidationConfig
from pleinair.training.hooks.watching import WatchConfig
from pleinair.training.records import read_records
from tests.posttraining.small_chains import materials, small_chain, write_base
from tests.posttraining.small_events import choose_in_place_of_people

EVERY_STEP = {"winner_error", "loser_error", "winner_rise", "loser_rise", "winners_worse", "drift"}
AT_GATES = {
    "validation_rise/t0.1", "validation_rise/t0.9", "validation_drift/mean", "samples/high_frequency", "samples/gold.redness",
}  # fmt: skip


def short_chain(**changes: object) -> Chain:
    """Preferences alone, and the link after them."""
    return small_chain(**{"midtrain": None, "sft": None, "rl": None, **changes})


def until_stpo(tmp_path: Path, made: Materials) -> tuple[Path, Path]:
    """The base, and what the first link of preferences made of it."""
    base = write_base(tmp_path / "base")
    return base, run_chain(short_chain(), base, tmp_path / "run", made, "stpo")


def test_choices_between_its_own_pictures_calibrate_what_pairs_of_known_order_made(tmp_path: Path) -> None:
    said = list[str]()
    made = materials(tmp_path, said=said)
    base, stpo = until_stpo(tmp_path, made)
    events = choose_in_place_of_people(tmp_path / "chosen", stpo, base, made)
    last, page = run_compared(short_chain(events=str(events)), base, tmp_path / "run", made)
    assert "stpo: done before" in said
    assert "calibrate: pairs 6 ordered by judges in people's place" in said
    (calibrated,) = (tmp_path / "run" / "3b-calibrate" / "checkpoints").glob("step-00000003")
    origins = [read_document(path, "origin.json") for path in (stpo, calibrated, last)]
    assert [origin["parents"] for origin in origins[1:]] == [[identity_at(stpo)], [identity_at(calibrated)]]
    assert [origin["answers"] for origin in origins] == [{"delta": 8}, {"synthetic": 6}, {}]
    assert origins[1]["data"]["pairs"] == read_pairs_manifest(events).plan
    assert list(origins[0]["gap"]["by_way"]) == ["steps", "guidance", "prompt"]
    assert origins[1]["gap"] is None
    told = page.read_text()
    assert "8 ordered by how they were drawn; " in told
    assert "winners are better by the judge" in told
    assert "6 ordered by judges in people&#x27;s place" in told
    first, *_, end = read_records(tmp_path / "run" / "3b-calibrate" / "steps.jsonl")
    assert first.metrics["drift"] < 1e-9 < end.metrics["drift"], "the reference is what it starts from"


def test_gates_are_measured_at_their_steps_and_errors_at_every_one(tmp_path: Path) -> None:
    seldom = WatchConfig(validation=ValidationConfig(every=100))
    run_chain(short_chain(watch=seldom), write_base(tmp_path / "base"), tmp_path / "run", materials(tmp_path), "stpo")
    records = read_records(tmp_path / "run" / "3-stpo" / "steps.jsonl")
    assert [record.step for record in records] == [0, 1, 2]
    assert [record.metrics.keys() >= EVERY_STEP for record in records] == [True, True, True]
    assert [len(AT_GATES & record.metrics.keys()) for record in records] == [0, len(AT_GATES), len(AT_GATES)]


def test_choices_among_pictures_that_the_parent_did_not_draw_are_refused(tmp_path: Path) -> None:
    made = materials(tmp_path)
    base, stpo = until_stpo(tmp_path, made)
    other = run_chain(short_chain(stpo=None), base, tmp_path / "other", made)
    events = choose_in_place_of_people(tmp_path / "chosen", base, other, made)
    with pytest.raises(PackError, match=f"0% of the pairs .* that the policy {identity_at(stpo)[:12]} drew itself"):
        run_chain(short_chain(events=str(events)), base, tmp_path / "run", made)
    assert not (tmp_path / "run" / "5-tdm").exists()


def test_other_choices_than_a_finished_link_was_trained_on_are_refused(tmp_path: Path) -> None:
    made = materials(tmp_path)
    base, stpo = until_stpo(tmp_path, made)
    events = choose_in_place_of_people(tmp_path / "chosen", stpo, base, made)
    run_chain(short_chain(events=str(events)), base, tmp_path / "run", made, "calibrate")
    other = run_chain(short_chain(stpo=None), base, tmp_path / "other", made)
    others = choose_in_place_of_people(tmp_path / "others", stpo, other, made)
    with pytest.raises(CheckpointError, match="other settings or data"):
        run_chain(short_chain(events=str(others)), base, tmp_path / "run", made, "calibrate")


def test_pairs_that_are_no_choices_or_too_few_are_refused_before_any_work(tmp_path: Path) -> None:
    made = materials(tmp_path)
    base, stpo = until_stpo(tmp_path, made)
    drawn = tmp_path / "run" / "3-stpo" / "pairs"
    with pytest.raises(ConfigError, match="holds pairs that nobody chose: make some of events with `pleinair pairs"):
        run_chain(short_chain(events=str(drawn)), base, tmp_path / "another", made)
    events = choose_in_place_of_people(tmp_path / "chosen", stpo, base, made)
    chain = short_chain(events=str(events))
    assert chain.calibrate is not None
    with pytest.raises(ConfigError, match=r"holds 6 pairs and calibrate\.batch_size is 7: lower it"):
        run_chain(replace(chain, calibrate=replace(chain.calibrate, batch_size=7)), base, tmp_path / "another", made)
    with pytest.raises(PackError, match="holds no pairs"):
        run_chain(replace(chain, events=str(tmp_path)), base, tmp_path / "another", made)
    assert not (tmp_path / "another").exists()


def test_pairs_whose_order_the_judge_does_not_show_end_the_link_with_a_sentence(tmp_path: Path) -> None:
    """The judge knows nothing, so that nothing it says is more than chance."""
    made, base, chain = materials(tmp_path), write_base(tmp_path / "base"), short_chain()
    assert chain.stpo is not None
    assert chain.stpo.pairs is not None
    strict = replace(chain, stpo=replace(chain.stpo, pairs=replace(chain.stpo.pairs, when_unsure="drop")))
    with pytest.raises(PackError, match="in no way are winners better than their losers by the judge with 95% confid"):
        run_chain(strict, base, tmp_path / "run", made)
    assert list((tmp_path / "run" / "3-stpo").iterdir()) == []
    nameless = replace(made, prompts=[("a thing of no name", "", "")])
    with pytest.raises(ConfigError, match=r"stpo\.pairs\.when_unsure is drop and the judge knows nothing of what"):
        run_chain(strict, base, tmp_path / "another", nameless)
    assert not (tmp_path / "another").exists()
