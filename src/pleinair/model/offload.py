"""Training or drawing with blocks that wait in the CPU's memory and come to the device one at a time.

    block 0 runs  |  block 1 runs  |  ...  |  block 1 again, backward  |  block 0 again, backward
    block 1 comes |  block 2 comes |  ...  |  block 0 comes            |

At most two blocks are on the device: the one that runs and the one that comes next, on a stream of its own. A block
keeps no activations but its input; in the backward pass it is brought and run once more (activation checkpointing), as
otherwise the graph would hold every block's weights. Only frozen weights travel: what is trained, a LoRA, stays on the
device with its gradients and its optimiser.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pleinair.model.transformer import Transformer
from pleinair.records.errors import ConfigError


class BlockOffload:
    """The blocks of one model, and which of them are on the device."""

    def __init__(self, blocks: list[nn.Module], device: torch.device) -> None:
        self.blocks, self.device = blocks, device
        self.homes = [_to_cpu(block) for block in blocks]
        self.arrived: dict[int, list[Tensor]] = {}
        self.last = -1
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def run(self, index: int, *inputs: Any) -> Tensor:
        """Block `index` with its weights brought, and the next one on its way."""
        following = self._following(index)
        self._fetch(index)
        if self.stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.stream)
        for gone in self.arrived.keys() - {index, following}:
            del self.arrived[gone]
        if following is not None:
            self._fetch(following)
        self.last = index
        _place(self.homes[index], self.arrived[index])
        try:
            out: Tensor = type(self.blocks[index]).forward(self.blocks[index], *inputs)
        finally:
            _place(self.homes[index], [tensor for _, _, tensor in self.homes[index]])
        return out

    def _following(self, index: int) -> int | None:
        """Forwards to the last block, then back: the block after this one in the direction of travel."""
        last = len(self.blocks) - 1
        turning = index == last and self.last == last
        following = index - 1 if index < self.last or turning else index + 1
        return following if 0 <= following <= last else None

    def _fetch(self, index: int) -> None:
        if index in self.arrived:
            return
        if self.stream is None:
            self.arrived[index] = [_copy(tensor, self.device) for _, _, tensor in self.homes[index]]
            return
        self.stream.wait_stream(torch.cuda.current_stream(self.device))  # what was freed there may be reused here
        with torch.cuda.stream(self.stream):
            self.arrived[index] = [_copy(tensor, self.device) for _, _, tensor in self.homes[index]]
        for tensor in self.arrived[index]:
            tensor.record_stream(torch.cuda.current_stream(self.device))


_Home = list[tuple[dict[str, Any], str, Tensor]]
"""(the parameters or buffers of a module, a name there, the tensor that stays on the CPU)."""


def offload_blocks(model: Transformer, device: str | torch.device) -> BlockOffload:
    """Keep the stream's blocks on the CPU and everything else on `device`, in place; run the model as before.

    Freeze the base first: raises ConfigError for a trainable weight of a block outside a LoRA. Blocks built on the CPU
    stay there, so a model larger than the device's memory never has to fit on it.
    """
    for name, parameter in model.transformer_blocks.named_parameters():
        if parameter.requires_grad and ".lora." not in name:
            raise ConfigError(f"'transformer_blocks.{name}' is trainable and would be offloaded: freeze the base first")
    device = torch.device(device)
    blocks = list(model.transformer_blocks)
    offload = BlockOffload(blocks, device)
    for module in model.modules():
        _move_rest(module, device, offload.homes)
    for index, block in enumerate(blocks):
        block.forward = _Offloaded(offload, index)
    return offload


class _Offloaded:
    """A block's forward: bring it and run it, once more in the backward pass."""

    def __init__(self, offload: BlockOffload, index: int) -> None:
        self.offload, self.index = offload, index

    def __call__(self, *inputs: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return self.offload.run(self.index, *inputs)
        out: Tensor = checkpoint(self.offload.run, self.index, *inputs, use_reentrant=False)
        return out


def _to_cpu(block: nn.Module) -> _Home:
    """A block's frozen tensors, in pinned memory where there is a GPU, in the places they are put back to."""
    home: _Home = []
    for module in block.modules():
        for place in (module._parameters, module._buffers):
            for name, tensor in place.items():
                if tensor is None or tensor.requires_grad:
                    continue
                kept = tensor.detach().cpu()
                if torch.cuda.is_available() and not kept.is_pinned():
                    kept = kept.pin_memory()
                kept = nn.Parameter(kept, requires_grad=False) if place is module._parameters else kept
                cast(dict[str, Any], place)[name] = kept
                home.append((cast(dict[str, Any], place), name, kept))
    return home


def _move_rest(module: nn.Module, device: torch.device, homes: list[_Home]) -> None:
    kept = {id(tensor) for home in homes for _, _, tensor in home}
    for place in (module._parameters, module._buffers):
        for tensor in place.values():
            if tensor is not None and id(tensor) not in kept:
                tensor.data = tensor.data.to(device)


def _place(home: _Home, tensors: list[Tensor]) -> None:
    for (place, name, _), tensor in zip(home, tensors, strict=True):
        place[name] = tensor


def _copy(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, a parameter of a parameter; on the CPU too, so that the tests there walk the same path."""
    arrived = torch.empty_like(tensor, device=device).copy_(tensor, non_blocking=True)
    return nn.Parameter(arrived, requires_grad=False) if isinstance(tensor, nn.Parameter) else arrived
