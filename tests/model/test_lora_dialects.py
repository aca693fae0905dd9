from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Pipeline
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pleinair.cli import convert
from pleinair.model.formats import LoraPair, LoraState, load_transformer, read_lora, write_lora
from pleinair.model.formats.lora import Dialect, decode_lora, encode_lora, layer_of, spell_layer
from pleinair.model.lora import load_lora, lora_state
from pleinair.model.transformer import Transformer, TransformerConfig
from pleinair.records.errors import CheckpointError, ConfigError
from tests.model.pipelines import tiny_autoencoder, tiny_text_encoder, tiny_tokenizer
from tests.model.transformers import diffusers_twin, run_diffusers
from tests.small_transformers import TINY, random_inputs, random_transformer

DIALECTS: tuple[Dialect, ...] = ("native", "ai-toolkit", "diffusers", "kohya")
KEY_OF_ONE_LAYER = {
    "native": "diffusion_model.blocks.2.attn.wo.lora_A.weight",
    "ai-toolkit": "base_model.model.blocks.2.attn.wo.lora_A.weight",
    "diffusers": "transformer.transformer_blocks.2.attn.to_out.0.lora_A.weight",
    "kohya": "lora_unet_blocks_2_attn_wo.lora_down.weight",
}


@pytest.fixture
def model() -> Transformer:
    return random_transformer()


def random_lora(model: nn.Module, *, rank: int = 4, alpha: float = 2.0) -> LoraState:
    """Of every linear layer; alpha / rank is a power of two, so that folding it is exact."""
    generator = torch.Generator().manual_seed(7)

    def noise(*shape: int) -> Tensor:
        return 0.1 * torch.randn(*shape, generator=generator)

    return {
        layer: LoraPair(noise(rank, linear.in_features), noise(linear.out_features, rank), alpha)
        for layer, linear in model.named_modules()
        if isinstance(linear, nn.Linear)
    }


@torch.no_grad()
def run(model: Transformer, state: LoraState | None = None) -> Tensor:
    if state is not None:
        model = random_transformer()
        load_lora(model, state)
    out: Tensor = model(*random_inputs())
    return out


def assert_same(one: LoraState, other: LoraState) -> None:
    """Equal up to where the scale is kept."""
    assert one.keys() == other.keys()
    for layer in one:
        a, b = one[layer].folded(), other[layer].folded()
        assert torch.equal(a.down, b.down)
        assert torch.equal(a.up, b.up)


def run_convert(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    convert.register(parser.add_subparsers())
    options = parser.parse_args(["convert", *map(str, arguments)])
    return int(options.run(options))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_dialect_returns_equal_matrices_and_the_same_output(
    dialect: Dialect, model: Transformer, tmp_path: Path
) -> None:
    state = random_lora(model)
    path = write_lora(state, tmp_path / "x.safetensors", dialect)
    assert KEY_OF_ONE_LAYER[dialect] in load_file(path)
    again, recognised = read_lora(path)
    assert recognised == dialect
    assert_same(again, state)
    assert {pair.alpha for pair in again.values()} == {2.0 if dialect == "kohya" else 4.0}
    assert torch.equal(run(model, again), run(model, state))


@pytest.mark.parametrize("start", DIALECTS)
def test_a_file_converted_through_every_dialect_is_the_same(start: Dialect, model: Transformer, tmp_path: Path) -> None:
    state = random_lora(model)
    path = write_lora(state, tmp_path / "0.safetensors", start)
    for number, dialect in enumerate((*DIALECTS, "diffusers", "ai-toolkit", "native"), start=1):
        assert run_convert(path, tmp_path / f"{number}.safetensors", "--to", dialect) == 0
        path = tmp_path / f"{number}.safetensors"
    assert_same(read_lora(path)[0], state)


def test_every_layer_of_the_released_model_has_one_name_in_each_dialect() -> None:
    with torch.device("meta"):
        released = Transformer(TransformerConfig())
    layers = [name for name, module in released.named_modules() if isinstance(module, nn.Linear)]
    assert len(layers) == 28 * 8 + 4 * 8 + 1 + 7
    for dialect in DIALECTS:
        spelled = {layer: spell_layer(layer, dialect) for layer in layers}
        assert len(set(spelled.values())) == len(layers)
        assert {layer: layer_of(name) for layer, name in spelled.items()} == {layer: layer for layer in layers}


@pytest.mark.parametrize("dialect", ["native", "ai-toolkit"])
def test_alpha_can_be_kept_beside_native_names(dialect: Dialect, model: Transformer, tmp_path: Path) -> None:
    state = random_lora(model)
    path = write_lora(state, tmp_path / "x.safetensors", dialect, keep_alpha=True)
    again, _ = read_lora(path)
    assert {pair.alpha for pair in again.values()} == {2.0}
    assert all(torch.equal(again[layer].up, pair.up) for layer, pair in state.items())
    with pytest.raises(CheckpointError, match="diffusers' dialect has no place for alpha"):
        write_lora(state, tmp_path / "y.safetensors", "diffusers", keep_alpha=True)


@pytest.mark.parametrize("dialect", ["native", "ai-toolkit", "diffusers"])
def test_diffusers_loads_what_we_write_to_the_same_effect(dialect: Dialect, model: Transformer, tmp_path: Path) -> None:
    state = random_lora(model)
    path = write_lora(state, tmp_path / "x.safetensors", dialect)
    pipeline = tiny_pipeline(model)
    before, (latents, timestep, features) = run(model), random_inputs()
    pipeline.load_lora_weights(str(path))
    with torch.no_grad():
        theirs = run_diffusers(pipeline.transformer, latents, timestep, features, None)
    ours = run(model, state)
    assert (ours - before).abs().max() > 0.1
    assert (ours - theirs).abs().max() <= 1e-5


def tiny_pipeline(model: Transformer) -> Any:
    tokenizer = tiny_tokenizer()
    return Krea2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=tiny_autoencoder(TINY.latent_channels),
        text_encoder=tiny_text_encoder(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=diffusers_twin(model),
    )


def randomise(adapted: nn.Module) -> None:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("saver", ["pipeline", "model", "peft"])
def test_what_diffusers_and_peft_save_is_loaded_to_the_same_effect(
    saver: str, model: Transformer, tmp_path: Path
) -> None:
    theirs = diffusers_twin(model)
    config = PeftConfig(
        r=4, lora_alpha=6, target_modules=["to_q", "to_out.0", "img_in", "projector", "up"], use_rslora=saver == "peft"
    )
    if saver == "peft":
        adapted = get_peft_model(theirs, config)
        randomise(adapted)
        adapted.save_pretrained(tmp_path)
    else:
        theirs.add_adapter(config)
        randomise(theirs)
        if saver == "model":
            theirs.save_lora_adapter(tmp_path)
        else:
            Krea2Pipeline.save_lora_weights(
                tmp_path,
                transformer_lora_layers=get_peft_model_state_dict(theirs),
                transformer_lora_adapter_metadata=config.to_dict() | {"target_modules": sorted(config.target_modules)},
            )
    state, _ = read_lora(tmp_path)
    latents, timestep, features = random_inputs()
    with torch.no_grad():
        expected = run_diffusers(theirs, latents, timestep, features, None)
    assert (run(model) - expected).abs().max() > 0.1
    assert (run(model, state) - expected).abs().max() <= 1e-5


def test_a_trained_lora_goes_to_diffusers_from_the_model_itself(model: Transformer, tmp_path: Path) -> None:
    load_lora(model, random_lora(model), "style", strength=0.3)
    path = write_lora(lora_state(model, "style"), tmp_path / "x.safetensors", "kohya")
    assert_same(read_lora(path)[0], random_lora(model))


@pytest.mark.parametrize(
    ("key", "method"),
    [
        ("diffusion_model.blocks.0.attn.wq.dora_scale", "DoRA"),
        ("transformer.transformer_blocks.0.attn.to_q.lora_magnitude_vector", "DoRA"),
        ("diffusion_model.blocks.0.attn.wq.lokr_w1", "LoKr"),
        ("lora_unet_blocks_0_attn_wq.hada_w1_a", "LoHa"),
    ],
)
def test_other_methods_are_refused_with_their_name(key: str, method: str, model: Transformer, tmp_path: Path) -> None:
    save_file(encode_lora(random_lora(model), "native") | {key: torch.zeros(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=f"is a {method} .*merge it into the weights"):
        run_convert(tmp_path / "x.safetensors", tmp_path / "out.safetensors", "--to", "diffusers")


@pytest.mark.parametrize(
    ("dialect", "wrong", "right"),
    [
        ("native", "diffusion_model.blocks.1.attn.w_q.lora_A.weight", "diffusion_model.blocks.1.attn.wq.lora_A.weight"),
        ("kohya", "lora_unet_block_1_attn_wv.lora_up.weight", "lora_unet_blocks_1_attn_wv.lora_up.weight"),
        (
            "diffusers",
            "transformer.transformer_blocks.1.ff.gate_proj.lora_B.weight",
            "transformer.transformer_blocks.1.ff.gate.lora_B.weight",
        ),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest_known_one(
    dialect: Dialect, wrong: str, right: str, model: Transformer, tmp_path: Path
) -> None:
    tensors = encode_lora(random_lora(model), dialect)
    save_file({wrong: torch.zeros(2, 2)} | tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError) as refused:
        read_lora(tmp_path / "x.safetensors")
    assert f"1 of {len(tensors) + 1} keys belong to no layer" in str(refused.value)
    assert f"'{wrong}' is nearest to '{right}'" in str(refused.value)


def test_incomplete_and_mismatched_pairs_are_refused(model: Transformer) -> None:
    tensors = encode_lora(random_lora(model), "native")
    half = {name: tensor for name, tensor in tensors.items() if name != "diffusion_model.first.lora_B.weight"}
    with pytest.raises(CheckpointError, match="only a part of the LoRA of 'img_in'"):
        decode_lora(half, Path("x.safetensors"))
    tensors["diffusion_model.first.lora_B.weight"] = torch.zeros(96, 3)
    with pytest.raises(CheckpointError, match=r"'img_in' matrices \(4, 16\) and \(96, 3\), which share no rank"):
        decode_lora(tensors, Path("x.safetensors"))


def test_a_lora_is_not_taken_for_weights_nor_weights_for_a_lora(model: Transformer, tmp_path: Path) -> None:
    path = write_lora(random_lora(model), tmp_path / "x.safetensors", "native")
    with pytest.raises(CheckpointError, match="holds a LoRA, not a whole transformer"):
        load_transformer(path)
    with pytest.raises(ConfigError, match="is a LoRA, and --to pleinair is for weights"):
        run_convert(path, tmp_path / "out", "--to", "pleinair")
    save_file(dict(model.state_dict()), tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="keys belong to no layer of a K2 transformer"):
        read_lora(tmp_path / "weights.safetensors")


def test_pickles_and_empty_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "lora.pt").write_bytes(pickle.dumps({}))
    with pytest.raises(CheckpointError, match="is a pickle file"):
        read_lora(tmp_path / "lora.pt")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4}))
    with pytest.raises(CheckpointError, match="holds no LoRA"):
        read_lora(tmp_path)
