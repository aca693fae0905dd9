"""Every row of the ablation table: what a switch builds, against formulas and naive versions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pleinair.config import from_document, to_document
from pleinair.model.architecture import is_released_layout
from pleinair.model.attention import LatentAttention
from pleinair.model.blocks import ValueResidual, make_norm
from pleinair.model.layers import GELUMLP, DynamicErf, LayerNorm, RMSNorm, SwiGLU
from pleinair.model.positions import GOLDEN_STEP, image_rotations, rotate, rotations
from pleinair.model.transformer import Transformer, TransformerConfig, count_parameters
from pleinair.records.errors import ConfigError
from tests.small_transformers import SWITCHABLE as SMALL
from tests.small_transformers import SWITCHES, random_inputs, random_transformer

MASK = torch.arange(12) < torch.tensor([5, 12, 7])[:, None]

each_switch = pytest.mark.parametrize("changes", SWITCHES.values(), ids=SWITCHES.keys())


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    return random_inputs(SMALL)


def share_weights(model: nn.Module, source: nn.Module) -> None:
    """Every tensor of `model` that `source` has under the same name and shape."""
    own, other = model.state_dict(), source.state_dict()
    model.load_state_dict({n: other[n] if n in other and other[n].shape == x.shape else x for n, x in own.items()})


@each_switch
def test_a_switch_trains_every_parameter_and_changes_the_output(changes: dict[str, Any]) -> None:
    plain, model = random_transformer(SMALL), random_transformer(replace(SMALL, **changes))
    share_weights(model, plain)
    latents, timestep, features = inputs()
    velocity = model(latents, timestep, features, MASK)
    velocity.square().mean().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.count_nonzero()]
    assert silent == []
    assert velocity.shape == latents.shape
    assert (velocity - plain(latents, timestep, features, MASK)).abs().max() > 1e-2


@torch.no_grad()
@each_switch
def test_a_sample_does_not_depend_on_its_batch_under_any_switch(changes: dict[str, Any]) -> None:
    model = random_transformer(replace(SMALL, **changes))
    latents, timestep, features = inputs()
    together = model(latents, timestep, features, MASK)
    for i in range(3):
        row = slice(i, i + 1)
        alone = model(latents[row], timestep[row], features[row], MASK[row])
        assert torch.allclose(together[row], alone, atol=2e-5)


@pytest.mark.parametrize("changes", [{}, *SWITCHES.values()], ids=["released", *SWITCHES.keys()])
def test_the_number_of_parameters_follows_the_formula(changes: dict[str, Any]) -> None:
    config = replace(SMALL, **changes)
    assert count_parameters(config) == formula(config)


def formula(c: TransformerConfig) -> int:
    """Parameters by hand, from the sizes alone."""
    d, k, t, heads = c.width, c.head_dim, c.text_dim, c.num_heads
    norm = {"rms_zero_centred": d, "rms": d, "layer": 2 * d, "derf": 2 * d + 2}[c.norm]
    gate = d * d if c.gate else 0
    if c.attention == "mla":
        reading = c.q_rank * (d + d + 1) + gate + d * d
        kept = c.kv_rank * (d + heads * (k - c.rotary_dim) + d + 1) + d * c.rotary_dim
    else:
        reading, kept = d * d + k + gate + d * d, 2 * d * c.num_kv_heads * k + k
    mlp, num_norms = 3 * d * c.hidden_width, 1 if c.stream == "parallel" else 2
    vectors = 3 * num_norms
    modulation = 0
    if c.timestep == "adaln":
        modulation = vectors * d if c.modulation == "bias" else vectors * (d * d + d)
    laurel = num_norms * 2 * d * c.laurel_rank
    block = reading + kept + mlp + num_norms * norm + modulation + laurel
    blocks = block * (c.num_layers + c.dual_layers)
    if c.stream == "dual":  # text of the last block is only attended to
        blocks -= reading + mlp + norm + laurel
    blocks += c.num_layers - 1 if c.value_residual else 0
    timestep = 0 if c.timestep == "none" else c.timestep_dim * d + d + d * d + d
    if c.timestep == "adaln":
        timestep += 2 * d + (vectors * (d * d + d) if c.modulation == "bias" else 0)
    timestep += c.timestep_tokens * (d * d + d)
    text_kv = 2 * t * t * c.text_num_kv_heads // c.text_num_heads
    text_block = 3 * t * t + text_kv + 2 * (t // c.text_num_heads) + 3 * t * c.text_hidden_width + 2 * t
    mixed = c.text_features == "aggregated"
    layerwise = c.num_layerwise_text_blocks * text_block + c.num_text_layers if mixed else 0
    text = layerwise + c.num_refiner_text_blocks * text_block + t + (t + 1) * d + (d + 1) * d
    return blocks + timestep + text + (c.in_channels + 1) * d + norm + (d + 1) * c.in_channels


def test_a_projection_per_block_would_make_the_released_model_half_as_large_again() -> None:
    assert count_parameters(TransformerConfig(modulation="mlp")) == 18_935_331_404
    assert formula(TransformerConfig()) == 12_820_073_036


def test_a_gelu_mlp_has_the_parameters_of_its_swiglu() -> None:
    assert count_parameters(TransformerConfig(mlp="gelu")) == 12_820_073_036
    mlp = GELUMLP(4, 6)
    assert [tuple(p.shape) for p in mlp.parameters()] == [(9, 4), (4, 9)]
    x = torch.randn(3, 4)
    expected = F.gelu(x @ mlp.up.weight.T, approximate="tanh") @ mlp.down.weight.T
    assert torch.allclose(mlp(x), expected, atol=1e-6)


@torch.no_grad()
def test_without_a_gate_is_with_every_gate_open() -> None:
    gated, plain = random_transformer(SMALL), random_transformer(replace(SMALL, gate=False))
    share_weights(plain, gated)
    assert not torch.allclose(gated(*inputs()), plain(*inputs()), atol=1e-2)
    for block in gated.transformer_blocks:
        block.attn.to_gate.register_forward_hook(lambda module, args, out: torch.full_like(out, 100.0))
    assert torch.allclose(gated(*inputs()), plain(*inputs()), atol=1e-5)


@torch.no_grad()
def test_a_projection_per_block_that_equals_the_shared_one_gives_the_same_model() -> None:
    shared, own = random_transformer(SMALL), random_transformer(replace(SMALL, modulation="mlp"))
    share_weights(own, shared)
    for block, other in zip(own.transformer_blocks, shared.transformer_blocks, strict=True):
        block.modulation.weight.copy_(shared.time_mod_proj.weight)
        block.modulation.bias.copy_(shared.time_mod_proj.bias + other.scale_shift_table.flatten())
    assert torch.allclose(own(*inputs()), shared(*inputs()), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("stream", ["dual", "hybrid"])
def test_two_streams_with_equal_weights_are_one_stream(stream: Any) -> None:
    single, dual = random_transformer(SMALL), random_transformer(replace(SMALL, stream=stream))
    share_weights(dual, single)
    for index in range(dual.config.dual_layers):
        share_weights(dual.transformer_blocks[index].text, single.transformer_blocks[index])
        share_weights(dual.transformer_blocks[index].image, single.transformer_blocks[index])
    assert dual.config.dual_layers == {"dual": 3, "hybrid": 1}[stream]
    assert torch.allclose(dual(*inputs(), MASK), single(*inputs(), MASK), atol=1e-5)


@torch.no_grad()
def test_a_parallel_block_adds_attention_and_mlp_of_one_norm() -> None:
    block = random_transformer(replace(SMALL, stream="parallel")).transformer_blocks[0]
    x, shared = torch.randn(2, 6, 128), torch.randn(2, 3, 128)
    places = rotations(SMALL, 2, 2, 2, torch.device("cpu"))
    scale, shift, gate = (shared + block.scale_shift_table).unsqueeze(2).unbind(1)
    inner = (1 + scale) * block.norm1(x) + shift
    expected = x + gate * (block.attn(inner, places) + block.ff(inner))
    assert torch.allclose(block(x, shared, places), expected, atol=1e-5)


@torch.no_grad()
def test_mla_equals_its_equations_head_by_head() -> None:
    torch.manual_seed(0)
    mla = LatentAttention(dim=24, num_heads=2, q_rank=10, kv_rank=6, rotary_dim=4, eps=1e-5)
    nn.init.normal_(mla.norm_q.weight)
    nn.init.normal_(mla.norm_kv.weight)
    x = torch.randn(2, 5, 24)
    angles = torch.randn(5, 2)
    table = torch.stack([angles.cos(), angles.sin()], dim=-1)

    def turned(vector: Tensor, place: int) -> Tensor:
        a, b, cos, sin = vector[..., ::2], vector[..., 1::2], angles[place].cos(), angles[place].sin()
        return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)

    q_latent = mla.norm_q(x @ mla.compress_q.weight.T)
    kv_latent = mla.norm_kv(x @ mla.compress_kv.weight.T)
    heads = []
    for n in range(2):
        q = q_latent @ mla.to_q.weight[12 * n : 12 * n + 12].T
        content_k = kv_latent @ mla.to_k.weight[8 * n : 8 * n + 8].T
        v = kv_latent @ mla.to_v.weight[12 * n : 12 * n + 12].T
        rotary_k = x @ mla.to_rotary_k.weight.T
        scores = torch.zeros(2, 5, 5)
        for i in range(5):
            for j in range(5):
                content = (q[:, i, :8] * content_k[:, j]).sum(-1)
                rotary = (turned(q[:, i, 8:], i) * turned(rotary_k[:, j], j)).sum(-1)
                scores[:, i, j] = (content + rotary) / 12**0.5
        heads.append(scores.softmax(-1) @ v)
    assert mla.to_gate is not None
    expected = (torch.cat(heads, -1) * torch.sigmoid(mla.to_gate(x))) @ mla.to_out[0].weight.T
    assert torch.allclose(mla(x, table), expected, atol=1e-5)


@torch.no_grad()
def test_a_value_residual_of_share_zero_is_none_and_of_one_takes_the_first_values() -> None:
    plain, model = random_transformer(SMALL), random_transformer(replace(SMALL, value_residual=True))
    for own, other in zip(model.transformer_blocks, plain.transformer_blocks, strict=True):
        share_weights(own.block, other)
        own.load_state_dict({**own.state_dict(), **({"share": torch.zeros(1)} if own.share is not None else {})})
    share_weights(model, plain)
    assert torch.allclose(model(*inputs(), MASK), plain(*inputs(), MASK), atol=1e-6)
    second = model.transformer_blocks[1]
    assert isinstance(second, ValueResidual)
    second.share.fill_(1.0)
    places = rotations(SMALL, 2, 2, 2, torch.device("cpu"))
    first = torch.randn(1, 6, 2, 32)
    x, shared = torch.randn(1, 6, 128), torch.randn(1, 6, 128)
    before, carried = second(x, shared, places, None, 0, first)
    second.block.attn.to_v.weight.zero_()  # its own values no longer matter
    after, _ = second(x, shared, places, None, 0, first)
    assert torch.allclose(before, after, atol=1e-6)
    assert carried is None, "only the first block gives values on"


def test_the_first_blocks_values_learn_from_every_block_that_mixes_them_in() -> None:
    """The gradient of the first block's value projection is the loss's own slope."""
    model = random_transformer(replace(SMALL, num_layers=2, value_residual=True)).double()
    latents, timestep, features = (x[:1].double() for x in inputs())
    weight = model.transformer_blocks[0].block.attn.to_v.weight  # type: ignore[union-attr]

    def loss() -> Tensor:
        velocity: Tensor = model(latents, timestep, features)
        return velocity.square().mean()

    loss().backward()
    direction, step = torch.randn(weight.shape, dtype=torch.float64), 3e-4  # type: ignore[arg-type]
    with torch.no_grad():
        weight.add_(direction, alpha=step)  # type: ignore[operator]
        above = loss()
        weight.sub_(direction, alpha=2 * step)  # type: ignore[operator]
        slope = (above - loss()) / (2 * step)
    assert slope.item() == pytest.approx((weight.grad * direction).sum().item(), rel=1e-2)  # type: ignore[operator]


def test_new_shares_are_one_half_and_the_first_block_has_none() -> None:
    model = Transformer(replace(SMALL, value_residual=True))
    assert [block.share if block.share is None else block.share.item() for block in model.transformer_blocks] == [
        None,
        0.5,
        0.5,
    ]


@torch.no_grad()
def test_a_laurel_adds_its_low_rank_map_to_the_residual_and_starts_as_none() -> None:
    torch.manual_seed(0)
    plain = Transformer(SMALL)
    model = Transformer(replace(SMALL, laurel_rank=3))
    share_weights(model, plain)
    assert torch.equal(model(*inputs()), plain(*inputs()))
    laurel = model.transformer_blocks[0].laurel1
    nn.init.normal_(laurel.up.weight)
    x = torch.randn(2, 128)
    assert torch.allclose(laurel(x), x + x @ (laurel.up.weight @ laurel.down.weight).T, atol=1e-4)


@pytest.mark.parametrize("kind", ["rms_zero_centred", "rms", "layer", "derf"])
def test_norms_follow_their_equations_and_modulated_ones_modulate_them(kind: Any) -> None:
    norm = make_norm(replace(SMALL, norm=kind))
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x, scale, shift = torch.randn(2, 5, 128), torch.randn(2, 1, 128), torch.randn(2, 1, 128)
    rms = (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    match norm:
        case RMSNorm():
            expected = x / rms * (norm.weight + (1 if kind == "rms_zero_centred" else 0))
        case LayerNorm():
            expected = F.layer_norm(x, (128,), norm.weight, norm.bias, 1e-5)
        case DynamicErf():
            expected = norm.weight * torch.erf(norm.alpha * x + norm.offset) + norm.bias
    assert torch.allclose(norm(x), expected, atol=1e-5)
    assert torch.allclose(norm.modulated(x, scale, shift), (1 + scale) * expected + shift, atol=1e-5)


def test_new_norms_scale_by_one() -> None:
    x = torch.randn(3, 128)
    zero_centred, rms = (make_norm(replace(SMALL, norm=kind)) for kind in ("rms_zero_centred", "rms"))
    assert torch.equal(zero_centred(x), rms(x))
    assert torch.allclose(make_norm(replace(SMALL, norm="derf"))(x), torch.erf(x / 2))


def score(q: Tensor, k: Tensor, q_at: int, k_at: int, places: Tensor) -> float:
    return float((rotate(q, places[q_at][None]) * rotate(k, places[k_at][None])).sum())


@pytest.mark.parametrize("kind", ["axial", "golden_gate", "partial", "normalised", "multimodal"])
def test_scores_depend_on_the_distance_alone_for_every_kind_of_rope(kind: Any) -> None:
    config = replace(SMALL, rope=kind)
    places = image_rotations(config, 5, 7, torch.device("cpu"))
    q, k = torch.randn(1, 1, 1, 32), torch.randn(1, 1, 1, 32)

    def at(row: int, column: int) -> int:
        return 7 * row + column

    here = score(q, k, at(1, 2), at(3, 5), places)
    assert here == pytest.approx(score(q, k, at(2, 3), at(4, 6), places), abs=1e-4)
    assert here != pytest.approx(score(q, k, at(1, 2), at(4, 4), places), abs=1e-3)


def test_golden_gate_turns_every_pair_along_its_own_direction() -> None:
    config = replace(SMALL, rope="golden_gate")
    places = image_rotations(config, 2, 2, torch.device("cpu"))
    for pair in range(16):
        row, column = torch.tensor(pair * GOLDEN_STEP).sin(), torch.tensor(pair * GOLDEN_STEP).cos()
        frequency = 1000.0 ** (-2 * pair / 32)
        for place, angle in ((1, column), (2, row), (3, row + column)):
            expected = torch.stack([(frequency * angle).cos(), (frequency * angle).sin()])
            assert torch.allclose(places[place, pair], expected, atol=1e-5)


def test_normalised_positions_do_not_change_with_the_resolution() -> None:
    config = replace(SMALL, rope="normalised", rope_theta=1e9)  # slow enough that a mean of angles is a mean of sines
    coarse, fine = (image_rotations(config, *sides, torch.device("cpu"))[..., 1] for sides in ((3, 4), (6, 8)))
    pair = 4 + 5  # a slow pair of the row axis
    of_four = fine.reshape(3, 2, 4, 2, -1).mean(dim=(1, 3)).flatten(0, 1)
    assert torch.allclose(of_four[:, pair], coarse[:, pair], rtol=1e-3)
    plain = [image_rotations(SMALL, *sides, torch.device("cpu"))[-1] for sides in ((3, 4), (6, 8))]
    assert not torch.allclose(*plain)


def test_the_longer_side_spans_the_range_whatever_its_tokens() -> None:
    config = replace(SMALL, rope="normalised", rope_range=8.0, rope_axes=(2, 2, 28))
    for width in (4, 16):
        table = image_rotations(config, 2, width, torch.device("cpu"))
        last = torch.atan2(table[width - 1, 2, 1].double(), table[width - 1, 2, 0].double())  # frequency 1
        assert float(last) == pytest.approx((width - 0.5) / width * 8 - 2 * torch.pi, abs=1e-5)


def test_partial_rope_leaves_the_rest_of_a_head_where_it_is() -> None:
    config = replace(SMALL, rope="partial")
    x = torch.randn(1, 35, 2, 32)
    turned = rotate(x, image_rotations(config, 5, 7, torch.device("cpu")))
    assert config.axes == (4, 6, 6)
    assert torch.equal(turned[..., 16:], x[..., 16:])
    own = image_rotations(replace(SMALL, width=64), 5, 7, torch.device("cpu"))
    assert torch.equal(turned[..., :16], rotate(x[..., :16], own))


def test_multimodal_text_has_places_of_its_own_that_no_other_text_moves() -> None:
    config = replace(SMALL, rope="multimodal")
    short, long = (rotations(config, n, 3, 4, torch.device("cpu")) for n in (2, 5))
    assert torch.equal(short[:2], long[:2])
    assert torch.equal(short[2:], long[5:])
    assert torch.equal(long[5:], rotations(SMALL, 5, 3, 4, torch.device("cpu"))[5:])
    q, k = torch.randn(1, 1, 1, 32), torch.randn(1, 1, 1, 32)
    assert score(q, k, 0, 2, long) == pytest.approx(score(q, k, 2, 4, long), abs=1e-4)
    assert score(q, k, 0, 2, long) != pytest.approx(score(q, k, 0, 3, long), abs=1e-3)


@torch.no_grad()
def test_without_a_timestep_the_output_does_not_change_with_it_and_with_tokens_it_does() -> None:
    latents, timestep, features = inputs()
    untold, told = (random_transformer(replace(SMALL, timestep=kind)) for kind in ("none", "tokens"))
    assert torch.equal(untold(latents, timestep, features), untold(latents, timestep / 2, features))
    assert (told(latents, timestep, features) - told(latents, timestep / 2, features)).abs().max() > 1e-2
    assert told.time_tokens_proj.out_features == 8 * 128


@torch.no_grad()
def test_the_last_text_layer_alone_is_read() -> None:
    latents, timestep, features = inputs()
    model = random_transformer(replace(SMALL, text_features="last"))
    expected = model(latents, timestep, features, MASK)
    features[..., :-1, :] = float("nan")
    assert torch.equal(model(latents, timestep, features, MASK), expected)
    features[..., -1, :] += 1
    assert (model(latents, timestep, features, MASK) - expected).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "mqa"}, "attention is 'mqa': choose one of gqa, mla"),
        ({"gate": 2}, "gate is 2: choose one of True, False"),
        ({"norm": "batch"}, "norm is 'batch': choose one of rms_zero_centred, rms, layer, derf"),
        ({"mla_kv_rank": 8}, "mla_kv_rank is 8 but attention is not mla: set that or remove this"),
        ({"num_dual_layers": 1}, "num_dual_layers is 1 but stream is not hybrid"),
        ({"stream": "hybrid", "num_dual_layers": 3}, "num_dual_layers is 3 of 3: a hybrid has both"),
        ({"stream": "hybrid", "num_layers": 2}, "num_dual_layers is 0 of 2: a hybrid has both"),
        ({"timestep": "none", "modulation": "mlp"}, "modulation is mlp but timestep is none"),
        ({"timestep": "tokens", "num_timestep_tokens": 0}, "num_timestep_tokens is 0: give at least 1"),
        ({"mlp": "gelu", "mlp_width": 7}, "mlp_width is 7: give an even one"),
        ({"rope": "partial", "attention": "mla"}, "rope is partial and attention mla"),
        ({"rope": "partial", "rope_share": 1.5}, "rope_share is 1.5 of heads of 32"),
        ({"rope": "partial", "rope_share": 0.25}, r"head width is 32 .*, of which 8 are rotated: give an even one"),
        ({"rope": "normalised", "rope_range": 0.0}, "rope_range is 0.0"),
        ({"rope": "golden_gate", "rope_axes": (4, 14, 14)}, "remove rope_axes, as every pair has its own direction"),
        ({"attention": "mla", "mla_rotary_dim": 32}, "mla_rotary_dim is 32: give less than the head width, 32"),
        ({"laurel_rank": -1}, "laurel_rank is -1: give at least 0"),
    ],
)
def test_switches_that_do_not_fit_are_refused_with_the_remedy(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SMALL, **changes)


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({}, ""),
        ({"num_kv_heads": 4, "num_layers": 2, "rope_theta": 500.0, "num_refiner_text_blocks": 0}, ""),
        ({"norm": "layer"}, "norm is layer: "),
        ({"gate": False, "laurel_rank": 2}, "gate is False, laurel_rank is 2: "),
    ],
)
def test_what_the_released_layout_cannot_express_is_named(changes: dict[str, Any], differs: str) -> None:
    sentence = is_released_layout(replace(SMALL, **changes))
    assert sentence.startswith(differs)
    assert bool(sentence) == bool(differs)


@each_switch
def test_a_switched_configuration_survives_its_document(changes: dict[str, Any]) -> None:
    config = replace(SMALL, **changes)
    assert from_document(TransformerConfig, to_document(config)) == config


def test_swiglu_follows_its_equation() -> None:
    mlp = SwiGLU(4, 6)
    x = torch.randn(3, 4)
    expected = (F.silu(x @ mlp.gate.weight.T) * (x @ mlp.up.weight.T)) @ mlp.down.weight.T
    assert torch.allclose(mlp(x), expected, atol=1e-6)
