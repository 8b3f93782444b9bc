"""Why a budget cannot be met: what stands in the way, in the user's words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from math import ceil

from onnxprune.errors import BudgetError
from onnxprune.identity.dims import Dim
from onnxprune.model.graph import Model, all_graphs, bodies
from onnxprune.planning.cost import CostModel
from onnxprune.planning.plan import Limits, Plan

WORDS = {"macs": "MACs", "params": "parameters", "bytes": "bytes"}
# Names that fit into a message.
NAMED = 3


def nothing_counted(cost: CostModel, name: str) -> BudgetError:
    """A target on a model that has nothing of what the target counts."""
    what = (
        "operators whose MACs are counted (convolutions, products of matrices, recurrent cells)"
        if name == "macs"
        else "weights that are stored as initializers"
    )
    return BudgetError(
        f"cannot keep a share of {WORDS[name]}: the model has no {what}",
        where=_contents(cost.model),
        hint="there is nothing in this model that pruning channels could make smaller",
    )


def _contents(model: Model) -> str:
    """What a model has instead of channels."""
    graph = model.proto.graph
    main = Counter(n.op_type for n in graph.node)
    holders = sorted({n.op_type for n in graph.node if any(True for _ in bodies(n))})
    inside = sum(len(g.node) for g in all_graphs(graph)) - len(graph.node)
    listed = ", ".join(f"`{op}`" for op, _ in main.most_common(NAMED)) or "none at all"
    where = f"its operators are {listed}" + (", ..." if len(main) > NAMED else "")
    if holders:
        named = ", ".join(f"`{op}`" for op in holders)
        where += f"; {inside} nodes are in bodies of {named}, which are not cut"
    return where


def impossible(cost: CostModel, limits: Limits, open_dims: Collection[int], least: Plan) -> (
    BudgetError
):  # fmt: skip
    """The smallest plan is above a target.

    Args:
        open_dims: indices of the Dims that the plan was free to cut.
    """
    ratios = least.ratios
    name = max(limits.targets, key=lambda n: ratios[n] - limits.targets[n])
    held = _held(cost, open_dims, least, name)
    soft = [d for d in held if not d.pinned and not d.is_exact and _left(d, limits)]
    hint = f"raise the budget to {ceil(ratios[name] * 100 - 1e-9) / 100:.2f}"
    if ratios[name] >= 1 and not soft:
        hint = "`onnxprune inspect MODEL` lists what could be cut, and why the rest cannot"
    if (limits.multiple or 1) > 1:
        hint += f", or ask for a multiple below {limits.multiple}"
    if soft and not limits.approximate:
        dims = "Dim" if len(soft) == 1 else "Dims"
        hint += f", or allow the {len(soft)} approximate {dims} with --approximate"
    return BudgetError(
        f"cannot keep {limits.targets[name]:.0%} of {WORDS[name]}: the smallest plan keeps "
        f"{ratios[name]:.1%}",
        where=_reasons(cost, limits, open_dims, held),
        hint=hint,
    )


def _may_matter(dim: Dim) -> bool:
    """False for an axis of one position that nothing holds: there is nothing to cut."""
    return bool(dim.pinned) or len(dim.channels) > 1


def _left(dim: Dim, limits: Limits) -> bool:
    return dim.index not in limits.skip and dim.index not in limits.fixed


def _held(cost: CostModel, open_dims: Collection[int], least: Plan, name: str) -> list[Dim]:
    """Dims that were not cut, those in the way of most first."""
    weight: Counter[int] = Counter()
    for amount, dims in cost.charges(least.alive, name):
        for index in dims:
            weight[index] += amount  # type: ignore[assignment]  # amounts may be fractions
    held = [d for d in cost.dims.dims if d.index not in open_dims and _may_matter(d)]
    return sorted(held, key=lambda d: (-weight[d.index], d.index))


def _reasons(
    cost: CostModel, limits: Limits, open_dims: Collection[int], held: list[Dim]
) -> str:
    groups: list[tuple[str, list[str]]] = [
        ("pinned", [f"`{d.name}` ({d.pinned})" for d in held if d.pinned]),
        ("left alone by --skip or --only",
         [f"`{d.name}`" for d in held if d.is_free and d.index in limits.skip]),
        ("set by --keep", [f"`{d.name}`" for d in held if d.is_free and d.index in limits.fixed]),
        ("approximate", [f"`{d.name}` ({d.approximate})" for d in held
                         if d.is_free and not d.is_exact and _left(d, limits)
                         and not limits.approximate]),
    ]  # fmt: skip
    total = sum(_may_matter(d) for d in cost.dims.dims)
    lines = [
        f"{len(names)} of {total} Dims {_are(names)} {word}: {'; '.join(names[:NAMED])}"
        + ("; ..." if len(names) > NAMED else "")
        for word, names in groups
        if names
    ]
    if open_dims:
        lines.append(f"{len(open_dims)} {_are(open_dims)} at the least width a Dim may have")
    return "; ".join(lines) or f"no axis carries channels: {_contents(cost.model)}"


def _are(things: Collection[object]) -> str:
    return "is" if len(things) == 1 else "are"
