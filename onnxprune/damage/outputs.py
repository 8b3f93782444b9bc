"""How far a model's outputs move when a reader gives something a little else.

Errors of unlike layers compare only there: of queries against a softmax, of a layer whose result a
norm divides away. No gradients: small noise is added to what a reader gives, and what lies behind
it is run again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxprune.backend.runtime import Session, session
from onnxprune.cutting.oracle import witnesses
from onnxprune.model.graph import Model, Node
from onnxprune.planning.cost import model_cost
from onnxprune.readers.frontier import Batch, Walk, batches, needed, part, reads
from onnxprune.readers.stats import Array, FloatArray, Moments, moments
from onnxprune.readers.view import LinearView, View
from onnxprune.rules import load_rules
from onnxprune.samples.dataset import Dataset
from onnxprune.samples.metrics import Kind, kind_of
from onnxprune.shape.shapes import Shapes
from onnxprune.verification.compare import DISTRIBUTIONS, divergences

SAMPLES, LEAST_SAMPLES, DRAWS = 16, 4, 2
# All runs together stay within so many MACs, as long as there are that few samples.
MOST_MACS = 5 * 10**11
# Size of the noise, in standard deviations of each channel: small enough for the loss to grow
# with its square, far above what float16 rounds.
NOISE = 0.1


def factors(
    model: Model,
    shapes: Shapes,
    views: Sequence[View],
    data: Dataset,
    seed: int,
    custom_ops: Sequence[str] = (),
) -> dict[str, float]:
    """What the outputs lose for each unit of error that a reader makes, by the reader's key.

    Loss is the Kullback-Leibler divergence in nats of a distribution, the squared error relative
    to the variance of other outputs, mean over outputs. Error is squared and relative to the
    variance of what the reader gives, channel by channel. Readers of one node (groups, gates)
    share what is measured of the node. The same for any batch size: samples run one by one.

    Args:
        data: at most `SAMPLES` are looked at.
    Returns: at least 0; a reader whose noise gives no finite output is left out.
    """
    own: dict[str, list[View]] = {}
    for view in views:
        own.setdefault(view.node.key, []).append(view)
    nodes = [node for node in model.nodes if node.key in own]
    few = data.subset(range(_affordable(model, shapes, len(nodes), data)))
    probe = _Probe(model, batches([few], 1), seed, custom_ops)
    axes = {key: _axis(of[0]) for key, of in own.items()}
    found = probe.measure(nodes, axes)
    return {
        view.key: found[key] / len(of) for key, of in own.items() if key in found for view in of
    }


def _affordable(model: Model, shapes: Shapes, nodes: int, data: Dataset) -> int:
    """Samples that may run: behind the average node lies half the model."""
    each = model_cost(model, shapes, load_rules()).macs * nodes * DRAWS // 2
    count = min(SAMPLES, max(LEAST_SAMPLES, MOST_MACS // max(each, 1)))
    unit = data.batch or 1
    return min(data.n, -(-count // unit) * unit)


def _axis(view: View) -> int:
    """Channel axis of what a reader's node gives."""
    return view.linear.out_axis if isinstance(view, LinearView) else -1


@dataclass(eq=False)
class _Probe:
    """A model, samples, and its own outputs on them."""

    model: Model
    known: Sequence[Batch]
    seed: int
    custom_ops: Sequence[str]

    @cached_property
    def before(self) -> dict[str, list[Array]]:
        """The outputs of floating point numbers, batch by batch; else what is behind labels."""
        for names in (self.model.output_names, witnesses(self.model)):
            made = [n for n in names if n in self.model.producer]
            found = self._outputs(made) if made else {}
            if floats := {n: a for n, a in found.items() if _is_float(a[0])}:
                return floats
        return {}

    def _outputs(self, names: Sequence[str]) -> dict[str, list[Array]]:
        nodes = needed(self.model, names, {*self.model.input_names})
        run = session(part(self.model, nodes, names, {}), custom_ops=self.custom_ops)
        rows = [run.run({n: b.feeds[n] for n in run.input_names}, names) for b in self.known]
        return {name: [row[at] for row in rows] for at, name in enumerate(names)}

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        """What each output holds."""
        return {name: kind_of(values[0], name) for name, values in self.before.items()}

    @cached_property
    def spreads(self) -> dict[str, float]:
        """Squared distance of each output from its mean, summed over all batches."""
        totals = {name: _total(values, -1) for name, values in self.before.items()}
        return {name: float(one.variance_t.sum()) * one.n for name, one in totals.items()}

    def measure(self, nodes: Sequence[Node], axes: Mapping[str, int]) -> dict[str, float]:
        """Loss per unit of error of some nodes, by key."""
        parts = [_Behind(self.model, node, [*self.before]) for node in nodes]
        later = [names for one in parts for names in ({*one.made}, {*one.made, *one.crossing})]
        walk = Walk(self.known, later, self.custom_ops)
        found = {}
        for number, one in enumerate(parts):
            scales = self._scales(walk, one, axes[one.node.key])
            losses = list(self._losses(walk, one, scales, axes[one.node.key], number))
            finite = [loss for loss in losses if np.isfinite(loss)]
            if finite:
                found[one.node.key] = float(np.mean(finite)) / NOISE**2
        walk.shelf.close()
        return found

    def _scales(self, walk: Walk, one: _Behind, axis: int) -> dict[str, FloatArray]:
        """Standard deviation of each channel of what a node gives."""
        gathered: dict[str, Moments] = {}
        for values in walk.step(self.model, one.made):
            for name in one.made:
                if _is_float(values[name]):
                    own = _moments(values[name], axis)
                    gathered[name] = gathered[name] + own if name in gathered else own
        return {name: np.sqrt(total.variance_t) for name, total in gathered.items()}

    def _losses(
        self, walk: Walk, one: _Behind, scales: Mapping[str, FloatArray], axis: int, number: int
    ) -> Iterator[float]:
        """The loss of each batch and draw."""
        run: Session | None = None
        for at, values in enumerate(walk.step(self.model, [*one.made, *one.crossing])):
            if run is None and one.nodes:
                proto = part(self.model, one.nodes, one.reached, values)
                run = session(proto, custom_ops=self.custom_ops)
            for draw in range(DRAWS):
                keys = [self.seed, number, int(self.known[at].samples[0]), draw]
                rng = np.random.default_rng(keys)
                noisy = {
                    name: _noisy(values[name], scales[name], axis, rng) if name in scales
                    else values[name] for name in one.made
                }  # fmt: skip
                after = {n: noisy[n] for n in self.before if n in noisy}
                if run is not None:
                    feeds = {n: noisy.get(n, values[n]) for n in run.input_names}
                    after |= dict(zip(one.reached, run.run(feeds, one.reached), strict=True))
                yield self._loss(after, at)

    def _loss(self, after: Mapping[str, Array], at: int) -> float:
        """How far the outputs of a batch are from the model's own."""
        found = []
        for name, values in self.before.items():
            ours, kind = values[at], self.kinds[name]
            theirs = after.get(name, ours)
            if ours.shape != theirs.shape:  # as many rows as something was found
                continue
            if kind in DISTRIBUTIONS:
                found.append(float(divergences(kind, ours, theirs).mean()))
            elif self.spreads[name] > 0:
                off = np.square(theirs.astype(np.float64) - ours.astype(np.float64)).sum()
                found.append(float(off) * len(self.known) / self.spreads[name])
        return float(np.mean(found)) if found else 0.0


class _Behind:
    """What lies between a node and the outputs."""

    def __init__(self, model: Model, node: Node, outputs: Sequence[str]) -> None:
        self.node = node
        self.made = [name for name in node.outputs if name]
        touched, after = {*self.made}, list[Node]()
        for other in model.nodes:
            if other.key != node.key and touched & reads(other):
                after.append(other)
                touched.update(filter(None, other.outputs))
        self.reached = [n for n in outputs if n in touched and n not in self.made]
        wanted, behind = {*self.reached}, list[Node]()
        for other in reversed(after):
            if wanted.intersection(other.outputs):
                behind.append(other)
                wanted |= reads(other)
        self.nodes = behind[::-1]
        inside = {name for other in self.nodes for name in other.outputs}
        read = {name for other in self.nodes for name in reads(other)}
        self.crossing = sorted(read - inside - {*self.made} - model.initializers.keys())


def _is_float(value: Array) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _moments(value: Array, axis: int) -> Moments:
    """Means and variances of the channels of a value."""
    moved = np.moveaxis(value, axis, -1) if value.ndim > 1 else value[..., None]
    rows = moved.reshape(-1, moved.shape[-1])
    return moments(rows, rows, is_full=False)


def _total(values: Sequence[Array], axis: int) -> Moments:
    first, *rest = [_moments(value, axis) for value in values]
    return sum(rest, first)


def _noisy(value: Array, scale: FloatArray, axis: int, rng: np.random.Generator) -> Array:
    """A value with noise of its own size in each channel."""
    drawn = rng.standard_normal(value.shape, np.float32)
    shape = [1] * value.ndim
    shape[axis] = len(scale)
    made = value.astype(np.float64) + NOISE * drawn * scale.reshape(shape)
    return made.astype(value.dtype)
