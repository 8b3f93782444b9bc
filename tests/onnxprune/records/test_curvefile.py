"""A file of curves gives back what was measured, and refuses to be anything else."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from onnxprune import sensitivity
from onnxprune.errors import CurvesError, FileError
from onnxprune.identity.dims import Dims
from onnxprune.model.graph import Model
from onnxprune.normal.normalize import normalize
from onnxprune.records import curvefile
from onnxprune.records.curvefile import SCHEMA_FILE
from tests.measured import net, samples
from tests.oracle import flow_of

Document = dict[str, Any]


@cache
def case() -> Document:
    """The curves of a small net."""
    found = sensitivity(net(), data=samples()).curves
    assert found is not None
    return found


def document() -> Document:
    """The same, to be spoilt."""
    return copy.deepcopy(case())


def subject(seed: int = 0) -> tuple[Model, Dims]:
    """The net as it was measured."""
    found = flow_of(net(seed))
    return normalize(Model(net(seed))), found.dims


def test_curves_survive_the_file(tmp_path: Path) -> None:
    """Every number comes back as it was, and the schema describes the file."""
    path = tmp_path / "curves.json"
    curvefile.write(curvefile.read(document()), path)
    jsonschema.validate(json.loads(path.read_text()), json.loads(SCHEMA_FILE.read_text()))
    read = curvefile.read(path)
    assert curvefile.document(read) == case()
    assert {"widths", "damage", "order"} <= case()["dims"][0].keys()
    assert [one["size"] for one in case()["dims"]] == [32, 24]


def test_curves_fit_the_model_that_was_measured() -> None:
    """By Dim index, with one number for each channel."""
    model, dims = subject()
    found = curvefile.restore(curvefile.read(document()), model, dims)
    assert {len(one.order) for one in found.values()} == {32, 24}
    assert found.keys() == {dim.index for dim in dims.free}


def test_another_model_is_refused() -> None:
    """The same Dims with other weights were not measured."""
    model, dims = subject(seed=1)
    with pytest.raises(CurvesError, match="another model"):
        curvefile.restore(curvefile.read(document()), model, dims)


def test_other_versions_are_named() -> None:
    """Another version of a package may normalise otherwise."""
    model, dims = subject(seed=1)
    content = document()
    content["versions"]["numpy"] = "0.0.1"
    with pytest.raises(CurvesError) as found:
        curvefile.restore(curvefile.read(content), model, dims)
    assert "numpy 0.0.1, here" in found.value.where


@pytest.mark.parametrize("key", ["name", "index"])
def test_other_dims_are_refused(key: str) -> None:
    """A file may name the right hash and the wrong Dims."""
    model, dims = subject()
    content = document()
    content["dims"][0][key] = 77 if key == "index" else "elsewhere"
    with pytest.raises(CurvesError, match="no Dim of this model"):
        curvefile.restore(curvefile.read(content), model, dims)


def _put(*path: Any, value: Any) -> Callable[[Document], None]:
    def spoil(content: Document) -> None:
        at: Any = content
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value

    return spoil


SPOILT = {
    "schema": _put("schema", value=2),
    "no hash": _put("sha256", "normalised", value="00"),
    "unknown key": _put("sha256", "more", value="00"),
    "text for a number": _put("dims", 0, "damage", 1, value="0.5"),
    "true for a number": _put("dims", 0, "damage", 1, value=True),
    "negative": _put("dims", 0, "order", 0, value=-1),
    "too large": _put("dims", 0, "order", 0, value=10**400),
    "falling damage": _put("dims", 0, "damage", 0, value=9.0),
    "rising widths": _put("dims", 0, "widths", 3, value=1.0),
    "wide": _put("dims", 0, "widths", 0, value=1.5),
    "short": _put("dims", 0, "damage", value=[0.0]),
    "lengths": _put("dims", 0, "order", value=[1, 2]),
    "size": _put("dims", 0, "size", value=5),
    "no parts": _put("dims", 0, "parts", value=[]),
    "twice": lambda content: content["dims"].append(content["dims"][0]),
    "no list": _put("dims", value={}),
    "missing": lambda content: content.pop("seed"),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=list(SPOILT))
def test_what_is_wrong_is_refused(spoil: Callable[[Document], None]) -> None:
    """With the place of the value, and no other exception."""
    content = document()
    spoil(content)
    with pytest.raises(CurvesError):
        curvefile.read(content)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{\"schema\": NaN}", b"[" * 10**5, b"\xff"])
def test_what_is_no_json_is_refused(raw: bytes, tmp_path: Path) -> None:
    """The message names the file, and says what it ought to be."""
    path = tmp_path / "curves.json"
    path.write_bytes(raw)
    with pytest.raises(CurvesError) as found:
        curvefile.read(path)
    assert found.value.where == str(path)
    assert "plan" not in str(found.value)


def test_infinity_in_disguise_is_refused(tmp_path: Path) -> None:
    """JSON reads 1e999 as infinity."""
    path = tmp_path / "curves.json"
    path.write_text(json.dumps(document()).replace('"order": [', '"order": [1e999, ', 1))
    with pytest.raises(CurvesError, match="not a number"):
        curvefile.read(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """As a file, not as a broken one."""
    with pytest.raises(FileError, match="file of curves"):
        curvefile.read(tmp_path / "none.json")


def test_orders_rank_every_channel() -> None:
    """Channels of a Dim are worth something different each."""
    for one in case()["dims"]:
        assert len(set(one["order"])) == len(one["order"])
        assert np.all(np.diff(one["damage"]) >= 0)
