"""MACs, parameters and bytes, of a model and of a plan."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

from onnxprune.identity.dims import Dims
from onnxprune.manager import PassManager, State, Subject
from onnxprune.model.graph import Model
from onnxprune.model.storage import load
from onnxprune.normal.normalize import normalize
from onnxprune.passes.find_dims import FindDims
from onnxprune.planning.cost import Cost, CostModel, model_cost, node_macs
from onnxprune.rules import load_rules
from onnxprune.shape.sizes import choose
from tests.builder import CONTRIB, Builder
from tests.oracle import Followed, assert_cost_was_known, cut_at, flow_of, random_removed

SHIPPED = sorted((Path(__file__).parents[3] / "models").glob("*/model.onnx"))


def macs(b: Builder, inputs: dict[str, list[int | str]], **types: int) -> int:
    """MACs of a model's last node, alone at a batch of one."""
    out = b.nodes[-1].output[0]
    model = Model(b.model(inputs, {out: []}, types=dict(types)))
    del model.proto.graph.output[0].type.tensor_type.shape.dim[:]
    return node_macs(model, choose(model)[3], load_rules())[out]


def test_convolutions_count_output_times_filter() -> None:
    """Groups divide the length of the sum; a transposed one counts from its input."""
    b = Builder(0)
    b.node("Conv", "x", b.weight(6, 2, 3, 3), group=2, pads=[1, 1, 1, 1], strides=[2, 2])
    assert macs(b, {"x": ["n", 4, 8, 8]}) == 6 * 4 * 4 * 2 * 9
    b = Builder(0)
    b.node("ConvTranspose", "x", b.weight(4, 3, 2, 2), strides=[2, 2])
    assert macs(b, {"x": ["n", 4, 5, 5]}) == 4 * 25 * 3 * 4


def test_products_count_rows_times_columns_times_sum() -> None:
    """Gemm, MatMul and Einsum of the same product count the same."""
    b = Builder(0)
    b.node("Gemm", "x", b.weight(5, 3), transB=1)
    assert macs(b, {"x": [2, 3]}) == 30
    b = Builder(0)
    b.node("MatMul", "x", b.weight(7, 3, 5))
    assert macs(b, {"x": [7, 2, 3]}) == 7 * 30
    for equation in ("bij,bjk->bik", "bij,bjk", "...ij,...jk->...ik"):
        b = Builder(0)
        b.node("Einsum", "x", b.weight(7, 3, 5), equation=equation)
        assert macs(b, {"x": [7, 2, 3]}) == 7 * 30, equation


def test_recurrent_cells_count_every_step() -> None:
    """Each step multiplies by every weight of W and R, in both directions."""
    b = Builder(0)
    b.node("LSTM", "x", b.weight(2, 16, 3), b.weight(2, 16, 4), hidden_size=4,
           direction="bidirectional")  # fmt: skip
    assert macs(b, {"x": [6, 1, 3]}) == 6 * 2 * 16 * (3 + 4)


def test_attention_counts_projection_scores_and_values() -> None:
    """A fused block counts as the products it does the work of."""
    b = Builder(0)
    b.node("Attention", "x", b.weight(8, 24), b.weight(24), num_heads=2, domain=CONTRIB)
    assert macs(b, {"x": [1, 5, 8]}) == 5 * 8 * 24 + 5 * 5 * (8 + 8)


def test_quantised_products_count_as_others() -> None:
    """What a number is stored in does not change how often it is multiplied."""
    b = Builder(0)
    b.node("MatMulInteger", "x", b.add(np.ones((3, 5)), np.uint8))
    assert macs(b, {"x": [2, 3]}, x=TensorProto.UINT8) == 30


def test_a_ratio_to_nothing_is_one() -> None:
    """A model without MACs keeps all of them."""
    whole = Cost(0, 10, 100)
    assert Cost(0, 5, 80).share(whole) == {"macs": 1.0, "params": 0.5, "bytes": 0.8}


# --- plans ----------------------------------------------------------------------------------------


def residual() -> ModelProto:
    """A stream with a grouped, a depthwise and a plain branch, flattened into a head."""
    b = Builder(1)
    x = b.node("Conv", "x", b.weight(8, 3, 1, 1), b.weight(8))
    h = b.node("Relu", b.node("Conv", x, b.weight(12, 4, 1, 1), group=2))
    x = b.node("Add", x, b.node("Conv", h, b.weight(8, 12, 1, 1)))
    h = b.node("Conv", x, b.weight(8, 1, 3, 3), group=8, pads=[1, 1, 1, 1])
    x = b.node("Concat", x, b.node("Conv", h, b.weight(6, 8, 1, 1)), axis=1)
    y = b.node("Gemm", b.node("Flatten", x), b.weight(5, 14 * 4), b.weight(5), transB=1)
    return b.model({"x": ["n", 3, 2, 2]}, {y: ["n", 5]})


def heads() -> ModelProto:
    """Three heads of four, each thinned by itself, and whole heads that may go."""
    b = Builder(2)

    def split(out: str) -> str:
        by_head = b.node("Reshape", out, b.ints(0, -1, 3, 4))
        return b.node("Transpose", by_head, perm=[0, 2, 1, 3])

    q, k, v = (split(b.node("MatMul", "x", b.weight(6, 12))) for _ in range(3))
    scores = b.node("MatMul", q, b.node("Transpose", k, perm=[0, 1, 3, 2]))
    mixed = b.node("MatMul", b.node("Softmax", scores, axis=-1), v)
    joined = b.node("Reshape", b.node("Transpose", mixed, perm=[0, 2, 1, 3]), b.ints(0, -1, 12))
    y = b.node("MatMul", joined, b.weight(12, 6))
    return b.model({"x": ["n", 5, 6]}, {y: ["n", 5, 6]})


def packed() -> ModelProto:
    """Attention as one operator, whose rule divides: it is asked again for each plan."""
    b = Builder(3)
    h = b.node("MatMul", "x", b.weight(6, 8))
    h = b.node("Attention", h, b.weight(8, 24), b.weight(24), num_heads=2, domain=CONTRIB)
    y = b.node("MatMul", h, b.weight(8, 3))
    return b.model({"x": ["n", 5, 6]}, {y: ["n", 5, 3]})


def shared_bias() -> ModelProto:
    """One vector serves two layers, whose channels go apart."""
    b = Builder(4)
    bias = b.weight(8)
    h = b.node("Relu", b.node("Gemm", "x", b.weight(3, 8), bias))
    h = b.node("Relu", b.node("Gemm", h, b.weight(8, 8), bias))
    y = b.node("Gemm", h, b.weight(8, 2))
    return b.model({"x": ["n", 3]}, {y: ["n", 2]})


GRAPHS = {"residual": residual, "heads": heads, "packed": packed, "shared": shared_bias}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("graph", GRAPHS)
def test_the_cost_of_a_plan_is_the_cost_of_the_cut_model(graph: str, seed: int) -> None:
    """MACs and parameters are known before anything is cut, whatever a plan takes."""
    found = flow_of(GRAPHS[graph]())
    assert found.dims.free
    removed = random_removed(found.dims, seed, exact_only=False)
    assert_cost_was_known(found, removed, cut_at(found, removed))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.parent.name)
def test_the_cost_of_plans_of_shipped_models_is_exact(path: Path) -> None:
    """Exporters' graphs, with shapes that the graph computes, count as they will."""
    state = State(subject := Subject(normalize(load(path))), subject, progress=lambda text: None)
    PassManager([FindDims()]).run(state)
    found = Followed(state.model, subject.sizes, subject.shapes, state[Dims])
    removed = random_removed(found.dims, 5, exact_only=False)
    assert_cost_was_known(found, removed, cut_at(found, removed))


def cost_model(found: Followed) -> CostModel:
    """The cost model of a followed model."""
    return CostModel(
        found.model, found.dims, choose(found.model)[3], found.shapes[0], load_rules()
    )


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_plan_that_keeps_all_costs_what_the_model_costs(graph: str) -> None:
    """Bytes too: those of the initializers and the rest of the file."""
    found = flow_of(GRAPHS[graph]())
    told = cost_model(found)
    assert told.whole == model_cost(found.model, choose(found.model)[3], load_rules())


def test_a_shared_weight_costs_twice_once_its_uses_part() -> None:
    """Whole it is stored once; cut alike it is too; cut apart there are two of it."""
    found = flow_of(shared_bias())
    told, alive = cost_model(found), np.ones(found.dims.count, np.bool_)
    first, second = (d.channels for d in sorted(found.dims.free, key=lambda d: d.index)[:2])
    weights = 3 * 8 + 8 * 8 + 8 * 2
    assert told.whole.params == weights + 8
    alive[first[0]] = False
    assert told.evaluate(alive).params == (3 * 7 + 7 * 8 + 8 * 2) + 7 + 8
    alive[second[0]] = False
    assert told.evaluate(alive).params == (3 * 7 + 7 * 7 + 7 * 2) + 7


@pytest.mark.parametrize("turned", [False, True])
def test_a_tied_weight_is_stored_for_each_way_it_is_taken(turned: bool) -> None:
    """The same positions of the other axis are another take; the same rows found anew are not."""
    b = Builder(0)
    x = b.node("MatMul", "x", b.weight(3, 6))
    weight = b.weight(6, 6)
    x = b.node("Tanh", b.node("MatMul", x, weight))
    x = b.node("Gemm", x, weight, transB=int(turned))
    x = b.node("MatMul", x, b.weight(6, 3))
    found = flow_of(b.model({"x": ["n", 3]}, {x: ["n", 3]}))
    for seed in range(8):
        removed = random_removed(found.dims, seed)
        assert_cost_was_known(found, removed, cut_at(found, removed))
    for dim in found.dims.free:  # rows of one use alone, at places that are columns of the other
        removed = np.zeros(found.dims.count, np.bool_)
        removed[dim.channels[:2]] = True
        assert_cost_was_known(found, removed, cut_at(found, removed))


def test_bytes_of_small_integers_are_packed() -> None:
    """Two elements of four bits share a byte, the last one has its own."""
    b = Builder(0)
    h = b.node("MatMul", "x", b.weight(3, 3))
    w = b.node("DequantizeLinear", b.add(np.ones((3, 5)), np.int8), b.add(1.0))
    y = b.node("MatMul", h, w)
    model = b.model({"x": ["n", 3]}, {y: ["n", 5]})
    stored = model.graph.initializer[1]
    stored.data_type, stored.raw_data = TensorProto.INT4, bytes(8)
    found = flow_of(model)
    told = cost_model(found)
    [dim] = [d for d in found.dims.free if len(d.channels) == 3]
    alive = np.ones(found.dims.count, np.bool_)
    alive[dim.channels[:2]] = False
    assert told.whole.bytes - told.evaluate(alive).bytes == 6 * 4 + (8 - 3)


def test_slopes_say_what_the_next_channel_wins() -> None:
    """On a plain chain cost is linear in each width, so a slope is a difference."""
    b = Builder(0)
    h = b.node("Relu", b.node("Gemm", "x", b.weight(3, 8)))
    y = b.node("Gemm", h, b.weight(8, 2))
    found = flow_of(b.model({"x": ["n", 3]}, {y: ["n", 2]}))
    told, alive = cost_model(found), np.ones(found.dims.count, np.bool_)
    [dim] = found.dims.free
    slope = partial(told.slopes, alive)
    part = int(told.lengths.part_of[dim.channels[0]])
    assert slope({"macs": 1.0})[part] == pytest.approx(3 + 2)
    assert slope({"params": 2.0})[part] == pytest.approx(2 * (3 + 2))
    assert slope({"bytes": 1.0})[part] == pytest.approx(4 * (3 + 2))


def test_charges_add_up_and_name_the_dims() -> None:
    """What a target is made of sums to it; each node depends on the Dims of its axes."""
    found = flow_of(residual())
    told, alive = cost_model(found), np.ones(found.dims.count, np.bool_)
    for name in ("macs", "params"):
        charges = told.charges(alive, name)
        assert sum(amount for amount, _ in charges) == getattr(told.whole, name)
    free = {d.index for d in found.dims.free}
    assert free <= set().union(*(dims for _, dims in told.charges(alive, "macs")))
