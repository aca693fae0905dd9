"""SQL conditions as a mix file may write them: comparisons of columns with constants, and nothing that does more.

    check_condition("source = 'cifar-10' AND width >= 32", columns)     the same text, or a ConfigError with a sentence

The warehouse reads `where` as trusted SQL. A mix file travels between people, so its conditions are read word by word
first: known columns, literals, comparison operators and a few functions without side effects. No subquery, no second
statement, no comment, no cast of a string to something that is looked up.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator

from pleinair.records.errors import ConfigError

_WORDS = frozenset(
    ("and", "or", "not", "in", "is", "null", "true", "false", "between", "like", "ilike", "any", "all", "array")
)
_FUNCTIONS = frozenset(("coalesce", "lower", "upper", "length", "cardinality", "abs", "greatest", "least"))
_TOKEN = re.compile(
    r"\s+|(?P<string>'(?:[^'\\]|'')*')|(?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|(?P<word>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<sign><>|!=|<=|>=|@>|<@|&&|\|\||[=<>(),+*/\[\]]|-(?!-)|%)"
)
QUALITY = re.compile(
    r"quality|aesthetic|esthetic|beauty|beautiful|brisque|niqe|musiq|nima|(^|_)(iqa|score|reward)(_|$)"
)
"""Names of columns that say how good a picture is, rather than what it is."""


def check_condition(condition: str, columns: Collection[str], where: str) -> str:
    """The condition, unchanged. Raises ConfigError naming `where` it stands, the word at fault, and the remedy."""
    depth, before = 0, ""
    for kind, text in _tokens(condition, where):
        if kind == "word":
            _check_word(text.lower(), columns, where)
        if text == "(" and before and before not in _WORDS | _FUNCTIONS and re.fullmatch(r"\w+", before):
            raise ConfigError(f"{where} calls '{before}(...)': use {', '.join(sorted(_FUNCTIONS))}, or a comparison")
        depth += {"(": 1, ")": -1}.get(text, 0)
        if depth < 0:
            break
        before = text.lower()
    if depth:
        raise ConfigError(f"{where} has a bracket without its other half: {condition!r}; close or remove it")
    if not before:
        raise ConfigError(f"{where} is empty: write a condition such as \"licence = 'CC0-1.0'\", or leave it out")
    return condition


def columns_of(condition: str) -> list[str]:
    """The columns a checked condition looks at, each once."""
    words = (text.lower() for kind, text in _tokens(condition, "") if kind == "word")
    return list(dict.fromkeys(word for word in words if word not in _WORDS | _FUNCTIONS))


def is_quality(column: str) -> bool:
    """Whether a column's name says that it holds a judgement of quality or beauty."""
    return QUALITY.search(column.lower()) is not None


def _tokens(condition: str, where: str) -> Iterator[tuple[str, str]]:
    place = 0
    while place < len(condition):
        found = _TOKEN.match(condition, place)
        if found is None:
            raise ConfigError(
                f"{where} cannot be read at {condition[place : place + 20]!r}: write comparisons of columns with numbers "
                "or 'text', joined by AND, OR, NOT"
            )
        if found.lastgroup:
            yield found.lastgroup, found.group()
        place = found.end()


def _check_word(word: str, columns: Collection[str], where: str) -> None:
    if word in _WORDS or word in _FUNCTIONS or word in columns:
        return
    near = difflib.get_close_matches(word, columns, n=1)
    hint = f"did you mean '{near[0]}'?" if near else "'pleinair sql \"SELECT * FROM images LIMIT 1\"' shows the columns"
    raise ConfigError(f"{where} names '{word}', which is no column of images: {hint}")
