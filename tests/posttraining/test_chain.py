from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pleinair.checkpoint.store import read_document
from pleinair.config import to_document
from pleinair.posttraining.chain import run_chain
from pleinair.posttraining.compared import run_compared
from pleinair.posttraining.distilling import student_of
from pleinair.posttraining.materials import identity_at
from pleinair.posttraining.side_by_side import read_measured
from pleinair.posttraining.training import Place, captions_in_turn
from pleinair.records.errors import CheckpointError, ConfigError
from pleinair.training.records import read_records
from pleinair.training.stages.pretrain import PretrainConfig
from tests.posttraining.small_chains import materials, on_policy, small_chain, write_base
from tests.rewards.small_rewards import Brightness


def specialists_in(root: Path) -> list[Path]:
    return [root / "2-sft" / name / "checkpoints" / "step-00000002" for name in ("filled", "outline")]


def test_links_go_on_from_one_another_and_say_where_they_came_from(tmp_path: Path) -> None:
    timesteps = PretrainConfig(shift_mu=0.7, shift_tokens=4)
    base = write_base(tmp_path / "base", timesteps=to_document(timesteps))
    made, seen = materials(tmp_path), list[tuple[str, Path]]()
    last = run_chain(
        small_chain(), base, tmp_path / "run", made, after_link=lambda name, path, done: seen.append((name, path))
    )
    assert [name for name, _ in seen] == ["midtrain", "sft", "stpo", "rl", "tdm"]
    assert seen[-1][1] == last
    places = dict(seen)
    origins = {name: read_document(path, "origin.json") for name, path in seen}
    specialists = specialists_in(tmp_path / "run")
    parents = {
        "midtrain": [base], "sft": [places["midtrain"], *specialists], "stpo": [places["sft"]],
        "rl": [places["stpo"]], "tdm": [places["rl"]],
    }  # fmt: skip
    assert {name: origin["parents"] for name, origin in origins.items()} == {
        name: [identity_at(path) for path in paths] for name, paths in parents.items()
    }
    assert {name: sorted(origin["data"]) for name, origin in origins.items()} == {
        "midtrain": ["all"], "sft": ["filled", "outline"], "stpo": ["all", "pairs"], "rl": ["prompts"], "tdm": ["prompts"],
    }  # fmt: skip
    assert origins["rl"]["rewards"] == {"brightness": "brightness of version 1", "gold.redness": "redness of version 1"}
    assert {origin["commit"] for origin in origins.values()} == {"c0ffee"}
    assert read_document(last, "sampling.json")["num_steps"] == 2
    assert student_of(last).config == timesteps, "through every link and the merge"


def test_a_student_of_all_specialists_names_them_as_parents_and_leaves_their_merge_as_it_is(tmp_path: Path) -> None:
    base, made = write_base(tmp_path / "base"), materials(tmp_path)
    chain = small_chain(midtrain=None, stpo=None, rl=None, tdm=None)
    assert chain.sft is not None
    merged = run_chain(chain, base, tmp_path / "run", made)
    taught = replace(chain, sft=on_policy(chain.sft))
    student = run_chain(taught, base, tmp_path / "run", made)
    assert student == tmp_path / "run" / "2-sft" / "student" / "checkpoints" / "step-00000003"
    origins = [read_document(path, "origin.json") for path in (merged, student)]
    assert origins[0]["parents"] == origins[1]["parents"], "the specialists are those of the merge, not trained again"
    assert [identity_at(base), *(identity_at(path) for path in specialists_in(tmp_path / "run"))] == origins[1][
        "parents"
    ]
    assert origins[1]["data"].keys() == {"filled", "outline"}
    records = read_records(tmp_path / "run" / "2-sft" / "student" / "steps.jsonl")
    assert [record.step for record in records] == [0, 1, 2]
    assert all(record.metrics["opd/teachers"] > 0 for record in records), (
        "specialists differ from the base they all left"
    )
    assert records[0].metrics["opd/anchor"] == pytest.approx(0, abs=1e-9), "the student begins as its anchor"


def test_each_domains_captions_are_numbered_as_its_teacher_is(tmp_path: Path) -> None:
    chain = small_chain()
    assert chain.sft is not None
    place = Place(chain, "sft student", tmp_path, tmp_path, materials(tmp_path))
    loader = captions_in_turn(place, on_policy(chain.sft))
    for step, style in enumerate(("filled", "outline", "filled")):
        assert set(loader.batch(step).domains_B.tolist()) == {("filled", "outline").index(style)}
        assert all(style in key for key in loader.keys(step))


def test_a_student_without_two_teachers_is_refused() -> None:
    sft = small_chain().sft
    assert sft is not None
    with pytest.raises(ConfigError, match="there are 1 domains: name two or more"):
        on_policy(replace(sft, domains={"filled": ("filled",)}))


def test_a_chain_that_is_done_does_nothing_again_and_tells_what_each_link_gained(tmp_path: Path) -> None:
    base, said, root = write_base(tmp_path / "base"), list[str](), tmp_path / "run"
    made = materials(tmp_path, said=said)
    chain = small_chain(sft=None, rl=None)
    last, page = run_compared(chain, base, root, made, until="stpo")
    assert not (root / "5-tdm").exists()
    measured = {path: path.stat().st_mtime_ns for path in sorted(root.glob("*/measured.json"))}
    assert [path.parent.name for path in measured] == ["0-base", "1-midtrain", "3-stpo"]
    (judged,) = [sentence for sentence in said if "winners" in sentence]
    assert re.match(
        r"stpo: \d of 8 winners are better by the judge, by -?\d\.\d+ on average; steps \d of 3, by ", judged
    )
    said.clear()
    assert run_compared(chain, base, root, made, until="stpo") == (last, page)
    assert said == ["midtrain: done before", "stpo: done before"]
    assert {path: path.stat().st_mtime_ns for path in measured} == measured
    rows = read_measured(root / "3-stpo")
    assert [(row.name, row.guidance) for row in rows] == [("stpo", 3.0), ("stpo, no guidance", 0.0)]
    assert {
        "diversity",
        "diversity_ungated",
        "frechet",
        "saturation",
        "brightness",
        "gold.redness",
        "entities_covered",
    } <= set(rows[0].values)
    assert rows[0].units["diversity"].keys() == {one[0] for one in made.asked[:4]}, "what each prompt gave is kept"
    assert rows[0].values["diversity"] == pytest.approx(np.mean(list(rows[0].units["diversity"].values())))
    text = page.read_text()
    assert "stpo against midtrain: " in text
    assert "midtrain against base: " in text
    assert "stpo against base: " in text


def test_another_rate_of_a_finished_link_is_refused_by_its_run(tmp_path: Path) -> None:
    base, made = write_base(tmp_path / "base"), materials(tmp_path)
    chain = small_chain(sft=None, stpo=None, rl=None, tdm=None)
    assert chain.midtrain is not None
    run_chain(chain, base, tmp_path / "run", made)
    faster = replace(chain.midtrain.optimiser, learning_rate=2e-3)
    with pytest.raises(CheckpointError, match="other settings or data"):
        run_chain(replace(chain, midtrain=replace(chain.midtrain, optimiser=faster)), base, tmp_path / "run", made)


def test_a_finished_link_of_rewards_is_not_done_for_others(tmp_path: Path) -> None:
    base, made, other = write_base(tmp_path / "base"), materials(tmp_path), Brightness()
    chain = small_chain(midtrain=None, sft=None, stpo=None, tdm=None)
    run_chain(chain, base, tmp_path / "run", made)
    other.identity = "brightness of version 2"
    with pytest.raises(CheckpointError, match="other settings or data"):
        run_chain(chain, base, tmp_path / "run", replace(made, rewards=(other,)))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"until": "rlhf"}, "has no link 'rlhf': give one of midtrain, sft, stpo, rl, tdm"),
        ({"rewards": ()}, "names 'brightness', and the rewards are none: `pleinair rewards fit` makes them"),
        ({"latent_space": "another"}, "has learned latents of 'another'"),
        ({"packs": {}}, "there is no pack 'all'"),
    ],
)
def test_what_would_fail_in_the_middle_is_refused_before_any_work(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    changes = dict(changes)
    base = write_base(tmp_path / "base", **{key: changes.pop(key) for key in ("latent_space",) if key in changes})
    until = changes.pop("until", None)
    with pytest.raises((ConfigError, CheckpointError), match=re.escape(sentence)):
        run_chain(small_chain(), base, tmp_path / "run", materials(tmp_path, **changes), until)
    assert not (tmp_path / "run").exists()
