"""The errors pleinair raises on purpose.

    PleinairError
    +- ConfigError          a setting is unknown or out of range
    +- MissingExtraError    an optional package is not installed
    +- DatabaseError        Postgres cannot be started, reached or used
    |  +- QueueError        a table or queue stage is declared or used wrongly
    +- SourceError          a source of pictures cannot be listed or fetched
    +- ImageError           one picture cannot be read
    +- PackError            a pack is unreadable or does not fit the run
    +- CheckpointError      a checkpoint is damaged, missing or of another layout
    +- CoverageError        a sample would lose, or has lost, an entity
    +- BusyError            another process already does this
    +- EndpointError        a model server cannot be reached, or refuses the request
    |  +- AnswerError       it answered, but not with something one can use
    |  +- BudgetError       asking it would go over the budget
    +- RefusedError         signed work is unsigned, altered, expired, replayed or cannot run here

Every message says what failed, names the offending value, and ends with what to do about it.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class PleinairError(Exception):
    """Base of every error raised on purpose; the command line prints it as one sentence, without a traceback."""


class ConfigError(PleinairError, ValueError):
    """A setting is unknown or out of range."""


class MissingExtraError(PleinairError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class DatabaseError(PleinairError):
    """Postgres cannot be started, reached or used."""


class QueueError(DatabaseError, ValueError):
    """A table or queue stage is declared or used wrongly."""


class SourceError(PleinairError):
    """A source of pictures cannot be listed or fetched."""


class ImageError(PleinairError, ValueError):
    """One picture cannot be read; the message says what is wrong with it."""


class PackError(PleinairError):
    """A pack is unreadable or does not fit the run."""


class CheckpointError(PleinairError):
    """A checkpoint is damaged, missing or of another layout."""


class CoverageError(PleinairError):
    """A sample would lose, or has lost, an entity that its pictures named."""


class BusyError(PleinairError):
    """Another process already does this."""


class EndpointError(PleinairError):
    """A model server cannot be reached, keeps failing, or refuses the request."""


class AnswerError(EndpointError):
    """A model server answered, but empty, refusing, cut short or in another form than the one asked for."""


class BudgetError(EndpointError):
    """Asking a model server would go over the budget."""


class RewardError(PleinairError):
    """A reward gives no usable answer; the message names the reward and what it gave."""


class RefusedError(PleinairError):
    """Work sent to a worker is unsigned, altered, expired, replayed, or cannot run there."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package. Raises MissingExtraError naming the extra to install."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtraError(f"this needs the package '{module}': pip install 'pleinair[{extra}]'") from missing
