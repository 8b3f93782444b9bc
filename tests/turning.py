"""Streams that are turned, and how far that moves outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto

from onnxprune.backend.runtime import session
from onnxprune.cutting.cut import cut
from onnxprune.damage.follow import find_streams
from onnxprune.damage.streams import Turnable
from onnxprune.identity.dims import Dims
from onnxprune.manager import State
from onnxprune.model.graph import Model
from onnxprune.readers.find import find_views
from onnxprune.readers.folds import folds
from onnxprune.repair.copies import uncoupled
from onnxprune.repair.rotated import rotated
from onnxprune.rules import load_rules


def streams(state: State) -> dict[int, Turnable]:
    model = uncoupled(state.model)
    views = find_views(model, state.subject.shapes[0], state[Dims].ties)
    return find_streams(model, state[Dims], views)


def off(model: ModelProto | Model, other: Model, x: Any) -> float:
    """The largest difference of outputs, relative to the largest output."""
    protos = [m.proto if isinstance(m, Model) else m for m in (model, other)]
    ours, theirs = (session(p).run({"x": x}, [p.graph.output[0].name])[0] for p in protos)
    gap = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    return float(gap.max() / np.abs(ours).max())


def turned(state: State, alive: Any) -> tuple[Model, Model, Model]:
    """The original turned, its cut form, and what the cut alone leaves."""
    dims, subject = state[Dims], state.subject
    thin = cut(subject.model, dims, subject.sizes, subject.shapes, ~alive, load_rules(), {})
    shapes = subject.shapes[0]
    views = find_views(state.model, shapes, dims.ties)
    assert state.calibration is not None
    parts = folds(*state.calibration, 640)
    return *rotated(state.model, thin.model, shapes, dims, alive, views, parts, 0), thin.model
