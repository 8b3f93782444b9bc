"""Shared weights: apart for repair, one again where nothing changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

import onnxprune
from onnxprune.cleanup.cleaning import with_weights
from onnxprune.model.graph import Model
from onnxprune.repair import copies
from onnxprune.repair.copies import apart, copied, elements, together
from onnxprune.shape.shapes import Array
from tests.builder import Builder
from tests.oracle import run

WORDS, WIDTH = 8, 24


def tied(seed: int = 0, *, heads: int = 1, inner: int = 160, words: int = WORDS) -> ModelProto:
    """A table, a residual layer, and heads that read the table again."""
    b = Builder(seed)
    table = b.weight(words, WIDTH)
    h = b.node("ReduceMean", b.node("Gather", table, "x"), b.ints(1), keepdims=0)
    inside = b.node("Relu", b.node("MatMul", h, b.weight(WIDTH, inner)))
    h = b.node("Add", h, b.node("MatMul", inside, b.weight(inner, WIDTH)))
    outs = [b.node("Gemm", h, table, transB=1) for _ in range(heads)]
    shapes: dict[str, list[int | str]] = {y: ["n", words] for y in outs}
    return b.model({"x": ["n", 5]}, shapes, types={"x": TensorProto.INT64})


def feeds(count: int, words: int = WORDS) -> dict[str, Array]:
    """Word numbers."""
    return {"x": np.random.default_rng(1).integers(0, words, (count, 5))}


def test_every_use_but_the_first_gets_a_copy() -> None:
    """The model computes what it did."""
    proto = tied(heads=2, inner=400)
    model = Model(proto)
    slots = copied(model, Model(tied(heads=2, inner=800)))
    assert len(slots) == 2
    made = apart(model, slots)
    assert elements(made) == elements(model) + 2 * WORDS * WIDTH
    for ours, theirs in zip(run(proto, feeds(3)), run(made.proto, feeds(3)), strict=True):
        assert np.array_equal(ours, theirs)


def test_nothing_is_copied_where_the_model_would_grow() -> None:
    """Beyond the original's size, or by more than a small share."""
    model = Model(tied(inner=100))
    assert copied(model, Model(tied(inner=200)))
    assert not copied(model, model)
    large = Model(tied(inner=20))
    assert not copied(large, Model(tied(inner=200)))


@pytest.mark.parametrize("changed", [(), (0,), (1,), (2,), (1, 2), (0, 1, 2)])
def test_what_stays_equal_is_one_again(changed: tuple[int, ...]) -> None:
    """Whichever of its readers changed."""
    model = Model(tied(heads=2))
    readers = model.consumers["w0"]
    made = apart(model, [(node.key, slot) for node, slot in readers[1:]])
    new = {}
    for i in changed:
        node, slot = readers[i]
        new[node.key, slot] = made.array(made.producer[node.key].inputs[slot]) + i + 1
    other = with_weights(made, new) if new else made
    found = together(other, model, made)
    tables = [n for n, t in found.initializers.items() if tuple(t.dims) == (WORDS, WIDTH)]
    assert len(tables) == min(len(changed) + 1, 3)
    for ours, theirs in zip(run(other.proto, feeds(3)), run(found.proto, feeds(3)), strict=True):
        assert np.array_equal(ours, theirs)
    if not changed:
        assert found.initializers.keys() == model.initializers.keys()


@pytest.mark.parametrize(("target", "tables"), [("macs", 2), ("params", 1)])
def test_a_tied_head_is_refit_where_only_macs_count(
    target: str, tables: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A copy would take what a budget in parameters gave."""
    monkeypatch.setattr(copies, "MOST", 0.5)
    np.savez(tmp_path / "data.npz", **feeds(300, 50))
    model = tied(inner=128, words=50)
    data = tmp_path / "data.npz"  # the head loses half of its inputs
    made = onnxprune.prune(
        model, data=data, target={target: 0.9}, keep={"w0#2": 0.5}, exact=True, latency_s=0
    ).model
    assert made is not None
    assert sum(50 in t.dims and len(t.dims) == 2 for t in made.graph.initializer) == tables
