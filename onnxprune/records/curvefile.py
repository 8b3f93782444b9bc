"""`curves.json`: what each Dim's removal costs, measured once for many budgets."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from onnxprune.errors import CurvesError
from onnxprune.identity.dims import Dims
from onnxprune.identity.fields import Shape
from onnxprune.model.digest import digest
from onnxprune.model.graph import Model
from onnxprune.model.storage import write_whole
from onnxprune.planning.damage import Curve, Damage
from onnxprune.planning.scores import FloatArray
from onnxprune.records.planrecord import changes, versions
from onnxprune.records.untrusted import Found, read_json

SCHEMA = 1
SCHEMA_FILE = Path(__file__).parents[1] / "schemas" / "curves.schema.json"
HINT = "let `onnxprune sensitivity` write the curves again"
HASHES = ("normalised", "samples")


@dataclass(frozen=True, eq=False)
class DimCurve:
    """What was measured about one Dim."""

    index: int
    name: str
    sizes: tuple[int, ...]
    """Channels of each part."""
    curve: Curve
    order: FloatArray
    """Shape (channels of the Dim,), part after part: larger is worth more."""


@dataclass(frozen=True, eq=False)
class CurveFile:
    """Everything that a file of curves says; as a fact, curves that need not be measured."""

    versions: Mapping[str, str]
    sha256: Mapping[str, str]
    """Of the `normalised` model, after clean-ups, and of the `samples` that were looked at."""
    seed: int
    sizes: Mapping[str, Shape]
    """Input shapes at which cost is counted."""
    channels: int
    dims: tuple[DimCurve, ...]
    """Those that were measured."""


def record(
    damage: Damage,
    dims: Dims,
    *,
    model: Model,
    samples: str,
    seed: int,
    sizes: Mapping[str, Shape],
) -> CurveFile:
    """What stands in the file.

    Args:
        model: normalised, after clean-ups.
        samples: their hash.
    """
    entries = [
        DimCurve(index, dim.name, tuple(map(len, dim.parts)), curve, damage.orders[index])
        for index, curve in sorted(damage.curves.items())
        for dim in [dims.dims[index]]
    ]
    hashes = dict(zip(HASHES, (digest(model), samples), strict=True))
    return CurveFile(versions(), hashes, seed, dict(sizes), dims.count, tuple(entries))


def restore(written: CurveFile, model: Model, dims: Dims) -> dict[int, DimCurve]:
    """What was measured, by Dim index.

    Raises: CurvesError: it was measured on another model.
    """
    if written.sha256["normalised"] != digest(model):
        changed = changes(written.versions)
        raise CurvesError(
            "the curves were measured on another model",
            where="; ".join(changed),
            hint="use the versions that the curves were measured with, or measure them again"
            if changed
            else "measure this one with `onnxprune sensitivity`, or leave out --curves",
        )
    free = {dim.index: (dim.name, tuple(map(len, dim.parts))) for dim in dims.free}
    for one in written.dims:
        if written.channels != dims.count or free.get(one.index) != (one.name, one.sizes):
            raise CurvesError(
                f"`{one.name}`, with {list(one.sizes)} channels, is no Dim of this model that can "
                "be cut",
                hint=HINT,
            )
    return {one.index: one for one in written.dims}


# --- as JSON ------------------------------------------------------------------------------------


def document(written: CurveFile) -> dict[str, Any]:
    """The curves as they stand in the file; `schemas/curves.schema.json` describes it."""
    return {
        "schema": SCHEMA,
        "versions": dict(written.versions),
        "sha256": dict(written.sha256),
        "seed": written.seed,
        "sizes": {name: list(shape) for name, shape in written.sizes.items()},
        "channels": written.channels,
        "dims": [_dim_json(one) for one in written.dims],
    }


def _dim_json(one: DimCurve) -> dict[str, Any]:
    return {
        "index": one.index,
        "name": one.name,
        "size": max(one.sizes),
        "parts": list(one.sizes),
        "widths": one.curve.widths.tolist(),
        "damage": one.curve.damage.tolist(),
        "order": [int(n) if n.is_integer() else n for n in one.order.tolist()],
    }


def write(written: CurveFile, path: str | Path, *, overwrite: bool = False) -> None:
    """Write curves, one Dim to a line.

    Raises: FileError: it cannot be written; what stood there stays.
    """
    write_whole(path, writer(written), overwrite=overwrite)


def writer(written: CurveFile) -> Callable[[BinaryIO], None]:
    """What writes curves into an open file."""
    content = document(written)
    dims = ",\n    ".join(json.dumps(one, allow_nan=False) for one in content.pop("dims"))
    head = ",\n".join(f"  {json.dumps(key)}: {json.dumps(v)}" for key, v in content.items())
    text = f'{{\n{head},\n  "dims": [\n    {dims}\n  ]\n}}\n'

    def put(file: BinaryIO) -> None:
        file.write(text.encode())

    return put


def read(path: str | Path | Mapping[str, Any]) -> CurveFile:
    """Read curves that anyone may have written: a file, or its JSON as plain values.

    Raises:
        FileError: it cannot be read.
        CurvesError: it holds no curves, or of another schema.
    """
    if isinstance(path, Mapping):
        return parse(Found(dict(path), kind=CurvesError, hint=HINT))
    try:
        return parse(read_json(Path(path), name="file of curves", kind=CurvesError, hint=HINT))
    except CurvesError as error:
        raise CurvesError(error.what, where=error.where or str(path), hint=error.hint) from error


def parse(found: Found) -> CurveFile:
    """Curves from their JSON.

    Raises: CurvesError: says which value is wrong.
    """
    if found.entries().get("schema", Found(None)).value != SCHEMA:
        raise CurvesError(
            f"this is no file of curves of schema {SCHEMA}",
            hint="give what `onnxprune sensitivity` wrote, or measure again with this version",
        )
    top = found.fields("schema versions sha256 seed sizes channels dims".split())
    dims = tuple(_parse_dim(one) for one in top["dims"].items())
    if len({one.index for one in dims}) < len(dims):
        top["dims"].refuse("lists a Dim twice")
    return CurveFile(
        versions={name: one.text() for name, one in top["versions"].entries().items()},
        sha256={name: one.sha256() for name, one in top["sha256"].fields(HASHES).items()},
        seed=top["seed"].integer(),
        sizes={name: one.numbers() for name, one in top["sizes"].entries().items()},
        channels=top["channels"].integer(),
        dims=dims,
    )


def _parse_dim(found: Found) -> DimCurve:
    one = found.fields("index name size parts widths damage order".split())
    sizes, order = one["parts"].numbers(), one["order"].reals()
    if not sizes or one["size"].integer() != max(sizes) or len(order) != sum(sizes):
        found.refuse("has another `size`, or not one number in `order` for each channel")
    curve = Curve(one["widths"].reals(), one["damage"].reals())
    if not 2 <= len(curve.widths) == len(curve.damage):
        found.refuse("has not one `damage` for each of at least two `widths`")
    if curve.widths[0] > 1 or (np.diff(curve.widths) > 0).any():
        one["widths"].refuse("does not fall from 1")
    if (np.diff(curve.damage) < 0).any():
        one["damage"].refuse("does not rise")
    return DimCurve(one["index"].integer(), one["name"].text(), sizes, curve, order)
