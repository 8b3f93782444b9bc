"""Small models written down node by node, with weights drawn from a seed."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

CONTRIB = "com.microsoft"


class Builder:
    """Nodes and initializers of a small model."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []

    def add(self, array: Any, dtype: Any = np.float32) -> str:
        """An initializer."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def weight(self, *shape: int) -> str:
        """A float weight, small enough for saturating operators."""
        return self.add(self.rng.standard_normal(shape) * 0.5)

    def ints(self, *values: int) -> str:
        """A shape, axes or indices."""
        return self.add(list(values), np.int64)

    def node(self, op: str, *inputs: str, domain: str = "", outputs: int = 1, **more: Any) -> str:
        """A node; its only (or first) output. Others have the same name and a number."""
        name = f"v{len(self.nodes)}"
        names = [name, *(f"{name}_{i}" for i in range(1, outputs))]
        made = helper.make_node(op, inputs, names, f"n_{name}", domain=domain, **more)
        self.nodes.append(made)
        return name

    def model(
        self,
        inputs: dict[str, list[int | str]],
        outputs: dict[str, list[int | str]],
        *,
        opset: int = 21,
        types: dict[str, int] | None = None,
    ) -> ModelProto:
        """The model; inputs and outputs are floats unless `types` says otherwise."""
        contrib = any(n.domain == CONTRIB for n in self.nodes)

        def infos(named: dict[str, list[int | str]]) -> list[Any]:
            kinds = types or {}
            return [
                helper.make_tensor_value_info(n, kinds.get(n, TensorProto.FLOAT), s)
                for n, s in named.items()
            ]

        graph = helper.make_graph(self.nodes, "g", infos(inputs), infos(outputs), self.weights)
        opsets = [helper.make_opsetid("", opset)]
        opsets += [helper.make_opsetid(CONTRIB, 1)] * contrib
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)
