"""Descriptions, their forms and their claims: by templates, by real small models, and by servers that misbehave."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pleinair.captioning.claims import Claim, claims_of_model, sentences, template_claims
from pleinair.captioning.describe import Described, describe, template_captions, with_writing
from pleinair.captioning.facts import Facts
from pleinair.captioning.reformat import (
    Forms,
    forms_of_model,
    rewrite_fault,
    rewritten,
    rule_forms,
)
from pleinair.captioning.small_model import SmallModel
from pleinair.captioning.templates import Captions, captions
from pleinair.cli.places import text_encoder_dir
from pleinair.endpoints import Budget, ChatClient, ChatRequest, EncodedPicture, Endpoint, Message
from pleinair.records.errors import BudgetError, ConfigError, EndpointError, SourceError
from pleinair.records.wording import Medium, Wording
from tests.captioning.test_prompts import block
from tests.endpoints.servers import Answer, Served, ServedLanguageModel, completion, one_thread, script, serve

DOT = EncodedPicture(b"bytes", "image/png")
FOX = "A red fox sleeps under an old oak tree. Snow falls on the meadow behind it."
DRAWING = Medium(phrase="a drawing", on_white=True)
DRAWINGS = Wording(media={"drawings": DRAWING})
APPLE = Facts(medium=DRAWING, label="red apple", style="noto", group="food & drink", tags=("fruit", "diet"))
MADE = Captions("a red apple in noto style. It shows: fruit, diet. The background is white.",
                "a drawing of a red apple in noto style, on white", "a red apple, noto style")  # fmt: skip


@contextmanager
def asking(place: Path, *answers: Answer) -> Iterator[tuple[ChatClient, Served]]:
    with serve(script(*answers)) as served:
        endpoint = Endpoint(url=served.url, model="m", tries=1, concurrency=1)
        with ChatClient(endpoint, stage="s", place=place) as chat:
            yield chat, served


def only(found: Sequence[Any]) -> Any:
    (one,) = found
    return one


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        (completion("I'm sorry, but I can't help with that."), "refused"),
        (completion("fox"), "too short"),
        (completion(" ".join(f"w{n}" for n in range(400))), "too long"),
        (completion("the fox the fox the fox the fox the fox the fox"), "loops"),
        (completion(FOX, finish="length"), "cut after"),
        (completion(""), "empty"),
    ],
)
def test_an_answer_that_is_no_caption_is_asked_for_again_and_then_drops_the_picture(
    bad: Answer, fault: str, tmp_path: Path
) -> None:
    with asking(tmp_path / "a", bad, completion(f"Here is the caption: {FOX}")) as (chat, served):
        assert describe(chat, [APPLE], [DOT]) == [Described(FOX, "scripted describe@1")]
        assert [body["temperature"] for body in served.bodies] == [0.0, 0.7]
    with asking(tmp_path / "b", bad) as (chat, served):
        dropped = only(describe(chat, [APPLE], [DOT], tries=2))
    assert (dropped.text, len(served.bodies)) == ("", 2)
    assert dropped.drop.startswith("captioner: no usable answer in 2 tries, the last ")
    assert fault in dropped.drop


def test_one_bad_answer_costs_only_its_picture_another_try(tmp_path: Path) -> None:
    answers = (completion(FOX), completion("no"), completion(FOX), completion("Now a proper caption."))
    with asking(tmp_path, *answers) as (chat, served):
        found = describe(chat, [Facts(label=name) for name in "abc"], [DOT] * 3)
    assert [one.text for one in found if isinstance(one, Described)] == [FOX, "Now a proper caption.", FOX]
    assert block(served.texts(3)[1]) == {"label": "b"}


def test_a_server_that_fails_drops_nothing(tmp_path: Path) -> None:
    with asking(tmp_path, Answer("down", 500)) as (chat, _):
        failed = only(describe(chat, [APPLE], [DOT]))
    assert isinstance(failed, EndpointError)
    assert "failed 1 times" in str(failed)


def test_claims_found_wrong_are_told_to_the_captioner(tmp_path: Path) -> None:
    with asking(tmp_path, completion(FOX)) as (chat, served):
        describe(chat, [APPLE], [DOT], [["the apple is blue"]])
    assert block(served.texts(0)[1])["wrong_in_an_earlier_description"] == ["the apple is blue"]


def test_templates_leave_out_what_was_found_wrong() -> None:
    row = {"image_name": "k", "source": "drawings", "label": "red apple", "style": "noto", "group_name": "food & drink"}
    whole, mended = (
        template_captions(row, APPLE, DRAWINGS),
        template_captions(row, APPLE, DRAWINGS, ["diet"], white_background=False),
    )
    assert whole is not None
    assert mended is not None
    assert "diet" in whole.long
    assert "white" in whole.long + whole.medium
    for text in (mended.long, mended.medium, mended.short):
        assert "diet" not in text
        assert "white" not in text
        assert "red apple" in text
        assert "noto" in text
    assert "fruit" in mended.long


def test_writing_is_told_in_the_long_caption_and_no_quote_breaks_out() -> None:
    told = with_writing(MADE, Facts(writing=('SAY "HI"', "BYE")))
    assert told.long.endswith("""white. Written on it: "SAY 'HI'", "BYE".""")
    assert (told.medium, told.short) == (MADE.medium, MADE.short)


def test_rules_give_every_form() -> None:
    assert rule_forms(MADE, APPLE) == Forms(
        long=MADE.long, medium=MADE.medium, short=MADE.short, tags=("red apple", "fruit", "diet", "noto style"),
        instruction="Draw a red apple in noto style.", parts={"subject": "red apple", "style": "noto"}, made_by="rules@1",
    )  # fmt: skip


def test_what_kind_of_picture_it_is_is_in_instruction_and_claims_and_in_no_question() -> None:
    photo = Facts(medium=Medium(phrase="a photo", says_style=False), label="fox")
    made = captions({"image_name": "x", "source": "holiday", "label": "fox"}, Wording(media={"holiday": photo.medium}))
    assert made is not None
    assert rule_forms(made, photo).instruction == "Make a photo of a fox."
    texts = (made.long, made.medium, made.short)
    assert [claim.text for claim in template_claims(texts, photo)] == ["the picture shows a fox", "it is a photo"]
    assert photo.as_data() == {"label": "fox"}
    owned = Facts(label="fox", style="ink")
    assert rule_forms(made, owned).instruction == "Make a picture of a fox in ink style."


WRITTEN = {
    "long": "A red fox sleeps under an oak in the snow.", "medium": "A red fox asleep under an oak.", "short": "a red fox",
    "tags": ["fox", "oak", "fox"], "instruction": "Paint a red fox asleep under an oak.", "subject": "fox", "setting": "meadow",
    "colours": [], "writing": ["PLEIN AIR"],
}  # fmt: skip


def test_a_models_forms_are_taken_with_the_style_in_each(tmp_path: Path) -> None:
    fallback = rule_forms(MADE, APPLE)
    with asking(tmp_path, completion(json.dumps(WRITTEN))) as (chat, served):
        made = only(forms_of_model(chat, [FOX], [Facts(style="noto")], [fallback]))
    assert block(served.texts(0)[1]) == {"description": FOX, "style": "noto"}
    assert (made.short, made.tags, made.made_by) == ("a red fox, noto style", ("fox", "oak"), "scripted reformat@1")
    assert all("noto" in text for text in (made.long, made.medium, made.instruction))
    assert made.parts == {"subject": "fox", "setting": "meadow", "writing": ["PLEIN AIR"]}


@pytest.mark.parametrize(
    "bad",
    [
        "no JSON at all",
        json.dumps({**WRITTEN, "short": "I'm sorry, I can't help."}),
        json.dumps({**WRITTEN, "short": " ".join("abcdefghijklmnopq")}),
        json.dumps({name: value for name, value in WRITTEN.items() if name != "medium"}),
    ],
    ids=["no JSON", "refusal", "too long", "a form missing"],
)
def test_forms_of_no_use_leave_the_rules_and_say_so(bad: str, tmp_path: Path) -> None:
    fallback = rule_forms(MADE, APPLE)
    with asking(tmp_path, completion(bad)) as (chat, _):
        made = only(forms_of_model(chat, [FOX], [APPLE], [fallback]))
    assert (made.long, made.medium, made.short) == (MADE.long, MADE.medium, MADE.short)
    assert made.made_by.startswith("rules@1 (reformat@1: ")


def test_what_a_real_small_model_makes_of_the_task_leaves_the_rules(
    language_model: ServedLanguageModel, tmp_path: Path
) -> None:
    with serve(language_model) as served:
        endpoint = Endpoint(url=served.url, model="smollm2")
        with ChatClient(endpoint, stage="s", place=tmp_path) as chat:
            made = only(forms_of_model(chat, [FOX], [APPLE], [rule_forms(MADE, APPLE)], tries=1))
    assert made.short == MADE.short
    assert made.made_by.startswith("rules@1 (reformat@1: ")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("A noto style drawing shows a red apple on a white background.", ""),
        ("A red apple, depicted in noto style.", ""),
        ("A ripe red apple in noto style with a glossy look.", "made up"),
        ("An apple in noto style on white.", "lost 'red apple'"),
        ("A red apple on white.", "lost 'noto'"),
        ("3 of a red apple in noto style", "made up the number 3"),
        ("I cannot help with a red apple in noto style.", "refused"),
        ("A red apple in noto style. " * 6, "too long"),
    ],
)  # fmt: skip
def test_a_rewrite_that_loses_or_adds_facts_is_recognised(text: str, fault: str) -> None:
    assert rewrite_fault(MADE.medium, text.strip(), APPLE).startswith(fault)
    assert bool(rewrite_fault(MADE.medium, text.strip(), APPLE)) == bool(fault)


def test_a_real_small_model_rewrites_and_the_facts_stay() -> None:
    forms = rule_forms(MADE, APPLE)
    with one_thread():
        model = SmallModel(text_encoder_dir())
        made = only(rewritten(model, [forms], [APPLE]))
        short = ChatRequest(messages=(Message("user", "Say hello."),), max_tokens=4)
        assert model.chat([short]) == model.chat([short])
    assert "red apple" in made.medium.lower()
    assert "noto" in made.medium.lower()
    assert (made.long, made.short) == (forms.long, forms.short)
    assert (made.made_by == "rules@1") == (made.medium == forms.medium)
    with pytest.raises(ConfigError, match="sees no pictures"):
        model.chat([ChatRequest(messages=(Message("user", "look", (DOT,)),))])


def test_a_good_rewrite_is_taken_with_its_maker_and_a_cut_or_failed_one_is_not(tmp_path: Path) -> None:
    forms, good = rule_forms(MADE, APPLE), "A noto style picture of a red apple."
    with asking(tmp_path / "good", completion(good)) as (chat, _):
        taken = only(rewritten(chat, [forms], [APPLE]))
    assert (taken.medium, taken.made_by) == (good, "rules@1, medium scripted rewrite@1")
    for number, bad in enumerate((completion(good, finish="length"), Answer("down", 500))):
        with asking(tmp_path / str(number), bad) as (chat, _):
            assert rewritten(chat, [forms], [APPLE]) == [forms]
    nothing = Endpoint(url="http://127.0.0.1:1/v1", model="m")
    with ChatClient(nothing, stage="s", place=tmp_path, budget=Budget(requests=0)) as chat, pytest.raises(BudgetError):
        rewritten(chat, [forms], [APPLE])


def test_a_small_model_that_is_not_there_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="pleinair fetch text-encoder"):
        SmallModel(tmp_path)


def test_templates_are_taken_apart_into_what_they_claim() -> None:
    captions = (with_writing(MADE, Facts(writing=("HI",))).long, MADE.medium, MADE.short)
    assert template_claims(captions, APPLE) == [
        Claim("the picture shows a red apple", "subject", "red apple"), Claim("something in it is red", "colour", "red"),
        Claim("it is drawn in noto style", "style", "noto"), Claim("the background is white", "background", "white"),
        Claim("it has to do with fruit", "tag", "fruit"), Claim("it has to do with diet", "tag", "diet"),
        Claim('"HI" is written in it', "writing", "HI"),
    ]  # fmt: skip
    assert template_claims(["an owl"], APPLE) == []


def test_a_models_claims_are_taken_and_bad_ones_become_sentences(tmp_path: Path) -> None:
    good = {"claims": [{"text": "there is a fox", "kind": "subject"}, {"text": "there is a fox", "kind": "subject"}]}
    with asking(tmp_path / "a", completion(json.dumps(good))) as (chat, served):
        assert claims_of_model(chat, [[FOX, "a fox"]]) == [[Claim("there is a fox", "subject")]]
    assert block(served.texts(0)[1]) == {"captions": [FOX, "a fox"]}
    with asking(tmp_path / "b", completion('{"claims": [{"text": "a fox", "kind": "animal"}]}')) as (chat, _):
        assert claims_of_model(chat, [[FOX, "a fox"]]) == [sentences([FOX])]
