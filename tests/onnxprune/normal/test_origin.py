"""An origin's steps, done again on the source, give the weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxprune.model.storage import load
from onnxprune.model.store import Array
from onnxprune.normal.normalize import normalize_with_origins, stored_weights
from onnxprune.normal.origin import NoReplay, Origin, parse
from tests.builder import Builder

SOURCE = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def moved(b: Builder, value: str, shape: tuple[int, ...], kind: str, n: int) -> tuple[str, Any]:
    """A node that moves data, and the shape of what it makes."""
    if kind == "Transpose":
        perm = np.random.default_rng(n).permutation(len(shape)).tolist()
        return b.node("Transpose", value, perm=perm), tuple(shape[a] for a in perm)
    if kind == "Reshape":
        flat = b.node("Reshape", value, b.ints(-1, shape[-1]))
        return flat, (int(np.prod(shape[:-1])), shape[-1])
    axis = n % len(shape)
    size = shape[axis]
    if kind == "Concat":
        twice = b.node("Concat", value, value, axis=axis)
        return twice, (*shape[:axis], 2 * size, *shape[axis + 1 :])
    bounds = [(0, size, 1), (size - 1, -(2**63), -1), (0, 2**63 - 1, 2), (-1, size, 1)][n % 4]
    cut = b.node("Slice", value, *(b.ints(v) for v in (*bounds[:2], axis, bounds[2])))
    left = len(range(size)[bounds[0] : bounds[1] : bounds[2]])
    return cut, (*shape[:axis], left, *shape[axis + 1 :])


@given(st.lists(st.tuples(st.sampled_from("Transpose Reshape Slice Concat".split()),
                          st.integers(0, 11)), min_size=1, max_size=4))  # fmt: skip
def test_replaying_gives_the_folded_weight(steps: list[tuple[str, int]]) -> None:
    """For any chain of movements, through JSON and back."""
    b = Builder(0)
    value, shape = b.add(SOURCE), SOURCE.shape
    for kind, n in steps:
        value, shape = moved(b, value, shape, kind, n)
    flat = b.node("Reshape", b.node("Odd", value, domain="unknown"), b.ints(-1))
    model = b.model({"x": [1]}, {b.node("Mul", flat, "x"): ["n"]})
    model.opset_import.add(domain="unknown", version=1)
    made = normalize_with_origins(load(model))
    stored = {name: numpy_helper.to_array(t) for name, t in stored_weights(load(model)).items()}
    origin = parse(made.origins[value].json())
    assert origin.sources == ("w0",)
    assert np.array_equal(origin.replay(stored.__getitem__), made.model.array(value))


@pytest.mark.parametrize(
    "steps",
    [
        [{"op": "fold"}],
        [{"op": "Odd"}],
        [{"op": "Transpose", "perm": [0, 0, 1]}],
        [{"op": "Transpose", "perm": "no"}],
        [{"op": "Transpose"}],
        [{"op": "Reshape", "shape": [2**62, 2**62]}],
        [{"op": "Reshape", "shape": [-1]}],
        [{"op": "Reshape", "shape": [-2, -12]}],
        [{"op": "Slice", "axes": [7], "starts": [0], "ends": [1], "steps": [1]}],
        [{"op": "Slice", "axes": [0], "starts": [0], "ends": [1], "steps": [0]}],
        [{"op": "Slice", "axes": [0], "starts": [], "ends": [1], "steps": [1]}],
        [{"op": "Slice", "axes": [0], "starts": ["a"], "ends": [1], "steps": [1]}],
        [{"op": "Concat", "axis": 9, "of": [{"source": "w", "steps": []}]}],
        [{"op": "Concat", "axis": 0, "of": []}],
        [{"op": "Concat", "axis": 0, "of": [{"steps": []}]}],
        [{"op": "Concat", "axis": 0, "of": 3}],
    ],
)
def test_steps_that_fit_nothing_are_refused(steps: list[dict[str, Any]]) -> None:
    """Whatever a file says, there is one kind of error."""
    with pytest.raises(NoReplay):
        Origin(("w",), tuple(steps)).replay(lambda _: SOURCE)


def test_nesting_has_an_end() -> None:
    """A file cannot exhaust the stack."""
    found: dict[str, Any] = {"source": "w", "steps": []}
    for _ in range(200):
        found = {"source": "w", "steps": [{"op": "Concat", "axis": 0, "of": [found]}]}
    with pytest.raises(NoReplay, match="nested"):
        parse(found).replay(lambda _: SOURCE)


@pytest.mark.parametrize(
    "found",
    [{}, {"source": 3, "steps": []}, {"source": "w"}, {"source": "w", "steps": [{}]},
     {"sources": ["w", None], "steps": []}, {"source": "w", "steps": ["fold"]},
     {"sources": "w", "steps": []}, {"source": "w", "steps": [{"op": "Transpose"}]},
     {"source": "w", "steps": [{"op": "Transpose", "perm": ["0"]}]}],
)  # fmt: skip
def test_what_is_no_origin_is_refused(found: dict[str, Any]) -> None:
    """Before any of it is used."""
    with pytest.raises(ValueError, match="an origin"):
        parse(found)


def test_several_sources_have_no_order() -> None:
    """Without a Concat there is nothing that says where each source went."""
    sources: dict[str, Array] = {"a": SOURCE, "b": SOURCE}
    with pytest.raises(NoReplay, match="several sources"):
        Origin(("a", "b")).replay(sources.__getitem__)
