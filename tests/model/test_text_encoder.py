from pathlib import Path

import pytest
import torch

from pleinair.cli.places import text_encoder_dir
from pleinair.model.text_encoder import MAX_PROMPT_TOKENS, FeatureProjection
from pleinair.model.text_encoders.causal import CausalTextEncoder
from pleinair.model.text_encoders.smollm2 import fetch_smollm2, open_smollm2
from pleinair.records.errors import SourceError


@pytest.fixture(scope="module")
def encoder() -> CausalTextEncoder:
    return open_smollm2(fetch_smollm2(text_encoder_dir()))


def test_features_are_the_hidden_states_of_prompt_and_suffix_after_the_prefix(encoder: CausalTextEncoder) -> None:
    prompts = ["a red fox, noto style", "", "a house"]
    encoded = encoder.encode(prompts)
    for row, prompt in enumerate(prompts):
        ids, num_prefix = encoder.tokens(prompt) + encoder.suffix_ids, len(encoder.prefix_ids)
        assert int(encoded.mask_BT[row].sum()) == len(ids) - num_prefix
        with torch.inference_mode():
            states = encoder.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        expected = torch.stack([states[layer][0] for layer in encoder.layers], dim=1)[num_prefix:].float()
        found = encoded.features_BTLD[row][encoded.mask_BT[row]]
        assert (found - expected).norm() / expected.norm() < 0.06  # the model computes in bfloat16


def test_a_prompt_over_the_limit_is_refused_with_its_length(encoder: CausalTextEncoder) -> None:
    with pytest.raises(
        ValueError, match=r"the prompt has 4000 characters, \d+ tokens, and the most is 512: shorten it"
    ):
        encoder.encode(["fox " * 1000])
    assert len(encoder.tokens("fox " * 500)) - len(encoder.prefix_ids) <= MAX_PROMPT_TOKENS


def test_a_missing_text_encoder_names_the_command_that_brings_it(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="run 'pleinair fetch text-encoder'"):
        open_smollm2(tmp_path)


def test_a_projection_standardises_and_keeps_the_leading_directions() -> None:
    torch.manual_seed(0)
    hidden_NLK = torch.randn(500, 2, 3)
    rows_NLD = hidden_NLK @ torch.randn(3, 10) * torch.logspace(-3, 3, 10) + 7
    projection = FeatureProjection(2, 10, 3)
    assert projection.fit(rows_NLD) > 0.999
    projected_NLK = projection(rows_NLD[:, None])[:, 0]
    assert projected_NLK.shape == (500, 2, 3)
    assert projected_NLK.square().mean() == pytest.approx(1, rel=0.01)
    standard_ND = (rows_NLD[:, 0] - rows_NLD[:, 0].mean(0)) / rows_NLD[:, 0].std(0)
    back_KD = torch.linalg.lstsq(projected_NLK[:, 0], standard_ND).solution
    assert (projected_NLK[:, 0] @ back_KD - standard_ND).norm() < 0.01 * standard_ND.norm()


def test_too_few_rows_cannot_fit_a_projection() -> None:
    with pytest.raises(ValueError, match="2 token rows cannot fit 3 directions: give more captions"):
        FeatureProjection(1, 10, 3).fit(torch.randn(2, 1, 10))
