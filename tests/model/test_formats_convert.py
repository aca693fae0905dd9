from __future__ import annotations

import argparse
import json
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import Krea2Transformer2DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pleinair.cli import convert
from pleinair.model.formats import load_transformer, native_from_pleinair, open_weights, save_transformer
from pleinair.model.formats.configs import require_released_layout
from pleinair.model.formats.names import native_name, native_shape
from pleinair.model.formats.weights import mixed_dtype, weight_shapes
from pleinair.model.transformer import Transformer, TransformerConfig
from pleinair.records.errors import CheckpointError, ConfigError
from pleinair.tensor_files import LazyTensor, header, in_memory, lay_out, read_header, write_tensors
from tests.small_transformers import TINY, random_inputs, random_transformer

RELEASED_FILE_BYTES = 26_283_332_608
"""Size of raw.safetensors as published."""
STREAMED_BYTES = 300_000_000


@pytest.fixture(scope="module")
def model() -> Transformer:
    return random_transformer()


def run_convert(*arguments: object) -> int:
    """`pleinair convert ARGUMENTS`, without the other verbs."""
    parser = argparse.ArgumentParser()
    convert.register(parser.add_subparsers())
    options = parser.parse_args(["convert", *map(str, arguments)])
    return int(options.run(options))


def assert_same(loaded: Transformer, model: Transformer) -> None:
    expected, got = model.state_dict(), loaded.state_dict()
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_the_mixed_layout_has_the_released_files_size_to_the_byte() -> None:
    tensors = {
        native_name(name): LazyTensor(mixed_dtype(name), native_shape(name, shape), lambda: torch.empty(0))
        for name, shape in weight_shapes(TransformerConfig()).items()
    }
    data_bytes = sum(tensor.num_bytes for tensor in tensors.values())
    assert (len(tensors), data_bytes) == (430, 26_283_288_856)
    assert len(header(lay_out(tensors), {})) + data_bytes == RELEASED_FILE_BYTES


def test_the_mixed_layout_rounds_matrices_of_blocks_and_nothing_else(model: Transformer, tmp_path: Path) -> None:
    path = save_transformer(model, tmp_path / "mixed.safetensors", "native-mixed")
    assert open_weights(path).layout == "native-mixed"
    plain = save_transformer(model, tmp_path / "plain.safetensors", "native")
    assert open_weights(plain).layout == "native", "some of its dtypes are the mixed layout's too"
    loaded = load_transformer(path).state_dict()
    rounded = {name for name, tensor in loaded.items() if tensor.dtype == torch.bfloat16}
    inside = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_gate", "attn.to_out.0", "ff.gate", "ff.up", "ff.down")
    blocks = [f"transformer_blocks.{number}" for number in range(3)]
    blocks += [f"text_fusion.{kind}_blocks.{number}" for kind in ("layerwise", "refiner") for number in range(2)]
    matrices = {f"{block}.{layer}.weight" for block in blocks for layer in inside}
    assert rounded == matrices | {"text_fusion.projector.weight"}
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor.bfloat16() if name in rounded else tensor)


@torch.no_grad()
def test_mixed_weights_run_under_autocast(model: Transformer, tmp_path: Path) -> None:
    mixed = load_transformer(save_transformer(model, tmp_path / "mixed.safetensors", "native-mixed"))
    inputs = random_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        out = mixed(*inputs)
    expected = model(*inputs)
    assert (out.float() - expected).abs().max() < 0.1 * expected.std()


@pytest.mark.parametrize("start", ["pleinair", "diffusers", "native"])
def test_a_tour_through_all_layouts_returns_equal_weights(model: Transformer, start: str, tmp_path: Path) -> None:
    path = save_transformer(model, tmp_path / "0.safetensors", start)  # type: ignore[arg-type]
    for number, layout in enumerate(("native", "pleinair", "diffusers", "pleinair", "native", "diffusers"), start=1):
        assert run_convert(path, tmp_path / f"{number}.safetensors", "--to", layout) == 0
        path = tmp_path / f"{number}.safetensors"
    assert_same(load_transformer(path), model)


def test_convert_says_what_it_recognised(
    model: Transformer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_transformer(model, tmp_path / "k2.safetensors", "native")
    run_convert(path, tmp_path / "half", "--to", "diffusers", "--dtype", "bfloat16")
    assert capsys.readouterr().out == f"{len(model.state_dict())} tensors, native to diffusers: {tmp_path / 'half'}\n"
    assert {tensor.dtype for tensor in load_transformer(tmp_path / "half").parameters()} == {torch.bfloat16}


def test_diffusers_loads_the_shards_we_write(model: Transformer, tmp_path: Path) -> None:
    path = save_transformer(model, tmp_path / "k2.safetensors", "native")
    run_convert(path, tmp_path / "sharded", "--to", "diffusers", "--shard-bytes", "300000")
    shards = sorted((tmp_path / "sharded").glob("*.safetensors"))
    assert len(shards) > 3
    assert max(shard.stat().st_size for shard in shards) < 310_000
    index = json.loads((tmp_path / "sharded" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in model.state_dict().values())
    state = Krea2Transformer2DModel.from_pretrained(tmp_path / "sharded").state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert_same(load_transformer(tmp_path / "sharded"), model)


def test_the_files_we_write_are_safetensors_to_the_library(tmp_path: Path) -> None:
    tensors = {
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
        "odd": torch.arange(5, dtype=torch.uint8),
        "halves": torch.randn(3, 5).bfloat16(),
        "transposed": torch.randn(4, 6).T,
    }
    write_tensors(tmp_path / "x.safetensors", {name: in_memory(t) for name, t in tensors.items()}, {"note": "a"})
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    spans, _ = read_header(tmp_path / "x.safetensors")
    assert all(span.begin % span.dtype.itemsize == 0 for span in spans.values()), "aligned to their entries"
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert file.metadata() == {"note": "a"}


MEASURE = """
import re, sys
from pathlib import Path
from pleinair.model.formats import open_weights, write_weights

def peak():  # of this program alone; getrusage's maximum begins with what the parent had
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

idle = peak()
weights = open_weights(sys.argv[1])
write_weights(weights.config, weights.tensors, sys.argv[2], sys.argv[3])
print(peak() - idle)
"""


@pytest.mark.slow
def test_a_file_larger_than_its_memory_is_converted(tmp_path: Path) -> None:
    config = TransformerConfig(
        width=512, num_layers=24, num_heads=8, num_kv_heads=4, mlp_width=1536, in_channels=16, text_dim=64,
        num_text_layers=2, text_num_heads=4, text_num_kv_heads=4,
    )  # fmt: skip
    noise = torch.randn(512 * 6 * 512)
    shapes = {native_name(name): native_shape(name, shape) for name, shape in weight_shapes(config).items()}
    state = {name: noise[: torch.Size(shape).numel()].reshape(shape).clone() for name, shape in shapes.items()}
    largest = max(tensor.nbytes for tensor in state.values())
    save_file(state, tmp_path / "big.safetensors")
    size = (tmp_path / "big.safetensors").stat().st_size
    assert size > STREAMED_BYTES
    arguments = [str(tmp_path / "big.safetensors"), str(tmp_path / "out"), "diffusers"]
    done = subprocess.run([sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=True)
    grown = int(done.stdout)
    print(grown, size, largest)
    assert grown < 4 * largest + size / 20, f"{grown} bytes more for a file of {size}, largest tensor {largest}"
    written = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(written["transformer_blocks.23.ff.down.weight"], state["blocks.23.mlp.down.weight"])


def test_an_unknown_key_is_refused_with_the_nearest_known_one(model: Transformer, tmp_path: Path) -> None:
    native = native_from_pleinair(model.state_dict())
    native["blocks.0.attn.wqq.weight"] = torch.zeros(2, 2)
    native |= {f"stray.{number}": torch.zeros(1) for number in range(6)}
    save_file(native, tmp_path / "k2.safetensors")
    with pytest.raises(CheckpointError) as refused:
        run_convert(tmp_path / "k2.safetensors", tmp_path / "out", "--to", "diffusers")
    assert (
        "7 tensors unexpected (blocks.0.attn.wqq.weight, stray.0, stray.1, stray.2, stray.3, ...; "
        "'blocks.0.attn.wqq.weight' is nearest to 'blocks.0.attn.wq.weight')"
    ) in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_missing_key_is_named_as_the_file_would_spell_it(model: Transformer, tmp_path: Path) -> None:
    native = native_from_pleinair(model.state_dict())
    del native["tproj.1.bias"]
    save_file(native, tmp_path / "k2.safetensors")
    with pytest.raises(CheckpointError, match=r"1 tensors missing \(tproj.1.bias\)"):
        open_weights(tmp_path / "k2.safetensors")


class Trap:
    """Leaves a file behind if anybody unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("ending", [".ckpt", ".pt", ".bin"])
def test_convert_never_opens_a_pickle(ending: str, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    pickled = folder / f"diffusion_pytorch_model{ending}"
    pickled.write_bytes(pickle.dumps(Trap(tmp_path / "opened")))
    for given in (pickled, folder):
        with pytest.raises(CheckpointError, match=r"is a pickle file.*convert it to .safetensors"):
            run_convert(given, tmp_path / "out", "--to", "pleinair")
    assert not (tmp_path / "opened").exists()


def test_an_index_that_points_outside_its_folder_is_refused(model: Transformer, tmp_path: Path) -> None:
    folder = save_transformer(model, tmp_path / "weights", "diffusers", shard_bytes=200_000)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    document = json.loads(index.read_text())
    document["weight_map"]["img_in.weight"] = "../elsewhere.safetensors"
    index.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="outside its folder"):
        open_weights(folder)


def test_options_for_a_lora_are_refused_for_weights(model: Transformer, tmp_path: Path) -> None:
    path = save_transformer(model, tmp_path / "k2.safetensors", "native")
    with pytest.raises(ConfigError, match="--to kohya is for a LoRA"):
        run_convert(path, tmp_path / "out.safetensors", "--to", "kohya")
    with pytest.raises(ConfigError, match="which has its own dtypes"):
        run_convert(path, tmp_path / "out.safetensors", "--to", "native-mixed", "--dtype", "float32")


def test_an_architecture_other_programs_lack_is_refused_by_its_switch(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Switched(TransformerConfig):
        modulation: str = "bias"

    require_released_layout(TINY)
    require_released_layout(Switched())
    with pytest.raises(CheckpointError, match="modulation is 'mlp' instead of 'bias': keep this model in the pleinair"):
        require_released_layout(Switched(modulation="mlp"))
