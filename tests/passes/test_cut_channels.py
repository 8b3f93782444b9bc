"""Cutting as a pass: proof, oracle, facts."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxprune.backend.runtime import session
from onnxprune.cutting.cut import Cut
from onnxprune.errors import ToolDefect
from onnxprune.identity.dims import Dims
from onnxprune.manager import State
from onnxprune.passes.cut_channels import CutChannels, exact_part
from onnxprune.passes.make_plan import MakePlan
from onnxprune.passes.score_l2 import ScoreL2
from onnxprune.planning.plan import Plan
from onnxprune.rules import load_rules
from tests.builder import Builder
from tests.nets import run, two_layers

FIRST = np.array([[3.0, 0.0, 1.0, 2.0], [4.0, 0.1, 0.0, 2.0]])
NET = two_layers(FIRST, np.eye(4)[:, :3] + 1, bias=[0.1, 0.2, 0.3, 0.4])
PASSES = (ScoreL2(), MakePlan(keep=(("w0", 2),)))


def test_the_cut_model_computes_what_is_left() -> None:
    """By hand: the two channels with the longest filters."""
    state = run(NET, *PASSES, CutChannels())
    x = np.array([[1.0, -2.0], [0.5, 1.0]], np.float32)
    kept, second = [0, 3], np.eye(4)[:, :3] + 1
    hidden = np.maximum(x @ FIRST[:, kept] + np.array([0.1, 0.4]), 0)
    [y] = session(state.model.proto).run({"x": x})
    np.testing.assert_allclose(y, hidden @ second[kept], rtol=1e-5)


def test_what_was_planned_is_known_behind_the_cut() -> None:
    """The plan and the Dims are facts about the model before; the cut is about this one."""
    state = run(NET, *PASSES, CutChannels())
    assert state.get(Plan) is None
    assert state.past(Plan).alive.sum() == state.past(Dims).count - 2
    assert state[Cut].model is state.model
    assert state.original.model is not state.model


def test_the_original_is_never_edited() -> None:
    """Its bytes are what they were."""
    before = NET.SerializeToString(deterministic=True)
    run(NET, *PASSES, CutChannels())
    assert NET.SerializeToString(deterministic=True) == before


def test_a_plan_that_keeps_all_needs_no_oracle() -> None:
    """The model computes what it did."""
    state = run(NET, ScoreL2(), MakePlan(), CutChannels())
    x = {"x": np.ones((1, 2), np.float32)}
    assert np.array_equal(session(state.model.proto).run(x)[0], session(NET).run(x)[0])


def test_approximate_dims_are_left_out_of_what_the_oracle_sees() -> None:
    """Silencing and removing differ under a norm: only the exact part is compared."""
    b = Builder(0)
    h = b.node("Relu", b.node("MatMul", "x", b.weight(3, 8)))
    x = b.node("LayerNormalization", b.node("MatMul", h, b.weight(8, 6)), b.weight(6), axis=-1)
    y = b.node("MatMul", x, b.weight(6, 2))
    net = b.model({"x": ["n", 3]}, {y: ["n", 2]})
    state = run(net, ScoreL2(), MakePlan(targets=(("macs", 0.5),), approximate=True))
    dims, alive = state[Dims], state[Plan].alive
    soft = next(d for d in dims.free if not d.is_exact)
    exact = exact_part(dims, alive)
    assert not alive[soft.channels].all()
    assert exact[soft.channels].all()
    assert (exact >= alive).all()


def test_a_weight_that_a_body_reads_too_stays_whole_for_it() -> None:
    """The main graph cuts a copy; what the body computes from the weight does not change."""
    b = Builder(0)
    w = b.weight(4, 8)
    h = b.node("Relu", b.node("MatMul", "x", w))
    out = b.node("MatMul", h, b.weight(8, 2))
    info = helper.make_tensor_value_info("total", TensorProto.FLOAT, [])
    node = helper.make_node("ReduceSum", [w], ["total"], keepdims=0)
    body = helper.make_graph([node], "body", [], [info])
    y = b.node("Add", out, b.node("If", "c", then_branch=body, else_branch=body))
    net = b.model({"x": ["n", 4], "c": []}, {y: ["n", 2]}, types={"c": TensorProto.BOOL})
    state = run(net, ScoreL2(), MakePlan(keep=((w, 3),)), CutChannels())
    feeds = {"x": np.zeros((1, 4), np.float32), "c": np.array(True)}
    assert state.model.initializers[w].dims == [4, 8]
    np.testing.assert_allclose(
        session(state.model.proto).run(feeds)[0], session(net).run(feeds)[0], rtol=1e-5
    )


def test_a_rule_that_forgets_a_tie_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is handed out: the proof, the shapes or the oracle refuses it."""
    rules = load_rules()
    entry = rules.find(state_node(), 21)
    assert entry is not None
    # A Softmax over channels that claims to be exact and to let them go.
    monkeypatch.setattr(entry, "flow", lambda flow, node: flow.put(0, flow.fields(0)))
    b = Builder(0)
    h = b.node("Softmax", b.node("MatMul", "x", b.weight(3, 8)), axis=-1)
    y = b.node("MatMul", h, b.weight(8, 2))
    net = b.model({"x": ["n", 3]}, {y: ["n", 2]})
    with pytest.raises(ToolDefect, match="off by") as refused:
        run(net, ScoreL2(), MakePlan(targets=(("macs", 0.5),)), CutChannels())
    assert refused.value.exit_code == 1


def state_node() -> object:
    """A Softmax."""
    b = Builder(0)
    y = b.node("Softmax", "x", axis=-1)
    state: State = run(b.model({"x": ["n", 3]}, {y: ["n", 3]}))
    return state.model.nodes[0]
