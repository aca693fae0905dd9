"""Judges in this process, behind the protocol of a chat server: a vision-language model's folder, or a reader of text.

Kept(LocalModel(folder), place)     asks nothing twice; ChatClient does the same for a server
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pleinair.captioning.ocr import TextReader
from pleinair.endpoints import Chat, ChatRequest, Message, Reply
from pleinair.endpoints.cache import ReplyCache
from pleinair.records.errors import ConfigError, EndpointError


class Kept:
    """A judge whose answers are kept on disk by the digest of model, question and picture."""

    def __init__(self, chat: Chat, place: Path) -> None:
        self._chat = chat
        self._cache = ReplyCache(place / "replies.sqlite")
        self.name = chat.name

    def chat(self, requests: Sequence[ChatRequest]) -> list[Reply | EndpointError]:
        """Kept answers, and new ones for the rest, each kept as soon as it is there."""
        replies: list[Reply | EndpointError] = []
        for request in requests:
            digest = request.digest(self.name)
            found: Reply | EndpointError | None = self._cache.get(digest)
            if found is None:
                found = self._chat.chat([request])[0]
                if isinstance(found, Reply):
                    self._cache.put(digest, found)
            replies.append(found)
        return replies

    def close(self) -> None:
        """Close the file."""
        self._cache.close()


class ReadingJudge:
    """A reader of text that answers every question with what is written in its picture."""

    def __init__(self, reader: TextReader) -> None:
        self._reader = reader
        self.name = reader.name

    def chat(self, requests: Sequence[ChatRequest]) -> list[Reply | EndpointError]:
        """The lines, in reading order."""
        return [
            Reply(text="\n".join(self._reader.read(np.asarray(_pictures(one)[0])).lines), model=self.name)
            for one in requests
        ]


class LocalModel:
    """A vision-language model that transformers can load from a folder; greedy, one question at a time."""

    def __init__(self, folder: Path) -> None:
        """Load it, in the precision it is stored in. Raises ConfigError when the folder is no such model."""
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        if not (folder / "config.json").exists():
            raise ConfigError(f"{folder} is no model's folder: it lacks config.json")
        try:
            self._processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
            self._model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", local_files_only=True)
        except (OSError, ValueError, ImportError, KeyError) as refused:
            raise ConfigError(f"transformers cannot load a vision-language model from {folder}: {refused}") from refused
        self._model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self.name = f"{folder.resolve().name} ({folder_digest(folder)[:12]})"

    def chat(self, requests: Sequence[ChatRequest]) -> list[Reply | EndpointError]:
        """An answer to each."""
        return [self._reply(request) for request in requests]

    def _reply(self, request: ChatRequest) -> Reply:
        import torch

        text = self._processor.apply_chat_template(
            [_turn(message) for message in request.messages], add_generation_prompt=True, tokenize=False
        )
        given = self._processor(text=text, images=_pictures(request) or None, return_tensors="pt").to(
            self._model.device
        )
        with torch.inference_mode():
            made = self._model.generate(
                **given,
                do_sample=False,
                max_new_tokens=request.max_tokens,
                output_scores=bool(request.top_logprobs),
                return_dict_in_generate=True,
            )
        new = made.sequences[0, given["input_ids"].shape[1] :]
        return Reply(
            text=self._processor.decode(new, skip_special_tokens=True),
            model=self.name,
            finish="length" if len(new) == request.max_tokens else "stop",
            prompt_tokens=given["input_ids"].shape[1],
            completion_tokens=len(new),
            first_token=self._likeliest(made.scores[0][0], request.top_logprobs) if request.top_logprobs else {},
        )

    def _likeliest(self, logits_V: Any, num: int) -> dict[str, float]:
        chances, tokens = logits_V.float().softmax(dim=-1).topk(num)
        told: dict[str, float] = {}
        for chance, token in zip(chances.tolist(), tokens.tolist(), strict=True):
            text = self._processor.decode([token])
            told[text] = told.get(text, 0.0) + chance
        return told


def _turn(message: Message) -> dict[str, Any]:
    pictures: list[dict[str, str]] = [{"type": "image"} for _ in message.pictures]
    return {"role": message.role, "content": [*pictures, {"type": "text", "text": message.text}]}


def _pictures(request: ChatRequest) -> list[Image.Image]:
    return [
        Image.open(io.BytesIO(picture.data)).convert("RGB")
        for message in request.messages
        for picture in message.pictures
    ]


def folder_digest(folder: Path) -> str:
    """What tells one folder from another without reading gigabytes: its configuration, and its files' sizes and times."""
    files = sorted(one for one in folder.iterdir() if one.is_file())
    told = [(one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in files]
    return hashlib.sha256((folder / "config.json").read_bytes() + repr(told).encode()).hexdigest()
