"""A chain with its page: every link is measured when it is done, and the page is written anew."""

from __future__ import annotations

from pathlib import Path

from pleinair.evaluation.exploration.suite import Result
from pleinair.posttraining.chain import Done, run_chain
from pleinair.posttraining.explored import Suite, explored, read_explored, stamp_of
from pleinair.posttraining.links import Chain, LinkName, folder_of
from pleinair.posttraining.materials import Materials, check
from pleinair.posttraining.page import Story, Told, write_chain_page
from pleinair.posttraining.side_by_side import Changes, SideBySide
from pleinair.posttraining.witnesses import refuse_shared, witnesses_of
from pleinair.records.errors import ConfigError

PAGE, BASE = "index.html", "0-base"


def run_compared(
    chain: Chain,
    base: Path,
    root: Path,
    made: Materials,
    until: str | None = None,
    footer: str = "",
    suite: Suite | None = None,
) -> tuple[Path, Path]:
    """The last checkpoint and the page. Raises as `run_chain`, and ConfigError where who measures is climbed."""
    check(chain, base, made, until)
    judges = {} if suite is None else suite.judges
    refuse_shared(made, judges)
    if suite is None and chain.side_by_side.explore != "none":
        raise ConfigError(f"side_by_side.explore is {chain.side_by_side.explore!r} and there is no suite: give one")
    looking = Looking(chain, root, SideBySide(chain.side_by_side, chain.resolution, made), suite, until)

    def look(name: str, checkpoint: Path, folder: Path, done: Done | None) -> None:
        looking.look(name, checkpoint, folder, done)
        told = Told(
            witnesses=witnesses_of(chain, made, judges),
            real=looking.side_by_side.of_real(),
            prompts=looking.side_by_side.shown_prompts(),
            footer=footer,
        )
        write_chain_page(root / PAGE, chain, looking.stories, told)

    def after_link(name: LinkName, checkpoint: Path, done: Done) -> None:
        look(name, checkpoint, root / folder_of(name), done)

    root.mkdir(parents=True, exist_ok=True)
    look("base", base, root / BASE, None)
    return run_chain(chain, base, root, made, until, after_link), root / PAGE


class Looking:
    """Measures one checkpoint after another, and compares each with the one before and with the base."""

    def __init__(
        self, chain: Chain, root: Path, side_by_side: SideBySide, suite: Suite | None, until: str | None
    ) -> None:
        self.chain, self.root, self.side_by_side, self.suite = chain, root, side_by_side, suite
        self.ends = ("base", list(chain.links(until))[-1])
        self.stories: list[Story] = []
        self._folders: list[Path] = []

    def look(self, name: str, checkpoint: Path, folder: Path, done: Done | None) -> None:
        """The next checkpoint."""
        rows = self.side_by_side.of_checkpoint(name, checkpoint, folder)
        self._folders.append(folder)
        self.stories.append(
            Story(
                name=name,
                checkpoint=checkpoint,
                rows=rows,
                pictures=self.side_by_side.pictures(folder),
                done=done,
                since_last=self._since(-2, folder),
                since_base=self._since(0, folder),
                explored=None if self.suite is None else self._explored(self.suite, name, checkpoint, folder),
            )
        )

    def _since(self, place: int, folder: Path) -> Changes:
        """What changed, drawn as usual; nothing for the first."""
        return self.side_by_side.changes(self._folders[place], folder) if len(self._folders) > 1 else {}

    def _explored(self, suite: Suite, name: str, checkpoint: Path, folder: Path) -> Result | None:
        config, how = self.side_by_side.sampling(checkpoint), self.chain.side_by_side.explore
        if how == "all" or name in self.ends:
            return explored(suite, name, checkpoint, config, folder)
        return read_explored(folder, stamp_of(suite, checkpoint, config))
