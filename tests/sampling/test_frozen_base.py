from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pleinair.checkpoint.manifests import identity
from pleinair.checkpoint.store import read_manifest, save_checkpoint
from pleinair.config import to_document
from pleinair.model.lora import LoraConfig
from pleinair.model.quantised_base import Int8Linear, quantise_base
from pleinair.model.transformer import Transformer
from pleinair.records.errors import CheckpointError
from pleinair.sampling.frozen_base import Bits, read_base
from tests.small_transformers import TINY, random_inputs, random_transformer


def stored(folder: Path, model: Transformer) -> Path:
    tensors, documents = (
        {"transformer.safetensors": model.state_dict()},
        {"config.json": {"transformer": to_document(TINY)}},
    )
    return save_checkpoint(folder, 0, tensors, documents, config_digest="x")


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_a_base_read_block_by_block_is_the_whole_one_stored_in_as_many_bits(tmp_path: Path, bits: Bits) -> None:
    whole = random_transformer()
    found = read_base(stored(tmp_path, whole), bits)
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())
    if bits == 8:
        quantise_base(whole)
    dtype = torch.float32 if bits == 32 else torch.bfloat16
    for name, values in whole.state_dict().items():
        eight = values.dtype == torch.int8 or name.endswith(".scale")
        expected, ours = values if eight else values.to(dtype), found.state_dict()[name]
        assert ours.dtype == expected.dtype, name
        assert torch.equal(ours, expected), name
    assert {type(module) for module in found.text_fusion.modules()} >= ({Int8Linear} if bits == 8 else set())


@pytest.mark.parametrize("bits", [8, 16])
def test_a_base_in_few_bits_gives_nearly_the_velocity_of_the_whole_one(tmp_path: Path, bits: Bits) -> None:
    whole = random_transformer()
    found = read_base(stored(tmp_path, whole), bits)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours, theirs = found(*random_inputs()).float(), whole(*random_inputs()).float()
    assert (ours - theirs).norm() < 0.1 * theirs.norm()


def test_the_base_of_a_lora_on_a_lora_is_the_merged_model(tmp_path: Path) -> None:
    whole, layer = random_transformer(), "transformer_blocks.0.attn.to_q"
    base, weight = stored(tmp_path / "base", whole), whole.state_dict()[f"{layer}.weight"]
    down, up = torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2)
    told = {"checkpoint": str(base), "identity": identity(read_manifest(base)), "lora": to_document(LoraConfig(rank=2))}
    tensors = {"lora.safetensors": {f"{layer}.down": down, f"{layer}.up": up}}
    documents = {"base.json": told, "config.json": {"transformer": to_document(TINY)}}
    found = read_base(save_checkpoint(tmp_path / "lora", 0, tensors, documents, config_digest="x"), 32)
    expected = {**whole.state_dict(), f"{layer}.weight": weight + up @ down}
    assert found.state_dict().keys() == expected.keys()
    for name, values in found.state_dict().items():
        assert torch.allclose(values, expected[name], atol=1e-5), name


def test_weights_that_do_not_fit_their_configuration_are_refused(tmp_path: Path) -> None:
    state = random_transformer().state_dict()
    del state["img_in.bias"]
    tensors, documents = {"transformer.safetensors": state}, {"config.json": {"transformer": to_document(TINY)}}
    checkpoint = save_checkpoint(tmp_path, 0, tensors, documents, config_digest="x")
    with pytest.raises(CheckpointError, match=r"'img_in.bias' as None and its configuration says \(96,\)"):
        read_base(checkpoint, 16)
