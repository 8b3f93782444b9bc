"""A model that does not run is refused as such; what a sound model breaks is a defect."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import ModelProto

from onnxprune import blame
from onnxprune.blame import blaming, refuse_crashes
from onnxprune.errors import ModelError, ToolDefect, UsageError
from onnxprune.model.graph import Model
from tests.onnxprune.backend.test_child import product


def broken() -> ModelProto:
    """Its only node has one input of two."""
    model = product()
    del model.graph.node[0].input[1]
    return model


def test_a_sound_model_is_not_tried_in_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the checker passes costs no second process."""
    monkeypatch.setattr(blame, "try_in_child", lambda *_, **__: pytest.fail("a child"))
    refuse_crashes(Model(product()), product())


def test_what_does_not_load_is_refused_with_the_checkers_word(tmp_path: Path) -> None:
    """From a file and from memory alike."""
    onnx.save(broken(), tmp_path / "m.onnx")
    for source in (tmp_path / "m.onnx", broken()):
        with pytest.raises(ModelError, match="could not load") as caught:
            refuse_crashes(Model(broken()), source)
        assert "MatMul" in caught.value.where


@pytest.mark.parametrize("cause", [ToolDefect("off"), IndexError("lost")])
def test_a_broken_model_is_to_blame(cause: Exception) -> None:
    """Whatever it broke, the error is about the model."""
    with pytest.raises(ModelError, match="could not load") as caught, blaming(broken()):
        raise cause
    assert caught.value.__cause__ is cause


@pytest.mark.parametrize("cause", [ToolDefect("off"), IndexError("lost"), UsageError("typo")])
def test_a_sound_model_is_not(cause: Exception) -> None:
    """The exception goes on as it was."""
    with pytest.raises(type(cause)) as caught, blaming(product()):
        raise cause
    assert caught.value is cause
