"""The mask oracle over generated graphs: a cut model is the original whose readers see zeros.

`ONNXPRUNE_GRAPHS=5000 pytest tests/onnxprune/test_generated.py` draws that many instead, each run
other ones with `ONNXPRUNE_SEED=7`.
"""

from __future__ import annotations

import os
from collections import Counter

import onnx
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from onnx import ModelProto

from onnxprune.backend.feeds import seeded_inputs
from onnxprune.model.graph import Model
from onnxprune.normal.normalize import normalize
from tests.oracle import (
    assert_cost_was_known,
    assert_cut_equals_mask,
    cut_at,
    flow_of,
    random_removed,
    run,
)
from tests.sketch import FLAT, GRID, TOKENS
from tests.strategies import graphs

GRAPHS = int(os.environ.get("ONNXPRUNE_GRAPHS", "160"))
SEED = int(os.environ.get("ONNXPRUNE_SEED", "1"))
drawn = settings(
    max_examples=GRAPHS,
    deadline=None,
    database=None,
    derandomize=False,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("kind", [FLAT, TOKENS, GRID])
def test_cutting_equals_silencing(kind: str) -> None:
    """A random plan over exact Dims changes nothing but what is read; most graphs can be cut."""
    counts: Counter[str] = Counter()

    @seed(SEED)
    @drawn
    @given(model=graphs(kinds=(kind,)), plan=st.integers(0, 1000))
    def each(model: ModelProto, plan: int) -> None:
        proto = normalize(Model(model)).proto
        found, removed, _ = assert_cut_equals_mask(proto, plan)
        counts["graphs"] += 1
        counts["cut graphs"] += bool(removed.any())
        counts["free Dims"] += len(found.dims.free)
        counts["cut Dims"] += sum(bool(removed[d.channels].any()) for d in found.dims.free)

    each()
    assert counts["cut graphs"] > 0.6 * counts["graphs"]
    assert counts["cut Dims"] > 0.5 * counts["free Dims"]
    assert counts["free Dims"] > 1.5 * counts["graphs"]


@seed(SEED)
@settings(drawn, max_examples=GRAPHS // 2)
@given(model=graphs(), plan=st.integers(0, 1000))
def test_approximate_cuts_are_wired(model: ModelProto, plan: int) -> None:
    """With norms and means over channels the proof holds, the cut runs, its cost was known."""
    found = flow_of(normalize(Model(model)).proto)
    removed = random_removed(found.dims, plan, exact_only=False)
    made = cut_at(found, removed)
    onnx.checker.check_model(made.model.complete(), full_check=True)
    for shapes in (found.sizes.first, found.sizes.second):
        run(made.model.proto, seeded_inputs(found.model.inputs, shapes, plan))
    assert_cost_was_known(found, removed, made)
