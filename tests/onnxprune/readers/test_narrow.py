"""Readers that are too wide are seen in fewer directions of their channels' taps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto
from onnx.numpy_helper import from_array, to_array

from onnxprune import prune
from onnxprune.damage import curves
from onnxprune.damage.curves import Study
from onnxprune.identity.dims import Dims
from onnxprune.manager import State
from onnxprune.model.graph import Model
from onnxprune.readers.find import find_views
from onnxprune.readers.folds import folds
from onnxprune.readers.frontier import Walk, batches
from onnxprune.readers.narrow import Narrowing, narrowed, narrowings
from onnxprune.readers.view import Changes
from onnxprune.repair import sweep
from onnxprune.repair.choose import output_errors
from tests.builder import Builder
from tests.calibrated import calibrated, dataset

CHANNELS, SIZE, CLASSES = 12, 6, 5
KINDS = ["window", "flatten", "flatten of channels last"]
TAPS = {"window": 9, "flatten": SIZE**2, "flatten of channels last": SIZE**2}


def net(kind: str, size: int = SIZE) -> ModelProto:
    """A 1x1 layer, and what reads its channels at several places.

    Args:
        size: of the maps; on those of one place, each weight is the sum over the places.
    """
    b = Builder(3)
    made = b.node("Relu", b.node("Conv", "x", b.weight(CHANNELS, 4, 1, 1), b.weight(CHANNELS)))
    weights = b.rng.standard_normal((CLASSES, CHANNELS, TAPS[kind]))
    side = round(TAPS[kind] ** 0.5)
    if size == 1:
        weights, side = weights.sum(axis=2, keepdims=True), 1
    if kind == "window":
        kernel = b.add(weights.reshape(CLASSES, CHANNELS, side, side))
        found = b.node("Relu", b.node("Conv", made, kernel, b.add(np.zeros(CLASSES))))
        y = b.node("Flatten", b.node("GlobalAveragePool", found))
    elif kind == "flatten":
        rows = b.node("Flatten", made)
        y = b.node("Gemm", rows, b.add(2 * weights.reshape(CLASSES, -1)), alpha=0.5, transB=1)
    else:
        rows = b.node("Flatten", b.node("Transpose", made, perm=[0, 2, 3, 1]))
        y = b.node("Gemm", rows, b.add(weights.swapaxes(1, 2).reshape(CLASSES, -1).T))
    return b.model({"x": ["n", 4, size, size]}, {y: ["n", CLASSES]})


def images(count: int = 80, *, flat: bool = False) -> Any:
    """Maps that vary slowly, or not at all, from place to place."""
    rng = np.random.default_rng(1)
    means = rng.standard_normal((count, 4, 1, 1))
    if flat:
        return np.broadcast_to(means, (count, 4, SIZE, SIZE)).astype(np.float32)
    slopes = rng.standard_normal((2, count, 4, 1, 1)) * np.linspace(-1, 1, SIZE)
    noise = 0.1 * rng.standard_normal((count, 4, SIZE, SIZE))
    maps = means + slopes[0] + slopes[1].swapaxes(2, 3) + noise
    return maps.astype(np.float32)


def seen_narrow(state: State, most: int) -> tuple[Any, Narrowing]:
    """The one wide reader, and its directions."""
    views = find_views(state.model, state.subject.shapes[0], state[Dims].ties)
    parts = folds(*state.calibration, 640)
    ((key, found),) = narrowings(state.model, views, most, parts, 0).items()
    return views[key], found


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_seen_and_what_is_beside_make_the_whole(kind: str) -> None:
    """Whatever the directions are, the reader gives what it gave."""
    state = calibrated(net(kind), images())
    view, found = seen_narrow(state, 4 * CHANNELS)
    made = narrowed(view, found)
    assert len(made.columns) == 4 * CHANNELS < made.size == TAPS[kind] * CHANNELS
    assert sorted(found.place.ravel().tolist()) == list(range(made.size))
    for ids in view.columns[found.place]:
        assert len({*ids.tolist()}) == 1
    (values,) = Walk(batches([dataset(net(kind), images(1))]), [set()]).step(
        state.model, [*view.seen, *view.given]
    )
    at = np.arange(view.count(values))
    rows = view.inputs(values, at, values)
    given = made.narrow(rows) @ made.weights.T + made.beside(rows) + made.bias
    np.testing.assert_allclose(given, view.outputs(values, at), atol=1e-4)
    assert np.std(made.beside(rows)) < np.std(given) / 2, "slow maps leave little beside"


def test_half_precision_does_not_overflow() -> None:
    """What lies beside is summed in single precision, whatever the weights are stored in."""
    proto = net("flatten")
    for one in (*proto.graph.initializer,):
        one.CopyFrom(from_array(to_array(one).astype(np.float16), one.name))
    for one in (*proto.graph.input, *proto.graph.output):
        one.type.tensor_type.elem_type = TensorProto.FLOAT16
    state = calibrated(proto, images(), dtype=np.float16)
    view, found = seen_narrow(state, 4 * CHANNELS)
    made = narrowed(view, found)
    assert made.linear.weights.dtype == np.float16
    signs = np.sign(view.weights[:1]).astype(np.float16)  # all of the first sum is of one sign
    rows = 3000 * signs
    with np.errstate(over="ignore"):
        assert np.isinf(rows @ made.linear.weights[0].reshape(CLASSES, -1).T).any()
    given = made.narrow(rows) @ made.weights.T + made.beside(rows)
    np.testing.assert_allclose(given, rows.astype(np.float64) @ view.weights.T, rtol=1e-3)


def test_no_positions_are_no_rows() -> None:
    """As of a value whose samples lie along another axis than its batch."""
    state = calibrated(net("window"), images())
    view, _ = seen_narrow(state, 4 * CHANNELS)
    values = {name: np.zeros((1, CHANNELS, SIZE, SIZE), np.float32) for name in view.seen}
    values |= {name: np.zeros((1, CLASSES, 4, 4), np.float32) for name in view.given}
    assert view.inputs(values, np.arange(0), values).shape == (0, view.size)


@pytest.mark.parametrize("kind", KINDS)
def test_the_directions_leave_the_least_that_so_many_can(kind: str) -> None:
    """Were channels independent: the trailing eigenvalues of C^1/2 W C^1/2."""
    state = calibrated(net(kind), images())
    view, found = seen_narrow(state, 4 * CHANNELS)
    known = batches(folds(*state.calibration, 640)[:1])[:2]  # 16 samples
    seen = [
        view.inputs(values, np.arange(view.count(values)), values)
        for values in Walk(known, [set()]).step(state.model, [*view.seen, *view.given])
    ]
    shown = np.concatenate(seen)[:, found.place].astype(np.float64)
    spread = np.einsum("pct,pcs->ts", shown, shown)
    apart = view.weights[:, found.place]
    products = np.einsum("oct,ocs->ts", apart, apart)
    values, vectors = np.linalg.eigh(spread)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    least = np.linalg.eigvalsh(root.T @ products @ root)[:-4].sum()
    rest = apart - apart @ found.decode @ found.encode.T
    left = np.einsum("oct,ts,ocs->", rest, spread, rest)
    assert 0.999 * least < left < 1.01 * least


@pytest.mark.parametrize("kind", KINDS)
def test_other_weights_are_stored_along_the_directions(kind: str) -> None:
    """Those over what is seen become the ones that were asked for; the rest stays."""
    state = calibrated(net(kind), images())
    view, found = seen_narrow(state, 4 * CHANNELS)
    made = narrowed(view, found)
    wanted = made.weights + np.random.default_rng(2).standard_normal(made.weights.shape)
    changes = Changes(state.model)
    made.write(changes, wanted, made.bias)
    changed = find_views(changes.apply(), state.subject.shapes[0], state[Dims].ties)[view.key]
    moved = changed.weights - view.weights
    np.testing.assert_allclose(moved, found.spread(wanted - made.weights), atol=1e-5)
    np.testing.assert_allclose(found.seen(moved), wanted - made.weights, atol=1e-5)


def test_what_stays_of_a_cut_reader_is_told_by_its_place() -> None:
    """Inputs of channels that went are gone; the others move up."""
    state = calibrated(net("flatten of channels last"), images())
    _, found = seen_narrow(state, 4 * CHANNELS)
    stays = np.ones(found.place.size, np.bool_)
    stays[found.place[[0, 5]]] = False
    less = found.kept(stays)
    before = np.arange(found.place.size)[stays]
    assert less.place.shape == (CHANNELS - 2, SIZE**2)
    assert np.array_equal(before[less.place], np.delete(found.place, [0, 5], axis=0))


@pytest.mark.parametrize("kind", KINDS)
def test_maps_that_do_not_vary_count_as_one_place(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One direction of the taps holds all there is."""

    def measured(size: int) -> Any:
        state = calibrated(net(kind, size), images(flat=True)[:, :, :size, :size])
        parts = folds(*state.calibration, 640)
        study = Study(state.model, state.subject.shapes[0], state[Dims], parts)
        return study.run()[next(d.index for d in state[Dims].free)]

    whole = measured(1)
    monkeypatch.setattr(curves, "WIDEST", CHANNELS)
    less = measured(SIZE)
    np.testing.assert_allclose(less.curve.damage, whole.curve.damage, rtol=1e-3, atol=1e-6)
    assert np.argsort(less.order).tolist() == np.argsort(whole.order).tolist()


def residual() -> ModelProto:
    """A 3x3 layer that joins a stream, over channels of white noise."""
    b = Builder(5)
    h = b.node("Relu", b.node("Conv", "x", b.weight(16, 4, 3, 3), pads=[1] * 4))
    h = b.node("Conv", h, b.weight(8, 16, 3, 3), pads=[1] * 4)
    h = b.node("Relu", b.node("Add", h, b.node("Conv", "x", b.weight(8, 4, 1, 1))))
    y = b.node("Flatten", b.node("GlobalAveragePool", b.node("Conv", h, b.weight(5, 8, 1, 1))))
    return b.model({"x": ["n", 4, 8, 8]}, {y: ["n", 5]})


@pytest.mark.parametrize("directions", [1, 4])
def test_damage_to_a_stream_counts_what_is_not_seen(
    directions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise has as much in each direction: one of nine would tell a ninth of the damage."""
    x = np.random.default_rng(6).standard_normal((90, 4, 8, 8)).astype(np.float32)
    state = calibrated(residual(), x)
    parts = folds(*state.calibration, 640)

    def damage() -> Any:
        study = Study(state.model, state.subject.shapes[0], state[Dims], parts)
        index = next(d.index for d in state[Dims].free if d.size == 16)
        return study.run()[index].curve.damage[3:]

    whole = damage()
    monkeypatch.setattr(curves, "WIDEST", 16 * directions)
    less = damage()
    assert (less > whole / 2).all()
    assert (less < whole * 2).all()


def test_a_reader_behind_a_pool_sees_its_channels_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both signs of a layer go and stay together: they are taps of one channel."""
    b = Builder(1)
    h = b.node("Conv", "x", b.weight(16, 4, 1, 1), b.weight(16))
    both = b.node("Relu", b.node("Concat", h, b.node("Neg", h), axis=1))
    y = b.node("Gemm", b.node("Flatten", b.node("GlobalAveragePool", both)), b.weight(32, 5))
    model = b.model({"x": ["n", 4, 3, 3]}, {y: ["n", 5]})
    x = b.rng.standard_normal((60, 4, 3, 3)).astype(np.float32)
    monkeypatch.setattr(curves, "WIDEST", 16)
    monkeypatch.setattr(sweep, "MOST_TOGETHER", 16)
    made = prune(model, data={"x": x}, target={"params": 0.6}, latency_s=0)
    assert made.cost["params"]["ratio"] <= 0.6


def test_a_reader_of_too_much_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The score stands in."""
    monkeypatch.setattr(curves, "WIDEST", 2 * CHANNELS)
    monkeypatch.setattr(curves, "MOST_INPUTS", 2 * CHANNELS - 1)
    model = net("window")
    state = calibrated(model, images())
    study = Study(state.model, state.subject.shapes[0], state[Dims], folds(*state.calibration, 640))
    assert not study.run()
    made = prune(model, data={"x": images()}, target={"params": 0.6}, latency_s=0)
    assert made.cost["params"]["ratio"] <= 0.6


@pytest.mark.parametrize("kind", KINDS)
def test_a_narrow_repair_is_better_than_none_and_little_worse_than_a_whole_one(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On samples that the tool has not seen."""
    model, data, other = net(kind), {"x": images()}, dataset(net(kind), images(200))

    def error(**options: Any) -> float:
        made = prune(model, data=data, target={"params": 0.6}, latency_s=0, **options).model
        return float(output_errors(Model(model), Model(made), other).mean())

    none, whole = error(repair=False), error()
    made = list[bool]()
    found = sweep.narrowings

    def looked(*args: Any) -> Any:
        result = found(*args)
        made.append(bool(result))
        return result

    monkeypatch.setattr(sweep, "narrowings", looked)
    monkeypatch.setattr(sweep, "MOST_TOGETHER", 3 * CHANNELS)
    monkeypatch.setattr(curves, "WIDEST", 3 * CHANNELS)
    less = error()
    assert made
    assert all(made)
    assert less < none / 2
    assert less < 2 * whole
