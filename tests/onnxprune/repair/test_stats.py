"""Patches and sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.backend.runtime import session
from onnxprune.model.graph import Model
from onnxprune.repair.readers import Target
from onnxprune.repair.stats import POSITIONS, Gatherer, moments, positions
from onnxprune.shape.sizes import choose
from tests.builder import Builder


@given(
    seed=st.integers(0, 99),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    pads=st.sampled_from([[0, 0, 0, 0], [1, 2, 0, 1], "SAME_UPPER", "SAME_LOWER", "VALID"]),
)
def test_patches_are_what_a_convolution_sums_over(
    seed: int, stride: int, dilation: int, pads: list[int] | str
) -> None:
    """Patches times weights give the outputs of ONNX Runtime."""
    from onnxprune.cleanup.linear import linear

    b = Builder(seed)
    placed = {"auto_pad": pads} if isinstance(pads, str) else {"pads": pads}
    dilations = [1, 1] if str(pads).startswith("SAME") else [dilation, 1]
    y = b.node("Conv", "x", b.weight(3, 2, 3, 2), strides=[stride, 1], dilations=dilations,
               **placed)  # fmt: skip
    proto = b.model({"x": [2, 2, 9, 8]}, {y: ["n", 3, "h", "w"]})
    model = Model(proto)
    x = b.rng.standard_normal((2, 2, 9, 8)).astype(np.float32)
    out = session(proto, optimize=False).run({"x": x})[0]
    node = model.nodes[0]
    target = Target(node, linear(model, choose(model)[1], node), True, [], None)
    at = np.sort(b.rng.permutation(out[:, 0].size)[:20])
    weights = model.array(node.inputs[1]).reshape(3, -1)
    got = target.seen(x, out.shape, at) @ weights.T
    assert got == pytest.approx(target.rows(out, at), abs=1e-4)


@given(seed=st.integers(0, 99), samples=st.integers(1, 50), is_full=st.booleans())
def test_sums_are_those_of_all_rows(seed: int, samples: int, is_full: bool) -> None:
    """Adding up sample by sample loses nothing."""
    rng = np.random.default_rng(seed)
    a, t = rng.standard_normal((2, samples, 4, 3))
    gatherer = Gatherer(is_full)
    for one in zip(a, t, strict=True):
        gatherer.add(*one)
    found = gatherer.finish()
    whole = moments(a.reshape(-1, 3), t.reshape(-1, 3), is_full=is_full)
    assert found.n == whole.n == 4 * samples
    for name in ("a", "t", "aa", "at", "tt"):
        assert getattr(found, name) == pytest.approx(getattr(whole, name))


def test_positions_depend_on_the_sample_alone() -> None:
    """Few are all taken; of many some are drawn, others for each sample."""
    assert positions(5, 0, 3).tolist() == [0, 1, 2, 3, 4]
    drawn = positions(1000, 0, 3)
    assert len(set(drawn.tolist())) == POSITIONS
    assert drawn.tolist() == positions(1000, 0, 3).tolist() != positions(1000, 0, 4).tolist()
