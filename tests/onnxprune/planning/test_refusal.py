"""Budgets that cannot be met, and why."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from onnx import TensorProto, helper

from onnxprune.errors import BudgetError, UsageError
from onnxprune.planning.allocate import ALLOCATORS, uniform
from onnxprune.planning.plan import Plan
from onnxprune.planning.planner import Planner
from tests.builder import Builder
from tests.oracle import flow_of
from tests.plans import chain, planner

Allocate = Callable[[Planner], Plan]
EACH = pytest.mark.parametrize("allocate", ALLOCATORS.values(), ids=list(ALLOCATORS))
WHOLE = re.escape("smallest plan keeps 100.0%")


@EACH
def test_an_impossible_budget_says_what_is_possible(allocate: Allocate) -> None:
    """The least that can be reached, the Dims in the way, and a budget that would do."""
    found = chain(16, 16)
    with pytest.raises(BudgetError) as refused:
        allocate(planner(found, targets={"macs": 0.01}))
    assert "cannot keep 1% of MACs: the smallest plan keeps 4.2%" in str(refused.value)
    assert "pinned" in refused.value.where
    assert "graph output" in refused.value.where
    assert "2 are at the least width" in refused.value.where
    assert refused.value.hint == "raise the budget to 0.05"
    assert allocate(planner(found, targets={"macs": 0.05})).ratios["macs"] <= 0.05


def test_a_multiple_that_is_in_the_way_is_named() -> None:
    """No Dim may have fewer than one multiple."""
    with pytest.raises(BudgetError, match="the smallest plan keeps") as refused:
        uniform(planner(chain(16), targets={"macs": 0.3}, multiple=8))
    assert refused.value.hint == "raise the budget to 0.50, or ask for a multiple below 8"


def test_approximate_dims_are_offered() -> None:
    """What only an exact plan cannot reach, the hint says how to reach."""
    found = chain(16, norm=True)
    with pytest.raises(BudgetError, match="the smallest plan") as refused:
        uniform(planner(found, targets={"macs": 0.5}))
    assert "1 of 3 Dims is approximate" in refused.value.where
    assert "allow the 1 approximate Dim with --approximate" in refused.value.hint
    plan = uniform(planner(found, targets={"macs": 0.5}, approximate=True))
    assert plan.ratios["macs"] <= 0.5


def test_what_the_user_forbade_is_named() -> None:
    """Skipped and fixed Dims are in the way by choice."""
    found = chain(16, 16)
    first, second = found.dims.free
    limits = {"skip": frozenset({first.index}), "fixed": {second.index: 15}}
    with pytest.raises(BudgetError) as refused:
        uniform(planner(found, targets={"macs": 0.5}, **limits))
    assert f"left alone by --skip or --only: `{first.name}`" in refused.value.where
    assert f"set by --keep: `{second.name}`" in refused.value.where


def test_a_model_without_macs_is_refused() -> None:
    """There is nothing that half of could be kept; its operators are named."""
    b = Builder(0)
    y = b.node("Relu", b.node("Add", "x", b.weight(3)))
    with pytest.raises(BudgetError, match="no operators whose MACs are counted") as refused:
        uniform(planner(flow_of(b.model({"x": ["n", 3]}, {y: ["n", 3]})), targets={"macs": 0.5}))
    assert "`Add`, `Relu`" in refused.value.where


def test_a_model_that_lies_in_a_body_is_refused() -> None:
    """What an If holds is not looked into, and the user is told so."""
    b = Builder(0)
    info = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 3])
    weight = helper.make_tensor("w", TensorProto.FLOAT, [3, 3], range(9))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["z"])]
    body = helper.make_graph(nodes, "body", [], [info], [weight])
    y = b.node("If", "c", then_branch=body, else_branch=body)
    model = b.model({"x": ["n", 3], "c": []}, {y: ["n", 3]}, types={"c": TensorProto.BOOL})
    with pytest.raises(BudgetError, match="no operators whose MACs are counted") as refused:
        uniform(planner(flow_of(model), targets={"macs": 0.5}))
    assert "4 nodes are in bodies of `If`, which are not cut" in refused.value.where
    with pytest.raises(BudgetError, match=WHOLE) as held:
        uniform(planner(flow_of(model), targets={"params": 0.5}))
    assert "no axis carries channels: its operators are `If`" in held.value.where


def test_a_model_that_is_pinned_throughout_is_refused() -> None:
    """One layer from input to output: both ends are the caller's."""
    b = Builder(0)
    y = b.node("MatMul", "x", b.weight(3, 4))
    with pytest.raises(BudgetError, match=WHOLE) as refused:
        uniform(planner(flow_of(b.model({"x": ["n", 3]}, {y: ["n", 4]})), targets={"macs": 0.5}))
    assert "2 of 2 Dims are pinned" in refused.value.where
    assert "inspect" in refused.value.hint


@pytest.mark.parametrize(("name", "share", "says"), [
    ("mac", 0.5, "no target is named `mac`"),
    ("macs", 50, "no share"),
    ("macs", 0.0, "no share"),
])  # fmt: skip
def test_targets_are_checked(name: str, share: float, says: str) -> None:
    """A misspelt name or a percentage is bad usage, with a hint."""
    with pytest.raises(UsageError, match=says) as refused:
        planner(chain(8), targets={name: share})
    assert refused.value.hint
