"""Operators that work position by position, with numpy broadcasting."""

from __future__ import annotations

from onnxprune.identity.combine import Operand, Result, combine
from onnxprune.identity.flow import Flow
from onnxprune.model.graph import Node
from onnxprune.rules.registry import rules


@rules.on(
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil",
    "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish",
    "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu",
    "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt",
    "Swish", "Tan", "Tanh", "ThresholdedRelu", "Dropout", "Clip", "Bernoulli",
)  # fmt: skip
@rules.on("Gelu", "QuickGelu", "FastGelu", domain="com.microsoft")
@rules.on("Scaler", domain="ai.onnx.ml")
def unary(flow: Flow, node: Node) -> None:
    """Each position stays what it was."""
    if node.domain == "ai.onnx.ml" or (node.op == "FastGelu" and len(node.inputs) > 1):
        flow.pin(flow.fields(0), f"{flow.where()} has numbers of its own for each column")
        return
    flow.put(0, flow.fields(0))


@rules.on(
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater",
    "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "Pow",
    "PRelu", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip
@rules.on("BiasGelu", domain="com.microsoft")
def broadcast(flow: Flow, node: Node) -> None:
    """Positions that meet by broadcasting are the same channel."""
    slots = [i for i, name in enumerate(node.inputs) if name]
    shape = flow.shape(node.outputs[0])
    assert shape is not None
    rank = len(shape)
    operands = []
    for slot in slots:
        own = flow.shape(node.inputs[slot])
        assert own is not None
        operands.append(Operand(slot, tuple(str(rank - len(own) + a) for a in range(len(own)))))
    combine(flow, operands, Result(tuple(str(a) for a in range(rank))))
