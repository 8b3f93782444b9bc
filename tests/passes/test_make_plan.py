"""Planning as a pass: patterns, wishes, warnings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from onnxprune.errors import UsageError
from onnxprune.identity.dims import Dims
from onnxprune.manager import PassManager, State
from onnxprune.passes.find_dims import FindDims
from onnxprune.passes.make_plan import MakePlan
from onnxprune.passes.score_l2 import ScoreL2
from onnxprune.planning.cost import Cost
from onnxprune.planning.plan import Plan
from tests.builder import Builder
from tests.nets import run, state_of

HALF = (("macs", 0.5),)


def three() -> ModelProto:
    """Three hidden layers; nodes n_v0, n_v2, n_v4, n_v6, weights w0 to w3."""
    b, h = Builder(0), "x"
    for before in (4, 32, 32):
        h = b.node("Relu", b.node("MatMul", h, b.weight(before, 32)))
    y = b.node("MatMul", h, b.weight(32, 3))
    return b.model({"x": ["n", 4]}, {y: ["n", 3]})


def widths(**options: Any) -> dict[str, int]:
    """Kept channels of the free Dims, by name."""
    state = run(three(), ScoreL2(), MakePlan(**options))
    return {d.name: int(state[Plan].alive[d.channels].sum()) for d in state[Dims].free}


def refused(**options: Any) -> UsageError:
    """The complaint about options."""
    with pytest.raises(UsageError) as found:
        widths(**options)
    return found.value


def test_the_worst_channels_of_each_dim_go() -> None:
    """Those with the shortest filters."""
    state = run(three(), ScoreL2(), MakePlan(targets=HALF, allocate="uniform"))
    first = state[Dims].free[0]
    norms = np.linalg.norm(state.model.array("w0"), axis=0)
    kept = state[Plan].alive[first.channels]
    assert norms[kept].min() > norms[~kept].max()
    assert state[Plan].ratios["macs"] <= 0.5


@pytest.mark.parametrize("allocate", ["uniform", "global"])
def test_skipped_names_stay_whole(allocate: str) -> None:
    """The name of a weight, or a pattern over nodes."""
    assert widths(targets=HALF, allocate=allocate, skip=("w0",))["w0"] == 32
    kept = widths(targets=(("macs", 0.8),), allocate=allocate, skip=("n_v[02]",))
    assert kept["w0"] == kept["w1"] == 32
    assert kept["w2"] < 32


def test_only_named_dims_are_cut() -> None:
    """All others stay whole."""
    kept = widths(targets=(("macs", 0.7),), only=("w2",))
    assert kept["w0"] == 32
    assert kept["w2"] < 32


def test_keep_fixes_a_width() -> None:
    """A number of channels or a share, by the name of a Dim, weight or node."""
    assert widths(keep=(("w1", 20),)) == {"w0": 32, "w1": 20, "w2": 32}
    assert widths(keep=(("w*", 0.5),)) == {"w0": 16, "w1": 16, "w2": 16}


def test_a_node_stands_for_what_it_makes() -> None:
    """Not for what it reads, although that passes it too."""
    assert widths(keep=(("n_v2", 20),)) == {"w0": 32, "w1": 20, "w2": 32}


def test_wishes_and_targets_go_together() -> None:
    """The others make up for what is fixed."""
    kept = widths(targets=HALF, keep=(("w1", 32),))
    assert kept["w1"] == 32
    assert kept["w0"] + kept["w2"] < 64


def test_names_that_are_not_there_are_refused() -> None:
    """With those that are close."""
    wrong = refused(skip=("w9",))
    assert "`w9` names no Dim, node or weight" in str(wrong)
    assert "`w0`" in wrong.hint


def test_a_wish_for_what_cannot_be_cut_is_refused() -> None:
    """And says why it cannot."""
    wrong = refused(keep=(("w3", 2),))
    assert "Dim `w3` cannot be cut" in str(wrong)
    assert "graph output" in wrong.where
    assert "nothing would be kept" in str(refused(keep=(("w1", 0),)))


def test_an_unknown_allocator_is_refused() -> None:
    """The hint lists those there are."""
    assert "`uniform`" in refused(allocate="unifrom").hint


def test_a_target_that_widths_keep_away_is_a_warning() -> None:
    """The run goes on, and the user knows which Dim to look at."""
    b = Builder(0)
    h = b.node("Relu", b.node("MatMul", "x", b.weight(3, 4)))
    y = b.node("MatMul", h, b.weight(4, 2))
    net = b.model({"x": ["n", 3]}, {y: ["n", 2]})
    state: State = run(net, ScoreL2(), MakePlan(targets=(("macs", 0.7),), multiple=2))
    [warning] = state.warnings
    assert warning.startswith("the plan keeps 50.0% of MACs, the closest below 70%")


def test_the_same_seed_gives_the_same_plan() -> None:
    """Levels and channels, twice from the file on."""
    first, again = (run(three(), ScoreL2(), MakePlan(targets=HALF))[Plan] for _ in range(2))
    assert first.levels == again.levels
    assert np.array_equal(first.alive, again.alive)


def test_targets_are_shares_of_the_model_before_clean_ups() -> None:
    """What a clean-up has won counts towards the target."""
    state = state_of(three())
    before = state_of(three()).subject
    before.__dict__["cost"] = Cost(macs=10**6, params=10**6, bytes=10**6)
    state.history.append(before)
    PassManager([FindDims(), ScoreL2(), MakePlan(targets=HALF)]).run(state)
    assert state[Plan].alive.all()
    assert state[Plan].whole.macs == 10**6
