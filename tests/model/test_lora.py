from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pleinair.model.formats import LoraPair, LoraState, load_transformer, save_transformer
from pleinair.model.lora import (
    LoraBranch,
    LoraConfig,
    add_lora,
    freeze_base,
    load_lora,
    lora_names,
    lora_parameters,
    lora_state,
    merge_lora,
    remove_lora,
    set_lora_strengths,
)
from pleinair.model.transformer import Transformer
from pleinair.records.errors import CheckpointError, ConfigError
from tests.small_transformers import random_inputs, random_transformer

EVERY_LAYER = LoraConfig(rank=3, alpha=1.5, targets=("*",))


@pytest.fixture
def model() -> Transformer:
    return random_transformer()


def random_lora(model: Transformer, seed: int = 0, *, rank: int = 3, alpha: float = 1.5) -> LoraState:
    """Of every linear layer, each matrix random, so that no layer's change can be lost unseen."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return 0.1 * torch.randn(*shape, generator=generator)

    return {
        layer: LoraPair(noise(rank, linear.in_features), noise(linear.out_features, rank), alpha)
        for layer, linear in model.named_modules()
        if isinstance(linear, nn.Linear)
    }


@torch.no_grad()
def run(model: Transformer) -> Tensor:
    out: Tensor = model(*random_inputs())
    return out


@torch.no_grad()
def changed(model: Transformer, *changes: tuple[LoraState, float]) -> Transformer:
    """The naive oracle: the same model with the products added to its weights."""
    twin = copy.deepcopy(model)
    for state, strength in changes:
        for layer, pair in state.items():
            twin.get_submodule(layer).weight += strength * pair.alpha / len(pair.down) * pair.up @ pair.down  # type: ignore[operator]
    return twin


def test_a_new_lora_changes_nothing_and_is_all_that_is_trained(model: Transformer) -> None:
    before = run(model)
    layers = add_lora(model, LoraConfig(rank=4))
    freeze_base(model)
    assert len(layers) == 3 * 8
    assert (run(model) - before).abs().max() < 1e-5  # sums of zeros may move where the products' tiles begin
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"{layer}.lora.default.{matrix}" for layer in layers for matrix in ("down", "up")}
    model(*random_inputs()).square().mean().backward()
    assert all(parameter.grad is not None for parameter in lora_parameters(model))


def test_training_a_lora_lowers_the_loss_and_leaves_the_base_alone(model: Transformer) -> None:
    torch.manual_seed(0)
    add_lora(model, LoraConfig(rank=4, dropout=0.1))
    freeze_base(model)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items() if ".lora." not in name}
    inputs, target = random_inputs(), run(random_transformer(seed=5))
    optimiser = torch.optim.AdamW(lora_parameters(model), lr=1e-2)
    losses = []
    for _ in range(6):
        loss = (model(*inputs) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in base.items())


def test_several_loras_add_up_at_their_strengths(model: Transformer) -> None:
    first, second = random_lora(model, 1), random_lora(model, 2, rank=2, alpha=8.0)
    expected = run(changed(model, (first, 0.7), (second, -0.3)))
    load_lora(model, first, "first")
    load_lora(model, second, "second", strength=-0.3)
    set_lora_strengths(model, {"first": 0.7})
    assert lora_names(model) == ["first", "second"]
    assert (run(model) - expected).abs().max() < 2e-5


def test_merging_gives_the_same_output_from_plain_layers(model: Transformer) -> None:
    load_lora(model, random_lora(model), strength=0.7)
    expected = run(model)
    merge_lora(model)
    assert lora_names(model) == []
    assert model.state_dict().keys() == random_transformer().state_dict().keys()
    assert not any(module._forward_hooks for module in model.modules())
    assert (run(model) - expected).abs().max() < 2e-5


def test_removing_one_leaves_the_others_and_removing_all_restores_the_model(model: Transformer) -> None:
    before = run(model)
    load_lora(model, random_lora(model, 1), "first")
    expected = run(model)
    load_lora(model, random_lora(model, 2), "second")
    remove_lora(model, "second")
    assert torch.equal(run(model), expected)
    remove_lora(model)
    assert torch.equal(run(model), before)


def test_a_lora_drops_inputs_while_it_is_trained_and_not_afterwards() -> None:
    x, identity = torch.ones(64, 4), torch.eye(4)
    branch = LoraBranch(identity, identity, alpha=4.0, dropout=0.5)
    assert set(branch(x).unique().tolist()) == {0.0, 2.0}
    assert torch.equal(branch.eval()(x), x)
    model = random_transformer()
    add_lora(model, LoraConfig(dropout=0.5))
    branches = [module for module in model.modules() if isinstance(module, LoraBranch)]
    assert not any(branch.training for branch in branches), "a model that draws goes on without"


def test_a_state_survives_being_attached(model: Transformer) -> None:
    state = random_lora(model)
    load_lora(model, state, "kept", strength=0.2)
    again = lora_state(model, "kept")
    assert again.keys() == state.keys()
    for layer, pair in state.items():
        assert torch.equal(again[layer].down, pair.down)
        assert torch.equal(again[layer].up, pair.up)
        assert again[layer].alpha == pair.alpha


def test_a_lora_works_on_a_bfloat16_base_with_and_without_autocast(model: Transformer) -> None:
    state = random_lora(model)
    expected = run(changed(model, (state, 1.0)))
    model.to(torch.bfloat16)
    load_lora(model, state)
    plain = run(model)
    with torch.autocast("cpu", torch.bfloat16):
        automatic = run(model)
    assert plain.dtype == automatic.dtype == torch.bfloat16
    for out in (plain, automatic):
        assert (out.float() - expected).abs().max() < 0.1 * expected.std()


def test_a_copied_model_has_its_own_lora(model: Transformer) -> None:
    before = run(model)
    load_lora(model, random_lora(model))
    expected = run(model)
    twin = copy.deepcopy(model)
    remove_lora(model)
    assert torch.equal(run(model), before)
    assert torch.equal(run(twin), expected)


def test_saved_weights_are_the_base_alone(model: Transformer, tmp_path: object) -> None:
    before = run(model)
    load_lora(model, random_lora(model))
    path = save_transformer(model, f"{tmp_path}/base")
    assert torch.equal(run(load_transformer(path)), before)


def test_a_lora_that_fits_in_part_is_not_applied_at_all(model: Transformer) -> None:
    before = run(model)
    state = random_lora(model)
    state["transformer_blocks.7.attn.to_q"] = state["transformer_blocks.0.attn.to_q"]
    state["img_in"] = LoraPair(torch.zeros(2, 5), torch.zeros(96, 2), 2.0)
    with pytest.raises(CheckpointError, match=r"2 of 65 layers.*\(.*transformer_blocks.7.attn.to_q\)"):
        load_lora(model, state)
    assert torch.equal(run(model), before)


def test_mistakes_are_named(model: Transformer) -> None:
    with pytest.raises(ConfigError, match="targets names 'blocks', which no layer matches"):
        add_lora(model, LoraConfig(targets=("blocks",)))
    add_lora(model, EVERY_LAYER)
    with pytest.raises(ConfigError, match="named 'default' is attached already"):
        add_lora(model, EVERY_LAYER)
    with pytest.raises(ConfigError, match="no LoRA named 'style' is attached: there are default"):
        set_lora_strengths(model, {"style": 1.0})
    for wrong in ({"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}):
        with pytest.raises(ConfigError, match="give"):
            LoraConfig(**wrong)  # type: ignore[arg-type]
