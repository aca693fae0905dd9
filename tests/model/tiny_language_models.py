"""Real language models of random weights, some thousand parameters each, and a tokenizer made on the spot."""

from functools import cache
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pleinair.model.text_encoders.qwen3_vl import K2_TEMPLATE

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# How the tokenizer of Qwen cuts text before merging: words with their space, runs of newlines.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@cache
def qwen_like_tokenizer() -> Any:
    """Byte-level BPE that knows the template's words and runs of newlines whole, so its prefix has 34 tokens too."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(_regex(QWEN_SPLIT), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    vocabulary = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(_template_words())]
    for word in dict.fromkeys([*words, "\u010a\u010a", "\u010a\u010a\u010a"]):
        for end in range(2, len(word) + 1):  # merged letter by letter from the left
            if word[:end] not in vocabulary:
                merges.append((word[: end - 1], word[end - 1]))
                vocabulary[word[:end]] = len(vocabulary)
    tokenizer.model = models.BPE(vocabulary, merges)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=SPECIALS[0], eos_token=SPECIALS[2])
    fast.add_special_tokens({"additional_special_tokens": SPECIALS})
    fast.padding_side = "right"
    return fast


def _template_words() -> str:
    text = K2_TEMPLATE.prefix + " " + K2_TEMPLATE.suffix
    for special in SPECIALS:
        text = text.replace(special, "\n")
    return text


def _regex(pattern: str) -> Any:
    from tokenizers import Regex

    return Regex(pattern)


@cache
def tiny_qwen3_vl() -> Any:
    """A `Qwen3VLModel` of 36 layers of width 16."""
    text = {
        "vocab_size": len(qwen_like_tokenizer()),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 36,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        },
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 16,
        "deepstack_visual_indexes": [0],
    }
    torch.manual_seed(0)
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision)
    return randomised(transformers.Qwen3VLModel(config))


def tiny_t5(kind: str, tokenizer: Any) -> Any:
    """A `T5EncoderModel`, `UMT5EncoderModel` or `T5GemmaEncoderModel` of three layers of width 16."""
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 3, "num_heads": 2}
    if kind == "t5":
        return randomised(transformers.T5EncoderModel(transformers.T5Config(**sizes)))
    if kind == "umt5":
        return randomised(transformers.UMT5EncoderModel(transformers.UMT5Config(**sizes)))
    gemma = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 64, "query_pre_attn_scalar": 8,
    }  # fmt: skip
    module = transformers.T5GemmaModuleConfig(**gemma)
    config = transformers.T5GemmaConfig(encoder=module, decoder=gemma, is_encoder_decoder=False)
    return randomised(transformers.T5GemmaEncoderModel(config))


@cache
def ending_tokenizer() -> Any:
    """The same tokenizer with an end token after every text, as T5's add one."""
    from tokenizers.processors import TemplateProcessing

    plain = qwen_like_tokenizer()
    tokenizer = Tokenizer.from_str(plain.backend_tokenizer.to_str())
    tokenizer.post_processor = TemplateProcessing(
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", plain.convert_tokens_to_ids("<|im_end|>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=SPECIALS[0], eos_token=SPECIALS[2])


def randomised(model: Any) -> Any:
    """Every parameter moved, so that norms and biases that start at zero or one cannot hide an error."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()
