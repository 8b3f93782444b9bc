"""Repairs a cut model from its inputs to its outputs, wave by wave.

Each reader sees what the pruned net gives it now, repairs upstream included, and aims at what
the original gave: errors do not add up from layer to layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, ValueInfoProto

from onnxprune.backend.runtime import session
from onnxprune.cleanup.cleaning import add_biases, with_weights
from onnxprune.cleanup.linear import Linear
from onnxprune.identity.ties import Slot
from onnxprune.model.graph import Model, bodies, free_names
from onnxprune.model.storage import copy_fields
from onnxprune.repair.readers import Target, batches, sliced_weights, stored
from onnxprune.repair.solve import Affine, Repair, repair
from onnxprune.repair.stats import Array, FloatArray, Gatherer, Moments, positions
from onnxprune.samples.dataset import Dataset
from onnxprune.verification.trials import data_trials

# Sums that are gathered together.
MOST_BYTES = 2**29


@dataclass(frozen=True, eq=False)
class Repaired:
    """How many readers were repaired, by what was done to them."""

    kinds: dict[str, int]


@dataclass(eq=False)
class Sweep:
    """A model under repair."""

    original: Model
    cut: Model
    fit: Dataset
    decide: Dataset
    seed: int = 0
    custom_ops: Sequence[str] = ()
    done: dict[str, Repair] = field(default_factory=dict)
    """What was chosen, by the key of the node."""
    _weights: dict[Slot, Array] = field(default_factory=dict)
    _biases: dict[str, FloatArray] = field(default_factory=dict)
    _views: dict[str, Linear] = field(default_factory=dict)

    def run(self, waves: Sequence[Sequence[Target]]) -> Model:
        """The repaired model; the cut one itself where nothing became better."""
        for wave in waves:
            live = self._model()
            for part in batches(wave, MOST_BYTES):
                fit, decide = (self._gather(live, data, part) for data in (self.fit, self.decide))
                for target, *seen in zip(part, fit, decide, strict=True):
                    self._repair(target, *seen)
        return self._model()

    def _model(self) -> Model:
        if not self._weights:
            return self.cut
        made = with_weights(self.cut, self._weights)
        return add_biases(made, self._views, self._biases)

    def _repair(self, target: Target, fit: Moments, decide: Moments) -> None:
        view, key = target.view, target.node.key
        if view is not None and target.may_solve:
            sliced = Affine(sliced_weights(view), view.bias)
        else:
            sliced = Affine(np.ones(len(fit.t)), np.zeros(len(fit.t)))
        found = repair(fit, decide, sliced, may_solve=target.may_solve)
        self.done[key] = found
        if found.kind == "sliced":
            return
        line = found.line
        if view is None:
            scale, bias = (self.cut.array(n).astype(np.float64) for n in target.node.inputs[1:3])
            self._weights[key, 1] = scale * line.weights
            self._weights[key, 2] = bias * line.weights + line.bias
            return
        self._views[key] = view
        self._weights[key, 1] = stored(target, line.weights)
        moved = 0.0 if target.may_solve else view.bias * line.weights
        self._biases[key] = line.bias + moved - view.bias

    def _gather(self, live: Model, data: Dataset, targets: Sequence[Target]) -> list[Moments]:
        """Moments of each target over all samples."""
        others = [t.stream.other for t in targets if t.stream is not None]
        models = (
            _Part(self.original, [t.of_original for t in targets], self.custom_ops),
            _Part(live, [*(t.of_pruned for t in targets), *others], self.custom_ops),
        )
        found = [Gatherer(t.may_solve) for t in targets]
        start = 0
        for trial in data_trials(data):
            before, after = (part.run(trial.feeds) for part in models)
            rows = data.rows[start : start + trial.samples]
            start += trial.samples
            for target, gatherer in zip(targets, found, strict=True):
                _add(gatherer, target, before, after, self.seed, rows)
        return [gatherer.finish() for gatherer in found]


def _add(
    gatherer: Gatherer,
    target: Target,
    before: Mapping[str, Array],
    after: Mapping[str, Array],
    seed: int,
    rows: Array,
) -> None:
    """What a batch says of one target, sample by sample."""
    wanted = target.wanted(before[target.of_original], after)
    value = after[target.of_pruned]
    each = len(wanted) // len(rows) if len(wanted) % len(rows) == 0 else 0
    for i, row in enumerate(rows if each else rows[:1]):
        one = slice(i * each, (i + 1) * each) if each else slice(None)
        part = wanted[one]
        at = positions(part.size // part.shape[target.axis], seed, int(row))
        gatherer.add(target.seen(value[one], part.shape, at), target.rows(part, at))


class _Part:
    """As much of a model as some of its values need."""

    def __init__(self, model: Model, names: Sequence[str], custom_ops: Sequence[str]) -> None:
        self.names = [n for n in dict.fromkeys(names) if n in model.producer]
        self._session = session(part(model, self.names), custom_ops=custom_ops)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The values, and the feeds themselves."""
        known = {n: a for n, a in feeds.items() if n in self._session.input_names}
        made = zip(self.names, self._session.run(known, self.names), strict=True)
        return {**feeds, **dict(made)}


def part(model: Model, names: Sequence[str]) -> ModelProto:
    """A model that gives these values, without the nodes behind them."""
    wanted, nodes = set(names), []
    for node in reversed(model.nodes):
        if wanted.intersection(node.outputs):
            wanted.update(node.inputs)
            wanted.update(n for body in bodies(node.proto) for n in free_names(body))
            nodes.append(node.proto)
    proto, source = ModelProto(), model.proto
    copy_fields(source, proto, {"graph"})
    copy_fields(source.graph, proto.graph, {"node", "initializer", "input", "output", "value_info"})
    proto.graph.node.extend(reversed(nodes))
    proto.graph.initializer.extend(t for t in source.graph.initializer if t.name in wanted)
    proto.graph.input.extend(info for info in source.graph.input if info.name in wanted)
    proto.graph.output.extend(ValueInfoProto(name=n) for n in names)
    return proto
