"""Damage curves of whole models, and the directions that heads keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

from onnxprune import prune
from onnxprune.damage import sums
from onnxprune.damage.bases import find_bases
from onnxprune.damage.curves import Study
from onnxprune.damage.pooling import unpooled
from onnxprune.identity.dims import Dims
from onnxprune.manager import State
from onnxprune.model.graph import Model
from onnxprune.planning.allocate import _slopes
from onnxprune.planning.damage import Curve
from onnxprune.readers.find import find_views
from onnxprune.readers.folds import folds
from onnxprune.readers.stats import total
from onnxprune.repair.choose import output_errors
from tests.builder import Builder
from tests.calibrated import dataset
from tests.nets import run


def test_curves_lie_between_points() -> None:
    """Straight lines between measured widths, and no further than the last one."""
    curve = Curve(np.array([1.0, 0.5, 0.1]), np.array([0.0, 1.0, 5.0]))
    np.testing.assert_allclose(
        curve.at(np.array([1.0, 0.75, 0.5, 0.3, 0.05])), [0.0, 0.5, 1.0, 3.0, 5.0]
    )


def test_steps_are_priced_along_the_lower_hull() -> None:
    """A cheap step behind a dear one is reached with it: prices never fall."""
    found = _slopes(np.array([4.0, 3.0, 2.0, 1.0]), np.array([0.0, 5.0, 6.0, 12.0]))
    np.testing.assert_allclose(found, [3.0, 3.0, 6.0])


def attention(seed: int = 0, rank: int = 8) -> ModelProto:
    """One block of attention with two heads of 8; queries and keys of a lower rank."""
    b = Builder(seed)
    width, heads, size = 16, 2, 8

    def projected(array: Any) -> str:
        made = b.node("Add", b.node("MatMul", "x", b.add(array)), b.weight(width))
        split = b.node("Reshape", made, b.ints(0, 0, heads, size))
        return b.node("Transpose", split, perm=[0, 2, 1, 3])

    thin = b.rng.standard_normal((width, heads, rank)) @ b.rng.standard_normal((rank, size))
    q, k, v = (projected(a) for a in (thin.reshape(width, -1), *b.rng.standard_normal((2, 16, 16))))
    product = b.node("MatMul", q, b.node("Transpose", k, perm=[0, 1, 3, 2]))
    scores = b.node("Softmax", b.node("Mul", product, b.add(0.05)), axis=-1)
    mixed = b.node("Transpose", b.node("MatMul", scores, v), perm=[0, 2, 1, 3])
    joined = b.node("Reshape", mixed, b.ints(0, 0, width))
    out = b.node("Add", b.node("MatMul", joined, b.weight(width, width)), "x")
    y = b.node("MatMul", out, b.weight(width, 5))
    return b.model({"x": ["n", 6, width]}, {y: ["n", 6, 5]})


def inputs(count: int = 60) -> Any:
    return np.random.default_rng(1).standard_normal((count, 6, 16)).astype(np.float32)


def study(model: ModelProto, x: Any) -> tuple[Study, State]:
    state = run(model)
    data = dataset(model, x)
    half = folds(data.subset(range(45)), data.subset(range(45, 60)), 640)
    return Study(state.model, state.subject.shapes[0], state[Dims], half), state


def test_heads_have_bases() -> None:
    """Queries and keys by their product, values by what reads them; nothing else has one."""
    measured, state = study(attention(), inputs())
    views = find_views(state.model, measured.shapes, measured.dims.ties)
    found = find_bases(state.model, measured.dims, views)
    kinds = [{basis.read is None for basis in own} for own in found.values()]
    assert sorted(kinds, key=str) == [{False}, {True}]
    assert all(len(own) == 2 for own in found.values())


def test_a_nonlinearity_between_leaves_no_basis() -> None:
    """Queries behind a Relu cannot be turned."""
    model = attention()
    move = next(n for n in model.graph.node if n.op_type == "Transpose")
    name, move.output[0] = move.output[0], "moved"
    at = list(model.graph.node).index(move)
    model.graph.node.insert(at + 1, helper.make_node("Relu", ["moved"], [name], "rectified"))
    measured, state = study(model, inputs())
    views = find_views(state.model, measured.shapes, measured.dims.ties)
    found = find_bases(state.model, measured.dims, views)
    assert all(basis.read is not None for own in found.values() for basis in own)


def test_a_bias_that_is_added_later_leaves_no_basis() -> None:
    """Behind the move that makes heads: it would have to be turned where it stands."""
    model = attention()
    made = next(n for n in model.graph.node if n.op_type == "Transpose")
    name, made.output[0] = made.output[0], "heads"
    bias = numpy_helper.from_array(np.ones((1, 2, 1, 8), np.float32), "late")
    model.graph.initializer.append(bias)
    at = list(model.graph.node).index(made)
    model.graph.node.insert(at + 1, helper.make_node("Add", ["heads", "late"], [name], "later"))
    measured, state = study(model, inputs())
    views = find_views(state.model, measured.shapes, measured.dims.ties)
    found = find_bases(state.model, measured.dims, views)
    assert all(basis.read is not None for own in found.values() for basis in own)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_wide_reader_holds_the_last_fold_out(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Two sums instead of one a fold: the same samples are held out."""
    model = attention()
    state = run(model)
    shapes = state.subject.shapes[0]
    views = [*find_views(state.model, shapes, state[Dims].ties).values()]
    data = dataset(model, inputs())
    parts = [data.subset(range(10 * i, 10 * i + 10)) for i in range(count)]
    each = sums.gather(state.model, shapes, views, parts, 0)
    monkeypatch.setattr(sums, "WIDE", 0)
    two = sums.gather(state.model, shapes, views, parts, 0)
    for key, one in each.items():
        assert [len(one.folds), len(two[key].folds)] == [count, 2]
        np.testing.assert_allclose(one.folds[-1].aa, two[key].folds[-1].aa)
        np.testing.assert_allclose(total(one.folds[:-1]).aa, two[key].folds[0].aa)


def test_directions_beyond_the_rank_cost_nothing() -> None:
    """Queries of rank 3 and a bias need 4 of 8, though no stored channel is useless."""
    measured, _ = study(attention(rank=3), inputs())
    made = measured.run()
    bases = measured._bases
    (product,) = [i for i, own in bases.items() if own[0].read is None]
    curve = made[product].curve
    assert curve.at(np.array([4 / 8]))[0] < 1e-4
    assert curve.at(np.array([1 / 8]))[0] > 1e-2


def test_a_turned_model_is_exact_where_nothing_is_lost(tmp_path: Path) -> None:
    """Half of each head's queries and keys gone, outputs as before: no more were needed."""
    model = attention(rank=3)
    _, state = study(model, inputs())
    found = find_bases(
        state.model, state[Dims],
        find_views(state.model, state.subject.shapes[0], state[Dims].ties),
    )  # fmt: skip
    (index,) = [i for i, own in found.items() if own[0].read is None]
    name = state[Dims].dims[index].name
    np.savez(tmp_path / "data.npz", x=inputs(80))
    given: dict[str, Any] = {"data": tmp_path / "data.npz", "keep": {name: 4}, "latency_s": 0}
    made, plain = prune(model, **given), prune(model, repair=False, **given)
    whole = dataset(model, inputs(20))
    error, before = (output_errors(Model(model), r.made, whole).mean() for r in (made, plain))
    assert error < 1e-5 < 1e-3 < before


def test_a_mean_over_positions_is_looked_behind() -> None:
    """Few samples give few pooled rows; their positions are many."""
    b = Builder(0)
    hidden = b.node("Relu", b.node("Conv", "x", b.weight(6, 3, 1, 1)))
    flat = b.node("Flatten", b.node("GlobalAveragePool", hidden))
    y = b.node("Gemm", flat, b.weight(4, 6), transB=1)
    model = b.model({"x": ["n", 3, 5, 5]}, {y: ["n", 4]})
    state = run(model)
    shapes = state.subject.shapes[0]
    views = find_views(state.model, shapes, state[Dims].ties)
    found = [unpooled(state.model, shapes, view) for view in views.values()]
    assert found[0] is None
    assert found[1] is not None
    assert (found[1].name, found[1].axis) == (hidden, 1)


@pytest.mark.parametrize("seed", [0, 1])
def test_damage_is_none_at_full_width_and_never_falls(seed: int) -> None:
    """Whatever the net."""
    measured, _ = study(attention(seed), inputs())
    for one in measured.run().values():
        assert one.curve.damage[0] == pytest.approx(0, abs=1e-12)
        assert (np.diff(one.curve.damage) >= 0).all()
        assert np.isfinite(one.order).all()
