"""What tests of verification share: a small model, edits of it, and both in a state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from onnxprune.backend.feeds import Array, Spec
from onnxprune.manager import State, Subject
from onnxprune.model.graph import Model
from onnxprune.samples.dataset import Dataset, check
from tests.builder import Builder

FEATURES, CLASSES = 5, 3


def mlp(seed: int = 0, *, batch: int | str = "N", outputs: int = 1) -> ModelProto:
    """x -> logits; with two outputs also the hidden layer, `features`, before them."""
    b = Builder(seed)
    first = b.node("MatMul", "x", b.weight(FEATURES, 8))
    hidden = b.node("Relu", first)
    logits = b.node("MatMul", hidden, b.weight(8, CLASSES))
    b.node("Identity", hidden)
    b.node("Identity", logits)
    b.nodes[-2].output[0], b.nodes[-1].output[0] = "features", "logits"
    named: dict[str, list[int | str]] = {"features": [batch, 8], "logits": [batch, CLASSES]}
    kept = dict(list(named.items())[-outputs:])
    return b.model({"x": [batch, FEATURES]}, kept)


def edited(model: ModelProto, edit: Callable[[ModelProto], Any]) -> ModelProto:
    """A copy that an edit was made to."""
    made = ModelProto()
    made.CopyFrom(model)
    edit(made)
    return made


def reweighted(model: ModelProto, edit: Callable[[Array], Array], name: str = "w1") -> ModelProto:
    """A copy with another value of one weight (of `mlp`, the one that makes the logits)."""

    def change(made: ModelProto) -> None:
        tensor = next(t for t in made.graph.initializer if t.name == name)
        array = edit(numpy_helper.to_array(tensor))
        tensor.CopyFrom(numpy_helper.from_array(array, name))

    return edited(model, change)


def broken(model: ModelProto) -> ModelProto:
    """A copy that ONNX Runtime does not load."""
    return edited(model, lambda m: setattr(m.graph.node[1], "op_type", "NoSuchOperator"))


def broken_at_run(model: ModelProto) -> ModelProto:
    """A copy of `mlp` that loads, and takes no batch but 2."""

    def bake(made: ModelProto) -> None:
        shape = numpy_helper.from_array(np.array([2, 8], np.int64), "baked")
        made.graph.initializer.append(shape)
        made.graph.node[1].op_type = "Reshape"
        made.graph.node[1].input.append("baked")

    return edited(model, bake)


def in_float16(model: ModelProto, kind: int = TensorProto.FLOAT16) -> ModelProto:
    """A copy in another float type, interface included."""

    def narrow(made: ModelProto) -> None:
        for tensor in made.graph.initializer:
            values = numpy_helper.to_array(tensor)
            dtype = np.dtype(Spec.of(_info(kind)).dtype)
            tensor.CopyFrom(numpy_helper.from_array(values.astype(dtype), tensor.name))
        for info in (*made.graph.input, *made.graph.output):
            info.type.tensor_type.elem_type = kind

    return edited(model, narrow)


def _info(kind: int) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info("any", kind, [])


def dataset(model: ModelProto, arrays: dict[str, Array], labels: Array | None = None) -> Dataset:
    """Data that fits the model's inputs."""
    return check(arrays, labels, [Spec.of(info) for info in Model(model).inputs])


def compared(
    original: ModelProto, candidate: ModelProto, data: Dataset | None = None, seed: int = 0
) -> State:
    """The state that a verification pass meets."""
    return State(
        Subject(Model(original)),
        Subject(Model(candidate)),
        seed=seed,
        data=data,
        progress=lambda _: None,
    )
