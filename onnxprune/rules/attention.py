"""Attention and rotary embeddings: heads are rows, each with channels of its own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod, sqrt

import numpy as np

from onnxprune.identity.combine import Combiner, Operand, Result, combine
from onnxprune.identity.fields import Field, IntArray, along, place
from onnxprune.identity.flow import Flow
from onnxprune.model.graph import Node
from onnxprune.rules.registry import ShapeOf, rules
from onnxprune.rules.wiring import Wiring
from onnxprune.shape.shapes import Shape

Axes = tuple[str | None, ...]
CONTRIB = "com.microsoft"


def _shape(flow: Flow, node: Node, slot: int) -> Shape:
    shape = flow.shape(node.inputs[slot])
    assert shape is not None, "the walk only visits nodes whose shapes are known"
    return shape


def _keeps_past(flow: Flow, node: Node, past: Sequence[int]) -> bool:
    """True, and all inputs held, where keys and values come from or go to another run."""
    outside = [node.input(i) for i in past] + list(node.outputs[1:])
    if not any(outside):
        return False
    for slot, name in enumerate(node.inputs):
        if name:
            flow.pin(flow.fields(slot), f"{flow.where()}: past or present keys and values")
    return True


# --- queries, keys and values as operands ---------------------------------------------------------


@rules.on("Attention")
def attention(flow: Flow, node: Node) -> None:
    """Queries and keys share their channels, values have their own; heads are rows of all."""
    if _keeps_past(flow, node, (4, 5)):
        return
    q, k = _shape(flow, node, 0), _shape(flow, node, 1)
    flat = len(q) == 3
    kv = int(node.attr("kv_num_heads")) if flat else k[1]
    heads = int(node.attr("q_num_heads")) if flat else q[1]
    _attend(flow, node, kv, heads // kv, 3)


@rules.on("MultiHeadAttention", domain=CONTRIB)
def multi_head(flow: Flow, node: Node) -> None:
    """As Attention; the biases of queries, keys and values come as one vector."""
    if _keeps_past(flow, node, (6, 7, 8, 9)):
        return
    _attend(flow, node, int(node.attr("num_heads")), 1, 5)
    if not node.input(3):
        return
    if any(len(_shape(flow, node, i)) != 3 for i in range(3)):
        flow.pin(flow.fields(3), f"{flow.where()}: keys and values by head with one bias")
        return
    start = 0
    for slot in range(3):
        length = _shape(flow, node, slot)[2]
        data = [f for f in flow.fields(slot) if 2 in f.axes]
        for bias in flow.fields(3):
            ids = bias.ids[start : start + length]
            if not data:
                flow.pin([along(ids, 0, 1)], f"lined up with `{node.inputs[slot]}`, axis 2")
            for one in data:
                flow.equal(one.ids, ids)
        start += length
    for bias in flow.fields(3):
        flow.contract(3, bias, beside=True)


def _attend(flow: Flow, node: Node, kv: int, each: int, mask: int) -> None:
    """Tie queries, keys, values and a mask, and put the result.

    Args:
        kv: heads of keys and values; `each` of them serves so many heads of queries.
        mask: slot of what is added to the scores, or hides some.
    """
    operands = [
        _by_head(flow, node, 0, kv, each, "d"),
        _by_head(flow, node, 1, kv, 1, "d"),
        _by_head(flow, node, 2, kv, 1, "e"),
    ]
    if node.input(mask):
        operands.append(_mask(flow, node, mask, kv, each))
    out = flow.shape(node.outputs[0]) or ()
    labels, view = _view(out, kv, each, "e")
    combine(flow, operands, Result(labels, view), word="heads")
    _group_heads(flow, node)


def _group_heads(flow: Flow, node: Node) -> None:
    """Heads of queries that share keys and values go together with them."""
    made = flow.ties.sources.get((node.key, "heads kv-each"))
    if made is None:
        return
    [heads] = made.fields
    kv = min(heads.axes)

    def groups() -> list[Field]:
        shape = [n if a == kv else 1 for a, n in enumerate(heads.ids.shape)]
        return [Field(flow.fresh(shape[kv]).reshape(shape), (kv,), kv)]

    [parent] = flow.source("groups of heads", groups)
    flow.link(parent.ids, heads.ids)


def _by_head(flow: Flow, node: Node, slot: int, kv: int, each: int, last: str) -> Operand:
    labels, view = _view(_shape(flow, node, slot), kv, each, last)
    return Operand(slot, labels, view, again=("each",) if each == 1 else ())


def _view(shape: Shape, kv: int, each: int, last: str) -> tuple[Axes, Shape]:
    """Labels and view of (batch, heads, tokens, size) or (batch, tokens, heads x size)."""
    if len(shape) == 4:
        return ("n", "kv", "each", None, last), (shape[0], kv, each, *shape[2:])
    size = shape[2] // max(kv * each, 1)
    return ("n", None, "kv", "each", last), (*shape[:2], kv, each, size)


def _mask(flow: Flow, node: Node, slot: int, kv: int, each: int) -> Operand:
    """A mask or bias over (batch, heads, queries, keys), of which the first may be missing."""
    shape = _shape(flow, node, slot)
    if len(shape) < 3 or shape[-3] == 1:
        batch: Axes = ("n",) * (len(shape) == 4)
        return Operand(slot, batch + (None,) * (len(shape) - len(batch)))
    batch = ("n",) * (len(shape) == 4)
    view = (*shape[:-3], kv, each, *shape[-2:])
    return Operand(slot, (*batch, "kv", "each", None, None), view, (("kv", "each"),))


@rules.macs("Attention")
@rules.macs("MultiHeadAttention", domain=CONTRIB)
def attention_macs(node: Node, shape_of: ShapeOf) -> int:
    """Each query meets each key, and each weight each value."""
    keys = shape_of(node.inputs[1])[-2]
    return (prod(shape_of(node.inputs[0])) + prod(shape_of(node.outputs[0]))) * keys


@rules.rewire("Attention")
def rescale(wiring: Wiring, node: Node) -> None:
    """Head counts follow; the scale stays that of the old size."""
    q, k = node.inputs[:2]
    old, new = wiring.before(q)[0], wiring.after(q)[0]
    before, after = old[-1], new[-1]
    if len(old) == 3:
        heads, kv = int(node.attr("q_num_heads")), int(node.attr("kv_num_heads"))
        left = _living(wiring, q, heads)
        before, after = before // heads, after // left
        wiring.set(node, q_num_heads=left, kv_num_heads=_living(wiring, k, kv))
    _hold_scale(wiring, node, before, after)


@rules.rewire("MultiHeadAttention", domain=CONTRIB)
def rescale_multi_head(wiring: Wiring, node: Node) -> None:
    """The head count follows; the scale stays that of the old size."""
    q, heads = node.inputs[0], int(node.attr("num_heads"))
    left = _living(wiring, q, heads)
    wiring.set(node, num_heads=left)
    _hold_scale(wiring, node, wiring.before(q)[0][2] // heads, wiring.after(q)[0][2] // left)


def _living(wiring: Wiring, name: str, heads: int) -> int:
    """Heads that keep any position of the last axis."""
    shape = wiring.before(name)[0]
    kept = wiring.kept(name, len(shape) - 1)
    return heads if kept is None else len(np.unique(kept // (shape[-1] // heads)))


def _hold_scale(wiring: Wiring, node: Node, before: int, after: int) -> None:
    """Scores are divided by the root of the size the model was trained with."""
    if before != after and not node.attr("scale", 0.0):
        wiring.set(node, scale=1 / sqrt(before))


# --- queries, keys and values from one weight -----------------------------------------------------


@rules.on("Attention", domain=CONTRIB)
def packed(flow: Flow, node: Node) -> None:
    """Columns of the weight make queries, keys and values of all heads, one after the other."""
    if node.attr("do_rotary", 0) or _keeps_past(flow, node, (4, 6)):
        flow.pin(flow.fields(0), f"{flow.where()}: rotates inside")
        return
    operands = [Operand(0, ("n", None, "i")), Operand(1, ("i", "o")), Operand(2, ("o",))]
    result = Result(("n", None, "o"))
    work = Combiner(flow, [o for o in operands if node.input(o.slot)], "columns")
    work.gather()
    work.follow_order()
    work.fix()
    work.tie()
    work.read(result)
    fields = [place(f, work.space, result.labels) for f in work.survive(result)]
    columns = [f for f in fields if 2 in f.axes]
    flow.pin([f for f in columns if f.axes != (2,)], f"{flow.where()}: rows of columns")
    for item in work.lifted:  # projected and summed in one node
        if work.space.index("o") in item.field.axes:
            flow.contract(item.slot, item.own, beside=True)
    heads = int(node.attr("num_heads"))
    kept = [f for f in fields if 2 not in f.axes]
    for one in [f for f in columns if f.axes == (2,)][:1]:
        values = _split_heads(flow, node, one.ids.ravel(), heads)
        kept.append(along(values.ravel(), 2, 3))
    flow.put(0, kept)


def _sizes(node: Node, total: int) -> list[int]:
    given = node.attr("qkv_hidden_sizes")
    return [int(n) for n in given] if given else [total // 3] * 3


def _split_heads(flow: Flow, node: Node, columns: IntArray, heads: int) -> IntArray:
    """Tie queries and keys, make heads rows of all three; returns the identities of values."""
    sizes = _sizes(node, len(columns))
    q, k, v = (x.reshape(heads, -1) for x in np.split(columns, np.cumsum(sizes)[:2]))
    flow.equal(q, k)
    spans = flow.checker is not None or heads > 1
    for table in (q, v):
        flow.joint(Field(table, (0, 1), 1))
    if spans:
        [parent] = flow.source("heads", lambda: [along(flow.fresh(heads), 0, 2)])
        if node.input(5) and (flow.shape(node.inputs[5]) or (1, 1))[1] > 1:
            for bias in flow.fields(5):
                _tie_bias(flow, bias, parent.ids)
        for table in (q, v):
            flow.link(parent.ids, table)
    found: IntArray = v
    return found


def _tie_bias(flow: Flow, bias: Field, heads: IntArray) -> None:
    """What is added to the scores of each head goes with it."""
    if bias.axes == (1,):
        flow.equal(bias.ids, heads.reshape(1, -1, 1, 1))
    else:
        flow.pin([bias], f"{flow.where()} cannot lose positions of this axis")


@rules.macs("Attention", domain=CONTRIB)
def packed_macs(node: Node, shape_of: ShapeOf) -> int:
    """The projections, then queries by keys and weights by values."""
    batch, tokens, _ = shape_of(node.inputs[0])
    rows, columns = shape_of(node.inputs[1])
    values = shape_of(node.outputs[0])[2]
    queries = (columns - values) // 2
    return batch * tokens * (rows * columns + tokens * (queries + values))


@rules.rewire("Attention", domain=CONTRIB)
def repack(wiring: Wiring, node: Node) -> None:
    """Head count and the widths of the three parts follow; the scale stays."""
    weight, heads = node.inputs[1], int(node.attr("num_heads"))
    total = wiring.before(weight)[0][1]
    kept = wiring.kept(weight, 1)
    if kept is None:
        return
    sizes = _sizes(node, total)
    bounds = np.cumsum([0, *sizes])
    left = [int(((kept >= a) & (kept < b)).sum()) for a, b in pairwise(bounds)]
    size = sizes[0] // heads
    living = len(np.unique(kept[kept < sizes[0]] // size))
    wiring.set(node, num_heads=living, qkv_hidden_sizes=left)
    _hold_scale(wiring, node, size, left[0] // living)


# --- rotary embeddings ----------------------------------------------------------------------------


@rules.on("RotaryEmbedding")
def rotary(flow: Flow, node: Node) -> None:
    """Two positions of a head turn together, by an angle that all heads share."""
    _rotate(flow, node, (1, 2), 3)


@rules.on("RotaryEmbedding", domain=CONTRIB)
def contrib_rotary(flow: Flow, node: Node) -> None:
    """Two positions of a head turn together, by an angle that all heads share."""
    _rotate(flow, node, (2, 3), 1)


def _rotate(flow: Flow, node: Node, caches: tuple[int, int], positions: int) -> None:
    x, cache = _shape(flow, node, 0), _shape(flow, node, caches[0])
    heads = _rotary_heads(node, x, cache)
    size = x[-1] if len(x) == 4 else x[-1] // heads
    half = cache[-1]
    if node.attr("rotary_embedding_dim", 0) or 2 * half != size:
        for slot in (0, *caches):
            flow.pin(flow.fields(slot), f"{flow.where()}: turns a part of each head")
        return
    pair: Axes = ("half", "pair") if node.attr("interleaved", 0) else ("pair", "half")
    lengths = tuple({"half": half, "pair": 2}[x or ""] for x in pair)
    if len(x) == 4:
        labels, view = ("n", "a", None, *pair), (*x[:3], *lengths)
    else:
        labels, view = ("n", None, "a", *pair), (*x[:2], heads, *lengths)
    table = (*(None,) * (len(cache) - 1), "half")
    operands = [Operand(0, labels, view, still=("pair",))]
    operands += [Operand(i, table) for i in caches]
    if node.input(positions):
        flow.pin(flow.fields(positions), f"{flow.where()}: used as positions")
    combine(flow, operands, Result(labels, view))


def _rotary_heads(node: Node, x: Shape, cache: Shape) -> int:
    given = int(node.attr("num_heads", 0))
    return x[1] if len(x) == 4 else given or x[2] // (2 * cache[-1])


@rules.rewire("RotaryEmbedding")
@rules.rewire("RotaryEmbedding", domain=CONTRIB)
def rotary_heads(wiring: Wiring, node: Node) -> None:
    """The head count of a flat input follows."""
    heads = int(node.attr("num_heads", 0))
    if heads and len(wiring.before(node.inputs[0])[0]) == 3:
        wiring.set(node, num_heads=_living(wiring, node.inputs[0], heads))
