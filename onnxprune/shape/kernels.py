"""Shape arithmetic in numpy: what small integer operators compute, run on known values.

Only operators that exporters use to compute shapes, indices and scales from shapes are here;
an operator that is missing makes its output unknown, which is always safe.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import helper

from onnxprune.model.graph import Node

Array = npt.NDArray[Any]
Kernel = Callable[[Node, list[Array | None]], list[Array]]

KERNELS: dict[str, Kernel] = {}


def _kernel(*ops: str) -> Callable[[Kernel], Kernel]:
    def register(fn: Kernel) -> Kernel:
        for op in ops:
            KERNELS[op] = fn
        return fn

    return register


def _simple(op: str, fn: Callable[..., Array]) -> None:
    KERNELS[op] = lambda node, xs: [np.asarray(fn(*xs))]


def _divide(a: Array, b: Array) -> Array:
    """ONNX divides integers towards zero, numpy's // towards minus infinity."""
    if a.dtype.kind not in "iu":
        return np.asarray(a / b)
    return np.asarray(np.trunc(np.true_divide(a, b)).astype(a.dtype))


_SIMPLE: dict[str, Callable[..., Any]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": _divide, "Neg": np.negative,
    "Abs": np.abs, "Floor": np.floor, "Ceil": np.ceil, "Round": np.round, "Sqrt": np.sqrt,
    "Reciprocal": np.reciprocal, "Exp": np.exp, "Log": np.log, "Sin": np.sin, "Cos": np.cos,
    "Equal": np.equal, "Less": np.less, "Greater": np.greater, "LessOrEqual": np.less_equal,
    "GreaterOrEqual": np.greater_equal, "And": np.logical_and, "Or": np.logical_or,
    "Not": np.logical_not, "Where": np.where, "Identity": np.asarray, "Sign": np.sign,
}  # fmt: skip
for _name, _fn in _SIMPLE.items():
    _simple(_name, _fn)


def axes_argument(node: Node, xs: list[Array | None], slot: int, name: str = "axes") -> list[int]:
    """The axes of a node: an attribute in old opsets, an input in new ones; [] when absent."""
    if slot < len(xs) and xs[slot] is not None:
        return [int(a) for a in np.atleast_1d(np.asarray(xs[slot]))]
    listed = node.attr(name)
    return [] if listed is None else [int(a) for a in np.atleast_1d(listed)]


def slice_arguments(
    node: Node, xs: list[Array | None], rank: int
) -> list[tuple[int, int, int, int]]:
    """(axis, start, end, step) for each sliced axis, as written (not clamped)."""
    if len(xs) > 1 and xs[1] is not None:
        starts, ends = np.atleast_1d(xs[1]), np.atleast_1d(np.asarray(xs[2]))
        given = xs[3] if len(xs) > 3 else None
        steps = xs[4] if len(xs) > 4 else None
    else:
        starts, ends = np.asarray(node.attr("starts")), np.asarray(node.attr("ends"))
        given, steps = node.attr("axes"), None
    axes = np.arange(len(starts)) if given is None else np.atleast_1d(given)
    steps = np.ones(len(starts), int) if steps is None else np.atleast_1d(steps)
    rows = zip(axes, starts, ends, steps, strict=True)
    return [(int(a) % max(rank, 1), int(s), int(e), int(p)) for a, s, e, p in rows]


def is_flat_order(index: Array, data: tuple[int, ...]) -> bool:
    """True where a Gather takes every position of a flat tensor in turn: it is a Reshape.

    torch.export writes views of tensors that lie contiguous in memory this way.
    """
    whole = len(data) == 1 and index.size == data[0]
    return whole and np.array_equal(np.ravel(index), np.arange(data[0]))


def reshape_target(shape: tuple[int, ...], want: Array, allowzero: bool) -> list[int]:
    """The output shape of Reshape: 0 copies, -1 is inferred."""
    target = [int(n) for n in want]
    if not allowzero:
        target = [shape[i] if n == 0 else n for i, n in enumerate(target)]
    if -1 in target:
        rest = int(np.prod([n for n in target if n != -1], dtype=np.int64))
        target[target.index(-1)] = int(np.prod(shape, dtype=np.int64)) // max(rest, 1)
    return target


@_kernel("Cast")
def _cast(node: Node, xs: list[Array | None]) -> list[Array]:
    to = helper.tensor_dtype_to_np_dtype(int(node.attr("to")))
    return [np.asarray(xs[0]).astype(to)]


@_kernel("Mod")
def _mod(node: Node, xs: list[Array | None]) -> list[Array]:
    fn = np.fmod if node.attr("fmod", 0) else np.mod
    return [np.asarray(fn(np.asarray(xs[0]), np.asarray(xs[1])))]


@_kernel("Pow")
def _pow(node: Node, xs: list[Array | None]) -> list[Array]:
    base = np.asarray(xs[0])
    return [np.power(base, np.asarray(xs[1])).astype(base.dtype)]


@_kernel("Max", "Min", "Sum")
def _fold(node: Node, xs: list[Array | None]) -> list[Array]:
    fn = {"Max": np.maximum, "Min": np.minimum, "Sum": np.add}[node.op]
    out = np.asarray(xs[0])
    for x in xs[1:]:
        out = np.asarray(fn(out, np.asarray(x)))
    return [out]


@_kernel("Concat")
def _concat(node: Node, xs: list[Array | None]) -> list[Array]:
    return [np.concatenate([np.asarray(x) for x in xs], axis=int(node.attr("axis", 1)))]


@_kernel("Unsqueeze")
def _unsqueeze(node: Node, xs: list[Array | None]) -> list[Array]:
    x = np.asarray(xs[0])
    axes = axes_argument(node, xs, 1)
    return [np.expand_dims(x, tuple(axes))]


@_kernel("Squeeze")
def _squeeze(node: Node, xs: list[Array | None]) -> list[Array]:
    axes = axes_argument(node, xs, 1)
    return [np.squeeze(np.asarray(xs[0]), tuple(axes) if axes else None)]


@_kernel("Gather")
def _gather(node: Node, xs: list[Array | None]) -> list[Array]:
    return [np.take(np.asarray(xs[0]), np.asarray(xs[1]), axis=int(node.attr("axis", 0)))]


@_kernel("Slice")
def _slice(node: Node, xs: list[Array | None]) -> list[Array]:
    x = np.asarray(xs[0])
    index = [slice(None)] * x.ndim
    for axis, start, end, step in slice_arguments(node, xs, x.ndim):
        # numpy reads a negative end as counted from the back; ONNX's "before the first" is
        # any end below -size.
        stop = None if step < 0 and end < -x.shape[axis] else end
        index[axis] = slice(start, stop, step)
    return [x[tuple(index)]]


@_kernel("Reshape")
def _reshape(node: Node, xs: list[Array | None]) -> list[Array]:
    x = np.asarray(xs[0])
    return [x.reshape(reshape_target(x.shape, np.asarray(xs[1]), bool(node.attr("allowzero", 0))))]


@_kernel("Transpose")
def _transpose(node: Node, xs: list[Array | None]) -> list[Array]:
    return [np.transpose(np.asarray(xs[0]), node.attr("perm"))]


@_kernel("Range")
def _range(node: Node, xs: list[Array | None]) -> list[Array]:
    start, stop, step = (np.asarray(x) for x in xs)
    return [np.arange(start.item(), stop.item(), step.item(), dtype=start.dtype)]


@_kernel("ConstantOfShape")
def _constant_of_shape(node: Node, xs: list[Array | None]) -> list[Array]:
    fill = node.attr("value")
    value = np.zeros(1, np.float32) if fill is None else np.asarray(fill)
    return [np.broadcast_to(value.ravel()[0], tuple(int(n) for n in np.asarray(xs[0])))]


@_kernel("Expand")
def _expand(node: Node, xs: list[Array | None]) -> list[Array]:
    x = np.asarray(xs[0])
    shape = np.broadcast_shapes(x.shape, tuple(int(n) for n in np.asarray(xs[1])))
    return [np.broadcast_to(x, shape)]


@_kernel("Tile")
def _tile(node: Node, xs: list[Array | None]) -> list[Array]:
    return [np.tile(np.asarray(xs[0]), np.asarray(xs[1]))]


@_kernel("Split")
def _split(node: Node, xs: list[Array | None]) -> list[Array]:
    x, axis = np.asarray(xs[0]), int(node.attr("axis", 0))
    sizes = axes_argument(node, xs, 1, "split")
    if not sizes:
        each = -(-x.shape[axis] // len(node.outputs))
        sizes = [each] * (len(node.outputs) - 1)
        sizes.append(x.shape[axis] - sum(sizes))
    return np.split(x, np.cumsum(sizes)[:-1], axis=axis)


@_kernel("ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin")
def _reduce(node: Node, xs: list[Array | None]) -> list[Array]:
    x = np.asarray(xs[0])
    fn: Any = {"ReduceProd": np.prod, "ReduceSum": np.sum, "ReduceMax": np.max,
               "ReduceMin": np.min}[node.op]  # fmt: skip
    axes = tuple(axes_argument(node, xs, 1)) or None
    return [np.asarray(fn(x, axis=axes, keepdims=bool(node.attr("keepdims", 1)))).astype(x.dtype)]


@_kernel("Clip")
def _clip(node: Node, xs: list[Array | None]) -> list[Array]:
    x = np.asarray(xs[0])
    low, high = ((xs[i] if i < len(xs) else None) for i in (1, 2))
    low, high = node.attr("min", low), node.attr("max", high)
    bound = np.maximum(x, x if low is None else np.asarray(low))
    return [np.minimum(bound, bound if high is None else np.asarray(high)).astype(x.dtype)]


@_kernel("OneHot")
def _one_hot(node: Node, xs: list[Array | None]) -> list[Array]:
    indices, depth, (off, on) = np.asarray(xs[0]), int(np.ravel(np.asarray(xs[1]))[0]), xs[2]  # type: ignore[misc]
    axis = int(node.attr("axis", -1)) % (indices.ndim + 1)
    places = np.where(indices < 0, indices + depth, indices)  # those outside stay off
    hot = np.expand_dims(places, -1) == np.arange(depth)
    return [np.moveaxis(np.where(hot, on, off), -1, axis).astype(np.asarray(xs[2]).dtype)]


@_kernel("Trilu")
def _trilu(node: Node, xs: list[Array | None]) -> list[Array]:
    k = int(np.asarray(xs[1])) if len(xs) > 1 and xs[1] is not None else 0
    return [(np.triu if node.attr("upper", 1) else np.tril)(np.asarray(xs[0]), k)]


@_kernel("CumSum")
def _cumsum(node: Node, xs: list[Array | None]) -> list[Array]:
    x = np.asarray(xs[0])
    if node.attr("exclusive", 0) or node.attr("reverse", 0):
        raise NotImplementedError("CumSum: exclusive or reverse")
    return [np.cumsum(x, axis=int(np.asarray(xs[1])), dtype=x.dtype)]
