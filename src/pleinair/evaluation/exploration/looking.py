"""Who looks at pictures, and at which part of them.

pictures --+-- two judges, frozen features, copy embedding --> scores, a row each
           +-- colour by pixels, where a colour is asked    --+
           +-- OCR, where a word is                         --+--> Seen, a row each
           `-- things counted, named and placed, by judge   --'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pleinair.captioning.ocr import NoReader, TextReader
from pleinair.evaluation.copies import Calibration, CopyEmbedding
from pleinair.evaluation.exploration.colours import colour_name
from pleinair.evaluation.exploration.composition import things_of
from pleinair.evaluation.exploration.requests import Asked
from pleinair.evaluation.exploration.sheet import Seen, Sheet, Things
from pleinair.evaluation.exploration.world import Pictures, World
from pleinair.evaluation.exploration.writing import read_word
from pleinair.evaluation.features import PictureFeatures
from pleinair.evaluation.second_judge import SecondJudge
from pleinair.model.judge import Judge, JudgeScores, judge_pictures


@dataclass(frozen=True)
class Witnesses:
    """All that looks at pictures."""

    judge: Judge
    second: SecondJudge
    copies: CopyEmbedding
    calibration: Calibration
    features: PictureFeatures
    reader: TextReader

    def look(self, world: World, asked: Sequence[Asked], pictures: Pictures) -> Sheet:
        """The sheet of these pictures. Raises ValueError for pictures of another kind than the judges know."""
        if len(pictures) != len(asked):
            raise ValueError(f"{len(pictures)} pictures for {len(asked)} requests: give one each")
        first = judge_pictures(self.judge, pictures)  # which refuses pictures of another kind
        features = self.features.of(pictures)
        scores = {"first": first, "second": self.second.judge(features)}
        things = things_of(world, asked, pictures, self.scores)
        seen = [
            self._seen(one, picture, things.get(row, {}))
            for row, (one, picture) in enumerate(zip(asked, pictures, strict=True))
        ]
        return Sheet(
            world, asked, pictures, scores, self.second.standardised(features), self.copies.embed(features), seen
        )

    def _seen(self, one: Asked, picture: Pictures, things: Mapping[str, Things]) -> Seen:
        reads = one.request.kind == "text" and not isinstance(self.reader, NoReader)
        return Seen(
            colour=colour_name(picture) if one.request.kind in ("colour", "any-colour") else "",
            read=read_word(self.reader, picture) if reads else None,
            things=things,
        )

    def scores(self, pictures: Pictures) -> dict[str, JudgeScores]:
        """What each judge says of pictures."""
        first = judge_pictures(self.judge, pictures)
        return {"first": first, "second": self.second.judge(self.features.of(pictures))}
