"""The T5 family as text encoders: bidirectional, without a template; the last layer or a chosen set."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pleinair.model.digest import part_digest, tokenizer_digest
from pleinair.model.text_encoder import MAX_PROMPT_TOKENS, EncodedText, encode_alike, require_layers, require_length


class T5TextEncoder:
    """`T5EncoderModel`, `UMT5EncoderModel` or `T5GemmaEncoderModel` with its tokenizer."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        layers: Sequence[int] | None = None,
        max_tokens: int = MAX_PROMPT_TOKENS,
        batch_size: int = 32,
    ) -> None:
        """`layers` index the hidden states, 0 the embedding; the last, which is normalised, when none are given."""
        config = getattr(model.config, "encoder", model.config)  # T5Gemma keeps the encoder's apart
        num_hidden = int(config.num_hidden_layers)
        self.layers = (num_hidden,) if layers is None else tuple(layers)
        require_layers(self.layers, num_hidden, name)
        self.model, self.tokenizer, self.name = model.eval().requires_grad_(False), tokenizer, name
        self.max_tokens, self.batch_size = max_tokens, batch_size
        self.num_layers, self.width = len(self.layers), int(config.hidden_size)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of weights, tokenizer and layers."""
        return part_digest(self.model, tokenizer_digest(self.tokenizer), self.layers)

    def tokens(self, prompt: str) -> list[int]:
        """Ids with the tokenizer's own end token. Raises ValueError for none or too many."""
        ids: list[int] = self.tokenizer(prompt)["input_ids"]
        require_length(prompt, len(ids), self.max_tokens)
        if not ids:
            raise ValueError(
                f"the prompt {prompt!r} has no tokens: give {self.name} a tokenizer that adds an end token"
            )
        return ids

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> EncodedText:
        """Hidden states (B, T, L, width), on the model's device."""
        ids = [self.tokens(prompt) for prompt in prompts]
        return encode_alike(ids, [None] * len(ids), self._states, self.batch_size)

    def _states(self, ids: list[list[int]]) -> Tensor:
        ids_BT = torch.tensor(ids, device=self.model.get_input_embeddings().weight.device)
        states = self.model(input_ids=ids_BT, output_hidden_states=True).hidden_states
        return torch.stack([states[layer] for layer in self.layers], dim=2)
