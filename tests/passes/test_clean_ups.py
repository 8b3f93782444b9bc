"""All clean-ups together, on drawn graphs whose weights were damaged at random."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto

from tests.cleaning import Array, changed, cleaned
from tests.strategies import graphs

ALL = ("clean-constant", "clean-duplicate", "clean-unread")


def damaged(proto: ModelProto, seed: int) -> ModelProto:
    """Slices along some axis of the weights set to zero, or made copies or multiples of others.

    Weights of equal length get the same treatment, so that whole channels are hit now and then.
    """
    rng = np.random.default_rng(seed)
    chosen = {n: rng.permutation(n)[: rng.integers(0, n)] for n in range(2, 65)}
    factor = float(rng.choice([0.0, 0.0, 1.0, 2.0]))

    def edit(array: Array) -> None:
        if array.dtype.kind != "f" or not array.ndim:
            return
        axis = int(rng.integers(0, min(array.ndim, 2)))
        rows = np.moveaxis(array, axis, 0)
        if 2 <= len(rows) <= 64 and rng.random() < 0.7:
            hit = chosen[len(rows)]
            rows[hit] = factor * rows[[(h + 1) % len(rows) for h in hit]]

    scales = {n for node in proto.graph.node if node.op_type == "Resize" for n in node.input}
    weights = [t.name for t in proto.graph.initializer if t.name not in scales]
    return changed(proto, dict.fromkeys(weights, edit))


@settings(deadline=None, max_examples=25)
@given(proto=graphs(), seed=st.integers(0, 2**16))
def test_clean_ups_are_exact_on_their_own(proto: ModelProto, seed: int) -> None:
    """Outputs stay the same, and no clean-up has to be left out to keep them so."""
    cleaned(damaged(proto, seed), *ALL)
