"""Names of Dims, and where they occur."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from onnxprune.identity.occurrences import follows_data, names_of, summed_by_weights, tensors_of
from tests.builder import Builder
from tests.oracle import flow_of


def chain() -> ModelProto:
    """A convolution, a norm, and a head on the flattened result."""
    b = Builder(0)
    h = b.node("Conv", "x", b.weight(4, 3, 1, 1))
    h = b.node("BatchNormalization", h, *(b.add(np.ones(4)) for _ in range(4)))
    y = b.node("Gemm", b.node("Flatten", b.node("Relu", h)), b.weight(2, 16), transB=1)
    return b.model({"x": ["n", 3, 2, 2]}, {y: ["n", 2]})


def test_a_dim_occurs_in_what_makes_passes_and_reads_it() -> None:
    """The weights it cuts, in the order of the graph."""
    found = flow_of(chain())
    [dim] = found.dims.free
    assert tensors_of(found.dims)[dim.index] == ["w0", "w1", "w2", "w3", "w4", "w5"]


def test_any_name_of_what_it_passes_stands_for_a_dim() -> None:
    """Its own, its weights', their nodes' names and outputs."""
    found = flow_of(chain())
    [dim] = found.dims.free
    names = names_of(found.dims, found.model)[dim.index]
    assert {"w0", "n_v0", "v0", "w1", "n_v1", "w5", "n_v4"} <= names


def test_a_dim_is_made_by_rows_and_not_by_columns() -> None:
    """A reader's name stands for what the reader makes, where only that is asked for."""
    found = flow_of(chain())
    [dim] = found.dims.free
    names = names_of(found.dims, found.model, made=True)
    assert "w0" in names[dim.index]
    assert "w5" not in names[dim.index]
    makers = [i for i, own in names.items() if "w5" in own]
    assert [found.dims.dims[i].pinned for i in makers] == ["graph output `v4`"]


def test_columns_are_told_from_rows_behind_a_view() -> None:
    """A weight that is transposed on its way is summed along the axis it arrives with."""
    b = Builder(0)
    h = b.node("MatMul", "x", b.weight(3, 4))
    turned = b.node("Transpose", b.weight(2, 4), perm=[1, 0])
    y = b.node("MatMul", h, turned)
    found = flow_of(b.model({"x": ["n", 3]}, {y: ["n", 2]}))
    summed = summed_by_weights(found.dims, found.model)
    rows, columns = found.dims.ties.sources[turned, 0].fields
    assert not summed[rows.ids].any()
    assert summed[columns.ids].all()


def test_what_follows_from_constants_follows_no_data() -> None:
    """Weights computed from weights are known before the model runs."""
    b = Builder(0)
    own = b.node("Neg", b.weight(3, 3))
    y = b.node("MatMul", "x", own)
    found = flow_of(b.model({"x": ["n", 3]}, {y: ["n", 3]}))
    assert follows_data(found.model) == {"x", y}
