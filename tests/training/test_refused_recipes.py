"""Wrong configurations are refused with a sentence, value and remedy, before any work is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from pleinair.ablation.matrix import Arm
from pleinair.cli.main import main
from pleinair.config import override
from pleinair.recipes import find_recipe
from pleinair.recipes.fits import require_pack_fits
from pleinair.records.errors import ConfigError
from pleinair.records.packs import PackManifest, ShardEntry
from tests.packs.small_packs import make_pack
from tests.training.recipe_runs import arguments, packed

LORA = ("finetune={}", "parent='drawings-64'")
ALONE = [
    (("transformer.num_heads=5",), "width is 64: it must be a multiple of num_heads, 5"),
    (
        ("phases=({'resolution': 32, 'num_steps': -3, 'batch_size': 8},)",),
        "num_steps of a phase is -3: give at least 1",
    ),
    (("phases=({'resolution': 32, 'num_steps': 3, 'batch_size': 0},)",), "batch_size of a phase is 0: give at least 1"),
    (("phases=({'resolution': 0, 'num_steps': 3, 'batch_size': 8},)",), "resolution of a phase is 0: give at least 1"),
    (
        ("engine.num_micro_batches=3",),
        "engine.num_micro_batches is 3 and a rank has 8 rows of a step at 16 px: give a div",
    ),
    (
        ("engine.num_micro_batches=4", "parallel.mesh.shard=4"),
        "engine.num_micro_batches is 4 and a rank has 2 rows of a step at 16 px: give a divisor",
    ),
    (("text_dim=128",), "text_dim is 128 and transformer.text_dim 192: what is packed is what the transformer reads"),
    (("pretrain.sigma=0.0",), "sigma is 0.0 and shift_tokens 64: give a positive deviation"),
    (("pretrain.shift_tokens=0",), "sigma is 1.0 and shift_tokens 0: give a positive deviation and at least 1 token"),
    (("engine.optimiser.betas=(2.0, 3.0)",), "betas is (2.0, 3.0): give two numbers from 0 to less than 1"),
    (("engine.optimiser.head={'betas': (0.9, 1.0)}",), "head.betas is (0.9, 1.0): give two numbers from 0"),
    (("engine.optimiser.momentum=1.0",), "momentum is 1.0: give 0 to less than 1"),
    (("engine.optimiser.weight_decay=-0.1",), "weight_decay is -0.1: give 0 or more"),
    (("engine.optimiser.warmup_steps=-1",), "warmup_steps is -1: give 0 or more"),
    (("engine.precision=fp16",), "engine.precision='fp16' has the wrong type"),
    (("watch.profile=(5, 2)",), "profile is (5, 2): give a first step that is not after the last, or None"),
    (("watch.average_decay=2.0",), "average_decay is 2.0: give a number between 0 and 1, or None"),
    (("watch.peak_flops_per_second=0.0",), "peak_flops_per_second is 0.0: give a positive one, or None"),
    (
        ("loader.caption_weights=(0.0, 0.0, 0.0)",),
        "caption_weights is (0.0, 0.0, 0.0): give none below 0, and one above",
    ),
    (("pack_text=True", "loader.remainder=short"), "packed text takes whole batches, set it to 'drop'"),
    (
        ("pack_text=True", "transformer.stream=dual"),
        "dual streams and timestep tokens take padded text, set pack_text=Fa",
    ),
    (
        ("pack_text=True", "transformer.timestep=tokens"),
        "dual streams and timestep tokens take padded text, set pack_text=Fa",
    ),
    (
        ("pack_text=True", "parallel.mesh.tensor=2", "transformer.num_kv_heads=2"),
        "tensor parallelism splits padded text",
    ),
    ((*LORA, "engine.precision=fp8"), "engine.precision is fp8 and finetune trains a LoRA on frozen weights: use bf16"),
    (
        (*LORA, "parallel.mesh.shard=2"),
        "finetune trains a LoRA in one process and parallel.mesh has 2 ranks: leave out",
    ),
]
"""Settings, and the sentence that a command says of them; the recipe alone tells."""


def told(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(("settings", "sentence"), ALONE, ids=[", ".join(settings) for settings, _ in ALONE])
def test_a_recipe_that_cannot_work_is_refused_before_its_folder_is_made(
    settings: tuple[str, ...], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = told(["train", *arguments(tmp_path, *settings)], capsys)
    assert sentence in error
    assert "Traceback" not in error
    assert not (tmp_path / "demo").exists()


def test_a_lora_over_ranks_is_refused_before_ranks_are_launched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = told(["train", *arguments(tmp_path, *LORA), "--nproc", "2"], capsys)
    assert "finetune trains a LoRA in one process and parallel.mesh has 2 ranks: leave out --nproc" in error
    assert not (tmp_path / "demo" / "events.jsonl").exists()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (("transformer.in_channels=32",), "the autoencoder makes 16: set transformer.in_channels=16"),
        (
            ("phases=({'resolution': 20, 'num_steps': 1, 'batch_size': 8},)",),
            "resolution is 20: the autoencoder takes 8 pixels to a latent and patch_size is 1, give a multiple of 8",
        ),
        (
            ("transformer.in_channels=64", "transformer.patch_size=2", "sampling.resolution=40"),
            "resolution is 40: the autoencoder takes 8 pixels to a latent and patch_size is 2, give a multiple of 16",
        ),
    ],
)
def test_what_the_autoencoder_cannot_give_is_refused_before_packing(
    settings: tuple[str, ...], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        packed(tmp_path, *settings)
    assert not (tmp_path / "demo" / "pack").exists()


def test_a_pack_of_other_sizes_is_refused_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_pack(tmp_path / "other")
    error = told(["train", *arguments(tmp_path, f"pack={str(tmp_path / 'other')!r}")], capsys)
    assert (
        "other has text features of 2 layers x 4 and the transformer reads 4 x 192: set transformer.num_text_lay"
        in error
    )
    assert not list((tmp_path / "demo").glob("*.jsonl"))


def manifest(shape: tuple[int, int, int]) -> PackManifest:
    shards = (ShardEntry(name="a", resolution=32, shape=shape, num_rows=8, num_bytes=1, sha256="a"),)
    return PackManifest(plan="", group_rows=8, text_layers=(1, 2, 3, 4), text_dim=192, shards=shards)


def test_latents_of_a_pack_are_compared_at_the_recipes_resolutions_alone() -> None:
    recipe = find_recipe("demo")
    coarse = override(recipe, ["transformer.in_channels=64", "transformer.patch_size=2"])
    require_pack_fits(recipe, manifest((16, 5, 3)), Path("pack"))
    with pytest.raises(ConfigError, match="the pack pack has 4: set transformer.in_channels=4"):
        require_pack_fits(recipe, manifest((4, 4, 4)), Path("pack"))
    for rows, columns in ((4, 5), (5, 4)):
        sentence = f"latents of {rows} x {columns} and transformer.patch_size is 2: give a divisor of both sides"
        with pytest.raises(ConfigError, match=sentence):
            require_pack_fits(coarse, manifest((16, rows, columns)), Path("pack"))
    elsewhere = override(coarse, ["phases=({'resolution': 64, 'num_steps': 1, 'batch_size': 8},)"])
    require_pack_fits(elsewhere, manifest((16, 4, 5)), Path("pack"))


@pytest.mark.parametrize("setting", ["pack_text=True", "engine.precision=fp8"])
def test_what_the_ablation_bench_would_ignore_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match="the bench trains on padded text in bf16 or fp32, set those"):
        Arm(name="an arm", recipe=override(find_recipe("ablations"), [setting]))
