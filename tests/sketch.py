"""A small graph while it is drawn: the current tensor, its layout, and the blocks that extend it.

A block is a function (sketch, tensor) -> tensor, registered for the layouts it fits with what it
asks of the tensor. It draws its own structure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeVar

import numpy as np
from hypothesis.strategies import DrawFn, booleans, integers, sampled_from

from tests.builder import Builder

GRID, TOKENS, FLAT = "grid", "tokens", "flat"
T = TypeVar("T")


@dataclass(frozen=True)
class Tensor:
    """A value with a batch axis, channels, and other axes; which is which says the layout.

    `grid` is [N, C, *space], `tokens` [N, T, C], `flat` [N, C]. A dynamic axis is a name.
    """

    name: str
    kind: str
    width: int
    space: tuple[int | str, ...] = ()

    @property
    def shape(self) -> list[int | str]:
        """The shape as a graph output has it."""
        return ["n", *self.space, self.width] if self.kind == TOKENS else [
            "n", self.width, *self.space]  # fmt: skip

    @property
    def axis(self) -> int:
        """Where the channels are."""
        return 2 if self.kind == TOKENS else 1

    @property
    def rank(self) -> int:
        return 2 + len(self.space)

    @property
    def is_static(self) -> bool:
        """True where nothing but the batch is dynamic."""
        return all(isinstance(n, int) for n in self.space)

    @property
    def area(self) -> int:
        """Positions besides the channels; 0 where that is not known."""
        return prod(n for n in self.space if isinstance(n, int)) if self.is_static else 0

    def as_(self, name: str, **changes: Any) -> Tensor:
        """Another value, alike but for what is named."""
        return replace(self, name=name, **changes)


Block = Callable[["Sketch", Tensor], Tensor]
Fits = Callable[[Tensor], bool]
BLOCKS: dict[str, list[tuple[Block, Fits]]] = {GRID: [], TOKENS: [], FLAT: []}
BRIDGES: dict[str, list[tuple[Block, Fits]]] = {GRID: [], TOKENS: [], FLAT: []}
"""Blocks that change the layout."""


def block(*kinds: str, when: Fits = lambda x: True) -> Callable[[Block], Block]:
    """Register a block for layouts; `when` says which tensors it fits."""

    def register(made: Block) -> Block:
        for kind in kinds:
            BLOCKS[kind].append((made, when))
        return made

    return register


def bridge(kind: str, when: Fits = lambda x: True) -> Callable[[Block], Block]:
    """Register a block that takes a layout into another one."""

    def register(made: Block) -> Block:
        BRIDGES[kind].append((made, when))
        return made

    return register


class Sketch(Builder):
    """A graph under construction, whose structure is drawn and whose weights are random."""

    def __init__(self, draw: DrawFn, seed: int, opset: int) -> None:
        super().__init__(seed)
        self.draw, self.opset = draw, opset
        self.budget = 12
        """Blocks that may still be drawn: residual blocks nest."""

    # --- what is drawn ---------------------------------------------------------------------

    def pick(self, options: Sequence[T]) -> T:
        """One of several; the first is the simplest."""
        return self.draw(sampled_from(options))

    def flag(self) -> bool:
        """Yes or no."""
        return self.draw(booleans())

    def number(self, low: int, high: int) -> int:
        """A number between two, both included."""
        return self.draw(integers(low, high))

    def step(self, x: Tensor) -> Tensor:
        """One block that fits."""
        self.budget -= 1
        return self.pick([made for made, fits in BLOCKS[x.kind] if fits(x)])(self, x)

    def chain(self, x: Tensor, most: int) -> Tensor:
        """A few blocks."""
        for _ in range(self.number(1, most)):
            if self.budget > 0:
                x = self.step(x)
        return x

    def branch(self, x: Tensor, most: int = 2) -> Tensor:
        """A few blocks that keep the layout and the length of the other axes."""
        y = self.chain(x, most)
        return y if y.space == x.space else x

    # --- weights and constants ---------------------------------------------------------------

    def fan(self, *shape: int, fan: int) -> str:
        """A weight that keeps the scale of what it multiplies, for sums over `fan` terms."""
        return self.add(self.rng.standard_normal(shape) / np.sqrt(fan))

    def positive(self, *shape: int) -> str:
        """Numbers between one half and two."""
        return self.add(self.rng.uniform(0.5, 2, shape))

    def matrix(self, rows: int, columns: int) -> str:
        """A weight of a product, at times stored transposed or rounded."""
        how = self.pick(["plain", "plain", "plain", "transposed", "half"])
        if how == "transposed":
            return self.node("Transpose", self.fan(columns, rows, fan=rows), perm=[1, 0])
        if how == "half":
            array = self.rng.standard_normal((rows, columns)) / np.sqrt(rows)
            return self.node("Cast", self.add(array, np.float16), to=1)
        return self.fan(rows, columns, fan=rows)

    # --- common nodes ------------------------------------------------------------------------

    def on(self, x: Tensor, op: str, *inputs: str, **attributes: Any) -> Tensor:
        """A node that changes neither layout nor lengths."""
        return x.as_(self.node(op, x.name, *inputs, **attributes))

    def several(self, op: str, x: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        """All outputs of a node."""
        first = self.node(op, x, *inputs, outputs=count, **attributes)
        return [first, *(f"{first}_{i}" for i in range(1, count))]

    def reduce(self, op: str, x: str, axes: Sequence[int], keep: bool) -> str:
        """A Reduce*, with its axes where the opset wants them."""
        if self.opset >= 18 or op == "ReduceSum":
            return self.node(op, x, self.ints(*axes), keepdims=int(keep))
        return self.node(op, x, axes=list(axes), keepdims=int(keep))

    def length(self, x: str, axis: int) -> str:
        """A length that the graph computes, as a vector of one entry."""
        if self.flag():
            return self.node("Shape", x, start=axis, end=axis + 1)
        one = self.node("Gather", self.node("Shape", x), self.add(axis, np.int64), axis=0)
        return self.node("Unsqueeze", one, self.ints(0))

    def reshape(self, x: str, target: Sequence[int | str], source: Sequence[int | str]) -> str:
        """A Reshape to a shape with dynamic axes, in one of the ways exporters write it.

        Args:
            target, source: lengths; a name stands for the dynamic axis of `source` called so.
        """
        names = [t for t in target if isinstance(t, str)]
        ways = ["computed"]
        if len(names) <= 1:
            ways.insert(0, "infer")
        if all(i < len(source) and source[i] == t for i, t in enumerate(target)
               if isinstance(t, str)):  # fmt: skip
            ways.insert(0, "copy")
        way = self.pick(ways)
        if way == "copy":
            entries = [0 if isinstance(t, str) else t for t in target]
            if self.flag() and isinstance(target[-1], int):
                entries[-1] = -1
            return self.node("Reshape", x, self.ints(*entries))
        if way == "infer":
            return self.node(
                "Reshape", x, self.ints(*(-1 if isinstance(t, str) else t for t in target))
            )
        return self.node("Reshape", x, self._computed(x, target, source))

    def _computed(self, x: str, target: Sequence[int | str], source: Sequence[int | str]) -> str:
        parts = []
        for entry in target:
            if isinstance(entry, str) or (entry in source and self.flag()):
                parts.append(self.length(x, list(source).index(entry)))
            else:
                parts.append(self.ints(entry))
        return self.node("Concat", *parts, axis=0)

    def per_channel(self, x: Tensor, array: np.ndarray[Any, Any] | None = None) -> str:
        """A vector of one number a channel, shaped to broadcast over a tensor."""
        shape = [1] * (x.rank - x.axis)
        shape[0] = x.width
        lead = [1] * self.pick([0, 0, x.axis])
        array = self.rng.standard_normal(x.width) if array is None else array
        return self.add(array.reshape([*lead, *shape]))

    def like(self, x: Tensor, width: int, space: Sequence[int | str]) -> Tensor:
        """The tensor itself, once it has these channels and lengths."""
        assert tuple(space) == x.space, "a branch keeps the lengths"
        return x if x.width == width else self.project(x, width)

    def project(self, x: Tensor, width: int) -> Tensor:
        """Another number of channels, by the simplest product."""
        if x.kind == GRID:
            weight = self.fan(width, x.width, *[1] * len(x.space), fan=x.width)
            return x.as_(self.node("Conv", x.name, weight), width=width)
        return x.as_(self.node("MatMul", x.name, self.fan(x.width, width, fan=x.width)),
                     width=width)  # fmt: skip


    def step_norm(self, x: Tensor) -> Tensor:
        """A norm over the last axis: by an operator, or written out."""
        how = self.pick(["layer", "written", "rms", "plain"] + ["operator"] * (self.opset >= 23))
        scale, bias = self.positive(x.width), self.weight(x.width)
        if how == "layer":
            return self.on(x, "LayerNormalization", scale, bias, epsilon=0.1)
        if how == "operator":
            return self.on(x, "RMSNormalization", scale, epsilon=0.1)
        if how == "plain":
            return self.on(x, "LayerNormalization", self.add(np.ones(x.width)), epsilon=0.1)
        y = x
        if how == "written":
            y = self.on(x, "Sub", self.reduce("ReduceMean", x.name, [-1], keep=True))
        square = self.node("Pow", y.name, self.add(2.0))
        mean = self.reduce("ReduceMean", square, [-1], keep=True)
        root = self.node("Sqrt", self.node("Add", mean, self.add(0.1)))
        y = self.on(self.on(y, "Div", root), "Mul", scale)
        return self.on(y, "Add", bias) if how == "written" else y


def divisors(*numbers: int) -> list[int]:
    """What divides all of them, ascending."""
    return [d for d in range(1, min(numbers) + 1) if all(n % d == 0 for n in numbers)]
