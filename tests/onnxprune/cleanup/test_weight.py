"""Numbers behind an operand: read as ONNX Runtime reads them, and stored for it to read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from onnxprune.backend.runtime import session
from onnxprune.cleanup.cleaning import with_weights
from onnxprune.cleanup.weight import Weight, stored, weight
from onnxprune.model.graph import Model
from tests.builder import Builder

SHAPE = (6, 4)


def coded(b: Builder, kind: Any, low: int, high: int, zero: Any, axis: int | None) -> str:
    """Random integers behind a DequantizeLinear."""
    count = () if axis is None else (SHAPE[axis],)
    ints = b.add(b.rng.integers(low, high + 1, SHAPE), kind)
    scale = b.add(b.rng.uniform(0.01, 0.1, count))
    point = b.add(np.full(count, zero), kind)
    more = {} if axis is None else {"axis": axis}
    return b.node("DequantizeLinear", ints, scale, point, **more)


def rounded(b: Builder) -> str:
    """Numbers that are quantised on the way, as training for it leaves them."""
    code = [b.add(np.full(6, 0.008)), b.add(np.zeros(6), np.int8)]
    ints = b.node("QuantizeLinear", b.weight(*SHAPE), *code, axis=-2)
    return b.node("DequantizeLinear", ints, *code, axis=-2)


def turned(b: Builder) -> str:
    """Half precision, stored the other way round."""
    half = b.node("Transpose", b.add(b.rng.standard_normal(SHAPE[::-1]), np.float16))
    return b.node("Cast", b.node("Identity", half), to=TensorProto.FLOAT)


def turned_integers(b: Builder) -> str:
    """Integers that are transposed before they are numbers."""
    ints = b.node("Transpose", b.add(b.rng.integers(-99, 100, SHAPE[::-1]), np.int8), perm=[1, 0])
    return b.node("DequantizeLinear", ints, b.add(np.full(6, 0.03)), axis=0)


CHAINS: dict[str, tuple[Callable[[Builder], str], float]] = {
    # what makes the operand, and the largest error of a number between -4 and 4
    "int8 by row": (lambda b: coded(b, np.int8, -127, 127, 0, 0), 4 / 127),
    "int8 by column": (lambda b: coded(b, np.int8, -127, 127, 0, 1), 4 / 127),
    "int8": (lambda b: coded(b, np.int8, -127, 127, 0, None), 4 / 127),
    "int8 of 7 bits": (lambda b: coded(b, np.int8, -64, 64, 0, 0), 4 / 64),
    "uint8": (lambda b: coded(b, np.uint8, 0, 255, 97, None), 8 / 255),
    "uint8 of 7 bits": (lambda b: coded(b, np.uint8, 0, 127, 64, None), 8 / 127),
    "uint8 around the middle": (lambda b: coded(b, np.uint8, 0, 255, 128, 0), 4 / 127),
    "int16": (lambda b: coded(b, np.int16, -32767, 32767, 0, None), 4 / 32767),
    "int4": (lambda b: coded(b, ml_dtypes.int4, -7, 7, 0, 0), 4 / 7),
    "rounded": (rounded, 4 / 127),
    "turned": (turned, 2e-3),
    "turned integers": (turned_integers, 4 / 127),
}


def operand(seed: int, make: Callable[[Builder], str]) -> tuple[Model, Weight]:
    """A product with a made operand."""
    b = Builder(seed)
    name = make(b)
    y = b.node("MatMul", "x", name)
    model = Model(b.model({"x": [6, 6]}, {y: [6, 4]}))
    found = weight(model, name)
    assert found is not None
    return model, found


def seen(model: Model) -> Any:
    """What the product sees: it is fed an identity."""
    return session(model.proto, optimize=False).run({"x": np.eye(6, dtype=np.float32)})[0]


@pytest.mark.parametrize("chain", CHAINS)
def test_numbers_are_those_of_the_runtime(chain: str) -> None:
    """Whatever stands between the initializer and the node; its form is told beforehand."""
    model, found = operand(0, CHAINS[chain][0])
    assert found.values == pytest.approx(seen(model), rel=1e-6)
    assert found.dims == SHAPE
    assert found.kind == TensorProto.FLOAT
    assert not found.is_shared


@pytest.mark.parametrize("chain", CHAINS)
def test_other_numbers_are_stored_as_near_as_the_type_allows(chain: str) -> None:
    """In the types and shapes that were there."""
    make, step = CHAINS[chain]
    model, _ = operand(1, make)
    wanted = np.random.default_rng(2).uniform(-4, 4, SHAPE)
    wanted[0, 0], wanted[-1, -1] = -4, 4
    product = model.nodes[-1]
    made = with_weights(model, stored(model, {(product.key, 1): wanted}))
    assert np.abs(seen(made) - wanted).max() <= step * 0.501
    types = [{(*t.dims, t.data_type) for t in m.initializers.values()} for m in (model, made)]
    assert types[0] == types[1]


@pytest.mark.parametrize("axis", [0, None])
def test_a_row_that_is_nothing_keeps_its_scale(axis: int | None) -> None:
    """A scale of nought has no inverse."""
    model, _ = operand(3, lambda b: coded(b, np.int8, -9, 9, 0, axis))
    wanted = np.zeros(SHAPE)
    made = with_weights(model, stored(model, {(model.nodes[-1].key, 1): wanted}))
    assert seen(made) == pytest.approx(wanted)
    assert all(np.isfinite(numpy_helper.to_array(t)).all() for t in made.proto.graph.initializer)


def test_a_bias_keeps_to_the_scales_of_data_and_weights() -> None:
    """Kernels that add it to sums of integers take that for granted."""
    b = Builder(4)
    x = b.add(0.05)
    ints = b.node("QuantizeLinear", "x", x, b.add(3, np.uint8))
    data = b.node("DequantizeLinear", ints, x, b.add(3, np.uint8))
    scales = b.rng.uniform(0.01, 0.02, 6).astype(np.float32)
    zero = b.add(np.zeros(6), np.int8)
    w = b.node("DequantizeLinear", b.add(b.rng.integers(-99, 99, SHAPE), np.int8), b.add(scales),
               zero, axis=0)  # fmt: skip
    bias = b.node("DequantizeLinear", b.add(b.rng.integers(-999, 999, 6), np.int32),
                  b.add(scales * np.float32(0.05)), axis=0)  # fmt: skip
    y = b.node("Gemm", data, w, bias, transB=1)
    model = Model(b.model({"x": [2, 4]}, {y: [2, 6]}))
    wanted = {(y, 1): b.rng.standard_normal(SHAPE) * 9, (y, 2): b.rng.standard_normal(6)}
    made = with_weights(model, stored(model, wanted))
    own, added = (weight(made, name) for name in made.nodes[-1].inputs[1:])
    assert own is not None
    assert added is not None
    assert added.values == pytest.approx(wanted[y, 2], abs=0.05 * 9 * 4 / 127)
    scales = [made.array(w.steps[-1].node.inputs[1]) for w in (own, added)]
    assert scales[1] == pytest.approx(scales[0] * 0.05)


def test_what_is_not_stored_or_not_understood_is_none() -> None:
    """Computed values, scales in blocks, integers that are no numbers yet."""
    b = Builder(5)
    ints = b.add(b.rng.integers(-9, 9, SHAPE), np.int8)
    blocks = b.node("DequantizeLinear", ints, b.add(np.ones((3, 4))), axis=0, block_size=2)
    made = b.node("Relu", b.weight(*SHAPE))
    whole = b.node("Cast", ints, to=TensorProto.FLOAT)
    unsigned = b.node("DequantizeLinear", b.add(np.ones(SHAPE), np.uint8), b.add(1.0))
    other = [b.add(0.5), b.add(0, np.int8)]
    ones = b.node("QuantizeLinear", b.weight(*SHAPE), *other)
    odd = b.node("DequantizeLinear", ones, b.add(0.25), other[1])
    names = [blocks, made, whole, unsigned, odd]
    model = Model(b.model({"x": [6, 6]}, {n: [*SHAPE] for n in names}))
    assert [weight(model, n) for n in (*names, ints, "x")] == [None] * 7


def test_what_two_nodes_read_is_shared() -> None:
    """At any step of the way."""
    b = Builder(6)
    w = b.weight(*SHAPE)
    one, other = b.node("Transpose", w), b.node("Transpose", w)
    outs = [b.node("MatMul", "x", name) for name in (one, other)]
    model = Model(b.model({"x": [2, 4]}, {n: [2, 6] for n in outs}))
    found = weight(model, one)
    assert found is not None
    assert found.is_shared
    assert weight(model, one, looks_through=False) is None
