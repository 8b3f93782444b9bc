"""Stand-in until the real module is written."""
from __future__ import annotations
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
import numpy as np
import onnx
from onnx import helper, numpy_helper

@dataclass(frozen=True, eq=False)
class Node:
    proto: onnx.NodeProto
    index: int
    @property
    def op(self): return self.proto.op_type
    @property
    def domain(self): return "" if self.proto.domain == "ai.onnx" else self.proto.domain
    @property
    def name(self): return self.proto.name
    @cached_property
    def inputs(self): return tuple(self.proto.input)
    @cached_property
    def outputs(self): return tuple(self.proto.output)
    @cached_property
    def key(self): return next(o for o in self.outputs if o)
    def input(self, i): return self.inputs[i] if i < len(self.inputs) else ""
    def attr(self, name, default=None):
        for a in self.proto.attribute:
            if a.name == name:
                v = helper.get_attribute_value(a)
                if isinstance(v, bytes): v = v.decode()
                if isinstance(v, onnx.TensorProto): v = numpy_helper.to_array(v)
                return v
        return default

@dataclass(eq=False)
class Model:
    proto: onnx.ModelProto
    folder: Path | None = None
    @cached_property
    def nodes(self): return tuple(Node(n, i) for i, n in enumerate(self.proto.graph.node))
    @cached_property
    def initializers(self): return {t.name: t for t in self.proto.graph.initializer}
    @cached_property
    def inputs(self): return tuple(i for i in self.proto.graph.input if i.name not in self.initializers)
    @cached_property
    def outputs(self): return tuple(self.proto.graph.output)
    @cached_property
    def input_names(self): return tuple(i.name for i in self.inputs)
    @cached_property
    def output_names(self): return tuple(i.name for i in self.outputs)
    @cached_property
    def opsets(self): return {("" if o.domain == "ai.onnx" else o.domain): o.version for o in self.proto.opset_import}
    @property
    def opset(self): return self.opsets[""]
    @cached_property
    def producer(self): return {o: n for n in self.nodes for o in n.outputs if o}
    @cached_property
    def consumers(self):
        d = {}
        for n in self.nodes:
            for i, x in enumerate(n.inputs):
                if x: d.setdefault(x, []).append((n, i))
        return d
    @cached_property
    def _arrays(self): return {}
    def array(self, name):
        if name not in self._arrays: self._arrays[name] = numpy_helper.to_array(self.initializers[name])
        return self._arrays[name]
    @property
    def overridable(self):
        if self.proto.ir_version < 4: return frozenset()
        return frozenset(i.name for i in self.proto.graph.input if i.name in self.initializers)
    @cached_property
    def captured(self):
        out = set()
        def visit(g):
            for n in g.node:
                out.update(n.input)
                for a in n.attribute:
                    if a.HasField("g"): visit(a.g)
        for n in self.proto.graph.node:
            for a in n.attribute:
                if a.HasField("g"): visit(a.g)
        return frozenset(out)
