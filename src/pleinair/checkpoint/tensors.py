"""Writing a file of tensors, with the file system's refusals as what they are."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file. Raises OSError when the file system refuses, a full disk for example.

    The library gives its own exception then, with the system's error number in its text.
    """
    try:
        save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    except SafetensorError as refused:
        if found := re.search(r"os error (\d+)", str(refused)):
            number = int(found[1])
            raise OSError(number, os.strerror(number), str(path)) from refused
        if "I/O error" in str(refused):
            raise OSError(errno.EIO, str(refused), str(path)) from refused
        raise
