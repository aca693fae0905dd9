"""`python -m benchmarks.training sampling`: 28 guided steps against diffusers' Krea2Pipeline, same weights, noise and picture.

    text features, made once and given to both ──> pipeline(prompt_embeds=...)          ──> picture
                                               └─> encode_text ─> euler ─> codec.decode ─> picture

One 256 px picture, guidance 4.5, one thread, in turn within each round; ratios are of process CPU time, wall time is recorded
beside it. The caption has 105 tokens and the empty prompt 10, in the 512 slots that the pipeline fills. The model is 8 blocks
of width 384 whose text fusion has the released model's share of a padded pass (11%). What we leave out: padded text, and text
fusion at every step but the first. The rows `_short` give the pipeline 105 slots, as many as the caption needs and as few as
it can do with (both prompts have to have one number), so that the empty prompt's padding and the text fusion are all that
remains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import torch
from torch import Tensor

from benchmarks.aims import Aim
from benchmarks.krablet.rounds import Result, result
from benchmarks.training.blocks import Block, quoted
from benchmarks.training.clocks import timed
from benchmarks.training.model import MODEL, SIDE, against, compile_blocks, interleaved, make_models
from pleinair.flow import euler, shift_mu, timestep_schedule
from pleinair.model.autoencoders.qwen_image import QwenImageCodec
from pleinair.model.formats.pipeline import SCHEDULER_CONFIG
from pleinair.model.transformer import Transformer, patchify
from pleinair.sampling.sampler import guided_velocity

SMALL = replace(MODEL, num_layers=8, text_dim=96, num_text_layers=12, text_num_heads=3, text_num_kv_heads=3)
NUM_STEPS, GUIDANCE = 28, 4.5
NUM_SLOTS, NUM_VALID, NUM_EMPTY, NUM_SUFFIX = 512, 105, 10, 5
MOST_DIFFERENCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Of a picture in [0, 1]. In bfloat16 the pipeline rounds latents and timesteps at every step, and we neither."""
PEER = f"diffusers {diffusers.__version__} Krea2Pipeline"
AIMS = (
    Aim(what="28 guided steps, bf16, blocks compiled, against Krea2Pipeline", name="sampling_vs_diffusers", of="ratio", least=2),
    Aim(what="the same, eager", name="sampling_vs_diffusers_eager", of="ratio", least=2),
    Aim(what="the same, eager, fp32", name="sampling_vs_diffusers_eager_fp32", of="ratio", least=2),
    Aim(what="the same three, the pipeline given 105 text slots", name="sampling_vs_diffusers*_short", note="no aim"),
    Aim(what="largest difference of the two pictures in [0, 1], fp32", name="parity_image", most=100),
)  # fmt: skip
BLOCKS = (
    Block(
        page="docs/model.md",
        name="sampling",
        text=lambda results: quoted(
            results,
            [
                (f"{words}{slots}", f"sampling_vs_diffusers{way}{short}")
                for slots, short in ((", 512 text slots", ""), (", 105 text slots", "_short"))
                for words, way in (("compiled blocks", ""), ("eager", "_eager"), ("eager, float32", "_eager_fp32"))
            ],
        ),
    ),
)


@dataclass(frozen=True)
class Prompt:
    """Raw features of a caption or the empty prompt, as the pipeline lays them out: [prompt | padding | suffix]."""

    features_1TLD: Tensor
    mask_1T: Tensor

    def in_slots(self, num_slots: int) -> Prompt:
        """The same with less padding."""
        place = self.mask_1T[0].nonzero().squeeze(1)
        padding = (~self.mask_1T[0]).nonzero().squeeze(1)[: num_slots - len(place)]
        kept = torch.cat([place, padding]).sort().values
        return Prompt(self.features_1TLD[:, kept], self.mask_1T[:, kept])


def make_prompt(num_valid: int, dtype: torch.dtype, seed: int) -> Prompt:
    """Random features."""
    shape = (1, NUM_SLOTS, SMALL.num_text_layers, SMALL.text_dim)
    features = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    mask = torch.zeros(1, NUM_SLOTS, dtype=torch.bool)
    mask[:, : num_valid - NUM_SUFFIX] = mask[:, -NUM_SUFFIX:] = True
    return Prompt(features, mask)


def make_pipeline(transformer: Any, dtype: torch.dtype) -> Any:
    """The pipeline with a small autoencoder; a text encoder it does not need, as it is given features."""
    torch.manual_seed(1)
    channels = SMALL.latent_channels
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=channels, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        latents_mean=[0.1] * channels, latents_std=[1.5] * channels,
    ).eval()  # fmt: skip
    schedule = {key: value for key, value in SCHEDULER_CONFIG.items() if not key.startswith("_")}
    pipeline = diffusers.Krea2Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**schedule),
        vae=vae.to(dtype), text_encoder=None, tokenizer=None, transformer=transformer,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


Draw = Callable[[int], Tensor]
"""Number of steps -> picture (1, 3, H, W) in [0, 1], float32."""


def make_draws(ours: Transformer, theirs: Any, dtype: torch.dtype) -> dict[str, Draw]:
    """The same picture three times: ours, the pipeline's as it is used, the pipeline's in few slots."""
    caption, empty = make_prompt(NUM_VALID, dtype, 0), make_prompt(NUM_EMPTY, dtype, 1)
    noise = torch.randn(1, SMALL.latent_channels, 2 * SIDE, 2 * SIDE, generator=torch.Generator().manual_seed(2)).to(
        dtype
    )
    pipeline = make_pipeline(theirs, dtype)
    codec = QwenImageCodec(pipeline.vae)

    @torch.inference_mode()
    def draw_ours(num_steps: int) -> Tensor:
        text, nothing = (ours.encode_text(one.features_1TLD, one.mask_1T) for one in (caption, empty))
        velocity = guided_velocity(ours, text, nothing, GUIDANCE)
        x0 = euler(lambda x, t: velocity(x.to(dtype), t), noise, timestep_schedule(num_steps, shift_mu(SIDE**2)))
        return codec.decode(x0) / 2 + 0.5

    def draw_theirs(num_steps: int, prompts: tuple[Prompt, Prompt]) -> Tensor:
        names = ("prompt_embeds", "negative_prompt_embeds")
        given = {name: one.features_1TLD for name, one in zip(names, prompts, strict=True)}
        given |= {f"{name}_mask": one.mask_1T for name, one in zip(names, prompts, strict=True)}
        picture: Tensor = pipeline(
            latents=patchify(noise, SMALL.patch_size), guidance_scale=GUIDANCE, num_inference_steps=num_steps,
            height=16 * SIDE, width=16 * SIDE, output_type="pt", **given,
        ).images  # fmt: skip
        return picture.float()

    return {
        "ours": draw_ours,
        "pipeline": lambda num_steps: draw_theirs(num_steps, (caption, empty)),
        "short": lambda num_steps: draw_theirs(num_steps, (caption.in_slots(NUM_VALID), empty.in_slots(NUM_VALID))),
    }


def same_picture(draws: dict[str, Draw], dtype: torch.dtype, num_steps: int) -> float:
    """Largest difference of our picture to the pipeline's. AssertionError where they are not the same picture."""
    ours, theirs, short = (draws[name](num_steps) for name in ("ours", "pipeline", "short"))
    difference = float(max((ours - theirs).abs().max(), (ours - short).abs().max()))
    assert theirs.std() > 0.01, f"the picture is flat, deviation {theirs.std():.4f}: this compares nothing"
    assert difference <= MOST_DIFFERENCE[dtype], f"{dtype} pictures differ by {difference:.2g}"
    return difference


def measure(rounds: int, num_steps: int = NUM_STEPS) -> list[Result]:
    """Pictures compared and timed, each row printed as it is had."""
    torch.set_num_threads(1)
    found = []
    for row in _rows(rounds, num_steps):
        ratio = "" if row["ratio"] is None else f"{row['ratio']:6.2f}"
        print(f"{ratio:6}  {row['value']:10.6g} {row['unit']}  {row['name']}", flush=True)
        found.append(row)
    return found


def _rows(rounds: int, num_steps: int) -> Iterator[Result]:
    ways = (("", torch.bfloat16, True), ("_eager", torch.bfloat16, False), ("_eager_fp32", torch.float32, False))
    for name, dtype, compiled in ways:
        ours, theirs = make_models(SMALL, dtype)
        for model in (ours, theirs) if compiled else ():
            compile_blocks(model, dynamic=False)  # two graphs, of the caption and the empty prompt
        draws = make_draws(ours, theirs, dtype)
        difference = same_picture(draws, dtype, num_steps)  # warms up as well
        taken = interleaved(
            {way: lambda d=draw: timed(lambda: d(num_steps)) for way, draw in draws.items()}, rounds, warm_ups=0
        )
        shown = f"{PEER}, pictures differ by {difference:.1g}"
        yield against(f"sampling_vs_diffusers{name}", taken, "ours", "pipeline", shown)
        yield against(f"sampling_vs_diffusers{name}_short", taken, "ours", "short", PEER)
        if dtype == torch.float32:
            yield result("parity_image", 1e6 * difference, "1e-6, largest difference", PEER)
