"""How often an honest reward is taken for broken, and how surely one that leaps is found: `python -m benchmarks.leaps`.

Made-up values of 0..1 in groups of eight pictures; prompts differ by a normal of the deviation told, pictures by 0.2. Honest runs
of 60 batches stay, climb 0.7 in 40 batches, idle and then climb 0.6 in 10, or are nearly always 0. In runs that leap all
pictures go from 0.5 to 1 in the eleventh batch and stay there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pleinair.rewards.advantages import Floats
from pleinair.rewards.statistics import StatisticsConfig, ValueStatistics

CLIMBS: dict[str, Callable[[int], float]] = {
    "stays": lambda step: 0.5,
    "climbs 0.7 in 40": lambda step: 0.2 + 0.7 * min(1, step / 40),
    "idles, climbs 0.6 in 10": lambda step: 0.25 + 0.6 * min(1, max(0, step - 12) / 10),
    "nearly always 0": lambda step: -0.3,
}
GROUPS, PROMPTS = (2, 4, 8, 32), (0.0, 0.15, 0.25)
NUM_RUNS, NUM_BATCHES, LEAPS_AT, EACH = 15, 60, 10, 8


def main() -> None:
    """Print a table."""
    limit = StatisticsConfig().leap
    print(f"{NUM_RUNS} runs a row and kind of climb; errors beyond which a run is stopped: {limit:g}")
    print(
        f"{'groups':>6} {'prompts':>7}  {'honest, most':>12}  {'stopped':>7}  {'found at once':>13}  {'by the next':>11}"
    )
    for num_groups in GROUPS:
        for prompts in PROMPTS:
            rng = np.random.default_rng(0)
            honest = [max(errors(rng, num_groups, prompts, mean)) for mean in CLIMBS.values() for _ in range(NUM_RUNS)]
            leaps = [errors(rng, num_groups, prompts, CLIMBS["stays"], LEAPS_AT)[-2:] for _ in range(4 * NUM_RUNS)]
            stopped = np.mean(np.array(honest) > limit)
            at_once, by_the_next = np.mean(np.array(leaps)[:, 0] > limit), np.mean(np.max(leaps, axis=1) > limit)
            print(
                f"{num_groups:6} {prompts:7.2f}  {max(honest):12.1f}  {stopped:7.1%}  {at_once:13.0%}  {by_the_next:11.0%}",
                flush=True,
            )


def errors(
    rng: np.random.Generator, num_groups: int, prompts: float, mean: Callable[[int], float], leaps_at: int | None = None
) -> list[float]:
    """Of every batch of a run, or of a run up to its leap."""
    known, found = ValueStatistics(StatisticsConfig()), []
    groups_N = np.arange(num_groups * EACH) // EACH
    for step in range(NUM_BATCHES if leaps_at is None else leaps_at + 2):
        values_N = batch(rng, num_groups, prompts, mean(step))
        if leaps_at is not None and step >= leaps_at:
            values_N = np.clip(1 + rng.normal(0, 0.01, len(values_N)), 0, 1)
        found.append(known.leap(values_N, groups_N, width=1.0))
        known = known.after(values_N, groups_N)
    return found


def batch(rng: np.random.Generator, num_groups: int, prompts: float, mean: float) -> Floats:
    """(N,) values about a mean."""
    of_prompts = mean + rng.normal(0, prompts, (num_groups, 1))
    return np.clip(of_prompts + rng.normal(0, 0.2, (num_groups, EACH)), 0, 1).ravel()


if __name__ == "__main__":
    main()
