"""A chain with its page: every link is measured when it is done, and the page is written anew."""

from __future__ import annotations

from pathlib import Path

from pleinair.posttraining.chain import Done, run_chain
from pleinair.posttraining.links import Chain, LinkName, folder_of
from pleinair.posttraining.materials import Materials, check
from pleinair.posttraining.page import Story, write_chain_page
from pleinair.posttraining.side_by_side import SideBySide

PAGE, BASE = "index.html", "0-base"


def run_compared(
    chain: Chain, base: Path, root: Path, made: Materials, until: str | None = None, told: str = ""
) -> tuple[Path, Path]:
    """The last checkpoint and the page; `told` is its footer. Raises as `run_chain`."""
    check(chain, base, made, until)
    side_by_side = SideBySide(chain.side_by_side, chain.resolution, made)
    stories: list[Story] = []

    def look(name: str, checkpoint: Path, folder: Path, done: Done | None) -> None:
        rows = side_by_side.of_checkpoint(name, checkpoint, folder)
        stories.append(Story(name, checkpoint, rows, side_by_side.pictures(folder), done))
        prompts = side_by_side.shown_prompts()
        write_chain_page(root / PAGE, chain, stories, side_by_side.of_real(), prompts, told)

    def after_link(name: LinkName, checkpoint: Path, done: Done) -> None:
        look(name, checkpoint, root / folder_of(name), done)

    root.mkdir(parents=True, exist_ok=True)
    look("base", base, root / BASE, None)
    return run_chain(chain, base, root, made, until, after_link), root / PAGE
