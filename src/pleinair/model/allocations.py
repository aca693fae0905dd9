"""Memory of tensors, counted while code runs: on real ones, on fake ones, on shapes alone."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class AllocationCounter(TorchDispatchMode):
    """Counts the bytes of tensors made while it is active; `alive` are those still there, `peak` the most at once.

    Sees what operators return, on any device and on fake tensors; not what a kernel allocates inside itself.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = 0
        self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run the operator and count storages it returned that were not there before."""
        known = {_storage_key(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and _storage_key(tensor) not in known | self._seen:
                self._count(tensor)
        return output

    def _count(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), _storage_key(tensor)
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        self._seen.add(key)
        weakref.finalize(storage, self._release, key, storage.nbytes())

    def _release(self, key: int, num_bytes: int) -> None:
        self.alive -= num_bytes
        self._seen.discard(key)


def _storage_key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
