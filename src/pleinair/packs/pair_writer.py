"""Writing preference pairs: in pieces that survive a kill.

    pairs --add--> piece (fsync, rename, journal) --finish--> PAIRS/ (rename)

Until `finish` all is in `.PAIRS.partial`. A writer with the same plan goes on after the pieces that it finds there; anything
else in that folder is deleted.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from pleinair.config import from_document, to_document
from pleinair.packs.pairs import MANIFEST, read_pairs_manifest
from pleinair.packs.shards import digest_of
from pleinair.records.errors import PackError
from pleinair.records.pairs import GapCheck, PairsManifest, PieceEntry, PreferencePair, piece_schema

JOURNAL = "pieces.jsonl"
GAP = "gap.json"


@dataclass(frozen=True)
class PairTensors:
    """The tensors of a pair."""

    winner_CHW: Tensor
    loser_CHW: Tensor
    text_features_TLD: Tensor
    """Projected, real tokens only."""


class PairsWriter:
    """Writes pairs piece by piece; `pieces` are those that are done, found again after a kill.

    Raises PackError where finished pairs of another plan are in the way; `finished` says that those of this plan are there.
    """

    def __init__(self, directory: Path, manifest: PairsManifest) -> None:
        self.directory, self.manifest = directory, manifest
        self.staging = directory.with_name(f".{directory.name}.partial")
        self.finished = (directory / MANIFEST).exists()
        if self.finished and (found := read_pairs_manifest(directory)).plan != manifest.plan:
            raise PackError(
                f"{directory} holds other pairs (plan {found.plan[:12]}): give another folder, or remove it"
            )
        self.pieces: list[PieceEntry] = []
        self.gap: GapCheck | None = None
        if not self.finished:
            self.pieces = self._taken_up()

    @property
    def num_pairs(self) -> int:
        """Pairs in the pieces that are done."""
        return sum(piece.num_pairs for piece in self.pieces)

    def add(self, pairs: Sequence[tuple[PreferencePair, PairTensors]]) -> None:
        """One piece, durable on return; all pairs of one shape."""
        shapes = {tuple(side.shape) for _, held in pairs for side in (held.winner_CHW, held.loser_CHW)}
        if len(shapes) != 1:
            raise PackError(f"a piece has latents of {len(shapes)} shapes ({sorted(shapes)[:3]}): write one for each")
        (shape,) = shapes
        name = f"{len(self.pieces):05d}-{'x'.join(f'{side:02d}' for side in shape)}.arrow"
        hidden, path = self.staging / f".{name}", self.staging / name
        batch = _as_batch(pairs, piece_schema(self.manifest, shape), self.manifest)
        with hidden.open("wb") as file:
            with pa.ipc.new_file(file, batch.schema) as writer:
                writer.write_batch(batch)
            file.flush()
            os.fsync(file.fileno())
        os.replace(hidden, path)
        size, digest = path.stat().st_size, digest_of(path)
        self.pieces.append(PieceEntry(name=name, shape=shape, num_pairs=len(pairs), num_bytes=size, sha256=digest))
        with (self.staging / JOURNAL).open("a") as journal:
            journal.write(json.dumps(to_document(self.pieces[-1])) + "\n")
            journal.flush()
            os.fsync(journal.fileno())

    def keep_gap(self, gap: GapCheck) -> None:
        """What a reward said of the first pairs, kept for whoever goes on."""
        _write(self.staging / GAP, json.dumps(to_document(gap)))
        self.gap = gap

    def discard(self) -> None:
        """Nothing of this plan stays but what is finished."""
        shutil.rmtree(self.staging, ignore_errors=True)

    def finish(self, beside: Mapping[str, bytes] | None = None) -> PairsManifest:
        """Give the folder its name; `beside` are further files. Raises PackError without a pair."""
        if not self.pieces:
            raise PackError(f"there are no pairs to write to {self.directory}: give prompts, or events that hold")
        files = {}
        for name, content in (beside or {}).items():
            _write(self.staging / name, content)
            files[name] = digest_of(self.staging / name)
        manifest = replace(self.manifest, pieces=tuple(self.pieces), gap=self.gap, files=files)
        _write(self.staging / MANIFEST, json.dumps(to_document(manifest), indent=1) + "\n")
        _sync(self.staging)
        os.replace(self.staging, self.directory)
        _sync(self.directory.parent)
        for name in (JOURNAL, GAP):  # only now: a writer that is killed before this goes on by them
            (self.directory / name).unlink(missing_ok=True)
        return manifest

    def _taken_up(self) -> list[PieceEntry]:
        """Pieces of an earlier try with this plan; anything else there is deleted."""
        journal, heading = self.staging / JOURNAL, json.dumps({"plan": self.manifest.plan})
        lines = journal.read_text().splitlines(keepends=True) if journal.exists() else []
        if not lines or lines[0].strip() != heading:
            shutil.rmtree(self.staging, ignore_errors=True)
            self.staging.mkdir(parents=True)
            _write(journal, heading + "\n")
            return []
        if (self.staging / GAP).exists():
            self.gap = from_document(GapCheck, json.loads((self.staging / GAP).read_text()))
        done = []
        for line in lines[1:]:
            if not line.endswith("\n"):
                break
            entry = from_document(PieceEntry, json.loads(line))
            path = self.staging / entry.name
            if not path.exists() or digest_of(path) != entry.sha256:
                break
            done.append(entry)
        _write(journal, "".join([heading + "\n", *(json.dumps(to_document(entry)) + "\n" for entry in done)]))
        return done


def _write(path: Path, content: str | bytes) -> None:
    """A whole file, by rename, on the disk on return."""
    hidden = path.with_name(f".{path.name}")
    with hidden.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(hidden, path)


def _sync(path: Path) -> None:
    """Wait until the disk knows what a folder holds."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _as_batch(
    pairs: Sequence[tuple[PreferencePair, PairTensors]], schema: pa.Schema, manifest: PairsManifest
) -> pa.RecordBatch:
    dtype = getattr(torch, manifest.dtype)
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    for pair, held in pairs:
        for name in ("key", "prompt", "origin", "event", "weak_winner"):
            columns[name].append(getattr(pair, name))
        for name, side in (("winner", pair.winner), ("loser", pair.loser)):
            columns[f"{name}_checkpoint"].append(side.checkpoint)
            columns[f"{name}_seed"].append(side.seed)
            columns[f"{name}_settings"].append(json.dumps(dict(side.settings), sort_keys=True))
        if held.text_features_TLD.shape[1:] != manifest.token_shape:
            raise PackError(
                f"the text features of pair {pair.key} have {tuple(held.text_features_TLD.shape[1:])} layers and "
                f"dimensions and the pairs {manifest.token_shape}: encode with the policy's own projection"
            )
        for name, tensor in (
            ("winner_latents", held.winner_CHW),
            ("loser_latents", held.loser_CHW),
            ("text_features", held.text_features_TLD),
        ):
            columns[name].append(tensor.detach().cpu().to(dtype).contiguous().view(torch.uint8).numpy().tobytes())
    return pa.record_batch([pa.array(columns[field.name], field.type) for field in schema], schema=schema)
