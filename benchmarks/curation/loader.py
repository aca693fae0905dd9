"""The loader beside WebDataset and litdata: one process, warm page cache, latents and text features as batched tensors.

The same random samples go into a pack, tars and chunks. Every run is a process of its own; loaders take turns within a round.
Two sets: pictures of 64 px as the demo's (16 x 8 x 8 latents, 4 x 192 text features a token), and latents of K2's size at 256
px (16 x 32 x 32) with about as much text.
"""

from __future__ import annotations

import io
import json
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.krablet.rounds import Result, interleaved, ratio, result
from pleinair.cli.places import cache_dir
from pleinair.packs.writer import PackRow, PackWriter
from pleinair.records.packs import PackManifest

SCRIPT = Path(__file__).with_name("peers") / "loaders.py"
ROOT = Path(__file__).parents[2]
REQUIREMENTS = (
    "webdataset==1.0.2",
    "litdata==0.2.76",
    "braceexpand",
    "lightning-utilities",
    "boto3",
    "obstore",
    "tifffile",
)
PEERS = ("webdataset", "litdata")
NUM_SAMPLES, PASSES = 6000, 3


@dataclass(frozen=True)
class Set:
    """One kind of samples."""

    name: str
    resolution: int
    shape: tuple[int, int, int]
    token: tuple[int, int]
    """Layers and dimensions of a token's features."""
    most_tokens: int


SETS = (Set("64px", 64, (16, 8, 8), (4, 192), 24), Set("k2", 256, (16, 32, 32), (4, 192), 20))
Sample = tuple[str, bytes, bytes]


def measure(rounds: int) -> list[Result]:
    """`loader_vs_webdataset` and `loader_vs_litdata`, of both sets, in samples per CPU second; and memory."""
    python = _peers_python()
    results: list[Result] = []
    for of in SETS:
        folder = Path(tempfile.mkdtemp(prefix="pleinair-bench-"))
        try:
            _write(of, folder, python)
            results += _measure_set(of, folder, python, rounds)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return results


def _measure_set(of: Set, folder: Path, python: str, rounds: int) -> list[Result]:
    told: dict[str, list[dict[str, float]]] = {name: [] for name in ("ours", *PEERS)}

    def run(name: str) -> float:
        told[name].append(_read(name, folder, python))
        return told[name][-1]["cpu"]

    values = interleaved(rounds, {name: lambda name=name: run(name) for name in told})  # type: ignore[misc]
    digests = {one["digest"] for runs in told.values() for one in runs}
    assert len(digests) == 1, f"the loaders gave different values: {told}"
    suffix = "" if of.name == "k2" else f"_{of.name}"
    results = [
        result(
            f"loader_vs_{peer}{suffix}",
            statistics.median(values["ours"]),
            "samples / CPU s",
            f"{peer}, {statistics.median(values[peer]):.0f}",
            ratio(values["ours"], values[peer]),
        )
        for peer in PEERS
    ]
    for name, runs in told.items():
        peak = max(one["peak_mib"] for one in runs)
        anonymous = max(one["anonymous_mib"] for one in runs)
        results.append(result(f"loader_mib_{name}{suffix}", peak, f"MiB at most, {anonymous:.0f} of it not of files"))
    return results


def _read(name: str, folder: Path, python: str) -> dict[str, float]:
    command = [python, str(SCRIPT), name, str(folder), str(PASSES)]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "src")}, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr[-2000:]}")
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


def samples(of: Set) -> Iterator[Sample]:
    """Key, latents and tokens; the bits are random, lengths like those of captions."""
    rng = np.random.default_rng(0)
    for number in range(NUM_SAMPLES):
        latents = rng.standard_normal(of.shape).astype(np.float16).tobytes()
        length = int(rng.integers(4, of.most_tokens + 1))
        yield f"sample-{number:06d}", latents, rng.standard_normal((length, *of.token)).astype(np.float16).tobytes()


def _write(of: Set, folder: Path, python: str) -> None:
    facts = {"resolution": of.resolution, "shape": of.shape, "token": of.token}
    (folder / "facts.json").write_text(json.dumps(facts))
    rows = list(samples(of))
    _write_ours(of, folder / "ours", rows)
    _write_tars(folder / "webdataset", rows)
    (folder / "raw").mkdir()
    for key, latents, tokens in rows:
        np.savez(
            folder / "raw" / f"{key}.npz",
            latents=np.frombuffer(latents, np.float16),
            tokens=np.frombuffer(tokens, np.float16),
        )
    subprocess.run([python, "-c", LITDATA, str(folder)], check=True, capture_output=True)
    shutil.rmtree(folder / "raw")


def _write_ours(of: Set, folder: Path, rows: Sequence[Sample]) -> None:
    manifest = PackManifest(
        plan="bench",
        group_rows=64,
        text_layers=tuple(range(of.token[0])),
        text_dim=of.token[1],
        caption_names=("long",),
    )
    writer = PackWriter(folder, manifest)
    ready = [
        PackRow(key, latents, 512, 512, captions=(key,), caption_weights=(1.0,), text_features=(tokens,))
        for key, latents, tokens in rows
    ]
    writer.write(of.resolution, of.shape, ready)
    writer.end_shape(of.resolution, of.shape)
    writer.finish([writer.write_empty_prompt(rows[0][2])])


def _write_tars(folder: Path, rows: Sequence[Sample], per_tar: int = 2000) -> None:
    folder.mkdir()
    for start in range(0, len(rows), per_tar):
        with tarfile.open(folder / f"{start:06d}.tar", "w") as tar:
            for key, *parts in rows[start : start + per_tar]:
                for name, data in zip(("latents", "tokens"), parts, strict=True):
                    info = tarfile.TarInfo(f"{key}.{name}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


LITDATA = """
import sys
from pathlib import Path
import numpy as np, torch
from litdata.streaming.writer import BinaryWriter
folder = Path(sys.argv[1])
(folder / "litdata").mkdir()
writer = BinaryWriter(str(folder / "litdata"), chunk_bytes="64MB")
for number, path in enumerate(sorted((folder / "raw").glob("*.npz"))):
    with np.load(path) as raw:
        parts = {name: torch.from_numpy(raw[name]) for name in ("latents", "tokens")}
    writer[number] = {"key": path.stem, **parts}
writer.done()
writer.merge()
"""
"""Samples as litdata's own tensors."""


def _peers_python() -> str:
    """The Python of an environment with the peers, which sees this one's torch; made where it is not there yet."""
    place = cache_dir() / "bench-peers" / "loaders"
    if not (place / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        [packages] = (place / "lib").glob("python*/site-packages")
        (packages / "main.pth").write_text(next(path for path in sys.path if path.endswith("site-packages")) + "\n")
        pip = [str(place / "bin" / "pip"), "install", "-q"]
        subprocess.run([*pip, "--no-deps", *REQUIREMENTS], check=True)
        subprocess.run([*pip, "botocore", "s3transfer"], check=True)
    return str(place / "bin" / "python")
