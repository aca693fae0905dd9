"""`pleinair rewards`: what it prints of a picture, and what it refuses."""

from __future__ import annotations

import argparse
import json
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pleinair.cli.main import main
from pleinair.cli.places import shipped
from pleinair.cli.posttrain import rewards_of
from pleinair.config import override
from pleinair.curation.small_models.tower_file import save_two_tower
from pleinair.model.autoencoder import Autoencoder
from pleinair.model.image_encoder import TransformersEncoder
from pleinair.model.pixels import to_signed_unit
from pleinair.model.two_tower import TwoTower, TwoTowerConfig
from pleinair.packs.pair_writer import PairsWriter, PairTensors
from pleinair.recipes.posttrain import find_posttrain
from pleinair.records.errors import ConfigError
from pleinair.records.pairs import PairSide, PairsManifest, PreferencePair
from pleinair.rewards.artefact import ArtefactTraining, fit_artefacts, save_classifier
from pleinair.rewards.identity import identity_of
from pleinair.rewards.picture_judge import save_picture_judge
from pleinair.sampling.shipped import load_autoencoder, save_autoencoder
from tests.endpoints.servers import Answer, Body, completion, serve
from tests.model.test_image_encoder import transformers_folder
from tests.rewards.shapes import random_shapes, shape, untrained_judge
from tests.rewards.test_model_rubrics import FOX, MOOD, checklist


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rewards as `rewards fit` leaves them, of networks that learnt next to nothing."""
    place = tmp_path_factory.mktemp("rewards")
    save_picture_judge(untrained_judge(), place / "judge.safetensors")
    few = ArtefactTraining(num_steps=2, batch_size=8)
    save_classifier(fit_artefacts(random_shapes(40)[0], config=few)[0], place / "artefact.safetensors")
    for thing in ("disc", "cross"):
        Image.fromarray(shape(thing)).save(place / f"{thing}.png")
    return place


def test_values_and_requirements_of_pictures_are_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = [str(folder / f"{thing}.png") for thing in ("disc", "cross")]
    assert main(["rewards", "show", str(folder), "a red disc, filled style", *pictures]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "requires it shows disc (object, weight 3, essential)"
    told = {line.split()[0]: line.split()[1:] for line in lines[3:]}
    assert {"rubric", "rubric.colour", "diversity", "artefact", "rubric.essential"} <= told.keys()
    assert told["rubric.colour"] == ["1.000", "1.000"]
    assert {len(values) for values in told.values()} == {2}


WORDS = ("disc", "bar", "cross", "disc on white", "bar on white", "cross on white")


def write_pairs(folder: Path) -> None:
    """Pairs whose winner is dark red and loser pale, 12 people's and 24 made ones, in the shipped autoencoder's latents."""
    codec = load_autoencoder(shipped("autoencoder"))
    manifest = PairsManifest(
        plan="a plan", latent_space=codec.describe().identity, text_encoder="letters", text_layers=(1, 2), text_dim=4
    )
    writer, rng = PairsWriter(folder, manifest), np.random.default_rng(0)
    for origin, count in (("human", 12), ("synthetic", 24)):
        colours = [((150 + rng.integers(60), 20, 20), (250, 160 + rng.integers(60), 200)) for _ in range(count)]
        drawn = np.stack([shape(WORDS[n % 3], colour=colour) for n, pair in enumerate(colours) for colour in pair])
        with torch.inference_mode():
            latents = codec.encode(to_signed_unit(drawn))
        rows = []
        for number in range(count):
            side = PairSide(checkpoint="", seed=number)
            pair = PreferencePair(
                key=f"{origin} {number}",
                prompt=f"{WORDS[number % 6]}, number {number // 3}",
                winner=side,
                loser=side,
                origin=origin,  # type: ignore[arg-type]
                event=str(uuid.uuid4()),
            )
            text = torch.zeros(3, 2, 4)
            rows.append((pair, PairTensors(latents[2 * number].clone(), latents[2 * number + 1].clone(), text)))
        writer.add(rows)
    writer.finish({})


def fit_taste(folder: Path, to: Path) -> list[str]:
    """The words of the command, with a small tower of random weights on a small encoder of random weights."""
    encoder = TransformersEncoder(transformers_folder(folder, "dinov3"))
    torch.manual_seed(0)
    config = TwoTowerConfig(encoder_name=encoder.name, embedding_width=encoder.width, features=8, hidden=16, buckets=64)
    save_two_tower(TwoTower(config), folder / "tower.safetensors")
    return [
        "rewards", "fit", "demo", "--preferences", str(folder / "pairs"), "--to", str(to),
        "--tower", str(folder / "tower.safetensors"), "--encoder", str(folder / "dinov3-tiny"),
    ]  # fmt: skip


def test_a_taste_is_fitted_from_a_folder_of_pairs_and_can_be_climbed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pairs(tmp_path / "pairs")
    assert main(fit_taste(tmp_path, tmp_path / "rewards")) == 0
    said = capsys.readouterr().out
    assert "preference: fitted on pairs a plan, 12 human, 24 synthetic" in said
    right = float(said.partition("of unseen prompts: ")[2].partition(",")[0])
    assert right > 0.9, said
    for name, colour in (("dark", (180, 20, 20)), ("pale", (250, 190, 200))):
        Image.fromarray(shape("disc", colour=colour)).save(tmp_path / f"{name}.png")
    shown = ["--reward", "preference", "disc", str(tmp_path / "dark.png"), str(tmp_path / "pale.png")]
    assert main(["rewards", "show", str(tmp_path / "rewards"), *shown]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "12 human, 24 synthetic" in lines[0], "wherever it is opened, it says what it was fitted on"
    dark, pale = (float(one) for one in lines[1].split()[1:])
    assert dark > pale + 1
    chain = override(find_posttrain("posttrain-small"), ["rl.weights={'preference': 1.0}"])
    options = argparse.Namespace(rewards=str(tmp_path / "rewards"), until=None)
    (reward,) = rewards_of(chain, options)
    assert identity_of(reward) != ""
    assert reward.name == "preference"


def test_pairs_of_another_autoencoder_and_rewards_without_a_taste_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pairs(tmp_path / "pairs")
    torch.manual_seed(0)
    save_autoencoder(Autoencoder(load_autoencoder(shipped("autoencoder")).config), tmp_path / "other.safetensors")
    words = [*fit_taste(tmp_path, tmp_path / "rewards"), "--autoencoder", str(tmp_path / "other.safetensors")]
    assert main(words) == 1
    assert "holds latents of" in capsys.readouterr().err
    assert not (tmp_path / "rewards").exists()
    options = argparse.Namespace(rewards=str(tmp_path / "rewards"), until=None)
    chain = override(find_posttrain("posttrain-small"), ["rl.weights={'preference': 1.0}"])
    with pytest.raises(
        ConfigError, match=r"has no preference.safetensors.*`pleinair rewards fit demo .* --preferences PAIRS`"
    ):
        rewards_of(chain, options)


def test_a_chat_model_stands_behind_the_rubric_where_one_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PLEINAIR_CACHE", str(tmp_path))

    def answered(body: Body) -> Answer:
        if "response_format" in body:
            return checklist(FOX, MOOD)
        return completion("yes" if "a fox" in json.dumps(body) else "no")

    words = ["rewards", "show", str(folder), "a happy fox", str(folder / "disc.png"), "--reward", "rubric"]
    with serve(answered) as served:
        assert main([*words, "--chat", served.url, "--chat-model", "some-model"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[:2] == [
            "requires there is a fox (object, weight 3, essential)",
            "requires it looks happy (other, weight 1)",
        ]
        told = {line.split()[0]: line.split()[1] for line in lines[2:]}
        assert told == {
            "rubric": "0.750",
            "rubric.object": "1.000",
            "rubric.other": "0.000",
            "rubric.essential": "pass",
        }
        assert {body["model"] for body in served.bodies} == {"some-model"}
        assert main([*words, "--chat", served.url]) == 1
        assert "has no model: name one" in capsys.readouterr().err


def test_what_cannot_be_shown_or_served_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "text.png").write_text("no picture")
    Image.new("RGB", (32, 32)).save(folder / "small.png")
    for arguments, why in (
        (["show", str(folder), "a disc", str(folder / "text.png")], "is no picture"),
        (["show", str(folder), "a disc", str(folder / "disc.png"), str(folder / "small.png")], "of several sizes"),
        (["show", str(folder / "none"), "a disc", str(folder / "disc.png")], "cannot be read"),
        (["serve", str(folder), "--key-variable", "NO_SUCH_KEY"], "NO_SUCH_KEY is not set"),
        (["fit", "demo", "--judge-seed", "0"], "the judge that measures"),
    ):
        assert main(["rewards", *arguments]) == 1
        assert why in capsys.readouterr().err
