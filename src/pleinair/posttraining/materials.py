"""What the links of a chain are made with, handed in by whoever starts it, and the refusals before any work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pleinair.checkpoint.manifests import identity
from pleinair.checkpoint.merge import ORIGIN_DOCUMENT
from pleinair.checkpoint.store import digest_file, read_document, read_manifest
from pleinair.config import config_digest, to_document
from pleinair.evaluation.prompted import Prompted, named_prompts, naming_score
from pleinair.model.autoencoder import LatentCodec, require_same_latents
from pleinair.model.digest import part_digest
from pleinair.model.judge import Judge
from pleinair.model.text_encoder import TextEncoder
from pleinair.packing.delta_pairs import Score
from pleinair.packs.pack import Pack
from pleinair.packs.pairs import Pairs
from pleinair.posttraining.links import Chain, PreferenceLink, RewardLink
from pleinair.records.errors import CheckpointError, ConfigError
from pleinair.records.pairs import GapCheck
from pleinair.records.rewards import Reward
from pleinair.rewards.gold import Gold
from pleinair.rewards.identity import identity_of, unanswerable_by
from pleinair.sampling import Sampler
from pleinair.sampling.adapters import holds_adapter
from pleinair.sampling.checkpoints import read_model
from pleinair.sampling.projection import projection_of, read_projection
from pleinair.training.engine import Hook


def no_hooks(link: str) -> Sequence[Hook]:
    """None."""
    return ()


@dataclass(frozen=True)
class Materials:
    """Everything but the weights."""

    codec: LatentCodec
    text_encoder: TextEncoder
    judge: Judge
    """What measures: it looks at pairs and at every link's pictures, and is no reward."""
    packs: Mapping[str, Path]
    """Packs by name, `links.ALL` among them."""
    held_out: Path
    """Pack of pairs that are never trained on."""
    prompts: Sequence[Prompted]
    """What is drawn while training, each prompt once."""
    asked: Sequence[Prompted]
    """What is drawn to measure, of pairs that are never trained on."""
    rewards: Sequence[Reward] = ()
    gold: Sequence[Gold] = ()
    """Rewards that are only watched."""
    commit: str = "unknown"
    """Of the code."""
    hooks: Callable[[str], Sequence[Hook]] = no_hooks
    """More hooks of a link, by its name."""
    say: Callable[[str], None] = print

    def sampler(self, checkpoint: Path) -> Sampler:
        """A checkpoint's model, ready to draw."""
        model, projection = read_model(checkpoint)
        return Sampler(model, self.codec, self.text_encoder, projection)

    def answerable(self, prompts: Sequence[Prompted]) -> list[Prompted]:
        """Those that every reward, gold and served ones included, can say something of; others would stop a rollout."""
        left = list(prompts)
        for reward in (*self.rewards, *(held.reward for held in self.gold)):
            silent = set(unanswerable_by(reward, [prompt for prompt, _, _ in left]))
            left = [one for one in left if one[0] not in silent]
        if dropped := len(prompts) - len(left):
            self.say(f"{dropped} of {len(prompts)} prompts are left out: no reward can check anything of them")
        if not left:
            raise ConfigError(
                "the rewards can check nothing of any prompt: give prompts that name what the judge knows"
            )
        return left

    def order_check(self) -> tuple[list[Prompted], tuple[str, Score] | None]:
        """The prompts that the judge has names for, and the judge as what looks at the order of pairs; else all, and None."""
        named = named_prompts(self.judge, self.prompts)
        if not named:
            return list(self.prompts), None
        return named, ("the judge", naming_score(self.judge, named))


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What every checkpoint of a link says of where it came from, in `ORIGIN_DOCUMENT`."""

    chain: str
    link: str
    parents: tuple[str, ...]
    """Identities of the checkpoints it starts from or learns from."""
    data: dict[str, str] = field(default_factory=dict)
    """Digests of packs, pairs and prompts, by what they are."""
    rewards: dict[str, str] = field(default_factory=dict)
    """Identities of rewards by name; those that are only watched begin with `gold.`."""
    commit: str
    """Of the code."""
    answers: dict[str, int] = field(default_factory=dict)
    """Of pairs it was trained on, how many were ordered by what: `human`, `synthetic` (judges in people's place), or `delta`
    (how they were drawn)."""
    gap: GapCheck | None = None
    """What the judge said of the order of pairs that were drawn, by way of drawing."""

    def documents(self) -> dict[str, Any]:
        """As a run stores it."""
        return {ORIGIN_DOCUMENT: to_document(self)}


def pack_digest(pack: Path) -> str:
    """Of a pack's manifest, which has a hash of each of its files."""
    return digest_file(pack / "pack.json").sha256


def prompts_digest(prompts: Sequence[str]) -> str:
    """Of a list of prompts."""
    return config_digest(list(prompts))


def reward_identities(made: Materials) -> dict[str, str]:
    """By name."""
    known = {reward.name: identity_of(reward) for reward in made.rewards}
    return known | {held.name: identity_of(held.reward) for held in made.gold}


def check(chain: Chain, base: Path, made: Materials, until: str | None = None) -> None:
    """Raise ConfigError, CheckpointError or PackError for what would be met in the middle of the chain."""
    links = chain.links(until)
    if holds_adapter(base):
        raise ConfigError(f"{base} holds a LoRA, and a chain trains whole models: export it merged, and import that")
    read_manifest(base)
    _require_latents(base, made)
    projection = projection_of(base)
    for name in chain.packs(until):
        if name not in made.packs:
            raise ConfigError(f"there is no pack {name!r}, which the chain trains on: make it first")
        pack = Pack(made.packs[name])
        require_same_latents(pack.manifest.latent_space, made.codec, pack.directory)
        if chain.resolution not in pack.manifest.resolutions:
            raise ConfigError(
                f"the pack {pack.directory} has {pack.manifest.resolutions} px and the chain draws {chain.resolution}: pack again"
            )
        if projection is not None and part_digest(projection) != part_digest(read_projection(pack.directory)):
            raise ConfigError(
                f"the pack {pack.directory} holds text features of another projection than {base} reads: pack with that parent"
            )
    _check_order(links.get("stpo"), made)
    _check_chosen(links.get("calibrate"), Path(chain.events), base, made)
    _check_rewards(links.get("rl"), made)


def _require_latents(base: Path, made: Materials) -> None:
    config = read_document(base, "config.json")
    theirs, own = config.get("latent_space", ""), made.codec.describe().identity
    if theirs and theirs != own:
        raise CheckpointError(
            f"{base} has learned latents of {theirs!r} and the autoencoder gives {own!r}: give the autoencoder of the base"
        )
    channels = config["transformer"].get("in_channels")
    if channels is not None and channels != made.codec.latent_channels:
        raise CheckpointError(
            f"{base} has {channels} latent channels and the autoencoder {made.codec.latent_channels}: give another base"
        )


def _check_order(link: object, made: Materials) -> None:
    """Pairs that are to be drawn must have somebody who looks at their order, where that must be shown."""
    if not isinstance(link, PreferenceLink) or link.pairs is None or link.pairs.when_unsure == "say":
        return
    if made.order_check()[1] is None:
        raise ConfigError(
            f"stpo.pairs.when_unsure is {link.pairs.when_unsure} and the judge knows nothing of what the prompts ask for: give "
            "prompts that it has names for, or set it to say"
        )


def _check_chosen(link: object, events: Path, base: Path, made: Materials) -> None:
    """Pairs of events must be chosen ones, enough for a batch, in latents and text features that the base reads."""
    if not isinstance(link, PreferenceLink):
        return
    pairs = Pairs(events)
    if pairs.manifest.made != "chosen":
        raise ConfigError(
            f"{events} holds pairs that nobody chose: make some of events with `pleinair pairs CHECKPOINT --events FILE`"
        )
    if len(pairs) < link.batch_size:
        raise ConfigError(
            f"{events} holds {len(pairs)} pairs and calibrate.batch_size is {link.batch_size}: lower it, or let people answer "
            "more"
        )
    require_same_latents(pairs.manifest.latent_space, made.codec, pairs.directory)
    projection = projection_of(base)
    if projection is not None and part_digest(projection) != part_digest(read_projection(pairs.directory)):
        raise ConfigError(
            f"{events} holds text features of another projection than {base} reads: make the pairs with a checkpoint of this "
            "chain"
        )


def _check_rewards(link: object, made: Materials) -> None:
    """Rewards that are weighted must be there, and must be none that measures."""
    if not isinstance(link, RewardLink):
        return
    names = [reward.name for reward in made.rewards]
    for weighted in link.weights:
        if not any(weighted == name or weighted.startswith(f"{name}.") for name in names):
            told = ", ".join(names) or "none"
            raise ConfigError(
                f"rl.weights names {weighted!r}, and the rewards are {told}: `pleinair rewards fit` makes them"
            )
    measuring = part_digest(made.judge)
    for reward in made.rewards:
        if measuring in getattr(reward, "parts", frozenset()):
            raise ConfigError(
                f"{reward.name} is built on the judge that measures: fit another with `pleinair rewards fit --judge-seed 1`"
            )


def identity_at(checkpoint: Path) -> str:
    """Of a checkpoint's weights and documents."""
    return identity(read_manifest(checkpoint))
