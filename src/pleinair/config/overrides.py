"""Dotted overrides of nested frozen dataclasses, and their plain-JSON form."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import hashlib
import json
import os
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pleinair.records.errors import ConfigError

Config = TypeVar("Config")


def override(config: Config, assignments: Iterable[str]) -> Config:
    """A copy of `config` with `"a.b=value"` assignments applied; values are Python literals or bare words.

    Each dataclass is made anew once, with all that changes in it, so that sizes which only fit together may be given in any
    order. Raises ConfigError naming the key or value, and the nearest known key.
    """
    tree = _Node()
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigError(
                f"'{assignment}' is not an override: write key=value, for example train.learning_rate=1e-3"
            )
        tree.put(key.strip().split("."), text.strip())
    return _replaced(config, tree, "") if tree.parts else config


@dataclasses.dataclass
class _Node:
    """What is said of one key: a text for all of it, and of the keys below it, whichever came last."""

    text: str | None = None
    parts: dict[str, _Node] = dataclasses.field(default_factory=dict)

    def put(self, path: list[str], text: str) -> None:
        if path:
            self.parts.setdefault(path[0], _Node()).put(path[1:], text)
        else:
            self.text, self.parts = text, {}

    def told(self, key: str) -> list[str]:
        """The assignments again, for messages."""
        own = [] if self.text is None else [f"{key}={self.text}"]
        return own + [one for name, node in self.parts.items() for one in node.told(f"{key}.{name}".lstrip("."))]


def _replaced(config: Config, tree: _Node, where: str) -> Config:
    changes: dict[str, Any] = {}
    for name, node in tree.parts.items():
        key = f"{where}.{name}".lstrip(".")
        wanted = _type_of(config, name, node.told(key)[0].partition("=")[0])
        value = getattr(config, name) if node.text is None else _coerce(_literal(node.text), wanted, key)
        changes[name] = _replaced(value, node, key) if node.parts else value
    try:
        changed: Config = dataclasses.replace(config, **changes)  # type: ignore[type-var]
    except ConfigError:
        raise
    except ValueError as refused:
        raise ConfigError(f"{', '.join(tree.told(where))} is refused: {refused}") from refused
    return changed


def _type_of(config: object, name: str, whole_key: str) -> Any:
    """The declared type of a field. Raises ConfigError where there is none."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise ConfigError(f"'{whole_key}' goes deeper than the configuration does: remove the part from '.{name}' on")
    fields = {field.name for field in dataclasses.fields(config)}
    if name not in fields:
        near = difflib.get_close_matches(name, fields, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(sorted(fields))}"
        raise ConfigError(
            f"unknown configuration key '{whole_key}' ('{name}' is not a key of {type(config).__name__}): {hint}"
        )
    return typing.get_type_hints(type(config))[name]


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def _coerce(value: Any, wanted: Any, key: str) -> Any:
    """`value` as type `wanted`, or ConfigError; nested dataclasses are built from dictionaries."""
    if wanted is Any:
        return value
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        for choice in arguments:
            if isinstance(value, dict) and dataclasses.is_dataclass(choice):
                return _coerce(value, choice, key)  # its own sentence says what is wrong inside
            try:
                return _coerce(value, choice, key)
            except ConfigError:
                continue
    elif origin is typing.Literal:
        if value in arguments:
            return value
    elif origin is tuple and isinstance(value, (tuple, list)):
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_coerce(item, arguments[0], key) for item in value)
        if len(arguments) == len(value):
            return tuple(_coerce(item, kind, key) for item, kind in zip(value, arguments, strict=True))
    elif origin is dict and isinstance(value, dict):
        return {name: _coerce(item, arguments[1], key) for name, item in value.items()}
    elif dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
        if isinstance(value, dict):
            return from_document(wanted, value)
        if isinstance(value, wanted):
            return value
    elif wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif wanted is Path and isinstance(value, (str, Path)):
        return Path(value)
    elif wanted is type(None) and value is None:
        return None
    elif isinstance(wanted, type) and isinstance(value, wanted) and not (wanted is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{key}={value!r} has the wrong type: {getattr(wanted, '__name__', wanted)} is expected")


def from_document(config_class: type[Config], document: dict[str, Any]) -> Config:
    """The dataclass written by `to_document`. Raises ConfigError for unknown keys and wrong types."""
    hints = typing.get_type_hints(config_class)
    known = {field.name for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    if unknown := sorted(set(document) - known):
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "remove it or fix its spelling"
        raise ConfigError(f"unknown key '{unknown[0]}' for {config_class.__name__}: {hint}")
    values = {name: _coerce(value, hints[name], name) for name, value in document.items()}
    try:
        return config_class(**values)
    except TypeError as missing:
        raise ConfigError(f"{config_class.__name__} is incomplete: {missing}") from missing


def to_document(config: Any) -> Any:
    """Nested dataclasses as plain JSON values."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: to_document(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, (tuple, list)):
        return [to_document(item) for item in config]
    if isinstance(config, dict):
        return {str(key): to_document(item) for key, item in config.items()}
    if isinstance(config, Path):
        return str(config)
    return config


def config_digest(config: Any) -> str:
    """SHA-256 of the configuration's canonical JSON; equal digests mean equal settings."""
    return hashlib.sha256(json.dumps(to_document(config), sort_keys=True).encode()).hexdigest()


def write_config(config: Any, path: Path) -> None:
    """Write the resolved configuration as JSON, atomically."""
    staging = path.with_name(path.name + ".partial")
    staging.write_text(json.dumps(to_document(config), indent=2) + "\n")
    os.replace(staging, path)
