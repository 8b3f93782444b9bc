"""The only exceptions a user meets: what went wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PruneError(Exception):
    """Bad input or usage: one clear message, exit code 2.

    Args:
        what: what went wrong; lower case, no full stop, names in backticks.
        where: the node, tensor or file it was seen at.
        hint: what the user can do.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.hint = what, where, hint

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)


class UsageError(PruneError):
    """An option, name or value that does not fit."""


class ModelError(PruneError):
    """The model file is broken, unreadable or cannot run."""


class DataError(PruneError):
    """The data does not fit the model."""


class BudgetError(PruneError):
    """A budget that no plan can meet."""


class PlanError(PruneError):
    """A plan file is broken, or belongs to another model."""


class CurvesError(PruneError):
    """A file of damage curves is broken, or belongs to another model."""


class ProgressError(PruneError):
    """What an interrupted run left is broken, or belongs to another run."""


class FileError(PruneError):
    """A file cannot be read or written."""


class ToolDefect(PruneError):
    """A promise of this tool is broken (a cut that its proof refuses): exit code 1."""

    exit_code = 1


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint naming the known words closest to `name`; all of them where none is close."""
    words = sorted(known)
    close = difflib.get_close_matches(name, words, n=3)
    listed = ", ".join(f"`{word}`" for word in close or words)
    return f"did you mean {listed}?" if close else f"one of {listed}"
