"""One pack as two: every row in exactly one of them, as it was."""

from pathlib import Path

import pytest
import torch

from pleinair.packs.loader import LatentLoader
from pleinair.packs.pack import Pack
from pleinair.packs.plan import LoaderConfig
from pleinair.packs.split import share_of_pairs, split_pack
from pleinair.packs.writer import PackRow
from pleinair.records.errors import PackError
from tests.packs.small_packs import features_of, make_pack, write_shapes_pack

LONG_ONLY = LoaderConfig(batch_size=1, drop_caption=0.0, caption_weights=(1.0, 0.0, 0.0))


def odd(row: PackRow) -> bool:
    return int(row.key[1:]) % 2 == 1


def rows(pack: Pack, resolution: int = 16) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    loader = LatentLoader(pack, resolution, LONG_ONLY)
    batches = [loader.batch(number) for number in range(len(loader))]
    return {one.keys[0]: (one.latents_BCHW[0], one.text_features_BTLD[0]) for one in batches}


def test_each_row_is_in_one_pack_with_its_latents_and_text_features(tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "pack")
    split_pack(pack, odd, "odd", kept=tmp_path / "kept", taken=tmp_path / "taken")
    kept, taken, whole = rows(Pack(tmp_path / "kept")), rows(Pack(tmp_path / "taken")), rows(pack)
    assert set(taken) == {f"p{number}" for number in range(1, 40, 2)}
    assert set(kept) == {f"p{number}" for number in range(0, 40, 2)}
    for key, (latents, features) in {**kept, **taken}.items():
        assert torch.equal(latents, whole[key][0])
        assert torch.equal(features, whole[key][1])
    assert torch.allclose(taken["p7"][1], features_of(Pack(tmp_path / "taken"), "picture 7 at length"), atol=1e-3)


def test_a_pack_of_several_shapes_and_shards_is_split_at_every_shape(tmp_path: Path) -> None:
    write_shapes_pack(tmp_path / "pack", count=120)
    pack = Pack(tmp_path / "pack")
    split_pack(pack, odd, "odd", kept=tmp_path / "kept", taken=tmp_path / "taken")
    sizes = [Pack(tmp_path / name).manifest.num_rows for name in ("kept", "taken")]
    assert sum(sizes) == pack.manifest.num_rows == 2 * sizes[1]
    assert Pack(tmp_path / "kept").shapes(32) == pack.shapes(32)


def test_packs_split_alike_have_equal_plans_and_their_sides_different_ones(tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "pack", 12)
    for name, rule in (("a", "odd"), ("b", "odd"), ("c", "even")):
        split_pack(pack, odd, rule, kept=tmp_path / f"{name}-kept", taken=tmp_path / f"{name}-taken")
    plans = {path.name: Pack(path).manifest.plan for path in tmp_path.glob("?-*")}
    assert plans["a-kept"] == plans["b-kept"] != plans["c-kept"]
    assert plans["a-taken"] == plans["b-taken"] != plans["a-kept"]


def test_a_side_without_pictures_is_refused(tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "pack", 12)
    with pytest.raises(PackError, match="nothing leaves no picture of .* for taken: choose another share"):
        split_pack(pack, lambda row: False, "nothing", kept=tmp_path / "kept", taken=tmp_path / "taken")


def test_a_share_of_pairs_goes_by_names_and_is_about_as_large_as_told() -> None:
    pairs = [
        PackRow(f"{concept}-{style}", b"", 1, 1, style=f"s{style}", concept=f"c{concept}")
        for concept in range(100)
        for style in range(10)
    ]
    takes = share_of_pairs(0.1, "ablation")
    chosen = [takes(row) for row in pairs]
    assert 70 <= sum(chosen) <= 130
    assert chosen == [share_of_pairs(0.1, "ablation")(row) for row in pairs]
    assert chosen != [share_of_pairs(0.1, "another use")(row) for row in pairs]
