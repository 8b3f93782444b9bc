"""Searching plans: targets, how closely they are met, and in which order Dims are cut."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto

from onnxprune.errors import BudgetError
from onnxprune.planning.allocate import ALLOCATORS, global_ranking, readers_of, uniform
from onnxprune.planning.plan import FLOOR_SHARE, Plan
from onnxprune.planning.planner import CLOSE, Planner
from tests.builder import Builder
from tests.oracle import flow_of
from tests.plans import chain, planner, shares

Allocate = Callable[[Planner], Plan]
EACH = pytest.mark.parametrize("allocate", ALLOCATORS.values(), ids=list(ALLOCATORS))


@EACH
@pytest.mark.parametrize("share", [0.8, 0.5, 0.25])
def test_a_target_is_met_from_below_and_closely(allocate: Allocate, share: float) -> None:
    """Where widths are fine enough, within a twentieth of the target."""
    plan = allocate(planner(chain(96, 64, 96, 48), targets={"macs": share}))
    assert share * 0.95 < plan.ratios["macs"] <= share
    assert plan.coarse == ""


@EACH
def test_all_targets_hold(allocate: Allocate) -> None:
    """The tightest binds, whatever it counts."""
    plan = allocate(planner(chain(64, 64), targets={"macs": 0.9, "params": 0.4, "bytes": 0.8}))
    assert 0.36 < plan.ratios["params"] <= 0.4
    assert plan.ratios["macs"] <= 0.9
    assert plan.ratios["bytes"] <= 0.8


@EACH
def test_without_a_target_all_stays(allocate: Allocate) -> None:
    """Nothing is cut for nothing."""
    assert allocate(planner(chain(8, 8))).alive.all()


@EACH
def test_the_same_question_has_the_same_answer(allocate: Allocate) -> None:
    """Two planners over two flows of one model agree on every channel."""
    plans = [allocate(planner(chain(40, 24, 16), targets={"macs": 0.5})) for _ in range(2)]
    assert plans[0].levels == plans[1].levels
    assert np.array_equal(plans[0].alive, plans[1].alive)


@EACH
def test_no_dim_goes_below_its_floor(allocate: Allocate) -> None:
    """Even the smallest plan keeps an eighth of every Dim."""
    found = chain(64, 32, outputs=1)
    least = planner(found)
    whole = least.cost.whole.macs
    target = least.evaluate(np.zeros_like(least.top)).macs / whole
    plan = allocate(planner(found, targets={"macs": target}))
    assert min(shares(found, plan)) >= FLOOR_SHARE


def test_uniform_keeps_the_same_share_of_every_dim() -> None:
    """Up to the step of a Dim."""
    found = chain(96, 64, 128, 72)
    kept = shares(found, uniform(planner(found, targets={"macs": 0.5})))
    assert max(kept) - min(kept) <= 0.13


def test_the_ranking_cuts_where_macs_are_dear_and_scores_low() -> None:
    """Of two layers alike in cost the one with many worthless channels goes first."""
    found = chain(32, 32, 32)
    scores = np.ones(found.dims.count)
    _, middle, _ = found.dims.free
    scores[middle.channels[:16]] = 0.01
    plan = global_ranking(planner(found, scores=scores, targets={"macs": 0.54}))
    assert shares(found, plan) == [1.0, 0.5, 1.0]
    assert not plan.alive[middle.channels[:16]].any()


def test_a_dim_that_many_read_is_kept_longer() -> None:
    """What a stream loses is lost to every block behind it."""
    b = Builder(0)
    x = b.node("MatMul", "x", b.weight(3, 32))
    outs = [b.node("Relu", b.node("MatMul", x, b.weight(32, 32))) for _ in range(6)]
    y = b.node("Concat", *[b.node("MatMul", o, b.weight(32, 2)) for o in outs], axis=1)
    found = flow_of(b.model({"x": ["n", 3]}, {y: ["n", 12]}))
    scores = np.ones(found.dims.count)
    plan = global_ranking(planner(found, scores=scores, targets={"macs": 0.6}))
    stream, *rest = shares(found, plan)
    # The stream meets six times the MACs of a branch; alone by cost it would go first.
    assert stream >= max(rest) - 0.2


def test_a_node_counts_for_each_dim_with_its_share_of_the_sum() -> None:
    """Of what lies side by side in front of a product, each part is a part of what it reads."""
    b = Builder(0)
    parts = [b.node("Relu", b.node("MatMul", "x", b.weight(3, n))) for n in (6, 18)]
    y = b.node("MatMul", b.node("Concat", *parts, axis=1), b.weight(24, 2))
    dims = flow_of(b.model({"x": ["n", 3]}, {y: ["n", 2]})).dims
    readers = readers_of(dims)
    assert {len(d.channels): readers[d.index] for d in dims.free} == {6: 0.25, 18: 0.75}


@given(
    widths=st.lists(st.integers(2, 5), min_size=1, max_size=3),
    share=st.floats(0.2, 0.95),
    seed=st.integers(0, 50),
    name=st.sampled_from(sorted(ALLOCATORS)),
)
def test_small_models_get_the_closest_of_all_plans(
    widths: list[int], share: float, seed: int, name: str
) -> None:
    """Where few plans exist, none is closer below the target, unless that is close enough."""
    found = chain(*widths)
    work = planner(found, seed, targets={"macs": share}, multiple=1)
    costs = [
        work.evaluate(np.array(at)).macs / work.cost.whole.macs
        for at in product(*(range(n + 1) for n in work.top.tolist()))
    ]
    below = [c for c in costs if c <= share + 1e-12]
    if not below:
        with pytest.raises(BudgetError, match="smallest plan"):
            ALLOCATORS[name](work)
        return
    got = ALLOCATORS[name](work).ratios["macs"]
    assert got <= share + 1e-12
    # Nearer than a tenth is not searched for.
    assert got >= min(max(below), share * 0.9) - 1e-12


def test_the_dim_that_keeps_a_target_away_is_named() -> None:
    """One wide step is all there is: the plan says which, and where the step leads."""
    found = chain(4)
    plan = uniform(planner(found, targets={"macs": 0.7}, multiple=2))
    assert plan.ratios["macs"] == 0.5
    [dim] = found.dims.free
    assert f"Dim `{dim.name}` at 4 instead of 2 of 4 channels it would keep 100.0%" in plan.coarse


def test_an_automatic_multiple_gives_way_to_a_target() -> None:
    """Steps of eight are a preference; a target that falls between them is not."""
    found = chain(64, outputs=1)
    plan = uniform(planner(found, targets={"macs": 0.245}))
    assert 0.22 < plan.ratios["macs"] <= 0.245
    given = uniform(planner(found, targets={"macs": 0.245}, multiple=8))
    assert given.ratios["macs"] == 0.125


def test_fixed_dims_are_kept_as_asked() -> None:
    """The others make up for it."""
    found = chain(32, 32)
    first, _ = found.dims.free
    plan = uniform(planner(found, targets={"macs": 0.5}, fixed={first.index: 30}))
    assert plan.alive[first.channels].sum() == 30
    assert plan.ratios["macs"] <= 0.5


def test_skipped_dims_stay_whole() -> None:
    """And are not asked for."""
    found = chain(32, 32)
    first, second = found.dims.free
    plan = uniform(planner(found, targets={"macs": 0.6}, skip=frozenset({first.index})))
    assert plan.alive[first.channels].all()
    assert not plan.alive[second.channels].all()


def grouped() -> ModelProto:
    """A grouped convolution between two plain ones."""
    b = Builder(0)
    h = b.node("Conv", "x", b.weight(32, 3, 1, 1))
    h = b.node("Relu", b.node("Conv", h, b.weight(32, 8, 1, 1), group=4))
    y = b.node("Conv", h, b.weight(2, 32, 1, 1))
    return b.model({"x": ["n", 3, 2, 2]}, {y: ["n", 2, 2, 2]})


def test_groups_stay_where_their_rows_are_to_be_left_alone() -> None:
    """A group that goes would take rows of a skipped Dim along."""
    found = flow_of(grouped())
    outputs = max((d for d in found.dims.free if d.rows > 1), key=lambda d: d.index)
    plan = uniform(planner(found, targets={"macs": 0.7}, skip=frozenset({outputs.index})))
    assert plan.alive[outputs.channels].all()


@EACH
def test_parents_and_their_rows_are_planned_together(allocate: Allocate) -> None:
    """Whole groups and channels of each group go; every group that lives keeps as many."""
    found = flow_of(grouped())
    plan = allocate(planner(found, targets={"macs": 0.4}))
    assert 0.36 < plan.ratios["macs"] <= 0.4
    for dim in found.dims.free:
        counts = {int(plan.alive[p].sum()) for p in dim.parts} - {0}
        assert len(counts) == 1


@EACH
def test_a_target_that_holds_as_it_is_needs_no_cut(allocate: Allocate) -> None:
    """All of the MACs may stay, also where nothing could go."""
    assert allocate(planner(chain(8, 8), targets={"macs": 1.0})).alive.all()
    b = Builder(0)
    y = b.node("MatMul", "x", b.weight(3, 4))
    pinned = flow_of(b.model({"x": ["n", 3]}, {y: ["n", 4]}))
    assert allocate(planner(pinned, targets={"macs": 1.0})).alive.all()


def test_an_automatic_multiple_gives_way_to_the_floor() -> None:
    """What kernels like is no reason to refuse a budget."""
    plan = uniform(planner(chain(16, 16), targets={"macs": 0.05}))
    assert plan.ratios["macs"] <= 0.05


def test_close_means_close() -> None:
    """The room that is given back is smaller than what anybody would notice."""
    assert CLOSE <= 0.01
