"""What tests of the exact clean-ups share: run one, and compare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper

from onnxprune.backend.feeds import model_inputs
from onnxprune.cutting.oracle import relative
from onnxprune.identity.dims import Dims
from onnxprune.manager import PassManager, State, Subject, make_pass
from onnxprune.model.graph import Model
from onnxprune.model.storage import load
from onnxprune.normal.normalize import normalize
from tests.oracle import run

MODELS = Path(__file__).resolve().parent.parent / "models"
TOLERANCE = 1e-5
Array = np.ndarray[Any, np.dtype[Any]]


def cleaned(proto: ModelProto, *names: str, warned: str = "") -> State:
    """The state after clean-ups; outputs are the same, at two batch sizes."""
    subject = Subject(normalize(load(proto)))
    state = State(subject, subject, progress=lambda text: None)
    PassManager([make_pass(name) for name in ("find-dims", *names)]).run(state)
    assert all(warned and warned in text for text in state.warnings)
    assert [o.name for o in state.model.outputs] == [o.name for o in subject.model.outputs]
    onnx.checker.check_model(state.model.complete(), full_check=True)
    names = [t.name for t in state.model.proto.graph.initializer]
    assert len(names) == len(set(names))
    for shapes in (subject.sizes.first, subject.sizes.second):
        feeds = model_inputs(subject.model, shapes, 5)
        for a, b in zip(run(subject.model.proto, feeds), run(state.model.proto, feeds),
                        strict=True):  # fmt: skip
            off = relative(np.asarray(a), np.asarray(b))
            assert off is None or off <= TOLERANCE
    assert state[Dims] is not None
    return state


def weights_of(state: State, op: str) -> list[tuple[int, ...]]:
    """Shapes of the stored second operands of all nodes of a kind."""
    stored = state.model.initializers
    nodes = [n for n in state.model.nodes if n.op == op and n.inputs[1] in stored]
    return [state.model.dims(n.inputs[1]) for n in nodes]


def changed(proto: ModelProto, edits: dict[str, Callable[[Array], None]]) -> ModelProto:
    """A copy of a model with weights edited in place."""
    made = ModelProto()
    made.CopyFrom(proto)
    for tensor in made.graph.initializer:
        if tensor.name in edits:
            array = numpy_helper.to_array(tensor).copy()
            edits[tensor.name](array)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return made


def repository_model(name: str) -> Model:
    """One of the repository's models, normalised."""
    return normalize(load(MODELS / name / "model.onnx"))
