from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pleinair.checkpoint.store import save_checkpoint
from pleinair.config import to_document
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
    assert not any(parameter.requires_grad for parameter in found.parameters())
    if bits == 8:
        quantise_base(whole)
    dtype = torch.float32 if bits == 32 else torch.bfloat16
    for name, values in whole.state_dict().items():
        eight = values.dtype == torch.int8 or name.endswith(".scale")
        assert torch.equal(found.state_dict()[name], values if eight else values.to(dtype)), name
    assert {type(module) for module in found.text_fusion.modules()} >= ({Int8Linear} if bits == 8 else set())


@pytest.mark.parametrize("bits", [8, 16])
def test_a_base_in_few_bits_gives_nearly_the_velocity_of_the_whole_one(tmp_path: Path, bits: Bits) -> None:
    whole = random_transformer()
    found = read_base(stored(tmp_path, whole), bits)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours, theirs = found(*random_inputs()).float(), whole(*random_inputs()).float()
    assert (ours - theirs).norm() < 0.1 * theirs.norm()


def test_weights_that_do_not_fit_their_configuration_are_refused(tmp_path: Path) -> None:
    state = random_transformer().state_dict()
    del state["img_in.bias"]
    tensors, documents = {"transformer.safetensors": state}, {"config.json": {"transformer": to_document(TINY)}}
    checkpoint = save_checkpoint(tmp_path, 0, tensors, documents, config_digest="x")
    with pytest.raises(CheckpointError, match=r"'img_in.bias' as None and its configuration says \(96,\)"):
        read_base(checkpoint, 16)
