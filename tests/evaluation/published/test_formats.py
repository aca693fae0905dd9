"""Prompt files as published: what is drawn where, what is asked, and what is refused with a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pleinair.evaluation.published import BENCHMARKS, Item, Plan
from pleinair.records.errors import ConfigError
from tests.evaluation.published import prompt_files as files


def read(suite: str, path: Path, copies: int | None = None) -> list[Item[Any]]:
    benchmark = BENCHMARKS[suite]
    return benchmark.read(path, Plan(model="ours", copies=copies or benchmark.copies))


def test_geneval2_asks_every_atom_and_lists_its_pictures_by_prompt(tmp_path: Path) -> None:
    foxes, drum = read("geneval2", files.geneval2_file(tmp_path))
    assert [foxes.files, drum.files] == [("0000.png",), ("0001.png",)]
    assert foxes.questions[0].text == "How many foxes are in the image? Answer in one word."
    assert foxes.questions[0].accepted == {"two", "Two", " two", " Two", "2", " 2"}
    assert foxes.questions[1].accepted == {"Yes", "yes", " Yes", " yes"}
    assert {one.max_tokens for one in foxes.questions} == {1}
    companions = BENCHMARKS["geneval2"].companions([foxes, drum], Path("/out/pictures"))
    assert json.loads(companions["image_paths.json"]) == {
        "two red foxes on a sledge": "/out/pictures/0000.png",
        "a drum": "/out/pictures/0001.png",
    }


def test_dpg_groups_its_rows_and_names_one_grid_after_each_item(tmp_path: Path) -> None:
    lamp, gull = read("dpg", files.dpg_file(tmp_path))
    assert [(one.files, one.prompt) for one in (lamp, gull)] == [
        (("lamp.png",), "lamp on a long pier, in the evening"),
        (("gull.png",), "gull on a long pier, in the evening"),
    ]
    assert [(one.number, one.parents) for one in lamp.about.propositions] == [(1, ()), (2, (1,)), (3, (2,))]
    assert gull.about.propositions[1].parents == (1,)
    assert lamp.about.categories == ("entity - whole", "attribute - color", "relation - spatial")
    assert BENCHMARKS["dpg"].in_grid
    assert read("dpg", tmp_path) == [lamp, gull]  # the folder that holds the table


def test_dpg_passes_over_a_second_head_line(tmp_path: Path) -> None:
    rows = [{name: f"what {name} is" for name in files.DPG_ROWS[0]}, *files.DPG_ROWS]
    assert [one.key for one in read("dpg", files.write_csv(tmp_path / "dpg_bench.csv", rows))] == ["lamp", "gull"]


def test_oneig_takes_questions_and_texts_from_the_scripts_beside_its_table(tmp_path: Path) -> None:
    files.oneig_folder(tmp_path)
    portrait, thing, text, reasoning = read("oneig", tmp_path)
    assert portrait.files == ("human/ours/000.webp",)
    assert [one.text for one in portrait.questions][:2] == [
        "Is there a sailor. Please answer 'Yes' or 'No' only.",
        "Is the sailor old. Please answer 'Yes' or 'No' only.",
    ]
    assert thing.key == "object/000"
    assert (text.about.text, len(text.questions)) == ("OPEN late, till 9!", 1)
    assert (reasoning.files, reasoning.questions) == (("reasoning/ours/007.webp",), ())


def test_oneig_reads_the_chinese_table_with_the_chinese_questions(tmp_path: Path) -> None:
    items = read("oneig", files.oneig_folder(tmp_path, chinese=True))
    assert {one.about.language for one in items} == {"cn"}
    assert items[2].about.text == "\u6625\u5929 \u6765\u4e86"


def test_longtext_names_four_pictures_by_prompt_id(tmp_path: Path) -> None:
    bread, creme = read("longtext", files.longtext_file(tmp_path))
    assert creme.files == ("0012_1.png", "0012_2.png", "0012_3.png", "0012_4.png")
    assert bread.about.units == ("fresh", "bread", "fresh", "rolls")
    assert creme.about.units == ("cr\u00e8me",)


def test_longtext_compares_signs_where_most_texts_are_chinese(tmp_path: Path) -> None:
    path = files.write_json_lines(
        tmp_path / "text_prompts_zh.jsonl", {"prompt_id": 3, "prompt": "p", "text": ["\u6625\u5929 A\uff01"]}
    )
    assert read("longtext", path)[0].about.units == ("\u6625", "\u5929", "A")


def test_cvtg_wants_the_words_between_quotes_and_lays_pictures_out_by_set_and_pieces(tmp_path: Path) -> None:
    door, sky = read("cvtg", files.cvtg_folder(tmp_path))
    assert (door.files, door.about.words) == (("CVTG/2/0.png",), ("no", "entry", "hello"))
    assert (sky.files, sky.about.words) == (("CVTG-Style/3/5.png",), ("sun", "moon", "star"))


def test_dimcim_asks_open_prompts_for_all_attributes_and_others_for_their_own(tmp_path: Path) -> None:
    items = read("dimcim", files.dimcim_folder(tmp_path), copies=2)
    coarse, red, _ = items
    assert coarse.files == ("kite/coarse/0000/00.png", "kite/coarse/0000/01.png")
    assert coarse.about.attributes == (("color", "red"), ("color", "blue"), ("shape", "round"))
    assert [one.text for one in red.questions] == [
        "Does this image show a kite whose color is: red? Answer with one word: yes or no."
    ]
    companions = BENCHMARKS["dimcim"].companions(items, Path("/o/pictures"))
    assert json.loads(companions["eval/kite_coarse_prompt_generated_images_paths.json"]) == [
        "/o/pictures/kite/coarse/0000/00.png",
        "/o/pictures/kite/coarse/0000/01.png",
    ]
    assert json.loads(companions["eval/kite_dense_prompt_generated_images_paths.json"])[1] == {
        "prompt": "A round kite over a field",
        "attribute_type": "shape",
        "attribute": "round",
        "image_paths": ["/o/pictures/kite/dense/0000-00001/00.png", "/o/pictures/kite/dense/0000-00001/01.png"],
    }


def test_dimcim_takes_the_attributes_its_prompts_ask_for_where_there_is_no_list(tmp_path: Path) -> None:
    files.dimcim_folder(tmp_path)
    alone = tmp_path / "kite_dense_prompts.json"
    (tmp_path / "dense_prompts" / alone.name).rename(alone)
    assert read("dimcim", alone)[0].about.attributes == (("color", "red"), ("shape", "round"))


def test_hpsv3_puts_each_picture_beside_its_prompt_in_the_folder_of_its_category(tmp_path: Path) -> None:
    items = read("hpsv3", files.hpsv3_folder(tmp_path))
    assert [(one.prompt, one.files) for one in items] == [
        ("a fox", ("animals/00000_0.png",)),
        ("a crane by the water", ("animals/00001_0.png",)),
        ("a snail", ("animals/00002_0.png",)),
        ("a bowl of rice", ("food/00000_0.png",)),
        ("a pear", ("food/00001_0.png",)),
    ]
    assert BENCHMARKS["hpsv3"].companions(items, Path("/o/pictures"))["pictures/food/00001_0.txt"] == "a pear"


def test_a_separator_that_only_looks_like_a_new_line_stays_inside_its_prompt(tmp_path: Path) -> None:
    drums = files.write_json_lines(tmp_path / "x.jsonl", {**files.DRUMS, "prompt": "a drum\u2028and a fife"})
    lamp = files.dpg_row("lamp", 1, "0", "entity - whole", "Is there a lamp?") | {"text": "a lamp\x85at night"}
    assert read("geneval2", drums)[0].prompt == "a drum\u2028and a fife"
    assert read("dpg", files.write_csv(tmp_path / "x.csv", [lamp]))[0].prompt == "a lamp\x85at night"


def broken_geneval2(folder: Path) -> Path:
    return files.write_json_lines(folder / "x.jsonl", files.DRUMS, {**files.FOXES, "skills": ["count"]})


def broken_graph(folder: Path) -> Path:
    return files.write_csv(folder / "x.csv", [files.dpg_row("lamp", 2, "7", "entity - whole", "Is there?")])


def other_table(folder: Path) -> Path:
    return files.write_csv(folder / "x.csv", [{"item_id": "lamp", "text": "a lamp"}])


def name_that_leads_elsewhere(folder: Path) -> Path:
    return files.write_csv(folder / "x.csv", [files.dpg_row("../../lamp", 1, "0", "entity - whole", "Is there?")])


def table_without_scripts(folder: Path) -> Path:
    rows = [{"category": "Portrait", "id": "000", "prompt_en": "a sailor"}]
    return files.write_csv(folder / "OneIG-Bench.csv", rows)


def prompt_without_questions(folder: Path) -> Path:
    table = files.oneig_folder(folder)
    files.write_json(
        folder / "scripts" / "alignment" / "Q_D" / "object.json",
        {"999": {"question": {"1": "Is there"}, "dependency": {"1": [0]}}},
    )
    return table


def cut_json(folder: Path) -> Path:
    (folder / "CVTG").mkdir()
    (folder / "CVTG" / "2.json").write_text('{"data_list": [\n{"index": 0,')
    return folder


@pytest.mark.parametrize(
    ("suite", "write", "told"),
    [
        ("geneval2", broken_geneval2, r"line 2 of .*x\.jsonl cannot be used: it has 4 questions and 1 skills"),
        ("geneval2", lambda f: files.write_json_lines(f / "x", {"prompt": "a"}), r"line 1 of .* it lacks 'vqa_list'"),
        ("geneval2", lambda f: files.write_json_lines(f / "x", files.DRUMS, files.DRUMS), "prompt 'a drum' was used before"),
        ("geneval2", lambda f: files.write_json_lines(f / "x", [1]), r"line 1 of .* is \[1\], not an object"),
        ("geneval2", lambda f: f / "none.jsonl", r"none\.jsonl cannot be read"),
        ("dpg", broken_graph, r"line 2 of .* question 2 builds on question 7, which it lacks"),
        ("dpg", other_table, r"line 1 of .* lacks the column 'proposition_id' \(it has item_id, text\)"),
        ("dpg", name_that_leads_elsewhere, r"'\.\./\.\./lamp', which cannot be a file's name"),
        ("oneig", table_without_scripts, r"human\.json is missing: give the whole folder"),
        ("oneig", prompt_without_questions, r"line 3 of .* nothing under .* says what object/000 is asked"),
        ("longtext", lambda f: files.write_json_lines(f / "x", {"prompt_id": 1, "prompt": "p", "text": ["?!"]}),
         "text has no letter or digit"),
        ("longtext", lambda f: files.write_json_lines(f / "x", {"prompt_id": "one", "prompt": "p", "text": ["a"]}),
         "prompt_id is 'one', not a whole number"),
        ("cvtg", lambda f: f, r"holds no CVTG/2\.json"),
        ("cvtg", cut_json, r"2\.json is no JSON \(.*line 2"),
        ("cvtg", lambda f: files.write_json(f / "CVTG" / "2.json", {"data_list": [{"index": 0, "prompt": "a door"}]}).parents[1],
         r"data_list\[0\] of .* no word of its prompt stands between single quotes"),
        ("dimcim", lambda f: f, "holds no dense_prompts"),
        ("dimcim", lambda f: files.write_json(f / "x.json", {"concept": "kite", "coarse_dense_prompts": []}),
         "not a list of one or more"),
        ("hpsv3", lambda f: f, "write one prompt per line"),
        ("hpsv3", lambda f: files.write_json(f / "x.json", {"a": 1}), "is no list of prompts"),
        ("hpsv3", lambda f: files.write_json(f / "x.json", ["a fox", " "]), "entry 1 of .* prompt is ' ', not a text"),
    ],
)  # fmt: skip
def test_a_file_of_another_form_is_refused_with_place_and_reason(
    suite: str, write: Callable[[Path], Path], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=told):
        read(suite, write(tmp_path))
