"""JSON answers: found in a model's text, and held against the schema that was asked for.

The keywords are those our own schemas use; another one is refused rather than silently not checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from pleinair.endpoints.messages import Schema
from pleinair.records.errors import AnswerError, ConfigError

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_SIZES: Mapping[str, tuple[str, Callable[[int, int], bool]]] = {
    "minLength": ("characters", int.__ge__),
    "maxLength": ("characters", int.__le__),
    "minItems": ("items", int.__ge__),
    "maxItems": ("items", int.__le__),
}
_KNOWN = {"type", "properties", "required", "items", "enum", "additionalProperties", "description", *_SIZES}


def parse(text: str, schema: Schema) -> Any:
    """The JSON value in a model's answer. Raises AnswerError saying what is wrong with it."""
    value = _find_json(text)
    if found := problem(value, schema):
        raise AnswerError(f"the JSON is not of the form asked for: {found}")
    return value


def problem(value: Any, schema: Schema, where: str = "the answer") -> str:
    """What a value lacks to fit a schema; empty when it fits. Raises ConfigError for a schema we cannot check."""
    if unknown := set(schema) - _KNOWN:
        raise ConfigError(f"schema keyword {sorted(unknown)[0]!r} is not checked here: use {', '.join(sorted(_KNOWN))}")
    if "type" in schema and not _is_type(value, schema["type"]):
        return f"{where} is {json.dumps(value)[:60]}, not {schema['type']}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{where} is {json.dumps(value)[:60]}, not one of {schema['enum']}"
    if isinstance(value, str | list) and (found := _size_problem(value, schema)):
        return f"{where} {found}"
    if isinstance(value, dict):
        return _object_problem(value, schema, where)
    if isinstance(value, list) and "items" in schema:
        problems = (problem(item, schema["items"], f"{where}[{n}]") for n, item in enumerate(value))
        return next(filter(None, problems), "")
    return ""


def _size_problem(value: str | list[Any], schema: Schema) -> str:
    counted = "characters" if isinstance(value, str) else "items"
    for keyword, (of_what, fits) in _SIZES.items():
        if of_what == counted and keyword in schema and not fits(len(value), schema[keyword]):
            return f"has {len(value)} {counted}, {keyword} is {schema[keyword]}"
    return ""


def _object_problem(value: Mapping[str, Any], schema: Schema, where: str) -> str:
    properties: Mapping[str, Schema] = schema.get("properties", {})
    if missing := [name for name in schema.get("required", ()) if name not in value]:
        return f"{where} lacks {missing[0]!r}"
    if schema.get("additionalProperties") is False and (extra := [name for name in value if name not in properties]):
        return f"{where} has {extra[0]!r}, which was not asked for"
    found = (problem(value[name], part, f"{where}.{name}") for name, part in properties.items() if name in value)
    return next(filter(None, found), "")


def _is_type(value: Any, name: str) -> bool:
    # JSON's true is no number, though Python's is.
    return isinstance(value, _TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def _find_json(text: str) -> Any:
    """The first JSON object or list in the text; models like to wrap it in a fence or a sentence."""
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    reason = "there is none"
    for start in re.finditer(r"[\[{]", text):
        try:
            return decoder.raw_decode(text, start.start())[0]
        except ValueError as error:
            reason = str(error)
            if text[: start.start()].strip() in ("", "```json", "```"):
                break
        except RecursionError:
            reason = "it is nested too deeply"
            break
    raise AnswerError(f"no JSON can be read from the answer ({reason})")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
