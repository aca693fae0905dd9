"""OneIG-Bench (arXiv 2506.07977): alignment, writing, reasoning, style and diversity, English or Chinese.

Read from github.com/OneIG-Bench/OneIG-Benchmark at 41b49831e79e6dde5323618c164da1c4cf0f699d: README.md, text2image.py,
scripts/{alignment,text,diversity,style,reasoning}, scripts/utils. Its folder is what the user brings.

- `OneIG-Bench.csv` has category, id, prompt_en (`OneIG-Bench-ZH.csv`: prompt_cn). Questions are in
  `scripts/alignment/Q_D/{anime,human,object}[_zh].json`: id to `{"question": {"1": ...}, "dependency": {"1": [0]}}`, both
  as JSON inside a string. What should be written is `text_content` of `scripts/text/text_content[_zh].csv`.
- Four pictures of a prompt lie in one 2 x 2 file `<folder of the category>/<model>/<id>.webp`; a black one is left out.
- Alignment: a question counts where its parents were answered yes; mean over questions, pictures, prompts.
- Text: ED is the mean edit distance, CR the share of exact texts, WAC words (signs) read over words wanted; the score is
  1 - min(M, ED) / M (1 - CR) (1 - WAC), with M 100 in English and 50 in Chinese.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pleinair.evaluation.published.benchmark import (
    Answer,
    Benchmark,
    Item,
    Judged,
    Measure,
    Plan,
    Question,
    measured,
)
from pleinair.evaluation.published.dependencies import Proposition, checked, holding
from pleinair.evaluation.published.files import Record, as_record, distinct, plain_name, read_csv, read_json
from pleinair.evaluation.published.matching import (
    NO_TEXT,
    edit_distance,
    is_chinese,
    letters,
    num_shared,
    reading_question,
    signs,
)
from pleinair.records.errors import ConfigError

FOLDERS: Mapping[str, str] = {
    "Anime_Stylization": "anime",
    "Portrait": "human",
    "General_Object": "object",
    "Text_Rendering": "text",
    "Knowledge_Reasoning": "reasoning",
    "Multilingualism": "multilingualism",
}
_ALIGNED = ("anime", "human", "object", "multilingualism")
_FARTHEST: Mapping[str, int] = {"en": 100, "cn": 50}
_LONG_TEXT = 60


@dataclass(frozen=True)
class Facts:
    """What the measures need to know of a prompt; it has propositions, a text, or neither."""

    folder: str
    language: Literal["en", "cn"]
    propositions: tuple[Proposition, ...] = ()
    text: str = ""


def read(path: Path, plan: Plan) -> list[Item[Facts]]:
    """The prompts of OneIG-Bench.csv or OneIG-Bench-ZH.csv (a folder: the English ones), with what lies in its scripts."""
    table = path / "OneIG-Bench.csv" if path.is_dir() else path
    rows = read_csv(table, ("category", "id"))
    language: Literal["en", "cn"] = "en" if "prompt_en" in rows[0].values else "cn"
    folders = [_folder(row) for row in rows]
    distinct(rows, [(folder, row.text("id")) for folder, row in zip(folders, rows, strict=True)], "category and id")
    scripts, ending = table.parent / "scripts", "" if language == "en" else "_zh"
    graphs = {folder: _graphs(scripts, folder, ending) for folder in _ALIGNED if folder in folders}
    texts = _texts(scripts, ending) if "text" in folders else {}
    items = []
    for row, folder in zip(rows, folders, strict=True):
        key = plain_name(row, "id")
        text = texts.get(key, "") if folder == "text" else ""
        facts = Facts(folder, language, graphs.get(folder, {}).get(key, ()), text)
        if folder in ("text", *_ALIGNED) and not (facts.propositions or _compared(text)):
            raise row.refused(f"nothing under {scripts} says what {folder}/{key} is asked")
        items.append(
            Item(
                key=f"{folder}/{key}",
                prompt=row.text(f"prompt_{language}"),
                files=(f"{folder}/{plan.model}/{key}.webp",),
                questions=_questions(facts),
                about=facts,
            )
        )
    return items


def _folder(row: Record) -> str:
    if (category := row.text("category")) not in FOLDERS:
        raise row.refused(f"category is {category!r}, not one of {', '.join(FOLDERS)}")
    return FOLDERS[category]


def _questions(facts: Facts) -> tuple[Question, ...]:
    if facts.text:
        return (reading_question(max_tokens=256 if len(facts.text.split()) > _LONG_TEXT else 128),)
    return tuple(
        Question(text=f"{one.question}. Please answer 'Yes' or 'No' only.", max_tokens=16) for one in facts.propositions
    )


def _graphs(scripts: Path, folder: str, ending: str) -> dict[str, tuple[Proposition, ...]]:
    file = scripts / "alignment" / "Q_D" / f"{folder}{ending}.json"
    if not file.exists():
        raise ConfigError(f"{file} is missing: give the whole folder of the benchmark, its scripts beside the table")
    whole = as_record(read_json(file), str(file))
    return {key: _graph(whole.part(key)) for key in whole.values}


def _graph(record: Record) -> tuple[Proposition, ...]:
    questions, parents = (_inner(record, name) for name in ("question", "dependency"))
    if set(questions.values) != {str(number) for number in range(1, len(questions.values) + 1)}:
        raise record.refused(f"its questions are numbered {', '.join(questions.values)}, not from 1 on")
    found = []
    for number in questions.values:
        builds_on = parents.entries(number)
        if not all(isinstance(one, int) for one in builds_on):
            raise parents.refused(f"question {number} builds on {builds_on}, not on numbers")
        found.append(Proposition(int(number), questions.text(number), tuple(one for one in builds_on if one)))
    return checked(record, found)


def _inner(record: Record, name: str) -> Record:
    """An object that is written as it is, or as JSON inside a string."""
    value: Any = record.values.get(name)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as broken:
            raise record.refused(f"{name} is no JSON ({broken})") from broken
    return as_record(value, f"{name} of {record.where}")


def _texts(scripts: Path, ending: str) -> dict[str, str]:
    rows = read_csv(scripts / "text" / f"text_content{ending}.csv", ("id", "text_content"))
    return {row.text("id"): row.text("text_content") for row in rows}


def measure(judged: Sequence[Judged[Facts]]) -> dict[str, Measure]:
    """Alignment (also per set) and the text score with its parts, between 0 and 1 except ED, which is in signs."""
    aligned: dict[str, list[float]] = defaultdict(list)
    for one in judged:
        if one.item.about.propositions and one.answers:
            scores = [_aligned(one.item.about.propositions, answers) for answers in one.answers]
            for name in ("alignment", f"alignment_{one.item.about.folder}"):
                aligned[name].append(sum(scores) / len(scores))
    return {**measured(aligned, "prompts"), **_text_measures([one for one in judged if one.item.about.text])}


def _aligned(propositions: Sequence[Proposition], answers: Sequence[Answer]) -> float:
    yes = {one.number: answer.text.strip() == "Yes" for one, answer in zip(propositions, answers, strict=True)}
    counted = holding(yes, propositions, cascade=False)
    return sum(counted.values()) / len(counted)


def _compared(text: str) -> str:
    """Texts with a Chinese sign lose all blanks; case is kept in all."""
    return signs(text) if is_chinese(text) else letters(text)


def _text_measures(judged: Sequence[Judged[Facts]]) -> dict[str, Measure]:
    distances, shared, wanted = [], 0, 0
    for one in judged:
        truth = _compared(one.item.about.text)
        units = list(truth) if is_chinese(truth) else truth.split()
        for (answer,) in one.answers:
            found = _compared(answer.text.replace("addCriterion", "").replace(NO_TEXT, ""))
            distances.append(edit_distance(found, truth))
            shared += num_shared(units, list(found) if is_chinese(truth) else found.split())
            wanted += len(units)
    if not distances:
        return {}
    farthest = _FARTHEST[judged[0].item.about.language]
    distance = sum(distances) / len(distances)
    exact, words = distances.count(0) / len(distances), shared / wanted
    score = 1 - min(farthest, distance) * (1 - exact) * (1 - words) / farthest
    return {
        "text": Measure(score, len(distances), "pictures"),
        "text_ed": Measure(distance, len(distances), "pictures"),
        "text_cr": Measure(exact, len(distances), "pictures"),
        "text_wac": Measure(words, wanted, "words"),
    }


ONEIG = Benchmark(
    title="OneIG-Bench",
    brings="the repository's folder, or the OneIG-Bench-ZH.csv in it for Chinese",
    source="github.com/OneIG-Bench/OneIG-Benchmark at 41b4983",
    scorer="set IMAGE_DIR={out}/pictures, MODEL_NAMES=({model}) and IMAGE_GRID in run_overall.sh, and run it",
    wants="words",
    copies=4,
    allowed=frozenset({1, 4}),
    in_grid=True,
    skips_black=True,
    num_prompts=frozenset({1120, 1320}),
    left_out=(
        "reasoning (LLM2CLIP)",
        "style (CSD and the OneIG style encoder, with their reference embeddings)",
        "diversity (DreamSim)",
    ),
    differs=(
        "writing is asked for in our own words, so that only the official scorer gives the official score",
        "the official Chinese alignment may leave out multilingualism; here it is in, where it is in the table",
    ),
    read=read,
    measure=measure,
)
