"""A plan file gives back the plan it was made of, and refuses to be anything else."""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from onnxprune.cutting.compact import Take
from onnxprune.errors import FileError, PlanError
from onnxprune.model.graph import Model
from onnxprune.records import planfile
from onnxprune.records.planfile import SCHEMA_FILE
from onnxprune.records.untrusted import Found
from tests.planned import Planned, heads, planned

ROOT = Path(__file__).parents[3]
MODELS = sorted((ROOT / "models").glob("*/model.onnx"))
SCHEMA = json.loads(SCHEMA_FILE.read_text())
Document = dict[str, Any]


@cache
def case() -> Planned:
    """A small plan with heads, rows and a folded weight."""
    return planned(heads())


def document() -> Document:
    """Its JSON, to be spoilt."""
    return copy.deepcopy(case().document)


def parsed(content: Document) -> planfile.PlanFile:
    """What a file with this content says."""
    return planfile.parse(Found(json.loads(json.dumps(content))))


def assert_restored(found: Planned, path: Path) -> None:
    """Written and read, the plan is the same, and cuts the same weights."""
    planfile.write(found.written, path)
    read = planfile.read(path)
    assert planfile.document(read) == found.document
    plan = planfile.restore(read, found.dims)
    assert np.array_equal(plan.alive, found.plan.alive)
    assert (plan.levels, plan.cost, plan.whole) == (
        found.plan.levels,
        found.plan.cost,
        found.plan.whole,
    )
    assert_cut(read, found)


def assert_cut(read: planfile.PlanFile, found: Planned) -> None:
    """What the file says to take gives the weights of the cut model."""
    made = found.cut.model
    for name, entry in read.weights.items():
        array = found.normalised.array(entry.source)
        assert array.shape == entry.shape
        for take in entry.takes:
            array = take.apply(array)
        assert np.array_equal(array, made.array(name))


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parent.name)
def test_plans_of_real_models(path: Path, tmp_path: Path) -> None:
    """They fit the schema and come back whole."""
    found = planned(path)
    jsonschema.validate(found.document, SCHEMA)
    assert_restored(found, tmp_path / "a.plan.json")
    for which, model in zip(
        ("original", "normalised", "cut"),
        (found.original, found.normalised, found.cut.model),
        strict=True,
    ):
        planfile.expect(found.written, which, model)


def test_a_plan_with_heads(tmp_path: Path) -> None:
    """Rows of their own, a head that is gone, a turned weight."""
    found = case()
    jsonschema.validate(found.document, SCHEMA)
    assert_restored(found, tmp_path / "a.plan.json")
    assert any(entry.origin and entry.origin.steps for entry in found.written.weights.values())
    assert any(len(entry.sizes) > 1 for entry in found.written.dims)


def test_the_same_plan_has_the_same_bytes(tmp_path: Path) -> None:
    """Two runs over one model."""
    for name in "ab":
        planfile.write(planned(heads()).written, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("rows", [(0,), (0, 1), (1, 0)])
def test_takes_with_rows_survive(rows: tuple[int, ...]) -> None:
    """One axis of rows as a number, several as a list."""
    content = document()
    shape = [2, 3, 4]
    kept = np.argsort(np.random.default_rng(0).random([shape[a] for a in rows] + [4]))[..., :2]
    take = {"axis": 2, "rows": rows[0] if len(rows) == 1 else list(rows), "kept": kept.tolist()}
    entry = {"source": "w", "shape": shape, "take": [take], "origin": None}
    content["weights"] = {"w": entry}
    jsonschema.validate(content, SCHEMA)
    (found,) = parsed(content).weights["w"].takes
    assert (found.axis, found.rows) == (2, rows)
    assert np.array_equal(found.kept, kept)
    assert planfile.document(parsed(content)) == content
    array = np.arange(24).reshape(shape)
    assert np.array_equal(found.apply(array), Take(2, kept, rows).apply(array))


def test_another_model_is_refused() -> None:
    """One bit of a weight is another model; the hint says what to do."""
    found = case()
    other = type(found.original.proto)()
    other.CopyFrom(found.original.proto)
    raw = bytearray(other.graph.initializer[0].raw_data)
    raw[0] ^= 1
    other.graph.initializer[0].raw_data = bytes(raw)
    with pytest.raises(PlanError, match="original model is not the one") as error:
        planfile.expect(found.written, "original", Model(other))
    assert error.value.hint == "give that model"


def test_other_versions_are_named() -> None:
    """A normalised model may differ because the plan was made with another onnx."""
    content = document()
    content["versions"]["onnx"] = "0.1"
    with pytest.raises(PlanError, match="normalised model") as error:
        planfile.expect(parsed(content), "normalised", case().original)
    assert "onnx 0.1, here" in error.value.where
    assert "versions" in error.value.hint


def test_other_dims_are_refused() -> None:
    """A plan cannot be laid over a model with other channels."""
    other = planned(MODELS[0])
    with pytest.raises(PlanError, match="other Dims"):
        planfile.restore(case().written, other.dims)


def _entry(content: Document) -> Document:
    """A Dim that was cut."""
    return next(d for d in content["dims"] if d["parts"][0]["kept"] is not None)


def _kept(content: Document) -> list[int]:
    """Positions of a part that keeps several."""
    parts = (part["kept"] for dim in content["dims"] for part in dim["parts"])
    return next(kept for kept in parts if kept is not None and len(kept) > 1)


def _take(content: Document) -> Document:
    return next(w for w in content["weights"].values() if w["take"])["take"][0]


SPOILS: dict[str, Callable[[Document], Any]] = {
    "a Dim less": lambda d: d["dims"].pop(),
    "a renamed Dim": lambda d: _entry(d).update(name="other"),
    "another level": lambda d: _entry(d).update(level=0),
    "a level too high": lambda d: _entry(d).update(level=10**6),
    "more channels": lambda d: d.update(channels=d["channels"] + 1),
    "an index that is none": lambda d: _entry(d).update(index=10**6),
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS.keys())
def test_a_plan_that_fits_no_dims_is_refused(spoil: Callable[[Document], Any]) -> None:
    """What can only be seen beside the model."""
    content = document()
    spoil(content)
    with pytest.raises(PlanError):
        planfile.restore(parsed(content), case().dims)


def _twice(content: Document, first: list[int], second: list[int]) -> None:
    """Two takes from one axis."""
    takes = [{"axis": 0, "kept": kept} for kept in (first, second)]
    content["weights"] = {"w": {"source": "w", "shape": [4], "take": takes, "origin": None}}


def test_takes_follow_each_other() -> None:
    """The second counts over what the first left."""
    content = document()
    _twice(content, [1, 3], [1])
    one, two = parsed(content).weights["w"].takes
    assert two.apply(one.apply(np.arange(4))).tolist() == [3]


BROKEN: dict[str, Callable[[Document], Any]] = {
    "another schema": lambda d: d.update(schema=2),
    "no schema": lambda d: d.pop("schema"),
    "no weights": lambda d: d.pop("weights"),
    "an unknown key": lambda d: d.update(more=1),
    "a short hash": lambda d: d["sha256"].update(cut="abc"),
    "a hash that is none": lambda d: d["sha256"].update(cut="g" * 64),
    "a negative seed": lambda d: d.update(seed=-1),
    "a seed that is true": lambda d: d.update(seed=True),
    "a float": lambda d: d["cost"]["before"].update(macs=1.5),
    "a huge number": lambda d: d["cost"]["before"].update(macs=10**300),
    "a missing cost": lambda d: d["cost"]["after"].pop("macs"),
    "a recipe of numbers": lambda d: d.update(recipe=[1]),
    "sizes that are none": lambda d: d.update(sizes={"x": [1, -1]}),
    "Dims in an object": lambda d: d.update(dims={}),
    "a Dim twice": lambda d: d["dims"].append(d["dims"][0]),
    "a position twice": lambda d: _kept(d).__setitem__(0, _kept(d)[1]),
    "positions that fall": lambda d: _kept(d).reverse(),
    "a negative position": lambda d: _entry(d)["parts"][0].update(kept=[-1]),
    "a position too high": lambda d: _entry(d)["parts"][0].update(kept=[10**6]),
    "other counts": lambda d: _entry(d).update(counts=[10**6]),
    "a Dim without parts": lambda d: _entry(d).update(parts=[]),
    "a take that is negative": lambda d: _take(d).update(kept=[-1]),
    "a take too high": lambda d: _take(d).update(kept=[10**6]),
    "a take beyond 64 bits": lambda d: _take(d).update(kept=[10**30]),
    "a take twice": lambda d: _take(d).update(kept=[0, 0]),
    "a take of nothing": lambda d: _take(d).update(kept=[]),
    "a take beyond what the one before left": lambda d: _twice(d, [0, 1], [2]),
    "a take of text": lambda d: _take(d).update(kept=["0"]),
    "nested positions without rows": lambda d: _take(d).update(kept=[[0]]),
    "an axis that is none": lambda d: _take(d).update(axis=9),
    "rows along the axis itself": lambda d: _take(d).update(rows=_take(d)["axis"]),
    "no rows": lambda d: _take(d).update(rows=[]),
    "fewer rows than there are": lambda d: _take(d).update(axis=0, rows=1, kept=[[0]]),
    "rows of unlike length": lambda d: _take(d).update(axis=1, rows=0, kept=[[0], [0, 1]] * 4),
    "an origin of nothing": lambda d: next(iter(d["weights"].values())).update(origin={}),
    "an origin of text": lambda d: next(iter(d["weights"].values())).update(origin="w"),
    "a shape that is none": lambda d: next(iter(d["weights"].values())).update(shape=[-1]),
}


@pytest.mark.parametrize("spoil", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_plan_is_refused(spoil: Callable[[Document], Any]) -> None:
    """Whatever the file says, the error is one, and says what to do."""
    content = document()
    spoil(content)
    with pytest.raises(PlanError) as error:
        parsed(content)
    assert error.value.hint


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema": NaN}', b"[" * 100_000,
     b'{"schema": 1, "schema": 1}', b'{"schema": ' + b"9" * 5000 + b"}"],
    ids=["empty", "cut short", "a list", "null", "no text", "NaN", "deep", "twice", "long number"],
)  # fmt: skip
def test_what_is_no_json_is_refused(content: bytes, tmp_path: Path) -> None:
    """With the file's name."""
    path = tmp_path / "a.plan.json"
    path.write_bytes(content)
    with pytest.raises(PlanError) as error:
        planfile.read(path)
    assert str(path) in error.value.where


def test_files_that_are_not_there(tmp_path: Path) -> None:
    """Missing, or a folder."""
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(FileError, match="cannot read the plan"):
            planfile.read(path)


def test_a_plan_is_not_written_over_another(tmp_path: Path) -> None:
    """Unless asked to."""
    path = tmp_path / "a.plan.json"
    path.write_text("mine")
    with pytest.raises(FileError, match="exists"):
        planfile.write(case().written, path)
    assert path.read_text() == "mine"
    planfile.write(case().written, path, overwrite=True)
    assert planfile.read(path).seed == 7


def test_the_schema_is_shipped() -> None:
    """A pattern of pyproject.toml takes it along, although `schemas` is no package."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["onnxprune"]
    shipped = {path for pattern in patterns for path in (ROOT / "onnxprune").glob(pattern)}
    assert SCHEMA_FILE in shipped
