"""`pleinair tower` and `pleinair find`: the image-text model on the project's captions, and search by words."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pleinair.cli.curate import add_warehouse_options, open_warehouse

if TYPE_CHECKING:
    from pleinair.krablet import Database


def register(verbs: Any) -> None:
    """Add the verbs `tower` and `find`."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "tower",
        help="train the image-text model on the captions",
        description="Train the two-tower model on embedded, captioned pictures and measure it on held-out ones.",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. epochs=20")
    add_warehouse_options(parser)
    parser.set_defaults(run=tower)
    search: argparse.ArgumentParser = verbs.add_parser("find", help="pictures that fit a text best")
    search.add_argument("text", help="what to look for, in words")
    search.add_argument("--most", type=int, default=10, help="how many (default: %(default)s)")
    add_warehouse_options(search)
    search.set_defaults(run=find)


def model_path(home: Path) -> Path:
    """Where the trained model is kept."""
    return home / "models" / "two-tower.safetensors"


def tower(options: argparse.Namespace) -> int:
    """Train, save, and print recall on held-out pictures. A training that was stopped goes on."""
    from pleinair.cli.tags import training_line
    from pleinair.config import override
    from pleinair.curation import WORDING, ObjectStore
    from pleinair.curation.embeddings import embedded_table
    from pleinair.curation.small_models.claims import WAYS, calibrate
    from pleinair.curation.small_models.tower import TowerTrainingConfig, read_spoken, retrieval, train_two_tower
    from pleinair.curation.small_models.tower_file import save_two_tower

    config = override(TowerTrainingConfig(), options.set)
    resume_dir = options.home / "training" / "two-tower"
    with open_warehouse(options) as db:
        seen, unseen = read_spoken(embedded_table(db), ObjectStore(options.home / "store"), WORDING)
    model = train_two_tower(seen, config, resume_dir=resume_dir, on_progress=training_line("tower"))
    calibrated = {kind: found for kind in WAYS if (found := calibrate(model, unseen, kind))}
    save_two_tower(model, model_path(options.home), {kind: found[0] for kind, found in calibrated.items()})
    shutil.rmtree(resume_dir, ignore_errors=True)
    print(f"trained on {len(seen.names)} pictures: {model_path(options.home)}")
    if unseen.names:
        recall = retrieval(model, unseen)
        for way, shares in (("text to picture", recall.text_to_picture), ("picture to text", recall.picture_to_text)):
            first, five, ten = (f"{share:.1%}" for share in shares)
            among = f"{recall.num_pictures} held-out pictures with {recall.num_texts} different texts"
            print(f"{way}: recall@1 {first}, @5 {five}, @10 {ten} among {among}, each text counting the same")
    for kind, (_, rates) in calibrated.items():
        print(
            f"{kind}s claimed of {rates.num_pictures} others: under a probability of 0.05 are "
            f"{rates.found(0.05):.0%} of wrong ones and {rates.lost(0.05):.1%} of true ones"
        )
    return 0


def find(options: argparse.Namespace) -> int:
    """Print the pictures that fit a text best, best first."""
    from pleinair.curation import images_table, kept_where

    with open_warehouse(options) as db:
        found = fitting(db, options.home, options.text, kept_where(images_table(db)))
    for name, score in found[: options.most]:
        print(f"{score:.3f}  {name}")
    return 0


def fitting(db: Database, home: Path, text: str, where: str) -> list[tuple[str, float]]:
    """Embedded pictures with how well they fit a text, best first."""
    import torch

    from pleinair.curation import ObjectStore
    from pleinair.curation.embeddings import embedded_table, read_embeddings
    from pleinair.curation.small_models.tower_file import load_two_tower

    model = load_two_tower(model_path(home))
    pictures = read_embeddings(embedded_table(db), ObjectStore(home / "store"), where=where)
    with torch.inference_mode():
        images_ND = model.image_features(torch.from_numpy(pictures.vectors_ND))
        scores_N = (images_ND @ model.text_features([text])[0]).numpy()
    return [(pictures.names[row], float(scores_N[row])) for row in (-scores_N).argsort()]
