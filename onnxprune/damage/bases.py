"""Directions within heads: a cut keeps the best ones, not the best of the channels as stored.

Nothing but sums lies between what makes queries and keys and their product, nor between what makes
values and what reads them: any invertible matrix may be put in between. In the right one a head
of 28 channels needs 7 where the stored channels need 20.
Source: MoDeGPT, Lin et al. 2024, arXiv:2408.09632 (query-key and value-output modules); for
queries and keys balanced truncation of both covariances.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.damage.sums import Sums
from onnxprune.identity.dims import Dim, Dims
from onnxprune.model.graph import Model, Node
from onnxprune.readers.stats import FloatArray, IntArray, Moments, total
from onnxprune.readers.view import View

MOVES = frozenset(
    "Reshape Transpose Squeeze Unsqueeze Split Slice Identity Flatten Gather Cast".split()
)
RIDGE = 1e-6


@dataclass(frozen=True, eq=False)
class Basis:
    """A head whose channels only sums touch.

    `made` are the rows that make its channels (queries and keys, or values), in their order;
    `read` the columns that read values, None for queries and keys.
    """

    dim: int
    part: int
    made: tuple[tuple[str, IntArray], ...]
    read: tuple[str, IntArray] | None

    @property
    def keys(self) -> set[str]:
        """Readers that it needs moments of."""
        return {key for key, _ in (*self.made, *([self.read] if self.read else []))}


@dataclass(frozen=True, eq=False)
class Turn:
    """The directions of a head, the best first."""

    forward: tuple[FloatArray, ...]
    """For each of `made`: shape (directions, channels)."""
    back: FloatArray
    """Shape (channels, directions): what `read` is multiplied by."""


def find_bases(model: Model, dims: Dims, views: Mapping[str, View]) -> dict[int, list[Basis]]:
    """Bases by Dim index; of a Dim either all parts have one or none is listed."""
    finder = _Finder(model, dims, views)
    found = {}
    for dim in dims.free:
        bases = [finder.basis(dim, part) for part in range(len(dim.parts))]
        if all(bases):
            found[dim.index] = [b for b in bases if b is not None]
    return found


class _Finder:
    """What touches each channel, found once."""

    def __init__(self, model: Model, dims: Dims, views: Mapping[str, View]) -> None:
        self._model, self._views = model, views
        self._rows = _places(dims, {k: v.rows for k, v in views.items()})
        self._columns = _places(dims, {k: v.columns for k, v in views.items()})
        self._readers: dict[int, set[str]] = {}
        for reader in dims.ties.readers:
            for channel in np.unique(dims.of[reader.field.ids]).tolist():
                self._readers.setdefault(channel, set()).add(reader.key)
        self._nodes = {node.key: node for node in model.nodes}

    def basis(self, dim: Dim, part: int) -> Basis | None:
        """The basis of a part of a Dim; None where more than sums touches it."""
        channels = dim.parts[part].tolist()
        readers = {frozenset(self._readers.get(c, ())) for c in channels}
        rows, columns = self._lines(self._rows, channels), self._lines(self._columns, channels)
        if len(channels) < 2 or len(readers) != 1 or rows is None or columns is None:
            return None
        (keys,) = readers
        if len(keys) != 1:
            return None
        reader = self._nodes[next(iter(keys))]
        if len(rows) == 2 and not columns and self._is_product(reader):
            sources = [self._source(name) for name in reader.inputs]
            made = [self._views[key].node.key for key, _ in rows]
            if made[0] != sources[0]:
                made.reverse()
                rows.reverse()
            if made == sources:
                return Basis(dim.index, part, tuple(rows), None)
        if len(rows) == 1 and len(columns) == 1 and self._reads_value(reader, rows[0][0]):
            return Basis(dim.index, part, tuple(rows), columns[0])
        return None

    def _lines(
        self, places: dict[int, list[tuple[str, int]]], channels: list[int]
    ) -> list[tuple[str, IntArray]] | None:
        """Places side by side for all channels; None where they differ."""
        own = [sorted(places.get(c, [])) for c in channels]
        if len({tuple(key for key, _ in o) for o in own}) != 1:
            return None
        return [
            (own[0][at][0], np.array([o[at][1] for o in own], np.int64))
            for at in range(len(own[0]))
        ]

    def _is_product(self, node: Node) -> bool:
        return node.op == "MatMul" and not any(n in self._model.initializers for n in node.inputs)

    def _reads_value(self, reader: Node, producer: str) -> bool:
        """True where a reader sees a product whose second factor is what the producer made."""
        product = self._behind(reader.inputs[0])
        if product is None or not self._is_product(product):
            return False
        return self._source(product.inputs[1]) == self._views[producer].node.key

    def _source(self, name: str) -> str:
        found = self._behind(name)
        return found.key if found else ""

    def _behind(self, name: str) -> Node | None:
        """The node that made a value, but for moves, factors for all, and added vectors."""
        while (node := self._model.producer.get(name)) is not None and not node.domain:
            stored = [n for n in node.inputs if n in self._model.initializers]
            if node.op in MOVES:
                name = node.inputs[0]
            elif node.op in ("Mul", "Div", "Add") and len(stored) == 1:
                name = next(n for n in node.inputs if n not in stored)
                if not self._is_passed(node, stored[0], name):
                    return None
            else:
                return node
        return None

    def _is_passed(self, node: Node, stored: str, data: str) -> bool:
        """True for a factor for all, and for the bias of a reader, added right behind it.

        A bias that is added elsewhere would have to be turned where it stands.
        """
        if node.op != "Add":
            is_one = int(np.prod(self._model.dims(stored))) == 1
            return is_one and not (node.op == "Div" and stored == node.inputs[0])
        keys = {view.node.outputs[0]: view for view in self._views.values()}
        return data in keys and bias_behind(self._model, keys[data]) is not None


def _places(dims: Dims, ids: Mapping[str, IntArray]) -> dict[int, list[tuple[str, int]]]:
    """Where each channel stands: (reader, place)."""
    found: dict[int, list[tuple[str, int]]] = {}
    for key, own in ids.items():
        channels = np.where(own >= 0, dims.of[own], -1)
        for place, channel in enumerate(channels.tolist()):
            if channel >= 0:
                found.setdefault(channel, []).append((key, place))
    return found


def bias_behind(model: Model, view: View) -> FloatArray | None:
    """The vector that an Add behind a reader adds; None without one."""
    count = len(view.rows)
    readers = model.consumers.get(view.node.outputs[0], ())
    if len(readers) != 1 or readers[0][0].op != "Add":
        return None
    node, slot = readers[0]
    name = node.inputs[1 - slot]
    if name not in model.initializers or model.dims(name) not in ((count,), (1, count)):
        return None
    return model.array(name).astype(np.float64).ravel()


def added(model: Model, view: View) -> FloatArray:
    """The same; zeros without one."""
    found = bias_behind(model, view)
    return np.zeros(len(view.rows)) if found is None else found


# --- which directions ---------------------------------------------------------------------------


def _made(model: Model, sums: Sums, rows: IntArray, seen: Moments) -> tuple[FloatArray, FloatArray]:
    """Covariance and mean of what some rows of a reader give."""
    weights = sums.view.weights[rows]
    mean = weights @ seen.mean_a + sums.view.bias[rows] + added(model, sums.view)[rows]
    return weights @ seen.covariance @ weights.T, mean


def turn(model: Model, basis: Basis, sums: Mapping[str, Sums]) -> Turn:
    """The directions of a head, by the samples to fit on."""
    covariances, seconds = _spreads(model, basis, sums, held=False)
    if basis.read is None:
        left, right = _root(seconds[0]), _root(covariances[1])
        _, size, directions = np.linalg.svd(left.T @ right)
        inner = directions @ np.linalg.inv(right)
        share = np.sqrt(np.maximum(size, size[0] * RIDGE))[:, None]
        return Turn((directions @ right.T / share, inner * share), np.zeros((0, 0)))
    key, columns = basis.read
    root = _root(covariances[0])
    _, _, directions = np.linalg.svd(sums[key].weights[:, columns] @ root)
    return Turn((directions @ np.linalg.inv(root),), root @ directions.T)


def _spreads(
    model: Model, basis: Basis, sums: Mapping[str, Sums], *, held: bool
) -> tuple[list[FloatArray], list[FloatArray]]:
    """Covariances and second moments of what makes a head."""
    covariances, seconds = [], []
    for key, rows in basis.made:
        seen = sums[key].folds[-1] if held else total(sums[key].folds[:-1])
        covariance, mean = _made(model, sums[key], rows, seen)
        covariances.append(covariance)
        seconds.append(covariance + np.outer(mean, mean))
    return covariances, seconds


def _root(covariance: FloatArray) -> FloatArray:
    """A square root of a covariance that can be inverted."""
    values, vectors = np.linalg.eigh(covariance)
    least = max(float(values[-1]), 1e-30) * RIDGE
    found: FloatArray = vectors * np.sqrt(np.maximum(values, least))
    return found


def losses(
    model: Model, bases: list[Basis], sums: Mapping[str, Sums], counts: list[list[int]]
) -> FloatArray:
    """Damage of keeping so many directions, on held-out samples, over all heads of a Dim.

    Args:
        counts: for each choice the directions that each part keeps.
    Returns: shape (choices,).
    """
    total = np.zeros(len(counts))
    products = np.zeros((2, len(counts)))
    for at, basis in enumerate(bases):
        turned = turn(model, basis, sums)
        covariances, seconds = _spreads(model, basis, sums, held=True)
        for choice, kept in enumerate(counts):
            error, whole = _error(basis, turned, sums, covariances, seconds, kept[at])
            if basis.read is None:
                products[:, choice] += error, whole
            else:
                total[choice] += error / whole
    if products[1].all():
        total += products[0] / products[1]
    return total


def _error(
    basis: Basis,
    turned: Turn,
    sums: Mapping[str, Sums],
    covariances: list[FloatArray],
    seconds: list[FloatArray],
    kept: int,
) -> tuple[float, float]:
    """Error of keeping some directions, and what it is relative to."""
    size = len(covariances[0])
    if basis.read is None:
        # queries and keys meet in sum_i (R_q q)_i (R_k k)_i
        miss = np.eye(size) - turned.forward[0][:kept].T @ turned.forward[1][:kept]
        error = float(np.trace(seconds[0] @ miss @ covariances[1] @ miss.T))
        return error, float(np.einsum("ij,ij->", seconds[0], covariances[1]))
    key, columns = basis.read
    weights = sums[key].weights[:, columns]
    miss = weights @ (np.eye(size) - turned.back[:, :kept] @ turned.forward[0][:kept])
    return float(np.einsum("oi,ij,oj->", miss, covariances[0], miss)), 1.0


def choices(gone: list[IntArray], stays: list[IntArray]) -> Iterator[list[int]]:
    """How many channels of each part stay when some are gone, as counted in the Dim."""
    for own in gone:
        yield [len(part) - int(np.isin(part, own).sum()) for part in stays]
