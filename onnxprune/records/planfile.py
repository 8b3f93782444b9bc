"""`plan.json`: a plan file written, and read although anyone may have written it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from onnxprune.cutting.compact import Take, lengths
from onnxprune.errors import PlanError
from onnxprune.identity.fields import IntArray, Shape
from onnxprune.model.storage import write_whole
from onnxprune.normal.origin import Origin
from onnxprune.normal.origin import parse as parse_origin
from onnxprune.planning.cost import TARGETS, Cost
from onnxprune.records.planrecord import (
    MODELS,
    DimEntry,
    PlanFile,
    WeightEntry,
    expect,
    record,
    restore,
)
from onnxprune.records.untrusted import Found, read_json

__all__ = [
    "PlanFile",
    "document",
    "expect",
    "parse",
    "read",
    "record",
    "restore",
    "write",
]

SCHEMA = 1
SCHEMA_FILE = Path(__file__).parents[1] / "schemas" / "plan.schema.json"


def document(written: PlanFile) -> dict[str, Any]:
    """The plan as it stands in the file; `schemas/plan.schema.json` describes it."""
    return {
        "schema": SCHEMA,
        "versions": dict(written.versions),
        "sha256": dict(written.sha256),
        "recipe": list(written.recipe),
        "seed": written.seed,
        "sizes": {name: list(shape) for name, shape in written.sizes.items()},
        "cost": {"before": asdict(written.before), "after": asdict(written.after)},
        "channels": written.channels,
        "dims": [_dim_json(entry) for entry in written.dims],
        "weights": {name: _weight_json(entry) for name, entry in written.weights.items()},
    }


def _dim_json(entry: DimEntry) -> dict[str, Any]:
    parts = zip(entry.sizes, entry.kept, strict=True)
    return {
        "index": entry.index,
        "name": entry.name,
        "size": max(entry.sizes),
        "rows": len(entry.sizes),
        "counts": list(entry.counts()),
        "level": entry.level,
        "parts": [{"size": n, "kept": None if k is None else k.tolist()} for n, k in parts],
    }


def _weight_json(entry: WeightEntry) -> dict[str, Any]:
    return {
        "source": entry.source,
        "shape": list(entry.shape),
        "take": [_take_json(take) for take in entry.takes],
        "origin": None if entry.origin is None else entry.origin.json(),
    }


def _take_json(take: Take) -> dict[str, Any]:
    rows = {"rows": take.rows[0] if len(take.rows) == 1 else list(take.rows)} if take.rows else {}
    return {"axis": take.axis, **rows, "kept": take.kept.tolist()}


def write(written: PlanFile, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a plan, one Dim and one weight to a line.

    Raises: FileError: it cannot be written; what stood there stays.
    """
    write_whole(path, writer(written), overwrite=overwrite)


def writer(written: PlanFile) -> Callable[[BinaryIO], None]:
    """What writes a plan into an open file."""
    content = "\n".join(_lines(document(written))).encode() + b"\n"

    def put(file: BinaryIO) -> None:
        file.write(content)

    return put


def _lines(content: Mapping[str, Any]) -> Iterator[str]:
    yield "{\n"
    for number, (key, value) in enumerate(content.items()):
        yield f"{'' if number == 0 else ',' + chr(10)}  {json.dumps(key)}: "
        if key == "dims":
            yield _block("[]", map(json.dumps, value))
        elif key == "weights":
            yield _block("{}", (f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()))
        else:
            yield json.dumps(value)
    yield "\n}\n"


def _block(brackets: str, lines: Iterable[str]) -> str:
    return f"{brackets[0]}\n    " + ",\n    ".join(lines) + f"\n  {brackets[1]}"


def read(path: str | Path | Mapping[str, Any]) -> PlanFile:
    """Read a plan that anyone may have written: a file, or its JSON as plain values.

    Raises:
        FileError: it cannot be read.
        PlanError: it is no plan, of another schema, or names positions that are not there.
    """
    if isinstance(path, Mapping):
        return parse(Found(dict(path)))
    try:
        return parse(read_json(Path(path)))
    except PlanError as error:
        raise PlanError(error.what, where=error.where or str(path), hint=error.hint) from error


def parse(found: Found) -> PlanFile:
    """A plan from its JSON.

    Raises: PlanError: says which value is wrong.
    """
    if found.entries().get("schema", Found(None)).value != SCHEMA:
        raise PlanError(
            f"this is no plan of schema {SCHEMA}",
            hint="give the `.plan.json` that `prune` wrote, or prune again with this version",
        )
    top = found.fields(
        "schema versions sha256 recipe seed sizes cost channels dims weights".split()
    )
    cost = top["cost"].fields(("before", "after"))
    hashes = {name: one.sha256() for name, one in top["sha256"].fields(MODELS).items()}
    dims = tuple(_parse_dim(one) for one in top["dims"].items())
    if len({entry.index for entry in dims}) < len(dims):
        top["dims"].refuse("lists a Dim twice")
    return PlanFile(
        versions={name: one.text() for name, one in top["versions"].entries().items()},
        sha256=hashes,
        recipe=tuple(one.text() for one in top["recipe"].items()),
        seed=top["seed"].integer(),
        sizes={name: one.numbers() for name, one in top["sizes"].entries().items()},
        before=_parse_cost(cost["before"]),
        after=_parse_cost(cost["after"]),
        channels=top["channels"].integer(),
        dims=dims,
        weights={name: _parse_weight(one) for name, one in top["weights"].entries().items()},
    )


def _parse_cost(found: Found) -> Cost:
    return Cost(**{name: one.integer() for name, one in found.fields(TARGETS).items()})


def _parse_dim(found: Found) -> DimEntry:
    one = found.fields("index name size rows counts level parts".split())
    parts = [part.fields(("size", "kept")) for part in one["parts"].items()]
    sizes = tuple(part["size"].integer() for part in parts)
    kept = [_parse_kept(p["kept"], n) for p, n in zip(parts, sizes, strict=True)]
    level = None if one["level"].value is None else one["level"].integer()
    made = DimEntry(one["index"].integer(), one["name"].text(), sizes, tuple(kept), level)
    told = one["size"].integer(), one["rows"].integer(), one["counts"].numbers()
    if told != (max(sizes, default=0), len(sizes), made.counts()):
        found.refuse("has other `size`, `rows` or `counts` than its `parts`")
    return made


def _parse_kept(found: Found, size: int) -> IntArray | None:
    """Positions of a part; a row of a head that is gone has none."""
    if found.value is None:
        return None
    kept = np.array(found.numbers(size), np.int64)
    if (np.diff(kept) <= 0).any():
        found.refuse("is not ascending")
    return kept


def _parse_weight(found: Found) -> WeightEntry:
    one = found.fields("source shape take origin".split())
    shape = one["shape"].numbers()
    takes: list[Take] = []
    for item in one["take"].items():
        takes.append(_parse_take(item, lengths(shape, takes)))
    origin = None if one["origin"].value is None else _parse_origin(one["origin"])
    return WeightEntry(one["source"].text(), shape, tuple(takes), origin)


def _parse_origin(found: Found) -> Origin:
    found.entries()
    try:
        return parse_origin(found.value)
    except ValueError as error:
        found.refuse(f"is none: {error}")


def _parse_take(found: Found, shape: Shape) -> Take:
    one = found.fields(("axis", "kept"), ("rows",))
    axis = one["axis"].integer(len(shape))
    rows: tuple[int, ...] = ()
    if "rows" in one:
        is_list = isinstance(one["rows"].value, list)
        rows = one["rows"].numbers(len(shape)) if is_list else (one["rows"].integer(len(shape)),)
        if not rows or len({axis, *rows}) <= len(rows):
            one["rows"].refuse("is not a list of other axes, each once")
    return Take(axis, one["kept"].positions(shape[axis], tuple(shape[a] for a in rows)), rows)
