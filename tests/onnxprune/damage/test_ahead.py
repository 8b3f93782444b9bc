"""Errors weighed by the readers further on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.damage.ahead import reads_ahead, root
from onnxprune.damage.curves import Study
from onnxprune.damage.sums import gather
from onnxprune.identity.dims import Dims
from onnxprune.readers.find import find_views
from onnxprune.readers.folds import folds
from tests.builder import Builder
from tests.calibrated import dataset
from tests.nets import run


def net() -> Any:
    """Two hidden layers; the last layer hardly looks at the second half of the second one."""
    b = Builder(0)
    first = b.node("Relu", b.node("MatMul", "x", b.weight(6, 12)))
    second = b.node("Relu", b.node("MatMul", first, b.weight(12, 8)))
    last = b.rng.standard_normal((8, 3)) * np.repeat([1.0, 1e-3], 4)[:, None]
    y = b.node("MatMul", second, b.add(last))
    return b.model({"x": ["n", 6]}, {y: ["n", 3]})


def samples(model: Any) -> list[Any]:
    x = np.random.default_rng(2).standard_normal((80, 6)).astype(np.float32)
    whole = dataset(model, x)
    return folds(whole.subset(range(60)), whole.subset(range(60, 80)), 640)


def test_damage_is_the_error_that_the_next_reader_makes() -> None:
    """Relative to the variance of what it gives; what nothing reads has no such measure."""
    model = net()
    state = run(model)
    dims, shapes = state[Dims], state.subject.shapes[0]
    views = list(find_views(state.model, shapes, dims.ties).values())
    sums = gather(state.model, shapes, views, samples(model), 0)
    _, middle, last = views
    assert reads_ahead(dims, middle, last)
    assert not reads_ahead(dims, last, middle)
    found = root(dims, middle, [sums[last.key]])
    assert found is not None
    errors = np.random.default_rng(1).standard_normal((5, 8))
    made = ((errors @ last.weights.T) ** 2).sum(axis=1) / sums[last.key].units[0]
    assert ((errors @ found.T) ** 2).sum(axis=1) == pytest.approx(made)
    assert root(dims, last, []) is None


def test_windows_count_with_all_their_positions() -> None:
    """The products of a kernel's columns are summed over its positions."""
    b = Builder(0)
    middle = b.node("Relu", b.node("Conv", "x", b.weight(4, 3, 1, 1)))
    y = b.node("Conv", middle, b.weight(5, 4, 3, 3), pads=[1, 1, 1, 1])
    model = b.model({"x": ["n", 3, 6, 6]}, {y: ["n", 5, 6, 6]})
    state = run(model)
    dims, shapes = state[Dims], state.subject.shapes[0]
    views = list(find_views(state.model, shapes, dims.ties).values())
    x = np.random.default_rng(2).standard_normal((8, 3, 6, 6)).astype(np.float32)
    first, second = views
    one = gather(state.model, shapes, views, [dataset(model, x)] * 2, 0)[second.key]
    found = root(dims, first, [one])
    assert found is not None
    kernel = second.weights.reshape(5, 4, 9)
    wanted = np.einsum("oit,ojt->ij", kernel, kernel) / one.units[0]
    assert found.T @ found == pytest.approx(wanted)


def test_what_the_next_readers_do_not_look_at_is_cheap() -> None:
    """The first layer's curve is lower where errors of the idle half of the second are free."""
    model = net()
    state = run(model)
    first = next(d for d in state[Dims].free if d.size == 12)
    study = [
        Study(state.model, state.subject.shapes[0], state[Dims], samples(model), is_ahead=ahead)
        for ahead in (False, True)
    ]
    plain, ahead = (one.run()[first.index] for one in study)
    assert not np.array_equal(plain.order, ahead.order)
    assert not np.allclose(plain.curve.damage, ahead.curve.damage)
