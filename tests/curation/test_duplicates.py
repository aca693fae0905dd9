"""Fingerprints against their plain definitions, the search against comparing all with all, and who is kept."""

from __future__ import annotations

import colorsys
import dataclasses
import io
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance

from pleinair.curation import hashes_v1
from pleinair.curation.duplicates import (
    Duplicate,
    DuplicateLimits,
    Picture,
    Radius,
    duplicate_pairs,
    find_duplicates,
    groups,
    relit,
)
from pleinair.curation.hashes import DECODED_SIDE, fingerprints, fingerprints_of
from pleinair.curation.pictures import decode
from pleinair.records.errors import ConfigError, ImageError


def photo(seed: int, side: int = 160) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def shape(colour: str, *, corner: int = 20) -> Image.Image:
    image = Image.new("RGB", (128, 128), "white")
    ImageDraw.Draw(image).ellipse((corner, 30, corner + 70, 100), fill=colour)
    return image


def picture(name: str, image: Image.Image, *, md5: str | None = None, entropy: float = 5.0, **more: object) -> Picture:
    prints = fingerprints(np.asarray(image))
    return Picture(
        name=name,
        md5=md5 or name,
        entropy=entropy,
        num_pixels=image.width * image.height,
        **dataclasses.asdict(prints),
        **more,  # type: ignore[arg-type]
    )


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return Image.open(out).convert("RGB")


def kept(found: list[Duplicate]) -> list[str]:
    return [duplicate.name for duplicate in found if not duplicate.drop]


def dropped(found: list[Duplicate]) -> dict[str, str | None]:
    return {duplicate.name: duplicate.of for duplicate in found if duplicate.drop}


# Fingerprints.


def waves(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    """The lowest 12 x 12 amplitudes, by the formula of the type-II DCT, one row and one column after the other."""
    k, n = np.arange(48)[:, None], np.arange(48)[None, :]
    rows = np.array([(2 * np.cos(np.pi * k * (2 * n + 1) / 96) * column).sum(axis=1) for column in grey.T]).T
    both = np.array([(2 * np.cos(np.pi * k * (2 * n + 1) / 96) * row).sum(axis=1) for row in rows])
    return both[:12, :12] / 48**2


def bits_of(phash: str) -> NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(bytes.fromhex(phash), np.uint8)).astype(bool)


@pytest.mark.parametrize("seed", range(10))
def test_the_first_phash_is_the_usual_definition_bit_for_bit(seed: int) -> None:
    image = photo(seed, side=100 + 7 * seed)
    low = waves(np.asarray(image.convert("L").resize((48, 48), Image.Resampling.LANCZOS)).astype(float))
    assert (bits_of(hashes_v1.phash12(image)) == (low > np.median(low)).ravel()).all()


@pytest.mark.parametrize("seed", range(10))
def test_the_second_phash_asks_each_wave_of_the_area_averages_for_an_eighth_of_a_grey_level(seed: int) -> None:
    pixels = np.asarray(photo(seed, side=96))  # two by two pixels a cell, so that the average is plain
    cells = np.floor(pixels.reshape(48, 2, 48, 2, 3).astype(float).sum(axis=(1, 3)) / 4 + 0.5)
    low = waves(np.floor(cells @ [0.299, 0.587, 0.114] + 0.5))
    unsure = np.abs(low - np.median(low) - 0.125) < 0.02  # a grey level rounded another way
    bits = bits_of(fingerprints(pixels).phash12_v2).reshape(12, 12)
    assert unsure.mean() < 0.15
    assert ((bits == (low > np.median(low) + 0.125)) | unsure).all()


def test_what_is_not_in_a_picture_sets_no_bit() -> None:
    ring = Image.new("RGB", (128, 128), "white")
    ImageDraw.Draw(ring).ellipse((20, 20, 107, 107), outline="black", width=9)
    bits = bits_of(fingerprints(np.asarray(ring)).phash12_v2).reshape(12, 12)
    assert not bits[1::2].any()
    assert not bits[:, 1::2].any()
    assert bits.any()


def test_a_fingerprint_never_changes_under_its_name() -> None:
    prints = fingerprints(np.asarray(shape("orange")))
    assert len(prints.phash12_v2) == 36
    assert prints.colour_v2 == FROZEN_COLOUR
    assert prints.phash12_v2 == FROZEN_PHASH
    assert (len(prints.thumb16_v2), prints.thumb16_v2[:6], sum(prints.thumb16_v2)) == FROZEN_THUMB
    assert fingerprints(np.asarray(photo(0)) // 3).colour_v2 == FROZEN_DARK_COLOUR
    assert DECODED_SIDE == 96
    old = hashes_v1.fingerprints(np.asarray(shape("orange")))
    assert (old.colour_v1, old.phash12_v1) == ("000d110000000000360000000000", "b41cb6c363c90d8327307c3ab3ecc9cd9347")
    assert (old.thumb16_v1[:6], sum(old.thumb16_v1)) == (b"\xff" * 6, 174604)


FROZEN_DARK_COLOUR = "6300222222222222333432333433"
FROZEN_COLOUR = "000d120000000000370000000000"
FROZEN_PHASH = "b41c10c363c00c8306305c32b3ecc1cd9346"
FROZEN_THUMB = (768, b"\xff" * 6, 174595)


def jpeg(image: Image.Image, quality: int = 90, **more: object) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, **more)  # type: ignore[arg-type]
    return out.getvalue()


def test_a_large_jpeg_is_decoded_small_and_looks_the_same() -> None:
    for seed in range(5):
        data = jpeg(photo(seed, side=1600))
        assert decode(data, at_least=DECODED_SIDE).shape == (200, 200, 3)
        small, full = (fingerprints(decode(data, at_least=side)) for side in (DECODED_SIDE, 1600))
        assert np.sum(bits_of(small.phash12_v2) != bits_of(full.phash12_v2)) <= 4
        assert colour_distance(small.colour_v2, full.colour_v2) <= 4


def test_a_reduced_decoding_never_goes_under_what_is_asked() -> None:
    for side in (95, 96, 191, 192, 193, 383, 384, 800):
        least = min(decode(jpeg(photo(0, side=side)), at_least=96).shape[:2])
        assert least == side if side < 192 else 96 <= least <= 192


def test_a_reduced_jpeg_stands_upright_and_one_cut_short_is_refused() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = photo(0, side=800).resize((1600, 800))
    assert decode(jpeg(wide, exif=exif), at_least=96).shape == (200, 100, 3)
    with pytest.raises(ImageError, match="broken: truncated after"):
        fingerprints_of(jpeg(wide)[:-3000])


def colour_distance(first: str, second: str) -> int:
    return sum(abs(int(a, 16) - int(b, 16)) for a, b in zip(first, second, strict=True))


def colour_of(image: Image.Image) -> str:
    return fingerprints(np.asarray(image)).colour_v2


def hue(degrees: float) -> str:
    return "#{:02x}{:02x}{:02x}".format(*(round(255 * part) for part in colorsys.hsv_to_rgb(degrees / 360, 1, 0.8)))


def test_colour_tells_twelve_hues_apart_where_phash_cannot() -> None:
    shapes = [shape(hue(30 * step)) for step in range(12)]
    distances = [colour_distance(colour_of(a), colour_of(b)) for a, b in itertools.combinations(shapes, 2)]
    assert min(distances) >= 12
    twelve = [picture(f"{step:02}", one) for step, one in enumerate(shapes)]
    assert find_duplicates(twelve, DuplicateLimits()) == []


def test_a_slight_shift_of_hue_moves_colour_only_slightly() -> None:
    for step in range(0, 360, 5):
        first, second = shape(hue(step)), shape(hue(step + 4))
        assert colour_distance(colour_of(first), colour_of(second)) <= 6


# The search.


def test_a_radius_the_search_cannot_promise_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"duplicates\.near\.phash is 18: give 0 to 17 bits, what the search can promise"
    ):
        DuplicateLimits(near=Radius(phash=18, colour=6, thumb=64))


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40))
def test_groups_are_the_connected_components(edges: list[tuple[int, int]]) -> None:
    reach = np.eye(20, dtype=bool)
    for a, b in edges:
        reach[a, b] = reach[b, a] = True
    for _ in range(20):
        reach = reach | (reach @ reach)
    naive = {tuple(np.flatnonzero(row).tolist()) for row in reach if row.sum() > 1}
    assert {tuple(group) for group in groups(20, np.array(edges, np.int64).reshape(-1, 2))} == naive


# What counts as the same.


@pytest.mark.parametrize("quality", [90, 60, 40])
def test_a_recompressed_and_resized_photo_is_found(quality: int) -> None:
    originals = [picture(f"p{seed}", photo(seed)) for seed in range(12)]
    copies = [
        picture(f"q{seed}", recompressed(photo(seed).resize((110, 110), Image.Resampling.LANCZOS), quality))
        for seed in range(12)
    ]
    found = find_duplicates([*originals, *copies], DuplicateLimits())
    assert dropped(found) == {f"q{seed}": f"p{seed}" for seed in range(12)}


def test_how_much_lighter_one_is_is_told_by_what_is_not_clipped() -> None:
    dark = np.repeat(np.array([60, 120, 200, 230], np.uint8), 192)[None]
    lit = np.minimum(dark * 1.5, 255).astype(np.uint8)
    for pair in ((dark, lit), (lit, dark)):
        light, difference = relit(*pair)
        np.testing.assert_allclose([light[0], difference[0]], [1.5, 0], atol=0.01)
    assert relit(dark, dark) == (1, 0)


@pytest.mark.parametrize("light", [0.7, 0.85, 1.15, 1.3])
def test_a_lighter_or_darker_copy_is_found_and_a_recoloured_one_that_is_darker_is_not(light: float) -> None:
    def lit(image: Image.Image) -> Image.Image:
        return ImageEnhance.Brightness(image).enhance(light)

    originals = [picture(f"p{seed}", photo(seed)) for seed in range(8)]
    copies = [picture(f"q{seed}", lit(photo(seed))) for seed in range(8)]
    assert dropped(find_duplicates([*originals, *copies], DuplicateLimits())) == {f"q{n}": f"p{n}" for n in range(8)}
    drawn = [picture("red", shape("red")), picture("dim", lit(shape("red"))), picture("blue", lit(shape("blue")))]
    assert dropped(find_duplicates(drawn, DuplicateLimits())) == {"red": "dim"}


def test_a_recoloured_drawing_is_another_picture() -> None:
    shapes = [picture(colour, shape(colour)) for colour in ("red", "orange", "yellow", "green", "blue", "purple")]
    assert find_duplicates(shapes, DuplicateLimits()) == []


def test_thousands_of_equal_files_are_one_group_at_little_cost() -> None:
    one = picture("x", photo(0), md5="same")
    pictures = [dataclasses.replace(one, name=f"{number:05d}") for number in range(5000)]
    near = picture("y", recompressed(photo(0), 80))
    assert len(duplicate_pairs([*pictures, near], DuplicateLimits())) == 5000
    assert kept(find_duplicates([*pictures, near], DuplicateLimits())) == ["00000"]


def test_labels_that_contradict_ask_for_the_very_same_picture() -> None:
    near = [picture("a", shape("red")), picture("b", recompressed(shape("red"), 30))]
    limits = DuplicateLimits()
    assert len(duplicate_pairs(near, limits)) == 1
    other_things = [dataclasses.replace(p, concept=p.name, style="ink") for p in near]
    other_hands = [dataclasses.replace(p, concept="ball", style=p.name) for p in near]
    assert len(duplicate_pairs(other_things, limits)) == 0
    assert len(duplicate_pairs(other_hands, limits)) == 0
    same = [picture("a", shape("red"), concept="a"), picture("b", shape("red"), concept="b")]
    assert len(duplicate_pairs(same, limits)) == 1


def test_renders_of_one_drawing_are_found_though_they_differ_much() -> None:
    flat, shaded = shape("red"), shape("red", corner=24)
    ImageDraw.Draw(shaded).ellipse((40, 40, 60, 60), fill="#ff8080")
    pair = [
        picture("flat", flat, style="gradient", concept="ball"),
        picture("solid", shaded, style="3d", concept="ball"),
    ]
    limits = DuplicateLimits(renders=(("gradient", "3d"),), style_order=("3d",))
    assert dropped(find_duplicates(pair, limits)) == {"flat": "solid"}
    assert dropped(find_duplicates(pair, DuplicateLimits())) == {}
    egg = dataclasses.replace(pair[1], concept="egg")
    assert dropped(find_duplicates([pair[0], egg], limits)) == {}


def test_flat_pictures_are_duplicates_only_byte_for_byte() -> None:
    blank = Image.new("RGB", (64, 64), "white")
    flats = [picture(name, blank, entropy=0.0, md5=md5) for name, md5 in (("a", "1"), ("b", "2"), ("c", "1"))]
    found = find_duplicates(flats, DuplicateLimits())
    assert found == [Duplicate("a", "a", None, ""), Duplicate("c", "a", "a", "duplicate: same bytes as a")]


# Who is kept.


def copies(**changes: dict[str, object]) -> list[Picture]:
    return [picture(name, photo(0, side=int(more.pop("side", 160))), **more) for name, more in changes.items()]  # type: ignore[call-overload]


def test_the_name_decides_between_equals() -> None:
    assert kept(find_duplicates(copies(b={}, a={}), DuplicateLimits())) == ["a"]


def test_the_larger_picture_is_kept_before_the_name_decides() -> None:
    assert kept(find_duplicates(copies(a={"side": 160}, b={"side": 320}), DuplicateLimits())) == ["b"]


def test_the_declared_style_is_kept_before_the_larger_picture() -> None:
    both = copies(a={"style": "x", "side": 320}, b={"style": "y"})
    both = [dataclasses.replace(p, md5="same") for p in both]
    assert kept(find_duplicates(both, DuplicateLimits(style_order=("y", "x")))) == ["b"]


def test_a_held_out_picture_is_kept_before_everything_so_no_copy_of_it_is_trained_on() -> None:
    trio = copies(a={"side": 320}, b={"held_out": True}, c={})
    found = find_duplicates(trio, DuplicateLimits(style_order=("z",)))
    assert dropped(found) == {"a": "b", "c": "b"}
    assert {duplicate.group for duplicate in found} == {"b"}


def test_the_order_of_the_pictures_does_not_matter() -> None:
    pictures = [picture(f"p{seed}{copy}", photo(seed)) for seed in range(4) for copy in "xyz"]
    expected = find_duplicates(pictures, DuplicateLimits())
    assert len(expected) == 12
    for seed in range(5):
        shuffled = [pictures[place] for place in np.random.default_rng(seed).permutation(len(pictures))]
        assert find_duplicates(shuffled, DuplicateLimits()) == expected


def test_no_pictures_have_no_duplicates() -> None:
    assert find_duplicates([], DuplicateLimits()) == []
