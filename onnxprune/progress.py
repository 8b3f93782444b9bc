"""A folder beside the output from which an interrupted prune goes on.

It holds the curves, the budgets that were tried and the last round: what is dear, and what the rest
follows from. It is removed when the output is written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from onnxprune.errors import FileError, ProgressError
from onnxprune.manager import State
from onnxprune.model.digest import digest
from onnxprune.model.storage import write_whole
from onnxprune.planning.cost import TARGETS
from onnxprune.planning.rounds import Round
from onnxprune.recipe import PruneOptions, VerifyOptions
from onnxprune.records import curvefile
from onnxprune.records.curvefile import CurveFile
from onnxprune.records.planrecord import versions
from onnxprune.records.untrusted import Found, read_json
from onnxprune.samples.dataset import fingerprint
from onnxprune.search import Descent, Tried

SCHEMA = 1
SUFFIX = ".progress"
HINT = "leave out --resume, and give --overwrite, to start anew"
# Options that no byte follows from.
FREE = ("workers",)
KEYS = ("model", "options", "data", "curves", "versions")

Key = Mapping[str, str]
"""A hash of each thing that the result follows from."""


def key_of(state: State, options: PruneOptions, comparison: VerifyOptions) -> Key:
    """What a run is of; curves that were given lie in the state."""
    metric = (comparison.metric, comparison.output, comparison.higher_is_better)
    shapes = {name: list(shape) for name, shape in state.subject.given.items()}
    given = state.past_or_none(CurveFile)
    parts = state.calibration
    own = {name: value for name, value in asdict(options).items() if name not in FREE}
    return {
        "model": digest(state.original.model),
        "options": _hash([own, metric, shapes]),
        "data": "" if parts is None else fingerprint(parts, labels=True),
        "curves": "" if given is None else _hash(curvefile.document(given)),
        "versions": _hash(versions()),
    }


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Saved:
    """What an interrupted run left."""

    curves: CurveFile | None = None
    path: Descent | None = None
    round: Round | None = None


@dataclass(eq=False)
class Store:
    """The folder of one run."""

    folder: Path
    key: Key
    saved: Saved
    """As found at the start."""

    @staticmethod
    def open(out: Path, key: Key, *, resume: bool, overwrite: bool) -> Store:
        """The folder beside an output, with what an interrupted run left in it.

        Args:
            resume: go on from it; else it must not be there, or is overwritten.
        Raises:
            FileError: it is there, or cannot be read.
            ProgressError: it is of another run, or broken.
        """
        store = Store(out.with_name(out.name + SUFFIX), key, Saved())
        if store._main.exists():
            if resume:
                store.saved = store._read()
                return store
            if not overwrite:
                raise FileError(
                    "an interrupted run left its progress",
                    where=str(store.folder),
                    hint="--resume goes on from it, --overwrite starts anew",
                )
            store.remove()
        return store

    def _begin(self) -> None:
        """Make the folder, when there is something to keep: a run that is refused leaves none."""
        if self._main.exists():
            return
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise FileError(f"cannot make a folder for the progress: {reason}",
                            where=str(self.folder)) from error  # fmt: skip
        self._write(self._main, {"schema": SCHEMA, "key": dict(self.key)})

    @property
    def _main(self) -> Path:
        return self.folder / "run.json"

    @property
    def _curves(self) -> Path:
        return self.folder / "curves.json"

    @property
    def _path(self) -> Path:
        return self.folder / "path.json"

    @property
    def _round(self) -> Path:
        return self.folder / "round.json"

    def put_curves(self, curves: CurveFile) -> None:
        """Keep what was measured."""
        self._begin()
        curvefile.write(curves, self._curves, overwrite=True)

    def put_path(self, found: Descent) -> None:
        """Keep the budgets that were tried so far."""
        self._begin()
        self._write(self._path, asdict(found))

    def put_round(self, done: Round) -> None:
        """Keep the last round."""
        self._begin()
        self._write(self._round, {
            "number": done.number,
            "removed": np.flatnonzero(~done.alive).tolist(),
            "levels": [[index, level] for index, level in done.levels.items()],
            "scores": done.scores.tolist(),
        })  # fmt: skip

    def remove(self) -> None:
        """Take the folder away; what else lies in it stays."""
        with suppress(OSError):
            for path in (self._curves, self._path, self._round, self._main):
                path.unlink(missing_ok=True)
            self.folder.rmdir()

    def _write(self, path: Path, content: Any) -> None:
        raw = json.dumps(content, allow_nan=False).encode()

        def put(file: BinaryIO) -> None:
            file.write(raw)

        write_whole(path, put, overwrite=True)

    # --- what another run left ---------------------------------------------------------------

    def _read(self) -> Saved:
        found = self._found(self._main).fields(("schema", "key"))
        if found["schema"].value != SCHEMA:
            raise ProgressError("the progress is of another version", where=str(self.folder),
                                hint=HINT)  # fmt: skip
        known = {name: one.text() for name, one in found["key"].fields(KEYS).items()}
        if other := [name for name in KEYS if known[name] != self.key[name]]:
            raise ProgressError("the progress is of another run", where=f"{self.folder}: it "
                                f"differs in: {', '.join(other)}", hint=HINT)  # fmt: skip
        return Saved(
            curvefile.read(self._curves) if self._curves.exists() else None,
            _parse_path(self._found(self._path)) if self._path.exists() else None,
            _parse_round(self._found(self._round)) if self._round.exists() else None,
        )

    def _found(self, path: Path) -> Found:
        return read_json(path, name="file of progress", kind=ProgressError, hint=HINT)


def _parse_path(found: Found) -> Descent:
    one = found.fields("metric before max_drop samples path".split())
    path = tuple(_parse_tried(item) for item in one["path"].items())
    return Descent(one["metric"].text(), one["before"].real(signed=True),
                   one["max_drop"].real(), one["samples"].integer(), path)  # fmt: skip


def _parse_tried(found: Found) -> Tried:
    one = found.fields("share cost value drop holds".split())
    if type(one["holds"].value) is not bool:
        one["holds"].refuse("is neither true nor false")
    cost = {name: item.real() for name, item in one["cost"].fields(TARGETS).items()}
    value, drop = (one[name].real(signed=True) for name in ("value", "drop"))
    return Tried(one["share"].real(), cost, value, drop, one["holds"].value)


def _parse_round(found: Found) -> Round:
    one = found.fields("number removed levels scores".split())
    scores = np.array([item.real(signed=True) for item in one["scores"].items()])
    alive = np.ones(len(scores), np.bool_)
    alive[list(one["removed"].numbers(len(scores)))] = False
    pairs = [item.numbers() for item in one["levels"].items()]
    if any(len(pair) != 2 for pair in pairs):
        one["levels"].refuse("is not a list of pairs")
    return Round(one["number"].integer(), alive, {pair[0]: pair[1] for pair in pairs}, scores)
