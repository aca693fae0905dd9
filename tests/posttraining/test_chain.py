from __future__ import annotations

from pathlib import Path

from pleinair.checkpoint.store import read_document
from pleinair.posttraining.chain import run_chain
from pleinair.posttraining.materials import identity_at
from tests.posttraining.small_chains import materials, small_chain, write_base


def test_links_go_on_from_one_another_and_say_where_they_came_from(tmp_path: Path) -> None:
    base, made = write_base(tmp_path / "base"), materials(tmp_path)
    seen: list[tuple[str, Path]] = []
    last = run_chain(
        small_chain(), base, tmp_path / "run", made, after_link=lambda name, path, done: seen.append((name, path))
    )
    assert [name for name, _ in seen] == ["midtrain", "sft", "stpo", "rl", "tdm"]
    assert seen[-1][1] == last
    places = dict(seen)
    origins = {name: read_document(path, "origin.json") for name, path in seen}
    specialists = [
        tmp_path / "run" / "2-sft" / name / "checkpoints" / "step-00000002" for name in ("filled", "outline")
    ]
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
