"""The table of operator rules: what an operator does to identities, costs and constants.

A rule has up to three parts that stand together in its family's file: `on` follows identities,
`macs` counts, `rewire` says what the node's attributes and shape operands become after a cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from onnxprune.identity.flow import Flow
from onnxprune.model.graph import Node
from onnxprune.shape.shapes import Shape

if TYPE_CHECKING:
    from onnxprune.rules.wiring import Wiring

ShapeOf = Callable[[str], Shape]
FlowRule = Callable[[Flow, Node], Any]
MacsRule = Callable[[Node, ShapeOf], int]
RewireRule = Callable[["Wiring", Node], None]
Part = TypeVar("Part", bound=Callable[..., Any])

ONNX_DOMAINS = ("", "ai.onnx")


@dataclass
class OperatorRule:
    """What is known about one operator from one opset on."""

    op: str
    domain: str
    since: int
    family: str
    flow: FlowRule | None = None
    macs: MacsRule | None = None
    rewire: RewireRule | None = None
    note: str = ""
    """One line for the table of operators."""


class Rules:
    """Operator rules by domain, operator and since-version."""

    def __init__(self) -> None:
        self._table: dict[tuple[str, str], dict[int, OperatorRule]] = {}

    def _entry(self, op: str, domain: str, since: int, family: str) -> OperatorRule:
        versions = self._table.setdefault((domain, op), {})
        return versions.setdefault(since, OperatorRule(op, domain, since, family))

    def _part(self, part: str, ops: tuple[str, ...], domain: str, since: int) -> Callable[
        [Part], Part
    ]:  # fmt: skip
        def register(fn: Part) -> Part:
            for op in ops:
                entry = self._entry(op, domain, since, fn.__module__.rpartition(".")[2])
                if getattr(entry, part) is not None:
                    raise ValueError(f"a second `{part}` rule for {op} since opset {since}")
                setattr(entry, part, fn)
                if part == "flow":
                    entry.family = fn.__module__.rpartition(".")[2]
                    entry.note = (fn.__doc__ or "").strip().splitlines()[0]
            return fn

        return register

    def on(self, *ops: str, domain: str = "", since: int = 1) -> Callable[[Part], Part]:
        """Register the flow rule of operators: fn(flow, node)."""
        return self._part("flow", ops, domain, since)

    def macs(self, *ops: str, domain: str = "", since: int = 1) -> Callable[[Part], Part]:
        """Register how operators count: fn(node, shape_of) -> MACs."""
        return self._part("macs", ops, domain, since)

    def rewire(self, *ops: str, domain: str = "", since: int = 1) -> Callable[[Part], Part]:
        """Register what a cut changes in operators: fn(wiring, node)."""
        return self._part("rewire", ops, domain, since)

    def find(self, node: Node, opset: int) -> OperatorRule | None:
        """The rule of a node at an opset: the newest since-version not above it."""
        domain = "" if node.domain in ONNX_DOMAINS else node.domain
        versions = self._table.get((domain, node.op), {})
        usable = [v for v in versions if v <= max(opset, 1)]
        return versions[max(usable)] if usable else None

    def flow_rule(self, node: Node, opset: int) -> FlowRule | None:
        """The flow part of a node's rule."""
        found = self.find(node, opset)
        return found.flow if found else None

    def __iter__(self) -> Iterator[OperatorRule]:
        for key in sorted(self._table):
            yield from (self._table[key][v] for v in sorted(self._table[key]))


rules = Rules()
