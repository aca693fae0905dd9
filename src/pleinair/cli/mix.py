"""`pleinair mix FILE`: a reproducible list of pictures to train on, with its datasheet."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pleinair.cli.curate import add_warehouse_options, open_warehouse

TEXT_DIM = 192
"""Directions of a projection that is fitted, as the recipes on drawings have it."""

if TYPE_CHECKING:
    from pleinair.krablet import Database
    from pleinair.packing.mix import Mix


def register(verbs: Any) -> None:
    """Add the verb `mix`."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "mix",
        help="choose what is trained on: a reproducible list and its datasheet",
        description="Choose pictures as a mix file says; the same file and warehouse give the same list everywhere.",
    )
    parser.add_argument("file", type=Path, help="the mix, a TOML file; docs/packing.md has one")
    parser.add_argument("--out", type=Path, default=Path("mixes"), help="folder of mixes (default: %(default)s)")
    parser.add_argument("--explain", action="store_true", help="say how many pictures each condition leaves, and stop")
    parser.add_argument("--expect", metavar="DIGEST", help="end with 1 when the list has another digest")
    add_warehouse_options(parser)
    parser.set_defaults(run=mix)


def mix(options: argparse.Namespace) -> int:
    """Make the mix; exit code 1 when it is not the expected one."""
    from pleinair import __version__
    from pleinair.cli.entities import names_file
    from pleinair.cli.progress import ProgressLine
    from pleinair.curation import ObjectStore
    from pleinair.packing.datasheet import write_datasheet
    from pleinair.packing.mix import read_mix
    from pleinair.packing.mixing import make_mix

    wanted, text = read_mix(options.file)
    folder = options.out / wanted.name
    lines: dict[str, ProgressLine] = {}
    with open_warehouse(options) as db:
        if options.explain:
            return explain(db, wanted)
        store = ObjectStore(options.home / "store")
        made = make_mix(
            db,
            wanted,
            text,
            folder,
            code=__version__,
            names=names_file(options),
            write_sheet=lambda path, record: write_datasheet(path, record, store),
            on_progress=lambda what, done, total: lines.setdefault(what, ProgressLine(what)).update(done, total),
        )
    for line in lines.values():
        line.close()
    print(f"{made.num_draws} pictures, {made.num_rows} of them different, of {made.num_offered} offered")
    print(f"list {made.digest}\n{folder / 'datasheet.html'}", flush=True)
    if options.expect and options.expect != made.digest:
        print(f"this is not the list {options.expect}: the warehouse, the file or the code differs", flush=True)
        return 1
    return 0


def explain(db: Database, wanted: Mix) -> int:
    """Print how many pictures are left after each condition."""
    from pleinair.packing.mix import check_against
    from pleinair.packing.mixing import declared_images, funnel_of
    from pleinair.packing.pool import pool_steps

    images = declared_images(db, wanted)
    check_against(wanted, images.columns)
    for name, count in funnel_of(images, pool_steps(wanted, images)):
        print(f"{count:>12,}  {name}")
    return 0


def pack_mix(options: argparse.Namespace) -> int:
    """Pack the list of a mix into `NAME.pack` beside it, in aspect buckets of its stage."""
    from pleinair.checkpoint.store import digest_file
    from pleinair.cli.encoders import as_they_are, open_codec, open_text_encoder
    from pleinair.cli.latents import require_parents_latents
    from pleinair.cli.parents import find_checkpoint
    from pleinair.cli.places import shipped
    from pleinair.cli.progress import ProgressLine
    from pleinair.curation import ObjectStore, images_table, kept_where
    from pleinair.packing.arrangement import arrange, read_list
    from pleinair.packing.buckets import BucketConfig
    from pleinair.packing.latents import pack_config, write_latents
    from pleinair.packing.mix import read_mix
    from pleinair.packing.mixing import read_manifest
    from pleinair.packing.pool import CAPTION_COLUMNS
    from pleinair.packing.warehouse import reader, still_kept
    from pleinair.sampling.projection import projection_of

    folder = Path(options.recipe)
    pack = folder.with_name(f"{folder.name}.pack")
    manifest, (wanted, _) = read_manifest(folder), read_mix(folder / "mix.toml")
    stage = BucketConfig(resolution=manifest.resolution, max_upscale=wanted.stage.max_enlarge)
    parent = None if options.parent is None else find_checkpoint(options.parent, options.runs)
    named, codec = options.autoencoder, open_codec(options.autoencoder or "autoencoder")
    latents, encoder = codec.describe(), open_text_encoder(options.text_encoder)
    require_parents_latents(parent, latents.identity, pack, named)
    projection = projection_of(parent) or (as_they_are(encoder) if options.text_encoder else None)
    lines: dict[str, ProgressLine] = {}
    with open_warehouse(options) as db:
        images = images_table(db)
        listed = still_kept(read_list(folder / "list.parquet"), images, kept_where(images))
        packed = write_latents(
            arrange(listed, [stage], wanted.seed),
            pack,
            reader(images, ObjectStore(options.home / "store"), [stage], CAPTION_COLUMNS),
            codec=codec,
            autoencoder_sha256=latents.digest if named else digest_file(shipped("autoencoder")).sha256,
            text_encoder=encoder,
            config=pack_config(projection, TEXT_DIM, manifest.caption_names),
            projection=projection,
            on_progress=lambda what, done, total: lines.setdefault(what, ProgressLine(what)).update(done, total),
        )
    print(
        f"{packed.left_out or 'nothing'} left out; {manifest.num_rows - len(listed.keys)} dropped since the list was made"
    )
    print(f"pack: {pack}", flush=True)
    return 0
