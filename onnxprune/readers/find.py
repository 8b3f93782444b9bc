"""Finds the readers of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from onnxprune.cleanup.linear import linear
from onnxprune.identity.dims import BoolArray
from onnxprune.identity.ties import Ties
from onnxprune.model.graph import Model, Node
from onnxprune.readers.recurrent import recurrent_views
from onnxprune.readers.stats import IntArray
from onnxprune.readers.view import LinearView, View
from onnxprune.shape.shapes import Shapes

Finder = Callable[[Model, Shapes, Ties, Node], Iterator[View]]


def find_views(model: Model, shapes: Shapes, ties: Ties) -> dict[str, View]:
    """Every reader of a model by its key, in the order of the graph.

    Args:
        ties: of the model.
    """
    found = {}
    for node in model.nodes:
        finder = FINDERS.get(node.op) if not node.domain else None
        for view in finder(model, shapes, ties, node) if finder else ():
            found[view.key] = view
    return found


def find_cut_views(
    model: Model, shapes: Shapes, ties: Ties, origins: Mapping[str, View], stays: BoolArray
) -> dict[str, View]:
    """Readers of a cut model by the keys they had: groups that are gone do not count.

    Their rows and columns are none of the original's: weights and values are what they are for.

    Args:
        ties, origins: of the original.
        stays: shape (identities,).
    """
    before, after = dict[str, list[View]](), dict[str, list[View]]()
    for view in origins.values():
        if ((view.rows < 0) | stays[view.rows]).any():
            before.setdefault(view.node.key, []).append(view)
    for view in find_views(model, shapes, ties).values():
        after.setdefault(view.node.key, []).append(view)
    pairs = (
        (origin, view)
        for key, views in after.items()
        if len(views) == len(before.get(key, ()))
        for origin, view in zip(before[key], views, strict=True)
    )
    return {origin.key: replace(view, label=origin.label) for origin, view in pairs}


def _linear_views(model: Model, shapes: Shapes, ties: Ties, node: Node) -> Iterator[View]:
    """A layer whose weights nothing else reads; a depthwise one sums over nothing."""
    view = linear(model, shapes, node, looks_through=True)
    if view is None or view.is_shared or node.attr("output_shape"):
        return
    groups, outputs, inputs, taps = view.weights.shape
    if groups > 1 and inputs == 1:
        return
    rows = axis_ids(ties, node.outputs[0], view.out_axis, groups * outputs)
    columns = axis_ids(ties, node.inputs[0], view.axis, groups * inputs)
    for group in range(groups):
        own = columns[group * inputs : (group + 1) * inputs]
        yield LinearView(
            node,
            f"group {group}" if groups > 1 else "",
            rows[group * outputs : (group + 1) * outputs],
            np.repeat(own, taps),
            view,
            group,
        )


def axis_ids(ties: Ties, name: str, axis: int, length: int) -> IntArray:
    """Identities along an axis of a computed value; -1 where it has none of its own."""
    for one in ties.fields.get(name, ()):
        if one.axes == (axis,) and one.ids.size == length:
            return one.ids.ravel().astype(np.int64)
    return np.full(length, -1, np.int64)


FINDERS: dict[str, Finder] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul"), _linear_views),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), recurrent_views),
}
