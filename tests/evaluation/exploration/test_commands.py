"""`pleinair evaluate --suite exploration` and what follows it as they are typed, and what they refuse."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from pleinair.cli import exploration
from pleinair.cli.main import main
from pleinair.evaluation.exploration.requests import Asked, Request
from pleinair.evaluation.exploration.subjects import Drawn
from pleinair.model.autoencoder import Autoencoder
from pleinair.model.formats import save_transformer
from pleinair.model.text_encoder import FeatureProjection
from pleinair.model.transformer import Transformer
from pleinair.records.errors import ConfigError
from pleinair.records.preferences import read_preferences
from pleinair.sampling import Sampler, SamplingConfig
from tests.evaluation.exploration.shapes import LABELS, NUM_TRAINED, lines_of, small_plan, write_place
from tests.packs.small_packs import Letters
from tests.sampling.test_sampler import SMALL, TINY


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_place(tmp_path)
    monkeypatch.setenv("PLEINAIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_real_pictures_and_reconstructions_are_evaluated_ordered_and_shown_to_the_judges(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = exploration.home_of(Namespace(home=place / "home", dsn=None))
    world = exploration.ready_world(work, LABELS[:NUM_TRAINED])
    kinds = ("default", "specified", "unseen", "count")
    Path("own.jsonl").write_text(lines_of([one for one in small_plan(world) if one.request.kind in kinds]))
    home = ["--home", str(place / "home")]
    for subject in ("real", "reconstruction"):
        asked = ["evaluate", subject, "--suite", "exploration", "--prompts", "own.jsonl", *home]
        assert main(asked) == 0
        assert f"page: exploration/{subject}/report.html" in capsys.readouterr().out
    results = [f"exploration/{subject}" for subject in ("real", "reconstruction")]
    identities = [json.loads(Path(one, "metrics.json").read_text())["identity"] for one in results]
    assert len(set(identities)) == 2
    assert main(["ledger", *results, "-o", "ledger.html"]) == 0
    assert "n=" in capsys.readouterr().out
    assert main(["sides", *results, "--synthetic", *home]) == 0
    assert "synthetic answers by the judges, none by a person" in capsys.readouterr().out
    events = read_preferences(Path("exploration/preferences.jsonl"))
    assert {(one.origin, one.person) for one in events} == {("synthetic", "first judge"), ("synthetic", "second judge")}
    assert {side.identity for one in events if not one.control for side in (one.left, one.right)} == set(identities)
    assert main(["sides", *results, "--report"]) == 0
    page = Path("sides.html").read_text()
    assert "No person has judged" in page
    assert "synthetic, no person&#x27;s opinion" in page or "synthetic, no person's opinion" in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("evaluate nowhere --suite exploration", "there is no nowhere: give a run's folder"),
        ("evaluate empty --suite exploration", "empty is no checkpoint: it has no manifest.json"),
        ("evaluate k2 --suite exploration", "k2 is no checkpoint: it has no manifest.json. Folders of other layouts"),
        (
            "evaluate k2/diffusion_pytorch_model.safetensors --suite exploration",
            "k2/diffusion_pytorch_model.safetensors",
        ),
        ("evaluate other.safetensors --suite exploration", "other.safetensors"),
        ("evaluate real --suite exploration --prompts none.jsonl", "none.jsonl cannot be read"),
        ("evaluate real --suite exploration --prompts empty.jsonl", "empty.jsonl holds no prompts"),
        ("evaluate real --suite exploration --prompts one.jsonl", "1 prompt gives a single picture"),
        ("evaluate real --suite exploration --prompts one.jsonl --size full", "--size chooses among the suite's own"),
        ("evaluate real --suite exploration --judge x", "--judge is for published benchmarks"),
        ("evaluate real --suite exploration --limit 0", "--limit is for published benchmarks"),
        ("evaluate real --suite exploration --set engine.seed=1", "--set is of runs and their recipes"),
        ("evaluate shipped --suite dpg --size quick", "--size is for the suite exploration"),
        ("evaluate shipped --suite dpg --concepts demo", "--concepts is for the suite exploration"),
        ("evaluate demo --size full", "--size is for suites: give --suite as well"),
        ("ledger none.json", "none.json cannot be read"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_a_sentence(
    arguments: str, said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    save_transformer(Transformer(TINY), Path("k2"), layout="diffusers")
    Path("other.safetensors").write_bytes(b"{}")
    Path("empty.jsonl").write_text("\n")
    Path("one.jsonl").write_text('{"kind": "default", "prompt": "a fox", "label": "fox"}\n')
    home = ["--home", str(place / "home")] if arguments.startswith("evaluate") else []
    assert main([*arguments.split(), *home]) == 1
    assert said in capsys.readouterr().err


def drawing(transformer: Transformer) -> Drawn:
    autoencoder = Autoencoder(SMALL).eval()
    sampler = Sampler(transformer, autoencoder, Letters(), FeatureProjection(2, 8, 4))
    return Drawn("tiny", sampler, SamplingConfig(num_steps=2, resolution=16, precision="fp32"))


ASKED = [
    Asked(Request(kind="default", prompt=prompt, label="fox"), seed) for prompt, seed in (("a fox", 1), ("fox", 2))
]


def test_a_model_whose_pictures_are_not_finite_is_refused_and_not_measured() -> None:
    torch.manual_seed(0)
    transformer = Transformer(TINY)
    assert drawing(transformer).draw(ASKED).shape == (2, 16, 16, 3)
    with torch.no_grad():
        next(iter(transformer.parameters())).fill_(float("nan"))
    with pytest.raises(ConfigError, match="2 of 2 pictures that the model drew are not finite"):
        drawing(transformer).draw(ASKED)


def test_a_models_identity_is_that_of_its_weights_and_settings() -> None:
    torch.manual_seed(0)
    transformer = Transformer(TINY)
    one = drawing(transformer)
    other = Drawn("other name", one.sampler, one.config)
    assert one.identity == other.identity
    assert Drawn("tiny", one.sampler, SamplingConfig(num_steps=3, resolution=16)).identity != one.identity
    with torch.no_grad():
        next(iter(transformer.parameters())).add_(1e-3)
    assert Drawn("tiny", one.sampler, one.config).identity != other.identity


def test_the_order_in_which_a_model_is_asked_moves_no_picture() -> None:
    torch.manual_seed(0)
    one = drawing(Transformer(TINY))
    first, turned = one.draw(ASKED), one.draw(ASKED[::-1])
    assert np.abs(first.astype(int) - turned[::-1].astype(int)).max() <= 1
