"""Products of matrices: rows, columns, heads, letters."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto

from onnxprune.rules import load_rules
from onnxprune.rules.linear import product_labels
from tests.builder import Builder
from tests.oracle import assert_cut_equals_mask, flow_of

seeds = st.integers(0, 1000)


@pytest.mark.parametrize("turned", [0, 1])
@pytest.mark.parametrize("bias", [None, (6,), (1, 6), (1,), ()])
@given(seed=seeds)
@settings(max_examples=3, deadline=None)
def test_gemm_loses_rows_and_columns(turned: int, bias: tuple[int, ...] | None, seed: int) -> None:
    """Both factors may be stored transposed; a bias for all columns is nobody's."""
    b = Builder(seed)
    x = b.node("Gemm", "x", b.weight(3, 5))
    if turned:
        x = b.node("Transpose", x, perm=[1, 0])
    weight = b.weight(*((6, 5) if turned else (5, 6)))
    inputs = [x, weight] + ([] if bias is None else [b.weight(*bias)])
    x = b.node("Gemm", *inputs, transA=turned, transB=turned, alpha=0.5, beta=2.0)
    x = b.node("Gemm", x, b.weight(6, 3))
    found, *_ = assert_cut_equals_mask(b.model({"x": ["n", 3]}, {x: ["n", 3]}), seed)
    assert found.widths() == [(1, 5), (1, 6)]


def test_the_weight_may_stand_first() -> None:
    """A weight times data has its channels in rows."""
    b = Builder(0)
    x = b.node("MatMul", b.weight(6, 4), "x")
    x = b.node("MatMul", b.weight(3, 6), b.node("Relu", x))
    found, *_ = assert_cut_equals_mask(b.model({"x": ["n", 4, 5]}, {x: ["n", 3, 5]}), 0)
    assert found.widths() == [(1, 6)]


def test_vectors_are_summed_away() -> None:
    """A factor of one axis leaves the other's rows."""
    assert product_labels(3, 1) == (("0", "m", "k"), ("k",), ("0", "m"))
    assert product_labels(1, 2) == (("k",), ("k", "n"), ("n",))
    b = Builder(0)
    x = b.node("MatMul", b.node("MatMul", "x", b.weight(3, 6)), b.weight(6))
    found, *_ = assert_cut_equals_mask(b.model({"x": ["n", 4, 3]}, {x: ["n", 4]}), 1)
    assert found.widths() == [(1, 6)]


def heads(seed: int, equation: str = "") -> ModelProto:
    """12 columns as 3 rows, each with a matrix of its own, and back."""
    b = Builder(seed)
    x = b.node("Reshape", b.node("MatMul", "x", b.weight(3, 12)), b.ints(-1, 3, 4))
    weight = b.weight(3, 4, 5)
    if equation:
        x = b.node("Einsum", x, weight, equation=equation)
    else:
        x = b.node("MatMul", b.node("Transpose", x, perm=[1, 0, 2]), weight)
        x = b.node("Transpose", x, perm=[1, 0, 2])
    x = b.node("MatMul", b.node("Reshape", x, b.ints(-1, 15)), b.weight(15, 3))
    return b.model({"x": ["n", 3]}, {x: ["n", 3]})


@pytest.mark.parametrize("equation", ["", "nge,geo->ngo", "...ge,geo->...go"])
@given(seed=seeds)
@settings(max_examples=4, deadline=None)
def test_batched_weights_have_rows(equation: str, seed: int) -> None:
    """Heads go whole, thin by positions of their own, and share the columns they make."""
    found, *_ = assert_cut_equals_mask(heads(seed, equation), seed)
    assert found.widths() == [(1, 3), (1, 5), (3, 4)]


@given(seed=seeds)
@settings(max_examples=4, deadline=None)
def test_positions_carry_two_kinds_of_identities(seed: int) -> None:
    """Of a flat axis made of heads and shared columns either may go; readers lose both."""
    b = Builder(seed)
    x = b.node("Reshape", b.node("MatMul", "x", b.weight(3, 12)), b.ints(-1, 3, 4))
    x = b.node("MatMul", b.node("Transpose", x, perm=[1, 0, 2]), b.weight(3, 4, 5))
    x = b.node("Reshape", b.node("Transpose", x, perm=[1, 0, 2]), b.ints(-1, 15))
    x = b.node("PRelu", b.node("PRelu", x, b.weight(1)), b.weight(15))
    x = b.node("Add", b.node("Mul", x, b.weight(15)), x)
    x = b.node("MatMul", x, b.weight(15, 3))
    found, *_ = assert_cut_equals_mask(b.model({"x": ["n", 3]}, {x: ["n", 3]}), seed)
    assert found.widths() == [(1, 3), (1, 5), (3, 4)]


@pytest.mark.parametrize("equation", ["ab,bc->ac", "a b , b c -> a c", "ab,bc", "...b,bc->...c"])
def test_letters_are_labels(equation: str) -> None:
    """What the output lacks is summed, in the spelling of the specification."""
    b = Builder(0)
    x = b.node("Einsum", b.node("MatMul", "x", b.weight(3, 6)), b.weight(6, 7), equation=equation)
    x = b.node("MatMul", x, b.weight(7, 3))
    found, *_ = assert_cut_equals_mask(b.model({"x": ["n", 3]}, {x: ["n", 3]}), 2)
    assert found.widths() == [(1, 6), (1, 7)]
    node = next(n for n in found.model.nodes if n.op == "Einsum")
    rule = load_rules().find(node, 21)
    assert rule is not None
    assert rule.macs is not None
    assert rule.macs(node, found.shapes[0].shape.__getitem__) == 2 * 6 * 7


def test_three_factors() -> None:
    """A form of two vectors: each of its sides is cut, and what it makes."""
    b = Builder(0)
    left, right = (b.node("MatMul", "x", b.weight(3, n)) for n in (4, 5))
    x = b.node("Einsum", left, b.weight(6, 4, 5), right, equation="na,oab,nb->no")
    x = b.node("MatMul", x, b.weight(6, 3))
    found, *_ = assert_cut_equals_mask(b.model({"x": ["n", 3]}, {x: ["n", 3]}), 4)
    assert found.widths() == [(1, 4), (1, 5), (1, 6)]


def test_a_diagonal_is_not_followed() -> None:
    """A letter twice in one term holds what it reads, and says so."""
    b = Builder(0)
    x = b.node("Reshape", b.node("MatMul", "x", b.weight(3, 16)), b.ints(-1, 4, 4))
    x = b.node("MatMul", b.node("Einsum", x, equation="nii->ni"), b.weight(4, 3))
    found = flow_of(b.model({"x": ["n", 3]}, {x: ["n", 3]}))
    assert found.widths() == []
    assert "equation not followed" in found.pins()
