"""ONNX GraphSurgeon graphs, as the people who edit models by hand have them."""

from __future__ import annotations

import sys
from typing import Any

from onnx import ModelProto


def is_graph(source: object) -> bool:
    """True for a `onnx_graphsurgeon.Graph`; the library is not imported to find out."""
    surgeon = sys.modules.get("onnx_graphsurgeon")
    return surgeon is not None and isinstance(source, surgeon.Graph)


def to_proto(graph: Any) -> ModelProto:
    """The graph as a model; what it cannot hold (metadata, doc strings) was lost before."""
    import onnx_graphsurgeon

    made: ModelProto = onnx_graphsurgeon.export_onnx(graph)
    return made


def to_graph(proto: ModelProto) -> Any:
    """A model as a graph, to edit further.

    It loses metadata, doc strings and types that GraphSurgeon does not know; to keep a model,
    save the ModelProto.
    """
    import onnx_graphsurgeon

    return onnx_graphsurgeon.import_onnx(proto)
