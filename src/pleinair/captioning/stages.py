"""The queue stages of captioning, each a thin coat around pure functions.

    captions (templates, a stage of `curate`)
       |                                                    .----------- described anew, told what was wrong ----.
       v                                                    v                                                    |
    ocr: writing, camera ---> describe: description ---> reformat: long, medium, short, tags, ... ---> check: claims, verdicts
                              drops: no usable answer                                                  drops: keep failing

Each stage takes what the one before it kept; `check` sends a row back by taking the verdicts of describe and reformat
away. Every row says who made what: model, prompt and its version.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pleinair.captioning.accuracy import (
    Case,
    ContrastVerifier,
    ModelVerifier,
    PixelVerifier,
    ProbabilityVerifier,
    Verdict,
    Verifier,
    WritingVerifier,
    as_columns,
    check,
)
from pleinair.captioning.claims import Claim, claims_of_model, template_claims
from pleinair.captioning.config import CaptioningConfig
from pleinair.captioning.describe import TEMPLATES, Described, describe, template_captions, with_writing
from pleinair.captioning.facts import Facts, facts_of
from pleinair.captioning.ocr import TextReader, text_reader
from pleinair.captioning.pictures import camera, pixels_of, read_bytes, to_send
from pleinair.captioning.reformat import Forms, forms_of_model, rewritten, rule_forms
from pleinair.captioning.scorer import ClaimScorer
from pleinair.captioning.small_model import SmallModel
from pleinair.captioning.templates import Captions
from pleinair.captioning.templates import captions as captions_of
from pleinair.config.overrides import from_document, to_document
from pleinair.endpoints import ChatClient, Endpoint
from pleinair.krablet import Stage, Table
from pleinair.records.errors import ConfigError, EndpointError, SourceError
from pleinair.records.wording import Wording

Row = Mapping[str, Any]
Columns = dict[str, object]
Outcome = Columns | Exception

TOWER = "tower"
"""The scorer that `pleinair tower` trains."""
_FACTS = ("source", "label", "tags", "style", "group_name", "caption", "camera", "ocr_lines")
_FORMS = ("caption_long", "caption_medium", "caption_short", "caption_tags", "caption_instruction", "caption_json")
STAGES: Mapping[str, tuple[str, Sequence[str], Sequence[str], int]] = {
    "ocr": (
        "captions_drop = '' AND duplicate_drop = ''",
        ("image_path",),
        ("ocr_drop", "ocr_lines", "ocr_share", "camera", "ocr_by"),
        8,
    ),
    "describe": (
        "ocr_drop = ''",
        ("image_path", *_FACTS, "claims", "failing_claims", "failed_rounds"),
        ("describe_drop", "description", "describe_by"),
        16,
    ),
    "reformat": (
        "describe_drop = ''",
        (*_FACTS, "description", "describe_by", "claims", "failed_rounds"),
        ("reformat_drop", *_FORMS, "reformat_by"),
        16,
    ),
    "check": (
        "reformat_drop = ''",
        ("image_path", *_FACTS, "describe_by", *_FORMS[:3], "failing_claims", "failed_rounds"),
        ("check_drop", "claims", "failing_claims", "failed_rounds", "check_by", "describe_drop", "reformat_drop"),
        16,
    ),
}
"""By stage: ready besides its own verdict missing; columns read, written; rows per claim."""


def declare_stages(images: Table) -> dict[str, Stage]:
    """The four queue stages, by name. `images` is the table that curation declares."""
    entities = ("entities",) if "entities" in images.columns else ()
    vectors = ("embedding_name", "embedding_path") if "embedding_path" in images.columns else ()
    return {
        name: images.stage(
            name,
            ready=f"{name}_drop IS NULL AND {before}",
            reads=["image_name", *reads, *(entities if "tags" in reads else ()), *(vectors if name == "check" else ())],
            writes=list(writes),
            batch=batch,
            lease_seconds=180.0,
        )
        for name, (before, reads, writes, batch) in STAGES.items()
    }


def captions(batch: Sequence[Row], *, wording: Mapping[str, Any]) -> list[Columns]:
    """Captions in three lengths. A picture without words for it is dropped: the model could learn nothing from it."""
    said = Wording.from_document(wording)
    return [_caption_columns(row, said) for row in batch]


def _caption_columns(row: Row, wording: Wording) -> Columns:
    drop, made = "", None
    if row.get("caption_error"):
        drop = f"caption: {row['caption_error']}"
    else:
        made = captions_of(row, wording)
        if made is None:
            drop = "caption: neither caption nor label; add a .txt or .json file beside the picture"
    return {
        "captions_drop": drop,
        "caption_long": made.long if made else None,
        "caption_medium": made.medium if made else None,
        "caption_short": made.short if made else None,
    }


def ocr(batch: Sequence[Row], *, store: str, reader: str) -> list[Outcome]:
    """Writing and camera of each picture. Nothing is dropped: text density is a filter's to judge."""
    return [_read(row, Path(store), _reader(reader)) for row in batch]


def _read(row: Row, store: Path, reader: TextReader) -> Outcome:
    try:
        data = read_bytes(store, row["image_path"])
        writing = reader.read(pixels_of(data))
    except (SourceError, OSError, ValueError) as error:
        return error
    return {
        "ocr_drop": "",
        "ocr_lines": list(writing.lines),
        "ocr_share": writing.share,
        "camera": camera(data),
        "ocr_by": reader.name,
    }


def describe_rows(batch: Sequence[Row], *, store: str, place: str, config: str, wording: str) -> list[Outcome]:
    """A description of each picture, by the captioner or the templates."""
    settings, facts = _config(config), _facts(batch, wording)
    if not settings.captioner:
        return [_template_description(row, known, wording) for row, known in zip(batch, facts, strict=True)]
    outcomes: dict[int, Outcome] = {}
    pictures = {}
    for number, row in enumerate(batch):
        try:
            pictures[number] = to_send(pixels_of(read_bytes(Path(store), row["image_path"])), settings.longest_side)
        except (SourceError, OSError, ValueError) as error:
            outcomes[number] = error
    found = describe(
        _client(settings.captioner, "describe", place, config),
        [facts[number] for number in pictures],
        list(pictures.values()),
        [(batch[number]["failing_claims"] or ()) if batch[number]["failed_rounds"] else () for number in pictures],
        most_words=settings.most_words,
        tries=settings.tries,
    )
    outcomes.update(zip(pictures, map(_description_columns, found), strict=True))
    return [outcomes[number] for number in range(len(batch))]


def _template_description(row: Row, facts: Facts, wording: str) -> Outcome:
    made = _templates(row, facts, _wording(wording))
    drop = "" if made else "captioner: no label or caption left to describe it by; set captioner.url"
    return {"describe_drop": drop, "description": made and made.long, "describe_by": TEMPLATES}


def _templates(row: Row, facts: Facts, wording: Wording) -> Captions | None:
    """The templates' captions, without what an earlier check found wrong in them."""
    wrong = [claim for claim in _stored_claims(row) if claim["holds"] is False] if row["failed_rounds"] else []
    made = template_captions(
        row,
        facts,
        wording,
        [claim["value"] for claim in wrong if claim["kind"] == "tag"],
        white_background=not any(claim["kind"] == "background" for claim in wrong),
    )
    return with_writing(made, facts) if made else None


def _stored_claims(row: Row) -> list[dict[str, Any]]:
    stored = row.get("claims") or []
    return list(json.loads(stored) if isinstance(stored, str) else stored)


def _description_columns(found: Described | EndpointError) -> Outcome:
    if isinstance(found, EndpointError):
        return found
    return {"describe_drop": found.drop, "description": found.text or None, "describe_by": found.made_by}


def reformat_rows(batch: Sequence[Row], *, place: str, config: str, wording: str, small_model: str) -> list[Outcome]:
    """Long, medium and short captions, tags, instruction and JSON of each description."""
    settings, facts = _config(config), _facts(batch, wording)
    said = _wording(wording)
    rules = [rule_forms(_base_captions(row, known, said), known) for row, known in zip(batch, facts, strict=True)]
    if settings.writer:
        chat = _client(settings.writer, "reformat", place, config)
        descriptions = [row["description"] for row in batch]
        return [_form_columns(made) for made in forms_of_model(chat, descriptions, facts, rules, tries=settings.tries)]
    if settings.small_rewrites:
        rules = rewritten(_small_model(small_model), rules, facts)
    return [_form_columns(made) for made in rules]


def _base_captions(row: Row, facts: Facts, wording: Wording) -> Captions:
    """What rules make of a description: the templates, or its first sentence and clause."""
    made = None
    if row["describe_by"] == TEMPLATES:
        made = _templates(row, facts, wording)
    made = made or captions_of({**row, "caption": row["description"], "label": None}, wording)
    assert made is not None, "a described row has a description"
    return made


def _form_columns(made: Forms | EndpointError) -> Outcome:
    if isinstance(made, EndpointError):
        return made
    return {
        "reformat_drop": "",
        "caption_long": made.long,
        "caption_medium": made.medium,
        "caption_short": made.short,
        "caption_tags": list(made.tags),
        "caption_instruction": made.instruction,
        "caption_json": dict(made.parts),
        "reformat_by": made.made_by,
    }


def check_rows(
    batch: Sequence[Row],
    *,
    store: str,
    place: str,
    config: str,
    wording: str,
    rivals: Mapping[str, Sequence[str]],
    tower: str = "",
) -> list[Outcome]:
    """A verdict on every claim of every picture's captions; failing pictures go back to be described, or are dropped."""
    settings, facts = _config(config), _facts(batch, wording)
    outcomes: dict[int, Outcome] = {}
    cases: dict[int, Case] = {}
    for number, claims in enumerate(_claims_of(batch, facts, settings, place, config)):
        try:
            if isinstance(claims, EndpointError):
                raise claims
            pixels = pixels_of(read_bytes(Path(store), batch[number]["image_path"]))
            cases[number] = Case(pixels, claims, facts[number].writing, _embedding(batch[number]))
        except (EndpointError, SourceError, OSError, ValueError) as error:
            outcomes[number] = error
    verifiers = _verifiers(settings, rivals, place, config, tower, store)
    by = ", ".join(verifier.name for verifier in verifiers)
    for number, verdicts in zip(cases, check(list(cases.values()), verifiers), strict=True):
        if isinstance(verdicts, EndpointError):
            outcomes[number] = verdicts
        else:
            outcomes[number] = check_columns(batch[number], cases[number].claims, verdicts, settings.rounds, by)
    return [outcomes[number] for number in range(len(batch))]


def _embedding(row: Row) -> tuple[str, str]:
    return (row["embedding_name"], row["embedding_path"]) if row.get("embedding_path") else ("", "")


def _claims_of(
    batch: Sequence[Row], facts: Sequence[Facts], settings: CaptioningConfig, place: str, config: str
) -> Sequence[Sequence[Claim] | EndpointError]:
    texts = [[row[name] for name in _FORMS[:3]] for row in batch]
    by_templates = [row["describe_by"] == TEMPLATES for row in batch]
    if not settings.writer or all(by_templates):
        return [template_claims(of_row, known) for of_row, known in zip(texts, facts, strict=True)]
    return claims_of_model(_client(settings.writer, "claims", place, config), texts)


def check_columns(row: Row, claims: Sequence[Claim], verdicts: Sequence[Verdict], rounds: int, by: str) -> Columns:
    """What `check` writes: kept, sent back, or dropped with the claims that do not hold."""
    failing = [claim for claim, verdict in zip(claims, verdicts, strict=True) if verdict.holds is False]
    failed_rounds = (row["failed_rounds"] or 0) + 1
    earlier = (row["failing_claims"] or []) if row["failed_rounds"] else []
    columns: Columns = {
        "claims": as_columns(claims, verdicts),
        "failing_claims": list(dict.fromkeys([*earlier, *(claim.text for claim in failing)])),
        "check_by": by,
        "check_drop": "",
        "failed_rounds": 0,
        "describe_drop": "",
        "reformat_drop": "",
    }
    if failing and failed_rounds < rounds and _can_mend(row, failing):
        return {
            **columns,
            "failed_rounds": failed_rounds,
            "check_drop": None,
            "describe_drop": None,
            "reformat_drop": None,
        }
    if failing:
        told = "; ".join(claim.text for claim in failing[:5])
        reason = f"claims: {len(failing)} of {len(claims)} do not hold in description {failed_rounds}: {told}"
        return {**columns, "check_drop": reason}
    return columns


def _can_mend(row: Row, failing: Sequence[Claim]) -> bool:
    """A captioner may look again; templates can leave out tags and the background, but not what the picture is of."""
    return row["describe_by"] != TEMPLATES or all(claim.kind in ("tag", "background") for claim in failing)


def _verifiers(
    settings: CaptioningConfig,
    rivals: Mapping[str, Sequence[str]],
    place: str,
    config: str,
    tower: str,
    store: str,
) -> list[Verifier]:
    """Those the settings name, the cheapest first."""
    verifiers: list[Verifier] = [PixelVerifier(), WritingVerifier()]
    if settings.scorer == TOWER:
        judge = claim_scorer(tower, store)
        verifiers.append(ProbabilityVerifier(judge, settings.tower_fails_under, settings.tower_holds_over))
    elif settings.scorer:
        limits = {"subject": settings.subject_fails_under, "style": settings.style_fails_under}
        verifiers.append(ContrastVerifier(_scorer(settings.scorer), rivals, limits, settings.holds_over))
    if settings.verifier:
        verifiers.append(ModelVerifier(_client(settings.verifier, "check", place, config), settings.longest_side))
    return verifiers


def _facts(batch: Sequence[Row], wording: str) -> list[Facts]:
    return [facts_of(row, _wording(wording)) for row in batch]


def settings_text(config: CaptioningConfig) -> str:
    """The settings as a worker's argument."""
    return json.dumps(to_document(config), sort_keys=True)


# What a worker process keeps from batch to batch: models and connections, by the text of their settings.


@cache
def _config(text: str) -> CaptioningConfig:
    return from_document(CaptioningConfig, json.loads(text))


@cache
def _wording(text: str) -> Wording:
    return Wording.from_document(json.loads(text))


@cache
def _reader(name: str) -> TextReader:
    return text_reader(name)


@cache
def _small_model(directory: str) -> SmallModel:
    return SmallModel(Path(directory), num_threads=1)  # a worker is a process, and several share the machine


@cache
def _client(endpoint: Endpoint, stage: str, place: str, config: str) -> ChatClient:
    return ChatClient(endpoint, stage=stage, place=Path(place), budget=_config(config).budget)


@cache
def claim_scorer(tower: str, store: str) -> ClaimScorer:
    """The calibrated model in a file, for pictures in a store. Raises ConfigError where there is none."""
    # Named, not imported: the model is a part of curation, beside this one.
    scorers = importlib.import_module("pleinair.curation.small_models.claims")
    made: ClaimScorer = scorers.tower_claims(Path(tower), Path(store))
    return made


@cache
def _scorer(name: str) -> Any:
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"the scorer {name!r} cannot be made ({error}): name a function as 'module:function'"
        ) from error
