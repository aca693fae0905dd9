"""`pleinair tags`: a sparse autoencoder over the embeddings, its features named, its tags written."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pleinair.cli.curate import add_warehouse_options, open_warehouse

if TYPE_CHECKING:
    from collections.abc import Callable

    from pleinair.curation.small_models.loop import TrainingProgress


def register(verbs: Any) -> None:
    """Add the verb `tags`."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "tags",
        help="tag what was embedded with the features of a sparse autoencoder",
        description="Train a sparse autoencoder on the embeddings, name its features by the captions, tag the pictures.",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. features=2048, active=24")
    parser.add_argument("--page", type=Path, default=Path("tags.html"), help="where (default: %(default)s)")
    add_warehouse_options(parser)
    parser.set_defaults(run=tags)


def tags(options: argparse.Namespace) -> int:
    """Train, name, tag, write the page. A training that was stopped goes on."""
    from pleinair.config import override
    from pleinair.curation import ObjectStore
    from pleinair.curation.sheets import write_tag_page
    from pleinair.curation.tags import tag_pictures, tagged_table
    from pleinair.model.sparse_autoencoder import SparseAutoencoderConfig

    config = override(SparseAutoencoderConfig(), options.set)
    store, resume_dir = ObjectStore(options.home / "store"), options.home / "training" / "sparse-autoencoder"
    with open_warehouse(options) as db:
        found = tag_pictures(db, store, config, resume_dir=resume_dir, on_progress=training_line("tags"))
        write_tag_page(options.page, found.tags, found.names, found.quality, tagged_table(db), store)
    shutil.rmtree(resume_dir, ignore_errors=True)
    named = sum(tag.word is not None for tag in found.tags)
    print(
        f"{named} named features of {len(found.tags)} that fire, {found.num_tagged} of {len(found.names)} pictures tagged; "
        f"variance unexplained {found.quality.unexplained:.3f}, cosine {found.quality.cosine:.3f}, "
        f"dead {found.quality.dead_share:.1%}: {options.page}",
        flush=True,
    )
    return 0


def training_line(label: str) -> Callable[[TrainingProgress], None]:
    """Show a training as a line of progress."""
    from pleinair.cli.progress import ProgressLine

    line = ProgressLine(label)

    def show(now: TrainingProgress) -> None:
        line.update(now.step, now.num_steps, f"loss {now.loss:.3f}")
        if now.step == now.num_steps:
            line.close()

    return show
