"""Detectors: what a probe learns, what its measures mean, and that a saved one is the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pleinair.cli.places import cache_dir, shipped
from pleinair.curation.detectors.detector import Detector, Manifest, load_detector, save_detector, versions
from pleinair.curation.detectors.features import EDGES, GLOBAL, RESIDUAL, RIM, features_of
from pleinair.curation.detectors.fitting import Examples, FitConfig, fit_detector
from pleinair.curation.detectors.generated import reconstruct, reconstructed_by, square
from pleinair.curation.detectors.labels import Sampled, opinions_of_scores, planted_examples
from pleinair.curation.detectors.logistic import fit_probe, threshold_for
from pleinair.curation.detectors.measures import Measure, Share
from pleinair.curation.detectors.planted import PLANTS, framed, planted_pair
from pleinair.curation.pictures import Pixels, decode
from pleinair.curation.sources import DrawingsSource, open_image
from pleinair.model.efficientnet import fetch_efficientnet
from pleinair.records.errors import CheckpointError, ConfigError
from pleinair.sampling.shipped import load_autoencoder

MANIFEST = Manifest(name="frame", version=1, prompt="a flat frame", features=(RIM,), threshold=0.5)


@pytest.fixture(scope="module")
def drawings() -> list[tuple[Sampled, Pixels]]:
    """Ninety real drawings of three styles."""
    fetch_efficientnet(cache_dir() / "efficientnet-lite0")
    listed = [row for row in DrawingsSource(cache_dir()).list() if row.style in ("noto", "openmoji", "twemoji")]
    rows = [listed[place] for place in np.random.default_rng(3).permutation(len(listed))[:90]]
    return [(Sampled(row.image_name, str(row.style), ""), decode(open_image(row.uri, cache_dir()))) for row in rows]


def clouds(num: int, shift: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Two clouds of points, twins in groups of two."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % 2 == 1
    return (
        (rng.normal(size=(num, 8)) + shift * labels[:, None]).astype(np.float32),
        labels,
        [f"g{i // 2}" for i in range(num)],
    )


def test_a_probe_separates_what_is_apart_and_scores_what_is_not_by_chance() -> None:
    apart, same = fit_probe(*clouds(400, 1.5)), fit_probe(*clouds(400, 0.0))
    labels = clouds(400, 0.0)[1]
    assert ((apart.held_out_scores_N > 0.5) == labels).mean() > 0.95
    assert abs(((same.held_out_scores_N > 0.5) == labels).mean() - 0.5) < 0.1
    assert np.abs(same.held_out_scores_N - 0.5).max() < 0.3  # calibrated: knowing nothing is half and half


def test_scores_are_calibrated_on_folds_that_were_not_fitted() -> None:
    features, labels, groups = clouds(4000, 0.4)
    scores = fit_probe(features, labels, groups).held_out_scores_N
    for low, high in ((0.2, 0.4), (0.4, 0.6), (0.6, 0.8)):
        chosen = (scores > low) & (scores <= high)
        assert abs(labels[chosen].mean() - scores[chosen].mean()) < 0.06


def test_a_rare_class_weighs_as_much_as_a_common_one() -> None:
    features, labels, groups = clouds(2000, 0.6)
    chosen = ~labels | (np.arange(2000) < 200)
    own = [group for group, keep in zip(groups, chosen, strict=True) if keep]
    found = fit_probe(features[chosen], labels[chosen], own).held_out_scores_N > 0.5
    assert abs(found[labels[chosen]].mean() - (~found[~labels[chosen]]).mean()) < 0.12


def test_no_group_is_scored_by_a_fold_that_saw_its_twin() -> None:
    rng = np.random.default_rng(0)
    twins = np.repeat(rng.normal(size=(100, 300)), 4, axis=0).astype(np.float32)
    labels = np.repeat(rng.random(100) < 0.5, 4)  # nothing to learn but by heart
    scores = fit_probe(twins, labels, [f"g{i // 4}" for i in range(400)]).held_out_scores_N
    assert ((scores > 0.5) == labels).mean() < 0.65


def test_too_few_pictures_of_a_kind_are_refused() -> None:
    features, labels, groups = clouds(40, 1.0)
    with pytest.raises(ConfigError, match="4 positive pictures are too few"):
        fit_probe(features, labels & (np.arange(40) < 8), groups)


def test_the_threshold_lets_no_more_good_pictures_go_than_allowed() -> None:
    scores = np.linspace(0, 1, 1000, dtype=np.float32)
    labels = np.zeros(1000, bool)
    assert (scores > threshold_for(scores, labels, 0.01)).sum() == 10
    assert threshold_for(scores * 0.1, labels, 0.01) == 0.5


def test_an_interval_is_wilsons() -> None:
    low, high = Share(9, 10).interval
    assert (round(low, 3), round(high, 3)) == (0.596, 0.982)
    assert Share(0, 0).interval == (0.0, 1.0)
    assert Share(0, 50).interval[1] == pytest.approx(0.0714, abs=1e-3)


def test_precision_depends_on_how_many_show_it() -> None:
    found = Measure(slice="s", origin="planted", recall_hits=90, positives=100, false_hits=1, negatives=100)
    assert found.precision.value == pytest.approx(90 / 91)
    assert found.precision_at(0.02) == pytest.approx(0.9 * 0.02 / (0.9 * 0.02 + 0.01 * 0.98))


@pytest.mark.parametrize("name", PLANTS)
def test_a_plant_changes_the_picture_and_keeps_its_size(name: str, drawings: list[tuple[Sampled, Pixels]]) -> None:
    for seed in range(8):
        clean, flawed = planted_pair(PLANTS[name], drawings[seed][1], np.random.default_rng(seed))
        assert clean.shape == flawed.shape == drawings[seed][1].shape
        assert np.abs(clean.astype(int) - flawed).max() > 20


def test_a_frame_is_flat_all_around_and_leaves_the_middle() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (100, 140, 3)).astype(np.uint8)
    for seed in range(20):
        clean, flawed = framed(picture, np.random.default_rng(seed))
        assert (clean == picture).all()
        assert (flawed[23:77, 23:117] == picture[23:77, 23:117]).all()
        changed = (flawed != picture).any(axis=2)
        for side in (changed[:, 70], changed[:, 70][::-1], changed[50], changed[50][::-1]):
            first = int(side.argmax())
            assert first <= 6
            assert side[first]


def test_frames_are_found_at_the_rim_and_hardly_in_the_global_vector(drawings: list[tuple[Sampled, Pixels]]) -> None:
    examples = planted_examples(drawings, framed, [GLOBAL, RIM], cache_dir())
    config = FitConfig(candidates=((GLOBAL,), (RIM,)), max_false_rate=0.02)
    made = fit_detector(examples, MANIFEST, config).manifest
    assert made.features == (RIM,)
    assert made.candidates[RIM] > 0.75 > made.candidates[GLOBAL] + 0.2
    assert made.labels == {"planted no": made.labels["planted yes"], "planted yes": made.labels["planted no"]}
    first = made.measures[0]
    assert (first.slice, first.origin, first.positives) == ("unseen pictures", "planted", first.negatives)
    assert first.recall.value > 0.6
    assert first.false_rate.value < 0.15
    assert first.positives + made.labels["planted yes"] == 90


def test_the_picture_a_detector_is_measured_on_is_in_no_fit() -> None:
    """Labels one can only learn by heart: unseen pictures must be at chance, sources too."""
    rng = np.random.default_rng(0)
    labels = rng.random(600) < 0.5
    by_heart = {"x": rng.normal(size=(600, 500)).astype(np.float32)}
    sources = ["a" if place % 2 else "b" for place in range(600)]
    examples = Examples(by_heart, labels, [f"g{place}" for place in range(600)], sources, ["rule"] * 600)
    made = fit_detector(examples, MANIFEST, FitConfig(candidates=(("x",),), max_false_rate=0.4)).manifest
    assert {one.slice for one in made.measures} == {
        "unseen pictures", "unseen pictures of a", "unseen pictures of b",
        "source not trained on: a", "source not trained on: b",
    }  # fmt: skip
    for one in made.measures:
        assert abs(one.recall.value - one.false_rate.value) < 0.3


def test_a_source_left_out_is_measured_by_a_probe_that_never_saw_it() -> None:
    """Each source has a tell of its own, which says nothing of the other."""
    rng = np.random.default_rng(0)
    labels, of_a = rng.random(600) < 0.5, np.arange(600) % 2 == 0
    tells = rng.normal(size=(600, 2)).astype(np.float32)
    tells[of_a, 0] += 6 * labels[of_a]
    tells[~of_a, 1] += 6 * labels[~of_a]
    sources = ["a" if own else "b" for own in of_a]
    examples = Examples({"x": tells}, labels, [f"g{n}" for n in range(600)], sources, ["rule"] * 600)
    made = fit_detector(examples, MANIFEST, FitConfig(candidates=(("x",),), max_false_rate=0.05)).manifest
    recall = {one.slice: one.recall.value for one in made.measures}
    assert recall["unseen pictures of b"] > 0.8
    assert recall["source not trained on: b"] < 0.3


def test_both_sides_of_a_planted_pair_go_through_one_codec() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    changed = 0
    for seed in range(12):
        clean, same = planted_pair(lambda own, rng: (own, own.copy()), picture, np.random.default_rng(seed))
        np.testing.assert_array_equal(clean, same)
        changed += bool((clean != picture).any())
    assert 0 < changed < 12


def test_a_dearer_set_of_features_must_find_clearly_more() -> None:
    features, labels, groups = clouds(400, 1.5)
    both = {"cheap": features, "dear": np.concatenate([features, features], axis=1)}
    examples = Examples(both, labels, groups, ["s"] * 400, ["rule"] * 400)
    config = FitConfig(candidates=(("cheap",), ("dear",)), max_false_rate=0.05)
    assert fit_detector(examples, MANIFEST, config).manifest.features == ("cheap",)


def test_a_saved_detector_scores_as_before_and_is_never_overwritten(
    tmp_path: Path, drawings: list[tuple[Sampled, Pixels]]
) -> None:
    probe = fit_probe(*clouds(100, 1.0)).probe
    detector = Detector(MANIFEST, probe)
    kept = Manifest(**{**vars(MANIFEST), "bias": probe.bias, "slope": probe.slope, "offset": probe.offset})
    save_detector(Detector(kept, probe), tmp_path)
    again = load_detector(tmp_path, "frame")
    points = clouds(50, 1.0, seed=5)[0]
    np.testing.assert_array_equal(again.probe.scores(points), detector.probe.scores(points))
    assert again.manifest == kept
    assert versions(tmp_path, "frame") == [1]
    assert sorted(path.name for path in (tmp_path / "frame" / "v1").iterdir()) == ["manifest.json", "probe.safetensors"]
    with pytest.raises(ConfigError, match="never overwritten"):
        save_detector(Detector(kept, probe), tmp_path)
    assert [path.name for path in (tmp_path / "frame").iterdir()] == ["v1"]


def test_a_damaged_or_missing_detector_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no detector 'frame' of version 1"):
        load_detector(tmp_path, "frame")
    with pytest.raises(ConfigError, match="is no name"):
        load_detector(tmp_path, "../frame")
    place = save_detector(Detector(MANIFEST, fit_probe(*clouds(100, 1.0)).probe), tmp_path)
    (place / "probe.safetensors").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_detector(tmp_path, "frame")


def test_features_keep_their_widths_and_see_every_size() -> None:
    rng = np.random.default_rng(0)
    shapes = [(1, 1), (7, 300), (64, 64), (700, 500)]
    pictures = [rng.integers(0, 256, (*shape, 3)).astype(np.uint8) for shape in shapes]
    for name, width in ((RIM, 320), (EDGES, 198), (RESIDUAL, 148)):
        found = features_of(pictures, [name], cache_dir())
        assert found.shape == (4, width)
        assert np.isfinite(found).all()
    with pytest.raises(ConfigError, match="no features 'rim-9'"):
        features_of(pictures, ["rim-9"], cache_dir())


def test_a_probe_does_not_run_away_on_a_feature_that_hardly_varied() -> None:
    features, labels, groups = clouds(200, 1.5)
    features[:, 0] *= 1e-4
    probe = fit_probe(features, labels, groups).probe
    wild = features.copy()
    wild[:, 0] = 1e3
    assert ((probe.scores(features) > 0.5) == labels).mean() > 0.95
    assert np.abs(probe.logits(wild)).max() < 100


def test_a_reconstruction_differs_from_its_picture_in_nothing_but_the_decoder(
    drawings: list[tuple[Sampled, Pixels]],
) -> None:
    codec = load_autoencoder(shipped("autoencoder"))
    clean, made = planted_pair(reconstructed_by(codec), drawings[0][1], np.random.default_rng(0))
    assert clean.shape == made.shape
    assert 0.5 < np.abs(clean.astype(float) - made).mean() < 25
    picture = square(drawings[0][1], 64)
    np.testing.assert_array_equal(reconstruct(codec, picture[None]), reconstruct(codec, picture[None]))


def test_a_text_labels_its_best_pictures_and_the_worst_half() -> None:
    opinions = opinions_of_scores({f"p{i:03d}": i / 100 for i in range(100)}, "frame", positive_share=0.05)
    assert [name for name, one in opinions.items() if one.shows] == ["p099", "p098", "p097", "p096", "p095"]
    assert sum(not one.shows for one in opinions.values()) == 50
    with pytest.raises(ConfigError, match="positive_share is 0.7"):
        opinions_of_scores({"a": 1.0}, "frame", positive_share=0.7)
    with pytest.raises(ConfigError, match="has no word"):
        opinions_of_scores({"a": float("nan")}, "?!")
