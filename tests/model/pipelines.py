"""The parts of a Krea 2 pipeline beside the transformer, tiny and random, of the real classes."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLModel

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PREFIX = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
PROMPT = "a red fox asleep on a wooden chair by the window in soft evening light"
TEXT_LAYERS = (1, 2, 3, 4, 5)


def tiny_tokenizer() -> Any:
    """Words, marks and newlines as tokens: the pipeline's template has as many as with Qwen's own, 34 and 5."""
    words = [*SPECIAL, "<unk>", "\n", ",", ":", *PREFIX.replace(",", " ").replace(":", " ").split(), *PROMPT.split()]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*words, "system", "user", "assistant"]))}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = Split(Regex(r"\n|\w+|[^\w\s]"), behavior="removed", invert=True)
    backend.add_special_tokens(list(SPECIAL))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=SPECIAL[0], unk_token="<unk>")
    assert (len(tokenizer(PREFIX).input_ids), len(tokenizer(SUFFIX).input_ids)) == (34, 5)
    return tokenizer


def tiny_text_encoder(vocab_size: int) -> Any:
    """Six layers, width 32."""
    text = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 32,
        "deepstack_visual_indexes": [0],
    }
    torch.manual_seed(0)
    return Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision)).eval()


def tiny_autoencoder(latent_channels: int) -> Any:
    """Eight times smaller latents; as many channels as the transformer has."""
    torch.manual_seed(1)
    sizes = {"base_dim": 8, "z_dim": latent_channels, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    statistics = {"latents_mean": [0.1] * latent_channels, "latents_std": [1.5] * latent_channels}
    return AutoencoderKLQwenImage(**sizes, **statistics).eval()
