"""Indexing by tensors, masks, and operators that make or pick positions.

An axis that is indexed is held: its positions are numbers in another tensor. The others pass.
"""

from __future__ import annotations

from onnxprune.identity.combine import Operand, Result, combine
from onnxprune.identity.fields import Field
from onnxprune.identity.flow import Flow
from onnxprune.model.graph import Node
from onnxprune.rules.registry import rules
from onnxprune.rules.wiring import Wiring
from onnxprune.shape.shapes import Shape

Axes = tuple[str | None, ...]


def _shape(flow: Flow, node: Node, slot: int) -> Shape:
    shape = flow.shape(node.inputs[slot])
    assert shape is not None, "the walk only visits nodes whose shapes are known"
    return shape


def _labels(rank: int, word: str = "a") -> tuple[str, ...]:
    return tuple(f"{word}{i}" for i in range(rank))


def _nothing(count: int) -> Axes:
    return (None,) * count


@rules.on("GatherElements")
def gather_elements(flow: Flow, node: Node) -> None:
    """The indexed axis is held; along the others indices and data are the same positions."""
    data, out = _shape(flow, node, 0), _shape(flow, node, 1)
    axis = int(node.attr("axis", 0)) % len(data)
    labels = _aligned(axis, data, out)
    combine(flow, [Operand(0, labels), Operand(1, labels)], Result(labels))


@rules.on("ScatterElements", "Scatter")
def scatter_elements(flow: Flow, node: Node) -> None:
    """The indexed axis is held; along the others all operands are the same positions."""
    data, indices = _shape(flow, node, 0), _shape(flow, node, 1)
    labels = _aligned(int(node.attr("axis", 0)) % len(data), data, indices)
    combine(flow, [Operand(slot, labels) for slot in range(3)], Result(labels))


def _aligned(axis: int, data: Shape, indices: Shape) -> Axes:
    """A label for each axis but the indexed one and those of which indices take a part."""
    pairs = enumerate(zip(data, indices, strict=True))
    return tuple(None if a == axis or n != m else f"a{a}" for a, (n, m) in pairs)


@rules.on("GatherND")
def gather_nd(flow: Flow, node: Node) -> None:
    """Indexed axes are held; batch axes and those behind the indexed ones pass."""
    data, indices = _shape(flow, node, 0), _shape(flow, node, 1)
    batch = _labels(int(node.attr("batch_dims", 0)), "b")
    depth = indices[-1]
    rest = _labels(len(data) - len(batch) - depth, "r")
    operands = [
        Operand(0, (*batch, *_nothing(depth), *rest)),
        Operand(1, (*batch, *_nothing(len(indices) - len(batch)))),
    ]
    places = _nothing(len(indices) - len(batch) - 1)
    combine(flow, operands, Result((*batch, *places, *rest)))


@rules.on("ScatterND")
def scatter_nd(flow: Flow, node: Node) -> None:
    """Indexed axes are held; those behind them are the same in data and updates."""
    data, indices = _shape(flow, node, 0), _shape(flow, node, 1)
    rest = _labels(len(data) - indices[-1], "r")
    labels = (*_nothing(indices[-1]), *rest)
    operands = [
        Operand(0, labels),
        Operand(1, _nothing(len(indices))),
        Operand(2, (*_nothing(len(indices) - 1), *rest)),
    ]
    combine(flow, operands, Result(labels))


@rules.on("OneHot")
def one_hot(flow: Flow, node: Node) -> None:
    """Axes of the indices pass; places on the new axis are numbers."""
    rank = len(_shape(flow, node, 0))
    axis = int(node.attr("axis", -1)) % (rank + 1)
    labels = _labels(rank)
    combine(flow, [Operand(0, labels)], Result((*labels[:axis], None, *labels[axis:])))


@rules.on("Trilu")
def trilu(flow: Flow, node: Node) -> None:
    """What is zero depends on the place on the last two axes: they are held."""
    rank = len(_shape(flow, node, 0))
    labels = (*_labels(rank - 2), None, None)
    combine(flow, [Operand(0, labels)], Result(labels))


@rules.on("ReverseSequence")
def reverse_sequence(flow: Flow, node: Node) -> None:
    """Time is turned round for each sequence: it is held; the other axes pass."""
    labels: list[str | None] = list(_labels(len(_shape(flow, node, 0))))
    labels[int(node.attr("time_axis", 0))] = None
    batch = labels[int(node.attr("batch_axis", 1))]
    combine(flow, [Operand(0, tuple(labels)), Operand(1, (batch,))], Result(tuple(labels)))


@rules.on("Col2Im")
def col2im(flow: Flow, node: Node) -> None:
    """A channel is a block of rows, which are added up into its image."""
    (n, rows, columns), out = _shape(flow, node, 0), flow.shape(node.outputs[0]) or ()
    view = (n, out[1], rows // out[1], columns)
    operand = Operand(0, ("n", "c", "block", None), view, still=("block",))
    combine(flow, [operand], Result(("n", "c", *_nothing(len(out) - 2))))


@rules.on("RoiAlign", "MaxRoiPool")
def regions(flow: Flow, node: Node) -> None:
    """Channels pass; regions, and the images they lie in, are held."""
    for slot in range(1, len(node.inputs)):
        flow.pin(flow.fields(slot), f"{flow.where()}: used as regions")
    labels: Axes = (None, "c", None, None)
    combine(flow, [Operand(0, labels)], Result(labels))


@rules.on("CenterCropPad")
def center_crop_pad(flow: Flow, node: Node) -> None:
    """Axes that keep their length pass; what lives on the others is held."""
    before, after = flow.shapes(node.inputs[0]), flow.shapes(node.outputs[0])
    changed = [a for a in range(len(before[0])) if any(x[a] != y[a] for x, y in
               zip(before, after, strict=True))]  # fmt: skip
    labels = tuple(None if a in changed else f"a{a}" for a in range(len(before[0])))
    combine(flow, [Operand(0, labels)], Result(labels))


@rules.rewire("CenterCropPad")
def recrop(wiring: Wiring, node: Node) -> None:
    """The target names channels too."""
    if wiring.values(node, 1) is None:
        return
    new, axes = wiring.after(node.outputs[0]), node.attr("axes")
    wiring.want(node, 1, *([s[int(a)] for a in axes] if axes else s for s in new))


@rules.on("RandomNormalLike", "RandomUniformLike")
def random_like(flow: Flow, node: Node) -> None:
    """As many numbers as the input has positions, but other ones after a cut: approximate."""
    flow.approximate(flow.fields(0), f"{flow.where()} draws other numbers")
    flow.put(0, flow.fields(0))


@rules.on("Range", "RandomNormal", "RandomUniform")
def made(flow: Flow, node: Node) -> None:
    """Positions that no channel stands behind: what is lined up with them is held."""


@rules.on("AffineGrid", "EyeLike", "MaxUnpool", "Multinomial")
def held(flow: Flow, node: Node) -> None:
    """Positions are numbers in the result: all of them are held."""
    _hold(flow, node)


@rules.on("Compress", "NonMaxSuppression", "NonZero", "Unique")
def counted(flow: Flow, node: Node) -> None:
    """How much comes out depends on the data: all positions are held."""
    _hold(flow, node)


def _hold(flow: Flow, node: Node) -> None:
    found: list[Field] = []
    for slot, name in enumerate(node.inputs):
        found += flow.fields(slot) if name else ()
    flow.pin(found, f"{flow.where()}: places are numbers there")
