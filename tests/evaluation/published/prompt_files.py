"""Prompt files in the published formats, with prompts of our own, and answers as if a judge had given them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pleinair.evaluation.published import Answer, Item, Judged

T = TypeVar("T")


def write_json_lines(path: Path, *entries: Any) -> Path:
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in entries), encoding="utf-8")
    return path


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def answered(items: Sequence[Item[T]], copies: int, says: Callable[[str, int, str], Answer]) -> list[Judged[T]]:
    """Every question of every picture answered by `says(key, picture, question)`."""
    return [
        Judged(
            item,
            tuple(tuple(says(item.key, n, one.text) for one in item.questions) for n in range(copies))
            if item.questions
            else (),
        )
        for item in items
    ]


FOXES = {
    "prompt": "two red foxes on a sledge",
    "atom_count": 4,
    "vqa_list": [
        ["How many foxes are in the image?", "two"],
        ["Are the foxes red?", "Yes"],
        ["Are there any foxes in the image?", "Yes"],
        ["Are the foxes on the sledge?", "Yes"],
    ],
    "skills": ["count", "attribute", "object", "position"],
}
DRUMS = {
    "prompt": "a drum",
    "atom_count": 3,
    "vqa_list": [["How many drums are in the image?", "one"], ["Are there any drums in the image?", "Yes"]],
    "skills": ["count", "object"],
}


def geneval2_file(folder: Path) -> Path:
    return write_json_lines(folder / "geneval2_data.jsonl", FOXES, DRUMS)


def dpg_row(item: str, number: int, dependency: str, head: str, question: str) -> dict[str, Any]:
    return {
        "item_id": item, "text": f"{item} on a long pier, in the evening", "keywords": "", "proposition_id": number,
        "dependency": dependency, "category_broad": head.split(" ")[0], "category_detailed": head.split(" ")[-1],
        "tuple": f"{head} (something)", "question_natural_language": question,
    }  # fmt: skip


DPG_ROWS = [
    dpg_row("lamp", 1, "0", "entity - whole", "Is there a lamp?"),
    dpg_row("lamp", 2, "1", "attribute - color", "Is the lamp green?"),
    dpg_row("lamp", 3, "2", "relation - spatial", "Does the green lamp stand on the pier?"),
    dpg_row("gull", 1, "0", "entity - whole", "Is there a gull?"),
    dpg_row("gull", 2, "0, 1", "entity - state", "Is the gull asleep?"),
]


def dpg_file(folder: Path) -> Path:
    return write_csv(folder / "dpg_bench.csv", DPG_ROWS)


def oneig_folder(folder: Path, *, chinese: bool = False) -> Path:
    """One prompt of each kind that is asked about, and one that is only drawn."""
    column, ending = ("prompt_cn", "_zh") if chinese else ("prompt_en", "")
    kinds = [("Portrait", "000"), ("General_Object", "000"), ("Text_Rendering", "000"), ("Knowledge_Reasoning", "007")]
    rows = [{"category": kind, "id": key, column: f"a prompt for {kind}", "class": ""} for kind, key in kinds]
    table = write_csv(folder / f"OneIG-Bench{'-ZH' if chinese else ''}.csv", rows)
    graph = {
        "question": json.dumps({"1": "Is there a sailor", "2": "Is the sailor old", "3": "Does he look up"}),
        "dependency": json.dumps({"1": [0], "2": [1], "3": [2]}),
    }
    plain = {"question": {"1": "Is there a kettle"}, "dependency": {"1": [0]}}
    questions = folder / "scripts" / "alignment" / "Q_D"
    write_json(questions / f"human{ending}.json", {"000": graph})
    write_json(questions / f"object{ending}.json", {"000": plain})
    wanted = "\u6625\u5929 \u6765\u4e86" if chinese else "OPEN late, till 9!"
    write_csv(folder / "scripts" / "text" / f"text_content{ending}.csv", [{"id": "000", "text_content": wanted}])
    return table


def longtext_file(folder: Path) -> Path:
    return write_json_lines(
        folder / "text_prompts.jsonl",
        {"prompt_id": 0, "prompt": "a sign that reads 'Fresh bread, FRESH rolls'", "text": ["Fresh bread,", "FRESH rolls"],
         "category": "sign", "length": "short", "text_length": 4},
        {"prompt_id": 12, "prompt": "a label that reads 'Cr\u00e8me'", "text": ["Cr\u00e8me"], "category": "label",
         "length": "short", "text_length": 1},
    )  # fmt: skip


def cvtg_folder(folder: Path) -> Path:
    write_json(
        folder / "CVTG" / "2.json",
        {"data_list": [{"index": 0, "prompt": "A door with 'NO ENTRY' and a mat with 'Hello'.", "carrier_list": []}]},
    )
    write_json(
        folder / "CVTG-style" / "3.json", {"data_list": [{"index": 5, "prompt": "A red 'sun', a 'moon', a 'star'."}]}
    )
    return folder


def dimcim_folder(folder: Path) -> Path:
    dense = [
        {"attribute_type": "color", "attribute": "red", "dense_prompt": "A red kite over a field"},
        {"attribute_type": "shape", "attribute": "round", "dense_prompt": "A round kite over a field"},
    ]
    rows = [{"coco_seed_caption": "", "coarse_prompt": "A kite over a field", "dense_prompts": dense}]
    write_json(folder / "dense_prompts" / "kite_dense_prompts.json", {"concept": "kite", "coarse_dense_prompts": rows})
    write_json(
        folder / "seed_captions_attributes" / "kite_seed_captions_attributes.json",
        {"attributes": {"color": ["red", "blue"], "shape": ["round"]}},
    )
    return folder


def hpsv3_folder(folder: Path) -> Path:
    (folder / "prompts").mkdir(parents=True)
    (folder / "prompts" / "animals.txt").write_text("a fox\n\na crane by the water\na snail\n")
    write_json(folder / "prompts" / "food.json", ["a bowl of rice", {"prompt": "a pear"}])
    return folder / "prompts"
