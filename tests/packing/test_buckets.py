import numpy as np
import pytest
from PIL import Image

from pleinair.packing.buckets import Bucket, BucketConfig, aspect_buckets, assign, centre_crop, resize_to
from pleinair.records.errors import ConfigError


@pytest.mark.parametrize(("resolution", "step"), [(256, 16), (512, 16), (1024, 32), (64, 8)])
def test_buckets_are_of_one_area_and_closed_under_turning(resolution: int, step: int) -> None:
    config = BucketConfig(resolution=resolution, step=step)
    buckets = aspect_buckets(config)
    shapes = {(bucket.height, bucket.width) for bucket in buckets}
    assert (resolution, resolution) in shapes
    assert shapes == {(width, height) for height, width in shapes}
    assert all(height % step == width % step == 0 for height, width in shapes)
    assert all(abs(height * width / resolution**2 - 1) <= 0.1 for height, width in shapes)
    assert all(0.5 <= height / width <= 2 for height, width in shapes)


def test_the_buckets_of_256_pixels() -> None:
    wide = [(of.height, of.width) for of in aspect_buckets(BucketConfig(resolution=256)) if of.width >= of.height]
    assert wide == [(256, 256), (240, 272), (224, 288), (208, 320), (192, 336)]


def test_each_picture_is_in_the_bucket_of_the_nearest_aspect() -> None:
    config = BucketConfig(resolution=256, max_lost_share=0.9, max_upscale=1e9)
    buckets = aspect_buckets(config)
    rng = np.random.default_rng(0)
    widths, heights = rng.integers(10, 4000, (2, 500))
    assigned = assign(widths, heights, buckets, config)
    distance = np.abs(
        np.log(widths / heights)[:, None] - np.log([bucket.width / bucket.height for bucket in buckets])[None]
    )
    chosen = distance[np.arange(500), assigned.bucket_N]
    kept = assigned.bucket_N >= 0
    assert kept.sum() > 400
    assert chosen[kept] == pytest.approx(distance.min(1)[kept])


def test_what_loses_too_much_or_is_too_small_is_left_out_and_counted() -> None:
    config = BucketConfig(resolution=256)
    buckets = aspect_buckets(config)
    widths, heights = np.array([1000, 3000, 100, 300]), np.array([1000, 1000, 100, 300])
    assigned = assign(widths, heights, buckets, config)
    assert (assigned.bucket_N >= 0).tolist() == [True, False, False, True]
    assert assigned.left_out == {"more than 15% would be cut off": 1, "would be enlarged more than 1 times": 1}


def test_a_bucket_with_too_few_pictures_gives_them_to_the_next() -> None:
    config = BucketConfig(resolution=256, min_rows=10, max_lost_share=0.5)
    buckets = aspect_buckets(config)
    widths = np.array([1000] * 20 + [1100] * 3 + [1500] * 12)
    assigned = assign(widths, np.full(35, 1000), buckets, config)
    counts = {(buckets[of].height, buckets[of].width): int((assigned.bucket_N == of).sum()) for of in assigned.bucket_N}
    assert counts == {(256, 256): 23, (208, 320): 12}


@pytest.mark.parametrize("size", [(1000, 500), (333, 777), (256, 256), (257, 255)])
def test_a_crop_is_the_largest_part_of_the_buckets_aspect_in_the_middle(size: tuple[int, int]) -> None:
    bucket = Bucket(256, 240, 272)
    crop = centre_crop(*size, bucket)
    width, height = crop.right - crop.left, crop.bottom - crop.top
    assert width / height == pytest.approx(272 / 240)
    assert width == pytest.approx(size[0]) or height == pytest.approx(size[1])
    assert (crop.left + crop.right) / 2 == pytest.approx(size[0] / 2)
    assert crop.lost_share == pytest.approx(1 - width * height / (size[0] * size[1]), abs=1e-12)


def test_resizing_keeps_the_middle_and_the_proportions() -> None:
    pixels = np.zeros((300, 600, 3), np.uint8)
    pixels[:, :60], pixels[:, 540:] = 200, 200  # what a square crop of a 2:1 picture cuts off
    pixels[100:200, 250:350] = (255, 0, 0)  # a square in the middle stays one
    resized, crop = resize_to(Image.fromarray(pixels), Bucket(64, 64, 64))
    assert resized.shape == (64, 64, 3)
    assert crop.lost_share == pytest.approx(0.5)
    assert resized[:, [0, -1]].max() == 0
    red = np.argwhere(resized[..., 0] > 128)
    assert np.ptp(red, axis=0).tolist() == pytest.approx([20, 20], abs=1)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="resolution is 250: give a multiple of step, 16"):
        BucketConfig(resolution=250)
    with pytest.raises(ConfigError, match="max_aspect is 0.5"):
        BucketConfig(resolution=256, max_aspect=0.5)
