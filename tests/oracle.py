"""What property tests of rules share: flow, a random cut, and the mask oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto

from onnxprune.backend.feeds import Array, seeded_inputs
from onnxprune.backend.runtime import session
from onnxprune.cutting.cut import Cut, cut
from onnxprune.cutting.oracle import mask, relative
from onnxprune.cutting.proof import Kept, prove
from onnxprune.identity.dims import BoolArray, Dim, Dims, find_dims
from onnxprune.identity.flow import Flow, walk
from onnxprune.model.graph import Model
from onnxprune.passes.cut_channels import REORDER_ROUNDS
from onnxprune.planning.cost import CostModel, model_cost
from onnxprune.rules import load_rules
from onnxprune.shape.shapes import Shapes
from onnxprune.shape.sizes import Sizes, choose

TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class Followed:
    """A model and what the flow found out about it."""

    model: Model
    sizes: Sizes
    shapes: tuple[Shapes, Shapes]
    dims: Dims

    def widths(self) -> list[tuple[int, int]]:
        """(rows, size) of every Dim that may be cut, ascending."""
        return sorted((d.rows, d.size) for d in self.dims.free)

    def pins(self) -> str:
        """Why the others may not."""
        return "; ".join(sorted({d.pinned for d in self.dims.dims if d.pinned}))


def flow_of(model: ModelProto) -> Followed:
    """Follow identities through a model whose constants are initializers."""
    known = Model(model)
    sizes, first, second, _ = choose(known)
    ties = walk(Flow(known, first, second), load_rules().flow_rule)
    return Followed(known, sizes, (first, second), find_dims(ties))


def random_removed(dims: Dims, seed: int, *, exact_only: bool = True) -> BoolArray:
    """Channels of a random plan: each Dim a random width, each row channels of its own.

    A parent (a head) takes all its children along; the rows that live keep equal counts.
    """
    rng = np.random.default_rng(seed)
    removed = np.zeros(dims.count, np.bool_)
    chosen = [d for d in dims.free if d.is_exact or not exact_only]
    above = {int(c) for d in chosen for c in d.channels if int(c) in dims.children}
    for dim in chosen:
        level = dim.levels[rng.integers(len(dim.levels))]
        if dim.channels[0] in above and len(dim.levels) > 1:
            level = dim.levels[rng.integers(len(dim.levels) - 1)]  # heads do go
        _thin(dim, level, removed, rng)
    _take_along(dims, removed)
    return removed


def _thin(dim: Dim, level: Array, removed: BoolArray, rng: np.random.Generator) -> None:
    for part, count in zip(dim.parts, level, strict=True):
        removed[rng.permutation(part)[int(count) :]] = True


def _take_along(dims: Dims, removed: BoolArray) -> None:
    for _ in range(8):  # heads of heads
        for parent, children in dims.children.items():
            if removed[parent]:
                removed[children] = True


def cut_at(found: Followed, removed: BoolArray) -> Cut:
    """The proven cut.

    Raises: AssertionError: a tie does not hold in it.
    """
    rules = load_rules()
    kept = Kept(found.dims, found.shapes[0], ~removed[found.dims.of])
    for _ in range(REORDER_ROUNDS):
        orders = {s: [*kept.orders.get(s, []), *t] for s, t in kept.wanted.items()}
        kept = Kept(found.dims, found.shapes[0], kept.alive, {**kept.orders, **orders})
        made = cut(
            found.model, found.dims, found.sizes, found.shapes, removed, rules, kept.orders
        )
        violations = prove(made.model, made.first, made.second, kept, rules.flow_rule)
        if not kept.wanted:
            break
    assert not violations
    assert not kept.wanted
    return made


def assert_cut_equals_mask(
    model: ModelProto,
    seed: int,
    *,
    tolerance: float = TOLERANCE,
    compared: Callable[[ModelProto], ModelProto] = lambda proto: proto,
) -> tuple[Followed, BoolArray, Cut]:
    """A cut model computes what the full one does once readers ignore the channels.

    Its cost is what the cost model said before.

    Args:
        compared: what is run in the place of a model: a copy that does not round.
    Returns: what was cut, so that a test can look at counts.
    """
    found = flow_of(model)
    removed = random_removed(found.dims, seed)
    made = cut_at(found, removed)
    if not any(o.domain for o in model.opset_import):
        onnx.checker.check_model(made.model.complete(), full_check=True)
    silenced = compared(mask(found.model, found.dims, removed))
    small = compared(made.model.proto)
    for shapes in (found.sizes.first, found.sizes.second):
        feeds = seeded_inputs(found.model.inputs, shapes, seed)
        for a, b in zip(run(silenced, feeds), run(small, feeds), strict=True):
            difference = relative(np.asarray(a), np.asarray(b))
            assert difference is None or difference < tolerance
    assert_cost_was_known(found, removed, made)
    return found, removed, made


def assert_cost_was_known(found: Followed, removed: BoolArray, made: Cut) -> None:
    """The cost model's MACs and parameters of a plan are those of the cut model."""
    rules = load_rules()
    told = CostModel(found.model, found.dims, choose(found.model)[3], found.shapes[0], rules)
    cost = model_cost(made.model, choose(made.model)[3], rules)
    plan = told.evaluate(~removed)
    assert (plan.macs, plan.params) == (cost.macs, cost.params)


def run(model: ModelProto, feeds: dict[str, Array]) -> list[Array]:
    """Outputs, without graph optimizations."""
    return session(model, optimize=False).run(feeds)
