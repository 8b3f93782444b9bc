"""Walks a graph and deduces, node by node, what its weights say of its values (see `known`).

An operator without a deduction makes values of which nothing is known, which is always safe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from onnx import helper, numpy_helper

from onnxprune.backend.runtime import session
from onnxprune.cleanup import deduce_moves  # noqa: F401  # its deductions go into the table
from onnxprune.cleanup.knowledge import TABLE, Knowledge, on
from onnxprune.cleanup.known import (
    Array,
    FloatArray,
    Known,
    align,
    fresh,
    labels,
    mix,
    number,
    row_labels,
    tidy,
)
from onnxprune.cleanup.linear import linear
from onnxprune.errors import PruneError
from onnxprune.identity.dims import Dims
from onnxprune.model.graph import Model, Node
from onnxprune.shape.shapes import Shapes


def deduce(model: Model, dims: Dims, shapes: tuple[Shapes, Shapes]) -> Knowledge:
    """What is known of every value."""
    found = Knowledge(model, dims, shapes)
    for node in model.nodes:
        names = [n for n in (*node.inputs, *node.outputs) if n]
        if node.domain or any(n not in shapes[0].shape for n in names):
            continue
        if node.outputs[0] in shapes[0].value:
            continue  # shape arithmetic
        rule = TABLE.get(node.op, _elementwise if node.op in found.elementwise else None)
        for name, known in zip(node.outputs, rule(found, node) if rule else (), strict=False):
            if name and known is not None:
                found.values[name] = tidy(known.kind, known.factor, name)
    return found


# --- position by position -------------------------------------------------------------------------


def _operands(k: Knowledge, node: Node) -> list[Known] | None:
    """The operands as they meet; None where one is not described."""
    names = [n for n in node.inputs if n]
    found = [k.of(n) for n in names]
    kept = [x for x in found if x is not None]
    if len(kept) < len(found):
        return None
    return align(kept, [k.shape(n) for n in names])


def _elementwise(k: Knowledge, node: Node) -> Sequence[Known | None]:
    xs = _operands(k, node)
    if xs is None:
        return [None]
    special = _ALGEBRA.get(node.op)
    salt = number(node.key)
    if special is not None:
        kind, factor = special(xs, salt)
    else:
        shape = np.broadcast_shapes(*(x.kind.shape for x in xs))
        parts = [p for x in xs for p in (x.kind, labels(x.factor))]
        kind, factor = mix(salt, *parts), np.ones(shape)
    return [_with_constants(k, node, xs, kind, factor)]


def _with_constants(
    k: Knowledge, node: Node, xs: list[Known], kind: Array, factor: Array
) -> Known:
    """Positions whose operands are all constant are what the operator makes of them."""
    flat = np.logical_and.reduce(np.broadcast_arrays(*(x.kind == 0 for x in xs)))
    kind, factor = (np.broadcast_to(x, flat.shape).copy() for x in (kind, factor))
    if not flat.any():
        return Known(kind, factor)
    made = _compute(k, node, [np.where(x.kind == 0, x.factor, 1.0) for x in xs])
    kind[flat], factor[flat] = 0, np.broadcast_to(made, flat.shape)[flat]
    return Known(kind, factor)


def _compute(k: Knowledge, node: Node, values: list[FloatArray]) -> Array:
    """The node's own result on numbers."""
    given = [n for n in node.inputs if n]
    stored = []
    for at, (name, value) in enumerate(zip(given, values, strict=True)):
        dtype = helper.tensor_dtype_to_np_dtype(k.shapes[0].dtype[name])
        own = value.reshape(value.shape[value.ndim - len(k.shape(name)) :])  # Clip wants scalars
        stored.append(numpy_helper.from_array(np.asarray(own, dtype), f"x{at}"))
    names = iter(t.name for t in stored)
    proto = helper.make_node(node.op, [next(names) if n else "" for n in node.inputs], ["y"])
    proto.attribute.extend(node.proto.attribute)
    out = helper.make_tensor_value_info("y", k.shapes[0].dtype[node.outputs[0]], None)
    graph = helper.make_graph([proto], "numbers", [], [out], stored)
    imports = [helper.make_opsetid("", k.model.opset)]
    made = helper.make_model(graph, opset_imports=imports, ir_version=8)
    try:
        return np.asarray(session(made, optimize=False).run({})[0], np.float64)
    except PruneError:
        return np.asarray(np.nan)  # what cannot be computed is not known


def _same(xs: list[Known], salt: Array) -> tuple[Array, Array]:
    """Positively homogeneous: a multiple of the input gives that multiple of the output."""
    return mix(salt, xs[0].kind), xs[0].factor


def _sum(xs: list[Known], salt: Array, sign: float = 1.0) -> tuple[Array, Array]:
    a, b = xs[0], xs[-1]
    zero = np.zeros(np.broadcast_shapes(a.kind.shape, b.kind.shape), np.uint64)
    unit = np.where(a.kind != 0, a.factor, np.where(b.kind != 0, b.factor, 1.0))
    shares = labels(a.factor / unit), labels(sign * b.factor / unit)
    kind = mix(salt, a.kind | zero, b.kind | zero, *shares)
    # Adding nothing leaves the other one: a zero, or a branch that was multiplied by zero.
    for one, other, way in ((a, b, sign), (b, a, 1.0)):
        idle = (one.kind == 0) & (one.factor == 0) & (way > 0)
        kind = np.where(idle, mix(salt, other.kind), kind)
    return kind, unit


def _difference(xs: list[Known], salt: Array) -> tuple[Array, Array]:
    return _sum(xs, salt, -1.0)


def _product(xs: list[Known], salt: Array) -> tuple[Array, Array]:
    a, b = xs[0], xs[-1]
    factor = a.factor * b.factor
    kind = mix(salt, a.kind, b.kind, np.signbit(factor))
    return np.where(factor == 0, np.uint64(0), kind), np.abs(factor)


def _quotient(xs: list[Known], salt: Array) -> tuple[Array, Array]:
    """Only by a number other than zero: what is divided by data is not followed."""
    a, b = xs[0], xs[-1]
    with np.errstate(all="ignore"):
        factor = a.factor / b.factor
    zero = (factor == 0) & (b.kind == 0)
    kind = mix(salt, a.kind, b.kind, np.signbit(factor))
    factor = np.where((b.kind != 0) & (factor == 0), 1.0, np.abs(factor))
    return np.where(zero, np.uint64(0), kind), factor


_ALGEBRA: dict[str, Callable[[list[Known], Array], tuple[Array, Array]]] = {
    "Relu": _same, "LeakyRelu": _same, "Identity": _same, "Abs": _same, "Neg": _same,
    "Add": _sum, "Sub": _difference, "Mul": _product, "Div": _quotient,
}  # fmt: skip


@on("BatchNormalization")
def _batch_norm(k: Knowledge, node: Node) -> Sequence[Known | None]:
    vectors = [k.number_of(node, i) for i in range(1, 5)]
    x = k.of(node.inputs[0])
    if x is None or any(v is None for v in vectors) or node.attr("training_mode", 0):
        return [None]
    scale, shift, mean, variance = (np.asarray(v, np.float64) for v in vectors)
    times = scale / np.sqrt(variance + float(node.attr("epsilon", 1e-5)))
    add = shift - mean * times
    view = [-1 if a == 1 else 1 for a in range(x.kind.ndim)]
    x = x.spread(1, len(times))
    times, add = times.reshape(view), add.reshape(view)
    size = np.abs(times) * x.factor
    share = labels(add / np.where(size > 0, size, 1.0))
    kind = mix(number(node.key), x.kind, np.signbit(times), share)
    fixed = (times == 0) | (x.kind == 0)
    factor = np.where(fixed, times * np.where(x.kind == 0, x.factor, 0.0) + add, size)
    return [Known(np.where(fixed, np.uint64(0), kind), factor)]


# --- sums over channels ---------------------------------------------------------------------------


@on("Conv", "ConvTranspose", "Gemm", "MatMul")
def _linear(k: Knowledge, node: Node) -> Sequence[Known | None]:
    view = linear(k.model, k.shapes[0], node)
    x = k.along(node.inputs[0], (view.axis,)) if view is not None else None
    if node.op == "MatMul" and view is None:
        return [_zeros_of_product(k, node)]
    if view is None or x is None:
        return [None]
    k.linear[node.key] = view
    bias, weights = view.bias, view.weights
    groups, outs, ins, taps = weights.shape
    fixed = np.where((x.kind == 0) & ((x.factor == 0) | (not view.padded)), x.factor, np.nan)
    silent = ~np.isnan(fixed).reshape(groups, 1, ins, 1)
    if silent.any():
        bias = bias + view.response(np.nan_to_num(fixed))
        weights = np.where(silent, np.zeros(1, weights.dtype), weights)
    if ins == 1 and (x.factor != 1).any():  # each channel by itself: a multiple stays one
        own = np.where(x.kind == 0, 1.0, x.factor).reshape(groups, 1, 1, 1)
        weights = weights * own.astype(np.float32)
    rows = weights.reshape(groups * outs, ins * taps)
    if rows.dtype not in (np.float32, np.float64):
        rows = rows.astype(np.float32)
    label, norms = row_labels(rows, bias / view.alpha)
    whom = x.kind if ins == 1 else np.arange(groups, dtype=np.uint64)
    kind = mix(number(node.key), label, np.repeat(whom, outs))
    quiet = norms == 0
    quiet[quiet] = ~rows[quiet].any(axis=1)
    factor = np.where(quiet, bias, np.where(norms > 0, norms, 1.0) * abs(view.alpha))
    return [_on_one_axis(np.where(quiet, np.uint64(0), kind), factor, view.out_axis,
                         len(k.shape(node.outputs[0])))]  # fmt: skip


def _zeros_of_product(k: Knowledge, node: Node) -> Known | None:
    """Rows and columns of zeros make zeros, whatever they meet (values of a silent head)."""
    a, b = (k.of(name) for name in node.inputs)
    if a is None or b is None or min(a.kind.ndim, b.kind.ndim) < 2:
        return None
    rows = ((a.kind == 0) & (a.factor == 0)).all(axis=-1, keepdims=True)
    columns = ((b.kind == 0) & (b.factor == 0)).all(axis=-2, keepdims=True)
    if not rows.any() and not columns.any():
        return None
    zero = rows | columns
    kind = np.where(zero, np.uint64(0), fresh(node.outputs[0], zero.shape).kind)
    return Known(kind, np.where(zero, 0.0, 1.0))


def _on_one_axis(kind: Array, factor: Array, axis: int, rank: int) -> Known:
    shape = [-1 if a == axis else 1 for a in range(rank)]
    return Known(kind.reshape(shape), factor.reshape(shape))


# Candidates of the gates, and activations, which all but the sigmoid give tanh(0) or relu(0).
_CANDIDATE = {"LSTM": 3, "GRU": 2, "RNN": 0}
_ACTIVATIONS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}


@on("LSTM", "GRU", "RNN")
def _cell(k: Knowledge, node: Node) -> Sequence[Known | None]:
    """A unit whose candidate is always tanh(0) stays at the zero it starts from."""
    w, r, b = (k.number_of(node, i) for i in (1, 2, 3))
    if w is None or r is None or (node.input(3) and b is None) or not _starts_at_zero(k, node):
        return [None]
    d, rows, hidden = r.shape
    gates, at = rows // hidden, _CANDIDATE[node.op]
    busy = np.zeros((d, hidden), np.bool_)
    for table in (w, r):
        busy |= table.reshape(d, gates, hidden, -1)[:, at].any(axis=2)
    if b is not None:
        busy |= b.reshape(d, 2, gates, hidden)[:, :, at].any(axis=1)
    if busy.all():
        return [None]
    return [_silenced_units(k, name, ~busy) for name in node.outputs]


def _starts_at_zero(k: Knowledge, node: Node) -> bool:
    """True for plain activations over (time, batch, input) and no initial state but zeros."""
    names = [s.decode().lower() for s in node.attr("activations", [])]
    plain = _ACTIVATIONS[node.op]
    if names not in ([], plain, 2 * plain) or node.attr("layout", 0):
        return False
    starts = [k.of(node.input(i)) for i in (5, 6) if node.input(i)]
    return all(s is not None and s.is_constant and not s.factor.any() for s in starts)


def _silenced_units(k: Knowledge, name: str, quiet: Array) -> Known | None:
    if not name:
        return None
    *rest, length = k.shape(name)
    units = quiet.reshape([quiet.shape[0], 1, length])
    units = units if len(rest) == 2 else units[None]
    made = fresh(name, units.shape)
    return Known(np.where(units, np.uint64(0), made.kind), np.where(units, 0.0, made.factor))
