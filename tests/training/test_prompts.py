"""Batches of prompts: a function of the step, whoever holds the rows."""

from pathlib import Path

import pytest
import torch

from pleinair.model.text_encoder import FeatureProjection
from pleinair.packs.loader import LatentLoader
from pleinair.packs.plan import LoaderConfig
from pleinair.records.errors import ConfigError
from pleinair.training.prompts import (
    CaptionLoader,
    InTurn,
    PromptLoader,
    PromptSet,
    empty_prompt_of,
    encode_prompts,
)
from tests.packs.small_packs import Letters, features_of, make_pack

WORDS = ("fox", "a", "apple", "", "house", "bee", "cat")


def known() -> PromptSet:
    return encode_prompts(WORDS, Letters(), FeatureProjection(2, 8, 4), domains=[0, 1, 0, 2, 0, 1, 0])


def test_every_epoch_has_every_prompt_once_in_an_order_of_its_own() -> None:
    loader = PromptLoader(known(), (4, 2, 2), 3, seed=5)
    seen = [key for step in range(7) for key in loader.keys(step)]
    epochs = [tuple(seen[start : start + 7]) for start in range(0, 21, 7)]
    assert all(set(epoch) == set(WORDS) for epoch in epochs)
    assert len(set(epochs)) == 3
    assert [PromptLoader(known(), (4, 2, 2), 3, seed=5).keys(step) for step in range(7)] == [
        seen[start : start + 3] for start in range(0, 21, 3)
    ]


def test_a_batch_has_the_prompts_features_domains_and_no_padding_beyond_its_longest() -> None:
    prompts = known()
    batch = PromptLoader(prompts, (4, 2, 2), 4).batch(1)
    longest = max(len(word) for word in batch.keys) + 1
    assert batch.text_features_BTLD.shape == (4, longest, 2, 4)
    assert batch.latent_shape == (4, 2, 2)
    for row, word in enumerate(batch.keys):
        place = WORDS.index(word)
        assert batch.domains_B[row] == prompts.domains_N[place]
        assert batch.text_mask_BT[row].sum() == len(word) + 1
        torch.testing.assert_close(batch.text_features_BTLD[row], prompts.features_NTLD[place, :longest])


def test_ranks_hold_the_parts_of_one_batch_in_one_shape() -> None:
    whole = PromptLoader(known(), (4, 2, 2), 5).batch(2)
    parts = [PromptLoader(known(), (4, 2, 2), 5, rank=rank, num_ranks=2).batch(2) for rank in range(2)]
    assert [len(part.keys) for part in parts] == [2, 3]
    assert [key for part in parts for key in part.keys] == whole.keys
    assert torch.equal(torch.cat([part.text_features_BTLD for part in parts]), whole.text_features_BTLD)


def test_prompts_without_features_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"number \[0, 0, 0, 0\]: give one of each"):
        PromptSet([], torch.zeros(0, 1, 2, 4), torch.zeros(0, 1), torch.zeros(0))


def test_captions_of_packs_are_prompts_of_their_domains_in_turn(tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "pack")
    loaders = [LatentLoader(pack, 8, LoaderConfig(batch_size=4, seed=seed)) for seed in (0, 1)]
    both = InTurn([CaptionLoader(loader, domain) for domain, loader in enumerate(loaders)])
    for step in range(4):
        batch, own = both.batch(step), loaders[step % 2].batch(step // 2)
        assert batch.keys == own.keys == both.keys(step)
        assert torch.equal(batch.text_features_BTLD, own.text_features_BTLD)
        assert batch.domains_B.tolist() == [step % 2] * 4
        assert batch.latent_shape == tuple(own.latents_BCHW.shape[1:])
    assert torch.equal(empty_prompt_of(pack)[0], features_of(pack, ""))
