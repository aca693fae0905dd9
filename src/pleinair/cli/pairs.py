"""`pleinair pairs`: preference pairs of what a checkpoint draws, or of what people chose; and what a folder of pairs holds.

pleinair pairs runs/demo --prompts runs/demo/pack -o pairs                           drawn, winners better by how they are made
pleinair pairs runs/demo --events preferences.jsonl --results A=runs/demo B -o pairs   chosen by people on the page of `sides`
pleinair pairs --show pairs                                                           where they come from
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pleinair.records.errors import ConfigError

if TYPE_CHECKING:
    from pleinair.evaluation.prompted import Prompted
    from pleinair.packing.delta_pairs import DeltaConfig, Score
    from pleinair.packing.pair_drawing import Source

WAYS = ("steps", "guidance", "prompt")


def register(verbs: Any) -> None:
    """Add the verb `pairs`."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "pairs",
        help="make preference pairs: drawn so that the order is known, or of what people chose",
        description="Pairs for preference training, with where each picture came from. Goes on where it was stopped.",
    )
    parser.add_argument("policy", nargs="?", metavar="CHECKPOINT", help="what will be trained: a checkpoint or a run")
    parser.add_argument("-o", "--output", type=Path, help="folder of the pairs")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs are (default: %(default)s)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompts", type=Path, metavar="PLACE", help="a pack, or a text file with a prompt a line")
    what.add_argument("--events", type=Path, metavar="FILE", help="preference events, as `pleinair sides` writes them")
    what.add_argument("--show", type=Path, metavar="PAIRS", help="say what a folder of pairs holds")
    drawn = parser.add_argument_group("with --prompts")
    drawn.add_argument("--count", type=int, default=512, help="pairs; prompts are used again (default: %(default)s)")
    drawn.add_argument(
        "--ways",
        nargs="+",
        default=list(WAYS),
        metavar="WAY",
        help="what makes losers worse: steps, guidance, prompt, earlier, weak (default: the first three)",
    )
    drawn.add_argument("--earlier", metavar="CHECKPOINT", help="earlier weights, for the ways earlier and weak")
    drawn.add_argument("--steps", type=int, default=28, help="Euler steps of winners (default: %(default)s)")
    drawn.add_argument("--guidance", type=float, default=3.0, help="of winners (default: %(default)g)")
    drawn.add_argument("--fewer-steps", type=int, default=4, help="of losers by steps (default: %(default)s)")
    drawn.add_argument("--resolution", type=int, default=64, help="side in pixels (default: %(default)s)")
    drawn.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    unsure = drawn.add_mutually_exclusive_group()
    unsure.add_argument("--drop", action="store_true", help="leave out ways whose order a judge is not sure of")
    unsure.add_argument("--say", action="store_true", help="make pairs also where a judge is not sure of their order")
    chosen = parser.add_argument_group("with --events")
    chosen.add_argument(
        "--results",
        nargs="+",
        default=[],
        metavar="RESULT[=CHECKPOINT]",
        help="folders of the judged pictures, and which checkpoint drew each",
    )
    chosen.add_argument("--synthetic", action="store_true", help="take answers of judges too, as stand-ins, marked so")
    parser.set_defaults(run=pairs)


def pairs(options: argparse.Namespace) -> int:
    """Make pairs, or show some."""
    if options.show is not None:
        show(options)
        return 0
    if options.policy is None or options.output is None:
        raise ConfigError("pairs are made for a checkpoint and into a folder: give CHECKPOINT and -o FOLDER")
    if options.events is not None:
        of_events(options)
    else:
        of_prompts(options)
    show(argparse.Namespace(**{**vars(options), "show": options.output}))
    return 0


def of_prompts(options: argparse.Namespace) -> None:
    """Draw them."""
    from pleinair.cli.progress import ProgressLine
    from pleinair.packing.delta_pairs import make_delta_pairs

    prompts, reward = with_reward(read_prompts(options.prompts))
    asked = [prompts[place % len(prompts)][0] for place in range(options.count)]
    line = ProgressLine("pairs")
    make_delta_pairs(
        options.output,
        asked,
        open_source(options.policy, options.runs),
        delta_config(options, is_judged=reward is not None),
        earlier=open_source(options.earlier, options.runs) if options.earlier else None,
        reward=reward,
        on_progress=line.update,
    )
    line.close()


def delta_config(options: argparse.Namespace, is_judged: bool = True) -> DeltaConfig:
    """The options as settings; pairs that nothing judges are refused by nothing. Raises ConfigError for one out of range."""
    from pleinair.packing.delta_pairs import DeltaConfig
    from pleinair.sampling import SamplingConfig

    try:
        sampling = SamplingConfig(num_steps=options.steps, guidance=options.guidance, resolution=options.resolution)
        return DeltaConfig(
            sampling=sampling,
            ways=tuple(options.ways),
            fewer_steps=options.fewer_steps,
            when_unsure="say" if options.say or not is_judged else "drop" if options.drop else "refuse",
            seed=options.seed,
        )
    except ValueError as refused:
        raise ConfigError(str(refused)) from refused


def open_source(place: str, runs: Path) -> Source:
    """The weights at a place with the shipped autoencoder, ready to draw."""
    from pleinair.checkpoint.manifests import identity
    from pleinair.checkpoint.store import read_manifest
    from pleinair.cli.encoders import open_text_encoder
    from pleinair.cli.parents import find_checkpoint
    from pleinair.cli.places import shipped
    from pleinair.packing.pair_drawing import Source
    from pleinair.sampling import Sampler
    from pleinair.sampling.checkpoints import read_model
    from pleinair.sampling.shipped import load_autoencoder

    checkpoint = find_checkpoint(place, runs)
    model, projection = read_model(checkpoint)
    sampler = Sampler(model, load_autoencoder(shipped("autoencoder")), open_text_encoder(), projection)
    return Source(sampler, identity(read_manifest(checkpoint)))


def read_prompts(place: Path) -> list[Prompted]:
    """Prompts with style and concept of a pack's rows; of a text file, with neither. Raises ConfigError for an empty one."""
    from pleinair.evaluation.prompted import prompts_of
    from pleinair.packs.pack import Pack

    if place.is_dir():
        return list(prompts_of(Pack(place)))
    if not place.exists():
        raise ConfigError(f"{place} is not there: give a pack, or a text file with a prompt a line")
    found = [line.strip() for line in place.read_text().splitlines() if line.strip()]
    if not found:
        raise ConfigError(f"{place} has no prompt: write one a line")
    return [(prompt, "", "") for prompt in found]


def with_reward(prompts: list[Prompted]) -> tuple[list[Prompted], tuple[str, Score] | None]:
    """Prompts that the shipped judge has names for, and the judge; of others all, and nothing that looks at their pairs."""
    from pleinair.cli.places import shipped
    from pleinair.evaluation.prompted import named_prompts, naming_score
    from pleinair.model.judge import load_judge

    judge = load_judge(shipped("judge"))
    named = named_prompts(judge, prompts)
    if not named:
        print("  the judge does not know what these prompts ask for: nothing looks at the order of the pairs")
        return prompts, None
    if len(named) < len(prompts):
        print(f"  {len(prompts) - len(named)} prompts that the judge has no names for are left out")
    return named, ("the judge", naming_score(judge, named))


def of_events(options: argparse.Namespace) -> None:
    """Pairs of what was chosen, their pictures taken from results."""
    from pleinair.cli.progress import ProgressLine
    from pleinair.packing.chosen_pairs import chosen_pictures, handed_in, make_event_pairs
    from pleinair.records.preferences import read_preferences

    source = open_source(options.policy, options.runs)
    pictures, checkpoints = read_results(options)
    choices = chosen_pictures(
        read_preferences(options.events), origins=("human", "synthetic") if options.synthetic else ("human",)
    )
    if not choices:
        raise ConfigError(
            f"{options.events} holds no choice by a person between single pictures: answer on the page of `pleinair sides`, "
            "or take the judges' with --synthetic"
        )
    line = ProgressLine("pairs")
    finder = handed_in(pictures, checkpoints, source.sampler)
    make_event_pairs(options.output, choices, finder, source.sampler, on_progress=line.update)
    line.close()


def read_results(options: argparse.Namespace) -> tuple[dict[tuple[str, str, int], Any], dict[str, str]]:
    """Pictures by side, unit and seed; and which weights drew a side, where it is told.

    Raises ConfigError where the pictures are not what the named checkpoint draws.
    """
    from pleinair.evaluation.people.shown import read_gallery

    pictures: dict[tuple[str, str, int], Any] = {}
    checkpoints: dict[str, str] = {}
    for told in options.results:
        folder, separator, place = told.partition("=")
        gallery = read_gallery(Path(folder))
        if separator:
            weights, draws = what_draws(place, options.runs)
            if draws != gallery.identity:
                raise ConfigError(
                    f"the pictures in {folder} are of {gallery.subject}, {gallery.identity[:12]}, and {place} draws as "
                    f"{draws[:12]}: name the checkpoint that drew them (a run stands for its newest), or leave ={place} out"
                )
            checkpoints[gallery.identity] = weights
        for one, picture in zip(gallery.asked, gallery.pictures, strict=True):
            pictures[gallery.identity, one.request.unit, one.seed] = picture
    return pictures, checkpoints


def what_draws(place: str, runs: Path) -> tuple[str, str]:
    """Identity of the weights at a place, and what results of `evaluate --suite exploration` bear that they drew."""
    from pleinair.checkpoint.manifests import identity
    from pleinair.checkpoint.store import read_manifest
    from pleinair.cli.exploration import open_model
    from pleinair.cli.parents import find_checkpoint
    from pleinair.cli.places import shipped
    from pleinair.evaluation.exploration.subjects import Drawn

    weights = identity(read_manifest(find_checkpoint(place, runs)))
    sampler, config = open_model(place if Path(place).exists() else str(shipped(place)))
    return weights, Drawn(place, sampler, config).identity


def show(options: argparse.Namespace) -> None:
    """How many, ordered by what, of which shape, and how many the policy drew a side of."""
    from pleinair.checkpoint.manifests import identity
    from pleinair.checkpoint.store import read_manifest
    from pleinair.cli.parents import find_checkpoint
    from pleinair.packs.pairs import ORDERED, Pairs

    held = Pairs(options.show)
    told = ", ".join(f"{number} {ORDERED[answer]}" for answer, number in held.answers().items())
    weak = sum(pair.weak_winner for pair in held)
    print(f"{len(held)} pairs in {options.show}: {told}")
    print(f"  latents {', '.join('x'.join(map(str, shape)) for shape in held.shapes)}; {weak} with a weak winner")
    if options.policy is not None:
        policy = identity(read_manifest(find_checkpoint(options.policy, options.runs)))
        print(f"  {held.share_on_policy(policy):.0%} hold a picture of {options.policy}'s own")
    if held.manifest.gap is not None:
        print(f"  {held.manifest.gap}")
