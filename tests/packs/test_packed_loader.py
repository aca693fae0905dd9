from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pleinair.packs.loader import LatentLoader
from pleinair.packs.pack import Pack
from pleinair.packs.packed_loader import PackedLatentBatch, PackedLoader, PackedPrompts
from pleinair.packs.plan import LoaderConfig, levelled
from pleinair.records.errors import ConfigError
from tests.packs.small_packs import features_of, make_pack, picture, write_shapes_pack


def config(**settings: object) -> LoaderConfig:
    return LoaderConfig(**{"batch_size": 16, "seed": 3, **settings})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """300 pictures in three shapes; a long caption has four times the tokens of a short one."""
    directory = tmp_path_factory.mktemp("packs") / "shapes"
    write_shapes_pack(directory)
    return Pack(directory)


def prompts_of(batch: PackedLatentBatch) -> list[Tensor]:
    """Each row's features, cut out of the parts by hand."""
    text, prompts = batch.text, list[Tensor]()
    size = len(text) // len(text.features_PRLD)
    for part, rows_RLD in enumerate(text.features_PRLD):
        first = 0
        for length in text.lengths[part * size : (part + 1) * size]:
            prompts.append(rows_RLD[first : first + length])
            first += length
        assert not rows_RLD[first:].any(), "what is left of the budget is zeros"
    return prompts


def test_a_packed_prompt_is_one_of_its_pictures_captions_or_the_empty_prompt(tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "pack")
    loader = PackedLoader(pack, 16, LoaderConfig(batch_size=8, drop_caption=0.3), num_parts=2)
    num_empty = 0
    for step in range(10):
        batch = loader.batch(step)
        assert batch.keys == loader.keys(step)
        for key, prompt_TLD in zip(batch.keys, prompts_of(batch), strict=True):
            known = [features_of(pack, caption) for caption in (*picture(int(key[1:])).captions, "")]
            matches = [place for place, known_TLD in enumerate(known) if torch.equal(known_TLD, prompt_TLD)]
            assert len(matches) == 1
            num_empty += matches == [3]
    assert 8 < num_empty < 40


def test_an_epoch_shows_the_same_pictures_as_with_padded_text(pack: Pack) -> None:
    padded, packed = LatentLoader(pack, 32, config()), PackedLoader(pack, 32, config())
    epochs = [[key for step in range(len(loader)) for key in loader.keys(step)] for loader in (padded, packed)]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("num_parts", [1, 2])
def test_all_ranks_have_one_shape_and_together_the_batch_of_one(pack: Pack, num_parts: int) -> None:
    alone = PackedLoader(pack, 32, config())
    ranks = [PackedLoader(pack, 32, config(), rank=rank, num_ranks=4, num_parts=num_parts) for rank in range(4)]
    shapes = set()
    for step in range(2 * len(alone)):
        whole, parts = alone.batch(step), [loader.batch(step) for loader in ranks]
        assert [key for part in parts for key in part.keys] == whole.keys
        assert torch.equal(torch.cat([part.latents_BCHW for part in parts]), whole.latents_BCHW)
        prompts = [prompt for part in parts for prompt in prompts_of(part)]
        assert all(torch.equal(*both) for both in zip(prompts, prompts_of(whole), strict=True))
        shapes |= {tuple(part.text.features_PRLD.shape) for part in parts}
    assert shapes == {(num_parts, ranks[0].budget, 2, 4)}


def test_batches_of_one_shape_hold_nearly_equally_many_tokens(pack: Pack) -> None:
    loader = PackedLoader(pack, 32, config())
    totals: dict[tuple[int, ...], list[int]] = {}
    for step in range(len(loader)):
        batch = loader.batch(step)
        totals.setdefault(tuple(batch.latents_BCHW.shape), []).append(sum(batch.text.lengths))
    assert len(totals) == 3
    assert all(max(of_shape) - min(of_shape) < 24 for of_shape in totals.values()), "the longest caption is 24"


def test_the_budget_is_what_the_fullest_micro_batch_needs_and_a_little(pack: Pack) -> None:
    loader = PackedLoader(pack, 32, config(seed=4), num_parts=2)
    lengths = [loader.batch(step).text.lengths for step in range(len(loader))]
    assert max(max(sum(batch[:8]), sum(batch[8:])) for batch in lengths) == 126
    assert loader.budget == 192, "2% over 126 is more than 128"


def test_every_part_of_a_levelled_batch_holds_captions_of_all_lengths() -> None:
    lengths = np.sort(np.random.default_rng(0).integers(3, 60, 16 * 64))
    in_batches = lengths[levelled(np.arange(len(lengths)), 64)].reshape(16, 64)
    assert sorted(in_batches.ravel().tolist()) == lengths.tolist()
    totals = in_batches.sum(axis=1)
    assert totals.max() - totals.min() < 60 // 4, "dealt one way only, the first would have 53 less than the last"
    for num_parts in (2, 4, 8, 16):
        parts = in_batches.reshape(16, num_parts, -1).sum(axis=2)
        assert (parts.max(axis=1) - parts.min(axis=1)).max() < 60 + 60 // 16 * 64 // num_parts


def test_where_a_step_needs_more_than_the_budget_all_ranks_have_more(pack: Pack) -> None:
    ranks = [PackedLoader(pack, 32, config(batch_size=32), rank=rank, num_ranks=2) for rank in range(2)]
    for loader in ranks:
        loader.budget = 64
    steps = [[loader.batch(step).text for loader in ranks] for step in range(2 * len(ranks[0]))]
    needs = [[-(-sum(text.lengths) // 64) * 64 for text in texts] for texts in steps]
    assert [[text.features_PRLD.shape[1] for text in texts] for texts in steps] == [[max(need)] * 2 for need in needs]
    assert any(min(need) < max(need) for need in needs), "else every rank could go by its own rows"


def test_packed_prompts_are_sliced_along_their_parts_alone() -> None:
    prompts = PackedPrompts(torch.arange(2.0 * 64).reshape(2, 64, 1, 1), (3, 4, 5, 6))
    second = prompts[2:4]
    assert (len(prompts), len(second), second.lengths) == (4, 2, (5, 6))
    assert torch.equal(second.features_RLD, prompts.features_PRLD[1])
    for first, last in ((1, 4), (0, 3)):
        with pytest.raises(ValueError, match=f"prompts {first} to {last} cut a packed part of 2"):
            prompts[first:last]
    with pytest.raises(ValueError, match="packed in 2 parts"):
        prompts.features_RLD  # noqa: B018


def test_batches_without_equal_parts_are_refused(pack: Pack) -> None:
    with pytest.raises(ConfigError, match="a batch of 16 does not divide into 3 ranks of 2 micro-batches"):
        PackedLoader(pack, 32, config(), rank=0, num_ranks=3, num_parts=2)
    with pytest.raises(ConfigError, match="a batch of 16 does not divide into 2 ranks of 3 micro-batches"):
        PackedLoader(pack, 32, config(), rank=0, num_ranks=2, num_parts=3)
    with pytest.raises(ConfigError, match="remainder is 'short': packed text takes whole batches"):
        PackedLoader(pack, 32, config(remainder="short"))
