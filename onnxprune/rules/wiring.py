"""What a rule may ask and say while a cut rewires its node."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onnxprune.model.graph import Node
from onnxprune.shape.shapes import Shape

Ints = npt.NDArray[np.int64]


class Wiring(Protocol):
    """Lengths before and after the cut, at both sets of sizes."""

    def before(self, name: str) -> tuple[Shape, Shape]:
        """Shapes in the original, at the first and second sizes."""

    def after(self, name: str) -> tuple[Shape, Shape]:
        """Shapes that the cut tensor must have."""

    def kept(self, name: str, axis: int) -> Ints | None:
        """Positions of an axis that stay, in the original's numbering; None: all of them.

        On the thinned axis of a joint field these are the positions of its first living row.
        """

    def values(self, node: Node, slot: int) -> tuple[Ints, Ints] | None:
        """Known values of an operand in the original, at both sizes."""

    def want(self, node: Node, slot: int, first: Any, second: Any) -> None:
        """The operand must have these values at the first and second sizes."""

    def set(self, node: Node, **attributes: Any) -> None:
        """Change attributes of the node."""

    def replace_by_gather(self, node: Node, axis: int, indices: Ints) -> None:
        """Take these positions of an axis, by a Gather where a Slice cannot."""

    def replace_by_reshape(self, node: Node, first: Shape, second: Shape) -> None:
        """Give the first input another shape, where the node's own way to it cannot follow."""

    def leave_out(self, node: Node, slot: int) -> None:
        """An optional operand is read no longer."""
