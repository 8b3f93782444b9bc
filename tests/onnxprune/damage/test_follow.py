"""Which streams may be turned: those that come out as they were, whatever else touches them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxprune.identity.dims import Dims
from tests.builder import Builder
from tests.calibrated import calibrated
from tests.turning import off, streams, turned

WIDTH, TOKENS, LETTERS = 16, 6, 9
HALF, FLOAT, INT32, INT64 = (
    TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64,
)  # fmt: skip
Tail = Callable[[Builder, str], str]


def head(b: Builder, h: str) -> str:
    return b.node("MatMul", h, b.weight(WIDTH, 7))


def scale(b: Builder, *shape: int) -> str:
    return b.add(b.rng.uniform(0.5, 2, shape or (WIDTH,)))


def root(b: Builder, h: str) -> str:
    """The size of a value, as exporters write it."""
    squares = b.node("Mul", h, h)
    mean = b.node("ReduceMean", squares, b.ints(-1))
    return b.node("Sqrt", b.node("Add", mean, b.add(1e-5)))


def normed(b: Builder, h: str) -> str:
    return b.node("Div", h, root(b, h))


def both(b: Builder, h: str, other: Tail) -> str:
    """What is read as it is, and in another form."""
    return b.node("Add", head(b, h), head(b, other(b, h)))


def scaled(b: Builder, h: str) -> str:
    return b.node("Mul", h, scale(b))


def half(b: Builder, h: str) -> str:
    """The first half of the tokens scaled, the others as they are."""
    first = b.node("Split", h, axis=1, num_outputs=2, outputs=2)
    return b.node("Concat", head(b, scaled(b, first)), head(b, f"{first}_1"), axis=1)


def rows(b: Builder, *shape: int) -> str:
    return b.weight(*shape)


TURNED: dict[str, Tail] = {
    "reader": head,
    "mask": lambda b, h: head(b, b.node("Mul", h, rows(b, TOKENS, 1))),
    "number": lambda b, h: head(b, b.node("Div", h, b.add(3.0))),
    "factor by a reader of it": lambda b, h: head(
        b, b.node("Mul", h, b.node("Sigmoid", b.node("MatMul", h, rows(b, WIDTH, 1))))
    ),
    "stored less it": lambda b, h: head(b, b.node("Sub", rows(b, TOKENS, WIDTH), h)),
    "tokens twice": lambda b, h: head(b, b.node("Tile", h, b.ints(1, 2, 1))),
    "gathered in order": lambda b, h: head(b, b.node("Gather", h, b.ints(*range(WIDTH)), axis=2)),
    "mean over tokens": lambda b, h: head(b, b.node("ReduceMean", h, b.ints(1), keepdims=0)),
    "sum over tokens": lambda b, h: head(b, b.node("ReduceSum", h, b.ints(1))),
    "normed": lambda b, h: head(b, normed(b, h)),
    "normed, scaled": lambda b, h: head(b, scaled(b, normed(b, h))),
    "scale of rank 3": lambda b, h: head(b, b.node("Mul", normed(b, h), scale(b, 1, 1, WIDTH))),
    "normed by a power": lambda b, h: head(b, b.node("Mul", h, b.node(
        "Pow", b.node("Max", b.node("ReduceMean", b.node("Pow", h, b.add(2.0)), b.ints(-1)),
                      b.add(1e-6)), b.add(-0.5)))),
    "normed by one over": lambda b, h: head(
        b, b.node("Mul", h, b.node("Div", b.add(1.0), root(b, h)))
    ),
    "normed, bare and scaled": lambda b, h: both(b, normed(b, h), scaled),
    "normed, bare and moved and scaled": lambda b, h: both(
        b, normed(b, h), lambda b, v: scaled(b, b.node("Identity", v))
    ),
    "normed, bare and masked and scaled": lambda b, h: both(
        b, normed(b, h), lambda b, v: scaled(b, b.node("Mul", v, scale(b, TOKENS, 1)))
    ),
    "normed, bare and pooled and scaled": lambda b, h: both(
        b, normed(b, h), lambda b, v: scaled(b, b.node("ReduceMean", v, b.ints(1)))
    ),
    "normed, half of it scaled": lambda b, h: half(b, normed(b, h)),
    "two scales": lambda b, h: b.node(
        "Add", *(lambda v: (head(b, scaled(b, v)), head(b, scaled(b, v))))(normed(b, h))
    ),
    "scaled, bare and shifted": lambda b, h: both(
        b, scaled(b, normed(b, h)), lambda b, v: b.node("Add", v, rows(b, WIDTH))
    ),
    "scaled, masked, shifted": lambda b, h: head(b, b.node(
        "Add", b.node("Mul", scaled(b, normed(b, h)), scale(b, TOKENS, 1)), rows(b, WIDTH))),
    "Cast to half and back": lambda b, h: head(
        b, b.node("Cast", b.node("Cast", h, to=HALF), to=FLOAT)
    ),
    "LayerNormalization": lambda b, h: head(
        b, b.node("LayerNormalization", h, scale(b), rows(b, WIDTH))
    ),
}  # fmt: skip
KEPT: dict[str, Tail] = {
    "Cast to integers": lambda b, h: head(
        b, b.node("Cast", b.node("Cast", h, to=INT32), to=FLOAT)
    ),
    "activation": lambda b, h: head(b, b.node("Relu", h)),
    "factor a channel": lambda b, h: head(b, scaled(b, h)),
    "gate a channel": lambda b, h: head(
        b, b.node("Mul", h, b.node("Sigmoid", b.node("MatMul", h, rows(b, WIDTH, WIDTH))))
    ),
    "residual of a reader of it": lambda b, h: head(
        b, b.node("Add", h, b.node("MatMul", h, rows(b, WIDTH, WIDTH)))
    ),
    "one over it": lambda b, h: head(b, b.node("Div", b.add(1.0), h)),
    "number added": lambda b, h: head(b, b.node("Add", h, b.add(1.0))),
    "added by token": lambda b, h: head(b, b.node("Add", h, rows(b, TOKENS, 1))),
    "cubes": lambda b, h: head(b, b.node("Pow", h, b.add(3.0))),
    "gathered in another order": lambda b, h: head(
        b, b.node("Gather", h, b.ints(*range(WIDTH - 1, -1, -1)), axis=2)
    ),
    "largest of tokens": lambda b, h: head(b, b.node("ReduceMax", h, b.ints(1))),
    "mean of squares over tokens": lambda b, h: head(
        b, b.node("ReduceMean", b.node("Mul", h, h), b.ints(1))
    ),
    "times its size": lambda b, h: head(b, b.node("Mul", h, root(b, h))),
    "its size twice": lambda b, h: (lambda r: head(b, b.node("Div", b.node("Div", h, r), r)))(
        root(b, h)
    ),
    "size of something else": lambda b, h: head(
        b, b.node("Div", b.node("Mul", h, b.add(2.0)), root(b, h))
    ),
    "size is read, too": lambda b, h: (
        lambda r: b.node("Add", head(b, b.node("Div", h, r)), r)
    )(root(b, h)),
    "squares are read, too": lambda b, h: (
        lambda q: b.node("Add", head(b, q), head(b, b.node(
            "Div", h, b.node("Sqrt", b.node("ReduceMean", q, b.ints(-1))))))
    )(b.node("Mul", h, h)),
    "mean over tokens of squares": lambda b, h: head(b, b.node(
        "Div", h, b.node("Sqrt", b.node("ReduceMean", b.node("Mul", h, h), b.ints(-1, 1))))),
    "mean of another value": lambda b, h: head(
        b, b.node("Sub", h, b.node("ReduceMean", b.node("Neg", h), b.ints(-1)))
    ),
    "less its mean": lambda b, h: head(
        b, b.node("Sub", h, b.node("ReduceMean", h, b.ints(-1)))
    ),
    "mean is read, too": lambda b, h: (
        lambda m: b.node("Add", head(b, normed(b, b.node("Sub", h, m))), m)
    )(b.node("ReduceMean", h, b.ints(-1))),
    "shift alone": lambda b, h: head(b, b.node("Add", normed(b, h), rows(b, WIDTH))),
    "scaled twice": lambda b, h: head(b, scaled(b, scaled(b, normed(b, h)))),
    "shifted, then scaled": lambda b, h: head(
        b, scaled(b, b.node("Add", normed(b, h), rows(b, WIDTH)))
    ),
    "masked after a shift": lambda b, h: head(b, b.node(
        "Mul", b.node("LayerNormalization", h, scale(b), rows(b, WIDTH)), rows(b, TOKENS, 1))),
    "summed after a shift": lambda b, h: head(b, b.node(
        "ReduceSum", b.node("LayerNormalization", h, scale(b), rows(b, WIDTH)), b.ints(1))),
    "scale by token": lambda b, h: head(b, b.node("Mul", normed(b, h), scale(b, TOKENS, WIDTH))),
    "normed and as it is, with a mean": lambda b, h: b.node(
        "Add", head(b, h), head(b, b.node("LayerNormalization", h, scale(b)))
    ),
    "norm over tokens, too": lambda b, h: head(
        b, b.node("LayerNormalization", h, scale(b, TOKENS, WIDTH), axis=1)
    ),
    "activation on a norm": lambda b, h: head(b, b.node("Relu", normed(b, h))),
    "norm joins the stream": lambda b, h: head(b, b.node("Add", h, normed(b, h))),
    "norm of a norm": lambda b, h: head(b, normed(b, scaled(b, normed(b, h)))),
    "reader's weight is shared": lambda b, h: (
        lambda w: b.node("Add", b.node("MatMul", h, w), b.node(
            "MatMul", b.node("Mul", h, b.add(2.0)), w))
    )(rows(b, WIDTH, 7)),
    "weight with a batch axis": lambda b, h: b.node("MatMul", h, rows(b, 1, WIDTH, 7)),
    "with itself": lambda b, h: b.node("MatMul", h, b.node("Transpose", h, perm=[0, 2, 1])),
}  # fmt: skip


def made(tail: Tail) -> tuple[Any, Any]:
    """A stream of two terms with this behind it, and inputs."""
    b = Builder(1)
    h = b.node("Add", b.node("MatMul", "x", b.weight(LETTERS, WIDTH)), b.weight(WIDTH))
    y = tail(b, h)
    x = np.random.default_rng(1).standard_normal((60, TOKENS, LETTERS)).astype(np.float32)
    return b.model({"x": ["n", TOKENS, LETTERS]}, {y: None}), x  # type: ignore[dict-item]


@pytest.mark.parametrize("name", TURNED)
def test_what_is_turned_comes_out_as_it_was(name: str) -> None:
    """Behind readers, norms of all spellings, moves and factors for all channels."""
    proto, x = made(TURNED[name])
    assert_turns(proto, x, 2e-3 if "half and" in name else 1e-5)


def assert_turns(proto: Any, x: Any, most: float) -> None:
    """The stream is found, and the turned original is the original."""
    state = calibrated(proto, x, dtype=x.dtype)
    dims, found = state[Dims], streams(state)
    (index,) = (i for i in found if dims.dims[i].size == WIDTH)
    alive = np.ones(dims.count, np.bool_)
    alive[np.random.default_rng(0).permutation(dims.dims[index].channels)[WIDTH // 2 :]] = False
    whole, *_ = turned(state, alive)
    assert off(proto, whole, x) < most
    assert whole is not state.model


@pytest.mark.parametrize("name", KEPT)
def test_what_would_come_out_as_something_else_is_left_alone(name: str) -> None:
    """Whatever tells channels apart, or hands out what a norm holds for itself."""
    proto, x = made(KEPT[name])
    state = calibrated(proto, x, dtype=x.dtype)
    assert not [i for i in streams(state) if state[Dims].dims[i].size == WIDTH]


@pytest.mark.parametrize("kind", ["table", "weight"])
def test_integers_are_not_turned(kind: str) -> None:
    """What is stored as integers would be rounded."""
    b = Builder(1)
    stored = b.add(b.rng.integers(-100, 100, (LETTERS, WIDTH)), np.int8)
    if kind == "table":
        h = b.node("Cast", b.node("Gather", stored, "x"), to=FLOAT)
    else:
        h = b.node("MatMul", "x", b.node("Cast", stored, to=FLOAT))
    y = head(b, b.node("Mul", h, b.add(0.01)))
    is_table = kind == "table"
    shape: list[int | str] = ["n", TOKENS] if is_table else ["n", TOKENS, LETTERS]
    types = {"x": INT64 if is_table else FLOAT, y: FLOAT}
    proto = b.model({"x": shape}, {y: ["n", TOKENS, 7]}, types=types)
    rng = np.random.default_rng(1)
    x = rng.integers(0, LETTERS, (60, TOKENS)) if is_table else (
        rng.standard_normal((60, TOKENS, LETTERS)).astype(np.float32)
    )  # fmt: skip
    assert not streams(calibrated(proto, x, dtype=x.dtype))


def test_outputs_and_branches_see_the_stream_as_it_is() -> None:
    """A graph output in between, the mean of a stored term as one, a body that reads it."""
    for kind in ("raw", "stored mean", "branch"):
        b = Builder(1)
        term = b.weight(TOKENS, WIDTH)
        h = b.node("Add", b.node("MatMul", "x", b.weight(LETTERS, WIDTH)), term)
        outs: dict[str, Any] = {head(b, h): ["n", TOKENS, 7]}
        if kind == "raw":
            outs[h] = ["n", TOKENS, WIDTH]
        if kind == "stored mean":
            outs[b.node("ReduceMean", term, b.ints(-1))] = [TOKENS, 1]
        if kind == "branch":
            outs[branch(b, h)] = None
        proto = b.model({"x": ["n", TOKENS, LETTERS]}, outs)
        x = np.random.default_rng(1).standard_normal((60, TOKENS, LETTERS)).astype(np.float32)
        state = calibrated(proto, x)
        assert not [i for i in streams(state) if state[Dims].dims[i].size == WIDTH], kind


def branch(b: Builder, name: str) -> str:
    """What depends on the data and reads a value in both its bodies."""
    bodies = [
        helper.make_graph(
            [helper.make_node(op, [name], [f"{op}_out"])], op, [],
            [helper.make_tensor_value_info(f"{op}_out", FLOAT, None)],
        )
        for op in ("Abs", "Neg")
    ]  # fmt: skip
    is_large = b.node("Greater", b.node("ReduceMean", "x", keepdims=0), b.add(0.0))
    return b.node("If", is_large, then_branch=bodies[0], else_branch=bodies[1])
