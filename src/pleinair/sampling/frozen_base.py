"""A checkpoint's transformer as a LoRA is trained on it: read, stored in few bits and let go block by block.

    file --block i, in the file's dtype--> CPU --int8 or bfloat16--> model      (then the device, or left to `offload_blocks`)

Nothing but one block is ever there in the file's dtype, which for the released size in float32 would be 51 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from pleinair.checkpoint.pieces import TensorPieces, fill, read_index
from pleinair.checkpoint.store import read_document
from pleinair.config import from_document
from pleinair.model.quantised_base import blocks_of, cast_rest, quantise_block
from pleinair.model.transformer import Transformer, TransformerConfig
from pleinair.records.errors import CheckpointError
from pleinair.sampling.adapters import holds_adapter
from pleinair.sampling.checkpoints import WEIGHTS_FILE, read_transformer

Bits = Literal[8, 16, 32]
Read = Callable[[Sequence[str]], dict[str, Tensor]]


def read_base(checkpoint: Path, bits: Bits) -> Transformer:
    """The frozen transformer on the CPU: the blocks' matrices in int8 and the rest in bfloat16, or all in bfloat16 or float32.

    (Of a checkpoint that is a LoRA itself, the merged weights are read whole first.) Raises CheckpointError for weights of
    another model.
    """
    model, read = _opened(checkpoint)
    dtype = torch.float32 if bits == 32 else torch.bfloat16
    left = dict.fromkeys(model.state_dict())
    places = {id(module): name for name, module in model.named_modules()}
    for block in blocks_of(model):
        place = f"{places[id(block)]}."
        names = [name for name in left if name.startswith(place)]
        for name in names:
            del left[name]
        _fill(block, {name.removeprefix(place): values for name, values in read(names).items()})
        if bits == 8:
            quantise_block(block)
        cast_rest(block, dtype)
    for name in left:
        _fill(model, {name: values.to(dtype) for name, values in read([name]).items()})
    return model.requires_grad_(False).eval()


def _fill(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    module.load_state_dict(state, strict=False, assign=True)


def _opened(checkpoint: Path) -> tuple[Transformer, Read]:
    """A model without memory and what reads its tensors by name; of a LoRA's checkpoint the merged model."""
    if holds_adapter(checkpoint):
        model = read_transformer(checkpoint)
        whole = model.state_dict()
        return model, lambda names: {name: whole.pop(name) for name in names}
    with torch.device("meta"):
        model = Transformer(from_document(TransformerConfig, read_document(checkpoint, "config.json")["transformer"]))
    index = read_index(checkpoint, WEIGHTS_FILE)
    _require_same(model, index, checkpoint)

    def read(names: Sequence[str]) -> dict[str, Tensor]:
        state = {name: torch.empty(index[name].shape, dtype=index[name].dtype) for name in names}
        fill(checkpoint, index, state)
        return state

    return model, read


def _require_same(model: Transformer, index: Mapping[str, TensorPieces], checkpoint: Path) -> None:
    expected = {name: tuple(values.shape) for name, values in model.state_dict().items()}
    found = {name: pieces.shape for name, pieces in index.items()}
    if expected != found:
        name = min(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        raise CheckpointError(
            f"{checkpoint} holds '{name}' as {found.get(name)} and its configuration says {expected.get(name)}: it is damaged"
        )
