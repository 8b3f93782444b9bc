"""Residual streams that only linear layers write to and only layer norms see.

An orthogonal matrix may be put in between: what is normalised turns with it. A cut then keeps the
best directions of the stream where the stored channels would each lose a share of them all.
Source: SliceGPT, Ashkboos et al., ICLR 2024, arXiv:2401.15024; one matrix for a whole stream
here, so that nothing is added to the model, and the norms stay what they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxprune.damage.obs import Problem, lost
from onnxprune.damage.sums import Sums
from onnxprune.identity.dims import Dim, Dims
from onnxprune.identity.fields import Field
from onnxprune.identity.ties import Slot
from onnxprune.model.graph import Model, Node
from onnxprune.readers.stats import FloatArray, Moments, total
from onnxprune.readers.view import View

NORMS = frozenset(("LayerNormalization",))
READERS = frozenset(("MatMul", "Gemm", "Conv"))
SUMS = frozenset(("Add", "Sub", "Sum", "Concat"))
# Of these a stored tensor stays one.
PLAIN = frozenset(("Identity", "Cast", "Transpose"))
MOVES = PLAIN | frozenset(
    "Reshape Squeeze Unsqueeze Split Slice Flatten Gather Expand Tile".split()
)
# A norm that all but silences a channel tells little of it.
LEAST_SCALE = 1e-3


@dataclass(frozen=True)
class Use:
    """A stored tensor, at one of its uses, with the axis that is the stream."""

    slot: Slot
    axis: int


@dataclass(frozen=True, eq=False)
class Norm:
    """A layer norm that sees a stream."""

    node: Node
    scale: FloatArray
    """Shape (channels,)."""
    shift: FloatArray
    """Shape (channels,); zeros without one."""
    reads: list[Use] = field(default_factory=list)
    """Weights that sum over what it gives."""
    keys: list[str] = field(default_factory=list)
    """Of their readers."""

    @property
    def fits(self) -> bool:
        """True where what it normalised can be told from what it gives."""
        size = np.abs(self.scale)
        return bool(self.keys) and bool((size >= LEAST_SCALE * size.max()).all() and size.max() > 0)

    def plain(self, seen: Moments) -> Moments:
        """Moments of what it normalised, from those of what it gives."""
        mean, n = self.shift, seen.n
        a = (seen.a - n * mean) / self.scale
        across = np.outer(mean, seen.a)
        aa = (seen.aa - across - across.T + n * np.outer(mean, mean)) / np.outer(
            self.scale, self.scale
        )
        return Moments(n, a, seen.t, aa, seen.at[:, :0], seen.tt)


@dataclass(frozen=True, eq=False)
class Turnable:
    """A stream that can be turned."""

    dim: int
    writes: tuple[Use, ...]
    """Weights, biases and tables that make it."""
    norms: tuple[Norm, ...]

    @property
    def keys(self) -> list[str]:
        """Readers that it needs moments of."""
        return [key for norm in self.norms for key in norm.keys]


def find_streams(model: Model, dims: Dims, views: Mapping[str, View]) -> dict[int, Turnable]:
    """Streams that can be turned, by Dim index."""
    normed = {
        index
        for node in model.nodes
        if node.op in NORMS
        for one in dims.ties.fields.get(node.inputs[0], ())
        for index in np.unique(dims.dim_of[dims.of[one.ids.ravel()]]).tolist()
    }
    found = {}
    for dim in dims.free:
        if dim.index in normed and len(dim.parts) == 1 and dim.size > 2:
            made = _Finder(model, dims, views, dim).found()
            if made is not None:
                found[dim.index] = made
    return found


class _Finder:
    """Follows a stream from what writes it to what reads it."""

    def __init__(self, model: Model, dims: Dims, views: Mapping[str, View], dim: Dim) -> None:
        self._model, self._dims, self._views, self._dim = model, dims, views, dim
        self._place = np.full(dims.count + 1, -1, np.int64)
        self._place[dim.channels] = np.arange(len(dim.channels))
        self._stored: dict[str, Use] = {}
        """Values that are a stored tensor in another form."""
        self._normed: dict[str, Norm] = {}
        self._raw = set[str]()
        self._writes: dict[Use, None] = {}
        self._outside = model.captured.union(model.output_names)

    def found(self) -> Turnable | None:
        """The stream; None where anything else touches it."""
        if self._dim.parents[0] >= 0 or np.isin(self._dims.parent, self._dim.channels).any():
            return None
        if not all(self._follow(node) for node in self._model.nodes):
            return None
        norms = [*dict.fromkeys(self._normed.values())]
        if not norms or not all(norm.fits for norm in norms):
            return None
        return Turnable(self._dim.index, tuple(self._writes), tuple(norms))

    def _follow(self, node: Node) -> bool:
        """Looks at a node; False where it does what a turn does not go along with."""
        slots = {s: a for s, n in enumerate(node.inputs) if (a := self._at(node, s, n)) is not None}
        outs = {n: a for n in node.outputs if (a := self._axis(self._of(n))) is not None}
        if (not slots and not outs) or node.op in ("Shape", "Size"):
            return not outs
        names = {node.inputs[s] for s in slots} | {*outs}
        if node.domain or -1 in (*slots.values(), *outs.values()) or names & self._outside:
            return False
        if node.op in NORMS:
            return self._norm(node, slots, outs)
        if node.op in READERS:
            return self._reads(node, slots) if not outs else self._makes(node, slots)
        if node.op in MOVES and [*slots] == [0] and len(outs) == len(node.outputs):
            return self._moves(node, slots[0])
        is_sum = node.op in SUMS and len(slots) == len(node.inputs) and bool(outs)
        return is_sum and self._makes_raw(node, slots)

    # --- what carries the stream ------------------------------------------------------------------

    def _of(self, name: str) -> Sequence[Field]:
        return self._dims.ties.fields.get(name, ())

    def _at(self, node: Node, slot: int, name: str) -> int | None:
        if name not in self._model.initializers:
            return self._axis(self._of(name))
        source = self._dims.ties.sources.get((node.key, slot))
        return self._axis(source.fields) if source else None

    def _axis(self, fields: Sequence[Field]) -> int | None:
        """The axis that is the stream; None without one, -1 where it is not there as a whole."""
        own = [(f, self._place[self._dims.of[f.ids]]) for f in fields]
        own = [(f, place) for f, place in own if (place >= 0).any()]
        if not own:
            return None
        (one, place), count = own[0], len(self._dim.channels)
        is_whole = len(own) == 1 and len(one.axes) == 1
        return one.axes[0] if is_whole and np.array_equal(place.ravel(), np.arange(count)) else -1

    def _tensor(self, node: Node, slot: int, axis: int) -> Use | None:
        """The stored tensor behind an input; None where there is none that may change alone."""
        name, model = node.inputs[slot], self._model
        if name in self._stored:
            return self._stored[name]
        if name not in model.initializers or name in model.overridable | model.captured:
            return None
        is_shared = len(model.consumers.get(name, ())) > 1
        return None if is_shared and len(model.dims(name)) > 1 else Use((node.key, slot), axis)

    def _joins(self, node: Node, slot: int, axis: int) -> bool:
        """True for what is a term of the stream, a stored one noted as such."""
        if node.inputs[slot] in self._raw:
            return True
        use = self._tensor(node, slot, axis)
        if use is not None:
            self._writes[use] = None
        return use is not None

    def _makes_raw(self, node: Node, slots: Mapping[int, int]) -> bool:
        """Notes what is linear in terms of the stream as one; False where others are in it."""
        self._raw |= {*node.outputs}
        return all(self._joins(node, slot, axis) for slot, axis in slots.items())

    # --- what touches it --------------------------------------------------------------------------

    def _norm(self, node: Node, slots: Mapping[int, int], outs: Mapping[str, int]) -> bool:
        """A norm over the stream alone; its mean and deviation are not handed out."""
        if node.inputs[0] not in self._raw or [*outs] != [*filter(None, node.outputs)]:
            return False
        last = self._of(node.inputs[0])[0].ids.ndim - 1
        if slots[0] != last or int(node.attr("axis", -1)) not in (-1, last):
            return False
        stored = [s for s, n in enumerate(node.inputs) if s and n]
        if not all(s in slots and self._tensor(node, s, 0) is not None for s in stored):
            return False
        count = len(self._dim.channels)
        scale, shift = (self._vector(node, s, count) for s in (1, 2))
        if scale is None or shift is None:
            return False
        self._normed[node.outputs[0]] = Norm(node, scale, shift)
        return True

    def _vector(self, node: Node, slot: int, count: int) -> FloatArray | None:
        name = node.input(slot)
        if not name:
            return np.zeros(count)
        made = self._model.array(name).astype(np.float64)
        return made if made.shape == (count,) and np.isfinite(made).all() else None

    def _reads(self, node: Node, slots: Mapping[int, int]) -> bool:
        """A weight that sums over what a norm gives."""
        norm, view = self._normed.get(node.inputs[0]), self._views.get(node.key)
        if norm is None or view is None or [*slots] != [0, 1]:
            return False
        place = self._place[np.where(view.columns >= 0, self._dims.of[view.columns], -1)]
        use = self._tensor(node, 1, slots[1])
        if use is None or not np.array_equal(place, np.arange(len(self._dim.channels))):
            return False
        norm.reads.append(use)
        norm.keys.append(node.key)
        return True

    def _makes(self, node: Node, slots: Mapping[int, int]) -> bool:
        """A weight whose rows are the stream."""
        wanted = [s for s, n in enumerate(node.inputs) if s and n]
        if [*slots] != wanted or node.attr("group", 1) != 1:
            return False
        if any(node.inputs[s] in self._raw for s in wanted):
            return False
        return self._makes_raw(node, slots)

    def _moves(self, node: Node, axis: int) -> bool:
        name = node.inputs[0]
        if name in self._normed:
            self._normed |= dict.fromkeys(node.outputs, self._normed[name])
            return True
        use = None if name in self._raw else self._tensor(node, 0, axis)
        if use is not None and node.op in PLAIN:
            self._stored[node.outputs[0]] = use
            return len(self._model.consumers.get(node.outputs[0], ())) == 1
        return self._makes_raw(node, {0: axis})


# --- which directions -----------------------------------------------------------------------------


def directions(stream: Turnable, sums: Mapping[str, Sums]) -> FloatArray:
    """Directions of what the norms see, the best first, by the samples to fit on.

    Each reader's inputs count alike. Returns: shape (channels, channels - 1): orthonormal, and
    orthogonal to the mean that the norms take away.
    """
    spread = np.zeros((1, 1))
    for norm in stream.norms:
        for key in norm.keys:
            seen = norm.plain(total(sums[key].folds[:-1])).covariance
            spread = spread + seen / max(float(np.trace(seen)), 1e-30)
    count = len(spread)
    centred = np.eye(count) - 1 / count
    # Whatever noise there is along the mean, it comes first here, and is left out.
    _, vectors = np.linalg.eigh(centred @ spread @ centred - np.trace(spread) / count)
    found: FloatArray = vectors[:, :0:-1]
    return found


def losses(
    stream: Turnable,
    directions: FloatArray,
    weights: Mapping[str, FloatArray],
    sums: Mapping[str, Sums],
    kept: Sequence[int],
    ridges: Sequence[float],
) -> list[float]:
    """Damage of keeping so many channels of a stream, on held-out samples, summed over readers.

    One of them goes for the mean that the norms take away.

    Args:
        directions: the best first, as `directions` gives them.
        weights: of each reader, in units of the damage that its errors do.
    Returns: one number for each of `kept`.
    """
    count = directions.shape[1]
    problems = [
        Problem(
            weights[key] * norm.scale @ directions,
            np.arange(count),
            [_along(directions, norm.plain(fold)) for fold in sums[key].folds],
        )
        for norm in stream.norms
        for key in norm.keys
    ]
    gone = [np.arange(max(k - 1, 0), count) for k in kept]
    return [sum(lost(one, g, ridges) for one in problems) for g in gone]


def _along(directions: FloatArray, seen: Moments) -> Moments:
    aa = directions.T @ seen.aa @ directions
    return Moments(seen.n, seen.a @ directions, seen.t, aa, seen.at, seen.tt)
