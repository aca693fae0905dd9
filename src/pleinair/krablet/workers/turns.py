"""Whose turn it is: a worker of several stages on several shards claims at one of them after the other."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pleinair.krablet.claims import Sweep, sweep_from_anywhere
from pleinair.krablet.shards import Shard, Shards
from pleinair.krablet.stages import Stage

_EMPTY_SECONDS = 0.2


@dataclass(eq=False)
class Post:
    """Where a worker may claim: one stage on one shard, and how far its walk there has come."""

    stage: Stage
    shard: Shard
    sweep: Sweep
    empty_until: float = 0.0


class Turns:
    """Which post to claim at next: in turn, those found empty a moment ago only when nothing else is left."""

    def __init__(self, has_room: Callable[[Stage], bool]) -> None:
        """`has_room` says whether a slot is free for a stage; the posts of one without are passed over."""
        self._has_room = has_room
        self._posts: list[Post] = []
        self._unconfirmed: list[Post] = []
        self._last: Post | None = None

    def cover(self, stages: Sequence[Stage], shards: Shards) -> None:
        """Have one post for every stage on every shard; those there already stay as they are."""
        there = {(post.stage.label, post.shard.number): post for post in self._posts if post.shard in shards.all}
        wanted = [(stage, shard) for shard in _from_anywhere(shards.all) for stage in stages]
        self._posts = [
            there.get((stage.label, shard.number)) or Post(stage, shard, sweep_from_anywhere(shard, stage))
            for stage, shard in wanted
        ]
        self.ask_again()

    def next(self) -> Post | None:
        """The post to claim at; None while no stage has a free slot."""
        start = self._posts.index(self._last) + 1 if self._last in self._posts else 0
        order = [post for post in self._posts[start:] + self._posts[:start] if self._has_room(post.stage)]
        likely = [post for post in order if post.empty_until <= time.monotonic()]
        unconfirmed = [post for post in order if post in self._unconfirmed]
        chosen = next(iter(likely or unconfirmed or order), None)
        self._last = chosen or self._last
        return chosen

    def found_rows(self, post: Post) -> None:
        """Note that a claim brought rows."""
        post.empty_until = 0.0
        self.ask_again()

    def found_none(self, post: Post) -> None:
        """Note that a post has nothing claimable."""
        post.empty_until = time.monotonic() + _EMPTY_SECONDS
        if post in self._unconfirmed:
            self._unconfirmed.remove(post)

    def all_empty(self) -> bool:
        """True when every post with room was asked since the last row was found: that row may have made others ready."""
        return not any(self._has_room(post.stage) for post in self._unconfirmed)

    def ask_again(self) -> None:
        """Take no post for empty."""
        self._unconfirmed = list(self._posts)


def _from_anywhere(shards: Sequence[Shard]) -> Sequence[Shard]:
    """The shards from a random one on, so that workers spread over them."""
    start = random.randrange(len(shards))
    return [*shards[start:], *shards[:start]]
