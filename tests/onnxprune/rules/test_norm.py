"""Normalisations: their vectors follow; those over channels are approximate."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto

from tests.builder import Builder
from tests.oracle import assert_cut_equals_mask, cut_at, flow_of, random_removed

C = 6
seeds = st.integers(0, 1000)
Middle = Callable[[Builder, str], str]


def images(seed: int, middle: Middle, opset: int = 21) -> ModelProto:
    """Convolution > norm > convolution."""
    b = Builder(seed)
    x = b.node("Conv", "x", b.weight(C, 3, 1, 1), b.weight(C))
    x = b.node("Conv", middle(b, x), b.weight(3, C, 1, 1))
    return b.model({"x": ["n", 3, 4, 4]}, {x: ["n", 3, 4, 4]}, opset=opset)


def tokens(seed: int, middle: Middle) -> ModelProto:
    """Product > norm > product."""
    b = Builder(seed)
    x = b.node("MatMul", "x", b.weight(3, C))
    x = b.node("MatMul", middle(b, x), b.weight(C, 3))
    return b.model({"x": ["n", 4, 3]}, {x: ["n", 4, 3]}, opset=23)


def batch(b: Builder, x: str) -> str:
    variance = b.add(b.rng.uniform(0.5, 2, C))
    return b.node("BatchNormalization", x, b.weight(C), b.weight(C), b.weight(C), variance)


def instance(b: Builder, x: str) -> str:
    return b.node("InstanceNormalization", x, b.weight(C), b.weight(C), epsilon=0.1)


def lp(b: Builder, x: str) -> str:
    return b.node("LpNormalization", x, axis=1, p=2)


def whitened(b: Builder, x: str) -> str:
    return b.node("MeanVarianceNormalization", x, axes=[0, 2, 3])


@pytest.mark.parametrize("norm", [batch, instance, lp, whitened], ids=lambda f: f.__name__)
@given(seed=seeds)
@settings(max_examples=4, deadline=None)
def test_exact_norms(norm: Middle, seed: int) -> None:
    """Norms that see one channel only, or that zeros do not change, are cut exactly."""
    found, *_ = assert_cut_equals_mask(images(seed, norm, 13), seed)
    assert found.widths() == [(1, C)]
    assert all(d.is_exact for d in found.dims.free)


def group(groups: int, per_group: bool = False) -> Middle:
    """GroupNormalization: opset 18 has a scale for each group."""
    size = groups if per_group else C
    return lambda b, x: b.node("GroupNormalization", x, b.weight(size), b.weight(size),
                               num_groups=groups)  # fmt: skip


def written_out(b: Builder, x: str) -> str:
    """GroupNorm as both exporters of PyTorch write it."""
    y = b.node("Reshape", x, b.ints(0, 2, -1))
    y = b.node("InstanceNormalization", y, b.add(np.ones(2)), b.add(np.zeros(2)))
    y = b.node("Reshape", y, b.node("Shape", x))
    return b.node("Add", b.node("Mul", y, b.weight(C, 1, 1)), b.weight(C, 1, 1))


def neighbours(b: Builder, x: str) -> str:
    return b.node("LRN", x, size=3)


def means(b: Builder, x: str) -> str:
    return b.node("MeanVarianceNormalization", x, axes=[1, 2, 3])


APPROXIMATE: list[tuple[Middle, int, list[tuple[int, int]]]] = [
    (group(2), 21, [(2, 3)]),
    (group(1), 21, [(1, C)]),
    (group(2, per_group=True), 18, [(2, 3)]),
    (written_out, 21, [(2, 3)]),
    (neighbours, 21, [(1, C)]),
    (means, 21, [(1, C)]),
]


@pytest.mark.parametrize(("norm", "opset", "widths"), APPROXIMATE, ids=range(len(APPROXIMATE)))
def test_approximate_norms(norm: Middle, opset: int, widths: list[tuple[int, int]]) -> None:
    """What is left is normalised by its own mean: groups thin alike, the wiring is proven."""
    found = flow_of(images(0, norm, opset))
    assert [w for w in found.widths() if w[1] > 1 and w != (1, 2)] == widths
    dim = next(d for d in found.dims.free if (d.rows, d.size) == widths[0])
    assert "over channels" in dim.approximate
    for seed in range(4):
        cut_at(found, random_removed(found.dims, seed, exact_only=False))


def layer(b: Builder, x: str) -> str:
    return b.node("LayerNormalization", x, b.weight(C), b.weight(C))


def scaled(b: Builder, x: str) -> str:
    return b.node("RMSNormalization", x, b.weight(C), axis=-1)


def plain(b: Builder, x: str) -> str:
    return b.node("LayerNormalization", x, b.weight(C), axis=2)


@pytest.mark.parametrize("norm", [layer, scaled, plain], ids=lambda f: f.__name__)
def test_norms_of_tokens(norm: Middle) -> None:
    """The cut model normalises what is left, with the vectors that belong to it."""
    model = tokens(0, norm)
    found = flow_of(model)
    [dim] = found.dims.free
    assert "over channels" in dim.approximate
    removed = np.zeros(found.dims.count, np.bool_)
    removed[dim.channels[[1, 4]]] = True
    made = cut_at(found, removed).model
    node = next(n for n in made.nodes if n.op in {"LayerNormalization", "RMSNormalization"})
    for name in node.inputs[1:]:
        assert np.array_equal(made.array(name), found.model.array(name)[[0, 2, 3, 5]])


def test_rows_that_a_norm_mixes_are_approximate_too() -> None:
    """A head over channels of which a mean is taken cannot be called exact."""
    b = Builder(0)
    x = b.node("Conv", "x", b.weight(4, 3, 1, 1))
    x = b.node("Conv", x, b.weight(8, 1, 1, 1), group=4)
    x = b.node("Mul", x, b.node("ReduceMean", x, b.ints(1), keepdims=1))
    x = b.node("Conv", x, b.weight(3, 8, 1, 1))
    found = flow_of(b.model({"x": ["n", 3, 2, 2]}, {x: ["n", 3, 2, 2]}))
    assert found.widths() == [(1, 4), (4, 2)]
    assert not any(d.is_exact for d in found.dims.free)


def test_a_group_across_other_rows_is_held() -> None:
    """After a shuffle a norm's group is no row of the shuffle: none may go alone."""
    def middle(b: Builder, x: str) -> str:
        x = b.node("Reshape", x, b.ints(0, 2, 3, 4, 4))
        x = b.node("Reshape", b.node("Transpose", x, perm=[0, 2, 1, 3, 4]), b.ints(0, C, 4, 4))
        return written_out(b, x)

    found = flow_of(images(0, middle))
    assert "a row across those of another balance" in found.pins()
    for seed in range(4):
        cut_at(found, random_removed(found.dims, seed, exact_only=False))
