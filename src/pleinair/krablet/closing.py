"""What is closed at the end of its `with` block."""

from __future__ import annotations

from typing import Self


class Closing:
    """A context manager that gives itself and calls its `close`."""

    def close(self) -> object:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
