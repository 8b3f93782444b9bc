"""Which models seeded inputs fit, and how they are drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

from onnxprune.backend.feeds import model_inputs
from onnxprune.errors import DataError, PruneError
from onnxprune.model.graph import Model
from onnxprune.samples import standins
from onnxprune.shape.sizes import choose
from tests.builder import Builder
from tests.measured import net


def unfit(model: ModelProto) -> str:
    return standins.unfit(Model(model), choose(Model(model))[3])


def spatial(op: str, *weights: tuple[int, ...], **more: Any) -> ModelProto:
    """One layer over an image of 4 channels."""
    b = Builder(0)
    y = b.node(op, "x", *(b.weight(*shape) for shape in weights), **more)
    return b.model({"x": ["n", 4, 8, 8]}, {y: ["n", 4, "h", "w"]})


@pytest.mark.parametrize(
    "model",
    [
        spatial("Conv", (4, 4, 3, 3)),
        spatial("Conv", (4, 4, 1, 2)),
        spatial("ConvTranspose", (4, 4, 2, 2), strides=[2, 2]),
        spatial("MaxPool", kernel_shape=[2, 2]),
        spatial("AveragePool", kernel_shape=[1, 3]),
    ],
    ids=lambda m: m.graph.node[0].op_type,
)
def test_a_window_is_named(model: ModelProto) -> None:
    """The layer and its operator, for whoever wonders why nothing is repaired."""
    assert "`n_v0`" in unfit(model)
    assert f"({model.graph.node[0].op_type})" in unfit(model)


@pytest.mark.parametrize(
    "model",
    [
        spatial("Conv", (4, 4, 1, 1)),
        spatial("ConvTranspose", (4, 4, 1, 1)),
        spatial("MaxPool", kernel_shape=[1, 1], strides=[2, 2]),
        spatial("GlobalAveragePool"),
        net(),
    ],
    ids=lambda m: m.graph.node[0].op_type,
)
def test_sums_over_channels_alone_have_no_window(model: ModelProto) -> None:
    """Each position by itself, or all of them."""
    assert unfit(model) == ""


def test_a_window_that_is_computed_counts() -> None:
    """Its attribute tells how wide it is, or its shape."""
    b = Builder(0)
    y = b.node("Conv", "x", b.node("Relu", b.weight(4, 4, 3, 3)))
    assert unfit(b.model({"x": ["n", 4, 8, 8]}, {y: ["n", 4, 6, 6]}))


def tokens(batch: int | str = "n") -> ModelProto:
    """Rows of a table of 7, beside a mask whose batch lies on its second axis, and a number."""
    b = Builder(0)
    h = b.node("Gather", b.weight(7, 3), "ids")  # (n, 5, 3)
    mask = b.node("Unsqueeze", b.node("Transpose", "mask"), b.ints(2))
    y = b.node("Mul", b.node("Mul", h, mask), "scale")
    return b.model({"ids": [batch, 5], "mask": [5, batch], "scale": []}, {y: [batch, 5, 3]},
                   types={"ids": TensorProto.INT64})  # fmt: skip


def drawn(model: ModelProto, seed: int = 0, meets: float = 9.0) -> Any:
    shapes = choose(Model(model))[0].cost
    return standins.drawn(Model(model), shapes, seed, meets)


def test_samples_lie_along_the_batch_axis() -> None:
    """What indexes a table stays within it; what has no batch axis is the same for all."""
    data = drawn(tokens())
    assert data.is_seeded
    assert data.n == standins.SAMPLES
    [feeds] = data.batches(data.n)
    assert feeds["ids"].shape == (data.n, 5)
    assert feeds["mask"].shape == (5, data.n)
    assert feeds["scale"].shape == ()
    assert set(np.unique(feeds["ids"])) == set(range(7))
    standins.check_run(Model(tokens()), data, ())


def test_a_fixed_batch_is_filled() -> None:
    """As many batches as make them enough to fit to."""
    data = drawn(tokens(48))
    assert (data.batch, data.n) == (48, 48 * 20)
    assert all(len(part.rows) % 48 == 0 for part in data.split(0))


def test_a_table_gets_more_samples() -> None:
    """Where a layer sees one row a sample."""
    assert drawn(net(), meets=0.9).n == standins.MOST_SAMPLES
    assert drawn(net(), meets=2).n == standins.MOST_SAMPLES // 2
    assert standins.drawn(Model(net()), {"x": (32, 12)}, 0, 32.0).n == standins.MOST_SAMPLES


def test_the_seed_draws_them_and_no_trial_has_them() -> None:
    """Figures come from inputs that nothing was fitted to."""
    model = Model(net())
    first, same, other = (drawn(net(), seed).arrays["x"] for seed in (0, 0, 1))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    trial = model_inputs(model, {"x": (len(first), 12)}, 0)["x"]
    assert not np.isin(trial, first).any()


def test_a_model_without_samples_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its inputs have no batch axis, or are too large to be drawn at all."""
    b = Builder(0)
    y = b.node("Add", "x", b.weight(3, 4))
    with pytest.raises(DataError, match="no input of the model has a batch axis"):
        drawn(b.model({"x": []}, {y: [3, 4]}))
    monkeypatch.setattr(standins, "MOST_BYTES", 1000)
    with pytest.raises(DataError, match="GiB"):
        drawn(net())


def test_numbers_that_are_not_finite_are_found() -> None:
    """The logarithm of half of them is none."""
    b = Builder(0)
    y = b.node("Log", b.node("MatMul", "x", b.weight(4, 3)))
    model = b.model({"x": ["n", 4]}, {y: ["n", 3]})
    with pytest.raises(PruneError, match=f"`{y}` is not finite"):
        standins.check_run(Model(model), drawn(model), ())
