"""8-bit products: which layers, how far from float32, and that nothing else changes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pleinair.model.float8 import Recipe, float8_layers, recipe_for, to_float8
from pleinair.model.transformer import Transformer
from pleinair.records.errors import ConfigError
from tests.small_transformers import tiny_config

SMALL = tiny_config(text_mlp_width=40, num_refiner_text_blocks=0)
"""Text fusion's MLP is no multiple of 16 wide: it stays."""
NUM_STEPS = 25
RECIPES: tuple[Recipe, ...] = ("tensorwise", "rowwise")


def small_transformer() -> Transformer:
    torch.manual_seed(0)
    return Transformer(SMALL)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(4, SMALL.latent_channels, 8, 8, generator=generator)
    features = torch.randn(4, 5, SMALL.num_text_layers, SMALL.text_dim, generator=generator)
    return latents, torch.rand(4, generator=generator), features


def losses(model: nn.Module, num_steps: int) -> list[float]:
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    inputs, course = batch(), []
    for _ in range(num_steps):
        loss = F.mse_loss(model(*inputs), inputs[0].flip(1))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        course.append(loss.item())
    return course


def test_first_and_last_layers_modulation_and_odd_sizes_are_excluded() -> None:
    attention, mlp = ("to_q", "to_k", "to_v", "to_gate", "to_out.0"), ("gate", "up", "down")
    blocks = [
        f"transformer_blocks.{number}.{part}"
        for number in range(2)
        for part in (*(f"attn.{layer}" for layer in attention), *(f"ff.{layer}" for layer in mlp))
    ]
    text = [f"text_fusion.layerwise_blocks.0.attn.{layer}" for layer in attention]
    assert float8_layers(small_transformer()) == text + blocks
    converted = to_float8(small_transformer(), "rowwise", emulate=True)
    assert [
        name for name, module in converted.named_modules() if type(module).__name__ == "Float8Linear"
    ] == text + blocks


@pytest.mark.parametrize("recipe", RECIPES)
def test_state_and_optimiser_see_the_same_parameters(recipe: Recipe) -> None:
    model = small_transformer()
    before = dict(model.named_parameters())
    assert to_float8(model, recipe, emulate=True) is model
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == {
        n: id(p) for n, p in before.items()
    }
    assert model.state_dict().keys() == small_transformer().state_dict().keys()


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_stays_near_float32(recipe: Recipe) -> None:
    plain = losses(small_transformer(), NUM_STEPS)
    rounded = losses(to_float8(small_transformer(), recipe, emulate=True), NUM_STEPS)
    assert plain[-1] < 0.5 * plain[0]
    assert rounded != plain
    assert rounded[-1] == pytest.approx(plain[-1], rel=0.05)


@torch.no_grad()
def error_beside_an_outlier(recipe: Recipe) -> float:
    """Relative error of one layer's output in the rows that hold no outlier."""
    generator = torch.Generator().manual_seed(2)
    x_RD = torch.randn(64, 64, generator=generator)
    x_RD[7] *= 1e5
    layer = nn.Sequential(nn.Linear(64, 64, bias=False))
    exact_RD = layer(x_RD)
    error_RD = to_float8(layer, recipe, emulate=True)(x_RD) - exact_RD
    others = torch.arange(64) != 7
    return float(error_RD[others].norm() / exact_RD[others].norm())


def test_an_outlier_spoils_other_rows_under_tensorwise_scales_only() -> None:
    assert error_beside_an_outlier("rowwise") < 0.05
    assert error_beside_an_outlier("tensorwise") > 5 * error_beside_an_outlier("rowwise")


def test_a_run_switches_recipe_and_off_in_place() -> None:
    model, inputs = to_float8(small_transformer(), "tensorwise", emulate=True), batch()
    modules = [id(module) for module in model.modules()]
    with torch.no_grad():
        tensorwise = model(*inputs)
        rowwise = to_float8(model, "rowwise", emulate=True)(*inputs)
        off = to_float8(model, None)(*inputs)
        plain = small_transformer()(*inputs)
    assert [id(module) for module in model.modules()] == modules
    assert not torch.equal(tensorwise, rowwise)
    torch.testing.assert_close(rowwise, to_float8(small_transformer(), "rowwise", emulate=True)(*inputs))
    torch.testing.assert_close(off, plain)
    assert losses(model, 3) == pytest.approx(losses(small_transformer(), 3), rel=1e-6)


def test_the_recipe_follows_the_resolution() -> None:
    assert [recipe_for(pixels) for pixels in (64, 511, 512, 1023, 1024, 2048)] == [
        "tensorwise", "tensorwise", "rowwise", "rowwise", None, None,
    ]  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may have 8-bit products")
def test_without_hardware_it_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"compute capability 8\.9 or newer: set emulate=True"):
        to_float8(small_transformer(), "rowwise")


def test_an_unknown_recipe_and_a_model_without_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match="recipe is 'blockwise'"):
        to_float8(small_transformer(), "blockwise", emulate=True)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="multiples of 16: use bf16"):
        to_float8(nn.Linear(8, 8), "rowwise", emulate=True)


@pytest.mark.slow
def test_importing_torchao_is_silent() -> None:
    code = """
import torch
from pleinair.model.float8 import to_float8
to_float8(torch.nn.Sequential(torch.nn.Linear(16, 16)), "rowwise", emulate=True)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
