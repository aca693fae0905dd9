"""How each kind of link is trained: one function a kind, from a parent's checkpoint to its own.

    settings, parent, materials -> stage, loader, hooks -> training.engine.train -> checkpoint

Every link is a run of its own: it resumes by its own checkpoints, pairs by their pieces and rollouts by their iterations.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pleinair.checkpoint.merge import combine_checkpoints
from pleinair.checkpoint.store import read_document, verify_checkpoint
from pleinair.config import config_digest, to_document
from pleinair.packing.delta_pairs import make_delta_pairs
from pleinair.packing.pair_drawing import Source
from pleinair.packs.loader import LatentLoader
from pleinair.packs.pack import Pack
from pleinair.packs.pairs import ORDERED, Anchored, PairLoader, PairLoaderConfig, Pairs
from pleinair.packs.plan import LoaderConfig
from pleinair.posttraining.distilling import few_step_stage, on_policy_stage, student_of
from pleinair.posttraining.links import (
    ALL,
    Chain,
    DistilLink,
    FlowLink,
    Link,
    PreferenceLink,
    RewardLink,
    StudentConfig,
)
from pleinair.posttraining.materials import (
    Materials,
    Origin,
    identity_at,
    pack_digest,
    prompts_digest,
    reward_identities,
)
from pleinair.posttraining.watching import SaysAlarms, gold_means
from pleinair.records.errors import CheckpointError
from pleinair.rewards.combine import MixConfig, RewardMix
from pleinair.sampling import Sampler
from pleinair.training.engine import EngineConfig, Hook, Parent, Phase, Stage, train
from pleinair.training.hooks.rewards import Earnings
from pleinair.training.hooks.samples import Samples
from pleinair.training.hooks.watching import WatchConfig, watching
from pleinair.training.mesh import Mesh
from pleinair.training.optimisers import OptimiserConfig
from pleinair.training.prompts import CaptionLoader, InTurn, PromptLoader, encode_prompts
from pleinair.training.rollouts.loader import Rollouts
from pleinair.training.rollouts.pool import PromptPool
from pleinair.training.stages.grpo import Grpo
from pleinair.training.stages.nft import Nft, OldPolicy
from pleinair.training.stages.preference import FrozenCopy, Preference
from pleinair.training.stages.pretrain import Pretrain

MERGED, STUDENT = "merged", "student"
VALIDATION_BATCH = 64


@dataclass(frozen=True)
class Place:
    """Where a link is trained, from what, with what."""

    chain: Chain
    name: str
    folder: Path
    parent: Path
    made: Materials

    def origin(self, data: Mapping[str, str], *, rewarded: bool = False) -> Origin:
        """What its checkpoints say."""
        return Origin(
            chain=self.chain.name,
            link=self.name,
            parents=(identity_at(self.parent),),
            data=dict(data),
            rewards=reward_identities(self.made) if rewarded else {},
            commit=self.made.commit,
        )

    def engine(self, optimiser: OptimiserConfig, **changes: Any) -> EngineConfig:
        """The chain's loop with the link's own rule."""
        return replace(self.chain.engine, optimiser=optimiser, **changes)


def train_link(place: Place, link: Link) -> Path:
    """Train a link to its end, or find that it is done; its last checkpoint."""
    if isinstance(link, FlowLink):
        return continue_training(place, link)
    if isinstance(link, PreferenceLink):
        return prefer(place, link)
    if isinstance(link, RewardLink):
        return reinforce(place, link)
    return distil(place, link)


def continue_training(place: Place, link: FlowLink) -> Path:
    """Midtraining or SFT: one model, or a specialist for each domain and what becomes of them together."""
    if len(link.packs) == 1:
        return _continue_on(place, link, link.packs[0])
    alone = replace(link, combine="merge", student=StudentConfig())  # which specialists do not depend on
    specialists = [_continue_on(_within(place, domain), alone, domain) for domain in link.packs]
    if link.combine == "on_policy":
        return teach_student(_within(place, STUDENT), specialists, link)
    return merge_specialists(place, specialists, link)


def _within(place: Place, name: str) -> Place:
    """A run of its own in a link's folder."""
    return replace(place, name=f"{place.name} {name}", folder=place.folder / name)


def _continue_on(place: Place, link: FlowLink, pack_name: str) -> Path:
    pack, seed = place.made.packs[pack_name], place.chain.engine.seed
    loader = LatentLoader(
        Pack(pack), place.chain.resolution, replace(link.loader, batch_size=link.batch_size, seed=seed)
    )
    stage = student_of(place.parent)
    phase = Phase(f"{place.name}", link.num_steps, link.batch_size, loader)
    return _train(place, stage, phase, place.engine(link.optimiser), link, place.origin({pack_name: pack_digest(pack)}))


def merge_specialists(place: Place, specialists: Sequence[Path], link: FlowLink) -> Path:
    """The parent and an equal part of what each specialist learned; made once."""
    out, names = place.folder / MERGED, [str(path) for path in specialists]
    if out.exists():
        try:
            verify_checkpoint(out)
            if [one["checkpoint"] for one in read_document(out, "run.json")["inputs"]] == names:
                return out
        except CheckpointError as damaged:
            place.made.say(f"{damaged}; it is merged again")
        shutil.rmtree(out)
    origin = _origin_of_all(place, specialists, link)
    amounts = [1 / len(specialists)] * len(specialists)
    return combine_checkpoints(place.parent, specialists, amounts, out=out, documents=origin.documents())


def teach_student(place: Place, teachers: Sequence[Path], link: FlowLink) -> Path:
    """Multi-teacher distillation: the parent goes on, each specialist answers for its own domain's captions."""
    stage = on_policy_stage(place.parent, teachers, link.student.distillation, anchor=place.parent)
    phase = Phase("captions", link.student.num_steps, link.batch_size, captions_in_turn(place, link))
    origin = _origin_of_all(place, teachers, link)
    return _train(place, stage, phase, place.engine(link.student.optimiser), link, origin, validated=False)


def captions_in_turn(place: Place, link: FlowLink) -> InTurn:
    """A batch of each domain's captions in turn, domains numbered as their specialists are."""
    settings = replace(link.loader, batch_size=link.batch_size, seed=place.chain.engine.seed)
    packs = [Pack(place.made.packs[domain]) for domain in link.packs]
    return InTurn(
        [
            CaptionLoader(LatentLoader(pack, place.chain.resolution, settings), domain)
            for domain, pack in enumerate(packs)
        ]
    )


def _origin_of_all(place: Place, specialists: Sequence[Path], link: FlowLink) -> Origin:
    """Of a model made of several: the parent, every specialist, every pack."""
    data = {name: pack_digest(place.made.packs[name]) for name in link.packs}
    return replace(place.origin(data), parents=tuple(map(identity_at, (place.parent, *specialists))))


def prefer(place: Place, link: PreferenceLink) -> Path:
    """Train on pairs beside rows of the pack, and end where the budget is spent."""
    made, seed, stage = place.made, place.chain.engine.seed, student_of(place.parent)
    sampler = Sampler(stage.model, made.codec, made.text_encoder, stage.projection)
    policy = identity_at(place.parent)
    pairs, pack = _ready_pairs(place, link, Source(sampler, policy)), made.packs[ALL]
    config = PairLoaderConfig(batch_size=link.batch_size, seed=seed, least_on_policy=link.least_on_policy)
    loader = Anchored(
        PairLoader(pairs, config, policy),
        LatentLoader(Pack(pack), place.chain.resolution, LoaderConfig(batch_size=link.batch_size, seed=seed)),
    )
    reference = FrozenCopy(stage.model)
    preference = Preference(stage, reference, link.preference, reference_identity=policy)
    origin = place.origin({"pairs": pairs.manifest.plan, ALL: pack_digest(pack)})
    before = Pretrain(reference.model, stage.projection, stage.config)
    return _train(
        replace(place, chain=replace(place.chain, watch=_gated(place.chain.watch, link))),
        preference,
        Phase("pairs", link.num_steps, link.batch_size, loader),
        place.engine(link.optimiser, clip_norm=link.clip_norm),
        link,
        replace(origin, answers=pairs.answers(), gap=pairs.manifest.gap),
        _drawn_gates(place, link, sampler),
        before,
        num_held_out=link.gates.num_rows if link.gates.every else VALIDATION_BATCH,
    )


def _gated(watch: WatchConfig, link: PreferenceLink) -> WatchConfig:
    """The chain's, with the link's budget, and held-out rows as often as its gates ask: one batch, at all timesteps."""
    validation = watch.validation
    if link.gates.every:
        validation = replace(validation, every=link.gates.every, num_batches=1)
    return replace(watch, divergence=link.divergence, validation=validation)


def _drawn_gates(place: Place, link: PreferenceLink, sampler: Sampler) -> list[Hook]:
    """What looks at pictures, few and of few steps: always the same prompts and noise, so that they compare."""
    made, gates = place.made, link.gates
    if not gates.every:
        return []
    usual = place.chain.side_by_side.sampling
    config = replace(usual, resolution=place.chain.resolution, num_steps=gates.num_steps)
    prompts = [prompt for prompt, _, _ in made.answerable(made.asked)[: gates.num_pictures]]
    draw = lambda: sampler.sample(prompts, range(len(prompts)), config)  # noqa: E731
    return [Samples(draw, gates.every, lambda pictures: gold_means(made.gold, prompts, pictures))]


def _ready_pairs(place: Place, link: PreferenceLink, source: Source) -> Pairs:
    """Those of events as they are, or drawn beside the run, once, with what the judge says of their order."""
    made = place.made
    if link.pairs is None:
        pairs = Pairs(Path(place.chain.events))
        told = " and ".join(f"{number} {ORDERED[answer]}" for answer, number in pairs.answers().items())
        made.say(f"{place.name}: pairs {told}")
        return pairs
    named, check = made.order_check()
    order = np.random.default_rng(place.chain.engine.seed).permutation(len(named))
    prompts = [named[order[number % len(named)]][0] for number in range(link.num_pairs)]
    manifest = make_delta_pairs(place.folder / "pairs", prompts, source, link.pairs, reward=check)
    made.say(f"{place.name}: {manifest.gap or 'nothing looks at the order of the pairs'}")
    return Pairs(place.folder / "pairs")


def reinforce(place: Place, link: RewardLink) -> Path:
    """Draw without guidance, assess, update. Raises RewardError, with its sentence, where a reward is broken."""
    made, stage = place.made, student_of(place.parent)
    sampler = Sampler(stage.model, made.codec, made.text_encoder, stage.projection)
    before = student_of(place.parent)
    mix = RewardMix(made.rewards, MixConfig(weights=link.weights, statistics=link.statistics), gold=made.gold)
    prompts = [prompt for prompt, _, _ in made.answerable(made.prompts)]
    policy: Grpo | Nft
    if link.method == "nft":
        policy = Nft(stage, link.nft, before.model)
        sampler = replace(sampler, transformer=policy.old)
    else:
        policy = Grpo(stage, link.grpo, before.model)
    loader = Rollouts(
        sampler,
        mix,
        PromptPool(prompts, link.pool),
        link.rollout,
        place.folder / "rollouts",
        batch_size=link.batch_size,
        seed=place.chain.engine.seed,
        mesh=Mesh(),
        on_message=made.say,
    )
    hooks: list[Hook] = [OldPolicy(policy, loader.steps_per_iteration)] if isinstance(policy, Nft) else []
    hooks += [Earnings(loader), SaysAlarms(mix, made.say)]
    origin = place.origin({"prompts": prompts_digest(prompts)}, rewarded=True)
    engine = place.engine(link.optimiser, precision=link.rollout.drawing.precision)
    return _train(
        place, policy, Phase("rl", link.num_steps, link.batch_size, loader), engine, link, origin, hooks, before
    )


def distil(place: Place, link: DistilLink) -> Path:
    """A student of the parent, on prompts alone."""
    made, side = place.made, place.chain.resolution // place.made.codec.downscale
    stage = few_step_stage(place.parent, link.tdm, made.text_encoder)
    prompts = [prompt for prompt, _, _ in made.prompts]
    encoded = encode_prompts(prompts, made.text_encoder, stage.pretrain.projection)
    shape = (made.codec.latent_channels, side, side)
    loader = PromptLoader(encoded, shape, link.batch_size, seed=place.chain.engine.seed)
    phase = Phase("prompts", link.num_steps, link.batch_size, loader)
    origin = place.origin({"prompts": prompts_digest(prompts)})
    return _train(place, stage, phase, place.engine(link.optimiser), link, origin, validated=False)


def _train(
    place: Place,
    stage: Stage[Any],
    phase: Phase[Any],
    engine: EngineConfig,
    link: Link,
    origin: Origin,
    hooks: Sequence[Hook] = (),
    reference: Pretrain | None = None,
    validated: bool = True,
    num_held_out: int = VALIDATION_BATCH,
) -> Path:
    """The engine, with what watches every link."""
    watch = place.chain.watch
    held_out = _held_out(place, num_held_out) if validated and watch.validation.every else None
    if held_out is not None:
        most = min(watch.validation.num_batches, len(held_out))
        watch = replace(watch, validation=replace(watch.validation, num_batches=most))
    told = to_document(origin)
    for beside in ("commit", "answers", "gap"):  # other code goes on with a run; other data or rewards do not
        told.pop(beside)
    settings = to_document(link)
    settings.pop("statistics", None)  # when a reward is refused changes nothing that was learnt
    return train(
        stage,
        [phase],
        engine,
        place.folder,
        config_digest=config_digest([settings, to_document(engine), told]),
        hooks=[*hooks, *watching(watch, held_out=held_out, reference=reference), *place.made.hooks(place.name)],
        parent=Parent(checkpoint=place.parent),
        documents=origin.documents(),
        on_message=place.made.say,
    )


def _held_out(place: Place, size: int) -> LatentLoader:
    """Rows that are never trained on, the same for all links, so many a batch."""
    pack = Pack(place.made.held_out)
    size = min(size, pack.manifest.num_rows)
    return LatentLoader(pack, place.chain.resolution, LoaderConfig(batch_size=size, drop_caption=0.0))
