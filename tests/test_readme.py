"""README.md says what is so: its tables come from the code, its examples run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.readme import PARTS, README, ROOT, part

TEXT = README.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.S)

FOLLOW_THE_RULE = """
import numpy as np
from onnx import TensorProto, helper, numpy_helper
from onnxprune.identity.dims import find_dims
from onnxprune.identity.flow import Flow, walk
from onnxprune.model.graph import Model
from onnxprune.rules import load_rules
from onnxprune.shape.sizes import choose

rng = np.random.default_rng(0)
w, v = (rng.standard_normal(s).astype(np.float32) for s in ((6, 3, 1, 1), (4, 6, 1, 1)))
stored = [numpy_helper.from_array(a, n) for a, n in ((w, "w"), (v, "v"), (w[:, 0, 0, 0], "s"))]
nodes = [
    helper.make_node("Conv", ["x", "w"], ["h"]),
    helper.make_node("ChannelScale", ["h", "s"], ["k"], domain="my.ops"),
    helper.make_node("Conv", ["k", "v"], ["y"]),
]
info = helper.make_tensor_value_info
graph = helper.make_graph(nodes, "g", [info("x", TensorProto.FLOAT, [1, 3, 4, 4])],
                          [info("y", TensorProto.FLOAT, [1, 4, 4, 4])], stored)
graph.value_info.append(info("k", TensorProto.FLOAT, [1, 6, 4, 4]))
opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.ops", 1)]
model = Model(helper.make_model(graph, opset_imports=opsets, ir_version=9))
sizes, first, second, _ = choose(model)
dims = find_dims(walk(Flow(model, first, second), load_rules().flow_rule))
assert [d.size for d in dims.free] == [6], [(d.name, d.pinned) for d in dims.dims]
"""

USE_THE_PASS = """
from onnxprune.model.graph import Model
from onnxprune.manager import PassManager, State, Subject
from onnxprune.passes.find_dims import FindDims
from onnxprune.model.storage import load
from onnxprune.normal.normalize import normalize

subject = Subject(normalize(load("models/digits_resnet/model.onnx")))
for reverse in (False, True):
    state = State(subject, subject, progress=lambda _: None)
    PassManager([FindDims(), ScoreFirst(reverse)]).run(state)
    scores = state[Scores].of
    assert (scores[0] > scores[-1]) == (not reverse)
"""

CHECKS = {
    "import onnxprune": "assert found.cost['macs']['ratio'] <= 0.5\nassert found.model.graph.node",
    "@rules.on": FOLLOW_THE_RULE,
    "class ScoreFirst": USE_THE_PASS,
}


@pytest.mark.parametrize("name", PARTS)
def test_tables_come_from_the_code(name: str) -> None:
    """`python -m tests.readme` writes them again."""
    assert part(TEXT, name) == PARTS[name]()


def test_every_example_has_a_check() -> None:
    """An example that is added needs one."""
    assert len(BLOCKS) == len(CHECKS)


@pytest.mark.parametrize("mark", CHECKS)
def test_examples_run(mark: str) -> None:
    """Each in a process of its own, with a check of what it did."""
    (code,) = (block for block in BLOCKS if mark in block)
    done = subprocess.run(
        [sys.executable, "-c", code + CHECKS[mark]],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_commands_are_the_ones_that_ci_runs() -> None:
    """The set-up of the tests is the one that CI calls, and the shipped model is there."""
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "pip install -e '.[test]' && pytest" in TEXT
    assert "-e '.[test]'" in ci
    for path in re.findall(r"models/\w+/[\w.]+", TEXT):
        assert Path(ROOT / path).is_file(), path
