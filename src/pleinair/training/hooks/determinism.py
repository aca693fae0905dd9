"""Deterministic mode: operations that have no deterministic kernel fail instead of giving other bits each time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from pleinair.records.errors import ConfigError
from pleinair.training.engine import Run
from pleinair.training.records import StepRecord


class Deterministic:
    """The hook: on while the run goes. CUDA also needs CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment at the start."""

    def __init__(self) -> None:
        self._before = False

    def begin(self, run: Run[Any]) -> None:
        """Switch it on. Raises ConfigError when the environment of a CUDA run lacks its setting."""
        if run.mesh.device.type == "cuda" and "CUBLAS_WORKSPACE_CONFIG" not in os.environ:
            raise ConfigError("deterministic runs on CUDA need CUBLAS_WORKSPACE_CONFIG=:4096:8: set it and start again")
        self._before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        """Nothing."""
        return {}

    def end(self) -> None:
        """As it was."""
        torch.use_deterministic_algorithms(self._before)
