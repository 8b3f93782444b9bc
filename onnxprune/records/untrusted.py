"""JSON that someone else wrote: each value is looked at before it is used."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from onnxprune.errors import FileError, PlanError, PruneError
from onnxprune.identity.fields import IntArray

# The plan of a model with a million channels has about 10 MB.
MAX_BYTES = 2**28
MAX_INT = 2**63 - 1
MAX_REAL = 1e300
HINT = "let `prune` write the plan again"

FloatArray = npt.NDArray[np.float64]
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class Found:
    """A value and its place in the file.

    Every method raises `kind` where the value is not what it is asked for.
    """

    value: Any
    at: str = ""
    kind: type[PruneError] = PlanError
    hint: str = HINT

    def refuse(self, what: str) -> NoReturn:
        """Say what is wrong with this value."""
        raise self.kind(f"`{self.at or 'the file'}` {what}", hint=self.hint)

    def _below(self, value: Any, at: str) -> Found:
        return Found(value, at, self.kind, self.hint)

    def entries(self) -> dict[str, Found]:
        """The values of an object with any keys."""
        if not isinstance(self.value, dict):
            self.refuse("is not an object")
        prefix = f"{self.at}." if self.at else ""
        return {key: self._below(value, prefix + key) for key, value in self.value.items()}

    def fields(self, needed: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Found]:
        """The values of an object with these keys and no others."""
        found, needed = self.entries(), set(needed)
        if missing := needed - found.keys():
            self.refuse(f"has no `{min(missing)}`")
        if unknown := found.keys() - needed - set(optional):
            self.refuse(f"has the unknown key `{min(unknown)}`")
        return found

    def items(self) -> list[Found]:
        """The values of a list."""
        if not isinstance(self.value, list):
            self.refuse("is not a list")
        return [self._below(value, f"{self.at}[{i}]") for i, value in enumerate(self.value)]

    def text(self) -> str:
        if not isinstance(self.value, str):
            self.refuse("is not text")
        return str(self.value)

    def integer(self, below: int = MAX_INT) -> int:
        """A whole number from 0 on, and below a bound."""
        if type(self.value) is not int or not 0 <= self.value < below:
            self.refuse(f"is not a whole number from 0 to {below - 1}")
        return int(self.value)

    def numbers(self, below: int = MAX_INT) -> tuple[int, ...]:
        """A list of them."""
        if not isinstance(self.value, list) or not all(
            type(n) is int and 0 <= n < below for n in self.value
        ):
            self.refuse(f"is not a list of whole numbers from 0 to {below - 1}")
        return tuple(self.value)

    def real(self, *, signed: bool = False) -> float:
        """A finite number, of at least 0 unless it may be negative."""
        is_number = type(self.value) in (int, float)
        if not is_number or not (-MAX_REAL if signed else 0) <= self.value <= MAX_REAL:
            self.refuse("is not a number" + ("" if signed else " of at least 0"))
        return float(self.value)

    def reals(self) -> FloatArray:
        """A list of them."""
        return np.array([one.real() for one in self.items()], np.float64)

    def sha256(self) -> str:
        """A hash as hexadecimal text."""
        text = self.text()
        if len(text) != 64 or not _HEX.issuperset(text):
            self.refuse("is no SHA-256")
        return text

    def positions(self, length: int, shape: tuple[int, ...] = ()) -> IntArray:
        """Positions of an axis, each at most once; nested lists have one row per position.

        Args:
            length: of the axis.
            shape: how many rows there are, by level of nesting.
        Returns: shape (*shape, n), n above 0.
        """
        if not shape:
            found = self.numbers(length)
            if not found or len(set(found)) < len(found):
                self.refuse("names no position, or one twice")
            return np.array(found, np.int64)
        rows = self.items()
        if len(rows) != shape[0]:
            self.refuse(f"has {len(rows)} rows where there are {shape[0]}")
        made = [row.positions(length, shape[1:]) for row in rows]
        if len({row.shape for row in made}) != 1:
            self.refuse("has rows of unlike length")
        return np.stack(made)


def read_json(
    path: Path, *, name: str = "plan", kind: type[PruneError] = PlanError, hint: str = HINT
) -> Found:
    """The document in a file.

    Args:
        name: what such a file is called in messages.
        kind: what is raised where something in it is wrong, with this hint.
    Raises:
        FileError: it cannot be read.
        PruneError: of that kind: it is no JSON, or too large.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FileError(f"cannot read the {name}: {reason}", where=str(path)) from error
    if len(raw) > MAX_BYTES:
        raise kind(f"a {name} is not larger than {MAX_BYTES >> 20} MiB", where=str(path))
    try:
        return Found(parse_json(raw), kind=kind, hint=hint)
    except ValueError as error:
        raise kind(f"this is no {name}: {error}", where=str(path), hint=hint) from error


def parse_json(raw: bytes) -> Any:
    """A JSON value; stricter than the library: keys once, numbers that JSON has.

    Raises: ValueError: it is none, or nested too deep.
    """
    try:
        return json.loads(raw, object_pairs_hook=_once, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key stands in it twice")
    return made


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"`{text}` is no JSON")
