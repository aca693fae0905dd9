"""The T5 family on real models of random weights, against their own padded forward pass."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pleinair.model.text_encoder import TextEncoder
from pleinair.model.text_encoders.folder import load_text_encoder
from pleinair.model.text_encoders.qwen3_vl import K2_LAYERS
from pleinair.model.text_encoders.t5 import T5TextEncoder
from pleinair.records.errors import SourceError
from tests.model.tiny_language_models import ending_tokenizer, qwen_like_tokenizer, tiny_qwen3_vl, tiny_t5

PROMPTS = ["a red fox", "", "describe the image", "fox"]


def encoder(kind: str = "t5", **more: Any) -> T5TextEncoder:
    return T5TextEncoder(tiny_t5(kind, ending_tokenizer()), ending_tokenizer(), name=kind, **more)


@pytest.mark.parametrize("kind", ["t5", "umt5", "t5gemma"])
def test_features_are_the_hidden_states_of_the_padded_batch(kind: str) -> None:
    chosen = encoder(kind, layers=(0, 2, 3))
    encoded = chosen.encode(PROMPTS)
    batch = ending_tokenizer()(PROMPTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        output = chosen.model(batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True)
    expected_BTLD = torch.stack([output.hidden_states[layer] for layer in (0, 2, 3)], dim=2)
    assert torch.equal(encoded.mask_BT, batch["attention_mask"].bool())
    assert (encoded.features_BTLD - expected_BTLD)[encoded.mask_BT].abs().max() < 1e-5
    last_BTD = encoder(kind).encode(PROMPTS).features_BTLD[:, :, 0]
    assert (last_BTD - output.last_hidden_state)[encoded.mask_BT].abs().max() < 1e-5
    assert encoded.mask_BT.sum(1)[1] == 1, "the empty prompt is its end token"


def test_long_prompts_prompts_of_no_tokens_and_unknown_layers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the prompt has 9 characters, \d+ tokens, and the most is 3: shorten it"):
        encoder(max_tokens=3).encode(["a red fox"])
    with pytest.raises(ValueError, match=r"layers are \(4,\) and t5 has 0 to 3: choose some of these"):
        encoder(layers=(4,))
    without_end = T5TextEncoder(tiny_t5("t5", qwen_like_tokenizer()), qwen_like_tokenizer(), name="t5")
    with pytest.raises(ValueError, match="the prompt '' has no tokens: give t5 a tokenizer that adds an end token"):
        without_end.encode([""])


@pytest.mark.parametrize("kind", ["t5", "umt5", "qwen3_vl"])
def test_a_saved_folder_opens_as_the_encoder_it_holds(tmp_path: Path, kind: str) -> None:
    qwen = kind == "qwen3_vl"
    model, tokenizer = (
        (tiny_qwen3_vl(), qwen_like_tokenizer()) if qwen else (tiny_t5(kind, ending_tokenizer()), ending_tokenizer())
    )
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    opened: TextEncoder = load_text_encoder(tmp_path, dtype=torch.float32)
    assert opened.layers == (K2_LAYERS if qwen else (3,))
    assert opened.name == tmp_path.name
    text_model = model.language_model if qwen else model
    ids = torch.tensor([opened.tokens("a fox")])  # type: ignore[attr-defined]
    with torch.inference_mode():
        states = text_model(input_ids=ids, output_hidden_states=True).hidden_states
    num_prefix = 34 if qwen else 0
    found_TD = opened.encode(["a fox"]).features_BTLD[0, : ids.shape[1] - num_prefix, 0]
    assert (found_TD - states[opened.layers[0]][0, num_prefix:]).abs().max() < 1e-5


def test_a_folder_of_something_else_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"has no readable config.json .*: give a model folder"):
        load_text_encoder(tmp_path)
    ending_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(SourceError, match="holds a model of type 'gpt2': give a folder of one of qwen3_vl, t5, umt5"):
        load_text_encoder(tmp_path)
