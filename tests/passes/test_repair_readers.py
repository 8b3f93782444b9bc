"""Repair of a whole model, on nets whose best repair is known, and on the shipped ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

import onnxprune
from onnxprune.backend.runtime import session
from onnxprune.readers import frontier
from onnxprune.verification import trials
from tests.builder import Builder

MODELS = Path(__file__).resolve().parents[2] / "models"
OFF: dict[str, Any] = {"latency_s": 0}


def narrow(seed: int = 0) -> tuple[ModelProto, dict[str, Any]]:
    """Three linear layers of 16 units over inputs that live in 4 dimensions, and samples."""
    b = Builder(seed)
    h = b.node("MatMul", "x", b.weight(12, 16))
    h = b.node("Gemm", h, b.weight(16, 16), b.weight(16), transB=1, alpha=0.5, beta=2.0)
    y = b.node("MatMul", h, b.weight(16, 3))
    x = b.rng.standard_normal((200, 4)) @ b.rng.standard_normal((4, 12))
    return b.model({"x": ["n", 12]}, {y: ["n", 3]}), {"x": x.astype(np.float32)}


def spatial(seed: int = 0) -> tuple[ModelProto, dict[str, Any]]:
    """Convolutions of every kind around a residual sum, and samples."""
    b = Builder(seed)
    x = b.node("Conv", "x", b.weight(16, 3, 3, 3), pads=[1, 1, 1, 1])
    h = b.node("Relu", b.node("Conv", x, b.weight(24, 16, 1, 1), b.weight(24)))
    norm = [b.add(np.ones(24)), b.weight(24), b.weight(24), b.add(np.ones(24))]
    h = b.node("Conv", h, b.weight(24, 1, 3, 3), pads=[1, 1, 1, 1], group=24)
    h = b.node("Relu", b.node("BatchNormalization", b.node("Relu", h), *norm))
    h = b.node("Conv", h, b.weight(16, 24, 3, 3), auto_pad="SAME_UPPER")
    h = b.node("GlobalAveragePool", b.node("Relu", b.node("Add", x, h)))
    y = b.node("Gemm", b.node("Flatten", h), b.weight(16, 5))
    data = b.rng.standard_normal((60, 3, 9, 9)).astype(np.float32)
    return b.model({"x": ["n", 3, 9, 9]}, {y: ["n", 5]}), {"x": data}


def test_a_linear_net_is_repaired_exactly(tmp_path: Path) -> None:
    """What is kept still spans all that the inputs say."""
    model, data = narrow()
    np.savez(tmp_path / "data.npz", **data)
    given = {"data": tmp_path / "data.npz", "target": {"params": 0.5}, "score": "l2", **OFF}
    errors = []
    for repair in (False, True):
        made = onnxprune.prune(model, repair=repair, **given).model
        assert made is not None
        ours, theirs = (session(m).run(data)[0] for m in (model, made))
        errors.append(float(np.abs(ours - theirs).max() / np.abs(ours).max()))
    assert errors[0] > 0.1
    assert errors[1] < 0.02  # the pull towards the sliced weights is never quite zero


def test_bytes_do_not_depend_on_the_batches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Sums are taken sample by sample; only convolutions whose own sums do not depend on it."""
    model, data = spatial()
    np.savez(tmp_path / "data.npz", **data)
    made = []
    for size in (3, 16, 16):
        monkeypatch.setattr(
            frontier, "data_trials", lambda d, _, n=size: trials.data_trials(d, n)
        )
        found = onnxprune.prune(
            model, data=tmp_path / "data.npz", target={"macs": 0.6}, **OFF
        ).model
        assert found is not None
        made.append(found.SerializeToString())
    assert made[0] == made[1] == made[2]


def quantised(seed: int = 0) -> tuple[ModelProto, dict[str, Any]]:
    """Convolutions in integers around activations in integers, and samples of few dimensions."""
    b = Builder(seed)
    x = activations(b, "x", 0.05)
    for inputs, outputs, size in ((3, 16, 3), (16, 24, 1), (24, 5, 3)):
        scale = b.rng.uniform(0.002, 0.004, outputs).astype(np.float32)
        ints = b.add(b.rng.integers(-127, 128, (outputs, inputs, size, size)), np.int8)
        w = b.node("DequantizeLinear", ints, b.add(scale), axis=0)
        more = b.add(b.rng.integers(-900, 900, outputs), np.int32)
        bias = b.node("DequantizeLinear", more, b.add(scale * np.float32(0.05)), axis=0)
        x = activations(b, b.node("Relu", b.node("Conv", x, w, bias)), 0.05)
    y = b.node("GlobalAveragePool", x)
    data = b.rng.standard_normal((120, 2)) @ b.rng.standard_normal((2, 3 * 7 * 7))
    given = {"x": data.reshape(-1, 3, 7, 7).astype(np.float32)}
    return b.model({"x": ["n", 3, 7, 7]}, {y: ["n", 5, 1, 1]}), given


def activations(b: Builder, x: str, scale: float) -> str:
    """A value in 8 bits, as exporters put it around every layer."""
    code = b.add(scale), b.add(100, np.uint8)
    return b.node("DequantizeLinear", b.node("QuantizeLinear", x, *code), *code)


def test_a_quantised_net_comes_closer_in_its_own_types(tmp_path: Path) -> None:
    """Weights stay integers; kernels that sum integers give what was fitted, too."""
    model, data = quantised()
    np.savez(tmp_path / "data.npz", **data)
    off, kinds = {}, {}
    for repair in (False, True):
        made = onnxprune.prune(
            model, data=tmp_path / "data.npz", target={"macs": 0.5}, repair=repair, **OFF
        ).model
        assert made is not None
        ours, plain, fused = (
            session(m, optimize=o).run(data)[0]
            for m, o in ((model, False), (made, False), (made, True))
        )
        off[repair] = float(np.square(ours - plain).sum() / np.square(ours).sum())
        assert np.abs(plain - fused).max() < 0.05 * np.abs(ours).max()
        kinds[repair] = sorted(tensor.data_type for tensor in made.graph.initializer)
    assert off[True] < off[False] / 4
    assert kinds[True] == kinds[False]


def test_every_kind_of_layer_comes_closer(tmp_path: Path) -> None:
    """Solved, scaled, normalised: on samples that were not looked at."""
    model, data = spatial()
    np.savez(tmp_path / "data.npz", **data)
    off = {}
    for repair in (False, True):
        found = onnxprune.prune(
            model, data=tmp_path / "data.npz", target={"macs": 0.6}, repair=repair, **OFF
        )
        assert found.model is not None
        fresh = {"x": np.random.default_rng(9).standard_normal((50, 3, 9, 9)).astype(np.float32)}
        ours, theirs = (session(m).run(fresh)[0] for m in (model, found.model))
        off[repair] = float(np.square(ours - theirs).sum() / np.square(ours).sum())
    assert off[True] < off[False] / 2


def test_layers_of_integers_are_named() -> None:
    """They are cut, but their weights stay as they were sliced: the user is told which."""
    b = Builder(0)
    h = b.node("Relu", b.node("MatMul", "x", b.weight(8, 16)))
    parts = b.node("DynamicQuantizeLinear", h, outputs=3)
    integers = b.add(b.rng.integers(-99, 99, (16, 4)), np.int8)
    made = b.node("MatMulInteger", parts, integers, f"{parts}_2")
    y = b.node("Mul", b.node("Cast", made, to=1), f"{parts}_1")
    model = b.model({"x": ["n", 8]}, {y: ["n", 4]}, opset=17)
    data = {"x": b.rng.standard_normal((100, 8)).astype(np.float32)}
    found = onnxprune.prune(model, data=data, target={"macs": 0.6}, approximate=True, **OFF)
    [told] = [text for text in found.json()["warnings"] if "refit" in text]
    assert told.endswith(": 1 MatMulInteger")
    whole, other = narrow()
    sound = onnxprune.prune(whole, data=other, target={"macs": 0.6}, **OFF)
    assert not [text for text in sound.json()["warnings"] if "refit" in text]
    b = Builder(1)
    parts = [b.node("MatMul", "x", b.weight(12, 16)) for _ in range(3)]
    domain = {"domain": "com.microsoft", "num_heads": 2}
    mixed = b.node("MultiHeadAttention", *parts, b.weight(48), **domain)
    heads = b.model({"x": ["n", 6, 12]}, {b.node("MatMul", mixed, b.weight(16, 5)): ["n", 6, 5]})
    tokens = {"x": b.rng.standard_normal((80, 6, 12)).astype(np.float32)}
    found = onnxprune.prune(heads, data=tokens, target={"params": 0.6}, **OFF)
    assert not [text for text in found.json()["warnings"] if "refit" in text]


def test_few_samples_repair_nothing(tmp_path: Path) -> None:
    """They are for the figures then, and the user is told."""
    model, data = narrow()
    np.savez(tmp_path / "data.npz", x=data["x"][:10])
    found = onnxprune.prune(model, data=tmp_path / "data.npz", target={"macs": 0.7}, **OFF)
    assert any("nothing is repaired" in warning for warning in found.json()["warnings"])
    assert found.verify["metric"]["samples"] == 10


@pytest.mark.parametrize(("evaluation", "shown"), [(None, 40), ("more.npz", 30)])
def test_figures_come_from_samples_that_repair_did_not_see(
    evaluation: str | None, shown: int, tmp_path: Path
) -> None:
    """A fifth of the data, or all that is given for it."""
    model, data = narrow()
    np.savez(tmp_path / "data.npz", **data)
    np.savez(tmp_path / "more.npz", x=data["x"][:30])
    other = None if evaluation is None else tmp_path / evaluation
    found = onnxprune.prune(
        model, data=tmp_path / "data.npz", evaluation=other, target={"macs": 0.7}, **OFF
    )
    assert found.verify["metric"]["samples"] == shown


def test_a_halved_resnet_still_classifies(tmp_path: Path) -> None:
    """With its plan alone, `apply` repeats the cut without the repair."""
    folder = MODELS / "digits_resnet"
    out = tmp_path / "out.onnx"
    onnxprune.prune(folder / "model.onnx", out, data=folder / "calibration.npz",
                    target={"macs": 0.5}, allocate="uniform", **OFF)  # fmt: skip
    onnxprune.apply(folder / "model.onnx", out.with_suffix(".plan.json"), tmp_path / "cut.onnx")
    after = [
        onnxprune.verify(folder / "model.onnx", made, data=folder / "eval.npz", **OFF)
        .verify["metric"]["after"]
        for made in (out, tmp_path / "cut.onnx")
    ]  # fmt: skip
    assert after[0] > 0.97
    assert after[1] < 0.5
