"""Finds streams that can be turned: follows each from what writes it to what sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from onnxprune.damage.norms import is_mean, is_square, mean_behind
from onnxprune.damage.streams import Kind, Sight, Turnable, Use
from onnxprune.identity.dims import Dim, Dims
from onnxprune.identity.fields import Field
from onnxprune.model.graph import Model, Node
from onnxprune.readers.stats import FloatArray
from onnxprune.readers.view import View

# Of these a stored tensor stays one.
PLAIN = frozenset(("Identity", "Cast", "Transpose"))
NORMS = {
    "LayerNormalization": Kind.LAYER,
    "RMSNormalization": Kind.RMS,
    "SimplifiedLayerNormalization": Kind.RMS,
}


def find_streams(model: Model, dims: Dims, views: Mapping[str, View]) -> dict[int, Turnable]:
    """Streams that can be turned, by Dim index."""
    touching: dict[int, list[Node]] = {}
    for node in model.nodes:
        for index in _touched(dims, node):
            touching.setdefault(index, []).append(node)
    found = {}
    for dim in dims.free:
        if len(dim.parts) == 1 and dim.size > 2 and dim.index in touching:
            made = _Finder(model, dims, views, dim).found(touching[dim.index])
            if made is not None:
                found[dim.index] = made
    return found


def _touched(dims: Dims, node: Node) -> Iterator[int]:
    """The Dims that live in a node's inputs and outputs."""
    slots = [dims.ties.sources.get((node.key, slot)) for slot in range(len(node.inputs))]
    own = [one for source in slots if source for one in source.fields]
    own += [one for n in (*node.inputs, *node.outputs) for one in dims.ties.fields.get(n, ())]
    if own:
        channels = np.unique(np.concatenate([dims.of[one.ids.ravel()] for one in own]))
        yield from np.unique(dims.dim_of[channels[channels >= 0]]).tolist()


class _Finder:
    """Follows a stream from what writes it to what reads it."""

    def __init__(self, model: Model, dims: Dims, views: Mapping[str, View], dim: Dim) -> None:
        self._model, self._dims, self._views, self._dim = model, dims, views, dim
        self._place = np.full(dims.count + 1, -1, np.int64)
        self._place[dim.channels] = np.arange(len(dim.channels))
        self._stored: dict[str, Use] = {}
        """Values that are a stored tensor in another form."""
        self._raw = set[str]()
        self._centred = set[str]()
        """Values that are the stream less its mean."""
        self._squares: dict[str, str] = {}
        """Squares of values, and of which."""
        self._sizes = set[str]()
        """Means of squares that nothing was found to be divided by, by node."""
        self._seen: dict[str, Sight] = {}
        """Norms by the values that they give."""
        self._bare = Sight(Kind.PLAIN, np.ones(len(dim.channels)), np.zeros(len(dim.channels)))
        self._writes: dict[Use, None] = {}
        self._outside = model.captured.union(model.output_names)

    def found(self, nodes: Sequence[Node]) -> Turnable | None:
        """The stream; None where anything else touches it. Args: nodes: where it lives."""
        if self._dim.parents[0] >= 0 or np.isin(self._dims.parent, self._dim.channels).any():
            return None
        if not all(self._follow(node) for node in nodes) or self._sizes:
            return None
        bare = [self._bare] if self._bare.keys else []
        sights = [*dict.fromkeys(self._seen.values()), *bare]
        kinds = {sight.kind for sight in sights}
        if not sights or not all(sight.fits for sight in sights):
            return None
        if Kind.LAYER in kinds and len(kinds) > 1:  # the others see the mean
            return None
        kind = next(iter(kinds)) if len(kinds) == 1 else Kind.RMS
        return Turnable(self._dim.index, kind, tuple(self._writes), tuple(sights))

    def _follow(self, node: Node) -> bool:
        """Looks at a node; False where it does what a turn does not go along with."""
        slots = {s: a for s, n in enumerate(node.inputs) if (a := self._at(node, s, n)) is not None}
        outs = {n: a for n in node.outputs if (a := self._axis(self._of(n))) is not None}
        if (not slots and not outs) or node.op in ("Shape", "Size"):
            return not outs
        names = {node.inputs[s] for s in slots} | {*outs}
        if node.domain or -1 in (*slots.values(), *outs.values()) or names & self._outside:
            return False
        look = self._looks.get(node.op)
        return look is not None and look(node, slots, outs)

    @property
    def _looks(self) -> Mapping[str, Callable[..., bool]]:
        """What is asked of a node of each kind."""
        layers = dict.fromkeys(("MatMul", "Gemm", "Conv"), self._layer)
        moves = """Reshape Squeeze Unsqueeze Split Slice Flatten Gather Expand Tile AveragePool
            GlobalAveragePool""".split()
        return {
            **layers,
            **dict.fromkeys(NORMS, self._norm),
            **dict.fromkeys((*PLAIN, *moves), self._moves),
            **dict.fromkeys(("Sum", "Concat"), self._sum),
            "Add": self._add,
            "Sub": self._sub,
            **dict.fromkeys(("ReduceMean", "ReduceSum"), self._mean),
            "Pow": self._square,
            "Mul": self._mul,
            "Div": self._div,
        }

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

    def _sum(self, node: Node, slots: Mapping[int, int], outs: Mapping[str, int]) -> bool:
        return len(slots) == len(node.inputs) and bool(outs) and self._makes_raw(node, slots)

    def _passes(self, node: Node, slot: int, outs: Mapping[str, int]) -> bool:
        """The stream, or what a norm gives, in other places or times what all channels share."""
        name = node.inputs[slot]
        if name in self._seen:
            self._seen |= dict.fromkeys(outs, self._seen[name])
        elif name in self._raw:
            self._raw |= {*outs}
        return name in self._seen or name in self._raw

    def _moves(self, node: Node, slots: Mapping[int, int], outs: Mapping[str, int]) -> bool:
        """A node that passes the stream, or what a norm gives, or a stored tensor."""
        if [*slots] != [0] or len(outs) != len(node.outputs):
            return False
        if self._passes(node, 0, outs):
            return True
        use = self._tensor(node, 0, slots[0])
        if use is not None and node.op in PLAIN:
            self._stored[node.outputs[0]] = use
            return len(self._model.consumers.get(node.outputs[0], ())) == 1
        return self._makes_raw(node, slots)

    # --- layers -----------------------------------------------------------------------------------

    def _layer(self, node: Node, slots: Mapping[int, int], outs: Mapping[str, int]) -> bool:
        return self._makes(node, slots) if outs else self._reads(node, slots)

    def _reads(self, node: Node, slots: Mapping[int, int]) -> bool:
        """A weight that sums over the stream, or over what a norm gives."""
        name, view = node.inputs[0], self._views.get(node.key)
        sight = self._bare if name in self._raw else self._seen.get(name)
        if sight is None or view is None or [*slots] != [0, 1]:
            return False
        place = self._place[np.where(view.columns >= 0, self._dims.of[view.columns], -1)]
        use, count = self._tensor(node, 1, slots[1]), len(self._dim.channels)
        taps = len(place) // count
        if use is None or not np.array_equal(place, np.repeat(np.arange(count), taps)):
            return False
        sight.reads.append(use)
        sight.keys.append(node.key)
        return True

    def _makes(self, node: Node, slots: Mapping[int, int]) -> bool:
        """A weight whose rows are the stream."""
        wanted = [s for s, n in enumerate(node.inputs) if s and n]
        if [*slots] != wanted or node.attr("group", 1) != 1:
            return False
        if any(node.inputs[s] in self._raw for s in wanted):
            return False
        return self._makes_raw(node, slots)

    # --- norms ------------------------------------------------------------------------------------

    def _norm(self, node: Node, slots: Mapping[int, int], outs: Mapping[str, int]) -> bool:
        """A norm over the stream alone; its mean and deviation are not handed out."""
        if node.inputs[0] not in self._raw or [*outs] != [*filter(None, node.outputs)]:
            return False
        last = self._rank(node.inputs[0]) - 1
        if slots[0] != last or int(node.attr("axis", -1)) not in (-1, last):
            return False
        scale, shift = self._factor(node, 1, slots), self._factor(node, 2, slots)
        if scale is None or (node.input(2) and shift is None):
            return False
        at = (node.key, 2) if node.input(2) else None
        self._seen[node.outputs[0]] = Sight(
            NORMS[node.op], scale, np.zeros(len(scale)) if shift is None else shift, (node.key, 1),
            at,
        )  # fmt: skip
        return True

    def _rank(self, name: str) -> int:
        return self._of(name)[0].ids.ndim

    def _factor(self, node: Node, slot: int, slots: Mapping[int, int]) -> FloatArray | None:
        """A stored number for each channel; None for anything else."""
        if slot not in slots or self._tensor(node, slot, 0) is None or node.inputs[slot] in (
            self._stored
        ):  # fmt: skip
            return None
        made = self._model.array(node.inputs[slot]).astype(np.float64)
        is_vector = made.size == len(self._dim.channels) == made.shape[slots[slot]]
        return made.ravel() if is_vector and np.isfinite(made).all() else None

    # --- norms that are written out ---------------------------------------------------------------

    def _mean(self, node: Node, slots: Mapping[int, int], outs: Mapping[str, int]) -> bool:
        """Over positions; or of the stream, for nothing but taking it away; or of squares."""
        if outs:
            return self._moves(node, slots, outs)
        name = node.inputs[0]
        if not is_mean(self._model, node, slots[0], self._rank(name)):
            return False
        readers = self._model.consumers.get(node.outputs[0], ())
        takes_away = all(r.op == "Sub" and s == 1 and r.inputs[0] == name for r, s in readers)
        if name in self._squares:
            self._sizes.add(node.key)
            return True
        return name in self._raw and takes_away and node.outputs[0] not in self._outside

    def _sub(self, node: Node, slots: Mapping[int, int], outs: Mapping[str, int]) -> bool:
        if len(slots) == len(node.inputs):
            return self._sum(node, slots, outs)
        mean = self._model.producer.get(node.inputs[1])
        name = node.inputs[0]
        if name not in self._raw or mean is None or mean.op != "ReduceMean":
            return False
        self._centred |= {*outs}
        return mean.inputs[0] == name

    def _square(self, node: Node, slots: Mapping[int, int], outs: Mapping[str, int]) -> bool:
        """Squares of which only means are taken."""
        name, model = node.inputs[0], self._model
        if name not in self._raw | self._centred or not is_square(model, node):
            return False
        self._squares |= dict.fromkeys(outs, name)
        return all(r.op == "ReduceMean" for r, _ in model.consumers.get(node.outputs[0], ()))

    def _mul(self, node: Node, slots: Mapping[int, int], outs: Mapping[str, int]) -> bool:
        """A square, a division by a size, or the scale of a norm."""
        if len(slots) < len(node.inputs):
            (slot,) = slots
            return self._divides(node, slot, -0.5) or self._weighs(node, slot, outs)
        if node.inputs[0] == node.inputs[1]:
            return self._square(node, slots, outs)
        sight, at = self._given(node)
        scale = self._factor(node, at, slots)
        if sight is None or scale is None or sight.scale_at or sight.shift_at:
            return False
        sight.scale, sight.scale_at = scale, (node.key, at)
        return self._hands_on(sight, node, at)

    def _div(self, node: Node, slots: Mapping[int, int], outs: Mapping[str, int]) -> bool:
        if [*slots] != [0]:
            return False
        return self._divides(node, 0, 0.5) or self._weighs(node, 0, outs)

    def _divides(self, node: Node, slot: int, exponent: float) -> bool:
        """The stream over the root of the mean of its squares."""
        name = node.inputs[slot]
        mean = mean_behind(self._model, node.inputs[1 - slot])
        if mean is None or mean[1] != exponent or self._squares.get(mean[0].inputs[0]) != name:
            return False
        self._sizes.discard(mean[0].key)
        kind, count = Kind.LAYER if name in self._centred else Kind.RMS, len(self._dim.channels)
        self._seen[node.outputs[0]] = Sight(kind, np.ones(count), np.zeros(count))
        return True

    def _weighs(self, node: Node, slot: int, outs: Mapping[str, int]) -> bool:
        """A factor for all channels. A shift that it takes along could not be told any more."""
        sight = self._seen.get(node.inputs[slot])
        return (sight is None or sight.shift_at is None) and self._passes(node, slot, outs)

    def _add(self, node: Node, slots: Mapping[int, int], outs: Mapping[str, int]) -> bool:
        """A sum of terms, or the shift of a norm."""
        sight, at = self._given(node)
        if sight is None:
            return self._sum(node, slots, outs)
        shift = self._factor(node, at, slots)
        if shift is None or sight.shift_at:
            return False
        sight.shift, sight.shift_at = shift, (node.key, at)
        return self._hands_on(sight, node, at)

    def _given(self, node: Node) -> tuple[Sight | None, int]:
        """The norm that gives one of two inputs, and the slot of the other one."""
        slot = next((s for s, n in enumerate(node.inputs) if n in self._seen), -1)
        return self._seen.get(node.inputs[slot]) if slot >= 0 else None, 1 - slot

    def _hands_on(self, sight: Sight, node: Node, at: int) -> bool:
        """A norm gives what it gave once scaled or shifted; nothing else reads that."""
        name = node.inputs[1 - at]
        self._seen[node.outputs[0]] = sight
        return len(self._model.consumers.get(name, ())) == 1
