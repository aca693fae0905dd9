"""Curves for people: TensorBoard files in the run's directory, trackio and Weights & Biases where installed.

All show what `steps.jsonl` holds and nothing more, so no curve is only there. They write on rank 0, after the hooks that
measure.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from pleinair.records.errors import MissingExtraError, require
from pleinair.training.engine import Run
from pleinair.training.records import StepRecord


def values_of(record: StepRecord) -> dict[str, float]:
    """All numbers of a record under the names that curves get."""
    own = {"loss": record.loss, "grad_norm": record.grad_norm, "learning_rate": record.learning_rate}
    return {**{f"train/{name}": value for name, value in own.items()}, "throughput/rows": record.samples_per_second} | {
        name if "/" in name else f"train/{name}": value for name, value in record.metrics.items()
    }


class TensorBoard:
    """Writes event files to `run_dir/tensorboard`; a resumed run hides the steps that are done again."""

    def __init__(self) -> None:
        self._writer: Any = None

    def begin(self, run: Run[Any]) -> None:
        """Open the files. Raises MissingExtraError without the package."""
        require("tensorboard", "train")
        if run.mesh.rank == 0:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(run.run_dir / "tensorboard"), purge_step=run.step)

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        """One point on every curve."""
        if self._writer is not None:
            for name, value in values_of(record).items():
                self._writer.add_scalar(name, value, record.step)
        return {}

    def end(self) -> None:
        """Close the files."""
        if self._writer is not None:
            self._writer.close()


class Tracker:
    """Sends records to `trackio` or `wandb`, which share these three calls; the package is imported when a run begins."""

    def __init__(self, package: str, project: str) -> None:
        self.package, self.project = package, project
        self._module: Any = None

    def begin(self, run: Run[Any]) -> None:
        """Open the run. Raises MissingExtraError naming the package."""
        try:
            module: Any = importlib.import_module(self.package)
        except ModuleNotFoundError as missing:
            raise MissingExtraError(
                f"curves in {self.package} need its package: pip install {self.package}"
            ) from missing
        if run.mesh.rank == 0:
            module.init(project=self.project, name=run.run_dir.name)
            self._module = module

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        """One record."""
        if self._module is not None:
            self._module.log({"step": record.step, **values_of(record)})
        return {}

    def end(self) -> None:
        """Close the run."""
        if self._module is not None:
            self._module.finish()
