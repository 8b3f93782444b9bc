"""States with calibration data, and what score passes give on them."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto

from onnxprune.backend.feeds import Spec
from onnxprune.identity.dims import Dims
from onnxprune.manager import AnyPass, PassManager, State
from onnxprune.passes.find_dims import FindDims
from onnxprune.planning.scores import Scores
from onnxprune.samples.dataset import Dataset, check
from tests.nets import state_of


def dataset(model: ModelProto, x: Any, dtype: Any = np.float32) -> Dataset:
    """Samples for the input `x`."""
    return check({"x": np.asarray(x, dtype)}, None, [Spec.of(i) for i in model.graph.input])


def calibrated(model: ModelProto, x: Any, seed: int = 0, dtype: Any = np.float32) -> State:
    """A state with samples to fit on and to decide on, Dims found."""
    state = state_of(model, seed)
    fit, decide, _ = dataset(model, x, dtype).split(0)
    state.calibration = fit, decide
    PassManager([FindDims()]).run(state)
    return state


def scored(model: ModelProto, x: Any, one: AnyPass, seed: int = 0, dtype: Any = np.float32) -> (
    list[np.ndarray[Any, Any]]
):  # fmt: skip
    """What a pass gives the channels of each free Dim."""
    state = calibrated(model, x, seed, dtype)
    PassManager([one], given=[Dims]).run(state)
    return [state[Scores].of[d.channels] for d in state[Dims].free]
