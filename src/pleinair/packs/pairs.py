"""Reading preference pairs: batches, each a function of (pairs, seed, step), as a pack's.

step --hash--> shape and rows of the global batch --part of this rank--> mapped pieces --copy--> PairBatch
PairBatch + LatentBatch of a pack --Anchored--> AnchoredPairBatch: what must not be forgotten, beside what is learned
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from pleinair.config import from_document
from pleinair.packs.loader import LatentBatch, Loader
from pleinair.packs.order import Ints, permutation, salt, uniform
from pleinair.packs.shards import check_size, digest_of
from pleinair.packs.writer import key_hash
from pleinair.records.errors import ConfigError, PackError
from pleinair.records.pairs import (
    PAIRS_VERSION,
    PairSide,
    PairsManifest,
    PieceEntry,
    PreferencePair,
    piece_schema,
)

MANIFEST = "pairs.json"
ORDERED = {
    "human": "ordered by people",
    "synthetic": "ordered by judges in people's place",
    "delta": "ordered by how they were drawn",
}
"""What a pair's order comes from, in words."""
ORDER, SHAPES, SHUFFLE = range(100, 103)
"""What a hash is used for; each use has a randomness of its own."""


@dataclass(frozen=True)
class PairBatch:
    """Pairs of one shape, one row each, or a rank's part of them."""

    keys: list[str]
    winner_BCHW: Tensor
    """Standardised latents of the preferred picture."""
    loser_BCHW: Tensor
    text_features_BTLD: Tensor
    """Of the prompt of both, padded on the right to the longest of the global batch."""
    text_mask_BT: Tensor
    """Bool, true where real."""
    weak_winner_B: Tensor
    """Bool, true where the winner is worse than what the policy draws."""


@dataclass(frozen=True)
class AnchoredPairBatch(PairBatch):
    """Pairs, and beside each a row of the pretraining data, of any shape."""

    anchor_BCHW: Tensor
    """Standardised latents."""
    anchor_features_BTLD: Tensor
    anchor_mask_BT: Tensor


@dataclass(frozen=True, kw_only=True)
class PairLoaderConfig:
    """How pairs become batches."""

    batch_size: int = 32
    """Pairs per batch, over all ranks."""
    seed: int = 0
    """Seed of the order."""
    least_on_policy: float = 0.5
    """More than this share of the pairs must hold a picture that the policy's own weights drew; 0 asks for none."""
    shuffle_labels: bool = False
    """The control: half of the pairs, by their keys, with winner and loser exchanged."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}: give at least 1")
        if not 0 <= self.least_on_policy < 1:
            raise ConfigError(f"least_on_policy is {self.least_on_policy}: it is a share, give one from 0 to below 1")


def read_pairs_manifest(directory: Path) -> PairsManifest:
    """The manifest alone. Raises PackError when there is none or its version is unknown."""
    try:
        document = json.loads((directory / MANIFEST).read_text())
        version = document.get("version")
        if version == PAIRS_VERSION:
            return from_document(PairsManifest, document)
    except (OSError, json.JSONDecodeError, ConfigError, AttributeError) as unreadable:
        raise PackError(f"{directory} holds no pairs: {MANIFEST} cannot be read ({unreadable})") from unreadable
    raise PackError(
        f"the pairs {directory} have format version {version}, this code reads {PAIRS_VERSION}: make them anew"
    )


class Pairs:
    """A folder of pairs, verified and mapped. Raises PackError naming the file that is missing, damaged or too new."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.manifest = directory, read_pairs_manifest(directory)
        self._tables = [self._mapped(entry) for entry in self.manifest.pieces]
        for name, expected in self.manifest.files.items():
            if not (directory / name).exists() or digest_of(directory / name) != expected:
                raise self._refusal(name, "it is missing or does not match its hash")

    def _mapped(self, entry: PieceEntry) -> pa.RecordBatch:
        path = self.directory / entry.name
        try:
            check_size(path, entry.num_bytes)
            if digest_of(path) != entry.sha256:
                raise ValueError("it does not match its hash")
            batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
            expected = piece_schema(self.manifest, entry.shape)
            if not batch.schema.equals(expected, check_metadata=True) or batch.num_rows != entry.num_pairs:
                raise ValueError("its columns or rows are not those of the manifest")
        except (OSError, ValueError, pa.ArrowException) as damaged:
            raise self._refusal(entry.name, str(damaged)) from damaged
        return batch

    def _refusal(self, name: str, why: str) -> PackError:
        return PackError(f"the pairs {self.directory} are damaged: {name}: {why}; make them anew")

    def __len__(self) -> int:
        return self.manifest.num_pairs

    def __iter__(self) -> Iterator[PreferencePair]:
        """All pairs in order, without their tensors."""
        for table in self._tables:
            named = table.drop_columns(["winner_latents", "loser_latents", "text_features"])
            for row in named.to_pylist():
                winner, loser = (
                    PairSide(
                        checkpoint=row.pop(f"{side}_checkpoint"),
                        seed=row.pop(f"{side}_seed"),
                        settings=json.loads(row.pop(f"{side}_settings")),
                    )
                    for side in ("winner", "loser")
                )
                yield PreferencePair(winner=winner, loser=loser, **row)

    def answers(self) -> dict[str, int]:
        """How many pairs were ordered by what: names of `ORDERED`."""
        return dict(Counter("delta" if self.manifest.made == "drawn" else pair.origin for pair in self))

    def share_on_policy(self, policy: str) -> float:
        """Share of the pairs with at least one picture that the weights of this identity drew."""
        return sum(pair.on_policy(policy) for pair in self) / len(self)

    def rows_of(self, shape: tuple[int, ...]) -> list[tuple[int, int]]:
        """Piece and row of each pair of a shape."""
        pieces = enumerate(self.manifest.pieces)
        return [(number, row) for number, piece in pieces if piece.shape == shape for row in range(piece.num_pairs)]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the latents, in order."""
        return sorted({piece.shape for piece in self.manifest.pieces})

    def value(self, name: str, piece: int, row: int) -> Any:
        """One value of one pair, as Python gives it."""
        return self._tables[piece].column(name)[row].as_py()

    def binary(self, name: str, piece: int, row: int) -> npt.NDArray[np.uint8]:
        """The bytes of one latent or text, a view of the file."""
        return np.frombuffer(self._tables[piece].column(name)[row].as_buffer(), np.uint8)


class PairLoader:
    """Batches of pairs by step, one shape per batch; rank `rank` of `num_ranks` gets its part of each.

    `policy` is the identity of the checkpoint that training starts from. Raises PackError when too few pairs hold a picture
    of its own, and when no shape fills a batch.
    """

    def __init__(
        self, pairs: Pairs, config: PairLoaderConfig, policy: str, *, rank: int = 0, num_ranks: int = 1
    ) -> None:
        self.pairs, self.config, self.rank, self.num_ranks = pairs, config, rank, num_ranks
        require_on_policy(pairs, policy, config.least_on_policy)
        self._rows = [pairs.rows_of(shape) for shape in pairs.shapes]
        self._counts = np.array([len(rows) // config.batch_size for rows in self._rows])
        if not self._counts.sum():
            raise PackError(
                f"{max(map(len, self._rows))} pairs of one shape do not fill a batch of {config.batch_size}: "
                "lower batch_size, or make more"
            )
        if not 0 <= rank < num_ranks <= config.batch_size:
            raise PackError(f"rank {rank} of {num_ranks} has no part of a batch of {config.batch_size}: give it pairs")
        self._dtype = getattr(torch, pairs.manifest.dtype)
        self._order = lru_cache(maxsize=2 * len(self._rows))(self._order_of)

    def __len__(self) -> int:
        """Batches per epoch; pairs that fill none wait for another epoch."""
        return int(self._counts.sum())

    def keys(self, step: int) -> list[str]:
        """Keys of the pairs of a step, those of this rank."""
        return [self.pairs.value("key", *row) for row in self._mine(self._chosen(step)[1])]

    def batch(self, step: int) -> PairBatch:
        """The batch of a step, counted from 0 over all epochs."""
        shape, rows = self._chosen(step)
        token = self.pairs.manifest.token_bytes
        longest = max(len(self.pairs.binary("text_features", *row)) // token for row in rows)
        mine = self._mine(rows)
        texts = [self._tensor("text_features", row, self.pairs.manifest.token_shape) for row in mine]
        features_BTLD = torch.zeros(len(mine), longest, *self.pairs.manifest.token_shape)
        mask_BT = torch.zeros(len(mine), longest, dtype=torch.bool)
        for place, text_TLD in enumerate(texts):
            features_BTLD[place, : len(text_TLD)] = text_TLD
            mask_BT[place, : len(text_TLD)] = True
        sides = [self._sides(row, shape) for row in mine]
        return PairBatch(
            keys=[self.pairs.value("key", *row) for row in mine],
            winner_BCHW=torch.stack([winner for winner, _ in sides]),
            loser_BCHW=torch.stack([loser for _, loser in sides]),
            text_features_BTLD=features_BTLD,
            text_mask_BT=mask_BT,
            weak_winner_B=torch.tensor([self.pairs.value("weak_winner", *row) for row in mine]),
        )

    def _sides(self, row: tuple[int, int], shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        winner, loser = (self._tensor(f"{side}_latents", row, shape[1:]) for side in ("winner", "loser"))
        return (loser, winner) if self._is_exchanged(row) else (winner, loser)

    def _is_exchanged(self, row: tuple[int, int]) -> bool:
        if not self.config.shuffle_labels:
            return False
        hashes = np.array([key_hash(self.pairs.value("key", *row))], np.uint64)
        return bool(uniform(hashes, salt(self.config.seed, SHUFFLE))[0] < 0.5)

    def _tensor(self, name: str, row: tuple[int, int], shape: tuple[int, ...]) -> Tensor:
        """A value as float32, (N, *shape)."""
        stored = torch.from_numpy(self.pairs.binary(name, *row).copy()).view(self._dtype)
        return stored.reshape(-1, *shape).float()

    def _chosen(self, step: int) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
        """Shape and rows of the global batch of a step."""
        epoch, number = divmod(step, len(self))
        size, seed = self.config.batch_size, self.config.seed
        shapes = np.repeat(np.arange(len(self._counts)), self._counts)[permutation(len(self), seed, SHAPES, epoch)]
        shape = int(shapes[number])
        first = int((shapes[:number] == shape).sum()) * size
        order = self._order(epoch, shape)
        return self.pairs.shapes[shape], [self._rows[shape][place] for place in order[first : first + size].tolist()]

    def _order_of(self, epoch: int, shape: int) -> Ints:
        return permutation(len(self._rows[shape]), self.config.seed, ORDER, epoch, shape)

    def _mine(self, rows: list[tuple[int, int]]) -> list[tuple[int, int]]:
        first, last = (len(rows) * edge // self.num_ranks for edge in (self.rank, self.rank + 1))
        return rows[first:last]


def require_on_policy(pairs: Pairs, policy: str, least_share: float) -> None:
    """Raise PackError unless more than `least_share` of the pairs hold a picture drawn by the policy's own weights."""
    if not least_share:
        return
    share = pairs.share_on_policy(policy)
    if share <= least_share:
        raise PackError(
            f"{share:.0%} of the pairs in {pairs.directory} hold a picture that the policy {policy[:12]} drew itself, and "
            f"more than {least_share:.0%} must: make pairs with its checkpoint, or lower least_on_policy"
        )


class Anchored:
    """Pairs with as many rows of a pack beside them: what preference training must not forget."""

    def __init__(self, pairs: Loader[PairBatch], pack: Loader[LatentBatch]) -> None:
        self.pairs, self.pack = pairs, pack

    def batch(self, step: int) -> AnchoredPairBatch:
        """Both batches of a step. Raises PackError where they differ in rows."""
        pairs, anchor = self.pairs.batch(step), self.pack.batch(step)
        if len(pairs.keys) != len(anchor.keys):
            raise PackError(
                f"a batch has {len(pairs.keys)} pairs and {len(anchor.keys)} rows of the pack: give one batch_size"
            )
        return AnchoredPairBatch(
            **vars(pairs),
            anchor_BCHW=anchor.latents_BCHW,
            anchor_features_BTLD=anchor.text_features_BTLD,
            anchor_mask_BT=anchor.text_mask_BT,
        )

    def keys(self, step: int) -> list[str]:
        """Keys of the pairs."""
        return self.pairs.keys(step)
