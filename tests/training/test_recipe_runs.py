from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from shutil import copytree, rmtree

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from pleinair.checkpoint.store import list_checkpoints, newest_checkpoint, read_document, read_manifest, read_tensors
from pleinair.cli.main import main
from pleinair.evaluation.domains import compare
from pleinair.model.formats import read_lora
from pleinair.model.image_encoder import Picture
from pleinair.packs.loader import LatentLoader
from pleinair.packs.pack import Pack
from pleinair.packs.plan import LoaderConfig
from pleinair.packs.split import split_pack
from pleinair.records.errors import ConfigError
from pleinair.sampling.checkpoints import read_transformer
from pleinair.training.patch_features import EfficientNetPatches, Grid, write_patch_features
from pleinair.training.records import read_records
from tests.training.recipe_runs import arguments, packed, pictures, trained

ALIGNED = "repa={'depth': 1}"
PREVIEWS = ("watch.preview_every=2", "watch.preview_prompts=('a key, noto style', 'a banana')")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one that is done: `demo`, iREPA in its first phase."""
    folder = tmp_path_factory.mktemp("runs")
    packed(folder, ALIGNED)
    trained(folder, ALIGNED, "engine.keep_every=2")
    return folder


def final(runs: Path, name: str = "demo") -> Path:
    checkpoint = newest_checkpoint(runs / name / "checkpoints")
    assert checkpoint is not None
    return checkpoint


def same_pack(runs: Path) -> str:
    """Train on `demo`'s pack."""
    return f"pack={str(runs / 'demo' / 'pack')!r}"


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return read_tensors(checkpoint, "transformer.safetensors")


def test_alignment_is_trained_in_the_first_phase_and_gone_from_checkpoints_after_it(runs: Path) -> None:
    records = read_records(runs / "demo" / "steps.jsonl")
    assert ["repa_cosine" in record.metrics for record in records] == [True] * 4 + [False] * 4
    heads = {
        read_manifest(path).step: "head.safetensors" in read_manifest(path).files
        for path in list_checkpoints(runs / "demo" / "checkpoints")
    }
    assert heads == {2: True, 4: False, 6: False, 8: False}


def test_alignment_that_cannot_be_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments(tmp_path, "repa={'depth': 3}")]) == 1
    assert "repa.depth is 3 and the transformer has 2 blocks" in capsys.readouterr().err
    assert main(["train", *arguments(tmp_path, ALIGNED, "repa_phases=3")]) == 1
    assert "repa_phases is 3 of 2 phases" in capsys.readouterr().err


def test_pairs_that_are_never_trained_on_are_what_validation_sees(runs: Path) -> None:
    held_out = {picture.key for picture in pictures() if picture.held_out}
    pack = Pack(runs / "demo" / "pack-held-out")
    assert pack.manifest.resolutions == (32,)
    assert pack.manifest.num_rows == len(held_out) == 6
    own = Pack(runs / "demo" / "pack")
    loader = LatentLoader(own, 32, LoaderConfig(batch_size=own.manifest.num_rows // 2))
    assert held_out.isdisjoint(loader.keys(0))
    projections = [read_tensors(one.directory, "feature_projection.safetensors")["basis_LDK"] for one in (pack, own)]
    assert torch.equal(*projections)
    measured = {r.step: r.metrics.get("validation/loss") for r in read_records(runs / "demo" / "steps.jsonl")}
    assert [step for step, loss in measured.items() if loss is not None] == [3, 7]


def test_previews_are_pictures_in_the_run_and_change_nothing_of_it(runs: Path, tmp_path: Path) -> None:
    plain = trained(tmp_path, "name=plain", same_pack(runs))
    shown = trained(tmp_path, "name=shown", same_pack(runs), *PREVIEWS)
    assert [record.loss for record in shown] == [record.loss for record in plain]
    sheets = sorted((tmp_path / "shown" / "previews").glob("*.png"))
    assert [sheet.stem for sheet in sheets] == [f"step-{step:08d}" for step in (2, 4, 6, 8)]
    first, last = (np.asarray(Image.open(sheet), np.float32) for sheet in (sheets[0], sheets[-1]))
    assert first.shape == (32, 64, 3)
    assert np.abs(first - last).mean() > 0.1


def test_packed_text_and_8_bit_products_are_switches_of_a_recipe(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = [record.loss for record in trained(tmp_path, "name=plain", same_pack(runs))]
    switched = ("name=both", same_pack(runs), "pack_text=True", "engine.precision=fp8")
    records = trained(tmp_path, *switched)
    assert "layers multiply in 8-bit floats at 32 px, tensorwise scales" in capsys.readouterr().out
    assert [record.loss for record in records] == pytest.approx(plain, rel=0.3)  # of other pictures and captions
    assert [record.metrics["ranks/num_shapes"] for record in records] == [1] * 4 + [2] * 4
    assert all(values.dtype == torch.float32 for values in weights(final(tmp_path, "both")).values())
    assert main(["train", *arguments(tmp_path, *switched[:3])]) == 1
    assert "was made with other settings or data" in capsys.readouterr().err


def test_a_child_begins_with_its_parents_weights_and_remembers_it(runs: Path) -> None:
    parent = final(runs)
    phases = "phases=({'resolution': 32, 'num_steps': 2, 'batch_size': 8},)"
    told = ("name=child", phases, same_pack(runs), f"parent={str(parent)!r}")
    trained(runs, *told, "engine.optimiser.learning_rate=1e-9")
    lineage = read_document(final(runs, "child"), "run.json")["lineage"]
    assert [ancestor["checkpoint"] for ancestor in lineage] == [str(parent)]
    assert not lineage[0]["with_optimiser"]
    ours, theirs = weights(final(runs, "child")), weights(parent)
    assert all((ours[name] - theirs[name]).abs().max() < 1e-6 for name in theirs)


def test_a_run_does_not_resume_from_another_parent(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, other = list_checkpoints(runs / "demo" / "checkpoints")[:2]
    phases = "phases=({'resolution': 32, 'num_steps': 2, 'batch_size': 8},)"
    told = ("name=heir", phases, same_pack(runs))
    trained(runs, *told, f"parent={str(first)!r}")
    again = arguments(runs, *told)
    assert main(["train", *again, "--parent", str(other)]) == 1
    assert "was made with other settings or data" in capsys.readouterr().err
    assert main(["train", *again, "--parent", str(first), "--with-optimiser"]) == 1
    assert "was made with other settings or data" in capsys.readouterr().err
    assert main(["train", *again, "--parent", str(first)]) == 0


def test_a_run_does_not_resume_on_a_pack_that_was_altered(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copytree(runs / "demo", tmp_path / "demo")
    rmtree(final(tmp_path))
    pack, aside = tmp_path / "demo" / "pack", tmp_path / "aside"
    split_pack(
        Pack(pack), lambda row: row.key == "noto/sun", "one picture", kept=tmp_path / "less", taken=tmp_path / "one"
    )
    again = ["train", *arguments(tmp_path, ALIGNED, "engine.keep_every=2")]

    pack.rename(aside)
    (tmp_path / "less").rename(pack)
    assert main(again) == 1
    assert f"{final(tmp_path)} was made with other settings or data: give this run another name" in _told(capsys)

    rmtree(pack)
    copytree(aside, pack)
    shard = max(pack.glob("*.parquet"), key=lambda path: path.stat().st_size)
    with shard.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    assert main(again) == 1
    assert f"pack {pack} is damaged: {shard.name} is missing or does not match its hash; pack again" in _told(capsys)

    assert read_manifest(final(tmp_path)).step == 6, "what was refused trained nothing"
    rmtree(pack)
    aside.rename(pack)
    assert main(again) == 0
    assert (
        read_records(tmp_path / "demo" / "steps.jsonl")[-1].loss == read_records(runs / "demo" / "steps.jsonl")[-1].loss
    )


def test_a_run_does_not_resume_on_patch_features_that_were_made_again_otherwise(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copytree(runs / "demo", tmp_path / "demo")
    rmtree(final(tmp_path))
    features = tmp_path / "demo" / "pack-patch-features"
    again = ["train", *arguments(tmp_path, ALIGNED, "engine.keep_every=2")]
    rmtree(features)
    write_patch_features(
        features, Brightness(), [((1, 1), [p.key for p in pictures()], [p.pixels[16] for p in pictures()])]
    )
    assert main(again) == 1
    assert f"{final(tmp_path)} was made with other settings or data: give this run another name" in _told(capsys)

    rmtree(features)
    copytree(runs / "demo" / "pack-patch-features", features)
    array = min(features.glob("*.npy"))
    array.write_bytes(array.read_bytes()[:-1] + b"\x01")
    assert main(again) == 1
    assert f"{features} is damaged: {array.name} does not match its hash" in _told(capsys)

    assert read_manifest(final(tmp_path)).step == 6, "what was refused trained nothing"
    copytree(runs / "demo" / "pack-patch-features", features, dirs_exist_ok=True)
    assert main(again) == 0


class Brightness:
    """An encoder that sees how bright a cell is, under the name and width of the true one."""

    name, width = EfficientNetPatches.name, EfficientNetPatches.width

    def patches(self, some: Sequence[Picture], grid: Grid) -> npt.NDArray[np.float16]:
        means_B = np.stack(some).mean((1, 2, 3)) / 255
        return np.broadcast_to(means_B[:, None, None, None], (len(some), self.width, *grid)).astype(np.float16)


def _told(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_parents_that_do_not_fit_are_refused_with_a_sentence(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = packed(tmp_path, of=pictures()[:16])
    for settings, sentence in (
        ((f"parent={str(final(runs))!r}",), f"the pack {own.pack} holds text features of another projection"),
        ((f"parent={str(final(runs))!r}", "transformer.num_layers=1"), "has num_layers 2 and the recipe 1"),
        (("parent='nowhere'",), "there is no model at nowhere"),
        (("with_optimiser=True",), "with_optimiser needs the weights it goes on from"),
    ):
        assert main(["train", *arguments(tmp_path, *settings)]) == 1
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "demo" / "checkpoints").exists()


ONE_PHASE = "phases=({'resolution': 32, 'num_steps': 3, 'batch_size': 4},)"


def child(runs: Path, name: str, *settings: str) -> Path:
    """The final checkpoint of a run from `demo`'s."""
    trained(runs, f"name={name}", ONE_PHASE, f"parent={str(final(runs))!r}", *settings)
    return final(runs, name)


def specialist(runs: Path, style: str) -> Path:
    """The final checkpoint of a run from `demo`'s, trained on one style."""
    packed(runs, f"name={style}", ONE_PHASE, f"parent={str(final(runs))!r}", of=pictures((style,)))
    return child(runs, style)


@pytest.mark.slow
def test_specialists_merge_into_a_generalist_and_are_compared_by_domain(runs: Path, tmp_path: Path) -> None:
    first, second = specialist(runs, "noto"), specialist(runs, "blob")
    merged, parent = tmp_path / "both", final(runs)
    words = ["merge", str(runs / "noto"), str(runs / "blob"), "--parent", str(runs / "demo"), "--runs", str(runs)]
    assert main([*words, "-o", str(merged)]) == 0
    both = weights(merged)
    for name, values in weights(parent).items():
        expected = (weights(first)[name] + weights(second)[name]) / 2
        assert (both[name] - expected).abs().max() < 1e-6, name
        assert (both[name] - values).abs().max() > 0 or "norm" in name or "table" in name

    domains = ["--on", str(runs / "noto"), str(runs / "blob"), "-o", str(tmp_path / "page")]
    places = [f"base={runs / 'demo'}", str(runs / "noto"), str(runs / "blob"), f"both={merged}"]
    assert main(["domains", *places, "--draw", "2", *domains]) == 0
    cells = json.loads((tmp_path / "page" / "domains.json").read_text())["cells"]
    assert [*cells] == ["noto", "blob"]
    assert [*cells["noto"]] == ["base", "noto", "blob", "both"]
    measured = [record.metrics.get("validation/loss") for record in read_records(runs / "noto" / "steps.jsonl")]
    assert cells["noto"]["noto"]["loss"] == pytest.approx(measured[-1], rel=0.02)  # the run validates in bfloat16
    assert cells["noto"]["base"]["change"] == 0 != cells["noto"]["noto"]["change"]
    assert cells["blob"]["both"]["num_pictures"] == 2
    assert set(cells["blob"]["both"]["accuracies"]) == {"style", "concept"}
    assert "base" in (tmp_path / "page" / "domains.html").read_text()


def test_a_change_is_of_each_picture_against_itself() -> None:
    base = np.array([1.0, 2.0, 3.0, 4.0])
    better = base - np.array([0.1, 0.2, 0.1, 0.2])
    matrix = compare({"d": {"base": base, "better": better}})
    cell = matrix.cells["d"]["better"]
    assert cell.change == pytest.approx(-0.15)
    assert cell.half_width == pytest.approx(1.96 * np.std([0.1, 0.2, 0.1, 0.2], ddof=1) / 2)
    with pytest.raises(ConfigError, match="give at least one of each"):
        compare({"d": {}})


@pytest.mark.parametrize(
    "stored", ["finetune={}", "finetune={'base_bits': 16}", "finetune={'base_bits': 8, 'offload': True}"]
)
def test_a_lora_is_trained_alone_and_put_beside_its_base_again(runs: Path, tmp_path: Path, stored: str) -> None:
    name = f"lora-{len(stored)}"
    checkpoint = child(runs, name, same_pack(runs), stored, "engine.optimiser.learning_rate=1e-2")
    assert "transformer.safetensors" not in read_manifest(checkpoint).files
    assert read_document(checkpoint, "base.json")["checkpoint"] == str(final(runs))
    base, adapted = weights(final(runs)), read_transformer(checkpoint).state_dict()
    changed = {key for key in base if not torch.equal(base[key], adapted[key])}
    assert changed == {
        key for key in base if key.startswith("transformer_blocks.") and (".attn.to" in key or ".ff." in key)
    }
    for dialect in ("native", "kohya"):
        file = tmp_path / f"{dialect}.safetensors"
        assert main(["export", str(checkpoint), "--to", dialect, "-o", str(file)]) == 0
        state, found = read_lora(file)
        assert found == dialect
        assert {f"{layer}.weight" for layer in state} == changed
    key = "transformer_blocks.0.attn.to_q"
    change = state[key].scale * (state[key].up @ state[key].down)
    assert torch.allclose(base[f"{key}.weight"] + change, adapted[f"{key}.weight"], atol=1e-6)


def test_weights_of_other_programs_are_imported_once_for_all_runs(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "k2"
    assert main(["export", str(final(runs)), "--to", "diffusers", "-o", str(folder)]) == 0
    lineages = []
    for name in ("one", "two"):
        trained(runs, f"name={name}", ONE_PHASE, same_pack(runs), f"parent={str(folder)!r}")
        lineages.append(read_document(final(runs, name), "run.json")["lineage"][0]["identity"])
    assert lineages[0] == lineages[1]
    (imported,) = (runs / "parents").glob("k2-*/step-00000000")
    assert all(torch.equal(values, weights(final(runs))[key]) for key, values in weights(imported).items())
    assert main(["export", str(imported), "--to", "kohya", "-o", str(tmp_path / "x.safetensors")]) == 1
    assert "holds weights, and --to kohya is for a LoRA" in capsys.readouterr().err
