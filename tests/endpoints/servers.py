"""Real HTTP servers on loopback that speak the chat protocol: around real models, or with the faults of real servers."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Body = Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """What a server sends back."""

    body: str
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    """End the connection in the middle of the body, as a server that dies does."""


def completion(
    text: str | None, model: str = "scripted", finish: str = "stop", tokens: tuple[int, int] = (10, 5), **message: Any
) -> Answer:
    """A chat completion that says `text`."""
    said = {"role": "assistant", "content": text, **message}
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    choice = {"index": 0, "message": said, "finish_reason": finish}
    return Answer(json.dumps({"object": "chat.completion", "model": model, "choices": [choice], "usage": usage}))


@dataclass
class Served:
    """A running server: where it is, and what it was asked."""

    url: str = ""
    bodies: list[Any] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    now: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    stop: Callable[[], None] = lambda: None
    """Ends the server before its block does."""

    def texts(self, number: int) -> list[str]:
        """The texts of all turns of a request."""
        return [_text(message) for message in self.bodies[number]["messages"]]


def _text(message: Body) -> str:
    content = message["content"]
    return content if isinstance(content, str) else " ".join(part["text"] for part in content if part["type"] == "text")


@contextmanager
def serve(answer: Callable[[Body], Answer], port: int = 0) -> Iterator[Served]:
    """A server that answers each chat request by `answer(body)`."""
    served = Served()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or head and body, sent apart, wait 40 ms for each other

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            with served.lock:
                served.bodies.append(json.loads(data))
                served.headers.append(dict(self.headers))
                served.now += 1
                served.most_at_once = max(served.most_at_once, served.now)
            try:
                self._reply(answer(json.loads(data)))
            finally:
                with served.lock:
                    served.now -= 1

        def _reply(self, made: Answer) -> None:
            data = made.body.encode()
            self.send_response(made.status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            for name, value in made.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if made.cut else data)
            self.close_connection = made.cut

        def log_message(self, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        allow_reuse_address = True
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that has gone away is what some tests are about

    server = Server(("127.0.0.1", port), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()

    @cache
    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    served.stop = stop
    try:
        yield served
    finally:
        stop()


def script(*answers: Answer) -> Callable[[Body], Answer]:
    """One answer after another; the last one again and again."""
    left = list(answers)
    lock = threading.Lock()

    def answer(body: Body) -> Answer:
        with lock:
            return left.pop(0) if len(left) > 1 else left[0]

    return answer


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: on shared cores, waiting for each other costs more than it gains."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class ServedLanguageModel:
    """SmolLM2-135M behind the protocol: real words, from real weights, `most_tokens` of them."""

    def __init__(self, directory: Path, most_tokens: int = 24) -> None:
        import torch
        from transformers import AutoTokenizer, LlamaForCausalLM

        self.tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        self.model: Any = LlamaForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
        self.most_tokens = most_tokens
        self.lock = threading.Lock()

    def __call__(self, body: Body) -> Answer:
        messages = [{"role": message["role"], "content": _text(message)} for message in body["messages"]]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        given = self.tokenizer(text, return_tensors="pt", add_special_tokens=False)
        with self.lock, one_thread():
            made = self.model.generate(
                **given, do_sample=False, max_new_tokens=min(self.most_tokens, body["max_tokens"]), repetition_penalty=1.1,
                pad_token_id=self.tokenizer.pad_token_id,
            )  # fmt: skip
        new = made[0, given["input_ids"].shape[1] :].tolist()
        ended = self.tokenizer.eos_token_id in new
        said = self.tokenizer.decode(new, skip_special_tokens=True)
        tokens = (given["input_ids"].shape[1], len(new))
        return completion(said, "smollm2-135m", "stop" if ended else "length", tokens)


class ServedVisionModel:
    """A vision-language model of SmolVLM's architecture with random weights: it sees, and says nothing of sense.

    It shows that pictures reach a model through the protocol and change what it says. It is not run for quality.
    """

    side, patch, scale = 64, 16, 2

    def __init__(self, tokenizer_directory: Path) -> None:
        from transformers import AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer_directory)
        self.lock = threading.Lock()

    @cached_property
    def model(self) -> Any:
        import torch
        from transformers import Idefics3Config, Idefics3ForConditionalGeneration

        vocabulary = len(self.tokenizer)
        text = {
            "model_type": "llama", "vocab_size": vocabulary + 1, "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0,
        }  # fmt: skip
        vision = {
            "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "image_size": self.side, "patch_size": self.patch,
        }  # fmt: skip
        config = Idefics3Config(
            vision_config=vision, text_config=text, image_token_id=vocabulary, scale_factor=self.scale, pad_token_id=0
        )
        torch.manual_seed(0)
        return Idefics3ForConditionalGeneration(config).eval()

    def __call__(self, body: Body) -> Answer:
        import torch

        with self.lock, one_thread():
            pictures = [_picture(part["image_url"]["url"], self.side) for part in _picture_parts(body)]
            marks = [self.model.config.image_token_id] * (len(pictures) * (self.side // self.patch // self.scale) ** 2)
            words = self.tokenizer(" ".join(map(_text, body["messages"])))["input_ids"][-64:]
            given: dict[str, Any] = {"input_ids": torch.tensor([[*marks, *words]])}
            if pictures:
                given["pixel_values"] = torch.tensor(np.stack(pictures))[None]
            made = self.model.generate(
                **given, max_new_tokens=min(12, body["max_tokens"]), do_sample=False, pad_token_id=0,
                suppress_tokens=[self.model.config.image_token_id],
            )  # fmt: skip
        said = self.tokenizer.decode(made[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
        return completion(said or "nothing", "tiny-random-vlm")


def _picture_parts(body: Body) -> Sequence[Body]:
    contents = [message["content"] for message in body["messages"] if not isinstance(message["content"], str)]
    return [part for content in contents for part in content if part["type"] == "image_url"]


def _picture(url: str, side: int) -> Any:
    """A data URL as (3, side, side) float32 in -1..1."""
    data = base64.b64decode(url.split(",", 1)[1])
    with Image.open(io.BytesIO(data)) as image:
        small = image.convert("RGB").resize((side, side))
    return (np.asarray(small, dtype=np.float32) / 127.5 - 1).transpose(2, 0, 1)
