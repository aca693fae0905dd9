"""`pleinair train` and `pleinair runs`: training in this process or as watched ranks, and what happened to a run.

pleinair train RECIPE                        here, in this process
pleinair train RECIPE --supervise            one rank, started again when it dies or hangs
pleinair train RECIPE --nproc N              N ranks: the launcher starts `pleinair train RECIPE` N times
      +-- rank: RANK is in its environment -> train_rank: armed, with a heartbeat
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pleinair.cli.workspace import Workspace, add_run_options
from pleinair.records.errors import ConfigError, PleinairError

if TYPE_CHECKING:
    from pleinair.cluster.launcher import LaunchConfig

TRAINER_RESTARTS = 3
"""How often `pleinair run` starts a trainer again that was killed, before it gives up."""
TRAINER_HANG_SECONDS = 300.0
"""Its least patience: steps took 20 s each on two cores that thirty other processes used as well."""


def register(verbs: Any) -> None:
    """Add the verbs `train` and `runs`."""
    parser: argparse.ArgumentParser = verbs.add_parser("train", help="train a recipe's model from its pack; resumes")
    add_run_options(parser)
    parser.add_argument(
        "--nproc", type=int, default=1, metavar="N", help="ranks on this machine (default: %(default)s)"
    )
    parser.add_argument(
        "--supervise", action="store_true", help="also with one rank: start it again when it dies or hangs"
    )
    parser.add_argument(
        "--max-restarts", type=int, default=10, help="restarts before progress must be made (default: %(default)s)"
    )
    parser.add_argument(
        "--hang-seconds", type=float, default=30.0, help="least silence that counts as a hang (default: %(default)g)"
    )
    parser.set_defaults(run=train)
    _register_runs(verbs)


def _register_runs(verbs: Any) -> None:
    parser: argparse.ArgumentParser = verbs.add_parser(
        "runs",
        help="what happened to a run: goodput, failures, who was missing",
        description="Goodput and post mortem of a run that was started with --supervise or --nproc.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="its folder, such as runs/demo")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="the same for machines")
    how.add_argument("--textfile", type=Path, metavar="FILE", help="write metrics for node_exporter's collector, once")
    how.add_argument("--serve", metavar="HOST:PORT", help="serve metrics to Prometheus until interrupted")
    parser.set_defaults(run=runs)


def train(options: argparse.Namespace) -> int:
    """Train here, or launch ranks that do; no database is needed."""
    from pleinair.cli.workspace import open_workspace

    work = open_workspace(options)
    if "RANK" in os.environ:
        return train_rank(work, int(os.environ["RANK"]))
    if options.nproc != 1 or options.supervise:
        from pleinair.cluster.launcher import LaunchConfig
        from pleinair.cluster.restarts import RestartConfig
        from pleinair.cluster.watchdog import WatchdogConfig

        try:
            restarts = RestartConfig(max_restarts=options.max_restarts)
            watchdog = WatchdogConfig(training_floor_seconds=options.hang_seconds)
            config = LaunchConfig(run_dir=work.run_dir, nproc=options.nproc, restarts=restarts, watchdog=watchdog)
        except ValueError as refused:
            raise ConfigError(str(refused)) from refused
        launch_ranks(over_ranks(work, options.nproc), config)
        return 0
    from pleinair.cli import steps

    try:
        print(f"checkpoint: {steps.train_here(work)}")
    except FloatingPointError as diverged:
        print(f"pleinair: {diverged}", file=sys.stderr)
        return 1
    return 0


def over_ranks(work: Workspace, num_ranks: int) -> Workspace:
    """The workspace with a mesh of that many ranks: the recipe's own, or where it names none, sharded over all.

    Raises ConfigError for a mesh of another size, and for batches that the ranks cannot share equally.
    """
    from pleinair.config import override
    from pleinair.training.mesh import check_world_size

    if work.recipe.parallel.mesh.num_ranks == 1:
        told = f"parallel.mesh.shard={num_ranks}"
        work = replace(work, recipe=override(work.recipe, [told]), overrides=(*work.overrides, told))
    mesh = work.recipe.parallel.mesh
    check_world_size(mesh, num_ranks)
    for phase in work.recipe.phases:
        if phase.batch_size % mesh.num_data_ranks:
            raise ConfigError(
                f"a batch of {phase.batch_size} at {phase.resolution} px does not divide by {mesh.num_data_ranks} data "
                "ranks: change phases, or the mesh"
            )
    return work


def train_rank(work: Workspace, rank: int) -> int:
    """Train as one rank of a launch. Errors that another try would meet again ask not to be started again."""
    from pleinair.cli import steps
    from pleinair.cluster.rank import GIVE_UP, arm, timeouts
    from pleinair.records.run_events import Rendezvous
    from pleinair.training.hooks.progress import Beats
    from pleinair.training.mesh import open_mesh

    heartbeat = arm(work.run_dir, rank)
    init_seconds, collective_seconds = timeouts()
    try:
        with open_mesh(
            work.recipe.parallel.mesh,
            init_timeout_seconds=init_seconds,
            collective_timeout_seconds=collective_seconds,
        ) as mesh:
            heartbeat.tell(Rendezvous(rank=rank, world_size=mesh.world_size))
            checkpoint = steps.train_on(work, mesh, [Beats(heartbeat)])
    except (PleinairError, FloatingPointError) as refused:
        print(f"pleinair: {refused}", file=sys.stderr)
        return GIVE_UP
    if rank == 0:
        print(f"checkpoint: {checkpoint}")
    return 0


def train_step(work: Workspace) -> None:
    """The step `train` of a whole run: a trainer of its own, started again when it is killed or hangs.

    Raises PleinairError when it stops for good, KeyboardInterrupt on Ctrl-C.
    """
    from pleinair.cluster.launcher import LaunchConfig
    from pleinair.cluster.restarts import RestartConfig
    from pleinair.cluster.watchdog import WatchdogConfig

    restarts = RestartConfig(max_restarts=TRAINER_RESTARTS)
    watchdog = WatchdogConfig(training_floor_seconds=TRAINER_HANG_SECONDS)
    launch_ranks(work, LaunchConfig(run_dir=work.run_dir, restarts=restarts, watchdog=watchdog))


def launch_ranks(work: Workspace, config: LaunchConfig) -> None:
    """Run `pleinair train` as ranks to the end of the training; however that comes, say what the time went into.

    Raises PleinairError when it stops for good, KeyboardInterrupt on Ctrl-C.
    """
    from pleinair.cluster.goodput import as_text, measure_goodput
    from pleinair.cluster.launcher import launch
    from pleinair.cluster.locks import only_one
    from pleinair.records.run_events import read_events

    if work.recipe.parent is not None:
        from pleinair.cli.parents import parent_of

        parent_of(work)  # refused here, with a sentence, rather than by ranks that others wait for
    command = [sys.executable, "-m", "pleinair.cli.main", "train", work.recipe.name, "--runs", str(work.run_dir.parent)]
    for assignment in work.overrides:
        command += ["--set", assignment]
    with only_one(work.run_dir, "launch.lock"):
        outcome = launch(command, config, on_message=lambda said: print(f"pleinair: {said}", file=sys.stderr))
    print(as_text(measure_goodput(read_events(config.events))), flush=True)
    if outcome.outcome == "interrupted":
        raise KeyboardInterrupt
    if outcome.outcome == "stopped":
        raise PleinairError(f"training stopped: {outcome.reason}; `pleinair runs {work.run_dir}` tells what happened")


def runs(options: argparse.Namespace) -> int:
    """Show, write or serve what happened to a run."""
    from pleinair.cluster.exporter import run_metrics, write_metrics
    from pleinair.cluster.post_mortem import as_json, as_screen, examine

    if options.serve is not None:
        return _serve(options.serve, lambda: run_metrics(options.run_dir))
    if options.textfile is not None:
        write_metrics(options.run_dir, options.textfile)
        return 0
    found = examine(options.run_dir)
    print(as_json(found) if options.json else as_screen(found))
    return 0


def _serve(listen: str, text: Callable[[], str]) -> int:
    import signal

    from pleinair.krablet.watching.prometheus import metrics_served

    with metrics_served(listen, text) as address:
        print(f"metrics: {address}", flush=True)
        signal.pause()
    return 0
