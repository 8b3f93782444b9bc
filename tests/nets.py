"""Nets whose scores can be told by hand, and how passes are run over them."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto

from onnxprune.identity.dims import Dims
from onnxprune.manager import AnyPass, PassManager, State, Subject
from onnxprune.model.graph import Model
from onnxprune.passes.find_dims import FindDims
from onnxprune.planning.scores import Scores
from tests.builder import Builder


def state_of(model: ModelProto, seed: int = 0) -> State:
    """A state over a model that nothing was found out about yet."""
    subject = Subject(Model(model))
    return State(subject, subject, seed=seed, progress=lambda text: None)


def run(model: ModelProto, *passes: AnyPass, seed: int = 0) -> State:
    """The state after Dims were found and some passes ran."""
    state = state_of(model, seed)
    PassManager([FindDims(), *passes]).run(state)
    return state


def score(model: ModelProto, one: AnyPass) -> list[np.ndarray[Any, Any]]:
    """What a pass gives the channels of each free Dim."""
    state = run(model, one)
    return [state[Scores].of[d.channels] for d in state[Dims].free]


def two_layers(
    first: Any, second: Any, gamma: Any = None, bias: Any = None
) -> ModelProto:
    """A hidden layer between two products.

    Args:
        first: shape (inputs, hidden); `second`: (hidden, outputs).
        gamma: scale of a norm behind the first product.
        bias: of the first product.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    b = Builder(0)
    h = b.node("MatMul", "x", b.add(first))
    if bias is not None:
        h = b.node("Add", h, b.add(bias))
    if gamma is not None:
        ones = [b.add(np.ones(first.shape[1])) for _ in range(3)]
        h = b.node("BatchNormalization", h, b.add(gamma), *ones)
    y = b.node("MatMul", b.node("Relu", h), b.add(second))
    return b.model({"x": ["n", first.shape[0]]}, {y: ["n", second.shape[1]]})
