"""Refit the readers of what was cut on calibration data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxprune.cutting.cut import Cut
from onnxprune.errors import PruneError
from onnxprune.identity.dims import BoolArray, Dims
from onnxprune.manager import Rewrite, Rewritten, State
from onnxprune.model.graph import Model
from onnxprune.planning.plan import Plan
from onnxprune.readers.folds import folds
from onnxprune.repair.sweep import Repaired, repaired


@dataclass(frozen=True)
class RepairReaders(Rewrite):
    """Refit what reads removed channels to give what the original gave, from input to output.

    Readers are solved for by least squares: for what went, with a pull towards their sliced
    weights, then for errors upstream, with a pull towards that; other layers, depthwise ones and
    norms get the mean and variance of their channels back. A reader that does not become better on
    held-out samples stays as it was sliced. The gates of an LSTM, GRU or RNN are solved for twice:
    beside states of the original, then beside those that the repaired cell runs into. Streams that
    linear layers write to, and only they and norms see, are turned first: what stays are
    directions. A small weight that several nodes read is copied for one of them where that may be
    (`copies`); larger ones are left alone.
    """

    name: ClassVar[str] = "repair-readers"
    needs: ClassVar[tuple[type, ...]] = (Cut,)
    keeps: ClassVar[tuple[type, ...]] = (Cut,)
    gives: ClassVar[tuple[type, ...]] = (Cut, Repaired)

    samples: int = 640
    """Calibration samples that are looked at, at most."""
    custom_ops: tuple[str, ...] = ()
    """Libraries of custom operators that the model needs to run."""
    copies: bool = False
    """Give nodes that share a small weight one each, where refitting makes them differ."""

    def run(self, state: State) -> Rewritten:
        if state.calibration is None:
            state.warnings.append("`repair-readers` left out: there is no calibration data")
            return Rewritten(state.model, (Repaired({}),))
        before = state.replaced_by(state[Cut].model)
        dims, plan = state.past(Dims), state.past(Plan)
        fit, decide = state.calibration
        parts = folds(fit, decide, self.samples)
        try:
            made, done = repaired(
                before, state[Cut], dims, plan.alive, parts, state.seed, self.custom_ops,
                copies=self.copies,
            )  # fmt: skip
        except PruneError as error:
            state.warnings.append(f"`repair-readers` left out: {error.what}")
            return Rewritten(state.model, (Repaired({}),))
        left = _left(before.model, dims, plan.alive, done)
        if left:
            names = ", ".join(f"{count} {op}" for op, count in sorted(left.items()))
            state.warnings.append(f"layers that lost inputs and could not be refit: {names}")
        kinds = Counter(one.kind for one in done.values())
        return Rewritten(made, (Repaired(dict(sorted(kinds.items()))),))


def _left(model: Model, dims: Dims, alive: BoolArray, done: Collection[str]) -> Counter[str]:
    """Operators that sum over channels that went with stored weights, and were not looked at.

    Args:
        alive: shape (channels,).
        done: keys of readers: of a node, or with a label behind it.
    """
    gone = np.zeros(dims.count, np.bool_)
    lost = dict[str, BoolArray]()
    for one in dims.ties.readers:
        own = dims.of[one.field.ids]
        if not one.beside and not alive[own].all():
            lost.setdefault(one.key, gone.copy())[own[~alive[own]]] = True
    stored = {
        key
        for (key, _), source in dims.ties.sources.items()
        if source.initializer and key in lost
        for one in source.fields
        if one.ids.ndim > 1 and lost[key][dims.of[one.ids]].any()  # no bias of what is summed
    }
    return Counter(
        node.op
        for node in model.nodes
        if node.key in stored
        and not any(key == node.key or key.startswith(f"{node.key} ") for key in done)
    )
