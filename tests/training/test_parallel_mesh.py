"""Meshes: what is refused before any rank is waited for, and the two timeouts in real processes."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import distributed

from pleinair.model.lora import LoraConfig, add_lora
from pleinair.model.parallelize import MeshConfig, ParallelConfig
from pleinair.model.quantised_base import quantise_base
from pleinair.model.tensor_parallel import SplitModule, check_tensor_parallel, find_split_modules
from pleinair.model.transformer import Transformer
from pleinair.records.errors import ConfigError
from pleinair.training.mesh import Mesh, open_mesh
from pleinair.training.reductions import any_rank, clip_gradients, from_rank_zero, gradient_norm, mean_metrics
from tests.small_transformers import tiny_config
from tests.training.ranks import run_ranks

INIT_SECONDS, COLLECTIVE_SECONDS, LATE_SECONDS = 120.0, 5.0, 8.0


def test_one_process_has_no_group_and_all_of_the_data() -> None:
    with open_mesh(MeshConfig(), device_type="cpu") as mesh:
        assert mesh == Mesh()
        assert not distributed.is_initialized()
        assert mean_metrics({"loss": 2.0}, mesh) == {"loss": 2.0}
        assert (any_rank(True, mesh), any_rank(False, mesh), from_rank_zero(lambda: 3.5, mesh)) == (True, False, 3.5)


@pytest.mark.parametrize(
    ("config", "world_size", "message"),
    [
        (
            MeshConfig(shard=2),
            "1",
            "shard 2 x tensor 1 needs 2 processes, this run has 1: start 2 processes, or set shard=1",
        ),
        (MeshConfig(), "8", "needs 1 processes, this run has 8: start 1 processes, or set shard=8"),
        (MeshConfig(tensor=4), "6", "needs 4 processes, this run has 6: start 4 processes$"),
        (MeshConfig(shard=2), "2", "RANK is not: start the ranks with torchrun"),
        (MeshConfig(), "two", "WORLD_SIZE is 'two': the launcher must set a whole number"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_at_once(
    config: MeshConfig, world_size: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", world_size)
    with pytest.raises(ConfigError, match=message):
        open_mesh(config, device_type="cpu")


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="shard is 0: give at least 1"):
        MeshConfig(shard=0)
    with pytest.raises(ConfigError, match="tensor is 1: give tensor at least 2"):
        MeshConfig(async_tensor=True)
    with pytest.raises(ConfigError, match="set compile=True"):
        ParallelConfig(mesh=MeshConfig(tensor=2, async_tensor=True))
    with pytest.raises(ConfigError, match="blocks_per_group is 0"):
        ParallelConfig(blocks_per_group=0)


def test_async_tensor_is_refused_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="async_tensor needs CUDA, this run is on cpu"):
        open_mesh(MeshConfig(tensor=2, async_tensor=True), device_type="cpu")


def test_a_deterministic_mesh_asks_torch_for_equal_bits() -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    try:
        open_mesh(MeshConfig(), device_type="cpu", deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG")


def split_modules(size: int, **changes: Any) -> list[SplitModule]:
    with torch.device("meta"):
        return find_split_modules(Transformer(tiny_config(**changes)), size)


def test_text_fusion_whose_heads_do_not_divide_stays_whole() -> None:
    split = [module.name for module in split_modules(2, num_layers=1, text_num_heads=4, text_num_kv_heads=1)]
    assert [name for name in split if name.startswith("transformer_blocks")] == [
        "transformer_blocks.0.attn",
        "transformer_blocks.0.ff",
    ]
    assert {name.rsplit(".", 1)[1] for name in split if name.startswith("text_fusion")} == {"ff"}


@pytest.mark.parametrize(
    ("size", "changes", "message"),
    [
        (3, {}, "tensor is 3: it must divide the 4 query heads of every block"),
        (4, {}, "tensor is 4: it must divide the 2 key and value heads of every block"),
        (
            4,
            {"num_kv_heads": 4, "mlp_width": 98},
            "tensor is 4: it must divide the 98 columns of the MLP of every block",
        ),
        (4, {"num_kv_heads": 4, "mlp_width": 100, "mlp": "gelu"}, "it must divide the 150 columns of the MLP"),
        (2, {"stream": "dual"}, "tensor is 2, but stream is dual, whose blocks attend over two sets of weights"),
        (2, {"stream": "hybrid", "num_dual_layers": 1}, "tensor is 2, but stream is hybrid"),
    ],
)
def test_what_tensor_parallelism_cannot_split_is_refused_from_the_configuration(
    size: int, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_tensor_parallel(tiny_config(**changes), size)
    with pytest.raises(ConfigError, match=message):
        split_modules(size, **changes)


def test_latent_attention_is_split_by_its_heads_and_has_no_key_and_value_heads_to_divide() -> None:
    config = tiny_config(attention="mla", num_kv_heads=1, rope_axes=(4, 2, 2))
    check_tensor_parallel(config, 4)
    check_tensor_parallel(tiny_config(stream="dual"), 1)


def test_loras_and_8_bit_weights_are_not_split() -> None:
    model = Transformer(tiny_config())
    add_lora(model, LoraConfig(rank=2))
    with pytest.raises(ConfigError, match=r"transformer_blocks\.0\.attn\.to_q carries a LoRA: set tensor=1"):
        find_split_modules(model, 2)
    model = Transformer(tiny_config())
    quantise_base(model)
    with pytest.raises(ConfigError, match=r"ff\.gate has 8-bit weights: set tensor=1 and give those ranks to shard"):
        find_split_modules(model, 2)


def test_clipping_one_process_is_torchs_own() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = [torch.randn(4, 3, generator=generator).requires_grad_() for _ in range(3)]
    for parameter in ours[:2]:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    theirs = [parameter.detach().clone().requires_grad_() for parameter in ours]
    for parameter, source in zip(theirs, ours, strict=True):
        parameter.grad = None if source.grad is None else source.grad.clone()
    expected = torch.nn.utils.clip_grad_norm_(theirs, 0.5).item()
    assert clip_gradients(ours, 0.5) == pytest.approx(expected)
    for parameter, source in zip(theirs, ours, strict=True):
        assert (parameter.grad is None) == (source.grad is None)
        if parameter.grad is not None and source.grad is not None:
            torch.testing.assert_close(source.grad, parameter.grad)
    before = [parameter.grad.clone() for parameter in ours[:2] if parameter.grad is not None]
    assert clip_gradients(ours, 10.0) == pytest.approx(0.5, abs=1e-3)
    assert all(torch.equal(parameter.grad, kept) for parameter, kept in zip(ours, before, strict=False))  # type: ignore[arg-type]
    assert gradient_norm([]).item() == 0.0


def late_then_hung(ports: Sequence[int]) -> tuple[bool, float]:
    """Rank 1 arrives later than a collective may take; then rank 0 waits in a collective that rank 1 never enters."""
    os.environ["MASTER_PORT"] = str(ports[0])
    is_late = os.environ["RANK"] == "1"
    if is_late:
        time.sleep(LATE_SECONDS)
    mesh = open_mesh(
        MeshConfig(shard=2),
        init_timeout_seconds=INIT_SECONDS,
        collective_timeout_seconds=COLLECTIVE_SECONDS,
        device_type="cpu",
    )
    assert any_rank(is_late, mesh)
    started = time.monotonic()
    if is_late:
        time.sleep(2 * COLLECTIVE_SECONDS)  # and no close: the group is destroyed at exit
        return True, 0.0
    with pytest.raises(RuntimeError, match=r"(?i)timed out"):
        any_rank(False, mesh)
    return True, time.monotonic() - started


@pytest.mark.slow
def test_a_late_rank_is_waited_for_and_a_hung_one_is_noticed() -> None:
    (_, waited_seconds), _ = run_ranks(2, late_then_hung, num_ports=1, to_the_end=True)
    assert COLLECTIVE_SECONDS - 0.5 <= waited_seconds < INIT_SECONDS / 2
