from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from pleinair.curation.heldout import held_out
from pleinair.curation.sources import STYLES, TRAINING_STYLES
from pleinair.evaluation.exploration.requests import (
    COUNTED,
    KINDS,
    PLANS,
    Request,
    are_frozen,
    build_requests,
    digest_requests,
    from_document,
    plan_requests,
    read_requests,
    to_document,
)
from pleinair.recipes.concepts import DRAWINGS
from pleinair.records.errors import ConfigError

TREES = ("palm tree", "evergreen tree")
CONCEPTS = {label: label.replace(" ", "-") for label in (*COUNTED, *TREES, "fox", "house")}
WORDS = {"noto": "noto", "fluent-flat": "fluent flat", "blob": "blob"}
REQUESTS = build_requests(CONCEPTS, WORDS)
PUBLISHED = Path(__file__).parents[3] / "docs/results/exploration"


def test_every_kind_is_asked_and_no_prompt_twice_within_one() -> None:
    assert {one.kind for one in REQUESTS} == set(KINDS)
    assert max(Counter(one.unit for one in REQUESTS).values()) == 1


def test_prompts_are_made_by_frozen_rules_and_published_results_are_of_them() -> None:
    assert digest_requests(REQUESTS).startswith("bbee062a4d278a16"), "other prompts: published results compare no more"
    for place in sorted(PUBLISHED.glob("*.json")):
        found = json.loads(place.read_text())
        assert are_frozen(found["size"], found["prompts_sha256"]), place.name
    assert not are_frozen("own", digest_requests(REQUESTS))


def test_prompts_read_as_people_write_them() -> None:
    prompts = {one.prompt for one in REQUESTS}
    assert {
        "a fox",
        "a fox, fluent flat style",
        "fox fluent flat",
        "three strawberries",
        "a blue heart",
        'the word "STOP"',
        "a tree",
        "ein Fuchs im Look von noto",
    } <= prompts


def test_a_pair_is_told_or_unseen_by_the_rule_that_training_keeps() -> None:
    pairs = {(one.label, one.style): one.kind for one in REQUESTS if one.kind in ("specified", "unseen")}
    assert len(pairs) == len(CONCEPTS) * len(WORDS)
    for (label, style), kind in pairs.items():
        assert (kind == "unseen") == held_out(CONCEPTS[label], style)


def test_the_digest_is_that_of_the_content_and_not_of_its_order() -> None:
    assert digest_requests(REQUESTS[::-1]) == digest_requests(REQUESTS)
    assert digest_requests(REQUESTS[1:]) != digest_requests(REQUESTS)


def test_another_seed_asks_the_same_prompts_for_other_pictures() -> None:
    first, second = (plan_requests(REQUESTS, PLANS["quick"], seed=seed) for seed in (0, 1))
    assert [one.request for one in first] == [one.request for one in second]
    assert not {one.seed for one in first} & {one.seed for one in second}


def all_drawings() -> list[Request]:
    words = {name: STYLES[name].words for name in TRAINING_STYLES}
    return build_requests({label: label.replace(" ", "-") for label in DRAWINGS}, words)


def test_no_two_pictures_share_their_noise_whatever_the_plan_and_the_seed() -> None:
    seeds = [one.seed for seed in range(3) for one in plan_requests(all_drawings(), PLANS["full"], seed=seed)]
    assert len(set(seeds)) == len(seeds) > 9000


def test_the_prompts_are_frozen() -> None:
    """Results of other prompts are not comparable: who changes a prompt changes this, and says so in the changelog."""
    assert digest_requests(all_drawings()) == "d1e8a2dfbbe87e11119bd5fb7df8cde4e3e4000e73e7b5132d1524d7c50396e1"


def test_own_prompts_are_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"kind": "default", "prompt": "a fox", "label": "fox"}\n\n')
    assert read_requests(path) == [Request(kind="default", prompt="a fox", label="fox")]


def test_a_request_survives_its_json_and_holds_no_more_than_it_asks() -> None:
    kinds = {one.kind: one for one in REQUESTS}
    assert all(from_document(json.loads(json.dumps(to_document(one)))) == one for one in kinds.values())
    assert to_document(kinds["default"]).keys() == {"kind", "prompt", "label"}


def test_quick_asks_a_part_of_what_full_asks_and_full_five_seeds_of_every_prompt() -> None:
    quick, full = (
        {(one.request.unit, one.seed) for one in plan_requests(all_drawings(), PLANS[size])} for size in PLANS
    )
    assert quick < full
    assert min(Counter(unit for unit, _ in full).values()) == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no prompts"),
        ("a fox", "line 1"),
        (json.dumps({"kind": "default", "prompt": " "}), "empty prompt"),
        (json.dumps({"kind": "joke", "prompt": "a fox"}), "no known kind"),
        (json.dumps({"kind": "default", "prompt": "a fox", "colours": "red"}), "unknown field 'colours'"),
        (json.dumps({"kind": "default", "prompt": "a fox"}), "default needs label"),
        (json.dumps({"kind": "specified", "prompt": "a fox"}), "specified needs label and style"),
        (json.dumps({"kind": "any-kind", "prompt": "a tree", "label": "tree"}), "any-kind needs variants"),
        (
            json.dumps({"kind": "position", "prompt": "a", "label": "fox", "other": "key", "relation": "near"}),
            "the relation 'near' is none of to the left of",
        ),
        ("7", "line 1"),
    ],
)
def test_prompts_that_are_none_are_refused_with_an_example(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_requests(path)
