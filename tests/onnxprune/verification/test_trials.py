"""What both models are run on: drawn inputs or data, at sizes of the original."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

from onnxprune.manager import Subject
from onnxprune.model.graph import Model
from onnxprune.verification.trials import (
    Unmeasured,
    chosen_shapes,
    data_trials,
    load_pair,
    plain,
    running_trial,
    seeded_trial,
    sized,
)
from tests.builder import Builder
from tests.pairs import broken, compared, dataset, edited, in_float16, mlp


def test_sizes_are_those_of_the_original() -> None:
    """Of its normalised form once there is one, else as loaded at the shapes that are given."""
    state = compared(mlp(), mlp())
    state.subject = Subject(state.model, {"x": (9, 5)})
    assert sized(state).model is state.original.model
    assert sized(state).sizes.cost == {"x": (9, 5)}
    state.history.append(Subject(Model(mlp())))
    assert sized(state) is state.start


def test_equal_sizes_are_tried_once() -> None:
    """A fixed graph has one choice, a dynamic one has two and that of cost."""
    fixed, dynamic = (chosen_shapes(Subject(Model(mlp(batch=n)))) for n in (4, "N"))
    assert fixed == [{"x": (4, 5)}]
    assert dynamic == [{"x": (2, 5)}, {"x": (3, 5)}, {"x": (1, 5)}]


def test_inputs_of_text_are_not_drawn() -> None:
    """The reason names the input."""
    model = edited(mlp(), _take_text)
    with pytest.raises(Unmeasured, match=r"no inputs can be drawn: .* \(`x`\)"):
        seeded_trial(Model(model), {"x": (2, 5)}, 0)


def _take_text(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING


def test_samples_lie_on_the_batch_axis() -> None:
    """Of drawn inputs and of data, first or not."""
    b = Builder(0)
    b.node("MatMul", "x", b.weight(5, 4))
    model = b.model({"x": ["T", "batch", 5]}, {"v0": ["T", "batch", 4]})
    assert seeded_trial(Model(model), {"x": (7, 3, 5)}, 0).samples == 3
    data = dataset(model, {"x": np.ones((10, 7, 5), np.float32)})
    found = [(trial.samples, trial.feeds["x"].shape) for trial in data_trials(data, 4)]
    assert found == [(4, (7, 4, 5)), (4, (7, 4, 5)), (2, (7, 2, 5))]


def test_the_first_shapes_that_run_are_taken() -> None:
    """Those before them are too wide for the weights."""
    state = compared(mlp(), mlp())
    pair = load_pair(state)
    trial = running_trial(state, pair, [{"x": (1, 6)}, {"x": (4, 5)}, {"x": (8, 5)}])
    assert trial.feeds["x"].shape == (4, 5)
    with pytest.raises(Unmeasured, match=r"the original does not run: .*--shape"):
        running_trial(state, pair, [{"x": (1, 6)}])


def test_copies_stand_in_for_bfloat16_only() -> None:
    """A model that is broken in another way is refused for what it is."""
    model = in_float16(mlp(), TensorProto.BFLOAT16)
    pair = load_pair(compared(model, model))
    trial = seeded_trial(Model(model), {"x": (2, 5)}, 0)
    assert pair.is_widened
    assert trial.feeds["x"].dtype.name == "bfloat16"
    assert {out.dtype for out in map(np.asarray, pair.run(trial)[0])} == {np.dtype(np.float32)}
    with pytest.raises(Unmeasured, match="the original does not load: ") as caught:
        load_pair(compared(broken(model), model))
    assert caught.value.finding == {"skipped": caught.value.reason}


def test_blame_decides_what_is_found() -> None:
    """A candidate's fault is a failed check, anything else a skipped one."""
    assert Unmeasured("why", is_candidate=True).finding == {"passed": False, "failures": ["why"]}
    assert Unmeasured("why").finding == {"skipped": "why"}


def test_findings_become_plain() -> None:
    """What JSON does not know is changed, at any depth."""
    found = {"a": (1, float("nan")), "b": {"c": [float("inf"), 0.5, True, None, "x"]}}
    assert plain(found) == {"a": [1, None], "b": {"c": [None, 0.5, True, None, "x"]}}
