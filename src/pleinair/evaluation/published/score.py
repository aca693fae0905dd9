"""What a run of a published benchmark found, and whether it may bear the benchmark's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pleinair.evaluation.published.benchmark import NOT_RUN, Benchmark, Judged, Measure
from pleinair.evaluation.published.judging import is_official


@dataclass(frozen=True, kw_only=True)
class Score:
    """The numbers of one run."""

    suite: str
    subject: str
    judge: str
    num_prompts: int
    copies: int
    unusable: int
    """Answers that counted as no because nothing could be made of them."""
    measures: Mapping[str, Measure]
    reasons: tuple[str, ...]
    """Why these are not scores of the benchmark's name; none: they are."""


def unofficial(benchmark: Benchmark[Any], judge: str, num_prompts: int, copies: int) -> tuple[str, ...]:
    """Why numbers may not bear the benchmark's title; empty when they may."""
    reasons = []
    if not benchmark.official_judges:
        reasons.append("only its own scorer gives its score")
    elif not is_official(judge, benchmark):
        reasons.append(f"its judge is {' or '.join(benchmark.official_judges)}, not {judge}")
    if benchmark.num_prompts and num_prompts not in benchmark.num_prompts:
        sizes = " or ".join(f"{size:,}" for size in sorted(benchmark.num_prompts))
        reasons.append(f"it has {sizes} prompts, not {num_prompts:,}")
    if copies != benchmark.copies:
        reasons.append(f"it takes {benchmark.copies} pictures of each prompt, not {copies}")
    return tuple(reasons)


def scored(
    suite: str, benchmark: Benchmark[Any], judged: Sequence[Judged[Any]], *, subject: str, judge: str, copies: int
) -> Score:
    """The benchmark's measures of what was said."""
    return Score(
        suite=suite,
        subject=subject,
        judge=judge,
        num_prompts=len(judged),
        copies=copies,
        unusable=sum(not answer.usable for one in judged for of in one.answers for answer in of),
        measures=benchmark.measure(judged),
        reasons=unofficial(benchmark, judge, len(judged), copies),
    )


def to_document(score: Score, benchmark: Benchmark[Any]) -> dict[str, Any]:
    """The score as JSON, with what a reader must know to use it."""
    return {
        "note": NOT_RUN,
        "title": heading(score, benchmark),
        **asdict(score),
        "left_out": list(benchmark.left_out),
        "differs": list(benchmark.differs),
        "read_from": benchmark.source,
    }


def heading(score: Score, benchmark: Benchmark[Any]) -> str:
    """The benchmark's title where the numbers may bear it, and else that they may not."""
    if score.reasons:
        return (
            f"{score.suite} protocol judged by {score.judge}; not a {benchmark.title} score: {'; '.join(score.reasons)}"
        )
    return f"{benchmark.title}, judged by {score.judge}"


def as_text(score: Score, benchmark: Benchmark[Any]) -> str:
    """The table for a terminal."""
    lines = [heading(score, benchmark), NOT_RUN, f"prompts: {score.num_prompts}, pictures of each: {score.copies}"]
    if score.unusable:
        lines.append(f"{score.unusable} answers could not be used and count as no")
    lines += [f"{name:34} {one.value:9.4f}  n={one.num} {one.of}" for name, one in score.measures.items()]
    lines += [f"left to the official scorer: {one}" for one in benchmark.left_out]
    return "\n".join(lines)
