"""Pictures go where the official scorer looks, are drawn once, and again where anything they came from has changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pleinair.evaluation.published import Item
from pleinair.evaluation.published.drawing import (
    PIECE,
    Pictures,
    Sheet,
    as_grid,
    draw_files,
    from_grid,
    read_picture,
    sheets,
)


class Painter:
    """Draws a flat colour that tells prompt and seed, and remembers what it was asked."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.asked: list[tuple[str, int]] = []
        self.fail_after = fail_after

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> Pictures:
        self.asked += list(zip(prompts, seeds, strict=True))
        if self.fail_after is not None and len(self.asked) > self.fail_after:
            raise KeyboardInterrupt
        return np.stack([flat(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)])


def flat(prompt: str, seed: int) -> Pictures:
    return np.full((4, 6, 3), [len(prompt), seed % 251, 7], np.uint8)


def quiet(done: int, total: int) -> None:
    pass


def item(key: str, *files: str) -> Item[None]:
    return Item(key=key, prompt=f"prompt {key}", files=files, questions=(), about=None)


def test_every_copy_has_a_seed_of_its_own_that_the_number_of_copies_does_not_change() -> None:
    items = [item("a", "a.png"), item("b", "b.png")]
    assert [one.seeds for one in sheets(items, 4, 0)] == [(0, 1, 2, 3), (1009, 1010, 1011, 1012)]
    assert [one.seeds for one in sheets(items, 1, 0)] == [(0,), (1009,)]
    assert sheets(items, 1, 2)[0].seeds == (2_000_006,)
    assert [(one.file, one.seeds) for one in sheets([item("c", "c_1.png", "c_2.png")], 2, 0)] == [
        ("c_1.png", (0,)),
        ("c_2.png", (1,)),
    ]


@pytest.mark.parametrize("ending", ["png", "webp"])
def test_a_grid_on_disk_gives_back_the_pictures_that_went_in(ending: str, tmp_path: Path) -> None:
    sheet = Sheet(f"set/model/one.{ending}", "four of them", (3, 4, 5, 6))
    draw_files([sheet], Painter(), "model", tmp_path, quiet)
    grid = read_picture(tmp_path / "pictures" / sheet.file)
    assert grid.shape == (8, 12, 3)
    assert (grid[0, 6] == flat(sheet.prompt, 4)[0, 0]).all()  # the second copy lies right of the first
    assert (grid[4, 0] == flat(sheet.prompt, 5)[0, 0]).all()  # the third below it
    assert all(
        (cell == flat(sheet.prompt, seed)).all() for cell, seed in zip(from_grid(grid, 4), sheet.seeds, strict=True)
    )
    assert (as_grid(from_grid(grid, 4)) == grid).all()
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["drawn.jsonl", f"one.{ending}"]


def test_a_run_that_was_interrupted_draws_only_what_is_left(tmp_path: Path) -> None:
    planned = [Sheet(f"{number}.png", f"prompt {number}", (number,)) for number in range(PIECE + 3)]
    with pytest.raises(KeyboardInterrupt):
        draw_files(planned, Painter(fail_after=PIECE), "model", tmp_path, quiet)
    with (tmp_path / "drawn.jsonl").open("a") as manifest:
        manifest.write('{"file": "64.png", "sta')  # killed while it wrote
    rest = Painter()
    seen: list[tuple[int, int]] = []
    draw_files(planned, rest, "model", tmp_path, lambda done, total: seen.append((done, total)))
    assert [seed for _, seed in rest.asked] == [64, 65, 66]
    assert seen == [(PIECE + 3, PIECE + 3)]


def test_what_was_drawn_from_something_else_or_has_changed_is_drawn_again(tmp_path: Path) -> None:
    planned = [Sheet("a.png", "a", (1,)), Sheet("b.png", "b", (2,)), Sheet("c.png", "c", (3,))]
    draw_files(planned, Painter(), "model", tmp_path, quiet)
    (tmp_path / "pictures" / "b.png").write_bytes(b"another picture")
    (tmp_path / "pictures" / "c.png").unlink()
    again, other = Painter(), Painter()
    draw_files([Sheet("a.png", "a", (9,)), *planned[1:]], again, "model", tmp_path, quiet)
    assert again.asked == [("a", 9), ("b", 2), ("c", 3)]
    draw_files(planned[1:], other, "another model", tmp_path, quiet)
    assert other.asked == [("b", 2), ("c", 3)]
    nothing = Painter()
    draw_files(planned[1:], nothing, "another model", tmp_path, quiet)
    assert nothing.asked == []
