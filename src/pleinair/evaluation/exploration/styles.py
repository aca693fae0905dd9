"""E1: what does it draw when left alone, and can it do otherwise when told? (The idea: DIM-CIM, arXiv 2506.05108.)

prompt without a style -> the judged styles of its pictures  -> how many styles that is worth, how far from the data
prompt with a style    -> is it the judged style?            -> share
the same for colours, told by the pixels alone, and for words that leave a choice of things
"""

from __future__ import annotations

import numpy as np

from pleinair.evaluation.exploration.measured import Floats, Measured, effective_number, mean_by_unit, measured
from pleinair.evaluation.exploration.requests import COLOURS
from pleinair.evaluation.exploration.sheet import NUM_GUESSES, Sheet, among_first


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
    hit = np.array([seen.colour == one.request.colour for seen, one in zip(told.seen, told.asked, strict=True)])
    shown = np.array([COLOURS.index(seen.colour) for seen in free.seen], np.int64)
    histograms = by_unit(free.units, np.eye(len(COLOURS))[shown])
    within = {unit: float(effective_number(np.array([shares]))[0]) for unit, shares in histograms.items()}
    return [
        measured("can_colour", mean_by_unit(told.units, hit), len(told)),
        measured("default_colours_per_prompt", within, len(free)),
    ]


def default_kinds(sheet: Sheet, judge: str) -> list[Measured]:
    """How many of the things that a prompt leaves a choice of (`a tree`) its pictures are worth.

    As in `diversity`, only pictures that show one of them count: the number is multiplied by their share.
    """
    free = sheet.of_kind("any-kind")
    rows_of: dict[str, list[int]] = {}
    for row, unit in enumerate(free.units):
        rows_of.setdefault(unit, []).append(row)
    worth = {}
    for unit, rows in rows_of.items():
        variants = [free.world.concept_of_label[label] for label in free.asked[rows[0]].request.variants]
        logits_NC = free.scores[judge].concept_logits[rows]
        named = np.array(variants)[logits_NC[:, variants].argmax(axis=1)]
        shown = named[among_first(logits_NC, named, NUM_GUESSES)]
        counts = np.array([[(shown == variant).sum() for variant in variants]], np.float64)
        worth[unit] = float(effective_number(counts)[0]) * len(shown) / len(rows)
    return [measured("default_kinds_per_prompt", worth, len(free))]


def by_unit(units: list[str], values_ND: Floats) -> dict[str, list[float]]:
    """The mean row of each unit."""
    rows: dict[str, list[Floats]] = {}
    for unit, row in zip(units, values_ND, strict=True):
        rows.setdefault(unit, []).append(row)
    return {unit: np.mean(found, axis=0).tolist() for unit, found in rows.items()}
