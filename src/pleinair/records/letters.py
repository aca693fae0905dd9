"""How far what was read is from what should stand there, in letters."""

from __future__ import annotations


def letters_of(text: str) -> str:
    """The letters that are compared: case and spaces do not count."""
    return "".join(text.casefold().split())


def character_error(wanted: str, read: str) -> float:
    """Edits from what was read to what was wanted, per letter wanted, at most 1; case and spaces do not count."""
    wanted, read = letters_of(wanted), letters_of(read)
    return min(edit_distance(wanted, read) / len(wanted), 1.0)


def edit_distance(first: str, second: str) -> int:
    """Letters to insert, delete or replace (Levenshtein)."""
    row = list(range(len(second) + 1))
    for number, letter in enumerate(first, start=1):
        corner, row[0] = row[0], number
        for place, other in enumerate(second, start=1):
            corner, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, corner + (letter != other))
    return row[-1]
