"""Preference optimisation that drifts less: STPO beside Diffusion-DPO, DPO+SFT, DPOP, Diffusion-SDPO and MaPO, at equal reward.

A base model draws pairs of known order: winners as usual, with guidance and many steps; losers without guidance, with few steps,
or from half the prompt. Every option trains on the same pairs from the same base. What the pictures are worth is told by a gold
reward that no pair and no update has seen: how likely a judge of its own holds style and thing of held-out prompts, drawn
without guidance from fixed noise. Options move at different speeds, so they are compared where their gold reward is equal, by
interpolation along each run: how far the velocity has drifted on pretraining data, and how many winners got worse.

The strength of each option is chosen on one seed and compared on others. Nothing is clipped; all share AdamW and its rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.experiments.drawn import SIDE
from benchmarks.experiments.ground import RECIPE, Fitted, stand
from benchmarks.experiments.ground import Ground as Shared
from benchmarks.experiments.results import once, publish
from benchmarks.experiments.stpo_page import Curve, Measured, chosen_levels, report
from benchmarks.krablet.rounds import commit, machine
from pleinair.checkpoint.manifests import identity
from pleinair.checkpoint.store import read_manifest
from pleinair.cli.places import shipped
from pleinair.cli.previews import KnownPrompts
from pleinair.cli.progress import ProgressLine
from pleinair.config import config_digest
from pleinair.evaluation.prompted import Prompted
from pleinair.packing.delta_pairs import DeltaConfig, make_delta_pairs, shortened
from pleinair.packing.pair_drawing import Source
from pleinair.packs.loader import LatentLoader
from pleinair.packs.pairs import Anchored, PairLoader, PairLoaderConfig, Pairs
from pleinair.packs.plan import LoaderConfig
from pleinair.pages.picture import Pixels
from pleinair.recipes import find_recipe
from pleinair.records.rewards import RewardContext
from pleinair.sampling import Sampler, SamplingConfig
from pleinair.sampling.checkpoints import read_model
from pleinair.sampling.shipped import load_autoencoder
from pleinair.training.engine import EngineConfig, Hook, Phase, train
from pleinair.training.hooks.divergence import Divergence, DivergenceConfig
from pleinair.training.hooks.progress import EachStep
from pleinair.training.hooks.samples import Samples, high_frequency_shares
from pleinair.training.hooks.validation import Validation, ValidationConfig
from pleinair.training.optimisers import OptimiserConfig
from pleinair.training.records import StepRecord, read_records
from pleinair.training.stages.preference import FrozenCopy, Preference, PreferenceConfig
from pleinair.training.stages.pretrain import Pretrain

HEADLINE = ("DPO", "DPO+SFT", "STPO")
SWEPT = ("DPO", "DPO+SFT", "DPOP", "SDPO", "MaPO", "STPO")
MARGINS = (5.0, 50.0, 500.0)
"""Levels of strength: what one unit of error counts inside the sigmoid before training. Large: a pair is soon won."""
WITHOUT = {
    "STPO without saturation": {"saturation": None},
    "STPO without the winner's own loss": {"winner_weight": 0.0},
    "STPO without anchor": {"anchor_weight": 0.0},
    "STPO without scaling": {"loser_mu": None},
}
SHUFFLED = "STPO, labels shuffled"
BUDGET = DivergenceConfig(drift=0.5, window=10)
NUM_SHOWN = 6
LEAST_CHANCE = 1e-4
"""Less than this a judge is not believed to tell apart."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is trained and measured."""

    num_steps: int = 240
    """Of every run."""
    every: int = 20
    """Steps between two measurements."""
    batch_size: int = 16
    """Pairs of a step."""
    num_pairs: int = 768
    num_gold: int = 96
    """Pictures behind the gold reward."""
    steps_of_winners: int = 28
    gold_steps: int = 16
    """Euler steps of the pictures that the gold reward is of."""
    levels: tuple[int, ...] = (0, 1, 2)
    """Places in `MARGINS` that are swept."""
    sweep_seed: int = 100
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of the headline comparison."""
    learning_rate: float = 3e-5
    threads: int = 2
    """Of every run."""


SIZES = {
    "full": Size(),
    "small": Size(
        num_steps=4, every=2, batch_size=4, num_pairs=12, num_gold=4, steps_of_winners=3, gold_steps=2,
        levels=(1,), seeds=(0, 1), threads=1,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One option at one strength with one seed."""

    name: str
    level: int
    seed: int

    @property
    def run(self) -> str:
        """Name of its run."""
        words = "".join(letter if letter.isalnum() else "-" for letter in self.name.lower())
        return f"{words}-{MARGINS[self.level]:g}-{self.seed}"

    @property
    def config(self) -> PreferenceConfig:
        """The loss. DPO's beta counts half inside its sigmoid, and MaPO's odds fall by about a quarter of an error."""
        margin = MARGINS[self.level]
        if self.name == "MaPO":
            return PreferenceConfig(method="mapo", beta=0.1, mapo_scale=4 * margin)
        methods = {"DPO": "dpo", "DPO+SFT": "dpo_sft", "DPOP": "dpop", "SDPO": "sdpo"}
        if self.name in methods:
            return PreferenceConfig(method=methods[self.name], beta=2 * margin)  # type: ignore[arg-type]
        return PreferenceConfig(**{"beta": margin, **WITHOUT.get(self.name, {})})  # type: ignore[arg-type, dict-item]


@dataclass(frozen=True)
class Ground:
    """What all arms share."""

    source: Source
    shared: Shared
    """Base, packs, rewards."""
    pairs: Pairs
    prompts: list[Prompted]
    """Of the gold reward, one for each picture."""
    runs: Path
    size: Size


def run(runs: Path, home: Path | None, out: Path, base: str | None = None, small: bool = False) -> Path:
    """Everything; returns the page. `base` is another model of the demo's architecture than its own."""
    size = "small" if small else "full"
    ground = ready(runs, base, SIZES[size], small)
    measured = [measure(arm, ground) for arm in sweep(ground.size)]
    levels = chosen_levels(measured, HEADLINE)
    headline = [Arm(name=name, level=levels[name], seed=seed) for name in HEADLINE for seed in ground.size.seeds]
    measured += [measure(arm, ground) for arm in [*headline, *extras(levels["STPO"], ground.size)]]
    told = {"commit": commit(), "machine": machine(), "size": size, "levels": levels, "gap": _gap(ground)}
    document = {"told": told, "rows": [one.numbers() for one in measured]}
    shown = [prompt for prompt, _, _ in ground.prompts[:NUM_SHOWN]]
    bases = {"base, as measured": draw(ground, ground.source.sampler, NUM_SHOWN)}
    bases["base with guidance, as winners"] = draw(ground, ground.source.sampler, NUM_SHOWN, guidance=3.0)
    return publish(out, "stpo", document, report(__doc__ or "", measured, HEADLINE, levels, bases, shown, told))


def sweep(size: Size) -> list[Arm]:
    """Every option at every strength."""
    return [Arm(name=name, level=level, seed=size.sweep_seed) for name in SWEPT for level in size.levels]


def extras(level: int, size: Size) -> list[Arm]:
    """STPO with each switch off, and the control, at STPO's strength."""
    return [Arm(name=name, level=level, seed=size.seeds[0]) for name in (*WITHOUT, SHUFFLED)]


def _gap(ground: Ground) -> str:
    gap = ground.pairs.manifest.gap
    assert gap is not None
    return (
        f"{gap.num_right} of {gap.num_judged} winners are better by {gap.judged_by}, by {gap.mean_gap:.2f} on average"
    )


def ready(runs: Path, base: str | None, size: Size, small: bool) -> Ground:
    """Base, packs, pairs and the prompts of the gold reward."""
    shared = stand(runs, base, small)
    model, projection = read_model(shared.base)
    trained, unseen = shared.trained_prompts, shared.unseen_prompts
    asked = [unseen[number % len(unseen)] for number in range(size.num_gold)]
    texts = list(dict.fromkeys(prompt for prompt, _, _ in [*trained, *unseen]))
    encoder = KnownPrompts(shared.encoder, ["", *texts, *shorter(texts)])
    source = Source(
        Sampler(model, load_autoencoder(shipped("autoencoder")), encoder, projection),
        identity(read_manifest(shared.base)),
    )
    line, config = ProgressLine("pairs"), pair_settings(size)
    # Another base, size or judge has runs of its own.
    own = runs / f"stpo-{config_digest([shared.identity, config, size])[:8]}"
    own.mkdir(parents=True, exist_ok=True)
    make_delta_pairs(
        own / "pairs",
        [trained[number % len(trained)][0] for number in range(size.num_pairs)],
        source,
        config,
        reward=("the reward's judge", likelihood(shared.fitted["reward"])),
        on_progress=line.update,
    )
    return Ground(source, shared, Pairs(own / "pairs"), asked, own, size)


def likelihood(fitted: Fitted) -> Callable[[Sequence[str], Pixels], npt.NDArray[np.float32]]:
    """The log of a judge's chance that a picture shows all that its prompt requires: without ends, as a reward's mean has."""
    reward = fitted.rubric("holistic")

    def score(prompts: Sequence[str], pixels: Pixels) -> npt.NDArray[np.float32]:
        context = RewardContext(seeds=(0,) * len(pixels), groups=tuple(range(len(pixels))))
        chance = reward.score(prompts, pixels, context).values["rubric"]
        logs: npt.NDArray[np.float32] = np.log(np.maximum(chance, LEAST_CHANCE))
        return logs

    return score


def pair_settings(size: Size) -> DeltaConfig:
    """Guided winners of many steps; losers without guidance, of few steps, of half the prompt. Said, where few are sure."""
    sampling = SamplingConfig(num_steps=size.steps_of_winners, resolution=SIDE, precision="fp32")
    return DeltaConfig(sampling=sampling, fewer_steps=2, when_unsure="say", ways=("guidance", "steps", "prompt"))


def shorter(prompts: Sequence[str]) -> list[str]:
    """What losers by `prompt` are drawn from."""
    config = DeltaConfig(sampling=SamplingConfig())
    return list(dict.fromkeys(shortened(prompt, config.kept_words, config.seed) for prompt in prompts))


def measure(arm: Arm, ground: Ground) -> Measured:
    """Train an arm to its end, or find that it has, and read what it measured; its last pictures are kept beside it."""
    run_dir = ground.runs / arm.run

    def made() -> dict[str, Any]:
        pictures = train_arm(arm, ground, run_dir)
        records = read_records(run_dir / "steps.jsonl")
        return Measured(
            arm=arm.name,
            level=arm.level,
            seed=arm.seed,
            swept=arm.seed == ground.size.sweep_seed,
            seconds=sum(ground.size.batch_size / record.samples_per_second for record in records),
            curve=curve_of(records, ground),
            stopped=len(records) < ground.size.num_steps,
            pictures=pictures.tolist(),
        ).document()

    return Measured.of_document(once(run_dir / "measured.json", made))


def train_arm(arm: Arm, ground: Ground, run_dir: Path) -> Pixels:
    """Train, and draw with what was trained."""
    size = ground.size
    model, projection = read_model(ground.shared.base)
    recipe = find_recipe(RECIPE)
    pretrain = Pretrain(model, projection, recipe.pretrain, ground.shared.pack.manifest.latent_space)
    reference = FrozenCopy(model)
    stage = Preference(pretrain, reference, arm.config, reference_identity=ground.source.identity)
    sampler = replace(ground.source.sampler, transformer=model)
    rows = min(32, ground.shared.held_out.manifest.num_rows)
    held_out = LatentLoader(
        ground.shared.held_out,
        min(ground.shared.held_out.manifest.resolutions),
        LoaderConfig(batch_size=rows, drop_caption=0.0, remainder="short"),
    )
    hooks: list[Hook] = [
        Validation(
            held_out,
            ValidationConfig(every=size.every, num_batches=min(2, len(held_out))),
            reference=Pretrain(reference.model, projection, recipe.pretrain),
        ),
        Samples(lambda: draw(ground, sampler, size.num_gold), size.every, gold_of(ground)),
        Divergence(BUDGET),
        EachStep(_progress(arm.run)),
    ]
    phase = Phase("pairs", size.num_steps, size.batch_size, loader_of(arm, ground))
    told = [arm.config, arm.name, size, ground.source.identity, ground.pairs.manifest, BUDGET]
    train(
        stage, [phase], engine_of(arm, size), run_dir, config_digest=config_digest(told), hooks=hooks,
        on_message=lambda said: print(f"  {arm.run}: {said}", flush=True),
    )  # fmt: skip
    return draw(ground, sampler, NUM_SHOWN)


def _progress(name: str) -> Any:
    line = ProgressLine(name)

    def show(record: StepRecord, total: int) -> None:
        line.update(record.step + 1, total, f"drift {record.metrics['drift']:.4f}")

    return show


def loader_of(arm: Arm, ground: Ground) -> Anchored:
    """The pairs with rows of the base's own pack beside them; orders by the arm's seed alone."""
    size, seed = ground.size, arm.seed
    pairs = PairLoader(
        ground.pairs,
        PairLoaderConfig(batch_size=size.batch_size, seed=seed, shuffle_labels=arm.name == SHUFFLED),
        ground.source.identity,
    )
    return Anchored(pairs, LatentLoader(ground.shared.pack, SIDE, LoaderConfig(batch_size=size.batch_size, seed=seed)))


def engine_of(arm: Arm, size: Size) -> EngineConfig:
    """The same loop for all. AdamW undoes the scale of a loss; clipping would not, so nothing is clipped."""
    optimiser = OptimiserConfig(learning_rate=size.learning_rate, warmup_steps=10, decay_share=0.0, weight_decay=0.0)
    return EngineConfig(
        seed=arm.seed,
        precision="fp32",
        optimiser=optimiser,
        clip_norm=1e9,
        keep_checkpoints=1,
        num_threads=size.threads,
    )


def draw(ground: Ground, sampler: Sampler, count: int, guidance: float = 0.0) -> Pixels:
    """The first pictures behind the gold reward, always from the same noise."""
    config = SamplingConfig(
        num_steps=ground.size.gold_steps, guidance=guidance, resolution=SIDE, precision="fp32", batch_size=32
    )
    prompts = [prompt for prompt, _, _ in ground.prompts[:count]]
    return sampler.sample(prompts, range(len(prompts)), config)


def curve_of(records: Sequence[StepRecord], ground: Ground) -> Curve:
    """What was measured along a run: the base first, then every `every` steps, with means over the steps between."""
    still = dict.fromkeys(("step", "drift", "winners_worse", "rise", "winner_rise", "loser_rise"), 0.0)
    rows = [{**still, "margin_accuracy": 0.5, **measured_base(ground)}, *_points(records)]
    return {name: [row[name] for row in rows] for name in rows[0]}


def measured_base(ground: Ground) -> dict[str, float]:
    """Gold reward and high frequencies of the base, measured once."""

    def made() -> dict[str, float]:
        pixels = draw(ground, ground.source.sampler, ground.size.num_gold)
        return {**gold_of(ground)(pixels), "high_frequency": float(high_frequency_shares(pixels).mean())}

    found: dict[str, float] = once(ground.runs / "base.json", made)
    return found


def gold_of(ground: Ground) -> Callable[[Pixels], dict[str, float]]:
    """How likely the gold judge, which no pair was checked by, holds what was asked for: the mean of logs."""
    score = likelihood(ground.shared.fitted["gold"])
    texts = [prompt for prompt, _, _ in ground.prompts]
    return lambda pixels: {"gold": float(score(texts, pixels).mean())}


def _points(records: Sequence[StepRecord]) -> Iterator[dict[str, float]]:
    since: list[StepRecord] = []
    for record in records:
        since.append(record)
        if "samples/gold" not in record.metrics:
            continue
        of_steps = ("winners_worse", "winner_rise", "loser_rise", "margin_accuracy", "drift")
        means = {name: float(np.mean([one.metrics[name] for one in since])) for name in of_steps}
        measured = {"gold": "samples/gold", "high_frequency": "samples/high_frequency", "rise": "validation_rise/loss"}
        now = {name: record.metrics[key] for name, key in measured.items()}
        # The last few steps' drift is that of the model that drew; the mean over all since lags behind.
        now["drift"] = float(np.mean([one.metrics["drift"] for one in since[-5:]]))
        yield {"step": float(record.step + 1), **means, **now}
        since = []
