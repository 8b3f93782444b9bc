"""The original's part of verification, before there is a candidate."""

from __future__ import annotations

import pytest
from onnx import ModelProto

from onnxprune.errors import ModelError
from onnxprune.manager import PassManager, State, Subject
from onnxprune.model.graph import Model
from onnxprune.passes.run_original import RunOriginal
from onnxprune.passes.verify_run import VerifyRun
from onnxprune.verification import outputs
from onnxprune.verification.outputs import ReferenceRuns
from tests.onnxprune.backend.test_child import product


def state_of(model: ModelProto) -> State:
    """A model on its way, not yet cut."""
    return State(Subject(Model(model)), Subject(Model(model)), progress=lambda _: None)


def test_verification_does_not_run_the_original_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found before the cut is compared with the candidate."""
    state = state_of(product())
    PassManager([RunOriginal()]).run(state)
    assert [t.feeds["x"].shape for t in state[ReferenceRuns].trials[:2]] == [(2, 4), (3, 4)]
    monkeypatch.setattr(outputs, "load_reference", lambda *_: pytest.fail("the original again"))
    assert PassManager([VerifyRun()]).run(state).by_level["run"]["passed"]


def test_a_model_that_does_not_load_is_refused() -> None:
    """Before anything is cut."""
    model = product()
    model.graph.node[0].op_type = "Mystery"
    with pytest.raises(ModelError, match="the original does not load"):
        PassManager([RunOriginal()]).run(state_of(model))
