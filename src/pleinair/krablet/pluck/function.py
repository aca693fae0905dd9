"""A function on its way to other machines: pickled by value, with what it needs there to be loaded.

Functions and classes of a notebook, of a script, and of modules that are not part of an installed package travel whole;
those of installed packages travel as a name, and the package must be installed where the function runs.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import importlib.metadata
import inspect
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import CodeType, ModuleType
from typing import Any

from pleinair.records.errors import QueueError, RefusedError, require


@dataclass(frozen=True)
class PackedFunction:
    """A function or actor class as bytes. `packages` are the installed packages it names, with their versions."""

    data: bytes = field(repr=False)
    python: str
    packages: Mapping[str, str]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def python_version() -> str:
    """Major and minor version: code objects differ between minor versions, and unpickling another's may crash."""
    return ".".join(platform.python_version_tuple()[:2])


def pack(function: Any) -> PackedFunction:
    """Pickle a function, an actor class, or a functools.partial of either. Raises QueueError if it cannot be."""
    cloudpickle = require("cloudpickle", "pluck")
    if not callable(function):
        raise QueueError(f"{function!r:.80} cannot be called: give a function, or a class with __call__")
    modules = named_modules(function)
    with ExitStack() as stack:
        for module in filter(None, (sys.modules.get(name) for name in sorted(modules))):
            if not _travels_by_name(module.__name__) and getattr(module, "__file__", None):
                cloudpickle.register_pickle_by_value(module)
                stack.callback(cloudpickle.unregister_pickle_by_value, module)
        try:
            data: bytes = cloudpickle.dumps(function)
        except Exception as error:
            raise QueueError(
                f"{function!r:.80} cannot be sent to workers: {type(error).__name__}: {error}; "
                "open files, connections and models inside the function or in the actor's __init__"
            ) from error
    return PackedFunction(data, python_version(), _versions(modules))


def check_runs_here(python: str, packages: Mapping[str, str]) -> None:
    """Returns if this Python can load the function; else raises RefusedError with what is missing."""
    if python != python_version():
        raise RefusedError(
            f"the function was made with Python {python} and this worker runs {python_version()}: "
            f"start a worker with Python {python}"
        )
    for name, version in packages.items():
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise RefusedError(
                f"the function needs the package {name} and this worker has none: pip install {name}=={version}"
            ) from None


def _travels_by_name(module: str) -> bool:
    top = module.partition(".")[0]
    return top in sys.stdlib_module_names or top in _owners() or top == "pleinair"


@functools.cache
def _owners() -> Mapping[str, list[str]]:
    """Top-level modules with the installed distributions they come from."""
    return importlib.metadata.packages_distributions()


def _versions(modules: set[str]) -> dict[str, str]:
    tops = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names)
    names = sorted({owner for top in tops for owner in _owners().get(top, [])})
    return {name: importlib.metadata.version(name) for name in names}


def named_modules(function: Any) -> set[str]:
    """The modules that `function`, and the local functions and classes it names, import or are defined in."""
    found: set[str] = set()
    seen: set[int] = set()
    waiting: list[Any] = [function]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, ModuleType):
            found.add(value.__name__)
            waiting += [] if _travels_by_name(value.__name__) else vars(value).values()
        elif isinstance(value, functools.partial):
            waiting += [value.func, *value.args, *value.keywords.values()]
        elif inspect.isclass(value) or inspect.isroutine(value):
            found.add(value.__module__ or "builtins")
            waiting += _named_by(value, found)
    return found


def _named_by(value: Any, found: set[str]) -> list[Any]:
    """What the code of a function, or of the methods of a class, refers to; imports it makes go to `found`."""
    if _travels_by_name(value.__module__ or "builtins"):
        return []
    if inspect.isclass(value):
        return [*value.__bases__, *map(inspect.unwrap, _methods(value))]
    code = getattr(value, "__code__", None)
    if code is None:
        return []
    codes = list(_nested(code))
    found |= {name for part in codes for name in _imports(part)}
    names = {name for part in codes for name in part.co_names}
    values = [value.__globals__[name] for name in names if name in value.__globals__]
    return values + list(inspect.getclosurevars(value).nonlocals.values())


def _methods(kind: type) -> Iterator[Any]:
    for member in vars(kind).values():
        member = getattr(member, "__func__", getattr(member, "fget", member))
        if inspect.isroutine(member):
            yield member


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _imports(code: CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME" and not instruction.argval.startswith("."):
            yield instruction.argval
