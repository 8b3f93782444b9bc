"""A model pruned as far as its plan: what tests of plan files and checkpoints share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnx import ModelProto

from onnxprune.cutting.cut import Cut
from onnxprune.identity.dims import Dims
from onnxprune.manager import PassManager, State, Subject
from onnxprune.model.graph import Model
from onnxprune.model.storage import load
from onnxprune.normal.normalize import normalize_with_origins
from onnxprune.passes.cut_channels import CutChannels
from onnxprune.passes.find_dims import FindDims
from onnxprune.passes.make_plan import MakePlan
from onnxprune.passes.score_l2 import ScoreL2
from onnxprune.planning.plan import Plan
from onnxprune.records import planfile
from onnxprune.records.planfile import PlanFile
from tests.builder import Builder


@dataclass(frozen=True, eq=False)
class Planned:
    """A plan, and everything it was made from."""

    original: Model
    normalised: Model
    dims: Dims
    plan: Plan
    cut: Cut
    written: PlanFile

    @property
    def document(self) -> dict[str, Any]:
        """The plan's JSON."""
        return planfile.document(self.written)


def planned(model: Any, target: float = 0.5) -> Planned:
    """A plan for a share of the MACs of a model (a path or a proto), cut and recorded."""
    original = load(model)
    normal = normalize_with_origins(original)
    state = State(Subject(original), Subject(normal.model), progress=lambda _: None)
    make = MakePlan(targets=(("macs", target),), approximate=True)
    PassManager([FindDims(), ScoreL2(), make, CutChannels(oracle=False)]).run(state)
    dims, plan, made = state.past(Dims), state.past(Plan), state[Cut]
    written = planfile.record(
        plan,
        dims,
        made,
        original=original,
        normalised=normal.model,
        origins=normal.origins,
        sizes=state.subject.sizes.cost,
        recipe=["find-dims", "score-l2", "make-plan", "cut-channels"],
        seed=7,
    )
    return Planned(original, normal.model, dims, plan, made, written)


def heads(seed: int = 0) -> ModelProto:
    """Two heads of attention over [n, 5, 8], then a dense layer with a turned weight."""
    b = Builder(seed)
    parts = []
    for _ in range(3):
        dense = b.node("MatMul", "x", b.weight(8, 12))
        split = b.node("Reshape", dense, b.ints(0, 0, 2, 6))
        parts.append(b.node("Transpose", split, perm=[0, 2, 1, 3]))
    q, k, v = parts
    flat = b.node("MatMul", q, b.node("Transpose", k, perm=[0, 1, 3, 2]))
    mixed = b.node("MatMul", b.node("Softmax", flat, axis=-1), v)
    joined = b.node("Transpose", mixed, perm=[0, 2, 1, 3])
    hidden = b.node("Reshape", joined, b.ints(0, 0, 12))
    wide = b.node("Relu", b.node("MatMul", hidden, b.node("Transpose", b.weight(16, 12))))
    y = b.node("MatMul", wide, b.weight(16, 3))
    return b.model({"x": ["n", 5, 8]}, {y: ["n", 5, 3]})
