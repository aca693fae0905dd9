"""DIMCIM (arXiv 2506.05108): what a model shows by default, and what it can show when asked.

The repository, github.com/facebookresearch/DIMCIM, could not be seen. The format below is that of public programs which
read its files and write the inputs of its scorers; nothing official confirms it.

- `dense_prompts/<concept>_dense_prompts.json`: `{"concept", "coarse_dense_prompts": [{"coarse_prompt", "dense_prompts":
  [{"attribute_type", "attribute", "dense_prompt"}]}]}`.
- `seed_captions_attributes/<concept>_seed_captions_attributes.json`: `{"attributes": {type: [attribute, ...]}}`; where it
  is missing, the attributes that the concept's dense prompts ask for.
- The scorers read, per concept, a JSON list of paths (coarse) and one of `{"prompt", "attribute_type", "attribute",
  "image_paths"}` (dense). Thirty pictures of each prompt.

The paper's two metrics (Does-It: 1 - mean |S|) rest on an attribute-concept score S whose definition could not be
verified, so they are not computed. What is, is ours and named so, from P(yes) of "does the picture show this attribute":

- `can_it_share`: over dense prompts, the mean of P(yes) for the attribute asked for.
- `does_it_coverage`: over (concept, attribute), the share that at least one coarse picture shows (P(yes) over one half).
- `does_it_evenness`: over (concept, attribute type) of two or more attributes, the entropy of the attributes' mean P(yes)
  over the logarithm of their number: 1 where all are shown alike, 0 where one is shown always.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pleinair.evaluation.published.benchmark import Benchmark, Item, Judged, Measure, Plan, Question, measured
from pleinair.evaluation.published.files import Record, as_record, plain_name, read_json
from pleinair.records.errors import ConfigError

_ENDING = "_dense_prompts.json"
_YES = frozenset({"Yes", "yes", " Yes", " yes"})
Attribute = tuple[str, str]
"""Its type and its value, such as `("color", "red")`."""


@dataclass(frozen=True)
class Facts:
    """What a prompt is about."""

    concept: str
    coarse: bool
    """Whether it leaves the attributes open."""
    attributes: tuple[Attribute, ...]
    """Those asked about: all of the concept, or the one the prompt wants."""


def read(path: Path, plan: Plan) -> list[Item[Facts]]:
    """The prompts of the folder COCO-DIMCIM, or of one concept's file of dense prompts."""
    files = sorted((path / "dense_prompts").glob(f"*{_ENDING}")) if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"{path} holds no dense_prompts/*{_ENDING}: give the folder COCO-DIMCIM, or one such file")
    return [item for file in files for item in _read_concept(file, plan.copies)]


def _read_concept(file: Path, copies: int) -> list[Item[Facts]]:
    whole = as_record(read_json(file), str(file))
    concept, rows = plain_name(whole, "concept"), whole.parts("coarse_dense_prompts")
    dense = [(row, one) for row in range(len(rows)) for one in rows[row].parts("dense_prompts")]
    of_dense = [(one.text("attribute_type"), one.text("attribute")) for _, one in dense]
    known = _listed(file, concept) or tuple(dict.fromkeys(of_dense))
    items = [
        _item(f"{concept}/coarse/{number:04}", row.text("coarse_prompt"), Facts(concept, True, known), copies)
        for number, row in enumerate(rows)
    ]
    for number, ((row_number, one), attribute) in enumerate(zip(dense, of_dense, strict=True)):
        key = f"{concept}/dense/{row_number:04}-{number:05}"
        items.append(_item(key, one.text("dense_prompt"), Facts(concept, False, (attribute,)), copies))
    return items


def _listed(file: Path, concept: str) -> tuple[Attribute, ...]:
    """The attributes listed for a concept; none where there is no list."""
    listing = file.parent.parent / "seed_captions_attributes" / f"{concept}_seed_captions_attributes.json"
    if not listing.exists():
        return ()
    attributes: Record = as_record(read_json(listing), str(listing)).part("attributes")
    return tuple((kind, value) for kind in attributes.values for value in attributes.texts(kind))


def _item(key: str, prompt: str, facts: Facts, copies: int) -> Item[Facts]:
    return Item(
        key=key,
        prompt=prompt,
        files=tuple(f"{key}/{copy:02}.png" for copy in range(copies)),
        questions=tuple(
            Question(
                text=f"Does this image show a {facts.concept} whose {kind} is: {value}? Answer with one word: yes or no.",
                accepted=_YES,
                max_tokens=1,
            )
            for kind, value in facts.attributes
        ),
        about=facts,
    )


def measure(judged: Sequence[Judged[Facts]]) -> dict[str, Measure]:
    """Our own measures of both questions, between 0 and 1."""
    shown: dict[tuple[str, Attribute], list[float]] = defaultdict(list)
    can = []
    for one in judged:
        for answers in one.answers:
            for attribute, answer in zip(one.item.about.attributes, answers, strict=True):
                if one.item.about.coarse:
                    shown[one.item.about.concept, attribute].append(answer.value)
                else:
                    can.append(answer.value)
    kinds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (concept, (kind, _)), values in shown.items():
        kinds[concept, kind].append(sum(values) / len(values))
    return {
        **measured({"can_it_share": can}, "pictures"),
        **measured({"does_it_coverage": [float(max(values) > 0.5) for values in shown.values()]}, "attributes"),
        **measured({"does_it_evenness": [evenness(of) for of in kinds.values() if len(of) > 1]}, "attribute types"),
    }


def evenness(shares: Sequence[float]) -> float:
    """Entropy of non-negative shares over that of equal ones; 0 where nothing is shown at all."""
    total = sum(shares)
    parts = [share / total for share in shares if share > 0] if total > 0 else []
    return -sum(part * math.log(part) for part in parts) / math.log(len(shares))


def companions(items: Sequence[Item[Facts]], pictures: Path) -> dict[str, str]:
    """What the scorers read: per concept, the paths of its coarse pictures and those of its dense ones."""
    coarse: dict[str, list[str]] = defaultdict(list)
    dense: dict[str, list[dict[str, object]]] = defaultdict(list)
    for item in items:
        paths = [str(pictures / file) for file in item.files]
        if item.about.coarse:
            coarse[item.about.concept] += paths
        else:
            kind, value = item.about.attributes[0]
            told: dict[str, object] = {
                "prompt": item.prompt,
                "attribute_type": kind,
                "attribute": value,
                "image_paths": paths,
            }
            dense[item.about.concept].append(told)
    return {
        f"eval/{concept}_{kind}_prompt_generated_images_paths.json": json.dumps(paths, indent=1, ensure_ascii=False)
        + "\n"
        for kind, of in (("coarse", coarse), ("dense", dense))
        for concept, paths in of.items()
    }


DIMCIM = Benchmark(
    title="DIMCIM",
    brings="the folder COCO-DIMCIM, or one concept's *_dense_prompts.json",
    source="public programs around github.com/facebookresearch/DIMCIM, which itself could not be seen",
    scorer="the repository's DIM and CIM scorers on {out}/eval/*.json",
    wants="probabilities",
    copies=30,
    num_prompts=frozenset({930 + 14641}),
    left_out=("the paper's Does-It and Can-It metrics",),
    differs=("format and layout are unverified", "the measures are our own"),
    read=read,
    measure=measure,
    companions=companions,
)
