"""Attention: heads and what is inside them are cut; the scale stays."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, helper

from tests.builder import CONTRIB, Builder
from tests.oracle import assert_cut_equals_mask, cut_at, flow_of

WIDTH, TOKENS, CLASSES = 5, 4, 3
SIZE, VALUE = 6, 3
seeds = st.integers(0, 1000)


def projected(b: Builder, heads: int, size: int, by_head: bool) -> str:
    """Tokens times a weight, as (batch, tokens, heads x size) or with heads on an axis."""
    x = b.node("MatMul", "x", b.weight(WIDTH, heads * size))
    if not by_head:
        return x
    x = b.node("Reshape", x, b.ints(0, 0, heads, -1))
    return b.node("Transpose", x, perm=[0, 2, 1, 3])


def closed(b: Builder, y: str, width: int, by_head: bool, opset: int) -> ModelProto:
    """A last product behind attention, and the model."""
    if by_head:
        y = b.node("Transpose", y, perm=[0, 2, 1, 3])
        y = b.node("Reshape", y, b.ints(0, 0, -1))
    y = b.node("MatMul", y, b.weight(width, CLASSES))
    return b.model({"x": ["n", TOKENS, WIDTH]}, {y: ["n", TOKENS, CLASSES]}, opset=opset)


def mask_of(b: Builder, kind: str, heads: int) -> str:
    """A mask by name: none, bool, or a learned bias for each head."""
    if kind == "bool":
        return b.add(np.tril(np.ones((TOKENS, TOKENS))), np.bool_)
    if kind == "heads":
        return b.weight(1, heads, TOKENS, TOKENS)
    return ""


def plain(
    seed: int, *, by_head: bool, kv: int = 4, mask: str = "", rotary: str = "", **attributes: Any
) -> ModelProto:
    """x > q, k, v > Attention of opset 23 > product; 4 heads of queries, `kv` of the others."""
    b = Builder(seed)
    q, k, v = (projected(b, h, s, by_head) for h, s in ((4, SIZE), (kv, SIZE), (kv, VALUE)))
    if rotary:
        caches = [b.weight(1, TOKENS, SIZE // 2) for _ in range(2)]
        caches = [b.node("Expand", c, b.node("Concat", *_batch(b), axis=0)) for c in caches]
        more: dict[str, Any] = {"interleaved": int(rotary == "interleaved")}
        q = b.node("RotaryEmbedding", q, *caches, **more, num_heads=0 if by_head else 4)
        k = b.node("RotaryEmbedding", k, *caches, **more, num_heads=0 if by_head else kv)
    counts: dict[str, Any] = {} if by_head else {"q_num_heads": 4, "kv_num_heads": kv}
    y = b.node("Attention", q, k, v, mask_of(b, mask, 4), **counts, **attributes)
    return closed(b, y, 4 * VALUE, by_head, 23)


def _batch(b: Builder) -> list[str]:
    return [b.node("Shape", "x", start=0, end=1), b.ints(TOKENS, SIZE // 2)]


PLAIN = [
    {"by_head": by_head, **more}
    for by_head in (True, False)
    for more in (
        {},
        {"mask": "bool"},
        {"mask": "heads"},
        {"is_causal": 1},
        {"scale": 0.3, "softcap": 2.0},
        {"kv": 2},
        {"kv": 1},
    )
]


@pytest.mark.parametrize("case", PLAIN, ids=str)
@given(seed=seeds)
@settings(max_examples=4, deadline=None)
def test_heads_and_sizes_are_cut(case: dict[str, Any], seed: int) -> None:
    """Heads go whole; those that stay thin alike, each with channels of its own."""
    found, *_ = assert_cut_equals_mask(plain(seed, **case), seed)
    kv = case.get("kv", 4)
    assert found.widths() == sorted([(kv, SIZE), (kv, VALUE)] + [(1, kv)] * (kv > 1))


@pytest.mark.parametrize("rotary", ["halves", "interleaved"])
@pytest.mark.parametrize("by_head", [True, False])
@given(seed=seeds)
@settings(max_examples=4, deadline=None)
def test_rotated_pairs_go_together(rotary: str, by_head: bool, seed: int) -> None:
    """One angle turns two positions of every head: they are one channel."""
    found, *_ = assert_cut_equals_mask(plain(seed, by_head=by_head, rotary=rotary), seed)
    assert (1, SIZE // 2) in found.widths()
    assert (4, VALUE) in found.widths()


@pytest.mark.parametrize("case", [{}, {"bias": True}, {"mask": "heads"}], ids=str)
@given(seed=seeds)
@settings(max_examples=4, deadline=None)
def test_fused_heads_are_cut(case: dict[str, Any], seed: int) -> None:
    """MultiHeadAttention adds the biases of queries, keys and values from one vector."""
    b = Builder(seed)
    q, k, v = (projected(b, 4, s, False) for s in (SIZE, SIZE, VALUE))
    bias = b.weight(4 * (2 * SIZE + VALUE)) if "bias" in case else ""
    mask = mask_of(b, case.get("mask", ""), 4)
    y = b.node("MultiHeadAttention", q, k, v, bias, "", mask, num_heads=4, domain=CONTRIB)
    found, *_ = assert_cut_equals_mask(closed(b, y, 4 * VALUE, False, 21), seed)
    assert found.widths() == [(1, 4), (4, VALUE), (4, SIZE)]


@pytest.mark.parametrize("value", [SIZE, VALUE])
@pytest.mark.parametrize("mask", ["", "heads"])
@given(seed=seeds)
@settings(max_examples=4, deadline=None)
def test_packed_heads_are_cut(value: int, mask: str, seed: int) -> None:
    """One weight makes queries, keys and values; its parts keep counts of their own."""
    b = Builder(seed)
    x = b.node("MatMul", "x", b.weight(WIDTH, 7))
    total = 4 * (2 * SIZE + value)
    more: dict[str, Any] = {}
    if value != SIZE:
        more["qkv_hidden_sizes"] = [4 * SIZE, 4 * SIZE, 4 * value]
    inputs = x, b.weight(7, total), b.weight(total), "", "", mask_of(b, mask, 4)
    y = b.node("Attention", *inputs, num_heads=4, domain=CONTRIB, **more)
    found, *_ = assert_cut_equals_mask(closed(b, y, 4 * value, False, 21), seed)
    assert found.widths() == sorted([(1, 4), (1, 7), (4, value), (4, SIZE)])


def contrib_rotary(seed: int, by_head: bool) -> ModelProto:
    b = Builder(seed)
    q, k, v = (projected(b, 2, s, by_head) for s in (16, 16, VALUE))
    caches = [b.weight(TOKENS, 8) for _ in range(2)]
    at = b.ints(0)
    q, k = (b.node("RotaryEmbedding", x, at, *caches, domain=CONTRIB) for x in (q, k))
    if by_head:
        k = b.node("Transpose", k, perm=[0, 1, 3, 2])
        scores = b.node("Softmax", b.node("MatMul", q, k), axis=-1)
        y = b.node("MatMul", scores, v)
    else:
        y = b.node("MultiHeadAttention", q, k, v, num_heads=2, domain=CONTRIB)
    return closed(b, y, 2 * VALUE, by_head, 21)


@pytest.mark.parametrize("by_head", [True, False])
def test_fused_rotation(by_head: bool) -> None:
    """ONNX Runtime's own rotary embedding, by head and flat."""
    for seed in range(3):
        found, *_ = assert_cut_equals_mask(contrib_rotary(seed, by_head), seed)
        assert (1, 8) in found.widths()


@pytest.mark.parametrize("by_head", [True, False])
def test_the_scale_stays(by_head: bool) -> None:
    """Scores go on being divided by the root of the size that was trained."""
    found = flow_of(plain(0, by_head=by_head))
    size = next(d for d in found.dims.free if (d.rows, d.size) == (4, SIZE))
    removed = np.zeros(found.dims.count, np.bool_)
    for part in size.parts:
        removed[part[:2]] = True
    made = cut_at(found, removed)
    node = next(n for n in made.model.nodes if n.op == "Attention")
    assert node.attr("scale") == pytest.approx(1 / sqrt(SIZE))
    if not by_head:
        assert (node.attr("q_num_heads"), node.attr("kv_num_heads")) == (4, 4)


def test_past_keys_hold_everything() -> None:
    """What another run hands in or takes on has a shape that it knows."""
    b = Builder(0)
    q, k, v = (projected(b, 4, SIZE, True) for _ in range(3))
    inputs = [q, k, v, "", "keys", "values"]
    b.nodes.append(helper.make_node("Attention", inputs, ["y", "all", "more"], "attend"))
    model = closed(b, "y", 4 * SIZE, True, 23)
    for name in ("keys", "values"):
        model.graph.input.append(helper.make_tensor_value_info(name, 1, ["n", 4, 7, SIZE]))
    found = flow_of(model)
    assert found.widths() == []
    assert "past or present" in found.pins()
