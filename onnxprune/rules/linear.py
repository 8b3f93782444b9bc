"""Products of matrices: Gemm, MatMul, Einsum."""

from __future__ import annotations

from math import prod

from onnxprune.identity.combine import Operand, Result, combine
from onnxprune.identity.flow import Flow
from onnxprune.model.graph import Node
from onnxprune.rules.registry import ShapeOf, rules

Letters = tuple[str, ...]


@rules.on("Gemm")
def gemm(flow: Flow, node: Node) -> None:
    """Rows of the weight make channels, a sum runs over its columns."""
    a = ("k", "m") if node.attr("transA", 0) else ("m", "k")
    b = ("n", "k") if node.attr("transB", 0) else ("k", "n")
    bias = flow.shape(node.input(2)) if node.input(2) else None
    operands = [Operand(0, a), Operand(1, b)]
    if bias is not None:
        operands.append(Operand(2, ("m", "n")[2 - len(bias) :]))
    combine(flow, operands, Result(("m", "n")))


@rules.macs("Gemm")
def gemm_macs(node: Node, shape_of: ShapeOf) -> int:
    """Output elements times the length of the sum."""
    a = shape_of(node.inputs[0])
    return prod(shape_of(node.outputs[0])) * a[0 if node.attr("transA", 0) else 1]


@rules.on("MatMul")
def matmul(flow: Flow, node: Node) -> None:
    """A sum runs over the last axis of A and the last but one of B; batch axes are rows."""
    a, b = flow.shape(node.inputs[0]) or (), flow.shape(node.inputs[1]) or ()
    left, right, out = product_labels(len(a), len(b))
    combine(flow, [Operand(0, left), Operand(1, right)], Result(out))


def product_labels(a: int, b: int) -> tuple[Letters, Letters, Letters]:
    """Labels of both factors and of the product, for factors of these ranks."""
    rank = max(a, b, 2)
    left = _matrix_labels(a, rank, ("m", "k"), ("k",))
    right = _matrix_labels(b, rank, ("k", "n"), ("k",))
    batch = tuple(str(i) for i in range(rank - 2))
    return left, right, batch + ("m",) * (a > 1) + ("n",) * (b > 1)


def _matrix_labels(
    own: int, rank: int, matrix: tuple[str, str], vector: tuple[str]
) -> tuple[str, ...]:
    if own == 1:
        return vector
    return tuple(str(rank - own + i) for i in range(own - 2)) + matrix


@rules.macs("MatMul")
def matmul_macs(node: Node, shape_of: ShapeOf) -> int:
    """Output elements times the length of the sum."""
    return prod(shape_of(node.outputs[0])) * shape_of(node.inputs[0])[-1]


@rules.on("Einsum")
def einsum(flow: Flow, node: Node) -> None:
    """Letters are labels: what the output lacks is summed."""
    terms = _terms(flow, node)
    if terms is None:
        for slot in range(len(node.inputs)):
            flow.pin(flow.fields(slot), f"{flow.where()}: equation not followed")
        return
    inputs, out = terms
    combine(flow, [Operand(i, x) for i, x in enumerate(inputs)], Result(out))


def _terms(flow: Flow, node: Node) -> tuple[list[tuple[str, ...]], tuple[str, ...]] | None:
    """Labels of inputs and output; None for a repeated letter within one term."""
    equation = node.attr("equation")
    text = (equation.decode() if isinstance(equation, bytes) else str(equation)).replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    ranks = [len(flow.shape(n) or ()) for n in node.inputs]
    dots = max((r - len(t.replace("...", "")) for t, r in zip(terms, ranks, strict=True)
                if "..." in t), default=0)  # fmt: skip
    if not arrow:
        letters = sorted(set(left) - set(".,"))
        right = "..." * ("..." in left) + "".join(x for x in letters if left.count(x) == 1)

    def labels(term: str, rank: int) -> tuple[str, ...]:
        head, ellipsis, tail = term.partition("...")
        count = rank - len(head) - len(tail) if ellipsis else 0
        return (*head, *(f".{dots - count + i}" for i in range(count)), *tail)

    found = [labels(t, r) for t, r in zip(terms, ranks, strict=True)]
    if any(len(set(x)) < len(x) for x in found):
        return None
    return found, labels(right, len(right.replace("...", "")) + dots * ("..." in right))


@rules.macs("Einsum")
def einsum_macs(node: Node, shape_of: ShapeOf) -> int:
    """Product of the lengths of all letters (dots counted with the output)."""
    equation = node.attr("equation")
    text = (equation.decode() if isinstance(equation, bytes) else str(equation)).replace(" ", "")
    left, arrow, right = text.partition("->")
    lengths: dict[str, int] = {}
    for term, name in zip(left.split(","), node.inputs, strict=True):
        shape = shape_of(name)
        head, ellipsis, tail = term.partition("...")
        lengths |= dict(zip(head, shape, strict=False))
        if ellipsis and tail:
            lengths |= dict(zip(tail, shape[-len(tail) :], strict=True))
    if not arrow:  # letters that occur once are the output
        right = "".join(x for x in lengths if left.count(x) == 1)
    summed = prod(n for x, n in lengths.items() if x not in right)
    return prod(shape_of(node.outputs[0])) * summed
