from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from pleinair.packs.loader import LatentLoader, Prefetched
from pleinair.packs.pack import Pack
from pleinair.packs.plan import LoaderConfig
from pleinair.records.errors import PackError
from tests.packs.small_packs import features_of, make_pack, number_of, picture, write_shapes_pack


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    return make_pack(tmp_path / "pack")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """300 pictures in three shapes, two of them packed several times."""
    directory = tmp_path_factory.mktemp("packs") / "shapes"
    write_shapes_pack(directory, repeats=(3, 2))
    return Pack(directory)


def config(**settings: object) -> LoaderConfig:
    return LoaderConfig(batch_size=8, seed=3, **settings)  # type: ignore[arg-type]


def test_every_row_carries_its_key_latents_and_captions(pack: Pack) -> None:
    loader = LatentLoader(pack, 16, LoaderConfig(batch_size=8, drop_caption=0.0))
    for step in range(len(loader)):
        batch = loader.batch(step)
        for key, latents_CHW in zip(batch.keys, batch.latents_BCHW, strict=True):
            assert latents_CHW.shape == (3, 4, 4)
            assert latents_CHW.numpy() == pytest.approx(int(key[1:]) / 127.5 - 1, abs=1e-3)


def test_an_epoch_shows_every_picture_once_and_each_epoch_in_another_order(pack: Pack) -> None:
    loader = LatentLoader(pack, 16, LoaderConfig(batch_size=8, seed=3))
    epochs = [[key for step in range(5 * epoch, 5 * epoch + 5) for key in loader.keys(step)] for epoch in range(2)]
    assert [sorted(keys) for keys in epochs] == [sorted(f"p{n}" for n in range(40))] * 2
    assert epochs[0] != epochs[1]


def test_any_batch_can_be_had_again_by_a_new_loader(pack: Pack) -> None:
    first, again = (LatentLoader(pack, 8, LoaderConfig(batch_size=8, seed=3)) for _ in range(2))
    for _ in range(12):
        first.batch(_)
    one, other = first.batch(17), again.batch(17)
    assert one.keys == other.keys == again.keys(17)
    assert torch.equal(one.latents_BCHW, other.latents_BCHW)
    assert torch.equal(one.text_features_BTLD, other.text_features_BTLD)


def test_a_batch_has_the_features_of_one_of_the_captions_or_of_the_empty_prompt(pack: Pack) -> None:
    loader = LatentLoader(pack, 16, LoaderConfig(batch_size=8, drop_caption=0.3))
    num_empty = 0
    for step in range(20):
        batch = loader.batch(step)
        for row, key in enumerate(batch.keys):
            features_TLD = batch.text_features_BTLD[row][batch.text_mask_BT[row]]
            known = [features_of(pack, caption) for caption in (*picture(int(key[1:])).captions, "")]
            matches = [place for place, known_TLD in enumerate(known) if torch.equal(known_TLD, features_TLD)]
            assert len(matches) == 1
            num_empty += matches == [3]
    assert 20 < num_empty < 80


def test_batches_hold_captions_of_like_length(pack: Pack) -> None:
    loader = LatentLoader(pack, 16, LoaderConfig(batch_size=4, drop_caption=0.0))
    batches = [loader.batch(step) for step in range(10)]
    assert all((batch.text_features_BTLD[~batch.text_mask_BT] == 0).all() for batch in batches)
    valid = [batch.text_mask_BT for batch in batches]
    kept = sum(int(mask_BT.sum()) for mask_BT in valid) / sum(mask_BT.numel() for mask_BT in valid)
    assert kept > 0.85


@pytest.mark.parametrize(
    "name", ["0016-03x04x04-00000.parquet", "empty_prompt.parquet", "feature_projection.safetensors"]
)
def test_a_damaged_pack_is_refused_and_the_file_is_named(pack: Pack, name: str) -> None:
    path = pack.directory / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(PackError, match=f"damaged: {name} .*pack again"):
        Pack(pack.directory)


def test_what_does_not_fit_the_pack_is_refused_before_any_work(pack: Pack) -> None:
    with pytest.raises(PackError, match=r"no pictures at 32 px, only \(8, 16\)"):
        LatentLoader(pack, 32, LoaderConfig())
    with pytest.raises(PackError, match="40 pictures at 16 px do not fill a batch of 64"):
        LatentLoader(pack, 16, LoaderConfig(batch_size=64))
    with pytest.raises(PackError, match="caption_weights has 2 entries"):
        LatentLoader(pack, 16, LoaderConfig(batch_size=8, caption_weights=(1.0, 1.0)))


def test_every_row_is_seen_once_an_epoch_in_batches_of_one_shape(shapes: Pack) -> None:
    loader = LatentLoader(shapes, 32, config(remainder="short"))
    expected = sorted(["p0", "p0", *[f"p{number}" for number in range(300)], "p1"])
    for epoch in range(3):
        keys, seen = [], set()
        for step in range(epoch * len(loader), (epoch + 1) * len(loader)):
            batch = loader.batch(step)
            keys += batch.keys
            seen.add(tuple(batch.latents_BCHW.shape[1:]))
        assert sorted(keys) == expected
        assert seen == {(3, 8, 8), (3, 6, 10), (3, 10, 6)}


def test_a_batch_holds_the_pictures_that_its_keys_name(shapes: Pack) -> None:
    loader = LatentLoader(shapes, 32, config(remainder="short"))
    for step in range(len(loader)):
        batch = loader.batch(step)
        assert [f"p{number_of(latents_CHW)}" for latents_CHW in batch.latents_BCHW] == batch.keys == loader.keys(step)


def test_rows_that_fill_no_batch_are_others_in_every_epoch_and_are_counted(shapes: Pack) -> None:
    loader = LatentLoader(shapes, 32, config())
    epochs = [
        {key for step in range(epoch * len(loader), (epoch + 1) * len(loader)) for key in loader.keys(step)}
        for epoch in range(4)
    ]
    assert 8 * len(loader) + loader.plan.num_waiting == 303
    assert 0 < loader.plan.num_waiting < 8 * 4
    assert all(one != other for one, other in pairwise(epochs))
    assert len(set.union(*epochs)) == 300


@pytest.mark.parametrize("steps", [[0, 7, 61], [1, 2, 3, 200]])
def test_other_numbers_of_ranks_after_resuming_give_the_same_global_batches(shapes: Pack, steps: list[int]) -> None:
    alone = LatentLoader(shapes, 32, config())
    for step, num_ranks in zip([*steps, *steps], [1, 3, 2, 5] * 2, strict=False):
        parts = [
            LatentLoader(shapes, 32, config(), rank=rank, num_ranks=num_ranks).batch(step) for rank in range(num_ranks)
        ]
        whole = alone.batch(step)
        assert [key for part in parts for key in part.keys] == whole.keys
        assert torch.equal(torch.cat([part.latents_BCHW for part in parts]), whole.latents_BCHW)
        assert torch.equal(torch.cat([part.text_features_BTLD for part in parts]), whole.text_features_BTLD)
        assert torch.equal(torch.cat([part.text_mask_BT for part in parts]), whole.text_mask_BT)


def test_a_run_killed_at_random_and_resumed_with_other_ranks_reads_what_an_undisturbed_one_does(shapes: Pack) -> None:
    random = np.random.default_rng(0)
    alone = LatentLoader(shapes, 32, config())
    undisturbed = [alone.keys(step) for step in range(2 * len(alone))]
    read: dict[int, list[str]] = {}
    step, epoch_steps = 0, 2 * len(alone)
    for num_ranks in [1, 3, 2, *random.integers(1, 9, 20).tolist()]:
        loaders = [LatentLoader(shapes, 32, config(), rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
        for _ in range(int(random.integers(1, 12))):
            if step < epoch_steps:
                read[step] = [key for loader in loaders for key in loader.batch(step).keys]
                step += 1
        step -= int(random.integers(0, 3)) if step > 2 and step < epoch_steps else 0  # back to the last checkpoint
    assert [read[step] for step in sorted(read)] == undisturbed[: len(read)]
    assert len(read) > len(alone)


def test_the_order_is_the_same_in_every_process_and_with_every_library(shapes: Pack) -> None:
    loader = LatentLoader(shapes, 32, config())
    assert loader.keys(17) == ["p59", "p42", "p49", "p82", "p97", "p4", "p27", "p7"]
    assert loader.keys(400) == ["p223", "p48", "p248", "p268", "p88", "p93", "p108", "p23"]


def test_a_rank_reads_its_own_runs_of_a_window(tmp_path: Path) -> None:
    write_shapes_pack(tmp_path / "pack", count=1500, shard_bytes=2**20)
    pack = Pack(tmp_path / "pack")
    settings = LoaderConfig(batch_size=64)
    ranks = [LatentLoader(pack, 32, settings, rank=rank, num_ranks=4) for rank in range(4)]
    read = [set(), set(), set(), set()]  # type: list[set[tuple[int, int]]]
    for step in range(len(ranks[0])):
        for groups, loader in zip(read, ranks, strict=True):
            mine = loader._mine(loader.plan.chosen(step))
            groups |= {(mine.rows.shape[1], group) for group in mine.groups.tolist()}
    total = len(set.union(*read))
    assert sum(len(groups) for groups in read) < 1.7 * total, "not 4 times, as when every rank reads all row groups"


def test_the_draw_of_a_caption_follows_the_weights_in_the_pack_and_the_keys_hash(shapes: Pack) -> None:
    loader = LatentLoader(shapes, 32, config(remainder="short", drop_caption=0.25))
    drawn = [loader.plan.chosen(step).captions for step in range(8 * len(loader))]
    shares = np.bincount(np.concatenate(drawn) + 1) / sum(map(len, drawn))
    assert shares == pytest.approx([0.25, 0.375, 0.225, 0.15], abs=0.03)
    weighted = LatentLoader(shapes, 32, config(caption_weights=(0.0, 0.0, 1.0), drop_caption=0.0))
    assert set(np.concatenate([weighted.plan.chosen(step).captions for step in range(20)]).tolist()) == {2}


def test_shapes_alternate_and_runs_of_the_file_are_broken_up(shapes: Pack) -> None:
    loader = LatentLoader(shapes, 32, config())
    order = [loader.plan.chosen(step).rows.shape for step in range(len(loader))]
    changes = sum(one != other for one, other in pairwise(order))
    assert changes > len(order) / 3


def test_what_is_read_ahead_is_what_is_asked_for(shapes: Pack) -> None:
    loader = LatentLoader(shapes, 32, config())
    ahead = Prefetched(loader, depth=3)
    for step in [0, 1, 2, 9, 10, 3, 3, 4]:
        assert ahead.batch(step).keys == loader.keys(step) == ahead.keys(step)
    ahead.close()


def test_bfloat16_and_stored_types_come_out_as_they_went_in(tmp_path: Path) -> None:
    write_shapes_pack(tmp_path / "pack", count=20, dtype="bfloat16")
    loader = LatentLoader(Pack(tmp_path / "pack"), 32, LoaderConfig(batch_size=4, dtype="stored"))
    batch = loader.batch(0)
    assert batch.latents_BCHW.dtype == batch.text_features_BTLD.dtype == torch.bfloat16
    expected = [(int(key[1:]) / 127.5 - 1) for key in batch.keys]
    assert batch.latents_BCHW[:, 0, 0, 0].tolist() == pytest.approx(expected, abs=4e-3)


def test_a_rank_without_a_part_is_refused(shapes: Pack) -> None:
    with pytest.raises(PackError, match="rank 3 of 3 has no part of a batch of 8"):
        LatentLoader(shapes, 32, config(), rank=3, num_ranks=3)
    with pytest.raises(PackError, match="rank 0 of 9 has no part"):
        LatentLoader(shapes, 32, config(), rank=0, num_ranks=9)
