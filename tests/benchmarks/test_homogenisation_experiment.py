"""What the experiment on homogenisation makes of its measurements: by hand-made rows and sheets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.experiments import homogenisation_page as page
from benchmarks.experiments.exploring import own_diversity
from benchmarks.experiments.homogenisation import along, stretch
from pleinair.checkpoint.store import save_checkpoint
from pleinair.evaluation.exploration.requests import Asked, Request
from pleinair.evaluation.exploration.sheet import JUDGES, Seen, Sheet
from pleinair.evaluation.exploration.world import World
from pleinair.evaluation.metrics import vendi_score
from pleinair.model.judge import JudgeScores
from pleinair.pages import element

PROMPTS = 30


def units(mean: float, seed: int) -> dict[str, list[float]]:
    """Prompts of which some give more than others, and noise of the seed that all models share."""
    noise = np.random.default_rng(seed).normal(0, 0.1, PROMPTS)
    return {
        f"default: {place}": [mean * (1 + 0.02 * (place - (PROMPTS - 1) / 2)) + noise[place]]
        for place in range(PROMPTS)
    }


def row(
    model: str, seed: int, first: float, second: float | None = None, can: float = 0.5, **more: Any
) -> dict[str, Any]:
    by_judge = dict(zip(JUDGES, (first, first if second is None else second), strict=True))
    diversity = {judge: {"units": units(mean, seed), "n": PROMPTS} for judge, mean in by_judge.items()}
    told = {judge: {"units": units(can, seed), "n": PROMPTS} for judge in JUDGES}
    axes = {
        "diversity": diversity,
        "diversity_ungated": diversity,
        "can_both": told,
        "transfer": {"none": told["first"]},
    }
    return {"model": model, "seed": seed, "gold": 0.8, "axes": axes, **more}


def rows(
    chain: float, second: float | None = None, can: float = 0.6, off: Sequence[float] = (0.0,) * 3
) -> list[dict[str, Any]]:
    found = [row(page.REAL, 0, 3.0)]
    for seed in range(3):
        own = 0.002 * (seed - 1)
        found += [row(page.BASE, seed, 2.0), row(page.CHAIN[-1], seed, chain + own, second, can + own)]
        found += [row(name, seed, 1.0, wanted=0.8 - off[seed]) for name in page.BASELINES]
    return found


def test_a_chain_keeps_diversity_only_where_both_judges_say_so() -> None:
    assert page.verdicts(rows(1.98))[0].endswith("to reach: 95%, reached.")
    assert page.verdicts(rows(1.5))[0].endswith("to reach: 95%, not reached.")
    split = page.verdicts(rows(1.5, second=1.98))
    assert split[0].endswith("the judges disagree (not reached, reached).")
    assert "75% \u00b1 0% over seeds" in split[0]
    assert split[1].endswith("the judges disagree (not reached, reached).")


def test_what_prompts_disagree_about_is_undecided_however_sure_the_seeds_are() -> None:
    told = rows(2.0)
    for one in told:
        if one["model"] == page.CHAIN[-1]:
            for judge in JUDGES:
                kept = one["axes"]["diversity"][judge]["units"]
                one["axes"]["diversity"][judge] = {
                    "units": {
                        unit: [value[0] + (1.0 if place % 2 else -1.1)]
                        for place, (unit, value) in enumerate(kept.items())
                    },
                    "n": PROMPTS,
                }
    found = page.change(told, page.CHAIN[-1], "diversity", "first", page.KEPT)
    assert page.verdict(found.beyond) == "reached"
    assert found.word == "undecided"


def test_more_is_told_against_the_base_of_the_same_noise() -> None:
    for line in page.verdicts(rows(2.0, can=0.6))[2:4]:
        assert "+0.100" in line
        assert line.endswith("to reach: more, reached.")
    assert page.verdicts(rows(2.0, can=0.501))[2].endswith("to reach: more, undecided.")
    assert page.change(rows(2.0, can=0.6), page.CHAIN[-1], "can_both", "first").beyond == pytest.approx(
        [0.098, 0.1, 0.102]
    )


def test_a_baseline_is_told_of_the_seeds_that_come_to_the_chains_reward_alone() -> None:
    some = page.baseline_line(rows(2.0, off=(0.0, 0.019, 0.03)), "DPO")
    assert some.startswith(
        "DPO reaches the chain's gold reward within 0.02 with 2 of 3 seeds and keeps there: default-mode"
    )
    assert "50% \u00b1 0% over seeds" in some
    assert page.baseline_line(rows(2.0, off=(0.03, -0.04, 0.05)), "DPO").startswith(
        "DPO never reaches the chain's gold reward"
    )


def test_a_judge_that_sees_nothing_in_the_base_tells_nothing() -> None:
    told = rows(2.0)
    for one in told:
        for judge in JUDGES:
            one["axes"]["diversity"][judge] = {
                "units": {f"default: {place}": [0.0] for place in range(PROMPTS)},
                "n": PROMPTS,
            }
    assert page.verdicts(told)[0].endswith(
        "no judge sees the base draw what it is asked for, there is nothing to keep."
    )
    assert "untold" in page.baseline_line(told, "DPO")


def test_the_page_shows_every_model_beside_real_pictures() -> None:
    told = rows(2.0, off=(0.0, 0.019, 0.03))
    for one in told:
        one.update(artefacts=0.1, step=30, pixels=[[[[9, 9, 9]]]])
    told += [row(name, seed, 1.9, artefacts=0.1, step=30) for name in page.CHAIN[:-1] for seed in range(3)]
    html = page.report("Title\n\npicture\n\nHow.\n\nCost.", told, ["a fox"], element("p", "who judges"), "how")
    assert all(f">{name}</th>" in html for name in (page.REAL, page.BASE, *page.CHAIN, *page.BASELINES))
    assert "2 of 3" in html
    assert "who judges" in html


def sheet() -> Sheet:
    """Two prompts of two pictures. The first judge sees both pictures of the fox alike, the second apart; both miss an owl."""
    world = World(
        keys=["a", "b"], pictures=np.zeros((2, 64, 64, 3), np.uint8), styles=np.zeros(2, np.int64),
        concepts=np.array([0, 1]), held_out=np.zeros(2, bool), style_names=["noto"],
        concept_names=["fox", "owl", *"cdefgh"], concept_of_label={"fox": 0, "owl": 1}, trained_labels=["fox", "owl"],
    )  # fmt: skip
    asked = [
        Asked(Request(kind="default", prompt=f"a {thing}", label=thing), seed)
        for thing in ("fox", "owl")
        for seed in (0, 1)
    ]
    logits = np.tile(np.arange(8, 0, -1, dtype=np.float32), (4, 1))
    logits[3] = logits[3, ::-1]
    embeddings = {
        "first": np.array([[1, 0], [1, 0], [1, 0], [0, 1]]),
        "second": np.array([[1, 0], [0, 1], [1, 0], [1, 0]]),
    }
    scores = {
        judge: JudgeScores(
            style_logits=np.zeros((4, 1), np.float32), concept_logits=logits, embedding=one.astype(np.float32)
        )
        for judge, one in embeddings.items()
    }
    shared = np.eye(4, dtype=np.float32)
    return Sheet(world, asked, np.zeros((4, 64, 64, 3), np.uint8), scores, shared, shared, [Seen()] * 4)


def test_each_judge_tells_diversity_by_its_own_embedding_with_the_gate_and_without() -> None:
    found = own_diversity(sheet())
    told = {name: {judge: list(one.units.values()) for judge, one in of.items()} for name, of in found.items()}
    apart = vendi_score(np.eye(2))
    assert told["diversity_ungated"] == {
        "first": [[pytest.approx(1.0)], [pytest.approx(apart)]],
        "second": [[pytest.approx(apart)], [pytest.approx(1.0)]],
    }
    assert told["diversity"] == {
        "first": [[pytest.approx(1.0)], [pytest.approx(0.5)]],
        "second": [[pytest.approx(apart)], [pytest.approx(0.5)]],
    }


def test_a_baseline_is_looked_for_among_kept_checkpoints_not_those_of_the_clock(tmp_path: Path) -> None:
    for step in (15, 22, 30, 40):
        save_checkpoint(tmp_path, step, {}, {"run.json": {}}, config_digest="0", keep=9)
    found = along(tmp_path / "step-00000040", stretch(120, 8))
    assert [one.name for one in found] == ["step-00000015", "step-00000030", "step-00000040"]
