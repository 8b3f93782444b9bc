"""What each Dim has to do with: weights, nodes, shares of MACs and parameters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import numpy as np

from onnxprune.identity.dims import Dims
from onnxprune.identity.fields import Field
from onnxprune.model.graph import Model
from onnxprune.planning.cost import node_macs
from onnxprune.planning.weights import learned
from onnxprune.rules.registry import Rules
from onnxprune.shape.shapes import Shapes


@dataclass(frozen=True)
class Shares:
    """Shares by Dim index; a weight or node with two Dims counts for both."""

    macs: dict[int, float]
    params: dict[int, float]
    tensors: dict[int, list[str]]
    """Weights and activations a Dim occurs in, in graph order."""


def shares(model: Model, dims: Dims, shapes: Shapes, rules: Rules) -> Shares:
    """Shares of every Dim.

    Args:
        shapes: at the sizes cost is counted for.
    """
    sizes = weight_sizes(model)
    macs: dict[int, float] = defaultdict(float)
    params: dict[int, float] = defaultdict(float)
    tensors: dict[int, dict[str, None]] = defaultdict(dict)
    for name, found in weight_dims(model, dims).items():
        for index in found:
            params[index] += sizes.get(name, 0) / max(sum(sizes.values()), 1)
            tensors[index][name] = None
    counted = node_macs(model, shapes, rules)
    for node in model.nodes:
        touched: set[int] = set()
        for slot, name in enumerate(node.inputs):
            source = dims.ties.sources.get((node.key, slot))
            touched |= _dims_of(dims, source.fields if source else dims.ties.fields.get(name, ()))
        for name in node.outputs:
            own = _dims_of(dims, dims.ties.fields.get(name, ()))
            touched |= own
            for index in own:
                tensors[index][name] = None
        for index in touched:
            macs[index] += counted.get(node.key, 0) / max(sum(counted.values()), 1)
    return Shares(dict(macs), dict(params), {i: list(names) for i, names in tensors.items()})


def weight_sizes(model: Model) -> dict[str, int]:
    """Elements of each learned weight that something reads."""
    return {name: prod(tensor.dims) for name, tensor in learned(model).items()}


def weight_dims(model: Model, dims: Dims) -> dict[str, set[int]]:
    """Indices of the Dims that each weight has on some axis."""
    found: dict[str, set[int]] = defaultdict(set)
    for source in dims.ties.sources.values():
        if source.initializer:
            found[source.initializer] |= _dims_of(dims, source.fields)
    return dict(found)


def prunable_params(model: Model, dims: Dims) -> float:
    """Share of weight elements whose weight has at least one axis with a free Dim."""
    sizes, free = weight_sizes(model), {d.index for d in dims.free}
    touched = weight_dims(model, dims)
    reachable = sum(n for name, n in sizes.items() if touched.get(name, set()) & free)
    return reachable / max(sum(sizes.values()), 1)


def _dims_of(dims: Dims, fields: Iterable[Field]) -> set[int]:
    return {int(i) for f in fields for i in np.unique(dims.dim_of[dims.of[f.ids.ravel()]])}
