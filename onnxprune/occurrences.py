"""Where the channels of each Dim occur: weights and nodes, in the user's names."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from onnxprune.dims import Dims
from onnxprune.graph import Model


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
    summed = np.zeros(dims.ties.count, np.bool_)
    for reader in dims.ties.readers:
        if made and not reader.beside:
            summed[reader.field.ids.ravel()] = True
    for (key, _), source in dims.ties.sources.items():
        own = labels.get(key, {key}) | ({source.initializer} if source.initializer else set())
        for one in source.fields:
            ids = one.ids.ravel()
            for index in np.unique(dims.dim_of[dims.of[ids[~summed[ids]]]]):
                names[int(index)] |= own
    return {index: frozenset(found) for index, found in names.items()}
