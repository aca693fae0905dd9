"""What a mix file may say, and the sentence for each that may not."""

from __future__ import annotations

import pytest

from pleinair.packing.conditions import check_condition, columns_of
from pleinair.packing.mix import (
    CaptionMix,
    ClusterBalance,
    EntityPriority,
    Limit,
    Mix,
    MixSource,
    ResolutionStage,
    check_against,
    parse_mix,
)
from pleinair.records.errors import ConfigError

COLUMNS = {
    "image_name": "text",
    "source": "text",
    "licence": "text",
    "width": "integer",
    "tags": "text[]",
    "entropy": "real",
    "aesthetic_score": "real",
}
WHOLE = """
name = "all"
pictures = 500
max_repeats = 3
seed = 7
[[sources]]
name = "clip art"
condition = "source = 'openclipart' AND NOT 'star' = ANY(tags)"
weight = 2
[[sources]]
name = "gcompris"
weight = 1.5
[stage]
resolution = 512
max_enlarge = 2.0
max_aspect = 3
limits = { entropy = { max = 7.5 }, aesthetic_score = { min = 1.0 } }
[clusters]
levels = 2
[entities]
keep = 2
power = 1
[captions]
long = 3
medium = 1
short = 1
own = 1
"""
ONE_SOURCE = 'name = "m"\n[[sources]]\nname = "a"\n'


def test_a_whole_file_becomes_the_mix_it_says() -> None:
    mix = parse_mix(WHOLE)
    assert mix == Mix(
        name="all",
        pictures=500,
        max_repeats=3,
        seed=7,
        sources=(
            MixSource(name="clip art", condition="source = 'openclipart' AND NOT 'star' = ANY(tags)", weight=2.0),
            MixSource(name="gcompris", weight=1.5),
        ),
        stage=ResolutionStage(
            resolution=512,
            max_enlarge=2.0,
            max_aspect=3.0,
            limits={"entropy": Limit(max=7.5), "aesthetic_score": Limit(min=1.0)},
        ),
        clusters=ClusterBalance(levels=2),
        entities=EntityPriority(keep=2, power=1.0),
        captions=CaptionMix(long=3.0, medium=1.0, short=1.0, own=1.0),
    )
    check_against(mix, COLUMNS)


def test_everything_but_name_and_sources_may_be_left_out() -> None:
    mix = parse_mix(ONE_SOURCE)
    assert (mix.clusters, mix.entities, mix.pictures, mix.epochs) == (None, None, None, None)
    assert mix.sources[0].where == "source = 'a'"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name = \nseed = 1", "the mix is not TOML: .*line 1.*; correct that line"),
        ('name = "m"\nsources = []', r"a mix needs pictures: write at least one \[\[sources\]\]"),
        ('name = "../m"\n[[sources]]\nname = "a"', "name is '../m': give letters, digits, - and _"),
        (ONE_SOURCE + "weight_ = 2", "unknown key 'weight_' for MixSource: did you mean 'weight'"),
        (ONE_SOURCE + "[clusters]\nlevel = 2", "unknown key 'level' for ClusterBalance: did you mean 'levels'"),
        (ONE_SOURCE + "[entities]\nkeep = 0", "entities.keep is 0: give 1 or more, or remove"),
        (ONE_SOURCE + '[entities]\nkeep = "x"', "keep='x' has the wrong type: int"),
        (ONE_SOURCE + "weight = -1", r"sources.a.weight is -1: give a number over 0, or remove the source"),
        (ONE_SOURCE + "weight = nan", r"sources.a.weight is nan: give a number over 0"),
        (ONE_SOURCE + 'weight = 1\n[[sources]]\nname = "b"', "sources.b has no weight and others have: give all"),
        (ONE_SOURCE + '[[sources]]\nname = "a"', "sources.name 'a' comes twice: rename or merge them"),
        ("pictures = 5\nepochs = 1.0\n" + ONE_SOURCE, "pictures and epochs both say how long the mix is: remove one"),
        ("pictures = 0\n" + ONE_SOURCE, "pictures is 0: give more than 0"),
        (ONE_SOURCE + "[captions]\nlong = 0\nmedium = 0\nshort = 0", "captions are all 0: give one of"),
        (ONE_SOURCE + "[captions]\nlong = -1", "captions.long is -1.0: give 0 or more"),
        (ONE_SOURCE + "[stage]\nresolution = 8", "stage.resolution is 8: give 16 to 8192 pixels"),
        (ONE_SOURCE + "[stage]\nmax_aspect = 0.5", "stage.max_aspect is 0.5: give 1"),
        (ONE_SOURCE + "[stage.limits]\nentropy = {}", "a limit without min and max limits nothing"),
        (ONE_SOURCE + "[stage.limits]\nentropy = {min = 2, max = 1}", "min 2 and max 1 lets nothing through: swap"),
    ],
)
def test_a_broken_file_gets_a_sentence_with_key_and_remedy(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse_mix(text)


@pytest.mark.parametrize(
    "text",
    [
        ONE_SOURCE + 'weight = "aesthetic_score"',
        ONE_SOURCE + 'weight_by = "quality"',
        ONE_SOURCE + "quality_weight = 2.0",
        ONE_SOURCE + "[weights]\naesthetic = 2.0",
    ],
)
def test_a_mix_that_weighs_by_a_score_is_refused_with_the_reason(text: str) -> None:
    with pytest.raises(ConfigError, match=r"no score oversamples: a model of taste would decide.*; .*weight"):
        parse_mix(text)


def test_a_source_chosen_by_a_score_is_refused_with_the_reason() -> None:
    mix = parse_mix(ONE_SOURCE + 'condition = "Aesthetic_Score > 6"\nweight = 2')
    with pytest.raises(ConfigError, match=r"sources.a.condition chooses by 'aesthetic_score': no score oversamples"):
        check_against(mix, COLUMNS)


def test_a_floor_under_quality_needs_512_pixels() -> None:
    limits = "[stage.limits]\naesthetic_score = { min = 2.0 }"
    with pytest.raises(ConfigError, match=r"stage.limits.aesthetic_score judges quality at 256 pixels: below 512"):
        parse_mix(ONE_SOURCE + limits)
    assert parse_mix(ONE_SOURCE + "[stage]\nresolution = 512\n" + limits).stage.limits == {
        "aesthetic_score": Limit(min=2.0)
    }


def test_a_score_may_never_keep_only_the_worst() -> None:
    with pytest.raises(ConfigError, match="aesthetic_score.max would keep the worst"):
        parse_mix(ONE_SOURCE + "[stage]\nresolution = 512\nlimits.aesthetic_score = { max = 2.0 }")


@pytest.mark.parametrize(
    "condition",
    [
        "source = 'a' AND (licence IN ('CC0-1.0', 'MIT') OR width >= 32.5e1)",
        "licence IS NOT NULL AND lower(licence) LIKE 'cc-%'",
        "tags && ARRAY['a', 'it''s; -- fine']",
        "coalesce(width, 0) * 2 BETWEEN -3 AND 10 % 3",
    ],
)
def test_a_condition_of_comparisons_is_taken_as_it_stands(condition: str) -> None:
    assert check_condition(condition, COLUMNS, "c") == condition


@pytest.mark.parametrize(
    ("condition", "sentence"),
    [
        ("source = 'a'; DROP TABLE images", "cannot be read at '; DROP"),
        ("TRUE -- and the rest", "cannot be read at '-- and"),
        ("TRUE /* x */", r"cannot be read at|names 'x'"),
        ("width > (SELECT 1)", "names 'select', which is no column"),
        ("pg_sleep(9) IS NULL", "names 'pg_sleep', which is no column"),
        ("source(1) = 2", r"calls 'source\(...\)': use abs"),
        ("source::regclass = 1", "cannot be read at '::regclass"),
        ("\"source\" = 'a'", "cannot be read at"),
        ("source = $$a$$", "cannot be read at"),
        ("source = E'\\\\'", "cannot be read|names 'e'"),
        ("(TRUE", "has a bracket without its other half"),
        ("TRUE) OR (TRUE", "has a bracket without its other half"),
        (" ", "is empty: write a condition"),
        ("licence_ = 'MIT'", "names 'licence_', which is no column of images: did you mean 'licence'"),
    ],
)
def test_a_condition_that_does_more_is_refused(condition: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check_condition(condition, COLUMNS, "sources.a.condition")


def test_the_columns_of_a_condition_are_known() -> None:
    assert columns_of("width > 1 AND Licence = 'width' OR width < 3") == ["width", "licence"]
