"""Whole runs as functions: `find_recipe("demo")` gives one; the command line overrides its fields."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from pleinair.recipes.ablations import ablations
from pleinair.recipes.drawings import demo, drawings_64
from pleinair.recipes.recipe import EvaluationConfig, PhaseConfig, Recipe
from pleinair.records.errors import ConfigError

RECIPES: dict[str, Callable[[], Recipe]] = {"demo": demo, "drawings-64": drawings_64, "ablations": ablations}

__all__ = ["RECIPES", "EvaluationConfig", "PhaseConfig", "Recipe", "find_recipe"]


def find_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises ConfigError naming the nearest one."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known recipes: {', '.join(RECIPES)}"
        raise ConfigError(f"unknown recipe '{name}': {hint}")
    return RECIPES[name]()
