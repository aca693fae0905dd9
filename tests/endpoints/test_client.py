"""The client against real servers: a real small model, a real tiny vision model, and the faults of real servers."""

from __future__ import annotations

import hashlib
import io
import json
import math
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pleinair.endpoints import Budget, ChatClient, ChatRequest, Cost, EncodedPicture, Endpoint, Message, Reply, Spending
from pleinair.records.errors import AnswerError, BudgetError, ConfigError, EndpointError
from tests.endpoints.servers import Answer, Body, ServedLanguageModel, ServedVisionModel, completion, script, serve

COLOURS = {"type": "object", "properties": {"colours": {"type": "array"}}, "required": ["colours"]}
BUSY = Answer('{"error": {"message": "slow down"}}', 429, {"retry-after": "0.4"})


def question(text: str = "What is the capital of France?", *pictures: EncodedPicture, **more: Any) -> ChatRequest:
    return ChatRequest(messages=(Message("user", text, pictures),), **{"max_tokens": 16, **more})


def picture(colour: str) -> EncodedPicture:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(buffer, "PNG")
    return EncodedPicture(buffer.getvalue(), "image/png")


@contextmanager
def client(url: str, place: Path, budget: Budget | None = None, **more: Any) -> Iterator[ChatClient]:
    settings = {"tries": 3, "longest_wait_seconds": 0.5, **more}
    with ChatClient(Endpoint(url=url, model="m", **settings), stage="caption", place=place, budget=budget) as opened:
        yield opened


def only(answers: list[Reply | EndpointError]) -> Reply:
    assert isinstance(answers[0], Reply), answers[0]
    return answers[0]


def refused(answers: list[Reply | EndpointError]) -> str:
    assert isinstance(answers[0], EndpointError), answers[0]
    return str(answers[0])


def costs(place: Path) -> list[Cost]:
    spending = Spending(place / "spending.sqlite")
    try:
        return spending.report()
    finally:
        spending.close()


def test_a_real_model_answers_and_the_same_question_is_answered_from_disk(
    language_model: ServedLanguageModel, tmp_path: Path
) -> None:
    with serve(language_model) as served:
        with client(served.url, tmp_path) as first:
            fresh = only(first.chat([question()]))
        with client(served.url, tmp_path) as second:
            again = only(second.chat([question()]))
    assert "Paris" in fresh.text
    assert (fresh.cached, again.cached, again.text, len(served.bodies)) == (False, True, fresh.text, 1)
    assert costs(tmp_path) == [
        Cost(stage="caption", model="m", requests=1, cached=1, prompt_tokens=fresh.prompt_tokens,
             completion_tokens=fresh.completion_tokens)
    ]  # fmt: skip


def test_pictures_reach_a_real_vision_model_and_change_what_it_says(
    vision_model: ServedVisionModel, tmp_path: Path
) -> None:
    with serve(vision_model) as served, client(served.url, tmp_path) as chat:
        asked = [question("Describe this.", picture(colour)) for colour in ("red", "blue", "red")]
        red, blue, red_again = (only([answer]).text for answer in chat.chat(asked))
    assert red == red_again != blue


def test_what_a_real_small_model_calls_json_is_refused_after_one_repair(
    language_model: ServedLanguageModel, tmp_path: Path
) -> None:
    with serve(language_model) as served, client(served.url, tmp_path) as chat:
        told = refused(chat.chat([question("Say hello.", schema=COLOURS, max_tokens=8)]))
    assert "no JSON" in told
    assert len(served.bodies) == 2
    assert served.bodies[0]["response_format"]["json_schema"]["schema"] == COLOURS


def test_an_answer_of_another_form_is_told_so_and_the_repaired_one_is_kept(tmp_path: Path) -> None:
    answers = script(completion('{"colors": ["red"]}'), completion('```json\n{"colours": ["red"]}\n```'))
    with serve(answers) as served, client(served.url, tmp_path) as chat:
        assert only(chat.chat([question(schema=COLOURS)])).value == {"colours": ["red"]}
        assert only(chat.chat([question(schema=COLOURS)])).cached
    assert [message["role"] for message in served.bodies[1]["messages"]] == ["user", "assistant", "user"]
    assert "lacks 'colours'" in served.texts(1)[2]


def test_a_busy_server_is_given_the_time_it_asks_for_by_all_requests(tmp_path: Path) -> None:
    with serve(script(BUSY, completion("fine"))) as served, client(served.url, tmp_path, concurrency=1) as chat:
        began = time.monotonic()
        answers = chat.chat([question("a"), question("b")])
        assert time.monotonic() - began >= 0.4
    assert [only([answer]).text for answer in answers] == ["fine", "fine"]
    assert len(served.bodies) == 3


def test_a_server_that_asks_for_more_time_than_we_have_is_not_waited_for(tmp_path: Path) -> None:
    patient = Answer("{}", 503, {"retry-after": "3600"})
    with serve(script(patient)) as served, client(served.url, tmp_path) as chat:
        assert "asks to wait 3600 s" in refused(chat.chat([question()]))
    assert len(served.bodies) == 1


@pytest.mark.parametrize(
    "fault",
    [Answer("oops", 500), Answer('{"choices": [', cut=True), Answer("", 529)],
    ids=["error", "dies in the middle", "overloaded"],
)
def test_a_fault_is_tried_again(fault: Answer, tmp_path: Path) -> None:
    with serve(script(fault, fault, completion("fine"))) as served, client(served.url, tmp_path) as chat:
        assert only(chat.chat([question()])).text == "fine"
    assert len(served.bodies) == 3
    assert [(cost.requests, cost.prompt_tokens, cost.completion_tokens) for cost in costs(tmp_path)] == [(3, 10, 5)]


def test_a_batch_outlives_a_server_that_dies_in_it_and_comes_back(tmp_path: Path) -> None:
    enough = threading.Event()

    def slow(body: Body) -> Answer:
        if len(first.bodies) > 3:
            enough.set()
            time.sleep(0.1)
            return Answer("{", cut=True)
        return completion("before")

    settings = {"concurrency": 2, "tries": 8}
    answers: list[Reply | EndpointError] = []
    with serve(slow) as first, client(first.url, tmp_path, **settings) as chat:
        port = int(first.url.rsplit(":", 1)[1].split("/")[0])
        asking = threading.Thread(target=lambda: answers.extend(chat.chat([question(str(n)) for n in range(10)])))
        asking.start()
        assert enough.wait(5)
        first_gone = time.monotonic()
        first.stop()
        with serve(lambda body: completion("after"), port=port):
            asking.join(20)
    texts = [only([answer]).text for answer in answers]
    assert time.monotonic() - first_gone < 15
    assert len(texts) == 10
    assert set(texts) == {"before", "after"}


def test_a_server_that_is_not_there_is_named_with_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with client(f"http://127.0.0.1:{port}/v1", tmp_path, tries=2) as chat:
        told = refused(chat.chat([question()]))
    assert f"http://127.0.0.1:{port}/v1/chat/completions failed 2 times, at last with ConnectError" in told
    assert "see that it runs" in told


def test_a_server_that_never_answers_is_left_after_the_timeout(tmp_path: Path) -> None:
    with (
        serve(lambda body: (time.sleep(1), completion("late"))[1]) as served,
        client(served.url, tmp_path, timeout_seconds=0.2, tries=1) as chat,
    ):
        assert "no answer within 0.2 s" in refused(chat.chat([question()]))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (completion(""), "the answer is empty"),
        (completion(None), "the answer is empty"),
        (completion(None, refusal="I will not."), "the model refused: I will not."),
        (completion("I", finish="content_filter"), "content filter"),
        (Answer('{"choices": []}'), "no chat completion"),
        (Answer('{"choices": [{"message": "hello"}]}'), "no chat completion"),
        (Answer("[1]"), "no chat completion"),
        (Answer("<html>proxy</html>"), "no JSON"),
    ],
)
def test_an_answer_of_no_use_is_said_to_be_and_never_kept(answer: Answer, told: str, tmp_path: Path) -> None:
    with serve(script(answer, completion("better"))) as served, client(served.url, tmp_path) as chat:
        first = chat.chat([question()])
        assert isinstance(first[0], AnswerError)
        assert told in str(first[0])
        assert only(chat.chat([question()])).text == "better"


@pytest.mark.parametrize(
    ("status", "told"), [(401, "check the key in $PLEINAIR_TEST_KEY"), (400, "structured=prompt"), (404, "404")]
)
def test_a_refused_request_is_not_sent_again(
    status: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLEINAIR_TEST_KEY", "sk-very-secret")
    refusal = Answer('{"error": {"message": "no, sk-very-secret is not\\n welcome"}}', status)
    with serve(script(refusal)) as served, client(served.url, tmp_path, key_variable="PLEINAIR_TEST_KEY") as chat:
        sentence = refused(chat.chat([question()]))
    assert told in sentence
    assert "no, *** is not welcome" in sentence
    assert len(served.bodies) == 1


def test_the_key_travels_in_the_header_and_is_kept_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PLEINAIR_TEST_KEY", "sk-very-secret")
    caplog.set_level("DEBUG")
    with (
        serve(script(completion("fine"))) as served,
        client(served.url, tmp_path, key_variable="PLEINAIR_TEST_KEY") as chat,
    ):
        only(chat.chat([question()]))
        assert "sk-very-secret" not in repr(chat.endpoint)
    assert served.headers[0]["Authorization"] == "Bearer sk-very-secret"
    assert all(b"sk-very-secret" not in path.read_bytes() for path in tmp_path.iterdir())
    assert "sk-very-secret" not in caplog.text


def test_a_key_that_is_not_set_is_asked_for_before_anything_is_sent(tmp_path: Path) -> None:
    endpoint = Endpoint(url="http://127.0.0.1:1/v1", model="m", key_variable="PLEINAIR_NO_SUCH_KEY")
    with pytest.raises(ConfigError, match="PLEINAIR_NO_SUCH_KEY is not set: export the key"):
        ChatClient(endpoint, stage="caption", place=tmp_path)


def test_the_same_question_twice_in_a_batch_is_asked_once(tmp_path: Path) -> None:
    with serve(script(completion("fine"))) as served, client(served.url, tmp_path) as chat:
        assert [only([answer]).text for answer in chat.chat([question("a"), question("b"), question("a")])] == [
            "fine"
        ] * 3
    assert len(served.bodies) == 2


def test_no_more_requests_are_under_way_than_allowed(tmp_path: Path) -> None:
    three = threading.Barrier(3)
    with (
        serve(lambda body: (three.wait(10), completion("x"))[1]) as served,
        client(served.url, tmp_path, concurrency=3) as chat,
    ):
        chat.chat([question(str(n)) for n in range(12)])
    assert served.most_at_once == 3


def test_a_budget_of_requests_holds_over_clients_and_ends_with_a_sentence(tmp_path: Path) -> None:
    budget = Budget(requests=3)
    with serve(script(completion("fine"))) as served:
        with client(served.url, tmp_path, budget) as one:
            assert len([only([a]) for a in one.chat([question("1"), question("2")])]) == 2
        with client(served.url, tmp_path, budget) as two:
            answers = two.chat([question(str(n)) for n in range(1, 6)])
    assert [type(answer) for answer in answers] == [Reply, Reply, Reply, BudgetError, BudgetError]
    assert str(answers[4]).startswith("the budget of 3 requests is spent (3 requests, ")
    assert "raise budget.requests to go on" in str(answers[4])
    assert len(served.bodies) == 3


def test_money_is_counted_by_the_tokens_the_server_tells_and_stops_before_it_is_gone(tmp_path: Path) -> None:
    prices = {"dollars_per_million_prompt_tokens": 1e5, "dollars_per_million_completion_tokens": 2e5}
    with (
        serve(script(completion("fine", tokens=(10, 5)))) as served,
        client(served.url, tmp_path, Budget(dollars=6.0), concurrency=1, **prices) as chat,
    ):
        answers = chat.chat([question(str(n)) for n in range(5)])
    # Each costs 10 x 0.1 + 5 x 0.2 = 2 dollars; a request is sent only while its upper guess, 16 x 0.2, still fits.
    assert [type(answer) for answer in answers] == [Reply, Reply, BudgetError, BudgetError, BudgetError]
    assert [(cost.requests, round(cost.dollars, 6)) for cost in costs(tmp_path)] == [(2, 4.0)]
    assert len(served.bodies) == 2


def test_a_signal_ends_the_wait_for_a_server_at_once(tmp_path: Path) -> None:
    class Stopped(BaseException):
        pass

    def stop(number: int, frame: object) -> None:
        raise Stopped

    before = signal.signal(signal.SIGALRM, stop)
    try:
        with (
            serve(lambda body: (time.sleep(0.6), completion("late"))[1]) as served,
            client(served.url, tmp_path, concurrency=1) as chat,
        ):
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            began = time.monotonic()
            with pytest.raises(Stopped):
                chat.chat([question(), question("another")])
            assert time.monotonic() - began < 0.5
            time.sleep(0.8)
            assert len(served.bodies) == 1  # the second question was never sent
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_damaged_cache_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "replies.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(EndpointError, match=r"replies\.sqlite cannot be used .*: remove it"):
        ChatClient(Endpoint(url="http://127.0.0.1:1/v1", model="m"), stage="caption", place=tmp_path)


@pytest.mark.parametrize(
    ("url", "told"),
    [("ftp://host/v1", "no address"), ("localhost:8000", "no address"), ("http://me:sk-1@host/v1", "carries a user"),
     ("http://host/v1?key=sk-1", "carries a user")],
)  # fmt: skip
def test_an_address_that_is_none_or_holds_a_secret_is_refused_without_repeating_it(url: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as refusal:
        Endpoint(url=url, model="m")
    assert "sk-1" not in str(refusal.value)


def test_all_that_can_change_an_answer_changes_the_digest() -> None:
    base = question("a", picture("red"))
    others = [
        question("b", picture("red")), question("a", picture("blue")), question("a"),
        question("a", picture("red"), schema=COLOURS), question("a", picture("red"), max_tokens=17),
        question("a", picture("red"), temperature=0.5), question("a", picture("red"), seed=1),
        question("a", picture("red"), top_logprobs=5),
        ChatRequest(messages=(Message("system", "a", (picture("red"),)),), max_tokens=16),
    ]  # fmt: skip
    digests = {request.digest("m") for request in (base, *others)} | {base.digest("other model")}
    assert len(digests) == len(others) + 2
    assert base.digest("m") == question("a", picture("red")).digest("m")


def test_first_tokens_are_asked_for_only_where_they_are_wanted_and_kept_with_the_answer(tmp_path: Path) -> None:
    body = json.loads(completion("\n").body)
    told = [{"token": "Yes", "logprob": math.log(0.5)}, {"token": "\n", "logprob": math.log(0.25)},
            {"token": "Yes", "logprob": math.log(0.125)}]  # fmt: skip
    body["choices"][0]["logprobs"] = {"content": [{"token": "\n", "logprob": 0.0, "top_logprobs": told}]}
    with serve(script(Answer(json.dumps(body)), completion("plain"))) as served, client(served.url, tmp_path) as chat:
        first, again = (only(chat.chat([question(top_logprobs=3)])) for _ in range(2))
        plain = only(chat.chat([question()]))
    assert first.first_token == again.first_token == pytest.approx({"Yes": 0.625, "\n": 0.25})
    assert (again.cached, plain.first_token) == (True, {})
    assert [(sent.get("logprobs"), sent.get("top_logprobs")) for sent in served.bodies] == [(True, 3), (None, None)]


def test_a_digest_without_first_tokens_is_what_it_was_before_there_were_any() -> None:
    told = [["user", "a", []]]
    whole = ["m", told, None, 16, 0.0, 0]
    assert question("a").digest("m") == hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
