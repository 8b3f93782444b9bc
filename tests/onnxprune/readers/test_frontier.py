"""A walk gives what one whole run gives, wherever values wait in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from onnxprune.backend.runtime import session
from onnxprune.model.graph import Model
from onnxprune.readers import frontier
from onnxprune.readers.frontier import Shelf, Walk, batches, part, sample
from onnxprune.samples.dataset import Dataset
from tests.builder import Builder

STEPS = [["v0"], ["v0", "v3"], ["x", "v2"], ["v5", "v1"]]


def net() -> ModelProto:
    """Layers around a sum that reaches back to the input, and a body that reads a layer."""
    b = Builder(0)
    first = b.node("MatMul", "x", b.weight(4, 4))  # v0
    second = b.node("Relu", first)  # v1
    third = b.node("MatMul", second, b.weight(4, 4))  # v2
    fourth = b.node("Add", third, first)  # v3
    inner = Builder(1)
    inner.node("Identity", second)
    inner.nodes[0].output[0] = "inside"
    body = inner.model({}, {"inside": ["n", 4]}).graph
    fifth = b.node("If", b.add(True, np.bool_), then_branch=body, else_branch=body)  # v4
    y = b.node("Sub", fourth, fifth)  # v5
    return b.model({"x": ["n", 4]}, {y: ["n", 4]})


def data(n: int, batch: int | None = None) -> Dataset:
    """Samples for it."""
    x = np.random.default_rng(3).standard_normal((n, 4)).astype(np.float32)
    return Dataset({"x": x}, {}, {"x": 0}, np.arange(n), batch=batch)


def whole(model: Model, feeds: Any, names: list[str]) -> list[Any]:
    """Values of one run of the whole model."""
    wanted = [n for n in names if n not in feeds]
    found = session(part(model, model.nodes, wanted, {}), optimize=False).run(feeds, wanted)
    known = {**feeds, **dict(zip(wanted, found, strict=True))}
    return [known[n] for n in names]


@pytest.mark.parametrize("in_memory", [0, 100, 2**20])
def test_a_walk_gives_what_whole_runs_give(
    in_memory: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each node runs once; what waits may lie in files, which are gone in the end."""
    monkeypatch.setattr(frontier, "IN_MEMORY", in_memory)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    model = Model(net())
    known = batches([data(5), data(4).subset([0, 2, 3])], size=2)
    walk = Walk(known, [set(names) for names in STEPS])
    for names in STEPS:
        for batch, values in zip(known, walk.step(model, names), strict=True):
            for got, wanted in zip((values[n] for n in names), whole(model, batch.feeds, names),
                                   strict=True):  # fmt: skip
                np.testing.assert_allclose(got, wanted, atol=1e-6)
        is_spilled = bool([*tmp_path.glob("onnxprune-*")])
        assert is_spilled == (in_memory < 2**20)
    walk.shelf.close()
    assert not [*tmp_path.glob("onnxprune-*")]


def test_what_nothing_asks_for_is_forgotten() -> None:
    """The last step leaves nothing."""
    model, known = Model(net()), batches([data(3)])
    walk = Walk(known, [set(names) for names in STEPS])
    kept = []
    for names in STEPS:
        list(walk.step(model, names))
        kept.append(walk.shelf.names())
    assert kept == [{"v0"}, {"v1", "v2", "v3"}, {"v1", "v3"}, set()]


def test_weights_may_change_behind_what_ran() -> None:
    """What has run stays what it was; what follows sees the new weights."""
    proto, known = net(), batches([data(3)])
    changed = ModelProto()
    changed.CopyFrom(proto)
    for tensor in changed.graph.initializer[:2]:
        tensor.raw_data = (2 * np.frombuffer(tensor.raw_data, np.float32)).tobytes()
    walk = Walk(known, [{"v0"}, {"v2"}])
    [first] = walk.step(Model(proto), ["v0"])
    [second] = walk.step(Model(changed), ["v2"])
    old, new = whole(Model(proto), known[0].feeds, ["v0", "v2"])
    np.testing.assert_allclose(first["v0"], old)
    np.testing.assert_allclose(second["v2"], 2 * new, rtol=1e-5)


@pytest.mark.parametrize("in_memory", [0, 2**20])
def test_a_shelf_keeps_changes(in_memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory or in files; of all batches of a value, and of no other."""
    monkeypatch.setattr(frontier, "IN_MEMORY", in_memory)
    shelf = Shelf()
    for batch in range(2):
        shelf.put("a", batch, np.full(3, batch, np.float32))
        shelf.put("b", batch, np.full((2, 2), batch, np.float32))
    shelf.change("a", lambda array: array * 2 + 1)
    assert [shelf.get("a", batch).tolist() for batch in range(2)] == [[1] * 3, [3] * 3]
    assert shelf.get("b", 1).tolist() == [[1, 1], [1, 1]]
    assert "a" in shelf
    shelf.drop(["a"])
    assert "a" not in shelf
    assert shelf.names() == {"b"}
    shelf.close()
    assert not shelf.names()


def test_batches_hold_samples_of_one_fold() -> None:
    """Each with its number in the user's data; where the graph fixes the batch, of that size."""
    found = batches([data(9).subset([0, 3, 6]), data(9).subset([1, 8])], size=2)
    assert [(b.samples.tolist(), b.fold) for b in found] == [([0, 3], 0), ([6], 0), ([1, 8], 1)]
    np.testing.assert_array_equal(found[2].feeds["x"], data(9).arrays["x"][[1, 8]])
    fixed = batches([data(9, batch=3)], size=2)
    assert [b.samples.tolist() for b in fixed] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_a_sample_has_its_part_of_each_value() -> None:
    """Heads times batch split alike; what has no batch axis goes to the first sample."""
    values = {"plain": np.arange(4), "heads": np.arange(12), "odd": np.arange(3),
              "one": np.array(5)}  # fmt: skip
    got = [{k: v.tolist() for k, v in sample(values, values, at, 4, {}).items()} for at in (0, 3)]
    assert got[0] == {"plain": [0], "heads": [0, 1, 2], "odd": [0, 1, 2], "one": 5}
    assert got[1] == {"plain": [3], "heads": [9, 10, 11], "odd": [], "one": 5}
