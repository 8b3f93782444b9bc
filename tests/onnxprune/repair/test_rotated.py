"""A cut stream keeps directions: what it never used costs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

from onnxprune import prune
from onnxprune.cutting.cut import cut
from onnxprune.damage.curves import Study
from onnxprune.damage.directions import helmert
from onnxprune.identity.dims import Dim, Dims
from onnxprune.manager import State
from onnxprune.model.graph import Model
from onnxprune.model.storage import load
from onnxprune.readers.folds import folds
from onnxprune.repair import copies as repair_copies
from onnxprune.repair.rotated import frame
from onnxprune.repair.sweep import repaired
from onnxprune.rules import load_rules
from tests.builder import Builder
from tests.calibrated import calibrated
from tests.turning import off, streams, turned

WIDTH, RANK, TOKENS, LETTERS = 16, 5, 6, 9
HALF = TensorProto.FLOAT16


def drawn_basis(rng: np.random.Generator) -> Any:
    """Few directions of a stream, without a mean. Returns: shape (RANK, WIDTH)."""
    centred = rng.standard_normal((WIDTH, RANK))
    return np.linalg.qr(centred - centred.mean(axis=0))[0].T


@dataclass
class Net:
    """A pre-norm transformer without its attention, whose stream has few directions."""

    kind: str = "layer"
    """Of its norms: layer or rms, in one operator or (layer small, rms small) in many."""
    half: bool = False
    tied: bool = False
    gate: bool = False
    """The stream is multiplied by a vector."""
    bare: bool = False
    """The head sees the stream itself."""
    axis: int = -1
    tail: str = ""
    """What is done to the stream (odd), or to what the last norm gives, before the head."""

    def __post_init__(self) -> None:
        self.b = Builder(3)
        rng = self.b.rng
        self.basis = drawn_basis(rng)
        self.dtype = np.float16 if self.half else np.float32

    def add(self, array: Any) -> str:
        return self.b.add(array, self.dtype)

    def weight(self, *shape: int) -> str:
        return self.add(self.b.rng.standard_normal(shape) * 0.5)

    def into(self, *shape: int) -> str:
        """A tensor whose last axis is the stream."""
        return self.add(self.b.rng.standard_normal((*shape, RANK)) @ self.basis)

    def norm(self, h: str) -> str:
        b = self.b
        scale = self.add(b.rng.uniform(0.5, 2, WIDTH))
        if self.kind == "layer":
            return b.node("LayerNormalization", h, scale, self.weight(WIDTH), axis=self.axis)
        if self.kind == "rms":
            return b.node("RMSNormalization", h, scale, axis=self.axis)
        if self.kind == "rms small":
            return b.node("Mul", scale, self.over_size(h, "Reciprocal"))
        mean = b.node("ReduceMean", h, b.ints(-1))
        sized = self.over_size(b.node("Sub", h, mean), "Div")
        return b.node("Add", b.node("Mul", sized, scale), self.weight(WIDTH))

    def over_size(self, h: str, how: str) -> str:
        """A value over the root of the mean of its squares, as exporters write it."""
        b = self.b
        is_product = how == "Reciprocal"
        squares = b.node("Mul", h, h) if is_product else b.node("Pow", h, self.add(2.0))
        size = b.node("Add", b.node("ReduceMean", squares, b.ints(-1)), self.add(1e-5))
        root = b.node("Sqrt", size)
        return b.node("Mul", h, b.node("Reciprocal", root)) if is_product else (
            b.node("Div", h, root)
        )  # fmt: skip

    def block(self, h: str) -> str:
        b = self.b
        inner = b.node("MatMul", self.norm(h), self.weight(WIDTH, 12))
        inner = b.node("Relu", b.node("Add", inner, self.weight(12)))
        out = b.node("Add", b.node("MatMul", inner, self.into(12)), self.into())
        return b.node("Add", h, out)

    def made(self) -> ModelProto:
        b, kind = self.b, HALF if self.half else TensorProto.FLOAT
        table = self.into(LETTERS)
        if self.tied:
            token = b.node("Gather", table, "x")
        else:
            token = b.node("Add", b.node("MatMul", "x", table), self.into())
        h = b.node("Add", token, self.into(TOKENS))
        h = self.block(self.block(h))
        if self.gate:
            h = b.node("Mul", h, self.weight(WIDTH))
        if self.tail == "odd":  # nothing that is turned goes along with it
            h = b.node("Mul", h, b.node("ReduceMean", b.node("Mul", h, h), b.ints(-1)))
        seen = h if self.bare else self.norm(h)
        if self.tail in ("mean", "mask"):
            seen = b.node("Mul", seen, self.add(b.rng.uniform(0, 1, (TOKENS, 1))))
        if self.tail == "mean":
            seen = b.node("ReduceMean", seen, b.ints(1))
        head = b.node("Transpose", table, perm=[1, 0]) if self.tied else self.weight(WIDTH, LETTERS)
        y = b.node("MatMul", seen, head)
        kinds = {"x": TensorProto.INT64 if self.tied else kind, y: kind}
        shape: list[int | str] = ["n", TOKENS] if self.tied else ["n", TOKENS, LETTERS]
        tokens = 1 if self.tail == "mean" else TOKENS
        return b.model({"x": shape}, {y: ["n", tokens, LETTERS]}, types=kinds, opset=23)

    def data(self, count: int = 120) -> Any:
        rng = np.random.default_rng(1)
        if self.tied:
            return rng.integers(0, LETTERS, (count, TOKENS))
        return rng.standard_normal((count, TOKENS, LETTERS)).astype(self.dtype)


@dataclass
class Bottlenecks:
    """Convolutions with a linear stream of few directions, as mobile nets have it."""

    kernel: int = 1
    """Of what reads the stream."""
    bent: bool = False
    """An activation in the stream."""
    pooled: bool = False
    """The last reader sees means over positions."""

    def __post_init__(self) -> None:
        self.b = Builder(5)
        self.basis = drawn_basis(self.b.rng)

    def into(self, *shape: int) -> str:
        """A kernel whose outputs are the stream."""
        made = self.b.rng.standard_normal((*shape, RANK)) @ self.basis
        return self.b.add(np.moveaxis(made, -1, 0))

    def block(self, h: str) -> str:
        b, k = self.b, self.kernel
        wide = b.node("Conv", h, b.weight(24, WIDTH, k, k), b.weight(24), pads=[k // 2] * 4)
        return b.node("Conv", b.node("Relu", wide), self.into(24, 1, 1), self.into())

    def made(self) -> ModelProto:
        b = self.b
        h = b.node("Conv", "x", self.into(3, 3, 3), self.into(), pads=[1] * 4)
        h = b.node("Add", h, self.block(h))
        if self.bent:
            h = b.node("Relu", h)
        if self.pooled:
            h = b.node("GlobalAveragePool", h)
        y = b.node("Conv", h, b.weight(LETTERS, WIDTH, 1, 1))
        size = 1 if self.pooled else 5
        return b.model({"x": ["n", 3, 5, 5]}, {y: ["n", LETTERS, size, size]})

    def data(self, count: int = 120) -> Any:
        return np.random.default_rng(1).standard_normal((count, 3, 5, 5)).astype(np.float32)


def opened(net: Net | Bottlenecks) -> tuple[State, ModelProto]:
    proto, x = net.made(), net.data()
    return calibrated(proto, x, dtype=x.dtype), proto


def stream(state: State) -> Dim:
    return next(d for d in state[Dims].free if d.size == WIDTH)


def cut_to(state: State, left: int) -> Any:
    """What stays of the channels, drawn for the stream."""
    alive = np.ones(state[Dims].count, np.bool_)
    gone = np.random.default_rng(0).permutation(stream(state).channels)[left:]
    alive[gone] = False
    return alive


def remade(state: State, left: int, *, copies: bool = False) -> Model:
    """The model with so many channels of the stream, repaired."""
    subject, dims, alive = state.subject, state[Dims], cut_to(state, left)
    thin = cut(subject.model, dims, subject.sizes, subject.shapes, ~alive, load_rules(), {})
    parts = folds(*state.calibration, 640)
    return repaired(subject, thin, dims, alive, parts, 0, copies=copies)[0]


@pytest.mark.parametrize(
    ("net", "more", "most"),
    [
        (Net(), 1, 1e-3),
        (Net(half=True), 1, 2e-2),
        (Net("layer small"), 1, 1e-3),
        (Net("rms"), 0, 1e-3),
        (Net("rms small"), 0, 1e-3),
        (Net("rms", bare=True), 0, 1e-3),
        (Net("rms", tail="mask"), 0, 1e-3),
        (Net("rms small", tail="mean"), 0, 1e-3),
        (Bottlenecks(), 0, 1e-3),
        (Bottlenecks(kernel=3), 0, 1e-3),
        (Bottlenecks(pooled=True), 0, 1e-3),
    ],
    ids=str,
)
def test_a_stream_of_few_directions_can_be_cut_to_them(
    net: Net | Bottlenecks, more: int, most: float
) -> None:
    """The outputs are what they were; one channel less is not enough. A mean takes one more."""
    state, proto = opened(net)
    x = net.data()[:20]
    assert len(streams(state)) == 1
    assert off(proto, remade(state, RANK + more), x) < most
    assert off(proto, remade(state, RANK + more - 1), x) > 2 * most


def test_a_tied_table_is_copied_for_its_two_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a copy the stream keeps channels, and loses by it."""
    monkeypatch.setattr(repair_copies, "MOST", 1.0)  # of a net as small as this one
    net = Net(tied=True)
    state, proto = opened(net)
    assert len(streams(state)) == 1
    copied, shared = (remade(state, RANK + 1, copies=copies) for copies in (True, False))
    x = net.data()[:20]
    assert off(proto, copied, x) < 1e-3 < 0.05 < off(proto, shared, x)


@pytest.mark.parametrize(
    "net",
    [Net(gate=True), Net(bare=True), Net(axis=1), Net("layer small", bare=True),
     Net("rms small", tail="odd"), Net(tail="mask"), Bottlenecks(bent=True)],
    ids=str,
)  # fmt: skip
def test_what_a_turn_would_change_keeps_its_channels(
    net: Net | Bottlenecks, tmp_path: Path
) -> None:
    """A vector that multiplies it, a reader without a norm, a norm over tokens too; an activation
    in it."""
    if isinstance(net, Net) and net.axis == 1:
        net.norm = lambda h: net.b.node(  # type: ignore[method-assign]
            "LayerNormalization", h, net.weight(TOKENS, WIDTH), net.weight(TOKENS, WIDTH), axis=1
        )
    state, proto = opened(net)
    assert not streams(state)
    out = tmp_path / "o.onnx"
    prune(proto, out, data={"x": net.data()}, target={"macs": 0.6}, latency_s=0)
    assert off(proto, load(out), net.data()[:20]) < 1


@pytest.mark.parametrize(
    "net",
    [Net(), Net("layer small"), Net("rms"), Net("rms small"), Bottlenecks(), Bottlenecks(3)],
    ids=str,
)
def test_the_turned_original_computes_what_it_did(net: Net | Bottlenecks) -> None:
    """And its cut form is the nearer one before anything is fitted."""
    state, proto = opened(net)
    whole, made, thin = turned(state, cut_to(state, 8))
    x = net.data()[:20]
    assert off(proto, whole, x) < 1e-5
    assert off(proto, made, x) < off(proto, thin, x)


@pytest.mark.parametrize(
    ("net", "more"), [(Net(), 1), (Net("rms"), 0), (Bottlenecks(3), 0)], ids=str
)
def test_the_curve_of_a_stream_counts_directions(net: Net | Bottlenecks, more: int) -> None:
    """Nothing is lost as long as there are enough channels for all of them."""
    state, _ = opened(net)
    study = Study(state.model, state.subject.shapes[0], state[Dims], folds(*state.calibration, 640))
    curve = study.run()[stream(state).index].curve
    enough = curve.widths * WIDTH >= RANK + more
    assert curve.damage[enough].max() < 1e-6 < 1e-3 < curve.damage[~enough].min()


@pytest.mark.parametrize("norm", [False, True])
def test_a_stream_that_never_varies_turns_into_nothing_worse(norm: bool) -> None:
    """Its readers join a sum that does vary, so there are figures for them: all are zero."""
    b = Builder(0)
    dead = b.node("Relu", b.node("Sub", "x", b.add(100.0)))
    h = b.node("MatMul", dead, b.weight(LETTERS, WIDTH))
    if norm:
        h = b.node("RMSNormalization", h, b.add(np.ones(WIDTH)), axis=-1)
    other = b.node("MatMul", "x", b.weight(LETTERS, 7))
    y = b.node("Add", b.node("MatMul", h, b.weight(WIDTH, 7)), other)
    shape: list[int | str] = ["n", TOKENS, LETTERS]
    proto = b.model({"x": shape}, {y: ["n", TOKENS, 7]}, opset=23)
    x = np.random.default_rng(1).standard_normal((120, TOKENS, LETTERS)).astype(np.float32)
    state = calibrated(proto, x)
    assert len(streams(state)) == 1
    study = Study(state.model, state.subject.shapes[0], state[Dims], folds(*state.calibration, 640))
    assert study.run()[stream(state).index].curve.damage.max() == 0
    assert off(proto, remade(state, 5), x) < 1e-6


def test_the_same_bytes_come_out_twice(tmp_path: Path) -> None:
    """Model, data and seed are all that counts."""
    net = Net()
    proto = net.made()
    for name in "ab":
        prune(proto, tmp_path / f"{name}.onnx", data={"x": net.data()}, target={"macs": 0.5},
              latency_s=0)  # fmt: skip
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize("left", [1, 2, 5, 15])
def test_frames_are_orthonormal(left: int) -> None:
    """They have no mean, and only the last direction tells what stays from what goes."""
    kept = np.random.default_rng(0).permutation(WIDTH) < left
    found = frame(kept)
    assert np.allclose(found.T @ found, np.eye(WIDTH - 1))
    assert np.allclose(found.sum(axis=0), 0)
    assert not found[~kept, : left - 1].any()
    assert np.ptp(found[kept, -1]) == 0
    assert helmert(1).shape == (1, 0)
