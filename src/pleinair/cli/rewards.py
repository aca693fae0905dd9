"""`pleinair rewards`: fit rewards of one's own, look at what they say of a picture, serve them to a run."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pleinair.cli.progress import ProgressLine
from pleinair.cli.reward_places import ARTEFACT, JUDGE, NAMES, PREFERENCE, TOWER, add_chat_options, open_rewards
from pleinair.cli.workspace import Workspace, add_run_options, open_workspace
from pleinair.records.errors import ConfigError

if TYPE_CHECKING:
    from pleinair.endpoints import Chat
    from pleinair.evaluation.exploration.world import World
    from pleinair.records.rewards import Pictures, RewardValues
    from pleinair.rewards.picture_judge import PictureJudge

PORT = 8790
NUM_FAILURES = 512
FAILURE_STEPS = 3
DECODE_BATCH = 64
NUM_REAL = 4000
"""Real pictures the artefact classifier sees; more teach it little and wait for the autoencoder."""


def register(verbs: Any) -> None:
    """Add the verb `rewards`."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "rewards",
        help="fit rewards of one's own, look at their values, serve them",
        description="Rewards that training may climb. The judge that measures is never one of them: these have their own.",
    )
    ways = parser.add_subparsers(title="ways", metavar="WAY", required=True)
    _register_fit(ways)
    show: argparse.ArgumentParser = ways.add_parser("show", help="what the rewards say of pictures of a prompt")
    _add_rewards(show)
    show.add_argument("prompt", help="what the pictures were drawn from")
    show.add_argument("pictures", nargs="+", type=Path, metavar="FILE", help="pictures of one size")
    show.set_defaults(run=show_values)
    serve: argparse.ArgumentParser = ways.add_parser("serve", help="serve them over HTTP until interrupted")
    _add_rewards(serve)
    serve.add_argument("--host", default="127.0.0.1", help="other than loopback needs a key (default: %(default)s)")
    serve.add_argument("--port", type=int, default=PORT, help="0 takes any (default: %(default)s)")
    serve.add_argument("--key-variable", default="", metavar="NAME", help="environment variable that holds the key")
    serve.set_defaults(run=serve_rewards)


def _register_fit(ways: Any) -> None:
    parser: argparse.ArgumentParser = ways.add_parser(
        "fit",
        help="train a judge from another seed, and a classifier of artefacts; or a model of what is preferred",
        description="Train on the warehouse's drawings, held-out pairs left out; those calibrate the judge. With --preferences, "
        "fit what is preferred on the features of the image-text tower, and nothing else.",
    )
    add_run_options(parser)
    parser.add_argument("--to", type=Path, default=Path("rewards"), help="folder to write (default: %(default)s)")
    parser.add_argument("--judge-seed", type=int, default=1, help="not 0, which is that of the judge that measures")
    parser.add_argument("--epochs", type=int, default=24, help="of the judge (default: %(default)s)")
    parser.add_argument(
        "--failures-of", metavar="MODEL", help="draw failures of a run or `shipped`, with too few steps"
    )
    preferred = parser.add_argument_group("a model of what is preferred")
    preferred.add_argument(
        "--preferences",
        type=Path,
        metavar="PAIRS",
        help="pairs as `pleinair pairs` makes them, with the latents of --autoencoder",
    )
    preferred.add_argument("--tower", type=Path, metavar="FILE", help="default: what `pleinair tower` trained")
    preferred.add_argument(
        "--encoder",
        default="efficientnet-lite0",
        metavar="NAME",
        help="the tower's image encoder, or its folder (default: %(default)s)",
    )
    parser.set_defaults(run=fit)


def _add_rewards(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="what `rewards fit` wrote")
    parser.add_argument(
        "--reward",
        action="append",
        choices=NAMES,
        help="which (repeatable; default: all there are but writing, which needs `ocr`)",
    )
    add_chat_options(parser)


def fit(options: argparse.Namespace) -> int:
    """Fit, write, and print what was measured. Goes on where it was stopped."""
    from pleinair.cli.exploration import ready_world
    from pleinair.rewards.picture_judge import load_picture_judge

    if options.preferences is not None:
        fit_preferences(options)
        return 0
    if options.judge_seed == 0:
        raise ConfigError("--judge-seed is 0, which is that of the judge that measures: give another")
    work = open_workspace(options)
    world = ready_world(work, work.recipe.concepts)
    options.to.mkdir(parents=True, exist_ok=True)
    if not (options.to / JUDGE).exists():
        fit_judge(world, options.to, seed=options.judge_seed, epochs=options.epochs)
    say_judge(load_picture_judge(options.to / JUDGE), world)
    if not (options.to / ARTEFACT).exists():
        fit_artefact(work, world, options)
    print(f"rewards: {options.to}; the same command fits again what is removed there")
    return 0


def fit_preferences(options: argparse.Namespace) -> None:
    """The preference model of a folder of pairs, with a copy of the tower that its features are made by."""
    from pleinair.cli.encoders import open_codec
    from pleinair.cli.places import cache_dir
    from pleinair.cli.tower import model_path
    from pleinair.curation.small_models.tower_file import load_two_tower
    from pleinair.model.image_encoder import load_image_encoder
    from pleinair.packs.pairs import Pairs
    from pleinair.rewards.pair_features import features_of_pairs
    from pleinair.rewards.preference import PreferenceSource, TowerFeatures, fit_preference, save_preference

    tower, pairs = options.tower or model_path(options.home), Pairs(options.preferences)
    features = TowerFeatures(load_two_tower(tower), load_image_encoder(options.encoder, cache_dir()))
    line = ProgressLine("features of pairs")
    codec = open_codec(options.autoencoder or "autoencoder")
    seen = features_of_pairs(pairs, codec, features, line.update)
    line.close()
    head, report = fit_preference(seen.winners_NF, seen.losers_NF, seen.prompts, features.name)
    source = PreferenceSource(pairs=pairs.manifest.plan, origins=seen.origins, encoder=options.encoder)
    options.to.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(tower, options.to / TOWER)
    save_preference(head, report, options.to / PREFERENCE, source)
    print(f"preference: {source}")
    print(
        f"right of {report.num_pairs} pairs of unseen prompts: {report.accuracy:.3f}, calibration error "
        f"{report.calibration_error:.3f}; of the {report.num_train_pairs} it was fitted on {report.train_accuracy:.3f}"
    )
    print(f"rewards: {options.to / PREFERENCE}")


def fit_judge(world: World, folder: Path, *, seed: int, epochs: int) -> None:
    """A judge of rewards: trained on the pictures that models train on, calibrated on half of the held-out pairs."""
    from pleinair.evaluation.judge_training import train_judge
    from pleinair.model.judge import JudgeConfig
    from pleinair.quantise import as_stored
    from pleinair.rewards.picture_judge import PictureJudge, calibrated, save_picture_judge

    line, rows = ProgressLine("judge of rewards"), np.flatnonzero(~world.held_out)
    config = JudgeConfig(
        style_names=tuple(world.style_names), concept_names=tuple(world.concept_names), seed=seed, epochs=epochs
    )
    judge = train_judge(
        world.pictures[rows],
        world.styles[rows],
        world.concepts[rows],
        config,
        on_progress=lambda now: line.update(now.step, now.num_steps, f"concept loss {now.concept_loss:.2f}"),
        resume_dir=folder / "judge-training",
    )
    line.close()
    judge.load_state_dict(as_stored(judge.state_dict()))
    kept = np.flatnonzero(world.held_out)[::2]
    save_picture_judge(
        calibrated(PictureJudge(judge), world.pictures[kept], world.styles[kept], world.concepts[kept]), folder / JUDGE
    )
    shutil.rmtree(folder / "judge-training", ignore_errors=True)


def say_judge(judge: PictureJudge, world: World) -> None:
    """How right the judge is, and how right it says it is, on the other half of the held-out pairs."""
    from pleinair.rewards.picture_judge import measure

    kept = np.flatnonzero(world.held_out)[1::2]
    for kind, told in measure(judge, world.pictures[kept], world.styles[kept], world.concepts[kept]).items():
        print(
            f"{kind}: first guess right {told.accuracy:.3f}; true claims beat near misses in {told.area_under_curve:.3f}, "
            f"calibration error {told.calibration_error:.3f}, {told.num_pictures} unseen pictures"
        )


def fit_artefact(work: Workspace, world: World, options: argparse.Namespace) -> None:
    """The classifier, on real pictures as the autoencoder gives them back."""
    from pleinair.cli.places import shipped
    from pleinair.curation.detectors.generated import reconstruct
    from pleinair.rewards.artefact import fit_artefacts, save_classifier
    from pleinair.sampling.shipped import load_autoencoder

    rows = np.random.default_rng(0).permutation(np.flatnonzero(~world.held_out))[:NUM_REAL]
    failures = None if options.failures_of is None else draw_failures(options.failures_of, world)
    line = ProgressLine("classifier of artefacts")
    codec = load_autoencoder(shipped("autoencoder"))
    pieces = np.array_split(world.pictures[rows], -(-len(rows) // DECODE_BATCH))
    real = np.concatenate([reconstruct(codec, piece) for piece in pieces])
    classifier, report = fit_artefacts(real, failures, on_progress=line.update)
    line.close()
    save_classifier(classifier, options.to / ARTEFACT)
    told = ", ".join(f"{name} {area:.3f}" for name, area in report.area_under_curve.items())
    print(f"artefact: sound above faulty: {told}; calibration error {report.calibration_error:.3f}")


def draw_failures(model: str, world: World) -> Pictures:
    """Pictures of a model that are known to be bad: too few steps, no guidance."""
    from dataclasses import replace

    from pleinair.cli.exploration import open_model

    sampler, config = open_model(model)
    rng, line = np.random.default_rng(0), ProgressLine("failures")
    labels, styles = list(world.trained_labels), list(world.style_names)
    prompts = [f"a {rng.choice(labels)}, {rng.choice(styles)} style" for _ in range(NUM_FAILURES)]
    worse = replace(config, num_steps=FAILURE_STEPS, guidance=0.0)
    pictures = sampler.sample(prompts, range(NUM_FAILURES), worse, line.update)
    line.close()
    return pictures


def show_values(options: argparse.Namespace) -> int:
    """Print each value of each picture, and each requirement of the prompt."""
    from pleinair.records.rewards import RewardContext
    from pleinair.rewards.rubric import RubricReward

    pictures = read_pictures(options.pictures)
    count = len(pictures)
    context = RewardContext(seeds=tuple(range(count)), groups=(0,) * count)
    with asked_chat(options) as chat:
        for reward in open_rewards(options.folder, options.reward, chat):
            if isinstance(reward, RubricReward):
                (rubric,) = reward.rubrics([options.prompt])
                for one in rubric:
                    essential = ", essential" if one.essential else ""
                    print(f"requires {one.text} ({one.kind}, weight {one.weight:g}{essential})")
            print_answer(reward.score([options.prompt] * count, pictures, context))
    return 0


def print_answer(answer: RewardValues) -> None:
    """A line for each value and gate."""
    for name, told in answer.values.items():
        applies = answer.applies.get(name, np.ones(len(told), np.bool_))
        numbers = [f"{x:6.3f}" if says else "     -" for x, says in zip(told, applies, strict=True)]
        print(f"{name:24} {' '.join(numbers)}")
    for name, passes in answer.gates.items():
        print(f"{name:24} " + " ".join("  pass" if one else "  fail" for one in passes))


@contextmanager
def asked_chat(options: argparse.Namespace) -> Iterator[Chat | None]:
    """The model that `--chat` names, or None; what it answered is kept beside other answers of models."""
    from pleinair.cli.places import cache_dir
    from pleinair.endpoints import ChatClient, Endpoint

    if not options.chat:
        yield None
        return
    endpoint = Endpoint(url=options.chat, model=options.chat_model, key_variable=options.chat_key_variable)
    with ChatClient(endpoint, stage="rewards", place=cache_dir() / "endpoints") as chat:
        yield chat


def read_pictures(paths: list[Path]) -> Pictures:
    """Pictures on white, of one size. Raises ConfigError for others."""
    from PIL import Image, UnidentifiedImageError

    found = []
    for path in paths:
        try:
            with Image.open(path) as image:
                shown = image.convert("RGBA")
        except (OSError, UnidentifiedImageError) as unreadable:
            raise ConfigError(f"{path} is no picture ({unreadable}): give a PNG, JPEG or WebP file") from unreadable
        ground = Image.new("RGBA", shown.size, "white")
        found.append(np.asarray(Image.alpha_composite(ground, shown).convert("RGB")))
    if len({picture.shape for picture in found}) > 1:
        raise ConfigError("the pictures are of several sizes: give those of one size together")
    return np.stack(found)


def serve_rewards(options: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    from pleinair.rewards.server import serving

    key = os.environ.get(options.key_variable, "").strip() if options.key_variable else ""
    if options.key_variable and not key:
        raise ConfigError(f"the environment variable {options.key_variable} is not set: export the key there")
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with asked_chat(options) as chat:
        rewards = open_rewards(options.folder, options.reward, chat)
        with serving(rewards, host=options.host, port=options.port, key=key) as url:
            print(f"{url} serves {', '.join(reward.name for reward in rewards)}; Ctrl-C ends it", flush=True)
            stopped.wait()
    print("rewards: stopped", file=sys.stderr)
    return 0
