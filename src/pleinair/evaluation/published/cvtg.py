"""CVTG-2K (TextCrafter, arXiv 2503.23461): two to five pieces of writing in a picture, by OCR.

Read from github.com/NJU-PCALab/TextCrafter at 023a3132e5db5762ca111078b7239cf492aaff9f (README.md, TextCrafter_Flux/eval.py)
and from the official unified_metrics_eval.py, process.py and prompts as github.com/zlab-princeton/i1 keeps them at
b58a62f4a301370f35c5873bcb453bf7eea9f0e4 under benchmark_eval/cvtg-2k.

- `CVTG/{2..5}.json` and `CVTG-Style/{2..5}.json` are `{"data_list": [{"index", "prompt", ...}]}`.
- The picture of an entry is `CVTG/2/0.png`: set, number of pieces, index.
- Wanted are the words between single quotes in the prompt, in lower case. Word accuracy is the share of them that is
  among the words read; the normalised edit distance is the mean over wanted words of 1 - edit distance / longer length,
  to the word read that is most like it. Both are means over all words.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pleinair.evaluation.published.benchmark import Benchmark, Item, Judged, Measure, Plan, mean
from pleinair.evaluation.published.files import as_record, distinct, read_json
from pleinair.evaluation.published.matching import NO_TEXT, closeness, reading_question
from pleinair.records.errors import ConfigError

SETS = ("CVTG", "CVTG-Style")
PIECES = (2, 3, 4, 5)
_QUOTED = re.compile("'(.*?)'")


@dataclass(frozen=True)
class Words:
    """What should be written."""

    of_set: str
    words: tuple[str, ...]


def read(path: Path, plan: Plan) -> list[Item[Words]]:
    """The prompts of the folder that holds `CVTG` and `CVTG-Style`, either or both."""
    if not path.is_dir():
        raise ConfigError(f"{path} is no folder: give the one that holds {' and '.join(SETS)}")
    folders = {one.name.lower(): one for one in path.iterdir() if one.is_dir()}
    items = [
        item
        for of_set in SETS
        for pieces in PIECES
        if (file := folders.get(of_set.lower(), path / of_set) / f"{pieces}.json").exists()
        for item in _read_file(file, of_set, pieces)
    ]
    if not items:
        raise ConfigError(f"{path} holds no {SETS[0]}/2.json or the like: give the folder of the benchmark")
    return items


def _read_file(file: Path, of_set: str, pieces: int) -> list[Item[Words]]:
    records = as_record(read_json(file), str(file)).parts("data_list")
    distinct(records, [record.whole("index") for record in records], "index")
    items = []
    for record in records:
        prompt, index = record.text("prompt"), record.whole("index")
        words = tuple(word for quoted in _QUOTED.findall(prompt) for word in quoted.lower().split())
        if not words:
            raise record.refused(f"no word of its prompt stands between single quotes: {prompt!r}")
        name = f"{of_set}/{pieces}/{index}"
        items.append(
            Item(
                key=name,
                prompt=prompt,
                files=(f"{name}.png",),
                questions=(reading_question(max_tokens=256),),
                about=Words(of_set, words),
            )
        )
    return items


def measure(judged: Sequence[Judged[Words]]) -> dict[str, Measure]:
    """Word accuracy and normalised edit distance, of all words and of each set, between 0 and 1."""
    right: dict[str, list[float]] = defaultdict(list)
    close: dict[str, list[float]] = defaultdict(list)
    for one in judged:
        found = one.answers[0][0].text.replace(NO_TEXT, "").lower().split() or [""]
        for word in one.item.about.words:
            for name in ("", f"_{one.item.about.of_set}"):
                right[f"word_accuracy{name}"].append(float(word in found))
                close[f"normalised_edit_distance{name}"].append(closeness(word, found))
    return {name: mean(values, "words") for name, values in (right | close).items()}


CVTG = Benchmark(
    title="CVTG-2K",
    brings="the folder that holds CVTG and CVTG-Style",
    source="github.com/NJU-PCALab/TextCrafter at 023a313; its scorer as kept by github.com/zlab-princeton/i1 at b58a62f",
    scorer="python unified_metrics_eval.py --benchmark_dir {prompts} --result_dir {out}/pictures "
    "--output_file results.json",
    wants="writing",
    copies=1,
    allowed=frozenset({1}),
    num_prompts=frozenset({2000}),
    left_out=("CLIPScore (CLIP ViT-L/14)", "VQAScore (clip-flant5-xxl)", "aesthetic score (LAION's linear head)"),
    differs=("the official reader is PaddleOCR; only the official scorer gives the official score",),
    read=read,
    measure=measure,
)
