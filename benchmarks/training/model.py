"""The transformer in training, against diffusers' class with the same weights: parity, speed, padding, share of the peak.

    python -m benchmarks.training model        all of it; `measure_some(("peak_share",), 5)` from Python

One thread, everything compared run in turn within each round; a ratio is the median over rounds of the round's own ratio of
process CPU time, and wall time is recorded beside it. The model is 12 blocks of width 384 (6 query and 2 key heads, SwiGLU
1024, text of 4 layers x 256) in bfloat16. "compiled" compiles the repeated blocks one by one, on both sides.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.aims import Aim
from benchmarks.krablet.rounds import Result, result
from benchmarks.training.blocks import Block, quoted
from benchmarks.training.clocks import Took, timed, with_clocks
from pleinair.model.attention import attend
from pleinair.model.formats import diffusers_config
from pleinair.model.packed_text import pack_text, rank_skew, text_budget
from pleinair.model.segments import segments_of
from pleinair.model.transformer import Transformer, TransformerConfig, patchify

MODEL = TransformerConfig(
    width=384,
    num_layers=12,
    num_heads=6,
    num_kv_heads=2,
    mlp_width=1024,
    in_channels=64,
    text_dim=256,
    num_text_layers=4,
    text_num_heads=4,
    text_num_kv_heads=4,
)
SIDE = 16
"""Image tokens per side: 256 px."""
PEER = f"diffusers {diffusers.__version__}"
MATMUL_SIDE = 1536
AIMS = (
    Aim(what="largest difference to diffusers, fp32, every weight random", name="parity_model", most=10),
    Aim(what="the same, padded text of mixed lengths", name="parity_model_padded", most=10),
    Aim(what="the same, text packed", name="parity_model_packed", most=10),
    Aim(what="forward and backward, bf16, 256 + 64 tokens, compiled blocks", name="step_vs_diffusers", of="ratio", least=1.05),
    Aim(what="the same, eager", name="step_vs_diffusers_eager"),
    Aim(what="forward alone, compiled", name="step_vs_diffusers_forward", of="ratio", least=1.05),
    Aim(what="forward alone, eager", name="step_vs_diffusers_forward_eager"),
    Aim(what="about 105 of 512 text slots valid, mixed lengths", name="step_padded_vs_diffusers", of="ratio", least=2.3),
    Aim(what="the same, eager", name="step_padded_vs_diffusers_eager"),
    Aim(what="the same, compiled, text packed to a budget", name="step_padded_vs_diffusers_packed"),
    Aim(what="a training step's share of the matrix product's peak, width 384", name="peak_share_384", of="ratio", least=0.55),
    Aim(what="the same, width 1024", name="peak_share_1024", of="ratio", least=0.55),
    Aim(what="the step's matrix products alone, at their own shapes", name="peak_bound_*", note="no aim: the bound of the above"),
    Aim(what="where the time of such a step goes", name="step_time_*", note="no aim"),
)  # fmt: skip
BLOCKS = (
    Block(
        page="docs/model.md",
        name="steps",
        text=lambda results: quoted(
            results,
            [
                ("512 text slots, 108 valid, forward and backward, compiled", "step_padded_vs_diffusers"),
                ("the same, text packed", "step_padded_vs_diffusers_packed"),
                ("the same, eager", "step_padded_vs_diffusers_eager"),
                ("the same, eager, packed", "step_padded_vs_diffusers_packed_eager"),
                ("forward alone, compiled", "step_padded_vs_diffusers_forward"),
                ("the same, packed", "step_padded_vs_diffusers_forward_packed"),
                ("the same, eager", "step_padded_vs_diffusers_forward_eager"),
                ("the same, eager, packed", "step_padded_vs_diffusers_forward_packed_eager"),
                ("no padding, 256 + 64 tokens, forward and backward, compiled", "step_vs_diffusers"),
                ("the same, eager", "step_vs_diffusers_eager"),
                ("forward alone, compiled", "step_vs_diffusers_forward"),
                ("the same, eager", "step_vs_diffusers_forward_eager"),
            ],
        ),
    ),
    Block(
        page="docs/model.md",
        name="peaks",
        text=lambda results: quoted(
            results,
            [
                ("a compiled training step, width 384", "peak_share_384"),
                ("its matrix products alone", "peak_bound_384"),
                ("a compiled training step, width 1024", "peak_share_1024"),
                ("its matrix products alone", "peak_bound_1024"),
            ],
        ),
    ),
    Block(
        page="docs/model.md",
        name="ranks",
        text=lambda results: quoted(
            results,
            [
                ("ranks wait, each padded to its longest prompt", "text_skew_padded_waiting"),
                ("shapes they see", "text_skew_padded_shapes"),
                ("of their tokens are valid", "text_skew_padded_valid"),
                ("ranks wait, each with one budget", "text_skew_budget_waiting"),
                ("shapes they see", "text_skew_budget_shapes"),
                ("of their tokens are valid", "text_skew_budget_valid"),
            ],
        ),
    ),
)
KINDS = {
    "softmax": ("softmax", "scaled_dot_product"),
    "attention_products": ("bmm",),
    "products": ("mm", "linear"),
    "copies": ("copy_", "clone", "aten::cat"),
}
"""Operators by words in their names."""
Call = Callable[[], Tensor]


def make_models(config: TransformerConfig = MODEL, dtype: torch.dtype = torch.float32) -> tuple[Transformer, nn.Module]:
    """Ours and diffusers', every parameter random and equal. diffusers' norms stay in float32, as its loading keeps them:
    with weights in bfloat16 they would leave the fused kernel.
    """
    torch.manual_seed(0)
    ours = Transformer(config)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            matrix = parameter.ndim == 2 and not name.endswith("scale_shift_table")
            parameter.normal_(std=0.5 * parameter.shape[1] ** -0.5 if matrix else 0.1)
    settings = {key: value for key, value in diffusers_config(config).items() if not key.startswith("_")}
    theirs = diffusers.Krea2Transformer2DModel(**settings)
    theirs.load_state_dict(ours.state_dict())
    norms = theirs._keep_in_fp32_modules
    for name, parameter in theirs.named_parameters():
        if not set(norms) & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return ours.to(dtype), theirs


def mixed_lengths(batch: int, slots: int, seed: int = 0) -> Tensor:
    """Valid text rows around 105 of 512, as captions of mixed length have: log-normal, at most the slots."""
    generator = torch.Generator().manual_seed(seed)
    lengths = (95 * torch.exp(0.45 * torch.randn(batch, generator=generator))).round().long()
    return lengths.clamp(8, slots)


def make_calls(ours: Transformer, theirs: nn.Module, batch: int, mask: Tensor | None, num_text: int) -> dict[str, Call]:
    """Forward passes on one batch: ours padded and packed, diffusers' padded."""
    generator = torch.Generator().manual_seed(1)
    dtype = ours.img_in.weight.dtype
    latents = torch.randn(batch, MODEL.latent_channels, 2 * SIDE, 2 * SIDE, generator=generator).to(dtype)
    features = torch.randn(batch, num_text, MODEL.num_text_layers, MODEL.text_dim, generator=generator).to(dtype)
    timestep = torch.rand(batch, generator=generator)
    places = torch.zeros(num_text + SIDE**2, 3)
    places[num_text:, 1] = torch.arange(SIDE).repeat_interleave(SIDE)
    places[num_text:, 2] = torch.arange(SIDE).repeat(SIDE)
    tokens = patchify(latents, MODEL.patch_size)

    def diffusers_forward() -> Tensor:
        out: Tensor = theirs(tokens, features, timestep, places, mask).sample
        return out

    calls = {"diffusers": diffusers_forward, "ours": lambda: patchify(ours(latents, timestep, features, mask), 2)}
    if mask is not None:
        packed = pack_text(features, mask, text_budget([mask.sum(dim=1).tolist()]))
        calls["packed"] = lambda: patchify(ours(latents, timestep, packed), 2)
    return calls


def pass_of(call: Call, backward: bool, model: nn.Module | None = None) -> Took:
    """What one pass takes; the model's gradients are none at first, as after a step of training."""
    if model is not None:
        model.zero_grad(set_to_none=True)

    def work() -> None:
        with torch.set_grad_enabled(backward):
            out = call()
            if backward:
                torch.autograd.backward(out.float().square().mean())

    return timed(work)


def interleaved(runs: Mapping[str, Callable[[], Took]], rounds: int, warm_ups: int = 1) -> dict[str, list[Took]]:
    """What every run takes in every round, the order turned around each time; the first ones only warm up."""
    taken: dict[str, list[Took]] = {name: [] for name in runs}
    for number in range(rounds + warm_ups):
        for name in sorted(runs, reverse=number % 2 == 0):
            value = runs[name]()
            if number >= warm_ups:
                taken[name].append(value)
    return taken


def against(row: str, taken: Mapping[str, list[Took]], mine: str, other: str, peer: str = PEER) -> Result:
    """Our milliseconds of processor time beside the peer's; the row has both clocks of both."""
    ratio = statistics.median(b.cpu / a.cpu for a, b in zip(taken[mine], taken[other], strict=True))
    ours, theirs = (1000 * statistics.median(took.cpu for took in taken[name]) for name in (mine, other))
    return with_clocks(result(row, ours, "ms CPU", f"{peer}: {theirs:.1f} ms", ratio), taken[mine], taken[other])


def compile_blocks(model: nn.Module, dynamic: bool | None = None) -> None:
    """The repeated blocks, one by one; the rest stays eager."""
    blocks = model.get_submodule("transformer_blocks")
    assert isinstance(blocks, nn.ModuleList)
    for block in blocks:
        block.compile(dynamic=dynamic)


@torch.no_grad()
def parity_model(rounds: int) -> Iterator[Result]:
    """Largest difference to diffusers in float32, every parameter random."""
    ours, theirs = make_models()
    lengths = mixed_lengths(4, 64)
    for name, mask in (("", None), ("_padded", torch.arange(64) < lengths.div(4).long()[:, None])):
        calls = make_calls(ours, theirs, 4, mask, 64)
        expected = calls.pop("diffusers")()
        for kind, call in calls.items():
            difference = float((call() - expected).abs().max())
            of = f"{PEER}, output deviation {float(expected.std()):.2f}"
            row = f"parity_model{'_packed' if kind == 'packed' else name}"
            yield result(row, 1e6 * difference, "1e-6, largest difference", of)


def step_vs_diffusers(rounds: int) -> Iterator[Result]:
    """256 image + 64 text tokens without padding, batch 2."""
    yield from _steps("step_vs_diffusers", rounds, 2, None, 64, ("ours",))


def step_padded_vs_diffusers(rounds: int) -> Iterator[Result]:
    """512 text slots of which about 105 are valid, mixed lengths, batch 4."""
    lengths = mixed_lengths(4, 512)
    mask = torch.arange(512) < lengths[:, None]
    yield result("step_padded_valid_rows", float(lengths.float().mean()), "text rows per prompt")
    yield from _steps("step_padded_vs_diffusers", rounds, 4, mask, 512, ("ours", "packed"))


def _steps(
    row: str, rounds: int, batch: int, mask: Tensor | None, num_text: int, mine: tuple[str, ...]
) -> Iterator[Result]:
    for way in ("eager", "compiled"):
        ours, theirs = make_models(dtype=torch.bfloat16)
        if way == "compiled":
            compile_blocks(ours)
            compile_blocks(theirs)
        calls = make_calls(ours, theirs, batch, mask, num_text)
        for passes, backward in (("_forward", False), ("", True)):
            model_of = {name: theirs if name == "diffusers" else ours for name in calls}
            runs = {n: lambda c=c, b=backward, m=model_of[n]: pass_of(c, b, m) for n, c in calls.items()}
            taken = interleaved(runs, rounds)
            for name in mine:
                kind = ("" if name == "ours" else f"_{name}") + ("" if way == "compiled" else "_eager")
                yield against(f"{row}{passes}{kind}", taken, name, "diffusers")


def peak_share(rounds: int) -> Iterator[Result]:
    """Training step's FLOP/s over those of one large bfloat16 matrix product, at two widths."""
    a, b = (torch.randn(MATMUL_SIDE, MATMUL_SIDE).bfloat16() for _ in range(2))
    for width, layers in ((384, 12), (1024, 4)):
        sizes: dict[str, Any] = {"width": width, "num_heads": width // 64, "num_kv_heads": width // 192 or 1}
        if width == 1024:
            sizes |= {"num_kv_heads": 4, "mlp_width": None}
        ours, _ = make_models(replace(MODEL, num_layers=layers, **sizes), torch.bfloat16)
        call = make_calls(ours, nn.Identity(), 2, None, 64)["ours"]
        with FlopCounterMode(display=False) as counter:
            pass_of(call, True)
        alone, flops_alone = products_alone(lambda c=call, m=ours: pass_of(c, True, m))
        compile_blocks(ours)
        product = {"matmul": lambda: pass_of(lambda: a @ b, False), "products": alone}
        step = {"step": lambda c=call, m=ours: pass_of(c, True, m)}
        taken = interleaved({**step, **product}, 2 * rounds)
        flops = {"matmul": 2 * MATMUL_SIDE**3, "products": flops_alone, "step": counter.get_total_flops()}
        rate = {
            name: count / statistics.median(took.cpu for took in taken[name]) / 1e9 for name, count in flops.items()
        }
        shares = {  # of each round's own product, as the machine's speed changes from minute to minute
            name: statistics.median(
                flops[name] / taken[name][n].cpu * peak.cpu / flops["matmul"] for n, peak in enumerate(taken["matmul"])
            )
            for name in ("step", "products")
        }
        shown = f"matmul {MATMUL_SIDE}^3: {rate['matmul']:.0f} GFLOP/s"
        row = result(f"peak_share_{width}", rate["step"], "GFLOP/s", shown, shares["step"])
        yield with_clocks(row, taken["step"], taken["matmul"])
        bound = f"matmul {MATMUL_SIDE}^3, and nothing but such products"
        row = result(f"peak_bound_{width}", rate["products"], "GFLOP/s", bound, shares["products"])
        yield with_clocks(row, taken["products"], taken["matmul"])
        for kind, share in time_by_kind(call, ours).items():
            yield result(f"step_time_{width}_{kind}", 100 * share, "% of the compiled step's time")


def products_alone(step: Callable[[], object]) -> tuple[Callable[[], Took], float]:
    """The step's matrix products and nothing else: a function that tells what all of them take, and their FLOPs."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        step()
    products: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    for event in recorded.key_averages(group_by_input_shape=True):
        if event.key in ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"):
            a, b = [torch.randn(shape).bfloat16() for shape in event.input_shapes if len(shape) >= 2][-2:]
            products.append((event.count, a, b))

    def run() -> Took:
        taken = [(count, pass_of(lambda a=a, b=b: a @ b, False)) for count, a, b in products]
        return Took(
            wall=sum(count * took.wall for count, took in taken), cpu=sum(count * took.cpu for count, took in taken)
        )

    return run, sum(count * 2.0 * a.numel() * b.shape[-1] for count, a, b in products)


def time_by_kind(call: Call, model: nn.Module, passes: int = 3) -> dict[str, float]:
    """Shares of the time of a forward and backward pass, by what the operators' names say; the first of KINDS that fits.

    What inductor fused (norms, rotations, gates, SwiGLU, their gradients) has no operator of its own and is `fused`.
    """
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(passes):
            pass_of(call, True, model)
    spent = dict.fromkeys([*KINDS, "fused_and_other"], 0.0)
    for event in recorded.key_averages():
        fits = (kind for kind, words in KINDS.items() if any(word in event.key for word in words))
        spent[next(fits, "fused_and_other")] += event.self_cpu_time_total
    return {kind: seconds / sum(spent.values()) for kind, seconds in spent.items()}


def packed_attention(rounds: int) -> Iterator[Result]:
    """Ways to keep 8 samples of mixed length apart: slices of one row, a masked batch, flex attention (no backward)."""
    lengths = tuple((mixed_lengths(8, 512) + SIDE**2).tolist())
    total, longest = sum(lengths), max(lengths)
    heads = (MODEL.num_heads, MODEL.num_kv_heads, MODEL.num_kv_heads)
    row = [torch.randn(1, total, n, 64).bfloat16().requires_grad_() for n in heads]
    batch = [torch.randn(8, longest, n, 64).bfloat16().requires_grad_() for n in heads]
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    segments = segments_of(lengths, total, torch.device("cpu"), torch.bfloat16)
    sample = segments.membership_SB.argmax(dim=1)
    block_mask = create_block_mask(lambda b, h, q, k: sample[q] == sample[k], None, None, total, total, device="cpu")
    flex = torch.compile(flex_attention)
    calls: dict[str, Call] = {
        "slices": lambda: attend(*row, segments),
        "padded": lambda: attend(*batch, mask),
        "flex": lambda: flex(*(x.detach().transpose(1, 2) for x in row), block_mask=block_mask, enable_gqa=True),
    }
    for passes, backward in (("_forward", False), ("", True)):
        chosen = {n: c for n, c in calls.items() if n != "flex" or not backward}
        taken = interleaved({n: lambda c=c, b=backward: pass_of(c, b) for n, c in chosen.items()}, 2 * rounds)
        for other in sorted(chosen.keys() - {"slices"}):
            yield against(f"packed_attention{passes}_{other}", taken, "slices", other, other)


def text_skew(rounds: int) -> Iterator[Result]:
    """8 ranks of 8 samples over 200 steps: waiting and shapes, padded per rank against one budget."""
    steps = [[tuple(mixed_lengths(8, 512, 8 * s + r).tolist()) for r in range(8)] for s in range(200)]
    budget = text_budget([lengths for ranks in steps for lengths in ranks])
    padded, packed = rank_skew(steps, SIDE**2), rank_skew(steps, SIDE**2, budget)
    for name, skew, how in (("padded", padded, "to the longest"), ("budget", packed, f"of {budget} text tokens")):
        yield result(f"text_skew_{name}_waiting", 100 * skew.wait_share, f"% of rank time, {how}")
        yield result(f"text_skew_{name}_valid", 100 * skew.valid_share, f"% of tokens, {how}")
        yield result(f"text_skew_{name}_shapes", skew.num_shapes, f"shapes, {how}")


ROWS = {
    row.__name__: row
    for row in (parity_model, step_vs_diffusers, step_padded_vs_diffusers, peak_share, packed_attention, text_skew)
}


def measure(rounds: int) -> list[Result]:
    """All rows."""
    return measure_some(ROWS, rounds)


def measure_some(rows: Iterable[str], rounds: int) -> list[Result]:
    """The rows named, each printed as it is had."""
    torch.set_num_threads(1)
    found = []
    for row in rows:
        for measured in ROWS[row](rounds):
            ratio = "" if measured["ratio"] is None else f"{measured['ratio']:6.2f}"
            print(f"{ratio:6}  {measured['value']:10.6g} {measured['unit']}  {measured['name']}", flush=True)
            found.append(measured)
    return found
