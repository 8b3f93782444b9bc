"""Graphs of ONNX GraphSurgeon go in and come out."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon

import onnxprune
from onnxprune.model.surgeon import is_graph
from tests.command import mlp


def test_a_graph_is_pruned_like_its_model() -> None:
    """The same channels go, and the result can be edited further."""
    graph = onnx_graphsurgeon.import_onnx(mlp())
    found = onnxprune.prune(graph, target={"macs": 0.5}, latency_s=0)
    same = onnxprune.prune(mlp(), target={"macs": 0.5}, latency_s=0)
    assert found.cost["macs"] == same.cost["macs"]
    assert isinstance(found.graph, onnx_graphsurgeon.Graph)
    tensors = found.graph.tensors()
    assert tensors["w0"].values.shape[1] < 16
    assert np.prod(tensors["w2"].values.shape) < 16 * 4


def test_other_things_are_no_graphs() -> None:
    """Paths and protos are told apart without the library."""
    assert not is_graph("a.onnx")
    assert not is_graph(mlp())
