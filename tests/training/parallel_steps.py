"""What the ranks of the parallel tests do; imported by spawned processes, so nothing heavy."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from pleinair.model.float8 import Recipe, to_float8
from pleinair.model.parallelize import MeshConfig, ParallelConfig, parallelize
from pleinair.model.transformer import Transformer, TransformerConfig
from pleinair.training.mesh import Mesh, open_mesh
from pleinair.training.reductions import any_rank, average_gradients, clip_gradients, from_rank_zero, mean_metrics
from tests.small_transformers import SWITCHABLE, SWITCHES, random_inputs, random_transformer, tiny_config

SMALL = tiny_config()
"""One key and value head of text fusion: with tensor parallelism its attention stays whole."""
NUM_STEPS, FEWER_STEPS = 20, 4


def small_transformer() -> Transformer:
    return random_transformer(SMALL)


def small_batch(rows: slice = slice(None)) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of a batch of 4 with prompts of unequal length: latents, timesteps, text features, mask."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(4, SMALL.latent_channels, 4, 6, generator=generator)
    timestep = torch.rand(4, generator=generator)
    features = torch.randn(4, 5, SMALL.num_text_layers, SMALL.text_dim, generator=generator)
    mask = torch.arange(5) < torch.tensor([4, 2, 5, 3])[:, None]
    return latents[rows], timestep[rows], features[rows], mask[rows]


def rows_of(mesh: Mesh) -> slice:
    share = 4 // mesh.num_data_ranks
    return slice(mesh.data_rank * share, (mesh.data_rank + 1) * share)


@dataclass(frozen=True)
class Course:
    """What a few steps of training left behind."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, Tensor]


def train_steps(mesh: Mesh, config: ParallelConfig, num_steps: int = NUM_STEPS, recipe: Recipe | None = None) -> Course:
    """AdamW on one batch with clipping; the loss is the mean over the whole batch."""
    model: nn.Module = small_transformer().train()
    if recipe is not None:
        to_float8(model, recipe, emulate=True)
    parallelize(model, mesh.device_mesh, config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    batch = small_batch(rows_of(mesh))
    losses, norms = [], []
    for _ in range(num_steps):
        loss = F.mse_loss(model(*batch).float(), batch[0].flip(1))
        loss.backward()
        norms.append(clip_gradients(model.parameters(), 1.0))
        optimiser.step()
        optimiser.zero_grad()
        losses.append(mean_metrics({"loss": loss.detach()}, mesh)["loss"])
    return Course(losses, norms, whole_weights(model))


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    return {name: (x.full_tensor() if isinstance(x, DTensor) else x).detach().clone() for name, x in state.items()}


TWO_RANKS = {
    "fsdp": ParallelConfig(mesh=MeshConfig(shard=2)),
    "hsdp": ParallelConfig(mesh=MeshConfig(replicate=2)),
    "tensor": ParallelConfig(mesh=MeshConfig(tensor=2)),
    "fsdp, grouped, recomputed": ParallelConfig(mesh=MeshConfig(shard=2), blocks_per_group=2, checkpointing="full"),
    "tensor, selective": ParallelConfig(mesh=MeshConfig(tensor=2), checkpointing="selective"),
    "tensor, compiled": ParallelConfig(mesh=MeshConfig(tensor=2), compile=True, compile_backend="eager"),
    "fsdp in bf16": ParallelConfig(mesh=MeshConfig(shard=2), param_dtype="bf16"),
}
VARIANTS = ("hsdp", "fsdp, grouped, recomputed", "tensor, selective", "tensor, compiled", "fsdp in bf16")
"""Cases that take a few steps only."""
FOUR_RANKS = {
    "fsdp x tensor": ParallelConfig(mesh=MeshConfig(shard=2, tensor=2)),
    "hsdp": ParallelConfig(mesh=MeshConfig(replicate=2, shard=2)),
}


SPLIT = {name: changes for name, changes in SWITCHES.items() if changes.get("stream") not in ("dual", "hybrid")}
"""Every switch that tensor parallelism splits."""
SHARDED = ("value residual", "dual mla")
"""Switches whose blocks give more than one tensor."""


def courses(ports: Sequence[int]) -> dict[str, Course]:
    """Every configuration of this world size, each with a process group of its own."""
    cases = TWO_RANKS if os.environ["WORLD_SIZE"] == "2" else FOUR_RANKS
    done = {}
    for port, (name, config) in zip(ports, cases.items(), strict=True):
        os.environ["MASTER_PORT"] = str(port)
        with warnings.catch_warnings(), open_mesh(config.mesh, device_type="cpu") as mesh:
            if config.compile:
                warnings.simplefilter("ignore")  # torch's compiler warns about its own code
            done[name] = train_steps(mesh, config, FEWER_STEPS if name in VARIANTS else NUM_STEPS)
    return done


def two_ranks(ports: Sequence[int]) -> dict[str, Any]:
    """All that two ranks are asked for, in one start of processes."""
    answers: dict[str, Any] = {"courses": courses(ports[2:])}
    os.environ["MASTER_PORT"] = str(ports[0])
    config = ParallelConfig(mesh=MeshConfig(shard=2))
    with open_mesh(config.mesh, device_type="cpu") as mesh:
        first = mesh.rank == 0
        answers["place"] = (mesh.rank, mesh.world_size, mesh.data_rank, mesh.num_data_ranks)
        answers["reduced"] = (
            mean_metrics({"b": 1.0 if first else 4.0, "a": torch.tensor(2.0)}, mesh),
            any_rank(not first, mesh),
            any_rank(False, mesh),
            from_rank_zero(lambda: 7.0 if first else 9.0, mesh),
        )
        head = nn.Linear(1, 1, bias=False)
        head.weight.grad = torch.tensor([[1.0 if first else 4.0]])
        average_gradients([head], mesh)
        answers["averaged"] = head.weight.grad.item()
        model = parallelize(small_transformer(), mesh.device_mesh, config)
        with torch.no_grad():
            latents, timestep, features, mask = small_batch()
            text = model.encode_text(features, mask)
            answers["sampled"] = model.denoise(latents, timestep, text)
        answers["gradients in two calls"] = gradients_in_two_calls(model, rows_of(mesh))
        answers["from meta"] = whole_weights(load_from_meta(mesh, config))
        answers["sharded switches"] = {name: deviation_of_split(mesh, config, SWITCHES[name]) for name in SHARDED}
        answers["placements"] = {name: str(p.placements) for name, p in model.named_parameters()}
    mesh.close()
    os.environ["MASTER_PORT"] = str(ports[1])
    config = TWO_RANKS["tensor"]
    with open_mesh(config.mesh, device_type="cpu") as mesh:
        answers["in 8 bits"] = train_steps(mesh, config, FEWER_STEPS, recipe="rowwise")
        answers["switches"] = {name: deviation_of_split(mesh, config, changes) for name, changes in SPLIT.items()}
    return answers


def deviation_of_split(mesh: Mesh, parallel: ParallelConfig, changes: dict[str, Any]) -> float:
    """The most by which loss or a gradient of a split model is off, as a share of the largest entry of the whole one's."""
    config = replace(SWITCHABLE, num_layers=2, **changes)
    whole = _loss_and_gradients(random_transformer(config), config)
    split = _loss_and_gradients(parallelize(random_transformer(config), mesh.device_mesh, parallel), config)
    assert split.keys() == whole.keys()
    return max(((split[name] - whole[name]).abs().max() / whole[name].abs().max()).item() for name in whole)


def _loss_and_gradients(model: nn.Module, config: TransformerConfig) -> dict[str, Tensor]:
    latents, timestep, features = random_inputs(config, height=4, width=6, num_text=5)
    mask = torch.arange(5) < torch.tensor([4, 5, 2])[:, None]
    loss = F.mse_loss(model(latents, timestep, features, mask), latents.flip(1))
    loss.backward()
    return {"loss": loss.detach(), **whole_gradients(model)}


def gradients_in_two_calls(model: nn.Module, rows: slice) -> dict[str, Tensor]:
    """Gradients when text is encoded once and read by two denoising steps."""
    latents, timestep, features, mask = small_batch(rows)
    text = model.encode_text(features, mask)
    velocities = [model.denoise(latents, when, text) for when in (timestep, 1 - timestep)]
    torch.stack(velocities).square().mean().backward()
    return whole_gradients(model)


def whole_gradients(model: nn.Module) -> dict[str, Tensor]:
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in gradients.items()}


def load_from_meta(mesh: Mesh, config: ParallelConfig) -> nn.Module:
    """A model that is never whole on any rank: built without memory, sharded, then filled."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    with torch.device("meta"):
        model: nn.Module = Transformer(SMALL)
    parallelize(model, mesh.device_mesh, config).to_empty(device="cpu")
    set_model_state_dict(model, small_transformer().state_dict(), options=StateDictOptions(full_state_dict=True))
    return model
