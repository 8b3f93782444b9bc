"""What all scores hold to that look at data."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from onnxprune.damage import sums
from onnxprune.errors import UsageError
from onnxprune.identity.dims import Dims
from onnxprune.manager import AnyPass, PassManager
from onnxprune.passes.score_activation import ScoreActivation
from onnxprune.passes.score_activation_variance import ScoreActivationVariance
from onnxprune.passes.score_in_out import ScoreInOut
from onnxprune.passes.score_obs import ScoreObs
from onnxprune.passes.score_output import ScoreOutput
from onnxprune.passes.score_variance import ScoreVariance
from onnxprune.readers.frontier import batches
from tests.builder import Builder
from tests.calibrated import calibrated, scored
from tests.nets import run, score, two_layers

WITH_DATA = [
    ScoreActivation(),
    ScoreVariance(),
    ScoreActivationVariance(),
    ScoreObs(),
    ScoreOutput(),
]
every = pytest.mark.parametrize("one", WITH_DATA, ids=lambda p: p.name)


def samples(*shape: int, seed: int = 1) -> np.ndarray[Any, Any]:
    """Normal inputs."""
    return np.random.default_rng(seed).standard_normal(shape)


def images() -> ModelProto:
    """A residual stream, groups, and a Flatten before the last layer."""
    b = Builder(0)
    x = b.node("Relu", b.node("Conv", "x", b.weight(8, 3, 3, 3), pads=[1, 1, 1, 1]))
    h = b.node("Relu", b.node("Conv", x, b.weight(12, 4, 3, 3), pads=[1, 1, 1, 1], group=2))
    h = b.node("Add", x, b.node("Conv", h, b.weight(8, 12, 1, 1)))
    h = b.node("MaxPool", h, kernel_shape=[3, 3], strides=[3, 3])
    y = b.node("Gemm", b.node("Flatten", h), b.weight(32, 5))
    return b.model({"x": ["n", 3, 6, 6]}, {y: ["n", 5]})


def attention(dead: int = -1) -> ModelProto:
    """Two heads of four channels over five tokens; the values of one may be zero."""
    b = Builder(0)
    parts = [b.rng.standard_normal((6, 8)) for _ in range(3)]
    if dead >= 0:
        parts[2][:, 4 * dead : 4 * dead + 4] = 0
    split = [
        b.node(
            "Transpose",
            b.node("Reshape", b.node("MatMul", "x", b.add(w)), b.ints(0, -1, 2, 4)),
            perm=[0, 2, 1, 3],
        )
        for w in parts
    ]
    q, k, v = split
    weights = b.node("Softmax", b.node("MatMul", q, b.node("Transpose", k, perm=[0, 1, 3, 2])))
    mixed = b.node("Transpose", b.node("MatMul", weights, v), perm=[0, 2, 1, 3])
    y = b.node("MatMul", b.node("Reshape", mixed, b.ints(0, -1, 8)), b.weight(8, 6))
    return b.model({"x": ["n", 5, 6]}, {y: ["n", 5, 6]})


@every
def test_without_data_one_error_names_the_score(one: AnyPass) -> None:
    """And says what to do."""
    with pytest.raises(UsageError, match=f"`{one.name}`.*none or too few") as caught:
        run(two_layers(np.ones((2, 3)), np.ones((3, 2))), one)
    assert "--data" in caught.value.hint


@every
def test_a_dead_channel_scores_least(one: AnyPass) -> None:
    """A ReLU that never opens."""
    first, second = samples(4, 6, seed=2), samples(6, 3, seed=3)
    first[:, 2] = 0
    bias = np.full(6, 0.5)
    bias[2] = -1.0
    [found] = scored(two_layers(first, second, bias=bias), samples(60, 4), one)
    assert found.argmin() == 2
    assert (found > found[2]).sum() == 5


@every
@pytest.mark.parametrize("make", [images, attention])
def test_every_channel_gets_a_number(one: AnyPass, make: Any) -> None:
    """Of each kind of Dim, its mean 1."""
    model = make()
    shape = (5, 6) if make is attention else (3, 6, 6)
    found = scored(model, samples(60, *shape), one)
    assert len(found) >= 2
    for own in found:
        assert np.isfinite(own).all()
        assert (own >= 0).all()
        assert own.mean() == pytest.approx(1.0)


@every
def test_batches_do_not_matter(one: AnyPass, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are taken sample by sample."""
    found = []
    for size in (1, 8, 50):
        monkeypatch.setattr(sums, "batches", partial(batches, size=size))
        found.append(scored(images(), samples(60, 3, 6, 6), one))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a == pytest.approx(b, rel=1e-4)


@every
def test_the_same_data_gives_the_same_scores(one: AnyPass) -> None:
    """To the last bit."""
    x = samples(60, 3, 6, 6)
    first, second = (scored(images(), x, one) for _ in range(2))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))


@every
def test_a_head_of_zeros_scores_below_the_other(one: AnyPass) -> None:
    """Heads own the inputs of their rows."""
    for dead in (0, 1):
        found = scored(attention(dead), samples(60, 5, 6), one)
        [heads] = [own for own in found if len(own) == 2]
        assert heads.argmin() == dead
        assert heads[0] != heads[1]


@every
def test_queries_and_keys_fall_back_on_their_weights(one: AnyPass) -> None:
    """No stored weight sums over them."""
    model = attention()
    state, plain = calibrated(model, samples(60, 5, 6)), score(model, ScoreInOut())
    found = scored(model, samples(60, 5, 6), one)
    PassManager([one], given=[Dims]).run(state)
    same = [np.allclose(a, b) for a, b in zip(found, plain, strict=True)]
    assert sum(same) == 1  # queries and keys share a Dim


@every
def test_half_precision_scores_alike(one: AnyPass) -> None:
    """Up to rounding; ranks may swap neighbours only."""
    first, second, x = samples(4, 6, seed=2), samples(6, 1, seed=3), samples(60, 4)
    found = []
    for dtype, kind in ((np.float32, 1), (np.float16, 10)):
        b = Builder(0)
        h = b.node("Relu", b.node("MatMul", "x", b.add(first, dtype)))
        y = b.node("MatMul", h, b.add(second, dtype))
        model = b.model({"x": ["n", 4]}, {y: ["n", 1]}, types={"x": kind, y: kind})
        found.append(scored(model, x, one, dtype=dtype)[0])
    assert found[1] == pytest.approx(found[0], rel=0.05)
