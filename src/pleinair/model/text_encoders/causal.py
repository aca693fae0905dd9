"""Causal language models as text encoders: the prompt inside a template, the template's prefix encoded once and dropped.

    [prefix | prompt | suffix] --language model--> hidden states --from the prefix on--> rows of prompt and suffix

The template matters more than it looks. A small language model puts an attention sink on its first token and a few
massive activations in fixed dimensions; without a prefix, a one-word prompt loses its word to the sink, and without
per-dimension standardisation the informative dimensions are near zero.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pleinair.model.digest import part_digest, tokenizer_digest
from pleinair.model.text_encoder import MAX_PROMPT_TOKENS, EncodedText, encode_alike, require_layers, require_length


@dataclass(frozen=True, kw_only=True)
class Template:
    """What stands around a prompt, and how the two are joined."""

    prefix: str
    """Text before the prompt; its rows are dropped."""
    suffix: str
    """Text after the prompt, tokenised alone; its rows are kept."""
    joined: bool = False
    """Tokenise prefix and prompt as one text, so that a token may cover the end of one and the start of the other."""
    max_tokens: int = MAX_PROMPT_TOKENS
    """Most tokens of a prompt."""
    cuts: bool = False
    """Cut a longer prompt instead of refusing it."""


class CausalTextEncoder:
    """A text model of the transformers library (`LlamaModel`, `Qwen3VLTextModel`, ...) with its tokenizer."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        template: Template,
        *,
        name: str,
        layers: Sequence[int],
        batch_size: int = 32,
    ) -> None:
        require_layers(layers, model.config.num_hidden_layers, name)
        self.model, self.tokenizer, self.template = model.eval().requires_grad_(False), tokenizer, template
        self.name, self.layers, self.batch_size = name, tuple(layers), batch_size
        self.num_layers, self.width = len(self.layers), int(model.config.hidden_size)
        self.prefix_ids, self.suffix_ids = self._ids(template.prefix), self._ids(template.suffix)
        self._prefix_cache: Any = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of weights, tokenizer, template and layers."""
        return part_digest(self.model, tokenizer_digest(self.tokenizer), asdict(self.template), self.layers)

    def tokens(self, prompt: str) -> list[int]:
        """Ids of prefix and prompt. Raises ValueError for a prompt over the template's limit, unless that cuts."""
        template, num_prefix = self.template, len(self.prefix_ids)
        joined = template.prefix + prompt
        ids = self._ids(joined) if template.joined else [*self.prefix_ids, *self._ids(prompt)]
        if not template.cuts:
            require_length(prompt, len(ids) - num_prefix, template.max_tokens)
        return ids[: num_prefix + template.max_tokens]

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> EncodedText:
        """Hidden states (B, T, L, width) of [prompt | suffix], on the model's device.

        Rows are those from the prefix's length on: where a joined prompt melts into the prefix, the token that holds
        both counts as prefix, as in K2.
        """
        ids = [self.tokens(prompt) + self.suffix_ids for prompt in prompts]
        num_prefix = len(self.prefix_ids)
        usual = [of_row[:num_prefix] == self.prefix_ids for of_row in ids]
        return encode_alike(ids, usual, self._states, self.batch_size)

    def _states(self, ids: list[list[int]]) -> Tensor:
        """Hidden states (B, T, L, width) after the prefix, of rows that all have the same one or all another."""
        num_prefix, device = len(self.prefix_ids), self.model.get_input_embeddings().weight.device
        ids_BT = torch.tensor(ids, device=device)
        if ids[0][:num_prefix] != self.prefix_ids or num_prefix == 0:
            states = self.model(ids_BT, use_cache=False, output_hidden_states=True).hidden_states
            return torch.stack([states[layer][:, num_prefix:] for layer in self.layers], dim=2)
        if self._prefix_cache is None:
            self._prefix_cache = self.model(ids_BT[:1, :num_prefix], use_cache=True).past_key_values
        cache = copy.deepcopy(self._prefix_cache)
        cache.batch_repeat_interleave(len(ids))
        rest_BT = ids_BT[:, num_prefix:]
        states = self.model(rest_BT, past_key_values=cache, use_cache=True, output_hidden_states=True).hidden_states
        return torch.stack([states[layer] for layer in self.layers], dim=2)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
