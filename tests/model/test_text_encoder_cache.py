from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from pleinair.model.text_encoder import EncodedText
from pleinair.model.text_encoders.cache import CachedTextEncoder
from pleinair.model.text_encoders.t5 import T5TextEncoder
from tests.model.tiny_language_models import ending_tokenizer, tiny_t5

PROMPTS = ["a red fox", "", "fox", "a red fox"]


class Counting(T5TextEncoder):
    """The real encoder, which also tells what it was asked for."""

    def __init__(self, layers: tuple[int, ...] = (1, 3)) -> None:
        super().__init__(tiny_t5("t5", ending_tokenizer()), ending_tokenizer(), name="t5", layers=layers)
        self.asked: list[str] = []

    def encode(self, prompts: Sequence[str]) -> EncodedText:
        self.asked += prompts
        return super().encode(prompts)


def assert_same(found: EncodedText, expected: EncodedText) -> None:
    assert torch.equal(found.features_BTLD, expected.features_BTLD)
    assert torch.equal(found.mask_BT, expected.mask_BT)


def test_a_distinct_prompt_is_encoded_once_over_processes_and_comes_back_bit_equal(tmp_path: Path) -> None:
    first, second = Counting(), Counting()
    expected = Counting().encode(PROMPTS)
    assert_same(CachedTextEncoder(first, tmp_path).encode(PROMPTS), expected)
    assert sorted(first.asked) == ["", "a red fox", "fox"]
    cached = CachedTextEncoder(second, tmp_path)
    assert_same(cached.encode([*PROMPTS, "new"]), Counting().encode([*PROMPTS, "new"]))
    assert second.asked == ["new"]
    assert (cached.name, cached.layers, cached.num_layers, cached.width) == ("t5", (1, 3), 2, 16)
    assert cached.digest == second.digest


def test_another_encoder_never_reads_what_this_one_wrote(tmp_path: Path) -> None:
    CachedTextEncoder(Counting(), tmp_path).encode(PROMPTS)
    other = Counting(layers=(0, 3))
    assert_same(CachedTextEncoder(other, tmp_path).encode(PROMPTS), Counting(layers=(0, 3)).encode(PROMPTS))
    assert len(other.asked) == 3


@pytest.mark.parametrize("keep", [0, 20, -3])
def test_a_file_cut_by_a_crash_is_made_again(tmp_path: Path, keep: int) -> None:
    cached = CachedTextEncoder(Counting(), tmp_path)
    cached.encode(PROMPTS)
    path = cached.path("fox")
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    again = Counting()
    assert_same(CachedTextEncoder(again, tmp_path).encode(PROMPTS), Counting().encode(PROMPTS))
    assert again.asked == ["fox"]
    assert path.read_bytes() == whole
    assert not list(tmp_path.rglob(".*")), "no half-written file stays behind"


def test_what_was_encoded_before_an_error_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pleinair.model.text_encoders.cache.ENCODE_PROMPTS", 1)
    encoder = Counting()
    encoder.max_tokens = 3
    with pytest.raises(ValueError, match="the most is 3"):
        CachedTextEncoder(encoder, tmp_path).encode(["f", "a very long prompt"])
    again = Counting()
    CachedTextEncoder(again, tmp_path).encode(["f", "a very long prompt"])
    assert again.asked == ["a very long prompt"]
