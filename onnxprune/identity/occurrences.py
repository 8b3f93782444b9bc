"""Where the channels of each Dim occur: weights and nodes, in the user's names."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from onnxprune.identity.dims import BoolArray, Dims
from onnxprune.model.graph import Model


def follows_data(model: Model) -> frozenset[str]:
    """Values that depend on what the caller gives."""
    found = set(model.input_names)
    for node in model.nodes:
        if any(n in found for n in node.inputs):
            found |= set(node.outputs)
    return frozenset(found)


def summed_by_weights(dims: Dims, model: Model) -> BoolArray:
    """Identities along which a weight is summed with data: its columns, not its rows.

    Returns: shape (identities,).
    """
    data = follows_data(model)
    nodes = {n.key: n for n in model.nodes}
    found = np.zeros(dims.ties.count, np.bool_)
    for reader in dims.ties.readers:
        # Of data that is summed, the identities are those of the weight that made it.
        if not reader.beside and nodes[reader.key].input(reader.slot) not in data:
            found[reader.field.ids.ravel()] = True
    return found


def tensors_of(dims: Dims) -> dict[int, list[str]]:
    """Weights that each Dim cuts, by Dim index, in graph order."""
    found: dict[int, dict[str, None]] = defaultdict(dict)
    for source in dims.ties.sources.values():
        if not source.initializer:
            continue
        for one in source.fields:
            for index in np.unique(dims.dim_of[dims.of[one.ids.ravel()]]):
                found[int(index)][source.initializer] = None
    return {index: list(names) for index, names in found.items()}


def names_of(dims: Dims, model: Model, *, made: bool = False) -> dict[int, frozenset[str]]:
    """Every name a pattern may use for a Dim: its own, its weights', the nodes' it passes.

    Args:
        made: only weights and nodes that make the Dim's channels, not those that sum over them.
    """
    names: dict[int, set[str]] = {d.index: {d.name} for d in dims.dims}
    labels = {n.key: {n.name, n.key} - {""} for n in model.nodes}
    summed = summed_by_weights(dims, model) if made else np.zeros(dims.ties.count, np.bool_)
    for (key, _), source in dims.ties.sources.items():
        own = labels.get(key, {key}) | ({source.initializer} if source.initializer else set())
        for one in source.fields:
            ids = one.ids.ravel()
            for index in np.unique(dims.dim_of[dims.of[ids[~summed[ids]]]]):
                names[int(index)] |= own
    return {index: frozenset(found) for index, found in names.items()}
