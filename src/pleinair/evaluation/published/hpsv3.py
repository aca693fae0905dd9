"""HPSv3 (arXiv 2508.03789): mean score of a reward model trained on human preference.

Read from github.com/MizzenAI/HPSv3 at 72b7ebaf0fe76bce636b3f4997aee319d0f65aef (hpsv3/inference.py: the score is the first
of two outputs, mu) and from a public copy of its evaluate/benchmark.py. The layout of its benchmark's prompt files could
not be verified; here they are one file per category, `CATEGORY.txt` with a prompt per line or `CATEGORY.json` with a list
of prompts or of `{"prompt": ...}`.

- Pictures of a category lie below one folder, each beside a text file of the same stem with its prompt.
- The score of a category is the mean over its pictures; the whole is the mean over categories.

The judge is asked with the picture and the prompt as the whole text, and must answer with the number alone: the reward
model has no chat, so that the user puts a few lines between it and the protocol.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pleinair.evaluation.published.benchmark import Benchmark, Item, Judged, Measure, Plan, Question, mean
from pleinair.evaluation.published.files import as_record, read_json, read_text
from pleinair.records.errors import ConfigError


@dataclass(frozen=True)
class Category:
    """Where a prompt belongs."""

    name: str


def read(path: Path, plan: Plan) -> list[Item[Category]]:
    """The prompts of a folder of categories, or of one file."""
    files = sorted(one for one in path.iterdir() if one.suffix in (".txt", ".json")) if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"{path} holds no CATEGORY.txt or CATEGORY.json: write one prompt per line into such a file")
    return [
        Item(
            key=f"{file.stem}/{number:05}",
            prompt=prompt,
            files=tuple(f"{file.stem}/{number:05}_{copy}.png" for copy in range(plan.copies)),
            questions=(Question(text=prompt, max_tokens=16),),
            about=Category(file.stem),
        )
        for file in files
        for number, prompt in enumerate(_prompts(file))
    ]


def _prompts(file: Path) -> list[str]:
    if file.suffix != ".json":
        return [line.strip() for line in read_text(file).split("\n") if line.strip()]
    listed = read_json(file)
    if not isinstance(listed, list) or not listed:
        raise ConfigError(f'{file} is no list of prompts: write ["a fox", ...] or [{{"prompt": "a fox"}}, ...]')
    return [
        as_record({"prompt": one} if isinstance(one, str) else one, f"entry {number} of {file}").text("prompt")
        for number, one in enumerate(listed)
    ]


def measure(judged: Sequence[Judged[Category]]) -> dict[str, Measure]:
    """The mean over categories, and each category's mean over pictures."""
    categories: dict[str, list[float]] = defaultdict(list)
    for one in judged:
        categories[one.item.about.name] += [answers[0].value for answers in one.answers]
    means = {f"hpsv3_{name}": mean(values, "pictures") for name, values in categories.items()}
    return {"hpsv3": mean([one.value for one in means.values()], "categories"), **means}


def companions(items: Sequence[Item[Category]], pictures: Path) -> dict[str, str]:
    """Each picture's prompt, beside it."""
    return {f"{pictures.name}/{Path(file).with_suffix('.txt')}": item.prompt for item in items for file in item.files}


HPSV3 = Benchmark(
    title="HPSv3",
    brings="a folder of CATEGORY.txt or CATEGORY.json, or one such file",
    source="github.com/MizzenAI/HPSv3 at 72b7eba",
    scorer="python evaluate/benchmark.py --mode hpsv3 --image_folders {out}/pictures/* --output_path results.json",
    wants="number",
    copies=1,
    official_judges=("MizzenAI/HPSv3",),
    differs=("the prompt files of the published benchmark were not seen: the score is that of the user's prompts",),
    read=read,
    measure=measure,
    companions=companions,
)
