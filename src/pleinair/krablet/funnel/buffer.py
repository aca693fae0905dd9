"""The funnel's bounded memory: what has been accepted and is not yet settled."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from pleinair.krablet.funnel.batch import Run


@dataclass(frozen=True)
class Load:
    """An amount of buffered work."""

    mutations: int
    num_bytes: int


class Buffer:
    """Runs in order of arrival, never more than its limits; used under the funnel's lock.

    What has been taken still counts until it is released: it is in memory until its flush is committed.
    """

    def __init__(self, mutations: int, num_bytes: int) -> None:
        self._limit = Load(mutations, num_bytes)
        self._waiting: deque[tuple[Sequence[Run], Load]] = deque()
        self._mutations = 0
        self._bytes = 0
        self.peak = (0, 0)

    @property
    def held(self) -> tuple[int, int]:
        return self._mutations, self._bytes

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, runs: Sequence[Run], load: Load) -> bool:
        """False if it would not fit."""
        mutations, num_bytes = self._mutations + load.mutations, self._bytes + load.num_bytes
        if mutations > self._limit.mutations or num_bytes > self._limit.num_bytes:
            return False
        self._mutations, self._bytes = mutations, num_bytes
        self.peak = (max(self.peak[0], mutations), max(self.peak[1], num_bytes))
        self._waiting.append((runs, load))
        return True

    def take(self, mutations: int) -> tuple[list[Run], Load]:
        """What came first, until there are so many mutations."""
        taken: list[Run] = []
        count = num_bytes = 0
        while self._waiting and count < mutations:
            runs, load = self._waiting.popleft()
            taken.extend(runs)
            count += load.mutations
            num_bytes += load.num_bytes
        return taken, Load(count, num_bytes)

    def release(self, load: Load) -> None:
        self._mutations -= load.mutations
        self._bytes -= load.num_bytes
