"""What may become a caption: text without machinery, and answers that are none."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_MACHINERY = re.compile(r"<\|[^|<>]{0,40}\|>|</?(?:s|think|data|image|eos|bos)>", re.IGNORECASE)
_PREAMBLE = re.compile(
    r"(?:sure[,!]?|certainly[,!]?|here(?: is|'s)\b[^:]{0,60}:|caption:|description:)\s*", re.IGNORECASE
)
_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:sorry|unable|not able)|i (?:can(?:no|')t|cannot|won't|will not) "
    r"(?:assist|help|see|view|describe|identify|comply|provide|fulfil)|as an? (?:ai|language model)|"
    r"(?:no|without an?) image (?:was |is )?(?:provided|attached|visible))",
    re.IGNORECASE,
)
_REFUSAL_WITHIN = 160
_LOOP_WORDS, _LOOP_TIMES = 3, 4
_FEWEST_WORDS = 3


def clean(text: str) -> str:
    """The text on one line, without control and invisible characters, template tokens, preambles and wrapping quotes."""
    composed = unicodedata.normalize("NFC", _MACHINERY.sub(" ", text.replace("\u2019", "'")))
    visible = "".join(" " if c.isspace() else c for c in composed if c.isspace() or unicodedata.category(c)[0] != "C")
    plain = _PREAMBLE.sub("", " ".join(visible.split()), count=1) if _PREAMBLE.match(visible.strip()) else visible
    plain = " ".join(plain.split())
    if len(plain) > 1 and plain[0] == plain[-1] == '"' and '"' not in plain[1:-1]:
        plain = plain[1:-1].strip()
    return plain


def refuses(text: str) -> bool:
    """Whether an answer begins by declining. In words of its own a picture's text may decline too: only the beginning counts."""
    return bool(_REFUSAL.search(text.replace("\u2019", "'")[:_REFUSAL_WITHIN]))


def caption_fault(text: str, *, most_words: int, fewest_words: int = _FEWEST_WORDS) -> str:
    """Why a model's answer is no caption; empty when it is one. Give it cleaned text."""
    words = text.split()
    if len(words) < fewest_words:
        return f"too short: {text!r}"
    if refuses(text):
        return f"refused: {text[:100]!r}"
    if len(words) > most_words:
        return f"too long: {len(words)} words, over {most_words}"
    if loop := looping(text):
        return f"loops: {loop!r} again and again"
    return ""


def looping(text: str) -> str:
    """The run of words a text keeps repeating; empty when none. Small models fall into this."""
    words = text.lower().split()
    runs = Counter(" ".join(words[n : n + _LOOP_WORDS]) for n in range(len(words) - _LOOP_WORDS + 1))
    run, times = max(runs.items(), key=lambda item: item[1], default=("", 0))
    return run if times >= _LOOP_TIMES else ""
