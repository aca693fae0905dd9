"""The preference stage on a tiny transformer: what it feeds the model, what it learns, what it measures, what it stores."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pleinair.checkpoint.store import read_document, read_tensors
from pleinair.model.lora import LoraConfig, add_lora, freeze_base, lora_parameters
from pleinair.packs.loader import Prefetched
from pleinair.packs.pairs import Anchored, AnchoredPairBatch, PairBatch, PairLoader, PairLoaderConfig
from pleinair.records.errors import ConfigError
from pleinair.training.engine import Phase, read_records, train
from pleinair.training.hooks.progress import EachStep
from pleinair.training.random import RowRandom
from pleinair.training.records import StepRecord
from pleinair.training.stages.finetune import Finetune
from pleinair.training.stages.preference import (
    METHODS,
    FrozenCopy,
    Preference,
    PreferenceConfig,
    Reference,
    WithoutLora,
)
from pleinair.training.stages.pretrain import Pretrain
from tests.packs.small_pairs import POLICY, write_pairs
from tests.small_transformers import random_transformer
from tests.training.small_stages import TINY, Latents, pretrain_stage, settings

ROWS = 8
DPO = PreferenceConfig(method="dpo", beta=10.0)


class ColourPairs:
    """Winners lean to one colour, losers to another, on the prompts of `Latents`."""

    def __init__(self, rows: int = ROWS) -> None:
        self.data = Latents(rows)

    def batch(self, step: int) -> PairBatch:
        plain = self.data.batch(step)
        towards = torch.tensor([1.0, -1.0, 0.0, 0.0])[:, None, None]
        return PairBatch(
            keys=plain.keys,
            winner_BCHW=plain.latents_BCHW + towards,
            loser_BCHW=plain.latents_BCHW - towards,
            text_features_BTLD=plain.text_features_BTLD,
            text_mask_BT=plain.text_mask_BT,
            weak_winner_B=torch.zeros(len(plain.keys), dtype=torch.bool),
        )

    def keys(self, step: int) -> list[str]:
        return self.data.keys(step)


def moved_stage(config: PreferenceConfig = DPO, by: float = 0.05) -> Preference:
    """A policy that is some way from its reference."""
    pretrain = pretrain_stage()
    pretrain.model.load_state_dict(random_transformer(TINY).state_dict())
    reference = FrozenCopy(pretrain.model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in pretrain.model.parameters():
            parameter.add_(by * parameter.abs().mean() * torch.randn(parameter.shape, generator=generator))
    return Preference(pretrain, reference, config, reference_identity="parent")


def randoms(rows: int = ROWS) -> RowRandom:
    return RowRandom(0, 0, range(rows))


def anchored(step: int = 0) -> AnchoredPairBatch:
    return Anchored(ColourPairs(), Latents(ROWS, first=100)).batch(step)


class Remembers:
    """A reference that remembers what it was shown."""

    def __init__(self, inner: Reference) -> None:
        self.inner, self.seen = inner, list[tuple[Tensor, ...]]()

    def velocity(self, *inputs: Tensor) -> Tensor:
        self.seen.append(inputs)
        return self.inner.velocity(*inputs)


def test_both_pictures_of_a_pair_have_one_timestep_and_one_noise() -> None:
    stage, batch = moved_stage(), ColourPairs().batch(0)
    stage.reference = remembers = Remembers(stage.reference)
    stage.loss(batch, randoms())
    ((noisy, timestep, text, mask),) = remembers.seen
    assert torch.equal(*timestep.chunk(2))
    t = timestep[:ROWS, None, None, None]
    noises = [
        (half - (1 - t) * latents) / t
        for half, latents in zip(noisy.chunk(2), (batch.winner_BCHW, batch.loser_BCHW), strict=True)
    ]
    assert torch.allclose(*noises, atol=1e-4)
    assert torch.equal(*text.chunk(2))
    assert torch.equal(*mask.chunk(2))
    assert len(set(timestep[:ROWS].tolist())) == ROWS


def test_errors_are_those_of_pretraining_at_the_same_draws() -> None:
    stage, batch = moved_stage(), ColourPairs().batch(0)
    found = stage.loss(batch, randoms()).metrics
    for side in ("winner", "loser"):
        plain = replace(Latents().batch(0), latents_BCHW=getattr(batch, f"{side}_BCHW"))
        expected = stage.pretrain.loss(plain, randoms()).loss.detach()
        assert float(found[f"{side}_error"]) == pytest.approx(float(expected), rel=1e-5)


def gradients(stage: Preference, loss: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(stage.model.parameters()), allow_unused=True)
    return [torch.zeros(()) if one is None else one for one in found]


def test_at_the_reference_nothing_has_moved_and_dpos_gradient_is_known() -> None:
    """b / 4 (grad l_w - grad l_l), through the whole model."""
    stage, batch = moved_stage(by=0.0), ColourPairs().batch(0)
    output = stage.loss(batch, randoms())
    for name in ("winner_rise", "loser_rise"):
        assert float(output.metrics[name]) == pytest.approx(0.0, abs=1e-6)
    assert float(output.loss.detach()) == pytest.approx(math.log(2), rel=1e-6)
    sides = [
        gradients(stage, stage.pretrain.loss(replace(Latents().batch(0), latents_BCHW=latents), randoms()).loss)
        for latents in (batch.winner_BCHW, batch.loser_BCHW)
    ]
    for found, winner, loser in zip(gradients(stage, output.loss), *sides, strict=True):
        assert torch.allclose(found, DPO.beta / 4 * (winner - loser), atol=1e-5)


def test_the_losers_share_is_of_the_whole_batch_and_reaches_the_gradient() -> None:
    batch = ColourPairs().batch(0)
    free, held = moved_stage(), moved_stage(replace(DPO, method="sdpo", sdpo_mu=1.0))
    outputs = [stage.loss(batch, randoms()) for stage in (free, held)]
    assert float(outputs[0].loss.detach()) == float(outputs[1].loss.detach())
    assert [float(one.metrics["loser_share"]) for one in outputs] == [1.0, 0.0]
    assert not torch.allclose(gradients(free, outputs[0].loss)[0], gradients(held, outputs[1].loss)[0])


def test_the_anchor_is_the_drift_on_pretraining_rows_and_only_stpo_trains_on_it() -> None:
    batch, weighted = anchored(), PreferenceConfig(beta=10.0, anchor_weight=2.0)
    stage = moved_stage(weighted)
    with_anchor, drift = stage.loss(batch, randoms()), None
    without = moved_stage(replace(weighted, anchor_weight=0.0)).loss(batch, randoms())
    drift = float(with_anchor.metrics["drift"])
    assert drift > 0
    assert float(without.metrics["drift"]) == pytest.approx(drift)
    assert float(with_anchor.loss.detach()) == pytest.approx(float(without.loss.detach()) + 2 * drift, rel=1e-5)
    plain = moved_stage(replace(DPO, anchor_weight=2.0))
    assert float(plain.loss(batch, randoms()).loss.detach()) == float(
        moved_stage(DPO).loss(ColourPairs().batch(0), randoms()).loss.detach()
    )


def test_the_drift_is_measured_on_rows_of_its_own_timesteps_and_noise() -> None:
    stage, batch = moved_stage(), anchored()
    stage.reference = remembers = Remembers(stage.reference)
    found = stage.loss(batch, randoms()).metrics["drift"]
    pairs, (noisy, timestep, text, mask) = remembers.seen
    assert not torch.equal(pairs[1][:ROWS], timestep)
    with torch.no_grad():
        velocities = [model(noisy, timestep, text, mask) for model in (stage.model, remembers.inner.model)]  # type: ignore[attr-defined]
    assert float(found) == pytest.approx(float((velocities[0] - velocities[1]).square().mean()), rel=1e-5)
    assert text.shape == batch.anchor_features_BTLD.shape


def test_an_anchor_without_pretraining_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"anchor_weight is 0.1 and the batch has no pretraining rows"):
        moved_stage(PreferenceConfig()).loss(ColourPairs().batch(0), randoms())


def test_a_weak_winner_is_not_learned_from_by_itself() -> None:
    config = PreferenceConfig(beta=10.0, anchor_weight=0.0, winner_weight=3.0)
    stage, batch = moved_stage(config), ColourPairs().batch(0)
    strong = stage.loss(batch, randoms())
    weak = stage.loss(replace(batch, weak_winner_B=torch.arange(ROWS) < 2), randoms())
    alone = [
        stage.loss(
            PairBatch(**{name: value[row : row + 1] for name, value in vars(batch).items()}),
            randoms().part(row, row + 1),
        ).metrics["winner_error"]
        for row in range(2)
    ]
    difference = float((strong.loss - weak.loss).detach())
    assert difference == pytest.approx(3.0 * sum(float(one) for one in alone) / ROWS, rel=1e-4)


def test_a_lora_switched_off_is_its_base_and_on_again_afterwards() -> None:
    model = random_transformer(TINY)
    base = copy.deepcopy(model)
    add_lora(model, LoraConfig(rank=2))
    freeze_base(model)
    with torch.no_grad():
        for parameter in lora_parameters(model):
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    latents, text = Latents().batch(0).latents_BCHW, Latents().batch(0)
    inputs = (latents, torch.full((ROWS,), 0.5), text.text_features_BTLD, text.text_mask_BT)
    with torch.no_grad():
        trained = model(*inputs)
        assert torch.allclose(WithoutLora(model).velocity(*inputs), base(*inputs), atol=1e-5)
        assert torch.equal(model(*inputs), trained)
        assert not torch.allclose(trained, base(*inputs), atol=1e-2)


def run(
    directory: Path, config: PreferenceConfig, loader: Any, steps: int = 6, hooks: Sequence[Any] = (), **changes: Any
) -> Path:
    stage = changes.pop("stage", None) or moved_stage(config, by=0.0)
    phases = [Phase("pairs", steps, ROWS, loader)]
    return train(
        stage, phases, settings(1e-3, **changes), directory, config_digest="d", hooks=hooks, on_message=lambda _: None
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_measures_its_gates_at_every_step(tmp_path: Path, method: Any) -> None:
    config = PreferenceConfig(method=method, beta=0.1 if method == "mapo" else 10.0)
    loader = Anchored(ColourPairs(), Latents(ROWS, first=100))
    final = run(tmp_path, config, loader)
    records = read_records(tmp_path / "steps.jsonl")
    gates = {"winner_rise", "loser_rise", "winners_worse", "margin_accuracy", "drift", "loser_share"}
    assert all(gates <= set(record.metrics) for record in records)
    assert records[0].metrics["drift"] < 1e-9 < records[-1].metrics["drift"]
    told = read_document(final, "preference.json")
    assert (told["reference"], told["config"]["method"]) == ("parent", method)
    assert set(read_tensors(final, "transformer.safetensors")) == set(pretrain_stage().model.state_dict())


def test_a_checkpoint_tells_the_beta_that_was_not_given() -> None:
    told = moved_stage(PreferenceConfig(method="mapo")).documents()["preference.json"]
    assert told["config"]["beta"] == 0.1


@pytest.mark.slow
def test_dpo_learns_the_order_and_pushes_both_errors_up_where_the_winner_term_holds_its_own_down(
    tmp_path: Path,
) -> None:
    rises = {}
    for method in ("dpo", "dpo_sft"):
        config = PreferenceConfig(method=method, beta=2.0, sft_weight=4.0)  # type: ignore[arg-type]
        run(tmp_path / method, config, Prefetched(ColourPairs()), steps=40)
        last = read_records(tmp_path / method / "steps.jsonl")[-5:]
        assert sum(record.metrics["margin_accuracy"] for record in last) / 5 > 0.9
        rises[method] = [sum(r.metrics[name] for r in last) / 5 for name in ("winner_rise", "loser_rise")]
    assert rises["dpo"][1] > rises["dpo_sft"][1] > 0
    assert rises["dpo_sft"][0] < rises["dpo"][0]
    assert rises["dpo_sft"][0] < 0


def test_a_run_on_a_folder_of_pairs_resumes_bit_for_bit_against_the_same_reference(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", count=48, piece=48)
    config = PreferenceConfig(beta=10.0)
    loader = Anchored(PairLoader(pairs, PairLoaderConfig(batch_size=ROWS), POLICY), Latents(ROWS, first=100))

    def stop(record: StepRecord, total: int) -> None:
        if record.step == 4:
            raise KeyboardInterrupt

    run(tmp_path / "calm", config, loader, steps=8)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", config, loader, steps=8, hooks=[EachStep(stop)], keep_every=2)
    run(tmp_path / "killed", config, loader, steps=8, keep_every=2)
    calm, killed = (
        [(r.loss, r.grad_norm, r.metrics["drift"]) for r in read_records(tmp_path / name / "steps.jsonl")]
        for name in ("calm", "killed")
    )
    assert killed == calm


def test_the_reference_is_not_trained(tmp_path: Path) -> None:
    stage = moved_stage(DPO, by=0.0)
    assert isinstance(stage.reference, FrozenCopy)
    before = {name: value.clone() for name, value in stage.reference.model.state_dict().items()}
    run(tmp_path, DPO, ColourPairs(), stage=stage)
    assert all(torch.equal(value, before[name]) for name, value in stage.reference.model.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in stage.pretrain.model.state_dict().items())


def test_micro_batches_give_the_loss_of_the_whole_batch_where_no_share_is_of_a_batch(tmp_path: Path) -> None:
    config = PreferenceConfig(beta=10.0, loser_mu=None)
    loader = Anchored(ColourPairs(), Latents(ROWS, first=100))
    for name, pieces in (("whole", 1), ("pieces", 4)):
        run(tmp_path / name, config, loader, num_micro_batches=pieces)
    whole, pieces = ([r.loss for r in read_records(tmp_path / name / "steps.jsonl")] for name in ("whole", "pieces"))
    assert pieces == pytest.approx(whole, rel=1e-4)


def test_a_lora_of_the_policy_is_stored_alone(tmp_path: Path) -> None:
    model = random_transformer(TINY)
    add_lora(model, LoraConfig(rank=2), generator=torch.Generator().manual_seed(0))
    freeze_base(model)
    pretrain: Pretrain = pretrain_stage()
    pretrain.model = model

    def trained() -> dict[str, Tensor]:
        return {name: values for name, values in model.named_parameters() if values.requires_grad}

    adapted = Finetune(pretrain, trained, base={"checkpoint": "base"})
    stage = Preference(adapted, WithoutLora(model), DPO, reference_identity="base")
    final = run(tmp_path, DPO, ColourPairs(), stage=stage)
    state = read_tensors(final, "lora.safetensors")
    assert set(state) == set(trained())
    assert read_document(final, "base.json") == {"checkpoint": "base"}
    assert all(value.abs().max() > 0 for value in state.values())
    records = read_records(tmp_path / "steps.jsonl")
    assert abs(records[0].metrics["loser_rise"]) < 1e-6 < abs(records[-1].metrics["loser_rise"])
