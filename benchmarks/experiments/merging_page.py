"""What the experiment on specialists says: rows of measurements -> sentences with their verdicts, and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.experiments.drawn import NUM_SHOWN, shown
from benchmarks.experiments.paired import REACHED, less, verdict
from benchmarks.experiments.results import opening
from pleinair.pages import GridCell, GridRow, Html, Section, Series, grid, line_plot, page, table
from pleinair.recipes.later_stages import DOMAINS

Row = dict[str, Any]
Real = Mapping[str, Mapping[str, float]]
"""By domain, what its real pictures have."""
NAMES = tuple(DOMAINS)
"""The domains, in the order in which teachers are numbered."""
BASE, MIXED, REWARDED, STUDENT = "base", "mixed", "mixed reward", "on-policy student"
HALF = 0.5
"""The amount of a merge that is an average: what is merged at thirds of the training."""
KEPT = 0.95
"""Share of each specialist's skill, and of what it gained, that the student is to have on its domain."""
SKILLS = {"concept": "things named", "style": "styles named", "frechet": "Frechet distance", "error": "held-out error"}
SHARES = ("concept", "style")
"""Skills of which more is better, and 95% of a specialist's mean something."""
LOOKS = {"saturation": "saturation", "fine_detail": "fine detail"}


def merge_name(amount: float) -> str:
    """As the table calls it."""
    return f"merge x {amount:g}"


def values(rows: Sequence[Row], model: str, domain: str, key: str) -> list[float]:
    """Of all seeds."""
    return [row[key] for row in rows if row["model"] == model and row["domain"] == domain]


def gains(rows: Sequence[Row], model: str, domain: str, key: str) -> list[float]:
    """How much better than the base a model is on a domain, seed by seed."""
    more = less(values(rows, model, domain, key), values(rows, BASE, domain, key))
    return more if key in SHARES else [-one for one in more]


def verdicts(rows: Sequence[Row], returns: Sequence[Row], real: Real) -> list[str]:
    """What was to be reached, and whether it was."""
    kept = [kept_line(rows, domain, key) for domain in NAMES for key in SKILLS]
    rivals = [rival_line(rows, rival) for rival in rivals_of(rows)]
    looks = [look_line(rows, domain, key, real[domain][key]) for domain in NAMES for key in LOOKS]
    return [*kept, *rivals, *looks, returns_line(returns)]


def kept_line(rows: Sequence[Row], domain: str, key: str) -> str:
    """What a student has of a specialist's gain; claimed only where there is one."""
    expert, own = gains(rows, domain, domain, key), gains(rows, STUDENT, domain, key)
    form = ".4f" if key == "error" else ".3f"
    levels = ", ".join(
        f"{name} {np.mean(values(rows, model, domain, key)):{form}}"
        for name, model in ((BASE, BASE), ("specialist", domain), ("student", STUDENT))
    )
    says = f"{domain}, {SKILLS[key]}: {levels}"
    if key in SHARES:
        beside = less(values(rows, STUDENT, domain, key), values(rows, domain, domain, key), KEPT)
        says += f"; {KEPT:.0%} of the specialist's: {verdict(beside)}"
    if verdict(expert) != REACHED:
        return f"{says}. The specialist gains {shown(expert, '+' + form)}, no gain is shown: nothing is claimed."
    share = float(np.mean(own)) / float(np.mean(expert))
    word = verdict(less(own, expert, KEPT))
    return f"{says}. Of the specialist's gain ({shown(expert, '+' + form)}) {share:.0%}; to reach: {KEPT:.0%}, {word}."


def rivals_of(rows: Sequence[Row]) -> list[str]:
    """What the student is held against: of the merges the one of least held-out error on both domains."""
    merges = [name for name in dict.fromkeys(row["model"] for row in rows) if name.startswith("merge")]
    best = min(merges, key=lambda name: sum(np.mean(values(rows, name, domain, "error")) for domain in NAMES))
    return [best, MIXED, REWARDED, f"{REWARDED}, no guidance"]


def rival_line(rows: Sequence[Row], rival: str) -> str:
    """The student against another way to one model, over both domains."""

    def mean(model: str, keys: Sequence[str]) -> list[float]:
        of_all = [gains(rows, model, domain, key) for domain in NAMES for key in keys]
        return [float(np.mean(of_seed)) for of_seed in zip(*of_all, strict=True)]

    named, error = (less(mean(STUDENT, keys), mean(rival, keys)) for keys in (SHARES, ("error",)))
    return (
        f"Student less {rival}, both domains: things and styles named {shown(named, '+.3f')}, more: {verdict(named)}; "
        f"held-out error lower by {shown(error, '+.4f')}, lower: {verdict(error)}."
    )


def look_line(rows: Sequence[Row], domain: str, key: str, real: float) -> str:
    """Whether fine-tuning brings the looks of drawings nearer to those of real pictures."""
    base, expert = values(rows, BASE, domain, key), values(rows, domain, domain, key)
    off = [one - real for one in base]
    says = f"{domain}, {LOOKS[key]}: real {real:.3f}, base {shown(base)}, specialist {shown(expert)}"
    if REACHED not in (verdict(off), verdict([-one for one in off])):
        return f"{says}. No fault of the base is shown: nothing to cure."
    nearer = less([abs(one) for one in off], [abs(one - real) for one in expert])
    fault = "too much" if np.mean(off) > 0 else "too little"
    return f"{says}. The base has {fault}; fine-tuning brings it nearer by {shown(nearer, '+.3f')}: {verdict(nearer)}."


def returns_line(returns: Sequence[Row]) -> str:
    """Whether the last third of the specialists' training adds less to their merge than the first."""
    places = sorted({row["step"] for row in returns})
    by_third = {who: [mean_gain(returns, at, who) for at in places] for who in ("merge", "specialist")}
    fell, own = by_third["merge"], by_third["specialist"]
    listed = ", ".join(f"{shown(of, '+.4f')} at {at}" for at, of in zip(places, fell, strict=True))
    shares = ", ".join(_share(np.mean(one), np.mean(whole)) for one, whole in zip(fell, own, strict=True))
    fewer = less(fell[0], less(fell[-1], fell[-2]))
    return (
        f"Returns of merging, fall of the held-out error at steps of the specialists: {listed}; of what the specialists gain "
        f"on their own domains {shares}. The first third brings {shown(fewer, '+.4f')} more than the last; diminishing: "
        f"{verdict(fewer)}."
    )


def mean_gain(returns: Sequence[Row], step: int, who: str) -> list[float]:
    """Over the domains, seed by seed."""
    seeds = sorted({row["seed"] for row in returns})
    return [
        float(np.mean([row[who] for row in returns if (row["seed"], row["step"]) == (seed, step)])) for seed in seeds
    ]


def _share(one: np.floating[Any], whole: np.floating[Any]) -> str:
    return f"{one / whole:.0%}" if whole > 0 else "none is gained"


def report(
    about: str | None,
    rows: Sequence[Row],
    returns: Sequence[Row],
    real: Real,
    texts: Mapping[str, Sequence[str]],
    foot: str,
) -> str:
    """The page. `texts` are the prompts of each domain."""
    sections = [Section(heading=f"On {domain}", body=domain_table(rows, domain, real[domain])) for domain in NAMES]
    gained = (
        "Held-out error of the base less that of the merge (an average) and of the domain's specialist at that step."
    )
    sections.append(Section(heading="Returns of merging", body=returns_plot(returns), lead=gained))
    sections += [
        Section(heading=f"Drawings of {domain}", body=drawings(rows, domain, texts[domain])) for domain in NAMES
    ]
    return page(
        "Specialists into one",
        opening(about, verdicts(rows, returns, real)),
        sections,
        footer=foot,
    )


def domain_table(rows: Sequence[Row], domain: str, real: Mapping[str, float]) -> Html:
    """Models by what is measured; means over seeds with intervals."""
    columns = {**SKILLS, **LOOKS}
    cells = [
        [model, *(shown(values(rows, model, domain, key), ".4f" if key == "error" else ".3f") for key in columns)]
        for model in dict.fromkeys(row["model"] for row in rows)
    ]
    cells.append(["real pictures", *(f"{real[key]:.3f}" if key in real else "\u2013" for key in columns)])
    return table(["model", *columns.values()], cells)


def returns_plot(returns: Sequence[Row]) -> Html:
    """Gains over the specialists' steps, means over seeds."""
    series = []
    for domain in NAMES:
        places = sorted({row["step"] for row in returns})
        for who in ("merge", "specialist"):
            of = [[row[who] for row in returns if (row["domain"], row["step"]) == (domain, at)] for at in places]
            means = [float(np.mean(one)) for one in of]
            series.append(Series(name=f"{domain}, {who}", x=[float(at) for at in places], y=means))
    return line_plot(series, x_label="steps of the specialists", y_label="fall of the held-out error")


def drawings(rows: Sequence[Row], domain: str, texts: Sequence[str]) -> Html:
    """The first seed's drawings of the first prompts, from the same noise."""
    first = [row for row in rows if row["seed"] == 0 and row["domain"] == domain]
    pictures = [
        GridRow(
            name=text, cells=[GridCell(picture=np.array(row["pixels"][place], np.uint8), alt=text) for row in first]
        )
        for place, text in enumerate(texts[:NUM_SHOWN])
    ]
    return grid([row["model"] for row in first], pictures)
