"""Does a mesh of ranks train as one process does, and is the memory estimate true?

    python -m benchmarks.training.parallel            both figures
    python -m benchmarks.training.parallel --table    the released model on 8 to 1024 GPUs, into docs/parallel.md

`fsdp_tp_loss_difference` is the largest difference of any loss of 20 clipped AdamW steps between four ranks (FSDP2 x
tensor parallel, 2 x 2, Gloo) and one process. `memory_estimate_error` is the largest relative error of the estimate
against the peak of resident memory of a training process (as the kernel counts it), over the kinds of checkpointing;
`memory_estimate_error_fsdp` the same for each of two FSDP2 ranks.
"""

from __future__ import annotations

import argparse
import gc
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.aims import Aim, between
from benchmarks.krablet.rounds import SPAWN, Result, result
from benchmarks.training.blocks import ROOT
from pleinair.model.memory import CHECKPOINTINGS, estimate_memory, format_table, table
from pleinair.model.parallelize import Checkpointing, MeshConfig, ParallelConfig, parallelize
from pleinair.model.transformer import Transformer, TransformerConfig
from pleinair.training.mesh import open_mesh
from pleinair.training.reductions import clip_gradients, mean_metrics

SMALL = TransformerConfig(
    width=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    in_channels=16,
    timestep_dim=32,
    text_dim=32,
    num_text_layers=3,
    text_num_heads=2,
    text_num_kv_heads=2,
    num_layerwise_text_blocks=1,
    num_refiner_text_blocks=1,
)
LARGER = TransformerConfig(
    width=384,
    num_layers=4,
    num_heads=6,
    num_kv_heads=2,
    in_channels=16,
    timestep_dim=64,
    text_dim=64,
    num_text_layers=4,
    text_num_heads=2,
    text_num_kv_heads=2,
)
BATCH, SIDE, NUM_TEXT = 2, 16, 32
"""Pictures, image tokens per side and text rows of `LARGER`'s steps."""
NUM_STEPS = 20
MIB = 2**20
PLAN_PAGE = ROOT / "docs/parallel.md"
PLAN_BEGIN = "<!-- plan: written by python -m benchmarks.training.parallel --table -->"


AIMS = (
    Aim(what="losses on 4 ranks against one process", name="fsdp_tp_loss_difference", most=10),
    Aim(what="memory of one process, estimated", name="memory_estimate_error", most=0.1),
    Aim(what="memory of two FSDP2 ranks, estimated", name="memory_estimate_error_fsdp", most=0.1),
)


def on_ranks(world_size: int, body: Callable[..., Any], *arguments: object) -> list[Any]:
    """`body(*arguments)` in `world_size` fresh processes that form a mesh if more than one; results by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = SPAWN.Queue()
    # Blocks of 64 KiB and more go back to the system at once, so that resident memory is what is in use.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)
    processes = [
        SPAWN.Process(target=_rank, args=(rank, world_size, port, queue, body, arguments)) for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    answers = dict(queue.get() for _ in processes)
    for process in processes:
        process.join()
    return [answers[rank] for rank in range(world_size)]


def _rank(
    rank: int, world_size: int, port: int, queue: Any, body: Callable[..., Any], arguments: Sequence[object]
) -> None:
    torch.set_num_threads(1)
    names = {"RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in names.items()}}
    queue.put((rank, body(*arguments)))


def losses(mesh_config: MeshConfig) -> list[float]:
    """Losses of a few clipped steps on one batch, the mean over data ranks."""
    torch.manual_seed(0)
    with open_mesh(mesh_config, device_type="cpu") as mesh:
        model = parallelize(Transformer(SMALL), mesh.device_mesh, ParallelConfig(mesh=mesh_config))
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        share = 4 // mesh.num_data_ranks
        rows = slice(mesh.data_rank * share, (mesh.data_rank + 1) * share)
        latents, timestep, features = (whole[rows] for whole in _inputs(SMALL, 4, 4, 5))
        course = []
        for _ in range(NUM_STEPS):
            loss = F.mse_loss(model(latents, timestep, features), latents.flip(1))
            loss.backward()
            clip_gradients(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            course.append(mean_metrics({"loss": loss.detach()}, mesh)["loss"])
    return course


def _inputs(config: TransformerConfig, batch: int, side: int, num_text: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    latent_side = side * config.patch_size
    latents = torch.randn(batch, config.latent_channels, latent_side, latent_side, generator=generator)
    features = torch.randn(batch, num_text, config.num_text_layers, config.text_dim, generator=generator)
    return latents, torch.rand(batch, generator=generator), features


def resident_peaks(configs: Sequence[ParallelConfig]) -> list[int]:
    """Bytes that this process's resident memory grows by, at most, from before the model is built, in two steps."""
    peaks = []
    with open_mesh(configs[0].mesh, device_type="cpu") as mesh:
        for config in configs:
            _train(SMALL, config, mesh.device_mesh)  # loads and starts what torch keeps for good
            gc.collect()
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            before = _status_bytes("VmRSS")
            _train(LARGER, config, mesh.device_mesh)
            peaks.append(_status_bytes("VmHWM") - before)
    return peaks


def _train(config: TransformerConfig, parallel: ParallelConfig, device_mesh: Any) -> None:
    with torch.device("meta"):  # on a mesh no rank ever holds the whole model
        model: torch.nn.Module = Transformer(config)
    model = parallelize(model, device_mesh, parallel).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    inputs = _inputs(config, BATCH, SIDE, NUM_TEXT)
    for _ in range(2):
        model(*inputs).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field + ":")).split()[1])


def estimate_errors(configs: Sequence[ParallelConfig]) -> list[float]:
    """Relative errors of the estimates against the peaks of real processes, of each configuration the worst rank's."""
    worst = [0.0] * len(configs)
    for peaks in on_ranks(configs[0].mesh.num_ranks, resident_peaks, configs):
        for number, (config, peak) in enumerate(zip(configs, peaks, strict=True)):
            estimate = estimate_memory(LARGER, config, batch=BATCH, image_tokens=SIDE**2, text_tokens=NUM_TEXT)
            sizes = f"estimate {estimate.peak / MIB:.0f} MiB, measured {peak / MIB:.0f} MiB"
            print(f"  {config.checkpointing}, {config.mesh.num_ranks} ranks: {sizes}", flush=True)
            worst[number] = max(worst[number], abs(estimate.peak / peak - 1))
    return worst


def measure(rounds: int = 1) -> Iterator[Result]:
    """The figures; `rounds` changes nothing, they do not depend on time."""
    alone = losses(MeshConfig())
    ranks = on_ranks(4, losses, MeshConfig(shard=2, tensor=2))
    difference = max(abs(loss - other) for course in ranks for loss, other in zip(course, alone, strict=True))
    yield result("fsdp_tp_loss_difference", 1e6 * difference, "1e-6", "one process")
    kinds: tuple[Checkpointing, ...] = ("none", *CHECKPOINTINGS)
    errors = estimate_errors([ParallelConfig(checkpointing=kind) for kind in kinds])
    yield result("memory_estimate_error", max(errors), "share", "peak resident memory")
    fsdp = ParallelConfig(mesh=MeshConfig(shard=2), checkpointing="full")
    yield result("memory_estimate_error_fsdp", max(estimate_errors([fsdp])), "share", "peak resident memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--table",
        action="store_true",
        help="print what fits the released model on 8 to 1024 GPUs, and write it into its page",
    )
    args = parser.parse_args()
    if args.table:
        plan = format_table(table(TransformerConfig()))
        print(plan)
        PLAN_PAGE.write_text(between(PLAN_PAGE.read_text(), PLAN_BEGIN, plan))
        return
    for row in measure():
        print(row, flush=True)


if __name__ == "__main__":
    main()
