"""LongText-Bench (X-Omni, arXiv 2507.22058): long writing in pictures, English or Chinese, by OCR.

Read from github.com/X-Omni-Team/X-Omni at 2b8237bb3789638c290eeda3e83ed81bd3652c3b: README.md, textbench/text_prompts.jsonl,
text_prompts_zh.jsonl, evaluate_text_reward.py, summary_scores.py.

- A line is `{"prompt_id", "prompt", "text": [...], "category", "length", "text_length"}`; ids run from 0 with gaps.
- Pictures are `{prompt_id:04}_{1..4}.png` in one folder.
- The score is the number of words read (English: lower case, letters and digits only) or signs read (Chinese), each as
  often as it is wanted at most, over the number wanted, added up over all pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pleinair.evaluation.published.benchmark import Benchmark, Item, Judged, Measure, Plan
from pleinair.evaluation.published.files import Record, distinct, read_json_lines
from pleinair.evaluation.published.matching import NO_TEXT, is_chinese, letters, num_shared, reading_question, signs


@dataclass(frozen=True)
class Wanted:
    """What should be written."""

    units: tuple[str, ...]
    """Words, or signs where it is Chinese."""
    chinese: bool


def units(text: str, chinese: bool) -> tuple[str, ...]:
    """The words, or the signs, that are compared."""
    return tuple(signs(text)) if chinese else tuple(letters(text).lower().split())


def read(path: Path, plan: Plan) -> list[Item[Wanted]]:
    """The prompts of `text_prompts.jsonl` or `text_prompts_zh.jsonl`; Chinese where most texts are."""
    records = read_json_lines(path)
    distinct(records, [record.whole("prompt_id") for record in records], "prompt_id")
    chinese = 2 * sum(is_chinese(" ".join(record.texts("text"))) for record in records) > len(records)
    return [_item(record, chinese, plan.copies) for record in records]


def _item(record: Record, chinese: bool, copies: int) -> Item[Wanted]:
    number = record.whole("prompt_id")
    wanted = units(" ".join(record.texts("text")), chinese)
    if not wanted:
        raise record.refused("text has no letter or digit that could be read")
    return Item(
        key=f"{number:04}",
        prompt=record.text("prompt"),
        files=tuple(f"{number:04}_{copy}.png" for copy in range(1, copies + 1)),
        questions=(reading_question(max_tokens=1024),),
        about=Wanted(wanted, chinese),
    )


def measure(judged: Sequence[Judged[Wanted]]) -> dict[str, Measure]:
    """The text score, between 0 and 1."""
    matched = wanted = 0
    for one in judged:
        about = one.item.about
        for (answer,) in one.answers:
            matched += num_shared(about.units, units(answer.text.replace(NO_TEXT, ""), about.chinese))
            wanted += len(about.units)
    return {"text_score": Measure(matched / wanted, wanted, "signs" if judged[0].item.about.chinese else "words")}


LONGTEXT = Benchmark(
    title="LongText-Bench",
    brings="text_prompts.jsonl or text_prompts_zh.jsonl",
    source="github.com/X-Omni-Team/X-Omni at 2b8237b",
    scorer="cd textbench; set SAMPLE_FOLDER={out}/pictures in eval.sh, and run it",
    wants="writing",
    copies=4,
    num_prompts=frozenset({160}),
    differs=("the judge is asked to read in our own words, so that only the official scorer gives the official score",),
    read=read,
    measure=measure,
)
