"""A model while it is rewritten: nodes and weights in Python lists, protos shared until changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from onnx import ModelProto, NodeProto, TensorProto

from onnxprune.model.graph import Model, bodies, free_names, needed_bytes
from onnxprune.normal.origin import Origin

# Larger initializers say nothing to shape inference but their dims.
SHAPE_BYTES = 1024


@dataclass
class Draft:
    """A model being rewritten; protos are shared with the source until they change.

    Args:
        weights: constants by value name; the tensor itself may be named otherwise.
        origins: of the weights that are not sources themselves.
    """

    source: ModelProto
    nodes: list[NodeProto]
    weights: dict[str, TensorProto]
    overridable: frozenset[str]
    origins: dict[str, Origin] = field(default_factory=dict)

    @cached_property
    def outputs(self) -> frozenset[str]:
        """Names of the graph's outputs."""
        return frozenset(info.name for info in self.source.graph.output)

    @cached_property
    def opset(self) -> int:
        """Version of ai.onnx."""
        return Model(self.source).opset

    def origin(self, name: str) -> Origin:
        """Where a weight comes from."""
        return self.origins.get(name) or Origin((name,))

    def captured(self) -> set[str]:
        """Values that the bodies of If, Loop and Scan read."""
        return {n for node in self.nodes for body in bodies(node) for n in free_names(body)}

    def constants(self) -> set[str]:
        """Weights that no caller may replace."""
        return self.weights.keys() - self.overridable

    def read(self, nodes: Iterable[NodeProto]) -> set[str]:
        """Values that nodes, their bodies or the caller read."""
        found = {name for node in nodes for name in node.input} | self.outputs
        return found.union(*(free_names(body) for node in nodes for body in bodies(node)))


def stub(tensor: TensorProto) -> TensorProto:
    """Type and shape of a weight; small ones whole."""
    if needed_bytes(tensor.name, tensor) <= SHAPE_BYTES:
        return tensor
    made = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    made.data_location = TensorProto.EXTERNAL
    made.external_data.add(key="location", value="elsewhere")
    return made
