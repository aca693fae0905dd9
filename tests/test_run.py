"""The whole run as a user starts it, on drawings of our own, undisturbed and with everything killed on the way."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest
from PIL import Image

from pleinair import krablet
from pleinair.checkpoint.store import newest_checkpoint
from pleinair.cli.main import main
from pleinair.cli.places import shipped
from pleinair.cli.steps import load_checkpoint
from pleinair.curation.sources import TRAINING_STYLES, rasterise
from pleinair.model.judge import judge_pictures, load_judge
from pleinair.training.engine import read_records

LABELS = ("red apple", "banana", "rocket", "house", "sun", "fish", "guitar", "key")
TINY = (
    f"concepts={LABELS}",
    "transformer.num_kv_heads=1",
    "transformer.num_heads=2",
    "transformer.width=64",
    "transformer.num_layers=2",
    "phases=({'resolution': 32, 'num_steps': 24, 'batch_size': 8}, {'resolution': 64, 'num_steps': 24, 'batch_size': 8})",
    "engine.checkpoint_seconds=1.0",
    "engine.checkpoint_by=time",
    "engine.num_threads=1",
    "engine.precision=fp32",
    "sampling.num_steps=2",
    "evaluation.samples_per_heldout_pair=1",
    "evaluation.num_train_pairs=8",
)


def drawing(label: int, style: int) -> str:
    """One shape per label, one manner per style."""
    points = " ".join(f"{64 + 50 * ((i * (label + 2)) % 7 - 3) / 3:.0f},{20 + 12 * i}" for i in range(8))
    colour = f"hsl({36 * style}, {30 + 7 * style}%, {25 + 5 * label}%)"
    look = (
        f'fill="{colour}" stroke="black" stroke-width="{style}"'
        if style % 2
        else f'fill="none" stroke="{colour}" stroke-width="6"'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="128" height="128"><polygon points="{points}" {look}/>'
        f'<circle cx="{12 * label + 20}" cy="{10 * style + 20}" r="{9 + label}" {look}/></svg>'
    )


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawings")
    for number, label in enumerate(LABELS):
        for place, style in enumerate(TRAINING_STYLES):
            stem = folder / f"{label} {style}"
            stem.with_suffix(".png").write_bytes(rasterise(drawing(number, place).encode()))
            stem.with_suffix(".json").write_text(json.dumps({"label": label, "style": style}))
    return folder


@contextmanager
def open_home() -> Iterator[Path]:
    """A home that the database's unprivileged user can reach; pytest's own is closed to it."""
    directory = Path(tempfile.mkdtemp(prefix="pleinair-run-"))
    directory.chmod(0o755)
    yield directory
    rmtree(directory, ignore_errors=True)


@pytest.fixture
def home() -> Iterator[Path]:
    with open_home() as directory:
        yield directory


@pytest.fixture(scope="module")
def calm(drawings: Path) -> Iterator[Path]:
    """The home of a run that nothing disturbed."""
    with open_home() as directory:
        assert start(drawings, directory).wait() == 0
        yield directory


def command(drawings: Path, home: Path, verb: str = "run") -> list[str]:
    settings = [word for setting in (f"source={str(drawings)!r}", *TINY) for word in ("--set", setting)]
    return [verb, "demo", "--home", str(home), "--runs", str(home / "runs"), *settings]


def start(drawings: Path, home: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "pleinair.cli.main", *command(drawings, home)], stderr=subprocess.DEVNULL
    )


def final_rows(home: Path) -> list[dict[str, object]]:
    wanted = [
        "image_name",
        "image_path",
        "phash12_v2",
        "entropy",
        "caption_long",
        "captions_drop",
        "duplicate_drop",
        "held_out",
    ]
    with krablet.connect(directory=home / "postgres") as database:
        images = database.declared_table("images")
        return [row for batch in images.read(columns=wanted, order_by="image_name") for row in batch.to_pylist()]


def children(pid: int, word: str) -> list[int]:
    """Descendants of a process whose command line holds a word."""
    found, parents = [], {pid}
    for entry in sorted(int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()):
        try:
            parent = int(Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()[1])
            line = Path(f"/proc/{entry}/cmdline").read_text().replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent in parents:
            parents.add(entry)
            if word in line:
                found.append(entry)
    return found


def kill_when_it_appears(run: subprocess.Popen[bytes], word: str, ready: Path | None = None) -> None:
    """SIGKILL one descendant of the run, once it is there and `ready` exists."""
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        assert run.poll() is None, f"the run ended with {run.returncode} before '{word}' could be killed"
        victims = children(run.pid, word)
        if victims and (ready is None or any(ready.parent.glob(ready.name))):
            with suppress(ProcessLookupError):  # it ended by itself meanwhile: look for the next one
                os.kill(victims[-1], signal.SIGKILL)
                return
        time.sleep(0.05)
    raise AssertionError(f"'{word}' never appeared")


@pytest.mark.slow
def test_a_run_that_is_killed_everywhere_ends_as_an_undisturbed_one(drawings: Path, calm: Path, home: Path) -> None:
    rough = home
    run = start(drawings, rough)
    kill_when_it_appears(run, "krablet.workers.process")
    kill_when_it_appears(run, "main train", ready=rough / "runs/demo/checkpoints/step-*")
    kill_when_it_appears(run, "main train", ready=rough / "runs/demo/checkpoints/step-*")
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert start(drawings, rough).wait() == 0

    assert final_rows(rough) == final_rows(calm)
    losses = [[record.loss for record in read_records(one / "runs/demo/steps.jsonl")] for one in (calm, rough)]
    assert len(losses[0]) == 48
    assert losses[1] == losses[0]
    numbers = [json.loads((one / "runs/demo/metrics.json").read_text()) for one in (calm, rough)]
    assert numbers[0]["concept_top5_ceiling_n"] == numbers[1]["concept_top5_ceiling_n"] > 0
    assert [numbers[0][key] for key in ("style_accuracy_heldout", "frechet")] == [
        numbers[1][key] for key in ("style_accuracy_heldout", "frechet")
    ]
    page = (rough / "runs/demo/report.html").read_text()
    assert "data:image/" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_a_second_run_beside_a_running_one_is_refused(
    drawings: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start(drawings, home)
    try:
        while not (home / "runs/demo/config.json").exists():
            assert run.poll() is None
            time.sleep(0.05)
        assert main(command(drawings, home)) == 1
        assert f"process {run.pid} is already working in" in capsys.readouterr().err
    finally:
        run.send_signal(signal.SIGINT)
        # Interrupted inside an import, Python may end by the signal itself instead of by exit code 130.
        assert run.wait() in (0, 130, -signal.SIGINT)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "demmo"], "unknown recipe 'demmo': did you mean 'demo'?"),
        (["run", "demo", "--set", "engine.sed=1"], "unknown configuration key 'engine.sed'"),
        (["run", "demo", "--set", "transformer.num_heads=5"], "width is 192: it must be a multiple of num_heads, 5"),
        (["run", "demo", "--dsn", "postgresql://nobody@127.0.0.1:9/none"], "127.0.0.1"),
    ],
)
def test_what_cannot_run_is_refused_with_a_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--home", str(tmp_path / "home"), "--runs", str(tmp_path / "runs")]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said


def test_a_finished_run_draws_a_prompt_the_same_way_each_time(calm: Path, tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        words = ["sample", "a red apple, noto style", "--run", str(calm / "runs/demo"), "--steps", "2", "--count", "2"]
        assert main([*words, "-o", str(tmp_path / name)]) == 0
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as sheet:
        assert sheet.size == (128, 64)


def test_a_prompt_that_is_too_long_is_refused_and_leaves_no_file(
    calm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", "fox " * 2500, "--run", str(calm / "runs/demo"), "-o", str(tmp_path / "fox.png")]) == 1
    assert "the prompt has 10000 characters" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_exported_and_loads_in_diffusers(calm: Path, tmp_path: Path) -> None:
    from diffusers import Krea2Transformer2DModel

    checkpoint = newest_checkpoint(calm / "runs/demo/checkpoints")
    assert main(["export", str(checkpoint), "--to", "diffusers", "-o", str(tmp_path / "k2")]) == 0
    theirs = Krea2Transformer2DModel.from_pretrained(tmp_path / "k2")
    ours, _, _ = load_checkpoint(calm / "runs/demo")
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())


def test_a_packaged_model_draws_as_its_run_does_within_its_eight_bits(calm: Path, tmp_path: Path) -> None:
    checkpoint, packaged = newest_checkpoint(calm / "runs/demo/checkpoints"), tmp_path / "model.safetensors"
    assert main(["export", str(checkpoint), "--to", "package", "-o", str(packaged)]) == 0
    run, package = ["--run", str(calm / "runs/demo")], ["--model", str(packaged)]
    drawn = []
    for source in (run, package, [*run, "--seed", "1"]):
        assert main(["sample", "a red apple", *source, "--steps", "2", "-o", str(tmp_path / "apple.png")]) == 0
        with Image.open(tmp_path / "apple.png") as apple:
            drawn.append(np.asarray(apple, np.float32))
    by_rounding, by_seed = (np.abs(drawn[0] - other).mean() for other in drawn[1:])
    print("DIFFS", by_rounding, by_seed)
    assert by_rounding < by_seed / 4
    assert packaged.stat().st_size < 0.4 * (checkpoint / "transformer.safetensors").stat().st_size
    assert main(["export", str(checkpoint), "--to", "package", "-o", str(packaged)]) == 1


def test_the_shipped_model_draws_what_the_readme_says_it_does(tmp_path: Path) -> None:
    assert main(["sample", "a red fox, noto style", "-o", str(tmp_path / "fox.png"), "--seed", "3"]) == 0
    with Image.open(tmp_path / "fox.png") as fox:
        pixels = np.asarray(fox, np.float32)
    judge = load_judge(shipped("judge"))
    scores = judge_pictures(judge, pixels[None].astype(np.uint8))
    best = np.argsort(-np.asarray(scores.concept_logits)[0])[:5]
    assert "fox" in [judge.config.concept_names[place] for place in best]
    red, green, blue = pixels[24:40, 24:40].mean(axis=(0, 1))
    assert red > green + 40 > blue
