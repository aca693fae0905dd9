from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pleinair.flow import velocity_target
from pleinair.model.attention import attend
from pleinair.model.layers import RMSNorm, swiglu_width
from pleinair.model.positions import image_rotations, rotate
from pleinair.model.transformer import Transformer, TransformerConfig, count_parameters, patchify, unpatchify
from pleinair.records.errors import ConfigError
from tests.model.transformers import diffusers_twin, run_diffusers
from tests.small_transformers import TINY, random_inputs, random_transformer

TEXT_ROWS = 12
ALL_VALID = torch.ones(3, TEXT_ROWS, dtype=torch.bool)
TAIL_PADDING = torch.arange(TEXT_ROWS).expand(3, -1) < 7
MIDDLE_PADDING = ALL_VALID.clone().index_fill_(1, torch.arange(4, 9), False)
RAGGED_WITH_HOLES = torch.rand(3, TEXT_ROWS, generator=torch.Generator().manual_seed(2)) > 0.4
PADDINGS = {
    "none": None,
    "all valid": ALL_VALID,
    "tail": TAIL_PADDING,
    "middle": MIDDLE_PADDING,
    "ragged": RAGGED_WITH_HOLES,
}


@pytest.fixture(scope="module")
def model() -> Transformer:
    return random_transformer()


def relative_difference(got: Tensor | None, expected: Tensor | None) -> float:
    assert got is not None
    assert expected is not None
    return float(((got.float() - expected).norm() / expected.norm()).item())


@torch.no_grad()
@pytest.mark.parametrize("mask", PADDINGS.values(), ids=PADDINGS.keys())
def test_output_equals_diffusers_whatever_the_padding(model: Transformer, mask: Tensor | None) -> None:
    latents, timestep, features = random_inputs()
    expected = run_diffusers(diffusers_twin(model), latents, timestep, features, mask)
    assert expected.std() > 0.5
    assert (model(latents, timestep, features, mask) - expected).abs().max() <= 1e-5


@torch.no_grad()
def test_bfloat16_is_as_close_to_float32_as_diffusers_is(model: Transformer) -> None:
    latents, timestep, features = random_inputs()
    exact = model(latents, timestep, features, RAGGED_WITH_HOLES)
    with torch.autocast("cpu", torch.bfloat16):
        ours = model(latents, timestep, features, RAGGED_WITH_HOLES).float()
        theirs = run_diffusers(diffusers_twin(model), latents, timestep, features, RAGGED_WITH_HOLES).float()
    assert relative_difference(ours, exact) < 2 * relative_difference(theirs, exact)
    assert relative_difference(ours, exact) < 0.02


@torch.no_grad()
def test_a_bfloat16_model_takes_float32_latents_and_features(model: Transformer) -> None:
    latents, timestep, features = random_inputs()
    low = random_transformer().bfloat16()
    assert relative_difference(low(latents, timestep, features), model(latents, timestep, features)) < 0.03


@torch.no_grad()
def test_what_stands_in_padded_rows_does_not_matter(model: Transformer) -> None:
    latents, timestep, features = random_inputs()
    poisoned = features.masked_fill(~RAGGED_WITH_HOLES[..., None, None], float("nan"))
    clean = model(latents, timestep, features, RAGGED_WITH_HOLES)
    assert torch.equal(model(latents, timestep, poisoned, RAGGED_WITH_HOLES), clean)


@torch.no_grad()
def test_a_prompt_without_any_valid_row_stays_finite_in_bfloat16(model: Transformer) -> None:
    latents, timestep, features = random_inputs()
    mask = TAIL_PADDING.clone()
    mask[1] = False
    with torch.autocast("cpu", torch.bfloat16):
        assert model(latents, timestep, features, mask).isfinite().all()


@torch.no_grad()
def test_a_prompt_without_any_valid_row_leaves_its_neighbours_alone(model: Transformer) -> None:
    latents, timestep, features = random_inputs()
    mask = TAIL_PADDING.clone()
    mask[1] = False
    output = model(latents, timestep, features, mask)
    assert output.isfinite().all()
    assert torch.allclose(output[[0, 2]], model(latents, timestep, features, TAIL_PADDING)[[0, 2]], atol=1e-5)
    alone = model(latents[1:2], timestep[1:2], features[1:2, :0])
    assert torch.allclose(output[1:2], alone, atol=1e-5)


def test_padding_is_dropped_and_masked_only_where_lengths_differ(model: Transformer) -> None:
    _, _, features = random_inputs()
    middle = model.encode_text(features, MIDDLE_PADDING)
    assert middle.tokens_BTD.shape == (3, 7, TINY.width)
    assert middle.mask_BT is None
    ragged = model.encode_text(features, RAGGED_WITH_HOLES)
    lengths = RAGGED_WITH_HOLES.sum(dim=1)
    assert ragged.tokens_BTD.shape[1] == lengths.max()
    assert ragged.mask_BT is not None
    assert torch.equal(ragged.mask_BT.sum(dim=1), lengths)


@torch.no_grad()
def test_text_encoded_once_serves_every_denoising_step(model: Transformer) -> None:
    latents, timestep, features = random_inputs()
    text = model.encode_text(features, RAGGED_WITH_HOLES)
    for t in (timestep, timestep / 2):
        assert torch.equal(model.denoise(latents, t, text), model(latents, t, features, RAGGED_WITH_HOLES))


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch(model: Transformer) -> None:
    latents, timestep, features = random_inputs()
    together = model(latents, timestep, features, RAGGED_WITH_HOLES)
    for i in range(3):
        row = slice(i, i + 1)
        alone = model(latents[row], timestep[row], features[row], RAGGED_WITH_HOLES[row])
        assert torch.allclose(together[row], alone, atol=1e-5)


def test_a_preview_in_inference_mode_does_not_break_training_after_it() -> None:
    image_rotations.cache_clear()
    model = random_transformer()
    latents, timestep, features = random_inputs(height=6, width=10)
    with torch.inference_mode():
        model(latents, timestep, features)
    model(latents, timestep, features).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@pytest.mark.parametrize("mask", [None, RAGGED_WITH_HOLES], ids=["unmasked", "masked"])
def test_explicit_bfloat16_attention_equals_float32_attention(mask: Tensor | None) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, TEXT_ROWS, num_heads, 16, requires_grad=True) for num_heads in (6, 2, 2))
    expected, got = attend(q, k, v, mask), attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask)
    assert got.dtype == torch.bfloat16
    assert relative_difference(got, expected) < 0.02
    gradients = [torch.autograd.grad(out.float().square().sum(), (q, k, v)) for out in (got, expected)]
    for low, exact in zip(*gradients, strict=True):
        assert relative_difference(low, exact) < 0.02


def test_norm_follows_its_equation_and_a_modulated_norm_is_the_modulation_of_the_norm() -> None:
    norm = RMSNorm(8, eps=1e-5)
    nn.init.normal_(norm.weight)
    x, scale, shift = torch.randn(2, 5, 8), torch.randn(2, 1, 8), torch.randn(2, 1, 8)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * (1 + norm.weight)
    assert torch.allclose(norm(x), expected, atol=1e-6)
    assert torch.allclose(norm.modulated(x, scale, shift), (1 + scale) * expected + shift, atol=1e-6)


def test_rotation_keeps_norms_and_makes_scores_depend_on_distance_alone() -> None:
    rotations = image_rotations(TINY, 5, 7, torch.device("cpu")).reshape(5, 7, -1, 2)
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def score(q_at: tuple[int, int], k_at: tuple[int, int]) -> float:
        rotated = rotate(q, rotations[q_at][None]) * rotate(k, rotations[k_at][None])
        return float(rotated.sum())

    assert rotate(q, rotations[4, 6][None]).norm() == pytest.approx(float(q.norm()), rel=1e-5)
    assert score((1, 2), (3, 5)) == pytest.approx(score((2, 3), (4, 6)), abs=1e-4)
    assert score((1, 2), (3, 5)) != pytest.approx(score((1, 2), (4, 4)), abs=1e-3)


def test_compiled_rotation_equals_the_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x, rotations = torch.randn(2, 35, 3, 16), image_rotations(TINY, 5, 7, torch.device("cpu"))
    eager = rotate(x, rotations)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.allclose(rotate(x, rotations), eager, atol=1e-6)


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_unpatchify_undoes_patchify_on_pictures_that_are_not_square(patch_size: int) -> None:
    latents = torch.randn(2, 3, 4 * patch_size, 5 * patch_size)
    tokens = patchify(latents, patch_size)
    assert tokens.shape == (2, 20, 3 * patch_size**2)
    assert torch.equal(unpatchify(tokens, 4, 5, patch_size), latents)


def test_a_token_holds_its_patch_channel_by_channel() -> None:
    latents = torch.arange(2 * 4 * 4).reshape(1, 2, 4, 4)
    assert patchify(latents, 2)[0, 1].tolist() == [2, 3, 6, 7, 18, 19, 22, 23]


def test_the_released_configuration_has_the_released_number_of_parameters() -> None:
    assert count_parameters(TransformerConfig()) == 12_820_073_036


def test_the_released_sizes_follow_from_the_rules() -> None:
    released = TransformerConfig()
    assert (released.hidden_width, released.text_hidden_width) == (16384, 6912)
    assert released.axes == (32, 48, 48)
    assert swiglu_width(256) == 768


def test_every_parameter_of_a_new_model_receives_a_gradient() -> None:
    torch.manual_seed(0)
    model = Transformer(TINY)
    latents, timestep, features = random_inputs()
    (model(latents, timestep, features, RAGGED_WITH_HOLES) - latents).square().mean().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.count_nonzero()]
    assert silent == []


def test_a_new_model_answers_at_the_scale_of_its_input() -> None:
    torch.manual_seed(0)
    latents, timestep, features = random_inputs()
    velocity = Transformer(replace(TINY, num_layers=12))(latents, timestep, features)
    assert 0.1 < velocity.std().item() < 1.5


def test_a_small_model_learns_to_draw_one_picture_per_prompt() -> None:
    torch.manual_seed(0)
    blocks = {"num_layers": 1, "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1}
    model = Transformer(replace(TINY, width=64, num_heads=4, num_text_layers=2, **blocks))
    pictures, features = torch.randn(2, 4, 4, 4), torch.randn(2, 3, 2, 32)
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3)
    losses = []
    for _ in range(60):
        chosen = torch.randint(0, 2, (16,))
        noise, t = torch.randn(16, 4, 4, 4), torch.rand(16)
        noisy = torch.lerp(pictures[chosen], noise, t[:, None, None, None])
        loss = (model(noisy, t, features[chosen]) - velocity_target(pictures[chosen], noise)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < 0.3 * losses[0], losses


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 100}, "width is 100: it must be a multiple of num_heads, 6"),
        ({"num_kv_heads": 4}, "num_kv_heads is 4: it must divide num_heads, 6"),
        ({"text_num_heads": 5}, "text_dim is 32: it must be a multiple of text_num_heads, 5"),
        ({"num_layers": 0}, "num_layers is 0: give at least 1"),
        ({"num_refiner_text_blocks": -1}, "num_refiner_text_blocks is -1: give at least 0"),
        ({"in_channels": 15}, "in_channels is 15: it must be latent channels"),
        ({"timestep_dim": 31}, "timestep_dim is 31: give an even number"),
        ({"width": 48}, r"head width is 8 \(width 48 / num_heads 6\): give an even one of at least 16"),
        ({"rope_axes": (4, 6, 8)}, r"rope_axes is \(4, 6, 8\): give three even numbers that add up to 16"),
        ({"rope_theta": 0.0}, "rope_theta is 0.0"),
        ({"mlp_width": 0}, "mlp_width is 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_remedy(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **changes)


def test_inputs_that_do_not_fit_are_refused_with_the_shape_that_does(model: Transformer) -> None:
    latents, timestep, features = random_inputs()
    with pytest.raises(ValueError, match=r"latents have shape \(3, 3, 8, 14\): this model reads \(batch, 4, height"):
        model(latents[:, :3], timestep, features)
    with pytest.raises(ValueError, match="latents are 8 x 13: both sides must be multiples of patch_size, 2"):
        model(latents[..., :13], timestep, features)
    with pytest.raises(ValueError, match=r"this model reads \(batch, tokens, 5, 32\)"):
        model(latents, timestep, features[..., :16])
    with pytest.raises(ValueError, match="give one flag per text row"):
        model(latents, timestep, features, ALL_VALID[:, :4])
