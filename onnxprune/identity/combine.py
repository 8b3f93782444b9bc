"""One mechanism for every operator that lines operands up: elementwise, contractions, norms.

Operands are described by labels, one an axis, as in Einsum. Axes with equal labels are the same
positions; labels missing from the output are summed. A grouped or multi-head operand is seen
through a *view*, a reshape of it that gives groups, heads or gates an axis of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from onnxprune.identity.fields import (
    Field,
    IntArray,
    Shape,
    along,
    place,
    regroup,
    regroup_bounds,
    settle,
    thin_after,
)
from onnxprune.identity.flow import Flow

Kind = tuple[tuple[int, ...], int]


@dataclass(frozen=True)
class Operand:
    """An input of the node as the operator sees it."""

    slot: int
    labels: tuple[str | None, ...]
    """A name for each axis of the view; None: the axis may carry no identity."""
    view: Shape | None = None
    own: tuple[tuple[str, ...], ...] = ()
    """Labels over which a weight has joint identities of its own (group and output)."""
    still: tuple[str, ...] = ()
    """Labels along which identities repeat (gates): what differs there is tied."""
    again: tuple[str, ...] = ()
    """Labels of length 1 here, along which this operand serves again and again (query heads)."""


@dataclass(frozen=True)
class Result:
    """The output in labels; `view` is reshaped to the tensor's real shape."""

    labels: tuple[str | None, ...]
    view: Shape | None = None


@dataclass(frozen=True, eq=False)
class Lifted:
    """A field in the space of all labels, and as it stands on its operand."""

    field: Field
    slot: int
    own: Field


class Combiner:
    """Lines up the operands of one node; made, used and dropped by `combine`."""

    def __init__(self, flow: Flow, operands: Sequence[Operand], word: str) -> None:
        self.flow, self.operands, self.word = flow, operands, word
        named = (x for o in operands for x in o.labels if x is not None)
        self.space = list(dict.fromkeys(named))
        self.lifted: list[Lifted] = []

    # --- operands into the space of labels -------------------------------------------------

    def tensor_shape(self, operand: Operand) -> Shape:
        shape = self.flow.shape(self.flow.node.input(operand.slot))
        assert shape is not None, "the walk only visits nodes whose shapes are known"
        return shape

    def view(self, operand: Operand) -> Shape:
        return self.tensor_shape(operand) if operand.view is None else operand.view

    def lift(self, operand: Operand, seen: Field) -> Field | None:
        """A field of an operand's view in the space; None on an axis without a label."""
        order = [self.space.index(x) if x is not None else -1 for x in operand.labels]
        places = [order[a] for a in seen.axes]
        if -1 in places or len(set(places)) < len(places):
            return None
        shape = [1] * len(self.space)
        for axis in seen.axes:
            shape[order[axis]] = seen.ids.shape[axis]
        ids = np.transpose(seen.ids, np.argsort(order, kind="stable"))
        return seen.moved(ids.reshape(shape), order)

    def gather(self) -> None:
        """Lift every operand's fields; weights after the data, whose pattern they take."""
        weights = [o for o in self.operands if self.flow.is_weight(o.slot)]
        for operand in self.operands:
            if operand not in weights:
                self._add(operand, self.flow.fields(operand.slot))
        for operand in weights:
            name = self.flow.node.input(operand.slot)
            fields = self.flow.source(
                operand.slot, lambda o=operand: self._mirror(o), name  # type: ignore[misc]
            )
            self._add(operand, fields)

    def _add(self, operand: Operand, fields: Sequence[Field]) -> None:
        key = f"{self.flow.node.key}/{operand.slot}/{self.word}"
        pairs = [(self.tensor_shape(operand), self.view(operand))]
        still = [i for i, x in enumerate(operand.labels) if x in operand.still]
        for own, seen in zip(fields, self.flow.reshape(key, fields, pairs, still), strict=True):
            loose = [a for a in seen.axes if operand.labels[a] is None] if seen else []
            seen = self.flow.tie_along(seen, loose) if seen and loose else seen
            lifted = self._steady(operand, self.lift(operand, seen) if seen else None)
            if lifted is None:
                self.flow.pin([own], f"{self.flow.where()} cannot lose positions of this axis")
            else:
                self.lifted.append(Lifted(lifted, operand.slot, own))

    def _steady(self, operand: Operand, one: Field | None) -> Field | None:
        """The field, constant along the labels that hold still, repeated where it serves again."""
        axes = [a for a in one.axes if self.space[a] in operand.still] if one else []
        found = self.flow.tie_along(one, axes) if one and axes else one
        for label in operand.again:
            length = max(self._length(o, label) for o in self.operands)
            if found is not None and length > 1:
                at = self.space.index(label)
                ids = np.repeat(found.ids, length, axis=at)
                found = Field(ids, tuple(sorted({*found.axes, at})), found.thin)
        return found

    def _length(self, operand: Operand, label: str) -> int:
        return self.view(operand)[operand.labels.index(label)] if label in operand.labels else 1

    def _mirror(self, operand: Operand) -> list[Field]:
        """Fresh identities for a weight, in the pattern of the data it is lined up with."""
        pairs = zip(operand.labels, self.view(operand), strict=True)
        lengths = {x: n for x, n in pairs if x and n > 1 and x not in operand.still}
        made: dict[Kind, Field | None] = {}
        covered = set[str]()
        for kind, other in zip(kinds(self.lifted), (x.field for x in self.lifted), strict=True):
            labels = [self.space[a] for a in other.axes]
            fits = all(other.ids.shape[a] == lengths.get(x)
                       for a, x in zip(other.axes, labels, strict=True))  # fmt: skip
            if kind in made or not fits:
                continue
            unique, inverse = np.unique(other.ids, return_inverse=True)
            pattern = self.flow.fresh(len(unique))[inverse].reshape(other.ids.shape)
            made[kind] = self._lower(operand, pattern, self.space[other.thin])
            covered |= set(labels)
        found = list(made.values())
        for group in self._own(operand, lengths, covered):
            ids = self.flow.fresh(int(np.prod([lengths[x] for x in group])))
            shape = [lengths[x] if x in group else 1 for x in self.space]
            order = np.argsort([self.space.index(x) for x in group])
            ids = ids.reshape([lengths[x] for x in group]).transpose(order).reshape(shape)
            found.append(self._lower(operand, ids, group[-1]))
        return [field for field in found if field is not None]

    def _own(
        self, operand: Operand, lengths: dict[str, int], covered: set[str]
    ) -> list[tuple[str, ...]]:
        """Groups of labels that no data covers: declared ones, then one a label."""
        groups = []
        for declared in operand.own:
            group = tuple(x for x in declared if x in lengths)
            if group and not set(group) <= covered:
                groups.append(group)
                covered |= set(group)
        return groups + [(x,) for x in lengths if x not in covered]

    def _lower(self, operand: Operand, ids: IntArray, thin: str) -> Field | None:
        """Identities in the space, as a field over the weight's own axes."""
        view, shape = self.view(operand), self.tensor_shape(operand)
        axes = [self.space.index(x) if x is not None else None for x in operand.labels]
        kept = [a for a in axes if a is not None]
        compact = ids.transpose(kept + [a for a in range(ids.ndim) if a not in kept])
        small = iter(compact.shape[: len(kept)])
        seen = compact.reshape([1 if a is None else next(small) for a in axes])
        thin_axis = operand.labels.index(thin)
        if operand.view is None:
            return settle(seen, [thin_axis])
        blocks = regroup_bounds([(view, shape)])
        whole = Field(seen, (thin_axis,), thin_axis)
        return settle(regroup(seen, view, shape, blocks), thin_after(whole, blocks))

    def follow_order(self) -> None:
        """When checking, take weights in the order in which their data arrives.

        Moves may change the order of what is left (heads as the minor axis of a flat one, each
        with columns of its own); a weight lined up with it must be taken in that order.
        """
        if self.flow.checker is None:
            return
        weights = {o.slot: o for o in self.operands if self.flow.is_weight(o.slot)}
        found = list(zip(self.lifted, kinds(self.lifted), strict=True))
        data = {kind: x for x, kind in reversed(found) if x.slot not in weights}
        for at, (item, kind) in enumerate(found):
            other = data.get(kind)
            if item.slot not in weights or other is None:
                continue
            key = (self.flow.node.key, item.slot)
            order = self.flow.checker.order(key, item.field, other.field)
            if order is None:
                continue
            self._record_order(weights[item.slot], item, order)
            ids = np.take_along_axis(item.field.ids, order, axis=item.field.thin)
            self.lifted[at] = Lifted(replace(item.field, ids=ids), item.slot, item.own)

    def _record_order(self, operand: Operand, item: Lifted, order: IntArray) -> None:
        """Tell the checker the order in positions of the weight's own axis."""
        assert self.flow.checker is not None
        shape = self.tensor_shape(operand)
        own = along(np.arange(shape[item.own.thin]), item.own.thin, len(shape))
        blocks = regroup_bounds([(shape, self.view(operand))])
        seen = settle(regroup(own.ids, shape, self.view(operand), blocks), [])
        lifted = None if seen is None else self.lift(operand, seen)
        if lifted is None:
            return
        whole = np.broadcast_shapes(lifted.ids.shape, order.shape)
        moved = np.take_along_axis(
            np.broadcast_to(lifted.ids, whole), np.broadcast_to(order, whole), item.field.thin
        )
        take = self._lower(operand, moved, self.space[item.field.thin])
        if take is not None:
            key = (self.flow.node.key, operand.slot)
            self.flow.checker.reorder(key, take, item.own.thin)

    # --- ties ------------------------------------------------------------------------------

    def fix(self) -> None:
        """An axis that cannot shrink stays whole in everything lined up with it."""
        for label in self.space:
            index = self.space.index(label)
            fixed = [o for o in self.operands if self._is_fixed(o, label, index)]
            if not fixed:
                continue
            name = self.flow.node.input(fixed[0].slot)
            axis = fixed[0].labels.index(label)
            what = "graph input " if name in self.flow.model.input_names else ""
            reason = f"lined up with {what}`{name}`, axis {axis}, by {self.flow.where()}"
            for at, item in enumerate(self.lifted):
                if index in item.field.axes:
                    whole = self.flow.whole([item.field], [index], reason) or [item.field]
                    self.lifted[at] = replace(item, field=whole[0])

    def _is_fixed(self, operand: Operand, label: str, index: int) -> bool:
        if label not in operand.labels:
            return False
        carries = any(x.slot == operand.slot and index in x.field.axes for x in self.lifted)
        return not carries and self.view(operand)[operand.labels.index(label)] > 1

    def tie(self) -> None:
        """Tie the fields of different operands wherever they share labels."""
        found = list(zip(self.lifted, kinds(self.lifted), strict=True))
        known = {(x.slot, kind) for x, kind in found}
        for (a, one), (b, two) in combinations(found, 2):
            apart = one != two and one[0] == two[0]  # each has a partner of its own kind
            if a.slot != b.slot and not (apart and {(a.slot, two), (b.slot, one)} <= known):
                self._pair(a.field, b.field)

    def _pair(self, a: Field, b: Field) -> None:
        if len(a.axes) > len(b.axes):
            a, b = b, a
        common = set(a.axes) & set(b.axes)
        if not common:
            return
        if len(common) < len(a.axes):
            self._overlap(a, b, sorted(common))
        elif len(a.axes) == len(b.axes) or b.thin in a.axes:
            self.flow.equal(a.ids, b.ids)
        else:
            self.flow.link(a.ids, b.ids)

    def _overlap(self, a: Field, b: Field, common: list[int]) -> None:
        """Fields that share rows only: a parent stands for the rows of both."""
        for one in (a, b):
            if one.thin in common:
                rest = [x for x in one.axes if x not in common]
                slim = self.flow.tie_along(one, rest)
                assert slim is not None, "the common axes remain"
                other = b if one is a else a
                self._pair(slim, other)
                return
        self.parent([a, b], common)

    def parent(self, joints: Sequence[Field], rows: Sequence[int]) -> Field:
        """A field over rows of joint fields: a row is gone if all its positions are."""

        def make() -> list[Field]:
            shape = [1] * len(self.space)
            index = np.zeros(1, np.int64)
            for one in joints:
                table = np.moveaxis(one.ids, list(rows), range(len(rows)))
                for at, axis in enumerate(rows):
                    shape[axis] = table.shape[at]
                table = table.reshape(int(np.prod(table.shape[: len(rows)])), -1)
                own = np.unique(table, axis=0, return_inverse=True)[1].reshape(-1)
                index = index * (own.max() + 1) + own
            unique, inverse = np.unique(index, return_inverse=True)
            ids = self.flow.fresh(len(unique))[inverse].reshape(shape)
            return [Field(ids, tuple(rows), rows[-1])]

        word = f"{self.word} {'-'.join(self.space[a] for a in rows)}"
        [field] = self.flow.source(word, make)
        for one in joints:
            self.flow.link(field.ids, one.ids)
        return field

    # --- the output --------------------------------------------------------------------------

    def read(self, result: Result) -> None:
        """Remember who sums over what."""
        summed = {i for i, x in enumerate(self.space) if x not in result.labels}
        for item in self.lifted:
            if summed & set(item.field.axes):
                self.flow.contract(item.slot, item.own)

    def survive(self, result: Result) -> list[Field]:
        """Fields of the output, still in the space."""
        out = {i for i, x in enumerate(self.space) if x in result.labels}
        kept = [x for x in self.lifted if set(x.field.axes) <= out]
        mixed: dict[tuple[int, ...], list[Field]] = {}
        for item in self.lifted:
            one = item.field
            rest = tuple(a for a in one.axes if a in out)
            if not rest or len(rest) == len(one.axes):
                continue
            if one.thin in rest:
                slim = self.flow.tie_along(one, [a for a in one.axes if a not in out])
                kept += [replace(item, field=slim)] if slim is not None else []
            else:
                mixed.setdefault(rest, []).append(one)
        for rest, joints in mixed.items():
            parent = self.parent(joints, rest)
            for other in kept:
                if set(other.field.axes) >= set(rest):
                    self._pair(parent, other.field)
            kept.append(Lifted(parent, -1, parent))
        return _without_repeats(kept)


def combine(
    flow: Flow, operands: Sequence[Operand], result: Result, output: int = 0, word: str = "rows"
) -> list[Field]:
    """Tie operands that are lined up by labels and put what is left on an output.

    Returns: the fields put on the output.
    """
    present = [o for o in operands if flow.node.input(o.slot)]
    work = Combiner(flow, present, word)
    work.gather()
    work.follow_order()
    work.fix()
    work.tie()
    work.read(result)
    kept = work.survive(result)
    name = flow.node.outputs[output]
    shape = flow.shape(name)
    assert shape is not None, "the walk only visits nodes whose shapes are known"
    placed = [place(one, work.space, result.labels) for one in kept]
    for one in placed:
        flow.joint(one)
    pairs = [(result.view or shape, shape)]
    fields = flow.reshape(f"{flow.node.key}/out {output}/{word}", placed, pairs)
    flow.put(output, fields)
    return [f for f in fields if f is not None]


def kinds(lifted: Sequence[Lifted]) -> list[Kind]:
    """What tells the fields of an operand apart: axes, and a number where several share them.

    Positions of one axis may carry identities of two kinds (a flat axis made of heads, and of
    what all heads have alike): they are gone where either is.
    """
    count: Counter[tuple[int, tuple[int, ...]]] = Counter()
    found = []
    for item in lifted:
        found.append((item.field.axes, count[item.slot, item.field.axes]))
        count[item.slot, item.field.axes] += 1
    return found


def _without_repeats(lifted: Sequence[Lifted]) -> list[Field]:
    """Fields of one kind are tied already; a parent is implied by its joint field."""
    first: dict[Kind, Lifted] = {}
    for kind, item in zip(kinds(lifted), lifted, strict=True):
        first.setdefault(kind, item)
    kept = list(first.values())

    def is_implied(one: Lifted) -> bool:
        joint = (k for k in kept if k.slot != one.slot)  # what stands on one operand is not tied
        return any(set(one.field.axes) <= set(k.field.rows) for k in joint)

    return [one.field for one in kept if not is_implied(one)]
