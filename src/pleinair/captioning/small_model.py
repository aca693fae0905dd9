"""SmolLM2-135M as a chat model in this process: the writer of machines without an endpoint.

It is the model whose hidden states are the text features (see `model.text_encoder`), with its own output layer, which is
its embedding. It takes no pictures, and what it writes has to be checked: it embellishes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pleinair.endpoints import ChatRequest, Reply
from pleinair.endpoints.schema import parse
from pleinair.records.errors import AnswerError, ConfigError, EndpointError, SourceError, require

_BATCH = 16


class SmallModel:
    """Answers chat requests greedily, or sampled from the request's seed. The same request gives the same answer."""

    name = "smollm2-135m"

    def __init__(self, directory: Path, num_threads: int | None = None) -> None:
        """`directory` is what `fetch_smollm2` made. Raises SourceError when it is not there."""
        if not (directory / "model.safetensors").exists():
            raise SourceError(
                f"no small language model at {directory}: run 'pleinair fetch text-encoder' (93 MB, once)"
            )
        self._torch = require("torch", "train")
        transformers = require("transformers", "train")
        if num_threads is not None:
            self._torch.set_num_threads(num_threads)
        self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(directory, padding_side="left")
        self._model: Any = transformers.LlamaForCausalLM.from_pretrained(directory, dtype=self._torch.bfloat16).eval()

    def chat(self, requests: Sequence[ChatRequest]) -> list[Reply | EndpointError]:
        """An answer to each request; those with the same limits are written together."""
        answers: dict[int, Reply | EndpointError] = {}
        groups: dict[tuple[int, float, int], list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault((request.max_tokens, request.temperature, request.seed), []).append(number)
        for numbers in groups.values():
            for start in range(0, len(numbers), _BATCH):
                batch = numbers[start : start + _BATCH]
                answers.update(zip(batch, self._written([requests[number] for number in batch]), strict=True))
        return [answers[number] for number in range(len(requests))]

    def _written(self, requests: Sequence[ChatRequest]) -> list[Reply | EndpointError]:
        if any(message.pictures for request in requests for message in request.messages):
            raise ConfigError(f"{self.name} sees no pictures: give an endpoint with a vision-language model")
        first = requests[0]
        texts = [
            self._tokenizer.apply_chat_template(
                [{"role": message.role, "content": message.text} for message in request.messages],
                tokenize=False,
                add_generation_prompt=True,
            )
            for request in requests
        ]
        given = self._tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        sampling = (
            {"do_sample": True, "temperature": first.temperature} if first.temperature > 0 else {"do_sample": False}
        )
        with self._torch.random.fork_rng(), self._torch.inference_mode():
            self._torch.manual_seed(first.seed)
            made = self._model.generate(
                **given,
                **sampling,
                max_new_tokens=first.max_tokens,
                pad_token_id=self._tokenizer.pad_token_id,
            )
        prompt_lengths = given["attention_mask"].sum(1).tolist()
        new = made[:, given["input_ids"].shape[1] :]
        return [
            self._reply(tokens.tolist(), length, request)
            for tokens, length, request in zip(new, prompt_lengths, requests, strict=True)
        ]

    def _reply(self, tokens: list[int], prompt_tokens: int, request: ChatRequest) -> Reply | EndpointError:
        end = self._tokenizer.eos_token_id
        said = tokens[: tokens.index(end)] if end in tokens else tokens
        text = self._tokenizer.decode(said, skip_special_tokens=True).strip()
        if not text:
            return AnswerError("the answer is empty")
        try:
            value = parse(text, request.schema) if request.schema is not None else None
        except AnswerError as error:
            return error
        return Reply(
            text=text,
            value=value,
            model=self.name,
            finish="stop" if end in tokens else "length",
            prompt_tokens=prompt_tokens,
            completion_tokens=len(said),
        )
