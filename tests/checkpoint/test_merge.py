import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pleinair.checkpoint.manifests import identity
from pleinair.checkpoint.merge import combine_checkpoints, merge_checkpoints, shares_of
from pleinair.checkpoint.store import (
    read_document,
    read_manifest,
    read_tensors,
    save_checkpoint,
    verify_checkpoint,
)
from pleinair.cli.main import main
from pleinair.records.errors import CheckpointError

FILE = "model.safetensors"


def save(
    root: Path,
    step: int,
    weight: Tensor,
    *,
    digest: str = "c",
    rate: float = 0.1,
    config: Any = None,
    lineage: Any = (),
    head: bool = False,
) -> Path:
    tensors = {FILE: {"weight": weight, "count": torch.tensor(3)}, "optimiser.safetensors": {"m": weight}}
    run = {"step": step, "learning_rate": rate, "has_head": head, "seed": 0, "lineage": list(lineage)}
    documents = {"config.json": config or {"width": 4}, "optimiser.json": {}, "run.json": run}
    return save_checkpoint(root, step, tensors, documents, config_digest=digest, keep=100)


def weights(count: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(5, 3) for _ in range(count)]


def child_of(parent: Path, root: Path, weight: Tensor) -> Path:
    came_from = {"checkpoint": str(parent), "identity": identity(read_manifest(parent))}
    return save(root, 1, weight, digest="child", lineage=[came_from])


@pytest.mark.parametrize("rule", ["uniform", "linear", "ema"])
def test_an_average_is_the_weighted_sum_in_order_of_steps(tmp_path: Path, rule: Any) -> None:
    values = weights(3)
    paths = [save(tmp_path, step, value) for step, value in zip((10, 20, 30), values, strict=True)]
    merged = merge_checkpoints([paths[2], paths[0], paths[1]], rule, out=tmp_path / "merged")
    shares = {"uniform": [1 / 3] * 3, "linear": [1 / 6, 2 / 6, 3 / 6], "ema": [0.64 / 2.44, 0.8 / 2.44, 1 / 2.44]}[rule]
    state = read_tensors(merged, FILE)
    expected = sum(
        (share * value.double() for share, value in zip(shares, values, strict=True)), torch.zeros(5, 3).double()
    )
    assert torch.allclose(state["weight"].double(), expected, atol=1e-7)
    assert state["count"].item() == 3
    assert shares_of(3, rule) == pytest.approx(shares)


def test_a_merged_checkpoint_verifies_tells_its_inputs_and_has_no_optimiser(tmp_path: Path) -> None:
    paths = [save(tmp_path, step, value) for step, value in enumerate(weights(2))]
    merged = merge_checkpoints(paths, out=tmp_path / "merged")
    manifest = verify_checkpoint(merged)
    assert sorted(manifest.files) == ["config.json", FILE, "run.json"]
    assert [entry["step"] for entry in read_document(merged, "run.json")["inputs"]] == [0, 1]
    with pytest.raises(CheckpointError, match="exists already"):
        merge_checkpoints(paths, out=merged)


def test_bfloat16_is_averaged_in_float32(tmp_path: Path) -> None:
    values = [torch.full((3,), value).bfloat16() for value in (1.0, 1.0078125)]
    paths = [save(tmp_path, step, value) for step, value in enumerate(values)]
    merged = read_tensors(merge_checkpoints(paths, out=tmp_path / "merged"), FILE)["weight"]
    assert merged.dtype == torch.float32
    assert merged.tolist() == [1.00390625] * 3, "halfway between two neighbouring bfloat16 numbers"


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"digest": "other"}, "were trained with other settings or data: average checkpoints of one run"),
        ({"rate": 0.05}, "at learning rates 0.1 and 0.05: average checkpoints of the stable phase"),
        ({"head": True}, "was trained beside a head: average checkpoints of one phase"),
        ({"config": {"width": 5}}, "hold models of other configurations"),
        ({"weight": torch.zeros(5, 4)}, "has another weight in .* merge models of one shape"),
    ],
)
def test_what_has_no_average_is_refused(tmp_path: Path, other: dict[str, Any], sentence: str) -> None:
    first, second = weights(2)
    paths = [save(tmp_path, 1, first), save(tmp_path, 2, **{"weight": second, **other})]
    with pytest.raises(CheckpointError, match=sentence):
        merge_checkpoints(paths, out=tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001", "step-00000002"]


def test_a_damaged_input_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    paths = [save(tmp_path, step, value) for step, value in enumerate(weights(2))]
    (paths[1] / FILE).write_bytes((paths[1] / FILE).read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match="does not match its hash"):
        merge_checkpoints(paths, out=tmp_path / "merged")


def test_specialists_of_one_parent_add_their_changes(tmp_path: Path) -> None:
    base, one, two = weights(3)
    parent = save(tmp_path / "base", 9, base)
    children = [child_of(parent, tmp_path / name, value) for name, value in (("one", one), ("two", two))]
    merged = combine_checkpoints(parent, children, [0.7, -0.2], out=tmp_path / "merged")
    expected = base + 0.7 * (one - base) - 0.2 * (two - base)
    assert torch.allclose(read_tensors(merged, FILE)["weight"], expected, atol=1e-6)


@pytest.mark.parametrize("latent_spaces", [("ours", "ours"), (None, "ours"), ("theirs", "ours")])
def test_a_parent_that_is_older_than_the_name_of_its_latents_fits_children_of_any(
    tmp_path: Path, latent_spaces: tuple[str | None, str]
) -> None:
    base, value = weights(2)
    configs = [{"width": 4, **({"latent_space": name} if name else {})} for name in latent_spaces]
    parent = save(tmp_path / "base", 9, base, config=configs[0])
    came_from = {"checkpoint": str(parent), "identity": identity(read_manifest(parent))}
    child = save(tmp_path / "child", 1, value, digest="child", lineage=[came_from], config=configs[1])
    if latent_spaces[0] == "theirs":
        with pytest.raises(CheckpointError, match="hold models of other configurations"):
            combine_checkpoints(parent, [child], [1.0], out=tmp_path / "merged")
        return
    merged = combine_checkpoints(parent, [child], [1.0], out=tmp_path / "merged")
    assert read_document(merged, "config.json")["latent_space"] == "ours"


def test_a_parent_that_was_trained_at_other_timesteps_fits_and_the_childs_are_kept(tmp_path: Path) -> None:
    base, value = weights(2)
    parent = save(tmp_path / "base", 9, base)
    came_from = {"checkpoint": str(parent), "identity": identity(read_manifest(parent))}
    config = {"width": 4, "timesteps": {"shift_mu": 0.3}}
    child = save(tmp_path / "child", 1, value, digest="child", lineage=[came_from], config=config)
    merged = combine_checkpoints(parent, [child], [1.0], out=tmp_path / "merged")
    assert read_document(merged, "config.json") == config


def test_a_model_of_another_parent_is_not_combined(tmp_path: Path) -> None:
    base, other, value = weights(3)
    parent, stranger = save(tmp_path / "base", 9, base), save(tmp_path / "stranger", 9, other)
    child = child_of(stranger, tmp_path / "child", value)
    with pytest.raises(CheckpointError, match=r"does not descend from .*base.* but from .*stranger"):
        combine_checkpoints(parent, [child], [1.0], out=tmp_path / "merged")
    with pytest.raises(CheckpointError, match="1 checkpoints and 2 amounts"):
        combine_checkpoints(parent, [child], [1.0, 2.0], out=tmp_path / "merged")


def test_the_memory_of_a_merge_is_that_of_a_few_tensors(tmp_path: Path) -> None:
    """Eight checkpoints of 16 tensors of 4 MiB are half a gigabyte; four inputs at once are 64 MiB each."""
    tensors = {f"t{i:02d}": torch.full((1024, 1024), float(i)) for i in range(16)}
    run = {"learning_rate": 0.1, "lineage": []}
    paths = [
        save_checkpoint(tmp_path, step, {FILE: tensors}, {"run.json": run}, config_digest="c", keep=9)
        for step in range(8)
    ]
    script = (
        "import resource, sys, json; from pathlib import Path; import torch;"
        "from pleinair.checkpoint.merge import stream_tensors, weighted_sum;"
        "torch.set_num_threads(1);"
        "status = lambda: int(next(l for l in open('/proc/self/status') if l.startswith('RssAnon')).split()[1]);"
        "peak = [0]; before = status();\n"
        "def merge(ts):\n"
        "    total = weighted_sum(ts, [1 / len(ts)] * len(ts)) + 1e-3\n"
        "    peak[0] = max(peak[0], status())\n"
        "    return total\n"
        "import itertools; import pleinair.checkpoint.merge as m; m.torch.equal = lambda a, b: False\n"
        f"stream_tensors([Path(p) for p in sys.argv[2:]], '{FILE}', merge, Path(sys.argv[1]))\n"
        "print((peak[0] - before) / 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "out"), *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"},  # freed memory is given back at once
    )
    megabytes = float(done.stdout)
    assert megabytes < 64, (
        "eight inputs, the sum and its copy of one tensor are 44 MB; the model is 64, all inputs are 512"
    )


def test_the_command_averages_the_last_checkpoints_of_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = weights(4)
    for step, value in enumerate(values):
        save(tmp_path / "checkpoints", step, value)
    words = ["merge", str(tmp_path / "checkpoints"), "--last", "3", "-o", str(tmp_path / "merged")]
    assert main(words) == 0
    assert torch.allclose(read_tensors(tmp_path / "merged", FILE)["weight"], torch.stack(values[1:]).mean(0), atol=1e-7)
    assert main(words) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*words[:3], "9", *words[4:]]) == 1
    assert "--last 9 takes checkpoints of one folder" in capsys.readouterr().err
