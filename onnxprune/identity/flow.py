"""Identity flow: what hangs together in a graph, found by following identities through it.

A `Flow` walks the nodes in order. Operator rules speak to it in a few words: `fields`, `put`,
`source` (fresh identities), `equal`, `contract`, `link` (rows of a parent), `pin`,
`approximate`. It works in two modes. When it *discovers*, ties are collected. When it *checks*
(the proof), every source carries the identities a cut kept, and each tie must already hold,
position by position; what does not is a violation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from onnxprune.identity.fields import (
    Field,
    IntArray,
    along,
    regroup,
    regroup_bounds,
    settle,
    thin_after,
    woven,
)
from onnxprune.identity.ties import Axes, Blocks, Checker, Pin, Reader, Source, Ties, Violation
from onnxprune.model.graph import Model, Node
from onnxprune.shape.shapes import Array, Shape, Shapes, constant, describe

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


class Flow:
    """One walk over a graph. Rules see the current node through it."""

    def __init__(
        self, model: Model, first: Shapes, second: Shapes, checker: Checker | None = None
    ) -> None:
        self.model, self.first, self.second, self.checker = model, first, second, checker
        self.ties = Ties()
        self.violations: list[Violation] = []
        self.node: Node = None  # type: ignore[assignment]  # set by the walk

    # --- what a rule may ask -------------------------------------------------------------

    def shape(self, name: str) -> Shape | None:
        """Concrete shape of a tensor at the first sizes; None where it depends on the data."""
        return self.first.shape.get(name)

    def shapes(self, name: str) -> tuple[Shape, Shape]:
        """Shapes at both sizes; equal entries are static."""
        return self.first.shape[name], self.second.shape[name]

    def value(self, slot: int) -> Array | None:
        """Known value of an input: shape arithmetic, or any constant at all."""
        name = self.node.input(slot)
        if (found := self.first.value.get(name)) is not None:
            return found
        if name in self.model.initializers and name not in self.model.overridable:
            return self.model.array(name)
        return None

    def is_float(self, name: str) -> bool:
        """True for a tensor of floating point numbers: data, not shape arithmetic."""
        return self.first.dtype.get(name) in FLOATS

    def is_weight(self, slot: int) -> bool:
        """True for an input that is an initializer, read where it stands."""
        name = self.node.input(slot)
        return name in self.model.initializers and name not in self.model.overridable

    def spans(self, name: str, axis: int) -> bool:
        """True where the axis had more than one position before anything was cut."""
        if self.checker and (known := self.checker.spans(name, axis)) is not None:
            return known
        return self.first.shape[name][axis] > 1

    def fields(self, slot: int) -> tuple[Field, ...]:
        """Fields of an input; a weight read without more ado gets one for each of its axes."""
        name = self.node.input(slot)
        if not self.is_weight(slot):
            return self.ties.fields.get(name, ())
        return self.source(slot, lambda: self.plain(self.first.shape[name]), name)

    # --- words ---------------------------------------------------------------------------

    def plain(self, shape: Shape) -> list[Field]:
        """Fresh identities for every axis longer than 1."""
        return [along(self.fresh(n), a, len(shape)) for a, n in enumerate(shape) if n > 1]

    def fresh(self, count: int) -> IntArray:
        """New identities, shape (count,)."""
        start = self.ties.count
        self.ties.count += count
        return np.arange(start, start + count, dtype=np.int32)

    def source(
        self, slot: int | str, make: Callable[[], Sequence[Field]], initializer: str = ""
    ) -> tuple[Field, ...]:
        """Identities made here: by `make` when discovering, as kept when checking."""
        key = (self.node.key, slot)
        if key not in self.ties.sources:
            kept = self.checker.source(key) if self.checker else None
            made = tuple(make()) if kept is None else kept
            self.ties.sources[key] = Source(made, initializer)
            if kept is not None and isinstance(slot, int) and initializer:
                self._check_lengths(initializer, kept)
            for one in made:
                self.joint(one)
        return self.ties.sources[key].fields

    def put(self, output: int, fields: Sequence[Field | None]) -> None:
        """Say which identities live on an output of the current node."""
        name = self.node.outputs[output] if output < len(self.node.outputs) else ""
        kept = tuple(f for f in fields if f is not None)
        if not name:
            return
        if self.checker:
            self._check_lengths(name, kept)
            if not self.checker.holds(name, kept):
                self._violate(f"`{name}` holds other channels than it should")
        if kept:
            self.ties.fields[name] = kept
            for one in kept:
                self.joint(one)

    def settle(
        self, key: str, moved: Sequence[tuple[IntArray, Sequence[int]]]
    ) -> list[Field | None]:
        """Fields from identities that went through a move, constant axes compressed.

        Which axes are constant is found when discovering and remembered under `key` for the
        check, where an axis may have become too short to tell.

        Args:
            moved: identities, and the axes preferred for thinning.
        """
        known = self.checker.axes(key) if self.checker else None
        if known is None or len(known) != len(moved):
            found = [settle(ids, thin) for ids, thin in moved]
            self.ties.settled[key] = [None if f is None else (f.axes, f.thin) for f in found]
            return found
        return [_keep_axes(m[0], axes) for m, axes in zip(moved, known, strict=True)]

    def reshape(
        self,
        key: str,
        fields: Sequence[Field],
        pairs: Sequence[tuple[Shape, Shape]],
        still: Sequence[int] = (),
    ) -> list[Field | None]:
        """Fields after a reshape, or seen through a view.

        Args:
            pairs: (shape before, shape after) at the first sizes, and at others where known.
            still: axes after it that do not thin.
        """
        known = self.checker.blocks(key) if self.checker else None
        if pairs[0][0] == pairs[0][1] and known is None:
            return list(fields)
        blocks = self._blocks(key, pairs)
        found = self.settle(
            key,
            [
                (
                    regroup(f.ids, *pairs[0], blocks, f.axes),
                    [a for a in thin_after(f, blocks) if a not in still],
                )
                for f in fields
            ],
        )
        self._hold_repeats(key, fields, found)
        for before, one in zip(fields, found, strict=True):
            if one is not None:
                self.joint(one)  # a view must stay a rectangle too
                self._cut_rows(before, one, pairs[0][0])
            if self.checker is None and (rows := woven(before, blocks)) is not None:
                self.ties.weaves += list(rows)
        return found

    def _hold_repeats(
        self, key: str, before: Sequence[Field], after: list[Field | None]
    ) -> None:
        """Repeats that became part of a joint field's rows are held: rows go as they were made.

        A key that serves several heads is repeated along an axis that is then merged with that of
        the keys; a head that went alone would leave its key behind for the others.
        """
        if self.checker:
            return
        for at, one in enumerate(after):
            if one is not None and any(
                other is not None
                and set(one.axes) < set(other.axes)
                and other.thin not in one.axes
                and set(old.axes).isdisjoint(before[at].axes)
                for old, other in zip(before, after, strict=True)
            ):
                self.pin([one], f"{self.where()} makes rows of repeats")
                after[at] = self.ties.settled[key][at] = None

    def _cut_rows(self, before: Field, after: Field, shape: Shape) -> None:
        """Rows made of one axis end where the rows woven into it do."""
        length = after.ids.shape[after.thin]
        if len(before.axes) == 1 < len(after.axes):
            self.sever(before, range(length, shape[before.thin], length))

    def sever(self, one: Field, ends: Sequence[int]) -> None:
        """Ranges of the thinned axis end here: so must each row that was woven into it.

        Kept positions of woven rows alternate again after a cut, so the part before an end holds
        as many of each row as of the next, or one more.
        """
        length = one.ids.shape[one.thin]
        inner = [at for at in ends if 0 < at < length]
        if self.checker or not self.ties.weaves or not inner:
            return
        for ids in np.moveaxis(one.ids, one.thin, -1).reshape(-1, length):
            low, high, order = ids.min(), ids.max(), np.argsort(ids, kind="stable")
            for rows in self.ties.weaves:
                if rows.max() >= low and rows.min() <= high:
                    self._sever(ids, order, rows, inner)

    def _sever(self, ids: IntArray, order: IntArray, rows: IntArray, ends: Sequence[int]) -> None:
        found = order[np.minimum(np.searchsorted(ids, rows, sorter=order), len(ids) - 1)]
        places = np.where(ids[found] == rows, found, -1)
        alternating = places.T[places.T >= 0]
        if not len(alternating) or (np.diff(alternating) <= 0).any():
            return  # not in this order here
        there = np.flatnonzero((places >= 0).any(axis=1))
        for at in ends:
            before = (places[there] >= 0) & (places[there] < at)
            counts = np.where(before, np.arange(1, rows.shape[1] + 1), 0).max(axis=1)
            if counts.any():
                self.ties.steps.append([rows[i, :n] for i, n in zip(there, counts, strict=True)])

    def _blocks(self, key: str, pairs: Sequence[tuple[Shape, Shape]]) -> Blocks:
        """The blocks of a reshape: after a cut those of the original, whose axes were longer."""
        found = self.checker.blocks(key) if self.checker else None
        if found is None or found[-1][1::2] != (len(pairs[0][0]), len(pairs[0][1])):
            found = regroup_bounds(pairs)
        blocks = [(x[i0:i1], y[j0:j1]) for x, y in pairs for i0, i1, j0, j1 in found]
        if any(np.prod(before) != np.prod(after) for before, after in blocks):
            self._violate("a reshape joins other axes than it did")
            found = regroup_bounds(pairs)
        self.ties.blocks[key] = found
        return found

    def equal(self, a: IntArray, b: IntArray) -> None:
        """These identities, broadcast against each other, are the same channels."""
        if a is b:
            return
        if self.checker is None:
            self.ties.pairs.append(_flat(a, b))
        elif not self._broadcasts(a, b) or not self.checker.same(a, b):
            self.checker.follow(a, b)
            self._violate(f"positions differ: {a.shape} and {b.shape}")

    def link(self, parent: IntArray, child: IntArray) -> None:
        """A parent is gone exactly if all its children are; arrays broadcast."""
        if self.checker is None:
            self.ties.links.append(_flat(parent, child))
        elif not self._broadcasts(parent, child) or not self.checker.linked(parent, child):
            self.checker.follow_rows(parent, child)
            self._violate(f"rows differ: {parent.shape} and {child.shape}")

    def joint(self, one: Field) -> None:
        """Rows of a joint field keep equal counts."""
        if self.checker is None and len(one.axes) > 1:
            self.ties.joints.append(np.moveaxis(one.ids, one.thin, -1))

    def part(self, ids: IntArray) -> None:
        """Positions that get a tensor of their own, which must not become empty."""
        if self.checker is None and ids.size:
            self.ties.parts.append(ids.ravel())

    def contract(self, slot: int, one: Field, *, beside: bool = False, alone: bool = False) -> None:
        """The node sums its input `slot` over this field, or what it adds it to."""
        self.ties.readers.append(Reader(self.node.key, slot, one, beside, alone))

    def pin(self, fields: Sequence[Field], reason: str) -> None:
        """These identities cannot go."""
        if self.checker is None:
            self.ties.pins += [Pin(f.ids.ravel(), reason) for f in fields]

    def approximate(self, fields: Sequence[Field], reason: str) -> None:
        """These can go, but removing is not the same as zeroing."""
        if self.checker is None:
            self.ties.approximate += [Pin(f.ids.ravel(), reason) for f in fields]

    def tie_along(self, one: Field, axes: Sequence[int]) -> Field | None:
        """Make a field constant along axes: all identities along them become one channel."""
        ids = one.ids
        for axis in axes:
            head = ids.take([0], axis=axis)
            if ids.shape[axis] > 1:
                self.equal(ids, head)
            ids = head
        rest = tuple(a for a in one.axes if a not in axes)
        if not rest:
            return None
        return Field(ids, rest, one.thin if one.thin in rest else rest[-1])

    def whole(self, fields: Sequence[Field], axes: Sequence[int], reason: str) -> list[Field]:
        """The fields, constant along axes that stay whole; what lives on these alone is held."""
        found = [self.tie_along(f, [a for a in f.axes if a in axes]) for f in fields]
        self.pin([f for f, one in zip(fields, found, strict=True) if one is None], reason)
        return [one for one in found if one is not None]

    def where(self, note: str = "") -> str:
        """The current node in the user's words."""
        return describe(self.node) + (f", {note}" if note else "")

    # --- checking ------------------------------------------------------------------------

    def _broadcasts(self, a: IntArray, b: IntArray) -> bool:
        lengths = zip(reversed(a.shape), reversed(b.shape), strict=False)
        return all(n == m or 1 in (n, m) for n, m in lengths)

    def _check_lengths(self, name: str, fields: Sequence[Field]) -> None:
        shape = self.first.shape.get(name)
        for one in fields:
            if shape is None or any(one.ids.shape[a] != shape[a] for a in one.axes):
                self._violate(f"`{name}` has shape {shape}, its identities {one.ids.shape}")

    def _violate(self, what: str) -> None:
        self.violations.append(Violation(self.where(), what))


def _keep_axes(ids: IntArray, known: Axes | None) -> Field | None:
    if known is None:
        return None
    for axis in range(ids.ndim):
        if axis not in known[0]:
            ids = ids.take([0], axis=axis)
    return Field(ids, *known)


def _flat(a: IntArray, b: IntArray) -> tuple[IntArray, IntArray]:
    x, y = np.broadcast_arrays(a, b)
    return x.ravel(), y.ravel()


Rule = Callable[[Flow, Node], Any]
RuleFor = Callable[[Node, int], Rule | None]


def walk(flow: Flow, rule_for: RuleFor) -> Ties:
    """Run every node's rule in order, then pin what leaves the graph.

    Args:
        rule_for: the rule of a node at the model's opset, None where there is none.
    """
    captured = flow.model.captured
    for node in flow.model.nodes:
        flow.node = node
        _visit(flow, node, rule_for)
        crossing = [n for n in node.outputs if n in captured]
        for name in crossing:
            flow.pin(flow.ties.fields.get(name, ()), f"`{name}` is used inside an If, Loop or Scan")
    for info in flow.model.outputs:
        flow.pin(flow.ties.fields.get(info.name, ()), f"graph output `{info.name}`")
    return flow.ties


def _visit(flow: Flow, node: Node, rule_for: RuleFor) -> None:
    if _only_shapes(flow, node):
        return
    rule = rule_for(node, flow.model.opsets.get(node.domain, 0))
    unshaped = [n for n in node.inputs if n and flow.shape(n) is None]
    missing = [n for n in node.outputs if n and flow.shape(n) is None]
    if rule is None or unshaped or missing:
        _pin_inputs(flow, node, rule is None)
        return
    rule(flow, node)


def _only_shapes(flow: Flow, node: Node) -> bool:
    """Shape arithmetic carries no identities, unless it grew some (ConstantOfShape, Expand)."""
    if node.op in {"Shape", "Size"} and node.domain == "":
        return True
    known = all(n in flow.first.value for n in node.outputs if n)
    grows = node.op in {"ConstantOfShape", "Expand"} and flow.is_float(node.outputs[0])
    carries = any(n in flow.ties.fields for n in node.inputs)
    weights = any(constant(flow.model, n) is None for n in node.inputs if n in
                  flow.model.initializers)  # fmt: skip
    return known and not grows and not carries and not weights


def _pin_inputs(flow: Flow, node: Node, no_rule: bool) -> None:
    if no_rule:
        flow.ties.unknown.append(node.key)
        reason = f"no rule for the operator {node.op}: {describe(node)}"
    else:
        reason = f"shape is known only when it runs: {describe(node)}"
    for slot, name in enumerate(node.inputs):
        if name and flow.shape(name) is not None:
            flow.pin(flow.fields(slot), reason)
