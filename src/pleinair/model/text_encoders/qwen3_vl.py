"""Qwen3-VL as K2 reads it: 12 hidden states of the language model, a describing template, nothing padded.

The release runs [prefix 34 | prompt | PAD to 546 - 5 | suffix 5] with positions that count valid tokens, and drops the
prefix. Padding has neither position nor attention there, so encoding [prefix | prompt | suffix] alone gives the same
rows, and default positions are then the right ones. (With padding they are not: transformers 5 numbers raw places
unless it is told otherwise, which moves the suffix.)

A prompt that begins with a newline melts into the template: its first token counts as prefix and is dropped, here as in
the release, which tokenises both as one text.
"""

from __future__ import annotations

from typing import Any

import torch

from pleinair.model.text_encoder import EncodedText
from pleinair.model.text_encoders.causal import CausalTextEncoder, Template

K2_LAYERS = (2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35)
K2_ROWS = 512
"""Rows of the released layout: prompt, padding, suffix."""
NUM_PREFIX, NUM_SUFFIX = 34, 5
K2_TEMPLATE = Template(
    prefix=(
        "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
        "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
    ),
    suffix="<|im_end|>\n<|im_start|>assistant\n",
    joined=True,
    max_tokens=K2_ROWS - NUM_SUFFIX,
    cuts=True,
)


def qwen3_vl(model: Any, tokenizer: Any, *, name: str = "qwen3-vl", batch_size: int = 32) -> CausalTextEncoder:
    """The encoder of a `Qwen3VLModel`, whose vision part is not used; give it the tokenizer of the model.

    Raises ValueError for a tokenizer that does not cut the template into 34 and 5 tokens, or a model of under 35 layers.
    """
    encoder = CausalTextEncoder(
        model.language_model, tokenizer, K2_TEMPLATE, name=name, layers=K2_LAYERS, batch_size=batch_size
    )
    found = (len(encoder.prefix_ids), len(encoder.suffix_ids))
    if found != (NUM_PREFIX, NUM_SUFFIX):
        raise ValueError(
            f"the tokenizer cuts K2's template into {found[0]} and {found[1]} tokens instead of {NUM_PREFIX} and "
            f"{NUM_SUFFIX}: give the tokenizer of Qwen3-VL"
        )
    return encoder


def released_layout(encoded: EncodedText, num_rows: int = K2_ROWS) -> EncodedText:
    """The same rows as the release lays them out, [prompt | PAD | suffix], for tools that take its prompt embeddings."""
    features_BTLD = encoded.features_BTLD.new_zeros(len(encoded.mask_BT), num_rows, *encoded.features_BTLD.shape[2:])
    mask_BT = torch.zeros(features_BTLD.shape[:2], dtype=torch.bool, device=features_BTLD.device)
    for row, length in enumerate(encoded.mask_BT.sum(1).tolist()):
        num_prompt = length - NUM_SUFFIX
        features_BTLD[row, :num_prompt] = encoded.features_BTLD[row, :num_prompt]
        features_BTLD[row, -NUM_SUFFIX:] = encoded.features_BTLD[row, num_prompt:length]
        mask_BT[row, :num_prompt] = mask_BT[row, -NUM_SUFFIX:] = True
    return EncodedText(features_BTLD, mask_BT)
