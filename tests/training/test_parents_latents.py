"""Packs of other latents than a parent has learned, and parents that are never opened: refused before any work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pleinair.cli.encoders import open_text_encoder
from pleinair.cli.main import build_parser, main
from pleinair.cli.parents import find_checkpoint
from pleinair.cli.places import shipped
from pleinair.cli.steps import pack_step
from pleinair.cli.workspace import open_workspace
from pleinair.model.autoencoder import Autoencoder
from pleinair.model.formats import open_weights, save_transformer, write_weights
from pleinair.model.text_encoder import FeatureProjection
from pleinair.model.transformer import Transformer, TransformerConfig
from pleinair.packing.latents import write_pack
from pleinair.recipes.drawings import drawings_transformer
from pleinair.records.errors import CheckpointError, ConfigError
from pleinair.sampling import SamplingConfig
from pleinair.sampling.projection import projection_of
from pleinair.sampling.shipped import save_model
from pleinair.tensor_files import in_memory
from tests.training.recipe_runs import arguments, parts, pictures

ONE_STEP = "phases=({'resolution': 32, 'num_steps': 1, 'batch_size': 4},)"
WHOLE = ["transformer.width=256", "transformer.num_layers=6", "transformer.num_heads=8", "transformer.num_kv_heads=4"]
WAYS = ("finetune=None", "finetune={}", "finetune={'base_bits': 8, 'offload': True}")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny() -> Transformer:
    torch.manual_seed(0)
    sizes = drawings_transformer(width=64, num_layers=2)
    config: TransformerConfig = replace(sizes, num_heads=2, num_kv_heads=1)
    return Transformer(config)


def stretched() -> Autoencoder:
    """The shipped autoencoder with other statistics: its latents have the same shape and another scale."""
    ours = parts().autoencoder
    other = Autoencoder(ours.config)
    other.load_state_dict(ours.state_dict())
    other.latent_std.mul_(1.5)
    return other.eval()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model in every form that says whose latents it has learned, and the shipped one."""
    folder = tmp_path_factory.mktemp("parents")
    model, own = tiny(), parts().autoencoder.describe().identity
    tensors = {name: in_memory(values) for name, values in model.state_dict().items()}
    package = folder / "package.safetensors"
    save_model(model, FeatureProjection(4, 576, 192), SamplingConfig(), package, latent_space=own)
    native = write_weights(model.config, tensors, folder / "native.safetensors", "native", latent_space=own)
    return {
        "package": package,
        "native": native,
        "diffusers": write_weights(model.config, tensors, folder / "k2", "diffusers", latent_space=own),
        "checkpoint": find_checkpoint(str(native), folder),
        "silent": save_transformer(model, folder / "silent.safetensors", "native"),
        "shipped": shipped("drawings-64"),
    }


def pack(folder: Path, codec: Autoencoder, parent: Path) -> Path:
    """Four pictures through an autoencoder, their captions through the parent's projection."""
    projection = projection_of(find_checkpoint(str(parent), folder))
    some = [replace(one, pixels={32: one.pixels[32]}) for one in pictures()[:4]]
    write_pack(
        some, folder / "pack", codec=codec, autoencoder_sha256="", text_encoder=open_text_encoder(), text_dim=192,
        projection=projection,
    )  # fmt: skip
    return folder / "pack"


@pytest.fixture(scope="module")
def packs(places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Packs of the same pictures: `own` of the shipped autoencoder, `other` of the stretched one."""
    codecs = {"own": parts().autoencoder, "other": stretched()}
    return {name: pack(tmp_path_factory.mktemp(name), codec, places["package"]) for name, codec in codecs.items()}


def train(runs: Path, on: Path, parent: Path | str, *settings: str, recipe: str = "demo") -> int:
    told = (f"pack={str(on)!r}", f"parent={str(parent)!r}", ONE_STEP, "watch.validation.every=0", *settings)
    sizes = [] if recipe == "demo" else WHOLE
    return main(["train", *arguments(runs, *told, *sizes, recipe=recipe)])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", ["package", "native", "diffusers", "checkpoint"])
def test_a_pack_of_other_statistics_is_refused_whatever_the_parent_and_the_training(
    form: str, way: str, places: dict[str, Path], packs: dict[str, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    identity = parts().autoencoder.describe().identity
    assert train(tmp_path, packs["other"], places[form], way) == 1
    sentence = f"has learned latents of {identity!r} and the pack {packs['other']} holds 'pleinair 16x1/8"
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "demo" / "checkpoints").exists()
    assert train(tmp_path, packs["own"], places[form], way) == 0


def test_the_shipped_model_knows_the_shipped_autoencoders_latents(
    places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "a-copy.safetensors"
    copy.write_bytes(places["shipped"].read_bytes())
    other = pack(tmp_path, stretched(), places["shipped"])
    for parent, way in (("drawings-64", WAYS[0]), ("drawings-64", WAYS[1]), (copy, WAYS[1])):
        assert train(tmp_path, other, parent, way, recipe="drawings-64") == 1
        assert f"has learned latents of {parts().autoencoder.describe().identity!r}" in capsys.readouterr().err
    assert not (tmp_path / "drawings-64" / "checkpoints").exists()


def test_weights_that_do_not_say_whose_latents_they_know_need_an_autoencoder_named(
    places: dict[str, Path], packs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for way in WAYS[:2]:
        assert train(tmp_path, packs["own"], places["silent"], way) == 1
        assert "does not say whose latents it has learned" in capsys.readouterr().err
        assert train(tmp_path, packs["other"], places["silent"], way, "autoencoder='autoencoder'") == 1
        assert "the autoencoder autoencoder gives latents of 'pleinair 16x1/8" in capsys.readouterr().err
    assert not (tmp_path / "demo" / "checkpoints").exists()
    assert train(tmp_path, packs["own"], places["silent"], "finetune={}", "autoencoder='autoencoder'") == 0


def test_packing_with_another_autoencoder_than_the_parents_is_refused(places: dict[str, Path], tmp_path: Path) -> None:
    words = arguments(tmp_path, f"parent={str(places['native'])!r}")
    work = open_workspace(build_parser().parse_args(["train", *words]))
    with pytest.raises(ConfigError, match="has learned latents of 'pleinair 16x1/8"):
        pack_step(work, pictures(), replace(parts(), autoencoder=stretched()))
    assert not work.pack.exists()


def test_exports_and_packages_of_a_checkpoint_carry_the_word(places: dict[str, Path], tmp_path: Path) -> None:
    checkpoint, own = str(places["checkpoint"]), parts().autoencoder.describe().identity
    for layout, name in (("native", "a.safetensors"), ("diffusers", "b")):
        assert main(["export", checkpoint, "--to", layout, "-o", str(tmp_path / name)]) == 0
        assert main(["convert", str(tmp_path / name), str(tmp_path / f"c-{layout}"), "--to", "pleinair"]) == 0
        assert open_weights(tmp_path / f"c-{layout}").latent_space == own


@pytest.mark.parametrize("verb", ["train", "pack", "run"])
@pytest.mark.parametrize("ending", ["ckpt", "PT"])
def test_a_pickled_parent_is_refused_before_anything_is_read_or_written(
    verb: str, ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent, runs = tmp_path / f"model.{ending}", tmp_path / "runs"
    parent.write_bytes(b"\x80\x04 no weights")
    parent.chmod(0)
    words = arguments(runs, f"parent={str(parent)!r}", "finetune={}")
    assert main([verb, *words]) == 1
    assert f"{parent} is a pickle file, which can run any code when it is opened, so it was not opened" in (
        capsys.readouterr().err
    )
    assert [path for path in runs.rglob("*") if path.is_file()] == []
    assert not (runs / "parents").exists()
    assert not (runs / "home").exists()


def test_a_pickles_name_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.ckpt is a pickle file"):
        find_checkpoint(str(tmp_path / "gone.ckpt"), tmp_path / "runs")


def test_a_folder_of_pickles_is_refused_before_it_is_hashed(tmp_path: Path) -> None:
    folder, runs = tmp_path / "k2", tmp_path / "runs"
    folder.mkdir()
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.bin is a pickle file"):
        find_checkpoint(str(folder), runs)
    assert not runs.exists()
