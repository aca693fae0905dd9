"""DPG-Bench (arXiv 2403.05135): long prompts, and a graph of yes-or-no questions on each.

Read from github.com/TencentQQGYLab/ELLA at 3c228f1dc6c4d3cad0a47493816151a419f14db3: README.md, dpg_bench/dist_eval.sh,
dpg_bench/compute_dpg_bench.py (which names the columns). The table itself was too large for the copy that was read.

- `dpg_bench.csv` has one row per question: item_id, text, keywords, proposition_id, dependency, category_broad,
  category_detailed, tuple, question_natural_language. A dependency is a list of proposition ids; 0 is none.
- Four pictures of a prompt lie in one 2 x 2 file `<item_id>.png`; `PIC_NUM=1` takes one.
- A question whose parent counts as no counts as no. A picture scores the share of its questions that count, a prompt the
  mean of its pictures, the benchmark 100 times the mean of its prompts.
- Categories are the tuple before "(", and before "-" for the broad ones. As the official script does, they average the
  bare answers, without the graph, on the last picture of each prompt alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pleinair.evaluation.published.benchmark import Benchmark, Item, Judged, Measure, Plan, Question, mean, measured
from pleinair.evaluation.published.dependencies import Proposition, checked, holding, said_yes
from pleinair.evaluation.published.files import Record, plain_name, read_csv

_COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")


@dataclass(frozen=True)
class Graph:
    """The questions of a prompt."""

    propositions: tuple[Proposition, ...]
    categories: tuple[str, ...]
    """Of each question: the tuple's head, such as `attribute - color`."""


def read(path: Path, plan: Plan) -> list[Item[Graph]]:
    """The prompts of `dpg_bench.csv`, given as the file or its folder."""
    rows = read_csv(path / "dpg_bench.csv" if path.is_dir() else path, _COLUMNS)
    if not rows[0].values["proposition_id"].strip().isdigit():
        rows = rows[1:]  # a second head line; the official script passes over the first row without looking
    of_item: dict[str, list[Record]] = defaultdict(list)
    for row in rows:
        of_item[plain_name(row, "item_id")].append(row)
    return [_item(key, of) for key, of in of_item.items()]


def _item(key: str, rows: Sequence[Record]) -> Item[Graph]:
    prompts = {row.text("text") for row in rows}
    if len(prompts) > 1:
        raise rows[-1].refused(f"item {key!r} has {len(prompts)} different texts")
    propositions = checked(rows[0], [_proposition(row) for row in rows])
    return Item(
        key=key,
        prompt=prompts.pop(),
        files=(f"{key}.png",),
        questions=tuple(Question(text=one.question, hint="Answer with one word: yes or no.") for one in propositions),
        about=Graph(propositions, tuple(row.text("tuple").split("(")[0].strip() for row in rows)),
    )


def _proposition(row: Record) -> Proposition:
    try:
        parents = [int(one) for one in row.text("dependency").split(",")]
    except ValueError:
        raise row.refused(f"dependency is {row.values['dependency']!r}, not numbers between commas") from None
    return Proposition(
        row.whole("proposition_id"), row.text("question_natural_language"), tuple(one for one in parents if one)
    )


def measure(judged: Sequence[Judged[Graph]]) -> dict[str, Measure]:
    """The score and the categories, in percent."""
    prompts: list[float] = []
    broad: dict[str, list[float]] = defaultdict(list)
    detailed: dict[str, list[float]] = defaultdict(list)
    for one in judged:
        graph, pictures = one.item.about, []
        for answers in one.answers:
            yes = {
                proposition.number: said_yes(answer.text)
                for proposition, answer in zip(graph.propositions, answers, strict=True)
            }
            counted = holding(yes, graph.propositions, cascade=True)
            pictures.append(sum(counted.values()) / len(counted))
        prompts.append(sum(pictures) / len(pictures))
        for category, bare in zip(graph.categories, yes.values(), strict=True):
            broad[category.split("-")[0].strip()].append(float(bare))
            detailed[category].append(float(bare))
    return {
        "dpg": mean(prompts, "prompts", 100),
        **measured(dict(sorted(broad.items())), "questions", 100),
        **measured({name: values for name, values in sorted(detailed.items()) if name not in broad}, "questions", 100),
    }


DPG = Benchmark(
    title="DPG-Bench",
    brings="dpg_bench.csv, or the folder that holds it",
    source="github.com/TencentQQGYLab/ELLA at 3c228f1",
    scorer="bash dpg_bench/dist_eval.sh {out}/pictures SIDE_OF_ONE_PICTURE",
    wants="words",
    copies=4,
    allowed=frozenset({1, 4}),
    in_grid=True,
    official_judges=("damo/mplug_visual-question-answering_coco_large_en",),
    num_prompts=frozenset({1065}),
    differs=(
        "the table was not seen, only the script that reads it",
        "the official script passes over the first row below the head line; here it counts",
        "the official judge is asked the bare question; any other is also told to answer yes or no",
    ),
    read=read,
    measure=measure,
)
