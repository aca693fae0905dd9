"""Saving without waiting, and by many processes: a copy in host memory, written by a thread beside training.

    training thread   save(): copy the tensors --+--> the next steps ...                          finished() -> Saved | Refused
    writing thread                               +--> files, fsync, hash -> rank-00001.json
    rank 0's thread                                   ... waits for every rank's, then manifest -> rename -> `latest` -> prune

Ranks agree through files in the hidden directory, which must lie on a file system they all see; no collective runs beside
training's own. At most one checkpoint is being written.
"""

from __future__ import annotations

import errno
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pleinair.checkpoint.drafts import clear_leftovers, draft_path, open_draft, publish, to_json, write_documents
from pleinair.checkpoint.pieces import (
    INDEX,
    Piece,
    TensorPieces,
    index_to_document,
    is_sharded,
    local_box,
    local_tensor,
    merge_pieces,
    written_here,
)
from pleinair.checkpoint.ranks import RankReport, outcome_of_rank_zero, read_reports, write_report
from pleinair.checkpoint.shards import ShardLayout, plan_shard, write_shard
from pleinair.checkpoint.staging import StagingBuffer
from pleinair.records.checkpoint import Refused, Saved
from pleinair.records.errors import CheckpointError
from pleinair.tensor_files import tensor_bytes

NUM_FILES_AT_ONCE = 4

_Plan = tuple[dict[str, ShardLayout], dict[str, dict[str, Tensor]], dict[str, dict[str, TensorPieces]]]
"""Layouts and tensors of the files that this process writes; the pieces of the files that several write."""


@dataclass(frozen=True, kw_only=True)
class _Task:
    """One save of this process, fixed when `save` is called."""

    step: int
    token: str
    config_digest: str
    documents: Mapping[str, bytes]
    layouts: Mapping[str, ShardLayout]
    """Per file that this process writes."""
    sources: Mapping[str, Mapping[str, Tensor]]
    """The tensors of those files, this process's part."""
    pieces: Mapping[str, Mapping[str, TensorPieces]]
    """Per file name asked for, where more than one process writes it."""
    began: float

    @property
    def num_bytes(self) -> int:
        return sum(layout.num_bytes for layout in self.layouts.values())


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """How a save ended: with the name of its directory, or with a reason."""

    step: int
    token: str
    began: float
    ended: float
    directory: str | None = None
    num_bytes: int = 0
    reason: str = ""


class CheckpointWriter:
    """Writes the checkpoints of one run; every rank has one, and calls it at the same steps.

    All methods are for the training thread. Nothing that goes wrong on the disk is raised: it is told by `finished`, and the
    earlier checkpoints are untouched.
    """

    def __init__(
        self,
        root: Path,
        *,
        keep: int = 2,
        keep_every: int | None = None,
        asynchronous: bool = True,
        rank: int = 0,
        world_size: int = 1,
        session: str | None = None,
        staging: Literal["save", "update"] = "save",
        when_busy: Literal["wait", "skip"] = "wait",
        peer_timeout_seconds: float = 600.0,
    ) -> None:
        """`keep`, `keep_every`: what stays, as in `steps_to_keep`.

        `session`: a word that the ranks of this start share and no other start had; by default they agree on one by a
        collective here, so that every rank must construct its writer at the same point.
        `staging`: when the copy is complete: before `save` returns, or only at `wait_until_staged`, which must then be
        called before the tensors change (`optimiser.register_step_pre_hook`).
        `when_busy`: what a save does that finds the one before it still being written. Ranks could disagree about that, so
        several always wait.
        `peer_timeout_seconds`: how long rank 0 waits for the others' files.
        """
        if keep < 1 or (keep_every is not None and keep_every < 1):
            raise ValueError(f"keep is {keep} and keep_every {keep_every}: both must be positive")
        if world_size > 1 and when_busy == "skip":
            raise ValueError(
                f"when_busy is 'skip' with {world_size} ranks, which would skip different steps: use 'wait'"
            )
        self.root, self.rank, self.world_size = root, rank, world_size
        self._keep, self._keep_every, self._asynchronous = keep, keep_every, asynchronous
        self._staging, self._when_busy, self._peer_timeout = staging, when_busy, peer_timeout_seconds
        if rank == 0:  # before the ranks agree: the others write only after that
            clear_leftovers(root, spare=session)
        self._session = session or _agree_on_session(world_size)
        self._num_saves = 0
        self._buffer = StagingBuffer()
        self._pool = ThreadPoolExecutor(1, "checkpoint")  # a thread that is there: starting one would be waited for
        self._writing: Future[None] | None = None
        self._staged = threading.Event()
        self._token = ""
        self._stalls: dict[str, float] = {}
        self._outcomes: list[_Outcome] = []
        self._fault: BaseException | None = None

    def reserve(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Allocate the buffers for these tensors now; else the first save does, and is slower."""
        if self._asynchronous:
            layouts, sources, _ = self._plan(tensors)
            self._reserve(layouts, sources)

    def save(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        documents: Mapping[str, Any],
        *,
        config_digest: str,
    ) -> float:
        """Begin a checkpoint, or make it when not asynchronous; returns the seconds that training waited.

        `tensors` are per file name, as in `save_checkpoint`; DTensors among them are written in pieces, one file per rank.
        Every rank gives the same names; plain tensors and documents are rank 0's. Raises TypeError for a document that is not
        JSON, ValueError for tensors that cannot be stored.
        """
        began = time.monotonic()
        if step < 0:
            raise ValueError(f"step is {step}: it counts the steps done")
        encoded = {name: to_json(document) for name, document in documents.items()} if self.rank == 0 else {}
        self._num_saves += 1
        self._token = f"{self._session}-{self._num_saves}"
        if self._writing is not None and not self._writing.done() and self._when_busy == "skip":
            reason = f"step {step} was skipped: the checkpoint before it is still being written; save less often"
            ended = time.monotonic()
            self._outcomes.append(_Outcome(step=step, token=self._token, began=began, ended=ended, reason=reason))
            return self._note_stall(began)
        self.wait()
        layouts, sources, pieces = self._plan(tensors)
        task = _Task(
            step=step,
            token=self._token,
            config_digest=config_digest,
            documents=encoded,
            layouts=layouts,
            sources=sources,
            pieces=pieces,
            began=began,
        )
        if self._asynchronous:
            self._start(task)
        else:
            self._run(task)
        return self._note_stall(began)

    def wait_until_staged(self) -> float:
        """With `staging="update"`: wait until the tensors may change; returns the seconds waited, a part of the stall."""
        if self._writing is None or self._staged.is_set():
            return 0.0
        began = time.monotonic()
        self._staged.wait()
        return self._note_stall(began)

    def wait(self) -> None:
        """Wait until nothing is being written."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def finished(self) -> list[Saved | Refused]:
        """What has ended since the last call, in order. Raises what went wrong in the writer itself, if anything did."""
        if self._fault is not None:
            fault, self._fault = self._fault, None
            raise fault
        done = len(self._outcomes)
        ended, self._outcomes[:done] = self._outcomes[:done], []
        return [self._result(outcome) for outcome in ended]

    def close(self) -> None:
        """Wait for the checkpoint being written; `finished` tells how it ended. No save may follow."""
        self.wait()
        self._pool.shutdown()

    def _note_stall(self, began: float) -> float:
        seconds = time.monotonic() - began
        self._stalls[self._token] = self._stalls.get(self._token, 0.0) + seconds
        return seconds

    def _result(self, outcome: _Outcome) -> Saved | Refused:
        times = {
            "stall_seconds": self._stalls.pop(outcome.token),
            "write_seconds": outcome.ended - outcome.began,
            "began": outcome.began,
        }
        if outcome.directory is None:
            return Refused(step=outcome.step, reason=outcome.reason, **times)
        return Saved(step=outcome.step, directory=outcome.directory, num_bytes=outcome.num_bytes, **times)

    def _plan(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> _Plan:
        """What this process writes."""
        sources: dict[str, dict[str, Tensor]] = {}
        pieces: dict[str, dict[str, TensorPieces]] = {}
        for name, state in tensors.items():
            boxes = {key: local_box(tensor) for key, tensor in state.items()}
            if self.world_size == 1 and any(boxes[key].shape != tuple(state[key].shape) for key in state):
                raise ValueError(f"{name} holds tensors sharded over ranks: give the writer rank and world_size")
            split = self.world_size > 1 and any(is_sharded(tensor) for tensor in state.values())
            file = f"{name.removesuffix('.safetensors')}.rank-{self.rank:05d}.safetensors" if split else name
            mine = {
                key: local_tensor(tensor)
                for key, tensor in state.items()
                if written_here(tensor, self.rank) and (boxes[key].num_elements or not split)
            }
            if mine or (self.rank == 0 and not split):
                sources[file] = mine
            if split:
                pieces[name] = {
                    key: TensorPieces(
                        tensor.dtype, tuple(tensor.shape), (Piece(file, boxes[key]),) if key in mine else ()
                    )
                    for key, tensor in state.items()
                }
        return {file: plan_shard(state) for file, state in sources.items()}, sources, pieces

    def _reserve(self, layouts: Mapping[str, ShardLayout], sources: Mapping[str, Mapping[str, Tensor]]) -> None:
        pinned = any(tensor.is_cuda for state in sources.values() for tensor in state.values())
        self._buffer.reserve(layouts, pinned=pinned)

    def _start(self, task: _Task) -> None:
        self._reserve(task.layouts, task.sources)
        self._staged.clear()
        if self._staging == "save":
            self._buffer.copy(task.layouts, task.sources)
            self._staged.set()
        self._writing = self._pool.submit(self._run, task)

    def _run(self, task: _Task) -> None:
        """Write, and note how it ended; in the writing thread, or in training's when not asynchronous."""
        draft, found, reason = draft_path(self.root, task.step, task.token), None, ""
        try:
            found = self._write(task, draft).name
        except (OSError, CheckpointError) as refused:
            reason = (
                f"the checkpoint of step {task.step} could not be written to {self.root} ({refused}): "
                f"{_remedy(refused)}; the earlier ones are untouched"
            )
            if self.rank > 0:
                self._tell_rank_zero(task, draft, str(refused))
        except BaseException as fault:  # a mistake of ours; `finished` raises it in the training thread
            self._fault = fault
            return
        finally:
            self._staged.set()
            if self.rank == 0:
                shutil.rmtree(draft, ignore_errors=True)
        self._outcomes.append(
            _Outcome(
                step=task.step,
                token=task.token,
                began=task.began,
                ended=time.monotonic(),
                directory=found,
                num_bytes=task.num_bytes,
                reason=reason,
            )
        )

    def _write(self, task: _Task, draft: Path) -> Path:
        """The published checkpoint. Raises OSError or CheckpointError."""
        open_draft(self.root, task.step, task.token)
        with ThreadPoolExecutor(NUM_FILES_AT_ONCE, "shard") as pool:
            digests = {
                name: pool.submit(write_shard, draft / name, task.layouts[name], body)
                for name, body in self._bodies(task)
            }
        files = {name: digest.result() for name, digest in digests.items()}
        mine = RankReport(files=files, pieces=task.pieces)
        if self.rank > 0:
            write_report(draft, self.rank, mine)
            return outcome_of_rank_zero(draft, task.token, 2 * self._peer_timeout)
        reports = [mine, *read_reports(draft, range(1, self.world_size), self._peer_timeout)]
        files = {name: digest for report in reports for name, digest in report.files.items()}
        documents = dict(task.documents)
        if index := merge_pieces(report.pieces for report in reports):
            documents[INDEX] = to_json(index_to_document(index))
        return publish(
            draft,
            task.step,
            {**files, **write_documents(draft, documents)},
            config_digest=task.config_digest,
            token=task.token,
            world_size=self.world_size,
            keep=self._keep,
            keep_every=self._keep_every,
        )

    def _bodies(self, task: _Task) -> Iterator[tuple[str, list[memoryview]]]:
        """Each file's bytes: from the buffer, or from the tensors themselves when training waits anyhow."""
        if self._asynchronous:
            if not self._staged.is_set():
                self._buffer.copy(task.layouts, task.sources)
                self._staged.set()
            yield from ((name, [tensor_bytes(body)]) for name, body in self._buffer.bodies(task.layouts).items())
            return
        for name, layout in task.layouts.items():
            yield name, [tensor_bytes(task.sources[name][key].cpu().contiguous()) for key in layout.spans]

    def _tell_rank_zero(self, task: _Task, draft: Path, reason: str) -> None:
        """So that it need not wait; if even that cannot be written, its timeout tells it."""
        for name in task.layouts:
            (draft / name).unlink(missing_ok=True)
        with suppress(OSError):
            write_report(draft, self.rank, RankReport(refused=reason))


def _remedy(refused: OSError | CheckpointError) -> str:
    if isinstance(refused, CheckpointError):
        return "see to that rank"
    if refused.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "free space there"
    return "see that this directory can be written"


def _agree_on_session(world_size: int) -> str:
    """A word that only the processes of this start know."""
    words: list[Any] = [uuid.uuid4().hex[:12]]
    if world_size > 1:
        if not torch.distributed.is_initialized():
            raise ValueError(f"a writer of {world_size} ranks needs a process group, or a session given to every rank")
        torch.distributed.broadcast_object_list(words, src=0)
    return str(words[0])
