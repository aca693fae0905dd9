from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pleinair.model.formats import save_transformer
from pleinair.model.lora import LoraConfig, add_lora, freeze_base, load_lora, lora_parameters, lora_state, merge_lora
from pleinair.model.offload import offload_blocks
from pleinair.model.quantised_base import Int8Linear, blocks_of, quantise_base, quantise_rows
from pleinair.model.transformer import Transformer
from pleinair.records.errors import CheckpointError, ConfigError
from tests.small_transformers import random_inputs, random_transformer


def adapted(model: Transformer) -> Transformer:
    """With a LoRA whose matrices are all random, the base frozen."""
    add_lora(model, LoraConfig(rank=4), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in lora_parameters(model):
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    freeze_base(model)
    return model


def output_and_gradients(model: Transformer) -> tuple[Tensor, list[Tensor]]:
    out = model(*random_inputs())
    out.square().mean().backward()
    gradients = [parameter.grad for parameter in lora_parameters(model)]
    assert all(gradient is not None for gradient in gradients)
    return out.detach(), [gradient for gradient in gradients if gradient is not None]


def test_an_8_bit_row_is_off_by_at_most_half_its_step() -> None:
    weight = torch.randn(33, 65, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 33)[:, None]
    levels, scale = quantise_rows(weight)
    assert levels.dtype == torch.int8
    assert ((levels.float() * scale[:, None] - weight).abs() <= 0.5001 * scale[:, None]).all()
    assert torch.equal(quantise_rows(torch.zeros(2, 3))[0], torch.zeros(2, 3, dtype=torch.int8))
    with pytest.raises(ValueError, match="infinities or NaN"):
        quantise_rows(torch.tensor([[1.0, torch.nan]]))


def test_an_8_bit_layer_computes_with_its_dequantised_weight() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(40, 24)
    layer = Int8Linear(linear)
    weight = layer.weight.float() * layer.scale[:, None]
    x = torch.randn(5, 7, 40, generator=torch.Generator().manual_seed(1), requires_grad=True)
    seed = torch.randn(5, 7, 24, generator=torch.Generator().manual_seed(2))
    out, expected = layer(x), F.linear(x, weight, linear.bias)
    assert (out - expected).abs().max() < 1e-5
    (gradient,) = torch.autograd.grad(out, x, seed)
    (oracle,) = torch.autograd.grad(expected, x, seed)
    assert (gradient - oracle).abs().max() < 1e-5


def test_an_8_bit_base_takes_a_byte_per_weight_and_draws_nearly_the_same() -> None:
    model = random_transformer()
    with torch.no_grad():
        before = model(*random_inputs())
    matrices = [m for block in blocks_of(model) for m in block.modules() if isinstance(m, nn.Linear)]
    num_weights, num_rows = sum(m.weight.numel() for m in matrices), sum(m.out_features for m in matrices)
    assert quantise_base(model) == 4 * num_weights - num_weights - 4 * num_rows
    small = [m for block in blocks_of(model) for m in block.modules() if isinstance(m, Int8Linear)]
    assert sum(m.weight.nbytes for m in small) == num_weights
    with torch.no_grad():
        after = model(*random_inputs())
    assert (after - before).std() < 0.03 * before.std()


def test_gradients_through_an_8_bit_base_reach_the_lora_and_nothing_else() -> None:
    model = random_transformer()
    quantise_base(model)
    adapted(model)
    twin = random_transformer()
    with torch.no_grad():
        for layer, module in model.named_modules():
            if isinstance(module, Int8Linear):
                twin.get_submodule(layer).weight.copy_(module.weight.float() * module.scale[:, None])  # type: ignore[operator]
    adapted(twin)
    (out, gradients), (expected, oracle) = output_and_gradients(model), output_and_gradients(twin)
    assert (out - expected).abs().max() < 1e-4
    for gradient, right in zip(gradients, oracle, strict=True):
        assert (gradient - right).abs().max() <= 1e-4 * right.abs().max()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == {
        name for name, parameter in model.named_parameters() if ".lora." in name
    }


def test_the_backward_pass_of_an_8_bit_layer_keeps_its_bytes_only() -> None:
    layer = Int8Linear(nn.Linear(64, 64, bias=False))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(torch.randn(2, 64, requires_grad=True))
    assert sum(tensor.nbytes for tensor in kept) == 64 * 64 + 4 * 64


def test_what_8_bits_cannot_do_is_refused(tmp_path: object) -> None:
    model = adapted(random_transformer())
    with pytest.raises(ConfigError, match="a LoRA is attached to .* already: quantise the base first"):
        quantise_base(model)
    small = random_transformer()
    quantise_base(small)
    load_lora(small, lora_state(model))
    with pytest.raises(ConfigError, match="has 8-bit weights: load the model in floating point"):
        merge_lora(small)
    with pytest.raises(CheckpointError, match="stored in 8 bits.*write_lora"):
        save_transformer(small, f"{tmp_path}/small")


@pytest.mark.parametrize("base", ["float", "8 bits"])
def test_offloaded_blocks_give_equal_outputs_and_gradients(base: str) -> None:
    plain, offloaded = random_transformer(), random_transformer()
    if base == "8 bits":
        quantise_base(plain)
        quantise_base(offloaded)
    adapted(plain)
    offload_blocks(adapted(offloaded), "cpu")
    for _ in range(2):  # the second step begins where the first one's backward pass ended
        for model in (plain, offloaded):
            for parameter in lora_parameters(model):
                parameter.grad = None
        (out, gradients), (expected, oracle) = output_and_gradients(offloaded), output_and_gradients(plain)
        assert torch.equal(out, expected)
        assert all(torch.equal(gradient, right) for gradient, right in zip(gradients, oracle, strict=True))
    with torch.no_grad():
        assert torch.equal(offloaded(*random_inputs()), plain(*random_inputs()))


def test_at_most_two_blocks_are_on_the_device_and_each_comes_once_a_pass() -> None:
    model = adapted(random_transformer())
    offload = offload_blocks(model, "cpu")
    resident: list[tuple[int, ...]] = []
    for block in model.transformer_blocks:
        block.ff.register_forward_hook(lambda *_: resident.append(tuple(sorted(offload.arrived))))
    model(*random_inputs()).square().mean().backward()
    assert resident == [(0, 1), (1, 2), (2,), (1, 2), (0, 1), (0,)]


def test_nothing_of_a_block_stays_on_the_device_in_its_place() -> None:
    model = adapted(random_transformer())
    offload = offload_blocks(model, "cpu")
    model(*random_inputs()).square().mean().backward()
    homes = {id(tensor) for home in offload.homes for _, _, tensor in home}
    frozen = [p for p in model.transformer_blocks.parameters() if not p.requires_grad]
    assert {id(parameter) for parameter in frozen} == homes


def test_a_trainable_block_is_not_offloaded() -> None:
    with pytest.raises(ConfigError, match=r"'transformer_blocks.0.scale_shift_table' is trainable.*freeze the base"):
        offload_blocks(random_transformer(), "cpu")
