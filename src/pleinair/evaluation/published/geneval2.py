"""GenEval 2 (arXiv 2512.16853): short prompts of 3 to 10 atoms, each atom a question; Soft-TIFA.

Read from github.com/facebookresearch/GenEval2 at a6e82d2289e8d418f27f0adee77908b07060eea3: README.md, evaluation.py,
soft_tifa_analysis.py, geneval2_data.jsonl. The data is CC-BY-NC 4.0.

- A line of `geneval2_data.jsonl` is `{"prompt", "atom_count", "vqa_list": [[question, answer], ...], "skills": [...]}`.
- The scorer takes one JSON file, prompt to path of its picture. Any layout will do; ours is `0000.png` on.
- An atom scores the probability that the judge's first token is the answer. Of "How many ..." questions the answer is the
  number as a word (also capitalised) or digit, of all others yes; each with or without a blank before it.
- Soft-TIFA AM and GM are 100 times the mean over prompts of the arithmetic and the geometric mean over atoms. Skills are
  means over atoms, atomicities are means of the geometric mean.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pleinair.evaluation.published.benchmark import Benchmark, Item, Judged, Measure, Plan, Question, mean, measured
from pleinair.evaluation.published.files import Record, distinct, read_json_lines

SKILLS = ("object", "attribute", "count", "position", "verb")
_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Atoms:
    """What the questions of a prompt are about."""

    skills: tuple[str, ...]
    num_atoms: int


def accepted(question: str, answer: str) -> frozenset[str]:
    """First tokens that are the right answer."""
    if not question.startswith("How many"):
        return frozenset({"Yes", "yes", " Yes", " yes"})
    digit = str(_NUMBERS.index(answer) + 1) if answer in _NUMBERS else "other"
    return frozenset(f"{blank}{word}" for blank in ("", " ") for word in (answer, answer.capitalize(), digit))


def read(path: Path, plan: Plan) -> list[Item[Atoms]]:
    """The prompts of `geneval2_data.jsonl`."""
    records = read_json_lines(path)
    prompts = [record.text("prompt") for record in records]
    distinct(records, prompts, "prompt")
    return [
        Item(
            key=f"{number:04}",
            prompt=prompt,
            files=(f"{number:04}.png",),
            questions=tuple(
                Question(text=f"{question} Answer in one word.", accepted=accepted(question, answer), max_tokens=1)
                for question, answer in _pairs(record)
            ),
            about=Atoms(_skills(record), record.whole("atom_count")),
        )
        for number, (record, prompt) in enumerate(zip(records, prompts, strict=True))
    ]


def _pairs(record: Record) -> list[tuple[str, str]]:
    pairs = record.entries("vqa_list")
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(one, str) and one for one in pair):
            raise record.refused(f"vqa_list holds {json.dumps(pair)}, not [question, answer]")
    return [(question, answer) for question, answer in pairs]


def _skills(record: Record) -> tuple[str, ...]:
    skills = record.texts("skills")
    if unknown := [skill for skill in skills if skill not in SKILLS]:
        raise record.refused(f"skills holds {unknown[0]!r}, not one of {', '.join(SKILLS)}")
    if len(skills) != len(record.entries("vqa_list")):
        raise record.refused(f"it has {len(record.entries('vqa_list'))} questions and {len(skills)} skills")
    return skills


def geometric_mean(values: Sequence[float]) -> float:
    """Zero as soon as one value is."""
    return 0.0 if min(values) <= 0 else math.exp(sum(math.log(value) for value in values) / len(values))


def measure(judged: Sequence[Judged[Atoms]]) -> dict[str, Measure]:
    """Soft-TIFA AM and GM, AM per skill and GM per atomicity, in percent."""
    skills: dict[str, list[float]] = {f"am_{skill}": [] for skill in SKILLS}
    atomicities: dict[str, list[float]] = defaultdict(list)
    arithmetic, geometric = [], []
    for one in judged:
        scores = [answer.value for answer in one.answers[0]]
        arithmetic.append(sum(scores) / len(scores))
        geometric.append(geometric_mean(scores))
        atomicities[f"gm_{one.item.about.num_atoms}_atoms"].append(geometric[-1])
        for skill, score in zip(one.item.about.skills, scores, strict=True):
            skills[f"am_{skill}"].append(score)
    return {
        "soft_tifa_am": mean(arithmetic, "prompts", 100),
        "soft_tifa_gm": mean(geometric, "prompts", 100),
        **measured(skills, "atoms", 100),
        **measured(dict(sorted(atomicities.items(), key=lambda entry: int(entry[0].split("_")[1]))), "prompts", 100),
    }


def companions(items: Sequence[Item[Atoms]], pictures: Path) -> dict[str, str]:
    """`image_paths.json`: prompt to picture."""
    paths = {item.prompt: str(pictures / item.files[0]) for item in items}
    return {"image_paths.json": json.dumps(paths, indent=1, ensure_ascii=False) + "\n"}


GENEVAL2 = Benchmark(
    title="GenEval 2",
    brings="geneval2_data.jsonl",
    source="github.com/facebookresearch/GenEval2 at a6e82d2",
    scorer="python evaluation.py --benchmark_data {prompts} --image_filepath_data {out}/image_paths.json "
    "--method soft_tifa_gm --output_file score_lists.json",
    wants="probabilities",
    copies=1,
    allowed=frozenset({1}),
    official_judges=("Qwen/Qwen3-VL-8B-Instruct",),
    num_prompts=frozenset({800}),
    differs=(
        "a probability is added up over the likeliest 20 tokens that the judge's server tells, compared as text; the "
        "official script looks up the first token of each answer in the judge's own vocabulary",
    ),
    read=read,
    measure=measure,
    companions=companions,
)
