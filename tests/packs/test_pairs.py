"""Preference pairs come back as they were written, in batches that are a function of (pairs, seed, step)."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pleinair.packs.loader import LatentBatch
from pleinair.packs.pair_writer import PairsWriter
from pleinair.packs.pairs import Anchored, PairBatch, PairLoader, PairLoaderConfig, Pairs
from pleinair.records.errors import ConfigError, PackError
from pleinair.records.pairs import GapCheck, PairSide
from pleinair.training.rows import part
from tests.packs.small_pairs import MANIFEST, POLICY, SHAPES, pair, tensors, write_pairs


def loader(pairs: Pairs, rank: int = 0, num_ranks: int = 1, **changes: object) -> PairLoader:
    config = PairLoaderConfig(**{"batch_size": 3, "seed": 1, **changes})  # type: ignore[arg-type]
    return PairLoader(pairs, config, POLICY, rank=rank, num_ranks=num_ranks)


def number_of(key: str) -> int:
    return int(key[1:])


def test_pairs_come_back_with_where_each_side_came_from(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs")
    assert list(pairs) == [pair(number) for number in range(20)]
    assert pairs.shapes == sorted(SHAPES)
    assert (tmp_path / "pairs" / "feature_projection.safetensors").read_bytes() == b"values"
    assert not (tmp_path / ".pairs.partial").exists()


def test_a_batch_holds_the_tensors_of_its_keys_and_masks_what_is_padded(tmp_path: Path) -> None:
    for step in range(6):
        batch = loader(write_pairs(tmp_path / f"{step}")).batch(step)
        numbers = [number_of(key) for key in batch.keys]
        assert len({tuple(row.shape) for row in batch.winner_BCHW}) == 1
        assert batch.winner_BCHW[:, 0, 0, 0].tolist() == numbers
        assert torch.equal(batch.loser_BCHW, -batch.winner_BCHW)
        assert batch.text_mask_BT.sum(1).tolist() == [1 + number % 5 for number in numbers]
        assert batch.text_features_BTLD.shape[1] == max(1 + number % 5 for number in numbers)
        assert torch.equal(batch.text_features_BTLD[..., 0, 0], torch.tensor(numbers)[:, None] / 8 * batch.text_mask_BT)


def test_an_epoch_shows_each_pair_once_and_the_next_one_in_another_order(tmp_path: Path) -> None:
    read = loader(write_pairs(tmp_path / "pairs", count=24), batch_size=3)
    epochs = [[key for step in range(len(read)) for key in read.keys(epoch * len(read) + step)] for epoch in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [sorted(f"k{number}" for number in range(24))] * 2
    assert epochs[0] != epochs[1]
    alike = loader(write_pairs(tmp_path / "one shape", count=24, piece=24), batch_size=3)
    first, second = ({frozenset(alike.keys(step)) for step in range(begin, begin + 8)} for begin in (0, 8))
    assert len(first & second) < 4, "pairs meet others in the next epoch"


def test_a_step_gives_the_same_batch_whatever_was_asked_before(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs")
    first, second = loader(pairs), loader(pairs)
    for step in (7, 0, 3):
        second.batch(step)
    assert [first.keys(step) for step in range(9)] == [second.keys(step) for step in range(9)]
    assert loader(pairs, seed=2).keys(0) != first.keys(0)


def test_parts_of_ranks_make_the_whole_batch_with_one_padding(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs")
    for step in range(4):
        whole = loader(pairs).batch(step)
        parts = [loader(pairs, rank, 3).batch(step) for rank in range(3)]
        assert [key for one in parts for key in one.keys] == whole.keys
        for name in ("winner_BCHW", "text_features_BTLD", "text_mask_BT"):
            assert torch.equal(torch.cat([getattr(one, name) for one in parts]), getattr(whole, name))


def test_exchanged_labels_are_those_of_about_half_the_pairs_the_same_in_every_epoch(tmp_path: Path) -> None:
    read = loader(write_pairs(tmp_path / "pairs", count=240, piece=30), shuffle_labels=True)
    signs: dict[str, set[bool]] = {}
    for step in range(2 * len(read)):
        batch = read.batch(step)
        for key, winner in zip(batch.keys, batch.winner_BCHW[:, 0, 0, 0], strict=True):
            signs.setdefault(key, set()).add(bool(winner < 0))
    signs.pop("k0", None)  # whose sides are equal
    assert all(len(of_key) == 1 for of_key in signs.values())
    exchanged = sum(True in of_key for of_key in signs.values())
    assert 0.4 < exchanged / len(signs) < 0.6


@pytest.mark.parametrize(("own", "refused"), [(10, True), (11, False)])
def test_most_pairs_must_hold_a_picture_of_the_policys_own(tmp_path: Path, own: int, refused: bool) -> None:
    writer = PairsWriter(tmp_path / "pairs", MANIFEST)
    other = PairSide(checkpoint="other", seed=0)
    rows = [pair(n) if n < own else pair(n, winner=other) for n in range(20)]
    writer.add([(row, tensors(n)) for n, row in enumerate(rows)])
    writer.finish()
    pairs = Pairs(tmp_path / "pairs")
    if not refused:
        assert len(loader(pairs)) == 6
        return
    said = r"50% of the pairs in .* hold a picture that the policy policy drew itself, and more than 50% must"
    with pytest.raises(PackError, match=said):
        loader(pairs)
    assert len(loader(pairs, least_on_policy=0.0)) == 6


def test_a_loser_of_the_policys_own_counts_too() -> None:
    sides = {"winner": PairSide(checkpoint="people", seed=0), "loser": PairSide(checkpoint=POLICY, seed=0)}
    assert pair(0, **sides).on_policy(POLICY)
    assert not pair(0, **sides).on_policy("")


def test_a_writer_goes_on_after_the_pieces_that_a_killed_one_left(tmp_path: Path) -> None:
    calm = write_pairs(tmp_path / "calm")
    killed = PairsWriter(tmp_path / "pairs", MANIFEST)
    for first, shape in ((0, SHAPES[0]), (6, SHAPES[1])):
        killed.add([(pair(n), tensors(n, shape)) for n in range(first, first + 6)])
    journal = tmp_path / ".pairs.partial" / "pieces.jsonl"
    journal.write_text(journal.read_text() + '{"name": "00002-')
    again = PairsWriter(tmp_path / "pairs", MANIFEST)
    assert again.num_pairs == 12
    again.add([(pair(n), tensors(n, SHAPES[0])) for n in range(12, 18)])
    again.add([(pair(n), tensors(n, SHAPES[1])) for n in range(18, 20)])
    again.finish()
    assert Pairs(tmp_path / "pairs").manifest.pieces == calm.manifest.pieces


def test_a_damaged_piece_is_written_again(tmp_path: Path) -> None:
    killed = PairsWriter(tmp_path / "pairs", MANIFEST)
    for first in (0, 6):
        killed.add([(pair(n), tensors(n)) for n in range(first, first + 6)])
    (piece,) = (tmp_path / ".pairs.partial").glob("00001-*")
    piece.write_bytes(piece.read_bytes()[:-1])
    assert PairsWriter(tmp_path / "pairs", MANIFEST).num_pairs == 6


def test_pieces_of_another_plan_are_not_taken_up_and_finished_ones_are_not_overwritten(tmp_path: Path) -> None:
    PairsWriter(tmp_path / "pairs", MANIFEST).add([(pair(0), tensors(0))])
    other = replace(MANIFEST, plan="q")
    assert PairsWriter(tmp_path / "pairs", other).num_pairs == 0
    write_pairs(tmp_path / "pairs", manifest=other)
    assert PairsWriter(tmp_path / "pairs", other).finished
    with pytest.raises(PackError, match="holds other pairs .*: give another folder, or remove it"):
        PairsWriter(tmp_path / "pairs", MANIFEST)


def test_what_a_reward_said_is_kept_for_whoever_goes_on(tmp_path: Path) -> None:
    gap = GapCheck(judged_by="judge", num_judged=4, num_right=3, mean_gap=0.5)
    PairsWriter(tmp_path / "pairs", MANIFEST).keep_gap(gap)
    again = PairsWriter(tmp_path / "pairs", MANIFEST)
    assert again.gap == gap
    again.add([(pair(0), tensors(0))])
    again.finish()
    assert Pairs(tmp_path / "pairs").manifest.gap == gap
    assert gap.share == 0.75
    assert {path.name for path in (tmp_path / "pairs").iterdir()} == {"pairs.json", "00000-04x04x04.arrow"}


def test_a_damaged_or_missing_file_is_named(tmp_path: Path) -> None:
    directory = write_pairs(tmp_path / "pairs").directory
    piece = directory / "00001-04x02x08.arrow"
    whole = piece.read_bytes()
    piece.write_bytes(whole[:-8] + bytes(8))
    with pytest.raises(PackError, match=r"are damaged: 00001-04x02x08.arrow: it does not match its hash"):
        Pairs(directory)
    piece.write_bytes(whole[:100])
    with pytest.raises(PackError, match=r"00001-04x02x08.arrow: it has 100 bytes"):
        Pairs(directory)
    piece.write_bytes(whole)
    (directory / "feature_projection.safetensors").unlink()
    with pytest.raises(PackError, match=r"feature_projection.safetensors: it is missing"):
        Pairs(directory)
    with pytest.raises(PackError, match="holds no pairs"):
        Pairs(tmp_path)


def test_pairs_of_a_later_version_are_refused(tmp_path: Path) -> None:
    place = write_pairs(tmp_path / "pairs").directory / "pairs.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "version": 2}))
    with pytest.raises(PackError, match="have format version 2, this code reads 1: make them anew"):
        Pairs(tmp_path / "pairs")


def test_what_does_not_fit_is_refused_with_a_sentence(tmp_path: Path) -> None:
    writer = PairsWriter(tmp_path / "pairs", MANIFEST)
    with pytest.raises(PackError, match="a piece has latents of 2 shapes"):
        writer.add([(pair(0), tensors(0)), (pair(1), tensors(1, SHAPES[1]))])
    with pytest.raises(PackError, match=r"pair k0 have \(2, 8\) layers and dimensions and the pairs \(2, 16\)"):
        writer.add([(pair(0), replace(tensors(0), text_features_TLD=torch.zeros(3, 2, 8)))])
    with pytest.raises(PackError, match="there are no pairs to write"):
        writer.finish()
    with pytest.raises(PackError, match="12 pairs of one shape do not fill a batch of 13"):
        loader(write_pairs(tmp_path / "few"), batch_size=13)
    with pytest.raises(ConfigError, match=r"least_on_policy is 1.0"):
        PairLoaderConfig(least_on_policy=1.0)
    with pytest.raises(ConfigError, match="the origin 'guessed' of pair k0 is unknown"):
        pair(0, origin="guessed")


class Rows:
    def __init__(self, count: int) -> None:
        self.count = count

    def batch(self, step: int) -> LatentBatch:
        rows = torch.full((self.count, 4, 2, 2), float(step))
        return LatentBatch(self.keys(step), rows, torch.zeros(self.count, 5, 2, 16), torch.ones(self.count, 5).bool())

    def keys(self, step: int) -> list[str]:
        return [f"a{row}" for row in range(self.count)]


def test_pairs_with_rows_of_a_pack_beside_them_split_into_micro_batches(tmp_path: Path) -> None:
    pairs = loader(write_pairs(tmp_path / "pairs"))
    batch = Anchored(pairs, Rows(3)).batch(4)
    assert batch.keys == Anchored(pairs, Rows(3)).keys(4) == pairs.keys(4)
    assert batch.anchor_BCHW.eq(4).all()
    one = part(batch, 1, 2)
    assert (len(one.keys), len(one.anchor_BCHW), len(one.anchor_mask_BT), len(one.winner_BCHW)) == (1, 1, 1, 1)
    assert isinstance(one, PairBatch)
    with pytest.raises(PackError, match="a batch has 3 pairs and 4 rows of the pack"):
        Anchored(pairs, Rows(4)).batch(0)


def test_a_batch_of_one_shape_comes_as_often_as_it_has_pairs(tmp_path: Path) -> None:
    read = loader(write_pairs(tmp_path / "pairs", count=18, piece=6))
    shapes = Counter(tuple(read.batch(step).winner_BCHW.shape[1:]) for step in range(len(read)))
    assert shapes == {SHAPES[0]: 4, SHAPES[1]: 2}
