from __future__ import annotations

import argparse
import json
import pickle
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import Krea2Transformer2DModel
from safetensors.torch import load_file, save_file

from pleinair.cli import export
from pleinair.config import to_document
from pleinair.model import formats
from pleinair.model.formats import (
    diffusers_config,
    load_transformer,
    native_from_pleinair,
    pleinair_from_native,
    save_transformer,
)
from pleinair.model.transformer import Transformer, TransformerConfig
from pleinair.records.errors import CheckpointError
from tests.model.transformers import run_diffusers
from tests.small_transformers import TINY, random_inputs, random_transformer

ODD = replace(TINY, in_channels=4, patch_size=1, mlp_width=100, rope_axes=(2, 6, 8), rope_theta=77.0, norm_eps=1e-4)
"""Everything that no tensor's shape tells differs from the released values."""


@pytest.fixture(scope="module")
def model() -> Transformer:
    return random_transformer()


def run_export(*arguments: str) -> int:
    """`pleinair export ARGUMENTS`, without the other verbs."""
    parser = argparse.ArgumentParser()
    export.register(parser.add_subparsers())
    options = parser.parse_args(["export", *arguments])
    return int(options.run(options))


def assert_same(loaded: Transformer, model: Transformer) -> None:
    expected, got = model.state_dict(), loaded.state_dict()
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@torch.no_grad()
def test_an_exported_folder_gives_the_same_pictures_in_diffusers(model: Transformer, tmp_path: Path) -> None:
    folder = save_transformer(model, tmp_path / "exported", layout="diffusers")
    theirs = Krea2Transformer2DModel.from_pretrained(folder)
    latents, timestep, features = random_inputs()
    mask = torch.arange(12).expand(3, -1) < torch.tensor([[12], [5], [9]])
    expected = run_diffusers(theirs, latents, timestep, features, mask)
    assert (model(latents, timestep, features, mask) - expected).abs().max() <= 1e-5


@torch.no_grad()
def test_diffusers_own_converter_reads_our_native_file(model: Transformer, tmp_path: Path) -> None:
    native = save_transformer(model, tmp_path / "k2.safetensors", layout="native")
    folder = save_transformer(model, tmp_path / "config", layout="diffusers")
    theirs = Krea2Transformer2DModel.from_single_file(str(native), config=str(folder), local_files_only=True)
    state = theirs.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_what_diffusers_saves_is_loaded(model: Transformer, tmp_path: Path) -> None:
    save_transformer(model, tmp_path / "exported", layout="diffusers")
    theirs = Krea2Transformer2DModel.from_pretrained(tmp_path / "exported")
    theirs.save_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "pipeline" / "transformer", max_shard_size="200KB")
    assert len(list((tmp_path / "pipeline" / "transformer").glob("*.safetensors"))) > 1
    for folder in ("whole", "pipeline"):
        assert_same(load_transformer(tmp_path / folder), model)


@pytest.mark.parametrize("config", [TINY, ODD], ids=["released rules", "every rule broken"])
@pytest.mark.parametrize("layout", ["pleinair", "diffusers", "native"])
def test_every_layout_returns_the_same_weights_and_sizes(
    layout: formats.Layout, config: TransformerConfig, tmp_path: Path
) -> None:
    model = random_transformer(config)
    loaded = load_transformer(save_transformer(model, tmp_path / "out.safetensors", layout))
    assert_same(loaded, model)
    latents, timestep, features = random_inputs(config)
    with torch.no_grad():
        assert torch.equal(loaded(latents, timestep, features), model(latents, timestep, features))


@pytest.mark.parametrize("prefix", ["", formats.NATIVE_PREFIX])
def test_a_native_file_written_elsewhere_needs_no_configuration(
    model: Transformer, prefix: str, tmp_path: Path
) -> None:
    native = {prefix + name: tensor for name, tensor in native_from_pleinair(model.state_dict()).items()}
    save_file(native, tmp_path / "raw.safetensors")
    loaded = load_transformer(tmp_path / "raw.safetensors")
    assert_same(loaded, model)
    assert replace(loaded.config, mlp_width=None, text_mlp_width=None) == TINY


def test_native_weights_come_back_bit_for_bit_and_keep_their_dtypes(model: Transformer, tmp_path: Path) -> None:
    mixed = {
        name: tensor.bfloat16() if name.startswith("blocks.") and tensor.ndim == 2 else tensor
        for name, tensor in native_from_pleinair(model.state_dict()).items()
    }
    save_file(mixed, tmp_path / "mixed.safetensors")
    save_transformer(load_transformer(tmp_path / "mixed.safetensors"), tmp_path / "again.safetensors", "native")
    again = load_file(tmp_path / "again.safetensors")
    assert again.keys() == mixed.keys()
    for name, tensor in mixed.items():
        assert again[name].dtype == tensor.dtype
        assert torch.equal(again[name], tensor)
    one_dtype = load_transformer(tmp_path / "mixed.safetensors", dtype=torch.float32)
    assert {parameter.dtype for parameter in one_dtype.parameters()} == {torch.float32}


def test_native_names_are_those_of_the_release() -> None:
    with torch.device("meta"):
        state = Transformer(TransformerConfig()).state_dict()
    native = native_from_pleinair(state)
    assert len(native) == 430
    assert native["blocks.27.mod.lin"].shape == (6 * 6144,)
    assert native["last.modulation.lin"].shape == (2, 6144)
    assert {name for name in native if name.startswith("blocks.0.")} == {
        "blocks.0.mod.lin",
        "blocks.0.prenorm.scale",
        "blocks.0.postnorm.scale",
        "blocks.0.attn.qknorm.qnorm.scale",
        "blocks.0.attn.qknorm.knorm.scale",
        *(f"blocks.0.attn.{projection}.weight" for projection in ("wq", "wk", "wv", "wo", "gate")),
        *(f"blocks.0.mlp.{projection}.weight" for projection in ("gate", "up", "down")),
    }
    outside = {name for name in native if not name.startswith(("blocks.", "txtfusion."))}
    linears = ("first", "tmlp.0", "tmlp.2", "tproj.1", "txtmlp.1", "txtmlp.3", "last.linear")
    assert outside == {f"{linear}.{part}" for linear in linears for part in ("weight", "bias")} | {
        "txtmlp.0.scale",
        "last.norm.scale",
        "last.modulation.lin",
    }
    assert "txtfusion.layerwise_blocks.1.attn.wq.weight" in native
    assert "txtfusion.projector.weight" in native
    assert pleinair_from_native(native).keys() == state.keys()


@pytest.mark.parametrize("nested", [True, False], ids=["run's config.json", "flat config.json"])
def test_a_training_checkpoint_is_loaded_and_exported(model: Transformer, nested: bool, tmp_path: Path) -> None:
    checkpoint = tmp_path / "step-00000010"
    checkpoint.mkdir()
    document = to_document(model.config)
    (checkpoint / "config.json").write_text(json.dumps({"transformer": document, "x": 1} if nested else document))
    save_file(model.state_dict(), checkpoint / "transformer.safetensors")
    for layout in ("diffusers", "native"):
        out = tmp_path / f"{layout}.safetensors"
        assert run_export(str(checkpoint), "--to", layout, "-o", str(out)) == 0
        assert_same(load_transformer(out), model)


def test_an_export_never_overwrites(model: Transformer, tmp_path: Path) -> None:
    folder = save_transformer(model, tmp_path / "weights")
    with pytest.raises(CheckpointError, match="exists already: remove it or choose another name"):
        run_export(str(folder), "--to", "diffusers", "-o", str(folder))
    assert_same(load_transformer(folder), model)


@pytest.mark.parametrize("layout", ["pleinair", "diffusers", "native"])
def test_a_save_the_disk_refuses_leaves_nothing(model: Transformer, layout: formats.Layout, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # no file of this process may grow beyond
    try:
        with pytest.raises(CheckpointError, match="File too large.*free space or choose another place"):
            save_transformer(model, tmp_path / "out.safetensors", layout)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_pickles_are_refused_unopened(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(pickle.dumps({}))
    with pytest.raises(CheckpointError, match="is a pickle file.*convert it to .safetensors"):
        load_transformer(path)


def test_unusable_paths_are_answered_with_the_remedy(model: Transformer, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_transformer(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"holds neither transformer.safetensors nor"):
        load_transformer(tmp_path)
    with pytest.raises(CheckpointError, match="one file of that kind"):
        save_transformer(model, tmp_path / "native", "native")
    (tmp_path / "noise.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(CheckpointError, match="is no safetensors file that can be read"):
        load_transformer(tmp_path / "noise.safetensors")
    save_file({"other": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="this is not a K2 transformer"):
        load_transformer(tmp_path / "other.safetensors")


def test_a_truncated_file_is_refused(model: Transformer, tmp_path: Path) -> None:
    path = save_transformer(model, tmp_path / "k2.safetensors", "native")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"it ends after \d+ of \d+ bytes.*fetch it again"):
        load_transformer(path)


def test_every_misfit_is_named(model: Transformer, tmp_path: Path) -> None:
    folder = save_transformer(model, tmp_path / "weights")
    state = load_file(folder / "transformer.safetensors")
    del state["img_in.bias"]
    state["stray"] = torch.zeros(1)
    state["txt_in.norm.weight"] = torch.zeros(7)
    save_file(state, folder / "transformer.safetensors")
    with pytest.raises(CheckpointError) as refused:
        load_transformer(folder)
    for part in ("1 tensors missing (img_in.bias)", "1 tensors unexpected (stray)", "txt_in.norm.weight (7,) instead"):
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds no JSON object"),
        ('{"breadth": 64}', "describes no transformer: unknown key 'breadth'"),
        ('{"width": 100}', "describes no transformer: width is 100"),
    ],
)
def test_a_broken_configuration_is_named(model: Transformer, text: str, message: str, tmp_path: Path) -> None:
    folder = save_transformer(model, tmp_path / "weights")
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_transformer(folder)


def test_diffusers_understands_every_key_of_the_configuration() -> None:
    settings = {key: value for key, value in diffusers_config(ODD).items() if key != "_class_name"}
    twin = Krea2Transformer2DModel(**settings)
    assert {key: twin.config[key] for key in settings} == settings
