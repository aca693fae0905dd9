"""Where rewards are: a folder that `pleinair rewards fit` wrote, or the address of `pleinair rewards serve`.

rewards/  judge, artefact, preference, tower  --open_rewards-->  rewards in this process
http://judges:8790                            --serve_of------>  the same behind a server, with their patience
http://models:8000/v1 and a model's name      --chat_of------->  a language model that writes rubrics and answers them
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pleinair.records.errors import ConfigError

if TYPE_CHECKING:
    from pleinair.endpoints import Chat
    from pleinair.records.rewards import Reward
    from pleinair.rewards.picture_judge import PictureJudge

JUDGE, ARTEFACT, PREFERENCE = "judge.safetensors", "artefact.safetensors", "preference.safetensors"
TOWER = "two-tower.safetensors"
"""What the features of `preference` are made by, copied beside it when it is fitted."""
NEEDS = {
    "rubric": (JUDGE,),
    "diversity": (JUDGE,),
    "artefact": (ARTEFACT,),
    "writing": (),
    "preference": (PREFERENCE, TOWER),
}
"""The files of each reward."""
NAMES = tuple(NEEDS)
PATIENCE_SECONDS = 600.0


def add_reward_options(parser: argparse.ArgumentParser) -> None:
    """Where the rewards of a run are."""
    parser.add_argument(
        "--rewards",
        default="rewards",
        metavar="PLACE",
        help="what `rewards fit` wrote, or the address of `rewards serve` (default: %(default)s)",
    )
    parser.add_argument(
        "--rewards-key-variable", default="", metavar="NAME", help="environment variable that holds the server's key"
    )
    parser.add_argument(
        "--rewards-patience",
        type=float,
        default=PATIENCE_SECONDS,
        metavar="SECONDS",
        help="how long the run pauses for a server that is down before it stops (default: %(default)g)",
    )


def add_chat_options(parser: argparse.ArgumentParser) -> None:
    """Of a chat endpoint behind the rubric."""
    parser.add_argument(
        "--chat",
        default="",
        metavar="URL",
        help="an OpenAI-compatible server, e.g. http://127.0.0.1:8000/v1: its model writes the rubrics and answers them",
    )
    parser.add_argument("--chat-model", default="", metavar="NAME", help="a vision-language model it serves")
    parser.add_argument(
        "--chat-key-variable", default="", metavar="NAME", help="environment variable that holds its key"
    )


def is_url(place: str) -> bool:
    """Whether it is a server's address, not a folder."""
    return place.startswith(("http://", "https://"))


def find_rewards(options: argparse.Namespace, names: list[str], made_with: str) -> list[Reward]:
    """Rewards by name from where `--rewards` says. Raises ConfigError for a missing one, naming the command that makes it.

    A server is asked at once: it pauses here while it is down, and raises RewardError for a reward that it does not have.
    """
    if is_url(options.rewards):
        return served_rewards(options.rewards, names, options.rewards_key_variable, options.rewards_patience)
    folder = Path(options.rewards)
    for name in names:
        for needed in NEEDS[name]:
            if not (folder / needed).exists():
                extra = " --preferences PAIRS" if name == "preference" else ""
                raise ConfigError(
                    f"{folder} has no {needed}, which the reward {name!r} needs: make it with `{made_with}{extra}`, or stop "
                    "before it with --until stpo"
                )
    return open_rewards(folder, names)


def served_rewards(url: str, names: list[str], key_variable: str, patience_seconds: float) -> list[Reward]:
    """Rewards of a server, each asked what it is."""
    from pleinair.endpoints import Endpoint
    from pleinair.rewards.remote import RemoteConfig, RemoteReward

    found = [
        RemoteReward(
            RemoteConfig(
                endpoint=Endpoint(url=url, model=name, key_variable=key_variable), patience_seconds=patience_seconds
            )
        )
        for name in names
    ]
    for reward in found:
        print(f"  {reward.name}: {reward.identity[:12] or 'unnamed'} at {url}")
    return list(found)


def open_rewards(folder: Path, names: list[str] | None, chat: Chat | None = None) -> list[Reward]:
    """The rewards of a folder, by name; where none are named, all that are there but `writing`, which needs `ocr`.

    `chat` stands behind the rubric instead of the folder's judge.
    """
    from pleinair.rewards.artefact import ArtefactReward, load_classifier
    from pleinair.rewards.diversity import DiversityReward
    from pleinair.rewards.picture_judge import load_picture_judge
    from pleinair.rewards.writing import WritingReward

    chosen: list[Reward] = []
    for name in names or [
        "rubric",
        "diversity",
        "artefact",
        *(["preference"] if (folder / PREFERENCE).exists() else []),
    ]:
        if name in ("rubric", "diversity"):
            judge = load_picture_judge(folder / JUDGE)
            chosen.append(
                open_rubric(judge, chat)
                if name == "rubric"
                else DiversityReward(judge.features, identity=judge.identity, parts=judge.parts)
            )
        elif name == "artefact":
            chosen.append(ArtefactReward(load_classifier(folder / ARTEFACT)))
        elif name == "preference":
            chosen.append(open_preference(folder))
        else:
            chosen.append(WritingReward())
    return chosen


def open_rubric(judge: PictureJudge, chat: Chat | None) -> Reward:
    """Prompt following by the judge and the rules, or by a model; the rules take what the model cannot take apart."""
    from pleinair.rewards.model_rubrics import ChatJudge, ModelRubrics
    from pleinair.rewards.rubric import RubricReward

    if chat is None:
        return RubricReward(judge.parser(), judge)
    return RubricReward(ModelRubrics(chat, judge.parser()), ChatJudge(chat))


def open_preference(folder: Path) -> Reward:
    """The preference model of a folder, with the tower beside it; says of what pairs it was fitted."""
    from pleinair.cli.places import cache_dir
    from pleinair.curation.small_models.tower_file import load_two_tower
    from pleinair.model.image_encoder import load_image_encoder
    from pleinair.rewards.preference import PreferenceReward, TowerFeatures, load_preference

    saved = load_preference(folder / PREFERENCE)
    print(f"  preference: {saved.source}")
    encoder = load_image_encoder(saved.source.encoder, cache_dir())
    return PreferenceReward(saved.head, TowerFeatures(load_two_tower(folder / TOWER), encoder))
