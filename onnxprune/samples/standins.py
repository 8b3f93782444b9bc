"""Seeded inputs that stand in for data: which models they fit, and how they are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from onnxprune.backend.feeds import model_inputs
from onnxprune.backend.runtime import Array, Spec, session
from onnxprune.errors import DataError
from onnxprune.model.graph import Model, Node, all_graphs
from onnxprune.samples.dataset import LEAST_SAMPLES, Dataset, batch_axes, check
from onnxprune.shape.shapes import Shape, Shapes

# Noise lies in all directions, so fitting to it takes many rows, and a layer of an MLP sees one a
# sample: accuracy of an MLP for digits at 0.6 of the MACs 0.885 with 256, 0.921 with 640, as many
# as repair looks at. Where a sample has many positions 256 do as well (research.md).
MOST_SAMPLES, SAMPLES = 640, 256
# Verification draws its trials from the seed and those behind it: these inputs are others.
SEED_OFFSET = 2**32
# All samples lie in memory at once.
MOST_BYTES = 2**30
# Samples that run together.
BATCH = 16

# Input of the weight that tells the window where no attribute does.
_WEIGHTS = {"QLinearConv": 3}
_WINDOWED = frozenset(
    """AveragePool Conv ConvInteger ConvTranspose DeformConv FusedConv LpPool MaxPool NhwcConv
    NhwcFusedConv NhwcMaxPool QLinearAveragePool QLinearConv STFT""".split()
)


def unfit(model: Model, shapes: Shapes) -> str:
    """Why seeded inputs tell nothing of what a model does on real ones; empty where they may.

    Neighbouring positions of images and sounds are alike, those of noise are not: what a sum
    over a window of them gives has another variance then, and repair would bring in the wrong
    one (tests/bench/research.md).

    Args:
        shapes: of the weights, at least.
    """
    for graph in all_graphs(model.proto.graph):
        for node in (Node(proto, i) for i, proto in enumerate(graph.node)):
            if node.op in _WINDOWED and _is_wide(node, shapes):
                return (
                    f"`{node.name or node.key}` ({node.op}) sums over neighbouring positions, and "
                    "what these have in common is not known"
                )
    return ""


def _is_wide(node: Node, shapes: Shapes) -> bool:
    """True where more than one position is seen, or it is not known how many are."""
    weight = node.input(_WEIGHTS.get(node.op, 1))
    kernel = node.attr("kernel_shape") or shapes.shape.get(weight, ())[2:]
    return not kernel or any(k > 1 for k in kernel)


def drawn(model: Model, shapes: Mapping[str, Shape], seed: int, meets: float) -> Dataset:
    """Samples as the seeded trials of the verification have them, but others.

    Args:
        shapes: of each input, at any batch.
        meets: how often inputs of these shapes meet a weight, in the mean.
    Raises: PruneError: none can be drawn, or too few.
    """
    specs = [Spec.of(info) for info in model.inputs]
    axes, fixed = batch_axes(specs)
    unit = fixed or 1
    sizes = (s[axes[n] or 0] for n, s in shapes.items() if axes.get(n) is not None)
    positions = max(meets / max([1, *sizes]), 1.0)
    wanted = max(SAMPLES, LEAST_SAMPLES * unit, int(MOST_SAMPLES / positions))
    n = -(-wanted // unit) * unit
    asked = {name: _sampled(shape, axes.get(name), n) for name, shape in shapes.items()}
    size = sum(prod(asked.get(s.name, ())) * s.dtype.itemsize for s in specs if s.dtype)
    if size > MOST_BYTES:
        raise DataError(f"{n} of them take {size / 2**30:.1f} GiB")
    made = check(model_inputs(model, asked, seed + SEED_OFFSET), None, specs)
    if made.n < n:
        raise DataError("no input of the model has a batch axis")
    return replace(made, is_seeded=True)


def _sampled(shape: Shape, axis: int | None, n: int) -> Shape:
    """The shape of an array with `n` samples along its first axis."""
    return shape if axis is None else (n, *shape[:axis], *shape[axis + 1 :])


def check_run(model: Model, data: Dataset, custom_ops: Sequence[str]) -> None:
    """Run a model on all samples.

    Raises: PruneError: it does not run, or gives numbers that are not finite.
    """
    run = session(model.proto, custom_ops=custom_ops)
    for feeds in data.batches(BATCH):
        for name, value in zip(run.output_names, run.run(feeds), strict=True):
            if not _is_finite(value):
                raise DataError(f"`{name}` is not finite on them")


def _is_finite(value: Array) -> bool:
    """True for what is no array of floats, too."""
    kind = getattr(value, "dtype", np.dtype(bool)).kind
    return kind not in "fc" or bool(np.isfinite(value).all())
