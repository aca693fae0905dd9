"""`pleinair posttrain RECIPE`: base -> midtraining -> SFT -> preferences -> rewards -> few steps, each link a run of its own.

pleinair posttrain drawings-posttrain --plan          links, steps, expected minutes
pleinair posttrain drawings-posttrain --until stpo    stop after a link; the same command without it goes on
pleinair posttrain drawings-posttrain --events PAIRS  calibrate on what people chose among pictures of that link
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pleinair.records.errors import ConfigError

if TYPE_CHECKING:
    from pleinair.cli.workspace import Workspace
    from pleinair.posttraining.links import Chain
    from pleinair.posttraining.materials import Materials
    from pleinair.records.rewards import Reward
    from pleinair.rewards.gold import Gold
    from pleinair.training.engine import Hook


def register(verbs: Any) -> None:
    """Add the verb `posttrain`."""
    from pleinair.cli.curate import add_warehouse_options
    from pleinair.cli.reward_places import add_reward_options

    parser: argparse.ArgumentParser = verbs.add_parser(
        "posttrain",
        help="a chain of post-training: midtraining, SFT, preferences, rewards, few steps; resumes",
        description="Every link starts from the newest checkpoint of the link before and is a run below RUNS/RECIPE. Goes on "
        "where it was stopped.",
    )
    parser.add_argument("recipe", help="drawings-posttrain, posttrain-small")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. stpo.num_steps=60")
    parser.add_argument("--base", metavar="CHECKPOINT", help="start from it, in place of the recipe's base")
    parser.add_argument("--until", metavar="LINK", help="stop after midtrain, sft, stpo, calibrate, rl or tdm")
    parser.add_argument(
        "--events",
        metavar="PAIRS",
        help="pairs of what people chose, as `pairs --events` wrote them: the link calibrate",
    )
    parser.add_argument("--plan", action="store_true", help="print links, steps and expected minutes, and do nothing")
    add_reward_options(parser)
    parser.add_argument(
        "--gold",
        type=Path,
        metavar="FOLDER",
        help="what `rewards fit --judge-seed 2` wrote: its judge is watched as gold, "
        "never climbed (default: the second judge of the suite exploration)",
    )
    parser.add_argument(
        "--measure",
        choices=["none", "ends", "all"],
        help="whose last checkpoints the suite exploration measures: none, base "
        "and last, or all (default: the recipe's)",
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="folder of run directories (default: %(default)s)"
    )
    parser.add_argument("--processes", type=int, default=2, help="curation workers (default: %(default)s)")
    add_warehouse_options(parser)
    parser.set_defaults(run=posttrain)


def posttrain(options: argparse.Namespace) -> int:
    """Plan, or do; prints the last checkpoint and the page."""
    from pleinair.config import override
    from pleinair.recipes.posttrain import find_posttrain

    told = [f"{name}={place!r}" for name in ("base", "events") if (place := getattr(options, name)) is not None]
    told += [] if options.measure is None else [f"side_by_side.explore={options.measure!r}"]
    chain = override(find_posttrain(options.recipe), [*options.set, *told])
    chain.links(options.until)  # an unknown link is refused here
    print(plan(chain, options.until))
    if options.plan:
        return 0
    try:
        return run_here(chain, options)
    except FloatingPointError as diverged:
        print(f"pleinair: {diverged}", file=sys.stderr)
        return 1


def plan(chain: Chain, until: str | None) -> str:
    """A line for each link."""
    from pleinair.posttraining.cost import expected_minutes
    from pleinair.posttraining.links import folder_of

    minutes = expected_minutes(chain, until)
    lines = [
        f"{chain.name}: from {chain.base}, at {chain.resolution} px; minutes are of one core, for the network alone, what "
        "measures each link included",
        f"  {'0-base':12} {'':5}        about {minutes['base']:.1f} minutes",
    ]
    for name, link in chain.links(until).items():
        lines.append(f"  {folder_of(name):12} {link.num_steps:5} steps  about {minutes[name]:.1f} minutes")
    return "\n".join([*lines, f"  {'in all':12} {'':5}        about {sum(minutes.values()):.1f} minutes"])


def run_here(chain: Chain, options: argparse.Namespace) -> int:
    """Packs, then the chain."""
    from pleinair.cli.parents import find_checkpoint
    from pleinair.cli.posttrain_witnesses import gold_in, gold_of, open_suite, suite_of
    from pleinair.cli.report import commit, machine
    from pleinair.cluster.locks import only_one
    from pleinair.posttraining.compared import run_compared
    from pleinair.rewards.kept import kept

    rewards = rewards_of(chain, options)
    own = None if options.gold is None else gold_in(options.gold)
    base, root = find_checkpoint(chain.base, options.runs), (options.runs / chain.name).resolve()
    root.mkdir(parents=True, exist_ok=True)
    with only_one(root):
        packs = ready_packs(chain, base, root, options)
        opened = open_suite(chain, options)
        made = materials(packs, kept(rewards, root / "rewards"), own or gold_of(opened))
        suite = suite_of(chain, made, opened)
        footer = f"pleinair posttrain {chain.name}, commit {commit()}, {machine()}, seed {chain.engine.seed}"
        last, page = run_compared(chain, base, root, made, options.until, footer, suite)
    print(f"checkpoint: {last}\npage: {page}")
    print(f"to diffusers: pleinair export {last} --to diffusers -o {chain.name}-diffusers")
    return 0


def rewards_of(chain: Chain, options: argparse.Namespace) -> list[Reward]:
    """Those that the chain weighs, of a folder or a server. Raises ConfigError naming the command that makes what is missing."""
    from pleinair.cli.reward_places import NAMES, find_rewards, is_url

    link = chain.rl
    if link is None or "rl" not in chain.links(options.until):
        return []
    names = list(dict.fromkeys(weighted.partition(".")[0] for weighted in link.weights))
    if not is_url(options.rewards) and (unknown := [name for name in names if name not in NAMES]):
        raise ConfigError(f"rl.weights names {unknown[0]!r}: the rewards are {', '.join(NAMES)}")
    return find_rewards(options, names, f"pleinair rewards fit {chain.data} --to {options.rewards}")


def ready_packs(chain: Chain, base: Path, root: Path, options: argparse.Namespace) -> dict[str, Path]:
    """The packs of all domains below the chain's folder; the warehouse is opened only where one is not there."""
    from pleinair.cli import steps
    from pleinair.cli.parts import ready_parts

    works = {
        name: workspace(chain, name, styles, base, root, options) for name, styles in chain.packs(options.until).items()
    }
    missing = [work for work in works.values() if not (work.pack / "pack.json").exists()]
    if missing:
        with steps.open_database(missing[0]) as db:
            steps.ingest_step(missing[0], db)
            steps.curate_step(missing[0], db)
            for work in missing:
                work.run_dir.mkdir(parents=True, exist_ok=True)
                steps.pack_step(work, steps.curated_pictures(work, db), ready_parts(work, db))
    return {name: work.pack for name, work in works.items()}


def workspace(
    chain: Chain, name: str, styles: Sequence[str], base: Path, root: Path, options: argparse.Namespace
) -> Workspace:
    """Where one domain is packed: the data of the chain's recipe, read as the base reads text."""
    from pleinair.cli.places import cache_dir
    from pleinair.cli.workspace import Workspace
    from pleinair.recipes import PhaseConfig, find_recipe

    recipe = replace(
        find_recipe(chain.data),
        name=name,
        styles=tuple(styles),
        parent=str(base),
        phases=(PhaseConfig(resolution=chain.resolution, num_steps=1, batch_size=1),),
    )
    sampling = replace(recipe.sampling, resolution=chain.resolution)
    return Workspace(
        recipe=replace(recipe, sampling=sampling),
        run_dir=root / "packs" / name,
        home=options.home.resolve(),
        cache=cache_dir(),
        dsn=options.dsn,
        processes=options.processes,
        from_scratch=False,
        overrides=(),
    )


def materials(packs: dict[str, Path], rewards: Sequence[Reward], gold: Gold) -> Materials:
    """The shipped autoencoder and judge, the text encoder, the prompts of the packs."""
    from pleinair.cli.encoders import open_text_encoder
    from pleinair.cli.places import cache_dir, shipped
    from pleinair.cli.report import commit
    from pleinair.evaluation.prompted import prompts_of
    from pleinair.model.judge import load_judge
    from pleinair.model.text_encoders.cache import CachedTextEncoder
    from pleinair.packs.pack import Pack
    from pleinair.posttraining.links import ALL
    from pleinair.posttraining.materials import Materials
    from pleinair.sampling.shipped import load_autoencoder

    held_out = packs[ALL].with_name("pack-held-out")
    return Materials(
        codec=load_autoencoder(shipped("autoencoder")),
        text_encoder=CachedTextEncoder(open_text_encoder(), cache_dir() / "posttrain-text"),
        judge=load_judge(shipped("judge")),
        packs=packs,
        held_out=held_out,
        prompts=list({one[0]: one for one in prompts_of(Pack(packs[ALL]))}.values()),
        asked=list({one[0]: one for one in prompts_of(Pack(held_out))}.values()),
        rewards=rewards,
        gold=[gold],
        commit=commit(),
        hooks=progress,
        say=lambda said: print(f"  {said}", flush=True),
    )


def progress(link: str) -> Sequence[Hook]:
    """A line on the screen."""
    from pleinair.cli.progress import ProgressLine
    from pleinair.training.hooks.progress import EachStep

    line = ProgressLine(link)
    return [EachStep(lambda record, total: line.update(record.step + 1, total, f"loss {record.loss:.3f}"))]
