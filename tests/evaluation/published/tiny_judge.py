"""A vision-language model's folder of SmolVLM's architecture with random weights: it loads, looks and says no sense."""

from __future__ import annotations

from pathlib import Path

_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}\n{% endfor %}assistant:"
)


def write_tiny_judge(folder: Path, tokenizer_directory: Path) -> Path:
    """Weights, configuration and processor, as transformers saves them."""
    import torch
    from transformers import AutoTokenizer, Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    pixels = Idefics3ImageProcessorPil(
        do_image_splitting=False, size={"longest_edge": 64}, max_image_size={"longest_edge": 64}
    )
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
    processor = Idefics3Processor(pixels, tokenizer, image_seq_len=4, chat_template=_TEMPLATE)
    text = {
        "model_type": "llama", "vocab_size": len(processor.tokenizer), "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 64, "patch_size": 16,
    }  # fmt: skip
    config = Idefics3Config(
        vision_config=vision, text_config=text, image_token_id=processor.image_token_id, scale_factor=2, pad_token_id=0
    )
    torch.manual_seed(0)
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
