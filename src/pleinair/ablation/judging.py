"""From a matrix to what its page says: the findings of every switch, the rates that were chosen, how it was done.

Matrix --switch_runs--> SwitchRuns --judge--> Findings      judge_matrix puts them together as a Bench
"""

from __future__ import annotations

import os
import platform

import torch

from pleinair.ablation.findings import AXES, SwitchRuns, judge
from pleinair.ablation.matrix import STILL_TRAINS, Arm, Matrix, short_loss
from pleinair.ablation.page import Bench, SweptRates
from pleinair.ablation.results import HORIZONS, ArmCost
from pleinair.ablation.switches import Side, Switch, overrides_of
from pleinair.packs.pack import read_pack_manifest
from pleinair.training.hooks.validation import ValidationConfig


def judge_matrix(matrix: Matrix, command: str) -> Bench:
    """All that is trained so far, judged; `command` makes it again."""
    cells = [(resolution, horizon) for resolution in matrix.resolutions for horizon in HORIZONS]
    jobs = matrix.jobs()
    swept = [job for switch, side in matrix.sides() for job in matrix.sweep(switch, side).values()]
    probes = [job for arm in matrix.arms() for job in matrix.probe(arm).values()]
    planned = {job.digest: job for job in (*jobs, *swept, *probes)}
    return Bench(
        title=f"{matrix.recipe.title}: what each choice is worth",
        command=command,
        findings=[judge(switch_runs(matrix, switch), cells, matrix.config.margin) for switch in matrix.switches],
        rates=[swept_rates(matrix, switch, side) for switch, side in matrix.sides() if side.rates],
        num_done=sum(matrix.result(job) is not None for job in planned.values()),
        num_planned=len(planned),
        num_seeds=matrix.config.seeds,
        margin=matrix.config.margin,
        settings=_settings(matrix),
    )


def switch_runs(matrix: Matrix, switch: Switch) -> SwitchRuns:
    """The trainings and costs of a switch's sides."""
    sides, trains = (switch.first, switch.second), switch.trains
    arms = [matrix.arm(switch, side) if trains else matrix.baseline for side in sides]
    results = [
        matrix.results(arm) if _is_ready(matrix, switch, side) else [] for arm, side in zip(arms, sides, strict=True)
    ]
    names = (switch.first.name, switch.second.name)
    return SwitchRuns(
        name=switch.name,
        names=names,
        settings=(_difference(matrix, switch, switch.first), _difference(matrix, switch, switch.second)),
        words=switch.claims.words,
        claims={axis: getattr(switch.claims, axis) for axis in AXES},
        results=(results[0], results[1]),
        costs=_costs(matrix, (arms[0], arms[1]), trains),
        simpler=switch.simpler,
        why_simpler=switch.why_simpler,
        averages=None if trains else ("pma", "ema"),
        largest_multiples=(matrix.largest_multiple(arms[0]), matrix.largest_multiple(arms[1])),
    )


def _costs(matrix: Matrix, arms: tuple[Arm, Arm], trains: bool) -> dict[int, tuple[ArmCost, ArmCost]]:
    """Costs of both sides by resolution; of averages, without a moving one and with it, where its moving was timed."""
    if trains:
        return {one: (matrix.cost(arms[0], one), matrix.cost(arms[1], one)) for one in matrix.resolutions}
    plain = {one: matrix.cost(arms[0], one) for one in matrix.resolutions}
    return {one: (cost, cost.with_average()) for one, cost in plain.items() if cost.average_seconds}


def _is_ready(matrix: Matrix, switch: Switch, side: Side) -> bool:
    """Whether the side's learning rate is settled: before, none of its trainings can be meant."""
    return not side.rates or all(matrix.result(job) is not None for job in matrix.sweep(switch, side).values())


def _difference(matrix: Matrix, switch: Switch, side: Side) -> str:
    told = overrides_of(side, matrix.recipe)
    if side.repa is not None:
        told.append(f"iREPA after block {side.repa.depth} for {matrix.repa_steps} steps")
    if side.rates and _is_ready(matrix, switch, side):
        told.append(f"learning rate {matrix.arm(switch, side).recipe.engine.optimiser.learning_rate:g}")
    return ", ".join(told)


def swept_rates(matrix: Matrix, switch: Switch, side: Side) -> SweptRates:
    """How a side's rate was chosen."""
    results = {rate: matrix.result(job) for rate, job in matrix.sweep(switch, side).items()}
    losses = {f"{rate:g}": None if result is None else short_loss(result) for rate, result in results.items()}
    ready = _is_ready(matrix, switch, side)
    chosen = f"{matrix.arm(switch, side).recipe.engine.optimiser.learning_rate:g}" if ready else None
    return SweptRates(switch=switch.name, side=side.name, losses=losses, chosen=chosen)


def _settings(matrix: Matrix) -> dict[str, str]:
    """The page's list of how it was done."""
    config, recipe, places = matrix.config, matrix.recipe, matrix.places
    rows = {
        name: max(
            sum(shard.num_rows for shard in read_pack_manifest(pack).shards if shard.resolution == resolution)
            for resolution in matrix.resolutions
        )
        for name, pack in (("trained", places.trained), ("unseen", places.unseen))
    }
    costs = matrix.cost(matrix.baseline, matrix.resolutions[0])
    grid = ", ".join(f"{t:g}" for t in ValidationConfig().timesteps)
    if config.equal == "flops":
        compute = "equal FLOPs: a side whose step costs more does fewer steps; counted over real steps, update included"
    else:
        compute = "equal steps; FLOPs of a step are told beside"
    return {
        "model": f"width {recipe.transformer.width}, {recipe.transformer.num_layers} blocks, {costs.parameters:,} parameters",
        "data": f"{rows['trained']:,} pictures are trained on, {rows['unseen']:,} of other (concept, style) pairs judge",
        "resolutions": ", ".join(f"{one} px" for one in matrix.resolutions),
        "horizons": f"{config.short} and {config.long} steps of the baseline, each with a decay over its last "
        f"{config.decay_share:.0%}; the short one branches off the long one's steady phase",
        "compute": compute,
        "pairs": f"seeds 0 to {config.seeds - 1}: equal data order, noise and timesteps on both sides; 95% t intervals over seeds",
        "error": f"velocity error on {config.validation_batches} batches of unseen pairs at t = {grid}, the same noise each time",
        "larger rates": f"each arm also at {', '.join(f'{one:g}' for one in config.rate_multiples)} times its learning rate, at "
        f"{matrix.resolutions[0]} px to the short horizon; it trains where its error is at most {STILL_TRAINS} times that at 1",
        "averages": f"PMA: mean of {config.merge_last} checkpoints, {config.merge_every} steps apart; EMA: decay "
        f"{config.ema_decay}; both of the baseline's steady phase, before the decay",
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, torch {torch.__version__}; costs with one thread",
        "optimiser": f"{recipe.engine.optimiser.rule}, learning rate {recipe.engine.optimiser.learning_rate:g}, where no switch "
        f"says otherwise; {recipe.engine.precision}, batches of {recipe.phases[0].batch_size}",
    }
