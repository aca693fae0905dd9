import math

import pytest

from pleinair.training.engine import EngineConfig, Phase, decay_steps
from pleinair.training.optimisers import OptimiserConfig
from pleinair.training.schedule import DecayShape, warmup_stable_decay
from tests.training.small_stages import Points


def factors(shape: DecayShape = "1-sqrt", min_factor: float = 0.0) -> list[float]:
    return [
        warmup_stable_decay(step, total_steps=100, warmup_steps=10, decay_steps=50, shape=shape, min_factor=min_factor)
        for step in range(100)
    ]


def test_the_schedule_warms_up_stays_and_decays() -> None:
    rates = factors()
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[9:51] == [1.0] * 42
    assert 0 < rates[-1] < 0.02


@pytest.mark.parametrize(
    ("shape", "formula"),
    [
        ("1-sqrt", lambda x: 1 - math.sqrt(x)),
        ("linear", lambda x: 1 - x),
        ("cosine", lambda x: (1 + math.cos(math.pi * x)) / 2),
    ],
)
def test_each_decay_follows_its_formula_down_to_the_least_factor(shape: DecayShape, formula: object) -> None:
    rates = factors(shape, 0.1)
    assert rates[50:] == pytest.approx([0.1 + 0.9 * formula((step - 50) / 50) for step in range(50, 100)])  # type: ignore[operator]


def test_a_stable_phase_has_the_same_rates_whether_or_not_a_decay_follows() -> None:
    stable = [Phase("stable", 60, 8, Points())]
    annealed = [*stable, Phase("anneal", 40, 8, Points(), decays=True)]
    config = EngineConfig(optimiser=OptimiserConfig(decay_share=0.0))

    def rates(phases: list[Phase[object]]) -> list[float]:
        total = sum(phase.num_steps for phase in phases)
        return [
            warmup_stable_decay(step, total_steps=total, warmup_steps=5, decay_steps=decay_steps(phases, config))
            for step in range(total)
        ]

    assert rates(annealed)[:60] == rates(stable)  # type: ignore[arg-type]
    assert rates(annealed)[99] < 0.02  # type: ignore[arg-type]
