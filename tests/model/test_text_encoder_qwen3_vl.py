"""Qwen3-VL as K2 reads it, against diffusers' own pipeline on a real model of random weights."""

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from pleinair.model.text_encoder import EncodedText
from pleinair.model.text_encoders.causal import CausalTextEncoder
from pleinair.model.text_encoders.qwen3_vl import K2_LAYERS, qwen3_vl, released_layout
from tests.model.tiny_language_models import ending_tokenizer, qwen_like_tokenizer, tiny_qwen3_vl

PROMPTS = ["a red fox", "", "\n", "\n\na fox after newlines", "a fox\n", "text, quantity and color " * 20]


@pytest.fixture(scope="module")
def encoder() -> CausalTextEncoder:
    return qwen3_vl(tiny_qwen3_vl(), qwen_like_tokenizer(), batch_size=2)


def released(prompts: list[str], rows: int) -> tuple[Tensor, Tensor]:
    """Features and mask of `Krea2Pipeline.encode_prompt`."""
    parts: dict[str, Any] = {"scheduler": None, "vae": None, "transformer": None}
    pipeline = diffusers.Krea2Pipeline(**parts, text_encoder=tiny_qwen3_vl(), tokenizer=qwen_like_tokenizer())
    with torch.inference_mode():
        features, mask = pipeline.encode_prompt(prompts, device=torch.device("cpu"), max_sequence_length=rows)
    return features, mask


def test_rows_equal_those_of_the_released_pipeline_in_its_layout(encoder: CausalTextEncoder) -> None:
    expected_BTLD, expected_mask_BT = released(PROMPTS, rows=512)
    found = released_layout(encoder.encode(PROMPTS))
    assert torch.equal(found.mask_BT, expected_mask_BT)
    difference = (found.features_BTLD - expected_BTLD)[expected_mask_BT].abs().max()
    assert expected_BTLD[expected_mask_BT].std() > 0.5
    assert difference < 1e-5


def test_a_prompt_of_a_newline_melts_into_the_template_and_keeps_the_suffix_alone(encoder: CausalTextEncoder) -> None:
    encoded = encoder.encode(["", "\n", "\n\nfox"])
    assert encoded.mask_BT.sum(1).tolist() == [5, 5, 5 + len(encoder._ids("fox"))]
    suffixes = encoded.features_BTLD[0, :5], encoded.features_BTLD[1, :5]
    assert (suffixes[0] - suffixes[1]).abs().max() > 1e-3, "the dropped newline is still seen by what follows"


def test_a_prompt_over_the_limit_is_cut_as_the_release_cuts_it(encoder: CausalTextEncoder) -> None:
    prompt = "text quantity " * 400
    expected_BTLD, expected_mask_BT = released([prompt], rows=512)
    found = encoder.encode([prompt])
    assert found.mask_BT.shape == (1, 512)
    assert expected_mask_BT.all()
    assert (found.features_BTLD - expected_BTLD).abs().max() < 1e-5


def test_a_batch_of_many_lengths_equals_its_prompts_one_by_one(encoder: CausalTextEncoder) -> None:
    together = encoder.encode(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        alone = encoder.encode([prompt]).features_BTLD[0]
        assert torch.equal(together.mask_BT[row].nonzero()[:, 0], torch.arange(len(alone)))
        assert (together.features_BTLD[row, : len(alone)] - alone).abs().max() < 1e-5
        assert not together.features_BTLD[row, len(alone) :].any()


def test_facts_of_the_encoder_and_a_digest_that_knows_weights_tokenizer_and_layers(encoder: CausalTextEncoder) -> None:
    assert (encoder.layers, encoder.num_layers, encoder.width) == (K2_LAYERS, 12, 16)
    assert encoder.encode(["fox"]).features_BTLD.shape[2:] == (12, 16)
    model, tokenizer, template = encoder.model, encoder.tokenizer, encoder.template

    def other(layers: tuple[int, ...] = K2_LAYERS, tokenizer: Any = tokenizer) -> str:
        return CausalTextEncoder(model, tokenizer, template, name="other", layers=layers).digest

    assert other() == encoder.digest
    assert len({encoder.digest, other(layers=(1, 2)), other(tokenizer=ending_tokenizer())}) == 3
    weight = model.layers[3].mlp.up_proj.weight
    with torch.no_grad():
        weight[0, 0] += 1
        assert other() != encoder.digest
        weight[0, 0] -= 1


def test_layers_the_model_lacks_and_another_tokenizer_are_refused() -> None:
    model = tiny_qwen3_vl().language_model
    encoder = qwen3_vl(tiny_qwen3_vl(), qwen_like_tokenizer())
    with pytest.raises(ValueError, match=r"layers are \(2, 37\) and tiny has 0 to 36: choose some of these"):
        CausalTextEncoder(model, qwen_like_tokenizer(), encoder.template, name="tiny", layers=(2, 37))
    import transformers

    letters = transformers.ByT5Tokenizer()
    with pytest.raises(ValueError, match=r"template into \d+ and \d+ tokens instead of 34 and 5: give the tokenizer"):
        qwen3_vl(tiny_qwen3_vl(), letters)


def test_the_released_layout_puts_padding_before_the_suffix() -> None:
    features_BTLD = torch.arange(1.0, 8.0).view(1, 7, 1, 1)
    laid = released_layout(EncodedText(features_BTLD, torch.ones(1, 7, dtype=torch.bool)), num_rows=10)
    assert laid.features_BTLD.flatten().tolist() == [1, 2, 0, 0, 0, 3, 4, 5, 6, 7]
    assert laid.mask_BT.int().tolist() == [[1, 1, 0, 0, 0, 1, 1, 1, 1, 1]]
