"""Whole runs as functions: `find_recipe("demo")` gives one; the command line overrides its fields."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial

from pleinair.recipes.ablations import ablations
from pleinair.recipes.drawings import demo, drawings_64
from pleinair.recipes.later_stages import DOMAINS, drawings_lora, drawings_midtrain, drawings_sft
from pleinair.recipes.progressive import progressive
from pleinair.recipes.recipe import EvaluationConfig, FinetuneConfig, PhaseConfig, Recipe
from pleinair.recipes.released import k2_lora
from pleinair.records.errors import ConfigError

RECIPES: dict[str, Callable[[], Recipe]] = {
    "demo": demo,
    "drawings-64": drawings_64,
    "drawings-midtrain": drawings_midtrain,
    **{f"drawings-sft-{domain}": partial(drawings_sft, domain) for domain in DOMAINS},
    "drawings-lora": drawings_lora,
    "k2-lora": k2_lora,
    "progressive": progressive,
    "ablations": ablations,
}

__all__ = ["RECIPES", "EvaluationConfig", "FinetuneConfig", "PhaseConfig", "Recipe", "find_recipe"]


def find_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises ConfigError naming the nearest one."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known recipes: {', '.join(RECIPES)}"
        raise ConfigError(f"unknown recipe '{name}': {hint}")
    return RECIPES[name]()
