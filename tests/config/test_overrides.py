from dataclasses import dataclass, field
from typing import Literal

import pytest

from pleinair.config import config_digest, from_document, override, to_document
from pleinair.records.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Rule:
    rate: float = 1e-3
    name: Literal["adamw", "muon"] = "adamw"

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ValueError(f"rate is {self.rate}: it must be positive")


@dataclass(frozen=True, kw_only=True)
class Run:
    steps: int = 10
    sizes: tuple[int, ...] = (1, 2)
    rule: Rule = field(default_factory=Rule)
    label: str | None = None


def test_a_dotted_override_changes_one_field_of_a_copy() -> None:
    run = Run()
    assert override(run, ["rule.rate=2", "sizes=(3,)", "label=blue"]) == Run(
        sizes=(3,), rule=Rule(rate=2.0), label="blue"
    )
    assert run == Run()


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("stepps=3", "unknown configuration key 'stepps' .*did you mean 'steps'"),
        ("rule.rat=3", "unknown configuration key 'rule.rat'"),
        ("steps=many", "steps='many' has the wrong type: int is expected"),
        ("steps=True", "steps=True has the wrong type"),
        ("steps", "'steps' is not an override: write key=value"),
        ("steps.deep=1", "'steps.deep' goes deeper"),
        ("rule.name=sgd", "rule.name='sgd' has the wrong type"),
        ("rule.rate=-1", "rule.rate=-1 is refused: rate is -1.0: it must be positive"),
    ],
)
def test_a_wrong_override_is_refused_with_the_key_and_the_remedy(assignment: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        override(Run(), [assignment])


def test_a_document_gives_the_same_configuration_back() -> None:
    run = Run(rule=Rule(rate=0.5, name="muon"), sizes=())
    assert from_document(Run, to_document(run)) == run


def test_a_document_with_an_unknown_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown key 'colour' for Run"):
        from_document(Run, {"colour": 1})


def test_the_digest_changes_with_any_setting_and_with_nothing_else() -> None:
    assert config_digest(Run()) == config_digest(Run(steps=10))
    assert config_digest(Run()) != config_digest(Run(rule=Rule(rate=2e-3)))


@dataclass(frozen=True)
class Heads:
    width: int = 192
    num_heads: int = 6

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ConfigError(f"width is {self.width}: it must be a multiple of num_heads, {self.num_heads}")


@pytest.mark.parametrize("assignments", [("width=64", "num_heads=2"), ("num_heads=2", "width=64")])
def test_values_that_only_fit_together_may_come_in_any_order(assignments: tuple[str, str]) -> None:
    assert override(Heads(), assignments) == Heads(width=64, num_heads=2)


def test_the_last_word_on_a_key_counts() -> None:
    assert override(Heads(), ["width=64", "num_heads=2", "width=128"]) == Heads(width=128, num_heads=2)
