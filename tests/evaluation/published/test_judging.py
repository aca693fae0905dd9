"""Judges before real pictures: over HTTP by a rule, a real model's weights in this process, and a reader of text."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pleinair.captioning.ocr import Writing
from pleinair.cli.places import text_encoder_dir
from pleinair.endpoints import Budget, ChatClient, ChatRequest, Endpoint, Message, Reply
from pleinair.evaluation.published import BENCHMARKS, Benchmark, Plan
from pleinair.evaluation.published.drawing import draw_files, sheets
from pleinair.evaluation.published.judges import Kept, LocalModel, ReadingJudge
from pleinair.evaluation.published.judging import ask, encoded_png
from pleinair.evaluation.published.score import as_text, scored, to_document
from pleinair.model.text_encoders.smollm2 import fetch_smollm2
from pleinair.records.errors import ConfigError, EndpointError
from tests.endpoints.servers import Answer, Body, Served, completion, one_thread, serve
from tests.evaluation.published import prompt_files as files
from tests.evaluation.published.tiny_judge import write_tiny_judge


def quiet(done: int, total: int) -> None:
    pass


def drawn(suite: str, prompts: Path, out: Path, copies: int, shade: Callable[[int], int]) -> Any:
    """The items of a suite with flat pictures, whose grey is `shade(seed)`."""
    benchmark = BENCHMARKS[suite]
    items = benchmark.read(prompts, Plan(model="ours", copies=copies))
    out.mkdir(exist_ok=True)
    draw_files(
        sheets(items, copies, 0),
        lambda _, seeds: np.stack([np.full((8, 8, 3), shade(seed), np.uint8) for seed in seeds]),
        "rule",
        out,
        quiet,
    )
    return items


def seen(body: Body) -> tuple[str, int]:
    """The question, and the grey of the picture that came with it."""
    (message,) = body["messages"]
    parts = {part["type"]: part for part in message["content"]}
    with Image.open(io.BytesIO(base64.b64decode(parts["image_url"]["image_url"]["url"].split(",", 1)[1]))) as image:
        assert image.size == (8, 8)  # one copy, never a grid
        return parts["text"]["text"], np.asarray(image)[0, 0, 0]


def with_chances(said: Answer, chances: Mapping[str, float]) -> Answer:
    """A completion that also tells first tokens, in the protocol's form."""
    body = json.loads(said.body)
    told = [{"token": token, "logprob": math.log(chance), "bytes": None} for token, chance in chances.items()]
    body["choices"][0]["logprobs"] = {"content": [{"token": told[0]["token"], "logprob": 0.0, "top_logprobs": told}]}
    return Answer(json.dumps(body))


def client(served: Served, place: Path, model: str = "some-vlm", budget: Budget | None = None) -> ChatClient:
    return ChatClient(Endpoint(url=served.url, model=model, tries=1), stage="test", place=place, budget=budget)


def test_every_copy_is_cut_out_of_its_grid_and_asked_each_question(tmp_path: Path) -> None:
    items = drawn("dpg", files.dpg_file(tmp_path), tmp_path / "out", 4, lambda seed: seed % 1009)
    lamp_no = {1}  # of the second copy of the lamp

    def rule(body: Body) -> Answer:
        question, grey = seen(body)
        assert question.endswith("Answer with one word: yes or no.")
        return completion("No" if grey in lamp_no and "Is there a lamp?" in question else " yes\n")

    with serve(rule) as served, client(served, tmp_path / "judge") as chat:
        judged = ask(chat, BENCHMARKS["dpg"], items, 4, tmp_path / "out" / "pictures", quiet)
        assert len(served.bodies) == 4 * (3 + 2)
    score = scored("dpg", BENCHMARKS["dpg"], judged, subject="ours", judge="some-vlm", copies=4)
    assert score.measures["dpg"].value == pytest.approx(100 * (3 / 4 + 1) / 2)
    assert score.unusable == 0


def test_answers_are_kept_so_that_the_same_command_asks_nothing_twice(tmp_path: Path) -> None:
    items = drawn("dpg", files.dpg_file(tmp_path), tmp_path / "out", 1, lambda seed: seed % 1009 + 1)
    pictures = tmp_path / "out" / "pictures"
    with serve(lambda body: completion("yes")) as served:
        told = r"2 of 5 answers of some-vlm could not be had, .*budget of 3 requests"
        with (
            client(served, tmp_path / "judge", budget=Budget(requests=3)) as chat,
            pytest.raises(EndpointError, match=told),
        ):
            ask(chat, BENCHMARKS["dpg"], items, 1, pictures, quiet)
        with client(served, tmp_path / "judge") as chat:
            ask(chat, BENCHMARKS["dpg"], items, 1, pictures, quiet)
            first = len(served.bodies)
            ask(chat, BENCHMARKS["dpg"], items, 1, pictures, quiet)
        assert (first, len(served.bodies)) == (5, 5)


def test_soft_tifa_adds_up_the_chances_of_all_right_first_tokens(tmp_path: Path) -> None:
    items = drawn("geneval2", files.geneval2_file(tmp_path), tmp_path / "out", 1, lambda seed: 9)

    def rule(body: Body) -> Answer:
        question, _ = seen(body)
        assert (body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (1, True, 20)
        if "foxes" in question and question.startswith("How many"):
            return with_chances(completion("\n"), {"\n": 0.4, "2": 0.25, " Two": 0.125, "three": 0.1, "two ": 0.1})
        return with_chances(completion("Yes"), {"Yes": 0.5, " yes": 0.25, "No": 0.25})

    with serve(rule) as served, client(served, tmp_path / "judge") as chat:
        judged = ask(chat, BENCHMARKS["geneval2"], items, 1, tmp_path / "out" / "pictures", quiet)
        again = ask(chat, BENCHMARKS["geneval2"], items, 1, tmp_path / "out" / "pictures", quiet)
        assert len(served.bodies) == 6
    assert [answer.value for answer in judged[0].answers[0]] == pytest.approx([0.375, 0.75, 0.75, 0.75])
    assert again == judged  # probabilities come back from the cache


def test_a_judge_without_probabilities_is_refused_by_what_is_made_of_them(tmp_path: Path) -> None:
    items = drawn("geneval2", files.geneval2_file(tmp_path), tmp_path / "out", 1, lambda seed: 9)
    with (
        serve(lambda body: completion("Yes")) as served,
        client(served, tmp_path / "judge") as chat,
        pytest.raises(EndpointError, match="told no probabilities, and GenEval 2 is made of them"),
    ):
        ask(chat, BENCHMARKS["geneval2"], items, 1, tmp_path / "out" / "pictures", quiet)


def test_a_reward_is_the_number_said_and_its_absence_ends_the_run(tmp_path: Path) -> None:
    items = drawn("hpsv3", files.hpsv3_folder(tmp_path), tmp_path / "out", 1, lambda seed: seed % 1000)
    pictures, rewards = tmp_path / "out" / "pictures", {"a fox": "-1.5", "a pear": "7e-1"}

    def rule(body: Body) -> Answer:
        return completion(f"{rewards.get(seen(body)[0], '3')}\n")

    with serve(rule) as served, client(served, tmp_path / "judge", "MizzenAI/HPSv3") as chat:
        judged = ask(chat, BENCHMARKS["hpsv3"], items, 1, pictures, quiet)
    score = scored("hpsv3", BENCHMARKS["hpsv3"], judged, subject="ours", judge="MizzenAI/HPSv3", copies=1)
    assert score.measures["hpsv3"].value == pytest.approx(((-1.5 + 3 + 3) / 3 + (3 + 0.7) / 2) / 2)
    assert score.reasons == ()
    with (
        serve(lambda body: completion("lovely")) as served,
        client(served, tmp_path / "other") as chat,
        pytest.raises(EndpointError, match="'lovely', which holds no number"),
    ):
        ask(chat, BENCHMARKS["hpsv3"], items, 1, pictures, quiet)


def test_a_reward_that_was_refused_counts_as_no_number_at_all(tmp_path: Path) -> None:
    items = drawn("hpsv3", files.hpsv3_folder(tmp_path), tmp_path / "out", 1, lambda seed: 1)
    with (
        serve(lambda body: completion(None, refusal="I will not say.")) as served,
        client(served, tmp_path / "judge") as chat,
        pytest.raises(EndpointError, match=r"5 of 5 answers of some-vlm could not be had, .*I will not say"),
    ):
        ask(chat, BENCHMARKS["hpsv3"], items, 1, tmp_path / "out" / "pictures", quiet)


def test_an_answer_of_no_use_counts_as_no_and_is_counted(tmp_path: Path) -> None:
    items = drawn("dpg", files.dpg_file(tmp_path), tmp_path / "out", 1, lambda seed: 1)

    def rule(body: Body) -> Answer:
        return completion(None, refusal="I will not say.") if "gull asleep" in seen(body)[0] else completion("Yes")

    with serve(rule) as served, client(served, tmp_path / "judge") as chat:
        judged = ask(chat, BENCHMARKS["dpg"], items, 1, tmp_path / "out" / "pictures", quiet)
    score = scored("dpg", BENCHMARKS["dpg"], judged, subject="ours", judge="some-vlm", copies=1)
    assert (score.unusable, score.measures["dpg"].value) == (1, pytest.approx(100 * (1 + 0.5) / 2))
    assert "1 answers could not be used and count as no" in as_text(score, BENCHMARKS["dpg"])


def test_a_black_picture_of_oneig_is_not_judged(tmp_path: Path) -> None:
    files.oneig_folder(tmp_path)
    items = drawn("oneig", tmp_path, tmp_path / "out", 4, lambda seed: 0 if seed % 1009 in (1, 3) else 200)
    with serve(lambda body: completion("Yes")) as served, client(served, tmp_path / "judge") as chat:
        judged = ask(chat, BENCHMARKS["oneig"], items, 4, tmp_path / "out" / "pictures", quiet)
    assert [len(one.answers) for one in judged] == [2, 2, 2, 0]


def test_the_official_judge_gets_the_bare_question(tmp_path: Path) -> None:
    items = drawn("dpg", files.dpg_file(tmp_path), tmp_path / "out", 1, lambda seed: 1)
    with serve(lambda body: completion("yes")) as served:
        with client(served, tmp_path / "judge", "mplug_visual-question-answering_coco_large_en") as chat:
            ask(chat, BENCHMARKS["dpg"], items, 1, tmp_path / "out" / "pictures", quiet)
        assert {seen(body)[0] for body in served.bodies} == {row["question_natural_language"] for row in files.DPG_ROWS}


GENEVAL2: Benchmark[Any] = BENCHMARKS["geneval2"]


def geneval2_score(tmp_path: Path, judge: str, num: int) -> str:
    prompts = [{**files.DRUMS, "prompt": f"drum {number}"} for number in range(num)]
    items = GENEVAL2.read(files.write_json_lines(tmp_path / "x.jsonl", *prompts), Plan(copies=1))
    judged = files.answered(items, 1, lambda key, n, question: files.Answer("", 0.5))
    score = scored("geneval2", GENEVAL2, judged, subject="ours", judge=judge, copies=1)
    assert to_document(score, GENEVAL2)["title"] == as_text(score, GENEVAL2).splitlines()[0]
    return as_text(score, GENEVAL2)


def test_only_the_official_judge_on_all_prompts_gives_a_score_of_that_name(tmp_path: Path) -> None:
    whole = geneval2_score(tmp_path, "qwen3-vl-8b-instruct", 800)
    assert whole.splitlines()[0] == "GenEval 2, judged by qwen3-vl-8b-instruct"
    assert "not run here by the authors: prompts and judge are the user's" in whole
    other = geneval2_score(tmp_path, "some-vlm", 2).splitlines()[0]
    assert other == (
        "geneval2 protocol judged by some-vlm; not a GenEval 2 score: its judge is Qwen/Qwen3-VL-8B-Instruct, not some-vlm; "
        "it has 800 prompts, not 2"
    )


@pytest.mark.parametrize("suite", sorted(BENCHMARKS))
def test_every_benchmark_says_what_it_was_read_from_and_how_its_own_scorer_is_run(suite: str) -> None:
    benchmark = BENCHMARKS[suite]
    assert "github.com/" in benchmark.source
    assert "/out/x" in benchmark.scorer.format(out="/out/x", prompts="/p", model="m")
    assert (
        benchmark.official_judges
        or "official" in " ".join(benchmark.differs)
        or "our own" in " ".join(benchmark.differs)
    )


class OneLine:
    """A reader for which every picture says how bright it is."""

    name = "one-line-1"

    def read(self, pixels: Any) -> Writing:
        return Writing((f"NO ENTRY {pixels[0, 0, 0]}",) if pixels.any() else ())


def test_a_reader_of_text_judges_writing_without_any_server(tmp_path: Path) -> None:
    items = drawn("cvtg", files.cvtg_folder(tmp_path), tmp_path / "out", 1, lambda seed: 0 if seed else 5)
    kept = Kept(ReadingJudge(OneLine()), tmp_path / "judge")
    judged = ask(kept, BENCHMARKS["cvtg"], items, 1, tmp_path / "out" / "pictures", quiet)
    kept.close()
    assert [one.answers[0][0].text for one in judged] == ["NO ENTRY 5", ""]
    assert BENCHMARKS["cvtg"].measure(judged)["word_accuracy"].value == 2 / 6


def test_a_models_folder_is_a_judge_that_sees_and_tells_probabilities(tmp_path: Path) -> None:
    folder = write_tiny_judge(tmp_path / "tiny", fetch_smollm2(text_encoder_dir()))
    with one_thread():
        local = LocalModel(folder)
        requests = [
            ChatRequest(
                messages=(Message("user", "Is it red? Answer in one word.", (encoded_png(pixels),)),),
                max_tokens=1,
                top_logprobs=20,
            )
            for pixels in (np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8))
        ]
        kept = Kept(local, tmp_path / "judge")
        dark, light = kept.chat(requests)
        assert isinstance(dark, Reply)
        assert isinstance(light, Reply)
        assert dark.first_token != light.first_token
        assert 0 < len(dark.first_token) <= 20
        assert 0 < sum(dark.first_token.values()) < 1
        (again,) = kept.chat(requests[:1])
        assert isinstance(again, Reply)
        assert (again.cached, again.first_token) == (True, dark.first_token)
        kept.close()
    assert local.name.startswith("tiny (")


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no model's folder: it lacks config\.json"):
        LocalModel(tmp_path)
