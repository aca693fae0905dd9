from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from pleinair.model.lora import LoraConfig, add_lora, freeze_base
from pleinair.model.transformer import Transformer, TransformerConfig
from pleinair.records.errors import ConfigError
from pleinair.training.optimisers import HeadConfig, OptimiserConfig, ScheduledOptimiser, group_parameters
from tests.small_transformers import SWITCHABLE, SWITCHES
from tests.training.small_stages import TINY

IN_BLOCKS = {
    "attn": ("to_q", "to_k", "to_v", "to_gate", "to_out", "compress_q", "compress_kv", "to_rotary_k"),
    "ff": ("gate", "up", "down"),
    "laurel1": ("down", "up"),
    "laurel2": ("down", "up"),
    "modulation": ("",),
}
"""Muon's matrices: module of a block -> its layers."""
ENDS = (
    "img_in",
    "txt_in",
    "time_embed",
    "time_mod_proj",
    "time_tokens_proj",
    "final_layer.linear",
    "text_fusion.projector",
)
ALWAYS_CENTRED = ("norm_q", "norm_k", "norm_kv", "txt_in.norm", "text_fusion")
"""Norms that no switch changes."""


class Blocks(nn.Module):
    """Hidden matrices of several shapes."""

    def __init__(self, *shapes: tuple[int, int]) -> None:
        super().__init__()
        self.blocks = nn.ParameterList(nn.Parameter(torch.randn(shape)) for shape in shapes)


def optimiser(model: nn.Module, **settings: object) -> ScheduledOptimiser:
    config = OptimiserConfig(**{"rule": "muon", "warmup_steps": 0, "learning_rate": 0.1, **settings})  # type: ignore[arg-type]
    return ScheduledOptimiser(model, config, 100, 0)


def test_muon_takes_the_blocks_matrices_and_nothing_else() -> None:
    model = Transformer(TINY)
    groups = group_parameters(model, "muon")
    taken = {name for name, _ in groups.muon}
    named = dict(model.named_parameters())
    assert taken == {name for name, p in named.items() if "blocks." in name and p.ndim == 2 and "table" not in name}
    left = {name.split(".")[0] for name in set(named) - taken if "blocks." not in name}
    assert left == {"img_in", "time_embed", "time_mod_proj", "txt_in", "text_fusion", "final_layer"}
    assert {name for name in set(named) - taken if "text_fusion" in name and named[name].ndim == 2} == {
        "text_fusion.projector.weight"
    }
    assert all("table" not in name for name in taken)
    assert len(groups.muon) + len(groups.decayed) + len(groups.plain) == len(named)


def treatment(name: str, norm: str) -> str:
    """Where a parameter of this name belongs, told from the architecture."""
    path = [word for word in name.split(".") if not word.isdigit() and word not in ("block", "image", "text")]
    *modules, kind = path
    if "norm" in name:
        centred = norm == "rms_zero_centred" or any(word in name for word in ALWAYS_CENTRED)
        return "decayed" if centred and kind == "weight" else "plain"
    if kind != "weight":
        return "plain"  # biases, tables, value residual's shares
    if "blocks." in name:
        module, *layer = modules[next(place for place, word in enumerate(modules) if "blocks" in word) + 1 :]
        return "muon" if (layer or [""])[0] in IN_BLOCKS[module] else "unknown"
    return "decayed" if name.startswith(ENDS) else "unknown"


@pytest.mark.parametrize("changes", [{}, *SWITCHES.values()], ids=["released", *SWITCHES])
def test_every_switchs_parameters_go_where_they_belong(changes: dict[str, Any]) -> None:
    config = replace(SWITCHABLE, **changes)
    with torch.device("meta"):
        model = Transformer(config)
    groups = group_parameters(model, "muon")
    found = {name: where for where in ("muon", "decayed", "plain") for name, _ in getattr(groups, where)}
    assert found == {name: treatment(name, config.norm) for name, _ in model.named_parameters()}
    alone = group_parameters(model, "adamw")
    assert {name for name, _ in alone.plain} == {name for name, where in found.items() if where == "plain"}
    assert not alone.muon


def test_a_lora_inside_the_blocks_is_no_hidden_matrix() -> None:
    model = Transformer(TINY)
    add_lora(model, LoraConfig(rank=2))
    freeze_base(model)
    groups = group_parameters(model, "muon")
    assert (len(groups.muon), len(groups.plain)) == (0, 0)
    assert {name.rsplit(".", 1)[1] for name, _ in groups.decayed} == {"down", "up"}


def test_zero_centred_norms_decay_and_biases_and_tables_do_not() -> None:
    groups = group_parameters(Transformer(TINY), "adamw")
    decayed, plain = ({name for name, _ in part} for part in (groups.decayed, groups.plain))
    assert "transformer_blocks.0.norm1.weight" in decayed
    assert "img_in.weight" in decayed
    assert {"img_in.bias", "transformer_blocks.0.scale_shift_table", "final_layer.scale_shift_table"} <= plain
    assert not groups.muon


def test_weight_decay_moves_a_norms_scale_towards_one_and_leaves_biases() -> None:
    model = Transformer(TINY)
    norm, bias = model.final_layer.norm.weight, model.img_in.bias
    with torch.no_grad():
        norm.fill_(0.5)
    bias_before = bias.clone()
    rule = optimiser(model, rule="adamw", weight_decay=0.1)
    for step in range(50):
        rule.set_step(step)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        rule.step()
    scales = 1 + norm
    assert torch.allclose(scales, torch.full_like(scales, 1 + 0.5 * (1 - 0.1 * 0.1) ** 50), atol=1e-5)
    assert torch.equal(bias, bias_before)


@pytest.mark.parametrize("shape", [(64, 64), (64, 256), (256, 64), (96, 32)])
def test_muons_updates_are_as_large_as_adamws_for_every_shape(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = Blocks(shape)
    weight = model.blocks[0]
    before = weight.detach().clone()
    weight.grad = torch.randn(shape)
    rule = optimiser(model, weight_decay=0.0)
    rule.set_step(0)
    rule.step()
    update = (weight.detach() - before) / 0.1
    rms = update.square().mean().sqrt().item()
    assert rms == pytest.approx(0.2, rel=0.2)
    singular = torch.linalg.svdvals(update / (0.2 * max(shape) ** 0.5))
    assert singular.min() > 0.6
    assert singular.max() < 1.25


def test_muons_momentum_is_nesterovs() -> None:
    """After gradients +G, -G the plain buffer keeps its sign longer than the looked-ahead one: compare with the formula."""
    torch.manual_seed(0)
    first, second, momentum = torch.randn(16, 16), torch.randn(16, 16), 0.9
    model = Blocks((16, 16))
    rule = optimiser(model, momentum=momentum, weight_decay=0.0)
    rule.set_step(0)
    for gradient in (first, second):
        before = model.blocks[0].detach().clone()
        model.blocks[0].grad = gradient.clone()
        rule.step()
    update = before - model.blocks[0].detach()
    buffer = (1 - momentum) * (
        momentum * first + second
    )  # torch averages: the scale is taken out by the orthogonalisation
    ahead = (1 - momentum) * second + momentum * buffer
    u, _, vh = torch.linalg.svd(ahead)
    plain_u, _, plain_vh = torch.linalg.svd(buffer)
    polar = [u @ vh, plain_u @ plain_vh]
    likeness = [nn.functional.cosine_similarity(update.flatten(), matrix.flatten(), dim=0) for matrix in polar]
    assert likeness[0] > 0.95 > likeness[1]


def test_a_model_without_trained_parameters_is_refused() -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        optimiser(model)


@pytest.mark.parametrize(("name", "value"), [("decay_share", 1.5), ("min_factor", -0.1), ("learning_rate", 0.0)])
def test_impossible_settings_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {value}"):
        OptimiserConfig(**{name: value})  # type: ignore[arg-type]


def test_the_released_size_has_no_hidden_matrix_left_out() -> None:
    with torch.device("meta"):
        model = Transformer(TransformerConfig(num_layers=1))
    assert sum(p.numel() for _, p in group_parameters(model, "muon").muon) > 0.55 * sum(
        p.numel() for p in model.parameters()
    )


def test_a_head_has_a_rate_and_betas_of_its_own_and_the_model_keeps_its() -> None:
    rule = optimiser(Blocks((4, 4)), rule="adamw", betas=(0.5, 0.9), head=HeadConfig(rate_factor=5, betas=(0.0, 0.95)))
    rule.set_head(nn.Linear(2, 2))
    assert rule.set_step(0) == 0.1
    rates = {name: {group["lr"] for group in part.param_groups} for name, part in rule.parts.items()}
    betas = {name: {group["betas"] for group in part.param_groups} for name, part in rule.parts.items()}
    assert rates == {"adamw": {0.1}, "head": {0.5}}
    assert betas == {"adamw": {(0.5, 0.9)}, "head": {(0.0, 0.95)}}


def test_a_head_without_settings_is_updated_as_the_model() -> None:
    rule = optimiser(Blocks((4, 4)), rule="adamw", betas=(0.5, 0.9))
    rule.set_head(nn.Linear(2, 2))
    rule.set_step(0)
    groups = [group for part in rule.parts.values() for group in part.param_groups]
    assert {(group["lr"], group["betas"]) for group in groups} == {(0.1, (0.5, 0.9))}
    with pytest.raises(ConfigError, match="head.rate_factor is 0: it must be positive"):
        HeadConfig(rate_factor=0)
