"""E1: what does it draw when left alone, and can it do otherwise when told? (The idea: DIM-CIM, arXiv 2506.05108.)

prompt without a style -> the judged styles of its pictures  -> how many styles that is worth, how far from the data
prompt with a style    -> is it the judged style?            -> share
the same for colours, told by the pixels alone
"""

from __future__ import annotations

import numpy as np

from pleinair.evaluation.exploration.colours import colour_name
from pleinair.evaluation.exploration.measured import Floats, Measured, effective_number, mean_by_unit, measured
from pleinair.evaluation.exploration.requests import COLOURS
from pleinair.evaluation.exploration.sheet import Sheet


def default_styles(sheet: Sheet, judge: str) -> list[Measured]:
    """Over all prompts: how many styles the open prompts are worth, and their distance from the training pictures'.

    Within a prompt: how many styles one prompt is worth, which grows with pictures per prompt: compare equal plans.
    """
    open_prompts, num_styles = sheet.of_kind("default"), len(sheet.world.style_names)
    histograms = by_unit(open_prompts.units, np.eye(num_styles)[open_prompts.styles(judge)])
    apart = {unit: (np.array(shares) - sheet.world.style_prior).tolist() for unit, shares in histograms.items()}
    within = {unit: float(effective_number(np.array([shares]))[0]) for unit, shares in histograms.items()}
    num = len(open_prompts)
    return [
        measured("default_styles", histograms, num),
        measured("default_style_distance", apart, num),
        measured("default_styles_per_prompt", within, num),
    ]


def can_styles(sheet: Sheet, judge: str) -> list[Measured]:
    """Style, thing, and both, where a style was asked for."""
    told = sheet.of_kind("specified")
    style, concept = told.style_hit(judge), told.concept_hit(judge)
    return [
        measured("can_style", mean_by_unit(told.units, style), len(told)),
        measured("can_concept", mean_by_unit(told.units, concept), len(told)),
        measured("can_both", mean_by_unit(told.units, style & concept), len(told)),
    ]


def colours(sheet: Sheet) -> list[Measured]:
    """The colour asked for, and how many colours a prompt without one is worth. No judge: pixels tell."""
    told, free = sheet.of_kind("colour"), sheet.of_kind("any-colour")
    hit = np.array(
        [colour_name(picture) == one.request.colour for picture, one in zip(told.pictures, told.asked, strict=True)]
    )
    shown = np.array([COLOURS.index(colour_name(picture)) for picture in free.pictures], np.int64)
    histograms = by_unit(free.units, np.eye(len(COLOURS))[shown])
    within = {unit: float(effective_number(np.array([shares]))[0]) for unit, shares in histograms.items()}
    return [
        measured("can_colour", mean_by_unit(told.units, hit), len(told)),
        measured("default_colours_per_prompt", within, len(free)),
    ]


def by_unit(units: list[str], values_ND: Floats) -> dict[str, list[float]]:
    """The mean row of each unit."""
    rows: dict[str, list[Floats]] = {}
    for unit, row in zip(units, values_ND, strict=True):
        rows.setdefault(unit, []).append(row)
    return {unit: np.mean(found, axis=0).tolist() for unit, found in rows.items()}
