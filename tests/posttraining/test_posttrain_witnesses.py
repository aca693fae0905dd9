"""The suite and gold as `pleinair posttrain` opens them, over a small world and a network that learned nothing."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

from pleinair.cli.orders import read_results
from pleinair.cli.posttrain_witnesses import gold_of, open_suite, suite_of
from pleinair.posttraining.explored import explored
from pleinair.posttraining.witnesses import refuse_shared
from pleinair.recipes.posttrain import drawings_posttrain
from pleinair.records.errors import ConfigError
from pleinair.rewards.identity import parts_of
from pleinair.sampling import SamplingConfig
from tests.evaluation.exploration.shapes import small_plan, write_place
from tests.posttraining.small_chains import materials, write_base
from tests.rewards.small_rewards import Told


def test_a_checkpoint_is_measured_as_evaluate_does_it_and_the_suites_second_judge_is_gold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_place(tmp_path)
    monkeypatch.setenv("PLEINAIR_CACHE", str(tmp_path / "cache"))
    chain, options = drawings_posttrain(), Namespace(home=tmp_path / "home", dsn=None, gold=None)
    opened = open_suite(chain, options)
    assert opened is not None
    few = [one for one in small_plan(opened.world) if one.request.kind in ("default", "specified")]
    made = replace(materials(tmp_path), gold=(gold_of(opened),))
    suite = suite_of(chain, made, replace(opened, asked=few))
    assert suite is not None
    config = SamplingConfig(num_steps=1, guidance=0.0, precision="fp32", resolution=64)
    result = explored(suite, "rl", write_base(tmp_path / "base"), config, tmp_path / "4-rl")
    assert (result.subject, result.num_pictures) == ("rl", len(few))
    assert {"can_both", "diversity"} <= result.measures.keys()
    (kept,) = read_results([tmp_path / "4-rl" / "exploration"])
    assert kept.identity == result.identity, "what `pleinair ledger` reads"
    assert suite.judges["second"] == parts_of(made.gold[0].reward)
    climbed = Told("preference", [0.5], parts=suite.judges["second"])
    with pytest.raises(ConfigError, match="preference would be climbed and is built on the second judge of the suite"):
        refuse_shared(replace(made, rewards=(climbed,), gold=()), suite.judges)


def test_no_suite_is_opened_where_nothing_asks_for_it() -> None:
    chain = drawings_posttrain()
    silent = replace(chain, side_by_side=replace(chain.side_by_side, explore="none"))
    assert open_suite(silent, Namespace(gold=Path("gold"))) is None
