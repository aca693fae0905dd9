"""Who looks at a chain's pictures: the suite and its results, gold, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pleinair.evaluation.exploration.measured import measured
from pleinair.evaluation.exploration.suite import Result
from pleinair.evaluation.features import PictureFeatures
from pleinair.evaluation.second_judge import SecondJudgeConfig, fit_second_judge
from pleinair.model.digest import part_digest
from pleinair.model.efficientnet import EfficientNetLite0
from pleinair.posttraining.compared import run_compared
from pleinair.posttraining.explored import Suite
from pleinair.posttraining.links import Chain
from pleinair.posttraining.materials import Materials
from pleinair.posttraining.second_opinion import SecondOpinion, second_gold
from pleinair.records.errors import ConfigError
from pleinair.records.rewards import RewardContext
from pleinair.rewards.gold import Gold
from pleinair.rewards.picture_judge import PictureJudge
from pleinair.rewards.requirements import required
from pleinair.rewards.rubric import RubricReward
from pleinair.sampling import SamplingConfig
from tests.posttraining.small_chains import Redness, materials, small_chain, untaught_judge, write_base
from tests.rewards.shapes import STYLES, THINGS, picture_judge, random_shapes
from tests.rewards.small_rewards import Brightness

SECOND = frozenset({"heads", "brightness"})


def suite_of(seen: list[str], folders: list[Path], *, step: float = 0.1, wave: float = 0.0) -> Suite:
    """A suite whose results are what it is told to find: more of everything at each look."""

    def measure(name: str, checkpoint: Path, config: SamplingConfig, folder: Path) -> Result:
        seen.append(name)
        folders.append(folder)
        steps = np.random.default_rng(0).uniform(0, 0.5, 20)
        units = {f"prompt {place}": value + step * len(seen) for place, value in enumerate(steps)}
        other = {prompt: value + wave * len(seen) for prompt, value in units.items()}
        both = {"first": measured("diversity", units, 20), "second": measured("diversity", other, 20)}
        can = {one: measured("can_both", {"a": 0.5, "b": 0.25}, 2) for one in ("first", "second")}
        return Result(
            subject=name, identity=name, size="quick", seed=0, prompts_sha256="p", num_pictures=20, seconds=1.0,
            measures={"can_both": can, "diversity": both},
        )  # fmt: skip

    return Suite(judges={"first": frozenset({"first"}), "second": frozenset({"heads"})}, asked="p", measure=measure)


def exploring(how: str) -> Chain:
    """Two links; the suite's own side is forced on it after it was checked, as these pictures are of 8 px."""
    chain = small_chain(sft=None, rl=None, stpo=None)
    object.__setattr__(chain, "side_by_side", replace(chain.side_by_side, explore=how))
    return chain


def test_the_suite_looks_at_every_link_once_and_the_page_has_its_ledger(tmp_path: Path) -> None:
    base, made, root = write_base(tmp_path / "base"), materials(tmp_path), tmp_path / "run"
    seen, folders = list[str](), list[Path]()
    suite = suite_of(seen, folders)
    _, page = run_compared(exploring("all"), base, root, made, suite=suite)
    assert seen == ["base", "midtrain", "tdm"]
    assert folders == [root / "0-base", root / "1-midtrain", root / "5-tdm"]
    text = page.read_text()
    assert "midtrain against base: gained diversity +0.100 (+0.100 to +0.100); no change shown in can_both." in text
    assert "tdm against base: gained diversity +0.200 (+0.200 to +0.200); no change shown in can_both." in text
    run_compared(exploring("all"), base, root, made, suite=suite)
    assert len(seen) == 3, "kept"
    assert page.read_text() == text
    run_compared(exploring("all"), base, root, made, suite=replace(suite, asked="q"))
    assert seen[3:] == ["base", "midtrain", "tdm"], "other requests are measured anew"


def test_ends_are_the_base_and_the_last_link_and_what_was_measured_before_stays_on_the_page(tmp_path: Path) -> None:
    base, made, root = write_base(tmp_path / "base"), materials(tmp_path), tmp_path / "run"
    seen = list[str]()
    suite = suite_of(seen, [])
    run_compared(exploring("ends"), base, root, made, until="midtrain", suite=suite)
    assert seen == ["base", "midtrain"]
    _, page = run_compared(exploring("ends"), base, root, made, suite=suite)
    assert seen == ["base", "midtrain", "tdm"]
    assert "tdm against midtrain: gained diversity" in page.read_text()


def test_a_change_that_the_suites_judges_see_opposite_ways_is_not_claimed(tmp_path: Path) -> None:
    base, made = write_base(tmp_path / "base"), materials(tmp_path)
    seen = list[str]()
    _, page = run_compared(exploring("ends"), base, tmp_path / "run", made, suite=suite_of(seen, [], wave=-0.3))
    assert seen == ["base", "tdm"], "nothing between the ends"
    told = "tdm against base: no change shown in can_both. Not claimed: diversity (the judges disagree)."
    assert told in page.read_text()


def test_an_axis_of_the_ledger_keeps_the_suites_name_where_nothing_moved(tmp_path: Path) -> None:
    base, made = write_base(tmp_path / "base"), materials(tmp_path)
    suite = suite_of([], [], step=0.0)
    _, page = run_compared(exploring("ends"), base, tmp_path / "run", made, until="midtrain", suite=suite)
    assert "midtrain against base: no change shown in can_both, diversity." in page.read_text()


def test_the_page_says_who_looks_and_who_is_climbed(tmp_path: Path) -> None:
    base, made = write_base(tmp_path / "base"), materials(tmp_path)
    chain = small_chain(midtrain=None, sft=None, stpo=None, tdm=None)
    _, page = run_compared(chain, base, tmp_path / "run", made)
    rows = [re.sub("<[^>]+>", "|", row) for row in re.findall(r"<tr>.*?</tr>", page.read_text())]
    assert [row for row in rows if "gold.redness||watched||never||redness of version 1" in row]
    assert [row for row in rows if "brightness||climbed in the link rl||brightness x 1||brightness of version 1" in row]
    assert [row for row in rows if f"never||{part_digest(made.judge)[:27]}" in row]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda made: replace(made, gold=(Gold(RubricReward(list, PictureJudge(untaught_judge()), name="own")),)),
            "gold.own is built on the judge that tells judge accuracy, so that the two are one witness",
        ),
        (lambda made: replace(made, gold=(Gold(Brightness("lit")),)), "gold.lit would be optimised: 'brightness'"),
        (lambda made: made, "brightness would be climbed and is built on the second judge of the suite exploration (brightness)"),
    ],
)  # fmt: skip
def test_a_witness_that_is_two_at_once_is_refused_before_any_work(
    tmp_path: Path, change: Callable[[Materials], Materials], sentence: str
) -> None:
    base, made = write_base(tmp_path / "base"), change(materials(tmp_path))
    suite = replace(suite_of([], []), judges={"second": SECOND})
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        run_compared(small_chain(), base, tmp_path / "run", made, suite=suite)
    assert not (tmp_path / "run").exists()


def test_a_chain_that_wants_the_suite_is_refused_without_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="explore is 'all' and there is no suite"):
        run_compared(exploring("all"), write_base(tmp_path / "base"), tmp_path / "run", materials(tmp_path))


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> SecondOpinion:
    folder = tmp_path_factory.mktemp("network")
    torch.manual_seed(0)
    save_file(EfficientNetLite0().state_dict(), folder / "model.safetensors")
    features = PictureFeatures(folder)
    pictures, styles, things = random_shapes(96)
    features_NF = features.of(pictures)
    config = SecondJudgeConfig(
        style_names=STYLES, concept_names=THINGS, features=features.name, width=features_NF.shape[1], dropout=0.0
    )
    return SecondOpinion(fit_second_judge(features_NF, styles, things, config), features)


def test_the_second_opinion_holds_what_is_drawn_likelier_than_what_is_not(second: SecondOpinion) -> None:
    pictures, _, things = random_shapes(24, seed=3)
    gold = second_gold(second.judge, second.features)
    context = RewardContext(seeds=tuple(range(24)), groups=tuple(range(24)))
    right, wrong = (
        gold.score([f"a {THINGS[(thing + shift) % 3]}" for thing in things], pictures, context).values["gold.rubric"]
        for shift in (0, 1)
    )
    assert np.mean(right) > np.mean(wrong) + 0.1
    assert ((right >= 0) & (right <= 1)).all()


def test_the_second_opinion_answers_things_and_styles_and_shares_nothing_with_judges_of_rewards(
    second: SecondOpinion,
) -> None:
    asks = [
        required("object", "there is a disc", subject="disc"),
        required("style", "it is an outline", value="outline"),
        required("colour", "the disc is red", subject="disc", value="red"),
    ]
    assert [second.knows(one) for one in asks] == [True, True, False]
    (found,) = second.answer(random_shapes(1)[0], [tuple(asks)])
    assert [bool(np.isnan(one)) for one in found] == [False, False, True]
    assert not second.parts & picture_judge().parts
    assert second.features.name in second.parts, "a preference model on the same features would be refused as well"
    assert Redness().parts.isdisjoint(second.parts)
